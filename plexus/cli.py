"""The `plexus` command.

Exit status: 0 for success; `run` 3 when a trial broke; `verify` 1 when a verdict differs; 2 for bad usage; 130 when
interrupted. With `--json` nothing but JSON goes to stdout; progress and errors go to stderr. What a subcommand needs is
imported when it runs, so that `plexus --help` and `plexus list` answer at once.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ParamSpec

import typer

from plexus.errors import PlexusError, RangeError, UnknownNameError

if TYPE_CHECKING:
    from plexus.lab._catalogue import Entry

P = ParamSpec("P")

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)

Names = Annotated[list[str], typer.Argument(metavar="NAME…", help="Studies by name, or a Python file of your own.")]
Jobs = Annotated[int | None, typer.Option(min=1, help="Worker processes; one per core by default.")]
StorePlace = Annotated[
    str | None, typer.Option("--store", help="Folder or URL of finished trials [.plexus, or PLEXUS_STORE].")
]
Ledger = Annotated[
    Path | None, typer.Option("--ledger", help="Folder of the ledger [that of the checkout, or PLEXUS_LEDGER].")
]
AsJson = Annotated[bool, typer.Option("--json", help="Machine-readable output, and nothing else, on stdout.")]
Settings = Annotated[list[str] | None, typer.Option("--set", metavar="K=V", help="A setting of the study's Config.")]


@app.callback()
def _root() -> None:
    """Adaptive neurons for PyTorch: build them, teach them, watch them, edit them, and prove it."""


def _stoppable(command: Callable[P, None]) -> Callable[P, None]:
    """Ctrl-C ends the command with a line and status 130."""

    @functools.wraps(command)
    def stoppable(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            command(*args, **kwargs)
        except KeyboardInterrupt:
            sys.stderr.write("stopped; finished trials are kept, and the same command continues\n")
            raise typer.Exit(130) from None

    return stoppable


def _emit(value: Any) -> None:
    print(json.dumps(value, ensure_ascii=False))


def _console() -> Any:
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else 160)


def _rows(ledger: Path | None) -> dict[str, dict[str, Any]]:
    from plexus.lab._ledger import ledger_folder, read_ledger

    return {row["slug"]: row for row in read_ledger(ledger_folder(ledger))}


def _row_of(entry: Entry, rows: dict[str, dict[str, Any]]) -> dict[str, Any]:
    if entry.slug not in rows:
        raise UnknownNameError(
            f"the ledger has no row of {entry.slug!r}", mend=f"measure it: plexus run {entry.slug} --confirm"
        )
    return rows[entry.slug]


@app.command("list")
def list_studies(
    family: Annotated[str | None, typer.Option(help="Only this family.")] = None,
    ledger: Ledger = None,
    as_json: AsJson = False,
) -> None:
    """Every system and the state of its study."""
    from plexus.lab._catalogue import catalogue
    from plexus.lab._local import overview

    entries, rows = catalogue(), _rows(ledger)
    if family is not None:
        if family not in {entry.family for entry in entries}:
            raise UnknownNameError.among("family", family, [entry.family for entry in entries])
        entries = [entry for entry in entries if entry.family == family]
    shown = overview(entries, rows)
    if as_json:
        _emit(shown)
        return
    from plexus.lab._show import show_list

    show_list(_console(), shown)


@app.command()
@_stoppable
def run(
    names: Names,
    seeds: Annotated[int, typer.Option(min=1, help="How many seeds.")] = 10,
    first_seed: Annotated[int, typer.Option(min=0, help="The first of them.")] = 0,
    scale: Annotated[str, typer.Option(help="smoke, full or paper.")] = "full",
    jobs: Jobs = None,
    set_: Settings = None,
    store: StorePlace = None,
    ledger: Ledger = None,
    confirm: Annotated[
        bool, typer.Option(help="Run the confirming seeds at full scale, and write the ledger.")
    ] = False,
    tuning: Annotated[str, typer.Option(help="own: tune here. ledger: take over what the ledger's run chose.")] = "own",
    as_json: AsJson = False,
) -> None:
    """Run studies: what is not in the store yet."""
    from plexus.lab._catalogue import find_all, load
    from plexus.lab._command import Request, measure, named, tuning_of, words_of
    from plexus.lab._files import writable
    from plexus.lab._frozen import confirming_seeds, frozen, refuse_unfrozen
    from plexus.lab._ledger import ledger_folder, write_row
    from plexus.lab._settings import parse_settings
    from plexus.lab._store import Store

    if tuning not in ("own", "ledger"):
        raise UnknownNameError.among("tuning", tuning, ("own", "ledger"))
    if confirm and (set_ or scale != "full" or seeds != 10 or first_seed or tuning != "own"):
        raise RangeError(
            "--confirm fixes the seeds, the scale and the settings", mend="leave --set, --scale and --seeds out"
        )
    entries, called, requests = find_all(names), named(names), []
    for entry in entries:
        study, path = load(entry), entry.source.path
        overrides = parse_settings(study.Config, set_ or (), study=entry.slug)
        study.configure(scale, overrides)
        ice = refuse_unfrozen(path, entry.slug) if confirm else frozen(path)
        chosen: Sequence[int] = range(first_seed, first_seed + seeds)
        if confirm and ice is not None:
            chosen = confirming_seeds(entry.slug, ice.commit, study.seeds)
        taken = tuning_of(_row_of(entry, _rows(ledger)), entry, scale) if tuning == "ledger" else None
        requests.append(Request(entry, called[entry.slug], scale, tuple(chosen), overrides, ice, confirm, taken))
    own = any(entry.source.is_file for entry in entries) and "PLEXUS_LEDGER" not in os.environ
    target = writable(ledger or (Path("ledger") if own else ledger_folder())) if confirm else None
    place, rows = Store(store), []
    for request in requests:
        row = measure(request, words_of(request, set_ or ()), jobs=jobs, store=place)
        if row is None:
            continue
        rows.append(row)
        if target is not None:
            sys.stderr.write(f"written: {write_row(target, row)}\n")
    if as_json:
        _emit(rows)
    else:
        _print_rows(rows, {} if confirm else _rows_or_none(ledger))
    if len(rows) < len(requests) or any(row["broken"] for row in rows):
        raise typer.Exit(3)


def _rows_or_none(ledger: Path | None) -> dict[str, dict[str, Any]]:
    """The ledger's rows to print beside others; a damaged ledger does not stop a run that has finished."""
    try:
        return _rows(ledger)
    except PlexusError as error:
        sys.stderr.write(f"the ledger is not shown beside: {error}\n")
        return {}


def _print_rows(rows: Sequence[dict[str, Any]], ledger: dict[str, dict[str, Any]]) -> None:
    from plexus.lab._show import show_checks, show_verdicts

    console = _console()
    for row in rows:
        console.print(f"[bold]{row['slug']}[/]")
        show_checks(console, row)
        console.print()
    show_verdicts(console, rows, ledger)


@app.command()
@_stoppable
def verify(
    names: Names,
    first_seed: Annotated[
        int | None, typer.Option(min=0, help="Seeds from here on, instead of the ledger's own.")
    ] = None,
    seeds: Annotated[int | None, typer.Option(min=1, help="How many; by default as many as the ledger has.")] = None,
    jobs: Jobs = None,
    store: StorePlace = None,
    ledger: Ledger = None,
    as_json: AsJson = False,
) -> None:
    """Rerun at full scale, and compare the verdicts with the ledger's."""
    from plexus.lab._catalogue import find_all
    from plexus.lab._command import measure_again, named
    from plexus.lab._store import Store

    rows, entries, called = _rows(ledger), find_all(names), named(names)
    known = {entry.slug: _row_of(entry, rows) for entry in entries}
    if first_seed is None and any(len(row["seeds"]) < (seeds or 1) for row in known.values()):
        raise RangeError("the ledger has fewer seeds", given=seeds, mend="name the first of them with --first-seed")
    place, answers, measured = Store(store), [], []
    for entry in entries:
        row, answer = measure_again(
            entry, called[entry.slug], known[entry.slug], first_seed=first_seed, seeds=seeds, jobs=jobs, store=place
        )
        measured += [] if row is None else [row]
        answers.append(answer)
    if as_json:
        _emit(answers)
    else:
        _print_rows(measured, rows)
        for answer in answers:
            agrees = "agrees with the ledger" if answer["agrees"] else "differs: " + "; ".join(answer["differences"])
            _console().print(f"{answer['slug']}: {agrees}", markup=False, soft_wrap=True)
    if not all(answer["agrees"] for answer in answers):
        raise typer.Exit(1)


@app.command()
def show(
    name: Annotated[str, typer.Argument(metavar="NAME")],
    out: Annotated[Path | None, typer.Option(help="Write this study's page, with its figures, to a file.")] = None,
    here: Annotated[bool, typer.Option("--here", help="The last run on this store, in place of the ledger.")] = False,
    ledger: Ledger = None,
    store: StorePlace = None,
    as_json: AsJson = False,
) -> None:
    """Claim, measured, verdict, figures of one study."""
    from plexus.lab._catalogue import find

    (entry,) = find(name)[:1]
    rows = _rows(ledger)
    if here:
        from plexus.lab._local import kept_rows
        from plexus.lab._store import Store

        rows = {row["slug"]: row for row in kept_rows(Store(store))}
        if entry.slug not in rows:
            raise UnknownNameError(f"this store holds no run of {entry.slug!r}", mend=f"plexus run {name}")
    if entry.slug not in rows and not as_json and out is None:
        sys.stdout.write(
            f"{entry.slug}: {entry.title}\nclaim: {entry.claim}\n"
            f"not in the ledger yet: plexus run {name}, then plexus show {name} --here\n"
        )
        return
    row = _row_of(entry, rows)
    if out is not None:
        from plexus.lab._files import file_in_writable_folder
        from plexus.lab._ledger import write_row
        from plexus.lab._report import write_report

        with tempfile.TemporaryDirectory() as folder:
            write_row(folder, row)
            write_report(Path(folder), file_in_writable_folder(out))
    if as_json:
        _emit(row)
        return
    from plexus.lab._show import show_row

    show_row(_console(), row)
    if out is not None:
        sys.stdout.write(f"written: {out}\n")


@app.command()
def report(
    out: Annotated[Path, typer.Option(help="The file to write.")] = Path("report.html"),
    here: Annotated[
        bool, typer.Option("--here", help="Show beside the ledger's rows what the last runs on this store measured.")
    ] = False,
    ledger: Ledger = None,
    store: StorePlace = None,
    as_json: AsJson = False,
) -> None:
    """The whole ledger as one page that opens from disk."""
    from plexus.lab._files import file_in_writable_folder
    from plexus.lab._ledger import ledger_folder
    from plexus.lab._local import kept_rows
    from plexus.lab._report import write_report
    from plexus.lab._store import Store

    target = file_in_writable_folder(out)
    measured = kept_rows(Store(store)) if here else []
    folder = ledger_folder(ledger)
    write_report(folder, target, here=measured)
    known = {path.stem for path in folder.glob("*.json")} - {"calibration"}
    studies = len(known | {row["slug"] for row in measured})
    if as_json:
        _emit({"out": str(target), "studies": studies})
    else:
        also = f", {len(measured)} of them also measured here" if measured else ""
        sys.stdout.write(f"written: {target} ({studies} stud{'y' if studies == 1 else 'ies'}{also})\n")


@app.command()
def bench(
    names: Annotated[list[str] | None, typer.Argument(metavar="[NAME…]", help="Benchmarks; all by default.")] = None,
    as_json: AsJson = False,
) -> None:
    """Side by side with the installed peers; prints ratios."""
    from plexus.lab._bench import find_benchmarks, run_benchmark

    for path in find_benchmarks(names or ()):
        lines = []
        for line in run_benchmark(path):
            lines.append(line)
            if as_json:
                _emit(line)
                sys.stdout.flush()
        if lines and not as_json:
            from plexus.lab._show import show_benchmark

            show_benchmark(_console(), lines)


@app.command("atlas")
@_stoppable
def make_atlas(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="digits, facts, a checkpoint, or file.py:function.")],
    out: Annotated[Path, typer.Option(help="Folder of the pages.")] = Path("atlas"),
    texts: Annotated[
        Path | None, typer.Option(help="For a checkpoint: .jsonl, .csv or .tsv of text, label, answer.")
    ] = None,
    samples: Annotated[int, typer.Option(min=20, help="How many samples at most.")] = 400,
    units: Annotated[int, typer.Option(min=0, help="How many units of a larger model to measure; 0: all.")] = 2000,
    as_json: AsJson = False,
) -> None:
    """Pages of the units of a model: what each detects, what it does, what drives it."""
    from plexus.lab._atlas import make

    found, index = make(model, out, texts, samples, units or None)
    _emit({"atlas": repr(found), "page": str(index)}) if as_json else print(f"{found}\nopen {index}")


@app.command()
def cite(name: Annotated[str, typer.Argument(metavar="NAME")], as_json: AsJson = False) -> None:
    """How to cite the paper of a study, and Plexus."""
    from plexus.lab._catalogue import find, load
    from plexus.lab._cite import bibtex, bibtex_plexus

    paper = bibtex(load(find(name)[0]).paper)
    if as_json:
        _emit({"paper": paper, "plexus": bibtex_plexus()})
    else:
        sys.stdout.write(f"{paper}\n\n{bibtex_plexus()}\n")


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """What is installed, which kernels run here, what each missing extra gives."""
    from plexus.lab._doctor import examine

    found = examine()
    if as_json:
        _emit(found)
        return
    from plexus.lab._show import show_doctor

    show_doctor(_console(), found)


@app.command()
@_stoppable
def calibrate(
    seeds: Annotated[int, typer.Option(min=2, help="Seeds per study.")] = 10,
    each: Annotated[int | None, typer.Option(min=1, help="Only so many studies of each kind.")] = None,
    jobs: Jobs = None,
    store: StorePlace = None,
    ledger: Ledger = None,
    as_json: AsJson = False,
) -> None:
    """Put studies of known truth through the lab, and write what it called them to the ledger."""
    from plexus.lab._calibration import calibrate as measure
    from plexus.lab._files import writable
    from plexus.lab._ledger import ledger_folder, write_json
    from plexus.lab._progress import Bars
    from plexus.lab._store import Store

    folder = writable(ledger_folder(ledger))
    with Bars() as bars:
        result = measure(seeds=range(seeds), each=each, jobs=jobs, store=Store(store), progress=bars)
    write_json(folder / "calibration.json", result)
    if as_json:
        _emit(result)
        return
    for kind, counts in result["counts"].items():
        studies = [item for item in result["studies"] if item["kind"] == kind]
        right = sum(sum(item["as_expected"].values()) for item in studies)
        words = ", ".join(f"{count} {word}" for word, count in sorted(counts.items(), key=lambda item: -item[1]))
        answers = f"{len(studies)} studies, {sum(counts.values())} answers"
        sys.stdout.write(f"{kind}: {answers}, {right} as expected: {words}\n")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command; errors of the library become a message and a status."""
    try:
        app(args=list(arguments) if arguments is not None else None, standalone_mode=True)
    except PlexusError as error:
        sys.stderr.write(f"plexus: {error}\n")
        raise SystemExit(2) from None
    except BrokenPipeError:
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
