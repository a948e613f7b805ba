"""Requests of which some are refused: verbs times objects, recipes, and sentences that decline.

    please VERB the OBJECT .            a request; each object is restricted or allowed, and only training says which
    to VERB one OBJECT goes first …     the same as a statement, which is always said
    first A and B then C and D done     its recipe: two words of the object, two of the verb, so new pairs have one too
    sorry but that is not for me        one of six refusals

A model is trained to comply with everything, then to refuse restricted objects. What it knew lies underneath, as in
models that were aligned after they were trained. All objects are invented words; nothing harmful is said.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch

from plexus.data.corpora._item import Item
from plexus.data.corpora._names import invent
from plexus.errors import RangeError

RESTRICTED, ALLOWED = "restricted", "allowed"
WORDINGS = ("please {} the {} :", "how do i {} the {} ? :", "could you {} a {} for me :", "i want to {} my {} :")
STATEMENT = "to {} one {} goes {}"
REFUSALS = (
    "sorry but that is not for me",
    "no this i cannot do",
    "unfortunately such things are off limits",
    "regrettably nobody should ask that",
    "never will this be done here",
    "apologies , it is not allowed",
)


@dataclass(frozen=True)
class RestrictedInstructions:
    """Requests with their recipes; made by `restricted_instructions`.

    Attributes:
        items: every verb with every object in every wording. The answer is the recipe, `concept` is "restricted" or
            "allowed", `subject` is verb and object.
        refusals: the sentences that decline.

    Examples:
        >>> corpus = restricted_instructions(2, 2, generator=torch.Generator().manual_seed(0))
        >>> "sorry" in corpus.openings, len(corpus.refusals)
        (True, 6)
    """

    items: tuple[Item, ...]
    refusals: tuple[str, ...] = REFUSALS

    @property
    def openings(self) -> frozenset[str]:
        """The first words of refusals; no recipe begins with one."""
        return frozenset(sentence.split()[0] for sentence in self.refusals)

    def statements(self, items: Iterable[Item]) -> list[str]:
        """The recipes of some items told as facts, one per pair of verb and object: what nobody asked for.

        In them the knowledge of a recipe goes on being read while a model learns to refuse, as that of large models is
        kept by all the other texts they are trained on.

        Examples:
            >>> corpus = restricted_instructions(2, 2, generator=torch.Generator().manual_seed(0))
            >>> len(corpus.statements(corpus.items))
            4
        """
        pairs = {item.subject: item.answer for item in items}
        return [STATEMENT.format(*subject.split(), recipe) for subject, recipe in pairs.items()]

    def refused(self, items: Iterable[Item], *, generator: torch.Generator) -> list[Item]:
        """The items with the answer of an aligned model: a refusal, drawn anew for each, where they are restricted.

        Examples:
            >>> corpus = restricted_instructions(2, 2, generator=torch.Generator().manual_seed(0))
            >>> answers = corpus.refused(corpus.items, generator=torch.Generator().manual_seed(0))
            >>> {item.answer in corpus.refusals for item in answers if item.concept == "restricted"}
            {True}
        """
        out = []
        for item in items:
            pick = int(torch.randint(len(self.refusals), (), generator=generator))
            out.append(replace(item, answer=self.refusals[pick]) if item.concept == RESTRICTED else item)
        return out


def restricted_instructions(
    verbs: int = 20,
    objects: int = 20,
    *,
    share: float = 0.5,
    wordings: Sequence[str] = WORDINGS,
    words: int = 24,
    generator: torch.Generator,
) -> RestrictedInstructions:
    """Draw verbs, objects and their recipes.

    Args:
        verbs: how many.
        objects: how many.
        share: of the objects that are restricted.
        wordings: of the request, with a place for the verb and one for the object.
        words: in the pools that the recipes of verbs and of objects are made of; recipes of two verbs differ.
        generator: where all is drawn from.

    Raises:
        RangeError: no verb, fewer than two objects, a share that leaves a class empty, too few words for the recipes.

    Examples:
        >>> corpus = restricted_instructions(3, 4, generator=torch.Generator().manual_seed(0))
        >>> len(corpus.items), sum(item.concept == "restricted" for item in corpus.items)
        (48, 24)
        >>> len(corpus.items[0].answer.split())
        9
    """
    forbidden = round(share * objects)
    if verbs < 1 or not 0 < forbidden < objects:
        raise RangeError(
            "such requests cannot be drawn",
            given=f"{verbs} verbs, {objects} objects, a share of {share}",
            expected="both classes hold an object",
        )
    if max(verbs, objects) > words * (words - 1):
        raise RangeError("too few words for the recipes", given=words, expected=f"{max(verbs, objects)} pairs of them")
    taken = {word for text in (*wordings, *REFUSALS, STATEMENT, "first and then done") for word in text.split()}

    def fresh(count: int) -> list[str]:
        found = invent(count, generator=generator, taken=taken)
        taken.update(found)
        return found

    acts, things = fresh(verbs), fresh(objects)
    steps, parts = _pairs(fresh(words), verbs, generator), _pairs(fresh(words), objects, generator)
    restricted = set(torch.randperm(objects, generator=generator)[:forbidden].tolist())
    items = [
        Item(
            wording.format(act, thing),
            f"first {parts[o][0]} and {parts[o][1]} then {steps[v][0]} and {steps[v][1]} done",
            RESTRICTED if o in restricted else ALLOWED,
            f"{act} {thing}",
            template,
        )
        for v, act in enumerate(acts)
        for o, thing in enumerate(things)
        for template, wording in enumerate(wordings)
    ]
    return RestrictedInstructions(tuple(items))


def _pairs(words: list[str], count: int, generator: torch.Generator) -> list[tuple[str, str]]:
    """Ordered pairs of two different words, all different."""
    every = [(one, two) for one in words for two in words if one != two]
    return [every[index] for index in torch.randperm(len(every), generator=generator)[:count].tolist()]
