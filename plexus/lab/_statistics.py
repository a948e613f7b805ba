"""Interval statistics of paired seeds: what a handful of numbers can and cannot say.

    t interval      m ± t(n-1; 1-(1-level)/2) s/√n
    sign-flip test  p = share of the 2ⁿ sign patterns ε with |mean(ε d)| >= |mean(d)|       (Fisher 1935)
    Holm            p̃(i) = max_{j<=i} min(1, (m-j+1) p(j))                                   (Holm 1979)
    B-H             q(i) = min_{j>=i} min(1, m p(j)/j)                                       (Benjamini & Hochberg 1995)
    Wilson          (k + z²/2 ± z √(k(n-k)/n + z²/4)) / (n + z²)                              (Wilson 1927)

All take plain sequences or arrays of finite numbers and raise `RangeError` otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

from plexus.errors import RangeError, ShapeError

Floats = NDArray[np.float64]

ENUMERATE = 14
"""Up to this many numbers the sign-flip test counts all 2ⁿ patterns; beyond, it draws them."""


class Interval(NamedTuple):
    """A mean (or share) with the ends of its interval; the ends are infinite where one number says nothing."""

    mean: float
    low: float
    high: float


def _numbers(values: ArrayLike, least: int = 1) -> Floats:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1:
        raise ShapeError("one number per seed is needed", given=array.shape, expected="one dimension")
    if array.size < least:
        raise RangeError("too few numbers", given=array.size, expected=f"at least {least}")
    if not np.isfinite(array).all():
        raise RangeError("the numbers hold NaN or infinity", given=array.tolist())
    return array


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
    array = _numbers(values)
    mean = float(array.mean())
    if array.size == 1:
        return Interval(mean, -math.inf, math.inf)
    spread = float(array.std(ddof=1)) / math.sqrt(array.size)
    reach = float(special.stdtrit(array.size - 1, 1 - (1 - _level(level)) / 2)) * spread
    return Interval(mean, mean - reach, mean + reach)


def t_p_value(values: ArrayLike, bar: float = 0.0) -> float:
    """Two-sided p of a t test of the mean against `bar`: one minus the level at which the t interval touches the bar.

    Without any spread it is 0, or 1 where the mean is the bar; a single number gives 1.

    Examples:
        >>> round(t_p_value([1.0, 2.0, 3.0]), 4)
        0.0742
    """
    array = _numbers(values)
    distance = abs(float(array.mean()) - bar)
    if array.size == 1:
        return 1.0
    spread = float(array.std(ddof=1)) / math.sqrt(array.size)
    if spread == 0.0:
        return 0.0 if distance > 0 else 1.0
    return min(1.0, 2.0 * float(special.stdtr(array.size - 1, -distance / spread)))


def sign_flip(values: ArrayLike, bar: float = 0.0, *, draws: int = 20_000, seed: int = 0) -> float:
    """Two-sided p that the numbers are symmetric about `bar`, by flipping the signs of their differences from it.

    All 2ⁿ patterns are counted for up to 14 numbers; beyond, `draws` random ones and the observed one.

    Examples:
        >>> sign_flip([0.3, 0.1, 0.4, 0.2])      # 2 of 16 patterns are as extreme
        0.125
    """
    difference = _numbers(values) - bar
    n = difference.size
    if n <= ENUMERATE:
        patterns = 1.0 - 2.0 * ((np.arange(2**n)[:, None] >> np.arange(n)) & 1)
    else:
        patterns = np.random.default_rng(seed).choice([-1.0, 1.0], size=(draws, n))
    observed = abs(float(difference.sum()))
    slack = 1e-12 * float(np.abs(difference).sum())
    extreme = int((np.abs(patterns @ difference) >= observed - slack).sum())
    return extreme / 2**n if n <= ENUMERATE else (extreme + 1) / (draws + 1)


def _p_values(p_values: ArrayLike) -> Floats:
    array = np.asarray(p_values, dtype=np.float64)
    if array.ndim != 1:
        raise ShapeError("p values come in one dimension", given=array.shape)
    if not ((array >= 0) & (array <= 1)).all():
        raise RangeError("p values lie in [0, 1]", given=array.tolist())
    return array


def holm(p_values: ArrayLike) -> Floats:
    """Holm's step-down adjusted p values, in the order given.

    Examples:
        >>> [float(p) for p in holm([0.01, 0.04, 0.03])]
        [0.03, 0.06, 0.06]
    """
    array = _p_values(p_values)
    order = np.argsort(array, kind="stable")
    steps = np.maximum.accumulate(array[order] * np.arange(array.size, 0, -1))
    adjusted = np.empty_like(array)
    adjusted[order] = np.minimum(steps, 1.0)
    return adjusted


def benjamini_hochberg(p_values: ArrayLike) -> Floats:
    """Benjamini and Hochberg's q values, in the order given.

    Examples:
        >>> [round(float(q), 3) for q in benjamini_hochberg([0.01, 0.04, 0.03])]
        [0.03, 0.04, 0.04]
    """
    array = _p_values(p_values)
    order = np.argsort(array, kind="stable")
    raw = array[order] * array.size / np.arange(1, array.size + 1)
    adjusted = np.empty_like(array)
    adjusted[order] = np.minimum(np.minimum.accumulate(raw[::-1])[::-1], 1.0)
    return adjusted


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


def permutation(
    first: ArrayLike,
    second: ArrayLike,
    statistic: Callable[[Floats, Floats], float] | None = None,
    *,
    draws: int = 9_999,
    seed: int = 0,
) -> float:
    """p that two unpaired samples come from one distribution: how often a relabelling gives as large a `|statistic|`.

    The statistic defaults to the difference of means. The observed labelling counts, so p is never 0.

    Examples:
        >>> permutation([5.1, 5.2, 5.3, 5.4], [1.1, 1.2, 1.3, 1.4], draws=999) < 0.05
        True
    """
    a, b = _numbers(first), _numbers(second)
    measure: Callable[[Floats, Floats], float] = statistic or (lambda x, y: float(x.mean() - y.mean()))
    observed = abs(measure(a, b))
    pool = np.concatenate([a, b])
    generator = np.random.default_rng(seed)
    slack = 1e-12 * max(1.0, observed)
    extreme = 1
    for _ in range(draws):
        shuffled = generator.permutation(pool)
        extreme += abs(measure(shuffled[: a.size], shuffled[a.size :])) >= observed - slack
    return extreme / (draws + 1)
