"""The study of superposition entropy: testbeds know the truth, measures what they count, checks can fail."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from plexus.errors import FormatError
from plexus.studies.interpretability import _superposition_counts as measure
from plexus.studies.interpretability import _superposition_networks as networks
from plexus.studies.interpretability import _superposition_toys as toys
from plexus.studies.interpretability.superposition_entropy import (
    TUNED,
    SuperpositionEntropy,
    SuperpositionEntropyMnist,
    nearer,
)

study = SuperpositionEntropy()
SMOKE = study.configure("smoke")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def prepared():
    return study.prepare(SMOKE, 3)


def test_every_arm_measures_finite_numbers_and_changes_nothing_it_is_given(prepared) -> None:
    before = prepared["toy"].rows.clone()
    found = {}
    for arm in study.arms:
        outcome = study.run(study.configure("smoke", arm.overrides), copy.deepcopy(prepared), 3)
        assert all(math.isfinite(value) for value in outcome.metrics.values()), arm.name
        found[arm.name] = outcome.metrics
    assert torch.equal(prepared["toy"].rows, before)
    for check in study.checks:
        assert math.isfinite(check.quantity(found)), check.name
    assert found["participation"]["toy_beyond"] <= 1e-6
    again = study.run(study.configure("smoke", study.arm("untied").overrides), copy.deepcopy(prepared), 3)
    assert again.metrics == found["untied"]


def test_primary_checks_fail_where_a_rival_counts_as_well() -> None:
    seed = {name: {"toy_error": 0.2} for name in ("sae", "noise", "constant", "participation", "l0", "alive")}
    assert nearer(seed, ("noise",)) == 0.0
    seed["l0"]["toy_error"] = 0.15
    primary = {check.role: check for check in study.checks if check.primary}
    seed["noise"]["toy_error"] = 0.19
    assert primary["mechanism"].quantity(seed) < primary["mechanism"].at_least
    assert primary["advantage"].quantity(seed) < primary["advantage"].at_least


def test_a_toy_model_with_room_keeps_all_features_and_the_truth_says_so() -> None:
    config = replace(SMOKE, toy_features=(5,), toy_sparsities=(0.0, 0.9), toy_steps=900)
    toy = networks.toy(config, generator(1))
    np.testing.assert_allclose(toy.facts["count"].numpy(), 5)
    np.testing.assert_allclose(toy.facts["norm"].numpy(), 5, atol=2)
    assert toy.rows.shape == (2, config.toy_rows, 5)


def test_features_that_are_not_there_are_neither_drawn_nor_counted() -> None:
    config = replace(SMOKE, toy_features=(3, 8), toy_sparsities=(0.5,), toy_steps=200)
    toy = networks.toy(config, generator())
    assert toy.facts["features"].tolist() == [3, 8]
    assert float(toy.facts["count"][0]) <= 3
    assert int(torch.linalg.matrix_rank(toy.rows[0])) <= 3  # rows are made of three directions


def test_noise_has_the_mean_and_covariance_of_the_rows_and_none_of_their_kurtosis() -> None:
    rows = (torch.rand(2, 20_000, 4, generator=generator()) < 0.05) * torch.rand(2, 20_000, 4, generator=generator(1))
    rows = rows @ torch.randn(4, 4, generator=generator(2))
    noise = measure.gaussian(rows, generator(3))
    for one, other in zip(rows, noise, strict=True):
        scale = float(one.var(0).max())
        torch.testing.assert_close(one.mean(0), other.mean(0), atol=0.05 * scale**0.5, rtol=0)
        torch.testing.assert_close(torch.cov(one.T), torch.cov(other.T), atol=0.05 * scale, rtol=0)
    np.testing.assert_allclose(measure.plain(noise)["kurtosis"], 3, atol=0.2)
    assert measure.plain(rows)["kurtosis"].min() > 6


def test_a_count_that_is_the_truth_ranks_one_and_errs_by_nothing() -> None:
    facts = {
        "norm": torch.tensor([5.0, 9.0, 6.0, 17.0]),
        "count": torch.tensor([5.0, 9.0, 6.0, 17.0]),
        "features": torch.tensor([10.0, 10.0, 20.0, 20.0]),
    }
    found = measure.on_toy(facts["count"].numpy(), facts)
    assert found["toy_rank"] == pytest.approx(1)
    assert found["toy_rank_widest"] == pytest.approx(1)
    assert found["toy_error"] == 0.0
    assert measure.on_toy(2 * facts["count"].numpy(), facts)["toy_error"] == pytest.approx(math.log(2))
    assert measure.on_toy(np.full(4, 5.0), facts)["toy_rank"] == 0.0


def test_effects_on_networks_are_read_off_the_counts_as_they_say() -> None:
    steps = torch.tensor([10.0, 100.0, 1000.0, 10_000.0], dtype=torch.float64)
    grown = {"step": steps, "train": torch.tensor([0.5, 1.0, 1.0, 1.0]), "test": torch.tensor([0.0, 0.0, 0.9, 1.0])}
    layers = {
        "wide": networks.Counted(torch.zeros(6, 1, 4), {}),
        "narrow": networks.Counted(torch.zeros(6, 1, 2), {}),
        "grokking": networks.Counted(torch.zeros(4, 1, 3), grown),
    }
    counts = {
        "parity": np.array([20.0, 15.0, 10.0, 5.0]),
        "wide": np.array([4.0, 6.0, 8.0, 4.0, 4.0, 4.0]),
        "narrow": np.array([2.0, 2.0, 2.0, 2.0, 1.0, 0.0]),
        "grokking": np.array([30.0, 30.0, 12.0, 10.0]),
    }
    found = measure.on_networks(counts, layers, (0.0, 0.3, 0.5, 0.7), (0.0, 0.1, 0.2))
    assert found["dropout_ratio"] == 0.5
    assert found["slope_wide_two"] == pytest.approx(20)
    assert found["slope_narrow_ten"] == pytest.approx(-10)
    assert found["slope_difference"] == pytest.approx(30)
    assert found["grokking_ratio"] == pytest.approx(1 / 3)
    assert found["grokking_lag"] == 0.0
    assert found["grokking_lag_random"] == pytest.approx((1 + 0 + 1) / 9)  # thirds of the span, over three places
    counts["grokking"] = np.array([30.0, 30.0, 29.0, 10.0])
    assert measure.on_networks(counts, layers, (0.0, 0.3, 0.5, 0.7), (0.0, 0.1, 0.2))["grokking_lag"] == pytest.approx(
        1 / 3
    )


def test_rows_held_out_are_not_trained_on_and_a_dead_layer_has_no_features() -> None:
    rows = torch.randn(2, 400, 4, generator=generator()).relu()
    other = rows.clone()
    other[:, -40:] = 3 * torch.randn(2, 40, 4, generator=generator(9)).relu()
    settings = {"steps": 40, "batch": 32, "rate": 3e-3, "every": 20}
    one, two = (measure.counts(part, [0.1, 0.1], 8, settings, generator()) for part in (rows, other))
    np.testing.assert_array_equal(one["in_sample"], two["in_sample"])
    assert (one["features"] != two["features"]).all()
    dead = torch.stack([rows[0], torch.zeros_like(rows[0])])
    found = measure.counts(dead, [0.1, 0.1], 8, settings, generator())
    assert found["features"][1] == 0
    assert found["features"][0] > 1
    silent = dead.clone()
    silent[1, :100] = rows[0, :100]  # active only where it is trained on
    assert measure.counts(silent, [0.1, 0.1], 8, settings, generator())["features"][1] == 0
    assert measure.plain(dead)["participation"][1] == 0
    assert (measure.counts(dead[1:], [0.1], 8, settings, generator())["features"] == 0).all()


def test_images_move_by_at_most_a_pixel() -> None:
    x = torch.rand(50, 1, 8, 8, generator=generator())
    moved = networks.shifted(x, generator(1))
    assert moved.shape == (50, 8, 8)
    padded = torch.nn.functional.pad(x, (1, 1, 1, 1))[:, 0]
    for image, out in zip(padded, moved, strict=True):
        assert any(torch.equal(image[r : r + 8, c : c + 8], out) for r in range(3) for c in range(3))


def test_attacked_networks_answer_within_their_task(prepared) -> None:
    for name, width in zip(("wide", "narrow"), SMOKE.widths, strict=True):
        layer = prepared["layers"][name]
        assert layer.rows.shape == (6, SMOKE.rows, width)
        assert set(layer.facts) == {"accuracy", "robust"}
    two, ten = prepared["layers"]["wide"].facts["accuracy"].chunk(2)
    assert float(two.min()) > 0.3  # two classes, hardly trained: about half
    assert float(ten.max()) < 0.6


def test_a_network_is_followed_over_time() -> None:
    track = networks.grokking(replace(SMOKE, grok_steps=300, grok_hidden=32), generator())
    assert torch.equal(track.facts["step"], track.facts["step"].sort()[0])
    assert float(track.facts["train"][-1]) > float(track.facts["train"][0])
    assert not torch.equal(track.rows[0], track.rows[-1])


def test_tuning_tries_the_same_penalties_for_all_and_chooses_among_them() -> None:
    tuning = study.tune(replace(SMOKE, tuning_seeds=1))
    counts = ("sae", "l0", "alive")
    assert {tuning.budget[name] for name in counts} == {len(toys.PENALTIES)}
    assert all(tuning.chosen[name]["l1"] in toys.PENALTIES for name in counts)
    assert set(study.tune(SMOKE).chosen) == set(tuning.chosen)


def test_no_penalty_chosen_lies_at_an_end_of_those_tried() -> None:
    for name in toys.COLUMNS:
        assert min(toys.PENALTIES) < TUNED[name]["l1"] < max(toys.PENALTIES), name
        assert TUNED[name]["l1"] in toys.PENALTIES


def test_the_best_constant_is_the_median_of_the_truth(monkeypatch) -> None:
    truth = torch.tensor([5.0, 7.0, 9.0])
    none = {f"{weight:g}": dict.fromkeys(toys.COLUMNS.values(), np.ones(3)) for weight in toys.PENALTIES}
    layers = networks.Counted(torch.zeros(3, 1, 1), {"count": truth})
    monkeypatch.setattr(toys, "toy_layers", lambda *_: (layers, none))
    assert toys.best(SMOKE, range(2))["constant"] == {"constant": 7.0}


def test_uses_of_a_seed_are_independent_and_repeat() -> None:
    draws = {(seed, role): torch.rand(3, generator=networks.stream(seed, role)) for seed in (0, 1) for role in "ab"}
    assert len({tuple(draw.tolist()) for draw in draws.values()}) == 4
    assert torch.equal(draws[1, "b"], torch.rand(3, generator=networks.stream(1, "b")))


def test_features_at_right_angles_are_counted_and_those_of_noise_are_not_found() -> None:
    config = replace(SMOKE, toy_rows=2000, known_features=(3, 6), toy_sae_steps=700)
    known = networks.separate(config, generator())
    for rows, count in zip(known.rows, (3, 6), strict=True):
        assert int(torch.linalg.matrix_rank(rows, atol=1e-3)) == count
    found = toys.known_layers(config, 0)
    assert found["known_error"] < 0.15
    assert found["known_gain"] > 0.2


def test_mnist_without_its_files_says_so(monkeypatch) -> None:
    monkeypatch.delenv("PLEXUS_DATA", raising=False)
    config = SuperpositionEntropyMnist.configure("full")
    assert config.images == "mnist"
    with pytest.raises(FormatError, match="PLEXUS_DATA"):
        networks.images(config, 0)
