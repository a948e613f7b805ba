"""The leaky integrate-and-fire loop over time; its equations stand in `_lif_model`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

from torch import Tensor

from plexus.errors import DeviceError, DtypeError, RangeError, ShapeError, UnknownNameError, UnsupportedError
from plexus.kernels._frame import options_key
from plexus.kernels._lif_model import LIF_DYNAMICS
from plexus.kernels._operator import Operator
from plexus.kernels._surrogate import Surrogate
from plexus.units._port import Port

__all__ = ["LIFState", "lif"]

_operator = Operator(LIF_DYNAMICS)

Reset = Literal["soft", "hard", "none"]
Slope = Surrogate | str | Callable[[Tensor], Tensor]


class LIFState(NamedTuple):
    """What a leaky integrate-and-fire neuron remembers."""

    v: Tensor  # membrane potential                 [batch, unit…]
    z: Tensor  # what it last emitted               [batch, unit…]
    r: Tensor  # steps it is still refractory       [batch, unit…]


def lif(
    x: Tensor,
    state: LIFState | None = None,
    *,
    decay: Tensor | float,
    threshold: Tensor | float = 1.0,
    gain: Tensor | float = 1.0,
    rest: Tensor | float = 0.0,
    reset: Reset = "soft",
    reset_value: Tensor | float = 0.0,
    delayed_reset: bool = False,
    detach_reset: bool = False,
    inclusive: bool = False,
    refractory: int = 0,
    surrogate: Slope = "arctan",
    smooth: bool = False,
    port: Port | None = None,
    backend: Literal["auto", "fused", "eager"] = "auto",
) -> tuple[Tensor, LIFState]:
    """Leaky integrate-and-fire neurons over time: `spikes, state = lif(current, decay=0.9)`.

        m[t] = rest + decay (v[t-1] - rest) + gain x[t]
        z[t] = port(H(m[t] - threshold))
        v[t] = m[t] - z[t] threshold  (soft),   (1 - z[t]) m[t] + z[t] reset_value  (hard),   m[t]  (none)

    Runs as one fused loop over time on the CPU in float32 and float64, and as the eager reference of the same equations
    elsewhere, under `torch.func` transforms, forward-mode AD and double backward. Running a sequence in pieces, each
    from the state that the last one left, gives bit for bit what running it whole gives.

    Args:
        x: input current `[time, batch, unit…]`.
        state: where to start, each tensor `[batch, unit…]`; None starts at rest.
        decay: factor of the potential per step, exp(-dt/τ) or 1 - dt/τ; a number or a tensor that broadcasts to
            `[unit…]`, like all numbers of the neuron.
        threshold: potential above which the neuron emits a spike.
        gain: factor of the input; 1 or 1 - decay are usual.
        rest: potential towards which the membrane decays.
        reset: `"soft"` subtracts the threshold, `"hard"` goes to `reset_value`, `"none"` does nothing.
        reset_value: where a hard reset goes.
        delayed_reset: apply the reset one step later, to what that step has integrated, instead of at once.
        detach_reset: let no gradient flow through the reset.
        inclusive: spike at m = threshold as well.
        refractory: steps after a spike for which the neuron keeps its potential and stays silent.
        surrogate: a `Surrogate`, the name of one, or a function u -> dz/du (which runs the eager reference).
        smooth: emit 1/2 + the surrogate's integral instead of a spike, so that all derivatives are true ones.
        port: gain and clamp of what each unit emits. `[unit]`, or the first of several unit dimensions.
        backend: `"fused"` raises where the fused loop cannot run, `"eager"` asks for the reference.

    Returns:
        Spikes (0 or 1, in the dtype of x) of the shape of x, and the state after the last step.

    Raises:
        ShapeError: x has fewer than three dimensions, or the state or a number does not fit it.
        DtypeError: x is not floating point or the state has another dtype.
        DeviceError: the state lies on another device.
        RangeError: refractory is negative.
        UnsupportedError: `backend="fused"` and there is no fused loop for this call.

    Examples:
        >>> import torch
        >>> spikes, state = lif(torch.full((6, 1, 1), 0.45), decay=1.0)
        >>> spikes.flatten().tolist()
        [0.0, 0.0, 1.0, 0.0, 1.0, 0.0]
    """
    if x.dim() < 3:
        raise ShapeError("the input has too few dimensions", given=tuple(x.shape), expected="[time, batch, unit…]")
    if not x.is_floating_point():
        raise DtypeError("the input is not floating point", given=x.dtype, mend="convert it, e.g. x.float()")
    if reset not in ("soft", "hard", "none"):
        raise UnknownNameError.among("reset", reset, ("soft", "hard", "none"))
    if refractory < 0:
        raise RangeError("the refractory time is negative", given=refractory, expected="a number of steps >= 0")
    if smooth and refractory:
        raise UnsupportedError("a smooth spike has no moment from which to be refractory", mend="use refractory=0")
    slope, chosen = None, Surrogate()
    if callable(surrogate):
        if smooth:
            raise UnsupportedError("a surrogate given as a function has no smooth spike", mend="use a named surrogate")
        slope = surrogate
    else:
        chosen = Surrogate(surrogate) if isinstance(surrogate, str) else surrogate
    has_rest = isinstance(rest, Tensor) or rest != 0.0
    key = options_key(
        LIF_DYNAMICS,
        {
            "reset": reset,
            "delayed": delayed_reset and reset != "none",
            "detach": detach_reset,
            "inclusive": inclusive,
            "refractory": refractory > 0,
            "rest": has_rest,
            "port": port is not None and not port.is_identity,
            "smooth": smooth,
            "surrogate": chosen.name,
        },
    )
    numbers = {"decay": decay, "gain": gain, "threshold": threshold, "rest": rest, "reset_value": reset_value}
    columns = [_column(name, number, x) for name, number in numbers.items()]
    state = _checked(state, x, columns[3] if has_rest else None)
    dense_port = _port(port, x)
    columns += dense_port
    assert chosen.width is not None
    constants = [float(refractory), float(chosen.width), float(chosen.height)]
    blocked = (
        "the surrogate is a Python function"
        if slope is not None
        else f"{x.dtype} on {x.device.type} has none"
        if not _operator.takes(x)
        else "gradients are asked of the port"
        if any(p.requires_grad for p in dense_port)
        else None
    )
    if backend == "fused" and blocked:
        raise UnsupportedError("there is no fused loop for this call", given=blocked, mend='use backend="auto"')
    if backend == "eager" or blocked:
        spikes, *memory = _operator.eager(x, state, columns, constants, key, slope)
    else:
        spikes, *memory = _operator(x, state, columns, constants, key)
    return spikes, LIFState(*memory)


def _checked(state: LIFState | None, x: Tensor, rest: Tensor | None) -> LIFState:
    if state is None:
        zeros = x.new_zeros(x.shape[1:])
        return LIFState(zeros if rest is None else zeros + rest, zeros, zeros)
    for name, part in zip(LIFState._fields, state, strict=True):
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
    return state


def _mend(part: Tensor, x: Tensor) -> str:
    if part.shape == (x.shape[0], *x.shape[2:]):
        return "the input looks batch-first; time comes first here: x.transpose(0, 1)"
    return "start from None, or from the state that an input of this batch size left"


def _column(name: str, number: Tensor | float, x: Tensor) -> Tensor:
    """A number of the neuron as a tensor: one element, or one per unit."""
    if not isinstance(number, Tensor):
        return x.new_full((1,), number)
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


def _port(port: Port | None, x: Tensor) -> list[Tensor]:
    if port is None or port.is_identity:
        nothing = x.new_zeros(1)
        return [nothing, nothing, nothing, nothing]
    units = x.shape[2:]
    trail = (1,) * (len(units) - 1)
    return [part.view(-1, *trail).expand(units).contiguous() for part in port.dense(units[0], x)]
