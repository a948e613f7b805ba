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
    from plexus.lab._runner import Run
    from plexus.lab._store import Store

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
    sys.stdout.write(json.dumps(value, ensure_ascii=False) + "\n")


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
    as_json: AsJson = False,
) -> None:
    """Run studies: what is not in the store yet."""
    from plexus.lab._catalogue import find_all, load
    from plexus.lab._frozen import frozen, refuse_unfrozen
    from plexus.lab._ledger import ledger_folder, write_row
    from plexus.lab._settings import parse_settings
    from plexus.lab._store import Store

    if confirm and (set_ or scale != "full" or seeds != 10 or first_seed):
        raise RangeError(
            "--confirm fixes the seeds, the scale and the settings", mend="leave --set, --scale and --seeds out"
        )
    entries, place = find_all(names), Store(store)
    studies = {entry.slug: load(entry) for entry in entries}
    overrides = {
        entry.slug: parse_settings(studies[entry.slug].Config, set_ or (), study=entry.slug) for entry in entries
    }
    for entry in entries:
        studies[entry.slug].configure(scale, overrides[entry.slug])
    ices: dict[str, Any] = {}
    for entry in entries:
        path = entry.source.path
        ices[entry.slug] = refuse_unfrozen(path, entry.slug) if confirm else frozen(path)
    own = any(entry.source.is_file for entry in entries) and "PLEXUS_LEDGER" not in os.environ
    target = _writable(ledger or (Path("ledger") if own else ledger_folder())) if confirm else None
    rows, broken = [], False
    for entry in entries:
        chosen = (
            _confirming(entry, studies[entry.slug], ices) if confirm else tuple(range(first_seed, first_seed + seeds))
        )
        command = f"plexus run {names[0] if entry.source.is_file else entry.slug} "
        command += "--confirm" if confirm else f"--scale {scale} --seeds {seeds} --first-seed {first_seed}"
        command += "".join(f" --set {item}" for item in set_ or ())
        row = _run_one(entry, place, command, ices[entry.slug], scale, chosen, overrides[entry.slug], jobs, confirm)
        if row is None:
            broken = True
            continue
        broken = broken or bool(row["broken"])
        rows.append(row)
        if target is not None:
            sys.stderr.write(f"written: {write_row(target, row)}\n")
    if as_json:
        _emit(rows)
    else:
        _print_rows(rows)
    if broken:
        raise typer.Exit(3)


def _confirming(entry: Entry, study: Any, ices: dict[str, Any]) -> tuple[int, ...]:
    from plexus.lab._frozen import confirming_seeds

    return confirming_seeds(entry.slug, ices[entry.slug].commit, study.seeds)


def _run_one(
    entry: Entry,
    store: Store,
    command: str,
    ice: Any,
    scale: str,
    seeds: Sequence[int],
    overrides: dict[str, Any],
    jobs: int | None,
    confirm: bool = False,
) -> dict[str, Any] | None:
    """The row of one study; None where the study cannot be run at all, with the reason on stderr."""
    from plexus.lab._crew import BrokenStudy
    from plexus.lab._local import keep_row
    from plexus.lab._progress import Bars
    from plexus.lab._row import make_row
    from plexus.lab._runner import run_study

    try:
        with Bars() as bars:
            result: Run = run_study(
                entry, scale=scale, seeds=tuple(seeds), overrides=overrides, jobs=jobs, store=store, progress=bars
            )
    except BrokenStudy as error:
        sys.stderr.write(f"{entry.slug} is broken: {error}\n")
        return None
    for item in result.broken:
        sys.stderr.write(f"\n{entry.slug}: {item.arm}, seed {item.seed}: {item.error}\n{item.traceback}\n")
    row = make_row(result, frozen=ice, confirming=confirm, command=command)
    keep_row(store, row)
    return row


def _print_rows(rows: Sequence[dict[str, Any]]) -> None:
    from plexus.lab._show import show_checks, show_verdicts

    console = _console()
    for row in rows:
        console.print(f"[bold]{row['slug']}[/]")
        show_checks(console, row)
        console.print()
    show_verdicts(console, rows)


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
    from plexus.lab._frozen import frozen
    from plexus.lab._row import differences
    from plexus.lab._store import Store

    rows, entries, place = _rows(ledger), find_all(names), Store(store)
    known = {entry.slug: _row_of(entry, rows) for entry in entries}
    answers: list[dict[str, Any]] = []
    measured = []
    for entry in entries:
        old = known[entry.slug]
        count = seeds or len(old["seeds"])
        chosen = old["seeds"][:count] if first_seed is None else range(first_seed, first_seed + count)
        ice = frozen(entry.source.path)
        row = _run_one(entry, place, f"plexus verify {entry.slug}", ice, old["scale"], tuple(chosen), {}, jobs)
        lines = ["it cannot be run"] if row is None else differences(row, old)
        if row is not None:
            measured.append(row)
        if old["frozen"] and ice and ice.commit != old["frozen"]["commit"]:
            sys.stderr.write(f"{entry.slug}: protocol or bars changed since the ledger's row was measured\n")
        words = {q: row["verdicts"][q]["word"] for q in ("mechanism", "advantage")} if row else {}
        told = {q: old["verdicts"][q]["word"] for q in ("mechanism", "advantage")}
        answers.append({"slug": entry.slug, "agrees": not lines, "ledger": told, "here": words, "differences": lines})
    if as_json:
        _emit(answers)
    else:
        _print_rows(measured)
        for answer in answers:
            agrees = "agrees with the ledger" if answer["agrees"] else "differs: " + "; ".join(answer["differences"])
            _console().print(f"{answer['slug']}: {agrees}", markup=False, soft_wrap=True)
    if not all(answer["agrees"] for answer in answers):
        raise typer.Exit(1)


@app.command()
def show(
    name: Annotated[str, typer.Argument(metavar="NAME")],
    out: Annotated[Path | None, typer.Option(help="Write this study's page, with its figures, to a file.")] = None,
    ledger: Ledger = None,
    as_json: AsJson = False,
) -> None:
    """Claim, measured, verdict, figures of one study."""
    from plexus.lab._catalogue import find

    (entry,) = find(name)[:1]
    rows = _rows(ledger)
    if entry.slug not in rows and not as_json and out is None:
        sys.stdout.write(
            f"{entry.slug}: {entry.title}\nclaim: {entry.claim}\nnot measured yet: plexus run {entry.slug}\n"
        )
        return
    row = _row_of(entry, rows)
    if out is not None:
        from plexus.lab._ledger import write_row
        from plexus.lab._report import write_report

        with tempfile.TemporaryDirectory() as folder:
            write_row(folder, row)
            write_report(Path(folder), _parent_of(out))
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
        bool, typer.Option("--here", help="Show the last runs in the store in place of the ledger's rows.")
    ] = False,
    ledger: Ledger = None,
    store: StorePlace = None,
    as_json: AsJson = False,
) -> None:
    """The whole ledger as one page that opens from disk."""
    from plexus.lab._ledger import ledger_folder
    from plexus.lab._local import assemble
    from plexus.lab._report import write_report
    from plexus.lab._store import Store

    folder = ledger_folder(ledger)
    target = _parent_of(out)
    with tempfile.TemporaryDirectory() as temporary:
        if here:
            folder = assemble(folder, Store(store), temporary)
        studies = len(list(folder.glob("*.json"))) - (folder / "calibration.json").exists()
        write_report(folder, target)
    if as_json:
        _emit({"out": str(target), "studies": studies})
    else:
        sys.stdout.write(f"written: {target} ({studies} studies)\n")


def _parent_of(path: Path) -> Path:
    """The path, if a file can be written there."""
    if path.is_dir():
        raise RangeError(f"{path} is a folder", expected="the name of a file")
    _writable(path.absolute().parent)
    return path


def _writable(folder: Path) -> Path:
    """The folder, made where it is missing, if it can be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise PlexusError(f"the folder {folder} cannot be written", given=error, mend="name another one") from error
    return folder


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
    from plexus.lab._ledger import ledger_folder, write_json
    from plexus.lab._progress import Bars
    from plexus.lab._store import Store

    folder = _writable(ledger_folder(ledger))
    with Bars() as bars:
        result = measure(seeds=range(seeds), each=each, jobs=jobs, store=Store(store), progress=bars)
    write_json(folder / "calibration.json", result)
    if as_json:
        _emit(result)
        return
    for kind, counts in result["counts"].items():
        total = sum(counts.values())
        words = ", ".join(f"{count} {word}" for word, count in sorted(counts.items(), key=lambda item: -item[1]))
        sys.stdout.write(f"{kind}: {total} studies, called: {words}\n")


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
