"""Resonate-and-fire neurons, as a layer. Their state p + iq turns in the complex plane.

Resonate and fire: a subthreshold oscillation that inputs push, exact between steps.

    p[t] + i q[t] = (p[t-1] + i q[t-1]) exp((-1/τ + iω) dt) + x[t]        ω = 2π frequency / 1000, per ms
    z[t] = H(q[t] - θ),     then p + iq ← i reset_value                   hard reset, or none

Balanced resonate and fire: each spike damps the oscillation and raises the threshold for a while, in place of a reset.
Without spikes the Euler step neither grows nor decays but by `offset`.

    k[t] = √(1 - (ω dt)²) - offset dt - brake h[t-1]
    p[t] = k[t] p[t-1] - ω dt q[t-1] + x[t],     q[t] = ω dt p[t-1] + k[t] q[t-1]
    z[t] = H(p[t] - θ - h[t-1]),                 h[t] = exp(-dt/τ_brake) h[t-1] + z[t]

Source: Izhikevich 2001, Resonate-and-fire neurons; Higuchi et al. 2024, Balanced resonate-and-fire neurons. Frequencies
in Hz, time in ms, the state dimensionless.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple, Unpack

import torch
from torch import Tensor

from plexus.errors import RangeError, UnsupportedError
from plexus.kernels._neuron import Neuron, Recurrence
from plexus.kernels._resonate_model import BALANCED_DYNAMICS, RESONATE_DYNAMICS
from plexus.nn.neurons._layer import Between, Common, NeuronLayer, Positive, decay_of, positive
from plexus.units._port import Port

__all__ = ["BalancedResonate", "BalancedResonateState", "ResonateAndFire", "ResonateState"]


class ResonateState(NamedTuple):
    """What a resonate-and-fire neuron remembers."""

    p: Tensor  # real part, into which inputs go    [batch, unit…]
    q: Tensor  # imaginary part, the potential      [batch, unit…]
    z: Tensor  # what it last emitted               [batch, unit…]
    r: Tensor  # steps it is still refractory       [batch, unit…]


class BalancedResonateState(NamedTuple):
    """What a balanced resonate-and-fire neuron remembers."""

    p: Tensor  # real part, the potential           [batch, unit…]
    q: Tensor  # imaginary part                     [batch, unit…]
    h: Tensor  # trace of its spikes                [batch, unit…]
    z: Tensor  # what it last emitted               [batch, unit…]


class ResonateAndFire(NeuronLayer):
    """`spikes, state = ResonateAndFire(100, frequency=40.0)(drive)`; drive `[time, batch, unit…]`.

    A unit answers best to inputs that come at its own frequency. While it is refractory it stays silent and goes on
    oscillating.

    Args:
        units: number of units, or their shape.
        frequency: of the oscillation, Hz; one, or one per unit, like all numbers here.
        tau: time constant with which the oscillation dies away, ms.
        threshold: potential above which a unit spikes.
        reset: `"hard"` or `"none"`.
        reset_value: potential after a spike; None: the threshold, as in the paper.
        others: as for `LIF`; `"frequency"`, `"tau"`, `"threshold"` and `"reset_value"` can be learnt.

    Raises:
        RangeError: a frequency, time constant or dt is not positive, or a frequency is above 500 / dt Hz, beyond which
            steps of dt cannot tell it from a lower one.
        ShapeError: there are no units, or an input or a number does not fit them.

    Examples:
        >>> import torch
        >>> layer = ResonateAndFire(1, frequency=50.0, threshold=1.5)     # a period of 20 ms
        >>> def spikes(gap):                                             # two pulses, gap ms apart
        ...     x = torch.zeros(60, 1, 1)
        ...     x[0], x[gap] = 1.0, 1.0
        ...     return int(layer(x)[0].sum())
        >>> spikes(20), spikes(10)                                       # in phase, in antiphase
        (1, 0)
    """

    neuron = Neuron(RESONATE_DYNAMICS, ResonateState)
    learnable = ("frequency", "tau", "threshold", "reset_value")
    resets = ("hard", "none")
    shown = ("frequency", "tau")
    port: Port | None = None
    frequency = Between(lambda layer: 500.0 / layer.dt, "Frequency of the oscillation, Hz.")
    tau = Positive("Time constant with which the oscillation dies away, ms.")
    threshold: Tensor
    reset_value: Tensor

    def __init__(
        self,
        units: int | Sequence[int],
        frequency: float | Tensor = 40.0,
        tau: float | Tensor = 50.0,
        threshold: float | Tensor = 1.0,
        *,
        reset: Literal["hard", "none"] = "hard",
        reset_value: float | Tensor | None = None,
        **others: Unpack[Common],
    ) -> None:
        super().__init__(units, reset=reset, **others)
        _in_range(frequency, 500.0 / self.dt)
        positive("tau", tau)
        self._number("frequency", frequency)
        self._number("tau", tau)
        self._number("threshold", threshold)
        self._number("reset_value", threshold if reset_value is None else reset_value)

    def forward(
        self, x: Tensor, state: ResonateState | None = None, *, recurrent: Recurrence = None
    ) -> tuple[Tensor, ResonateState]:
        """Spikes `[time, batch, unit…]` of the drive x, and the state after the last step."""
        self._check(x)
        angle, keep = 2 * math.pi * self.frequency / 1000 * self.dt, decay_of(self.dt, self.tau)
        numbers = {
            "along": keep * angle.cos(),
            "across": keep * angle.sin(),
            "threshold": self.threshold,
            "reset": self.reset_value,
        }
        return self._loop(x, state, numbers, recurrent=recurrent)


class BalancedResonate(NeuronLayer):
    """`spikes, state = BalancedResonate(100, frequency=40.0)(drive)`; drive `[time, batch, unit…]`.

    Args:
        units: number of units, or their shape.
        frequency: of the oscillation, Hz; one, or one per unit, like all numbers here.
        offset: how fast the oscillation dies away, per ms.
        threshold: potential above which a unit spikes that has been silent.
        brake: damping per step that a spike adds.
        tau_brake: time constant of the damping and of the raised threshold, ms.
        others: as for `LIF`, but there is neither reset nor refractory time; all numbers can be learnt.

    Raises:
        RangeError: a number is not positive, or a frequency is above 1000 / (2π dt) Hz, where no Euler step is stable.
        ShapeError: there are no units, or an input or a number does not fit them.

    Examples:
        >>> import torch
        >>> layer = BalancedResonate(1, frequency=25.0)
        >>> time = torch.arange(400.0).view(-1, 1, 1)
        >>> [int(layer(0.2 * torch.sin(2 * torch.pi * f / 1000 * time))[0].sum() > 0) for f in (5.0, 25.0, 120.0)]
        [0, 1, 0]
    """

    neuron = Neuron(BALANCED_DYNAMICS, BalancedResonateState)
    learnable = ("frequency", "offset", "threshold", "brake", "tau_brake")
    shown = ("frequency", "offset")
    port: Port | None = None
    frequency = Between(lambda layer: 500.0 / math.pi / layer.dt, "Frequency of the oscillation, Hz.")
    offset = Positive("How fast the oscillation dies away, per ms.")
    brake = Positive("Damping per step that a spike adds.")
    tau_brake = Positive("Time constant of the damping and of the raised threshold, ms.")
    threshold: Tensor

    def __init__(
        self,
        units: int | Sequence[int],
        frequency: float | Tensor = 40.0,
        offset: float | Tensor = 0.02,
        threshold: float | Tensor = 1.0,
        *,
        brake: float | Tensor = 0.01,
        tau_brake: float | Tensor = 10.0,
        **others: Unpack[Common],
    ) -> None:
        super().__init__(units, **others)
        if self.refractory:
            raise UnsupportedError("a balanced unit has no refractory time", mend="its brake does that: raise it")
        _in_range(frequency, 500.0 / math.pi / self.dt)
        self._number("frequency", frequency)
        for name, number in (("offset", offset), ("brake", brake), ("tau_brake", tau_brake)):
            positive(name, number, unit="ms" if name == "tau_brake" else "")
            self._number(name, number)
        self._number("threshold", threshold)

    def forward(
        self, x: Tensor, state: BalancedResonateState | None = None, *, recurrent: Recurrence = None
    ) -> tuple[Tensor, BalancedResonateState]:
        """Spikes `[time, batch, unit…]` of the drive x, and the state after the last step."""
        self._check(x)
        turn = 2 * math.pi * self.frequency / 1000 * self.dt
        # (1 - turn)(1 + turn), as 1 - turn² loses what is left of it near 1
        numbers = {
            "turn": turn,
            "damping": ((1 - turn) * (1 + turn)).clamp_min(0).sqrt() - 1 - self.offset * self.dt,
            "brake": self.brake,
            "decay": decay_of(self.dt, self.tau_brake),
            "threshold": self.threshold,
        }
        return self._loop(x, state, numbers, recurrent=recurrent)


def _in_range(frequency: float | Tensor, ceiling: float) -> None:
    number = torch.as_tensor(frequency)
    if not bool(((number > 0) & (number < ceiling)).all()):
        raise RangeError(
            "a frequency is out of range", given=frequency, expected=f"between 0 and {ceiling:g} Hz",
            mend="take a smaller dt",
        )  # fmt: skip
