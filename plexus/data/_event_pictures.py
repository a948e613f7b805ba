"""Events as pictures: frames, voxel grids and time surfaces.

    frames          f[i, a] = number of events at a between two edges of time, or among the i-th n events
    voxel grid      g[i, a] = Σ_r s_r max(0, 1 - |i - τ_r|),   τ_r = (bins - 1) (t_r - start) / (stop - start)
    time surface    s[i, a] = exp(-(t_i - t_last(a)) / τ),     t_last: the latest event at a up to t_i;  0 if none

The polarity of a camera's events, the first number of their address, is a sign in the voxel grid, s_r = +1 for ON and
-1 for OFF, and an axis of its own in the others. Each function takes an `EventStream` or a structured array of tonic's,
with `shape` to say how large it is. Times in ms.

Sources: Zhu et al. 2019 (voxel grid), Lagorce et al. 2017 (time surface).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from plexus.data._event_stream import EventStream
from plexus.errors import DtypeError, RangeError, ShapeError

__all__ = ["frames", "from_structured", "time_surface", "to_structured", "voxel_grid"]

_FIELDS = {1: ("x",), 2: ("p", "x"), 3: ("p", "y", "x")}
Structured = np.ndarray[Any, Any]


def from_structured(events: Structured, shape: Sequence[int] | None = None, *, unit: float = 1e-3) -> EventStream:
    """An `EventStream` of a structured array with the fields t and some of x, y, p, as tonic's datasets give.

    The address is (p, y, x) where there is a y, else (p, x) where polarities differ, else (x). Events are sorted.

    Args:
        events: the array.
        shape: sizes of the address's axes; None takes the smallest that fits. Its length says which fields to take.
        unit: what one count of t is in ms; tonic's are microseconds.

    Raises:
        DtypeError: the array has no fields t and x. ShapeError: the shape asks for a field that is not there.

    Examples:
        >>> fields = [("x", int), ("y", int), ("t", int), ("p", int)]
        >>> from_structured(np.array([(3, 1, 2500, 1), (0, 0, 1000, 0)], dtype=fields), shape=(2, 4, 4)).t.tolist()
        [1.0, 2.5]
    """
    names = events.dtype.names or ()
    if "t" not in names or "x" not in names:
        raise DtypeError("a structured array of events is needed", given=events.dtype, expected="fields t, x(, y)(, p)")
    if shape is not None:
        axes = len(shape)
    elif "y" in names:
        axes = 3
    else:
        axes = 2 if "p" in names and len(np.unique(events["p"])) > 1 else 1
    wanted = _FIELDS.get(axes, ("?",))
    if not set(wanted) <= set(names):
        raise ShapeError("the shape asks for fields that are not there", given=(names, shape), expected=wanted)
    address = np.stack([events[name].astype(np.int64) for name in wanted], 1)
    times = torch.from_numpy(events["t"].astype(np.float64) * unit)
    return EventStream.sorted(times, torch.from_numpy(address), shape)


def to_structured(stream: EventStream, *, unit: float = 1e-3) -> Structured:
    """A structured array with the fields x, y, t, p of a stream, which tonic's transforms take.

    Channels without space are x; y is then 0, and a missing polarity 1. Times are rounded to whole units.

    Examples:
        >>> to_structured(EventStream([1.0, 2.5], [[0, 0, 0], [1, 1, 3]], (2, 4, 4)))["t"].tolist()
        [1000, 2500]
    """
    if len(stream.shape) not in _FIELDS:
        raise ShapeError("such addresses have no fields", given=stream.shape, expected="(x), (p, x) or (p, y, x)")
    names = _FIELDS[len(stream.shape)]
    out = np.zeros(len(stream), dtype=[("x", int), ("y", int), ("t", int), ("p", int)])
    out["p"] = 1
    for axis, name in enumerate(names):
        out[name] = stream.address[:, axis].numpy()
    out["t"] = torch.round(stream.t / unit).long().numpy()
    return out


def frames(
    events: EventStream | Structured,
    *,
    count: int | None = None,
    window: float | None = None,
    per_frame: int | None = None,
    shape: Sequence[int] | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Events counted into frames, `[frame, *shape]`, in one of three ways.

    Args:
        events: the stream.
        count: so many frames of equal length, from the first event to the last, which belongs to the last frame.
        window: frames of so many ms from the first event on; the last one may be partly past the end.
        per_frame: frames of so many events; fewer at the end are left out.
        shape: see `from_structured`.
        dtype: of the result (default: torch's default).

    Raises:
        RangeError: not exactly one of the three is given, or it is not positive.

    Examples:
        >>> stream = EventStream([0.0, 1.0, 2.0, 9.0], [0, 1, 1, 0])
        >>> frames(stream, count=2).tolist(), frames(stream, per_frame=2).tolist()
        ([[1.0, 2.0], [1.0, 0.0]], [[1.0, 1.0], [1.0, 1.0]])
    """
    given = [value for value in (count, window, per_frame) if value is not None]
    if len(given) != 1 or not given[0] > 0:
        raise RangeError(
            "frames are cut in one way", given=(count, window, per_frame), expected="count, window or per_frame > 0"
        )
    stream = _stream(events, shape)
    since = stream.t - stream.t[0] if len(stream) else stream.t
    if count is not None:
        length = max(stream.duration, math.ulp(0.0))
        at = torch.floor(since / length * count).long().clamp(max=count - 1)
    elif window is not None:
        at = stream.shifted(-float(stream.t[0]) if len(stream) else 0.0).steps(window)
        count = int(at[-1]) + 1 if len(stream) else 0
    else:
        assert per_frame is not None
        at = torch.arange(len(stream)) // per_frame
        count = len(stream) // per_frame
    inside = at < count
    index = (at[inside], *stream.address[inside].T)
    ones = torch.ones(len(index[0]), dtype=dtype or torch.get_default_dtype())
    return torch.zeros(count, *stream.shape, dtype=ones.dtype).index_put_(index, ones, accumulate=True)


def voxel_grid(
    events: EventStream | Structured,
    bins: int,
    *,
    start: float | None = None,
    stop: float | None = None,
    shape: Sequence[int] | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Signed events spread linearly over the two nearest of `bins` points in time, `[bin, y, x]`.

    Args:
        events: a stream with addresses (polarity, y, x) or (polarity, x).
        bins: number of points, the first at `start`, the last at `stop`.
        start, stop: in ms; None are the first and the last event. Events outside are left out.
        shape: see `from_structured`.
        dtype: of the result (default: torch's default).

    Raises:
        ShapeError: the first axis of the address has not two polarities.
        RangeError: bins is below 1, or stop lies before start.

    Examples:
        >>> stream = EventStream([0.0, 2.5, 10.0], [[1, 0], [1, 1], [0, 0]], shape=(2, 2))
        >>> voxel_grid(stream, bins=3).tolist()
        [[1.0, 0.5], [0.0, 0.5], [-1.0, 0.0]]
    """
    stream = _stream(events, shape)
    if len(stream.shape) < 2 or stream.shape[0] != 2:
        raise ShapeError("a voxel grid needs two polarities", given=stream.shape, expected="(2, y, x)")
    if bins < 1:
        raise RangeError("there must be a bin", given=bins)
    grid = torch.zeros(bins, *stream.shape[1:], dtype=dtype or torch.get_default_dtype())
    if not len(stream):
        return grid
    first = float(stream.t[0]) if start is None else start
    last = float(stream.t[-1]) if stop is None else stop
    if last < first:
        raise RangeError("time runs backwards", given=(first, last))
    inside = (stream.t >= first) & (stream.t <= last)
    span = last - first
    tau = (stream.t[inside] - first) * ((bins - 1) / span if span > 0 else 0.0)
    sign = 2.0 * stream.address[inside, 0] - 1.0
    below = torch.floor(tau).long().clamp(max=max(bins - 2, 0))
    place = stream.address[inside, 1:].T
    for at, share in ((below, 1 - (tau - below)), (below + 1, tau - below)):
        there = at < bins
        value = (sign * share)[there].to(grid.dtype)
        grid.index_put_((at[there], *(axis[there] for axis in place)), value, accumulate=True)
    return grid


def time_surface(
    events: EventStream | Structured,
    times: Tensor | Sequence[float],
    tau: float,
    *,
    shape: Sequence[int] | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """How recent the latest event of each address is, at chosen times, `[time, *shape]`: 1 just now, 0 never.

    Args:
        events: the stream.
        times: in ms, ascending.
        tau: time constant of forgetting in ms.
        shape: see `from_structured`.
        dtype: of the result (default: torch's default).

    Raises:
        RangeError: tau is not positive, or the times do not ascend.

    Examples:
        >>> stream = EventStream([0.0, 5.0], [0, 1])
        >>> time_surface(stream, [0.0, 5.0], tau=5.0).tolist()
        [[1.0, 0.0], [0.3678794503211975, 1.0]]
    """
    stream = _stream(events, shape)
    at = torch.as_tensor(times, dtype=torch.float64, device="cpu")
    if not tau > 0:
        raise RangeError("tau must be positive", given=tau, expected="ms > 0")
    if at.dim() != 1 or bool((at.diff() < 0).any()):
        raise RangeError("times must ascend", given=at.tolist()[:8])
    latest = torch.full(stream.shape, -math.inf, dtype=torch.float64)
    flat, address = latest.view(-1), stream._flat()
    ends = torch.searchsorted(stream.t, at, right=True).tolist()
    surfaces = torch.empty(len(at), *stream.shape, dtype=dtype or torch.get_default_dtype())
    begin = 0
    for n, end in enumerate(ends):
        # times ascend, so the latest event of an address is also its largest
        flat.scatter_reduce_(0, address[begin:end], stream.t[begin:end], "amax")
        surfaces[n] = torch.exp((latest - at[n]) / tau).to(surfaces.dtype)
        begin = end
    return surfaces


def _stream(events: EventStream | Structured, shape: Sequence[int] | None) -> EventStream:
    if isinstance(events, EventStream):
        return events
    if isinstance(events, np.ndarray):
        return from_structured(events, shape)
    raise DtypeError("events are needed", given=type(events).__name__, expected="an EventStream or a structured array")
