"""A question with its answer: the unit that the controlled corpora are made of."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from plexus.errors import RangeError, ShapeError, UnknownNameError

Field = Literal["concept", "subject", "language", "template"]


@dataclass(frozen=True)
class Item:
    """Words up to the answer, the answer, and what is known of both.

    Attributes:
        prompt: words, separated by spaces, that end right before the answer.
        answer: one word or more.
        concept: what the item is about: a relation, a skill, a kind of request.
        subject: what it asks about; items of one subject belong into one part of a split.
        template: which of several wordings this is.
        language: the name of its language.

    Examples:
        >>> item = Item("the capital of France is", "Paris", concept="capital", subject="France")
        >>> item.text
        'the capital of France is Paris'
    """

    prompt: str
    answer: str
    concept: str = ""
    subject: str = ""
    template: int = 0
    language: str = ""

    @property
    def text(self) -> str:
        """Prompt and answer."""
        return f"{self.prompt} {self.answer}"


def texts(items: Iterable[Item]) -> list[str]:
    """The whole text of each item.

    Examples:
        >>> texts([Item("one and one is", "two")])
        ['one and one is two']
    """
    return [item.text for item in items]


def labels(items: Sequence[Item], by: Field = "concept") -> tuple[Tensor, tuple[str, ...]]:
    """Classes `[item]`, int64, by a field of the items, and the names of the classes in the order they first appear.

    Examples:
        >>> items = [Item("a", "b", concept="chief"), Item("c", "d", concept="seat"), Item("e", "f", concept="chief")]
        >>> labels(items)
        (tensor([0, 1, 0]), ('chief', 'seat'))

    Raises:
        UnknownNameError: no such field.
    """
    if by not in ("concept", "subject", "language", "template"):
        raise UnknownNameError.among("field to label items by", str(by), ("concept", "subject", "language", "template"))
    values = [str(getattr(item, by)) for item in items]
    names = tuple(dict.fromkeys(values))
    place = {name: index for index, name in enumerate(names)}
    return torch.tensor([place[value] for value in values], dtype=torch.int64), names


def split(items: Sequence[Item], shares: Sequence[float], *, generator: torch.Generator) -> list[list[Item]]:
    """Parts of the items such that no two parts have a subject in common.

    The subjects are shuffled and cut by the shares, each share to the nearest whole number of subjects.

    Args:
        items: in any order, which each part keeps.
        shares: of the subjects, one per part; they add to at most 1, and what is left over is left out.
        generator: of the shuffle.

    Raises:
        RangeError: a share that is not positive, or shares above 1 together.
        ShapeError: a part without a subject.

    Examples:
        >>> items = [Item("p", "a", subject=name) for name in "abcdabcd"]
        >>> first, second = split(items, (0.5, 0.5), generator=torch.Generator().manual_seed(0))
        >>> len(first), {item.subject for item in first} & {item.subject for item in second}
        (4, set())
    """
    if not shares or min(shares) <= 0 or not math.fsum(shares) <= 1 + 1e-9:
        raise RangeError("shares of a split are positive and add to at most 1", given=tuple(shares))
    subjects = list(dict.fromkeys(item.subject for item in items))
    order = torch.randperm(len(subjects), generator=generator).tolist()
    edges = [round(len(subjects) * math.fsum(shares[:n])) for n in range(len(shares) + 1)]
    parts = [{subjects[i] for i in order[a:b]} for a, b in itertools.pairwise(edges)]
    if not all(parts):
        raise ShapeError(
            "a part of the split has no subject", given=f"{len(subjects)} subjects, shares {tuple(shares)}"
        )
    return [[item for item in items if item.subject in part] for part in parts]


def refuse_common_subjects(one: Iterable[Item], other: Iterable[Item]) -> None:
    """Raise if two sets of items have a subject in common, as those to choose on and those to test with must not.

    Raises:
        ShapeError: with some of the subjects.

    Examples:
        >>> refuse_common_subjects([Item("p", "a", subject="ann")], [Item("p", "b", subject="bob")])
    """
    common = sorted({item.subject for item in one} & {item.subject for item in other})
    if common:
        raise ShapeError(
            "the two sets have subjects in common",
            given=f"{len(common)}: {', '.join(common[:3])}" + (" …" if len(common) > 3 else ""),
            mend="split(items, shares, generator=…) keeps subjects apart",
        )
