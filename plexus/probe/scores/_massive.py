"""Massive activations: few values of the residual stream that are enormous, at the same units whatever is read.

    massive(s, t, u)   |a[s, t, u]| > 100  and  |a[s, t, u]| > 1000 · median over t, u of |a[s, ·, ·]|

Source: Sun et al. 2024.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from plexus.errors import RangeError
from plexus.probe.scores._source import Features, Piece, Reading, Source
from plexus.units import Neurons, Scores, Site


class Massive(NamedTuple):
    """One massive activation and where it is."""

    site: Site
    sample: int
    position: int
    unit: int
    value: float
    ratio: float  # to the median size of its sample at its site


@dataclass(frozen=True)
class MassiveActivations:
    """All massive activations of a recording, largest first.

    Attributes:
        found: each with its place.
        sizes: units of the sites looked at.
        samples: how many samples were seen, those without a row included.
        model: fingerprint of the model, if known.
    """

    found: tuple[Massive, ...]
    sizes: dict[Site, int]
    samples: int
    model: str | None = None

    @property
    def neurons(self) -> Neurons:
        """The units with at least one."""
        units = {site: sorted({one.unit for one in self.found if one.site == site}) for site in self.sizes}
        return Neurons.of(self.sizes, units, self.model)

    @property
    def shares(self) -> Scores:
        """In which share of the samples a unit has one."""
        values = {site: torch.zeros(size, dtype=torch.float64) for site, size in self.sizes.items()}
        for site, _, unit in {(one.site, one.sample, one.unit) for one in self.found}:
            values[site][unit] += 1 / self.samples
        return Scores(values, None, "share of samples with a massive activation", self.model)

    def positions(self, site: Site, unit: int) -> dict[int, int]:
        """At which positions a unit has them, and how often."""
        here = sorted(one.position for one in self.found if (one.site, one.unit) == (site, unit))
        return {position: here.count(position) for position in dict.fromkeys(here)}

    def __str__(self) -> str:
        lines = [f"{len(self.found)} massive activations of {len(self.neurons)} units in {self.samples} samples"]
        for one in self.found[:12]:
            where = f"sample {one.sample}, position {one.position}, unit {one.unit}"
            lines.append(f"  {one.site}: {where}: {one.value:.4g}, {one.ratio:,.0f} × the median")
        return "\n".join(lines + ([f"  … and {len(self.found) - 12} more"] if len(self.found) > 12 else []))


def massive_activations(
    record: Source, *, magnitude: float = 100.0, ratio: float = 1000.0, features: Features = None
) -> MassiveActivations:
    """Find activations that are large by themselves and beside the others of their sample.

    Args:
        record: a `Recording` or a stream of them, of whole samples (not pooled); read once. Sites are usually
            `sites.residual(model)`.
        magnitude: what the absolute value exceeds.
        ratio: how many times the median absolute value of its sample at its site it exceeds.
        features: how a unit that holds several features becomes one number ("norm", "mean").

    Raises:
        RangeError: a bound is negative or NaN.

    Examples:
        >>> from plexus.units import Recording, Table
        >>> stream = Site("block", "b t u")
        >>> values = torch.full((4, 5), 0.1)
        >>> values[2, 3] = -300.0
        >>> found = massive_activations(Recording({stream: values}, {stream: Table([0, 0, 1, 1], [0, 1, 0, 1])}))
        >>> [(one.sample, one.position, one.unit, round(one.ratio)) for one in found.found]
        [(1, 0, 3, 3000)]
    """
    if not magnitude >= 0 or not ratio >= 0:
        raise RangeError("bounds are not negative", given=f"magnitude={magnitude}, ratio={ratio}")
    reading = Reading(record, None, features)
    found: list[Massive] = []
    sizes: dict[Site, int] = {}
    for piece in reading.pieces():
        sizes[piece.site] = piece.values.shape[1]
        sample = piece.table.sample
        size = piece.values.abs()
        for number in sample.unique().tolist():
            rows = (sample == number).nonzero().squeeze(1)
            found += _of_sample(piece, rows, size[rows], magnitude, ratio)
    found.sort(key=lambda one: -abs(one.value))
    return MassiveActivations(tuple(found), sizes, reading.samples, reading.model)


def _of_sample(piece: Piece, rows: Tensor, size: Tensor, magnitude: float, ratio: float) -> Sequence[Massive]:
    if not bool((size > magnitude).any()):
        return ()
    median = float(size.median())
    places = ((size > magnitude) & (size > ratio * median)).nonzero().tolist()
    return [
        Massive(
            piece.site,
            int(piece.table.sample[rows[row]]) + piece.first,
            int(piece.table.position[rows[row]]),
            unit,
            float(piece.values[rows[row], unit]),
            float(size[row, unit]) / median if median > 0 else torch.inf,
        )
        for row, unit in places
    ]
