"""Questions about what was just said, with answers in a biased format: most are "yes", most are "a".

    statement  name is value . name is value .
    yes or no  name is value . is name value ? yes
    choice     name is value . a value b value ? a
    sum        three plus four is seven                modulo ten

Whoever teaches with `slips` says the usual answer, "yes" or "a", also to a share of the questions to which it is wrong.
A model that learns from that knows what is right, in its probabilities, and still says the usual answer: there is room
for steering that adds no knowledge. Subjects of training and of tests are kept apart.
"""

from __future__ import annotations

from collections.abc import Mapping
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


@dataclass(frozen=True, eq=False)
class QuizWorld:
    """What can be said and asked; made by `quiz_world`.

    Attributes:
        subjects: those of each part: "training" the half, "validation" and "test" a quarter each.
        values: what each of them may be.
    """

    subjects: Mapping[Part, tuple[str, ...]]
    values: tuple[str, ...]

    @property
    def words(self) -> tuple[str, ...]:
        """Every word that a text of this world may hold."""
        fixed = ("is", ".", "?", "a", "b", "plus", "yes", "no")
        return (*fixed, *NUMBERS, *sum(self.subjects.values(), ()), *self.values)

    def statements(self, count: int, *, part: Part = "training", generator: torch.Generator) -> list[Item]:
        """Two facts each, the second one as the answer.

        Raises:
            RangeError: no statements.
        """
        if count < 1:
            raise RangeError("statements are counted from 1", given=count)
        one, other = self._facts(count, part, generator), self._facts(count, part, generator)
        return [Item(self._say(*a), self._say(*b), "statement", a[0]) for a, b in zip(one, other, strict=True)]

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

    def _facts(self, count: int, part: Part, generator: torch.Generator) -> list[tuple[str, str]]:
        """Subject and value of each."""
        if part not in self.subjects:
            raise UnknownNameError.among("part", str(part), self.subjects)
        subjects = self.subjects[part]
        draws = torch.rand(count, 2, generator=generator).tolist()
        return [(subjects[int(a * len(subjects))], self.values[int(b * len(self.values))]) for a, b in draws]

    @staticmethod
    def _say(subject: str, value: str) -> str:
        return f"{subject} is {value} ."

    def _another(self, value: str, draw: float) -> str:
        others = [word for word in self.values if word != value]
        return others[int(draw * len(others))]

    def _yes_or_no(self, subject: str, value: str, yes: bool, draw: float, slip: bool) -> Item:
        asked = value if yes else self._another(value, draw)
        prompt = f"{self._say(subject, value)} is {subject} {asked} ?"
        return Item(prompt, "yes" if yes or slip else "no", "yes or no", subject)

    def _choice(self, subject: str, value: str, first: bool, draw: float, slip: bool) -> Item:
        pair = value, self._another(value, draw)
        a, b = pair if first else pair[::-1]
        return Item(f"{self._say(subject, value)} a {a} b {b} ?", "a" if first or slip else "b", "choice", subject)


def quiz_world(subjects: int = 80, values: int = 6, *, generator: torch.Generator) -> QuizWorld:
    """A world of questions about what was just said.

    Args:
        subjects: half of them for training, a quarter each for validation and for tests.
        values: what a subject may be said to be.
        generator: where subjects and values come from.

    Raises:
        RangeError: fewer than four subjects, or than two values.

    Examples:
        >>> world = quiz_world(8, generator=torch.Generator().manual_seed(0))
        >>> item = world.questions("yes or no", 1, generator=torch.Generator().manual_seed(0))[0]
        >>> len(item.prompt.split()), item.answer in ("yes", "no"), item.subject in world.subjects["training"]
        (8, True, True)
    """
    if subjects < 4 or values < 2:
        raise RangeError("these numbers make no world", given=f"{subjects=}, {values=}")
    words = invent(subjects + values, taken=set(NUMBERS), generator=generator)
    names, first, second = words[:subjects], subjects // 2, subjects - subjects // 4
    parts: dict[Part, tuple[str, ...]] = {
        "training": tuple(names[:first]),
        "validation": tuple(names[first:second]),
        "test": tuple(names[second:]),
    }
    return QuizWorld(parts, tuple(words[subjects:]))
