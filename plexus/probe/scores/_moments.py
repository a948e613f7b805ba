"""Means, variances and what is made from them, in one pass over the rows.

    n ← n + m,   δ = mean(new) - μ,   μ ← μ + δ m/n,   M ← M + M(new) + δ² (n - m) m / n
    variance = M / (n - correction)
    d' = (μ₁ - μ₀) / sqrt((σ₁² + σ₀²) / 2)

Source: Chan, Golub & LeVeque 1979 (merging); Green & Swets 1966 (d').
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from plexus.probe.scores._source import Features, Reading, Source, warn_undefined
from plexus.units import Scores, Site
from plexus.units._recording import Labels


class Moments:
    """Count, mean and sum of squared deviations of each unit, fed rows, in float64.

    Examples:
        >>> moments = Moments(1)
        >>> moments.add(torch.tensor([[1.0], [2.0]]))
        >>> moments.add(torch.tensor([[6.0]]))
        >>> moments.mean.item(), moments.variance().item()
        (3.0, 7.0)
    """

    def __init__(self, units: int) -> None:
        self.count = 0
        self._origin: Tensor | None = None  # the first row: a constant lies exactly at it, without rounding
        self._mean = torch.zeros(units, dtype=torch.float64)  # from the origin
        self._deviations = torch.zeros(units, dtype=torch.float64)

    @property
    def mean(self) -> Tensor:
        """Mean of each unit; NaN where there are no rows."""
        return self._mean + self._origin if self._origin is not None else torch.full_like(self._mean, torch.nan)

    def add(self, rows: Tensor) -> None:
        """More rows, `[row, unit]`."""
        if not len(rows):
            return
        rows = rows.double()
        if self._origin is None:
            self._origin = rows[0].nan_to_num(0.0, 0.0, 0.0)
        rows = rows - self._origin
        mean = rows.mean(0)
        self._merge(len(rows), mean, (rows - mean).square().sum(0))

    def _merge(self, count: int, mean: Tensor, deviations: Tensor) -> None:
        total = self.count + count
        delta = mean - self._mean
        self._deviations = self._deviations + deviations + delta.square() * (self.count * count / total)
        self._mean = self._mean + delta * (count / total)
        self.count = total

    def variance(self, correction: int = 1) -> Tensor:
        """Variance of each unit; NaN where there are too few rows."""
        if self.count <= correction:
            return torch.full_like(self._mean, torch.nan)
        return self._deviations / (self.count - correction)


def mean(
    record: Source, labels: Labels | None = None, *, names: Sequence[str] | None = None, features: Features = None
) -> Scores:
    """Mean of each unit over the rows; with labels, over the rows of each concept.

    Args:
        record: a `Recording` or a stream of them; read once, row by row.
        labels: `[sample]` zeros and ones or classes, `[sample, concept]` zeros and ones, or a mapping of names to them.
        names: of the classes or concepts.
        features: how a unit that holds several features becomes one number ("norm", "mean").

    Raises:
        ShapeError: labels that do not match the samples, or units with features and no word on them.

    Examples:
        >>> from plexus.units import Recording, Site, Table
        >>> hidden = Site("fc1", "b u")
        >>> rec = Recording({hidden: torch.tensor([[1.0, 0.0], [3.0, 4.0]])}, {hidden: Table([0, 1])})
        >>> mean(rec)[hidden]
        tensor([2., 2.], dtype=torch.float64)
    """
    reading = Reading(record, labels, features, names)
    parts = _moments(reading, "mean")
    return concept_scores({site: {c: m[0].mean for c, m in by.items()} for site, by in parts.items()}, reading, "mean")


def variance(
    record: Source,
    labels: Labels | None = None,
    *,
    names: Sequence[str] | None = None,
    features: Features = None,
    correction: int = 1,
) -> Scores:
    """Variance of each unit over the rows; with labels, over the rows of each concept.

    Args and raises: as `mean`; `correction` is subtracted from the number of rows.

    Examples:
        >>> from plexus.units import Recording, Site, Table
        >>> hidden = Site("fc1", "b u")
        >>> rec = Recording({hidden: torch.tensor([[1.0, 0.0], [3.0, 0.0]])}, {hidden: Table([0, 1])})
        >>> variance(rec)[hidden]
        tensor([2., 0.], dtype=torch.float64)
    """
    reading = Reading(record, labels, features, names)
    parts = _moments(reading, "variance")
    values = {site: {c: m[0].variance(correction) for c, m in by.items()} for site, by in parts.items()}
    return concept_scores(values, reading, "variance")


def dprime(
    record: Source, labels: Labels | None = None, *, names: Sequence[str] | None = None, features: Features = None
) -> Scores:
    """How far apart a unit's values with and without a concept are, in standard deviations (d').

    A unit that is constant on both sides has d' = 0 where the two constants are equal, and ±inf where they differ.

    Args and raises: as `mean`; without `labels` those of the recording are used. Classes are scored one against the
    rest.

    Examples:
        >>> from plexus.units import Recording, Site, Table
        >>> hidden = Site("fc1", "b u")
        >>> rec = Recording({hidden: torch.tensor([[0.0], [2.0], [3.0], [5.0]])}, {hidden: Table([0, 1, 2, 3])})
        >>> dprime(rec, torch.tensor([0, 0, 1, 1]))[hidden]
        tensor([2.1213], dtype=torch.float64)
    """
    reading = Reading(record, labels, features, names, required=True)
    values: dict[Site, dict[str, Tensor]] = {}
    for site, by in _moments(reading, "d'").items():
        values[site] = {}
        for concept, (one, rest) in by.items():
            if rest.count < 2 or one.count < 2:
                warn_undefined("d'", concept, f"{one.count} rows with it, {rest.count} without; each side needs two")
            gap = one.mean - rest.mean
            spread = ((one.variance() + rest.variance()) / 2).sqrt()
            flat = (spread == 0) & (gap == 0)
            values[site][concept] = torch.where(flat, torch.zeros_like(gap), gap / spread)
    return concept_scores(values, reading, "d'")


def _moments(reading: Reading, name: str) -> dict[Site, dict[str, tuple[Moments, Moments]]]:
    """Per site and concept the moments of the rows that show it, and of those that do not."""
    found: dict[Site, dict[str, tuple[Moments, Moments]]] = {}
    for piece in reading.pieces():
        by = found.setdefault(piece.site, {})
        everything = torch.ones(len(piece.values), dtype=torch.bool)
        for concept, member in (piece.shown or {"": everything}).items():
            one, rest = by.setdefault(concept, (Moments(piece.values.shape[1]), Moments(piece.values.shape[1])))
            one.add(piece.values[member])
            if reading.required:
                rest.add(piece.values[~member])
    for by in found.values():
        for concept, (one, _) in by.items():
            if not one.count and not reading.required:
                warn_undefined(name, concept, "no row shows it")
    return found


def concept_scores(values: dict[Site, dict[str, Tensor]], reading: Reading, name: str) -> Scores:
    """Scores from numbers per site and concept; a single nameless concept becomes plain numbers per unit."""
    if not reading.named:
        return Scores({site: by[""] for site, by in values.items()}, None, name, reading.model)
    concepts = list(dict.fromkeys(concept for by in values.values() for concept in by))
    stacked = {}
    for site, by in values.items():
        none = torch.full_like(next(iter(by.values())), torch.nan)
        stacked[site] = torch.stack([by.get(concept, none) for concept in concepts])
    return Scores(stacked, concepts, name, reading.model)
