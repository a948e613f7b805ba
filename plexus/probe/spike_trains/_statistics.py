"""Statistics of spike trains on a grid of steps, `[time, batch, unit…]`.

    rate     n / (T dt)                          Hz
    CV       std(intervals) / mean(intervals)    0 regular, 1 Poisson
    CV2      mean of 2 |I[k+1] - I[k]| / (I[k+1] + I[k])
    Fano     var(counts) / mean(counts)          over windows; 1 Poisson
    correlation of counts in bins, between units

What is not defined for a unit (too few spikes) is NaN, never 0.

Sources: Dayan & Abbott 2001, chapter 1; Holt et al. 1996 (CV2).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from plexus.errors import RangeError, ShapeError, UnknownNameError

__all__ = [
    "coefficient_of_variation",
    "count_correlation",
    "fano_factor",
    "firing_rate",
    "interspike_intervals",
    "spike_times",
]


def spike_times(spikes: Tensor, dt: float = 1.0) -> list[Tensor]:
    """The times of the spikes of each train in ms, one tensor `[spike]` per train.

    Args:
        spikes: `[time]` or `[time, …]`; the trains are taken in the order of the flattened other dimensions.
        dt: length of a step, ms.

    Examples:
        >>> [times.tolist() for times in spike_times(torch.tensor([[1.0, 0.0], [1.0, 1.0]]), dt=2.0)]
        [[0.0, 2.0], [2.0]]
    """
    grid = _binary(spikes, dt).reshape(spikes.shape[0], -1)
    train, step = grid.T.nonzero(as_tuple=True)
    counts = torch.bincount(train, minlength=grid.shape[1]).tolist()
    return list((step.to(torch.float64) * dt).split(counts))


def interspike_intervals(spikes: Tensor, dt: float = 1.0) -> list[Tensor]:
    """The intervals between successive spikes of each train in ms; see `spike_times`.

    Examples:
        >>> interspike_intervals(torch.tensor([1.0, 0.0, 0.0, 1.0, 1.0]))[0].tolist()
        [3.0, 1.0]
    """
    return [times.diff() for times in spike_times(spikes, dt)]


def firing_rate(spikes: Tensor, dt: float = 1.0, *, window: float | None = None) -> Tensor:
    """Mean rate in Hz, `[…]`; with a window (ms), the rate in each whole window, `[window, …]`.

    Examples:
        >>> firing_rate(torch.tensor([[1.0], [0.0], [1.0], [1.0]]), window=2.0).flatten().tolist()
        [500.0, 1000.0]
    """
    grid = _binary(spikes, dt).to(torch.get_default_dtype())
    if window is None:
        return grid.mean(0) * (1000.0 / dt)
    return _counts(grid, window, dt) * (1000.0 / (round(window / dt) * dt))


def coefficient_of_variation(spikes: Tensor, dt: float = 1.0, *, kind: Literal["cv", "cv2"] = "cv") -> Tensor:
    """Coefficient of variation of the interspike intervals of each train, `[…]`; NaN with fewer than two intervals.

    Args:
        spikes: `[time, …]`.
        dt: length of a step, ms.
        kind: `"cv"`, or `"cv2"`, which compares neighbouring intervals and so forgives a rate that drifts.

    Examples:
        >>> coefficient_of_variation(torch.tensor([1.0, 0.0, 1.0, 0.0, 1.0])).item()
        0.0
    """
    if kind not in ("cv", "cv2"):
        raise UnknownNameError.among("coefficient of variation", kind, ("cv", "cv2"))
    values = []
    for intervals in interspike_intervals(spikes, dt):
        if len(intervals) < 2:
            values.append(intervals.new_full((), torch.nan))
        elif kind == "cv":
            values.append(intervals.std(correction=0) / intervals.mean())
        else:
            values.append((2 * intervals.diff().abs() / (intervals[1:] + intervals[:-1])).mean())
    return torch.stack(values).reshape(spikes.shape[1:]).to(torch.get_default_dtype())


def fano_factor(spikes: Tensor, window: float, dt: float = 1.0, *, over: Literal["time", "trials"] = "time") -> Tensor:
    """Variance of spike counts over their mean; NaN where there are no spikes.

    Args:
        spikes: `[time, batch, unit…]` (or `[time, …]` for `over="time"`).
        window: length of the counting window, ms.
        dt: length of a step, ms.
        over: `"time"`, over the windows of each train, `[…]`; or `"trials"`, over the batch in each window,
            `[window, unit…]`.

    Raises:
        RangeError: fewer than two windows, or two trials.

    Examples:
        >>> fano_factor(torch.tensor([1.0, 0.0, 1.0, 0.0]), window=2.0).item()        # as regular as can be
        0.0
    """
    counts = _counts(_binary(spikes, dt).to(torch.float64), window, dt)
    if over not in ("time", "trials"):
        raise UnknownNameError.among("Fano factor over", over, ("time", "trials"))
    dim = 0 if over == "time" else 1
    if counts.dim() <= dim or counts.shape[dim] < 2:
        raise RangeError("a variance needs two counts", given=tuple(counts.shape), expected=f"two {over}, in windows")
    return (counts.var(dim, correction=0) / counts.mean(dim)).to(torch.get_default_dtype())


def count_correlation(spikes: Tensor, window: float, dt: float = 1.0) -> Tensor:
    """Pearson correlation of spike counts in windows between units, `[unit, unit]`; NaN where a count is constant.

    Windows of all samples count alike.

    Args:
        spikes: `[time, unit]` or `[time, batch, unit…]`; unit dimensions are flattened.
        window: length of a bin, ms.
        dt: length of a step, ms.

    Examples:
        >>> z = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
        >>> count_correlation(z, window=1.0).round(decimals=3).tolist()
        [[1.0, -1.0], [-1.0, 1.0]]
    """
    counts = _counts(_binary(spikes, dt).to(torch.float64), window, dt)
    rows = counts if counts.dim() == 2 else counts.flatten(2).flatten(0, 1)
    if rows.dim() != 2 or len(rows) < 2:
        raise ShapeError("a correlation needs two windows", given=tuple(spikes.shape), expected="[time, batch, unit…]")
    centred = rows - rows.mean(0)
    size: Tensor = torch.linalg.vector_norm(centred, dim=0)
    correlation: Tensor = centred.T @ centred / (size[:, None] * size)
    return correlation.to(torch.get_default_dtype())


def _counts(grid: Tensor, window: float, dt: float) -> Tensor:
    """Counts in whole windows, `[window, …]`; what is left over at the end is dropped."""
    steps = round(window / dt)
    if steps < 1 or steps > len(grid):
        raise RangeError(
            "the window does not fit the run", given=f"{window} ms", expected=f"{dt} to {len(grid) * dt} ms"
        )
    whole = len(grid) // steps
    counts: Tensor = grid[: whole * steps].unflatten(0, (whole, steps)).sum(1)
    return counts


def _binary(spikes: Tensor, dt: float) -> Tensor:
    if not isinstance(spikes, Tensor) or spikes.dim() < 1 or not len(spikes):
        given = tuple(spikes.shape) if isinstance(spikes, Tensor) else type(spikes).__name__
        raise ShapeError("there is no spike train", given=given, expected="[time, …], at least one step")
    if not dt > 0:
        raise RangeError("the length of a step must be positive", given=dt, expected="ms > 0")
    spikes = spikes.detach()
    fired: Tensor = spikes != 0
    if not bool((spikes == fired).all()):
        raise RangeError("spikes are 0 or 1", given="other values", mend="threshold the tensor, e.g. (x > 0).float()")
    return fired
