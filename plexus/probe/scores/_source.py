"""What the scores read: recordings piece by piece, and labels brought to their rows."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from plexus.errors import DtypeError, RangeError, ShapeError
from plexus.units import Recording, Site, Table
from plexus.units._recording import Labels, check_labels

Source = Recording | Iterable[Recording]
Features = Literal["norm", "mean"] | None


@dataclass(frozen=True)
class Piece:
    """Some rows of one site: values `[row, unit]` in float64, their table, and of each concept which rows show it."""

    site: Site
    values: Tensor
    table: Table
    shown: dict[str, Tensor]


@dataclass
class Reading:
    """A recording (or a stream of them) being read, and what it turned out to hold."""

    source: Source
    labels: Labels | None
    features: Features = None
    names: Sequence[str] | None = None
    required: bool = False
    model: str | None = None
    named: bool = False

    def pieces(self) -> Iterator[Piece]:
        """Every row once."""
        given = None if self.labels is None else _as_concepts(self.labels, self.names)
        if isinstance(self.source, Recording):
            check_labels(self.labels, self.source.samples)
        first, seen, before = 0, 0, given
        for record in recordings(self.source):
            self.model = record.model if self.model is None else self.model
            concepts = given
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
                    yield Piece(site, _flat(site, values, self.features), table, shown)
            first, seen = stop, seen + 1
        if not seen:
            raise ShapeError("there is nothing to score", given="no recording")
        if given is not None and first != given.samples:
            check_labels(self.labels, first)

    def whole(self) -> Iterator[Piece]:
        """All rows of each site at once, for scores that rank."""
        if isinstance(self.source, Recording):  # site by site, so that one on disk is never held whole
            for site in self.source.sites:
                part = Reading(self.source.at(site), self.labels, self.features, self.names, self.required)
                yield from part.pieces()
                self.model, self.named = part.model, part.named
            return
        parts: dict[Site, list[Piece]] = {}
        for piece in self.pieces():
            parts.setdefault(piece.site, []).append(piece)
        for site, pieces in parts.items():
            shown = {name: torch.cat([piece.shown[name] for piece in pieces]) for name in pieces[0].shown}
            values = torch.cat([piece.values for piece in pieces])
            yield Piece(site, values, Table.cat([piece.table for piece in pieces]), shown)


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
