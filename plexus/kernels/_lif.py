"""The leaky integrate-and-fire loop over time; its equations stand in `_lif_model`."""

from __future__ import annotations

from typing import Literal, NamedTuple

from torch import Tensor

from plexus.errors import RangeError, UnknownNameError, UnsupportedError
from plexus.kernels._lif_model import LIF_DYNAMICS
from plexus.kernels._neuron import BackendName, Neuron, Slope
from plexus.kernels._products import SparseWeight
from plexus.units._port import Port

__all__ = ["LIFState", "lif"]

Reset = Literal["soft", "hard", "none"]


class LIFState(NamedTuple):
    """What a leaky integrate-and-fire neuron remembers."""

    v: Tensor  # membrane potential                 [batch, unit…]
    z: Tensor  # what it last emitted               [batch, unit…]
    r: Tensor  # steps it is still refractory       [batch, unit…]


lif_neuron = Neuron(LIF_DYNAMICS, LIFState)


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
    recurrent: Tensor | SparseWeight | None = None,
    backend: BackendName = "auto",
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
        recurrent: weight W through which the units drive one another: x[t] + W z[t-1] takes the place of x[t].
            `[unit (to), unit (from)]`, or a `SparseWeight`; several dimensions of units count as one.
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
    if reset not in ("soft", "hard", "none"):
        raise UnknownNameError.among("reset", reset, ("soft", "hard", "none"))
    if refractory < 0:
        raise RangeError("the refractory time is negative", given=refractory, expected="a number of steps >= 0")
    if smooth and refractory:
        raise UnsupportedError("a smooth spike has no moment from which to be refractory", mend="use refractory=0")
    has_rest = isinstance(rest, Tensor) or rest != 0.0
    return lif_neuron(
        x,
        state,
        {"decay": decay, "gain": gain, "threshold": threshold, "rest": rest, "reset": reset_value},
        options={
            "reset": reset,
            "delayed": delayed_reset and reset != "none",
            "detach": detach_reset,
            "inclusive": inclusive,
            "refractory": refractory > 0,
            "rest": has_rest,
        },
        constants=(refractory,),
        start={"v": rest} if has_rest else None,
        surrogate=surrogate,
        smooth=smooth,
        port=port,
        recurrent=recurrent,
        backend=backend,
    )
