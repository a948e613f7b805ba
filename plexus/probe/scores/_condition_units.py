"""Which conditions a unit serves: one, several or all.

    chosen     the share ρ of all units with the lowest score s (see `condition_entropy`)
    serves     unit u serves condition k if p[k, u] > τ, the given percentile of all probabilities
    specific   chosen, serves one        related   chosen, serves 2 … K - 1
    agnostic   not chosen, or serves all K; chosen units that serve none belong nowhere

The weight λ of the magnitude is found by bisection: the largest one, to a tolerance, with which no chosen unit serves
all conditions.

Source: Zhang et al. 2026.
"""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from plexus.errors import RangeError, ShapeError, UnknownNameError
from plexus.probe.scores._conditions import condition_entropy
from plexus.units import Neurons, Scores, Site

SPACINGS = ("even", "geometric")


@dataclass(frozen=True, eq=False)
class ConditionUnits:
    """Units sorted by the conditions that they serve.

    Attributes:
        conditions: names.
        chosen: the units with the lowest scores.
        serves: per site which conditions each unit serves, bool `[condition, unit]`, chosen or not.
        magnitude: λ that the scores were made with.
        bar: τ, the probability above which a unit serves a condition.
        evaluations: how many values of λ were tried.

    Examples:
        >>> hidden = Site("act", "b u")
        >>> p = Scores({hidden: torch.tensor([[0.9, 0.8, 0.0, 0.1], [0.0, 0.7, 0.0, 0.1], [0.1, 0.0, 0.0, 0.2]])},
        ...            ("en", "de", "ru"))
        >>> units = condition_units(p, 2, percentile=0.7, magnitude=0.0)
        >>> units.specific.indices(hidden).tolist(), units.related.indices(hidden).tolist()
        ([0], [1])
        >>> units.of("en", related=True).indices(hidden).tolist(), dict(units.sets())
        ([0, 1], {('en',): 1, ('en', 'de'): 1})
    """

    conditions: tuple[str, ...]
    chosen: Neurons
    serves: Mapping[Site, Tensor]
    magnitude: float
    bar: float
    evaluations: int = 1

    @property
    def specific(self) -> Neurons:
        """Chosen units that serve one condition."""
        return self._counted(lambda m: m == 1)

    @property
    def related(self) -> Neurons:
        """Chosen units that serve several conditions and not all."""
        return self._counted(lambda m: (m >= 2) & (m < len(self.conditions)))

    @property
    def unassigned(self) -> Neurons:
        """Chosen units that serve none."""
        return self._counted(lambda m: m == 0)

    @property
    def agnostic(self) -> Neurons:
        """Units that were not chosen, or serve all conditions."""
        return ~self.chosen | self._counted(lambda m: m == len(self.conditions))

    def of(self, condition: str, *, specific: bool = True, related: bool = False) -> Neurons:
        """The units of one condition.

        Args:
            condition: which.
            specific: those that serve it alone.
            related: those that serve it and others.

        Raises:
            UnknownNameError: there is no such condition.
        """
        if condition not in self.conditions:
            raise UnknownNameError.among("condition", condition, self.conditions)
        row = self.conditions.index(condition)
        here = Neurons({site: serves[row] for site, serves in self.serves.items()}, self.chosen.model)
        kinds = Neurons({site: torch.zeros_like(s[0]) for site, s in self.serves.items()}, self.chosen.model)
        kinds = kinds | self.specific if specific else kinds
        kinds = kinds | self.related if related else kinds
        return here & kinds

    def exactly(self, conditions: Iterable[str]) -> Neurons:
        """Chosen units that serve these conditions and no other.

        Raises:
            UnknownNameError: there is no such condition.
        """
        wanted = set(conditions)
        for name in wanted - set(self.conditions):
            raise UnknownNameError.among("condition", name, self.conditions)
        pattern = torch.tensor([name in wanted for name in self.conditions])
        return self.chosen & Neurons(
            {site: (serves == pattern[:, None]).all(0) for site, serves in self.serves.items()}, self.chosen.model
        )

    def sets(self) -> Counter[tuple[str, ...]]:
        """How many chosen units serve each set of conditions."""
        found: Counter[tuple[str, ...]] = Counter()
        for site, serves in self.serves.items():
            for column in serves[:, self.chosen.mask(site)].T.tolist():
                found[tuple(name for name, member in zip(self.conditions, column, strict=True) if member)] += 1
        return found

    def __repr__(self) -> str:
        return (
            f"ConditionUnits: {len(self.chosen)} chosen of {sum(self.chosen.sizes.values())} for "
            f"{', '.join(self.conditions)}: {len(self.specific)} specific, {len(self.related)} related "
            f"(magnitude {self.magnitude:.3g}, serving above {self.bar:.3g})"
        )

    def _counted(self, test: object) -> Neurons:
        return self.chosen & Neurons(
            {site: test(serves.sum(0)) for site, serves in self.serves.items()},  # type: ignore[operator]
            self.chosen.model,
        )


class Bracket(NamedTuple):
    """What a search of λ ended with: the largest value found feasible, and the smallest found not to be."""

    feasible: float | None
    infeasible: float | None


def condition_units(
    probability: Scores,
    share: int | float = 0.01,
    *,
    percentile: float = 0.95,
    magnitude: float | Literal["auto"] = "auto",
    limit: float = 0.2,
    tolerance: float = 1e-3,
    spacing: Literal["even", "geometric"] = "even",
) -> ConditionUnits:
    """Sort units into condition-specific, condition-related and condition-agnostic ones.

    Args:
        probability: `[condition, unit]`, from `ActivationCounts`.
        share: of all units (float) or how many (int) to choose.
        percentile: of all probabilities, in (0, 1): a unit serves the conditions in which it lies above.
        magnitude: λ, or "auto": the largest in `[0, limit]` with which no chosen unit serves all conditions.
        limit: end of the search.
        tolerance: width at which the search ends; geometric: the share by which its ends then differ.
        spacing: "even" halves the range of λ, "geometric" that of its logarithm from `tolerance` to `limit`, for ranges
            of several powers of ten; 0 where not even `tolerance` is feasible.

    Raises:
        ShapeError: fewer than two conditions.
        RangeError: a number out of its range, or no λ is feasible; the message holds the bracket.
        UnknownNameError: no such spacing.

    Examples: see `ConditionUnits`.
    """
    conditions = probability.concepts or ()
    if len(conditions) < 2:
        raise ShapeError("units of conditions need two of them", given=f"{len(conditions)} conditions")
    if not 0 < percentile < 1:
        raise RangeError("a percentile", given=percentile, expected="in (0, 1)")
    if not tolerance > 0 or not limit > 0:
        raise RangeError("limit and tolerance of the search are positive", given=f"{limit}, {tolerance}")
    if spacing not in SPACINGS:
        raise UnknownNameError.among("spacing", str(spacing), SPACINGS)
    if spacing == "geometric" and not tolerance < limit:
        raise RangeError("a geometric search begins below its end", given=f"tolerance {tolerance}, limit {limit}")
    bar = float(
        np.quantile(torch.cat([p.double().reshape(-1) for p in probability.values.values()]).numpy(), percentile)
    )
    serves = {site: p > bar for site, p in probability.values.items()}
    every = Neurons({site: member.all(0) for site, member in serves.items()}, probability.model)
    tried = 0

    def choose(weight: float) -> Neurons:
        nonlocal tried
        tried += 1
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of ties, which the last choice tells once
            return condition_entropy(probability, weight).top(share, by="low")

    def sorted_with(weight: float) -> ConditionUnits:
        chosen = condition_entropy(probability, weight).top(share, by="low")
        return ConditionUnits(conditions, chosen, serves, float(weight), bar, max(tried, 1))

    if magnitude != "auto":
        return sorted_with(magnitude)
    low, high = 0.0, limit
    plain = choose(low)
    if len(plain & every):
        raise RangeError(
            "even without the magnitude term, chosen units serve all conditions",
            given=f"{len(plain & every)} of {len(plain)}; {Bracket(None, 0.0)}",
            mend="choose fewer units, or raise the percentile",
        )
    if not len(choose(high) & every):
        low = high
    elif spacing == "geometric" and not len(choose(tolerance) & every):
        low = tolerance
    elif spacing == "geometric":
        high = low
    while high > low * (1 + tolerance) if spacing == "geometric" else high - low > tolerance:
        middle = math.sqrt(low * high) if spacing == "geometric" else (low + high) / 2
        if len(choose(middle) & every):
            high = middle
        else:
            low = middle
    return sorted_with(low)
