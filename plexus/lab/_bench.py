"""Side by side with the installed peers: runs the benchmark scripts of a checkout and gathers what they print."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from plexus.errors import PlexusError, UnknownNameError


def benchmarks_folder() -> Path:
    """`benchmarks/` of the checkout that Plexus runs from.

    Raises:
        PlexusError: Plexus was installed from a wheel, which carries no benchmarks.
    """
    folder = Path(__file__).resolve().parents[2] / "benchmarks"
    if not folder.is_dir():
        raise PlexusError(
            "the benchmarks are not part of the installed package",
            mend="run `plexus bench` from a checkout of the source (the source distribution of plexus-nn has them)",
        )
    return folder


def find_benchmarks(names: Sequence[str] = ()) -> list[Path]:
    """The scripts of those names, all of them by default.

    Raises:
        UnknownNameError: there is no such benchmark.
    """
    known = {
        path.stem.replace("_", "-"): path for path in sorted(benchmarks_folder().glob("*.py")) if path.name[0] != "_"
    }
    for name in names:
        if name.replace("_", "-") not in known:
            raise UnknownNameError.among("benchmark", name, known)
    return [known[name.replace("_", "-")] for name in names] if names else list(known.values())


def run_benchmark(path: Path) -> Iterator[dict[str, Any]]:
    """Run one script in a process of its own and yield the JSON objects that it prints, as they come.

    Raises:
        PlexusError: the script fails.
    """
    with subprocess.Popen(
        [sys.executable, str(path)], stdout=subprocess.PIPE, text=True, cwd=path.parent.parent
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            try:
                value = json.loads(line)
            except ValueError:
                print(line, end="", file=sys.stderr)
                continue
            if isinstance(value, dict):
                yield {"benchmark": path.stem, **value}
    if process.returncode != 0:
        raise PlexusError(f"the benchmark {path.stem} failed", given=f"status {process.returncode}")
