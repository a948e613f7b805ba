"""The study of selective synaptic dampening: what its requests ask, and that its trials agree with each other."""

from __future__ import annotations

import copy
import math

import pytest

from plexus.lab import Study
from plexus.studies.unlearning.ssd import GRID, REQUESTS, TUNED, SelectiveSynapticDampening

study: Study = SelectiveSynapticDampening()
SMOKE = SelectiveSynapticDampening.configure("smoke")


@pytest.fixture(scope="module")
def prepared():
    return study.prepare(SMOKE, 3)


def trial(prepared, arm: str):
    config = study.configure("smoke", study.arm(arm).overrides)
    return study.run(config, copy.deepcopy(prepared), 3).metrics


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
    assert len(prepared["random"].away) == round(SMOKE.random_share * 200)
    for request in prepared.values():
        seen = {tuple(row.flatten().tolist()) for row in request.kept.x}
        assert not any(tuple(row.flatten().tolist()) in seen for row in request.away.x)


def test_tuning_keeps_the_test_images_out() -> None:
    everything = study.configure("full")
    tuning = study.configure("full", {"tuning": True})
    _, test = study.images(everything, 5)
    kept = {tuple(row.flatten().tolist()) for part in study.images(tuning, 5) for row in part.x}
    inside = sum(tuple(row.flatten().tolist()) in kept for row in test.x)
    assert inside <= 2  # a digit or two stands twice in the data
    assert study.text(tuning, 5)[1].x.flatten().tolist() != study.text(everything, 5)[1].x.flatten().tolist()


def test_every_tuned_setting_lies_in_its_grid() -> None:
    assert set(TUNED) == set(GRID)
    for grid, chosen in TUNED.items():
        assert len(GRID[grid]) == 6
        assert all(0 <= index < 6 for index in chosen)


def test_trials_agree(prepared) -> None:
    original, ssd, null = (trial(prepared, arm) for arm in ("original", "ssd", "random-layer"))
    retrained = trial(prepared, "retrained")
    assert all(math.isfinite(value) for found in (original, ssd, null, retrained) for value in found.values())
    assert ssd["undo_errors"] == 0
    assert ssd["class_dampened"] == null["class_dampened"]
    assert all(retrained[f"{name}_gap"] == 0 for name in REQUESTS)
    assert retrained["class_forget"] <= 5
    again = trial(prepared, "ssd")
    timeless = [key for key in ssd if not key.endswith("seconds")]
    assert {key: again[key] for key in timeless} == {key: ssd[key] for key in timeless}


def test_every_check_can_be_asked(prepared) -> None:
    found = {arm.name: trial(prepared, arm.name) for arm in study.arms}
    for check in study.checks:
        assert math.isfinite(check.quantity(found))
