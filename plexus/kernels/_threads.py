"""Several threads for one loop: torch's own where they can be had, else a pool of ours.

After every parallel operation torch's OpenMP threads spin for some milliseconds, waiting for the next. Threads of our
own would share the cores with them and run at half speed. So a loop is handed to the very team that spins:
`GOMP_parallel`, the entry point that compiled OpenMP regions use, calls one function on every thread of it.
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

__all__ = ["run_parts"]

_Region = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
_forked = False
_pool: ThreadPoolExecutor | None = None
_pool_size = 0


def _after_fork() -> None:
    """A forked child has neither the team nor the pool of its parent."""
    global _forked, _pool, _pool_size
    _forked, _pool, _pool_size = True, None, 0


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


@lru_cache(maxsize=1)
def _team() -> Callable[..., object] | None:
    """`GOMP_parallel` of the OpenMP library that torch runs on; None where torch runs on something else."""
    if "ATen parallel backend: OpenMP" not in torch.__config__.parallel_info():
        return None
    try:
        maps = Path("/proc/self/maps").read_text().splitlines()
    except OSError:
        return None
    found = sorted({line.split(maxsplit=5)[5] for line in maps if "/libgomp" in line})
    found = [path for path in found if "/torch/" in path] or found  # other packages bring their own
    if len(found) != 1:
        return None
    try:
        call: Any = ctypes.CDLL(found[0]).GOMP_parallel
    except (OSError, AttributeError):
        return None
    call.argtypes = (_Region, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)
    call.restype = None
    return call  # type: ignore[no-any-return]


def run_parts(parts: list[Callable[[], object]]) -> None:
    """Run all parts at once, one per thread; returns when all are done and raises what one of them raised.

    Examples:
        >>> done = []
        >>> run_parts([lambda: done.append(1), lambda: done.append(2)])
        >>> sorted(done)
        [1, 2]
    """
    if len(parts) < 2:
        for part in parts:
            part()
        return
    team = None if _forked else _team()
    if team is None:
        _run_on_pool(parts)
        return
    waiting, errors, lock = list(parts), [], threading.Lock()

    def region(_: int | None) -> None:
        while True:  # a team may turn out smaller than asked for, so each thread takes what is left
            with lock:
                if not waiting:
                    return
                part = waiting.pop()
            try:
                part()
            except BaseException as error:
                errors.append(error)

    team(_Region(region), None, len(parts), 0)
    if errors:
        raise errors[0]


def _run_on_pool(parts: list[Callable[[], object]]) -> None:
    global _pool, _pool_size
    if _pool is None or _pool_size < len(parts) - 1:
        _pool, _pool_size = ThreadPoolExecutor(len(parts) - 1, thread_name_prefix="plexus-kernel"), len(parts) - 1
    others = [_pool.submit(part) for part in parts[1:]]
    parts[0]()
    for other in others:
        other.result()
