"""The tiny language model of `relation_neurons`, what it is asked, and the ways of choosing units for a relation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from plexus.data import corpora
from plexus.data.corpora import FactWorld, Item
from plexus.edit import Edit, replace
from plexus.explain.controls import matched_random, shuffled
from plexus.lab.models import recall, train_language_model
from plexus.probe import record, scores
from plexus.probe._quiet import quiet
from plexus.units import Neurons, Scores, SiteList, sites

TEMPLATES, UNSEEN = (0, 1, 2, 3), 4
"""Wordings that units are chosen on, and one that is kept for the test."""

Score = Literal["average precision", "difference", "d prime", "attribution", "attribution contrast", "test facts"]


@dataclass(frozen=True)
class Config:
    """Settings of a trial.

    Attributes:
        entities: of each of the three pools.
        hidden: width of the model.
        intermediate: hidden units of an MLP.
        layers: of the model.
        steps: of training.
        early_steps: of training the second model, which knows a part of the facts.
        score: how units are ranked for a relation.
        pool: which tokens of a prompt a unit's response is taken from.
        by: which end of the ranking is taken.
        share: of the units, chosen for each relation.
        shuffle: rank by labels that mean nothing.
        random: put matched random units in the place of the chosen ones.
        left_out: rank by the lowest score over leaving one wording out.
        where: the projections whose outputs are units, or "hidden" for their gated product.
        force: hold the units at their medians over the relation's prompts instead of at zero.
        controls: matched random sets for each relation.
        details: measure the dose, single units, the second language and the second model too.
        doses: shares of the units, for the dose and for what relations gain.
        tuning: number of seeds that shares and rivals are chosen on.
    """

    entities: int = 64
    hidden: int = 64
    intermediate: int = 192
    layers: int = 2
    steps: int = 500
    early_steps: int = 280
    score: Score = "average precision"
    pool: Literal["last", "mean", "max"] = "last"
    by: Literal["value", "low", "both"] = "value"
    share: float = 0.16
    shuffle: bool = False
    random: bool = False
    left_out: bool = False
    where: Literal["all", "gate", "up", "down", "hidden"] = "all"
    force: bool = False
    controls: int = 1
    details: bool = False
    doses: tuple[float, ...] = (0.01, 0.02, 0.04, 0.08, 0.16, 0.24)
    tuning: int = 3


class Questions:
    """Items as batches of prompts, and the words that answer them.

    Called with a model it gives what each item brings: a hit or none, and the log-probability of the answer.
    """

    def __init__(self, items: Sequence[Item], tokenizer: Any) -> None:
        self.items = list(items)
        self.labels, self.names = corpora.labels(items)
        self.templates = torch.tensor([item.template for item in items])
        self.subjects = corpora.labels(items, "subject")[0]
        self.batches = corpora.batches(items, tokenizer)
        self.answers = torch.tensor([tokenizer.convert_tokens_to_ids(item.answer) for item in items])

    def says(self, model: nn.Module) -> Tensor:
        """Log-probabilities of the next word, `[item, word]`."""
        with quiet(model):
            parts = [model(**batch, use_cache=False, logits_to_keep=1).logits[:, -1] for batch in self.batches]
        return torch.cat(parts).float().log_softmax(-1)

    def brings(self, said: Tensor) -> dict[str, Tensor]:
        """Hits and log-probabilities of the answers, `[…, item]`, from what is said, `[…, item, word]`."""
        answers = self.answers.expand(said.shape[:-1])
        hit = said.argmax(-1) == answers
        return {"accuracy": hit.double(), "log-probability": said.gather(-1, answers[..., None])[..., 0]}

    def __call__(self, model: nn.Module) -> dict[str, Tensor]:
        return self.brings(self.says(model))


class Prepared(NamedTuple):
    """What the arms share."""

    world: FactWorld
    model: Any
    early: Any
    tokenizer: Any
    recall: float
    early_recall: float


def generator(seed: int, use: int) -> torch.Generator:
    return torch.Generator().manual_seed(1000 * seed + use)


def trained(config: Config, seed: int, *, early: bool = True) -> Prepared:
    """A world of its own for each seed, a model that knows it and one that knows a part of it."""
    world = corpora.fact_world(config.entities, generator=generator(seed, 0))
    items = world.items(language=None)
    tokenizer = corpora.word_tokenizer(items)
    models = {}
    for name, steps in (("model", config.steps), ("early", config.early_steps)):
        if name == "model" or early:
            models[name] = train_language_model(
                items, tokenizer=tokenizer, layers=config.layers, hidden=config.hidden, loss="both", steps=steps,
                intermediate=config.intermediate, rate=6e-3, seed=seed,
            ).model  # fmt: skip
    known = {name: recall(model, tokenizer, world.items()).accuracy for name, model in models.items()}
    return Prepared(world, models["model"], models.get("early"), tokenizer, known["model"], known.get("early", 0.0))


def to_choose_on(prepared: Prepared) -> Questions:
    """Every other subject, four wordings."""
    return Questions(prepared.world.items(subjects="even", templates=TEMPLATES), prepared.tokenizer)


def to_test_with(prepared: Prepared, language: str = "first") -> Questions:
    """The other subjects, in a wording that units were chosen on and in one that was kept for the test."""
    items = prepared.world.items(subjects="odd", templates=(TEMPLATES[0], UNSEEN), language=language)
    corpora.refuse_common_subjects(to_choose_on(prepared).items, items)
    return Questions(items, prepared.tokenizer)


def places(config: Config, model: nn.Module) -> SiteList:
    """The sites of the trial."""
    if config.where == "hidden":
        return sites.mlp(model)
    found = sites.projections(model)
    return SiteList([site for site in found if config.where == "all" or f".{config.where}_proj" in site.path])


def ranked(config: Config, model: nn.Module, questions: Questions, test: Questions, seed: int) -> Scores:
    """A score of each unit for each relation."""
    at = places(config, model)
    labels, names = questions.labels, questions.names
    if config.score in ("attribution", "attribution contrast", "test facts"):
        found = attribution(model, test if config.score == "test facts" else questions, at)
        return found if config.score == "attribution" else contrast(found)
    responses = record(model, questions.batches, at, pool=config.pool)
    if config.shuffle:
        labels = shuffled(labels, generator(seed, 1))
    if config.score == "difference":
        return contrast(scores.mean(responses, labels, names=names))
    if config.score == "d prime":
        return scores.dprime(responses, labels, names=names)
    if config.left_out:
        return scores.leave_one_out(scores.average_precision, responses, labels, questions.templates, names=names)
    return scores.average_precision(responses, labels, names=names)


def attribution(model: nn.Module, questions: Questions, at: SiteList) -> Scores:
    """Mean of |value × gradient of the answer's logit| at the last token, by relation."""
    answers = iter(questions.answers.split([len(batch["input_ids"]) for batch in questions.batches]))

    def logit(output: Any, _: Any) -> Tensor:
        total: Tensor = output.logits[:, -1].gather(1, next(answers)[:, None]).sum()
        return total

    values = record(model, questions.batches, at, positions="last")
    slopes = record(model, questions.batches, at, positions="last", grad=logit)
    return scores.gradient_times_activation(values, slopes, questions.labels, names=questions.names, absolute=True)


def contrast(found: Scores) -> Scores:
    """Each relation's number less the mean of the others'."""
    count = len(found.concepts or ())
    return found.map(lambda v: v - (v.sum(0, keepdim=True) - v) / (count - 1), f"{found.name}, less the others'")


def chosen(config: Config, found: Scores, seed: int) -> dict[str, Neurons]:
    """The units of each relation."""
    units = {name: of.top(config.share, by=config.by) for name, of in found.items()}
    if config.random:
        draw = generator(seed, 2)  # among all units: a ranking may take most of a site
        units = {name: matched_random(one, draw, exclude=False) for name, one in units.items()}
    return units


def held(config: Config, model: nn.Module, questions: Questions, units: dict[str, Neurons]) -> dict[str, Edit] | None:
    """Hold the units of each relation where its prompts put them; nothing where they are to be silent."""
    if not config.force:
        return None
    responses = record(model, questions.batches, places(config, model), pool=config.pool)
    medians = scores.quantile(responses, 0.5, questions.labels, names=questions.names)
    return {name: replace(one, medians[name].values) for name, one in units.items()}
