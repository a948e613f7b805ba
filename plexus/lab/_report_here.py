"""What the report says about runs on this machine, beside the ledger's rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from plexus.lab._ledger import Row
from plexus.lab._report_rows import QUESTIONS, SYMBOL, Ledger, colour, in_order
from plexus.lab._report_words import bar_words, duration, interval_words, like

SAME, FEWER, OTHER = "as in the ledger", "less sure, on fewer seeds", "another answer"


def here_views(ledger: Ledger) -> dict[str, dict[str, Any]]:
    """Slug → what a run here measured, beside what the ledger says."""
    rows = {row["slug"]: row for row in ledger.rows}
    return {row["slug"]: _view(row, rows.get(row["slug"])) for row in ledger.here}


def _view(row: Row, old: Row | None) -> dict[str, Any]:
    before = {} if old is None else {check["name"]: check for check in old["checks"]}
    checks = [
        {"name": check["name"], "bar": bar_words(check), "then": _measured(before.get(check["name"])),
         "now": _measured(check)}
        for check in in_order(row["checks"])
    ]  # fmt: skip
    took = duration(row.get("trial_seconds"))
    return {
        "slug": row["slug"],
        "seeds": _seeds(row["seeds"]),
        "scale": row["scale"],
        "when": row["measured"],
        "took": f"{took} of work on {row['machine']}",
        "command": row["command"],
        "broken": len(row["broken"]),
        "questions": [_question(question, row, old) for question in QUESTIONS],
        "checks": checks,
    }


def _seeds(seeds: list[int]) -> str:
    count = f"{len(seeds)} seed{'' if len(seeds) == 1 else 's'}"
    if len(seeds) > 1 and seeds == list(range(seeds[0], seeds[-1] + 1)):
        return f"{count}, {seeds[0]} to {seeds[-1]}"
    return f"{count}, {', '.join(map(str, seeds))}"


def _question(question: str, row: Row, old: Row | None) -> dict[str, Any]:
    now = row["verdicts"][question]
    then = None if old is None else old["verdicts"][question]["word"]
    weaker = now["word"] == "undecided" or (then, now["word"]) == ("holds here", "holds in part")
    fewer = old is not None and len(row["seeds"]) < len(old["seeds"]) and weaker
    agrees = "not in the ledger" if then is None else SAME if then == now["word"] else FEWER if fewer else OTHER
    return {"question": question, "then": _chip(then), "now": _chip(now["word"]), "agrees": agrees,
            "reason": now["reason"]}  # fmt: skip


def _chip(word: str | None) -> dict[str, str] | None:
    if word is None:
        return None
    key = colour(word)
    return {"word": word, "key": key, "symbol": SYMBOL[key]}


def _measured(check: Mapping[str, Any] | None) -> str:
    """Mean, interval and word of a check; a dash where it was not measured."""
    if check is None or check.get("mean") is None:
        return "–"
    low, high = check.get("interval") or (None, None)
    return f"{like(check['mean'], low, high)} {interval_words(low, high)}".rstrip() + f", {check['verdict']}"
