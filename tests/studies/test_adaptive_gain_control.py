"""The study's own parts: what it measures, what it holds for an effect, and that each arm does what its name says."""

import dataclasses

import numpy as np
import pytest
import torch

from plexus.lab import Results
from plexus.nn import spectral_abscissa
from plexus.studies.adaptation._gain_digits import DigitBench
from plexus.studies.adaptation._gain_ring import EFFECTS, Bench, adapt_synapses, held, ring_of
from plexus.studies.adaptation.adaptive_gain_control import AdaptiveGainControl, Config

SMALL = Config(
    units=24,
    shuffles=3,
    synaptic_steps=5,
    constants=3,
    map_points=2,
    online_stimuli=200,
    digit_units=16,
    digit_steps=5,
    digit_images=100,
    tuned_on=0,
)


@pytest.fixture(scope="module")
def model():
    return AdaptiveGainControl().prepare(SMALL, 0)


@pytest.fixture(scope="module")
def outcomes(model):
    study = AdaptiveGainControl()
    return {arm.name: study.run(dataclasses.replace(SMALL, **arm.overrides), model, 0) for arm in study.arms}


def test_every_quantity_and_share_is_a_finite_number(outcomes):
    metrics = {arm: outcome.metrics for arm, outcome in outcomes.items()}
    for check in AdaptiveGainControl.checks:
        assert np.isfinite(check.quantity(metrics)), check.name
    for name, quantity in AdaptiveGainControl.shares.items():
        assert 0 <= quantity(metrics) <= 1, name
    assert all(np.isfinite(list(values.values())).all() for values in metrics.values())


def test_gains_without_recurrence_move_no_preference_and_leave_correlations(outcomes):
    alone = outcomes["no recurrence"].metrics
    assert abs(alone["repulsion"]) < 1e-9
    assert alone["correlation_adapted"] == pytest.approx(alone["correlation_biased"], abs=1e-12)
    assert outcomes["no price"].metrics["spread_fall"] == pytest.approx(0, abs=1e-12)


def test_a_common_gain_moves_no_preference_whatever_the_recurrence(outcomes):
    assert abs(outcomes["uniform"].metrics["repulsion"]) < 1e-9
    assert outcomes["uniform"].metrics["spread_fall"] == pytest.approx(0, abs=1e-12)


def test_divisive_arm_is_as_strong_at_the_adapter_as_the_optimum(outcomes):
    assert outcomes["divisive"].metrics["max_ratio"] == pytest.approx(outcomes["gains"].metrics["max_ratio"], abs=1e-5)


def test_digit_arms_are_compared_at_equal_activity(outcomes):
    activity = [outcome.metrics["activity"] for arm, outcome in outcomes.items() if arm.startswith("digits")]
    np.testing.assert_allclose(activity, activity[0], rtol=1e-9)
    assert len(activity) == 7


def test_common_gain_of_the_digits_keeps_the_share_of_the_unadapted_activity(model, outcomes):
    bench = DigitBench(SMALL, model, 0)
    untouched = bench.activity(bench.judge, bench.one)
    assert outcomes["digits uniform"].metrics["activity"] == pytest.approx(SMALL.digit_budget * untouched)


def test_streams_are_distributions_with_the_common_class_at_its_share(model):
    bench = DigitBench(SMALL, model, 4)
    for stream in (bench.adapt, bench.judge):
        assert float(stream.biased.sum()) == pytest.approx(1)
        common = stream.biased > stream.biased.min()
        assert float(stream.biased[common].sum()) == pytest.approx(SMALL.adapter, abs=1e-6)


def test_validation_images_are_neither_adapted_to_nor_tested_on(model):
    rows = {
        name: {tuple(row.tolist()) for row in stream.target.float()}
        for name, stream in (
            ("adapt", DigitBench(SMALL, model, 0).adapt),
            ("test", DigitBench(SMALL, model, 0).judge),
            ("validate", DigitBench(SMALL, model, 0, validate=True).judge),
        )
    }
    assert not rows["adapt"] & rows["validate"]
    assert not rows["adapt"] & rows["test"]
    assert not rows["validate"] & rows["test"]


def test_adapted_synapses_lower_the_objective_and_stay_stable():
    bench = Bench(SMALL, ring_of(SMALL, 1))

    def objective(weight):
        rates = torch.linalg.solve(
            torch.eye(SMALL.units, dtype=torch.float64) - weight, (bench.before * bench.drive).T
        ).T
        error = (bench.drive - rates @ bench.reader.T).square().sum(1)
        pull = SMALL.gamma * (weight - bench.ring.weight).square().sum()
        return float(bench.biased @ (error + SMALL.alpha * rates.square().sum(1)) + pull)

    adapted = adapt_synapses(bench, bench.biased)
    assert objective(adapted) < objective(bench.ring.weight)
    assert spectral_abscissa(adapted) < 1


def test_no_effect_is_held_where_nothing_changes():
    bench = Bench(SMALL, ring_of(SMALL, 2))
    metrics, _ = bench.measure(bench.before, bench.before)
    assert set(held(metrics)) == set(EFFECTS)
    assert not any(held(metrics).values())


def test_figures_are_drawn_from_the_trials_alone(outcomes):
    pytest.importorskip("plotly")
    figures = AdaptiveGainControl().figures(Results({arm: {0: outcome} for arm, outcome in outcomes.items()}))
    assert len(figures) == 6
    assert all(len(figure.data) for figure in figures.values())


def test_a_trial_repeats_bit_for_bit(model, outcomes):
    again = AdaptiveGainControl().run(dataclasses.replace(SMALL, rule="shuffled"), model, 0)
    assert again.metrics == outcomes["shuffled"].metrics
