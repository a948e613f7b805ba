"""Leaky integrators, as a layer: the usual readout of a spiking network.

    v[t] = rest + α (v[t-1] - rest) + κ x[t]              α = exp(-dt/τ_mem),      κ = 1  or  1 - α
    out[t] = v[t]

Source: Gerstner & Kistler, Spiking Neuron Models (2002), section 4.1, without its threshold. Time constants in ms,
potentials dimensionless.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from torch import Tensor

from plexus.kernels._leaky_model import LEAKY_DYNAMICS
from plexus.kernels._neuron import Neuron
from plexus.nn.neurons._layer import NeuronLayer, Positive, decay_of, positive

__all__ = ["LeakyIntegrator", "LeakyIntegratorState"]


class LeakyIntegratorState(NamedTuple):
    """What a leaky integrator remembers."""

    v: Tensor  # potential                          [batch, unit…]


class LeakyIntegrator(NeuronLayer):
    """`potential, state = LeakyIntegrator(10)(current)`; both `[time, batch, unit…]`. It never spikes.

    Args:
        units: number of units, or their shape.
        tau_mem: time constant in ms; one, or one per unit, like all numbers here; `inf`: a sum over time.
        dt: length of a step in ms.
        scale_input: weigh the input by 1 - α, so that a constant input is also the potential it leads to.
        rest: potential without input.
        learn: which of `"tau_mem"` and `"rest"` are parameters.

    Raises:
        RangeError: the time constant or dt is not positive.
        ShapeError: there are no units, or an input or a number does not fit them.

    Examples:
        >>> import torch
        >>> readout = LeakyIntegrator(2, tau_mem=float("inf"))
        >>> readout(torch.ones(3, 1, 2))[0][:, 0, 0].tolist()
        [1.0, 2.0, 3.0]
    """

    neuron = Neuron(LEAKY_DYNAMICS, LeakyIntegratorState)
    activity = "smooth"
    learnable = ("tau_mem", "rest")
    shown = ("tau_mem",)
    tau_mem = Positive("Time constant, ms.")
    rest: Tensor

    def __init__(
        self,
        units: int | Sequence[int],
        tau_mem: float | Tensor = 10.0,
        *,
        dt: float = 1.0,
        scale_input: bool = False,
        rest: float | Tensor = 0.0,
        learn: Iterable[str] = (),
    ) -> None:
        super().__init__(units, dt=dt, learn=learn)
        positive("tau_mem", tau_mem)
        self.scale_input = scale_input
        self._number("tau_mem", tau_mem)
        self._number("rest", rest)

    @property
    def decay(self) -> Tensor:
        """α, the factor of the potential per step."""
        return decay_of(self.dt, self.tau_mem)

    def _start(self) -> dict[str, Tensor | float]:
        return {"v": self.rest}

    def forward(self, x: Tensor, state: LeakyIntegratorState | None = None) -> tuple[Tensor, LeakyIntegratorState]:
        """Potentials `[time, batch, unit…]` under the current x, and the state after the last step."""
        self._check(x)
        decay = self.decay
        numbers = {"decay": decay, "gain": 1 - decay if self.scale_input else 1.0, "rest": self.rest}
        return self._loop(x, state, numbers)
