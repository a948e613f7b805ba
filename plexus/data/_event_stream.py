"""Events: things that happen at an address and a time, and their dense counterpart.

    e_r = (t_r, a_r),   a_r in {0 … n_1 - 1} × … × {0 … n_k - 1},   t_1 <= t_2 <= …
    dense[i, a] = number of events with address a and  i dt <= t < (i + 1) dt

The events of an event camera have the address (polarity, y, x), polarity 1 for ON (brighter) and 0 for OFF; those of a
cochlea or of recorded neurons have one number, the channel. Times in ms.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from plexus.errors import DtypeError, RangeError, ShapeError

__all__ = ["EventStream"]

_SLACK = 1e-6  # of a step: a time that was stored as a rounded multiple of dt belongs to the step it stands for


class EventStream:
    """Sorted events: `EventStream(t, address, shape)`. It lies in main memory, wherever the tensors come from.

    Args:
        t: time of each event in ms, `[event]`, ascending and finite; kept as float64.
        address: where it happened, integers `[event, axis]` or, with one axis, `[event]`; kept as int64.
        shape: sizes of the address's axes, e.g. `(2, 34, 34)` for (polarity, y, x). None takes the smallest that fits.

    Raises:
        ShapeError: times and addresses do not match each other or the shape.
        RangeError: events are not sorted, times are not finite or an address lies outside the shape.
        DtypeError: addresses are not integers.

    Examples:
        >>> stream = EventStream([0.0, 1.5, 1.7], [[1, 0], [0, 2], [0, 2]], shape=(2, 3))
        >>> stream, stream.duration
        (EventStream(3 events, address 2×3, 0 to 1.7 ms), 1.7)
        >>> stream.to_dense(dt=1.0)[1].tolist()
        [[0.0, 0.0, 2.0], [0.0, 0.0, 0.0]]
    """

    def __init__(
        self,
        t: Tensor | Sequence[float],
        address: Tensor | Sequence[int] | Sequence[Sequence[int]],
        shape: Sequence[int] | None = None,
    ) -> None:
        self.t = torch.as_tensor(t, dtype=torch.float64, device="cpu")
        address = torch.as_tensor(address, device="cpu")
        if address.numel() == 0:
            address = address.long().reshape(0, len(shape) if shape is not None else max(address.dim(), 1))
        if address.is_floating_point() or address.is_complex() or address.dtype == torch.bool:
            raise DtypeError("addresses are integers", given=address.dtype)
        self.address = (address.unsqueeze(1) if address.dim() == 1 else address).long()
        if self.t.dim() != 1 or self.address.dim() != 2 or len(self.t) != len(self.address):
            raise ShapeError(
                "times and addresses do not match",
                given=(tuple(self.t.shape), tuple(self.address.shape)),
                expected="[event] and [event, axis]",
            )
        if shape is None:
            self.shape = tuple(int(n) + 1 for n in self.address.amax(0)) if len(self) else (1,) * self.address.shape[1]
        else:
            self.shape = tuple(int(n) for n in shape)
        self._check()

    def _check(self) -> None:
        if not bool(torch.isfinite(self.t).all()):
            raise RangeError("times of events hold NaN or infinity")
        late = (self.t.diff() < 0).nonzero()
        if len(late):
            raise RangeError(
                "events are not sorted by time",
                given=f"event {int(late[0]) + 1} comes before event {int(late[0])}",
                mend="EventStream.sorted(t, address, shape) sorts them",
            )
        if len(self.shape) != self.address.shape[1] or min(self.shape, default=0) < 1:
            raise ShapeError(
                "the shape does not fit the addresses",
                given=self.shape,
                expected=f"{self.address.shape[1]} positive sizes",
            )
        size = torch.tensor(self.shape)
        if bool(((self.address < 0) | (self.address >= size)).any()):
            raise RangeError(
                "an address lies outside the shape",
                given=f"{self.address.amin(0).tolist()} to {self.address.amax(0).tolist()}",
                expected=f"0 to {(size - 1).tolist()}",
            )

    @classmethod
    def sorted(
        cls,
        t: Tensor | Sequence[float],
        address: Tensor | Sequence[int] | Sequence[Sequence[int]],
        shape: Sequence[int] | None = None,
    ) -> EventStream:
        """The stream of events given in any order; events of equal times keep theirs.

        Examples:
            >>> EventStream.sorted([2.0, 1.0], [0, 1], shape=(2,)).address.flatten().tolist()
            [1, 0]
        """
        t, address = torch.as_tensor(t, dtype=torch.float64, device="cpu"), torch.as_tensor(address, device="cpu")
        order = torch.argsort(t, stable=True)
        return cls(t[order], address[order], shape)

    @classmethod
    def from_dense(cls, dense: Tensor, dt: float = 1.0) -> EventStream:
        """The events of counts `[time, *shape]`, each at the start of its step, in the order of their addresses.

        Raises:
            RangeError: a count is negative or not whole, or dt is not positive.

        Examples:
            >>> EventStream.from_dense(torch.tensor([[0, 1], [2, 0]]), dt=0.5).t.tolist()
            [0.0, 0.5, 0.5]
        """
        _positive("dt", dt)
        if dense.dim() < 2:
            raise ShapeError("counts over time are needed", given=tuple(dense.shape), expected="[time, axis…]")
        counts = dense.detach().cpu().long()
        if bool((counts != dense.detach().cpu()).any()) or (counts.numel() and int(counts.min()) < 0):
            raise RangeError("a dense stream holds counts", expected="whole numbers >= 0")
        places = counts.nonzero()
        several = counts[tuple(places.T)]
        places = places.repeat_interleave(several, dim=0)
        return cls(places[:, 0].double() * dt, places[:, 1:], tuple(dense.shape[1:]))

    def steps(self, dt: float = 1.0) -> Tensor:
        """The step of each event, `[event]`: floor(t / dt), with times a rounding below a step counted into it."""
        _positive("dt", dt)
        return torch.floor(self.t / dt + _SLACK).long()

    def to_dense(
        self, dt: float = 1.0, steps: int | None = None, *, binary: bool = False, dtype: torch.dtype | None = None
    ) -> Tensor:
        """Counts of events per step of dt ms, `[time, *shape]`.

        Args:
            dt: length of a step in ms.
            steps: number of steps; later events are left out. None is the least number that holds all events.
            binary: 1 where there was at least one event, instead of counts.
            dtype: of the result (default: torch's default).

        Raises:
            RangeError: an event lies before 0, or dt is not positive.
        """
        at = self.steps(dt)
        if len(self) and int(at[0]) < 0:
            raise RangeError(
                "an event lies before time 0", given=f"{float(self.t[0]):g} ms", mend="stream.shifted(-stream.t[0])"
            )
        length = (int(at[-1]) + 1 if len(self) else 0) if steps is None else steps
        inside = at < length
        cells = math.prod(self.shape)
        counts = torch.zeros(length * cells, dtype=dtype or torch.get_default_dtype())
        flat = at[inside] * cells + self._flat()[inside]
        counts.index_add_(0, flat, torch.ones(len(flat), dtype=counts.dtype))
        return (counts.clamp_(max=1) if binary else counts).view(length, *self.shape)

    def _flat(self) -> Tensor:
        """Each address as one number, `[event]`."""
        flat = torch.zeros(len(self), dtype=torch.int64)
        for axis, size in enumerate(self.shape):
            flat = flat * size + self.address[:, axis]
        return flat

    def between(self, start: float, stop: float) -> EventStream:
        """The events with `start <= t < stop`, at their own times."""
        first, last = torch.searchsorted(self.t, torch.tensor([start, stop], dtype=torch.float64)).tolist()
        return EventStream(self.t[first:last], self.address[first:last], self.shape)

    def shifted(self, by: float) -> EventStream:
        """The same events `by` ms later."""
        return EventStream(self.t + by, self.address, self.shape)

    def flip(self, axis: int = 0) -> EventStream:
        """The events with one axis of the address reversed; axis 0 of a camera's stream swaps the polarities."""
        address = self.address.clone()
        address[:, axis] = self.shape[axis] - 1 - address[:, axis]
        return EventStream(self.t, address, self.shape)

    @property
    def duration(self) -> float:
        """Time from the first to the last event in ms; 0 without events."""
        return float(self.t[-1] - self.t[0]) if len(self) else 0.0

    def __len__(self) -> int:
        return len(self.t)

    def __repr__(self) -> str:
        span = f", {float(self.t[0]):g} to {float(self.t[-1]):g} ms" if len(self) else ""
        return f"EventStream({len(self)} events, address {'×'.join(map(str, self.shape))}{span})"


def _positive(name: str, value: float) -> None:
    if not value > 0:
        raise RangeError(f"{name} must be positive", given=value, expected="> 0")
