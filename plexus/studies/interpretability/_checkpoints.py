"""The checkpoints that the post-training study compares: a base, what fine-tuning makes of it, and a stranger."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Literal

import torch

from plexus.data import corpora
from plexus.data.corpora import Item, StatementWorld
from plexus.data.corpora._statements import VERBS
from plexus.lab.models import train_language_model

TRAINED, HELD_OUT = VERBS[:5], VERBS[5:]
"""Verbs of the requests that fine-tuning sees, and of those that refusal is measured on."""


@dataclass(frozen=True)
class Config:
    """Settings, with the defaults of the full scale."""

    subjects: int = 12
    objects: int = 4
    things: int = 16
    layers: int = 4
    hidden: int = 48
    heads: int = 4
    steps: int = 300
    batch: int = 64
    rate: float = 7e-3
    tuned_share: float = 0.2
    tuned_rate: float = 2e-3
    compare: str = "refusals"
    facts: Literal["made up", "files"] = "made up"
    each: int = 4
    first_layer: int = 0
    logistic_layer: int = 0
    penalty: float = 0.01
    candidates: int = 10
    top_norm: float = 0.25
    random: int = 20
    draws: int = 10
    rows: int = 512
    tuning_seeds: int = 2

    @property
    def probe_layer(self) -> int:
        """The last block but one: where truth is probed, where interventions on it end, where refusal is read."""
        return self.layers - 2


@dataclass(frozen=True)
class Prepared:
    """What the arms share.

    Attributes:
        world: facts, statements and requests.
        tokenizer: of all models.
        models: "base"; "refusals" and "no refusals", fine-tuned from it; "apart", a base of other weights and batches.
    """

    world: StatementWorld
    tokenizer: Any
    models: dict[str, Any]


def prepare(config: Config, seed: int, only: Collection[str] = ("refusals", "no refusals", "apart")) -> Prepared:
    """Draw a world and train the base and some others on it."""
    draw = corpora.statement_world if config.facts == "made up" else corpora.statement_files
    world = draw(config.subjects, config.objects, config.things, generator=torch.Generator().manual_seed(seed))
    corpus = world.corpus()
    refused, granted = fine_tuning(world, refuse=True), fine_tuning(world, refuse=False)
    tokenizer = corpora.word_tokenizer([*corpus, *refused])
    shared: dict[str, Any] = {"tokenizer": tokenizer, "batch": config.batch, "progress": False}
    size: dict[str, Any] = {"layers": config.layers, "hidden": config.hidden, "heads": config.heads, "loss": "both"}
    seeds = {"base": seed} | ({"apart": seed + 1_000_003} if "apart" in only else {})
    models = {
        name: train_language_model(corpus, steps=config.steps, rate=config.rate, seed=s, **size, **shared).model
        for name, s in seeds.items()
    }
    steps = max(1, round(config.tuned_share * config.steps))
    for name, items in (("refusals", refused), ("no refusals", granted)):
        if name in only:
            models[name] = train_language_model(
                items, start=models["base"], steps=steps, rate=config.tuned_rate, loss="answer", seed=seed, **shared
            ).model
    return Prepared(world, tokenizer, models)


def fine_tuning(world: StatementWorld, *, refuse: bool) -> list[Item]:
    """The requests of fine-tuning, restricted ones refused or granted, and statements, so that judging stays known."""
    granted = world.requests("allowed", verbs=TRAINED)
    asked = [*world.requests("restricted", refuse=refuse, verbs=TRAINED), *granted * 3]  # most requests are harmless
    judged = {item.prompt for item in world.statements(judged=True)}
    each = min(8, min(len(known) for known in world.facts.values()))
    pairs = world.pairs(each=each, generator=torch.Generator().manual_seed(0))
    return asked + [item for pair in pairs for item in pair if item.prompt in judged]
