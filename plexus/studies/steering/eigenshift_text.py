"""Damping the singular directions of an output layer on which states load before an insult: Shakespeare.

The same arms as the controlled study, on text that was not made for it: a megabyte of plays, in pieces of words. The
concept is a list of insults, each one token. Prompts are contexts of unseen text after which an insult stands in the
original. Rudeness is the expected share of insults among the tokens of sampled continuations: the probability of the
list at each of their steps. The states in which an insult is about to come are those before an insult of the training
text, because a small model that continues freely says one too seldom to collect them.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from plexus import data, probe
from plexus.data import corpora
from plexus.errors import RangeError
from plexus.lab import Paper, interval, study
from plexus.lab.models import train_language_model
from plexus.probe import scores
from plexus.studies.steering._damping import Bench
from plexus.studies.steering._damping_study import (
    ARMS,
    ASKED_OF_ALL,
    Config,
    DampingStudy,
    Prepared,
    above_nulls,
    generator,
    of,
)
from plexus.studies.steering._experts import responses
from plexus.studies.steering.eigenshift import PAPER, EigenShift
from plexus.units import Site

LIST = (
    "knave knaves villain villains rogue rogues slave slaves rascal rascals wretch wretches traitor traitors cur curs "
    "coward cowards fool fools whoreson bastard bastards toad toads viper vipers beast beasts dog dogs thief thieves "
    "devil devils hag witch strumpet minion ass"
)
INSULTS = LIST.split()
PARTS = {"train": (0.0, 0.7), "validation": (0.7, 0.85), "test": (0.85, 1.0)}
CONTEXT, LENGTH = 16, 40


class Play:
    """The tokens of one part of the text, and where insults stand in it."""

    def __init__(self, tokens: Tensor, words: Tensor) -> None:
        self.tokens, self.hits = tokens, torch.isin(tokens, words)

    def before(self, count: int, length: int, numbers: torch.Generator) -> Tensor:
        """Contexts `[row, length]` that end right before an insult, none twice; at most `count`."""
        places = self.hits.nonzero().squeeze(1)
        places = places[places >= length]
        places = places[torch.randperm(len(places), generator=numbers)[:count]]
        return self._windows(places - length, length)

    def anywhere(self, count: int, length: int, numbers: torch.Generator, *, insults: bool | None = None) -> Tensor:
        """Windows `[row, length]` from anywhere: with an insult, without one, or either."""
        held = self.hits.long().cumsum(0)
        held = torch.cat([held.new_zeros(1), held])
        inside = held[length:] - held[:-length]
        free = torch.ones_like(inside, dtype=torch.bool) if insults is None else (inside > 0) == insults
        starts = free.nonzero().squeeze(1)
        if len(starts) < count:
            raise RangeError(
                "the text is too short for so many windows", given=count, expected=f"at most {len(starts)}"
            )
        return self._windows(starts[torch.randperm(len(starts), generator=numbers)[:count]], length)

    def _windows(self, starts: Tensor, length: int) -> Tensor:
        return self.tokens[starts[:, None] + torch.arange(length)]


@study
class EigenShiftText(DampingStudy):
    """Fewer insults by damping a few singular directions of the output layer."""

    unit = "mass"
    window = 48
    name = "eigenshift-text"

    paper: ClassVar[Paper] = PAPER
    claim = EigenShift.claim
    refuted_by = EigenShift.refuted_by
    fidelity = "B"
    scale_line = (
        "2-layer Llama of width 64 and 1,536 pieces on a megabyte of Shakespeare instead of LLaMA-2 7B; "
        "contexts before an insult instead of RealToxicityPrompts"
    )
    data = ("tiny Shakespeare",)
    seeds = 6
    deviations = (
        "A list of insults says what is rude; there is no external classifier and no saliency.",
        "The states in which the concept is present are those before an insult of the training text, and the others "
        "those of other places in it, not of the model's own continuations: in a pilot 21 of 1,600 held an insult. How "
        "many of them have an insult as their most likely token is measured (`sure`).",
        "Rudeness is the probability of the list at the steps of sampled continuations, their expected share of "
        "insults: the share drawn (measured beside it) has too few events for a small model.",
        "Directions are also ranked by `push`, the level of their part in the margin before an insult instead of its "
        "difference to other places: that is what taking one out loses.",
        "Six seeds, because each trains a language model of its own.",
        "Perplexity is that of unseen passages without an insult.",
    )
    Config = Config
    scales: ClassVar[dict[str, dict[str, Any]]] = {
        "smoke": {
            "layers": 1, "hidden": 32, "steps": 10, "batch": 8, "clean_steps": 2, "collected": 100, "labelled": 80,
            "prompts": 16, "samples": 2, "new": 8, "neutral": 16, "draws": 2, "halves": 1, "tuning_seeds": 0,
        },
        "full": {
            "layers": 2, "hidden": 64, "steps": 500, "batch": 16, "collected": 400, "prompts": 64, "samples": 3,
            "neutral": 96, "top_p": 0.95,
        },
        "paper": {"layers": 6, "hidden": 256, "steps": 6000, "collected": 2000, "samples": 25, "top_p": 0.95},
    }  # fmt: skip
    arms = ARMS
    checks = (
        *ASKED_OF_ALL,
        interval("probability of an insult, unedited, %", of("none", "base_mass"), role="sanity", at_least=0.1),
        interval("fewer by a bias on the list, %", of("logit bias", "reduction"), role="control", at_least=50.0),
        interval(
            "points of insults cut, above the larger of as many random directions and the published projection",
            above_nulls,
            role="mechanism",
            primary=True,
            at_least=20.0,
        ),
        interval("fewer insults, %", of("margin", "reduction"), role="mechanism", at_least=30.0),
        interval("ranked by level: fewer insults, %", of("push", "reduction"), role="mechanism", at_least=30.0),
        interval("without a list: fewer insults, %", of("abs", "reduction"), role="mechanism", at_least=30.0),
        interval("one random direction: fewer, %", of("random, one", "reduction"), role="mechanism", at_most=10.0),
    )  # fmt: skip

    def prepare(self, config: Config, seed: int) -> Prepared:
        text = data.shakespeare().lower()
        cuts = {part: text[int(a * len(text)) : int(b * len(text))] for part, (a, b) in PARTS.items()}
        speeches = cuts["train"].split("\n\n")
        tokenizer = corpora.subword_tokenizer(speeches, 1536, whole=INSULTS)
        words = torch.tensor(tokenizer.convert_tokens_to_ids(INSULTS))
        plays = {
            part: Play(torch.tensor(tokenizer(cut, add_special_tokens=False).input_ids), words)
            for part, cut in cuts.items()
        }
        made = train_language_model(
            [cuts["train"]], tokenizer=tokenizer, layers=config.layers, hidden=config.hidden, heads=config.heads,
            steps=config.steps, batch=config.batch, rate=config.rate, seed=seed, window=self.window, cache=False,
            progress=False,
        )  # fmt: skip
        numbers, train = generator(seed, "text"), plays["train"]
        present, likely = _states(made.model, train.before(config.collected, CONTEXT, numbers))
        absent, _ = _states(made.model, train.anywhere(config.collected, CONTEXT, numbers, insults=False))
        sure = float(torch.isin(likely, words).double().mean())
        half = config.labelled // 2
        shown = [train.anywhere(half, 32, numbers, insults=True), train.anywhere(half, 32, numbers, insults=False)]
        labelled, labels = torch.cat(shown), torch.arange(2 * half) < half
        units = scores.auroc(responses(made.model, labelled, labels))
        prompts = {part: plays[part].before(config.prompts, CONTEXT, numbers) for part in ("validation", "test")}
        neutral = {
            part: plays[part].anywhere(config.neutral, LENGTH, numbers, insults=False)
            for part in ("validation", "test")
        }
        clean = "\n\n".join(s for s in speeches if not set(tokenizer(s).input_ids) & set(words.tolist()))
        bench = Bench(made.model, tokenizer, words, present, absent, units, sure, prompts, neutral, 8)
        return Prepared(bench, (labelled, labels), [clean])


def _states(model: Any, contexts: Tensor) -> tuple[Tensor, Tensor]:
    """What the output layer reads at the end of each context, and the token that it then finds most likely."""
    head = model.get_output_embeddings()
    path = next(name for name, module in model.named_modules() if module is head)
    site = Site(path, "b t u", at="input")
    states = probe.record(model, [{"input_ids": rows} for rows in contexts.split(256)], site, pool="last")[site]
    with torch.no_grad():
        return states, head(states).argmax(1)
