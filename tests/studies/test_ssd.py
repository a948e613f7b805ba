"""The study of selective synaptic dampening: what its requests ask, and that its trials agree with each other."""

from __future__ import annotations

import copy
import math

import pytest
import torch

from plexus.lab import Study
from plexus.lab._verdict import judge
from plexus.studies.unlearning._requests import drawn_again, images, texts
from plexus.studies.unlearning._settings import GRID, NULLS, REQUESTS, TUNED
from plexus.studies.unlearning.ssd import SelectiveSynapticDampening

study: Study = SelectiveSynapticDampening()
SMOKE = SelectiveSynapticDampening.configure("smoke")


@pytest.fixture(scope="module")
def prepared():
    return study.prepare(SMOKE, 3)


def trial(prepared, arm: str):
    config = study.configure("smoke", study.arm(arm).overrides)
    return study.run(config, copy.deepcopy(prepared), 3).metrics


@pytest.fixture(scope="module")
def found(prepared):
    """What every arm measured of one seed."""
    return {arm.name: trial(prepared, arm.name) for arm in study.arms}


def test_requests_ask_for_what_they_say(prepared) -> None:
    assert set(prepared) == set(REQUESTS)
    assert bool((prepared["class"].away.y == 3).all())
    assert not bool((prepared["class"].kept.y == 3).any())
    assert bool((prepared["class"].asked.y == 3).all())
    assert not bool((prepared["class"].unseen.y == 3).any())
    half = prepared["subclass"]
    assert bool((half.away.y == 4).all())
    assert bool((half.kept.y == 4).any())
    assert len(half.asked) + len(half.unseen) == len(prepared["random"].unseen)
    assert len(prepared["random"].away) == round(SMOKE.random_share * SMOKE.train)
    for request in prepared.values():
        seen = {tuple(row.flatten().tolist()) for row in request.kept.x}
        assert not any(tuple(row.flatten().tolist()) in seen for row in request.away.x)


def test_tuning_keeps_the_test_images_out() -> None:
    everything = study.configure("full")
    tuning = study.configure("full", {"tuning": True})
    _, test = images(everything, 5)
    kept = {tuple(row.flatten().tolist()) for part in images(tuning, 5) for row in part.x}
    inside = sum(tuple(row.flatten().tolist()) in kept for row in test.x)
    assert inside <= 2  # a digit or two stands twice in the data
    assert texts(tuning, 5)[1].x.flatten().tolist() != texts(everything, 5)[1].x.flatten().tolist()


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def rows(data) -> list[bytes]:
    return [row.numpy().tobytes() for row in data.x]


def test_test_items_are_drawn_again_for_every_seed(prepared) -> None:
    _, test = images(SMOKE, 3)
    _, novel, _ = texts(SMOKE, 3)
    for name, request in prepared.items():
        source = set(rows(novel if name == "document" else test))
        drawn = rows(request.unseen)
        assert set(drawn) <= source
        if name != "document":
            assert len(set(drawn)) < len(drawn)
        if name in ("class", "subclass"):
            assert set(rows(request.asked)) <= source
            assert not set(rows(request.asked)) & set(drawn)
            assert len(request.asked) + len(drawn) == len(test)
    assert not torch.equal(drawn_again(test, generator(1)).x, drawn_again(test, generator(2)).x)
    assert torch.equal(drawn_again(test, generator(1)).x, drawn_again(test, generator(1)).x)


def test_every_tuned_setting_lies_in_its_grid() -> None:
    assert set(TUNED) == set(GRID)
    for grid, chosen in TUNED.items():
        assert len(GRID[grid]) == 6
        assert all(0 <= index < 6 for index in chosen)


def test_the_budget_counts_what_was_tried_for_an_arm_itself() -> None:
    tuning = study.tune(study.configure("full"))
    assert tuning.chosen == {}
    tried = {name for name, count in tuning.budget.items() if count}
    assert tried == {"ssd", "ssd-budget", *(arm.name for arm in study.arms if arm.role == "baseline")}
    assert {tuning.budget[name] for name in tried} == {6}
    assert {name for name, count in tuning.budget.items() if not count} == {"ssd-sample", *NULLS}


def test_trials_agree(prepared, found) -> None:
    ssd, null, retrained = (found[arm] for arm in ("ssd", "random-layer", "retrained"))
    assert all(math.isfinite(value) for metrics in found.values() for value in metrics.values())
    assert ssd["undo_errors"] == 0
    assert ssd["changed_weights"] > 0
    assert ssd["class_dampened"] == null["class_dampened"]
    assert all(retrained[f"{name}_gap"] == 0 for name in REQUESTS)
    assert retrained["class_forget"] <= 5
    assert ssd["class_seconds_with_importances"] > ssd["class_seconds"]
    assert retrained["class_seconds_with_importances"] == retrained["class_seconds"]
    again = trial(prepared, "ssd")
    timeless = [key for key in ssd if "_seconds" not in key]
    assert {key: again[key] for key in timeless} == {key: ssd[key] for key in timeless}


def test_every_check_can_be_asked(found) -> None:
    for check in study.checks:
        assert math.isfinite(check.quantity(found))


def test_a_method_that_forgets_nothing_fails() -> None:
    """Dampening that changes nothing passes neither question, whatever its rivals do."""
    idle = {"forget": 98.0, "retain": 97.0, "gap": 98.0, "membership": 82.0, "seconds": 0.01}
    done = {"forget": 0.0, "retain": 97.0, "gap": 0.0, "membership": 82.0, "seconds": 5.0}
    every = {arm.name: {f"{name}_{k}": v for name in REQUESTS for k, v in idle.items()} for arm in study.arms}
    every["retrained"] = {f"{name}_{key}": value for name in REQUESTS for key, value in done.items()}
    for metrics in every.values():
        metrics |= {"accuracy": 98.0, "undo_errors": 0.0, "changed_weights": 0.0}
    judged = judge(SelectiveSynapticDampening, [every] * 10)
    passed = {judgement.check.name for judgement in judged.checks if judgement.passed}
    assert not any("points closer to retraining than the" in name for name in passed)
    assert not any("slack" in name or "weights that dampening changed" in name for name in passed)
    assert {verdict.word for verdict in judged.verdicts.values()} == {"undecided"}
