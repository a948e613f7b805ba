"""Leaky integrate-and-fire neurons as a layer.

    m[t] = rest + α (v[t-1] - rest) + κ R x[t]            α = exp(-dt/τ)  or  1 - dt/τ,      κ = 1  or  1 - α
    z[t] = H(m[t] - θ)
    v[t] = m[t] - z[t] θ                                  soft reset
    v[t] = (1 - z[t]) m[t] + z[t] reset_value             hard reset

Source: Gerstner & Kistler, Spiking Neuron Models (2002), section 4.1; Neftci, Mostafa & Zenke 2019 for the discrete
form and the surrogate gradient. Time constants in ms, potentials dimensionless.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from plexus.errors import RangeError, UnknownNameError
from plexus.kernels import LIFState, SparseWeight, lif
from plexus.kernels._lif import lif_neuron
from plexus.nn.neurons._layer import NeuronLayer, Positive, Slope, decay_of, positive
from plexus.units._port import Port

__all__ = ["LIF", "LIFState"]


class _OneOr(Positive):
    """A positive number that is 1, and kept nowhere, unless it is learnt or given another value."""

    def __get__(self, layer: Any, owner: type | None = None) -> Any:
        if layer is not None and not hasattr(layer, self.raw):
            return 1.0
        return super().__get__(layer, owner)


class LIF(NeuronLayer):
    """`spikes, state = LIF(100)(current)`: leaky integrate-and-fire neurons; current `[time, batch, unit…]`.

    One step and many are the same call, and a sequence run in pieces equals the sequence run whole. With several unit
    dimensions (feature maps `[time, batch, channel, y, x]`) the first one, the channel, is the unit that edits address.

    Args:
        units: number of units, or their shape.
        tau_mem: time constant of the membrane in ms, a number or a tensor that broadcasts to the units; `inf`: no leak.
        threshold: potential above which a unit spikes.
        dt: length of a step in ms.
        discretisation: `"exponential"`, α = exp(-dt/τ), or `"euler"`, α = 1 - dt/τ.
        scale_input: weigh the input by 1 - α, so that a constant input is also the potential it leads to.
        gain: R > 0, a further factor of the input, kept by its logarithm.
        rest: potential to which the membrane decays.
        reset: `"soft"`, `"hard"` or `"none"`.
        reset_value: where a hard reset goes.
        delayed_reset: reset one step later.
        detach_reset: let no gradient flow through the reset.
        inclusive: spike at the threshold as well.
        refractory: time in ms after a spike in which the unit keeps its potential and stays silent.
        surrogate: a `Surrogate`, its name, or a function u -> dz/du.
        smooth: emit 1/2 + the surrogate's integral in place of spikes, so that all derivatives are true ones.
        learn: which of `"tau_mem"`, `"threshold"`, `"rest"`, `"reset_value"`, `"gain"` are parameters.

    Raises:
        RangeError: a time constant, dt, the gain or a threshold is not positive, or tau_mem <= dt under `"euler"`.
        ShapeError: there are no units, or an input or a number does not fit them.

    Examples:
        >>> import torch
        >>> layer = LIF(3, tau_mem=20.0)
        >>> spikes, state = layer(torch.ones(5, 2, 3))
        >>> spikes.shape, state.v.shape
        (torch.Size([5, 2, 3]), torch.Size([2, 3]))
        >>> spikes, state = layer(torch.ones(1, 2, 3), state)       # one step more
    """

    neuron = lif_neuron
    learnable: ClassVar[tuple[str, ...]] = ("tau_mem", "threshold", "rest", "reset_value", "gain")
    shown: ClassVar[tuple[str, ...]] = ("tau_mem",)
    port: Port | None = None
    tau_mem = Positive("Time constant of the membrane, ms.")
    gain = _OneOr("R, the factor of the input beside that of `scale_input`.")
    threshold: Tensor
    rest: Tensor
    reset_value: Tensor

    def __init__(
        self,
        units: int | Sequence[int],
        tau_mem: float | Tensor = 10.0,
        threshold: float | Tensor = 1.0,
        *,
        dt: float = 1.0,
        discretisation: Literal["exponential", "euler"] = "exponential",
        scale_input: bool = False,
        gain: float | Tensor = 1.0,
        rest: float | Tensor = 0.0,
        reset: Literal["soft", "hard", "none"] = "soft",
        reset_value: float | Tensor = 0.0,
        delayed_reset: bool = False,
        detach_reset: bool = False,
        inclusive: bool = False,
        refractory: float = 0.0,
        surrogate: Slope = "arctan",
        smooth: bool = False,
        learn: Iterable[str] = (),
    ) -> None:
        super().__init__(
            units,
            dt=dt,
            reset=reset,
            refractory=refractory,
            detach_reset=detach_reset,
            surrogate=surrogate,
            smooth=smooth,
            learn=learn,
        )
        if discretisation not in ("exponential", "euler"):
            raise UnknownNameError.among("discretisation", discretisation, ("exponential", "euler"))
        positive("tau_mem", tau_mem)
        if discretisation == "euler" and bool((torch.as_tensor(tau_mem) <= dt).any()):
            raise RangeError(
                "a time constant is too short for Euler steps", given=tau_mem, expected=f"more than {dt} ms"
            )
        self.discretisation, self.scale_input = discretisation, scale_input
        self.delayed_reset, self.inclusive = delayed_reset, inclusive
        self._number("tau_mem", tau_mem)
        if isinstance(gain, Tensor) or gain != 1 or "gain" in self.learn:
            positive("gain", gain, unit="")
            self._number("gain", gain)
        self._number("threshold", threshold)
        self._number("rest", rest)
        self._number("reset_value", reset_value)
        self._rests = self._is_on("rest")  # without, a step is cheaper

    @property
    def decay(self) -> Tensor:
        """α, the factor of the potential per step."""
        if self.discretisation == "euler":
            euler: Tensor = 1 - self.dt / self.tau_mem
            return euler
        return decay_of(self.dt, self.tau_mem)

    def _start(self) -> dict[str, Tensor | float]:
        return {"v": self.rest}

    def forward(
        self, x: Tensor, state: LIFState | None = None, *, recurrent: Tensor | SparseWeight | None = None
    ) -> tuple[Tensor, LIFState]:
        """Spikes `[time, batch, unit…]` of the current x, and the state after the last step.

        `recurrent` is a weight through which the units drive one another (see `Recurrent`, which owns one).
        """
        self._check(x)
        decay = self.decay
        return lif(
            x,
            state,
            decay=decay,
            gain=self.gain * (1 - decay) if self.scale_input else self.gain,
            threshold=self.threshold,
            reset_value=self.reset_value,
            rest=self.rest if self._rests else 0.0,
            reset=self.reset,
            delayed_reset=self.delayed_reset,
            detach_reset=self.detach_reset,
            inclusive=self.inclusive,
            refractory=round(self.refractory / self.dt),
            surrogate=self.surrogate,
            smooth=self.smooth,
            port=self.port,
            recurrent=recurrent,
            backend=self.backend,
        )
