"""Dendrites of several branches in front of a soma, as a layer.

    d_k[t] = ρ_k d_k[t-1] + (1 - ρ_k) x_k[t]              each branch its own time constant, ρ = exp(-dt/τ)
    f(d) = d                                              "linear"
    f(d) = σ((d - branch_threshold) / branch_width)       "sigmoid": a branch fires or does not, as NMDA spikes do
    out[t] = Σ_k g_k f(d_k[t])                            coupling conductances g_k, 0 or more

A thin branch hardly feels the soma, so the coupling goes one way. That lets the branches of all units run as columns of
one fused loop over time, with the nonlinearity and the sum after it. Where soma and dendrite must answer each other, a
`TwoCompartment` goes behind: its dendrite is then the trunk that the branches drive.

Source: Zheng et al. 2024, Temporal dendritic heterogeneity (the linear branches); Poirazi, Brannon & Mel 2003,
Pyramidal neuron as two-layer neural network (the sigmoid ones). Time constants in ms, potentials dimensionless.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from plexus.errors import ShapeError, UnknownNameError
from plexus.nn.neurons._layer import NeuronLayer, Positive, decay_of, positive
from plexus.nn.neurons._leaky_integrator import LeakyIntegrator

__all__ = ["Dendrite", "DendriteState"]


class DendriteState(NamedTuple):
    """What a dendrite remembers."""

    v: Tensor  # potential of each branch           [batch, unit, branch]


class Dendrite(NeuronLayer):
    """`current, state = Dendrite(100, branches=4)(x)`; x `[time, batch, unit · branch]`, current `[time, batch, unit]`.

    The branches of a unit lie side by side in the input, as `Linear(inputs, 400)` in front gives them.

    Args:
        units: number of units.
        branches: branches of each.
        tau: time constant of a branch, ms; one, one per branch, or `[unit, branch]`, like all numbers here.
        nonlinearity: `"sigmoid"` or `"linear"`.
        branch_threshold: potential at which a branch gives half of what it can.
        branch_width: how sharply it sets in.
        conductance: what a branch adds to the current, 0 or more.
        dt: length of a step in ms.
        learn: which of `"tau"`, `"branch_threshold"`, `"branch_width"`, `"conductance"` are parameters.

    Raises:
        RangeError: a time constant, width or dt is not positive, or a conductance is negative.
        ShapeError: there are no units or branches, or an input or a number does not fit them.

    Examples:
        >>> import torch
        >>> from plexus.nn import LIF, Sequential
        >>> net = Sequential(torch.nn.Linear(8, 12), Dendrite(3, branches=4, tau=torch.tensor([2.0, 5.0, 20.0, 80.0])),
        ...                  LIF(3))
        >>> net(torch.rand(10, 2, 8))[0].shape
        torch.Size([10, 2, 3])
    """

    neuron = LeakyIntegrator.neuron
    activity = "smooth"
    learnable = ("tau", "branch_threshold", "branch_width", "conductance")
    shown = ("tau", "conductance")
    tau = Positive("Time constant of a branch, ms.")
    branch_width = Positive("How sharply a branch sets in.")
    conductance = Positive("What a branch adds to the current.")
    branch_threshold: Tensor

    def __init__(
        self,
        units: int,
        branches: int = 4,
        tau: float | Tensor = 10.0,
        *,
        nonlinearity: Literal["sigmoid", "linear"] = "sigmoid",
        branch_threshold: float | Tensor = 0.5,
        branch_width: float | Tensor = 0.1,
        conductance: float | Tensor = 1.0,
        dt: float = 1.0,
        learn: Iterable[str] = (),
    ) -> None:
        super().__init__(units, dt=dt, learn=learn)
        if len(self.units) != 1:
            raise ShapeError("a dendrite has one dimension of units", given=self.units, expected="a number")
        if branches < 1:
            raise ShapeError("a dendrite needs at least one branch", given=branches, expected="1 or more")
        if nonlinearity not in ("sigmoid", "linear"):
            raise UnknownNameError.among("nonlinearity", nonlinearity, ("sigmoid", "linear"))
        self.branches, self.nonlinearity = branches, nonlinearity
        self.sizes = (units, branches)
        positive("tau", tau)
        positive("branch_width", branch_width, unit="")
        positive("conductance", conductance, zero="conductance" not in self.learn, unit="")
        self._number("tau", tau)
        self._number("branch_width", branch_width)
        self._number("conductance", conductance)
        self._number("branch_threshold", branch_threshold)

    def initial_state(self, batch: int, *, dtype: torch.dtype | None = None) -> DendriteState:
        """The state at rest, `[batch, unit, branch]`."""
        return DendriteState(*super().initial_state(batch, dtype=dtype))

    def forward(self, x: Tensor, state: DendriteState | None = None) -> tuple[Tensor, DendriteState]:
        """The current `[time, batch, unit]` into the soma, and the state after the last step."""
        self._check(x, (self.units[0] * self.branches,))
        decay = decay_of(self.dt, self.tau)
        numbers: dict[str, Tensor | float] = {"decay": decay, "gain": 1 - decay, "rest": 0.0}
        d: Tensor
        d, after = self._loop(x.unflatten(2, self.sizes), state, numbers)
        if self.nonlinearity == "sigmoid":
            d = torch.sigmoid((d - self.branch_threshold.to(d.dtype)) / self.branch_width.to(d.dtype))
        return (self.conductance.to(d.dtype) * d).sum(-1), DendriteState(*after)

    def extra_repr(self) -> str:
        """What `print(layer)` shows."""
        return f"{super().extra_repr()}, branches={self.branches}, {self.nonlinearity}"
