"""Distances between spike trains, given as times in ms.

    van Rossum      D² = 2/τ ∫ (f(t) - g(t))² dt,   f(t) = Σ_i H(t - t_i) e^(-(t - t_i)/τ)
                       = Σ_ij e^(-|t_i - t_j|/τ) + Σ_ij e^(-|s_i - s_j|/τ) - 2 Σ_ij e^(-|t_i - s_j|/τ)
    Victor–Purpura  the cheapest way to turn one train into the other: 1 to add or delete a spike, q |Δt| to move one

With this factor a train of one spike has van Rossum distance 1 to the empty train, and two spikes far apart √2.

Sources: van Rossum 2001; Houghton & Kreuz 2012 (the double sum in linear time); Victor & Purpura 1996.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from plexus.errors import RangeError, ShapeError

__all__ = ["van_rossum_distance", "victor_purpura_distance"]

Train = Tensor | Sequence[float] | np.ndarray[Any, Any]


def van_rossum_distance(trains: Sequence[Train], others: Sequence[Train] | None = None, *, tau: float = 20.0) -> Tensor:
    """Van Rossum distances, `[train, other]` float64.

    Args:
        trains: times of the spikes of each train, ms, ascending (see `spike_times`).
        others: trains to compare with; None compares the trains with each other.
        tau: time constant of the kernel, ms.

    Raises:
        RangeError: tau is not positive, or times are not finite and ascending.

    Examples:
        >>> van_rossum_distance([[5.0], [], [5.0, 500.0]], tau=10.0)[0].round(decimals=3).tolist()
        [0.0, 1.0, 1.0]
    """
    if not tau > 0:
        raise RangeError("the time constant must be positive", given=tau, expected="ms > 0")
    first = _trains(trains)
    second = first if others is None else _trains(others)
    inner = _loops()["inner"]
    own = [np.array([inner(train, train, tau) for train in group]) for group in (first, second)]
    cross = np.array([[inner(a, b, tau) for b in second] for a in first]).reshape(len(first), len(second))
    squared = own[0][:, None] + own[1][None, :] - 2 * cross
    return torch.from_numpy(np.sqrt(np.maximum(squared, 0.0)))


def victor_purpura_distance(
    trains: Sequence[Train], others: Sequence[Train] | None = None, *, cost: float = 0.1
) -> Tensor:
    """Victor–Purpura distances, `[train, other]` float64.

    Args:
        trains: times of the spikes of each train, ms, ascending (see `spike_times`).
        others: trains to compare with; None compares the trains with each other.
        cost: q, of moving a spike by one ms; at 0 only the counts differ, beyond 2 / (smallest shift) nothing is moved.

    Raises:
        RangeError: the cost is negative or not finite, or times are not finite and ascending.

    Examples:
        >>> victor_purpura_distance([[5.0]], [[7.0], [], [50.0]], cost=0.1)[0].round(decimals=3).tolist()
        [0.2, 1.0, 2.0]
    """
    if not (cost >= 0 and np.isfinite(cost)):
        raise RangeError("the cost of moving a spike is a number", given=cost, expected=">= 0, per ms")
    first = _trains(trains)
    second = first if others is None else _trains(others)
    edit = _loops()["edit"]
    found = np.array([[edit(a, b, cost) for b in second] for a in first]).reshape(len(first), len(second))
    return torch.from_numpy(found)


def _trains(trains: Sequence[Train]) -> list[np.ndarray[Any, Any]]:
    found = []
    for train in trains:
        times = np.ascontiguousarray(train.detach().cpu() if isinstance(train, Tensor) else train, dtype=np.float64)
        if times.ndim != 1:
            raise ShapeError(
                "a spike train is a series of times",
                given=times.shape,
                expected="[spike] for each train",
                mend="give a list of trains; spike_times(raster) makes one",
            )
        if not np.isfinite(times).all() or (np.diff(times) < 0).any():
            raise RangeError("the times of a spike train are finite and ascending", mend="sort them")
        found.append(times)
    return found


@lru_cache(maxsize=1)
def _loops() -> dict[str, Any]:
    """The loops, compiled at first use."""
    from numba import njit

    @njit(cache=True)
    def inner(a, b, tau):  # type: ignore[no-untyped-def]
        """Σ_ij e^(-|a_i - b_j|/τ) in one pass over both trains."""
        total, in_a, in_b, last, i, j = 0.0, 0.0, 0.0, 0.0, 0, 0
        while i < len(a) or j < len(b):
            from_a = j == len(b) or (i < len(a) and a[i] <= b[j])
            now = a[i] if from_a else b[j]
            if i + j > 0:
                decay = np.exp(-(now - last) / tau)
                in_a *= decay
                in_b *= decay
            if from_a:
                total += in_b
                in_a += 1.0
                i += 1
            else:
                total += in_a
                in_b += 1.0
                j += 1
            last = now
        return total

    @njit(cache=True)
    def edit(a, b, cost):  # type: ignore[no-untyped-def]
        """The cheapest edit, by dynamic programming over prefixes of both trains."""
        row = np.arange(len(b) + 1).astype(np.float64)
        for i in range(len(a)):
            diagonal = row[0]
            row[0] = i + 1.0
            for j in range(len(b)):
                moved = diagonal + cost * abs(a[i] - b[j])
                diagonal = row[j + 1]
                row[j + 1] = min(moved, diagonal + 1.0, row[j] + 1.0)
        return row[len(b)]

    return {"inner": inner, "edit": edit}
