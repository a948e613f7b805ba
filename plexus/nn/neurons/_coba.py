"""Integrate-and-fire neurons with conductance-based synapses, as a layer.

    τ_exc dg_e/dt = -g_e,   τ_inh dg_i/dt = -g_i          an input of x raises its conductance by x
    τ_mem dv/dt = (rest - v) + g_e (E_exc - v) + g_i (E_inh - v)
    v > θ:  spike, v ← reset_value

Conductances are in units of the leak, so that held at g_e and g_i the membrane goes to

    V = (rest + g_e E_exc + g_i E_inh) / (1 + g_e + g_i)    with time constant    τ_mem / (1 + g_e + g_i)

Each step follows that solution exactly and is stable for any input. Source: Destexhe, Mainen & Sejnowski 1994; the
default numbers are those of Vogels & Abbott 2005. Potentials in mV, time constants in ms.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple, Unpack

from torch import Tensor

from plexus.kernels import SparseWeight
from plexus.kernels._coba_model import COBA_DYNAMICS
from plexus.kernels._neuron import Neuron, Recurrence
from plexus.nn.neurons._layer import Common, NeuronLayer, Positive, decay_of, in_millivolt, positive
from plexus.units._port import Port

__all__ = ["COBA", "COBAState"]


class COBAState(NamedTuple):
    """What a neuron with conductance-based synapses remembers."""

    v: Tensor  # membrane potential, mV                     [batch, unit…]
    ge: Tensor  # excitatory conductance, in leaks          [batch, unit…]
    gi: Tensor  # inhibitory conductance, in leaks          [batch, unit…]
    z: Tensor  # what it last emitted                       [batch, unit…]
    r: Tensor  # steps it is still refractory               [batch, unit…]


class COBA(NeuronLayer):
    """`spikes, state = COBA(100)((excitatory, inhibitory))`, each `[time, batch, unit…]`.

    One tensor in place of the pair is taken by its sign: what is positive excites, what is negative inhibits. So the
    layer can stand behind a `Linear` in a `Sequential`. Of a pair, negative values count as 0: no conductance is
    negative.

    Args:
        units: number of units, or their shape.
        tau_mem: time constant of the membrane without input, ms; one, or one per unit, like all numbers here.
        tau_exc: time constant of the excitatory conductance, ms.
        tau_inh: time constant of the inhibitory conductance, ms.
        e_exc: reversal potential of excitation, mV.
        e_inh: reversal potential of inhibition, mV.
        rest: potential without input, mV.
        threshold: potential above which a unit spikes, mV.
        reset: `"hard"` or `"none"`.
        reset_value: potential after a spike, mV.
        others: as for `LIF`; a surrogate given by name is ten times as wide and a tenth as high as on a dimensionless
            membrane, one given as `Surrogate` has its width in mV. All numbers can be learnt.

    Raises:
        RangeError: a time constant or dt is not positive.
        ShapeError: there are no units, or an input or a number does not fit them.

    Examples:
        >>> import torch
        >>> layer = COBA(1, threshold=100.0)                # never spikes
        >>> drive = torch.ones(1000, 1, 1)                  # both conductances settle
        >>> _, state = layer((0.01 * drive, 0.0 * drive))
        >>> g = state.ge.item()
        >>> round(state.v.item(), 2) == round((-60.0 + g * 0.0) / (1 + g), 2)
        True
    """

    neuron = Neuron(COBA_DYNAMICS, COBAState)
    biophysical = True
    learnable = ("tau_mem", "tau_exc", "tau_inh", "e_exc", "e_inh", "rest", "threshold", "reset_value")
    resets = ("hard", "none")
    shown = ("tau_mem", "tau_exc", "tau_inh")
    port: Port | None = None
    tau_mem = Positive("Time constant of the membrane without input, ms.")
    tau_exc = Positive("Time constant of the excitatory conductance, ms.")
    tau_inh = Positive("Time constant of the inhibitory conductance, ms.")
    e_exc: Tensor
    e_inh: Tensor
    rest: Tensor
    threshold: Tensor
    reset_value: Tensor

    def __init__(
        self,
        units: int | Sequence[int],
        tau_mem: float | Tensor = 20.0,
        tau_exc: float | Tensor = 5.0,
        tau_inh: float | Tensor = 10.0,
        *,
        e_exc: float | Tensor = 0.0,
        e_inh: float | Tensor = -80.0,
        rest: float | Tensor = -60.0,
        threshold: float | Tensor = -50.0,
        reset: Literal["hard", "none"] = "hard",
        reset_value: float | Tensor = -60.0,
        **others: Unpack[Common],
    ) -> None:
        others["surrogate"] = in_millivolt(others.get("surrogate", "arctan"))
        super().__init__(units, reset=reset, **others)
        for name, tau in (("tau_mem", tau_mem), ("tau_exc", tau_exc), ("tau_inh", tau_inh)):
            positive(name, tau)
            self._number(name, tau)
        self._number("e_exc", e_exc)
        self._number("e_inh", e_inh)
        self._number("rest", rest)
        self._number("threshold", threshold)
        self._number("reset_value", reset_value)

    def _start(self) -> dict[str, Tensor | float]:
        return {"v": self.rest}

    def forward(
        self, x: Tensor | tuple[Tensor, Tensor], state: COBAState | None = None, *, recurrent: Recurrence = None
    ) -> tuple[Tensor, COBAState]:
        """Spikes `[time, batch, unit…]` of excitation and inhibition, and the state after the last step.

        Of one recurrent weight, what is positive goes to the excitatory conductance and what is negative to the other.
        """
        numbers = {
            "rate": self.dt / self.tau_mem,
            "decay_exc": decay_of(self.dt, self.tau_exc),
            "decay_inh": decay_of(self.dt, self.tau_inh),
            "e_exc": self.e_exc,
            "e_inh": self.e_inh,
            "rest": self.rest,
            "threshold": self.threshold,
            "reset": self.reset_value,
        }
        if isinstance(recurrent, SparseWeight):
            recurrent = tuple(recurrent._replace(values=part) for part in _of_each_sign(recurrent.values))
        elif isinstance(recurrent, Tensor):
            recurrent = _of_each_sign(recurrent)
        return self._loop(self._pair(x, _of_each_sign), state, numbers, recurrent=recurrent)


def _of_each_sign(signed: Tensor) -> tuple[Tensor, Tensor]:
    """What is excitatory and what is inhibitory, both 0 or more."""
    return signed.clamp(min=0), (-signed).clamp(min=0)
