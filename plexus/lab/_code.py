"""What code a trial ran, as one hash.

The hash covers the study's module and the `plexus` modules that a fresh process loads for importing it (for a study
file of your own also the modules beside it), each by its syntax tree without docstrings: comments, formatting and
docstrings do not matter. The lab's own machinery and the command are left out by name, so that a better report makes
nothing run again; what they do to the numbers of a trial (its seeding, its threads) is versioned by `PROTOCOL`.

Modules that a trial loads late, while it runs, are reported by the worker and kept as `extras` of that code.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from plexus.errors import PlexusError, RangeError
from plexus.lab._catalogue import Source, import_study_module

PROTOCOL = 1
"""How the lab seeds and runs a trial; raised when that changes the numbers."""

_MACHINERY = """
    atlas bench calibration catalogue cite claims code command crew doctor files figures frozen ledger local machine
    pages planted prepared progress report row run runner settings show stability store study trial verdict worker
"""

INFRASTRUCTURE = frozenset(
    ["plexus", "plexus._version", "plexus.cli", "plexus.studies", "plexus.lab"]
    + [f"plexus.lab._{name}" for name in _MACHINERY.split()]
)
"""Modules whose code is not part of any trial."""


def is_infrastructure(name: str) -> bool:
    """Whether a module is the lab's own machinery.

    Examples:
        >>> is_infrastructure("plexus.lab._runner"), is_infrastructure("plexus.units._site")
        (True, False)
    """
    return name in INFRASTRUCTURE or name.startswith(("plexus.lab._report", "plexus.lab._figures"))


def tree_hash(source: str | bytes) -> str:
    """Hash of Python source by its syntax tree without docstrings and other bare strings.

    Examples:
        >>> tree_hash("x = 1  # one") == tree_hash('"doc"\\nx  =  1')
        True
        >>> tree_hash("x = 1") == tree_hash("x = 2")
        False
    """
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError) as error:
        raise RangeError("the source is not Python", given=str(error)) from error
    return hashlib.sha256(repr(_skeleton(tree)).encode()).hexdigest()


def _skeleton(node: Any) -> Any:
    """The tree as nested tuples; empty fields are dropped, so that all versions of Python agree as far as they can."""
    if isinstance(node, ast.AST):
        fields = []
        for name in node._fields:
            if name in ("ctx", "kind", "type_comment", "type_ignores"):
                continue
            value = _skeleton(getattr(node, name, None))
            if value is not None and value != ():
                fields.append((name, value))
        return (type(node).__name__, *fields)
    if isinstance(node, list):
        return tuple(_skeleton(item) for item in node if not _is_bare_string(item))
    if node is None:
        return None
    return repr(node)


def _is_bare_string(node: Any) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


@functools.lru_cache(maxsize=4096)
def _hash_at(path: str, size: int, changed: int) -> str:
    return tree_hash(Path(path).read_bytes())


def file_hash(path: str | Path) -> str:
    """`tree_hash` of a file, "absent" where there is none."""
    try:
        stat = os.stat(path)
    except OSError:
        return "absent"
    return _hash_at(str(path), stat.st_size, stat.st_mtime_ns)


@dataclass(frozen=True)
class Code:
    """The modules of a study: name → file. `hash` is of what they hold now."""

    modules: Mapping[str, str]
    extras: Mapping[str, str]

    @functools.cached_property
    def base_hash(self) -> str:
        """Hash of the modules that importing the study loads."""
        return _join(self.modules)

    @functools.cached_property
    def hash(self) -> str:
        """Hash of all modules, those loaded late included."""
        return _join({**self.modules, **self.extras}) if self.extras else self.base_hash

    def with_extras(self, extras: Mapping[str, str]) -> Code:
        """The same code with further modules that a trial loaded while running."""
        late = {name: path for name, path in extras.items() if name not in self.modules}
        return Code(self.modules, {**self.extras, **late})


def _join(modules: Mapping[str, str]) -> str:
    lines = "\n".join(f"{name} {file_hash(path)}" for name, path in sorted(modules.items()))
    return hashlib.sha256(lines.encode()).hexdigest()


def relevant_modules(source: Source) -> dict[str, str]:
    """The loaded modules whose code counts for a study of this source: module name → file."""
    beside = str(Path(source.path).parent) + os.sep if source.is_file else None
    found = {}
    for name, module in list(sys.modules.items()):
        path = getattr(module, "__file__", None)
        if path is None or not path.endswith(".py") or name in ("__main__", "__mp_main__"):
            continue
        ours = name.startswith("plexus.") and not is_infrastructure(name)
        yours = beside is not None and path.startswith(beside) and "site-packages" not in path
        if name == source.module or ours or yours:
            found[name] = path
    return found


def main() -> None:
    """Print the modules that importing one study loads, as JSON; runs in a fresh process."""
    source = Source(**json.loads(sys.argv[1]))
    import_study_module(source)
    _load_rooms_by_name(source)
    print("\n" + json.dumps(relevant_modules(source)))


def _load_rooms_by_name(source: Source) -> None:
    """Load all of a room that the study, or a module of its own, holds by name (`from plexus.learn import unlearning`).

    Rooms load lazily. Without this every arm that uses another part of the room would change the key of the study, and
    what its arms share would be prepared again.
    """
    family = Path(source.path).parent
    for module in list(sys.modules.values()):
        path = getattr(module, "__file__", None)
        if path is None or Path(path).parent != family:
            continue
        for room in list(vars(module).values()):
            name = getattr(room, "__name__", "")
            if isinstance(room, ModuleType) and hasattr(room, "__path__") and name.count(".") > 1:
                for public in dir(room):
                    getattr(room, public)


def discover(source: Source) -> dict[str, str]:
    """The modules that a fresh process loads for importing the study: module name → file.

    Raises `PlexusError` with the traceback where the study cannot be imported.
    """
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}
    answer = subprocess.run(
        [sys.executable, "-P", "-c", "from plexus.lab._code import main; main()", json.dumps(vars(source))],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    if answer.returncode != 0:
        raise PlexusError(f"{source.path} cannot be imported", given="\n" + answer.stderr.strip()[-4000:])
    modules: dict[str, str] = json.loads(answer.stdout.strip().splitlines()[-1])
    return modules
