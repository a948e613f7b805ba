"""What a measurement ran on: versions of the libraries, and the machine's class in words."""

from __future__ import annotations

import functools
import importlib.metadata
import os
import platform
from pathlib import Path

PACKAGES = ("plexus-nn", "torch", "numpy", "scipy", "numba", "scikit-learn", "transformers")


@functools.lru_cache(maxsize=1)
def _versions() -> tuple[tuple[str, str], ...]:
    found = [("python", platform.python_version())]
    for name in PACKAGES:
        try:
            found.append((name, importlib.metadata.version(name)))
        except importlib.metadata.PackageNotFoundError:
            continue
    return tuple(found)


def versions() -> dict[str, str]:
    """Package → version of what is installed and can change a number.

    Examples:
        >>> "torch" in versions()
        True
    """
    return dict(_versions())


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def machine_class() -> str:
    """The kind of machine in words: CPU, cores, memory. No name, no address.

    Examples:
        >>> "core" in machine_class()
        True
    """
    kind = _cpu() or platform.processor() or platform.machine() or "unknown CPU"
    count = cores()
    memory = _memory()
    size = f", {memory} GB of memory" if memory else ""
    return f"{kind}, {count} core{'s' if count != 1 else ''}{size}"


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return " ".join(names[0].split()) if names else ""


def _memory() -> int:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9)
    except (AttributeError, ValueError, OSError):
        return 0
