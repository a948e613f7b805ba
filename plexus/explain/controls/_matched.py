"""The same edit on random units: as many at each site, with the same numbers, and alike in a score if asked.

A set that was chosen by a score differs from the others in more than what the score is meant to show: units that fire
much do much when they are silenced, whatever they stand for. So stand-ins can be matched: with scores s, each chosen
unit u gets one of the `among` free units v of its site with the smallest |s_v - s_u|, drawn at random.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import overload

import torch
from torch import Tensor

from plexus.edit import Edit
from plexus.errors import DtypeError, RangeError, ShapeError, SiteError
from plexus.units import Neurons, Scores, Site
from plexus.units._draws import random_order

AMONG = 10
"""How many of the most similar units a stand-in is drawn from."""


@overload
def matched_random(
    what: Neurons,
    generator: torch.Generator,
    *,
    exclude: bool | Neurons = ...,
    match: Scores | None = ...,
    among: int = ...,
    tolerance: float | None = ...,
) -> Neurons: ...
@overload
def matched_random(
    what: Edit,
    generator: torch.Generator,
    *,
    exclude: bool | Neurons = ...,
    match: Scores | None = ...,
    among: int = ...,
    tolerance: float | None = ...,
) -> Edit: ...
def matched_random(
    what: Neurons | Edit,
    generator: torch.Generator,
    *,
    exclude: bool | Neurons = True,
    match: Scores | None = None,
    among: int = AMONG,
    tolerance: float | None = None,
) -> Neurons | Edit:
    """Random units in the place of the chosen ones, as many at each site; of an edit, the edit moved there.

    An edit of several steps is moved as a whole: a unit that two steps share has one stand-in. An edit along directions
    stays on its units and gets random directions with the same lengths and angles.

    Args:
        what: a set of units or an edit.
        generator: where the draw comes from.
        exclude: draw among the other units only, or outside the set given here.
        match: a score, for instance mean rates or a selectivity, in which stand-ins are to be like their units.
        among: with `match`, how many of the most similar free units each stand-in is drawn from.
        tolerance: with `match`, the largest difference of score allowed, in standard deviations of the site's scores.

    Raises:
        RangeError: if a site has too few other units, or with `tolerance` none that is alike.
        SiteError: if `match` lacks a site.
        UnsupportedError: if some steps of the edit act along directions and some do not, or with `match`.

    Examples:
        >>> from plexus.units import Scores, Site
        >>> site = Site("fc1", "b u")
        >>> chosen = Neurons.of({site: 10}, {site: [0, 1]})
        >>> stand_in = matched_random(chosen, torch.Generator().manual_seed(0))
        >>> len(stand_in), len(stand_in & chosen)
        (2, 0)
        >>> rates = Scores({site: torch.tensor([5.0, 0, 0, 0, 0, 0, 0, 0, 0, 5.1])})
        >>> alike = matched_random(chosen, torch.Generator().manual_seed(0), match=rates, among=1)
        >>> (site, 9) in alike
        True
    """
    if isinstance(what, Edit):
        if is_along(what) and match is None:
            return what.redirected(generator)
        return what.moved(stand_in_map(what.neurons, generator, exclude, match, among, tolerance))
    if not isinstance(what, Neurons):
        raise DtypeError(
            "a control stands beside an edit or a set of units",
            given=type(what).__name__,
            expected="Edit, for example edit.scale(chosen, 0.0) without the model",
        )
    return stand_in_map(what, generator, exclude, match, among, tolerance)(what)


def is_along(edit: Edit) -> bool:
    """Whether all steps of an edit act along directions, so that its control is one along random directions."""
    return bool(edit.steps) and all(step.basis is not None for step in edit.steps)


class StandIns:
    """For every unit of a set its stand-in; called with a part of the set it gives the stand-ins of that part."""

    def __init__(self, place: Mapping[Site, Tensor]) -> None:
        self.place = dict(place)

    def __call__(self, units: Neurons) -> Neurons:
        moved = {site: self.place[site][units.indices(site)].tolist() for site in units.sites}
        return Neurons.of(units.sizes, moved, units.model)


def stand_in_map(
    chosen: Neurons,
    generator: torch.Generator,
    exclude: bool | Neurons = True,
    match: Scores | None = None,
    among: int = AMONG,
    tolerance: float | None = None,
) -> StandIns:
    """The stand-ins of a set, each unit with its own; see `matched_random`."""
    if not len(chosen):
        raise RangeError("there are no units to find a control for", given=repr(chosen).splitlines()[0])
    if match is None:
        if tolerance is not None:
            raise RangeError("a tolerance needs a score to match", given=tolerance, mend="pass match=scores")
        drawn = chosen.random_like(generator, exclude=exclude)
        place = {}
        for site, size in chosen.sizes.items():
            other = drawn.indices(site)
            place[site] = torch.arange(size)
            place[site][chosen.indices(site)] = other[random_order(len(other), generator)]
        return StandIns(place)
    _check_match(match, among, tolerance)
    banned = chosen if exclude is True else exclude
    return StandIns(
        {
            site: _alike(site, chosen.mask(site), banned, _scores_at(match, site, size), generator, among, tolerance)
            for site, size in chosen.sizes.items()
        }
    )


def imbalance(chosen: Neurons, other: Neurons, scores: Scores) -> float:
    """How unlike two sets are in a score: the difference of their means in standard deviations within the sets.

    Below about 0.1 two sets count as balanced. Both sets constant and unequal give infinity.

    Examples:
        >>> from plexus.units import Scores, Site
        >>> site = Site("fc1", "b u")
        >>> rates = Scores({site: torch.tensor([1.0, 3.0, 2.0, 4.0])})
        >>> first, second = Neurons.of({site: 4}, {site: [0, 1]}), Neurons.of({site: 4}, {site: [2, 3]})
        >>> round(imbalance(first, second, rates), 4)
        -0.7071
    """
    parts = []
    for units in (chosen, other):
        if not len(units):
            raise RangeError("an empty set is like no other")
        values = [_scores_at(scores, s, n)[units.mask(s)] for s, n in units.sizes.items() if units.counts[s]]
        parts.append(torch.cat(values))
    one, two = parts
    difference = float(one.mean() - two.mean())
    spreads = [part.var() for part in parts if len(part) > 1]
    within = float(torch.stack(spreads).mean().sqrt()) if spreads else 0.0
    if within == 0.0:
        return 0.0 if difference == 0.0 else math.copysign(math.inf, difference)
    return difference / within


def _alike(
    site: Site,
    chosen: Tensor,
    banned: bool | Neurons,
    scores: Tensor,
    generator: torch.Generator,
    among: int,
    tolerance: float | None,
) -> Tensor:
    """Stand-ins of the units of one site, `[unit]`; units that were not chosen stand for themselves."""
    size = len(chosen)
    free = torch.ones(size, dtype=torch.bool)
    if isinstance(banned, Neurons) and site in banned.sites:
        free = ~banned.mask(site)
    own = chosen.nonzero().squeeze(1)
    if len(own) > int(free.sum()):
        raise RangeError(
            f"too few units at {site} to draw a matched set",
            given=f"{len(own)} to draw, {int(free.sum())} of {size} allowed",
            mend="choose fewer units, or draw without excluding",
        )
    place = torch.arange(size)
    spread = float(scores.std(correction=0))
    for unit in own[random_order(len(own), generator)].tolist():  # in random order, so that none is served first always
        distance = torch.where(free, (scores - scores[unit]).abs(), torch.inf)
        near = torch.argsort(distance, stable=True)[: min(among, int(free.sum()))]
        if tolerance is not None:
            near = near[distance[near] <= tolerance * spread]
            if not len(near):
                raise RangeError(
                    f"no free unit of {site} is like unit {unit}",
                    given=f"the nearest score differs by {float(distance.min()):.3g}",
                    expected=f"at most {tolerance * spread:.3g} ({tolerance} standard deviations)",
                    mend="raise the tolerance, choose fewer units, or draw without excluding",
                )
        pick = int(near[int(torch.randint(len(near), (1,), generator=generator, device=generator.device))])
        place[unit], free[pick] = pick, False
    return place


def _scores_at(scores: Scores, site: Site, size: int) -> Tensor:
    if scores.concepts is not None:
        raise ShapeError(
            "units are matched in one number each, and these scores have one per concept",
            mend=f"choose one first: scores[{scores.concepts[0]!r}]" if scores.concepts else None,
        )
    if site not in scores.sites:
        raise SiteError("the score to match lacks a site", given=str(site))
    values: Tensor = scores[site].double()
    if len(values) != size:
        raise ShapeError(f"the score to match has another size at {site}", given=len(values), expected=size)
    if bool(values.isnan().any()):
        raise RangeError(f"the score to match is NaN for {int(values.isnan().sum())} units of {site}")
    return values


def _check_match(match: object, among: object, tolerance: object) -> None:
    if not isinstance(match, Scores):
        raise DtypeError("units are matched in a score", given=type(match).__name__, expected="Scores")
    if isinstance(among, bool) or not isinstance(among, int) or among < 1:
        raise RangeError("a stand-in is drawn among at least one unit", given=repr(among))
    if tolerance is not None and not (isinstance(tolerance, int | float) and tolerance >= 0):
        raise RangeError("a tolerance is not negative", given=repr(tolerance))
