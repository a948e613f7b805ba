"""Bounds on how much each unit fires.

    R = s_low mean_i max(0, low - r_i)² + s_high mean_i max(0, r_i - high)²,      r_i: mean over time and batch

Source: Zenke & Vogels 2021 (lower and upper bounds on activity for surrogate-gradient training). Rates per step, or in
Hz where dt is given.
"""

from __future__ import annotations

import torch
from torch import Tensor

from plexus.errors import RangeError, ShapeError

__all__ = ["firing_rate_bounds"]


def firing_rate_bounds(
    spikes: Tensor,
    low: float = 0.01,
    high: float = 0.3,
    *,
    strength: tuple[float, float] = (1.0, 1.0),
    dt: float | None = None,
) -> Tensor:
    """A penalty that is zero while every unit's mean rate lies within [low, high].

    Args:
        spikes: `[time, batch, unit…]`.
        low, high: bounds on the mean rate of each unit, spikes per step; in Hz when dt (ms) is given.
        strength: factors of the lower and of the upper penalty.
        dt: length of a step, ms.

    Raises:
        RangeError: the bounds are not 0 <= low <= high. ShapeError: the spikes have no time and batch.

    Examples:
        >>> firing_rate_bounds(torch.zeros(10, 2, 3), low=0.1).item() > 0
        True
        >>> firing_rate_bounds(torch.full((10, 2, 3), 0.2), low=0.1, high=0.3).item()
        0.0
    """
    if not 0 <= low <= high:
        raise RangeError("the bounds of a rate are out of order", given=(low, high), expected="0 <= low <= high")
    if spikes.dim() < 3 or not spikes.numel():
        raise ShapeError("there are no spikes", given=tuple(spikes.shape), expected="[time, batch, unit…]")
    rates = spikes.mean((0, 1))
    if dt is not None:
        rates = rates * (1000.0 / dt)
    below, above = torch.relu(low - rates).square().mean(), torch.relu(rates - high).square().mean()
    return strength[0] * below + strength[1] * above
