"""The studies of meta neurons: what the tasks hold and do not hold, what arms share, and that a check can fail."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from plexus.errors import FormatError
from plexus.lab import Outcome, Results
from plexus.nn import MetaNeuron, intrinsic_parameters
from plexus.studies.spiking import _meta_neurons as tools
from plexus.studies.spiking.meta_neuron_lzc import (
    MetaNeuronLZC,
    MetaNeuronLZCAudio,
    over_ablation_and_null,
    same,
    trained,
)

STUDY = MetaNeuronLZC
SEED = 900_050


@pytest.fixture(scope="module")
def prepared() -> dict[str, tools.Task]:
    return STUDY().prepare(STUDY.configure("smoke"), SEED)


@pytest.fixture(scope="module")
def outcomes(prepared: dict[str, tools.Task]) -> dict[str, Outcome]:
    return {arm.name: STUDY().run(STUDY.configure("smoke", arm.overrides), prepared, SEED) for arm in STUDY.arms}


def test_every_check_and_share_has_a_number(outcomes: dict[str, Outcome]) -> None:
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


def test_a_trial_repeats_bit_for_bit(prepared: dict[str, tools.Task], outcomes: dict[str, Outcome]) -> None:
    for name in ("stochastic learned", "stochastic learned tempotron", "stochastic learned STDP"):
        config = STUDY.configure("smoke", STUDY.arm(name).overrides)
        assert STUDY().run(config, prepared, SEED).metrics == outcomes[name].metrics


def test_fixed_arms_move_no_number_and_learned_ones_do(outcomes: dict[str, Outcome]) -> None:
    for name, outcome in outcomes.items():
        moved = outcome.metrics.get("rate moved")
        if "fixed" in name:
            assert moved == pytest.approx(0, abs=1e-6), name
        elif "learned" in name and "tempotron" not in name:
            assert moved > 0, name


def test_arms_of_a_seed_start_from_the_same_weights() -> None:
    nets = [tools.network("LIF", learn, 5, 4, 20.0, SEED, drawn) for learn, drawn in ((0, 0), (1, 0), (0, 1))]
    for net in nets[1:]:
        assert torch.equal(net[0].weight, nets[0][0].weight)
        assert torch.equal(net[2].weight, nets[0][2].weight)
    assert not list(intrinsic_parameters(nets[0]))
    assert len(list(intrinsic_parameters(nets[1]))) == 8
    assert not list(intrinsic_parameters(nets[2]))  # drawn, and stay
    drawn = nets[2][1]
    assert isinstance(drawn, MetaNeuron)
    assert 7.4 < drawn.tau_mem.min() < drawn.tau_mem.max() < 80.1


class TestTasks:
    def rng(self) -> torch.Generator:
        return torch.Generator().manual_seed(0)

    def test_rates_are_as_said(self) -> None:
        data = tools.rates(200, 16, 200, self.rng())
        for label, hertz in ((0, 20.0), (1, 26.0)):
            wanted = 1 - np.exp(-hertz * tools.DT / 1000)  # at most one spike in a step
            assert data.x[data.y == label].mean().item() == pytest.approx(wanted, rel=0.02)

    def test_structured_trains_have_the_counts_of_their_shuffles(self) -> None:
        data = tools.structure(400, 16, 200, self.rng())
        counts = data.x.sum((1, 2))
        spread = counts.std() * (2 / 200) ** 0.5
        assert abs(counts[data.y == 0].mean() - counts[data.y == 1].mean()) < 4 * spread
        repeats = (data.x[..., 40:] == data.x[..., :-40]).float().mean((1, 2))
        assert repeats[data.y == 0].min() > 0.93
        assert repeats[data.y == 1].max() < 0.9

    def test_regular_trains_have_the_rate_of_random_ones_and_half_their_variation(self) -> None:
        data = tools.regularity(200, 16, 400, self.rng())
        cv = tools.variation(data.x)[:, -1]
        random, regular = data.y.numpy() == 0, data.y.numpy() == 1
        assert cv[random].mean() == pytest.approx(1.0, abs=0.12)  # steps of 5 ms and a finite window cost a little
        assert cv[regular].mean() == pytest.approx(0.5, abs=0.08)
        for kind in (random, regular):
            assert data.x[kind].mean().item() == pytest.approx(25 * tools.DT / 1000, rel=0.02)

    def test_parts_share_no_image_and_the_test_is_the_same_for_all_seeds(self) -> None:
        first = tools.threes_and_eights((120, 60, 100), 400, torch.Generator().manual_seed(1))
        other = tools.threes_and_eights((120, 60, 100), 400, torch.Generator().manual_seed(2))
        assert torch.equal(first.test.y, other.test.y)
        assert not torch.equal(first.train.y, other.train.y)
        known = tools.digits()
        rows = known.x[(known.y == 3) | (known.y == 8)].flatten(1)

        def images(part: tools.Spikes) -> set[int]:
            """The image nearest to the mean of its trains."""
            p = -torch.log1p(-part.x.mean(-1).clamp(max=0.999)) / (100 * tools.DT / 1000)
            return set(torch.cdist(p, rows).argmin(1).tolist())

        train, validation, test = map(images, (first.train, first.validation, first.test))
        assert len(train) > 110
        assert len((train | validation) & test) <= 3  # a few are told wrongly from their spikes
        assert len(train & validation) <= 3

    def test_both_classes_are_everywhere(self, prepared: dict[str, tools.Task]) -> None:
        for task in prepared.values():
            for part in (task.train, task.validation, task.test):
                assert set(part.y.tolist()) == {0, 1}


def test_no_arm_sees_the_test_part(prepared: dict[str, tools.Task]) -> None:
    task = prepared["rate"]
    blind = tools.Task(task.train, task.validation, tools.Spikes(1 - task.test.x, 1 - task.test.y))
    for rule in ("backprop", "tempotron", "STDP"):
        config = replace(STUDY.configure("smoke"), rule=rule, learn=True)
        emitted = [trained(config, 0, each, SEED).emit(task.train.x) for each in (task, blind)]
        assert torch.equal(*emitted)


def test_variation_of_intervals_in_closed_form() -> None:
    x = torch.zeros(1, 3, 60)
    x[0, 0, ::6] = 1  # regular
    x[0, 1, [0, 2, 8, 10, 16, 18]] = 1  # intervals 2, 6, 2, 6, 2
    x[0, 2, 5] = 1  # none
    irregular = np.std([2, 6, 2, 6, 2]) / np.mean([2, 6, 2, 6, 2])
    np.testing.assert_allclose(tools.variation(x)[0], [0.0, irregular, 0.0, irregular / 3], atol=1e-12)


def test_the_primary_check_fails_for_a_null_that_does_as_well() -> None:
    metrics = {"LIF learned": {"rate": 95.0}, "LIF fixed": {"rate": 85.0}, "LIF drawn": {"rate": 95.0}}
    assert over_ablation_and_null("rate")(metrics) == 0
    metrics["LIF drawn"]["rate"] = 70.0
    assert over_ablation_and_null("rate")(metrics) == 10


def test_tuning_finds_a_planted_best_with_equal_effort(monkeypatch: pytest.MonkeyPatch) -> None:
    from plexus.studies.spiking import meta_neuron_lzc as module

    def planted(config, index, task, seed):  # type: ignore[no-untyped-def]
        best = 10.0 if config.learn else 40.0
        score = -abs(config.tau[index] - best) - config.rate[index]
        return tools.Trained(lambda part: score if part is task.validation else 1e9, lambda x: x, 0.0, np.zeros(1))

    monkeypatch.setattr(module, "trained", planted)
    config = replace(STUDY.configure("smoke"), taus=(10.0, 20.0, 40.0), learning_rates=(0.03, 0.01))
    tuning = STUDY().tune(config)
    assert tuning.chosen["LIF fixed grid"] == {"tau": same(40.0), "rate": same(0.01)}
    assert tuning.chosen["LIF learned grid"] == {"tau": same(10.0), "rate": same(0.01)}
    assert tuning.chosen["LIF learned from grid"] == tuning.chosen["LIF fixed grid"]
    assert tuning.budget["LIF fixed grid"] == tuning.budget["LIF learned grid"] == 6


def test_audio_says_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PLEXUS_DATA", raising=False)
    assert MetaNeuronLZCAudio.name == "meta-neuron-lzc-audio"
    with pytest.raises(FormatError):
        MetaNeuronLZCAudio().prepare(MetaNeuronLZCAudio.configure("smoke"), SEED)
