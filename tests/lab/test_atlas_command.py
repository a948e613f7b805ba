"""What `plexus atlas` reads: files of texts, in any order, refused before anything is computed."""

import json

import pytest

from plexus.errors import FormatError
from plexus.lab import _atlas


def write(path, rows):
    path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows), encoding="utf-8")
    return path


def test_a_line_may_hold_any_character_that_json_lets_it_hold(tmp_path):
    rows = [{"text": "a\u2028b\x85c", "label": "x"}, {"text": "d", "label": "y"}]
    assert _atlas.read_texts(write(tmp_path / "t.jsonl", rows)) == rows


def test_a_table_may_hold_lines_within_a_cell(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text('text,label\n"one\ntwo",x\nthree,y\n', encoding="utf-8")
    assert [row["text"] for row in _atlas.read_texts(path)] == ["one\ntwo", "three"]


def test_texts_are_drawn_from_the_whole_file(tmp_path):
    rows = [{"text": f"text {i}", "label": "xy"[i // 50]} for i in range(100)]
    chosen = _atlas.chosen_texts(write(tmp_path / "t.jsonl", rows), 20)
    assert len(chosen) == 20
    assert {row["label"] for row in chosen} == {"x", "y"}
    assert chosen == [row for row in rows if row in chosen]  # in the order of the file
    assert _atlas.chosen_texts(tmp_path / "t.jsonl", 500) == rows


@pytest.mark.parametrize(
    ("change", "said"),
    [({"answer": "b"}, "row 1 of"), ({"label": "y", "text": ""}, "row 100 of")],
    ids=["one answer", "no text"],
)
def test_rows_that_differ_in_what_they_say_are_refused(tmp_path, change, said):
    rows = [{"text": f"text {i}", "label": "xy"[i % 2]} for i in range(100)]
    rows[99] |= change
    with pytest.raises(FormatError, match=said):
        _atlas.chosen_texts(write(tmp_path / "t.jsonl", rows), 500)


def test_one_label_tells_nothing(tmp_path):
    rows = [{"text": f"text {i}", "label": "x"} for i in range(5)]
    with pytest.raises(FormatError, match="one label"):
        _atlas.chosen_texts(write(tmp_path / "t.jsonl", rows), 500)
