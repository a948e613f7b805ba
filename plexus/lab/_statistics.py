"""Interval statistics of paired seeds: what a handful of numbers can and cannot say.

    t interval      m ± t(n-1; 1-(1-level)/2) s/√n
    Wilson          (k + z²/2 ± z √(k(n-k)/n + z²/4)) / (n + z²)                              (Wilson 1927)

All take plain sequences or arrays of finite numbers and raise `RangeError` otherwise. The sign-flip test, permutations
and the corrections for many tests are those that the controls of an edit use too: `plexus.explain.controls`.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

from plexus.errors import RangeError, ShapeError
from plexus.explain.controls._multiple import Floats as Floats
from plexus.explain.controls._multiple import benjamini_hochberg as benjamini_hochberg
from plexus.explain.controls._multiple import finite_numbers
from plexus.explain.controls._multiple import holm as holm
from plexus.explain.controls._multiple import permutation as permutation
from plexus.explain.controls._multiple import sign_flip as sign_flip


class Interval(NamedTuple):
    """A mean (or share) with the ends of its interval; the ends are infinite where one number says nothing."""

    mean: float
    low: float
    high: float


def _level(level: float) -> float:
    if not 0.0 < level < 1.0:
        raise RangeError("a level is a probability", given=level, expected="0 < level < 1")
    return level


def t_interval(values: ArrayLike, level: float = 0.95) -> Interval:
    """The mean and its t interval; one number gives an infinite interval.

    Examples:
        >>> low, high = t_interval([1.0, 2.0, 3.0])[1:]
        >>> round(low, 3), round(high, 3)
        (-0.484, 4.484)
    """
    mean, reach = t_reach(finite_numbers(values), level)
    return Interval(float(mean), float(mean - reach), float(mean + reach))


def t_reach(values: Floats, level: float = 0.95) -> tuple[Floats, Floats]:
    """Means and half the t intervals of sets of numbers `[…, number]`, each `[…]`; infinite for one number."""
    means, count = values.mean(-1), values.shape[-1]
    if count == 1:
        return means, np.full(means.shape, math.inf)
    spread = values.std(-1, ddof=1) / math.sqrt(count)
    return means, special.stdtrit(count - 1, 1 - (1 - _level(level)) / 2) * spread


def t_p_value(values: ArrayLike, bar: float = 0.0) -> float:
    """Two-sided p of a t test of the mean against `bar`: one minus the level at which the t interval touches the bar.

    Without any spread it is 0, or 1 where the mean is the bar; a single number gives 1.

    Examples:
        >>> round(t_p_value([1.0, 2.0, 3.0]), 4)
        0.0742
    """
    return float(t_p_values(finite_numbers(values), np.array(bar)))


def t_p_values(values: Floats, bars: Floats) -> Floats:
    """`t_p_value` of sets of numbers `[…, number]`, each against a bar of its own `[…]`."""
    distance, count = np.abs(values.mean(-1) - bars), values.shape[-1]
    if count == 1:
        return np.ones(distance.shape)
    spread = values.std(-1, ddof=1) / math.sqrt(count)
    with np.errstate(divide="ignore", invalid="ignore"):
        level = np.minimum(1.0, 2.0 * special.stdtr(count - 1, -distance / spread))
    return np.where(spread == 0.0, np.where(distance > 0, 0.0, 1.0), level)


def wilson(successes: int, trials: int, level: float = 0.95) -> Interval:
    """Wilson's interval of a share.

    Examples:
        >>> [round(x, 3) for x in wilson(8, 10)]
        [0.8, 0.49, 0.943]
    """
    if trials < 1 or not 0 <= successes <= trials:
        raise RangeError(
            "successes of trials", given=(successes, trials), expected="0 <= successes <= trials, trials >= 1"
        )
    z = float(special.ndtri(1 - (1 - _level(level)) / 2))
    center = (successes + z * z / 2) / (trials + z * z)
    reach = z * math.sqrt(successes * (trials - successes) / trials + z * z / 4) / (trials + z * z)
    low = 0.0 if successes == 0 else center - reach
    high = 1.0 if successes == trials else center + reach
    return Interval(successes / trials, low, high)


def binomial_tail(successes: int, trials: int, share: float = 0.5) -> float:
    """Probability of at least that many successes when each trial succeeds with probability `share`.

    Examples:
        >>> binomial_tail(9, 10)
        0.0107421875
    """
    if trials < 1 or not 0 <= successes <= trials:
        raise RangeError(
            "successes of trials", given=(successes, trials), expected="0 <= successes <= trials, trials >= 1"
        )
    if successes == 0:
        return 1.0
    return float(special.bdtrc(successes - 1, trials, share))


def paired_bootstrap(
    first: ArrayLike, second: ArrayLike, *, level: float = 0.95, draws: int = 10_000, seed: int = 0
) -> Interval:
    """Mean difference of two scores of the same test items, `[item]` or `[seed, item]`, with its bootstrap interval.

    Seeds are not data: the items are resampled (the same for both scores), and the seeds too where there are several.

    Examples:
        >>> result = paired_bootstrap([1, 1, 0, 1, 1, 1], [0, 1, 0, 0, 1, 0], draws=2000)
        >>> result.mean, result.low >= 0
        (0.5, True)
    """
    a, b = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if a.shape != b.shape or a.ndim not in (1, 2) or a.size == 0:
        raise ShapeError(
            "both scores cover the same items", given=(a.shape, b.shape), expected="[item] or [seed, item]"
        )
    difference = np.atleast_2d(a - b)
    if not np.isfinite(difference).all():
        raise RangeError("the scores hold NaN or infinity")
    seeds, items = difference.shape
    generator = np.random.default_rng(seed)
    means = np.empty(draws)
    for i in range(draws):
        weight = np.bincount(generator.integers(items, size=items), minlength=items)
        rows = generator.integers(seeds, size=seeds) if seeds > 1 else np.zeros(1, dtype=np.int64)
        means[i] = (difference[rows].mean(axis=0) @ weight) / items
    low, high = np.quantile(means, [(1 - _level(level)) / 2, 1 - (1 - level) / 2])
    return Interval(float(difference.mean()), float(low), float(high))
