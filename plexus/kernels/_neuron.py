"""A neuron's function out of its `Dynamics`: what every model needs around its loop is here, once.

A new model is its `step` and `adjoint` (see `_frame`), a state, and a function that names its numbers:

    class MyState(NamedTuple):              # the fields are the model's states and counters, in their order
        v: Tensor
        z: Tensor

    _neuron = Neuron(MY_DYNAMICS, MyState)

    def my(x, state=None, *, decay, threshold=1.0, surrogate="arctan", smooth=False, port=None, recurrent=None,
           backend="auto"):
        numbers = {"decay": decay, "threshold": threshold}      # parameters and settings, without those of the port
        return _neuron(x, state, numbers, surrogate=surrogate, smooth=smooth, port=port, recurrent=recurrent,
                       backend=backend)

A module whose `forward(x, state=None, *, recurrent=None)` hands `recurrent` on to that function runs fused inside
`nn.Recurrent`; without that it runs there step by step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial
from typing import Any, Generic, Literal, TypeVar

import torch
from torch import Tensor

from plexus.errors import DeviceError, DtypeError, ShapeError, UnsupportedError
from plexus.kernels._frame import PORT, Dynamics, options_key
from plexus.kernels._operator import Operator, overlooked
from plexus.kernels._products import SparseWeight
from plexus.kernels._recurrent import RecurrentOperator
from plexus.kernels._surrogate import Surrogate
from plexus.units._port import Port

__all__ = ["BackendName", "Neuron", "Recurrence", "Slope"]

BackendName = Literal["auto", "fused", "eager"]
Slope = Surrogate | str | Callable[[Tensor], Tensor]
Recurrence = Tensor | SparseWeight | Sequence[Tensor | SparseWeight | None] | None
State = TypeVar("State", bound=tuple[Tensor, ...])


class Neuron(Generic[State]):
    """`out, state = neuron(inputs, state, numbers)` for one model: checks what it is given and runs the right loop.

    Args:
        dynamics: the model.
        state: its NamedTuple; the fields are `dynamics.memory`.
    """

    def __init__(self, dynamics: Dynamics, state: type[State]) -> None:
        assert state._fields == dynamics.memory, "the state's fields are the model's states and counters"  # type: ignore[attr-defined]
        self.dynamics, self.state = dynamics, state
        self.operator = Operator(dynamics)
        self.recurrent = None if dynamics.echo is None else RecurrentOperator(dynamics)
        self._make: Callable[..., State] = state

    def __call__(
        self,
        inputs: Tensor | Sequence[Tensor],
        state: State | None,
        numbers: Mapping[str, Tensor | float],
        *,
        options: Mapping[str, Any] | None = None,
        constants: Sequence[float] = (),
        start: Mapping[str, Tensor | float] | None = None,
        surrogate: Slope = "arctan",
        smooth: bool = False,
        port: Port | None = None,
        recurrent: Recurrence = None,
        backend: BackendName = "auto",
    ) -> tuple[Tensor, State]:
        """Run the model over time.

        Args:
            inputs: one tensor `[time, batch, unit…]` for each of the model's inputs, all of one shape.
            state: where to start; None: at `start`.
            numbers: the model's parameters and settings by name: numbers, or tensors that broadcast to `[unit…]`.
            options: the model's own options by name.
            constants: the model's constants in order.
            start: value of a state before the first step, where it is not 0.
            surrogate: a `Surrogate`, its name, or a function u -> dz/du.
            smooth: emit the smooth spike.
            port: gain and clamp of what each unit emits.
            recurrent: weight through which the units drive one another one step later, `[unit (to), unit (from)]` or a
                `SparseWeight`; with several inputs a sequence, one weight or None for each. Several dimensions of units
                count as one.
            backend: `"fused"` raises where the fused loop cannot run, `"eager"` asks for the reference.

        Returns:
            What the units emit `[time, batch, unit…]`, and the state after the last step.
        """
        inputs = checked_inputs([inputs] if isinstance(inputs, Tensor) else inputs, self.dynamics)
        x = inputs[0]
        slope, chosen = chosen_surrogate(surrogate, smooth)
        ported = port is not None and not port.is_identity
        if ported and not self.dynamics.has_port:
            raise UnsupportedError(f"the model {self.dynamics.name} has no port", mend="use port=None")
        common = {"port": ported, "smooth": smooth, "surrogate": chosen.name}
        key = options_key(self.dynamics, {**(options or {}), **common})
        columns = [column(name, numbers[name], x) for name in self.dynamics.numbers]
        if self.dynamics.has_port:
            columns += port_columns(port, x)
        settings = columns[len(self.dynamics.parameters) :]
        memory = self._memory(state, x, start or {})
        assert chosen.width is not None
        plain = [*map(float, constants), float(chosen.width), float(chosen.height)]
        operator: Any = self.operator
        weights: tuple[list[Tensor], ...] = ()
        if recurrent is not None:
            operator, weights = self.recurrent, recurrent_weights(recurrent, x, self.dynamics)
        blocked = (
            "the surrogate is a Python function"
            if slope is not None
            else f"{x.dtype} on {x.device.type} has none"
            if not operator.takes(x)
            else "gradients are asked of the port or of a setting"
            if any(c.requires_grad for c in settings)
            else None
        )
        if backend == "fused" and blocked:
            raise UnsupportedError("there is no fused loop for this call", given=blocked, mend='use backend="auto"')
        run = partial(operator.eager, slope=slope) if backend == "eager" or blocked else operator
        out, *after = run(inputs, memory, columns, *weights, plain, key)
        return out, self._make(*after)

    def _memory(self, state: State | None, x: Tensor, start: Mapping[str, Tensor | float]) -> Sequence[Tensor]:
        if state is not None:
            check_state(state, x, self.dynamics.memory)
            return state
        zeros = x.new_zeros(x.shape[1:])
        return [zeros + column(name, start[name], x) if name in start else zeros for name in self.dynamics.memory]


def checked_inputs(inputs: Sequence[Tensor], dynamics: Dynamics) -> list[Tensor]:
    """The inputs, which must be `[time, batch, unit…]` and alike."""
    names = dynamics.inputs
    if len(inputs) != len(names):
        raise ShapeError(f"{dynamics.name} takes other inputs", given=f"{len(inputs)} tensors", expected=names)
    x = inputs[0]
    if x.dim() < 3:
        raise ShapeError("the input has too few dimensions", given=tuple(x.shape), expected="[time, batch, unit…]")
    if not x.is_floating_point():
        raise DtypeError("the input is not floating point", given=x.dtype, mend="convert it, e.g. x.float()")
    for name, other in zip(names[1:], inputs[1:], strict=True):
        if other.shape != x.shape:
            raise ShapeError(f"{name} does not fit {names[0]}", given=tuple(other.shape), expected=tuple(x.shape))
        if other.dtype != x.dtype:
            raise DtypeError(f"{name} has another dtype than {names[0]}", given=other.dtype, expected=x.dtype)
        if other.device != x.device:
            raise DeviceError(f"{name} lies on another device than {names[0]}", given=other.device, expected=x.device)
    return list(inputs)


def chosen_surrogate(surrogate: Slope, smooth: bool) -> tuple[Callable[[Tensor], Tensor] | None, Surrogate]:
    """A surrogate given as a function, else None, and the named one."""
    if callable(surrogate):
        if smooth:
            raise UnsupportedError("a surrogate given as a function has no smooth spike", mend="use a named surrogate")
        return surrogate, Surrogate()
    return None, Surrogate(surrogate) if isinstance(surrogate, str) else surrogate


def check_state(state: Sequence[Tensor], x: Tensor, names: Sequence[str]) -> None:
    """Refuse a state that does not fit the input x `[time, batch, unit…]`."""
    for name, part in zip(names, state, strict=True):
        if part.shape != x.shape[1:]:
            raise ShapeError(
                f"{name} of the state does not fit the input",
                given=f"state {tuple(part.shape)} for input {tuple(x.shape)}",
                expected=f"{tuple(x.shape[1:])}: [batch, unit…] of an input [time, batch, unit…]",
                mend=_mend(part, x),
            )
        if part.dtype != x.dtype:
            raise DtypeError(
                f"{name} of the state has another dtype than the input", given=part.dtype, expected=x.dtype
            )
        if part.device != x.device:
            raise DeviceError(
                f"{name} of the state lies on another device than the input", given=part.device, expected=x.device
            )


def _mend(part: Tensor, x: Tensor) -> str:
    if part.shape == (x.shape[0], *x.shape[2:]):
        return "the input looks batch-first; time comes first here: x.transpose(0, 1)"
    return "start from None, or from the state that an input of this batch size left"


def column(name: str, number: Tensor | float, x: Tensor) -> Tensor:
    """A number of the neuron as a tensor: one element, or one per unit."""
    if not isinstance(number, Tensor):
        return constant(float(number), x)
    if number.device != x.device:
        raise DeviceError(f"{name} lies on another device than the input", given=number.device, expected=x.device)
    number = number.to(x.dtype)
    if number.numel() == 1 and number.dim() <= x.dim() - 2:
        return number.reshape(1)
    try:
        return number.expand(x.shape[2:]).contiguous()
    except RuntimeError as error:
        raise ShapeError(
            f"{name} does not fit the units", given=tuple(number.shape), expected=f"one number or {tuple(x.shape[2:])}"
        ) from error


def constant(number: float, x: Tensor) -> Tensor:
    """The number in one element, of the dtype and on the device of x; kept, since making it takes a GPU a launch."""
    if not overlooked([x]) or (x.is_cuda and torch.cuda.is_current_stream_capturing()):
        return x.new_full((1,), number)  # what a graph makes is not there before it runs
    return _kept_constant(number, x.dtype, x.device)


@lru_cache(maxsize=1024)
def _kept_constant(number: float, dtype: torch.dtype, device: torch.device) -> Tensor:
    with torch.inference_mode(False):
        return torch.full((1,), number, dtype=dtype, device=device)


def recurrent_weights(
    recurrent: Tensor | SparseWeight | Sequence[Tensor | SparseWeight | None], x: Tensor, dynamics: Dynamics
) -> tuple[list[Tensor], list[Tensor]]:
    """Weights, one for each input, and the places of the sparse ones; empty tensors where there are none."""
    if dynamics.echo is None:
        raise UnsupportedError(
            f"{dynamics.name} does not remember what it emitted, so it cannot be recurrent", mend="use recurrent=None"
        )
    listed = [recurrent] if isinstance(recurrent, (Tensor, SparseWeight)) else list(recurrent)
    if len(listed) != len(dynamics.inputs):
        raise ShapeError(
            "the recurrent weights do not match the inputs",
            given=f"{len(listed)} weights",
            expected=f"one for each of {dynamics.inputs}, None for none",
        )
    units = math.prod(x.shape[2:])
    nothing = x.new_zeros(0)
    weights: list[Tensor] = []
    places: list[Tensor] = []
    for weight in listed:
        values = nothing if weight is None else weight if isinstance(weight, Tensor) else weight.values
        found = (nothing.long(), nothing.long()) if not isinstance(weight, SparseWeight) else tuple(weight)[1:]
        size = (units, units) if not isinstance(weight, SparseWeight) else (len(weight.targets),)
        if weight is not None and (values.shape != size or (found[0].numel() not in (0, units + 1))):
            raise ShapeError(
                "the recurrent weight does not fit the units",
                given=tuple(values.shape) if isinstance(weight, Tensor) else f"{found[0].numel() - 1} units",
                expected=f"[{units}, {units}]: [unit (to), unit (from)]",
            )
        if values.dtype != x.dtype:
            raise DtypeError(
                "the recurrent weight has another dtype than the input", given=values.dtype, expected=x.dtype
            )
        if values.device != x.device:
            raise DeviceError(
                "the recurrent weight lies on another device than the input", given=values.device, expected=x.device
            )
        weights.append(values)
        places += found
    return weights, places


def port_columns(port: Port | None, x: Tensor) -> list[Tensor]:
    """The four numbers of a port (see `PORT`) per unit; one element each where there is none."""
    if port is None or port.is_identity:
        nothing = constant(0.0, x)
        return [nothing] * len(PORT)
    units = x.shape[2:]
    trail = (1,) * (len(units) - 1)
    return [part.view(-1, *trail).expand(units).contiguous() for part in port.dense(units[0], x)]
