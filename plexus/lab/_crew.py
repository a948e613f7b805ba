"""Worker processes as their parent sees them: starting, telling, hearing, stopping."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from multiprocessing.connection import Connection
from typing import Any

from plexus.errors import PlexusError
from plexus.lab._worker import THREADS, Job, Task, work


class BrokenStudy(PlexusError):
    """A study that cannot be run at all: it does not import, its tuning raises, or its workers die at the start."""


class Worker:
    """A worker process as its parent sees it."""

    def __init__(self, job: Job) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection: Connection
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=work, args=(theirs, job), name=f"plexus {job.entry.slug}")
        self.ready = False
        self.task: Task | None = None
        self.preparing: str | None = None
        try:
            with quiet_start():
                self.process.start()
        except BaseException:
            self.stop()  # nobody else knows of it yet
            raise
        finally:
            theirs.close()

    def give(self, task: Task) -> None:
        self.task = task
        with contextlib.suppress(OSError):  # a dead worker is noticed when it is listened to
            self.connection.send(task)

    def hear(self, timeout: float) -> list[tuple[str, Any]]:
        """Its messages, waiting for the first one; "died" comes after a dead one's last words."""
        heard: list[tuple[str, Any]] = []
        alive = self.process.is_alive()
        try:
            while self.connection.poll(timeout if alive and not heard else 0.0):
                message, content = self.connection.recv()
                self.ready = self.ready or message == "ready"
                heard.append((message, content))
        except (EOFError, ConnectionResetError):
            self.process.join(5.0)
            alive = False
        if not alive:
            heard.append(("died", cause_of_death(self.process.exitcode)))
        return heard

    def stop(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            self.connection.close()
        if self.process.pid is None:
            return
        if self.process.is_alive():
            self.process.kill()
        self.process.join()


class Crew:
    """Worker processes that outlive one study, for several studies of the same module; stopped on exit."""

    def __init__(self) -> None:
        self.workers: list[Worker] = []

    def __enter__(self) -> Crew:
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    def stop(self, *, only_busy: bool = False) -> None:
        """Stop the workers, or only those with a task."""
        for worker in list(self.workers):
            if worker.task is not None or not only_busy:
                self.workers.remove(worker)
                worker.stop()


@contextlib.contextmanager
def quiet_start() -> Iterator[None]:
    """The child starts with Ctrl-C held off (its parent stops it), one thread per library, and one order of sets.

    What would stop the parent waits until the child has been started whole. Blocking the signal is not enough for
    that: any other thread of the process may be handed it, and Python then raises in the main thread all the same.
    """
    fixed = {**dict.fromkeys(THREADS, "1"), "PYTHONHASHSEED": "0"}
    before = {name: os.environ.get(name) for name in fixed}
    os.environ.update(fixed)
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT}) if hasattr(signal, "pthread_sigmask") else None
    held: list[int] = []
    handlers: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        for number, handler in handlers.items():
            if callable(handler):
                signal.signal(number, lambda number, frame: held.append(number))
    try:
        yield
    finally:
        for number, handler in handlers.items():
            if callable(handler):
                signal.signal(number, handler)
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
        if mask is not None:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    if held:
        raise KeyboardInterrupt


def cause_of_death(code: int | None) -> str:
    if code is not None and code < 0:
        try:
            name = signal.Signals(-code).name
        except ValueError:
            name = f"signal {-code}"
        return f"was killed by {name}" + (" (out of memory?)" if name == "SIGKILL" else "")
    return f"ended with status {code}"
