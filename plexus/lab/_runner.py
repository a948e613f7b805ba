"""The runner: the trials of one study over parallel worker processes.

Workers are spawned, one pool per study, one thread each. A worker writes each finished trial itself, so that killing
the run at any moment loses only what was under way. A worker that dies takes one trial with it, which is tried once
more and then reported broken. Trials that another living run on the same store has claimed are left to it; this run
waits for their files only when nothing else is left to do, and takes them over when that run dies.
"""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from multiprocessing.connection import wait
from types import FrameType
from typing import Any

from plexus.errors import PlexusError, RangeError
from plexus.lab._catalogue import Entry, load
from plexus.lab._crew import BrokenStudy, Crew, Worker
from plexus.lab._machine import cores
from plexus.lab._prepared import cap_in_bytes
from plexus.lab._progress import Progress, Silent
from plexus.lab._run import Broken, Run
from plexus.lab._settings import from_json
from plexus.lab._store import Store, Trial
from plexus.lab._study import Study, Tuning
from plexus.lab._trial import check_seed
from plexus.lab._worker import Job, Report, Task, tuning_key

POLL = 0.25
TRIES = 2


def run_study(
    entry: Entry,
    *,
    scale: str = "full",
    seeds: Sequence[int] = tuple(range(10)),
    overrides: Mapping[str, Any] | None = None,
    jobs: int | None = None,
    store: Store | None = None,
    progress: Progress | None = None,
    crew: Crew | None = None,
    tuning: Tuning | None = None,
) -> Run:
    """Run all trials of a study that the store does not hold yet, and return them all.

    Args:
        entry: the study, from `find`.
        scale: a name in the study's `scales`.
        seeds: which seeds.
        overrides: settings below those of the arms.
        jobs: worker processes; default one per core.
        store: default the one of the working directory.
        progress: who is told.
        crew: workers to use and to leave running, for several studies of one module.
        tuning: settings chosen before, in place of tuning here.

    Raises:
        DtypeError, RangeError: a seed is not an integer, is negative or comes twice; `jobs` is below 1;
            `PLEXUS_CACHE_GB` is not a number of gigabytes.
        UnknownNameError: the scale, or a setting, does not exist.
        BrokenStudy: the study cannot be imported, its tuning broke, or no worker starts.
        KeyboardInterrupt: on Ctrl-C or SIGTERM, after the workers are stopped; finished trials are kept.
    """
    if jobs is not None and jobs < 1:
        raise RangeError("the number of jobs", given=jobs, expected="at least 1")
    seeds = tuple(check_seed(seed) for seed in seeds)
    if len(set(seeds)) != len(seeds) or not seeds:
        raise RangeError("seeds are distinct, and at least one", given=list(seeds))
    cap_in_bytes()
    store = store or Store()
    began = time.perf_counter()
    try:
        code = store.code(entry.slug, entry.source)
    except PlexusError as error:
        raise BrokenStudy(error.what, given=error.given) from error
    study = load(entry)
    study.configure(scale, overrides or {})
    run = Run(entry, study, scale, seeds, dict(overrides or {}), code=code)
    pool = _Pool(run, store, progress or Silent(), jobs or cores(), crew or Crew())
    with _terminable():
        try:
            if tuning is None:
                pool.tune()
            else:
                run.tuning, run.tuning_seconds = tuning, 0.0
            pool.trials()
        finally:
            pool.close(keep=crew is not None)
    order = {arm.name: i for i, arm in enumerate(study.arms)}
    run.broken.sort(key=lambda item: (order[item.arm], item.seed))
    run.code = pool.code
    run.seconds = time.perf_counter() - began
    return run


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM ends a run as Ctrl-C does."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class _Pool:
    """The workers of one study, and what they have still to do."""

    def __init__(self, run: Run, store: Store, progress: Progress, jobs: int, crew: Crew) -> None:
        self.run, self.store, self.progress, self.jobs = run, store, progress, jobs
        self.code = run.code
        self.slug = run.entry.slug
        self.claims = store.claims()
        self.crew = crew
        self.workers = crew.workers
        self.deaths = 0
        self.job = Job(run.entry, store.where, run.scale, run.overrides, run.code, run.code.base_hash)
        self.pending: list[Trial] = []
        self.elsewhere: list[Trial] = []
        self.tries: dict[tuple[str, int], int] = {}
        self.prepared: dict[int, str] = {}
        self.total = 0
        self.done = 0

    # tuning

    def tune(self) -> None:
        """Tune once per study, scale, overrides and code; what is found in the store is used."""
        study = self.run.study
        if study.tune is Study.tune:
            return
        waiting = False
        while True:
            key = tuning_key(self.job, self.code)
            found = self.store.load_tuning(self.slug, key)
            if found is not None:
                self.run.tuning, self.run.tuning_seconds = found
                return
            if self.claims.take(key):
                break
            if not waiting:
                self.progress.say(f"{self.slug}: another run is tuning; waiting for it")
            waiting = True
            time.sleep(POLL)
        self.progress.say(f"{self.slug}: tuning")
        for _ in range(TRIES):
            report = self._one(Task(None, self.code, self.job))
            if report is not None:
                break
        else:
            report = Report(
                Task(None, self.code, self.job), error="the worker that tuned died twice (killed, or out of memory)"
            )
        self.claims.release(key)
        if report.error:
            raise BrokenStudy(f"tuning of {self.slug} broke: {report.error}", given="\n" + report.traceback)
        self._learn(report)
        found = self.store.load_tuning(self.slug, report.key)
        if found is None:
            raise PlexusError(f"the store {self.store.where} lost what tuning of {self.slug} chose")
        self.run.tuning, self.run.tuning_seconds = found

    def _one(self, task: Task) -> Report | None:
        """One task on one worker; None where the worker died."""
        worker = next((worker for worker in self.workers if worker.ready), None) or self._start()
        if worker.ready:
            worker.give(task)
        while True:
            for message, content in self._listen([worker]):
                if message == "ready":
                    worker.give(task)
                elif message == "report":
                    worker.task = None
                    assert isinstance(content, Report)
                    return content
                elif message == "died":
                    self.workers.remove(worker)
                    worker.stop()
                    return None

    # trials

    def trials(self) -> None:
        """Run what is not in the store."""
        run, chosen = self.run, self.run.tuning.chosen
        for seed in run.seeds:
            for arm in run.study.arms:
                tuned = from_json(run.study.Config, chosen.get(arm.name, {}))
                trial = Trial(self.slug, arm.name, seed, run.scale, run.overrides, tuned)
                self.total += 1
                if not self._collect(trial):
                    self.pending.append(trial)
        run.found = self.done
        self.progress.begin(self.slug, self.total, run.found)
        while self.pending or self.elsewhere or any(worker.task for worker in self.workers):
            self._look_elsewhere()
            self._hand_out()
            for message, content, worker in self._events():
                self._handle(message, content, worker)
            self.claims.beat()

    def _collect(self, trial: Trial) -> bool:
        """Take a finished trial from the store."""
        finished = self.store.load_trial(self.slug, trial.key(self.code.hash))
        if finished is None:
            return False
        self.run.trials.setdefault(trial.arm, {})[trial.seed] = finished
        self.done += 1
        return True

    def _look_elsewhere(self) -> None:
        """Trials that another run has claimed: finished by now, given up, or still under way."""
        for trial in list(self.elsewhere):
            if self._collect(trial):
                self.elsewhere.remove(trial)
                self._tell("")
            elif self.claims.is_stale(trial.key(self.code.hash)):
                self.elsewhere.remove(trial)
                self.pending.append(trial)

    def _hand_out(self) -> None:
        wanted = min(self.jobs, len(self.pending) + sum(worker.task is not None for worker in self.workers))
        while len(self.workers) < wanted:
            self._start()
        for worker in self.workers:
            if worker.ready and worker.task is None:
                trial = self._next()
                if trial is None:
                    return
                state = self.prepared.get(trial.seed)
                if state is None:
                    self.prepared[trial.seed] = "under way"
                    worker.preparing = str(trial.seed)
                self._tell(f"{trial.arm}, seed {trial.seed}")
                worker.give(Task(trial, self.code, self.job))

    def _next(self) -> Trial | None:
        """The next trial nobody has claimed: of a seed that is prepared, else of one that nobody prepares just now."""
        order = sorted(self.pending, key=lambda trial: {"ready": 0, None: 1}.get(self.prepared.get(trial.seed), 2))
        for trial in order:
            if self.prepared.get(trial.seed) == "under way":
                return None
            if self.claims.take(trial.key(self.code.hash)):
                self.pending.remove(trial)
                if self._collect(trial):  # finished by another run since we looked
                    self.claims.release(trial.key(self.code.hash))
                    self._tell("")
                    continue
                return trial
            self.pending.remove(trial)
            self.elsewhere.append(trial)
        return None

    def _handle(self, message: str, content: Any, worker: Worker) -> None:
        if message == "prepared" and worker.preparing is not None:
            self.prepared[int(worker.preparing)] = "ready"
            worker.preparing = None
        elif message == "report":
            self._finish(content, worker)
        elif message == "died":
            self._bury(worker, str(content))

    def _finish(self, report: Report, worker: Worker) -> None:
        trial = report.task.trial
        assert trial is not None
        worker.task = None
        self._prepared_or_not(worker)
        self.claims.release(trial.key(report.task.code.hash))
        if report.error:
            self._break(trial, report.error, report.traceback)
            return
        self._learn(report)
        key = trial.key(self.code.hash)
        self.store.copy_trial(self.slug, report.key, key)
        if self._collect(trial):
            self.run.ran += 1
        else:
            self._break(trial, f"the store {self.store.where} lost the finished trial", "")
        self._tell("")

    def _prepared_or_not(self, worker: Worker) -> None:
        """A trial that ended before its `prepare` did leaves the seed to the next one."""
        if worker.preparing is not None:
            self.prepared.pop(int(worker.preparing), None)
            worker.preparing = None

    def _learn(self, report: Report) -> None:
        """A trial loaded modules that the keys did not cover: all finished trials of this code go under new keys."""
        if not report.late:
            return
        before = self.code
        self.code = before.with_extras(report.late)
        if self.code.hash == before.hash:
            return
        self.progress.say(f"{self.slug}: loaded while running, now part of the key: {', '.join(sorted(report.late))}")
        if report.task.trial is None:
            return
        for arm, by_seed in self.run.trials.items():
            for seed in by_seed:
                tuned = from_json(self.run.study.Config, self.run.tuning.chosen.get(arm, {}))
                trial = Trial(self.slug, arm, seed, self.run.scale, self.run.overrides, tuned)
                self.store.copy_trial(self.slug, trial.key(before.hash), trial.key(self.code.hash))
        tuned_before = self.store.load_tuning(self.slug, tuning_key(self.job, before))
        if tuned_before is not None:
            self.store.save_tuning(self.slug, tuning_key(self.job, self.code), *tuned_before)

    def _break(self, trial: Trial, error: str, traceback: str) -> None:
        self.run.broken.append(Broken(trial.arm, trial.seed, error, traceback))
        record = {"arm": trial.arm, "seed": trial.seed, "scale": trial.scale, "error": error, "traceback": traceback}
        self.store.save_broken(self.slug, trial.key(self.code.hash), record)
        self.progress.say(f"{self.slug}: {trial.arm}, seed {trial.seed} broke: {error}")
        self._tell("")

    def _bury(self, worker: Worker, how: str) -> None:
        """A worker died. Its trial is tried once more; three deaths in a row before any work end the run."""
        self.workers.remove(worker)
        worker.stop()
        self._prepared_or_not(worker)
        if worker.task is None:
            self.deaths += 1
            if self.deaths >= 3:
                raise BrokenStudy(f"workers of {self.slug} die before they work", given=how)
            return
        trial, code = worker.task.trial, worker.task.code
        assert trial is not None
        self.claims.release(trial.key(code.hash))
        place = (trial.arm, trial.seed)
        self.tries[place] = self.tries.get(place, 0) + 1
        if self.tries[place] < TRIES:
            self.progress.say(f"{self.slug}: the worker of {trial.arm}, seed {trial.seed} {how}; trying once more")
            self.pending.append(trial)
        else:
            self._break(trial, f"its worker {how}, twice", "")

    def _tell(self, doing: str) -> None:
        self.progress.update(self.slug, self.done, len(self.run.broken), doing)

    # workers

    def _start(self) -> Worker:
        worker = Worker(self.job)
        self.workers.append(worker)
        return worker

    def _events(self) -> list[tuple[str, Any, Worker]]:
        return [(m, c, w) for w in list(self.workers) for m, c in self._listen([w], 0.0)] or self._wait()

    def _wait(self) -> list[tuple[str, Any, Worker]]:
        ready = [w.connection for w in self.workers]
        if ready:
            wait([*ready, *(w.process.sentinel for w in self.workers)], timeout=POLL)
        else:
            time.sleep(POLL)
        return [(m, c, w) for w in list(self.workers) for m, c in self._listen([w], 0.0)]

    def _listen(self, workers: Sequence[Worker], timeout: float = POLL) -> list[tuple[str, Any]]:
        """What these workers have to say; one that could not start ends the run."""
        heard: list[tuple[str, Any]] = []
        for worker in workers:
            for message, content in worker.hear(timeout):
                if message == "failed":
                    raise BrokenStudy(f"a worker of {self.slug} could not start", given="\n" + content)
                if message == "ready":
                    self.deaths = 0
                heard.append((message, content))
        self.claims.beat()
        return heard

    def close(self, *, keep: bool) -> None:
        """Stop the workers (those to be kept only if they are busy) and give up all claims."""
        self.crew.stop(only_busy=keep)
        self.claims.release_all()
