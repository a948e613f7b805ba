"""Where an autoencoder's rows come from: held in memory, or streamed through a buffer that mixes them.

A feed gives batches in an order that its generator decides, and can say where it stands, so that a training that was
stopped goes on with the very batch that would have come next.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Protocol

import torch
from torch import Tensor

from plexus.errors import DtypeError, RangeError, ShapeError, SiteError, UnsupportedError
from plexus.units import Recording, Site
from plexus.units._draws import random_order

__all__ = ["Feed", "Held", "Source", "Streamed", "feed_of", "pieces_of", "site_of"]

Source = Tensor | Recording | Iterable[Recording] | Callable[[], Iterable[Recording]]
State = dict[str, Tensor]


class Feed(Protocol):
    """What a trainer draws from: batches `[member, row, unit]`."""

    first: Tensor  # rows to begin with, `[member, row, unit]`: for scales and biases
    kept_back: Tensor | None  # rows never trained on

    def draw(self) -> Tensor | None:
        """The next batch, or None when there are no more."""

    def narrow(self, members: Tensor) -> None:
        """Give the rows of these members alone from now on."""

    def state(self) -> State: ...

    def load_state(self, state: Mapping[str, Tensor]) -> None: ...


class Held:
    """Rows in memory, in a new order each time round."""

    def __init__(self, rows: Tensor, batch: int, generator: torch.Generator, kept_back: Tensor | None = None) -> None:
        self.first, self.kept_back, self.batch, self.generator = rows, kept_back, min(batch, rows.shape[1]), generator
        self.order, self.at = torch.empty(0, dtype=torch.int64), 0

    def draw(self) -> Tensor | None:
        # the last rows of a round that fill no batch sit it out; the order changes, so they come next time
        if self.at + self.batch > len(self.order):
            self.order, self.at = random_order(self.first.shape[1], self.generator), 0
        index = self.order[self.at : self.at + self.batch]
        self.at += self.batch
        return self.first[:, index.to(self.first.device)]

    def narrow(self, members: Tensor) -> None:
        self.first = self.first[members]

    def state(self) -> State:
        return {"order": self.order, "at": torch.tensor(self.at)}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        self.order, self.at = state["order"], int(state["at"])


class Streamed:
    """Rows of a stream: a buffer is filled and shuffled, half of it is used, and it is filled again.

    Args:
        open_stream: gives the stream from its beginning.
        again: whether it can be opened anew when it has ended.
        batch: rows of a batch.
        size: rows of the buffer.
        held_out: how many rows of the very beginning are kept back.
        generator: shuffles.
    """

    def __init__(
        self,
        open_stream: Callable[[], Iterator[Tensor]],
        again: bool,
        batch: int,
        size: int,
        held_out: int,
        generator: torch.Generator,
    ) -> None:
        self.batch, self.size, self.generator = batch, max(size, 2 * batch), generator
        self.taken, self.at, self.ended = 0, 0, False
        self.back: list[Tensor] = []
        self.pieces = self._pieces(open_stream, again, held_out)
        self.buffer = self.spare = torch.empty(0)
        self._fill()
        self.kept_back = torch.cat(self.back)[None] if held_out else None
        if not len(self.buffer):
            raise ShapeError(
                "the stream has no rows to train on", given=f"{held_out} rows held out", mend="hold out fewer"
            )
        self.first = self.buffer[None]

    def draw(self) -> Tensor | None:
        if not self.ended and self.at + self.batch > max(len(self.buffer) // 2, self.batch):
            self._fill()
        if self.at + self.batch > len(self.buffer):
            return None
        rows = self.buffer[self.at : self.at + self.batch]
        self.at += self.batch
        return rows[None]

    def narrow(self, members: Tensor) -> None:
        if members.tolist() != [0]:
            raise ShapeError("a stream has one member", given=members.tolist())

    def state(self) -> State:
        return {"buffer": self.buffer, "spare": self.spare, "numbers": torch.tensor([self.at, self.taken, self.ended])}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        self.buffer, self.spare = state["buffer"], state["spare"]
        self.at, taken, ended = state["numbers"].tolist()
        while self.taken < taken and next(self.pieces, None) is not None:
            pass  # what was read before the stop is read again and let go
        self.ended = bool(ended)

    def _fill(self) -> None:
        rest = [self.buffer[self.at :]] if self.at < len(self.buffer) else []
        missing = self.size - (len(rest[0]) if rest else 0)
        while missing > 0:
            if not len(self.spare):
                piece = next(self.pieces, None)
                if piece is None:
                    self.ended = True
                    break
                self.spare = piece
            rest.append(self.spare[:missing])
            self.spare = self.spare[missing:]
            missing -= len(rest[-1])
        rows = torch.cat(rest) if rest else torch.empty(0)
        self.buffer, self.at = rows[random_order(len(rows), self.generator)], 0

    def _pieces(self, open_stream: Callable[[], Iterator[Tensor]], again: bool, held_out: int) -> Iterator[Tensor]:
        first = True
        while True:
            skip, seen = held_out, 0
            for piece in open_stream():
                cut = min(skip, len(piece))
                skip, seen = skip - cut, seen + len(piece) - cut
                if cut and first:
                    self.back.append(piece[:cut])
                self.taken += 1
                yield piece[cut:]
            first = False
            if not again or not seen:
                return


def feed_of(
    source: Source,
    site: Site | None,
    *,
    batch: int,
    buffer: int,
    held_out: float | int,
    generator: torch.Generator,
) -> Feed:
    """The feed of a source.

    Raises:
        DtypeError: the source is none. ShapeError, RangeError: it has no rows, too few to hold out, or NaN.
    """
    if isinstance(source, Tensor):
        rows = _matrix(source, "the rows")
        samples = torch.arange(len(rows))
    elif isinstance(source, Recording) and source.folder is None:
        place = site_of(source, site)
        rows, samples = _matrix(source[place], str(place)), source.table[place].sample
    else:
        if isinstance(held_out, float) and held_out:
            raise UnsupportedError(
                "how long a stream is does not show, so no share of it can be held out",
                given=held_out,
                mend="pass a number of rows, e.g. held_out=4096",
            )
        again = callable(source) or isinstance(source, Recording)
        return Streamed(lambda: pieces_of(source, site), again, batch, buffer, int(held_out), generator)
    train, back = split(samples, held_out, generator)
    kept_back = rows[back][None] if len(back) else None
    return Held(rows[train][None] if len(back) else rows[None], batch, generator, kept_back)


def split(samples: Tensor, held_out: float | int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Rows to train on and rows to keep back; the rows of one sample stay together."""
    if not len(samples):
        raise ShapeError("there are no rows")
    whole = isinstance(held_out, int) and not isinstance(held_out, bool)
    count = held_out if whole else round(held_out * len(samples))
    if not 0 <= count < len(samples) or (not whole and not 0 <= held_out < 1):
        raise RangeError(
            "rows to hold out are a count or a share below 1", given=held_out, expected=f"of {len(samples)} rows"
        )
    distinct, which = samples.unique(return_inverse=True)
    order = random_order(len(distinct), generator)
    rank = torch.empty_like(order).scatter(0, order, torch.arange(len(order)))
    sizes = torch.bincount(which, minlength=len(distinct))[order].cumsum(0)
    # whole samples until the count is reached
    aside = int((sizes - torch.bincount(which, minlength=len(distinct))[order] < count).sum()) if count else 0
    back = rank[which] < aside
    if bool(back.all()):
        raise RangeError("holding out whole samples leaves none to train on", given=f"{len(distinct)} samples")
    return (~back).nonzero().squeeze(1), back.nonzero().squeeze(1)


def pieces_of(source: Source, site: Site | None) -> Iterator[Tensor]:
    """The rows of a source, piece by piece, `[row, unit]` in float32."""
    if isinstance(source, Tensor):
        yield _matrix(source, "the rows")
        return
    records = source() if callable(source) and not isinstance(source, Recording) else source
    if isinstance(records, Recording):
        place = site_of(records, site)
        for values, _ in records.chunks(place):
            yield _matrix(values, str(place))
        return
    if isinstance(records, str | Mapping) or not isinstance(records, Iterable):
        raise DtypeError(
            "an autoencoder is trained on rows",
            given=type(source).__name__,
            expected="a tensor [row, unit], a Recording, a stream of recordings, or a function that opens one",
        )
    for record in records:
        if not isinstance(record, Recording):
            raise DtypeError("a stream holds recordings", given=type(record).__name__, expected="probe.stream(...)")
        place = site_of(record, site)
        yield _matrix(record[place], str(place))


def site_of(record: Recording, site: Site | None) -> Site:
    """The site asked for, or the only one.

    Raises:
        SiteError: it was not recorded, or several were and none is asked for.
    """
    if site is not None:
        return site
    if len(record.sites) != 1:
        raise SiteError(
            "an autoencoder reads one site", given=", ".join(map(str, record.sites)) or "none", mend="pass site="
        )
    return record.sites[0]


def _matrix(values: Tensor, what: str) -> Tensor:
    """Rows as `[row, unit]` in float32; the features of a unit (a head's) lie side by side."""
    if values.dim() not in (2, 3) or 0 in values.shape[1:]:
        raise ShapeError(f"{what} are no rows of units", given=tuple(values.shape), expected="[row, unit(, feature)]")
    rows = values.detach().flatten(1).float()
    if not bool(rows.isfinite().all()):
        raise RangeError(f"{what} hold NaN or infinity", given=f"{int((~rows.isfinite()).any(1).sum())} rows")
    return rows
