"""How a run shows where it is: a line on stderr."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import Any, Protocol


class Progress(Protocol):
    """What the runner tells while it works."""

    def begin(self, study: str, total: int, found: int) -> None:
        """A study begins: number of trials, and how many of them the store already holds."""

    def update(self, study: str, done: int, broken: int, doing: str) -> None:
        """Trials finished (found ones included) and broken so far, and what is going on."""

    def say(self, line: str) -> None:
        """Something worth a line of its own."""


class Silent:
    """Shows nothing."""

    def begin(self, study: str, total: int, found: int) -> None:
        pass

    def update(self, study: str, done: int, broken: int, doing: str) -> None:
        pass

    def say(self, line: str) -> None:
        pass


class Bars:
    """A bar per study on stderr, by rich; plain lines where stderr is no terminal."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as RichProgress

        self._console = Console(file=sys.stderr)
        self._live = self._console.is_terminal
        self._bars: RichProgress = RichProgress(
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[doing]}"),
            console=self._console,
            disable=not self._live,
        )
        self._tasks: dict[str, Any] = {}
        self._totals: dict[str, int] = {}
        self._told: dict[str, int] = {}

    def __enter__(self) -> Bars:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def begin(self, study: str, total: int, found: int) -> None:
        self._totals[study] = total
        self._tasks[study] = self._bars.add_task(study, total=total, completed=found, doing="")
        if not self._live:
            self.say(f"{study}: {total} trials" + (f", {found} of them already in the store" if found else ""))

    def update(self, study: str, done: int, broken: int, doing: str) -> None:
        text = doing + (f" [red]{broken} broken[/red]" if broken else "")
        self._bars.update(self._tasks[study], completed=done, doing=text)
        tenth = 10 * done // max(1, self._totals[study])
        if not self._live and tenth > self._told.get(study, 0):
            self._told[study] = tenth
            self.say(f"{study}: {done}/{self._totals[study]}" + (f", {broken} broken" if broken else ""))

    def say(self, line: str) -> None:
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)
