"""Izhikevich neurons, as a layer.

    dv/dt = 0.04 v² + 5 v + 140 - u + x
    du/dt = a (b v - u)
    v >= v_peak:  spike, v ← c, u ← u + d

As in the paper, a step advances v by two Euler steps of dt/2 and then u by one of dt. Where an edit takes spikes away,
v stays at v_peak.

Source: Izhikevich 2003, Simple model of spiking neurons; the types are those of its figure 2. Potentials in mV, time in
ms; x is a current that moves the membrane by 1 mV per ms.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple, Unpack

import torch
from torch import Tensor

from plexus.errors import RangeError, ShapeError, UnknownNameError
from plexus.kernels._izhikevich_model import IZHIKEVICH_DYNAMICS
from plexus.kernels._neuron import Neuron, Recurrence
from plexus.nn.neurons._layer import Common, NeuronLayer, Positive, in_millivolt, positive
from plexus.units._port import Port

__all__ = ["Izhikevich", "IzhikevichState"]

_TYPES = {  # a (per ms), b (per ms), c (mV), d (mV per ms)
    "RS": (0.02, 0.2, -65.0, 8.0),  # regular spiking
    "IB": (0.02, 0.2, -55.0, 4.0),  # intrinsically bursting
    "CH": (0.02, 0.2, -50.0, 2.0),  # chattering
    "FS": (0.1, 0.2, -65.0, 2.0),  # fast spiking
    "LTS": (0.02, 0.25, -65.0, 2.0),  # low-threshold spiking
    "TC": (0.02, 0.25, -65.0, 0.05),  # thalamo-cortical
    "RZ": (0.1, 0.26, -65.0, 2.0),  # resonator
}


class IzhikevichState(NamedTuple):
    """What an Izhikevich neuron remembers."""

    v: Tensor  # membrane potential, mV             [batch, unit…]
    u: Tensor  # recovery, mV per ms                [batch, unit…]
    z: Tensor  # what it last emitted               [batch, unit…]
    r: Tensor  # steps it is still refractory       [batch, unit…]


class Izhikevich(NeuronLayer):
    """`spikes, state = Izhikevich(100)(current)`; current `[time, batch, unit…]`, 5 to 15 is usual.

    Args:
        units: number of units, or their shape.
        a: rate of recovery, per ms; one number, or one per unit, like all numbers here.
        b: how far recovery follows the membrane.
        c: potential after a spike, mV.
        d: jump of recovery at a spike.
        v_peak: potential that counts as a spike, mV.
        halved: advance v by two steps of dt/2, as the paper does; without, by one of dt.
        others: as for `LIF` (but not `reset`). A surrogate given by name is ten times as wide and a tenth as high as on
            a dimensionless membrane, one given as `Surrogate` has its width in mV. All numbers can be learnt.

    Raises:
        RangeError: a or dt is not positive, or a peak does not lie above its reset.
        ShapeError: there are no units, or an input or a number does not fit them.

    Examples:
        >>> import torch
        >>> layer = Izhikevich.of_type(["RS", "FS"])
        >>> spikes, _ = layer(torch.full((500, 1, 2), 10.0))
        >>> regular, fast = spikes.sum((0, 1)).tolist()
        >>> fast > 2 * regular
        True
    """

    neuron = Neuron(IZHIKEVICH_DYNAMICS, IzhikevichState)
    biophysical = True
    learnable = ("a", "b", "c", "d", "v_peak")
    shown = ("a", "b", "c", "d")
    port: Port | None = None
    types: ClassVar[Mapping[str, tuple[float, float, float, float]]] = MappingProxyType(_TYPES)
    a = Positive("Rate of recovery, per ms.")
    b: Tensor
    c: Tensor
    d: Tensor
    v_peak: Tensor

    def __init__(
        self,
        units: int | Sequence[int],
        a: float | Tensor = 0.02,
        b: float | Tensor = 0.2,
        c: float | Tensor = -65.0,
        d: float | Tensor = 8.0,
        v_peak: float | Tensor = 30.0,
        *,
        halved: bool = True,
        **others: Unpack[Common],
    ) -> None:
        others["surrogate"] = in_millivolt(others.get("surrogate", "arctan"))
        super().__init__(units, **others)
        self.halved = halved
        positive("a", a, unit="")
        self._number("a", a)
        self._number("b", b)
        self._number("c", c)
        self._number("d", d)
        self._number("v_peak", v_peak)
        if bool((self.v_peak <= self.c).any()):
            raise RangeError("a spike would not end: the peak lies below the reset", given=v_peak, expected="> c")

    @classmethod
    def of_type(cls, types: str | Sequence[str], units: int | None = None, **others: Any) -> Izhikevich:
        """Units of the published types: one name for all of `units`, or one name for each; the names: `types`.

        Raises:
            UnknownNameError: there is no such type.
            ShapeError: the names are not one per unit, or `units` is missing.

        Examples:
            >>> list(Izhikevich.types)
            ['RS', 'IB', 'CH', 'FS', 'LTS', 'TC', 'RZ']
            >>> Izhikevich.of_type("CH", 3).d.item(), Izhikevich.of_type(["RS", "CH"]).d.tolist()
            (2.0, [8.0, 2.0])
        """
        names = [types] if isinstance(types, str) else list(types)
        for name in names:
            if name not in cls.types:
                raise UnknownNameError.among("type of neuron", name, cls.types)
        if isinstance(types, str):
            if units is None:
                raise ShapeError("how many units is not said", given=types, mend=f"of_type({types!r}, units)")
            return cls(units, *cls.types[types], **others)
        if not names or units not in (None, len(names)):
            raise ShapeError("the types are not one per unit", given=f"{len(names)} for {units} units")
        numbers = torch.tensor([cls.types[name] for name in names], dtype=torch.get_default_dtype())
        return cls(len(names), *numbers.unbind(1), **others)

    def _start(self) -> dict[str, Tensor | float]:
        # where v stays without input: 0.04 v² + (5 - b) v + 140 = 0, the lower root; near -65 where there is none
        linear = 5 - self.b
        inside = linear.square() - 4 * 0.04 * 140
        v = torch.where(inside >= 0, (-linear - inside.clamp_min(0).sqrt()) / 0.08, torch.full_like(linear, -65.0))
        return {"v": v.detach(), "u": (self.b * v).detach()}

    def forward(
        self, x: Tensor, state: IzhikevichState | None = None, *, recurrent: Recurrence = None
    ) -> tuple[Tensor, IzhikevichState]:
        """Spikes `[time, batch, unit…]` of the current x, and the state after the last step."""
        self._check(x)
        numbers = {"rate": self.a, "coupling": self.b, "reset": self.c, "jump": self.d, "peak": self.v_peak}
        return self._loop(x, state, numbers, {"halved": self.halved}, (self.dt,), recurrent=recurrent)
