"""What becomes of a concept when one of its units is turned down or up, factor by factor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from plexus.explain._prefix import Prefix, taken
from plexus.explain._sweep import Cell, kept_prefix, sweep
from plexus.explain.atlas._answers import finite
from plexus.explain.atlas._matter import fed

if TYPE_CHECKING:
    from plexus.explain.atlas._build import Atlas, Page

MOST = 64  # samples of its concept that a dose curve is measured on
OTHERS = 24  # samples of other concepts


@dataclass(frozen=True, eq=False)
class Dose:
    """What happens under one factor of a unit.

    Attributes:
        factor: what the unit is multiplied by.
        own: mean change of the outcome on samples of its concept, nats.
        others: the same on samples of other concepts.
        says: the most probable answers for each of the unit's probes.
        right: whether the first of them is right; false where there are no answers.
    """

    factor: float
    own: float
    others: float
    says: list[list[tuple[str, float]]]
    right: list[bool]


class _Tried(NamedTuple):
    """Samples that the doses of all units of one concept are tried on, and what the blocks of the model give for them.

    Attributes:
        own, other: of the concept, and of others.
        together: all samples, rising: these and those that are shown.
        prefix: of the batch of all of them.
    """

    own: Tensor
    other: Tensor
    together: Tensor
    prefix: Prefix


def add_doses(
    atlas: Atlas,
    model: nn.Module,
    factors: tuple[float, ...],
    featured: int,
    probes: int,
    before: Tensor,
    half: Tensor,
    rows: int,
) -> None:
    """Dose curves of the units that act most and of those most selective, on the half that effects were measured on."""
    labels = atlas.matter.labels
    by_concept: dict[int, list[tuple[Page, int]]] = {}
    for page, unit in _picked(atlas.pages, featured):
        by_concept.setdefault(int(page.concept[unit]), []).append((page, unit))
    for concept, units in by_concept.items():
        own = (half & (labels == concept)).nonzero().squeeze(1)[:MOST]
        other = (half & (labels != concept)).nonzero().squeeze(1)
        other = other[:: max(1, len(other) // OTHERS)][:OTHERS]
        for page, unit in units:
            driving = [e.sample for e in page.exemplars[unit] if labels[e.sample] == concept]
            shown = [*driving, *(i for i in own.tolist() if i not in driving)][: max(1, probes - 1)]
            page.probes[unit] = shown + other[:1].tolist()
        seen = torch.tensor([sample for page, unit in units for sample in page.probes[unit]])
        together = torch.cat([own, other, seen]).unique()
        sites = list(dict.fromkeys(page.site for page, _ in units))
        prefix, _ = kept_prefix(model, fed(model, atlas.matter, together), sites)
        for page, unit in units:
            page.doses[unit] = _curve(
                atlas, model, page, unit, factors, _Tried(own, other, together, prefix), before, rows
            )


def _picked(pages: Sequence[Page], featured: int) -> list[tuple[Page, int]]:
    ranked = [(page, unit) for page in pages for unit in range(len(page.effect))]
    acting = sorted(ranked, key=lambda item: -float(item[0].effect[item[1]]))[: (featured + 1) // 2]
    picked = {(id(page), unit): (page, unit) for page, unit in acting}
    for page, unit in sorted(ranked, key=lambda item: -float(item[0].selectivity[item[1]])):
        if len(picked) >= featured:
            break
        picked.setdefault((id(page), unit), (page, unit))
    return list(picked.values())


def _curve(
    atlas: Atlas,
    model: nn.Module,
    page: Page,
    unit: int,
    factors: tuple[float, ...],
    tried: _Tried,
    before: Tensor,
    rows: int,
) -> list[Dose]:
    matter, shown, number = atlas.matter, len(page.probes[unit]), int(page.units[unit])
    own, other = len(tried.own), len(tried.other)
    index = torch.cat([tried.own, tried.other, torch.tensor(page.probes[unit])])
    among = torch.searchsorted(tried.together, index)
    batch = taken(fed(model, matter, tried.together), among, len(tried.together))
    cells = [Cell(number, factor) for factor in factors]
    curve = []
    for part, output in sweep(model, batch, page.site, cells, rows=rows, prefix=tried.prefix, among=among):
        copies = index.repeat(len(part))
        outcome = finite(
            matter.outcome(output, copies).double().cpu(),
            f"the model with unit {number} of {page.site.path!r} turned down or up",
        )
        hits, says = matter.right(output, copies), matter.says(output)
        change = outcome.reshape(len(part), -1) - before[index]
        for k, cell in enumerate(part):
            at = slice(k * len(index) + own + other, k * len(index) + own + other + shown)
            curve.append(
                Dose(
                    cell.factor,
                    float(change[k, :own].mean()),
                    float(change[k, own : own + other].mean()),
                    says[at],
                    [False] * shown if hits is None else hits[at].tolist(),
                )
            )
    return curve
