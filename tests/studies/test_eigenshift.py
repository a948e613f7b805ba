"""The studies of damped directions: edits end, random numbers are common, and each arm changes what it says."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from plexus.edit import svd
from plexus.errors import FormatError
from plexus.studies.steering._damping import (
    Edits,
    chosen,
    continued,
    divergence,
    edited,
    harmonic,
    mass,
    rudeness,
    scored,
)
from plexus.studies.steering._damping_study import ARMS, FOLLOWERS, SETTINGS, Config, Prepared
from plexus.studies.steering._experts import expert_analysis
from plexus.studies.steering.eigenshift import EigenShift
from plexus.studies.steering.eigenshift_text import EigenShiftText, Play

study = EigenShift()


@pytest.fixture(scope="module")
def prepared() -> Prepared:
    return study.prepare(EigenShift.configure("smoke", {"steps": 20, "texts": 600}), 3)


@pytest.fixture(scope="module")
def found(prepared: Prepared) -> svd.Directions:
    return svd.directions(prepared.bench.model)


def test_prepared_data_are_what_they_are_called(prepared: Prepared) -> None:
    bench = prepared.bench
    for part in ("validation", "test"):
        assert not bool(torch.isin(bench.prompts[part], bench.words).any())
        assert not bool(torch.isin(bench.neutral[part], bench.words).any())
        tokens, truth = prepared.questions[part]
        assert torch.equal(torch.isin(tokens, bench.words).any(1), truth)
    rows = {part: {tuple(row) for row in bench.neutral[part].tolist()} for part in bench.neutral}
    assert not rows["validation"] & rows["test"]
    texts, labels = prepared.labelled
    assert torch.equal(torch.isin(texts, bench.words).any(1), labels)
    assert not any("rude0" in text.split() for text in prepared.clean if not text.startswith("check"))
    assert min(len(bench.present), len(bench.absent)) >= 30


@pytest.mark.parametrize("arm", [arm.name for arm in ARMS])
def test_every_edit_acts_and_leaves_no_trace(arm: str, prepared: Prepared, found: svd.Directions) -> None:
    overrides = dict(study.arm(arm).overrides)
    overrides |= SETTINGS[overrides["grid"]][0] if overrides.get("grid") else {}
    config = EigenShift.configure("smoke", overrides)
    bench = prepared.bench
    before = {name: value.clone() for name, value in bench.model.state_dict().items()}
    ids = bench.prompts["test"]
    with torch.no_grad():
        plain = bench.model(input_ids=ids).logits
        with edited(bench, config, found, torch.Generator().manual_seed(0)):
            under = bench.model(input_ids=ids).logits
        assert torch.equal(bench.model(input_ids=ids).logits, plain)
    assert torch.equal(under, plain) == (config.method in ("none", "finetune"))
    assert all(torch.equal(value, before[name]) for name, value in bench.model.state_dict().items())


def test_the_arms_choose_what_they_say(prepared: Prepared, found: svd.Directions) -> None:
    bench = prepared.bench
    assert chosen(bench, Edits("largest", k=3), found).tolist() == [0, 1, 2]
    drawn = [chosen(bench, Edits("random", k=4), found, torch.Generator().manual_seed(i)).tolist() for i in range(5)]
    assert len({tuple(draw) for draw in drawn}) > 1
    assert all(len(set(draw)) == 4 for draw in drawn)
    signed = scored(bench, Edits("eigenshift", by="signed"), found)
    states = bench.present.mean(0) - bench.absent.mean(0)
    torch.testing.assert_close(signed, (found.vh @ states).double(), atol=1e-5, rtol=1e-4)
    published = scored(bench, Edits("eigenshift", by="signed", transposed=True), found)
    torch.testing.assert_close(published, (found.vh.T @ states).double(), atol=1e-5, rtol=1e-4)  # V h
    signs = torch.where(torch.arange(len(found)) % 2 == 0, -1.0, 1.0)
    other = replace(found, u=found.u * signs, vh=found.vh * signs[:, None])
    for by in ("margin", "abs"):
        assert torch.equal(scored(bench, Edits(by=by), other), scored(bench, Edits(by=by), found))
    assert not torch.equal(scored(bench, Edits(by="signed"), other), signed)


def test_continuations_meet_the_same_random_numbers(prepared: Prepared, found: svd.Directions) -> None:
    bench = prepared.bench
    one, same, another = (continued(bench.model, bench.prompts["test"], 6, 3, 1.0, seed) for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, another)
    with edited(bench, Edits("bias", bias=-1e-9), found):
        assert torch.equal(continued(bench.model, bench.prompts["test"], 6, 3, 1.0, 1), one)
    with edited(bench, Edits("bias", bias=-1e4), found):
        clean = continued(bench.model, bench.prompts["test"], 6, 3, 1.0, 1)
        assert mass(bench.model, bench.prompts["test"], clean, bench.words) == 0.0
    assert rudeness(clean, bench.words)["tokens"] == 0.0
    # tokens are the same up to the first rude one
    rude = torch.isin(one, bench.words).long().cummax(2).values.bool()
    assert torch.equal(one[~rude], clean[~rude])


def test_the_measures() -> None:
    tokens = torch.tensor([[[1, 2, 9], [1, 2, 3]], [[1, 1, 1], [2, 2, 2]]])
    assert rudeness(tokens, torch.tensor([9])) == {
        "tokens": pytest.approx(100 / 12), "continuations": 25.0, "prompts": 50.0,
    }  # fmt: skip
    # the paper's own example: all toxicity gone, perplexity from 6.23 to 43,517
    assert harmonic(10.0, 0.0, 6.23, 43_517.0) == pytest.approx(0.03, abs=0.002)
    assert harmonic(10.0, 0.0, 5.0, 4.0) == 100.0
    assert harmonic(10.0, 12.0, 5.0, 5.0) == 0.0
    p = torch.randn(5, 8).log_softmax(1)
    assert divergence(p, p, torch.tensor([3])) == pytest.approx(0.0, abs=1e-6)
    lifted = p.clone()
    lifted[:, 3] += 2
    assert divergence(p, lifted, torch.tensor([3])) == pytest.approx(0.0, abs=1e-6)
    assert divergence(p, p.roll(1, 1), torch.tensor([3])) > 0.01


def test_experts_of_a_planted_unit_are_stable_and_of_noise_are_not(prepared: Prepared) -> None:
    bench, numbers = prepared.bench, torch.Generator().manual_seed(0)
    labels = torch.arange(120) % 2 == 0
    neutral = bench.neutral["test"].flatten()
    texts = neutral[torch.randint(len(neutral), (120, 10), generator=numbers)]
    rude = bench.words[torch.randint(len(bench.words), (120, 10), generator=numbers)]
    texts = torch.where(labels[:, None], rude, texts)
    found = expert_analysis(bench.model, texts, labels, halves=2, generator=numbers)
    shuffled = labels[torch.randperm(120, generator=numbers)]
    null = expert_analysis(bench.model, texts, shuffled, halves=2, generator=numbers)
    assert found["layer_probe"] > 0.75
    assert found["best_unit"] > 0.7
    assert found["stability_0.6"] > null["stability_0.6"]
    assert abs(null["layer_probe"] - 0.5) < 0.25
    assert all(0 <= found[f"experts_{level}"] <= 100 for level in (0.5, 0.525, 0.55, 0.6))


def test_rivals_try_as_many_settings_and_followers_follow() -> None:
    assert {len(settings) for settings in SETTINGS.values()} == {8}
    assert all(not study.arm(name).overrides.get("grid") for name in FOLLOWERS)
    fields = set(Config.__dataclass_fields__)
    assert all(set(setting) <= fields for settings in SETTINGS.values() for setting in settings)


def test_the_text_study_says_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PLEXUS_DATA", raising=False)
    with pytest.raises(FormatError, match="tinyshakespeare"):
        EigenShiftText().prepare(EigenShiftText.configure("smoke"), 0)


def test_windows_of_a_play() -> None:
    tokens = torch.arange(200) % 50
    play = Play(tokens, torch.tensor([7]))
    numbers = torch.Generator().manual_seed(0)
    before = play.before(10, 5, numbers)
    assert before.tolist() == [[2, 3, 4, 5, 6]] * 4
    free = play.anywhere(30, 8, numbers, insults=False)
    assert not bool((free == 7).any())
    assert bool((play.anywhere(20, 8, numbers, insults=True) == 7).any(1).all())
    assert torch.equal((free[:, 1:] - free[:, :-1]) % 50, torch.ones(30, 7, dtype=torch.int64))
