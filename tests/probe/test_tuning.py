"""Tuning tools against curves whose preference, shift and correlation are known."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from plexus.errors import RangeError, ShapeError
from plexus.probe import (
    adaptation_report,
    circular_difference,
    mean_correlation,
    mean_rates,
    preferred_stimulus,
    rate_spread,
    stimulus_correlation,
)

GRID = torch.arange(360, dtype=torch.float64) * math.pi / 360


def bumps(centres: torch.Tensor, kappa: float = 2.0, period: float = math.pi) -> torch.Tensor:
    return torch.exp(kappa * (torch.cos(2 * math.pi * (GRID[:, None] - centres) / period) - 1))


@settings(deadline=None, max_examples=30)
@given(centre=st.floats(0, 3.14), kappa=st.floats(0.3, 8), scale=st.floats(0.01, 100), base=st.floats(-5, 5))
def test_preference_is_found_below_the_grid_whatever_scale_and_baseline(centre, kappa, scale, base):
    centres = torch.tensor([centre], dtype=torch.float64)
    found = preferred_stimulus(scale * bumps(centres, kappa) + base, GRID)
    assert float(circular_difference(found, centres).abs()) < 1e-6


def test_preference_of_a_flat_curve_is_nan():
    assert preferred_stimulus(torch.ones(360, 1), GRID).isnan().all()


@settings(deadline=None, max_examples=30)
@given(a=st.floats(-20, 20), b=st.floats(-20, 20))
def test_circular_difference_is_the_shortest_way(a, b):
    d = float(circular_difference(torch.tensor(a, dtype=torch.float64), b))
    assert -math.pi / 2 <= d <= math.pi / 2
    assert abs(math.sin(a - b - d)) < 1e-9  # equal modulo π


def test_correlation_equals_numpy_with_repeated_stimuli():
    table = torch.rand(4, 3, dtype=torch.float64)
    counts = [1, 4, 2, 3]
    repeated = np.corrcoef(np.repeat(table.numpy(), counts, axis=0).T)
    prob = torch.tensor(counts, dtype=torch.float64) / 10
    np.testing.assert_allclose(stimulus_correlation(table, prob).numpy(), repeated, atol=1e-12)
    off = repeated[~np.eye(3, dtype=bool)]
    assert mean_correlation(table, prob) == pytest.approx(np.abs(off).mean())


def test_rates_and_spread_weigh_by_probability():
    table = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    prob = torch.tensor([0.75, 0.25])
    assert mean_rates(table, prob).tolist() == [0.75, 0.25]
    assert rate_spread(table, prob) == pytest.approx(3.0)
    assert rate_spread(table) == pytest.approx(1.0)


def test_report_signs_repulsion_away_from_the_adapter_across_the_wrap():
    centres = torch.tensor([0.2, math.pi - 0.2, 0.2], dtype=torch.float64)
    moved = torch.tensor([0.3, math.pi - 0.3, 0.1], dtype=torch.float64)
    report = adaptation_report(bumps(centres), 0.5 * bumps(moved), GRID, adapter=0.0)
    torch.testing.assert_close(report.shift, torch.tensor([0.1, 0.1, -0.1], dtype=torch.float64), atol=1e-6, rtol=0)
    torch.testing.assert_close(report.max_ratio, torch.full((3,), 0.5, dtype=torch.float64), atol=2e-3, rtol=0)
    assert report.repulsion(0.1, 0.3) == pytest.approx(0.1 / 3, abs=1e-6)


def test_report_of_no_change_is_no_change():
    curves = bumps(torch.linspace(0, 3, 7, dtype=torch.float64)) + 0.1
    report = adaptation_report(curves, curves, GRID, adapter=1.0)
    assert torch.equal(report.shift, torch.zeros(7, dtype=torch.float64))
    assert torch.equal(report.rate_ratio, torch.ones(7, dtype=torch.float64))
    assert report.spread[0] == report.spread[1]
    assert report.nearest == 2


@pytest.mark.parametrize(
    ("error", "call"),
    [
        (ShapeError, lambda: preferred_stimulus(torch.ones(5, 2), torch.ones(4))),
        (ShapeError, lambda: adaptation_report(torch.ones(5, 2), torch.ones(5, 3), torch.ones(5), 0.0)),
        (RangeError, lambda: adaptation_report(torch.ones(5, 2), torch.ones(5, 2) * torch.nan, torch.ones(5), 0.0)),
        (ShapeError, lambda: mean_rates(torch.ones(5, 2), torch.ones(4) / 4)),
        (RangeError, lambda: mean_rates(torch.ones(5, 2), torch.ones(5))),
        (RangeError, lambda: adaptation_report(bumps(GRID[:4]), bumps(GRID[:4]), GRID, 0.0).repulsion(1.0, 1.2)),
    ],
)
def test_bad_input(error, call):
    with pytest.raises(error):
        call()
