"""The frame of the kernels: what a neuron model has to say, and the eager reference loop made from it.

A model is a scalar `step` and its `adjoint`, written once in the words of `_dialect`:

    step(x, *states, *counters, *parameters, *settings, *constants, spike, o) -> (out, *states, *counters)
    adjoint(x, *states, *counters, *parameters, *settings, *constants, d_out, *d_states, spike, slope, o)
        -> (d_x, *d_states, *d_parameters)

States are real and carry gradients, counters are discrete and do not. Parameters are per unit (or one number for all)
and learnable, settings are per unit and not, constants are plain numbers. Options `o` are decided before the loop is
built: a fused loop holds no trace of the branches not taken.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from plexus.kernels._surrogate import SURROGATES

__all__ = ["Dynamics", "Options", "eager_loop", "options_from", "options_key"]

Options = SimpleNamespace


@dataclass(frozen=True, eq=False)
class Dynamics:
    """One neuron model, as the frame needs it.

    `echo` names the state that is always the last output; `carried(o)` the states and counters that one step needs from
    the one before; `used(o)` the parameters and settings that the equations mention under these options.
    """

    name: str
    step: Callable[..., tuple[Any, ...]]
    adjoint: Callable[..., tuple[Any, ...]]
    states: tuple[str, ...]
    counters: tuple[str, ...]
    echo: str | None
    parameters: tuple[str, ...]
    settings: tuple[str, ...]
    constants: tuple[str, ...]
    options: Mapping[str, Any]
    carried: Callable[[Options], tuple[str, ...]]
    used: Callable[[Options], tuple[str, ...]]

    @property
    def memory(self) -> tuple[str, ...]:
        """States and counters, in the order in which they are passed."""
        return self.states + self.counters

    @property
    def columns(self) -> tuple[str, ...]:
        """Parameters and settings: what may differ from unit to unit."""
        return self.parameters + self.settings


def options_key(dynamics: Dynamics, chosen: Mapping[str, Any]) -> str:
    """The chosen options as one string, those at their default left out."""
    return ",".join(f"{k}={chosen[k]}" for k, default in dynamics.options.items() if chosen.get(k, default) != default)


@lru_cache(maxsize=256)
def options_from(dynamics: Dynamics, key: str) -> Options:
    """The options that `options_key` wrote."""
    chosen: dict[str, Any] = dict(dynamics.options)
    for item in filter(None, key.split(",")):
        name, _, text = item.partition("=")
        chosen[name] = {"True": True, "False": False}.get(text, text)
    return Options(**chosen)


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
    x: Tensor,
    memory: Sequence[Tensor],
    columns: Sequence[Tensor],
    constants: Sequence[float],
    o: Options,
    spike: Callable[[Tensor], Tensor],
) -> tuple[Tensor, ...]:
    """The reference, one step after the other: x `[time, batch, unit]`, memory `[batch, unit]`, columns `[unit]`."""
    outputs = []
    for current in x.unbind(0):
        out, *memory = dynamics.step(current, *memory, *columns, *constants, spike, o)
        outputs.append(out)
    return (torch.stack(outputs) if outputs else torch.zeros_like(x), *memory)
