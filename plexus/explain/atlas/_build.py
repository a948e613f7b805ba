"""Detector or actor? What each unit tells about a concept, beside what the model loses without it.

    selectivity   AUROC of the unit's response for its concept against all others
    effect        nats lost on the right answers of that concept when the unit alone is switched off
    band          the largest such loss among matched random units: of the same site, of like mean response

A unit's concept is chosen on one half of the samples and both numbers are measured on the other half, so that neither
profits from the choice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from plexus.errors import RangeError, ShapeError
from plexus.explain.atlas._answers import VISIBLE, Answers, answers, switched_off, untouched
from plexus.explain.atlas._band import band
from plexus.explain.atlas._choice import attribution, choose, everything
from plexus.explain.atlas._doses import Dose, add_doses
from plexus.explain.atlas._matter import Matter, fed
from plexus.explain.atlas._sites import default_sites, refuse_routed
from plexus.probe import record, stream
from plexus.probe.scores import auroc
from plexus.units import Recording, Scores, Site, Table


@dataclass(frozen=True, eq=False)
class Exemplar:
    """A sample that drives a unit.

    Attributes:
        sample: its number.
        value: the unit's response.
        place: where in the sample, as the matter tells it.
    """

    sample: int
    value: float
    place: Any


@dataclass(eq=False)
class Page:
    """One site of the atlas; arrays are `[unit]` over the measured units unless said otherwise.

    Attributes:
        site: the place.
        size: how many units it has.
        units: the numbers of those that were measured.
        control: which of them stand beside the others; all where the whole site was measured.
        concept: number of each unit's concept.
        selectivity: AUROC for it, on samples that did not choose it.
        effect: nats lost on that concept's answers without the unit; positive when the unit helps.
        others: nats lost on the answers of other concepts.
        by_concept: nats lost, `[concept, unit]`.
        edge: where the band of matched random units ends; infinite where they are too few.
        tail: share of units that lie beyond their band by chance; 0 where there are too few to tell.
        name: of the layer whose units they are; the site may lie behind its nonlinearity.
        answers: what becomes of the right answers.
        exemplars: per unit the samples that drive it most.
        doses: place among the measured units to its dose curve, for the units shown in full.
        probes: place to the samples that its doses were tried on.
    """

    site: Site
    size: int
    units: Tensor
    control: Tensor
    concept: Tensor
    selectivity: Tensor
    effect: Tensor
    others: Tensor
    by_concept: Tensor
    edge: Tensor
    tail: float
    name: str = ""
    answers: Answers | None = None
    exemplars: list[list[Exemplar]] = field(default_factory=list)
    doses: dict[int, list[Dose]] = field(default_factory=dict)
    probes: dict[int, list[int]] = field(default_factory=dict)

    def over_site(self, values: Tensor) -> Tensor:
        """Values of the measured units as an array over all units of the site, NaN for the others."""
        return torch.full((self.size,), torch.nan, dtype=values.dtype).index_copy(0, self.units, values)

    @property
    def acts(self) -> Tensor:
        """Whether the effect lies above the band."""
        return self.effect > self.edge

    @property
    def visible(self) -> Tensor:
        """Whether right answers are lost without the unit, or become less probable by a hundredth or more."""
        if self.answers is None:
            return torch.zeros_like(self.acts)
        probability, without, lost = self.answers
        return (probability - without >= VISIBLE) | (lost > 0)


@dataclass(eq=False)
class Atlas:
    """All sites of a model; `write` makes pages of it.

    Attributes:
        title: of the model.
        matter: what the model was shown.
        pages: one per site.
        total: how many units the model has at all sites that were looked at, measured or not.
        accuracy: how often the model's most probable answer is right (of an answer of several tokens: the first one),
            where there are answers; else None.
    """

    title: str
    matter: Matter
    pages: list[Page]
    total: int
    accuracy: float | None = None

    @property
    def selectivity(self) -> Scores:
        """AUROC of each unit for its own concept; NaN for units that were not measured."""
        return Scores({page.site: page.over_site(page.selectivity) for page in self.pages}, name="selectivity")

    @property
    def effect(self) -> Scores:
        """Nats lost on its own concept without the unit; NaN for units that were not measured."""
        return Scores({page.site: page.over_site(page.effect) for page in self.pages}, name="effect")

    def __repr__(self) -> str:
        units = sum(len(page.effect) for page in self.pages)
        acting = sum(int(page.acts.sum()) for page in self.pages)
        matters = sum(int((page.acts & page.visible).sum()) for page in self.pages)
        chance = sum(page.tail * len(page.effect) for page in self.pages)
        small = sum(len(page.effect) for page in self.pages if not page.tail)
        measured = f"{units} units" if units == self.total else f"{units} of {self.total} units"
        return (
            f"Atlas of {self.title}: {measured} at {len(self.pages)} site(s), {len(self.matter.concepts)} concepts; "
            f"{acting} act beyond matched random units (about {chance:.1f} by chance), {matters} of them visibly"
            + (f"; {small} are at sites of too few units to tell" if small else "")
        )


def build(
    model: nn.Module,
    matter: Matter,
    at: Site | Sequence[Site] | None = None,
    *,
    title: str | None = None,
    units: int | None = None,
    exemplars: int = 6,
    doses: Sequence[float] = (0.0, 0.5, 1.0, 2.0, 4.0),
    featured: int = 100,
    probes: int = 4,
    batch: int = 64,
    rows: int = 1024,
) -> Atlas:
    """Measure every unit of a model: what it detects, what it does, what drives it.

    Args:
        model: an image classifier or a causal language model, inputs batch first; it is left as it was.
        matter: what to show it, `Images` or `Texts`.
        at: the sites; by default the hidden units of a language model's MLPs, or those of all convolutions and linear
            layers but the last, behind their nonlinearity where they have one.
        title: of the pages (default: the model's class).
        units: how many units to measure at most, of a model that has more: those that tell a concept apart best or on
            which right answers depend most by their gradient, and 40 controls at each of their sites; at least 80.
        exemplars: samples shown per unit.
        doses: factors of the dose curves; 1, which leaves the unit alone, is always among them.
        featured: how many units get a dose curve: those that act most and those most selective.
        probes: samples that a dose curve shows answers for.
        batch: samples per pass. rows: rows per pass when units are switched one by one; fewer where their logits would
            take more than half a gigabyte.

    Raises:
        SiteError: no sites can be found by default, or one sees only some samples. ShapeError: fewer than two concepts,
            or one with fewer than four samples. RangeError: a number that is not positive, or a model that gives no
            finite ones.

    Examples:
        >>> from plexus import data
        >>> from plexus.explain import atlas
        >>> digits = data.digits()[:200]
        >>> net = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 10))
        >>> found = atlas.build(net, atlas.Images(digits.x, digits.y), featured=2)
        >>> found.effect.sizes
        {Site('2'): 8}
    """
    for name, value in (("exemplars", exemplars), ("batch", batch), ("rows", rows), ("probes", probes)):
        if value < 1:
            raise RangeError(f"{name} is a positive number", given=value)
    if len(matter.concepts) < 2:
        raise ShapeError(
            "an atlas shows how units tell concepts apart, and all samples are of one",
            given=f"{len(matter.labels)} samples of {', '.join(map(repr, matter.concepts)) or 'no concept'}",
            expected="at least 2 concepts",
            mend="give labels of two or more concepts, for instance the concept and all that it is not",
        )
    counts = matter.labels.bincount(minlength=len(matter.concepts))
    if int(counts.min()) < 4:
        few = matter.concepts[int(counts.argmin())]
        raise ShapeError(f"concept {few!r} has too few samples", given=int(counts.min()), expected="at least 4")
    if at is None:
        names = default_sites(model, fed(model, matter, torch.arange(len(matter.labels))[:2]))
    else:
        names = {site: site.path for site in ([at] if isinstance(at, Site) else at)}
    chosen = list(names)
    refuse_routed(chosen)
    indices = list(torch.arange(len(matter.labels)).split(batch))
    seen = record(model, (fed(model, matter, index) for index in indices), at=chosen, pool=matter.pool)
    first = _halves(matter.labels)
    before, right, rows = untouched(model, matter, indices, rows)
    values = {site: _flat(seen[site]) for site in chosen}
    areas = {site: _area(site, values[site][first], matter, first) for site in chosen}
    sizes = {site: each.shape[1] for site, each in values.items()}
    total = sum(sizes.values())
    measured = everything(sizes)
    if units is not None and units < total:
        picked = {site: area.argmax(0, keepdim=True) for site, area in areas.items()}
        lost = attribution(model, matter, first.nonzero().squeeze(1), chosen)
        measured = choose(
            {site: area.amax(0) for site, area in areas.items()},
            {site: lost[site].gather(0, picked[site]).squeeze(0) for site in chosen},
            {site: each.double().mean(0) for site, each in values.items()},
            units,
        )
    held = (~first).nonzero().squeeze(1)
    without = switched_off(
        model, matter, list(held.split(batch)), {site: each.units for site, each in measured.items()}, rows
    )
    pages = []
    for site, (numbers, control) in measured.items():
        concept = areas[site][:, numbers].argmax(0)
        own = values[site][:, numbers]
        # the two kinds of numbers come from the half that did not choose the concept
        selectivity = _area(site, own[~first], matter, ~first).gather(0, concept[None]).squeeze(0)
        change = without[site].outcome - before[held]
        page = _page(site, own, concept, selectivity, change, matter, ~first, control)
        page.size, page.units, page.name = sizes[site], numbers, names[site]
        page.answers = answers(before, right, without[site], concept, matter, ~first)
        pages.append(page)
    accuracy = None if right is None else float(right.double().mean())
    found = Atlas(title or type(model).__name__, matter, pages, total, accuracy)
    _add_exemplars(found, model, seen, exemplars, batch)
    add_doses(found, model, tuple(sorted({*doses, 1.0})), featured, probes, before, ~first, rows)
    return found


def _halves(labels: Tensor) -> Tensor:
    """Every second sample of each concept, bool `[sample]`."""
    first = torch.zeros(len(labels), dtype=torch.bool)
    for label in labels.unique():
        first[(labels == label).nonzero().squeeze(1)[::2]] = True
    return first


def _flat(values: Tensor) -> Tensor:
    """Units of several features by their length."""
    return values.float() if values.dim() == 2 else values.float().flatten(2).norm(dim=2)


def _area(site: Site, values: Tensor, matter: Matter, which: Tensor) -> Tensor:
    """AUROC of each unit for each concept, `[concept, unit]`."""
    rows = Recording({site: values}, {site: Table(torch.arange(len(values)))})
    members = torch.nn.functional.one_hot(matter.labels[which], len(matter.concepts))
    return torch.as_tensor(auroc(rows, members, names=matter.concepts)[site])


def _page(
    site: Site,
    values: Tensor,
    concept: Tensor,
    selectivity: Tensor,
    change: Tensor,
    matter: Matter,
    held: Tensor,
    control: Tensor | None = None,
) -> Page:
    """The page of some units from `values` on all samples and the `change` of each held-out one without each unit."""
    members = torch.nn.functional.one_hot(matter.labels[held], len(matter.concepts)).double()
    lost = -change
    by_concept = (members / members.sum(0)).T @ lost.T
    effect = by_concept.gather(0, concept[None]).squeeze(0)
    rest = 1 - members[:, concept].T
    others = (lost * rest).sum(1) / rest.sum(1)
    control = torch.ones_like(concept, dtype=torch.bool) if control is None else control
    edge, tail = band(values.double().mean(0), by_concept, concept, control)
    everyone = torch.arange(len(concept))
    return Page(site, len(concept), everyone, control, concept, selectivity, effect, others, by_concept, edge, tail)


def _add_exemplars(atlas: Atlas, model: nn.Module, seen: Recording, count: int, batch: int) -> None:
    """For each unit the samples with the largest responses, and where in them the unit is active."""
    units = {page.site: page.units for page in atlas.pages}
    best = {site: _flat(seen[site])[:, own].topk(min(count, seen.samples), dim=0) for site, own in units.items()}
    used = torch.cat([top.indices.flatten() for top in best.values()]).unique()
    where: dict[tuple[Site, int], Tensor] = {}
    wanted = {site: top.indices for site, top in best.items()}
    parts = list(used.split(batch))
    places: dict[tuple[Site, int, int], Any] = {}
    pieces = stream(model, (fed(model, atlas.matter, part) for part in parts), at=list(best))
    for part, piece in zip(parts, pieces, strict=True):
        for site, indices in wanted.items():
            table = piece.table[site]
            values = _flat(piece[site])[:, units[site]]
            for row, sample in enumerate(part.tolist()):
                where[site, sample] = values[table.sample == row]
                for unit in (indices == sample).any(0).nonzero().squeeze(1).tolist():
                    places[site, sample, unit] = atlas.matter.place(where[site, sample][:, unit], sample)
        where.clear()
    for page in atlas.pages:
        top = best[page.site]
        page.exemplars = [
            [
                Exemplar(int(sample), float(value), places[page.site, int(sample), unit])
                for value, sample in zip(top.values[:, unit], top.indices[:, unit], strict=True)
            ]
            for unit in range(top.values.shape[1])
        ]
