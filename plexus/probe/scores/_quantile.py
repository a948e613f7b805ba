"""Quantiles of units over rows, for instance the median over the rows that show a concept."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from plexus.errors import RangeError
from plexus.probe.scores._moments import concept_scores
from plexus.probe.scores._source import BUDGET, Features, Reading, Source, warn_undefined
from plexus.units import Scores, Site
from plexus.units._recording import Labels


def quantile(
    record: Source,
    q: float = 0.5,
    labels: Labels | None = None,
    *,
    names: Sequence[str] | None = None,
    features: Features = None,
    budget: int = BUDGET,
) -> Scores:
    """A quantile of each unit over the rows; with labels, over the rows of each concept.

    Between two rows it is interpolated linearly. The medians of a concept are what `edit.replace` takes to hold its
    units where the concept puts them: `edit.replace(chosen, quantile(record, 0.5, labels)["capital"].values)`.

    Args:
        record: a `Recording` or a stream of them; all rows of a site are held, of as many units at a time as the budget
            allows.
        q: in [0, 1]; one half is the median.
        labels: as in `mean`.
        names: of the classes or concepts.
        features: how a unit that holds several features becomes one number ("norm", "mean").
        budget: bytes held at once; what comes from a stream and is more goes to a temporary folder.

    Returns:
        Scores `[concept, unit]`, or `[unit]`; NaN, with a warning, for a concept that no row shows.

    Raises:
        RangeError: `q` outside [0, 1].
        ShapeError: labels that do not match the samples, or units with features and no word on them.

    Examples:
        >>> from plexus.units import Recording, Site, Table
        >>> hidden = Site("fc1", "b u")
        >>> rec = Recording({hidden: torch.tensor([[1.0], [2.0], [9.0]])}, {hidden: Table([0, 1, 2])})
        >>> first = quantile(rec, labels=[1, 1, 0], names=["others", "first"])["first"]
        >>> quantile(rec)[hidden].item(), first[hidden].item()
        (2.0, 1.5)
    """
    if not 0 <= q <= 1:
        raise RangeError("a quantile lies in [0, 1]", given=q)
    reading = Reading(record, labels, features, names)
    found: dict[Site, dict[str, list[Tensor]]] = {}
    for piece in reading.whole(budget):
        shown = piece.shown or {"": torch.ones(len(piece.values), dtype=torch.bool)}
        first = piece.site not in found
        parts = found.setdefault(piece.site, {concept: [] for concept in shown})
        for concept, member in shown.items():
            rows = piece.values[member]
            if not len(rows):
                if first:
                    warn_undefined("quantile", concept, "no row shows it")
                parts[concept].append(piece.values.new_full((piece.values.shape[1],), torch.nan))
            else:
                parts[concept].append(_interpolated(rows, q))
    together = {site: {concept: torch.cat(parts) for concept, parts in by.items()} for site, by in found.items()}
    return concept_scores(together, reading, f"{q:g} quantile")


def _interpolated(rows: Tensor, q: float) -> Tensor:
    ordered, place = rows.sort(0).values, q * (len(rows) - 1)  # torch.quantile refuses 2²⁴ numbers and more
    low, high = ordered[math.floor(place)], ordered[math.ceil(place)]
    return torch.where(rows.isnan().any(0), torch.nan, low + (high - low) * (place - math.floor(place)))
