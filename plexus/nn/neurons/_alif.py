"""Adaptive leaky integrate-and-fire neurons, as a layer.

    a[t] = ρ_a a[t-1] + z[t-1],   θ[t] = threshold + β a[t]               threshold adaptation, ρ_a = exp(-dt/τ_adapt)
    w[t] = ρ_w w[t-1] + (1 - ρ_w) a (v[t-1] - rest) + b z[t-1]            adaptation current,  ρ_w = exp(-dt/τ_current)
    m[t] = rest + α (v[t-1] - rest) + κ (x[t] - w[t])                     α = exp(-dt/τ_mem),  κ = 1  or  1 - α
    z[t] = H(m[t] - θ[t])
    v[t] = m[t] - z[t] θ[t]                                               soft reset
    v[t] = (1 - z[t]) m[t] + z[t] reset_value                             hard reset

At a steady rate of r spikes per step the threshold is raised by β r / (1 - ρ_a) on average, and the current is
a (v̄ - rest) + b r / (1 - ρ_w).

Source: Bellec et al. 2018 and 2020 for the threshold; Bittar & Garner 2022 for the current. Time constants in ms,
potentials dimensionless.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple, Unpack

from torch import Tensor

from plexus.kernels._alif_model import ALIF_DYNAMICS
from plexus.kernels._neuron import Neuron, Recurrence
from plexus.nn.neurons._layer import Common, NeuronLayer, Positive, decay_of, positive
from plexus.units._port import Port

__all__ = ["ALIF", "ALIFState"]


class ALIFState(NamedTuple):
    """What an adaptive neuron remembers."""

    v: Tensor  # membrane potential                 [batch, unit…]
    a: Tensor  # trace that raises the threshold    [batch, unit…]
    w: Tensor  # adaptation current                 [batch, unit…]
    z: Tensor  # what it last emitted               [batch, unit…]
    r: Tensor  # steps it is still refractory       [batch, unit…]


class ALIF(NeuronLayer):
    """`spikes, state = ALIF(100)(current)`: LIF neurons that adapt; current `[time, batch, unit…]`.

    The threshold adapts where `beta` is not 0, a current where `a` or `b` is not 0; what is left out costs nothing.

    Args:
        units: number of units, or their shape.
        tau_mem: time constant of the membrane, ms; one, or one per unit, like all numbers here.
        tau_adapt: time constant of the threshold, ms.
        beta: how far a spike raises the threshold.
        threshold: the threshold of a unit that has been silent.
        a: adaptation current per potential above rest (subthreshold adaptation).
        b: jump of the adaptation current at a spike.
        tau_current: time constant of the adaptation current, ms.
        scale_input: weigh the input and the adaptation current by 1 - α.
        rest: potential to which the membrane decays.
        reset: `"soft"` (by the threshold of the moment), `"hard"` or `"none"`.
        reset_value: where a hard reset goes.
        others: as for `LIF`; all numbers can be learnt.

    Raises:
        RangeError: a time constant or dt is not positive.
        ShapeError: there are no units, or an input or a number does not fit them.

    Examples:
        >>> import torch
        >>> spikes, state = ALIF(1, tau_mem=10.0, beta=0.5)(torch.full((60, 1, 1), 0.5))
        >>> gaps = spikes.flatten().nonzero().flatten().diff().tolist()
        >>> gaps[0] < gaps[-1]                              # it slows down
        True
    """

    neuron = Neuron(ALIF_DYNAMICS, ALIFState)
    learnable = ("tau_mem", "tau_adapt", "beta", "threshold", "a", "b", "tau_current", "rest", "reset_value")
    shown = ("tau_mem", "tau_adapt", "beta", "a", "b")
    port: Port | None = None
    tau_mem = Positive("Time constant of the membrane, ms.")
    tau_adapt = Positive("Time constant of the threshold, ms.")
    tau_current = Positive("Time constant of the adaptation current, ms.")
    beta: Tensor
    threshold: Tensor
    a: Tensor
    b: Tensor
    rest: Tensor
    reset_value: Tensor

    def __init__(
        self,
        units: int | Sequence[int],
        tau_mem: float | Tensor = 10.0,
        tau_adapt: float | Tensor = 100.0,
        beta: float | Tensor = 0.2,
        threshold: float | Tensor = 1.0,
        *,
        a: float | Tensor = 0.0,
        b: float | Tensor = 0.0,
        tau_current: float | Tensor = 100.0,
        scale_input: bool = False,
        rest: float | Tensor = 0.0,
        reset: Literal["soft", "hard", "none"] = "soft",
        reset_value: float | Tensor = 0.0,
        **others: Unpack[Common],
    ) -> None:
        super().__init__(units, reset=reset, **others)
        self.scale_input = scale_input
        for name, tau in (("tau_mem", tau_mem), ("tau_adapt", tau_adapt), ("tau_current", tau_current)):
            positive(name, tau)
            self._number(name, tau)
        self._number("beta", beta)
        self._number("threshold", threshold)
        self._number("a", a)
        self._number("b", b)
        self._number("rest", rest)
        self._number("reset_value", reset_value)
        self.threshold_adapts = self._is_on("beta")
        self.current_adapts = self._is_on("a") or self._is_on("b")

    @property
    def decay(self) -> Tensor:
        """α, the factor of the potential per step."""
        return decay_of(self.dt, self.tau_mem)

    def _start(self) -> dict[str, Tensor | float]:
        return {"v": self.rest}

    def forward(
        self, x: Tensor, state: ALIFState | None = None, *, recurrent: Recurrence = None
    ) -> tuple[Tensor, ALIFState]:
        """Spikes `[time, batch, unit…]` of the current x, and the state after the last step."""
        self._check(x)
        decay = self.decay
        numbers = {
            "decay": decay,
            "gain": 1 - decay if self.scale_input else 1.0,
            "threshold": self.threshold,
            "rest": self.rest,
            "reset": self.reset_value,
            "decay_a": decay_of(self.dt, self.tau_adapt),
            "beta": self.beta,
            "decay_w": decay_of(self.dt, self.tau_current),
            "coupling": self.a,
            "kick": self.b,
        }
        options = {"threshold_adapts": self.threshold_adapts, "current_adapts": self.current_adapts}
        return self._loop(x, state, numbers, options, recurrent=recurrent)
