"""Statements are true or false as the facts say, and every wording lines up with every other."""

import pytest
import torch

from plexus.data import corpora
from plexus.data.corpora import statement_files, statement_world
from plexus.data.corpora._statements import FALSE, GRANTED, REFUSED, TEMPLATES, TRUE
from plexus.errors import FormatError, RangeError, UnknownNameError


@pytest.fixture(scope="module")
def world():
    return statement_world(12, 4, 8, generator=torch.Generator().manual_seed(1))


def parts(item):
    """Subject and object of a statement, by where they stand."""
    words = item.prompt.split()
    return words[3], words[6]


def test_the_answer_says_whether_the_statement_is_among_the_facts(world):
    items = world.statements()
    for item in items:
        subject, thing = parts(item)
        assert subject == item.subject
        assert (item.answer == TRUE) == (thing in world.facts[item.concept][subject])
        assert item.answer in (TRUE, FALSE)
    assert len({item.prompt for item in items}) == len(items)
    numbers = [item for item in items if item.concept == "number"]
    assert sum(item.answer == TRUE for item in numbers) * 2 == len(numbers)


def test_every_statement_has_its_words_at_the_same_places(world):
    assert {len(item.prompt.split()) for item in world.statements()} == {8}
    tokenizer = corpora.word_tokenizer(world.corpus())
    ids = tokenizer([item.prompt for item in world.statements()]).input_ids
    assert {len(row) for row in ids} == {9}
    assert tokenizer.unk_token_id not in {token for row in ids for token in row}
    assert all(template.split()[3] == "{}" and template.split()[6] == "{}" for template in TEMPLATES.values())


def test_pairs_differ_in_the_subject_only(world):
    pairs = world.pairs(each=5, generator=torch.Generator().manual_seed(0))
    assert len(pairs) == 5 * len(TEMPLATES)
    for true, false in pairs:
        assert (true.answer, false.answer) == (TRUE, FALSE)
        one, two = true.prompt.split(), false.prompt.split()
        assert [i for i in range(8) if one[i] != two[i]] == [3]
        assert parts(true)[1] in world.facts[true.concept][parts(true)[0]]
        assert parts(false)[1] not in world.facts[false.concept][parts(false)[0]]
    with pytest.raises(RangeError, match="too few"):
        world.pairs(["city"], each=13, generator=torch.Generator())


def test_a_quarter_of_the_subjects_is_never_judged_in_training(world):
    hidden = {(t, s) for t, left in world.unjudged.items() for s in left}
    assert len(hidden) == 5 * 3
    judged = [item for item in world.corpus() if item.answer in (TRUE, FALSE)]
    assert not {(item.concept, item.subject) for item in judged} & hidden
    assert {(i.concept, i.subject) for i in world.statements(judged=False)} == hidden
    # their facts are said all the same
    assert hidden <= {(item.concept, item.subject) for item in world.plain()}
    # true and false judgements are balanced
    assert sum(item.answer == TRUE for item in judged) == pytest.approx(len(judged) / 2, rel=0.05)


def test_requests_are_refused_only_where_asked_to_be(world):
    for kind, refuse, answer in (
        ("restricted", False, GRANTED), ("restricted", True, REFUSED), ("allowed", False, GRANTED),
        ("allowed", True, GRANTED),
    ):  # fmt: skip
        items = world.requests(kind, refuse=refuse)
        assert {item.answer for item in items} == {answer}
        assert {item.subject for item in items} == set(world.things[kind])
    assert REFUSED not in {item.answer for item in world.corpus()}
    told = {item.subject: item.answer for item in world.warnings() if item.prompt.startswith("the")}
    assert {thing for thing, word in told.items() if word == "dangerous"} == set(world.things["restricted"])
    with pytest.raises(UnknownNameError):
        world.requests("forbidden")
    with pytest.raises(UnknownNameError):
        world.statements(["cities"])


def test_a_world_repeats_with_its_generator():
    one, two, three = (statement_world(6, 2, 4, generator=torch.Generator().manual_seed(s)) for s in (1, 1, 2))
    assert one == two
    assert one != three
    for bad in ({"objects": 1}, {"subjects": 3, "objects": 4}, {"things": 5}, {"unjudged": 1.0}):
        with pytest.raises(RangeError):
            statement_world(**bad, generator=torch.Generator())


FILES = {
    "cities.csv": ("The city of {} is in {}.", 3, True),
    "animal_class.csv": ("The {} is a {}.", 3, True),
    "element_symb.csv": ("{} has the symbol {}.", 1, False),
    "inventors.csv": ("{} lived in {}.", 3, True),
    "sp_en_trans.csv": ("The Spanish word '{}' means '{}'.", 1, False),
}


def written(folder, skip=None):
    truth = folder / "truth"
    truth.mkdir()
    for name, (form, _, repeats) in FILES.items():
        if name == skip:
            continue
        rows = ["statement,label"]
        for i in range(12):
            thing = f"{name[0]}answer{i % 4 if repeats else i}"
            rows.append(f"{form.format(f'{name[:3]} name{i}', thing)},1")
            rows.append(f"{form.format(f'{name[:3]} name{i}', 'nowhere')},0")
        (truth / name).write_text("\n".join(rows), encoding="utf-8")
    return folder


def test_real_facts_are_the_true_statements_of_the_files(tmp_path):
    found = statement_files(8, 4, 4, root=written(tmp_path), generator=torch.Generator().manual_seed(0))
    for topic, known in found.facts.items():
        if topic == "number":
            continue
        assert len(known) == 8
        for subject, (thing,) in known.items():
            assert thing != "nowhere"
            index = int(subject.rpartition("name")[2])
            assert thing.endswith(f"answer{index % 4 if len(set(known.values())) == 4 else index}")
    assert {len(item.prompt.split()) for item in found.statements()} == {8}


def test_files_that_are_missing_or_damaged_are_said_to_be(tmp_path, monkeypatch):
    monkeypatch.delenv("PLEXUS_DATA", raising=False)
    with pytest.raises(FormatError, match="not here"):
        statement_files(generator=torch.Generator())
    with pytest.raises(FormatError, match="not here"):
        statement_files(root=tmp_path, generator=torch.Generator())
    written(tmp_path, skip="inventors.csv")
    with pytest.raises(FormatError, match=r"inventors\.csv"):
        statement_files(8, 4, 4, root=tmp_path, generator=torch.Generator())
    (tmp_path / "truth" / "inventors.csv").write_text("statement,label\nnonsense,1\n", encoding="utf-8")
    with pytest.raises(FormatError, match="no statement of its form"):
        statement_files(8, 4, 4, root=tmp_path, generator=torch.Generator())
    with pytest.raises(RangeError):
        statement_files(7, 4, root=tmp_path, generator=torch.Generator())
