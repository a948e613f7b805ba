"""Neurons with a dendrite and a soma that drive each other, as a layer.

    τ_dend dd/dt = -d + x_dend + plateau σ((d - dendrite_threshold) / dendrite_width) + to_dendrite (v - d)
    τ_soma dv/dt = -v + x_soma + to_soma (d - v)
    v > θ:  spike, reset of v as in `LIF`, and d ← d + backprop

The coupling conductances are in units of each compartment's leak, so that held inputs without plateau lead to

    d = (x_dend + to_dendrite v) / (1 + to_dendrite),     v = (x_soma + to_soma d) / (1 + to_soma)

Each compartment follows its own equation exactly during a step while the other is held, so no coupling is unstable.
The sigmoid is a regenerative current as NMDA and calcium channels make it: if it is steep and its threshold lies below
what the plateau alone leads to, a strong input switches the dendrite into a plateau that outlasts it. A spike reaches
the dendrite in the step after it.

Source: Naud & Sprekeler 2018, Sparse bursts optimize information transmission, for the two compartments, the sigmoid
and the back-propagating spike; Larkum 2013 for the idea. Time constants in ms, potentials dimensionless.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple, Unpack

import torch
from torch import Tensor

from plexus.errors import UnknownNameError
from plexus.kernels import SparseWeight
from plexus.kernels._neuron import Neuron, Recurrence
from plexus.kernels._two_compartment_model import TWO_COMPARTMENT_DYNAMICS
from plexus.nn.neurons._layer import Common, NeuronLayer, Positive, decay_of, positive
from plexus.units._port import Port

__all__ = ["TwoCompartment", "TwoCompartmentState"]


class TwoCompartmentState(NamedTuple):
    """What a neuron with a dendrite and a soma remembers."""

    v: Tensor  # potential of the soma              [batch, unit…]
    d: Tensor  # potential of the dendrite          [batch, unit…]
    z: Tensor  # what it last emitted               [batch, unit…]
    r: Tensor  # steps it is still refractory       [batch, unit…]


class TwoCompartment(NeuronLayer):
    """`spikes, state = TwoCompartment(100)((somatic, dendritic))`, each `[time, batch, unit…]`.

    One tensor in place of the pair drives the compartment that `alone` names, so that the layer can stand behind a
    `Linear`, or behind a `Dendrite` with several branches, in a `Sequential`.

    Args:
        units: number of units, or their shape.
        tau_soma: time constant of the uncoupled soma, ms; one, or one per unit, like all numbers here.
        tau_dend: time constant of the uncoupled dendrite, ms.
        threshold: potential of the soma above which a unit spikes.
        to_soma: coupling conductance by which the dendrite drives the soma, 0 or more.
        to_dendrite: coupling conductance by which the soma drives the dendrite, 0 or more.
        plateau: what the regenerative current adds at most; 0 leaves it out.
        dendrite_threshold: potential at which half of it flows.
        dendrite_width: how sharply it sets in.
        backprop: what a spike adds to the dendrite.
        alone: `"dendrite"` or `"soma"`: what a single input drives.
        reset: `"soft"`, `"hard"` or `"none"`.
        reset_value: where a hard reset goes.
        others: as for `LIF`; all numbers can be learnt.

    Raises:
        RangeError: a time constant, width or dt is not positive, or a coupling is negative.
        ShapeError: there are no units, or an input or a number does not fit them.

    Examples:
        >>> import torch
        >>> layer = TwoCompartment(1, plateau=4.0)
        >>> weak = torch.full((60, 1, 1), 0.7)
        >>> [int(layer(pair)[0].sum()) for pair in ((weak, 0 * weak), (0 * weak, weak))]
        [0, 0]
        >>> int(layer((weak, weak))[0].sum()) > 5           # together they start a plateau
        True
    """

    neuron = Neuron(TWO_COMPARTMENT_DYNAMICS, TwoCompartmentState)
    learnable = (
        "tau_soma", "tau_dend", "threshold", "to_soma", "to_dendrite", "plateau", "dendrite_threshold",
        "dendrite_width", "backprop", "reset_value",
    )  # fmt: skip
    shown = ("tau_soma", "tau_dend", "plateau")
    port: Port | None = None
    tau_soma = Positive("Time constant of the uncoupled soma, ms.")
    tau_dend = Positive("Time constant of the uncoupled dendrite, ms.")
    to_soma = Positive("Coupling conductance by which the dendrite drives the soma.")
    to_dendrite = Positive("Coupling conductance by which the soma drives the dendrite.")
    dendrite_width = Positive("How sharply the regenerative current sets in.")
    threshold: Tensor
    plateau: Tensor
    dendrite_threshold: Tensor
    backprop: Tensor
    reset_value: Tensor

    def __init__(
        self,
        units: int | Sequence[int],
        tau_soma: float | Tensor = 10.0,
        tau_dend: float | Tensor = 10.0,
        threshold: float | Tensor = 1.0,
        *,
        to_soma: float | Tensor = 1.0,
        to_dendrite: float | Tensor = 0.3,
        plateau: float | Tensor = 2.0,
        dendrite_threshold: float | Tensor = 1.0,
        dendrite_width: float | Tensor = 0.1,
        backprop: float | Tensor = 0.2,
        alone: Literal["dendrite", "soma"] = "dendrite",
        reset: Literal["soft", "hard", "none"] = "soft",
        reset_value: float | Tensor = 0.0,
        **others: Unpack[Common],
    ) -> None:
        super().__init__(units, reset=reset, **others)
        if alone not in ("dendrite", "soma"):
            raise UnknownNameError.among("compartment", alone, ("dendrite", "soma"))
        self.alone = alone
        for name, tau in (("tau_soma", tau_soma), ("tau_dend", tau_dend)):
            positive(name, tau)
            self._number(name, tau)
        for name, coupling in (("to_soma", to_soma), ("to_dendrite", to_dendrite)):
            positive(name, coupling, zero=name not in self.learn, unit="")  # from 0, a logarithm cannot learn
            self._number(name, coupling)
        positive("dendrite_width", dendrite_width, unit="")
        self._number("dendrite_width", dendrite_width)
        self._number("threshold", threshold)
        self._number("plateau", plateau)
        self._number("dendrite_threshold", dendrite_threshold)
        self._number("backprop", backprop)
        self._number("reset_value", reset_value)
        self.has_plateau = self._is_on("plateau")

    def forward(
        self,
        x: Tensor | tuple[Tensor, Tensor],
        state: TwoCompartmentState | None = None,
        *,
        recurrent: Recurrence = None,
    ) -> tuple[Tensor, TwoCompartmentState]:
        """Spikes `[time, batch, unit…]` of the somatic and dendritic input, and the state after the last step.

        One recurrent weight leads to where one input does; a pair leads to soma and dendrite.
        """
        to_soma, to_dendrite = self.to_soma, self.to_dendrite
        decay = decay_of(self.dt, self.tau_soma / (1 + to_soma))
        decay_dend = decay_of(self.dt, self.tau_dend / (1 + to_dendrite))
        numbers = {
            "decay": decay,
            "gain": (1 - decay) / (1 + to_soma),
            "decay_dend": decay_dend,
            "gain_dend": (1 - decay_dend) / (1 + to_dendrite),
            "to_soma": to_soma,
            "to_dend": to_dendrite,
            "plateau": self.plateau,
            "threshold_dend": self.dendrite_threshold,
            "width_dend": self.dendrite_width,
            "backprop": self.backprop,
            "threshold": self.threshold,
            "reset": self.reset_value,
        }
        if isinstance(recurrent, (Tensor, SparseWeight)):
            recurrent = (None, recurrent) if self.alone == "dendrite" else (recurrent, None)
        options = {"plateau": self.has_plateau}
        return self._loop(self._pair(x, self._alone), state, numbers, options, recurrent=recurrent)

    def _alone(self, x: Tensor) -> tuple[Tensor, Tensor]:
        nothing = torch.zeros_like(x)
        return (nothing, x) if self.alone == "dendrite" else (x, nothing)
