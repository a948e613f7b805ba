"""Languages about one world: related by construction, the same facts, some of them told."""

import pytest
import torch

from plexus.data import corpora
from plexus.errors import RangeError, ShapeError, UnknownNameError


def draw(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def world():
    return corpora.tongues(entities=6, generator=draw())


def test_every_language_says_the_same_and_can_be_undone(world):
    first = world.items("l1")
    for name in world.names[1:]:
        items = world.items(name)
        assert [item.answer for item in items] == [item.answer for item in first]
        cipher = world.ciphers[name]
        for item, other in zip(items, first, strict=True):
            assert cipher.undo(item.prompt) == other.prompt
            # names are the same everywhere, and their words side by side
            assert f" {item.subject} " in f" {item.prompt} "
            assert " " in item.subject
    for name in world.names:
        sentences = world.sentences(name, 5, generator=draw(1))
        assert all(text.endswith(" .") for text in sentences)
        if name != "l1":
            original = world.sentences("l1", 5, generator=draw(1))
            assert [world.ciphers[name].undo(text[:-2]) + " ." for text in sentences] == original


@pytest.mark.parametrize("order", ["same", "reverse", "swap", "verb-last"])
def test_phrases_move_as_one_word_and_can_be_undone(order):
    words = {"sees": "bo", "the": "da", "of": "ka", "friend": "mi"}
    texts = ("Ada Fox sees the friend of Bob Ray Hill", "the friend of Ada Fox", "Ada Fox", "sees Ada the Fox")
    whole = corpora.Cipher("one", words, order, together={"Ada Fox", "Bob Ray", "Bob Ray Hill"})
    apart = corpora.Cipher("two", words, order)
    for text in texts:
        assert whole.undo(whole(text)) == text
        joined = text.replace("Ada Fox", "Ada_Fox").replace("Bob Ray Hill", "Bob_Ray_Hill")
        assert whole(text) == apart(joined).replace("_", " ")
    if order != "same":
        assert whole(texts[0]) != apart(texts[0])


def test_related_languages_share_words_and_no_others_do(world):
    words = {name: cipher.words for name, cipher in world.ciphers.items()}
    for one in words:
        for other in words:
            if one < other:
                common = set(words[one].values()) & set(words[other].values())
                share = len(common) / len(words[one])
                if (one, other) == ("l2", "l4"):
                    assert share == pytest.approx(0.5, abs=0.01)
                    assert all(
                        words[one][word] == words[other][word] for word in words[one] if words[one][word] in common
                    )
                else:
                    assert share == 0
        assert not set(words[one].values()) & set(words[one])  # nor any word of the first language


def test_told_and_untold_facts_part_the_world(world):
    every = {(item.concept, item.subject) for item in world.items("l1")}
    assert world.told["l1"] == every
    for name in world.names[1:]:
        told, untold = (
            {(item.concept, item.subject) for item in world.items(name, told=which)} for which in (True, False)
        )
        assert told | untold == every
        assert not told & untold
        assert len(told) == round(0.5 * len(every))
        assert len(world.items(name, templates=[0])) == len(every)


def test_bad_languages(world):
    with pytest.raises(UnknownNameError):
        world.say("the cow", "l9")
    with pytest.raises(UnknownNameError):
        world.items("l9")
    with pytest.raises(ShapeError):
        corpora.tongues([corpora.Tongue("l1")], generator=draw())
    with pytest.raises(UnknownNameError, match="earlier language"):
        corpora.tongues([corpora.Tongue("l2", related="l3", share=0.5)], generator=draw())
    with pytest.raises(RangeError):
        corpora.tongues([corpora.Tongue("l2", facts=1.5)], generator=draw())
