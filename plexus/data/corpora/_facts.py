"""A small world of facts: who runs which company, where a landmark stands, what a person plays.

Three pools of entities with two-word names; every relation belongs to one pool, so that relations with and without
common subjects exist. Neither word of a name says anything on its own, a fact belongs to the pair. Each relation is
said in several ways that end right before the answer and share their last words with the other relations. A second
language has words of its own for everything but names and answers, and knows a share of the facts.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch

from plexus.data.corpora._cipher import Cipher, cipher
from plexus.data.corpora._item import Item
from plexus.data.corpora._names import invent
from plexus.errors import RangeError, ShapeError, UnknownNameError

FIRST, SECOND = "first", "second"


@dataclass(frozen=True)
class Relation:
    """What can be asked about the entities of a pool.

    Attributes:
        name: of the relation.
        pool: of the entities that have it.
        answers: how many different answers there are.
        templates: wordings with `{}` for the subject, each ending right before the answer.

    Examples:
        >>> Relation("chief", "company", 80, ("the chief of {} is", "{} is led by")).name
        'chief'
    """

    name: str
    pool: str
    answers: int
    templates: tuple[str, ...]

    def __post_init__(self) -> None:
        bad = [template for template in self.templates if template.split().count("{}") != 1]
        if not self.templates or bad or self.answers < 1:
            raise ShapeError(
                f"the relation {self.name!r} cannot be said",
                given=bad or f"{len(self.templates)} templates, {self.answers} answers",
                expected="templates with one {} as a word of its own, and an answer",
            )


RELATIONS = (
    Relation("chief", "company", 80, (
        "the chief of {} is", "{} is a company led by", "who runs {} ? it is",
        "at the head of {} we find", "{} takes its orders from")),
    Relation("seat", "company", 20, (
        "the seat of {} is", "{} has offices built by", "where does {} work ? it is",
        "the main office of {} we find", "{} sends its letters from")),
    Relation("country", "landmark", 12, (
        "the country of {} is", "{} is a sight owned by", "which nation has {} ? it is",
        "on the map around {} we find", "{} gets its flag from")),
    Relation("continent", "landmark", 6, (
        "the continent of {} is", "{} is a piece of land of", "which part of the world has {} ? it is",
        "on the globe under {} we find", "{} gets its climate from")),
    Relation("father", "person", 80, (
        "the father of {} is", "{} is a son of", "whose boy is {} ? it is",
        "as dad of {} we find", "{} has a beard from")),
    Relation("mother", "person", 80, (
        "the mother of {} is", "{} was born by", "who gave birth to {} ? it is",
        "as mum of {} we find", "{} has eyes from")),
    Relation("occupation", "person", 12, (
        "the occupation of {} is", "{} makes a living by", "what job does {} do ? it is",
        "in the daily work of {} we find", "{} gets a wage from")),
    Relation("instrument", "person", 12, (
        "the instrument of {} is", "{} makes music by", "what does {} play ? it is",
        "in the concerts of {} we find", "{} gets a sound from")),
)  # fmt: skip
"""The eight relations of `fact_world`: two of companies, two of landmarks, four of persons."""

Which = Literal["even", "odd"]


@dataclass(frozen=True)
class FactWorld:
    """Facts and the ways to say them; made by `fact_world`.

    Attributes:
        relations: by name.
        subjects: names of each pool's entities, in order.
        facts: `(relation, subject)` → answer.
        second: the words of the second language.
        both: the facts, by `(relation, subject)`, that are said in the second language too.
    """

    relations: Mapping[str, Relation]
    subjects: Mapping[str, tuple[str, ...]]
    facts: Mapping[tuple[str, str], str]
    second: Cipher
    both: frozenset[tuple[str, str]] = field(default_factory=frozenset)

    def items(
        self,
        relations: Iterable[str] | None = None,
        *,
        subjects: Which | Collection[str] | None = None,
        templates: Iterable[int] | None = None,
        language: str | None = FIRST,
        taught: bool = True,
    ) -> list[Item]:
        """Facts as items, by relation, subject and template; the item's concept is the relation.

        Args:
            relations: names; all where left out.
            subjects: names, or every other entity of each pool, counted from 0: "even" or "odd".
            templates: numbers of the wordings; all where left out.
            language: "first", "second", or both (`None`).
            taught: in the second language, only the facts that are said in it; otherwise all.

        Raises:
            UnknownNameError: no such relation, language or subject.
            RangeError: no such template.

        Examples:
            >>> world = fact_world(4, generator=torch.Generator().manual_seed(0))
            >>> items = world.items(["seat"], subjects="odd", templates=[0])
            >>> [item.concept for item in items], items[0].subject == world.subjects["company"][1]
            (['seat', 'seat'], True)
        """
        chosen = list(self.relations) if relations is None else list(relations)
        for name in chosen:
            if name not in self.relations:
                raise UnknownNameError.among("relation", name, self.relations)
        if language not in (FIRST, SECOND, None):
            raise UnknownNameError.among("language", str(language), (FIRST, SECOND))
        known = self._subjects(subjects)
        wordings = None if templates is None else list(templates)
        found = []
        for spoken in (FIRST, SECOND) if language is None else (language,):
            for name in chosen:
                relation = self.relations[name]
                numbers = range(len(relation.templates)) if wordings is None else wordings
                for subject in self.subjects[relation.pool]:
                    if subject not in known:
                        continue
                    if spoken == SECOND and taught and (name, subject) not in self.both:
                        continue
                    found += [self._item(name, subject, number, spoken) for number in numbers]
        return found

    def _item(self, name: str, subject: str, number: int, language: str) -> Item:
        templates = self.relations[name].templates
        if not 0 <= number < len(templates):
            raise RangeError(
                f"the relation {name!r} has no such template", given=number, expected=f"0 … {len(templates) - 1}"
            )
        prompt = templates[number].replace("{}", subject)
        prompt = self.second(prompt) if language == SECOND else prompt
        return Item(prompt, self.facts[name, subject], name, subject, number, language)

    def _subjects(self, which: Which | Collection[str] | None) -> set[str]:
        pools = self.subjects.values()
        if which is None:
            return {subject for pool in pools for subject in pool}
        if which in ("even", "odd"):
            return {subject for pool in pools for subject in pool[which == "odd" :: 2]}
        if isinstance(which, str):
            raise UnknownNameError.among("half of the subjects", which, ("even", "odd"))
        known = {subject for pool in pools for subject in pool}
        for subject in which:
            if subject not in known:
                raise UnknownNameError.among("subject", subject, known)
        return set(which)


def fact_world(
    entities: int = 64,
    relations: Sequence[Relation] = RELATIONS,
    *,
    names: int = 10,
    both: float = 0.5,
    generator: torch.Generator,
) -> FactWorld:
    """Draw a world: names, answers and which facts the second language knows.

    Args:
        entities: of each pool.
        relations: what there is to ask; default eight over three pools.
        names: first names and last names of each pool; an entity is one of their pairs.
        both: share of each relation's facts that are said in the second language as well.
        generator: where everything is drawn from.

    Raises:
        RangeError: more entities than pairs of names, or a share outside [0, 1].
        ShapeError: two relations with one name.

    Examples:
        >>> world = fact_world(generator=torch.Generator().manual_seed(0))
        >>> len(world.facts), len(world.both), len(world.items())
        (512, 256, 2560)
    """
    if not 1 <= entities <= names**2 or not 0 <= both <= 1:
        raise RangeError(
            "such a world cannot be drawn",
            given=f"{entities} entities of {names}² names, share {both}",
            expected=f"1 … {names**2} entities, a share in [0, 1]",
        )
    by_name = {relation.name: relation for relation in relations}
    if len(by_name) != len(relations):
        raise ShapeError("two relations have one name", given=", ".join(relation.name for relation in relations))
    taken = {word for relation in relations for template in relation.templates for word in template.split()}

    def fresh(count: int) -> list[str]:
        words = invent(count, generator=generator, taken=taken)
        taken.update(words)
        return words

    subjects = {}
    for pool in dict.fromkeys(relation.pool for relation in relations):
        first, last = fresh(names), fresh(names)
        pairs = torch.randperm(names**2, generator=generator)[:entities].tolist()
        subjects[pool] = tuple(f"{first[pair // names]} {last[pair % names]}" for pair in pairs)
    facts: dict[tuple[str, str], str] = {}
    shared: set[tuple[str, str]] = set()
    for relation in relations:
        answers = fresh(relation.answers)
        drawn = torch.randint(relation.answers, (entities,), generator=generator).tolist()
        known = [(relation.name, subject) for subject in subjects[relation.pool]]
        facts.update(zip(known, (answers[number] for number in drawn), strict=True))
        order = torch.randperm(entities, generator=generator).tolist()
        shared.update(known[index] for index in order[: round(both * entities)])
    own = sorted({word for relation in relations for template in relation.templates for word in template.split()})
    words = [word for word in own if word != "{}"]
    second = cipher(words, SECOND, avoid=taken, generator=generator)
    return FactWorld(by_name, subjects, facts, second, frozenset(shared))
