"""What must be true of the controlled corpora."""

import itertools
from collections import defaultdict

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from plexus.data import corpora
from plexus.errors import DtypeError, FormatError, RangeError, ShapeError, UnknownNameError


def draw(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class TestTokenizer:
    def test_a_saved_tokenizer_is_the_same_tokenizer(self, tmp_path):
        from transformers import AutoTokenizer

        tokenizer = corpora.word_tokenizer(["the cat sat", "on it"])
        tokenizer.save_pretrained(tmp_path)
        again = AutoTokenizer.from_pretrained(tmp_path)
        texts = ["it sat", "the cat sat on nothing"]
        assert again(texts, padding=True).data == tokenizer(texts, padding=True).data
        assert (again.pad_token_id, again.bos_token_id, again.eos_token_id, again.padding_side) == (0, 1, 2, "left")

    @given(st.lists(st.lists(st.sampled_from("abcdefg"), min_size=1, max_size=6), min_size=1, max_size=5))
    def test_words_come_back(self, lines):
        texts = [" ".join(line) for line in lines]
        tokenizer = corpora.word_tokenizer(texts)
        assert tokenizer.batch_decode(tokenizer(texts).input_ids, skip_special_tokens=True) == texts

    def test_padding_is_on_the_left_and_masked(self):
        tokenizer = corpora.word_tokenizer(["a b c"])
        (batch,) = corpora.batches(["a b c", "c"], tokenizer)
        assert batch["input_ids"].tolist() == [[1, 4, 5, 6], [0, 0, 1, 6]]
        assert batch["attention_mask"].tolist() == [[1, 1, 1, 1], [0, 0, 1, 1]]

    def test_items_give_prompt_or_whole(self):
        item = corpora.Item("one and one is", "two")
        tokenizer = corpora.word_tokenizer([item])
        assert corpora.batches([item], tokenizer)[0]["input_ids"].shape[1] == 5
        assert corpora.batches([item], tokenizer, whole=True)[0]["input_ids"].shape[1] == 6

    def test_unknown_words_and_bad_input(self):
        tokenizer = corpora.word_tokenizer(["a b"], extra=["c"])
        assert tokenizer("a z c").input_ids == [1, 4, 3, 6]
        with pytest.raises(ShapeError, match="no word"):
            corpora.word_tokenizer(["  ", ""])
        with pytest.raises(DtypeError, match="several"):
            corpora.word_tokenizer("a b")
        with pytest.raises(ShapeError, match="no prompts"):
            corpora.batches([], tokenizer)
        with pytest.raises(RangeError):
            corpora.batches(["a"], tokenizer, 0)


class TestFactWorld:
    world = corpora.fact_world(generator=draw())

    def test_same_generator_same_world(self):
        assert corpora.fact_world(generator=draw()).facts == self.world.facts
        assert corpora.fact_world(generator=draw(1)).facts != self.world.facts

    def test_a_prompt_ends_right_before_the_answer_and_names_the_subject(self):
        for item in self.world.items(language=None):
            assert item.text.split()[-1] == item.answer == self.world.facts[item.concept, item.subject]
            assert item.subject in item.prompt
            assert len(item.subject.split()) == 2
            assert "{}" not in item.prompt

    def test_neither_name_alone_tells_the_answer(self):
        for place in (0, 1):
            answers = defaultdict(set)
            for (relation, subject), answer in self.world.facts.items():
                answers[relation, subject.split()[place]].add(answer)
            assert sum(len(found) > 1 for found in answers.values()) > 0.9 * len(answers)

    def test_the_last_word_does_not_tell_the_relation(self):
        ends = defaultdict(set)
        for relation in self.world.relations.values():
            for number, template in enumerate(relation.templates):
                ends[number].add(template.split()[-1])
        assert sum(len(found) == 1 for found in ends.values()) >= 4

    def test_halves_of_the_subjects_have_none_in_common(self):
        even, odd = (self.world.items(subjects=half) for half in ("even", "odd"))
        assert {item.subject for item in even} & {item.subject for item in odd} == set()
        assert len(even) == len(odd) == len(self.world.items()) / 2

    def test_half_of_each_relation_is_said_in_the_second_language(self):
        said = self.world.items(language="second", templates=[0])
        counts = {name: sum(item.concept == name for item in said) for name in self.world.relations}
        assert set(counts.values()) == {32}
        assert len(self.world.items(language="second", templates=[0], taught=False)) == 512

    def test_the_second_language_shares_names_and_answers_alone(self):
        pair = [self.world.items(["chief"], language=language, taught=False) for language in ("first", "second")]
        for first, second in zip(*pair, strict=True):
            common = set(first.prompt.split()) & set(second.prompt.split())
            assert common == set(first.subject.split())
            assert first.answer == second.answer
            assert self.world.second.undo(second.prompt) == first.prompt

    def test_pools_and_answer_sets_do_not_mix(self):
        words = {pool: {word for name in names for word in name.split()} for pool, names in self.world.subjects.items()}
        answers = defaultdict(set)
        for (relation, _), answer in self.world.facts.items():
            answers[relation].add(answer)
        for one, two in itertools.combinations([*words.values(), *answers.values()], 2):
            assert not one & two

    def test_bad_questions(self):
        with pytest.raises(UnknownNameError, match="chief"):
            self.world.items(["chef"])
        with pytest.raises(UnknownNameError, match="language"):
            self.world.items(language="third")
        with pytest.raises(UnknownNameError, match="half"):
            self.world.items(subjects="every")
        with pytest.raises(UnknownNameError, match="subject"):
            self.world.items(subjects=["nobody at all"])
        with pytest.raises(RangeError, match="template"):
            self.world.items(templates=[9])
        with pytest.raises(RangeError, match="world"):
            corpora.fact_world(101, generator=draw())
        with pytest.raises(RangeError, match="world"):
            corpora.fact_world(both=1.5, generator=draw())
        with pytest.raises(ShapeError, match="cannot be said"):
            corpora.Relation("chief", "company", 3, ("the chief is",))


class TestItems:
    def test_split_keeps_subjects_together_and_all_items(self):
        items = corpora.fact_world(10, generator=draw()).items()
        parts = corpora.split(items, (0.5, 0.3, 0.2), generator=draw())
        assert sum(map(len, parts)) == len(items)
        for one, two in itertools.combinations(parts, 2):
            assert not {item.subject for item in one} & {item.subject for item in two}
        assert [len({item.subject for item in part}) for part in parts] == [15, 9, 6]

    def test_labels_name_the_classes(self):
        items = corpora.fact_world(3, generator=draw()).items(["seat", "father"])
        classes, names = corpora.labels(items)
        assert [names[index] for index in classes.tolist()] == [item.concept for item in items]
        assert corpora.labels(items, "template")[1] == ("0", "1", "2", "3", "4")

    def test_bad_splits_and_fields(self):
        items = [corpora.Item("a", "b", subject="one")]
        with pytest.raises(RangeError):
            corpora.split(items, (0.7, 0.7), generator=draw())
        with pytest.raises(RangeError):
            corpora.split(items, (), generator=draw())
        with pytest.raises(ShapeError, match="no subject"):
            corpora.split(items, (0.5, 0.5), generator=draw())
        with pytest.raises(UnknownNameError):
            corpora.labels(items, "colour")


ORDERS = ("same", "reverse", "swap", "verb-last")


class TestCipher:
    @given(
        st.lists(st.sampled_from(["the", "cat", "dog", "sees", ".", "zoo"]), max_size=9),
        st.sampled_from(ORDERS),
        st.integers(0, 5),
    )
    def test_what_was_said_can_be_read_back(self, words, order, seed):
        language = corpora.cipher(["the cat sees the dog ."], "other", order=order, keep=["."], generator=draw(seed))
        said = language(" ".join(words))
        assert language.undo(said) == " ".join(words)
        assert len(said.split()) == len(words)

    def test_orders(self):
        words = {"a": "A", "b": "B", "c": "C"}
        said = {order: corpora.Cipher("x", words, order)("a b c") for order in ORDERS}
        assert said == {"same": "A B C", "reverse": "C B A", "swap": "B A C", "verb-last": "A C B"}

    @given(st.floats(0, 1), st.integers(0, 100))
    def test_the_share_of_a_related_language_is_exact_and_nothing_else_is_shared(self, share, seed):
        text = " ".join(f"w{k}" for k in range(40))
        one = corpora.cipher([text], "one", generator=draw(seed))
        two = corpora.cipher([text], "two", related=one, share=share, generator=draw(seed))
        same = [word for word in one.words if one.words[word] == two.words[word]]
        assert len(same) == round(share * 40)
        assert len(set(one.words.values()) & set(two.words.values())) == len(same)
        assert not set(two.words.values()) & set(two.words)

    def test_bad_languages(self):
        with pytest.raises(ShapeError, match="share words with"):
            corpora.cipher(["a"], "x", share=0.5, generator=draw())
        with pytest.raises(RangeError):
            corpora.cipher(["a"], "x", share=1.5, generator=draw())
        with pytest.raises(DtypeError):
            corpora.cipher("a b", "x", generator=draw())
        with pytest.raises(UnknownNameError):
            corpora.cipher(["a"], "x", order="random", generator=draw())
        with pytest.raises(ShapeError, match="same"):
            corpora.Cipher("x", {"a": "z", "b": "z"})
        related = corpora.cipher(["a"], "x", generator=draw())
        with pytest.raises(ShapeError, match="enough"):
            corpora.cipher(["a b c d"], "y", related=related, share=0.5, generator=draw())


class TestGrammar:
    def test_subject_and_verb_agree_in_number(self):
        from plexus.data.corpora import _grammar as grammar

        verbs = {verb for _, verbs in grammar._TOPICS for verb in verbs.split()} | set(grammar._ALONE)
        plural_only, singular_only = {"many", "some", "these"}, {"a", "every", "this"}
        forms = {**dict.fromkeys(verbs, "plural"), **{f"{verb}s": "singular" for verb in verbs}}
        seen = set()
        for sentence in corpora.grammar_sentences(500, generator=draw()):
            words = sentence.split()
            number = "plural" if words[0] in plural_only else "singular" if words[0] in singular_only else None
            found = [forms[word] for word in words if word in forms]
            assert len(found) == 1 + ("that" in words)
            assert len(set(found)) == 1
            if number is not None:
                assert found[0] == number
            seen.add(found[0])
        assert seen == {"plural", "singular"}

    def test_topics_hold_sentences_together(self):
        from plexus.data.corpora import _grammar as grammar

        topic = {noun: k for k, (nouns, _) in enumerate(grammar._TOPICS) for noun in nouns.split()}
        topic |= {f"{noun}s": k for noun, k in topic.items()}
        same = total = 0
        for sentence in corpora.grammar_sentences(400, generator=draw()):
            found = [topic[word] for word in sentence.split() if word in topic]
            same += sum(a == b for a, b in itertools.combinations(found, 2))
            total += len(found) * (len(found) - 1) // 2
        assert same / total > 0.5  # 1/6 by chance

    def test_bad_counts(self):
        with pytest.raises(RangeError):
            corpora.grammar_sentences(0, generator=draw())


class TestReasoning:
    corpus = corpora.recall_and_reasoning(16, 300, 90, generator=draw())

    def test_answers_are_right(self):
        for item in self.corpus.train + self.corpus.test:
            if item.concept == "recall":
                continue
            words = item.prompt.split()
            if item.template == 0:
                assert item.answer == str(int(words[0]) + int(words[2]))
            elif item.template == 1:
                holds = {words[0]: int(words[2]), words[4]: int(words[6])}
                assert item.answer == max(holds, key=holds.get)
            else:
                gives = {words[0]: words[3], words[5]: words[8]}
                assert item.answer == gives[gives[words[words.index("from") + 1]]]

    def test_no_problem_of_the_test_was_shown_but_all_facts_were(self):
        shown = {item.prompt for item in self.corpus.train}
        for item in self.corpus.test:
            assert (item.prompt in shown) == (item.concept == "recall")

    def test_all_three_kinds_are_in_both_parts(self):
        for part in (self.corpus.train, self.corpus.test):
            assert {item.template for item in part if item.concept == "reasoning"} == {0, 1, 2}

    def test_bad_counts(self):
        with pytest.raises(RangeError):
            corpora.recall_and_reasoning(0, generator=draw())


class TestParallel:
    def test_reads_the_columns_asked_for(self, tmp_path):
        lines = ["id\ten\tde\thi", "1\tHello, you!\tHallo, du!\tयह है।", '2\tIt\'s "new".\tNeu.\tनया']
        (tmp_path / "pud-parallel.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
        found = corpora.parallel_sentences(tmp_path, ("en", "de", "hi"))
        assert found["en"] == ["hello , you !", 'it\'s " new " .']
        assert found["de"] == ["hallo , du !", "neu ."]
        assert found["hi"] == ["यह है ।", "नया"]

    def test_what_is_missing_or_damaged_is_said(self, tmp_path, monkeypatch):
        monkeypatch.delenv("PLEXUS_DATA", raising=False)
        with pytest.raises(FormatError, match="PLEXUS_DATA"):
            corpora.parallel_sentences()
        with pytest.raises(FormatError, match="not here"):
            corpora.parallel_sentences(tmp_path)
        file = tmp_path / "pud-parallel.tsv"
        file.write_text("id\ten\n1\ta\n")
        with pytest.raises(UnknownNameError, match="language"):
            corpora.parallel_sentences(tmp_path, ("fr",))
        file.write_text("id\ten\n1\n")
        with pytest.raises(FormatError, match="line 2"):
            corpora.parallel_sentences(tmp_path, ("en",))


def test_invented_words_are_new():
    words = corpora.invent(200, generator=draw(), taken=["bobo"])
    assert len({*words, "bobo"}) == 201
    assert corpora.invent(5, generator=draw(), taken=words[:3])[0] not in words[:3]
    with pytest.raises(RangeError):
        corpora.invent(10**6, generator=draw())
