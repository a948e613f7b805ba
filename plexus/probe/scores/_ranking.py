"""How well a unit's value ranks the rows that show a concept above those that do not.

    average precision  AP = Σ_n (R_n - R_{n-1}) P_n      over the distinct values, highest first
    area under ROC     AUROC = (Σ ranks⁺ - n⁺(n⁺+1)/2) / (n⁺ n⁻)      ranks from 1, equal values share their mean rank

Equal values count as one threshold. Chance is the share of rows with the concept for AP, and 1/2 for AUROC.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from plexus.probe.scores._moments import concept_scores
from plexus.probe.scores._source import BUDGET, Features, Reading, Source, warn_undefined
from plexus.units import Scores, Site
from plexus.units._recording import Labels

_BLOCK = 2**18  # numbers sorted at once


def average_precision(
    record: Source,
    labels: Labels | None = None,
    *,
    names: Sequence[str] | None = None,
    features: Features = None,
    budget: int = BUDGET,
) -> Scores:
    """Average precision of each unit as a detector of a concept.

    Args:
        record: a `Recording` or a stream of them; all rows of a unit are ranked together.
        labels: `[sample]` zeros and ones or classes (one against the rest), `[sample, concept]` zeros and ones, or a
            mapping of names to them; those of the recording where left out.
        names: of the classes or concepts.
        features: how a unit that holds several features becomes one number ("norm", "mean").
        budget: bytes of rows held at once. A recording larger than that is read some units at a time, a stream is first
            written to shards in a temporary folder.

    Returns:
        Scores in [0, 1]: `[concept, unit]`, or `[unit]` for one nameless concept; NaN, with a warning, for a concept
        that no row shows, and for units with NaN.

    Raises:
        ShapeError: no labels, labels that do not match the samples, or units with features and no word on them.

    Examples:
        >>> from plexus.units import Recording, Site, Table
        >>> hidden = Site("fc1", "b u")
        >>> values = torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.1, 0.3]])
        >>> rec = Recording({hidden: values}, {hidden: Table([0, 1, 2])})
        >>> average_precision(rec, {"capital": [1, 1, 0]})["capital"][hidden]
        tensor([1.0000, 0.5833], dtype=torch.float64)
    """
    return _ranked(record, labels, names, features, "average precision", _average_precision, both=False, budget=budget)


def auroc(
    record: Source,
    labels: Labels | None = None,
    *,
    names: Sequence[str] | None = None,
    features: Features = None,
    budget: int = BUDGET,
) -> Scores:
    """Area under the ROC curve of each unit as a detector of a concept: P(value with it > value without), ties half.

    Args, returns and raises: as `average_precision`; also NaN for a concept that every row shows.

    Examples:
        >>> from plexus.units import Recording, Site, Table
        >>> hidden = Site("fc1", "b u")
        >>> values = torch.tensor([[0.9, 0.1], [0.8, 0.3], [0.1, 0.3]])
        >>> rec = Recording({hidden: values}, {hidden: Table([0, 1, 2])})
        >>> auroc(rec, [1, 1, 0])[hidden]
        tensor([1.0000, 0.2500], dtype=torch.float64)
    """
    return _ranked(record, labels, names, features, "AUROC", _auroc, both=True, budget=budget)


def _ranked(
    record: Source,
    labels: Labels | None,
    names: Sequence[str] | None,
    features: Features,
    name: str,
    measure: Callable[[_Ranking, Tensor], Tensor],
    *,
    both: bool,
    budget: int,
) -> Scores:
    reading = Reading(record, labels, features, names, required=True)
    scores: dict[Site, dict[str, list[Tensor]]] = {}
    for piece in reading.whole(budget):
        members = torch.stack(list(piece.shown.values()))
        for concept, count in zip(piece.shown, members.sum(1).tolist(), strict=True):
            if piece.site in scores:
                break  # of further units of the same rows there is nothing new to say
            if count == 0 or (both and count == len(piece.values)):
                warn_undefined(name, concept, "no row shows it" if count == 0 else "every row shows it")
        found: list[Tensor] = []
        for block in piece.values.split(max(1, _BLOCK // max(1, len(piece.values))), dim=1):
            block = block.T.contiguous()  # a unit's rows side by side: everything below runs along them
            value = measure(_ranking(block), members)
            found.append(torch.where(block.isnan().any(1), torch.nan, value))
        for concept, values in zip(piece.shown, torch.cat(found, 1), strict=True):
            scores.setdefault(piece.site, {}).setdefault(concept, []).append(values)
    together = {site: {concept: torch.cat(parts) for concept, parts in by.items()} for site, by in scores.items()}
    return concept_scores(together, reading, name)


class _Ranking(NamedTuple):
    """Rows of each unit from the highest value down, `[unit, place]`.

    Attributes:
        order: which row stands at a place.
        first: first place with the same value.
        last: last place with the same value.
    """

    order: Tensor
    first: Tensor
    last: Tensor


def _ranking(values: Tensor) -> _Ranking:
    down, order = values.sort(dim=1, descending=True)
    places = torch.arange(values.shape[1]).expand_as(down)
    change = down[:, 1:] != down[:, :-1]
    if bool(change.all()):
        return _Ranking(order, places, places)
    edge = torch.ones(len(values), 1, dtype=torch.bool)
    first = torch.where(torch.cat([edge, change], 1), places, 0).cummax(1).values
    last = torch.where(torch.cat([change, edge], 1), places, places.shape[1]).flip(1).cummin(1).values.flip(1)
    return _Ranking(order, first, last)


def _average_precision(ranking: _Ranking, members: Tensor) -> Tensor:
    """`[concept, unit]`, from boolean members `[concept, row]`."""
    at = (ranking.last + 1).double()
    untied = ranking.first is ranking.last
    values = []
    for member in members:
        shown = member[ranking.order].double()
        hits = shown.cumsum(1) if untied else shown.cumsum(1).gather(1, ranking.last)
        values.append(hits.mul_(shown).div_(at).sum(1) / member.sum())
    return torch.stack(values)


def _auroc(ranking: _Ranking, members: Tensor) -> Tensor:
    rows = members.shape[1]
    rank = rows - (ranking.first + ranking.last).double() / 2  # from the lowest, 1; equal values share the mean
    rank = torch.empty_like(rank).scatter_(1, ranking.order, rank)
    shown = members.double()
    positives = shown.sum(1, keepdim=True)
    above = shown @ rank.T - positives * (positives + 1) / 2
    return above / (positives * (rows - positives))
