"""The lab judged by studies whose truth is known."""

from __future__ import annotations

import numpy as np

from plexus.lab._calibration import EXPECTED, calibrate
from plexus.lab._planted import BAR, KINDS, NOISE, studies
from plexus.lab._store import Store
from plexus.lab._trial import try_out
from plexus.lab._verdict import judge


def words(kind, seeds=range(10)):
    """Verdicts on all planted studies of a kind, without workers."""
    found = []
    for study in studies():
        if study.kind == kind:
            by_seed = [
                {
                    arm.name: study().run(study.configure("full", arm.overrides), None, seed).metrics
                    for arm in study.arms
                }
                for seed in seeds
            ]
            found += [verdict.word for verdict in judge(study, by_seed).verdicts.values()]
    return found


def test_shams_are_rarely_called():
    called = [word for seeds in (range(10), range(10, 20), range(20, 30)) for word in words("sham", seeds)]
    assert len(called) == 120
    wrong = sum(word != "undecided" for word in called)
    assert wrong <= 14  # five in a hundred expected; P(more than 14) < 0.001


def test_effects_above_and_below_the_bar_are_found():
    assert words("planted above").count("holds here") >= 36
    below = words("planted below")
    assert below.count("does not hold here") >= 36
    assert "holds here" not in below


def test_the_noise_is_what_it_says():
    study = next(item for item in studies() if item.kind == "planted above")
    values = [try_out(study, "a", seed=seed, scale="full").metrics["score"] for seed in range(400)]
    assert abs(np.mean(values) - KINDS["planted above"]) < 4 * NOISE / 20
    assert abs(np.std(values) / NOISE - 1) < 0.15
    assert KINDS["planted between"] == BAR


def test_the_calibration_goes_through_store_and_workers(tmp_path):
    store = Store(tmp_path)
    first = calibrate(each=1, jobs=1, store=store)
    assert set(first["counts"]) == set(EXPECTED)
    assert len(first["studies"]) == 4
    assert {kind: sum(words.values()) for kind, words in first["counts"].items()} == dict.fromkeys(EXPECTED, 2)
    assert len(list((tmp_path / "trials").glob("*/*.npz"))) == 4 * 4 * 10
    for item in first["studies"]:
        assert item["as_expected"] == {q: w == EXPECTED[item["kind"]] for q, w in item["question_words"].items()}
        assert set(item["distances"]) == {"mechanism", "advantage"}
    assert calibrate(each=1, jobs=1, store=store)["studies"] == first["studies"]
