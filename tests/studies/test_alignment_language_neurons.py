"""The protocol of the language-unit studies: no leak, equal numbers, the same questions, checks that can fail."""

import functools
import operator
from dataclasses import replace

import numpy as np
import pytest
import torch

pytest.importorskip("transformers")

from plexus import edit
from plexus.errors import FormatError
from plexus.lab.models import recall
from plexus.probe import scores
from plexus.studies.language import _alignment as alignment
from plexus.studies.language import _language_bench as bench
from plexus.studies.language._language_study import above_ablation_and_null
from plexus.studies.language._planted_units import found, known_open, planted
from plexus.studies.language.alignment_language_neurons import ALIGNED, AlignmentLanguageNeurons
from plexus.studies.language.alignment_language_neurons_text import AlignmentLanguageNeuronsText, _cut, _pairs, _plain
from plexus.units import Neurons, fingerprint, sites

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
    new = 4
    spoken = bench.answers(made, new, 0)
    lengths = [batch["attention_mask"].sum(1) for batch in spoken.batches]
    assert torch.equal(torch.cat(lengths) - spoken.prompt, torch.full_like(spoken.prompt, new))
    gates = sites(made.model, bench.GATES)
    assert len(gates) == CONFIG.layers
    labels, names = spoken.labels, made.languages
    stream = [bench.probe.record(made.model, spoken.batches, gates)]
    own = scores.count_activations(stream[0], labels, names=names, tokens=spoken.said)
    whole = scores.count_activations(stream[0], labels, names=names)
    # the prompts alone, in passes of their own: what is left is the same, because no token sees a later one
    alone = [{key: value[:, :-new] for key, value in batch.items()} for batch in spoken.batches]
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


def test_units_are_found_in_the_same_questions_of_all_languages_and_judged_on_others(prepared):
    made = prepared.bench
    asked = {item.prompt: item for items in prepared.questions.values() for item in items}
    kinds = [[(asked[p].concept, asked[p].subject) if p in asked else None for p in made.prompts[n]]
             for n in made.languages]  # fmt: skip
    assert None not in kinds[0]  # of English every question of that half is asked
    for row in kinds[1:]:
        assert all(theirs in (None, mine) for theirs, mine in zip(row, kinds[0], strict=True))
    taught = {pair.prompt for pair in prepared.pairs}
    learnt = set(prepared.replay)
    for name in made.languages:
        assert not taught & set(made.prompts[name])
        judged = [set(made.validation[name]), set(made.tests[name])]
        assert len(judged[1]) == len(made.tests[name]) == CONFIG.tests
        assert not judged[0] & judged[1]
        assert not any(text.startswith(prompt + " ") for part in judged for text in part
                       for prompt in made.prompts[name])  # fmt: skip
        if name != "l1":
            assert not (judged[0] | judged[1]) & learnt
    # all words of question and answer count, the mark at the beginning and the padding do not
    spoken = bench.answers(made, CONFIG.new, 0, whole=True)
    record = bench.probe.record(made.model, spoken.batches, sites(made.model, bench.GATES)[:1])
    counted = int(spoken.said(record.table[record.sites[0]]).sum())
    said = [len(text.split()) + CONFIG.new for name in made.languages for text in made.prompts[name]]
    assert counted == sum(said)


def test_planted_units_open_by_their_language_and_change_nothing_else(prepared):
    known_bench, known = planted(prepared.bench, 3, torch.Generator().manual_seed(0))
    spoken = bench.answers(known_bench, 1, 0, whole=True)
    opened = bench.probabilities(known_bench, spoken)
    assert [len(units) for units in known.values()] == [3] * 5
    everything = [(site, unit) for units in known.values() for site, unit in units]
    assert len(set(everything)) == 15
    shifted = dict(zip(known, [*list(known.values())[1:], known["l1"]], strict=True))
    # each language opens its own, none opens another's, and drawn gates are open as often in all
    assert min(known_open(opened, {name: units}) for name, units in known.items()) > 15
    assert known_open(opened, shifted) < 0
    drawn = {name: units.random_like(torch.Generator().manual_seed(0)) for name, units in known.items()}
    assert abs(known_open(opened, drawn)) < 0.2 * known_open(opened, known)
    # a gate of another language does not count as found, nor does one that is not chosen
    units = scores.condition_units(opened, 0.2, percentile=0.6)
    assert found(units, shifted) < 20 < found(units, known)
    # the copy is the model without the units that gave their places
    rest = edit.scale(functools.reduce(operator.or_, known.values()), 0.0)
    batch = {"input_ids": spoken.batches[0]["input_ids"][:3]}
    with torch.no_grad():
        planted_logits = known_bench.model(**batch).logits
    with rest.on(known_bench.model), torch.no_grad():
        torch.testing.assert_close(known_bench.model(**batch).logits, planted_logits)


def test_losses_without_units_are_those_of_the_texts_one_by_one(prepared):
    made = prepared.bench
    gates = sites(made.model, bench.GATES)
    cut = Neurons.of(dict.fromkeys(gates, CONFIG.intermediate), {gates[1]: range(30)},
                     model=fingerprint(made.model))  # fmt: skip
    change = bench.silenced(made, {"l3": cut})
    for place, name in enumerate(made.languages):
        for column, texts in ((place, made.tests[name]), (place + 5, made.sentences[name])):
            before = torch.cat(bench.probe.surprisal(made.model, made.tokenizer, texts))
            with edit.scale(cut, 0.0).on(made.model):
                after = torch.cat(bench.probe.surprisal(made.model, made.tokenizer, texts))
            assert float(change[0, column]) == pytest.approx(float((after - before).mean()), abs=1e-5)
    assert bench.silenced_at_random(made, {"l3": cut}, 2, 0).shape == (1, 10)


def test_without_the_magnitude_term_the_filter_stays(prepared):
    spoken = bench.answers(prepared.bench, 1, 0, whole=True)
    opened = bench.probabilities(prepared.bench, spoken)
    units = STUDY.sort(CONFIG, opened)
    counts = {name: len(units.of(name)) for name in prepared.bench.languages}
    # ordered with its own λ, the method's own units come first: λ is all that is left to differ
    again = bench.first(bench.in_order(units, opened, alone=True), counts)
    assert all(set(again[name]) == set(units.of(name)) for name in again)
    plain = STUDY.sort(CONFIG, opened, magnitude=0.0)
    for name, chosen in bench.first(bench.in_order(plain, opened, alone=True), counts).items():
        row = prepared.bench.languages.index(name)
        for site, unit in chosen:
            assert plain.serves[site][:, unit].nonzero().flatten().tolist() == [row]


def test_arms_silence_as_many_units_of_each_language(prepared):
    counts = {}
    for arm in ("method", "λ = 0", "λ = 0, any", "random", "difference", "precision", "taylor"):
        config = replace(CONFIG, **dict(STUDY.arm(arm).overrides))
        outcome = STUDY.run(config, prepared, 0)
        assert all(np.isfinite(value) for value in outcome.metrics.values())
        assert ("planted_found" in outcome.metrics) == (arm == "method")
        counts[arm] = [outcome.metrics[f"units_{name}"] for name in prepared.bench.languages]
    assert sum(counts["method"]) > 0
    assert all(row == counts["method"] for row in counts.values())


def test_silencing_nothing_costs_nothing_and_the_diagonal_is_the_own_language(prepared):
    made = prepared.bench
    change = torch.tensor([[0.5, 0.1, 0.0], [0.0, 0.2, 0.1]])
    assert bench.dominance(change, ("a", "b"), ("a", "b", "c")) == pytest.approx((0.7 / 2) - 0.2 / 4)
    nothing = bench.empty(made, bench.probabilities(made, bench.answers(made, 1, 0)))
    assert torch.equal(bench.silenced(made, {"l1": nothing}), torch.zeros(1, 10, dtype=torch.float64))


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
