"""The study of post-training views: what its models saw, and that each view says what it claims to."""

from __future__ import annotations

import copy

import pytest
import torch

from plexus.data.corpora._statements import FALSE, REFUSED, TRUE
from plexus.lab import TUNING_SEEDS
from plexus.lab._verdict import judge
from plexus.probe import record
from plexus.studies.interpretability import _checkpoints, _post_training, post_training_views
from plexus.studies.interpretability._checkpoints import HELD_OUT, TRAINED
from plexus.studies.interpretability.post_training_views import PostTrainingViews, PostTrainingViewsTruth
from plexus.units import fingerprint, sites

study = PostTrainingViews()
SMOKE = PostTrainingViews.configure("smoke")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PLEXUS_CACHE", str(tmp_path_factory.mktemp("models")))
        return study.prepare(SMOKE, 3)


@pytest.fixture(scope="module")
def found(prepared):
    """What every arm measured of one seed."""
    arms = {arm.name: study.configure("smoke", arm.overrides) for arm in study.arms}
    return {name: study.run(config, copy.deepcopy(prepared), 3).metrics for name, config in arms.items()}


def test_no_model_saw_the_requests_that_refusal_is_measured_on(prepared) -> None:
    assert not set(TRAINED) & set(HELD_OUT)
    world = prepared.world
    tuned = _checkpoints.fine_tuning(world, refuse=True)
    asked = {item.prompt for kind in ("restricted", "allowed") for item in world.requests(kind, verbs=HELD_OUT)}
    assert not asked & {item.prompt for item in tuned}
    assert REFUSED not in {item.answer for item in world.corpus()}
    assert REFUSED not in {item.answer for item in _checkpoints.fine_tuning(world, refuse=False)}
    assert {i.answer == REFUSED for i in tuned if i.concept == "restricted"} == {True}


def test_the_models_are_a_base_its_descendants_and_a_stranger(prepared) -> None:
    models = prepared.models
    assert len({fingerprint(model) for model in models.values()}) == 1
    weights = {name: torch.cat([p.detach().flatten() for p in m.parameters()]) for name, m in models.items()}
    base = weights["base"]
    near = torch.nn.functional.cosine_similarity(weights["refusals"], base, dim=0)
    far = torch.nn.functional.cosine_similarity(weights["apart"], base, dim=0)
    assert far < 0.5 < 0.9 < near < 1
    assert not torch.equal(weights["refusals"], weights["no refusals"])


def test_the_base_and_itself_show_no_change(found) -> None:
    same = found["itself"]
    assert same["map r"] == pytest.approx(1)
    assert same["map largest difference"] == pytest.approx(0, abs=1e-6)
    assert same["truth accuracy, own"] == same["truth accuracy, transferred"]
    assert same["effect, own"] == pytest.approx(same["effect, transferred"], abs=1e-6)
    assert same["truth cosine"] == pytest.approx(1)
    assert same["refusal cosine"] == pytest.approx(1)
    assert same["entropy neurons in common"] == 1
    assert same["related"] == 1
    assert found["trained apart"]["related"] == 0
    assert found["refusals"]["related"] == 1


def test_statements_are_balanced_and_topics_are_held_out(prepared) -> None:
    items = _post_training.balanced(prepared.world, torch.Generator().manual_seed(0))
    for topic in prepared.world.facts:
        answers = [item.answer for item in items if item.concept == topic]
        assert answers.count(TRUE) == answers.count(FALSE) > 0
        # in turn, so that every other pair of them holds both kinds
        assert answers[:2] == [TRUE, FALSE]
    ids = _post_training.tokens(prepared.tokenizer, items)["input_ids"]
    words = [prepared.tokenizer.convert_ids_to_tokens(row) for row in ids.tolist()]
    place = _post_training.KNOWLEDGE
    assert all(row[place["subject"]] == item.subject for row, item in zip(words, items, strict=True))
    assert all(row[place["last"]] == "." for row in words)


def test_a_direction_that_is_taken_out_is_never_in_the_stream(prepared) -> None:
    model = prepared.models["refusals"]
    vector = torch.randn(SMOKE.hidden, generator=torch.Generator().manual_seed(0))
    vector = vector / vector.norm()
    batch = _post_training.tokens(prepared.tokenizer, prepared.world.requests("restricted"))
    before = record(model, batch, sites.residual(model))
    with _post_training.taken_out(model, vector).on(model):
        after = record(model, batch, sites.residual(model))
    for site in sites.residual(model):
        assert (before[site] @ vector).abs().max() > 0.01
        assert (after[site] @ vector).abs().max() < 1e-5


def test_moving_along_what_the_judgement_reads_carries_it_across(prepared) -> None:
    model = prepared.models["base"]
    items = _post_training.balanced(prepared.world, torch.Generator().manual_seed(0))
    labels = torch.tensor([item.answer == TRUE for item in items])
    last = sites.residual(model)[-1]
    batch = _post_training.tokens(prepared.tokenizer, items)
    gaps = _post_training.directions(record(model, batch, last, pool="last", labels=labels))
    gaps = type(gaps)(gaps.vectors, {last: 100.0}, gaps.threshold, gaps.how, gaps.model)
    yes, no = prepared.tokenizer.convert_tokens_to_ids([TRUE, FALSE])
    readout = (model.lm_head.weight[yes] - model.lm_head.weight[no]).detach()
    along = _post_training.intervene(model, prepared, items, {last: readout}, gaps)
    against = _post_training.intervene(model, prepared, items, {last: -readout}, gaps)
    # an untrained judgement has hardly a gap to cross, so the share is large; its sign says the direction
    assert abs(along) > 1
    assert along * against < 0


def test_refusals_are_read_off_the_generated_words(prepared) -> None:
    """A model whose unembedding says the words of a refusal one after the other, whatever it is asked."""
    model = copy.deepcopy(prepared.models["base"])
    items = prepared.world.requests("restricted")
    assert _post_training.refused(model, prepared.tokenizer, items) == 0
    words = prepared.tokenizer.convert_tokens_to_ids(REFUSED.split())
    with torch.no_grad():
        for block in model.model.layers:  # nothing but the last token counts
            block.self_attn.o_proj.weight.zero_()
            block.mlp.down_proj.weight.zero_()
        model.model.embed_tokens.weight.zero_()
        model.lm_head.weight.zero_()
        start = prepared.tokenizer.convert_tokens_to_ids(":")
        for column, (now, following) in enumerate(zip([start, *words], words, strict=False)):
            model.model.embed_tokens.weight[now, column] = 1
            model.lm_head.weight[following, column] = 1
    assert _post_training.refused(model, prepared.tokenizer, items) == 100


def test_tuning_has_seeds_of_its_own_and_one_choice_for_all_arms(monkeypatch, prepared) -> None:
    asked = []
    monkeypatch.setattr(_checkpoints, "prepare", lambda config, seed, only: asked.append(seed) or prepared)
    tuning = study.tune(SMOKE)
    assert set(asked) <= set(TUNING_SEEDS)
    assert len({tuple(sorted(choice.items())) for choice in tuning.chosen.values()}) == 1
    assert set(tuning.budget.values()) == {(SMOKE.layers - 1) * len(post_training_views.PENALTIES)}
    assert set(tuning.chosen["refusals"]) == {"first_layer", "logistic_layer", "penalty"}


def test_a_check_can_fail(found) -> None:
    location = next(check for check in study.checks if check.primary and check.role == "mechanism")

    def passed(kin: float, stranger: float) -> bool | None:
        shift = torch.linspace(-0.01, 0.01, 10).tolist()
        seeds = {s: {"refusals": {"map r": kin + d}, "trained apart": {"map r": stranger}} for s, d in enumerate(shift)}
        values = {s: location.quantity(metrics) for s, metrics in seeds.items()}
        mean = sum(values.values()) / len(values)
        return mean >= location.at_least

    assert passed(0.98, 0.7)
    assert not passed(0.98, 0.97)
    for check in study.checks:
        assert isinstance(float(check.quantity(found)), float)
    assert judge is not None


def test_the_variant_on_files_says_what_is_missing(monkeypatch) -> None:
    monkeypatch.delenv("PLEXUS_DATA", raising=False)
    variant = PostTrainingViewsTruth()
    assert variant.name == "post-training-views-truth"
    with pytest.raises(Exception, match="not here"):
        variant.prepare(variant.configure("smoke"), 0)
