"""Adaptive exponential integrate-and-fire neurons, as a layer.

    C dv/dt = -g_leak (v - e_leak) + g_leak Δ_T exp((v - v_threshold) / Δ_T) - w + x
    τ_w dw/dt = a (v - e_leak) - w
    v > v_peak:  spike, v ← v_reset, w ← w + b

One Euler step per dt, or several (`substeps`). Beyond v_threshold + 5 Δ_T, the usual v_peak, the exponential takes the
membrane to infinity within exp(-5) of its time constant, so that where exactly the peak lies hardly matters.

Source: Brette & Gerstner 2005, whose numbers are the default; Naud et al. 2008, table 1, for the firing patterns.
Potentials in mV, time in ms, conductances in nS, currents in pA, capacitance in pF.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple, Unpack

from torch import Tensor

from plexus.errors import RangeError, UnknownNameError, UnsupportedError
from plexus.kernels._adex_model import ADEX_DYNAMICS
from plexus.kernels._neuron import Neuron, Recurrence
from plexus.nn.neurons._layer import Common, NeuronLayer, Positive, in_millivolt, positive
from plexus.units._port import Port

__all__ = ["AdEx", "AdExState"]

_NAMES = ("capacitance", "g_leak", "e_leak", "v_threshold", "delta_t", "a", "tau_w", "b", "v_reset")
#                             C      g_L    E_L   V_T  Δ_T    a    τ_w     b    V_r    current that shows it
_PATTERNS = {
    "tonic spiking":            (200.0, 10.0, -70.0, -50.0, 2.0, 2.0, 30.0, 0.0, -58.0, 500.0),
    "adaptation":               (200.0, 12.0, -70.0, -50.0, 2.0, 2.0, 300.0, 60.0, -58.0, 500.0),
    "initial burst":            (130.0, 18.0, -58.0, -50.0, 2.0, 4.0, 150.0, 120.0, -50.0, 400.0),
    "regular bursting":         (200.0, 10.0, -58.0, -50.0, 2.0, 2.0, 120.0, 100.0, -46.0, 210.0),
    "delayed accelerating":     (200.0, 12.0, -70.0, -50.0, 2.0, -10.0, 300.0, 0.0, -58.0, 300.0),
    "delayed regular bursting": (100.0, 10.0, -65.0, -50.0, 2.0, -10.0, 90.0, 30.0, -47.0, 110.0),
    "transient spiking":        (100.0, 10.0, -65.0, -50.0, 2.0, 10.0, 90.0, 100.0, -47.0, 180.0),
    "irregular spiking":        (100.0, 12.0, -60.0, -50.0, 2.0, -11.0, 130.0, 30.0, -48.0, 160.0),
}  # fmt: skip


class AdExState(NamedTuple):
    """What an adaptive exponential neuron remembers."""

    v: Tensor  # membrane potential, mV             [batch, unit…]
    w: Tensor  # adaptation current, pA             [batch, unit…]
    z: Tensor  # what it last emitted               [batch, unit…]
    r: Tensor  # steps it is still refractory       [batch, unit…]


class AdEx(NeuronLayer):
    """`spikes, state = AdEx(100)(current)`; current in pA, `[time, batch, unit…]`.

    Args:
        units: number of units, or their shape.
        capacitance: pF; one number, or one per unit, like all numbers here.
        g_leak: leak conductance, nS.
        e_leak: resting potential, mV.
        v_threshold: potential at which the exponential takes over, mV.
        delta_t: how sharply it does, mV.
        a: subthreshold adaptation, nS.
        tau_w: time constant of the adaptation current, ms.
        b: jump of the adaptation current at a spike, pA.
        v_reset: potential after a spike, mV.
        v_peak: potential that counts as a spike, mV; None: v_threshold + 5 delta_t.
        dt: length of a step in ms; Euler steps want 0.1 or less.
        substeps: Euler steps per step of the input. With `dt=1.0, substeps=10` the layer goes with others of 1 ms; a
            step in which it spikes more than once counts as one spike. The input is held during a step.
        others: as for `LIF` (but not `reset`). A surrogate given by name is ten times as wide and a tenth as high as on
            a dimensionless membrane, one given as `Surrogate` has its width in mV. All numbers but the peak can be
            learnt.

    Raises:
        RangeError: a capacitance, conductance, width, time constant or dt is not positive, a peak does not lie above
            its reset, or there are no substeps.
        ShapeError: there are no units, or an input or a number does not fit them.

    Examples:
        >>> import torch
        >>> layer = AdEx.pattern("adaptation", 1)
        >>> spikes, _ = layer(torch.full((5000, 1, 1), AdEx.currents["adaptation"]))
        >>> gaps = spikes.flatten().nonzero().flatten().diff() * layer.dt
        >>> bool(gaps[0] < 20) and bool(gaps[-1] > 50)
        True
    """

    neuron = Neuron(ADEX_DYNAMICS, AdExState)
    biophysical = True
    learnable = _NAMES
    shown = ("capacitance", "g_leak", "a", "b", "tau_w")
    port: Port | None = None
    patterns: ClassVar[Mapping[str, Mapping[str, float]]] = MappingProxyType(
        {name: MappingProxyType(dict(zip(_NAMES, row[:-1], strict=True))) for name, row in _PATTERNS.items()}
    )
    currents: ClassVar[Mapping[str, float]] = MappingProxyType({name: row[-1] for name, row in _PATTERNS.items()})
    capacitance = Positive("Capacitance, pF.")
    g_leak = Positive("Leak conductance, nS.")
    delta_t = Positive("Width of the onset of the exponential, mV.")
    tau_w = Positive("Time constant of the adaptation current, ms.")
    e_leak: Tensor
    v_threshold: Tensor
    a: Tensor
    b: Tensor
    v_reset: Tensor
    given_peak: Tensor | None

    def __init__(
        self,
        units: int | Sequence[int],
        capacitance: float | Tensor = 281.0,
        g_leak: float | Tensor = 30.0,
        e_leak: float | Tensor = -70.6,
        v_threshold: float | Tensor = -50.4,
        delta_t: float | Tensor = 2.0,
        a: float | Tensor = 4.0,
        tau_w: float | Tensor = 144.0,
        b: float | Tensor = 80.5,
        v_reset: float | Tensor = -70.6,
        v_peak: float | Tensor | None = None,
        *,
        substeps: int = 1,
        **others: Unpack[Common],
    ) -> None:
        others["surrogate"] = in_millivolt(others.get("surrogate", "arctan"))
        others.setdefault("dt", 0.1)
        super().__init__(units, **others)
        if substeps < 1:
            raise RangeError("there are no substeps", given=substeps, expected="1 or more")
        self.substeps = substeps
        numbers = {"capacitance": capacitance, "g_leak": g_leak, "delta_t": delta_t, "tau_w": tau_w}
        for name, number in numbers.items():
            positive(name, number, unit="ms" if name == "tau_w" else "")
            self._number(name, number)
        self._number("e_leak", e_leak)
        self._number("v_threshold", v_threshold)
        self._number("a", a)
        self._number("b", b)
        self._number("v_reset", v_reset)
        if v_peak is None:
            self.register_buffer("given_peak", None)
        else:
            self._number("given_peak", v_peak)
        if bool((self.v_peak <= self.v_reset).any()):
            raise RangeError("a spike would not end: the peak lies below the reset", given=v_peak, expected="> v_reset")

    @classmethod
    def pattern(cls, name: str, units: int | Sequence[int], **others: Any) -> AdEx:
        """A layer that fires in a named pattern when driven by `AdEx.currents[name]` pA; the names: `AdEx.patterns`.

        Examples:
            >>> sorted(AdEx.patterns)[:2]
            ['adaptation', 'delayed accelerating']
            >>> AdEx.pattern("tonic spiking", 3).b.item()
            0.0
        """
        if name not in cls.patterns:
            raise UnknownNameError.among("firing pattern", name, cls.patterns)
        return cls(units, **{**cls.patterns[name], **others})

    @property
    def v_peak(self) -> Tensor:
        """Potential that counts as a spike, mV."""
        return self.v_threshold + 5 * self.delta_t if self.given_peak is None else self.given_peak

    def _start(self) -> dict[str, Tensor | float]:
        return {"v": self.e_leak}

    def forward(
        self, x: Tensor, state: AdExState | None = None, *, recurrent: Recurrence = None
    ) -> tuple[Tensor, AdExState]:
        """Spikes `[time, batch, unit…]` of the current x in pA, and the state after the last step."""
        self._check(x)
        if recurrent is not None and self.substeps > 1:
            raise UnsupportedError(
                "nothing comes back between substeps", mend="put the layer into Recurrent, which runs it step by step"
            )
        dt = self.dt / self.substeps
        numbers = {
            "per_c": dt / self.capacitance,
            "leak": self.g_leak,
            "e_leak": self.e_leak,
            "v_threshold": self.v_threshold,
            "delta": self.delta_t,
            "a": self.a,
            "per_w": dt / self.tau_w,
            "jump": self.b,
            "reset": self.v_reset,
            "peak": self.v_peak,
        }
        if self.substeps == 1 or len(x) == 0:
            return self._loop(x, state, numbers, dt=dt, recurrent=recurrent)
        fine, state = self._loop(x.repeat_interleave(self.substeps, 0), state, numbers, dt=dt)
        # one of several spikes, as a product, so that each substep gets its gradient
        out = 1 - (1 - fine.unflatten(0, (-1, self.substeps))).prod(1)
        return out, state._replace(z=out[-1].clone())
