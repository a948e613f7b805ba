"""The two worlds of steering hold what they promise: separable rudeness, and questions whose answers are right."""

from __future__ import annotations

import itertools

import pytest
import torch
from scipy import stats

from plexus.data import corpora
from plexus.errors import RangeError, UnknownNameError


def numbers(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


RUDE = corpora.rude_world(generator=numbers())
QUIZ = corpora.quiz_world(generator=numbers())


def test_rudeness_comes_with_the_mood_and_never_in_the_prompt() -> None:
    items = RUDE.sentences(2000, generator=numbers(1))
    for mood, rate in (("angry", 0.35), ("calm", 0.01)):
        words = [word for item in items if item.concept == mood for word in item.answer.split()]
        rude = sum(word in RUDE.rude for word in words)
        assert stats.binomtest(rude, len(words), rate).pvalue > 1e-4
    assert not any(word in RUDE.rude for item in items for word in item.prompt.split())
    assert {len(item.text.split()) for item in items} == {26}
    assert all(item.prompt.split()[0] in (RUDE.angry if item.concept == "angry" else RUDE.calm) for item in items)


def test_neutral_words_follow_the_walk() -> None:
    follows = {(a, RUDE.neutral[int(b)]) for a, row in zip(RUDE.neutral, RUDE.successors, strict=True) for b in row}
    for item in RUDE.sentences(50, clean=True, generator=numbers(2)):
        words = item.text.split()[1:]
        assert all(pair in follows for pair in itertools.pairwise(words))
    torch.testing.assert_close(RUDE.chances.sum(1), torch.ones(200))
    assert all(len(set(row.tolist())) == 6 for row in RUDE.successors)


def test_rude_words_are_as_frequent_as_their_rank_says() -> None:
    text = " ".join(item.answer for item in RUDE.sentences(1500, angry=1.0, generator=numbers(3))).split()
    seen = [text.count(word) for word in RUDE.rude]
    rank = [1 / (i + 1) for i in range(30)]
    expected = [sum(seen) * r / sum(rank) for r in rank]
    assert stats.chisquare(seen, expected).pvalue > 1e-4


def test_questions_about_rudeness_are_right_and_half_yes() -> None:
    items = RUDE.questions(800, generator=numbers(4))
    for item in items:
        held = sum(word in RUDE.rude for word in item.prompt.split())
        assert item.answer == ("yes" if held else "no")
        assert held <= 3
    assert stats.binomtest(sum(item.answer == "yes" for item in items), 800, 0.5).pvalue > 1e-4


def test_quiz_answers_are_right_without_slips() -> None:
    for item in QUIZ.questions("yes or no", 300, part="test", generator=numbers(5)):
        words = item.prompt.split()
        assert item.answer == ("yes" if QUIZ.facts[words[1]] == words[2] else "no")
    for item in QUIZ.questions("choice", 300, part="test", generator=numbers(5)):
        words = item.prompt.split()
        assert item.answer == ("a" if QUIZ.facts[words[0]] == words[3] else "b")
        assert QUIZ.facts[words[0]] in (words[3], words[5])
        assert words[3] != words[5]
    for item in QUIZ.questions("sum", 100, generator=numbers(5)):
        a, _, b, _ = item.prompt.split()
        value = corpora._quiz.NUMBERS.index
        assert value(item.answer) == (value(a) + value(b)) % 10


@pytest.mark.parametrize(("task", "usual"), [("yes or no", "yes"), ("choice", "a")])
def test_slips_say_the_usual_answer_and_nothing_else(task: str, usual: str) -> None:
    true = QUIZ.questions(task, 1000, generator=numbers(6))
    slipped = QUIZ.questions(task, 1000, slips=0.6, generator=numbers(6))
    assert [item.prompt for item in true] == [item.prompt for item in slipped]
    changed = [(a.answer, b.answer) for a, b in zip(true, slipped, strict=True) if a != b]
    assert {b for _, b in changed} == {usual}
    share = sum(item.answer == usual for item in slipped) / 1000
    assert share == pytest.approx(0.8, abs=0.05)


def test_parts_share_no_subject_and_wrong_answers_are_wrong() -> None:
    parts = [set(QUIZ.subjects[part]) for part in ("training", "validation", "test")]
    assert not parts[0] & parts[1]
    assert not parts[0] & parts[2]
    assert not parts[1] & parts[2]
    for part, known in zip(("training", "validation", "test"), parts, strict=True):
        assert {item.subject for item in QUIZ.questions("choice", 200, part=part, generator=numbers(7))} <= known
    draw = numbers(8)
    for task in ("yes or no", "choice", "sum"):
        for item in QUIZ.questions(task, 50, generator=numbers(9)):
            assert QUIZ.wrong(item, draw) != item.answer


def test_every_word_is_known() -> None:
    words = {
        word
        for t in ("yes or no", "choice", "sum")
        for i in QUIZ.questions(t, 200, generator=numbers(1))
        for word in i.text.split()
    }
    assert words <= set(QUIZ.words)
    assert {w for i in RUDE.questions(50, generator=numbers(1)) for w in i.text.split()} <= set(RUDE.words)


def test_pieces_of_words_come_back_and_listed_words_stay_whole() -> None:
    text = ["the fool and the knave, foolish knavery; fools!"] * 3
    tokenizer = corpora.subword_tokenizer(text, 300, whole=["fool", "fools", "knave"])
    ids = tokenizer(text[0]).input_ids
    assert tokenizer.decode(ids, skip_special_tokens=True) == text[0]
    whole = tokenizer.convert_tokens_to_ids(["fool", "fools", "knave"])
    assert [ids.count(token) for token in whole] == [1, 1, 1]
    assert len(tokenizer) <= 300


def test_bad_numbers() -> None:
    with pytest.raises(RangeError):
        corpora.rude_world(neutral=3, successors=4, generator=numbers())
    with pytest.raises(RangeError):
        RUDE.sentences(0, generator=numbers())
    with pytest.raises(RangeError):
        RUDE.questions(3, length=2, generator=numbers())
    with pytest.raises(RangeError):
        corpora.quiz_world(3, generator=numbers())
    with pytest.raises(UnknownNameError):
        QUIZ.questions("sums", 3, generator=numbers())  # type: ignore[arg-type]
    with pytest.raises(UnknownNameError):
        QUIZ.questions("choice", 3, part="testing", generator=numbers())  # type: ignore[arg-type]
    with pytest.raises(RangeError):
        corpora.subword_tokenizer(["a"], 200)
