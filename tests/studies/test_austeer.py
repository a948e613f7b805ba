"""The study of atomic steering: parts are disjoint, rivals try as many settings, and each arm changes what it says."""

from __future__ import annotations

import pytest
import torch

from plexus.studies.steering import _atoms as at
from plexus.studies.steering._quiz_bench import MAIN, TASKS, Prepared, fitted_pairs, score_of
from plexus.studies.steering.austeer import AtomicSteering, gain, rival

study = AtomicSteering()
SMOKE = AtomicSteering.configure("smoke")


@pytest.fixture(scope="module")
def prepared() -> Prepared:
    return study.prepare(AtomicSteering.configure("smoke", {"hidden": 16, "lessons": 60, "steps": 10}), 1)


@pytest.fixture(scope="module")
def found(prepared: Prepared) -> dict[str, at.Fitted]:
    return fitted_pairs(prepared, MAIN)


def setting(arm: str):
    return AtomicSteering.configure("smoke", study.arm(arm).overrides)


def test_pairs_and_questions_are_apart(prepared: Prepared) -> None:
    decode = prepared.tokenizer.batch_decode
    for task in ("yes or no", "choice"):
        texts = {part: set(decode(prepared.questions[task, part].tokens)) for part in ("validation", "test")}
        assert not texts["validation"] & texts["test"]
        assert not {f"<s> {pair.prompt}" for pair in prepared.pairs[task]} & (texts["validation"] | texts["test"])
        assert all(pair.right != pair.wrong for pair in prepared.pairs[task])
        right = [pair.right for pair in prepared.pairs[task]]
        assert 0.25 < right.count(max(set(right))) / len(right) < 0.75  # neither answer is right much more often


def test_every_method_tries_as_many_settings(found: dict[str, at.Fitted]) -> None:
    counts = {
        "austeer": len(list(at.atoms(found))),
        "caa": len(list(at.vectors(found))) * 2,  # one layer here, two at full scale
        "iti": len(list(at.heads(found, 4))),
        "sadi": len(list(at.masked(found))),
    }
    assert set(counts.values()) == {120}
    assert study.tune(SMOKE).budget["caa"] == 120


def test_edits_are_what_the_methods_say(found: dict[str, at.Fitted]) -> None:
    here = found["attention"]
    made = at.atomic(here, 4, 3.0)
    site = here.signs.beta.sites[0]
    chosen = here.signs.beta.top(4, by="abs")
    assert made.edit is not None
    assert made.edit.neurons == chosen
    step = made.edit.steps[0]
    expected = 1 + 3.0 * here.signs.beta[site][chosen.mask(site)]
    torch.testing.assert_close(step.numbers["factor"].of(site, chosen.mask(site))[chosen.mask(site)], expected)
    ranked = at.atomic(here, 4, 3.0, rank=here.mean)
    assert ranked.edit is not None
    assert ranked.edit.neurons == here.mean.top(4, by="abs")
    vector = next(at.vectors(found))
    assert vector.moved == 16
    masked = next(at.masked(found))
    assert masked.moved == 2


def test_stand_ins_make_the_same_changes_elsewhere(found: dict[str, at.Fitted]) -> None:
    made = at.atomic(found["layer"], 4, 2.0).edit
    assert made is not None
    for match in (None, found["layer"].size):
        for other in at.stand_ins(made, torch.Generator().manual_seed(0), 3, match):
            assert other.neurons.counts == made.neurons.counts
            assert not len(other.neurons & made.neurons)


def test_choosing_takes_the_best_and_counts(prepared: Prepared, found: dict[str, at.Fitted]) -> None:
    score = score_of(prepared, MAIN)
    candidates = list(at.atoms(found, ("ffn",)))
    values = [score(candidate.edit) for candidate in candidates if candidate.edit is not None]
    best, value, tried = at.best(iter(candidates), score)
    assert value == max(values)
    assert best.setting == candidates[values.index(value)].setting
    assert tried == 40


@pytest.mark.parametrize("arm", ["base", "austeer, ffn", "flipped", "random", "matched", "caa", "iti", "answer bias"])
def test_arms_measure_and_leave_no_trace(arm: str, prepared: Prepared) -> None:
    before = {name: value.clone() for name, value in prepared.model.state_dict().items()}
    metrics = study.run(setting(arm), prepared, 0).metrics
    assert all(f"{task} {name}" in metrics for task in TASKS for name in ("accuracy", "others", "divergence"))
    assert all(torch.equal(value, before[name]) for name, value in prepared.model.state_dict().items())
    if arm == "base":
        assert metrics[f"{MAIN} divergence"] == 0.0
    if arm == "austeer, ffn":
        assert metrics["folded"] < 1e-5


def test_the_checks_read_the_right_arms() -> None:
    seed = {
        "base": {f"{MAIN} accuracy": 50.0},
        "austeer": {f"{MAIN} accuracy": 70.0},
        **{
            arm: {f"{MAIN} accuracy": 50.0 + i, f"{MAIN} validation": value}
            for i, (arm, value) in enumerate({"caa": 60.0, "iti": 80.0, "sadi": 70.0}.items())
        },
    }
    assert rival(seed) == "iti"  # by validation, not by test accuracy
    assert gain(seed, "austeer") == 20.0
    assert gain(seed, "iti") == 1.0
