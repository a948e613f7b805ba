"""The study of E-I adaptive reservoirs at its smallest: every arm, its null, what homeostasis may see, its figures."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from plexus.data import Series
from plexus.lab import Outcome, Results
from plexus.studies.reservoirs._adaptive_measures import TASKS, fitted
from plexus.studies.reservoirs.ei_adaptive_reservoir import (
    BALANCES,
    TUNED,
    EIAdaptiveReservoir,
    build,
    gain_over,
    same,
)

STUDY = EIAdaptiveReservoir
SEED = 900_050


@pytest.fixture(scope="module")
def prepared() -> list[Series]:
    return STUDY().prepare(STUDY.configure("smoke"), SEED)


@pytest.fixture(scope="module")
def outcomes(prepared: list[Series]) -> dict[str, Outcome]:
    tuning = STUDY().tune(STUDY.configure("smoke"))
    return {
        arm.name: STUDY().run(
            STUDY.configure("smoke", arm.overrides, tuning.chosen.get(arm.name, {})), list(prepared), SEED
        )
        for arm in STUDY.arms
    }


def test_every_arm_measures_every_task(outcomes: dict[str, Outcome]) -> None:
    for name, outcome in outcomes.items():
        assert np.isfinite(list(outcome.metrics.values())).all(), name
        if name != "grid":
            assert set(TASKS) | {f"{task} validation" for task in TASKS} <= set(outcome.metrics)


def test_every_check_has_a_number(outcomes: dict[str, Outcome]) -> None:
    metrics = {name: outcome.metrics for name, outcome in outcomes.items()}
    for check in STUDY.checks:
        assert np.isfinite(check.quantity(metrics)), check.name
    for effect, share in STUDY.shares.items():
        assert 0 <= share(metrics) <= 1, effect


def test_figures_are_drawn(outcomes: dict[str, Outcome]) -> None:
    pytest.importorskip("plotly")
    results = Results({name: {SEED: outcome} for name, outcome in outcomes.items()})
    for title, figure in STUDY().figures(results).items():
        assert len(figure.data) > 0, title
        assert figure.to_json()


def test_a_trial_repeats_bit_for_bit(prepared: list[Series], outcomes: dict[str, Outcome]) -> None:
    config = STUDY.configure("smoke", STUDY.arm("adaptive mixed").overrides)
    assert STUDY().run(config, prepared, SEED).metrics == outcomes["adaptive mixed"].metrics


def test_the_best_balance_is_one_of_the_seven(outcomes: dict[str, Outcome]) -> None:
    best = outcomes["best balance"].metrics
    for task in TASKS:
        chosen = best[f"{task} balance"]
        assert best[task] == outcomes[f"balance {chosen:+g}"].metrics[task]
        validations = [outcomes[f"balance {b:+g}"].metrics[f"{task} validation"] for b in BALANCES]
        assert best[f"{task} validation"] == min(validations)


@pytest.mark.parametrize("method", ["adaptive", "one step", "shuffled", "excitatory", "wrong input"])
def test_homeostasis_never_sees_the_test_part(prepared: list[Series], method: str) -> None:
    config = replace(STUDY.configure("smoke"), method=method)
    for task, series in enumerate(prepared):
        u = series.u.clone()
        u[fitted(series) :] = 7.0
        ours, _ = build(config, task, series, SEED)
        other, _ = build(config, task, Series(u, series.y), SEED)
        assert torch.equal(ours.weight, other.weight)


def test_arms_and_tasks_of_a_seed_share_one_recurrent_network(prepared: list[Series]) -> None:
    config = STUDY.configure("smoke")
    first = build(config, 0, prepared[0], SEED)[0]
    for task in (1, 3, 4):
        assert torch.equal(build(config, task, prepared[task], SEED)[0].weight, first.weight)
    adapted = build(replace(config, method="adaptive"), 0, prepared[0], SEED)[0]
    excited = first.signs > 0
    assert torch.equal(adapted.weight[:, excited], first.weight[:, excited])
    assert torch.equal(adapted.input_weight, first.input_weight)
    assert not torch.equal(build(config, 0, prepared[0], SEED + 1)[0].weight, first.weight)


def test_the_null_moves_the_same_factors_to_other_units(prepared: list[Series]) -> None:
    config = STUDY.configure("smoke")
    plain = build(config, 0, prepared[0], SEED)[0].weight.clamp(max=0).sum(1)
    factors = {
        method: build(replace(config, method=method), 0, prepared[0], SEED)[0].weight.clamp(max=0).sum(1) / plain
        for method in ("adaptive", "shuffled")
    }
    torch.testing.assert_close(factors["adaptive"].sort().values, factors["shuffled"].sort().values)
    assert not torch.allclose(factors["adaptive"], factors["shuffled"])


def test_gain_over_the_better_rival_of_each_task() -> None:
    metrics = {
        "mine": dict.fromkeys(TASKS, 2.0),
        "tuned balance": dict.fromkeys(TASKS, 4.0) | {f"{task} validation": 1.0 for task in TASKS},
        "tuned tanh": dict.fromkeys(TASKS, 8.0) | {f"{task} validation": 2.0 for task in TASKS},
    }
    assert gain_over(metrics, "mine", TUNED) == pytest.approx((2.0**4 / 2.0) ** 0.2)  # errors halve, memory halves
    metrics["tuned tanh"]["narma validation"] = 0.5
    assert gain_over(metrics, "mine", TUNED) == pytest.approx((2.0**3 * 4.0 / 2.0) ** 0.2)


def test_tuned_arms_have_equal_budgets() -> None:
    config = STUDY.configure("full")
    pairs = len(config.gains) * len(config.input_scales)
    assert pairs * len(config.balances) == pairs * len(config.targets)
    assert pairs * len(config.targets) == len(config.radii) * len(config.input_scales) * len(config.bias_scales)


def test_tuning_finds_a_planted_best(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a known error surface tuning returns its minimum for each arm and task."""
    from plexus.studies.reservoirs import ei_adaptive_reservoir as module

    def planted(reservoir, series):  # type: ignore[no-untyped-def]
        return 1.0 + abs(float(reservoir.input_weight.abs().max()) - 0.3)

    monkeypatch.setattr(module, "validation_error", planted)
    config = replace(STUDY.configure("smoke"), input_scales=(0.1, 0.3, 1.0))
    tuning = STUDY().tune(config)
    assert all(chosen["input_scale"] == same(0.3) for chosen in tuning.chosen.values())
    assert set(tuning.budget) == {"tuned balance", "tuned tanh", "tuned adaptive"}
