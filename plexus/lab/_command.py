"""What `plexus run` and `plexus verify` do with one study, and how the command writes it down."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from plexus.errors import PlexusError
from plexus.lab._catalogue import Entry, find
from plexus.lab._code import file_hash
from plexus.lab._crew import BrokenStudy
from plexus.lab._frozen import Frozen, frozen
from plexus.lab._ledger import Row
from plexus.lab._local import keep_row
from plexus.lab._progress import Bars
from plexus.lab._row import differences, make_row
from plexus.lab._runner import run_study
from plexus.lab._store import Store
from plexus.lab._study import Tuning
from plexus.lab._verdict import QUESTIONS


@dataclass(frozen=True)
class Request:
    """One study as it was asked for, and the name by which the command finds it again."""

    entry: Entry
    name: str
    scale: str
    seeds: tuple[int, ...]
    overrides: Mapping[str, Any]
    frozen: Frozen | None
    confirm: bool = False
    tuning: Tuning | None = None


def named(names: Sequence[str]) -> dict[str, str]:
    """Slug → the name that finds this study alone, as a shell reads it."""
    found: dict[str, str] = {}
    for name in names:
        entries = find(name)
        for entry in entries:
            alone = name if entry.source.is_file else entry.slug
            if len(entries) > 1 and entry.source.is_file:
                alone = f"{name.partition('::')[0]}::{entry.slug}"
            found.setdefault(entry.slug, shlex.quote(alone))
    return found


def words_of(request: Request, settings: Sequence[str] = ()) -> str:
    """The command that runs a request again."""
    parts = [f"plexus run {request.name}"]
    if request.confirm:
        parts.append("--confirm")
    else:
        parts.append(f"--scale {request.scale} --seeds {len(request.seeds)} --first-seed {request.seeds[0]}")
    parts += ["--tuning ledger"] if request.tuning is not None else []
    parts += [f"--set {shlex.quote(item)}" for item in settings]
    return " ".join(parts)


def tuning_of(row: Row, entry: Entry, scale: str) -> Tuning:
    """What the ledger's run of a study chose, for a run that does not tune again.

    Raises:
        PlexusError: the ledger's run was at another scale, or the study has changed since, so that what it chose may
            not be what the study would choose.
    """
    if row["scale"] != scale:
        raise PlexusError(
            f"the ledger's run of {entry.slug} tuned at another scale", given=scale, expected=row["scale"]
        )
    if row["study_hash"] != file_hash(entry.source.path):
        raise PlexusError(
            f"{entry.slug} has changed since the ledger's run, so what that run chose is not taken over",
            mend="leave --tuning ledger out",
        )
    chosen = {arm["name"]: arm["tuned"] for arm in row["arms"] if arm["tuned"]}
    budget = {arm["name"]: arm["budget"] for arm in row["arms"] if arm["budget"] is not None}
    return Tuning(chosen, budget, "chosen by the ledger's run")


def measure(request: Request, command: str, *, jobs: int | None, store: Store) -> Row | None:
    """Run one study and keep its row in the store; None where it cannot be run at all, with the reason on stderr."""
    slug = request.entry.slug
    try:
        with Bars() as bars:
            run = run_study(
                request.entry,
                scale=request.scale,
                seeds=request.seeds,
                overrides=request.overrides,
                jobs=jobs,
                store=store,
                progress=bars,
                tuning=request.tuning,
            )
    except BrokenStudy as error:
        sys.stderr.write(f"{slug} is broken: {error}\n")
        return None
    for item in run.broken:
        sys.stderr.write(f"\n{slug}: {item.arm}, seed {item.seed}: {item.error}\n{item.traceback}\n")
    row = make_row(run, frozen=request.frozen, confirming=request.confirm, command=command)
    keep_row(store, row)
    return row


def measure_again(
    entry: Entry,
    name: str,
    old: Row,
    *,
    first_seed: int | None,
    seeds: int | None,
    jobs: int | None,
    store: Store,
) -> tuple[Row | None, dict[str, Any]]:
    """Rerun what a row of the ledger measured: the new row, and the two compared."""
    count = seeds or len(old["seeds"])
    chosen = old["seeds"][:count] if first_seed is None else range(first_seed, first_seed + count)
    request = Request(entry, name, old["scale"], tuple(chosen), {}, frozen(entry.source.path))
    command = f"plexus verify {name} --seeds {count}"
    command += "" if first_seed is None else f" --first-seed {first_seed}"
    row = measure(request, command, jobs=jobs, store=store)
    lines = ["it cannot be run"] if row is None else differences(row, old)
    if old.get("frozen") and request.frozen and request.frozen.commit != old["frozen"]["commit"]:
        sys.stderr.write(f"{entry.slug}: protocol or bars changed since the ledger's row was measured\n")
    told, words = (
        {} if r is None else {question: r["verdicts"][question]["word"] for question in QUESTIONS} for r in (old, row)
    )
    return row, {"slug": entry.slug, "agrees": not lines, "ledger": told, "here": words, "differences": lines}
