"""Statistics and distances of spike trains: closed forms, slow references, and metric axioms."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from plexus.errors import RangeError, ShapeError, UnknownNameError
from plexus.probe import spike_trains as trains

times = st.lists(st.floats(0, 200), max_size=8).map(sorted)


def poisson(steps: int, rate: float, *shape: int, seed: int = 0) -> torch.Tensor:
    return (torch.rand(steps, *shape, generator=torch.Generator().manual_seed(seed)) < rate).float()


def test_a_poisson_train_is_one_and_a_clock_is_zero() -> None:
    z = poisson(200_000, 0.02, 3)
    for kind in ("cv", "cv2"):
        values = trains.coefficient_of_variation(z, kind=kind)
        torch.testing.assert_close(values, torch.full((3,), math.sqrt(1 - 0.02)), atol=0.05, rtol=0)
    torch.testing.assert_close(trains.fano_factor(z, 100.0), torch.full((3,), 0.98), atol=0.08, rtol=0)
    torch.testing.assert_close(trains.firing_rate(z, dt=0.5), torch.full((3,), 40.0), atol=1.0, rtol=0)
    clock = torch.zeros(100, 1)
    clock[::10] = 1
    assert float(trains.coefficient_of_variation(clock)) == 0.0
    assert float(trains.fano_factor(clock, 20.0)) == 0.0


def test_a_drifting_rate_raises_cv_more_than_cv2() -> None:
    steps = torch.arange(100_000)
    rate = 0.02 + 0.018 * torch.sin(2 * math.pi * steps / 20_000)
    z = (torch.rand(100_000, generator=torch.Generator().manual_seed(0)) < rate).float()
    assert trains.coefficient_of_variation(z) > trains.coefficient_of_variation(z, kind="cv2") + 0.15


def test_undefined_is_nan() -> None:
    z = torch.zeros(10, 2)
    z[3, 0] = z[7, 0] = 1
    assert torch.isnan(trains.coefficient_of_variation(z)).all()
    assert torch.isnan(trains.fano_factor(z, 2.0)).tolist() == [False, True]


def test_fano_over_trials() -> None:
    z = torch.zeros(4, 2, 1)
    z[0, 0, 0] = z[1, 0, 0] = 1  # counts 2 and 0 in the first window, 0 and 0 in the second
    assert trains.fano_factor(z, 2.0, over="trials")[0].item() == 1.0


def test_count_correlation_is_numpys() -> None:
    z = poisson(600, 0.3, 5, 4)
    z[:, :, 1] = z[:, :, 0]
    counts = z.unflatten(0, (60, 10)).sum(1).flatten(0, 1)
    expected = torch.from_numpy(np.corrcoef(counts.numpy().T)).float()
    torch.testing.assert_close(trains.count_correlation(z, 10.0), expected, atol=1e-5, rtol=1e-5)
    assert float(expected[0, 1]) == pytest.approx(1.0)


def test_times_and_intervals() -> None:
    z = torch.zeros(6, 2, 2)
    z[1, 0, 1] = z[5, 0, 1] = z[0, 1, 0] = 1
    assert [t.tolist() for t in trains.spike_times(z, dt=0.5)] == [[], [0.5, 2.5], [0.0], []]
    assert [t.tolist() for t in trains.interspike_intervals(z, dt=0.5)] == [[], [2.0], [], []]


@settings(max_examples=40, deadline=None)
@given(a=times, b=times, tau=st.floats(1, 100))
def test_van_rossum_is_the_integral(a: list[float], b: list[float], tau: float) -> None:
    def kernel(x: list[float], y: list[float]) -> float:
        return sum(math.exp(-abs(s - t) / tau) for s in x for t in y)

    squared = kernel(a, a) + kernel(b, b) - 2 * kernel(a, b)
    found = float(trains.van_rossum_distance([a], [b], tau=tau))
    assert found**2 == pytest.approx(squared, abs=1e-9)


def test_van_rossum_against_its_definition_on_a_fine_grid() -> None:
    a, b, tau, dt = [3.0, 17.0, 41.0], [5.0, 40.0], 10.0, 0.001
    clock = np.arange(0, 250, dt)

    def filtered(x: list[float]) -> np.ndarray:
        return sum(np.where(clock >= t, np.exp(-(clock - t) / tau), 0.0) for t in x)

    integral = 2 / tau * ((filtered(a) - filtered(b)) ** 2).sum() * dt
    assert float(trains.van_rossum_distance([a], [b], tau=tau)) ** 2 == pytest.approx(integral, rel=1e-3)


def slow_victor_purpura(a: list[float], b: list[float], cost: float) -> float:
    if not a or not b:
        return float(len(a) + len(b))
    return min(
        slow_victor_purpura(a[:-1], b, cost) + 1,
        slow_victor_purpura(a, b[:-1], cost) + 1,
        slow_victor_purpura(a[:-1], b[:-1], cost) + cost * abs(a[-1] - b[-1]),
    )


@settings(max_examples=40, deadline=None)
@given(a=times.map(lambda t: t[:4]), b=times.map(lambda t: t[:4]), cost=st.floats(0, 2))
def test_victor_purpura_is_the_cheapest_edit(a: list[float], b: list[float], cost: float) -> None:
    found = float(trains.victor_purpura_distance([a], [b], cost=cost))
    assert found == pytest.approx(slow_victor_purpura(a, b, cost), abs=1e-9)


@settings(max_examples=30, deadline=None)
@given(three=st.lists(times, min_size=3, max_size=3))
def test_metric_axioms(three: list[list[float]]) -> None:
    for d in (trains.van_rossum_distance(three), trains.victor_purpura_distance(three, cost=0.05)):
        torch.testing.assert_close(d, d.T)
        assert float(d.diagonal().abs().max()) < 1e-6
        assert float(d[0, 2]) <= float(d[0, 1] + d[1, 2]) + 1e-9


def test_limits_of_victor_purpura() -> None:
    a, b = [10.0, 20.0, 30.0], [11.0, 40.0]
    assert float(trains.victor_purpura_distance([a], [b], cost=0.0)) == 1.0  # counts alone
    assert float(trains.victor_purpura_distance([a], [b], cost=1e6)) == 5.0  # no coincidence


def test_bad_input() -> None:
    with pytest.raises(RangeError, match="0 or 1"):
        trains.firing_rate(torch.rand(5, 2))
    with pytest.raises(RangeError, match="window"):
        trains.fano_factor(torch.zeros(5, 2), 9.0)
    with pytest.raises(RangeError, match="two counts"):
        trains.fano_factor(torch.zeros(5, 2), 3.0)
    with pytest.raises(ShapeError):
        trains.spike_times(torch.zeros(0, 2))
    with pytest.raises(UnknownNameError):
        trains.coefficient_of_variation(torch.zeros(5, 1), kind="cv3")
    with pytest.raises(RangeError, match="ascending"):
        trains.van_rossum_distance([[3.0, 1.0]])
    with pytest.raises(RangeError):
        trains.van_rossum_distance([[1.0]], tau=0.0)
    with pytest.raises(RangeError):
        trains.victor_purpura_distance([[1.0]], cost=-1.0)
    with pytest.raises(ShapeError, match="series of times"):
        trains.victor_purpura_distance([[[1.0], [2.0]]])
