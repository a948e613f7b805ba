"""The study of group-to-group wiring: arms differ in what they say, parts are disjoint, and it can fail."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from plexus.edit.rewire import SparseTraining, mask_, masks, modularity, random_wiring, wirings
from plexus.errors import FormatError
from plexus.lab import Results
from plexus.nn.models import G2GMLP, existing_weights
from plexus.studies.sparsity._ensembles import Config, generator, matched_width, measure, network, planted, tasks
from plexus.studies.sparsity._published import PublishedRewiring
from plexus.studies.sparsity.g2gnet import RATES, TUNED, G2GNet, G2GNetFashion, rival

FULL: Config = G2GNet.configure("full")
SMALL = replace(FULL, sizes=(80,), hidden=32, steps=20, every=4, tuning_seeds=0)


def setting(arm: str, base: Config = SMALL) -> Config:
    return replace(base, **G2GNet.arm(arm).overrides)


def test_parts_are_disjoint_and_drawn_again() -> None:
    task = tasks(FULL, 3)["digits"]
    assert (len(task.train), len(task.validation), len(task.test)) == (1000, 200, 597)
    rows = [row.numpy().tobytes() for part in (task.train, task.validation, task.test) for row in part.x]
    assert len(set(rows)) > 1790
    assert not torch.equal(tasks(FULL, 4)["digits"].train.x, task.train.x)


def test_sparse_arms_have_equally_many_weights_and_the_matched_one_too() -> None:
    counts = {
        arm.name: existing_weights(network(setting(arm.name, FULL), 64, 10, generator(0, 0))) for arm in G2GNet.arms
    }
    for arm in ("unstructured", "index", "random", "set/hebb", "published hebb/hebb"):
        assert counts[arm] == pytest.approx(counts["mixer"], abs=3)  # rounding, one weight per layer
    assert counts["dense matched"] == pytest.approx(counts["mixer"], rel=0.03)
    assert counts["dense"] > 3 * counts["mixer"]
    assert counts["mixer 0"] < counts["mixer 0.05"] < counts["mixer"] < counts["mixer 0.3"]
    assert matched_width(2 * 50**2 + 74 * 50, 64, 10) == 50


def test_arms_differ_only_in_their_wiring() -> None:
    models = {arm: network(setting(arm, FULL), 64, 10, generator(0, 0)) for arm in ("unstructured", "index", "mixer")}
    found = {arm: wirings(model) for arm, model in models.items()}
    groups = found["index"]["3"]
    assert modularity(groups) == pytest.approx(0.36, abs=0.02)
    assert abs(modularity(found["unstructured"]["3"].mask, groups.groups_out, groups.groups_in)) < 0.02
    assert torch.equal(groups.groups_in, torch.arange(128) // 16)
    assert torch.equal(found["mixer"]["3"].groups_in, torch.arange(128) % 8)
    x = torch.randn(200, 64, generator=generator(1, 1))
    spread = [model(x).std().item() for model in models.values()]
    assert max(spread) < 1.5 * min(spread)  # fan-in-aware first weights


def test_isolated_modules_see_one_eighth_of_the_image() -> None:
    model = G2GMLP([64, 32, 32, 10], p_inter=0.0, scheme="index", generator=generator(0, 0))
    x = torch.randn(1, 64, requires_grad=True)
    model[:4](x)[0, :4].sum().backward()
    assert not x.grad[0, 8:].any()


def test_the_planted_class_is_told_by_the_groups() -> None:
    task = planted(FULL, 0)
    counts = task.test.y.bincount(minlength=8)
    assert counts.min() > 0.5 * counts.max()
    shuffled = task.test.x.view(-1, 8, 8).flip(1)  # the same inputs with the groups' places turned
    assert not torch.equal(shuffled.flatten(1), task.test.x)


def test_every_arm_measures_what_the_checks_read() -> None:
    prepared = tasks(SMALL, 0)
    found = {arm.name: measure(setting(arm.name), prepared, 0) for arm in G2GNet.arms}
    for check in G2GNet.checks:
        assert isinstance(float(check.quantity(found)), float)
    lost = {name: metrics["weights lost"] for name, metrics in found.items()}
    assert all(lost[name] == 0 for name in lost if name != "published hebb/hebb")
    assert found["set/random"]["exchanges"] == 3  # at 4, 8 and 12 of 15 steps
    assert found["mixer"]["turnover"] == 0 < found["set/hebb"]["turnover"]
    assert found["mixer"]["digits 80"] == measure(setting("mixer"), prepared, 0)["digits 80"]


def test_the_rival_is_chosen_on_validation_samples() -> None:
    seed = {
        "unstructured": {"validation": 90.0, "accuracy": 99.0},
        "dense matched": {"validation": 91.0, "accuracy": 80.0},
    }
    assert rival(seed) == "dense matched"


def test_thresholds_cut_silent_units_off_and_exact_choice_does_not() -> None:
    edges = {}
    for kind in (SparseTraining, PublishedRewiring):
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(20, 16), torch.nn.ReLU())
        mask_(model, random_wiring(model, 0.5, generator=generator(0, 0)), initialise=True, generator=generator(0, 1))
        with torch.no_grad():
            model[0].bias[:8] = -100.0  # eight units never fire
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        with kind(model, optimizer, every=1, fraction=0.05, prune="hebbian", grow="hebbian") as sparse:
            model(torch.rand(30, 20, generator=generator(0, 2))).sum().backward()
            optimizer.step()
            sparse.step()
        edges[kind] = masks(model)["0"][:8].sum()
    assert edges[SparseTraining] == pytest.approx(80, abs=10)
    assert edges[PublishedRewiring] == 0


def test_tuning_tries_equally_many_settings_for_each_family() -> None:
    tuned = G2GNet().tune(replace(SMALL, tuning_seeds=1, steps=4))
    assert {tuned.budget[name] for name in TUNED} == {len(RATES)}
    assert sum(tuned.budget.values()) == 4 * len(RATES)
    assert set(tuned.chosen) == {arm.name for arm in G2GNet.arms}
    assert len({tuned.chosen[name]["lr"] for name in ("mixer", "index", "set/hebb")}) == 1


def test_fashion_asks_for_its_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PLEXUS_DATA", raising=False)
    with pytest.raises(FormatError, match="fashion-mnist"):
        G2GNetFashion().prepare(G2GNetFashion.configure("full"), 0)


def test_the_figures_show_every_arm() -> None:
    pytest.importorskip("plotly")
    study, prepared = G2GNet(), tasks(SMALL, 0)
    trials = {arm.name: {0: study.run(setting(arm.name), prepared, 0)} for arm in G2GNet.arms[:6]}
    figures = study.figures(Results(trials))
    assert len(figures) == 3
    assert len(figures["Learning curves"].data) == 5
