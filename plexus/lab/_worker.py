"""A worker process: imports one study, runs its trials one after the other, and dies with its parent."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from multiprocessing import parent_process
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from plexus.lab._catalogue import Entry, load
from plexus.lab._code import Code, relevant_modules
from plexus.lab._machine import versions
from plexus.lab._prepared import PreparedCache
from plexus.lab._settings import from_json
from plexus.lab._store import Finished, Store, Trial, digest
from plexus.lab._study import Study
from plexus.lab._trial import run_prepare, run_trial, run_tune

THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")


@dataclass(frozen=True)
class Job:
    """What a worker works for: one study at one scale, on one store, and the code that the keys are made from."""

    entry: Entry
    store: str
    scale: str
    overrides: Mapping[str, Any]
    code: Code
    base_hash: str


@dataclass(frozen=True)
class Task:
    """One trial, or (`trial` is None) the tuning."""

    trial: Trial | None
    code: Code
    job: Job


@dataclass(frozen=True)
class Report:
    """What came of a task. `error` is one line; `late` are modules that the key did not know of."""

    task: Task
    key: str = ""
    error: str = ""
    traceback: str = ""
    late: Mapping[str, str] | None = None


def work(connection: Connection, job: Job) -> None:
    """The worker's life: "ready" (or what went wrong), then a report per task, until told to stop.

    It serves the studies of one module, so that what is loaded is what a fresh process would load.
    """
    threading.Thread(target=_die_with_parent, daemon=True).start()
    with contextlib.suppress(ValueError):
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.dup2(2, 1)  # what a study prints must not mix with the run's own output
    try:
        load(job.entry)
        if Code(job.code.modules, {}).base_hash != job.base_hash:
            raise RuntimeError("the code changed while the run was starting; run it again")
        store = Store(job.store)
    except BaseException:
        connection.send(("failed", _trace()))
        return
    connection.send(("ready", ""))
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        while (task := connection.recv()) is not None:
            connection.send(("report", _perform(store, task, connection)))


def _die_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


def _perform(store: Store, task: Task, connection: Connection) -> Report:
    started = time.perf_counter()
    job = task.job
    slug = job.entry.slug
    try:
        study = load(job.entry)
        base = study.configure(job.scale, job.overrides)
        if task.trial is None:
            tuning = run_tune(study, base)
            late, code = _late(store, job, task)
            key = tuning_key(job, code)
            store.save_tuning(slug, key, tuning, time.perf_counter() - started)
            return Report(task, key, late=late)
        trial = task.trial
        arm = study.arm(trial.arm)
        config = study.configure(job.scale, job.overrides, arm.overrides, from_json(study.Config, trial.tuned))
        prepared = None
        if study.prepare is not Study.prepare:
            name = prepared_key(job, base, trial.seed, task.code)
            prepared = PreparedCache(store.prepared_folder).get(name, lambda: run_prepare(study, base, trial.seed))
        connection.send(("prepared", None))
        outcome = run_trial(study, config, prepared, trial.seed)
        late, code = _late(store, job, task)
        key = trial.key(code.hash)
        store.save_trial(slug, key, Finished(outcome, time.perf_counter() - started, versions()))
        return Report(task, key, late=late)
    except (Exception, SystemExit) as error:
        line = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}".rstrip(": ")
        return Report(task, error=line, traceback=_trace())


_looked: dict[str, frozenset[str]] = {}
"""Study → the names of the loaded modules when all that count were last found to be known."""


def _late(store: Store, job: Job, task: Task) -> tuple[dict[str, str] | None, Code]:
    """Modules loaded that the key does not cover; noted in the store before anything is saved under it."""
    names = frozenset(sys.modules)
    if _looked.get(job.entry.slug) == names:
        return None, task.code
    known = {**task.code.modules, **task.code.extras}
    late = {name: path for name, path in relevant_modules(job.entry.source).items() if name not in known}
    if not late:
        _looked[job.entry.slug] = names
        return None, task.code
    code = task.code.with_extras(late)
    store.save_late(job.entry.slug, code)
    return late, code


def tuning_key(job: Job, code: Code) -> str:
    """The name of a tuning: study, scale, overrides, code."""
    return digest("tune", job.entry.slug, job.scale, job.overrides, code.hash)


def prepared_key(job: Job, config: Any, seed: int, code: Code) -> str:
    """The name of what `prepare` returns: study, settings without the arms', seed, code."""
    return digest("prepare", job.entry.slug, settings(config), seed, code.hash)


def settings(config: Any) -> dict[str, Any]:
    """The fields of a `Config`."""
    return {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}


def _trace() -> str:
    """The traceback being handled, without this machine's paths."""
    text = traceback.format_exc()
    roots = sorted(
        {str(Path(__file__).resolve().parents[2]), sys.prefix, sys.base_prefix, str(Path.home())}, key=len, reverse=True
    )
    for root in roots:
        if len(root) > 1:
            text = text.replace(root + os.sep, "")
    return text
