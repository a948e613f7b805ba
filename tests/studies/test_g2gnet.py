"""The study of group-to-group wiring: arms differ in what they say, parts are disjoint, and it can fail."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from plexus.edit.rewire import SparseTraining, mask_, masks, modularity, random_wiring, wirings
from plexus.errors import FormatError
from plexus.lab import Results
from plexus.nn import project_after_step
from plexus.nn.models import G2GMLP, existing_weights
from plexus.studies.sparsity._ensembles import (
    LAYERS,
    Config,
    Task,
    batches,
    generator,
    matched_width,
    measure,
    network,
    planted,
    tasks,
    train_together,
    trained,
)
from plexus.studies.sparsity._published import PublishedRewiring
from plexus.studies.sparsity.g2gnet import BEYOND, RATES, STATIC, G2GNet, G2GNetFashion, best_rate, rival

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


def test_the_planted_class_is_told_by_whole_groups_and_not_by_means() -> None:
    task = planted(FULL, 0)
    assert (len(task.train), len(task.validation), len(task.test), task.sizes) == (1000, 200, 2000, (100, 300, 1000))
    counts = task.test.y.bincount(minlength=8)
    assert counts.min() > 0.7 * counts.max()

    for label in range(8):
        mine = task.test.x[task.test.y == label]
        assert mine.mean(0).abs().max() < 5 * mine.std() / len(mine) ** 0.5  # no input differs in its mean

    def told(order: torch.Tensor) -> float:
        """Accuracy of the best sums of products of two inputs of one group, groups being of the inputs in an order."""

        def pairs(rows: torch.Tensor) -> torch.Tensor:
            groups = rows[:, order].view(-1, 8, 8)
            products = torch.einsum("sgi,sgj->sgij", groups, groups).flatten(1)
            return torch.cat([products, torch.ones(len(rows), 1)], 1).double()

        known, wanted = pairs(task.train.x), torch.nn.functional.one_hot(task.train.y).double()
        found = torch.linalg.solve(known.T @ known + 1000 * torch.eye(known.shape[1]), known.T @ wanted)
        return 100 * float(((pairs(task.test.x) @ found).argmax(1) == task.test.y).double().mean())

    whole, strangers = told(torch.arange(64)), told(torch.randperm(64, generator=generator(0, 0)))
    assert whole > 95
    assert 100 - strangers > 2 * (100 - whole)  # groups of inputs that do not belong together: twice the errors


@pytest.mark.parametrize("arm", ["dense", "mixer"])
def test_networks_trained_together_are_those_trained_alone(arm: str) -> None:
    task = tasks(SMALL, 0)["digits"]
    config = setting(arm, replace(SMALL, lr=1e-2))
    parts = [task.train[:30], task.train[30:80]]
    alone, both = ([network(config, 64, 10, generator(seed, 5)) for seed in (0, 1)] for _ in range(2))
    train_together(config, both, parts, [generator(seed, 6) for seed in (0, 1)])
    for seed, (model, part) in enumerate(zip(alone, parts, strict=True)):
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
        if masks(model):
            project_after_step(optimizer, model)
        for rows in batches(config, len(part), generator(seed, 6)):
            assert len(rows) == config.batch
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(part.x[rows]), part.y[rows]).backward()
            optimizer.step()
        for mine, theirs in zip(both[seed].parameters(), model.parameters(), strict=True):
            assert torch.allclose(mine, theirs, atol=1e-4)
        assert all(not layer.weight[~layer.weight_mask].any() for layer in both[seed] if hasattr(layer, "weight_mask"))


def test_sizes_and_seeds_do_not_change_each_other() -> None:
    config = setting("mixer")
    first, second = (tasks(config, seed)["digits"] for seed in (0, 1))
    wide = Task(first.train, first.validation, first.test, (20, 80))
    (alone,) = trained(config, 0, {0: first})
    for beside in (trained(config, 0, {0: wide})[1], trained(config, 0, {1: second, 0: first})[1]):
        for mine, theirs in zip(beside.model.parameters(), alone.model.parameters(), strict=True):
            assert torch.allclose(mine, theirs, atol=1e-4)


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
    assert found["mixer 0"]["multiply-adds"] == found["isolated"]["multiply-adds"]  # mixing is asked at equal size
    for metrics in found.values():
        assert metrics["multiply-adds"] == sum(metrics[f"multiply-adds, {layer}"] for layer in LAYERS)
        assert metrics["multiply-adds"] == metrics["weights"] - metrics["weights lost"]
    assert found["dense"]["multiply-adds"] == found["mixer"]["multiply-adds, dense kernels"] == 32 * (64 + 64 + 10)


def test_each_static_arm_is_held_against_dense_by_itself() -> None:
    seed = {arm: {"accuracy": 90.0 + place} for place, arm in enumerate(("dense", *STATIC))}
    asked = [check for check in G2GNet.checks if check.name.endswith("less dense of the same width")]
    assert [(check.at_least, check.quantity(seed)) for check in asked] == [(-0.7, 1.0 + i) for i in range(4)]


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


def test_every_arm_is_tuned_with_the_same_effort(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[tuple[str, str], set[float]] = {}

    def score(config: Config, prepared: object, planted: bool = False) -> float:
        key = (f"{config.wired} {config.p_inter} {config.prune}/{config.grow} {config.centered}", f"{planted}")
        asked.setdefault(key, set()).add(config.lr)
        return -abs(config.lr - 1e-2)

    monkeypatch.setattr("plexus.studies.sparsity.g2gnet.validation", score)
    tuned = G2GNet().tune(replace(SMALL, tuning_seeds=1))
    assert set(tuned.budget) == {arm.name for arm in G2GNet.arms}
    assert set(tuned.budget.values()) == {len(RATES)}
    assert all(rates == set(RATES) for rates in asked.values())
    planted_too = {name for name, found in tuned.chosen.items() if "planted_lr" in found}
    assert planted_too == {"dense matched", "unstructured", "mixer"}


def test_a_rate_at_the_end_of_the_grid_is_followed_further() -> None:
    assert best_rate(lambda rate: -rate) == (BEYOND[0], len(RATES) + 4)
    assert best_rate(lambda rate: rate) == (BEYOND[-1], len(RATES) + 2)
    assert best_rate(lambda rate: float(rate == 1e-1)) == (1e-1, len(RATES) + 1)  # shown to be worse beyond


def test_tuning_reads_validation_samples_only() -> None:
    config = replace(SMALL, tuning_seeds=1, steps=2)
    study = G2GNet()
    study.prepare = (
        lambda config, seed: {  # type: ignore[method-assign]
            name: Task(task.train, task.validation, task.test[:0], task.sizes)
            for name, task in tasks(config, seed).items()
        }
    )
    assert set(study.tune(config).chosen) == {arm.name for arm in G2GNet.arms}


def test_fashion_asks_for_its_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PLEXUS_DATA", raising=False)
    with pytest.raises(FormatError, match="fashion-mnist"):
        G2GNetFashion().prepare(G2GNetFashion.configure("full"), 0)


def test_the_figures_show_every_arm() -> None:
    pytest.importorskip("plotly")
    study, prepared = G2GNet(), tasks(SMALL, 0)
    trials = {arm.name: {0: study.run(setting(arm.name), prepared, 0)} for arm in G2GNet.arms[:6]}
    figures = study.figures(Results(trials))
    assert len(figures) == 4
    assert len(figures["Learning curves"].data) == 5
