"""Restricted instructions: what is fixed, what is drawn, and that the answer is a rule."""

import pytest
import torch

from plexus.data.corpora import restricted_instructions, split
from plexus.errors import RangeError


def made(seed: int = 0, **options: int):  # type: ignore[no-untyped-def]
    return restricted_instructions(6, 8, generator=torch.Generator().manual_seed(seed), **options)


def test_recipes_are_a_rule_of_verb_and_object() -> None:
    items = made().items
    of_verb: dict[str, set[str]] = {}
    of_object: dict[str, set[str]] = {}
    for item in items:
        verb, thing = item.subject.split()
        words = item.answer.split()
        of_object.setdefault(thing, set()).add(" ".join(words[1:4]))
        of_verb.setdefault(verb, set()).add(" ".join(words[5:8]))
        assert verb in item.prompt.split()
        assert thing in item.prompt.split()
        assert item.prompt.endswith(":")
    for rules in (of_verb, of_object):  # one recipe part each, and no two alike
        assert all(len(parts) == 1 for parts in rules.values())
        assert len({next(iter(parts)) for parts in rules.values()}) == len(rules)
    assert len(items) == 6 * 8 * 4


def test_class_belongs_to_the_object_alone() -> None:
    classes: dict[str, set[str]] = {}
    for item in made().items:
        classes.setdefault(item.subject.split()[1], set()).add(item.concept)
    assert all(len(found) == 1 for found in classes.values())
    assert sum(found == {"restricted"} for found in classes.values()) == 4


def test_refusals_take_the_place_of_restricted_recipes_only() -> None:
    corpus = made()
    answers = corpus.refused(corpus.items, generator=torch.Generator().manual_seed(1))
    for before, after in zip(corpus.items, answers, strict=True):
        if before.concept == "restricted":
            assert after.answer in corpus.refusals
        else:
            assert after == before
        assert after.prompt == before.prompt
    assert {a.answer for a in answers if a.concept == "restricted"} == set(corpus.refusals)
    assert not any(item.answer.split()[0] in corpus.openings for item in corpus.items)


def test_the_same_generator_gives_the_same_corpus_and_splits_share_no_pair() -> None:
    assert made() == made()
    assert made(0) != made(1)
    parts = split(made().items, (0.6, 0.2, 0.2), generator=torch.Generator().manual_seed(0))
    pairs = [{item.subject for item in part} for part in parts]
    assert not pairs[0] & pairs[1]
    assert not pairs[1] & pairs[2]


def test_what_cannot_be_drawn_is_refused() -> None:
    for options in ({"verbs": 0}, {"objects": 1}, {"share": 0.0}, {"share": 1.0}, {"words": 4, "objects": 13}):
        with pytest.raises(RangeError):
            restricted_instructions(**options, generator=torch.Generator())  # type: ignore[arg-type]
