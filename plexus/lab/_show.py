"""Rows and doctor's findings in a terminal, by rich."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from plexus.lab._stability import redrawn_words
from plexus.lab._verdict import QUESTIONS

COLOURS = {
    "holds here": "green",
    "holds in part": "yellow",
    "does not hold here": "red",
    "undecided": "blue",
    "not tested": "bright_black",
    "not measured": "bright_black",
    "holds": "green",
    "fails": "red",
}

Row = Mapping[str, Any]


def word(text: str) -> str:
    """A verdict's word in its colour."""
    return f"[{COLOURS.get(text, 'default')}]{escape(text)}[/]"


def number(value: float | None) -> str:
    """A number as a table shows it."""
    return "–" if value is None else f"{value:.4g}"


def show_list(console: Console, entries: Sequence[Mapping[str, Any]]) -> None:
    """Every system and the state of its study."""
    table = Table("study", "family", "what it is", "fidelity", "mechanism", "advantage", "", box=None, pad_edge=False)
    for entry in entries:
        words = [word(entry[question]) for question in QUESTIONS]
        words.append(entry["state"] if entry["state"] in ("broken", "changed since") else "")
        table.add_row(
            f"[bold]{escape(entry['slug'])}[/]",
            escape(entry["family"]),
            escape(entry["title"]),
            entry["fidelity"],
            *words,
        )
    console.print(table)


def show_verdicts(console: Console, rows: Sequence[Row], ledger: Mapping[str, Row] | None = None) -> None:
    """The table of verdicts of some runs beside what the ledger says of the same studies, then why."""
    known = {row["slug"]: ledger[row["slug"]] for row in rows if ledger and row["slug"] in ledger}
    beside = ["the ledger says"] if known else []
    table = Table("study", "question", "this run", *beside, box=None, pad_edge=False)
    reasons = []
    for row in rows:
        count = len(row["seeds"])
        names = [
            f"[bold]{escape(row['slug'])}[/]",
            f"[bright_black]{row['scale']}, {count} seed{'' if count == 1 else 's'}[/]",
        ]
        for name, question in zip(names, QUESTIONS, strict=True):
            verdict, old = row["verdicts"][question], known.get(row["slug"])
            told = "–" if old is None else word(old["verdicts"][question]["word"])
            table.add_row(name, question, word(verdict["word"]), *([told] if known else []))
            if verdict["reason"] and verdict["check"]:
                reasons.append(f"{row['slug']}, {question}: {verdict['word']}, {verdict['reason']}")
    console.print(table)
    if reasons:
        console.print()
    for line in reasons:
        console.print(f"[bright_black]{escape(line)}[/]", highlight=False, soft_wrap=True)
    if any(len(row["seeds"]) < len(known[row["slug"]]["seeds"]) for row in rows if row["slug"] in known):
        most = max(len(row["seeds"]) for row in known.values())
        console.print(
            f"\n[bright_black]The ledger's verdicts rest on up to {most} seeds. Fewer seeds give wider intervals, so "
            "“undecided” beside another word is no contradiction; plexus verify NAME runs as many.[/]",
            highlight=False,
            soft_wrap=True,
        )


def show_checks(console: Console, row: Row) -> None:
    """Every check of a row: bar, mean, interval, what it says."""
    table = Table("check", "role", "bar", "measured", "95 % interval", "", box=None, pad_edge=False)
    for check in row["checks"]:
        ends = check["interval"]
        span = "–" if ends is None else f"{number(ends[0])} … {number(ends[1])}"
        role = check["role"] + (" *" if check["primary"] else "")
        name, bar = escape(check["name"]), escape(check["bar"]["text"])
        table.add_row(name, role, bar, number(check["mean"]), span, word(check["verdict"]))
    console.print(table)


def show_arms(console: Console, row: Row) -> None:
    """The mean of every metric of every arm."""
    names = list(dict.fromkeys(metric for arm in row["arms"] for metric in arm["metrics"]))
    table = Table("arm", "role", "tried", *(escape(name) for name in names), box=None, pad_edge=False)
    for arm in row["arms"]:
        cells = []
        for name in names:
            values = [value for value in arm["metrics"].get(name, []) if value is not None]
            cells.append(number(sum(values) / len(values) if values else None))
        tried = "–" if arm["budget"] is None else str(arm["budget"])
        table.add_row(f"[bold]{escape(arm['name'])}[/]", arm["role"], tried, *cells)
    console.print(table)


def show_row(console: Console, row: Row) -> None:
    """Claim, measured, verdict, figures of one study."""
    paper = row["paper"]
    console.print(f"[bold]{escape(row['slug'])}[/]  {escape(row['title'])}", soft_wrap=True)
    console.print(f"{escape(paper['title'])} ({escape(paper['authors'])}, {paper['year']})", soft_wrap=True)
    facts = [("claim", row["claim"]), ("refuted by", row["refuted_by"]), ("scale", row["scale_line"])]
    facts += [("data", ", ".join(row["data"])), ("fidelity", row["fidelity"])]
    facts += [("deviation", line) for line in row["deviations"]]
    facts += [("found wanting since", line) for line in row.get("doubts", ())]
    facts += [(f"share, {effect}", number(share["mean"])) for effect, share in row.get("shares", {}).items()]
    for name, text in facts:
        console.print(f"[bright_black]{escape(name)}:[/] {escape(text)}", soft_wrap=True)
    console.print()
    show_checks(console, row)
    console.print("[bright_black]* the primary check of its question[/]\n")
    show_arms(console, row)
    console.print()
    redraws = redrawn_words(row)
    for question in QUESTIONS:
        verdict = row["verdicts"][question]
        reason = f" [bright_black]({escape(verdict['reason'])})[/]" if verdict["reason"] else ""
        console.print(f"{question}: {word(verdict['word'])}{reason}", soft_wrap=True)
        if question in redraws:
            console.print(f"  [bright_black]{escape(redraws[question])}[/]", highlight=False, soft_wrap=True)
    frozen = row.get("frozen")
    since = f", bars frozen {frozen['date']} in {frozen['commit'][:10]}" if frozen else ""
    console.print(
        f"[bright_black]measured {row['measured']}, {len(row['seeds'])} seeds at scale {row['scale']}{since}, "
        f"on {escape(row['machine'])}; again: {escape(row['command'])}[/]",
        soft_wrap=True,
    )
    if row["figures"]:
        console.print("figures: " + escape("; ".join(figure["title"] for figure in row["figures"])), soft_wrap=True)


def show_doctor(console: Console, found: Mapping[str, Any]) -> None:
    """What `plexus doctor` found."""
    console.print(
        f"[bold]Plexus {found['plexus']}[/] on Python {found['python']}, {escape(found['machine'])}", soft_wrap=True
    )
    console.print(f"[bright_black]{escape(found['note'])}[/]", soft_wrap=True)
    if found["namesake"]:
        console.print(
            f"[red]The other project, plexus {found['namesake']}, is installed here too: pip uninstall plexus[/]"
        )
    core = ", ".join(f"{name} {version or '[red]missing[/]'}" for name, version in found["core"].items())
    console.print(f"core: {core}", soft_wrap=True)
    console.print("GPUs: " + (escape(", ".join(found["gpus"])) or "none"), soft_wrap=True)
    table = Table("kernel", "device", "runs here", "small LIF loop", "", box=None, pad_edge=False)
    for kernel in found["kernels"]:
        runs = "[green]yes[/]" if kernel["runs"] else "[red]no[/]"
        taken = "–" if kernel["milliseconds"] is None else f"{kernel['milliseconds']:.2f} ms"
        table.add_row(kernel["kernel"], kernel["device"], runs, taken, escape(kernel["why"]))
    console.print(table)
    table = Table("extra", "gives", "installed", "to get the rest", box=None, pad_edge=False)
    for extra in found["extras"]:
        have = ", ".join(f"{name} {version}" for name, version in extra["packages"].items() if version) or "–"
        table.add_row(extra["extra"], extra["gives"], have, escape(extra["install"] or ""))
    console.print(table)
    console.print(f"{found['studies']} studies; ledger: {escape(found['ledger'])}", soft_wrap=True)


def show_benchmark(console: Console, lines: Sequence[Mapping[str, Any]]) -> None:
    """One benchmark's lines as a table of what they hold."""
    names = list(dict.fromkeys(name for line in lines for name in line if name != "benchmark"))
    table = Table(
        *(escape(name) for name in names), title=lines[0]["benchmark"], box=None, pad_edge=False, title_justify="left"
    )
    for line in lines:
        table.add_row(*(_cell(line.get(name)) for name in names))
    console.print(table)


def _cell(value: Any) -> str:
    return number(value) if isinstance(value, float) else "" if value is None else escape(str(value))
