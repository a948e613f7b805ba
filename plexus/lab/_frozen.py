"""Frozen bars: which commit last changed a study, and the confirming seeds that follow from it.

The frozen commit is the oldest one since which the study's file, and the private modules beside it that it imports,
have had the syntax trees that they have now, docstrings and comments left aside. The confirming seeds are the first
fitting numbers of sha256(slug, commit, i), so that nobody can choose them: below 2³¹, not below 1000 (those are for
building a study), and none of the tuning seeds.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from plexus.errors import PlexusError, RangeError
from plexus.lab._code import tree_hash
from plexus.lab._study import TUNING_SEEDS

BUILDING_SEEDS = range(1000)
"""Seeds for building a study; no confirming run uses them."""


@dataclass(frozen=True)
class Frozen:
    """The commit that last changed protocol or bars, and its date."""

    commit: str
    date: str


def _git(folder: Path, *arguments: str) -> bytes | None:
    """Output of git in a folder; None without git, outside a checkout, or where it fails."""
    try:
        answer = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, check=False)
    except OSError:
        return None
    return answer.stdout if answer.returncode == 0 else None


@functools.lru_cache(maxsize=64)
def _root(folder: Path) -> Path | None:
    answer = _git(folder, "rev-parse", "--show-toplevel")
    return Path(answer.decode().strip()) if answer else None


def head(path: str | Path) -> str | None:
    """The commit checked out where this file lies; None without git."""
    answer = _git(Path(path).parent, "rev-parse", "HEAD")
    return answer.decode().strip() if answer else None


def checkout_of(path: str | Path) -> Path | None:
    """The root of the checkout that tracks this file; None where none does."""
    path = Path(path)
    tracked = _git(path.parent, "ls-files", "--error-unmatch", path.name)
    return _root(path.parent) if tracked else None


def is_clean(modules: Mapping[str, str]) -> bool | None:
    """Whether all of these files are as committed; None where git cannot tell."""
    paths = sorted(modules.values())
    root = checkout_of(paths[0]) if paths else None
    if root is None:
        return None
    inside = [path for path in paths if Path(path).is_relative_to(root)]
    answer = _git(root, "status", "--porcelain", "--", *inside)
    return None if answer is None else not answer.strip()


def protocol_files(path: str | Path) -> tuple[Path, ...]:
    """The files that fix a study's protocol: its own, then the private modules of its folder that these import."""
    found = [Path(path).resolve()]
    for file in found:
        for node in ast.walk(ast.parse(file.read_bytes())):
            if not isinstance(node, ast.Import | ast.ImportFrom):
                continue
            module = (node.module or "") if isinstance(node, ast.ImportFrom) else ""
            names = [module, *(alias.name for alias in node.names)]
            for name in (part.rpartition(".")[2] for part in names):
                beside = file.parent / f"{name}.py"
                if name.startswith("_") and name != "__init__" and beside.exists() and beside not in found:
                    found.append(beside)
    return tuple(found)


def frozen(path: str | Path) -> Frozen | None:
    """The frozen commit of a study; None where its code was never committed as it is now, or without git."""
    files = protocol_files(path)
    checkout = checkout_of(files[0])
    if checkout is None:
        return None
    root = checkout.resolve()
    now = {file.relative_to(root).as_posix(): tree_hash(file.read_bytes()) for file in files}
    log = _git(root, "log", "--format=%H %cs", "--", *now)
    found = None
    for line in (log or b"").decode().splitlines():
        commit, date = line.split()
        then = {name: _git(root, "show", f"{commit}:{name}") for name in now}
        if any(content is None or _hash_or_none(content) != now[name] for name, content in then.items()):
            break
        found = Frozen(commit, date)
    return found


def _hash_or_none(content: bytes) -> str | None:
    try:
        return tree_hash(content)
    except RangeError:
        return None


def refuse_unfrozen(path: str | Path, slug: str) -> Frozen:
    """The frozen commit, if the study's files are committed just as they stand.

    Raises:
        PlexusError: there is no git, a file is not tracked, or it differs from its committed form.
    """
    for file in protocol_files(path):
        if checkout_of(file) is None:
            raise PlexusError(
                f"{slug} cannot be confirmed: {file.name} is not tracked by git here",
                mend="commit the study first; its bars must be fixed before the confirming run",
            )
        if _git(file.parent, "diff", "--quiet", "HEAD", "--", file.name) is None:
            raise PlexusError(
                f"{slug} cannot be confirmed: {file.name} differs from its committed form",
                mend="commit it; its bars must be fixed before the confirming run",
            )
    commit = frozen(path)
    if commit is None:
        raise PlexusError(f"{slug} cannot be confirmed: git shows no commit of its file")
    return commit


def confirming_seeds(slug: str, commit: str, count: int = 10) -> tuple[int, ...]:
    """The confirming seeds of a study frozen at a commit.

    Examples:
        >>> seeds = confirming_seeds("ssd", "0" * 40, 3)
        >>> len(set(seeds)), all(1000 <= seed < 2**31 for seed in seeds)
        (3, True)
    """
    seeds: list[int] = []
    i = 0
    while len(seeds) < count:
        number = int.from_bytes(hashlib.sha256(f"{slug} {commit} {i}".encode()).digest()[:8], "big") % 2**31
        if number not in BUILDING_SEEDS and number not in TUNING_SEEDS and number not in seeds:
            seeds.append(number)
        i += 1
    return tuple(seeds)
