"""The documentation's ledger pages say what the ledger files say, and nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from plexus.lab._ledger import synthetic_calibration, synthetic_row, write_json, write_row
from plexus.lab._pages import differences, main, markdown, write_pages
from plexus.lab._show import show_row

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    write_row(tmp_path / "ledger", synthetic_row("alpha", mechanism="holds here", advantage="undecided"))
    write_row(tmp_path / "ledger", synthetic_row("beta", mechanism="not tested", advantage="not tested", fidelity="C"))
    write_json(tmp_path / "ledger" / "calibration.json", synthetic_calibration())
    return tmp_path / "ledger"


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


@pytest.mark.skipif(not (ROOT / "pyproject.toml").exists(), reason="needs the checkout")
def test_committed_pages_are_what_the_ledger_gives() -> None:
    found = differences(ROOT / "ledger", ROOT / "docs")
    assert not found, "run `python -m plexus.lab._pages`: " + ", ".join(str(path.relative_to(ROOT)) for path in found)


def test_pages_are_written_once_and_then_agree(ledger: Path, tmp_path: Path) -> None:
    docs = tmp_path / "docs"
    touched = write_pages(ledger, docs)
    names = {str(path.relative_to(docs)) for path in touched}
    assert names == {"ledger.md", "ledger/alpha.md", "ledger/beta.md", "assets/claims-map.svg"}
    assert differences(ledger, docs) == {}
    assert write_pages(ledger, docs) == []


def test_check_finds_an_edit_and_a_page_of_a_study_that_is_gone(
    ledger: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    docs = tmp_path / "docs"
    given_folders = ["--ledger", str(ledger), "--docs", str(docs)]
    assert main(given_folders) == 0
    assert main([*given_folders, "--check"]) == 0
    page = docs / "ledger" / "alpha.md"
    page.write_text(page.read_text().replace("holds here", "holds everywhere"))
    (ledger / "beta.json").unlink()
    capsys.readouterr()
    before = page.read_text()
    assert main([*given_folders, "--check"]) == 1
    said = capsys.readouterr().out
    assert "alpha.md" in said
    assert "beta.md: no such study" in said
    assert page.read_text() == before
    assert main(given_folders) == 0
    assert not (docs / "ledger" / "beta.md").exists()
    assert main([*given_folders, "--check"]) == 0


@pytest.mark.parametrize("field", ["claim", "scale_line", "command"])
def test_a_change_of_the_ledger_is_a_difference(ledger: Path, tmp_path: Path, field: str) -> None:
    docs = tmp_path / "docs"
    write_pages(ledger, docs)
    row = synthetic_row("alpha", mechanism="holds here", advantage="undecided")
    write_row(ledger, row | {field: "something else"})
    assert docs / "ledger" / "alpha.md" in differences(ledger, docs)


def test_table_has_every_study_and_links_to_pages_that_exist(ledger: Path, tmp_path: Path) -> None:
    docs = tmp_path / "docs"
    write_pages(ledger, docs)
    lines = [line for line in (docs / "ledger.md").read_text().splitlines() if line.startswith("| [")]
    assert [cells(line)[1:4] for line in lines] == [["holds here", "undecided", "B"], ["not tested", "not tested", "C"]]
    assert all(len(cells(line)) == 7 for line in lines)
    assert all((docs / line.split("](")[1].split(")")[0]).is_file() for line in lines)


def test_picture_is_an_svg_that_stands_alone(ledger: Path, tmp_path: Path) -> None:
    docs = tmp_path / "docs"
    write_pages(ledger, docs)
    root = ElementTree.parse(docs / "assets" / "claims-map.svg").getroot()
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    text = "".join(root.itertext())
    assert "alpha" in text
    assert "prefers-color-scheme:dark" in text
    assert not [node for node in root.iter() if node.tag.endswith(("}script", "}image", "}a"))]


def test_an_empty_ledger_has_a_page(tmp_path: Path) -> None:
    write_pages(tmp_path / "none", tmp_path / "docs")
    assert "No study has been measured yet" in (tmp_path / "docs" / "ledger.md").read_text()
    ElementTree.parse(tmp_path / "docs" / "assets" / "claims-map.svg")


def test_hostile_text_is_no_markup(ledger: Path, tmp_path: Path) -> None:
    row: dict[str, Any] = synthetic_row("alpha")
    row |= {"claim": "<script>alert(1)</script>", "scale_line": "a | b\n\n# heading [x](javascript:y) `z`"}
    write_row(ledger, row)
    write_pages(ledger, tmp_path / "docs")
    page, index = ((tmp_path / "docs" / name).read_text() for name in ("ledger/alpha.md", "ledger.md"))
    assert "<script" not in page
    assert "](javascript" not in page.replace("\\]", "")
    assert all(len(cells(line)) == 7 for line in index.splitlines() if line.startswith("| ["))


@given(st.text(max_size=60))
def test_escaped_text_holds_no_live_markup(text: str) -> None:
    safe = markdown(text)
    assert not set(safe) & set("<>|\n")
    for mark in "`*_[]":
        assert safe.count(mark) == safe.count("\\" + mark) == text.count(mark)


def test_what_was_found_wanting_since_stands_on_the_page_and_in_the_terminal(tmp_path, capsys):
    row = {**synthetic_row("a"), "doubts": ["its rival was not tuned."]}
    write_row(tmp_path / "ledger", row)
    write_pages(tmp_path / "ledger", tmp_path / "docs")
    page = (tmp_path / "docs" / "ledger" / "a.md").read_text(encoding="utf-8")
    assert page.index("Found wanting since: its rival was not tuned.") < page.index("## Verdict")
    show_row(Console(width=200), row)
    assert "found wanting since: its rival was not tuned." in capsys.readouterr().out
