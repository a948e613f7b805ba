"""Interval statistics against SciPy, closed forms and their own promises."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from plexus.errors import RangeError, ShapeError
from plexus.lab._statistics import (
    benjamini_hochberg,
    binomial_tail,
    holm,
    paired_bootstrap,
    permutation,
    sign_flip,
    t_interval,
    t_p_value,
    wilson,
)

numbers = st.lists(st.floats(-1e3, 1e3).map(lambda x: round(x, 6)), min_size=2, max_size=12)
p_values = st.lists(st.floats(0, 1), min_size=1, max_size=20)


@given(numbers, st.sampled_from([0.5, 0.9, 0.95, 0.99]))
def test_t_interval_is_scipys(values, level):
    if np.std(values) < 1e-9:
        return
    low, high = stats.t.interval(level, len(values) - 1, loc=np.mean(values), scale=stats.sem(values))
    assert t_interval(values, level)[1:] == pytest.approx((low, high))


@given(numbers, st.floats(-10, 10))
def test_t_test_is_scipys(values, bar):
    if np.std(values) < 1e-6:
        return
    assert t_p_value(values, bar) == pytest.approx(stats.ttest_1samp(values, bar).pvalue, abs=1e-12)


@given(numbers, st.floats(-10, 10), st.floats(0.001, 0.999))
def test_interval_and_test_say_the_same(values, bar, alpha):
    low, high = t_interval(values, 1 - alpha)[1:]
    p = t_p_value(values, bar)
    if abs(p - alpha) > 1e-6 and high > low:
        assert (low <= bar <= high) == (p > alpha)


def test_one_number_gives_no_interval():
    assert t_interval([2.0]) == (2.0, -math.inf, math.inf)
    assert t_p_value([2.0], 0.0) == 1.0


def test_coverage_of_the_t_interval():
    draws = np.random.default_rng(1).normal(3.0, 2.0, size=(4000, 10))
    covered = sum(low <= 3.0 <= high for _, low, high in map(t_interval, draws))
    assert 0.94 < covered / 4000 < 0.96  # three standard errors of 0.95 are 0.0103


@given(st.lists(st.integers(-50, 50), min_size=1, max_size=8))
def test_sign_flip_counts_all_patterns(values):
    total = abs(sum(values))
    patterns = list(itertools.product((-1, 1), repeat=len(values)))
    extreme = sum(abs(sum(s * v for s, v in zip(signs, values, strict=True))) >= total for signs in patterns)
    assert sign_flip(values) == extreme / len(patterns)


def test_sign_flip_is_scipys_permutation_test():
    values = np.random.default_rng(0).normal(0.4, 1.0, 9)
    expected = stats.permutation_test((values,), np.mean, permutation_type="samples", n_resamples=np.inf)
    assert sign_flip(values) == pytest.approx(expected.pvalue)


def test_sign_flip_draws_beyond_fourteen():
    values = np.random.default_rng(3).normal(0.5, 1.0, 16)
    signs = 1 - 2 * ((np.arange(2**16)[:, None] >> np.arange(16)) & 1)
    exact = np.mean(np.abs(signs @ values) >= abs(values.sum()) - 1e-12)
    assert sign_flip(values, draws=40_000) == pytest.approx(exact, abs=4 * math.sqrt(exact / 40_000))
    assert sign_flip(values) == sign_flip(values)


def test_sign_flip_about_a_bar():
    values = [1.1, 1.2, 1.3]
    assert sign_flip(values, 1.0) == sign_flip([0.1, 0.2, 0.3]) == 0.25


@given(p_values)
def test_benjamini_hochberg_is_scipys(values):
    np.testing.assert_allclose(benjamini_hochberg(values), stats.false_discovery_control(values))


@given(p_values)
def test_holm_by_its_definition(values):
    adjusted = holm(values)
    m = len(values)
    for alpha in (0.01, 0.05, 0.3):
        rejected = set()
        for i, k in enumerate(sorted(range(m), key=lambda i: values[i])):
            if values[k] * (m - i) > alpha:
                break
            rejected.add(k)
        assert {i for i in range(m) if adjusted[i] <= alpha} == rejected


@given(p_values)
def test_corrections_never_help(values):
    assert (holm(values) >= np.array(values) - 1e-15).all()
    assert (benjamini_hochberg(values) >= np.array(values) - 1e-15).all()
    assert (holm(values) >= benjamini_hochberg(values) - 1e-12).all()


@given(st.integers(1, 60), st.data())
def test_wilson_is_scipys(n, data):
    k = data.draw(st.integers(0, n))
    expected = stats.binomtest(k, n).proportion_ci(method="wilson")
    share, low, high = wilson(k, n)
    assert share == k / n
    assert (low, high) == pytest.approx((expected.low, expected.high), abs=1e-12)


@given(st.integers(1, 60), st.data())
def test_binomial_tail_is_scipys(n, data):
    k = data.draw(st.integers(0, n))
    assert binomial_tail(k, n) == pytest.approx(stats.binomtest(k, n, alternative="greater").pvalue)


def test_paired_bootstrap_of_items_has_the_width_of_theory():
    rng = np.random.default_rng(0)
    difference = rng.normal(0.2, 1.0, 400)
    mean, low, high = paired_bootstrap(difference, np.zeros(400), draws=4000)
    assert mean == pytest.approx(difference.mean())
    assert high - low == pytest.approx(2 * 1.96 * difference.std() / 20, rel=0.08)


def test_paired_bootstrap_is_paired_and_resamples_seeds_too():
    rng = np.random.default_rng(0)
    hard = rng.normal(0, 10.0, (5, 200))
    mean, low, high = paired_bootstrap(hard + 0.1, hard, draws=500)
    assert (mean, low, high) == pytest.approx((0.1, 0.1, 0.1))
    seeds = np.repeat(rng.normal(0, 1, (5, 1)), 200, axis=1)  # all spread lies between seeds
    _, low, high = paired_bootstrap(seeds, np.zeros_like(seeds), draws=500)
    assert high - low > 0.5


def test_permutation_against_all_labellings():
    a, b = np.array([3.0, 4.0, 5.5, 6.0]), np.array([1.0, 2.0, 3.5])
    exact = stats.permutation_test((a, b), lambda x, y: np.mean(x) - np.mean(y), n_resamples=np.inf).pvalue
    assert permutation(a, b, draws=20_000) == pytest.approx(exact, abs=0.01)
    assert permutation(a, a.copy(), draws=200) == 1.0


@settings(max_examples=20)
@given(st.integers(0, 10_000))
def test_permutation_of_another_statistic_never_gives_zero(seed):
    a, b = np.zeros(5), np.full(5, 9.0)
    p = permutation(a, b, lambda x, y: float(np.median(x) - np.median(y)), draws=50, seed=seed)
    assert 0 < p <= 1


@pytest.mark.parametrize("function", [t_interval, t_p_value, sign_flip])
def test_bad_numbers_are_refused(function):
    with pytest.raises(RangeError, match="too few"):
        function([])
    with pytest.raises(RangeError, match="NaN"):
        function([1.0, math.nan])
    with pytest.raises(ShapeError):
        function([[1.0, 2.0]])


def test_other_bad_input_is_refused():
    with pytest.raises(RangeError, match="p values"):
        holm([0.5, 1.5])
    with pytest.raises(RangeError, match="p values"):
        benjamini_hochberg([math.nan])
    with pytest.raises(RangeError, match="successes"):
        wilson(3, 2)
    with pytest.raises(RangeError, match="level"):
        t_interval([1.0, 2.0], 1.5)
    with pytest.raises(ShapeError, match="same items"):
        paired_bootstrap([1.0], [1.0, 2.0])
