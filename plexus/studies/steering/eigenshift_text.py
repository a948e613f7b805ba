"""Damping the singular directions of an output layer on which states load before an insult: Shakespeare.

The same arms as the controlled study, on text that was not made for it: a megabyte of plays, in pieces of words. The
concept is a list of insults, each one token. Prompts are contexts of unseen text after which an insult stands in the
original. Rudeness is the share of continuations that hold an insult.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from plexus import data
from plexus.data import corpora
from plexus.errors import RangeError
from plexus.lab import Paper, exact, interval, study
from plexus.lab.models import train_language_model
from plexus.probe import scores
from plexus.studies.steering._damping import Bench
from plexus.studies.steering._damping_study import ARMS, Config, DampingStudy, Prepared, collect, generator
from plexus.studies.steering._experts import responses
from plexus.studies.steering.eigenshift import PAPER, EigenShift, above_nulls, less, of

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

    unit = "continuations"
    window = 48
    name = "eigenshift-text"

    paper: ClassVar[Paper] = PAPER
    claim = EigenShift.claim
    refuted_by = EigenShift.refuted_by
    fidelity = "B"
    scale_line = (
        "3-layer Llama of width 96 and 2,048 pieces on a megabyte of Shakespeare instead of LLaMA-2 7B; "
        "contexts before an insult instead of RealToxicityPrompts"
    )
    data = ("tiny Shakespeare",)
    seeds = 6
    deviations = (
        "A list of insults says what is rude; there is no external classifier and no saliency.",
        "States are collected from sampled continuations, and kept where the most likely token is another one: a small "
        "model hardly ever names an insult as its first choice. How many would be kept is measured (`sure`).",
        "Six seeds, because each trains a language model of its own.",
        "Perplexity is that of unseen passages without an insult.",
    )
    Config = Config
    scales: ClassVar[dict[str, dict[str, Any]]] = {
        "smoke": {
            "layers": 1, "hidden": 32, "steps": 30, "batch": 8, "clean_steps": 5, "collected": 400, "labelled": 80,
            "prompts": 16, "samples": 2, "new": 8, "neutral": 16, "draws": 2, "halves": 2, "tuning_seeds": 1,
        },
        "full": {
            "layers": 3, "hidden": 96, "steps": 500, "batch": 24, "collected": 1600, "prompts": 80, "samples": 6,
            "top_p": 0.95, "draws": 20,
        },
        "paper": {"layers": 6, "hidden": 256, "steps": 6000, "collected": 5000, "samples": 25, "top_p": 0.95},
    }  # fmt: skip
    arms = ARMS
    checks = (
        interval("continuations with an insult, %", of("none", "base_continuations"), role="sanity", at_least=2),
        exact("weights that the undo leaves different", of("margin", "undo_errors"), role="sanity", margin=0.0),
        interval("fewer by a bias on the list, %", of("logit bias", "reduction"), role="control", at_least=50.0),
        interval(
            "points of insults cut, above the larger of as many random directions and the published projection",
            above_nulls,
            role="mechanism",
            primary=True,
            at_least=20.0,
        ),
        interval("fewer insults, %", of("margin", "reduction"), role="mechanism", at_least=30.0),
        interval("perplexity, multiple", of("margin", "ratio"), role="mechanism", at_most=1.10),
        interval("without a list: fewer insults, %", of("abs", "reduction"), role="mechanism", at_least=30.0),
        interval("one random direction: fewer, %", of("random, one", "reduction"), role="mechanism", at_most=10.0),
        interval(
            "points of TPH above as many of the largest singular values", less("margin", "largest"), role="mechanism",
            at_least=0.0,
        ),
        interval(
            "AUROC of a layer's probe above the best unit's",
            lambda seed: seed["none"]["layer_probe"] - seed["none"]["best_unit"],
            role="mechanism",
            at_least=0.05,
        ),
        interval(
            "points of TPH above a bias on the logits of the list",
            less("margin", "logit bias"),
            role="advantage",
            primary=True,
            at_least=0.0,
        ),
        interval(
            "without a list: points of TPH above the best of three ways to scale units",
            lambda seed: seed["abs"]["tph"] - max(seed[arm]["tph"] for arm in ("det-0", "damp", "aura")),
            role="advantage",
            at_least=0.0,
        ),
    )  # fmt: skip

    def prepare(self, config: Config, seed: int) -> Prepared:
        text = data.shakespeare().lower()
        cuts = {part: text[int(a * len(text)) : int(b * len(text))] for part, (a, b) in PARTS.items()}
        speeches = cuts["train"].split("\n\n")
        tokenizer = corpora.subword_tokenizer(speeches, 2048, whole=INSULTS)
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
        risky = train.before(config.collected // 2, CONTEXT, numbers)
        risky = risky.repeat(-(-config.collected // (2 * len(risky))), 1)[: config.collected // 2]
        usual = train.anywhere(config.collected - len(risky), CONTEXT, numbers)
        mixed = [{"input_ids": rows, "attention_mask": torch.ones_like(rows)} for rows in (risky, usual)]
        present, absent, sure = collect(config, made.model, mixed, words, seed)
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
