"""The frame of the kernels: what a neuron model has to say, and the eager reference loop made from it.

A model is a scalar `step` and its `adjoint`, written once in the words of `_dialect`. Their arguments and results come
in this order, each group as the model's `Dynamics` lists it:

    step(*inputs, *states, *counters, *parameters, *settings, *constants, spike, o) -> (out, *states, *counters)
    adjoint(*inputs, *states, *counters, *parameters, *settings, *constants, d_out, *d_states, spike, slope, o)
        -> (*d_inputs, *d_states, *d_parameters)

Inputs arrive at every step and carry gradients: a current, or an excitatory and an inhibitory drive. States are real
and carry gradients, counters are discrete and do not. Parameters are per unit (or one number for all) and learnable,
settings are per unit and not, constants are plain numbers. `out` is what a step gives: a spike, `spike(u)` with u the
distance to threshold and `slope(u)` its derivative, or a real number such as the potential of a leaky integrator.
`adjoint` gets the values from before the step, and the gradients of what the step gave.

Options `o` are decided before the loop is built: a fused loop holds no trace of the branches not taken. All models have
those of `COMMON`; a model with a port lists `PORT` last among its settings and applies it where `o.port`.
`_neuron.Neuron` makes a function out of a `Dynamics`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from plexus.kernels._surrogate import SURROGATES

__all__ = [
    "COMMON",
    "PORT",
    "Dynamics",
    "Options",
    "eager_loop",
    "options_from",
    "options_key",
    "out_of_reach",
    "spike_function",
]

Options = SimpleNamespace


COMMON: Mapping[str, Any] = {"port": False, "smooth": False, "inclusive": False, "surrogate": "arctan"}
PORT = ("g", "b", "low", "high")  # the settings of a port: clip(g z + b, low, high)


def _default(o: Options) -> tuple[str, ...]:
    raise NotImplementedError


@dataclass(frozen=True, eq=False)
class Dynamics:
    """One neuron model, as the frame needs it.

    Args:
        name: name of the operator, `plexus::<name>`.
        step: one step forwards (see the head of this module).
        adjoint: one step backwards.
        states: names of the real states.
        counters: names of the discrete states.
        parameters: names of the learnable numbers of a unit.
        settings: names of the other numbers of a unit; `PORT` comes last where the model has a port.
        constants: names of the plain numbers.
        inputs: names of what arrives at every step; all have one shape.
        echo: the state that is always the last output. A recurrent loop needs it.
        options: options of the model's own and their defaults (True, False or a word).
        carried: o -> the states and counters that one step needs from the one before. By default all but the echo.
        used: o -> the parameters and settings that the equations mention. By default all, those of the port if ported.
    """

    name: str
    step: Callable[..., tuple[Any, ...]]
    adjoint: Callable[..., tuple[Any, ...]]
    states: tuple[str, ...]
    parameters: tuple[str, ...]
    counters: tuple[str, ...] = ()
    settings: tuple[str, ...] = ()
    constants: tuple[str, ...] = ()
    inputs: tuple[str, ...] = ("x",)
    echo: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    carried: Callable[[Options], tuple[str, ...]] = _default
    used: Callable[[Options], tuple[str, ...]] = _default

    def __post_init__(self) -> None:
        if self.carried is _default:
            memory = tuple(name for name in self.memory if name != self.echo)
            object.__setattr__(self, "carried", lambda o: memory)
        if self.used is _default:
            plain = tuple(name for name in self.columns if name not in PORT)
            object.__setattr__(self, "used", lambda o: (*plain, *PORT) if o.port else plain)

    @property
    def memory(self) -> tuple[str, ...]:
        """States and counters, in the order in which they are passed."""
        return self.states + self.counters

    @property
    def columns(self) -> tuple[str, ...]:
        """Parameters and settings: what may differ from unit to unit."""
        return self.parameters + self.settings

    @property
    def has_port(self) -> bool:
        """Whether an edit can reach what a unit emits."""
        return self.settings[-len(PORT) :] == PORT

    @property
    def numbers(self) -> tuple[str, ...]:
        """Parameters and settings without those of the port."""
        return self.columns[: -len(PORT)] if self.has_port else self.columns

    @property
    def defaults(self) -> dict[str, Any]:
        """All options and their defaults."""
        return {**COMMON, **self.options}


def options_key(dynamics: Dynamics, chosen: Mapping[str, Any]) -> str:
    """The chosen options as one string, those at their default left out."""
    return ",".join(f"{k}={chosen[k]}" for k, default in dynamics.defaults.items() if chosen.get(k, default) != default)


@lru_cache(maxsize=256)
def options_from(dynamics: Dynamics, key: str) -> Options:
    """The options that `options_key` wrote; and the places of the columns `used` and of the memory `carried`."""
    chosen: dict[str, Any] = dynamics.defaults
    for item in filter(None, key.split(",")):
        name, _, text = item.partition("=")
        chosen[name] = {"True": True, "False": False}.get(text, text)
    o = Options(**chosen)
    used, carried = dynamics.used(o), dynamics.carried(o)
    o.used = tuple(place for place, name in enumerate(dynamics.columns) if name in used)
    o.carried = tuple(place for place, name in enumerate(dynamics.memory) if name in carried)
    return o


class _Spike(torch.autograd.Function):
    """A step forwards, a given function as its derivative; right under every transform and to any order of it."""

    generate_vmap_rule = True

    @staticmethod
    def forward(u: Tensor, slope: Callable[[Tensor], Tensor], inclusive: bool) -> Tensor:
        return ((u >= 0) if inclusive else (u > 0)).to(u.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        u, ctx.slope, _ = inputs
        ctx.save_for_backward(u)
        ctx.save_for_forward(u)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return grad * ctx.slope(ctx.saved_tensors[0]), None, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: None) -> Tensor:
        slope: Tensor = ctx.slope(ctx.saved_tensors[0])
        return tangent * slope


def spike_function(
    o: Options, width: float, height: float, slope: Callable[[Tensor], Tensor] | None
) -> Callable[[Tensor], Tensor]:
    """The spike of the eager reference: u -> 0 or 1 with its surrogate derivative, or the smooth spike."""
    if slope is None:
        kind = SURROGATES[o.surrogate]

        def slope(u: Tensor) -> Tensor:
            return height * kind.derivative(u, width)

        if o.smooth:
            return lambda u: 0.5 + height * kind.integral(u, width)
    given = slope
    return lambda u: _Spike.apply(u, given, o.inclusive)  # type: ignore[no-untyped-call]


def eager_loop(
    dynamics: Dynamics,
    inputs: Sequence[Tensor],
    memory: Sequence[Tensor],
    columns: Sequence[Tensor],
    constants: Sequence[float],
    o: Options,
    spike: Callable[[Tensor], Tensor],
) -> tuple[Tensor, ...]:
    """The reference, step after step: inputs `[time, batch, unit]`, memory `[batch, unit]`, columns `[unit]`."""
    outputs = []
    for now in zip(*(x.unbind(0) for x in inputs), strict=True):
        out, *memory = dynamics.step(*now, *memory, *columns, *constants, spike, o)
        outputs.append(out)
    return (torch.stack(outputs) if outputs else torch.zeros_like(inputs[0]), *memory)


def out_of_reach(tensors: Sequence[Tensor]) -> bool:
    """Is there a `torch.func` transform or a forward-mode tangent, for which an operator has no rule?"""
    if torch.compiler.is_compiling():
        return False
    if torch._C._functorch.peek_interpreter_stack() is not None:
        return True
    if forward_ad._current_level < 0:
        return False
    return any(forward_ad.unpack_dual(t).tangent is not None for t in tensors)
