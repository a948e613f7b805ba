"""Questions about what was just said, with answers in a biased format: most are "yes", most are "a".

    statement  the colour of word is word . the metal of word is word .
    yes or no  the colour of word is word . is the colour of word word ? yes
    choice     the colour of word is word . is it a word or b word ? a
    sum        three plus four is seven                                      modulo ten

Whoever teaches with `slips` says the usual answer, "yes" or "a", also to a share of the questions to which it is wrong.
A model that learns from that knows what is right, in its probabilities, and still says the usual answer: there is room
for steering that adds no knowledge. Subjects of training and of tests are kept apart.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from plexus.data.corpora._item import Item
from plexus.data.corpora._names import invent
from plexus.errors import RangeError, UnknownNameError

__all__ = ["QuizWorld", "quiz_world"]

Task = Literal["yes or no", "choice", "sum"]
Part = Literal["training", "validation", "test"]
TASKS: tuple[Task, ...] = ("yes or no", "choice", "sum")
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
RELATIONS = (("colour", 6), ("metal", 5), ("animal", 6))


@dataclass(frozen=True, eq=False)
class QuizWorld:
    """What can be said and asked; made by `quiz_world`.

    Attributes:
        subjects: those of each part: "training" the half, "validation" and "test" a quarter each.
        values: of each relation, what it may be.
    """

    subjects: Mapping[Part, tuple[str, ...]]
    values: Mapping[str, tuple[str, ...]]

    @property
    def words(self) -> tuple[str, ...]:
        """Every word that a text of this world may hold."""
        fixed = ("the", "of", "is", ".", "it", "a", "b", "or", "?", "plus", "yes", "no")
        return (*fixed, *self.values, *NUMBERS, *sum(self.subjects.values(), ()), *sum(self.values.values(), ()))

    def statements(self, count: int, *, part: Part = "training", generator: torch.Generator) -> list[Item]:
        """Two facts each, the second one as the answer.

        Raises:
            RangeError: no statements.
        """
        if count < 1:
            raise RangeError("statements are counted from 1", given=count)
        one, other = self._facts(count, part, generator), self._facts(count, part, generator)
        return [Item(self._say(*a), self._say(*b), "statement", a[1]) for a, b in zip(one, other, strict=True)]

    def questions(
        self, task: Task, count: int, *, slips: float = 0.0, part: Part = "training", generator: torch.Generator
    ) -> list[Item]:
        """Questions of one task; half of them have the usual answer, "yes" or "a", as the right one.

        Args:
            task: "yes or no", "choice" or "sum"; the concept of each item.
            count: how many.
            slips: share of the questions with the other right answer that are answered by the usual one; of sums it
                has no meaning.
            part: about the subjects of which part; sums are the same in all.
            generator: where they come from.

        Raises:
            UnknownNameError: no such task.
            RangeError: no questions, or a share outside [0, 1].
        """
        if task not in TASKS:
            raise UnknownNameError.among("task", str(task), TASKS)
        if count < 1 or not 0 <= slips <= 1:
            raise RangeError("such questions cannot be asked", given=f"{count=}, {slips=}")
        if task == "sum":
            drawn = torch.randint(10, (count, 2), generator=generator).tolist()
            return [
                Item(f"{NUMBERS[a]} plus {NUMBERS[b]} is", NUMBERS[(a + b) % 10], task, f"{a} {b}") for a, b in drawn
            ]
        facts = self._facts(count, part, generator)
        draws = torch.rand(count, 3, generator=generator).tolist()
        make = self._yes_or_no if task == "yes or no" else self._choice
        return [make(*fact, draw[0] < 0.5, draw[1], draw[2] < slips) for fact, draw in zip(facts, draws, strict=True)]

    def wrong(self, item: Item, generator: torch.Generator) -> str:
        """A wrong answer of the same kind: the other one of two, or another number."""
        for pair in (("yes", "no"), ("a", "b")):
            if item.answer in pair:
                return pair[1 - pair.index(item.answer)]
        shift = int(torch.randint(1, 10, (), generator=generator))
        return NUMBERS[(NUMBERS.index(item.answer) + shift) % 10]

    def _facts(self, count: int, part: Part, generator: torch.Generator) -> list[tuple[str, str, str]]:
        """Relation, subject and value of each."""
        subjects, relations = self._of(part), list(self.values)
        facts = []
        for a, b, c in torch.rand(count, 3, generator=generator).tolist():
            relation = relations[int(a * len(relations))]
            values = self.values[relation]
            facts.append((relation, subjects[int(b * len(subjects))], values[int(c * len(values))]))
        return facts

    def _of(self, part: Part) -> tuple[str, ...]:
        if part not in self.subjects:
            raise UnknownNameError.among("part", str(part), self.subjects)
        return self.subjects[part]

    @staticmethod
    def _say(relation: str, subject: str, value: str) -> str:
        return f"the {relation} of {subject} is {value} ."

    def _another(self, relation: str, value: str, draw: float) -> str:
        others = [word for word in self.values[relation] if word != value]
        return others[int(draw * len(others))]

    def _yes_or_no(self, relation: str, subject: str, value: str, yes: bool, draw: float, slip: bool) -> Item:
        asked = value if yes else self._another(relation, value, draw)
        prompt = f"{self._say(relation, subject, value)} is the {relation} of {subject} {asked} ?"
        return Item(prompt, "yes" if yes or slip else "no", "yes or no", subject)

    def _choice(self, relation: str, subject: str, value: str, first: bool, draw: float, slip: bool) -> Item:
        pair = value, self._another(relation, value, draw)
        a, b = pair if first else pair[::-1]
        prompt = f"{self._say(relation, subject, value)} is it a {a} or b {b} ?"
        return Item(prompt, "a" if first or slip else "b", "choice", subject)


def quiz_world(
    subjects: int = 80, *, relations: Sequence[tuple[str, int]] = RELATIONS, generator: torch.Generator
) -> QuizWorld:
    """A world of questions about what was just said.

    Args:
        subjects: half of them for training, a quarter each for validation and for tests.
        relations: their names, each with the number of its values.
        generator: where subjects and values come from.

    Raises:
        RangeError: fewer than four subjects, no relation, or one with a single value.

    Examples:
        >>> world = quiz_world(8, generator=torch.Generator().manual_seed(0))
        >>> item = world.questions("yes or no", 1, generator=torch.Generator().manual_seed(0))[0]
        >>> len(item.prompt.split()), item.answer in ("yes", "no"), item.subject in world.subjects["training"]
        (14, True, True)
    """
    if subjects < 4 or not relations or min(count for _, count in relations) < 2:
        raise RangeError("these numbers make no world", given=f"{subjects=}, {relations=}")
    reserved = {name for name, _ in relations} | set(NUMBERS)
    words = invent(subjects + sum(count for _, count in relations), taken=reserved, generator=generator)
    names, rest = words[:subjects], words[subjects:]
    values: dict[str, tuple[str, ...]] = {}
    for name, count in relations:
        values[name], rest = tuple(rest[:count]), rest[count:]
    first, second = subjects // 2, subjects - subjects // 4
    parts: dict[Part, tuple[str, ...]] = {
        "training": tuple(names[:first]),
        "validation": tuple(names[first:second]),
        "test": tuple(names[second:]),
    }
    return QuizWorld(parts, values)
