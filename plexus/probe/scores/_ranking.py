"""How well a unit's value ranks the rows that show a concept above those that do not.

    average precision  AP = Σ_n (R_n - R_{n-1}) P_n      over the distinct values, highest first
    area under ROC     AUROC = (Σ ranks⁺ - n⁺(n⁺+1)/2) / (n⁺ n⁻)      ranks from 1, equal values share their mean rank

Equal values count as one threshold. Chance is the share of rows with the concept for AP, and 1/2 for AUROC.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from plexus.probe.scores._moments import concept_scores
from plexus.probe.scores._source import Features, Reading, Source, warn_undefined
from plexus.units import Scores, Site
from plexus.units._recording import Labels

_BLOCK = 2**22  # numbers sorted at once


def average_precision(
    record: Source, labels: Labels | None = None, *, names: Sequence[str] | None = None, features: Features = None
) -> Scores:
    """Average precision of each unit as a detector of a concept.

    Args:
        record: a `Recording` or a stream of them; all rows of a site are ranked together, so they are held.
        labels: `[sample]` zeros and ones or classes (one against the rest), `[sample, concept]` zeros and ones, or a
            mapping of names to them; those of the recording where left out.
        names: of the classes or concepts.
        features: how a unit that holds several features becomes one number ("norm", "mean").

    Returns:
        Scores in [0, 1]: `[concept, unit]`, or `[unit]` for one nameless concept; NaN, with a warning, for a concept
        that no row shows, and for units with NaN.

    Raises:
        ShapeError: no labels, labels that do not match the samples, or units with features and no word on them.

    Example:
        >>> from plexus.units import Recording, Site, Table
        >>> hidden = Site("fc1", "b u")
        >>> values = torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.1, 0.3]])
        >>> rec = Recording({hidden: values}, {hidden: Table([0, 1, 2])})
        >>> average_precision(rec, {"capital": [1, 1, 0]})["capital"][hidden]
        tensor([1.0000, 0.5833], dtype=torch.float64)
    """
    return _ranked(record, labels, names, features, "average precision", _average_precision, both=False)


def auroc(
    record: Source, labels: Labels | None = None, *, names: Sequence[str] | None = None, features: Features = None
) -> Scores:
    """Area under the ROC curve of each unit as a detector of a concept: P(value with it > value without), ties half.

    Args, returns and raises: as `average_precision`; also NaN for a concept that every row shows.

    Example:
        >>> from plexus.units import Recording, Site, Table
        >>> hidden = Site("fc1", "b u")
        >>> values = torch.tensor([[0.9, 0.1], [0.8, 0.3], [0.1, 0.3]])
        >>> rec = Recording({hidden: values}, {hidden: Table([0, 1, 2])})
        >>> auroc(rec, [1, 1, 0])[hidden]
        tensor([1.0000, 0.2500], dtype=torch.float64)
    """
    return _ranked(record, labels, names, features, "AUROC", _auroc, both=True)


def _ranked(
    record: Source,
    labels: Labels | None,
    names: Sequence[str] | None,
    features: Features,
    name: str,
    measure: Callable[[Tensor, Tensor, Tensor, int], Tensor],
    *,
    both: bool,
) -> Scores:
    reading = Reading(record, labels, features, names, required=True)
    scores: dict[Site, dict[str, Tensor]] = {}
    for piece in reading.whole():
        counts = {concept: int(member.sum()) for concept, member in piece.shown.items()}
        for concept, count in counts.items():
            if count == 0 or (both and count == len(piece.values)):
                warn_undefined(name, concept, "no row shows it" if count == 0 else "every row shows it")
        blocks: dict[str, list[Tensor]] = {concept: [] for concept in piece.shown}
        for block in piece.values.split(max(1, _BLOCK // max(1, len(piece.values))), dim=1):
            down, order = block.sort(dim=0, descending=True, stable=True)
            bad = block.isnan().any(0)
            first, last = _ties(down)
            for concept, member in piece.shown.items():
                value = measure(member[order].double(), first, last, counts[concept])
                blocks[concept].append(torch.where(bad, torch.nan, value))
        scores[piece.site] = {concept: torch.cat(parts) for concept, parts in blocks.items()}
    return concept_scores(scores, reading, name)


def _ties(down: Tensor) -> tuple[Tensor, Tensor]:
    """For each place of sorted columns, the first and the last place with the same value."""
    rows = torch.arange(len(down))[:, None].expand_as(down)
    change = down[1:] != down[:-1]
    edge = torch.ones_like(change[:1]) if len(change) else torch.ones_like(down, dtype=torch.bool)
    first = torch.where(torch.cat([edge, change]), rows, 0).cummax(0).values
    last = torch.where(torch.cat([change, edge]), rows, len(down)).flip(0).cummin(0).values.flip(0)
    return first, last


def _average_precision(shown: Tensor, first: Tensor, last: Tensor, positives: int) -> Tensor:
    precision = shown.cumsum(0).gather(0, last) / (last + 1)
    return _ratio((shown * precision).sum(0), positives)


def _auroc(shown: Tensor, first: Tensor, last: Tensor, positives: int) -> Tensor:
    rank = len(last) - (first + last).double() / 2  # from the lowest, 1; equal values share the mean
    above = (shown * rank).sum(0) - positives * (positives + 1) / 2
    return _ratio(above, positives * (len(last) - positives))


def _ratio(sums: Tensor, count: int) -> Tensor:
    return sums / count if count else torch.full_like(sums, torch.nan)
