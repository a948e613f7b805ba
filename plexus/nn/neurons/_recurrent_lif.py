"""Leaky integrate-and-fire neurons that drive one another.

    current[t] = x[t] + W z[t-1]            z: what the units emitted, as their port lets it through
    spikes as in `LIF`

Source: Bellec et al. 2018 (recurrent networks of LIF neurons trained by surrogate gradients); time constants in ms.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from plexus.errors import ShapeError
from plexus.kernels import LIFState, SparseWeight
from plexus.nn._places import device_of
from plexus.nn.neurons._lif import LIF

__all__ = ["RecurrentLIF"]


class RecurrentLIF(LIF):
    """`spikes, state = RecurrentLIF(100)(current)`; current `[time, batch, unit]`.

    The usual recurrent layer in one module; `Recurrent` puts any of our neurons and any wiring together.

    Args:
        units: number of units.
        autapses: whether a unit may drive itself; if not, the diagonal of the weights stays zero.
        weight_gain: the recurrent weights start normal with standard deviation weight_gain / sqrt(units).
        generator: source of the initial weights.
        others: as for `LIF`.

    Raises:
        ShapeError: units have more than one dimension.

    Examples:
        >>> import torch
        >>> layer = RecurrentLIF(4, tau_mem=5.0)
        >>> spikes, state = layer(torch.rand(6, 2, 4))
        >>> spikes.shape
        torch.Size([6, 2, 4])
    """

    mask: Tensor | None

    def __init__(
        self,
        units: int,
        tau_mem: float | Tensor = 10.0,
        threshold: float | Tensor = 1.0,
        *,
        autapses: bool = False,
        weight_gain: float = 0.2,
        generator: torch.Generator | None = None,
        **others: Any,
    ) -> None:
        super().__init__(units, tau_mem, threshold, **others)
        if len(self.units) != 1:
            raise ShapeError("a recurrent layer has one dimension of units", given=self.units, expected="a number")
        self.autapses = autapses
        place, weight = device_of(self), torch.randn(units, units, generator=generator)
        self.weight = nn.Parameter(weight.to(place) * weight_gain / units**0.5)
        self.register_buffer("mask", None if autapses else 1 - torch.eye(units, device=place), persistent=False)

    def forward(
        self, x: Tensor, state: LIFState | None = None, *, recurrent: Tensor | SparseWeight | None = None
    ) -> tuple[Tensor, LIFState]:
        """Spikes `[time, batch, unit]` of the current x, and the state after the last step.

        `recurrent` stands in for the layer's own weight.
        """
        if recurrent is None:
            recurrent = self.weight if self.mask is None else self.weight * self.mask
        return super().forward(x, state, recurrent=recurrent)
