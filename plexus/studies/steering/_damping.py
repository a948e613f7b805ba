"""What the studies of damped directions share: the edits under test, and what is measured under each."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from plexus import edit, probe
from plexus.edit import svd
from plexus.units import Neurons, Scores, Site

Method = Literal["none", "eigenshift", "largest", "random", "units", "bias", "finetune"]


@dataclass(frozen=True)
class Edits:
    """Which edit an arm makes; fields that its method does not read are idle.

    Attributes:
        method: none, directions by score, the largest directions, random ones, units, a bias, or further training.
        by: how directions are scored.
        transposed: project states with V in the place of Vᵀ, as the published code does.
        k: how many directions.
        factor: of their singular values, or of damped units.
        how: what is done to units.
        above: AUROC above which a unit counts as an expert.
        bias: added to the logits of the word list.
    """

    method: Method = "none"
    by: Literal["margin", "push", "abs", "signed"] = "margin"
    transposed: bool = False
    k: int = 1
    factor: float = 0.0
    how: Literal["zero", "damp", "aura"] = "zero"
    above: float = 0.5
    bias: float = 0.0


@dataclass(frozen=True, eq=False)
class Bench:
    """A trained model and all that the arms are given of it.

    Attributes:
        model, tokenizer: trained on texts with the word list in it.
        words: tokens of the word list, `[word]`.
        present: states that predicted a word of the list, `[row, unit]`.
        absent: states that predicted the first token of continuations without one, `[row, unit]`.
        units: AUROC of each hidden unit of the MLPs for texts with such a word.
        sure: share of the states in `present` whose most likely token was the one put out.
        prompts: prompts of each part, `[row, token]`, after which such words are likely.
        neutral: texts of each part without such words, `[text, token]`.
        start: the first token of these that counts.
    """

    model: Any
    tokenizer: Any
    words: Tensor
    present: Tensor
    absent: Tensor
    units: Scores
    sure: float
    prompts: dict[str, Tensor]
    neutral: dict[str, Tensor]
    start: int


class AsTokens:
    """The tokenizer of what is tokens already."""

    def __call__(self, rows: list[list[int]], **options: Any) -> dict[str, list[list[int]]]:
        return {"input_ids": rows}


@contextlib.contextmanager
def edited(bench: Bench, how: Edits, found: svd.Directions, generator: torch.Generator | None = None) -> Iterator[Any]:
    """The model under the edit of an arm; what was changed is given out where it is a change of weights."""
    model = bench.model
    if how.method in ("none", "finetune"):
        yield None
    elif how.method == "units":
        if not any(bool((values > how.above).any()) for values in bench.units.values.values()):
            yield None  # no unit is that good, so none is touched
            return
        with edit.unit_scaling(model, bench.units, how.how, above=how.above, factor=how.factor):
            yield None
    elif how.method == "bias":
        site = Site(found.path, "b t u")
        with edit.add(model, Neurons.of({site: len(found.u)}, {site: bench.words.tolist()}), how.bias):
            yield None
    else:
        with svd.scale(model, chosen(bench, how, found, generator), how.factor, found=found) as change:
            yield change


def chosen(bench: Bench, how: Edits, found: svd.Directions, generator: torch.Generator | None = None) -> Tensor:
    """The directions that an arm damps."""
    if how.method == "largest":
        return torch.arange(how.k)
    if how.method == "random":
        return torch.randperm(len(found), generator=generator)[: how.k]
    return scored(bench, how, found).argsort(descending=True, stable=True)[: how.k]


def scored(bench: Bench, how: Edits, found: svd.Directions) -> Tensor:
    """The scores by which an arm ranks directions, `[direction]`."""
    seen = replace(found, vh=found.vh.T.contiguous()) if how.transposed else found
    return svd.direction_scores(seen, bench.present, bench.absent, by=how.by, outputs=bench.words)


def continued(model: Any, prompts: Tensor, new: int, samples: int, top_p: float, seed: int) -> Tensor:
    """Sampled continuations, `[prompt, sample, token]`; every arm meets the same random numbers."""
    rows = prompts.repeat_interleave(samples, 0)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        out: Tensor = model.generate(
            input_ids=rows, attention_mask=torch.ones_like(rows), max_new_tokens=new, do_sample=True, top_k=0,
            top_p=top_p, eos_token_id=None, pad_token_id=0,
        )  # fmt: skip
    return out[:, prompts.shape[1] :].reshape(len(prompts), samples, new)


def rudeness(tokens: Tensor, words: Tensor) -> dict[str, float]:
    """Shares of tokens, of continuations and of prompts that show a word of the list, in per cent."""
    hit = torch.isin(tokens, words)
    return {
        "tokens": 100 * float(hit.double().mean()),
        "continuations": 100 * float(hit.any(2).double().mean()),
        "prompts": 100 * float(hit.any(2).any(1).double().mean()),
    }


def mass(model: Any, prompts: Tensor, tokens: Tensor, words: Tensor) -> float:
    """Mean probability of the word list at the steps of continuations, in per cent.

    That is the expected share of such tokens at the next step, with far less noise than the share that was drawn.
    """
    rows = torch.cat([prompts.repeat_interleave(tokens.shape[1], 0), tokens.flatten(0, 1)], 1)
    with torch.no_grad():
        logits: Tensor = model(input_ids=rows, use_cache=False).logits[:, prompts.shape[1] - 1 : -1]
    return 100 * float(logits.float().softmax(-1)[..., words].sum(-1).double().mean())


def log_probs(model: Any, texts: Tensor, start: int) -> Tensor:
    """Log-probabilities of every token of the texts from `start` on, `[place, token]`."""
    with torch.no_grad():
        logits: Tensor = model(input_ids=texts, use_cache=False).logits[:, start - 1 : -1]
    return logits.float().log_softmax(-1).flatten(0, 1)


def divergence(before: Tensor, after: Tensor, words: Tensor) -> float:
    """Mean Kullback-Leibler divergence of the next token among those outside the word list, in nats."""
    keep = torch.ones(before.shape[1], dtype=torch.bool)
    keep[words] = False
    p, q = before[:, keep].log_softmax(1), after[:, keep].log_softmax(1)
    return float((p.exp() * (p - q)).sum(1).mean())


def harmonic(before: float, after: float, perplexity: float, edited: float) -> float:
    """TPH in per cent: the harmonic mean of the relative reduction and of the share of perplexity kept."""
    kept, reduced = min(1.0, perplexity / edited), max(0.0, 1 - after / before)
    return 200 * kept * reduced / (kept + reduced) if reduced else 0.0


def reduction(before: float, after: float) -> float:
    """Relative reduction in per cent; negative where there is more."""
    return 100 * (1 - after / before)


class Measured:
    """Everything that is measured of one model on one part of the data, before and under an edit."""

    def __init__(self, bench: Bench, part: str, *, new: int, samples: int, top_p: float, seed: int) -> None:
        self.bench, self.part = bench, part
        self.options = {"new": new, "samples": samples, "top_p": top_p, "seed": seed}
        self.before = self.of(bench.model)
        self.near = bench.neutral[part][:64]
        self.spoken = log_probs(bench.model, self.near, bench.start)

    def of(self, model: nn.Module) -> dict[str, float]:
        """Rudeness and perplexity."""
        texts, start = self.bench.neutral[self.part], self.bench.start
        tokens = continued(model, self.bench.prompts[self.part], **self.options)  # type: ignore[arg-type]
        fluent = probe.perplexity(
            model, AsTokens(), texts[:, start:].tolist(), prompts=texts[:, :start].tolist(), batch=256
        )
        expected = mass(model, self.bench.prompts[self.part], tokens, self.bench.words)
        return {**rudeness(tokens, self.bench.words), "mass": expected, "perplexity": fluent}

    def lessened(self, model: nn.Module, unit: str) -> float:
        """By how many per cent there is less rudeness than before."""
        prompts, words = self.bench.prompts[self.part], self.bench.words
        tokens = continued(model, prompts, **self.options)  # type: ignore[arg-type]
        now = rudeness(tokens, words) | {"mass": mass(model, prompts, tokens, words)}
        return reduction(self.before[unit], now[unit])

    def under(self, model: nn.Module, unit: str) -> dict[str, float]:
        """The same under an edit, beside what it was; `unit` names the share that counts as rudeness."""
        now = self.of(model)
        after = log_probs(model, self.near, self.bench.start)
        ratio = now["perplexity"] / self.before["perplexity"]
        return {
            **now,
            "reduction": reduction(self.before[unit], now[unit]),
            "ratio": ratio,
            "tph": harmonic(self.before[unit], now[unit], self.before["perplexity"], now["perplexity"]),
            "divergence": divergence(self.spoken, after, self.bench.words),
        }
