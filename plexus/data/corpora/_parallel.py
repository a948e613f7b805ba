"""Sentences in several languages, line by line the same; from a file that the user brings."""

from __future__ import annotations

import csv
import os
import re

from plexus.data._images import data_folder
from plexus.errors import FormatError, UnknownNameError

FILE = "pud-parallel.tsv"
LANGUAGES = ("en", "de", "fr", "es", "hi")
_LETTER = r"[\w\u0900-\u0963\u0966-\u097f]"  # the combining marks of Hindi are no \w
_WORDS = re.compile(rf"{_LETTER}+(?:['’-]{_LETTER}+)*|[^\w\s]")


def parallel_sentences(
    root: str | os.PathLike[str] | None = None, languages: tuple[str, ...] = LANGUAGES
) -> dict[str, list[str]]:
    """The thousand news and encyclopedia sentences of the Parallel Universal Dependencies, by language.

    The n-th sentences say the same in every language. Words and marks of punctuation are separated by spaces and in
    small letters.

    Args:
        root: the folder that holds `pud-parallel.tsv`: a line of column names (`id`, then languages), then a sentence a
            line (default: the environment's `PLEXUS_DATA`).
        languages: columns to read.

    Raises:
        FormatError: the file is not there, or a line of it has too few columns.
        UnknownNameError: the file has no such language.
    """
    folder = data_folder(root)
    path = None if folder is None else folder / FILE
    if path is None or not path.is_file():
        raise FormatError(
            f"{FILE} is not here",
            given=str(folder) if folder else "no folder",
            mend="point PLEXUS_DATA (or root=) at a folder that holds it: tab-separated columns id, en, de, … made "
            "from the PUD treebanks of https://universaldependencies.org",
        )
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    names, lines = rows[0], [row for row in rows[1:] if row]
    for name in languages:
        if name not in names[1:]:
            raise UnknownNameError.among("language in the file", name, names[1:])
    for number, row in enumerate(lines, start=2):
        if len(row) != len(names):
            raise FormatError(f"line {number} of {path} is damaged", given=f"{len(row)} columns", expected=len(names))
    return {name: [words(row[names.index(name)]) for row in lines] for name in languages}


def words(sentence: str) -> str:
    """A sentence with spaces between its words and marks, in small letters.

    Examples:
        >>> words("Well, don't!")
        "well , don't !"
    """
    return " ".join(_WORDS.findall(sentence.lower()))
