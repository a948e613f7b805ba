"""Tests that ask for no distribution, and what many of them at once are worth.

    sign-flip test  p = share of the 2ⁿ sign patterns ε with |mean(ε d)| >= |mean(d)|       (Fisher 1935)
    Holm            p̃(i) = max_{j<=i} min(1, (m-j+1) p(j))                                   (Holm 1979)
    B-H             q(i) = min_{j>=i} min(1, m p(j)/j)                                       (Benjamini & Hochberg 1995)

All take plain sequences, arrays or tensors of finite numbers and raise `RangeError` otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from plexus.errors import DtypeError, RangeError, ShapeError, UnknownNameError

Floats = NDArray[np.float64]

ENUMERATE = 14
"""Up to this many numbers the sign-flip test counts all 2ⁿ patterns; beyond, it draws them."""


def finite_numbers(values: ArrayLike, least: int = 1) -> Floats:
    """One finite number per seed or item, as an array `[number]`.

    Raises:
        ShapeError: they do not come in one dimension.
        RangeError: there are fewer than `least`, or one is NaN or infinite.
    """
    array = _array(values)
    if array.ndim != 1:
        raise ShapeError("one number per seed is needed", given=array.shape, expected="one dimension")
    if array.size < least:
        raise RangeError("too few numbers", given=array.size, expected=f"at least {least}")
    if not np.isfinite(array).all():
        raise RangeError("the numbers hold NaN or infinity", given=array.tolist())
    return array


def sign_flip(values: ArrayLike, bar: float = 0.0, *, draws: int = 20_000, seed: int = 0) -> float:
    """Two-sided p that the numbers are symmetric about `bar`, by flipping the signs of their differences from it.

    All 2ⁿ patterns are counted for up to 14 numbers; beyond, `draws` random ones and the observed one.

    Examples:
        >>> sign_flip([0.3, 0.1, 0.4, 0.2])      # 2 of 16 patterns are as extreme
        0.125
    """
    difference = finite_numbers(values) - bar
    n = difference.size
    if n <= ENUMERATE:
        patterns = 1.0 - 2.0 * ((np.arange(2**n)[:, None] >> np.arange(n)) & 1)
    else:
        patterns = np.random.default_rng(seed).choice([-1.0, 1.0], size=(draws, n))
    observed = abs(float(difference.sum()))
    slack = 1e-12 * float(np.abs(difference).sum())
    extreme = int((np.abs(patterns @ difference) >= observed - slack).sum())
    return extreme / 2**n if n <= ENUMERATE else (extreme + 1) / (draws + 1)


def _array(values: ArrayLike) -> Floats:
    """Values as an array; those of a tensor come from wherever it lies. The commands that need no torch import this."""
    tensor = getattr(values, "detach", None)
    return np.asarray(values if tensor is None else tensor().cpu(), dtype=np.float64)


def _p_values(p_values: ArrayLike) -> Floats:
    array = _array(p_values)
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

    Raises:
        RangeError: the statistic of the samples, or of a relabelling of them, is NaN.

    Examples:
        >>> permutation([5.1, 5.2, 5.3, 5.4], [1.1, 1.2, 1.3, 1.4], draws=999) < 0.05
        True
    """
    a, b = finite_numbers(first), finite_numbers(second)
    measure: Callable[[Floats, Floats], float] = statistic or (lambda x, y: float(x.mean() - y.mean()))

    def size(x: Floats, y: Floats) -> float:
        found = abs(measure(x, y))
        if np.isnan(found):
            raise RangeError("a statistic of samples is not a number", given=found, mend="define it for equal ones")
        return found

    with np.errstate(divide="ignore", invalid="ignore"):
        return _share_as_large(a, b, size, draws, seed)


def _share_as_large(a: Floats, b: Floats, size: Callable[[Floats, Floats], float], draws: int, seed: int) -> float:
    observed = size(a, b)
    pool = np.concatenate([a, b])
    generator = np.random.default_rng(seed)
    slack = 1e-12 * max(1.0, observed) if np.isfinite(observed) else 0.0
    extreme = 1
    for _ in range(draws):
        shuffled = generator.permutation(pool)
        extreme += size(shuffled[: a.size], shuffled[a.size :]) >= observed - slack
    return extreme / (draws + 1)


def adjusted(p_values: Mapping[str, float], method: Literal["holm", "discoveries"] = "holm") -> dict[str, float]:
    """P-values by name, corrected for their number.

    Args:
        p_values: by name.
        method: "holm" keeps the chance of any false claim, "discoveries" the share of false ones (Benjamini-Hochberg).

    Examples:
        >>> adjusted({"accuracy": 0.01, "loss": 0.04, "speed": 0.03})
        {'accuracy': 0.03, 'loss': 0.06, 'speed': 0.06}
    """
    if method not in ("holm", "discoveries"):
        raise UnknownNameError.among("correction", str(method), ("holm", "discoveries"))
    if not isinstance(p_values, Mapping):
        raise DtypeError("p-values come by name", given=type(p_values).__name__, mend="holm(p_values) takes a list")
    correct = holm if method == "holm" else benjamini_hochberg
    return dict(zip(p_values, map(float, correct(list(p_values.values()))), strict=True))
