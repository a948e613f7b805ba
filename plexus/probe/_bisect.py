"""The largest value of one knob whose cost stays within a budget."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from plexus.errors import RangeError

__all__ = ["WithinBudget", "largest_within"]


@dataclass(frozen=True)
class WithinBudget:
    """What `largest_within` found.

    Attributes:
        value: the largest value that was seen to cost no more than the budget.
        cost: what it costs.
        over: the smallest value above it that was seen to cost more; None if the whole range is within the budget.
        tried: every value that was tried with its cost, in the order tried.

    Examples:
        >>> found = largest_within(lambda x: x, 2.0, high=8.0, tolerance=0.25)
        >>> found.value, found.over, found.tried
        (2.0, 4.0, ((0.0, 0.0), (8.0, 8.0), (4.0, 4.0), (2.0, 2.0)))
    """

    value: float
    cost: float
    over: float | None
    tried: tuple[tuple[float, float], ...]


def largest_within(
    cost: Callable[[float], float],
    budget: float,
    *,
    high: float,
    low: float = 0.0,
    tolerance: float = 0.01,
    steps: int = 30,
) -> WithinBudget:
    """Bisect for the largest value in `[low, high]` whose cost is at most the budget.

    For a cost that grows with the value this is the largest to within the tolerance. For any other it is a value whose
    cost was measured and is within the budget, below one that is over it; a cost that is not finite is over it.

    Args:
        cost: what a value costs, e.g. the perplexity under a steering of that strength.
        budget: the most it may cost.
        high: the largest value; taken as it is if it is within the budget.
        low: the smallest value, which must be within the budget.
        tolerance: width at which to stop, as a share of `high - low`.
        steps: the most bisections.

    Raises:
        RangeError: the ends are not in order, the budget or the tolerance is no such, or even `low` costs more.

    Examples:
        >>> found = largest_within(lambda x: x * x, 2.0, high=4.0, tolerance=1e-6)
        >>> round(found.value, 4), found.cost <= 2.0
        (1.4142, True)
    """
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise RangeError("the range of a knob has two ends in order", given=(low, high), expected="low < high")
    if math.isnan(budget):
        raise RangeError("the budget is a number", given=budget)
    if not tolerance > 0 or steps < 1:
        raise RangeError("the tolerance is positive and there is a step", given=f"{tolerance}, {steps} steps")
    tried: list[tuple[float, float]] = []

    def within(value: float) -> bool:
        tried.append((value, float(cost(value))))
        return tried[-1][1] <= budget and math.isfinite(tried[-1][1])

    if not within(low):
        raise RangeError(
            "even the smallest value costs more than the budget",
            given=f"cost {tried[-1][1]:.4g} at {low:g}",
            expected=f"at most {budget:.4g}",
            mend="allow more, or start lower",
        )
    if within(high):
        return WithinBudget(high, tried[-1][1], None, tuple(tried))
    inside, outside, best = low, high, tried[0][1]
    for _ in range(steps):
        if outside - inside <= tolerance * (high - low):
            break
        middle = (inside + outside) / 2
        if within(middle):
            inside, best = middle, tried[-1][1]
        else:
            outside = middle
    return WithinBudget(inside, best, outside, tuple(tried))
