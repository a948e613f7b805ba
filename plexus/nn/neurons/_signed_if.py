"""Integrate-and-fire neurons that can take a spike back.

    u[t] = v[t-1] + x[t]
    z[t] = 1 where u[t] >= θ;   -1 where u[t] <= -ε and more spikes were emitted than taken back;   else 0
    v[t] = u[t] - z[t] θ

Over time θ Σ z[t] is what the input has summed to, up to one threshold, as long as that is not negative: what a
rectifier passes on. Without the spike that is taken back, a neuron that fired on an early excess keeps its error.

Source: Li, Jones & Furber, Unleashing the potential of spiking neural networks by dynamic confidence (2023) and the
conversion that it builds on. Potentials dimensionless, no leak, so no time constant.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from torch import Tensor

from plexus.errors import RangeError
from plexus.kernels._neuron import Neuron, Recurrence
from plexus.kernels._signed_if_model import SIGNED_IF_DYNAMICS
from plexus.nn.neurons._layer import NeuronLayer, Positive, Slope, positive
from plexus.units._port import Port

__all__ = ["SignedIF", "SignedIFState"]


class SignedIFState(NamedTuple):
    """What a neuron that can take a spike back remembers."""

    v: Tensor  # membrane potential                              [batch, unit…]
    z: Tensor  # what it last emitted                            [batch, unit…]
    n: Tensor  # spikes emitted less those taken back            [batch, unit…]


class SignedIF(NeuronLayer):
    """`spikes, state = SignedIF(8)(current)`; current and spikes `[time, batch, unit…]`, spikes in {-1, 0, 1}.

    With feature maps the first unit dimension, the channel, is the unit.

    Args:
        units: number of units, or their shape.
        threshold: θ, one, or one per unit.
        start: initial potential in thresholds; one half rounds to the nearest count instead of down.
        negligible: ε: a spike is taken back once the potential is this far below zero.
        signed: False never takes a spike back.
        surrogate: derivative of the spike.
        learn: `("threshold",)` makes the threshold a parameter (kept positive by its logarithm).

    Raises:
        RangeError: the threshold is not positive. ShapeError: there are no units, or an input does not fit them.
        DtypeError: the input is not floating point.

    Examples:
        >>> import torch
        >>> layer = SignedIF(1, threshold=1.0)
        >>> spikes, state = layer(torch.tensor([1.2, -0.5, -0.5, 0.0]).view(4, 1, 1))
        >>> spikes.flatten().tolist(), round(state.v.item(), 6)
        ([1.0, -1.0, 0.0, 0.0], 0.2)
    """

    neuron = Neuron(SIGNED_IF_DYNAMICS, SignedIFState)
    learnable = ("threshold",)
    shown = ("threshold",)
    port: Port | None = None
    threshold = Positive("θ.")

    def __init__(
        self,
        units: int | Sequence[int],
        threshold: float | Tensor = 1.0,
        *,
        start: float = 0.0,
        negligible: float = 1e-3,
        signed: bool = True,
        surrogate: Slope = "arctan",
        learn: Iterable[str] = (),
    ) -> None:
        super().__init__(units, surrogate=surrogate, learn=learn)
        positive("threshold", threshold, unit="")
        if negligible < 0:
            raise RangeError("what is negligible is not negative", given=negligible, expected=">= 0")
        self.start, self.negligible, self.signed = start, negligible, signed
        self._number("threshold", threshold)

    def _start(self) -> dict[str, Tensor | float]:
        return {"v": self.start * self.threshold}

    def forward(
        self, x: Tensor, state: SignedIFState | None = None, *, recurrent: Recurrence = None
    ) -> tuple[Tensor, SignedIFState]:
        """Spikes `[time, batch, unit…]` of the current x, and the state after the last step."""
        self._check(x)
        numbers = {"threshold": self.threshold}
        options = {"signed": self.signed, "inclusive": True}
        return self._loop(x, state, numbers, options, (-self.negligible,), recurrent=recurrent)
