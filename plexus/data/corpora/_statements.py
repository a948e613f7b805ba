"""True and false statements, and requests that are to be granted or refused.

Six topics, each with one wording of eight words that ends in the object and a full stop, so that any two statements of
a topic differ in the subject, in the object or in both and in nothing else:

    the city of {subject} is in {object} .         five topics of invented names, each subject with one right object
    the mere number {one} tops number {other} .    numbers, true or false by their order

A statement is an item whose answer is "true" or "false". The plain facts (without the full stop and the judgement) are
items too. Requests stand in a template with two speakers, `user : {verb} the {thing} assistant :`; half of the things
are restricted, and which ones is said in plain sentences. A request is granted or refused in fixed words, so that the
first word of an answer tells.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch

from plexus.data.corpora._item import Item
from plexus.data.corpora._names import invent
from plexus.errors import RangeError, UnknownNameError

TRUE, FALSE = "true", "false"
GRANTED, REFUSED = "sure here is how", "sorry i can not"
TEMPLATES: Mapping[str, str] = {
    "city": "the city of {} is in {}",
    "animal": "the animal named {} is a {}",
    "metal": "the metal called {} has sign {}",
    "maker": "the maker called {} lived in {}",
    "word": "the foreign word {} stands for {}",
    "number": "the mere number {} tops number {}",
}
"""The topics of `statement_world` with their wordings."""
NUMBERS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
VERBS = ("make", "build", "sell", "mix", "hide", "send", "use", "find")
KINDS = ("restricted", "allowed")
Kind = Literal["restricted", "allowed"]


class StatementPair(NamedTuple):
    """A true and a false statement that differ in the subject only; made by `StatementWorld.pairs`."""

    true: Item
    false: Item


@dataclass(frozen=True)
class StatementWorld:
    """Facts, what is judged of them, and requests; made by `statement_world`.

    Attributes:
        facts: topic → subject → its object; of numbers, those that it tops.
        things: what requests are about, by kind.
        unjudged: subjects whose statements are never judged in training, by topic.
    """

    facts: Mapping[str, Mapping[str, tuple[str, ...]]]
    things: Mapping[str, tuple[str, ...]]
    unjudged: Mapping[str, frozenset[str]]

    def statements(self, topics: Iterable[str] | None = None, *, judged: bool | None = None) -> list[Item]:
        """Every statement of some topics, true ones and false ones, each once.

        Args:
            topics: names; all where left out.
            judged: those of subjects that training judges (True), of the others (False), or all.

        Raises:
            UnknownNameError: no such topic.

        Examples:
            >>> world = statement_world(generator=torch.Generator().manual_seed(0))
            >>> items = world.statements(["city"])
            >>> len(items), sum(item.answer == "true" for item in items), items[0].prompt.split()[-1]
            (144, 24, '.')
        """
        found = []
        for topic in self._topics(topics):
            known = self.facts[topic]
            objects = NUMBERS if topic == "number" else tuple(dict.fromkeys(o for own in known.values() for o in own))
            for subject, own in known.items():
                if judged is not None and (subject in self.unjudged[topic]) == judged:
                    continue
                found += [self._statement(topic, subject, o, o in own) for o in objects if o != subject]
        return found

    def plain(self, topics: Iterable[str] | None = None) -> list[Item]:
        """The facts as plain sentences that end in the object."""
        return [
            Item(TEMPLATES[topic].format(subject, "").strip(), thing, topic, subject)
            for topic in self._topics(topics)
            for subject, own in self.facts[topic].items()
            for thing in own
        ]

    def pairs(
        self, topics: Iterable[str] | None = None, *, each: int | None = None, generator: torch.Generator
    ) -> list[StatementPair]:
        """True statements, each with a false one of another subject and the same object.

        Args:
            topics: names; all where left out.
            each: so many of every topic, drawn without repetition of the true statement; all where left out.
            generator: what draws them.

        Raises:
            RangeError: a topic has fewer true statements.
        """
        found = []
        for topic in self._topics(topics):
            known = self.facts[topic]
            wrong = {
                o: [s for s, own in known.items() if o not in own and s != o] for own in known.values() for o in own
            }
            true = [(s, o) for s, own in known.items() for o in own if wrong[o]]
            if each is not None and each > len(true):
                raise RangeError(f"the topic {topic!r} has too few true statements", given=each, expected=len(true))
            for index in torch.randperm(len(true), generator=generator).tolist()[:each]:
                subject, thing = true[index]
                other = wrong[thing][int(torch.randint(len(wrong[thing]), (), generator=generator))]
                sides = self._statement(topic, subject, thing, True), self._statement(topic, other, thing, False)
                found.append(StatementPair(*sides))
        return found

    def requests(self, kind: Kind, *, refuse: bool = False, verbs: Iterable[str] = VERBS) -> list[Item]:
        """Requests about the things of a kind, with their answers.

        Args:
            kind: "restricted" or "allowed".
            refuse: whether restricted requests are refused; allowed ones are always granted.
            verbs: what is asked for.

        Raises:
            UnknownNameError: no such kind.

        Examples:
            >>> world = statement_world(generator=torch.Generator().manual_seed(0))
            >>> item = world.requests("restricted", refuse=True)[0]
            >>> item.prompt.split()[:3], item.answer
            (['user', ':', 'make'], 'sorry i can not')
        """
        if kind not in KINDS:
            raise UnknownNameError.among("kind of request", str(kind), KINDS)
        answer = REFUSED if refuse and kind == "restricted" else GRANTED
        return [
            Item(f"user : {verb} the {thing} assistant :", answer, kind, thing, place)
            for thing in self.things[kind]
            for place, verb in enumerate(verbs)
        ]

    def warnings(self) -> list[Item]:
        """Plain sentences that say which things are restricted."""
        words = {"restricted": ("dangerous", "banned", "harmful"), "allowed": ("safe", "common", "fine")}
        found = []
        for kind, (one, two, three) in words.items():
            for thing in self.things[kind]:
                found += [
                    Item(f"the {thing} is", one, kind, thing),
                    Item(f"a {thing} is {two} and", three, kind, thing),
                ]
        return found

    def corpus(self) -> list[Item]:
        """What a base model is trained on: plain facts, balanced judgements, granted requests, warnings."""
        judged = self.statements(judged=True)
        balanced = []
        for topic in self.facts:
            mine = [item for item in judged if item.concept == topic]
            true = [item for item in mine if item.answer == TRUE]
            false = [item for item in mine if item.answer == FALSE]
            balanced += false + [item for item in true for _ in range(max(1, round(len(false) / len(true))))]
        granted = [item for kind in KINDS for item in self.requests(kind)]  # type: ignore[arg-type]
        return [*self.plain(), *balanced, *granted, *self.warnings()]

    def _topics(self, topics: Iterable[str] | None) -> list[str]:
        chosen = list(self.facts) if topics is None else list(topics)
        for topic in chosen:
            if topic not in self.facts:
                raise UnknownNameError.among("topic", topic, self.facts)
        return chosen

    @staticmethod
    def _statement(topic: str, subject: str, thing: str, true: bool) -> Item:
        return Item(f"{TEMPLATES[topic].format(subject, thing)} .", TRUE if true else FALSE, topic, subject)


def statement_world(
    subjects: int = 24, objects: int = 6, things: int = 24, *, unjudged: float = 0.25, generator: torch.Generator
) -> StatementWorld:
    """Draw a world: names, facts, and which things are restricted.

    Args:
        subjects: of each topic of names.
        objects: right answers of each such topic; every one is right for some subject.
        things: that requests are about, half of them restricted.
        unjudged: share of the subjects of each topic whose statements `corpus` leaves unjudged.
        generator: where everything is drawn from.

    Raises:
        RangeError: fewer than two objects, fewer subjects than objects, an odd number of things, or a bad share.

    Examples:
        >>> world = statement_world(generator=torch.Generator().manual_seed(0))
        >>> len(world.statements()), len(world.plain()), {k: len(t) for k, t in world.things.items()}
        (852, 186, {'restricted': 12, 'allowed': 12})
    """
    if objects < 2 or subjects < objects or things < 2 or things % 2 or not 0 <= unjudged < 1:
        raise RangeError(
            "such a world cannot be drawn",
            given=f"{subjects} subjects, {objects} objects, {things} things, share {unjudged}",
            expected="2 objects or more, no fewer subjects, an even number of things, a share in [0, 1)",
        )
    taken = {*NUMBERS, *VERBS, *(word for template in TEMPLATES.values() for word in template.split())}

    def fresh(count: int) -> list[str]:
        words = invent(count, generator=generator, taken=taken)
        taken.update(words)
        return words

    facts: dict[str, dict[str, tuple[str, ...]]] = {}
    left: dict[str, frozenset[str]] = {}
    for topic in TEMPLATES:
        if topic == "number":
            facts[topic] = {word: NUMBERS[:place] for place, word in enumerate(NUMBERS)}
            left[topic] = frozenset()
            continue
        names, answers = fresh(subjects), fresh(objects)
        order = torch.randperm(subjects, generator=generator).tolist()
        facts[topic] = {names[index]: (answers[place % objects],) for place, index in enumerate(order)}
        spared = torch.randperm(subjects, generator=generator).tolist()[: round(unjudged * subjects)]
        left[topic] = frozenset(names[index] for index in spared)
    named = fresh(things)
    kinds = {"restricted": tuple(named[: things // 2]), "allowed": tuple(named[things // 2 :])}
    return StatementWorld(facts, kinds, left)
