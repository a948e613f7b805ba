"""What `plexus atlas MODEL` can make pages of: two models trained on the spot, a checkpoint, a function of your own."""

from __future__ import annotations

import csv
import io
import json
import random
import runpy
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from plexus.errors import FormatError, RangeError, UnknownNameError, require
from plexus.explain import atlas
from plexus.explain.atlas._matter import Matter
from plexus.units import Site

SHOWN = ("digits", "facts")


class Subject(NamedTuple):
    """A model and what to show it."""

    model: nn.Module
    matter: Matter
    title: str
    at: Sequence[Site] | None = None


def make(
    name: str, out: Path, texts: Path | None = None, limit: int = 400, units: int | None = None
) -> tuple[atlas.Atlas, Path]:
    """Measure the model of that name and write its pages; the atlas and the path of its first page.

    Args:
        name: as `find_subject`, and so `texts` and `limit`.
        out: folder of the pages.
        units: how many units of a larger model to measure, as `explain.atlas.build`; None: all.

    Raises:
        As `find_subject`, `explain.atlas.build` and `explain.atlas.write`.
    """
    subject = find_subject(name, texts, limit)
    found = atlas.build(subject.model, subject.matter, subject.at, title=subject.title, units=units)
    return found, atlas.write(found, out)


def find_subject(name: str, texts: Path | None = None, limit: int = 400) -> Subject:
    """The model of that name.

    Args:
        name: "digits" (a small convolutional network), "facts" (a tiny language model), a folder or hub name of a
            causal language model, or `file.py:function`, which returns (model, matter) or (model, matter, sites).
        texts: prompts for a language model: JSON lines or a table with a header, of `text`, `label` and, optionally,
            `answer`.
        limit: how many samples at most.

    Raises:
        UnknownNameError: no such model. FormatError: texts are missing or unreadable. RangeError: too few samples.
    """
    if limit < 20:
        raise RangeError("an atlas needs samples", given=limit, expected="at least 20")
    if name == "digits":
        return _digits(limit)
    if name == "facts":
        return _facts(limit)
    if ".py:" in name:
        return _own(name)
    return _checkpoint(name, texts, limit)


def _digits(limit: int) -> Subject:
    from plexus.data import digits
    from plexus.nn.models import SmallCNN

    train, test = digits().split(0.6, seed=0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = SmallCNN(8, 10, channels=(12, 24), hidden=48)
    optimiser = torch.optim.Adam(net.parameters(), 2e-3)
    generator = torch.Generator().manual_seed(0)
    for _ in range(6):
        for x, y in train.batches(32, generator=generator):
            optimiser.zero_grad()
            nn.functional.cross_entropy(net(x), y).backward()
            optimiser.step()
    picked = torch.randperm(len(test), generator=generator)[:limit]
    return Subject(net.eval(), atlas.Images(test.x[picked], test.y[picked]), "A small network for digits")


def _facts(limit: int) -> Subject:
    from plexus.data.corpora import fact_world
    from plexus.lab.models import recall, train_language_model

    world = fact_world(24, generator=torch.Generator().manual_seed(0))
    items = world.items()
    made = train_language_model(
        items,
        hidden=64,
        layers=2,
        intermediate=64,  # few units, so that single ones matter
        steps=400,
        loss="both",
        gate=lambda model, tokenizer: {"recall of facts": (recall(model, tokenizer, items).accuracy, 0.95)},
        attempts=3,
    )
    order = torch.randperm(len(items), generator=torch.Generator().manual_seed(1)).tolist()[:limit]
    chosen = [items[i] for i in order]
    matter = atlas.Texts(
        made.tokenizer,
        [item.prompt for item in chosen],
        [item.concept for item in chosen],
        [item.answer for item in chosen],
    )
    return Subject(made.model, matter, "A tiny language model that knows facts")


def _own(name: str) -> Subject:
    path, function = name.rsplit(":", 1)
    if not Path(path).is_file():
        raise FormatError("there is no such file", given=path, expected="file.py:function")
    found = runpy.run_path(path)
    if function not in found:
        raise UnknownNameError.among("function", function, [key for key, value in found.items() if callable(value)])
    value = found[function]()
    if not isinstance(value, tuple) or len(value) not in (2, 3) or not isinstance(value[0], nn.Module):
        raise FormatError(
            f"{name} returns no subject of an atlas",
            given=type(value).__name__,
            expected="(model, matter) or (model, matter, sites); matter is explain.atlas.Images or Texts",
        )
    return Subject(value[0], value[1], function.replace("_", " "), value[2] if len(value) == 3 else None)


def _checkpoint(name: str, texts: Path | None, limit: int) -> Subject:
    if texts is None:
        raise FormatError(
            f"a checkpoint needs texts to read, and {name!r} is not one of the models that come with their own",
            given="no --texts",
            expected=f"{', '.join(SHOWN)}, file.py:function, or a checkpoint with --texts FILE (text, label, answer)",
        )
    rows = chosen_texts(texts, limit)
    transformers: Any = require("transformers", "llm", purpose="language models")
    try:
        model = transformers.AutoModelForCausalLM.from_pretrained(name)
        tokenizer = transformers.AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise UnknownNameError(
            f"{name!r} is no causal language model that can be loaded", given=str(error).splitlines()[0]
        ) from error
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    answers = [row["answer"] for row in rows] if rows[0].get("answer") else None
    matter = atlas.Texts(tokenizer, [row["text"] for row in rows], [row["label"] for row in rows], answers)
    return Subject(model.eval(), matter, Path(name).name)


def chosen_texts(path: Path, limit: int) -> list[dict[str, str]]:
    """Rows of a file of texts, at most `limit` of them drawn from the whole file and kept in its order.

    Raises:
        FormatError: as `read_texts`; some rows have an answer and some have none; all have one label.
    """
    rows = read_texts(path)
    answered = [number for number, row in enumerate(rows, 1) if row.get("answer")]
    if 0 < len(answered) < len(rows):
        lacking = next(number for number in range(1, len(rows) + 1) if number not in answered)
        raise FormatError(
            "some rows have an answer and some have none",
            given=f"row {lacking} of {path} has none",
            expected="an answer in every row, or in none",
        )
    if len(rows) > limit:  # a file may be sorted by label
        rows = [rows[i] for i in sorted(random.Random(0).sample(range(len(rows)), limit))]
    if len({row["label"] for row in rows}) < 2:
        raise FormatError(
            "units are scored by telling texts of one label from those of others, and there is one label",
            given=f"{len(rows)} texts, all {rows[0]['label']!r}",
            mend="give texts of two or more labels, or more of them: --samples",
        )
    return rows


def read_texts(path: Path) -> list[dict[str, str]]:
    """Rows of a file of texts: JSON lines (`.jsonl`), or a table with a header (`.csv`, `.tsv`).

    Raises:
        FormatError: the file is missing, or a row has no `text` and `label`.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise FormatError("the file of texts cannot be read", given=f"{path}: {error.strerror}") from error
    try:
        if path.suffix == ".jsonl":
            rows = [json.loads(line) for line in text.split("\n") if line.strip()]
        else:
            rows = list(csv.DictReader(io.StringIO(text), delimiter="\t" if path.suffix == ".tsv" else ","))
    except ValueError as error:
        raise FormatError(f"{path} is not JSON lines", given=str(error)) from error
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict) or not row.get("text") or not row.get("label"):
            raise FormatError(
                f"row {number} of {path} has no text or no label",
                given=str(row)[:80],
                expected='{"text": …, "label": …} and, optionally, "answer", in each row',
            )
    if not rows:
        raise FormatError("the file of texts is empty", given=str(path))
    return rows
