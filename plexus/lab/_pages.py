"""The ledger as pages of the documentation, and the claims map as a picture, made from `ledger/*.json`.

python -m plexus.lab._pages            write docs/ledger.md, docs/ledger/<slug>.md and docs/assets/claims-map.svg
python -m plexus.lab._pages --check    only say which of them differ from what the ledger gives (exit status 1)
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from plexus.lab._ledger import Row
from plexus.lab._report import calibration_table, write_whole
from plexus.lab._report_map import claims_map
from plexus.lab._report_rows import (
    FIDELITY,
    ROLES,
    Ledger,
    arms_view,
    dots,
    header,
    in_order,
    load,
    notices,
    paper_links,
    verdict_views,
)
from plexus.lab._report_words import bar_words, duration, interval_words, like, number, p_words, settings_words, short
from plexus.lab._stability import redrawn_words

MADE = "<!-- Made from ledger/*.json by `python -m plexus.lab._pages`; edits here are overwritten. -->"


def ledger_pages(ledger: Ledger) -> dict[str, str]:
    """All pages and the picture: path below `docs/` → text.

    Examples:
        >>> sorted(ledger_pages(Ledger((), None, ())))
        ['assets/claims-map.svg', 'ledger.md']
    """
    pages = {
        "ledger.md": _index(ledger),
        "assets/claims-map.svg": claims_map(dots(ledger), width=860, height=500, link="", standalone=True) + "\n",
    }
    newest = max(ledger.rows, key=lambda row: row["measured"], default=None)
    for row in ledger.rows:
        pages[f"ledger/{row['slug']}.md"] = _study(row, newest)
    return pages


def write_pages(ledger_folder: str | Path, docs: str | Path) -> list[Path]:
    """Write what differs, remove pages of studies that are gone, and return the paths touched."""
    touched = []
    for path, text in differences(ledger_folder, docs).items():
        if text is None:
            path.unlink()
        else:
            write_whole(path, text)
        touched.append(path)
    return touched


def differences(ledger_folder: str | Path, docs: str | Path) -> dict[Path, str | None]:
    """What is on disk and differs from the ledger: path → right text, or None for a page of a study that is gone."""
    folder = Path(docs)
    wanted: dict[Path, str] = {folder / name: text for name, text in ledger_pages(load(Path(ledger_folder))).items()}
    found: dict[Path, str | None] = {
        path: text for path, text in wanted.items() if not path.is_file() or path.read_text(encoding="utf-8") != text
    }
    found.update({path: None for path in sorted((folder / "ledger").glob("*.md")) if path not in wanted})
    return found


def markdown(value: object) -> str:
    """Text that markdown shows as it is: no markup, no HTML, one line.

    Examples:
        >>> print(markdown("a <b> | *c*"))
        a &lt;b&gt; &#124; \\*c\\*
    """
    text = re.sub(r"([\\`*_\[\]{}#!~])", r"\\\1", " ".join(str(value).split()))
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace("|", "&#124;")


def _table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> list[str]:
    rows = [head, ["---"] * len(head), *lines]
    return ["| " + " | ".join(line) + " |" for line in rows]


def _index(ledger: Ledger) -> str:
    rows, head = ledger.rows, header(ledger.rows)
    out = [MADE, "", "# The ledger", ""]
    if not rows:
        out += ["No study has been measured yet.", ""]
    else:
        out += [
            f"Of {head['studies']} studies, the mechanism holds in {head['mechanism']['holds']} of "
            f"{head['mechanism']['tested']} and the advantage over the best simple baseline in "
            f"{head['advantage']['holds']} of {head['advantage']['tested']} where it was tested (Benjamini–Hochberg at "
            "a false discovery rate of 5 % over all of them).",
            "",
            "![Claims map: advantage over the best simple baseline against mechanism, in units of the bar]"
            "(assets/claims-map.svg)",
            "",
        ]
        lines = [
            [
                f"[{markdown(row['slug'])}](ledger/{row['slug']}.md)",
                *(view["word"] for view in verdict_views(row)),
                row["fidelity"],
                markdown(row["scale_line"]),
                str(len(row["seeds"])),
                f"`{short(row['frozen']['commit'])}`" if row.get("frozen") else "not frozen",
            ]
            for row in rows
        ]
        names = ["study", "mechanism", "advantage", "fidelity", "scale", "seeds", "frozen commit"]
        out += [*_table(names, lines), ""]
    out += ["Mechanism: does the method beat its own ablation and null? Advantage: does it beat the strongest simple "
            "baseline, tuned with equal effort?", ""]  # fmt: skip
    out += [f"- Fidelity {letter}: {words}." for letter, words in FIDELITY.items()]
    out += ["", "## Calibration", "", *_calibration(ledger.calibration), ""]
    for name, problem in ledger.unreadable:
        out += [f"`{name}` could not be read: {markdown(problem)}", ""]
    return "\n".join(out)


def _calibration(calibration: Row | None) -> list[str]:
    if calibration is None:
        return ["No calibration has been measured yet."]
    lines = [
        [markdown(line["kind"]), line["truth"], str(line["total"]), str(line["held"]), line["ought"],
         f"{line['right']} of {line['total']}"]
        for line in calibration_table(calibration)
    ]  # fmt: skip
    return [
        "Made-up studies with a known answer, through the same runner, statistics and verdicts, both questions:",
        "",
        *_table(["made-up studies", "truth", "answers", "“holds here”", "ought to be", "right"], lines),
    ]


def _study(row: Row, newest: Row | None) -> str:
    paper = row["paper"]
    links = "".join(f" [{markdown(link['text'])}]({link['url']})" for link in paper_links(paper))
    out = [MADE, "", f"# {markdown(row['slug'])}", "", markdown(row["title"]), ""]
    out += [f"{markdown(paper['authors'])} ({paper['year']}). *{markdown(paper['title'])}*.{links}", ""]
    out += [f"- **Claim:** {markdown(row['claim'])}", f"- **Would refute it:** {markdown(row['refuted_by'])}", ""]
    said = notices(row, newest, version=None)
    out += [line for sentence in said for line in (f"> {markdown(sentence)}", "")]
    out += ["## Verdict", ""]
    redraws = redrawn_words(row)
    for view in verdict_views(row):
        words = f"{view['reason']} {redraws.get(view['question'], '')}".rstrip()
        out.append(f"- **{view['question'].capitalize()}: {view['word']}.** {markdown(words)}")
    out += ["", "## Checks", ""]
    checks = [_check(check) for check in in_order(row["checks"])]
    names = ["check", "question", "bar", "mean", "95 % interval", "p", "result"]
    out += [*(_table(names, checks) if checks else ["None was measured."]), "", "## Arms", ""]
    for block in arms_view(row)["blocks"]:
        lines = [
            [
                f"{markdown(arm['name'])} ({arm['role']})",
                *(f"{mean} ± {half}" if half else mean for mean, half in arm["cells"]),
            ]
            for arm in block["table"]
        ]
        out += [*_table(["arm", *(markdown(metric) for metric in block["metrics"])], lines), ""]
    if not row["arms"]:
        out += ["None was measured.", ""]
    out += [f"Mean over {len(row['seeds'])} seeds ± half the 95 % interval.", "", "## How it was measured", ""]
    out += [*_measured(row), "", "```", row["command"], "```", ""]
    return "\n".join(out)


def _check(check: Mapping[str, Any]) -> list[str]:
    low, high = check.get("interval") or (None, None)
    return [
        markdown(check["name"]),
        ROLES.get(check["role"], check["role"]) + (", primary" if check.get("primary") else ""),
        markdown(bar_words(check)),
        like(check.get("mean"), low, high),
        interval_words(low, high) or "–",
        p_words(check.get("p")).removeprefix("p = ").removeprefix("p ") or "–",
        str(check["verdict"]),
    ]


def _measured(row: Row) -> list[str]:
    frozen = row.get("frozen")
    kind = "Confirming seeds" if row.get("confirming") else "Seeds (not confirming ones)"
    tuned = [
        f"{arm['name']}: {settings_words(arm.get('tuned')) or 'nothing to choose'} ({number(arm['budget'])} tried)"
        for arm in row["arms"]
        if arm.get("budget") is not None
    ]
    facts = [
        ("Fidelity", f"{row['fidelity']}: {FIDELITY.get(row['fidelity'], '')}"),
        ("Scale", f"{row['scale']}. {row['scale_line']}"),
        ("Data", ", ".join(row["data"]) or "none named"),
        ("Deviations", " ".join(row["deviations"]) or "none named"),
        ("Tuning chose", "; ".join(tuned) or "nothing"),
        ("Bars frozen in", f"{short(frozen['commit'])} ({frozen['date']})" if frozen else "no commit"),
        (kind, ", ".join(str(seed) for seed in row["seeds"]) or "none"),
        ("Measured", f"{row['measured']} at {short(row['commit'])}, in {duration(row.get('duration_s'))}"),
        ("Machine", row["machine"]),
        ("Versions", ", ".join(f"{name} {version}" for name, version in row["versions"].items()) or "not recorded"),
    ]
    return [f"- {name}: {markdown(words)}" for name, words in facts]


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; the exit status is 1 where `--check` finds a difference."""
    root = Path(__file__).resolve().parents[2]
    parser = argparse.ArgumentParser(prog="python -m plexus.lab._pages", description="The ledger as documentation.")
    parser.add_argument("--check", action="store_true", help="write nothing; status 1 where a page differs")
    parser.add_argument("--ledger", type=Path, default=root / "ledger")
    parser.add_argument("--docs", type=Path, default=root / "docs")
    given = parser.parse_args(arguments)
    if given.check:
        differing = differences(given.ledger, given.docs)
        for path, text in differing.items():
            print(f"{path}: {'no such study' if text is None else 'differs from the ledger'}")
        return 1 if differing else 0
    for path in write_pages(given.ledger, given.docs):
        print(path)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
