"""Where the units of conditions lie in a network, and what training did to them.

    profile     at each layer: how many units serve one condition, several, all
    change      after - before: counts by kind and layer, of each condition, of each pair; units that stayed

The profile over depth is what stages are read from: many specific units early and late, agnostic ones in the middle.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from plexus.errors import ShapeError, UnsupportedError, require
from plexus.probe.scores import ConditionUnits
from plexus.units import Site
from plexus.units._memory import to_memory

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

KINDS = ("specific", "related", "agnostic")


@dataclass(frozen=True)
class StageProfile:
    """Counts of units by layer and kind; made by `stage_profile`.

    Attributes:
        sites: the layers, in the order of the model.
        kinds: "specific", "related", "agnostic".
        counts: int64 `[layer, kind]`; chosen units that serve no condition are in none.
        units: all units of each layer, int64 `[layer]`.

    Examples:
        >>> counts, units = torch.tensor([[3, 0, 7], [1, 1, 8]]), torch.tensor([10, 10])
        >>> profile = StageProfile((Site("0"), Site("1")), KINDS, counts, units)
        >>> profile.share("specific").tolist(), round(profile.center("specific"), 2)
        ([0.3, 0.1], 0.25)
    """

    sites: tuple[Site, ...]
    kinds: tuple[str, ...]
    counts: Tensor
    units: Tensor

    def __post_init__(self) -> None:
        to_memory(self, "counts", "units")

    def share(self, kind: str) -> Tensor:
        """Share of a layer's units that are of a kind, float64 `[layer]`.

        Raises:
            ValueError: another kind.
        """
        return self.counts[:, self.kinds.index(kind)].double() / self.units

    def center(self, kind: str) -> float:
        """Mean depth of the units of a kind, from 0 (first layer) to 1 (last); NaN where there are none."""
        counts = self.counts[:, self.kinds.index(kind)].double()
        depth = torch.linspace(0, 1, len(self.sites), dtype=torch.float64) if len(self.sites) > 1 else torch.zeros(1)
        return float((counts * depth).sum() / counts.sum())

    def figure(self) -> Figure:
        """The shares over depth as a plotly figure.

        Raises:
            MissingExtraError: if plotly is not installed.
        """
        graph = require("plotly.graph_objects", "lab", purpose="figures")
        depth = list(range(len(self.sites)))
        figure = graph.Figure([graph.Bar(name=k, x=depth, y=self.share(k).tolist()) for k in self.kinds[:2]])
        figure.update_layout(barmode="stack", xaxis_title="layer", yaxis_title="share of its units")
        return figure

    def __str__(self) -> str:
        names = [str(site) for site in self.sites]
        wide = max(map(len, names))
        lines = [" " * wide + "".join(f"  {kind:>9}" for kind in self.kinds)]
        for name, row in zip(names, self.counts.tolist(), strict=True):
            lines.append(f"{name:<{wide}}" + "".join(f"  {count:>9}" for count in row))
        return "\n".join(lines)


def stage_profile(units: ConditionUnits) -> StageProfile:
    """How many units of each kind each layer has.

    Args:
        units: from `probe.scores.condition_units`.

    Examples:
        >>> from plexus.probe import scores
        >>> from plexus.units import Scores
        >>> hidden = Site("act", "b u")
        >>> p = Scores({hidden: torch.tensor([[0.9, 0.8, 0.1], [0.0, 0.7, 0.1], [0.1, 0.0, 0.2]])}, ("en", "de", "ru"))
        >>> stage_profile(scores.condition_units(p, 2, percentile=0.6, magnitude=0.0)).counts
        tensor([[1, 1, 1]])
    """
    sites = tuple(sorted(units.serves))
    kinds = (units.specific, units.related, units.agnostic)
    counts = torch.tensor([[kind.counts[site] for kind in kinds] for site in sites])
    return StageProfile(sites, KINDS, counts, torch.tensor([units.serves[site].shape[1] for site in sites]))


@dataclass(frozen=True)
class ConditionChange:
    """What became of the units of conditions between two states of one model; made by `condition_change`.

    Attributes:
        before, after: their profiles.
        counts: kind → change of its count, all layers together.
        specific: condition → change of the count of units that serve it alone.
        related: condition → change of the count of units that serve it and others.
        pairs: two conditions → change of the count of chosen units that serve both.
        kept: kind → share of its units before that are of the kind after; NaN where there were none.
    """

    before: StageProfile
    after: StageProfile
    counts: Mapping[str, int]
    specific: Mapping[str, int]
    related: Mapping[str, int]
    pairs: Mapping[tuple[str, str], int]
    kept: Mapping[str, float]

    def to_json(self) -> dict[str, Any]:
        """Plain numbers, for a file or a report."""
        return {
            "counts": dict(self.counts),
            "specific": dict(self.specific),
            "related": dict(self.related),
            "pairs": {" & ".join(pair): change for pair, change in self.pairs.items()},
            "kept": dict(self.kept),
            "layers": (self.after.counts - self.before.counts).tolist(),
        }

    def __str__(self) -> str:
        lines = [", ".join(f"{kind} {change:+d}" for kind, change in self.counts.items())]
        lines += [
            f"  {name}: specific {self.specific[name]:+d}, related {self.related[name]:+d}" for name in self.specific
        ]
        return "\n".join(lines)


def condition_change(before: ConditionUnits, after: ConditionUnits) -> ConditionChange:
    """Compare the units of conditions before and after a training.

    Args:
        before: of the model before.
        after: of the same architecture after.

    Raises:
        ShapeError: other conditions.
        UnsupportedError: other sites, or a model of another build.

    Examples:
        >>> from plexus.probe import scores
        >>> from plexus.units import Scores
        >>> def sorted_by(numbers):
        ...     p = Scores({Site("act", "b u"): torch.tensor(numbers)}, ("en", "de", "ru"))
        ...     return scores.condition_units(p, 1, percentile=0.6, magnitude=0.0)
        >>> one = sorted_by([[0.9, 0.5], [0.0, 0.5], [0.0, 0.5]])
        >>> other = sorted_by([[0.9, 0.5], [0.9, 0.5], [0.0, 0.5]])
        >>> print(condition_change(one, other))
        specific -1, related +1, agnostic +0
          en: specific -1, related +1
          de: specific +0, related +1
          ru: specific +0, related +0
    """
    if before.conditions != after.conditions:
        raise ShapeError(
            "the two are of other conditions", given=", ".join(after.conditions), expected=before.conditions
        )
    sizes = [{site: serves.shape[1] for site, serves in units.serves.items()} for units in (before, after)]
    models = {units.chosen.model for units in (before, after)} - {None}
    if sizes[0] != sizes[1] or len(models) > 1:
        raise UnsupportedError(
            "the two are of models of another build", given=", ".join(map(str, sizes[1])) or "no sites"
        )
    names = before.conditions
    kinds = {kind: (getattr(before, kind), getattr(after, kind)) for kind in KINDS}

    def both(units: ConditionUnits, pair: tuple[str, str]) -> int:
        one, other = (units.of(name, related=True) for name in pair)
        return len(one & other)

    return ConditionChange(
        stage_profile(before),
        stage_profile(after),
        {kind: len(now) - len(was) for kind, (was, now) in kinds.items()},
        {name: len(after.of(name)) - len(before.of(name)) for name in names},
        {
            n: len(after.of(n, specific=False, related=True)) - len(before.of(n, specific=False, related=True))
            for n in names
        },
        {pair: both(after, pair) - both(before, pair) for pair in itertools.combinations(names, 2)},
        {kind: len(was & now) / len(was) if len(was) else float("nan") for kind, (was, now) in kinds.items()},
    )
