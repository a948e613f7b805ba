"""The edits that the study of atomic steering compares, each with the settings that may be tried."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from plexus import edit, probe
from plexus.edit import Edit
from plexus.errors import require
from plexus.explain.controls import matched_random
from plexus.probe import AnswerPair, AnswerStates
from plexus.probe.scores import SignConsistency, sign_consistency
from plexus.units import Neurons, Scores, Site

KINDS = ("attention", "ffn", "layer")
COUNTS = (2, 4, 8, 16, 32)
STRENGTHS = (1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0)
SHIFTS = tuple(0.05 * 40000 ** (i / 59) for i in range(60))
"""How far whole vectors are moved, 0.05 to 2000 times the mean difference: as many settings as other methods try."""


@dataclass(frozen=True, eq=False)
class Fitted:
    """What the pairs of one task say about one kind of site.

    Attributes:
        states: after right and after wrong answers.
        signs: consistency of the sign of each coordinate.
        mean: mean difference of each coordinate.
        size: mean absolute value of each coordinate.
    """

    states: AnswerStates
    signs: SignConsistency
    mean: Scores
    size: Scores


@dataclass(frozen=True)
class Candidate:
    """One setting of one method: what it is called, the edit, and how many coordinates it moves."""

    setting: dict[str, Any] = field(default_factory=dict)
    edit: Edit | None = None
    moved: int = 0


@dataclass(frozen=True, eq=False)
class Questions:
    """Questions of one task and part: tokens `[question, token]`, and the token of each right answer."""

    tokens: Tensor
    answers: Tensor

    def accuracy(self, model: Any) -> float:
        """Share of questions whose most likely next token is the right answer, in per cent."""
        with torch.no_grad():
            logits = model(input_ids=self.tokens, use_cache=False).logits[:, -1]
        return 100 * float((logits.argmax(1) == self.answers).double().mean())


def divergence(before: Tensor, after: Tensor) -> float:
    """Mean Kullback-Leibler divergence of the next token, in nats."""
    return float((before.exp() * (before - after)).sum(-1).mean())


def spoken(model: Any, tokens: Tensor) -> Tensor:
    """Log-probabilities of the next token at every place."""
    with torch.no_grad():
        logits: Tensor = model(input_ids=tokens, use_cache=False).logits
    return logits.float().log_softmax(-1)


def fitted(model: Any, tokenizer: Any, pairs: list[AnswerPair], kind: str, position: str) -> Fitted:
    """Record the pairs of one task at one kind of site."""
    places = probe.steering_sites(model, kind)  # type: ignore[arg-type]
    states = probe.answer_states(model, tokenizer, pairs, places, position=position)  # type: ignore[arg-type]
    moved = {site: states.right[site].double() - states.wrong[site].double() for site in places}
    size = {site: (states.right[site].abs() + states.wrong[site].abs()).double().mean(0) / 2 for site in places}
    return Fitted(
        states,
        sign_consistency(states.right, states.wrong),
        Scores({site: value.mean(0) for site, value in moved.items()}, None, "mean difference"),
        Scores(size, None, "mean size"),
    )


def atomic(found: Fitted, k: int, strength: float, *, rank: Scores | None = None) -> Candidate:
    """Atomic steering of the k most consistent coordinates, or of the k highest in another ranking."""
    beta, total = found.signs.beta, sum(found.signs.beta.sizes.values())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # equal shares of 300 pairs are common, and the lower index is taken
        among = None if rank is None else rank.top(min(k, total), by="abs")
        made = edit.atomic_steering(beta, min(k, total), strength, among=among)
        return Candidate({"k": k, "strength": strength}, made, len(made.neurons))


def atoms(found: dict[str, Fitted], kinds: tuple[str, ...] = KINDS, by_mean: bool = False) -> Iterator[Candidate]:
    """Every setting of atomic steering, of the most consistent coordinates or of those with the largest difference."""
    for kind, k, strength in itertools.product(kinds, COUNTS, STRENGTHS):
        made = atomic(found[kind], k, strength, rank=found[kind].mean if by_mean else None)
        yield Candidate({"kind": kind, **made.setting}, made.edit, made.moved)


def vectors(found: dict[str, Fitted]) -> Iterator[Candidate]:
    """Contrastive activation addition: the mean difference of the whole vector, at one block."""
    mean = found["layer"].mean
    for site, strength in itertools.product(mean.sites, SHIFTS):
        units = ~Neurons.of({site: mean.sizes[site]})
        yield Candidate({"site": site.path, "strength": strength}, edit.add(units, strength * mean[site]), len(units))


def heads(found: dict[str, Fitted], count: int) -> Iterator[Candidate]:
    """Inference-time intervention: the heads whose probes do best are moved along the difference of their means."""
    linear = require("sklearn.linear_model", "lab", purpose="probes of heads")
    states = found["attention"].states
    ranked: list[tuple[float, Site, int, Tensor]] = []
    for site in states.right.sites:
        right, wrong = (part[site].double().unflatten(1, (count, -1)) for part in states)
        cut = len(right) * 2 // 3
        for head in range(count):
            x = torch.cat([right[:, head], wrong[:, head]])
            y = torch.arange(len(x)) < len(right)
            train = torch.cat([torch.arange(cut), torch.arange(cut) + len(right)])
            test = torch.ones(len(x), dtype=torch.bool)
            test[train] = False
            fit = linear.LogisticRegression(max_iter=200).fit(x[train].numpy(), y[train].numpy())
            direction = right[:, head].mean(0) - wrong[:, head].mean(0)
            direction = direction / direction.norm().clamp(min=1e-12)
            ranked.append((fit.score(x[test].numpy(), y[test].numpy()), site, head, direction * (x @ direction).std()))
    ranked.sort(key=lambda entry: -entry[0])
    width = states.right.sizes[states.right.sites[0]] // count
    strengths = tuple(0.25 * 8000 ** (i / 23) for i in range(24))
    for k, strength in itertools.product((1, 2, 4, 6, 8), strengths):
        shift = {site: torch.zeros(states.right.sizes[site], dtype=torch.float64) for site in states.right.sites}
        for _, site, head, push in ranked[:k]:
            shift[site][head * width : (head + 1) * width] = strength * push
        units = Neurons({site: value != 0 for site, value in shift.items()})
        yield Candidate({"k": k, "strength": strength}, edit.add(units, shift), k * width)


def masked(found: dict[str, Fitted]) -> Iterator[Candidate]:
    """Adaptive scaling of the coordinates with the largest mean difference, all by the same factor."""
    for kind, k, strength in itertools.product(KINDS, COUNTS, STRENGTHS):
        units = found[kind].mean.top(min(k, sum(found[kind].mean.sizes.values())), by="abs")
        yield Candidate({"kind": kind, "k": k, "strength": strength}, edit.scale(units, 1 + strength), len(units))


def biased(head: Site, outputs: int, token: int) -> Iterator[Candidate]:
    """A constant on the logit of the usual answer: what a reader of the bias would do."""
    for amount in (-1.0, -2.0, -3.0, -4.0, 0.25, 0.5, -0.25, -0.5, -0.75, -1.5):
        yield Candidate({"amount": amount}, edit.add(Neurons.of({head: outputs}, {head: [token]}), amount), 1)


def best(
    candidates: Iterator[Candidate], score: Callable[[Edit], float], every: int = 1
) -> tuple[Candidate, float, int]:
    """The candidate with the highest score, the first of several; its score; and how many were tried: each n-th."""
    found, highest, tried = Candidate(), -1.0, 0
    for candidate in itertools.islice(candidates, 0, None, every):
        assert candidate.edit is not None
        value, tried = score(candidate.edit), tried + 1
        if value > highest:
            found, highest = candidate, value
    return found, highest, tried


def stand_ins(change: Edit, numbers: torch.Generator, draws: int, match: Scores | None = None) -> list[Edit]:
    """The same changes on random coordinates of the same sites; outside the chosen ones where there is room."""
    units = change.neurons
    room = all(2 * count <= units.sizes[site] for site, count in units.counts.items())
    return [matched_random(change, numbers, exclude=room, match=match) for _ in range(draws)]
