"""From a run to its row in the ledger, and back to a comparison of verdicts."""

from __future__ import annotations

import dataclasses
import datetime
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from plexus.lab._code import file_hash
from plexus.lab._frozen import Frozen, head, is_clean
from plexus.lab._ledger import FIGURE_BYTES, KIND, VERSION, Row, clean_number, plain
from plexus.lab._machine import machine_class, versions
from plexus.lab._run import Run
from plexus.lab._stability import redrawn
from plexus.lab._statistics import benjamini_hochberg
from plexus.lab._verdict import QUESTIONS, Judged, judge
from plexus.lab._worker import settings


def judge_run(run: Run) -> Judged:
    """All checks and both verdicts of a run."""
    broken = [f"{item.arm}, seed {item.seed}: {item.error}" for item in run.broken]
    return judge(run.study, run.by_seed, broken)


def make_row(run: Run, *, frozen: Frozen | None = None, confirming: bool = False, command: str = "") -> Row:
    """The row of a run, with every field of `_ledger`.

    Args:
        run: the run.
        frozen: the commit that last changed the study, where git knows it.
        confirming: whether the seeds are the confirming ones.
        command: how to run it again.
    """
    study, judged = run.study, judge_run(run)
    figures, omitted = _figures(run)
    title = (study.__doc__ or run.entry.slug).strip().splitlines()[0]
    row: Row = {
        "kind": KIND,
        "version": VERSION,
        "slug": run.entry.slug,
        "family": run.entry.family,
        "title": title,
        "paper": dataclasses.asdict(study.paper),
        "claim": study.claim,
        "refuted_by": study.refuted_by,
        "fidelity": study.fidelity,
        "scale_line": study.scale_line,
        "data": list(study.data),
        "deviations": list(study.deviations),
        "inferred": dict(study.inferred),
        "shares": _shares(run),
        "study_hash": file_hash(run.entry.source.path),
        "scale": run.scale,
        "settings": settings(study.configure(run.scale, run.overrides)),
        "seeds": list(run.seeds),
        "arms": [_arm(run, arm.name) for arm in study.arms],
        "tuning": None
        if run.tuning_seconds is None
        else {"note": run.tuning.note, "seconds": round(run.tuning_seconds, 2)},
        "checks": [_check(run, item.to_json()) for item in judged.checks],
        "verdicts": {question: judged.verdicts[question].to_json() for question in QUESTIONS},
        "state": judged.state,
        "broken": [vars(item) for item in run.broken],
        "frozen": None if frozen is None else vars(frozen),
        "confirming": confirming,
        "commit": head(run.entry.source.path),
        "clean": is_clean({**run.code.modules, **run.code.extras}),
        "versions": versions(),
        "machine": machine_class(),
        "measured": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "duration_s": round(run.seconds, 2),
        "trial_seconds": round(sum(done.seconds for by in run.trials.values() for done in by.values()), 2),
        "command": command,
        "figures": figures,
        "omitted_figures": omitted,
    }
    result: Row = plain(row)
    return result


def _arm(run: Run, name: str) -> dict[str, Any]:
    arm, done = run.study.arm(name), run.trials.get(name, {})
    names = list(dict.fromkeys(metric for finished in done.values() for metric in finished.outcome.metrics))

    def per_seed(metric: str) -> list[float | None]:
        return [clean_number(done[seed].outcome.metrics.get(metric)) if seed in done else None for seed in run.seeds]

    return {
        "name": name,
        "role": arm.role,
        "note": arm.note,
        "overrides": dict(arm.overrides),
        "tuned": dict(run.tuning.chosen.get(name, {})),
        "budget": run.tuning.budget.get(name),
        "metrics": {metric: per_seed(metric) for metric in names},
        "seconds": [round(done[seed].seconds, 3) if seed in done else None for seed in run.seeds],
    }


def _check(run: Run, check: dict[str, Any]) -> dict[str, Any]:
    """Its values in the order of all seeds, null where an arm broke."""
    by_seed = dict(zip(run.complete_seeds, check["values"], strict=True))
    return {**check, "values": [by_seed.get(seed) for seed in run.seeds]}


def _shares(run: Run) -> dict[str, Any]:
    shares = {}
    for effect, quantity in run.study.shares.items():
        values = {seed: float(quantity(arms)) for seed, arms in zip(run.complete_seeds, run.by_seed, strict=True)}
        mean = sum(values.values()) / len(values) if values else math.nan
        shares[effect] = {
            "mean": clean_number(mean),
            "per_seed": [clean_number(values.get(seed)) for seed in run.seeds],
        }
    return shares


def _figures(run: Run) -> tuple[list[dict[str, Any]], list[str]]:
    """The study's figures as Plotly JSON; those that are too large, or cannot be drawn, by title."""
    if not run.trials or run.broken:
        return [], []
    try:
        figures = run.study().figures(run.results)
    except ImportError:
        return [], ["all: Plotly is not installed (pip install 'plexus-nn[lab]')"]
    kept, omitted = [], []
    for title, figure in figures.items():
        value = json.loads(figure.to_json()) if hasattr(figure, "to_json") else plain(figure)
        value.get("layout", {}).pop("template", None)
        if len(json.dumps(value)) > FIGURE_BYTES:
            omitted.append(title)
        else:
            kept.append({"title": title, "figure": {"data": value.get("data", []), "layout": value.get("layout", {})}})
    return kept, omitted


def differences(row: Row, ledger: Row) -> list[str]:
    """Where the verdicts of a new run differ from the ledger's, in words."""
    lines = []
    for question in QUESTIONS:
        new, old = row["verdicts"][question]["word"], ledger["verdicts"][question]["word"]
        if new != old:
            reason = row["verdicts"][question]["reason"]
            chance = redrawn(ledger).get(question)
            lines.append(
                f"{question}: the ledger says {old!r}, this run {new!r}"
                + (f" ({reason})" if reason else "")
                + (f"; redraws of the ledger's seeds say so in {100 * chance.get(new, 0.0):.0f} %" if chance else "")
            )
    return lines


def header_counts(rows: Sequence[Row], level: float = 0.05) -> dict[str, Any]:
    """What the ledger's header says: verdicts by word, and how many primary effects stand after Benjamini–Hochberg.

    Only verdicts that lean on a primary check with a p value enter the correction, over all studies and both questions.

    Examples:
        >>> from plexus.lab._ledger import synthetic_row
        >>> header_counts([synthetic_row("a"), synthetic_row("b")])["mechanism"]
        {'holds here': 2}
    """
    counts: dict[str, Any] = {}
    named: list[tuple[str, str, str]] = []
    p_values: list[float] = []
    for question in QUESTIONS:
        words: dict[str, int] = {}
        for row in rows:
            verdict: Mapping[str, Any] = row["verdicts"][question]
            words[verdict["word"]] = words.get(verdict["word"], 0) + 1
            if verdict.get("p") is not None:
                named.append((row["slug"], question, verdict["word"]))
                p_values.append(float(verdict["p"]))
        counts[question] = words
    q_values = benjamini_hochberg(p_values)
    stand = [{"slug": s, "question": q, "word": w, "q": float(v)} for (s, q, w), v in zip(named, q_values, strict=True)]
    counts["tests"] = len(stand)
    counts["significant"] = int((q_values <= level).sum())
    counts["q"] = stand
    return counts
