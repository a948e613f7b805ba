"""Perplexity, coherence and bisection against what they must be."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from plexus import edit, probe
from plexus.errors import DtypeError, RangeError, ShapeError, UnsupportedError
from plexus.units import Neurons, sites
from tests.families import tiny


class Words:
    """Words are numbers."""

    def __call__(self, texts: list[str], **options: Any) -> dict[str, list[list[int]]]:
        start = [1] if options.get("add_special_tokens", True) else []
        return {"input_ids": [[*start, *(int(word) for word in text.split())] for text in texts]}


TEXTS = ["3 4 5", "6 7 8 9 10 11", "12", "13 14 15 16"]


@pytest.mark.parametrize("family", ["gpt2", "llama", "neox"])
@pytest.mark.parametrize("batch", [1, 3, 16])
def test_perplexity_is_that_of_each_text_alone(family: str, batch: int) -> None:
    model, _ = tiny(family)
    total, count = 0.0, 0
    for text in TEXTS:
        ids = torch.tensor(Words()([text])["input_ids"])
        with torch.no_grad():
            loss = model(input_ids=ids, labels=ids).loss  # transformers' own mean over the predicted tokens
        total, count = total + float(loss) * (ids.shape[1] - 1), count + ids.shape[1] - 1
    assert probe.perplexity(model, Words(), TEXTS, batch=batch) == pytest.approx(math.exp(total / count), rel=1e-5)


def test_only_the_text_after_a_prompt_counts() -> None:
    model, _ = tiny("llama")
    whole = probe.surprisal(model, Words(), ["3 4 5 6 7"])[0]
    part = probe.surprisal(model, Words(), ["6 7"], prompts=["3 4 5"])[0]
    torch.testing.assert_close(part, whole[-2:])
    cut = probe.surprisal(model, Words(), ["3 4 5 6 7"], longest=4)[0]
    torch.testing.assert_close(cut, whole[:3])


def test_perplexity_sees_edits_and_leaves_the_model_as_it_was() -> None:
    model, _ = tiny("llama")
    model.train()
    before = probe.perplexity(model, Words(), TEXTS)
    where = sites.residual(model)[-1]
    with edit.add(model, ~Neurons.of({where: 16}), torch.linspace(-9, 9, 16)):
        assert probe.perplexity(model, Words(), TEXTS) != pytest.approx(before, rel=0.01)
    assert probe.perplexity(model, Words(), TEXTS) == before
    assert model.training


def test_what_perplexity_refuses() -> None:
    model, _ = tiny("llama")
    with pytest.raises(DtypeError, match="list"):
        probe.perplexity(model, Words(), "3 4 5")
    with pytest.raises(ShapeError, match="no texts"):
        probe.perplexity(model, Words(), [])
    with pytest.raises(ShapeError, match="one prompt"):
        probe.perplexity(model, Words(), ["3"], prompts=["4", "5"])
    with pytest.raises(ShapeError, match="predicted"):
        probe.perplexity(model, Words(), [""])
    with pytest.raises(UnsupportedError, match="logits"):
        probe.perplexity(tiny("bert")[0], Words(), ["3 4"])


@given(st.lists(st.sampled_from("ab"), max_size=30), st.integers(1, 5))
def test_repetition_counts_runs_that_stand_earlier(words: list[str], n: int) -> None:
    seen, again, runs = set(), 0, 0
    for i in range(len(words) - n + 1):
        run = tuple(words[i : i + n])
        runs, again = runs + 1, again + (run in seen)
        seen.add(run)
    found = probe.coherence(" ".join(words), words=n).repetition
    assert found == pytest.approx(again / runs if runs else 0.0)


@given(st.text())
@settings(max_examples=200, deadline=None)
def test_coherence_is_three_shares(text: str) -> None:
    assert all(0 <= value <= 1 for value in probe.coherence(text))


def test_foreign_letters_and_loops() -> None:
    assert probe.coherence("мир и peace", script="CYRILLIC").foreign == pytest.approx(5 / 9)
    assert probe.coherence("12 + 3 = ?").foreign == 0
    assert probe.coherence("again " * 100).compression < 0.1
    with pytest.raises(DtypeError):
        probe.coherence(["a"])  # type: ignore[arg-type]


@given(st.floats(0.01, 9.99), st.sampled_from([lambda x: x, lambda x: x**3, math.expm1]))
def test_bisection_finds_the_edge_of_a_growing_cost(edge: float, cost: Callable[[float], float]) -> None:
    found = probe.largest_within(cost, cost(edge), high=10.0, tolerance=1e-4)
    assert found.cost <= cost(edge)
    assert found.value <= edge
    assert found.over is not None
    assert found.over > edge
    assert found.over - found.value <= 1e-3 + 1e-12
    assert (found.value, found.cost) in found.tried


def test_bisection_on_costs_that_jump_or_break() -> None:
    whole = probe.largest_within(lambda x: 0.0, 1.0, high=3.0)
    assert whole.value == 3.0
    assert whole.over is None
    broken = probe.largest_within(lambda x: x if x < 1 else math.nan, 5.0, high=4.0, tolerance=1e-3)
    assert 0.99 < broken.value < 1
    with pytest.raises(RangeError, match="smallest"):
        probe.largest_within(lambda x: 2 - x, 1.0, high=3.0)
    with pytest.raises(RangeError, match="order"):
        probe.largest_within(lambda x: x, 1.0, high=-1.0)
