"""Which studies there are, found by file name and read without importing them.

A study comes from a module of `plexus.studies` (`unlearning/ssd.py` is "ssd"), or from a Python file of your own, given
by its path. One file may hold several studies.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import sys
import traceback
import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from plexus.errors import FormatError, PlexusError, UnknownNameError
from plexus.lab._study import Study, _registry

USER_PACKAGE = "local_studies"
"""The package under which study files of your own are imported."""


@dataclass(frozen=True)
class Source:
    """Where a study's code is: a module name, its file, and whether it is a file of the user's own."""

    module: str
    path: str
    is_file: bool = False


@dataclass(frozen=True)
class Entry:
    """A study as its file shows it, without importing: slug, family, first line of the docstring, claim, fidelity."""

    slug: str
    family: str
    title: str
    claim: str
    fidelity: str
    source: Source


def studies_folder() -> Path:
    """The folder of `plexus.studies`."""
    return Path(__file__).resolve().parents[1] / "studies"


def _entries(source: Source, family: str) -> list[Entry]:
    """All classes decorated with `@study` in one file."""
    try:
        tree = ast.parse(Path(source.path).read_bytes())
    except SyntaxError as error:
        raise FormatError(f"{source.path} is not Python", given=str(error)) from error
    slug = Path(source.path).stem.strip("_").replace("_", "-")
    found = []
    own = _classes(tree)
    classes = {**_taken_classes(tree), **own}
    for node in own.values():
        marks = {d.attr if isinstance(d, ast.Attribute) else getattr(d, "id", "") for d in node.decorator_list}
        if "study" not in marks:
            continue
        text = _strings(node, classes)
        title = (ast.get_docstring(node) or node.name).splitlines()[0]
        found.append(
            Entry(
                text.get("name") or slug,
                text.get("family") or family,
                title,
                text.get("claim", ""),
                text.get("fidelity", ""),
                source,
            )
        )
    return found


def _classes(tree: ast.Module) -> dict[str, ast.ClassDef]:
    return {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}


def _taken_classes(tree: ast.Module) -> dict[str, ast.ClassDef]:
    """Classes that a study takes from other files of `plexus.studies`, where it shares their claim or their base."""
    found: dict[str, ast.ClassDef] = {}
    for node in tree.body:
        if not isinstance(node, ast.ImportFrom) or not (node.module or "").startswith("plexus.studies."):
            continue
        path = studies_folder().joinpath(*str(node.module).split(".")[2:]).with_suffix(".py")
        if path.is_file():
            there = _classes(ast.parse(path.read_bytes()))
            found |= {alias.asname or alias.name: there[alias.name] for alias in node.names if alias.name in there}
    return found


def _strings(node: ast.ClassDef, classes: Mapping[str, ast.ClassDef]) -> dict[str, str]:
    """Class attributes that are plain strings, those of base classes and named classes included."""
    found: dict[str, str] = {}
    for base in reversed(node.bases):
        if isinstance(base, ast.Name) and base.id in classes:
            found |= _strings(classes[base.id], classes)
    for item in node.body:
        target = (
            item.targets[0]
            if isinstance(item, ast.Assign)
            else item.target
            if isinstance(item, ast.AnnAssign)
            else None
        )
        value = item.value if isinstance(item, (ast.Assign, ast.AnnAssign)) else None
        if isinstance(target, ast.Name) and isinstance(value, ast.Constant) and isinstance(value.value, str):
            found[target.id] = value.value
        elif isinstance(target, ast.Name) and isinstance(value, ast.Attribute) and isinstance(value.value, ast.Name):
            # what another class of the file says: claim = First.claim
            said = _strings(classes[value.value.id], classes) if value.value.id in classes else {}
            found |= {target.id: said[value.attr]} if value.attr in said else {}
    return found


def catalogue() -> list[Entry]:
    """All studies of `plexus.studies`, by family and slug; imports none of them."""
    root = studies_folder()
    entries = []
    for path in sorted(root.glob("*/*.py")):
        if path.name.startswith("__"):
            continue
        family = path.parent.name
        entries += _entries(Source(f"plexus.studies.{family}.{path.stem}", str(path)), family)
    return sorted(entries, key=lambda entry: (entry.family, entry.slug))


def find(name: str) -> list[Entry]:
    """The study of that slug, or all studies of the file at that path.

    Raises:
        UnknownNameError: there is no such study; `near` holds the closest names.

    Examples:
        >>> find("ssd")[0].family
        'unlearning'
    """
    if name.partition("::")[0].endswith(".py") or "/" in name:
        return _from_file(name)
    entries = catalogue()
    for entry in entries:
        if entry.slug == name or entry.slug == name.replace("_", "-"):
            return [entry]
    raise UnknownNameError.among("study", name, [entry.slug for entry in entries])


def _from_file(name: str) -> list[Entry]:
    text, _, wanted = name.partition("::")
    path = Path(text).resolve()
    if not path.is_file():
        raise UnknownNameError(
            f"there is no study file {text!r}", mend="give the name of a study, or the path of a Python file"
        )
    root = studies_folder()
    if root in path.parents:
        family = path.parent.name
        entries = _entries(Source(f"plexus.studies.{family}.{path.stem}", str(path)), family)
    else:
        entries = _entries(Source(f"{USER_PACKAGE}.{path.stem}", str(path), is_file=True), "local")
    if not entries:
        raise UnknownNameError(
            f"{text!r} holds no class decorated with @study", mend="decorate it: @study class …(Study)"
        )
    if wanted:
        entries = [entry for entry in entries if entry.slug == wanted] or entries
        if entries[0].slug != wanted:
            raise UnknownNameError.among("study", wanted, [entry.slug for entry in entries])
    return entries


def find_all(names: Sequence[str]) -> list[Entry]:
    """The studies of several names, each once, in the order given."""
    found: dict[str, Entry] = {}
    for name in names:
        for entry in find(name):
            found.setdefault(entry.slug, entry)
    return list(found.values())


_imported: dict[str, tuple[str, int, int]] = {}


def import_study_module(source: Source) -> types.ModuleType:
    """Import the module of a study, from the library or from a file; again, where the file has changed since.

    Raises `PlexusError` where the import fails, with the traceback from the study's own lines on.
    """
    stat = Path(source.path).stat()
    state = (source.path, stat.st_size, stat.st_mtime_ns)
    loaded = sys.modules.get(source.module)
    if loaded is not None and _imported.get(source.module, state) == state:
        _imported[source.module] = state
        return loaded
    try:
        if source.is_file:
            module = _execute(source)
        else:
            module = importlib.import_module(source.module) if loaded is None else importlib.reload(loaded)
    except PlexusError:
        raise
    except (Exception, SystemExit) as error:  # a study's own lines; they may raise anything
        raise PlexusError(f"{source.path} cannot be imported", given="\n" + _own_lines(error, source.path)) from error
    _imported[source.module] = state
    return module


def _own_lines(error: BaseException, path: str) -> str:
    """The traceback from the first line of that file on; the whole one where the error came earlier."""
    told = traceback.TracebackException.from_exception(error)
    own = [i for i, frame in enumerate(told.stack) if frame.filename == path]
    if own:
        told.stack = traceback.StackSummary.from_list(list(told.stack)[own[0] :])
    return "".join(told.format(chain=False)).strip()


def _execute(source: Source) -> types.ModuleType:
    """Import a file of the user's own, as a module of `local_studies`."""
    package = sys.modules.setdefault(USER_PACKAGE, types.ModuleType(USER_PACKAGE))
    package.__path__ = []
    folder = str(Path(source.path).parent)
    if folder not in sys.path:
        sys.path.append(folder)
    spec = importlib.util.spec_from_file_location(source.module, source.path)
    if spec is None or spec.loader is None:
        raise FormatError(f"{source.path} cannot be imported")
    module = importlib.util.module_from_spec(spec)
    sys.modules[source.module] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[source.module]
        raise
    return module


def load(entry: Entry) -> type[Study]:
    """The study's class; imports its module."""
    import_study_module(entry.source)
    if entry.slug not in _registry:
        raise UnknownNameError.among("study", entry.slug, _registry)
    cls = _registry[entry.slug]
    if entry.source.is_file:
        cls.family = entry.family
    return cls
