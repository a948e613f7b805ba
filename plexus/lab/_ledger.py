"""The ledger: what a study measured, one JSON file per study, `ledger/<slug>.json`.

A row is one JSON object (UTF-8, keys as below; numbers are finite or null, never NaN). `p` values, intervals and
distances may be null where they do not exist (one seed, an exact check).

    kind        "plexus ledger row"          version     1
    slug, family, title                      the title is the first line of the study's docstring
    paper       {title, authors, year, arxiv, doi, venue, code}          the last four may be null
    claim, refuted_by, scale_line            one sentence each
    fidelity    "A" | "B" | "C"
    data        [name of a data set]         deviations  [sentence]
    inferred    {constant: range in words}   constants that the paper does not give (fidelity C), else {}
    shares      {effect: {mean, per_seed}}   in what share of the declared range each effect holds (fidelity C), else {}
    doubts      [str], may be missing       what a later reading found wanting, added by hand; a new run starts without
    study_hash  of the syntax tree of the study's file, without docstrings
    scale       "smoke" | "full" | "paper"   settings    {field of Config: value at this scale, before arms}
    seeds       [int]                        every per-seed list below is in this order, null where a trial broke
    arms        [{name, role, note, overrides: {}, tuned: {}, budget: int | null, metrics: {name: [per seed]},
                  seconds: [per seed]}]
                role: method | baseline | ablation | null | reference; budget: number of settings tried while tuning
    tuning      {note, seconds}              or null where nothing was tuned
    checks      [{name, kind, role, primary, unit, bar, passed, verdict, values, mean, interval, p, p_interval, p_holm,
                  distance, distance_unit, note}]
                kind: interval | wins | equivalent | exact        role: sanity | control | mechanism | advantage
                bar: {at_least} | {at_most} | {center, margin}, with {k, n} where kind is wins; in words under `text`
                passed: true | false | null (undecided)           verdict: "holds" | "fails" | "undecided"
                values: [per seed]; mean; interval: [low, high] (95 % t interval) | null
                p: exact sign-flip test of the seeds against the bar (binomial for wins); p_interval: the level at which
                the t interval would touch the bar; p_holm: that, Holm-corrected over the further checks of the question
                distance: how far the mean lies on the good side of the bar (negative: bad side) in units of
                `distance_unit`: "bar" (|bar|), "interval" (half the 95 % interval, for a bar of 0) or "margin"
    verdicts    {mechanism: {word, reason, check, distance, p}, advantage: the same}
                word: holds here | holds in part | does not hold here | undecided | not tested; check: the primary one
    state       "measured" | "broken" (a sanity check failed, or a trial broke)
    broken      [{arm, seed, error, traceback}]
    frozen      {commit, date} | null        the commit that last changed protocol or bars
    confirming  bool                         the seeds follow from a hash of slug and frozen commit
    commit, clean                           commit measured (null without git); clean: the code that ran is as committed
    versions    {package: version}           machine     CPU kind, cores, memory in words
    measured    "YYYY-MM-DD"                 duration_s  wall time of the run; trial_seconds: sum over trials
    command     the command that reruns it
    figures     [{title, figure: {data, layout}}]       Plotly JSON, each at most 200 kB; larger ones are left out
    omitted_figures [title]

`ledger/calibration.json` has kind "plexus calibration", version 1, and

    studies     [{name, kind: "sham" | "planted above" | "planted below" | "planted between", truth, question_words:
                  {mechanism: word, advantage: word}, distances: {mechanism, advantage},
                  as_expected: {mechanism: bool, advantage: bool}}]
    counts      {kind: {word: number}}       over the answers to both questions
    seeds, measured, commit, versions
"""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from plexus.errors import FormatError

KIND = "plexus ledger row"
CALIBRATION = "plexus calibration"
VERSION = 1
FIGURE_BYTES = 200_000

Row = dict[str, Any]

_REQUIRED = [
    "slug",
    "family",
    "title",
    "paper",
    "claim",
    "refuted_by",
    "scale_line",
    "fidelity",
    "data",
    "deviations",
    "scale",
    "seeds",
    "arms",
    "checks",
    "verdicts",
    "state",
    "broken",
    "commit",
    "versions",
    "machine",
    "measured",
    "command",
    "figures",
]


def clean_number(value: Any) -> float | None:
    """A finite float, or None: JSON has no NaN."""
    if value is None:
        return None
    number = float(value)
    return number if math.isfinite(number) else None


def plain(value: Any) -> Any:
    """The value in JSON's own types: tuples become lists, numbers of NumPy plain ones, anything else its `repr`."""
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return clean_number(value)
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        items = sorted(value, key=repr) if isinstance(value, (set, frozenset)) else value
        return [plain(item) for item in items]
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    return repr(value)


def write_json(path: Path, value: Any, *, compact: bool = False) -> None:
    """Write JSON by atomic rename: a reader sees the old file or the new one, never half of one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, indent=None if compact else 1)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text + "\n")
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _read(path: Path, kind: str) -> Row:
    try:
        row = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise FormatError(f"{path} is not JSON, or is truncated", given=str(error)) from error
    if not isinstance(row, dict) or row.get("kind") != kind:
        given = row.get("kind") if isinstance(row, dict) else type(row).__name__
        raise FormatError(f"{path} is not a {kind}", given=given, expected=kind)
    if row.get("version") != VERSION:
        raise FormatError(
            f"{path} is of another version",
            given=row.get("version"),
            expected=VERSION,
            mend="update Plexus, or measure again",
        )
    return row


def read_row(path: str | Path) -> Row:
    """Read one row of the ledger.

    Raises:
        FormatError: the file is not JSON, is truncated, of another version, not a row, or lacks a field.
        FileNotFoundError: there is no such file.

    Examples:
        >>> import tempfile
        >>> path = write_row(tempfile.mkdtemp(), synthetic_row("example"))
        >>> read_row(path)["slug"]
        'example'
    """
    row = _read(Path(path), KIND)
    missing = [name for name in _REQUIRED if name not in row]
    if missing:
        raise FormatError(f"{path} lacks fields of a ledger row", given=", ".join(missing))
    return row


def write_row(folder: str | Path, row: Row) -> Path:
    """Write a row to `folder/<slug>.json` by atomic rename, and return the path."""
    path = Path(folder) / f"{row['slug']}.json"
    write_json(path, {"kind": KIND, "version": VERSION, **plain(row)})
    return path


def read_ledger(folder: str | Path) -> list[Row]:
    """All rows of a ledger folder in the order of family and slug; a folder that does not exist has none.

    Examples:
        >>> import tempfile
        >>> folder = tempfile.mkdtemp()
        >>> for slug in ("b", "a"):
        ...     path = write_row(folder, synthetic_row(slug))
        >>> [row["slug"] for row in read_ledger(folder)]
        ['a', 'b']
    """
    rows = [read_row(path) for path in _paths(Path(folder))]
    return sorted(rows, key=lambda row: (row["family"], row["slug"]))


def _paths(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.glob("*.json")):
        if path.name != "calibration.json":
            yield path


def read_calibration(folder: str | Path) -> Row | None:
    """The calibration of a ledger folder, or None where there is none."""
    path = Path(folder) / "calibration.json"
    return _read(path, CALIBRATION) if path.exists() else None


def ledger_folder(given: str | Path | None = None) -> Path:
    """Where the ledger is: `given`, `PLEXUS_LEDGER`, `ledger/` here, or that of the checkout that Plexus runs from."""
    if given is not None:
        return Path(given)
    if os.environ.get("PLEXUS_LEDGER"):
        return Path(os.environ["PLEXUS_LEDGER"])
    here = Path.cwd() / "ledger"
    package = Path(__file__).resolve().parents[1]
    checkout = package.parent / "ledger"
    for folder in (here, checkout, package / "ledger"):
        if any(_paths(folder)):
            return folder
    return checkout if (package.parent / "pyproject.toml").exists() else here


def synthetic_row(
    slug: str = "example",
    *,
    mechanism: str = "holds here",
    advantage: str = "undecided",
    fidelity: str = "B",
    seeds: int = 10,
) -> Row:
    """A made-up row with every field filled, for tests of whatever reads the ledger. Its numbers mean nothing.

    Examples:
        >>> synthetic_row("example")["verdicts"]["mechanism"]["word"]
        'holds here'
    """

    def line(base: float, slope: float) -> list[float]:
        return [round(base + slope * ((7 * i) % seeds) / seeds, 4) for i in range(seeds)]

    def check(name: str, role: str, word: str, primary: bool) -> dict[str, Any]:
        passed = {"holds here": True, "holds in part": True, "does not hold here": False}.get(word)
        shift = {True: 0.06, False: -0.06, None: 0.0}[passed]
        values = line(0.05 + shift, 0.02)
        mean = sum(values) / seeds
        return {
            "name": name,
            "kind": "interval",
            "role": role,
            "primary": primary,
            "unit": "accuracy",
            "bar": {"at_least": 0.05, "text": "at least 0.05 accuracy"},
            "passed": passed,
            "verdict": {True: "holds", False: "fails", None: "undecided"}[passed],
            "values": values,
            "mean": mean,
            "interval": [mean - 0.02, mean + 0.02],
            "p": 0.002 if passed is not None else 0.4,
            "p_interval": 0.001 if passed is not None else 0.3,
            "p_holm": None,
            "distance": (mean - 0.05) / 0.05,
            "distance_unit": "bar",
            "note": "",
        }

    checks = [
        check("trained at all", "sanity", "holds here", False),
        check("positive control", "control", "holds here", False),
        check("method beats its ablation", "mechanism", mechanism, True),
        check("method beats the best baseline", "advantage", advantage, True),
    ]
    by_role = {item["role"]: item for item in checks}

    def verdict(question: str, word: str) -> dict[str, Any]:
        item = by_role[question]
        return {"word": word, "reason": "", "check": item["name"], "distance": item["distance"], "p": item["p"]}

    def arm(name: str, role: str, base: float) -> dict[str, Any]:
        return {
            "name": name,
            "role": role,
            "note": f"the {role}",
            "overrides": {"method": name},
            "tuned": {"strength": 0.5} if role in ("method", "baseline") else {},
            "budget": 8 if role in ("method", "baseline") else None,
            "metrics": {"accuracy": line(base, 0.05), "seconds of work": line(1.0, 0.3)},
            "seconds": line(1.5, 0.2),
        }

    return {
        "kind": KIND,
        "version": VERSION,
        "slug": slug,
        "family": "examples",
        "title": "An example with made-up numbers.",
        "paper": {
            "title": "A Made-up Paper",
            "authors": "A. Author, B. Author",
            "year": 2024,
            "arxiv": "0000.00000",
            "doi": None,
            "venue": None,
            "code": None,
        },
        "claim": "The method is better than nothing.",
        "refuted_by": "An ablation that does as well.",
        "scale_line": "Data 1/100, model 1/1000 of the paper's.",
        "fidelity": fidelity,
        "data": ["digits"],
        "deviations": ["A smaller network."],
        "inferred": {"alpha": "0.5 to 2"} if fidelity == "C" else {},
        "shares": {"effect": {"mean": 0.8, "per_seed": line(0.75, 0.1)}} if fidelity == "C" else {},
        "study_hash": "0" * 64,
        "scale": "full",
        "settings": {"method": "none", "width": 64},
        "seeds": list(range(100, 100 + seeds)),
        "arms": [arm("method", "method", 0.9), arm("baseline", "baseline", 0.85), arm("ablated", "ablation", 0.7)],
        "tuning": {"note": "grid of 8 on validation data", "seconds": 12.0},
        "checks": checks,
        "verdicts": {"mechanism": verdict("mechanism", mechanism), "advantage": verdict("advantage", advantage)},
        "state": "measured",
        "broken": [],
        "frozen": {"commit": "0" * 40, "date": "2024-01-01"},
        "confirming": True,
        "commit": "0" * 40,
        "clean": True,
        "versions": {"python": "3.11.0", "torch": "2.13.0"},
        "machine": "x86-64 CPU, 2 cores, 8 GB",
        "measured": "2024-01-02",
        "duration_s": 60.0,
        "trial_seconds": 110.0,
        "command": f"plexus run {slug} --confirm",
        "figures": [
            {
                "title": "Accuracy",
                "figure": {
                    "data": [{"type": "scatter", "x": list(range(seeds)), "y": line(0.9, 0.05), "name": "method"}],
                    "layout": {"xaxis": {"title": {"text": "seed"}}},
                },
            }
        ],
        "omitted_figures": [],
    }


def synthetic_calibration() -> Row:
    """A made-up calibration, for tests of whatever reads it."""
    shams = [
        {
            "name": f"sham-{i}",
            "kind": "sham",
            "truth": 0.0,
            "question_words": {"mechanism": "undecided", "advantage": "undecided"},
            "distances": {"mechanism": 0.1 * i - 0.4, "advantage": 0.3 - 0.1 * i},
            "as_expected": {"mechanism": True, "advantage": True},
        }
        for i in range(8)
    ]
    counts = {"sham": {"undecided": 16}}
    return {
        "kind": CALIBRATION,
        "version": VERSION,
        "studies": shams,
        "counts": counts,
        "seeds": 10,
        "measured": "2024-01-02",
        "commit": None,
        "versions": {},
    }
