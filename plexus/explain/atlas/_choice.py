"""Which units of a large model an atlas measures: those that may matter, and others like them to compare with.

To switch a unit off costs a pass over the samples. Two hints cost no more than one pass for all units together:

    selectivity   how well the unit tells its concept apart
    attribution   Σ value · ∂ log p(right answer) / ∂ value over the unit's values: what is lost without it, to first
                  order

Units are taken from the tops of both lists in turn. Both hints are from the half of the samples that chooses concepts,
so that what the other half then says of these units is no longer theirs. Sites of few such units are left out, since
each site that stays needs as many controls as any: units whose mean response is nearest to theirs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from plexus.errors import RangeError
from plexus.explain.atlas._band import MATCHED
from plexus.explain.atlas._matter import Matter, fed
from plexus.explain.controls import matched_random
from plexus.probe import record
from plexus.probe._progress import tracked
from plexus.probe.scores import gradient_times_activation
from plexus.units import Neurons, Scores, Site

CONTROLS = MATCHED + 1  # so that each of them has as many others as a band has
FEWEST = 2 * CONTROLS  # units to measure: a site's controls, and as many to look at
TOGETHER = 8  # samples whose values and gradients at all tokens are held at once


class Chosen(NamedTuple):
    """The units of one site that are measured.

    Attributes:
        units: their numbers, rising, `[measured]`.
        control: which of them stand beside the others, bool `[measured]`; all where the whole site is measured.
    """

    units: Tensor
    control: Tensor


def everything(sizes: Mapping[Site, int]) -> dict[Site, Chosen]:
    """All units of all sites."""
    return {site: Chosen(torch.arange(n), torch.ones(n, dtype=torch.bool)) for site, n in sizes.items()}


def attribution(model: nn.Module, matter: Matter, samples: Tensor, at: Sequence[Site]) -> dict[Site, Tensor]:
    """What the gradient says a concept's right answers lose without each unit, in nats, `[concept, unit]`.

    Args:
        model: what the atlas is of. matter: what it is shown.
        samples: numbers of the samples to take it from.
        at: the sites.
    """
    found = {}
    for concept in tracked(range(len(matter.concepts)), "what the gradient says of units", len(matter.concepts), None):
        own = samples[matter.labels[samples] == concept]
        lost: dict[Site, Tensor] = {}
        for index in own.split(TOGETHER):
            batch = [fed(model, matter, index)]

            def gain(output: Any, _: Any, index: Tensor = index) -> Tensor:
                return matter.outcome(output, index).sum()

            values, slopes = record(model, batch, at=list(at)), record(model, batch, at=list(at), grad=gain)
            mean = gradient_times_activation(values, slopes)
            for site in at:  # of a mean over rows the sum, and of that the mean over samples
                lost[site] = lost.get(site, 0) + mean[site] * len(values.table[site]) / len(own)
        found[concept] = lost
    return {site: torch.stack([found[concept][site] for concept in range(len(matter.concepts))]) for site in at}


def choose(
    selectivity: Mapping[Site, Tensor], lost: Mapping[Site, Tensor], mean: Mapping[Site, Tensor], units: int
) -> dict[Site, Chosen]:
    """At most so many units, controls among them, at the sites that have most of the promising ones.

    Args:
        selectivity: AUROC of each unit for its concept, `[unit]`.
        lost: what the gradient says its concept loses without it, `[unit]`.
        mean: mean response, `[unit]`.
        units: how many to choose.

    Raises:
        RangeError: fewer than one site needs.
    """
    if units < FEWEST:
        raise RangeError(
            "so few units leave none beside the controls of one site", given=units, expected=f"at least {FEWEST}"
        )
    sites = list(selectivity)
    number = torch.cat([torch.full((len(selectivity[site]),), i) for i, site in enumerate(sites)])
    within = torch.cat([torch.arange(len(selectivity[site])) for site in sites])
    order = _in_turn(torch.cat([selectivity[s].double() for s in sites]), torch.cat([lost[s].double() for s in sites]))
    # controls take half of the units at most
    promising = number[order[: units // 2]].bincount(minlength=len(sites))
    kept = promising.argsort(descending=True, stable=True)[: max(1, units // FEWEST)]
    kept = kept[promising[kept] > 0]
    free = units - CONTROLS * len(kept)
    generator = torch.Generator().manual_seed(0)
    top = order[torch.isin(number[order], kept)][:free]
    chosen: dict[Site, Chosen] = {}
    for i in kept.sort().values.tolist():
        site = sites[i]
        picked = within[top[number[top] == i]]
        size = len(mean[site])
        if size - len(picked) < CONTROLS:  # all of them together cost no more
            chosen |= everything({site: size})
            continue
        controls = _alike(site, mean[site].double(), picked, generator)
        together = torch.cat([picked, controls]).sort()
        chosen[site] = Chosen(together.values, together.indices >= len(picked))
    return chosen


def _in_turn(first: Tensor, second: Tensor) -> Tensor:
    """The numbers of all units, taken from the tops of two lists in turn, each once."""
    lists = (first.argsort(descending=True, stable=True), second.argsort(descending=True, stable=True))
    both = torch.stack(lists, 1).flatten()
    return torch.tensor(list(dict.fromkeys(both.tolist())))


def _alike(site: Site, mean: Tensor, picked: Tensor, generator: torch.Generator) -> Tensor:
    """Units that were not picked, each like one that was in mean response."""
    sizes, score = {site: len(mean)}, Scores({site: mean})
    like = picked[mean[picked].argsort()]
    taken = Neurons.of(sizes, {site: picked.tolist()})
    controls: list[int] = []
    while len(controls) < CONTROLS:
        # over the whole range of their responses; again where there are fewer than are needed
        spread = torch.linspace(0, len(like) - 1, min(CONTROLS - len(controls), len(like))).round().long()
        some = Neurons.of(sizes, {site: like[spread].tolist()})
        drawn = matched_random(some, generator, match=score, among=1, exclude=taken)
        controls += drawn.indices(site).tolist()
        taken = taken | drawn
    return torch.tensor(controls)
