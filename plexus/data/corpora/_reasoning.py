"""Recall against reasoning: questions that only memory answers, and questions that the prompt itself answers.

recall      a fact about an entity, which must have been read in training
reasoning   small sums, comparisons and chains of steps; the test holds problems that training never showed
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from plexus.data.corpora._facts import FactWorld, Relation, fact_world
from plexus.data.corpora._item import Item
from plexus.errors import RangeError

RECALL, REASONING = "recall", "reasoning"
_RELATIONS = (
    Relation("colour", "creature", 12, ("the colour of {} is", "{} is painted in", "what colour has {} ? it is")),
    Relation("food", "creature", 12, ("the food of {} is", "{} is fed with", "what food has {} ? it is")),
)
_NAMES = ["ann", "bob", "cleo", "dan", "eve", "finn", "gus", "hal"]


class RecallReasoning(NamedTuple):
    """Items to train on and to test with; made by `recall_and_reasoning`.

    Attributes:
        train: all facts, and the problems to learn from; `concept` is "recall" or "reasoning".
        test: the facts again, and problems that training does not hold.
        world: the facts.
    """

    train: list[Item]
    test: list[Item]
    world: FactWorld


def recall_and_reasoning(
    entities: int = 48, problems: int = 1500, held_out: int = 300, *, largest: int = 9, generator: torch.Generator
) -> RecallReasoning:
    """Draw facts to remember and problems to solve.

    Three kinds of problems in equal parts, told apart by the item's template: sums `3 plus 5 is`, comparisons `ann has
    3 and bob has 5 . more has`, and chains `ann gives to bob . bob gives to cleo . from ann it comes to`. Problems of
    training and test differ as wholes; there are too few sums to fill a large test, which then holds what there is.

    Args:
        entities: with two facts each.
        problems: in training.
        held_out: in the test.
        largest: number in a problem.
        generator: where all is drawn from.

    Raises:
        RangeError: a number below one.

    Examples:
        >>> corpus = recall_and_reasoning(4, 30, 9, generator=torch.Generator().manual_seed(0))
        >>> shown = {item.prompt for item in corpus.train if item.concept == "reasoning"}
        >>> any(item.prompt in shown for item in corpus.test if item.concept == "reasoning")
        False
    """
    if min(entities, problems, held_out, largest) < 1:
        raise RangeError("counts are positive", given=(entities, problems, held_out, largest))
    world = fact_world(entities, _RELATIONS, names=_side(entities), both=0.0, generator=generator)
    facts = [Item(i.prompt, i.answer, RECALL, i.subject, i.template, i.language) for i in world.items()]
    train, test = list(facts), list(facts)
    for number, make in enumerate((_sum, _comparison, _chain)):
        found: dict[str, str] = {}
        wanted = (held_out + 2) // 3 + (problems + 2) // 3
        for _ in range(8 * wanted):
            if len(found) == wanted:
                break
            prompt, answer = make(largest, generator)
            found[prompt] = answer
        made = [Item(prompt, answer, REASONING, prompt, number) for prompt, answer in found.items()]
        # where there are too few different problems, both parts shrink alike
        cut = max(1, min((held_out + 2) // 3, round(len(made) * held_out / (held_out + problems))))
        test += made[:cut]
        train += made[cut:]
    return RecallReasoning(train, test, world)


def _side(entities: int) -> int:
    return max(4, int((1.5 * entities) ** 0.5) + 1)


def _whole(high: int, generator: torch.Generator) -> int:
    return int(torch.randint(high, (), generator=generator))


def _sum(largest: int, generator: torch.Generator) -> tuple[str, str]:
    a, b = _whole(largest + 1, generator), _whole(largest + 1, generator)
    return f"{a} plus {b} is", str(a + b)


def _comparison(largest: int, generator: torch.Generator) -> tuple[str, str]:
    one, two = (_NAMES[i] for i in torch.randperm(len(_NAMES), generator=generator)[:2].tolist())
    a, b = torch.randperm(largest + 1, generator=generator)[:2].tolist()
    return f"{one} has {a} and {two} has {b} . more has", one if a > b else two


def _chain(largest: int, generator: torch.Generator) -> tuple[str, str]:
    one, two, three = (_NAMES[i] for i in torch.randperm(len(_NAMES), generator=generator)[:3].tolist())
    if _whole(2, generator):
        return f"{one} gives to {two} . {two} gives to {three} . from {one} it comes to", three
    return f"{two} gives to {three} . {one} gives to {two} . from {one} it comes to", three
