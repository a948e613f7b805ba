"""A line that says how far a long run is; nothing for a short one, and nothing where nobody looks."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any

PATIENCE = 2.0  # seconds before a run counts as long


def tracked(items: Iterable[Any], what: str, total: int | None, show: bool | None) -> Iterator[Any]:
    """The items, with a progress line on stderr.

    Args:
        items: to iterate.
        what: a word for the line.
        total: how many there are, if known.
        show: `True` and `False` force the line on and off; `None` shows it on a terminal, after two seconds.
    """
    if show is False or (show is None and not sys.stderr.isatty()):
        yield from items
        return
    begun, bar, task = time.monotonic(), None, None
    try:
        for done, item in enumerate(items):
            if bar is None and (show or time.monotonic() - begun > PATIENCE):
                from rich.console import Console
                from rich.progress import Progress

                bar = Progress(console=Console(file=sys.stderr), transient=show is None)
                bar.start()
                task = bar.add_task(what, total=total, completed=done)
            yield item
            if bar is not None and task is not None:
                bar.update(task, completed=done + 1)
    finally:
        if bar is not None:
            bar.stop()


def length(items: object) -> int | None:
    """How many items there are, where that is known without iterating."""
    try:
        return len(items)  # type: ignore[arg-type]
    except TypeError:
        return None
