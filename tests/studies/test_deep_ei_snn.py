"""The study of deep E-I networks: no leak between its parts, ablations remove what they say, bars can fail."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

from plexus.data import digits
from plexus.errors import FormatError
from plexus.lab import TUNING_SEEDS, Results, Study
from plexus.lab._verdict import judge
from plexus.nn import LIF, EILinear
from plexus.studies.spiking._ei_networks import Config, build, is_ei, load, over_time, train, watch
from plexus.studies.spiking.deep_ei_snn import DeepEISNN, DeepEISNNOnMNIST

study: Study = DeepEISNN()
SMOKE = DeepEISNN.configure("smoke")
METHODS = [arm.name for arm in DeepEISNN.arms]


@pytest.fixture(scope="module")
def prepared():
    return study.prepare(SMOKE, 3)


@pytest.fixture(scope="module")
def outcomes(prepared):
    return {
        arm.name: study.run(study.configure("smoke", arm.overrides), copy.deepcopy(prepared), 3) for arm in study.arms
    }


@pytest.fixture(scope="module")
def found(outcomes):
    """What every arm measured of one seed."""
    return {name: outcome.metrics for name, outcome in outcomes.items()}


@pytest.fixture(scope="module")
def start(prepared):
    return over_time(prepared["digits"].train.x, SMOKE.time)


def rows(x: torch.Tensor) -> set[bytes]:
    return {row.numpy().tobytes() for row in x}


def test_no_image_stands_on_two_sides() -> None:
    config = Config()
    _, test = digits().split(0.75, 0)
    twice = len(digits()) - len(rows(digits().x))  # a digit or two stands twice in the data itself
    for seed in (3, TUNING_SEEDS[0]):
        data = load(config, "digits", seed)
        assert (len(data.train), len(data.validation), len(data.test)) == (900, 400, 450)
        assert len(rows(data.train.x) & rows(data.validation.x)) <= twice
        assert len((rows(data.train.x) | rows(data.validation.x)) & rows(test.x)) <= twice
        assert rows(data.test.x) <= rows(test.x)
    again = load(config, "digits", 3)
    assert torch.equal(again.train.x, load(config, "digits", 3).train.x)
    assert not torch.equal(again.test.x, load(config, "digits", 4).test.x)


def test_tuning_never_looks_at_the_test_images(monkeypatch) -> None:
    seen: list[int] = []
    original = DeepEISNN._validated

    def look(self, config, data, seed):
        seen.append(seed)
        data = copy.copy(data)
        data.test = None  # what is looked at now would break
        return original(self, config, data, seed)

    monkeypatch.setattr(DeepEISNN, "_validated", look)
    tuning = study.tune(SMOKE)
    assert set(seen) <= set(TUNING_SEEDS)
    assert set(tuning.budget.values()) == {3}
    assert set(tuning.chosen) == set(METHODS)
    for arm in study.arms:
        assert tuning.chosen[arm.name]["rate"] in arm.overrides.get("rates", SMOKE.rates)


def layers(method: str, start: torch.Tensor) -> list[EILinear]:
    return [layer for layer in build(method, 4, start, 10, 16, seed=2) if isinstance(layer, EILinear)]


def test_each_ablation_removes_what_it_says(start) -> None:
    full = layers("ei", start)
    for method, attribute in (
        ("no subtraction", "subtractive"),
        ("no gradient scale", "scale_gradient"),
        ("no replacement", "replace_zeros"),
        ("no division", "divisive"),
        ("constant gain", "divisive"),
    ):
        for old, new in zip(full[:-1], layers(method, start)[:-1], strict=True):
            for name in ("subtractive", "scale_gradient", "replace_zeros", "divisive"):
                assert getattr(new, name) == (name != attribute)
                assert getattr(old, name)
    for method in ("no gradient scale", "no replacement", "free signs", "frozen"):  # these start from the same weights
        for old, new in zip(full, layers(method, start), strict=True):
            assert torch.equal(old.weight_ee, new.weight_ee)
    assert all(bool((layer.gain_e == 1).all()) for layer in layers("no division", start)[:-1])
    gain = layers("constant gain", start)[0].gain_e[0].item()
    assert gain == pytest.approx(1 / math.sqrt(float(start.flatten(0, 1).var(0).mean())), rel=1e-4)
    uniform = layers("no init", start)
    assert all(bool((p >= 0).all()) for layer in uniform for p in layer.parameters())
    assert float(uniform[0].weight_ee.detach().max()) <= 1 / 8
    frozen = build("frozen", 4, start, 10, 16, seed=2)
    assert {name.split(".")[0] for name, p in frozen.named_parameters() if p.requires_grad} == {"6"}


def test_baselines_have_no_circuit_and_the_same_neurons(start) -> None:
    for method in METHODS:
        network = build(method, 4, start, 10, 16, seed=2)
        assert sum(isinstance(layer, LIF) for layer in network) == 3
        assert any(isinstance(layer, EILinear) for layer in network) == is_ei(method)
        assert any(isinstance(layer, nn.BatchNorm1d) for layer in network) == (method == "batch norm")
    rates = watch(build("plain firing", 4, start, 10, 16, seed=2), start, torch.zeros(start.shape[1], dtype=torch.long))
    assert all(0.1 < rate < 0.3 for rate in rates["rate"])


def test_watching_changes_nothing(start, prepared) -> None:
    network = build("batch norm", 3, start, 10, 16, seed=2).eval()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    watch(network, start, prepared["digits"].train.y)
    assert not network.training
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_training_keeps_signs_unless_it_is_told_not_to(start, prepared) -> None:
    for method, breaks in (("ei", False), ("free signs", True)):
        config = Config(method=method, rate=0.1, batch=16)
        fit = train(config, build(method, 3, start, 10, 16, seed=2), prepared["digits"].train, 2, steps=8)
        assert bool(fit.broken_signs) == breaks
        assert fit.steps == 8


def test_a_loss_that_is_no_number_ends_training(start, prepared) -> None:
    network = build("ei", 3, start, 10, 16, seed=2)
    with torch.no_grad():
        network[0].bias.fill_(math.nan)
    fit = train(Config(), network, prepared["digits"].train, 2, steps=5)
    assert fit.diverged
    assert fit.steps < 5 or not math.isfinite(float(network[0].bias.detach().sum()))


def test_trials_are_finite_and_repeat(prepared, found) -> None:
    assert all(math.isfinite(value) for metrics in found.values() for value in metrics.values())
    again = study.run(study.configure("smoke", study.arm("ei").overrides), copy.deepcopy(prepared), 3).metrics
    assert again == found["ei"]
    assert "shallow accuracy" not in found["frozen"]
    for check in study.checks:
        assert math.isfinite(check.quantity(found))


def test_figures_show_every_arm(outcomes) -> None:
    pytest.importorskip("plotly")
    figures = study.figures(Results({name: {3: outcome, 4: outcome} for name, outcome in outcomes.items()}))
    assert [trace.name for trace in figures["Firing after training"].data] == METHODS
    deep = figures["Accuracy by depth"].data[-1]
    assert list(deep.x) == METHODS
    assert deep.y[METHODS.index("ei")] == pytest.approx(outcomes["ei"].metrics["deep accuracy"])


def test_a_circuit_that_is_no_better_than_its_parts_fails(found) -> None:
    even = {name: {**metrics, "deep accuracy": 90.0, "middle accuracy": 90.0} for name, metrics in found.items()}
    judged = judge(DeepEISNN, [even] * 10)
    passed = {judgement.check.name for judgement in judged.checks if judgement.passed}
    assert not any(name.startswith("8 layers: points above the") for name in passed if "scaled gradient" not in name)
    assert {verdict.word for verdict in judged.verdicts.values()}.isdisjoint({"holds here"})


def test_files_that_are_not_there_are_said_to_be_missing(monkeypatch) -> None:
    monkeypatch.delenv("PLEXUS_DATA", raising=False)
    with pytest.raises(FormatError, match="PLEXUS_DATA"):
        DeepEISNNOnMNIST().prepare(DeepEISNNOnMNIST.configure("smoke"), 0)
