"""The `plexus` command."""

from __future__ import annotations

import json
import sys
from typing import Annotated, Any, Optional

import typer

app = typer.Typer(add_completion=False)


def _studies(names):
    from plexus.lab._catalogue import find_all

    return find_all(names)


@app.callback()
def root() -> None:
    """Adaptive neurons for PyTorch."""


@app.command()
def run(
    names: list[str],
    seeds: int = 10,
    first_seed: int = 0,
    scale: str = "full",
    jobs: Optional[int] = None,
    set_: Annotated[list[str], typer.Option("--set")] = [],
    store: Optional[str] = None,
    ledger: Optional[str] = None,
    confirm: bool = False,
    json_: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    from plexus.lab._catalogue import load
    from plexus.lab._frozen import confirming_seeds, frozen, refuse_unfrozen
    from plexus.lab._ledger import ledger_folder, write_row
    from plexus.lab._progress import Bars
    from plexus.lab._row import make_row
    from plexus.lab._runner import run_study
    from plexus.lab._settings import parse_settings
    from plexus.lab._store import Store

    rows = []
    place = Store(store)
    with Bars() as bars:
        for entry in _studies(names):
            study = load(entry)
            ice = refuse_unfrozen(entry.source.path, entry.slug) if confirm else frozen(entry.source.path)
            chosen = (
                confirming_seeds(entry.slug, ice.commit, study.seeds)
                if confirm
                else range(first_seed, first_seed + seeds)
            )
            result = run_study(
                entry,
                scale=scale,
                seeds=tuple(chosen),
                overrides=parse_settings(study.Config, set_),
                jobs=jobs,
                store=place,
                progress=bars,
            )
            row = make_row(result, frozen=ice, confirming=confirm, command="plexus run " + entry.slug)
            rows.append(row)
            for b in result.broken:
                bars.say(b.traceback)
            if confirm:
                write_row(ledger_folder(ledger), row)
    if json_:
        print(json.dumps(rows))
    else:
        for row in rows:
            print(row["slug"], {q: (v["word"], v["reason"]) for q, v in row["verdicts"].items()})
            for c in row["checks"]:
                print("  ", c["role"], c["name"], c["bar"]["text"], c["verdict"], c["mean"], c["interval"], c["note"])
    if any(row["broken"] for row in rows):
        raise typer.Exit(3)


def main() -> None:
    app()
