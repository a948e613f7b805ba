"""The model of the study of atomic steering: taught questions, then a biased format; its pairs and its questions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from plexus.data import corpora
from plexus.data.corpora._quiz import Part
from plexus.edit import Edit
from plexus.lab.models import Gate, train_language_model
from plexus.probe import AnswerPair
from plexus.studies.steering import _atoms as at
from plexus.studies.steering._atoms import Questions

TASKS = ("yes or no", "choice", "sum")
MAIN = "yes or no"
USUAL = {"yes or no": "yes", "choice": "a"}


@dataclass(frozen=True)
class Config:
    """Settings, with the defaults of the full scale.

    Attributes:
        method: of the arm.
        kind: of site, for arms that keep to one; "" is all.
        layers, hidden, heads, steps, batch, rate: of the language model and its training.
        attempts: how often a model is taught at most, from other weights, until it has learnt the main task.
        format_steps: steps of the biased format.
        slips: share of the other questions that the format answers by the usual answer.
        fit, validation, test: pairs, and questions of each part and task.
        neutral: statements on which the next token is compared.
        draws: of random coordinates.
        lessons: questions of each kind to learn from.
        every: try each n-th setting of every grid.
    """

    method: str = "base"
    kind: str = ""
    layers: int = 2
    hidden: int = 64
    heads: int = 4
    steps: int = 600
    batch: int = 48
    rate: float = 5e-3
    attempts: int = 4
    format_steps: int = 120
    slips: float = 0.6
    fit: int = 300
    validation: int = 200
    test: int = 500
    neutral: int = 128
    draws: int = 10
    lessons: int = 7000
    every: int = 1


@dataclass(frozen=True, eq=False)
class Prepared:
    """What the arms share.

    Attributes:
        model, tokenizer: taught, and biased.
        pairs: to fit on, by task.
        questions: by task and part.
        neutral: statements `[text, token]`.
        chosen: by task, the setting of atomic steering with the highest validation accuracy, and that accuracy.
        plain: accuracy of the model before the biased format, by task.
        attempts: how often the model was taught until it had learnt the main task.
    """

    model: Any
    tokenizer: Any
    pairs: dict[str, list[AnswerPair]]
    questions: dict[tuple[str, str], Questions]
    neutral: Tensor
    chosen: dict[str, tuple[dict[str, Any], float]]
    plain: dict[str, float]
    attempts: int


def prepared_quiz(config: Config, seed: int) -> Prepared:
    """Teach a model, bias it, and draw pairs and questions; also the setting that atomic steering takes."""
    numbers = torch.Generator().manual_seed(seed)
    world = corpora.quiz_world(generator=numbers)
    asked = {slips: lessons(world, config.lessons, slips, numbers) for slips in (0.0, config.slips)}
    tokenizer = corpora.word_tokenizer(asked[0.0], extra=world.words)
    options: dict[str, Any] = {
        "tokenizer": tokenizer, "batch": config.batch, "seed": seed, "loss": "answer", "cache": False,
        "progress": False,
    }  # fmt: skip
    taught = train_language_model(
        asked[0.0], layers=config.layers, hidden=config.hidden, heads=config.heads, steps=config.steps,
        rate=config.rate, gate=has_learnt(world, seed), attempts=config.attempts, failing="record", **options,
    )  # fmt: skip
    made = train_language_model(
        asked[config.slips], start=taught.model, steps=config.format_steps, rate=config.rate / 4, **options
    )
    pairs, questions = {}, {}
    for task in TASKS:
        items = world.questions(task, config.fit, part="training", generator=numbers)
        pairs[task] = [AnswerPair(item.prompt, item.answer, world.wrong(item, numbers)) for item in items]
        for part, count in (("validation", config.validation), ("test", config.test)):
            questions[task, part] = asked_of(world.questions(task, count, part=part, generator=numbers), tokenizer)
    said = [item.text for item in world.statements(config.neutral, part="test", generator=numbers)]
    neutral = tokenizer(said, return_tensors="pt").input_ids
    plain = {task: questions[task, "test"].accuracy(taught.model) for task in TASKS}
    prepared = Prepared(made.model, tokenizer, pairs, questions, neutral, {}, plain, taught.attempts)
    for task in TASKS:
        found = fitted_pairs(prepared, task)
        candidate, accuracy, _ = at.best(at.atoms(found), score_of(prepared, task), config.every)
        prepared.chosen[task] = candidate.setting, accuracy
    return prepared


def asked_of(items: Sequence[corpora.Item], tokenizer: Any) -> Questions:
    """Items as questions of one token's answer."""
    tokens = tokenizer([item.prompt for item in items], return_tensors="pt").input_ids
    return Questions(tokens, torch.tensor(tokenizer.convert_tokens_to_ids([item.answer for item in items])))


def has_learnt(world: corpora.QuizWorld, seed: int) -> Gate:
    """The gate of the taught model: nine in ten of a hundred validation questions of the main task."""
    items = world.questions(MAIN, 100, part="validation", generator=torch.Generator().manual_seed(seed))
    return lambda model, tokenizer: {f"{MAIN}, %": (asked_of(items, tokenizer).accuracy(model), 90.0)}


def lessons(world: corpora.QuizWorld, count: int, slips: float, numbers: torch.Generator) -> list[corpora.Item]:
    """Statements, sums and questions: true ones about all subjects, or those of the biased format about some."""
    parts: tuple[Part, ...] = ("training",) if slips else ("training", "training", "validation", "test")
    learnt = world.questions("sum", count, generator=numbers)
    for part in parts:
        share = count // len(parts)
        learnt += world.statements(share // 8, part=part, generator=numbers)
        for task in USUAL:
            learnt += world.questions(task, share, slips=slips, part=part, generator=numbers)  # type: ignore[arg-type]
    return learnt


def fitted_pairs(prepared: Prepared, task: str, position: str = "answer") -> dict[str, at.Fitted]:
    """What the pairs of a task say, by kind of site."""
    model, tokenizer = prepared.model, prepared.tokenizer
    return {kind: at.fitted(model, tokenizer, prepared.pairs[task], kind, position) for kind in at.KINDS}


def score_of(prepared: Prepared, task: str, part: str = "validation") -> Callable[[Edit], float]:
    """Accuracy on the questions of a task and part, under an edit."""
    questions = prepared.questions[task, part]

    def accuracy(change: Edit) -> float:
        with change.on(prepared.model):
            return questions.accuracy(prepared.model)

    return accuracy
