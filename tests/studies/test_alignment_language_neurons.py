"""The protocol of the language-unit studies: no leak, equal numbers, the same questions, checks that can fail."""

from dataclasses import replace

import numpy as np
import pytest
import torch

pytest.importorskip("transformers")

from plexus.errors import FormatError
from plexus.lab.models import recall
from plexus.probe import scores
from plexus.studies.language import _alignment as alignment
from plexus.studies.language import _language_bench as bench
from plexus.studies.language._language_study import above_ablation_and_null
from plexus.studies.language.alignment_language_neurons import ALIGNED, AlignmentLanguageNeurons
from plexus.studies.language.alignment_language_neurons_text import AlignmentLanguageNeuronsText, _cut, _pairs, _plain
from plexus.units import sites

STUDY = AlignmentLanguageNeurons()
# a model that has learnt nothing yet has no units of languages: the kinds are found with a low bar
CONFIG = replace(STUDY.configure("smoke"), percentile=0.6, share=0.2)


@pytest.fixture(scope="module")
def prepared():
    return STUDY.prepare(CONFIG, 0)


def test_nothing_that_is_asked_was_learnt(prepared):
    learnt = set(prepared.replay)
    asked = {pair.prompt for pair in prepared.pairs}
    for name, items in prepared.questions.items():
        assert items
        assert not {item.prompt for item in items} & asked
        if name != "l1":
            assert not {item.text for item in items} & learnt
    kinds = {(item.concept, item.subject) for items in prepared.questions.values() for item in items}
    texts = {pair.prompt: pair for pair in prepared.pairs}
    assert len(kinds) > 0
    assert all(not any(all(w in prompt.split() for w in subject.split()) and concept in prompt for prompt in texts)
               for concept, subject in kinds)  # fmt: skip
    assert all(pair.chosen != pair.rejected for pair in prepared.pairs)


def test_only_the_models_own_words_are_counted(prepared):
    made = prepared.bench
    spoken = bench.answers(made, CONFIG.new, 0)
    lengths = [batch["attention_mask"].sum(1) for batch in spoken.batches]
    assert torch.equal(torch.cat(lengths) - spoken.prompt, torch.full_like(spoken.prompt, CONFIG.new))
    gates = sites(made.model, bench.GATES)
    assert len(gates) == CONFIG.layers
    labels, names = spoken.labels, made.languages
    stream = [bench.probe.record(made.model, spoken.batches, gates)]
    own = scores.count_activations(stream[0], labels, names=names, tokens=spoken.said)
    whole = scores.count_activations(stream[0], labels, names=names)
    # the prompts alone, in passes of their own: what is left is the same, because no token sees a later one
    alone = [{key: value[:, : -CONFIG.new] for key, value in batch.items()} for batch in spoken.batches]
    prompts = scores.count_activations(bench.probe.record(made.model, alone, gates), labels, names=names)
    left = whole - prompts
    for site in gates:
        assert torch.equal(left.rows[site], own.rows[site])
        assert int((left.active[site] - own.active[site]).abs().max()) <= 1  # a gate within rounding of zero
    # an open gate is a positive one before the activation
    before = bench.probe.record(made.model, spoken.batches, sites(made.model, "*.mlp.gate_proj"))
    pre = scores.count_activations(before, labels, names=names, tokens=spoken.said)
    for site, gate in zip(gates, before.sites, strict=True):
        assert torch.equal(pre.active[gate], own.active[site])


def test_arms_silence_as_many_units_of_each_language(prepared):
    counts = {}
    for arm in ("method", "λ = 0", "random", "difference", "precision", "taylor"):
        config = replace(CONFIG, **dict(STUDY.arm(arm).overrides))
        outcome = STUDY.run(config, prepared, 0)
        assert all(np.isfinite(value) for value in outcome.metrics.values())
        counts[arm] = [outcome.metrics[f"units_{name}"] for name in prepared.bench.languages]
    assert sum(counts["method"]) > 0
    assert all(row == counts["method"] for row in counts.values())


def test_silencing_nothing_costs_nothing_and_the_diagonal_is_the_own_language(prepared):
    made = prepared.bench
    change = torch.tensor([[0.5, 0.1, 0.0], [0.0, 0.2, 0.1]])
    assert bench.dominance(change, ("a", "b"), ("a", "b", "c")) == pytest.approx((0.7 / 2) - 0.2 / 4)
    units = {made.languages[0]: bench.empty(made, bench.probabilities(made, bench.answers(made, 4, 0)))}
    with pytest.raises(ValueError, match="no edits"):
        bench.silenced(made, units, 1, 0)


def test_alignment_teaches_the_preferred_answer_and_keeps_the_model(prepared):
    made = prepared.bench
    before = {name: value.clone() for name, value in made.model.state_dict().items()}
    pair = alignment.Pair(prepared.pairs[0].prompt, *sorted({p.chosen for p in prepared.pairs})[:2])
    how = alignment.Alignment(imitation=1.0, steps=25, batch=8, rate=3e-3)

    def margin(model):
        asked = [pair.prompt] * 2
        good, bad = recall(model, made.tokenizer, asked, [pair.chosen, pair.rejected]).log_prob
        return float(good - bad)

    start = margin(made.model)
    for part in ({}, {"imitation": 0.0}, {"preference": 0.0}):
        taught = alignment.aligned(made.model, made.tokenizer, [pair], prepared.replay, replace(how, **part), seed=0)
        assert margin(taught) > start + 1
    turned = alignment.Pair(pair.prompt, pair.rejected, pair.chosen)
    assert margin(alignment.aligned(made.model, made.tokenizer, [turned], prepared.replay, how, seed=0)) < start - 1
    assert all(torch.equal(value, before[name]) for name, value in made.model.state_dict().items())


def test_a_worse_answer_is_the_models_own_or_one_of_its_kind(prepared):
    made = prepared.bench
    asked = [item for name in ALIGNED for item in prepared.questions[name]][:6]
    others = [["x", "y", item.answer] for item in asked]
    found = alignment.pairs(
        made.model, made.tokenizer, asked, [item.answer for item in asked], others,
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    assert [pair.chosen for pair in found] == [item.answer for item in asked]
    assert {pair.rejected for pair in found} <= {"x", "y"}


def test_checks_can_fail():
    def seed(method, plain, random):
        return {
            name: {"dominance": value} for name, value in {"method": method, "λ = 0": plain, "random": random}.items()
        }

    assert above_ablation_and_null(seed(0.1, 0.05, 0.001)) > 0
    assert above_ablation_and_null(seed(0.1, 0.095, 0.001)) < 0
    assert above_ablation_and_null(seed(0.1, 0.05, 0.03)) < 0


def test_parallel_text_is_needed_and_cut_into_rows(monkeypatch, tmp_path):
    monkeypatch.setenv("PLEXUS_DATA", str(tmp_path))
    text = AlignmentLanguageNeuronsText()
    with pytest.raises(FormatError, match="pud-parallel"):
        text.prepare(text.configure("smoke"), 0)
    assert _cut("a b c d e f g h i j") == ["a b c d e f g h"]
    whole = {"en": ["one two", "three"], "de": ["eins zwei", "drei"]}
    assert _pairs(whole, "de", [0, 1]) == [("one two =", "eins zwei", "drei"), ("three =", "drei", "eins zwei")]
    assert _plain("one two three", {"one", "three"}) == "one ~ three"
