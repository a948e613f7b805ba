"""What the scores read: recordings piece by piece, and labels brought to their rows."""

from __future__ import annotations

import contextlib
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from plexus.errors import DtypeError, RangeError, ShapeError
from plexus.probe._sizes import ROW, announce
from plexus.units import Recording, Site, Table
from plexus.units._recording import Labels, check_labels
from plexus.units._shards import Shards, ShardWriter

BUDGET = 2 * 2**30  # bytes held at once by scores that rank

Source = Recording | Iterable[Recording]
Features = Literal["norm", "mean"] | None


@dataclass(frozen=True)
class Piece:
    """Some rows of one site: values `[row, unit]` in float64, their table, and of each concept which rows show it.

    `first` is the number of the stream's sample that the table calls 0.
    """

    site: Site
    values: Tensor
    table: Table
    shown: dict[str, Tensor]
    first: int = 0


@dataclass
class Reading:
    """A recording (or a stream of them) being read, and what it turned out to hold.

    Attributes:
        source: what is read.
        labels: those given; without them the recordings' own are read where they are `required`.
        features: how a unit of several features becomes one number.
        names: of the classes or concepts.
        required: whether labels are; None: the recordings' own count where the first of them has any.
        model: fingerprint of the model.
        named: whether there are several concepts.
        samples: how many there were, once all was read.
    """

    source: Source
    labels: Labels | None
    features: Features = None
    names: Sequence[str] | None = None
    required: bool | None = False
    model: str | None = None
    named: bool = False
    samples: int = 0

    def pieces(self) -> Iterator[Piece]:
        """Every row once."""
        given = None if self.labels is None else _as_concepts(self.labels, self.names)
        if isinstance(self.source, Recording):
            check_labels(self.labels, self.source.samples)
        first, seen, before = 0, 0, given
        for record in recordings(self.source):
            self.model = record.model if self.model is None else self.model
            concepts = given
            if self.required is None:
                self.required = given is None and record.labels is not None
            if concepts is None and self.required:
                if record.labels is None:
                    raise ShapeError("this score needs labels", mend="pass labels=, or record with labels")
                concepts = _as_concepts(record.labels, self.names)
                if before is not None and before.members.keys() != concepts.members.keys():
                    raise ShapeError(
                        "the pieces of this stream show different classes",
                        given=f"{', '.join(before.members)}; {', '.join(concepts.members)}",
                        mend="pass names= of all classes, or labels= of all samples",
                    )
                before = concepts
            self.named = self.named or (concepts is not None and concepts.named)
            stop = first + record.samples
            if given is not None and stop > given.samples:
                check_labels(self.labels, stop)
            offset = first if given is not None else 0
            for site in record.sites:
                for values, table in record.chunks(site):
                    rows = table.sample + offset
                    shown = {} if concepts is None else {n: member[rows] for n, member in concepts.members.items()}
                    yield Piece(site, _flat(site, values, self.features), table, shown, first)
            first, seen = stop, seen + 1
            self.samples = stop
        if not seen:
            raise ShapeError("there is nothing to score", given="no recording")
        if given is not None and first != given.samples:
            check_labels(self.labels, first)

    def whole(self, budget: int = BUDGET) -> Iterator[Piece]:
        """All rows of each site together, for scores that rank: site by site, some units at a time.

        No more than the budget (in bytes), and one piece, is held at once; what comes from a stream is written to
        shards in a temporary folder when it grows beyond that.
        """
        if isinstance(self.source, Recording):
            yield from self._blocks(self.source, budget)
            return
        with contextlib.ExitStack() as stack:
            held = _Held(stack, budget)
            for piece in self.pieces():
                held.add(piece)
            for site, names in held.concepts.items():
                shown = {name: torch.cat(parts) for name, parts in names.items()}
                yield from _in_blocks(site, lambda site=site: held.chunks(site), shown, budget)  # type: ignore[misc]

    def _blocks(self, record: Recording, budget: int) -> Iterator[Piece]:
        given = self.labels if self.labels is not None else record.labels if self.required else None
        if given is None and self.required:
            raise ShapeError("this score needs labels", mend="pass labels=, or record with labels")
        concepts = None if given is None else _as_concepts(given, self.names)
        check_labels(self.labels, record.samples)
        self.model, self.named = record.model, concepts is not None and concepts.named
        if not record.sites:
            raise ShapeError("there is nothing to score", given="a recording without sites")
        for site in record.sites:
            rows = record.table[site].sample
            shown = {} if concepts is None else {name: member[rows] for name, member in concepts.members.items()}

            def chunks(site: Site = site) -> Iterator[tuple[Tensor, Table]]:
                for values, table in record.chunks(site):
                    yield _flat(site, values, self.features), table

            yield from _in_blocks(site, chunks, shown, budget)


class _Held:
    """The pieces of a stream, in memory, or in shards once they are too many."""

    def __init__(self, stack: contextlib.ExitStack, budget: int) -> None:
        self.stack, self.budget, self.size = stack, budget, 0
        self.concepts: dict[Site, dict[str, list[Tensor]]] = {}
        self.values: dict[Site, list[Tensor]] = {}
        self.tables: dict[Site, list[Table]] = {}
        self.folder: str | None = None
        self.writers: dict[Site, ShardWriter] = {}

    def add(self, piece: Piece) -> None:
        concepts = self.concepts.setdefault(piece.site, {})
        for name, shown in piece.shown.items():
            concepts.setdefault(name, []).append(shown)
        self.values.setdefault(piece.site, []).append(piece.values)
        self.tables.setdefault(piece.site, []).append(piece.table)
        self.size += piece.values.nbytes + ROW * len(piece.values)
        if self.size > self.budget:
            self.flush()

    def flush(self) -> None:
        """Write what is held."""
        if self.folder is None:
            self.folder = self.stack.enter_context(tempfile.TemporaryDirectory(prefix="plexus-score-"))
            announce("ranking this stream, more than its budget,", self.size, "at a time, the rest on disk", 0)
        for number, (site, parts) in enumerate(self.values.items()):
            if site not in self.writers:
                self.writers[site] = ShardWriter(f"{self.folder}/{number}", [site], None, None)
            if parts:
                self.writers[site].append({site: torch.cat(parts)}, {site: Table.cat(self.tables[site])})
        self.values = {site: [] for site in self.values}
        self.tables = {site: [] for site in self.tables}
        self.size = 0

    def chunks(self, site: Site) -> Iterator[tuple[Tensor, Table]]:
        """The rows of a site in the order they came."""
        if self.folder is None:
            yield from zip(self.values[site], self.tables[site], strict=True)
            return
        if self.size:
            self.flush()
        self.writers[site].close(0, None)
        yield from Shards(self.writers[site].folder).chunks(site)


def _in_blocks(
    site: Site, chunks: Callable[[], Iterable[tuple[Tensor, Table]]], shown: dict[str, Tensor], budget: int
) -> Iterator[Piece]:
    """A site's rows together, as many units at a time as the budget holds."""
    start, units, width = 0, 1, 0
    while start < units:
        columns, tables = [], []
        for values, table in chunks():
            if not width:
                units = values.shape[1]
                rows = len(next(iter(shown.values()))) if shown else len(values)
                width = max(1, min(units, budget // max(1, 8 * rows)))
            block = values[:, start : start + width]
            columns.append(block if width == units else block.clone())  # a view would keep the whole piece
            tables.append(table)
        if not columns:
            return
        yield Piece(site, torch.cat(columns), Table.cat(tables), shown)
        start += width


@dataclass(frozen=True)
class _Concepts:
    members: dict[str, Tensor]  # per concept a boolean [sample]
    samples: int
    named: bool  # whether there are several, or one nameless


def _as_concepts(labels: Labels, names: Sequence[str] | None) -> _Concepts:
    """Labels as boolean members per concept.

    A mapping gives one concept per name, a 2-D tensor one per column, whole numbers one per class; a boolean tensor or
    one of zeros and ones gives a single nameless concept.
    """
    if isinstance(labels, Mapping):
        if not labels:
            raise ShapeError("there are no concepts", given="an empty mapping of labels")
        members = {str(name): _binary(_tensor(value), f"labels {name!r}") for name, value in labels.items()}
        if len({len(member) for member in members.values()}) > 1:
            raise ShapeError(
                "the labels of the concepts differ in number", given={n: len(m) for n, m in members.items()}
            )
        return _Concepts(members, len(next(iter(members.values()))), True)
    labels = _tensor(labels)
    if labels.dim() == 2:
        titles = _titles(names, labels.shape[1])
        return _Concepts(
            {title: _binary(labels[:, i], f"labels {title!r}") for i, title in enumerate(titles)}, len(labels), True
        )
    if labels.dim() != 1:
        raise ShapeError(
            "labels have the wrong shape", given=tuple(labels.shape), expected="[sample] or [sample, concept]"
        )
    numbers = labels.to(torch.int64) if not labels.is_complex() else labels
    if labels.is_complex() or not torch.equal(numbers.to(labels.dtype), labels):
        raise RangeError("labels are classes (whole numbers) or zeros and ones", given=str(labels.dtype))
    if len(labels) and int(numbers.min()) < 0:
        raise RangeError("a class is not negative", given=int(numbers.min()))
    if names is None and (len(labels) == 0 or int(numbers.max()) <= 1):
        return _Concepts({"": numbers.bool()}, len(labels), False)
    classes = int(numbers.max()) + 1
    titles = _titles(names, max(classes, len(names or ())))
    return _Concepts({title: numbers == i for i, title in enumerate(titles)}, len(labels), True)


def _titles(names: Sequence[str] | None, count: int) -> list[str]:
    if names is None:
        return [str(i) for i in range(count)]
    if len(names) != count:
        raise ShapeError("names and concepts differ in number", given=f"{len(names)} names, {count} concepts")
    return [str(name) for name in names]


def _tensor(labels: object) -> Tensor:
    try:
        return torch.as_tensor(labels).cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        raise DtypeError("labels cannot be read as a tensor of numbers", given=type(labels).__name__) from error


def _binary(labels: Tensor, what: str) -> Tensor:
    if labels.dim() != 1:
        raise ShapeError(f"{what} have the wrong shape", given=tuple(labels.shape), expected="[sample]")
    if not bool(((labels == 0) | (labels == 1)).all()):
        raise RangeError(f"{what} are not zeros and ones", given=sorted(set(labels.tolist()))[:6])
    return labels.bool()


def _flat(site: Site, values: Tensor, features: Features) -> Tensor:
    if values.dim() == 2:
        return values.double()
    if features == "norm":
        norm: Tensor = torch.linalg.vector_norm(values.double(), dim=-1)
        return norm
    if features == "mean":
        return values.double().mean(-1)
    raise ShapeError(
        f"a unit of {site} holds {values.shape[-1]} features, and a score reads one number per unit",
        mend="pass features='norm' or features='mean'",
    )


def recordings(source: Source) -> Iterator[Recording]:
    if isinstance(source, Recording):
        yield source
        return
    if isinstance(source, Tensor | Mapping | str) or not isinstance(source, Iterable):
        raise DtypeError(
            "a score reads a recording", given=type(source).__name__, expected="Recording, or a stream of them"
        )
    for record in source:
        if not isinstance(record, Recording):
            raise DtypeError("a score reads recordings", given=type(record).__name__, expected="probe.stream(...)")
        yield record


def warn_undefined(name: str, concept: str, why: str) -> None:
    """Say that a score is NaN and why."""
    warnings.warn(f"{name} of {concept or 'these labels'} is undefined (NaN): {why}", stacklevel=4)
