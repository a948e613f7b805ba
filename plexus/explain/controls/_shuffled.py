"""What a score would be if the labels meant nothing: the labels are shuffled, and everything is computed again.

    p_u  = (1 + #{i : s_u^(i) >= s_u}) / (1 + n)              per unit
    p̂_u  = (1 + #{i : max_v s_v^(i) >= s_u}) / (1 + n)        over all units: the largest of each shuffle counts

The second p-value accounts for having looked at every unit, whatever their dependence.

Source: Westfall & Young 1993 (the maximum statistic); Phipson & Smyth 2010 (why p is never zero).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from plexus.errors import DtypeError, RangeError, ShapeError, UnknownNameError
from plexus.explain.controls._multiple import benjamini_hochberg
from plexus.explain.controls._null import Null, null
from plexus.units import Neurons, Scores, Site
from plexus.units._draws import random_order


def shuffled(labels: Tensor, generator: torch.Generator, *, within: Tensor | None = None) -> Tensor:
    """The labels `[sample, …]` in random order, so that they keep their numbers and lose their meaning.

    Args:
        labels: of all samples; the rows of a table of labels stay together.
        generator: where the order comes from.
        within: groups `[sample]`; labels move only inside their group, which keeps what the groups have in common.

    Raises:
        ShapeError: if there are no labels, or the groups are not one per sample.

    Examples:
        >>> labels, group = torch.tensor([0, 1, 2, 3]), torch.tensor([0, 0, 1, 1])
        >>> mixed = shuffled(labels, torch.Generator().manual_seed(0), within=group)
        >>> sorted(mixed[:2].tolist()), sorted(mixed[2:].tolist())
        ([0, 1], [2, 3])
    """
    labels = torch.as_tensor(labels)
    if labels.dim() == 0 or len(labels) == 0:
        raise ShapeError("there are no labels to shuffle", given=tuple(labels.shape))
    if not isinstance(generator, torch.Generator):
        raise DtypeError("a shuffle needs a torch.Generator", given=type(generator).__name__)
    order = random_order(len(labels), generator)
    if within is None:
        return labels[order]
    group = torch.as_tensor(within).cpu()
    if group.shape != (len(labels),):
        raise ShapeError("groups are one per sample", given=tuple(group.shape), expected=f"[{len(labels)}]")
    source = order[torch.argsort(group[order], stable=True)]  # random inside each group, groups in ascending order
    target = torch.argsort(group, stable=True)
    mixed = torch.empty_like(labels)
    mixed[target] = labels[source]
    return mixed


@dataclass(frozen=True)
class LabelNull:
    """Scores beside what they are under shuffled labels.

    Attributes:
        scores: with the labels as they are.
        p: per unit, one-sided towards the larger (or larger absolute) score.
        p_family: corrected for all units at once by the maximum of each shuffle.
        largest: the largest score over all units of each shuffle, `[shuffle]`.
        by: "value", or "abs" for scores whose sign counts for nothing.
    """

    scores: Scores
    p: Scores
    p_family: Scores
    largest: Tensor
    by: Literal["value", "abs"]

    @property
    def q(self) -> Scores:
        """The share of false discoveries at which each unit would be called (Benjamini-Hochberg over all units)."""
        flat = torch.cat([self.p[site] for site in self.p.sites]).numpy()
        parts = torch.as_tensor(benjamini_hochberg(flat)).split([self.p.sizes[site] for site in self.p.sites])
        return Scores(dict(zip(self.p.sites, parts, strict=True)), None, "q", self.scores.model)

    def significant(
        self, level: float = 0.05, *, correct: Literal["family", "discoveries", "none"] = "family"
    ) -> Neurons:
        """The units whose corrected p-value is at most `level`; there may be none.

        Raises:
            UnknownNameError: another correction than "family", "discoveries" or "none".
        """
        if correct not in ("family", "discoveries", "none"):
            raise UnknownNameError.among("correction", str(correct), ("family", "discoveries", "none"))
        p = {"family": lambda: self.p_family, "discoveries": lambda: self.q, "none": lambda: self.p}[correct]()
        return Neurons({site: p[site] <= level for site in p.sites}, self.scores.model)

    def __str__(self) -> str:
        count = len(self.significant())
        units = sum(self.scores.sizes.values())
        return (
            f"{self.scores.name} beside {len(self.largest)} shuffles of the labels: {count} of {units} units "
            f"at p <= 0.05 over all units; by chance the largest score is {float(self.largest.median()):.3g} "
            f"({float(torch.quantile(self.largest, 0.95)):.3g} in one of twenty shuffles)"
        )


def label_shuffles(
    score: Callable[[Tensor], Any],
    labels: Tensor,
    generator: torch.Generator,
    n: int = 199,
    *,
    within: Tensor | None = None,
    by: Literal["value", "abs"] = "value",
) -> LabelNull | Null:
    """Compute a score again under shuffled labels.

    Args:
        score: from labels to `Scores` (`lambda y: probe.scores.auroc(record, y)`) or to one number, such as a probe's
            accuracy; everything that depends on the labels, choices and fits included, belongs inside.
        labels: `[sample, …]`.
        generator: where the shuffles come from.
        n: how many; 199 give p ≥ 0.005.
        within: groups `[sample]` inside which labels are shuffled.
        by: whether larger values or larger absolute values count.

    Returns:
        For scores a `LabelNull`, per unit and over all units; for one number a `Null` (its p is two-sided about zero,
        its percentile counts the shuffles below).

    Raises:
        RangeError: fewer than one shuffle; a number that is NaN.
        DtypeError: if `score` gives neither.

    Examples:
        >>> site = Site("fc1", "b u")
        >>> x, y = torch.eye(8)[:, :2], torch.tensor([1, 0, 0, 0, 0, 0, 0, 0])
        >>> hits = lambda y: Scores({site: y.double() @ x.double()})
        >>> found = label_shuffles(hits, y, torch.Generator().manual_seed(0))
        >>> bool(found.p[site][0] < 0.2), float(found.p[site][1])
        (True, 1.0)
    """
    if isinstance(n, bool) or not isinstance(n, int) or n < 1:
        raise RangeError("a score is reported beside its control", given=f"n={n!r}", expected="at least one shuffle")
    if by not in ("value", "abs"):
        raise UnknownNameError.among("order", str(by), ("value", "abs"))
    observed = score(labels)
    draws = [score(shuffled(labels, generator, within=within)) for _ in range(n)]
    if not isinstance(observed, Scores):
        try:
            return null(float(observed), torch.tensor([float(draw) for draw in draws], dtype=torch.float64))
        except (TypeError, ValueError) as error:
            if isinstance(error, RangeError):
                raise
            raise DtypeError(
                "a score gives Scores, or one number", given=type(observed).__name__, expected="Scores or a float"
            ) from error
    if observed.concepts is not None:
        raise ShapeError("label shuffles take one number per unit", mend="choose a concept inside the score")
    return _label_null(observed, draws, by)


def _label_null(observed: Scores, draws: list[Scores], by: Literal["value", "abs"]) -> LabelNull:
    def key(scores: Scores) -> dict[Site, Tensor]:
        found = {site: scores[site].double() for site in observed.sites}
        for site, value in found.items():
            if bool(value.isnan().any()):
                raise RangeError(
                    f"the score is NaN for {int(value.isnan().sum())} units of {site}",
                    mend="drop these units, or score what is defined under every shuffle",
                )
        return {site: value.abs() if by == "abs" else value for site, value in found.items()}

    true, others = key(observed), [key(draw) for draw in draws]
    largest = torch.tensor([max(float(value.max()) for value in other.values()) for other in others]).double()
    p: dict[Site, Tensor] = {}
    family: dict[Site, Tensor] = {}
    for site, value in true.items():
        # equal numbers count as reached, up to rounding
        slack = 1e-12 * value.abs().clamp(min=1.0)
        reached = sum(((other[site] >= value - slack).double() for other in others), torch.zeros_like(value))
        p[site] = (1 + reached) / (1 + len(others))
        family[site] = (1 + (largest[:, None] >= value - slack).double().sum(0)) / (1 + len(others))
    name = observed.name
    return LabelNull(
        observed,
        Scores(p, None, f"p of {name}", observed.model),
        Scores(family, None, f"p of {name} over all units", observed.model),
        largest,
        by,
    )
