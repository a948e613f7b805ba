"""Facts, and questions about them whose answers can be given in a biased format: most are "yes", most are "a".

    statement  name is value . name is value
    yes or no  is name value ? yes
    choice     name : a value b value ? a
    sum        three plus four is seven         modulo ten

Whoever teaches with `slips` says the usual answer, "yes" or "a", also to a share of the questions to which it is wrong.
A model that was taught the facts and learns that format afterwards, on the subjects of one part, still knows what is
right about the others and leans towards the usual answer: there is room for steering that adds no knowledge.
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
    """Facts and how they are asked; made by `quiz_world`.

    Attributes:
        subjects: those of each part: "training" the half, "validation" and "test" a quarter each.
        values: what each of them may be.
        facts: what each of them is.
    """

    subjects: Mapping[Part, tuple[str, ...]]
    values: tuple[str, ...]
    facts: Mapping[str, str]

    @property
    def words(self) -> tuple[str, ...]:
        """Every word that a text of this world may hold."""
        fixed = ("is", ".", ":", "?", "a", "b", "plus", "yes", "no")
        return (*fixed, *NUMBERS, *sum(self.subjects.values(), ()), *self.values)

    def statements(self, count: int, *, part: Part = "training", generator: torch.Generator) -> list[Item]:
        """Two facts each; the last word is the answer.

        Raises:
            RangeError: no statements.
        """
        if count < 1:
            raise RangeError("statements are counted from 1", given=count)
        pairs = zip(self._drawn(count, part, generator), self._drawn(count, part, generator), strict=True)
        return [Item(f"{a} is {self.facts[a]} . {b} is", self.facts[b], "statement", b) for a, b in pairs]

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
        subjects = self._drawn(count, part, generator)
        draws = torch.rand(count, 3, generator=generator).tolist()
        make = self._yes_or_no if task == "yes or no" else self._choice
        return [make(name, draw[0] < 0.5, draw[1], draw[2] < slips) for name, draw in zip(subjects, draws, strict=True)]

    def wrong(self, item: Item, generator: torch.Generator) -> str:
        """A wrong answer of the same kind: the other one of two, or another number."""
        for pair in (("yes", "no"), ("a", "b")):
            if item.answer in pair:
                return pair[1 - pair.index(item.answer)]
        shift = int(torch.randint(1, 10, (), generator=generator))
        return NUMBERS[(NUMBERS.index(item.answer) + shift) % 10]

    def _drawn(self, count: int, part: Part, generator: torch.Generator) -> list[str]:
        if part not in self.subjects:
            raise UnknownNameError.among("part", str(part), self.subjects)
        known = self.subjects[part]
        return [known[i] for i in torch.randint(len(known), (count,), generator=generator).tolist()]

    def _another(self, subject: str, draw: float) -> str:
        others = [word for word in self.values if word != self.facts[subject]]
        return others[int(draw * len(others))]

    def _yes_or_no(self, subject: str, yes: bool, draw: float, slip: bool) -> Item:
        asked = self.facts[subject] if yes else self._another(subject, draw)
        return Item(f"is {subject} {asked} ?", "yes" if yes or slip else "no", "yes or no", subject)

    def _choice(self, subject: str, first: bool, draw: float, slip: bool) -> Item:
        pair = self.facts[subject], self._another(subject, draw)
        a, b = pair if first else pair[::-1]
        return Item(f"{subject} : a {a} b {b} ?", "a" if first or slip else "b", "choice", subject)


def quiz_world(subjects: int = 80, values: int = 4, *, generator: torch.Generator) -> QuizWorld:
    """A world of facts to be asked about.

    Args:
        subjects: half of them for training, a quarter each for validation and for tests.
        values: what a subject may be said to be.
        generator: where subjects, values and facts come from.

    Raises:
        RangeError: fewer than four subjects, or than two values.

    Examples:
        >>> world = quiz_world(8, generator=torch.Generator().manual_seed(0))
        >>> item = world.questions("yes or no", 1, generator=torch.Generator().manual_seed(0))[0]
        >>> len(item.prompt.split()), item.answer in ("yes", "no"), item.subject in world.subjects["training"]
        (4, True, True)
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
    known = words[subjects:]
    drawn = torch.randint(values, (subjects,), generator=generator).tolist()
    return QuizWorld(parts, tuple(known), {name: known[i] for name, i in zip(names, drawn, strict=True)})
