"""The report: one self-contained HTML page made from the ledger, for a reader with a browser and no network.

The page holds its style, its scripts, the rows themselves as JSON, and Plotly's code once (compressed, and only
where a row has a figure of its own). The claims map and the strips are SVG and need no script.
"""

from __future__ import annotations

import base64
import gzip
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import plexus._version
from plexus.errors import PlexusError, require
from plexus.lab._figures import COLOURS, FILL, mark, style, variables
from plexus.lab._ledger import Row
from plexus.lab._report_here import here_views
from plexus.lab._report_map import claims_map
from plexus.lab._report_rows import (
    FIDELITY,
    QUESTIONS,
    Ledger,
    arms_view,
    check_view,
    colour,
    dots,
    header,
    in_order,
    load,
    notices,
    paper_links,
    summary,
    verdict_views,
)
from plexus.lab._report_words import duration, number, settings_words, short
from plexus.lab._stability import redrawn_words

WORDS = ("holds here", "holds in part", "does not hold here", "undecided", "not tested")


class UnwritableError(PlexusError, OSError):
    """A file cannot be written where it was asked for."""


def write_report(
    ledger_folder: str | Path, out: str | Path, *, calibration: str | Path | None = None, here: Sequence[Row] = ()
) -> Path:
    """Write the whole ledger as one HTML page and return its path.

    Args:
        ledger_folder: holds `<slug>.json` rows; may be empty.
        out: the file to write; folders above it are made. It appears whole or not at all.
        calibration: the calibration file, by default `calibration.json` in the ledger's folder.
        here: rows of runs on this machine, shown beside the ledger's and never counted with them.

    Raises:
        UnwritableError: the file cannot be written.
        MissingExtraError: `jinja2` is absent, or `plotly` is and a row has figures.

    Examples:
        >>> import tempfile
        >>> folder = tempfile.mkdtemp()
        >>> write_report(folder, Path(folder) / "report.html").name
        'report.html'
    """
    ledger = load(Path(ledger_folder), None if calibration is None else Path(calibration))
    return write_whole(Path(out), render(replace(ledger, here=tuple(here))))


def write_whole(path: Path, text: str) -> Path:
    """Write a text file by atomic rename: it appears whole or not at all."""
    temporary: str | None = None
    try:
        if path.is_dir():
            raise IsADirectoryError(f"{path} is a folder")
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(handle, "w", encoding="utf-8", newline="\n") as file:
            file.write(text)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException as error:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise UnwritableError(
                f"{path} cannot be written", given=error, mend="name a file in a folder that you may write to"
            ) from error
        raise
    return path


def render(ledger: Ledger) -> str:
    """The page as text."""
    jinja = require("jinja2", "lab", purpose="the report")
    folder = files("plexus.lab") / "templates"
    text = {name: (folder / name).read_text(encoding="utf-8") for name in ("report.html", "report.css", "report.js")}
    environment = jinja.Environment(
        autoescape=True, undefined=jinja.StrictUndefined, trim_blocks=True, keep_trailing_newline=True
    )
    marks, newest = dots(ledger), max(ledger.rows, key=lambda row: row["measured"], default=None)
    plotting = ""
    if any(row["figures"] for row in ledger.shown):
        code = require("plotly.offline", "lab", purpose="the figures of the report").get_plotlyjs()
        plotting = base64.b64encode(gzip.compress(code.encode(), mtime=0)).decode()
    page: str = environment.from_string(text["report.html"]).render(
        rows=[_row_view(row, newest if row in ledger.rows else None) for row in ledger.shown],
        counted=len(ledger.rows),
        here=here_views(ledger),
        ledger_slugs=[row["slug"] for row in ledger.rows],
        questions=QUESTIONS,
        fidelity=FIDELITY,
        head=header(ledger.rows),
        shams=_shams(ledger.calibration),
        calibration=calibration_table(ledger.calibration),
        calibration_line=_calibration_line(ledger.calibration),
        called_words=_called_words(ledger.calibration),
        unreadable=ledger.unreadable,
        map_wide=claims_map(marks, width=860, height=470, name="map-wide"),
        map_narrow=claims_map(marks, width=360, height=380, name="map-narrow"),
        legend_words=[{"word": word, "key": colour(word), "svg": _legend_mark(word)} for word in WORDS],
        legend_fidelity=[{"word": f"fidelity {f}", "svg": mark(f, 8, 8, 6)} for f in FIDELITY],
        light=variables("light"),
        dark=variables("dark"),
        css=text["report.css"],
        figure_style=style(standalone=False),
        script=text["report.js"],
        plotting=plotting,
        data=embedded(ledger),
        version=plexus._version.__version__,
    )
    return page


def embedded(ledger: Ledger) -> str:
    """The rows as JSON that may stand inside a script element."""
    held = {
        "rows": ledger.shown,
        "here": ledger.here,
        "calibration": ledger.calibration,
        "colours": list(COLOURS["light"]),
    }
    text = json.dumps(held, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def _legend_mark(word: str) -> str:
    return mark("A", 8, 8, 6.5, FILL.get(word, ""))


def _row_view(row: Row, newest: Row | None) -> dict[str, Any]:
    redraws = redrawn_words(row)
    verdicts = [{**view, "redrawn": redraws.get(view["question"], "")} for view in verdict_views(row)]
    flags = ["broken"] if row["state"] == "broken" else ["broken trials"] if row["broken"] else []
    searched = [row["slug"], row["family"], row["title"], row["claim"], row["paper"]["title"], row["paper"]["authors"]]
    return {
        **{name: row[name] for name in ("slug", "paper", "claim", "refuted_by", "fidelity", "scale", "scale_line")},
        **{name: row[name] for name in ("data", "deviations", "seeds", "broken", "command")},
        "flags": [*flags, *(["smoke scale"] if row["scale"] == "smoke" else [])],
        "find": " ".join(str(text) for text in searched).lower(),
        "words": "|".join(view["word"] for view in verdicts),
        "verdicts": verdicts,
        "notices": notices(row, newest, version=plexus._version.__version__),
        "links": paper_links(row["paper"]),
        "checks": [check_view(check, row["seeds"]) for check in in_order(row["checks"])],
        "arms": arms_view(row),
        "settings_table": [_arm_settings(arm) for arm in row["arms"]],
        "tuning": _tuning(row.get("tuning")),
        "settings": settings_words(row.get("settings")),
        "inferred": list((row.get("inferred") or {}).items()),
        "shares": [(name, _share(share)) for name, share in (row.get("shares") or {}).items()],
        "facts": _facts(row),
        "figures": [item["title"] for item in row["figures"]],
        "omitted": row.get("omitted_figures") or [],
    }


def _arm_settings(arm: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "name": arm["name"],
        "budget": number(arm.get("budget")),
        "tuned": settings_words(arm.get("tuned")),
        "overrides": settings_words(arm.get("overrides")),
        "note": arm.get("note") or "",
    }


def _tuning(tuning: Mapping[str, Any] | None) -> str:
    if not tuning:
        return "Nothing was tuned: every arm ran at the settings shown."
    took = f", in {duration(tuning['seconds'])}" if tuning.get("seconds") is not None else ""
    return f"Tuned on seeds of its own{took}: {tuning.get('note') or 'no note'}."


def _share(share: Mapping[str, Any]) -> str:
    mean, low, high = summary(share.get("per_seed") or ())
    middle = share.get("mean") if share.get("mean") is not None else mean
    words = "–" if middle is None else f"{100 * middle:.0f} %"
    return words if low is None or high is None else f"{words} [{100 * max(low, 0):.0f}, {100 * min(high, 1):.0f}]"


def _facts(row: Row) -> list[tuple[str, str]]:
    frozen, seeds = row.get("frozen"), ", ".join(str(seed) for seed in row["seeds"])
    kind = "confirming seeds" if row.get("confirming") else "seeds (not confirming ones)"
    clean = {"True": ", nothing uncommitted", "False": ", with uncommitted changes"}.get(str(row.get("clean")), "")
    return [
        ("bars frozen in", f"{short(frozen['commit'])}, {frozen['date']}" if frozen else "no commit"),
        (kind, seeds or "none"),
        ("measured", f"{row['measured']} at {short(row['commit'])}{clean}"),
        ("took", f"{duration(row.get('duration_s'))}, {duration(row.get('trial_seconds'))} summed over trials"),
        ("machine", str(row["machine"])),
        ("versions", ", ".join(f"{name} {version}" for name, version in row["versions"].items()) or "not recorded"),
    ]


KNOWN = {
    "sham": ("nothing to find", "undecided"),
    "planted above": ("an effect well beyond the bar", "holds here"),
    "planted below": ("an effect well short of the bar", "does not hold here"),
    "planted between": ("an effect exactly at the bar", "undecided"),
}
"""Kind of made-up study → what is true of it, and what the lab ought to answer."""


def _answers(calibration: Row | None) -> dict[str, list[str]]:
    """Kind of made-up study → the words of all its questions."""
    found: dict[str, list[str]] = {}
    for item in () if calibration is None else calibration["studies"]:
        found.setdefault(item["kind"], []).extend(item["question_words"].values())
    return found


def _shams(calibration: Row | None) -> dict[str, Any]:
    words = _answers(calibration).get("sham", [])
    return {"total": len(words), "called": words.count("holds here"), "chance": number(0.025 * len(words), 2)}


def _called_words(calibration: Row | None) -> list[str]:
    seen = {word for words in _answers(calibration).values() for word in words}
    return [word for word in WORDS if word in seen] + sorted(seen - set(WORDS))


def calibration_table(calibration: Row | None) -> list[dict[str, Any]]:
    """A line per kind of made-up study: what is true, and how often the lab answered what."""
    lines = []
    for kind, words in _answers(calibration).items():
        truth, ought = KNOWN.get(kind, ("", ""))
        called = [words.count(word) for word in _called_words(calibration)]
        lines.append({"kind": kind, "truth": truth, "total": len(words), "called": called, "ought": ought,
                      "right": words.count(ought), "held": words.count("holds here")})  # fmt: skip
    return lines


def _calibration_line(calibration: Row | None) -> str:
    if calibration is None:
        return ""
    when = calibration.get("measured") or "at an unknown date"
    return (
        f"{len(calibration['studies'])} made-up studies of {number(calibration.get('seeds'))} seeds, each asked both "
        "questions. By construction a 95 % interval misses the truth 5 times in a hundred, half of them on the good "
        f"side. Measured {when} at {short(calibration.get('commit'))}."
    )
