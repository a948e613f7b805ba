"""Finding studies, and typing their settings."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

from plexus.errors import RangeError, UnknownNameError
from plexus.lab import Paper
from plexus.lab._catalogue import catalogue, find, find_all, load, studies_folder
from plexus.lab._cite import bibtex
from plexus.lab._settings import from_json, parse_settings

FILE = Path(__file__).with_name("synthetic_study.py")


def test_every_study_of_the_library_is_found_by_its_file_name():
    entries = catalogue()
    stems = {p.stem for p in studies_folder().glob("*/*.py") if not p.stem.startswith("_")}
    slugs = {entry.slug.replace("-", "_") for entry in entries}
    assert slugs >= stems
    # a file may hold a second study, the first one's on other data, whose slug begins with the file's name
    assert all(any(slug.startswith(stem) for stem in stems) for slug in slugs)
    for entry in entries:
        assert entry.family == Path(entry.source.path).parent.name
        assert entry.claim
        assert entry.title
        assert entry.fidelity in "ABC"


def test_the_catalogue_imports_no_study_and_no_torch():
    code = "import sys; from plexus.lab._catalogue import catalogue; catalogue(); print('torch' in sys.modules)"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "False"


def test_a_file_of_ones_own():
    (entry,) = find(str(FILE))
    assert (entry.slug, entry.title, entry.claim) == ("synthetic-study", "A synthetic study.", "The method adds one.")
    assert load(entry).__name__ == "Synthetic"
    assert load(entry).name == entry.slug
    assert find(f"{FILE}::synthetic-study") == [entry]
    assert find_all([str(FILE), str(FILE)]) == [entry]


def test_unknown_studies_are_refused_with_near_names(tmp_path):
    with pytest.raises(UnknownNameError, match="no study file"):
        find(str(tmp_path / "absent.py"))
    empty = tmp_path / "empty.py"
    empty.write_text("x = 1\n")
    with pytest.raises(UnknownNameError, match="no class decorated"):
        find(str(empty))
    with pytest.raises(UnknownNameError, match="synthetic-study"):
        find(f"{FILE}::synthetic-studie")
    with pytest.raises(UnknownNameError, match="no study 'nothing-like-it'"):
        find("nothing-like-it")


@dataclass(frozen=True)
class Config:
    """Settings of every type."""

    width: int = 1
    rate: float = 0.1
    name: str = "a"
    flag: bool = False
    mode: Literal["soft", "hard"] = "soft"
    layers: tuple[int, ...] = (1,)
    pair: tuple[int, str] = (1, "a")
    maybe: int | None = None
    either: int | str = 1


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("width=3", 3),
        ("rate=1e-3", 0.001),
        ("name=b=c", "b=c"),
        ("flag=true", True),
        ("flag=0", False),
        ("mode=hard", "hard"),
        ("layers=1,2,3", (1, 2, 3)),
        ("layers=(4,)", (4,)),
        ("layers=", ()),
        ("pair=2,x", (2, "x")),
        ("maybe=none", None),
        ("maybe=4", 4),
        ("either=x", "x"),
    ],
)
def test_settings_are_typed_by_the_config(text, value):
    ((name, parsed),) = parse_settings(Config, [text]).items()
    assert name == text.partition("=")[0]
    assert parsed == value
    assert type(parsed) is type(value)


@pytest.mark.parametrize(
    "text", ["width=1.5", "rate=x", "flag=perhaps", "mode=harder", "layers=a", "pair=1", "maybe=x"]
)
def test_settings_of_another_type_are_refused(text):
    with pytest.raises(RangeError, match="another type"):
        parse_settings(Config, [text])


def test_unknown_and_malformed_settings_are_refused():
    with pytest.raises(UnknownNameError, match="width"):
        parse_settings(Config, ["widht=1"])
    with pytest.raises(RangeError, match="name=value"):
        parse_settings(Config, ["width"])


def test_tuples_survive_json():
    assert from_json(Config, {"layers": [1, 2], "width": 3}) == {"layers": (1, 2), "width": 3}


def test_bibtex():
    paper = Paper("Gains & Losses", "J. van der Berg, A. Author and C. Other", 2021, arxiv="1", doi="10.1/x")
    text = bibtex(paper)
    assert text.startswith("@misc{berg2021gains,")
    assert "author = {J. van der Berg and A. Author and C. Other}" in text
    assert r"Gains \& Losses" in text
    assert "doi = {10.1/x}" in text
    assert "others" in bibtex(Paper("T", "A. Author et al.", 2020))
