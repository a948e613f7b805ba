"""Integrate-and-fire neurons without a leak, as a layer: `LIF` with an infinite time constant.

    m[t] = v[t-1] + x[t]
    z[t] = H(m[t] - θ),   reset as in `LIF`

A constant input of x makes z spike every θ / x steps on average under the soft reset, which loses nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from plexus.nn.neurons._lif import LIF

__all__ = ["IF"]


class IF(LIF):
    """`spikes, state = IF(100)(current)`; current `[time, batch, unit…]`.

    Args:
        units: number of units, or their shape.
        threshold: potential above which a unit spikes.
        others: as for `LIF`, but there is no time constant to learn, and no rest.

    Raises:
        ShapeError: there are no units, or an input or a number does not fit them.

    Examples:
        >>> import torch
        >>> IF(1)(torch.full((7, 1, 1), 0.5))[0].flatten().tolist()
        [0.0, 0.0, 1.0, 0.0, 1.0, 0.0, 1.0]
    """

    learnable = ("threshold", "reset_value", "gain")
    shown = ("threshold",)

    def __init__(self, units: int | Sequence[int], threshold: float | Tensor = 1.0, **others: Any) -> None:
        super().__init__(units, math.inf, threshold, **others)
