"""Sentences of a small grammar that looks like English: agreement, relative clauses, topics.

    sentence  →  noun phrase  verb phrase  .
    noun phrase  →  determiner [adjective] noun [that verb noun phrase]
    verb phrase  →  verb [adverb] | verb noun phrase [preposition noun phrase]

Subject and verb agree in number, also across a relative clause. Every sentence has a topic, which makes its own nouns
and verbs likelier, so that a model has something to learn beyond word classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from plexus.errors import RangeError

_TOPICS: tuple[tuple[str, str], ...] = (
    ("farmer cow field barn horse hen", "feed milk chase lead"),
    ("sailor ship harbour captain wave gull", "steer load follow repair"),
    ("teacher pupil book school lesson pen", "teach praise question draw"),
    ("doctor nurse patient ward letter bed", "cure visit wake help"),
    ("king queen castle guard crown feast", "rule defend honour greet"),
    ("baker cake oven shop guest table", "bake serve taste carry"),
)
_ADJECTIVES = ["old", "young", "big", "small", "red", "green", "quiet", "busy", "clever", "tired"]
_ADVERBS = ["often", "slowly", "today", "gladly", "never", "again"]
_ALONE = ["sleep", "wait", "laugh", "arrive"]
_PREPOSITIONS = ["near", "behind", "with", "without"]
_SINGULAR, _PLURAL = ("the", "a", "every", "this"), ("the", "many", "some", "these")


class _Writer:
    def __init__(self, generator: torch.Generator, relative: float) -> None:
        self.generator, self.relative = generator, relative

    def chance(self, p: float) -> bool:
        return float(torch.rand((), generator=self.generator)) < p

    def one(self, words: Sequence[str]) -> str:
        return words[int(torch.randint(len(words), (), generator=self.generator))]

    def word(self, kind: int) -> str:
        """A noun (0) or a verb (1), three times in four of the sentence's own topic."""
        of = self.topic if self.chance(0.75) else int(torch.randint(len(_TOPICS), (), generator=self.generator))
        return self.one(_TOPICS[of][kind].split())

    def noun_phrase(self, plural: bool, depth: int = 0) -> list[str]:
        words = [self.one(_PLURAL if plural else _SINGULAR)]
        if self.chance(0.4):
            words.append(self.one(_ADJECTIVES))
        words.append(self.word(0) + ("s" if plural else ""))
        if depth == 0 and self.chance(self.relative):
            words += ["that", self.verb(plural), *self.noun_phrase(self.chance(0.5), 1)]
        return words

    def verb(self, plural: bool, alone: bool = False) -> str:
        return (self.one(_ALONE) if alone else self.word(1)) + ("" if plural else "s")

    def sentence(self) -> str:
        self.topic = int(torch.randint(len(_TOPICS), (), generator=self.generator))
        plural = self.chance(0.5)
        words = self.noun_phrase(plural)
        if self.chance(0.25):
            words += [self.verb(plural, alone=True), self.one(_ADVERBS)]
        else:
            words += [self.verb(plural), *self.noun_phrase(self.chance(0.5), 1)]
            if self.chance(0.3):
                words += [self.one(_PREPOSITIONS), *self.noun_phrase(self.chance(0.5), 1)]
        return " ".join([*words, "."])


def grammar_sentences(count: int, *, relative: float = 0.25, generator: torch.Generator) -> list[str]:
    """Sentences of a small grammar, words separated by spaces, about 150 different ones.

    Args:
        count: how many.
        relative: share of subjects with a relative clause.
        generator: where they come from.

    Raises:
        RangeError: no sentences, or a share outside [0, 1].

    Examples:
        >>> sentences = grammar_sentences(2, generator=torch.Generator().manual_seed(0))
        >>> all(sentence.endswith(" .") for sentence in sentences)
        True
    """
    if count < 1 or not 0 <= relative <= 1:
        raise RangeError("such sentences cannot be written", given=f"{count} sentences, share {relative}")
    writer = _Writer(generator, relative)
    return [writer.sentence() for _ in range(count)]
