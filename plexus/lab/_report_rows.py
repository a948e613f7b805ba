"""What the report and the ledger's pages say about a row: numbers as words, strips, tables and a place on the map."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from plexus.errors import FormatError
from plexus.lab._figures import VERDICT_KEY, Strip, extent, scale_line, strip
from plexus.lab._ledger import Row, read_calibration, read_row
from plexus.lab._report_map import Dot
from plexus.lab._report_words import bar_words, interval_words, like, mean_half, number, p_words, short
from plexus.lab._row import header_counts
from plexus.lab._statistics import t_interval

QUESTIONS = {
    "mechanism": "Does the method beat its own ablation and null?",
    "advantage": "Does it beat the strongest simple baseline, tuned with equal effort?",
}
FIDELITY = {
    "A": "outputs match those of the official code",
    "B": "built from published equations",
    "C": "reconstructed where equations were not available",
}
SYMBOL = {"holds": "✓", "part": "◐", "fails": "✗", "undecided": "?", "untested": "–"}
KINDS = {
    "interval": "the whole 95 % interval must lie on the good side",
    "wins": "the share of seeds on the good side counts",
    "equivalent": "the whole 95 % interval must lie inside",
    "exact": "every seed must lie inside",
}
ROLES = {
    "sanity": "sanity",
    "control": "positive control",
    "mechanism": "mechanism",
    "advantage": "advantage",
}
FALSE_DISCOVERIES = 0.05
COLUMNS = 7
"""Metrics side by side in a table of arms."""


@dataclass(frozen=True)
class Ledger:
    """Everything a page is made from, with what could not be read said in words."""

    rows: tuple[Row, ...]
    calibration: Row | None
    unreadable: tuple[tuple[str, str], ...]
    here: tuple[Row, ...] = ()
    """Rows of runs on this machine, which are not the ledger's."""

    @property
    def shown(self) -> tuple[Row, ...]:
        """The ledger's rows, then those of studies that were only measured here."""
        known = {row["slug"] for row in self.rows}
        return (*self.rows, *(row for row in self.here if row["slug"] not in known))


def load(folder: Path, calibration: Path | None = None) -> Ledger:
    """Read a ledger folder; a file that is not a row is reported instead of stopping the others."""
    rows: list[Row] = []
    unreadable: list[tuple[str, str]] = []
    for path in sorted(folder.glob("*.json")):
        if path.name == "calibration.json":
            continue
        try:
            row = read_row(path)
            if row["slug"] != path.stem:
                raise FormatError(f"{path} holds the row of another study", given=row["slug"], expected=path.stem)
            rows.append(row)
        except (FormatError, OSError) as error:
            unreadable.append((path.name, str(error)))
    found = None
    try:
        found = read_calibration(folder if calibration is None else calibration.parent)
    except (FormatError, OSError) as error:
        unreadable.append(("calibration.json", str(error)))
    rows.sort(key=lambda row: (row["family"], row["slug"]))
    return Ledger(tuple(rows), found, tuple(unreadable))


def colour(word: str) -> str:
    """The name of a verdict's colour."""
    return VERDICT_KEY.get(word, "untested")


def overall(words: Sequence[str]) -> str:
    """One word for both questions, for the colour of a dot: `holds in part` where the answers to the two differ.

    Examples:
        >>> overall(["holds here", "undecided"]), overall(["holds here", "not tested"])
        ('holds in part', 'holds here')
    """
    tested = {word for word in words if word != "not tested"}
    if not tested:
        return "not tested"
    if len(tested) == 1:
        return tested.pop()
    if tested & {"holds here", "holds in part"}:
        return "holds in part"
    return "undecided"


def primary(row: Row, question: str) -> Mapping[str, Any] | None:
    """The check that answers a question, or None."""
    name = row["verdicts"].get(question, {}).get("check")
    for check in row["checks"]:
        if check["role"] == question and check["name"] == name:
            return dict(check)
    return None


def distances(check: Mapping[str, Any] | None) -> tuple[float, float, float] | None:
    """Distance of the interval's ends and of the mean from the bar, `(low, mean, high)`, in the check's own unit.

    Checks that count or bound single seeds have no interval of their distance; there the three are equal.

    Examples:
        >>> distances({"bar": {"at_most": 2.0}, "mean": 1.0, "interval": [0.5, 1.5], "distance": 0.5,
        ...            "distance_unit": "bar"})
        (0.25, 0.5, 0.75)
    """
    if check is None or check.get("distance") is None:
        return None
    middle, ends, bar = float(check["distance"]), check.get("interval"), check["bar"]
    if check.get("kind") in ("wins", "exact") or ends is None or ends[0] is None or ends[1] is None:
        return middle, middle, middle
    if "margin" in bar:
        margin, away = float(bar["margin"]) or 1.0, [abs(end - float(bar.get("center", 0.0))) for end in ends]
        inside = (ends[0] - bar.get("center", 0.0)) * (ends[1] - bar.get("center", 0.0)) <= 0
        nearest = 0.0 if inside else min(away)
        return 1 - max(away) / margin, middle, 1 - nearest / margin
    edge = float(bar.get("at_least", bar.get("at_most", 0.0)))
    size = (ends[1] - ends[0]) / 2 if check.get("distance_unit") == "interval" else abs(edge)
    if not size:
        return middle, middle, middle
    sign = 1.0 if "at_least" in bar else -1.0
    found = sorted(sign * (end - edge) / size for end in ends)
    return found[0], middle, found[1]


def dots(ledger: Ledger) -> list[Dot]:
    """All studies and shams as dots of the claims map."""
    marks = [_study_dot(row) for row in ledger.shown]
    for sham in (ledger.calibration or {}).get("studies", ()):
        if sham["kind"] != "sham":
            continue
        x, y = (sham["distances"].get(question) for question in QUESTIONS)
        if x is None or y is None:
            continue
        words = ", ".join(f"{question}: {word}" for question, word in sham["question_words"].items())
        marks.append(
            Dot(sham["name"], sham["name"], (x, x, x), (y, y, y), tip=f"{sham['name']}, a sham\n{words}", sham=True)
        )
    return marks


def _study_dot(row: Row) -> Dot:
    words = {question: row["verdicts"].get(question, {}).get("word", "not tested") for question in QUESTIONS}
    place = {
        question: None if words[question] == "not tested" else distances(primary(row, question))
        for question in QUESTIONS
    }
    lines = [f"{row['slug']}: {row['paper']['title']}"]
    for question, word in words.items():
        check = primary(row, question)
        found = f" ({number(check['mean'])}, bar {bar_words(check)})" if check and check.get("mean") is not None else ""
        lines.append(f"{question}: {word}{found}")
    lines.append(f"fidelity {row['fidelity']}, {len(row['seeds'])} seeds, scale {row['scale']}")
    return Dot(
        row["slug"],
        row["slug"],
        place["mechanism"],
        place["advantage"],
        row["fidelity"],
        overall(list(words.values())),
        "\n".join(lines),
    )


def header(rows: Sequence[Row]) -> dict[str, Any]:
    """How many claims hold, with the false discovery rate over all studies and both questions held at 5 % (B-H).

    A claim counts where its word is `holds here` and its q value is at most 0.05; a check without a p counts by its
    word. The family is every tested question of every study.
    """
    found = header_counts(rows)
    q_values = {(item["slug"], item["question"]): item["q"] for item in found["q"]}
    counts: dict[str, Any] = {}
    family = dropped = 0
    for question in QUESTIONS:
        words = {word: count for word, count in found[question].items() if word != "not tested"}
        held = [row["slug"] for row in rows if row["verdicts"][question]["word"] == "holds here"]
        stand = sum(q_values.get((slug, question), 0.0) <= FALSE_DISCOVERIES for slug in held)
        counts[question] = {"holds": stand, "tested": sum(words.values()), "words": words}
        family += sum(words.values())
        dropped += len(held) - stand
    return {**counts, "family": family, "with_p": found["tests"], "dropped": dropped, "studies": len(rows)}


def in_order(checks: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Checks as a reader wants them: what answers the questions first, what only guards the study last."""
    rank = ["mechanism", "advantage", "control", "sanity"]
    return sorted(checks, key=lambda c: (rank.index(c["role"]) if c["role"] in rank else 9, not c.get("primary")))


def check_view(check: Mapping[str, Any], seeds: Sequence[int]) -> dict[str, Any]:
    """One check as the page shows it: head, strip, and the sentence under it."""
    key = {True: "holds", False: "fails", None: "undecided"}[check["passed"]]
    bar = check["bar"]
    if "at_least" in bar:
        good: tuple[float | None, float | None] = (bar["at_least"], None)
    elif "at_most" in bar:
        good = (None, bar["at_most"])
    else:
        center, margin = bar.get("center", 0.0), bar.get("margin", 0.0)
        good = (center - margin, center + margin)
    low, high = check.get("interval") or (None, None)
    values = tuple((seed, value) for seed, value in zip(seeds, check["values"], strict=False) if value is not None)
    unit = f" {check['unit']}" if check.get("unit") else ""
    mean = f"mean {like(check['mean'], low, high)}{unit}" if check.get("mean") is not None else "no number"
    numbers = [mean + (f", 95 % interval {interval_words(low, high)}" if low is not None else "")]
    numbers.append(p_words(check.get("p")))
    if check.get("p_holm") is not None:
        numbers.append("Holm-corrected " + p_words(check["p_holm"]))
    missing = len(seeds) - len(values)
    numbers.append(f"{len(values)} seeds" + (f", {missing} missing" if missing else ""))
    words = f"{check['name']}: {numbers[0]}; bar {bar_words(check)}; {check['verdict']}."
    return {
        "name": check["name"],
        "key": key,
        "symbol": SYMBOL[key],
        "word": check["verdict"],
        "role": ROLES.get(check["role"], check["role"]),
        "primary": bool(check.get("primary")),
        "bar": bar_words(check),
        "kind": KINDS.get(check["kind"], check["kind"]),
        "numbers": " · ".join(text for text in numbers if text),
        "note": check.get("note") or "",
        "strip": strip(Strip(values, check.get("mean"), low, high, good, key, words)),
    }


def verdict_views(row: Row) -> list[dict[str, Any]]:
    """Both questions with their words and why."""
    views = []
    for question, asked in QUESTIONS.items():
        verdict = row["verdicts"].get(question, {})
        word = verdict.get("word", "not tested")
        key, check = colour(word), primary(row, question)
        reason = _because(verdict.get("reason") or "", check)
        views.append({"question": question, "asked": asked, "word": word, "key": key, "symbol": SYMBOL[key],
                      "reason": reason})  # fmt: skip
    return views


def _because(reason: str, check: Mapping[str, Any] | None) -> str:
    """The reason of a verdict as a sentence that also says what was measured."""
    reason = reason.strip().rstrip(".")
    if check is None or check.get("mean") is None:
        words = reason or "this study has no check for this question"
    else:
        low, high = check.get("interval") or (None, None)
        words = f"“{check['name']}” measured {like(check['mean'], low, high)} {interval_words(low, high)}".rstrip()
        words += f", bar {bar_words(check)}"
        joint = ", " if reason.startswith(("but ", "while ")) else "; "
        words += joint + reason if reason else ""
    return words[:1].upper() + words[1:] + "."


def summary(values: Sequence[float | None]) -> tuple[float | None, float | None, float | None]:
    """Mean and 95 % t interval of the numbers that are there; the ends are None for fewer than two."""
    there = [float(value) for value in values if value is not None]
    if not there:
        return None, None, None
    mean, low, high = t_interval(there)
    return (mean, low, high) if len(there) > 1 else (mean, None, None)


def _blocks(row: Row) -> list[dict[str, Any]]:
    """Tables of arms by metrics, mean ± half interval; at most `COLUMNS` metrics each, all of the same arms."""
    arms = row["arms"]
    groups: dict[tuple[int, ...], list[str]] = {}
    for name in dict.fromkeys(name for arm in arms for name in arm["metrics"]):
        groups.setdefault(tuple(i for i, arm in enumerate(arms) if name in arm["metrics"]), []).append(name)
    return [
        {
            "metrics": names[start : start + COLUMNS],
            "table": [
                {
                    "name": arms[i]["name"],
                    "role": arms[i]["role"],
                    "cells": [mean_half(*summary(arms[i]["metrics"][name])) for name in names[start : start + COLUMNS]],
                }
                for i in members
            ],
        }
        for members, names in groups.items()
        for start in range(0, len(names), COLUMNS)
    ]


def arms_view(row: Row) -> dict[str, Any]:
    """All arms: tables of mean ± half interval, and per metric a strip for each arm on one axis."""
    arms = row["arms"]
    metrics = list(dict.fromkeys(name for arm in arms for name in arm["metrics"]))
    plots = []
    for name in metrics:
        lines = []
        for arm in arms:
            values = arm["metrics"].get(name)
            if values is None:
                continue
            mean, low, high = summary(values)
            pairs = tuple((seed, v) for seed, v in zip(row["seeds"], values, strict=False) if v is not None)
            key = "holds" if arm["role"] == "method" else "untested"
            words = f"{name} of {arm['name']}: mean {number(mean)} {interval_words(low, high)}"
            middle, half = mean_half(mean, low, high)
            data = Strip(pairs, mean, low, high, None, key, words)
            text = f"{middle} ± {half}" if half else middle
            lines.append((arm["name"], data, text, [number(v, 6) for v in values]))
        axis = extent([line[1] for line in lines])
        rendered = [
            {"arm": arm, "strip": strip(data, axis=axis, scale=False), "numbers": text, "values": values}
            for arm, data, text, values in lines
        ]
        plots.append({"metric": name, "lines": rendered, "axis": scale_line(axis)})
    return {"metrics": metrics, "blocks": _blocks(row), "plots": plots}


def notices(row: Row, newest: Row | None, version: str | None) -> list[str]:
    """What a reader must know before believing a row, in sentences; `version` is that of the Plexus that reads it."""
    said = []
    if row["state"] == "broken":
        said.append("This study is broken: a sanity check failed or a trial broke, so its verdicts say little.")
    if row["broken"]:
        count = len(row["broken"])
        said.append(f"{count} trial{'s' if count > 1 else ''} broke; what they would have measured is missing below.")
    said += [f"Found wanting since: {doubt}" for doubt in row.get("doubts", ())]
    if row["scale"] == "smoke":
        said.append("Measured at smoke scale, which only shows that the code runs; the numbers are no evidence.")
    if not row.get("frozen"):
        said.append("The bars were not frozen in a commit before this run.")
    if not row.get("confirming"):
        said.append("These are not the confirming seeds, so bars and method may have been chosen on them.")
    if row.get("clean") is False:
        said.append("The code that ran held uncommitted changes.")
    if not row["checks"]:
        said.append("No check was measured.")
    if not row["arms"]:
        said.append("No arm was measured.")
    if newest is not None and row["measured"] < newest["measured"] and row["commit"] != newest["commit"]:
        said.append(
            f"From an older run: measured {row['measured']} at {short(row['commit'])}, before the newest row of this "
            f"ledger ({newest['slug']}, {newest['measured']} at {short(newest['commit'])})."
        )
    measured_with = row["versions"].get("plexus") or row["versions"].get("plexus-nn")
    if version and measured_with and measured_with != version:
        said.append(f"From another version: measured with Plexus {measured_with}, this page was made with {version}.")
    return said


def paper_links(paper: Mapping[str, Any]) -> list[dict[str, str]]:
    """Where the paper and its code are, as text and address."""
    links = []
    if paper.get("arxiv"):
        links.append({"text": f"arXiv {paper['arxiv']}", "url": f"https://arxiv.org/abs/{paper['arxiv']}"})
    if paper.get("doi"):
        links.append({"text": f"doi {paper['doi']}", "url": f"https://doi.org/{paper['doi']}"})
    if str(paper.get("code") or "").startswith(("https://", "http://")):
        links.append({"text": "official code", "url": str(paper["code"])})
    return links
