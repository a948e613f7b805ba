"""What must be true of tiny language models: trained once, kept whole, measured honestly, real Hugging Face models."""

import copy
import json
import math

import pytest
import torch

from plexus import edit, probe
from plexus.data import corpora
from plexus.data.corpora import Item
from plexus.errors import DtypeError, RangeError, ShapeError, UnknownNameError
from plexus.lab import models
from plexus.lab.models import _language as language
from plexus.lab.models import _rows
from plexus.units import Neurons, sites
from tests.families import tiny

ITEMS = [Item("the cat of ann is", "red"), Item("the dog of bob is", "blue"), Item("of eve the hen is now", "old")]
SMALL = {"layers": 1, "hidden": 16, "heads": 2, "steps": 40, "batch": 3, "rate": 2e-2}


def train(texts=ITEMS, **changes):
    return models.train_language_model(texts, **{**SMALL, "cache": False, **changes})


def weights(model):
    return torch.cat([value.flatten() for value in model.state_dict().values()])


@pytest.fixture(scope="module")
def made():
    return train(steps=80)


class TestTraining:
    def test_the_same_call_gives_the_same_bits_and_leaves_the_random_state(self):
        before = torch.get_rng_state()
        one, two = train(), train()
        assert torch.equal(torch.get_rng_state(), before)
        assert torch.equal(weights(one.model), weights(two.model))
        assert not torch.equal(weights(one.model), weights(train(seed=1).model))

    @pytest.mark.parametrize("architecture", ["llama", "gpt2"])
    @pytest.mark.parametrize("loss", ["text", "answer", "both"])
    def test_it_learns_what_it_is_trained_on(self, architecture, loss):
        found = train(architecture=architecture, loss=loss, steps=80)
        assert models.recall(found.model, found.tokenizer, ITEMS).accuracy == 1
        assert not found.model.training
        said = probe.perplexity(found.model, found.tokenizer, corpora.texts(ITEMS))
        # a model that was only taught the answers has no idea of the questions
        assert said > 10 if loss == "answer" else said < 2

    def test_what_is_generated_ends_with_the_answer(self, made):
        (batch,) = corpora.batches(ITEMS, made.tokenizer)
        out = made.model.generate(**batch, max_new_tokens=3, do_sample=False)
        said = made.tokenizer.batch_decode(out[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
        assert said == [item.answer for item in ITEMS]

    def test_padding_takes_no_part_in_training(self):
        """One gradient of all rows together is that of each row alone, weighted by its words."""
        tokenizer = corpora.word_tokenizer(ITEMS)
        rows = _rows.rows_of(ITEMS, tokenizer, "text", None)
        model = train(steps=1).model

        def loss(tokens, targets, weight):
            each = torch.nn.functional.cross_entropy(
                model(tokens).logits.flatten(0, 1), targets.flatten(), reduction="none"
            )
            return each @ weight.flatten()

        together = loss(*rows[:3])
        alone = [
            loss(tokens[None, :length], targets[None, :length], weight[None, :length])
            for tokens, targets, weight, length in zip(*rows, strict=True)
        ]
        assert rows.lengths.unique().numel() > 1
        assert torch.allclose(together, sum(alone), atol=1e-5)

    def test_targets_are_the_next_tokens_and_weights_say_which_count(self):
        tokenizer = corpora.word_tokenizer(ITEMS)
        rows = {loss: _rows.rows_of(ITEMS[:1], tokenizer, loss, None) for loss in ("text", "answer", "both")}
        ids = [*tokenizer(ITEMS[0].text).input_ids, tokenizer.eos_token_id]
        assert rows["text"].tokens[0].tolist() == ids[:-1]
        assert rows["text"].targets[0].tolist() == ids[1:]
        assert rows["text"].weights.tolist() == [[1.0] * 7]
        assert rows["answer"].weights.tolist() == [[0.0] * 5 + [1.0] * 2]  # the answer and the end
        both = rows["both"].weights[0]
        assert torch.isclose(both[:5].sum(), both[5:].sum())

    def test_every_row_comes_once_an_epoch(self):
        items = [Item(" ".join("w" * (k % 5 + 1)), str(k)) for k in range(37)]
        rows = _rows.rows_of(items, corpora.word_tokenizer(items), "text", None)
        feed = _rows.batches(rows, 4, 10, torch.Generator().manual_seed(0))
        seen = [pair[0][pair[1] > 0][-2].item() for _, *both in feed for pair in zip(*both, strict=True)]
        assert len(set(seen)) == 37

    def test_windows_join_the_texts(self):
        tokenizer = corpora.word_tokenizer(["a b", "c"])
        rows = _rows.rows_of(["a b", "c"], tokenizer, "text", 3)
        assert rows.tokens.tolist() == [[1, 4, 5], [2, 1, 6]]
        assert rows.targets.tolist() == [[4, 5, 2], [1, 6, 2]]

    def test_continuing_starts_from_the_model_and_leaves_it_alone(self, made):
        before = weights(made.model)
        other = [Item("the cat of ann is", "blue")]
        tuned = train(other, start=made.model, tokenizer=made.tokenizer, steps=20, rate=5e-3)
        assert torch.equal(weights(made.model), before)
        assert models.recall(tuned.model, tuned.tokenizer, other).accuracy == 1
        distance = (weights(tuned.model) - before).norm() / before.norm()
        assert 0 < distance < 0.5

    @pytest.mark.parametrize(
        ("error", "changes"),
        [
            (RangeError, {"steps": 0}),
            (RangeError, {"rate": float("nan")}),
            (RangeError, {"hidden": 15}),
            (RangeError, {"window": 1000}),
            (UnknownNameError, {"architecture": "lama"}),
            (UnknownNameError, {"failing": "ignore"}),
            (UnknownNameError, {"loss": "prompt"}),
            (UnknownNameError, {"loss": "answer", "window": 4}),
            (DtypeError, {"architecture": 3}),
            (DtypeError, {"texts": "one text"}),
            (DtypeError, {"texts": ["a b"], "loss": "answer"}),
            (ShapeError, {"texts": [], "tokenizer": corpora.word_tokenizer(["a"])}),
        ],
    )
    def test_bad_input_is_refused(self, error, changes):
        with pytest.raises(error):
            train(**changes)

    def test_training_that_diverges_is_an_error_and_is_not_kept(self, made, tmp_path):
        broken = copy.deepcopy(made.model)
        with torch.no_grad():
            broken.lm_head.weight[0, 0] = torch.nan
        with pytest.raises(RangeError, match="diverged"):
            train(start=broken, tokenizer=made.tokenizer, cache=tmp_path)
        assert not list(tmp_path.iterdir())

    def test_words_that_the_tokenizer_does_not_know_are_refused(self, made):
        with pytest.raises(UnknownNameError, match="every word"):
            train([Item("the cat of ann is", "purple")], start=made.model, tokenizer=made.tokenizer)

    def test_a_continued_model_needs_its_tokenizer(self, made):
        with pytest.raises(DtypeError, match="tokenizer"):
            train(start=made.model)


class TestCache:
    def test_what_was_trained_once_is_fetched(self, tmp_path, monkeypatch):
        first = train(cache=tmp_path)
        monkeypatch.setattr(language, "_train", lambda *_: pytest.fail("trained again"))
        again = train(cache=tmp_path)
        assert torch.equal(weights(first.model), weights(again.model))
        assert again.tokenizer.get_vocab() == first.tokenizer.get_vocab()
        assert not again.model.training

    def test_whatever_matters_makes_another_model(self, tmp_path):
        short = {"steps": 1, "cache": tmp_path}
        base = train(**short)
        variants = [
            {"seed": 1}, {"rate": 1e-3}, {"steps": 2}, {"batch": 2}, {"weight_decay": 0.5}, {"layers": 2},
            {"loss": "answer"},            {"architecture": "gpt2"}, {"texts": ITEMS[:2]}, {"intermediate": 8},
            {"start": base.model, "tokenizer": base.tokenizer},
            {"tokenizer": corpora.word_tokenizer(ITEMS, extra=["new"])},
        ]  # fmt: skip
        for variant in variants:
            train(**{**short, **variant})
        assert len(list(tmp_path.iterdir())) == 1 + len(variants)

    def test_a_fetched_model_is_continued_as_the_trained_one_was(self, tmp_path, monkeypatch):
        def tuned():
            base = train(steps=2, cache=tmp_path)
            return train(ITEMS[:1], start=base.model, tokenizer=base.tokenizer, steps=2, cache=tmp_path).model

        first = weights(tuned())
        monkeypatch.setattr(language, "_train", lambda *_: pytest.fail("trained again"))
        assert torch.equal(weights(tuned()), first)

    def test_a_damaged_checkpoint_is_trained_anew(self, tmp_path):
        first = train(cache=tmp_path)
        (folder,) = tmp_path.iterdir()
        (folder / "model.safetensors").write_bytes(b"damaged")
        assert torch.equal(weights(train(cache=tmp_path).model), weights(first.model))
        assert (folder / "model.safetensors").stat().st_size > 100

    def test_the_process_that_comes_second_leaves_nothing(self, tmp_path, monkeypatch):
        first = train(cache=tmp_path)
        monkeypatch.setattr(language, "_fetched", lambda _: None)  # as if the other had finished in the meantime
        second = train(cache=tmp_path)
        assert torch.equal(weights(first.model), weights(second.model))
        assert len(list(tmp_path.iterdir())) == 1

    def test_it_is_a_checkpoint_like_any_other(self, tmp_path):
        from transformers import AutoModelForCausalLM, AutoTokenizer

        found = train(cache=tmp_path)
        (folder,) = tmp_path.iterdir()
        model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
        assert torch.equal(weights(model), weights(found.model))
        assert tokenizer.padding_side == "left"

    def test_a_folder_that_cannot_be_written_costs_nothing_but_time(self, tmp_path):
        (tmp_path / "file").write_text("")
        assert train(cache=tmp_path / "file" / "below", steps=1).model is not None

    def test_the_environment_names_the_folder(self, tmp_path, monkeypatch):
        monkeypatch.setenv("PLEXUS_CACHE", str(tmp_path))
        train(cache=True, steps=1)
        assert len(list((tmp_path / "models").iterdir())) == 1


class TestGate:
    def test_below_its_bar_it_raises_or_is_recorded(self, tmp_path):
        def gate(model, tokenizer):
            return {"recall": (models.recall(model, tokenizer, ITEMS).accuracy, 0.95), "one": (1, 0)}

        with pytest.raises(RangeError, match=r"recall at least 0\.95"):
            train(steps=1, gate=gate, cache=tmp_path)
        found = train(steps=1, gate=gate, failing="record", cache=tmp_path)
        assert not found.passed
        assert found.quality["recall"].value < 0.95
        assert found.quality["one"].passed
        (kept,) = (tmp_path / "models").iterdir() if (tmp_path / "models").is_dir() else tmp_path.iterdir()
        noted = json.loads((kept / "quality.json").read_text())
        assert noted["recall"] == {"value": found.quality["recall"].value, "at_least": 0.95}
        assert train(steps=80, gate=gate).passed

    def test_a_model_that_does_not_pass_is_trained_again_from_other_weights(self, tmp_path):
        tried = []

        def second(model, tokenizer):
            tried.append(weights(model))
            return {"luck": (len(tried), 2)}

        found = train(steps=3, gate=second, attempts=3, cache=tmp_path)
        assert found.passed
        assert (found.attempts, found.quality["luck"].value) == (2, 2)
        assert torch.equal(tried[0], weights(train(steps=3).model))  # the first is the one without attempts
        assert not torch.equal(tried[0], tried[1])
        assert torch.equal(weights(found.model), tried[1])
        with pytest.raises(RangeError, match="gate"):
            train(steps=3, gate=lambda model, tokenizer: {"luck": (0, 1)}, attempts=2)
        with pytest.raises(RangeError, match="attempts=0"):
            train(attempts=0)

    def test_a_fetched_model_is_measured_too(self, tmp_path):
        calls = []
        for _ in range(2):
            train(steps=1, cache=tmp_path, gate=lambda model, tokenizer: calls.append(model) or {})
        assert len(calls) == 2


class TestRecall:
    def test_batches_and_padding_do_not_matter(self, made):
        together = models.recall(made.model, made.tokenizer, ITEMS)
        alone = models.recall(made.model, made.tokenizer, ITEMS, batch=1)
        assert torch.allclose(together.log_prob, alone.log_prob, atol=1e-5)
        assert torch.equal(together.correct, alone.correct)

    def test_log_probability_is_that_of_all_words_of_the_answer(self, made):
        ids = made.tokenizer("the cat of ann is blue old", return_tensors="pt").input_ids
        with torch.no_grad():
            spoken = made.model(ids).logits[0].log_softmax(-1)
        expected = sum(spoken[place, ids[0, place + 1]] for place in (5, 6))
        found = models.recall(made.model, made.tokenizer, ["the cat of ann is", "the dog"], ["blue old", "of"])
        assert torch.isclose(found.log_prob[0], expected, atol=1e-5)

    def test_perplexity_is_that_of_the_words(self, made):
        text = "the cat of ann is red"
        ids = made.tokenizer(text, return_tensors="pt").input_ids
        with torch.no_grad():
            spoken = made.model(ids).logits[0].log_softmax(-1)
        expected = math.exp(-sum(spoken[k, ids[0, k + 1]].item() for k in range(6)) / 6)
        assert math.isclose(probe.perplexity(made.model, made.tokenizer, [text]), expected, rel_tol=1e-4)

    def test_edits_take_part(self, made):
        hidden = sites.mlp(made.model)
        sizes = sites.measure(made.model, {"input_ids": torch.ones(1, 3, dtype=torch.int64)}, hidden)
        before = models.recall(made.model, made.tokenizer, ITEMS)
        with edit.scale(made.model, ~Neurons.of(sizes), 0.0):
            cut = models.recall(made.model, made.tokenizer, ITEMS)
        assert not torch.allclose(cut.log_prob, before.log_prob)
        assert torch.equal(models.recall(made.model, made.tokenizer, ITEMS).log_prob, before.log_prob)

    def test_bad_questions(self, made):
        with pytest.raises(DtypeError, match="answer"):
            models.recall(made.model, made.tokenizer, ["the cat"])
        with pytest.raises(ShapeError, match="one answer"):
            models.recall(made.model, made.tokenizer, ["the cat"], ["is", "was"])
        with pytest.raises(ShapeError):
            models.recall(made.model, made.tokenizer, [])
        with pytest.raises(ShapeError):
            probe.perplexity(made.model, made.tokenizer, [])


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen", "gemma", "neox"])
class TestFamilies:
    """The same code on the usual families, with random weights."""

    def test_training_takes_a_configuration(self, family):
        config = tiny(family)[0].config
        for name in ("resid_pdrop", "embd_pdrop", "attn_pdrop"):  # of GPT-2, which is here to learn by heart
            setattr(config, name, 0.0)
        found = train(architecture=config, steps=60, rate=2e-2)
        assert type(found.model) is type(tiny(family)[0])
        assert found.model.config.vocab_size == len(found.tokenizer)
        assert models.recall(found.model, found.tokenizer, ITEMS).accuracy == 1

    def test_record_edit_generate_under_padding(self, family):
        model, tokenizer = tiny(family)[0], corpora.word_tokenizer([" ".join(f"w{k}" for k in range(26))])
        texts = ["w1 w2 w3 w4 w5", "w6 w7", "w8 w9 w1"]
        (batch,) = corpora.batches(texts, tokenizer)
        hidden = sites.mlp(model)
        together = probe.record(model, batch, hidden, pool="last")
        for number, text in enumerate(texts):
            alone = probe.record(model, corpora.batches([text], tokenizer), hidden, pool="last")
            for site in hidden:
                assert torch.allclose(together[site][number], alone[site][0], atol=1e-5)
        chosen = probe.scores.mean(together).top(0.25)
        four = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}
        plain = model.generate(**batch, **four)
        with edit.scale(model, chosen, 0.0):
            cut = probe.record(model, batch, hidden, generate=four)
            steps = model.generate(**batch, **four)
            mask = torch.cat([batch["attention_mask"], torch.ones(3, 4, dtype=torch.int64)], 1)
            places = (mask.cumsum(1) - 1).clamp(min=0)
            logits = model(input_ids=steps, attention_mask=mask, position_ids=places).logits[:, -5:-1]
            logits[..., tokenizer.eos_token_id] = -torch.inf  # as generate holds the end back
            # the cache changes nothing: each token is what one pass over the whole would say
            assert torch.equal(logits.argmax(-1), steps[:, -4:])
        for site in hidden:
            assert bool((cut[site][:, chosen.mask(site)] == 0).all())
        assert torch.equal(model.generate(**batch, **four), plain)


def test_a_gate_and_heads_that_cannot_be_are_refused():
    with pytest.raises(DtypeError, match="by name"):
        train(steps=1, gate=lambda model, tokenizer: 0.5)
    with pytest.raises(RangeError, match="even width"):
        train(hidden=12, heads=4, steps=1)
