"""Several languages about one world: sentences in each, and questions whose answers do not hang on the language.

The first language is the grammar's; the others are ciphers of it with an order of words of their own. Names and answers
are the same in all, and the words of a name stay side by side. One cipher can share words with another: the two are
related by construction. Every language is told a share of the facts; the others it could only know from its neighbours.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from plexus.data.corpora._cipher import Cipher, Order, cipher
from plexus.data.corpora._facts import RELATIONS, FactWorld, Relation, fact_world
from plexus.data.corpora._grammar import grammar_sentences
from plexus.data.corpora._item import Item
from plexus.errors import RangeError, ShapeError, UnknownNameError

__all__ = ["Tongue", "Tongues", "tongues"]

FIRST = "l1"


@dataclass(frozen=True)
class Tongue:
    """How a language comes about.

    Attributes:
        name: of the language.
        order: of words.
        related: name of an earlier language to share words with, or "".
        share: of the vocabulary that is shared.
        facts: share of the facts that are told in it.

    Examples:
        >>> Tongue("l4", "swap", related="l2", share=0.5).facts
        0.5
    """

    name: str
    order: Order = "same"
    related: str = ""
    share: float = 0.0
    facts: float = 0.5


LANGUAGES = (
    Tongue("l2", "swap"),
    Tongue("l3", "verb-last"),
    Tongue("l4", "swap", related="l2", share=0.5),
    Tongue("l5", "reverse"),
)
"""Four languages beside the first: the third of them shares half of its words with the first of them."""


@dataclass(frozen=True)
class Tongues:
    """Languages about one world; made by `tongues`.

    Attributes:
        world: the facts.
        ciphers: of each language but the first, by name.
        told: the facts, by `(relation, subject)`, that each language is told.
    """

    world: FactWorld
    ciphers: Mapping[str, Cipher]
    told: Mapping[str, frozenset[tuple[str, str]]]

    @property
    def names(self) -> tuple[str, ...]:
        """The languages, the first one first."""
        return (FIRST, *self.ciphers)

    def say(self, text: str, language: str) -> str:
        """A text of the first language in another one.

        Raises:
            UnknownNameError: no such language.
        """
        if language == FIRST:
            return text
        if language not in self.ciphers:
            raise UnknownNameError.among("language", language, self.names)
        # a mark at the end stays there, whatever the order of words
        body, mark = (text[:-2], " .") if text.endswith(" .") else (text, "")
        return self.ciphers[language](body) + mark

    def sentences(self, language: str, count: int, *, generator: torch.Generator) -> list[str]:
        """Sentences in a language.

        Examples:
            >>> world = tongues(entities=4, generator=torch.Generator().manual_seed(0))
            >>> len(world.sentences("l2", 3, generator=torch.Generator().manual_seed(1)))
            3
        """
        return [self.say(text, language) for text in grammar_sentences(count, generator=generator)]

    def items(self, language: str, *, told: bool | None = None, templates: Iterable[int] | None = None) -> list[Item]:
        """The facts as questions in a language.

        Args:
            language: which.
            told: only the facts that are told in it, only the others, or all (None).
            templates: numbers of the wordings; all where left out.

        Raises:
            UnknownNameError: no such language.

        Examples:
            >>> world = tongues(entities=4, generator=torch.Generator().manual_seed(0))
            >>> known, unknown = (world.items("l3", told=told, templates=[0]) for told in (True, False))
            >>> len(known), len(unknown), known[0].answer in known[0].prompt
            (8, 8, False)
        """
        if language not in self.names:
            raise UnknownNameError.among("language", language, self.names)
        found = []
        for item in self.world.items(templates=templates):
            here = (item.concept, item.subject) in self.told[language]
            if told is None or here == told:
                found.append(replace(item, prompt=self.say(item.prompt, language), language=language))
        return found


def tongues(
    languages: Sequence[Tongue] = LANGUAGES,
    *,
    entities: int = 16,
    relations: Sequence[Relation] = (RELATIONS[0], RELATIONS[3], RELATIONS[4], RELATIONS[7]),
    names: int = 8,
    generator: torch.Generator,
) -> Tongues:
    """Invent languages and a world of facts to talk about in them.

    Args:
        languages: those beside the first, which is told every fact.
        entities: of each pool of the world.
        relations: what there is to ask.
        names: first and last names of each pool, see `fact_world`.
        generator: where everything is drawn from.

    Raises:
        ShapeError: two languages of one name.
        UnknownNameError: a language related to none before it.
        RangeError: a share outside [0, 1].

    Examples:
        >>> world = tongues(generator=torch.Generator().manual_seed(0))
        >>> world.names
        ('l1', 'l2', 'l3', 'l4', 'l5')
        >>> l2, l4 = world.ciphers["l2"].words, world.ciphers["l4"].words
        >>> abs(sum(l2[word] == l4[word] for word in l2) / len(l2) - 0.5) < 0.01
        True
    """
    if len({FIRST, *(language.name for language in languages)}) != len(languages) + 1:
        raise ShapeError("two languages have one name", given=", ".join(language.name for language in languages))
    world = fact_world(entities, relations, names=names, both=0.0, generator=generator)
    subjects = {subject for pool in world.subjects.values() for subject in pool}
    kept = {word for subject in subjects for word in subject.split()}
    kept |= {word for answer in world.facts.values() for word in answer.split()}
    texts = grammar_sentences(2000, generator=torch.Generator().manual_seed(0))  # every word of the grammar
    texts += [template.replace("{}", "") for relation in relations for template in relation.templates]
    facts = list(world.facts)
    ciphers: dict[str, Cipher] = {}
    told: dict[str, frozenset[tuple[str, str]]] = {FIRST: frozenset(facts)}
    for language in languages:
        if not 0 <= language.facts <= 1:
            raise RangeError("a share of facts lies in [0, 1]", given=language.facts)
        if language.related and language.related not in ciphers:
            raise UnknownNameError.among("earlier language", language.related, ciphers)
        used = {name for other in ciphers.values() for name in other.words.values()}
        ciphers[language.name] = cipher(
            texts, language.name, order=language.order, together=subjects, keep={*kept, "."},
            share=language.share, related=ciphers[language.related] if language.related else None, avoid=used,
            generator=generator,
        )  # fmt: skip
        order = torch.randperm(len(facts), generator=generator)[: round(language.facts * len(facts))].tolist()
        told[language.name] = frozenset(facts[index] for index in order)
    return Tongues(world, ciphers, told)
