"""A world of statements whose facts are real, read from the data sets of true and false statements.

The files are those of Marks & Tegmark (2023), as https://github.com/saprmarks/geometry-of-truth has them in `datasets/`
(`cities.csv`, `animal_class.csv`, `element_symb.csv`, `inventors.csv`, `sp_en_trans.csv`). Their true statements give
the facts; the wordings are those of `statement_world`, so that all statements have eight words.
"""

from __future__ import annotations

import csv
import os
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import torch

from plexus.data._images import data_folder
from plexus.data.corpora._names import invent
from plexus.data.corpora._statements import NUMBERS, TEMPLATES, VERBS, StatementWorld
from plexus.errors import FormatError, RangeError

_FILES = {
    "city": ("cities.csv", re.compile(r"The city of (.+) is in (.+)\.")),
    "animal": ("animal_class.csv", re.compile(r"The (.+) is an? (.+)\.")),
    "metal": ("element_symb.csv", re.compile(r"(.+) has the symbol (.+)\.")),
    "maker": ("inventors.csv", re.compile(r"(.+) lived in (.+)\.")),
    "word": ("sp_en_trans.csv", re.compile(r"The Spanish word '(.+)' means '(.+)'\.")),
}


def statement_files(
    subjects: int = 12,
    objects: int = 4,
    things: int = 16,
    *,
    unjudged: float = 0.25,
    root: str | os.PathLike[str] | None = None,
    generator: torch.Generator,
) -> StatementWorld:
    """Draw a world of real facts, subjects of each topic with their objects; the rest is as in `statement_world`.

    Of cities, animals and makers those whose country or class is among the most frequent ones are drawn, as many of
    each; of elements and words, whose objects are all different, any.

    Args:
        subjects: of each topic.
        objects: different right answers of a topic, where they repeat.
        things: that requests are about.
        unjudged: share of the subjects of each topic whose statements are left unjudged in training.
        root: the folder that holds `truth/` with the files (default: the environment's `PLEXUS_DATA`).
        generator: where everything is drawn from.

    Raises:
        FormatError: a file is not there, or holds no statement of its form.
        RangeError: a topic has too few facts for the sizes asked for.

    Examples:
        >>> statement_files(root="/nowhere", generator=torch.Generator())  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        plexus.errors.FormatError: the data sets of true and false statements are not here
          given: /nowhere/truth
        ...
    """
    if objects < 2 or subjects < objects or subjects % objects or things < 2 or things % 2 or not 0 <= unjudged < 1:
        raise RangeError(
            "such a world cannot be drawn",
            given=f"{subjects} subjects, {objects} objects, {things} things, share {unjudged}",
            expected="as many subjects for each of 2 objects or more, an even number of things, a share in [0, 1)",
        )
    folder = data_folder(root)
    if folder is None or not (Path(folder) / "truth").is_dir():
        raise FormatError(
            "the data sets of true and false statements are not here",
            given="no folder" if folder is None else f"{folder}/truth",
            mend="point PLEXUS_DATA (or root=) at a folder whose truth/ holds the files of datasets/ in "
            "https://github.com/saprmarks/geometry-of-truth",
        )
    taken = {*NUMBERS, *VERBS, *(word for template in TEMPLATES.values() for word in template.split())}
    facts: dict[str, dict[str, tuple[str, ...]]] = {}
    left: dict[str, frozenset[str]] = {}
    for topic in TEMPLATES:
        if topic == "number":
            facts[topic] = {word: NUMBERS[:place] for place, word in enumerate(NUMBERS)}
            left[topic] = frozenset()
            continue
        known = {s: o for s, o in _facts(Path(folder) / "truth", topic) if s not in taken and o not in taken}
        chosen = _drawn(topic, known, subjects, objects, generator)
        facts[topic] = {subject: (known[subject],) for subject in chosen}
        taken |= {*chosen, *(known[subject] for subject in chosen)}
        spared = torch.randperm(subjects, generator=generator).tolist()[: round(unjudged * subjects)]
        left[topic] = frozenset(chosen[index] for index in spared)
    named = invent(things, generator=generator, taken=taken)
    kinds = {"restricted": tuple(named[: things // 2]), "allowed": tuple(named[things // 2 :])}
    return StatementWorld(facts, kinds, left)


def _facts(folder: Path, topic: str) -> Iterator[tuple[str, str]]:
    """Subject and object of every true statement of a file, each as one word."""
    name, form = _FILES[topic]
    try:
        with (folder / name).open(encoding="utf-8", newline="") as file:
            rows = [row for row in csv.DictReader(file) if row.get("label") == "1"]
    except OSError as error:
        raise FormatError(f"{name} is not here", given=str(folder)) from error
    found = [match for row in rows if (match := form.fullmatch(row.get("statement") or ""))]
    if not found:
        raise FormatError(
            f"{name} holds no statement of its form", given=f"{len(rows)} true rows", expected=form.pattern
        )
    for match in found:
        yield _word(match[1]), _word(match[2])


def _drawn(topic: str, known: dict[str, str], subjects: int, objects: int, generator: torch.Generator) -> list[str]:
    counts = Counter(known.values())
    each = subjects // objects
    frequent = [thing for thing, count in counts.most_common() if count >= each]
    names = list(known)
    order = torch.randperm(len(names), generator=generator).tolist()
    if len(frequent) < objects:  # answers that do not repeat
        chosen = {known[names[i]]: names[i] for i in order}
        if len(chosen) < subjects:
            raise RangeError(
                f"the topic {topic!r} has too few facts", given=subjects, expected=f"at most {len(chosen)}"
            )
        return list(chosen.values())[:subjects]
    kept: list[str] = []
    for thing in frequent[:objects]:
        kept += [names[i] for i in order if known[names[i]] == thing][:each]
    return kept


def _word(name: str) -> str:
    return "_".join(name.removeprefix("the ").replace(",", "").split()).lower()
