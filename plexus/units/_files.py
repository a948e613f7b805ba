"""One form for the files of the library: JSON and safetensors, each with a header (kind, version).

A JSON file is one object `{"plexus": {"kind": …, "version": …}, "body": …}`; a safetensors file carries the same header
and a JSON body under the keys "plexus" and "body" of its metadata. Nothing is pickled and nothing is ever unpickled.
Files are written beside their place under a temporary name and moved there in one step, so a reader sees the old file
or the whole new one, and never a part.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from plexus.errors import FormatError, PlexusError, UnknownNameError

HEADER = "plexus"


class UnwritableError(PlexusError, OSError):
    """A file or folder cannot be written; nothing was left behind.

    Examples:
        >>> try:
        ...     write_json("/proc/plexus/x.json", "example", 1, {})
        ... except OSError as error:
        ...     print(type(error).__name__)
        UnwritableError
    """


def atomically(path: str | os.PathLike[str], write: Callable[[Path], None]) -> Path:
    """Call `write` with a temporary path beside `path`, then move the result into place; on failure leave nothing.

    Folders on the way are made.

    Raises:
        UnwritableError: if the place cannot be written.
    """
    target = Path(path)
    made: list[Path] = []
    temporary: Path | None = None
    try:
        made = _make_folders(target.parent)
        handle, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".part", dir=target.parent)
        os.close(handle)
        temporary = Path(name)
        write(temporary)
        temporary.chmod(0o666 & ~_umask())
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException as error:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
        for folder in reversed(made):
            with contextlib.suppress(OSError):
                folder.rmdir()
        if isinstance(error, OSError | SafetensorError) and not isinstance(error, PlexusError):
            raise UnwritableError(
                f"cannot write {target.name!r}",
                given=f"{target.parent} ({getattr(error, 'strerror', None) or error})",
                mend="choose a folder that exists or can be made, that you may write to, and that has room",
            ) from error
        raise
    return target


def write_json(path: str | os.PathLike[str], kind: str, version: int, body: Any) -> Path:
    """Write `body` (anything JSON can hold) under a header, atomically."""
    text = json.dumps(wrap(kind, version, body), indent=1, allow_nan=False)
    return atomically(path, lambda temporary: _write_text(temporary, text))


def read_json(path: str | os.PathLike[str], kind: str, version: int) -> Any:
    """The body of a JSON file written by `write_json`.

    Raises:
        FormatError: if the file is truncated, of another kind or version, or not ours.
        UnknownNameError: if there is no such file.
    """
    source = _existing(path, kind)
    try:
        text = source.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise FormatError(
            "this file is not text, so it is not ours", given=source, expected=f"{kind} as JSON"
        ) from None
    return unwrap(text, kind, version, where=str(source))


def wrap(kind: str, version: int, body: Any) -> dict[str, Any]:
    """`body` with its header, as one JSON object."""
    return {HEADER: {"kind": kind, "version": version}, "body": body}


def unwrap(document: Any, kind: str, version: int, *, where: str = "the document") -> Any:
    """The body of a wrapped object, or of the text of one.

    Raises:
        FormatError: as `read_json`.
    """
    if isinstance(document, str | bytes):
        try:
            document = json.loads(document)
        except ValueError as error:
            raise FormatError(
                "this JSON cannot be read: it is truncated or was never JSON", given=f"{where}: {error}"
            ) from None
    if not isinstance(document, Mapping):
        raise FormatError("this file is not ours", given=where, expected=f"an object with a header of kind {kind!r}")
    _check(document.get(HEADER), kind, version, where)
    if "body" not in document:
        raise FormatError("this file has a header and no body", given=where)
    return document["body"]


def write_tensors(
    path: str | os.PathLike[str], kind: str, version: int, body: Any, tensors: Mapping[str, Tensor]
) -> Path:
    """Write named tensors and a JSON `body` as one safetensors file, atomically."""
    metadata = {
        HEADER: json.dumps({"kind": kind, "version": version}),
        "body": json.dumps(body, allow_nan=False),
    }
    # a fresh copy of each: safetensors refuses tensors that share memory, and views would be stored strided
    plain = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
    return atomically(path, lambda temporary: save_file(plain, temporary, metadata=metadata))


def read_tensors(
    path: str | os.PathLike[str], kind: str, version: int, *, only: Callable[[str], bool] | None = None
) -> tuple[Any, dict[str, Tensor]]:
    """The body and the tensors (those whose name `only` accepts) of a file written by `write_tensors`.

    Raises:
        FormatError: if the file is truncated, of another kind or version, or not ours.
        UnknownNameError: if there is no such file.
    """
    source = _existing(path, kind)
    try:
        with safe_open(str(source), framework="pt") as file:
            metadata = file.metadata() or {}
            try:
                header, body = (json.loads(metadata[key]) if key in metadata else None for key in (HEADER, "body"))
            except ValueError:
                raise FormatError("the header of this file cannot be read", given=source) from None
            _check(header, kind, version, str(source))
            tensors = {name: file.get_tensor(name) for name in file.keys() if only is None or only(name)}  # noqa: SIM118
    except SafetensorError as error:
        raise FormatError(
            "this safetensors file cannot be read: it is truncated or was never one", given=f"{source}: {error}"
        ) from None
    return body, tensors


def _check(header: Any, kind: str, version: int, where: str) -> None:
    if not isinstance(header, Mapping) or "kind" not in header or "version" not in header:
        raise FormatError("this file is not ours", given=where, expected=f"a header of kind {kind!r}")
    if header["kind"] != kind:
        raise FormatError("this file holds something else", given=f"{where}: {header['kind']!r}", expected=repr(kind))
    if header["version"] != version:
        raise FormatError(
            f"this {kind} file is of another version",
            given=f"{where}: version {header['version']!r}",
            expected=f"version {version}",
            mend="read it with the release of plexus that wrote it, and save it again from there",
        )


def _existing(path: str | os.PathLike[str], kind: str) -> Path:
    source = Path(path)
    if source.is_dir():
        raise FormatError("this is a folder, not a file", given=source, expected=f"a {kind} file")
    if not source.exists():
        beside = [entry.name for entry in source.parent.iterdir()] if source.parent.is_dir() else []
        error = UnknownNameError.among("file", source.name, beside if len(beside) < 1000 else [])
        raise UnknownNameError(f"there is no {kind} file {str(source)!r}", mend=error.mend)
    return source


def _make_folders(folder: Path) -> list[Path]:
    missing: list[Path] = []
    while not folder.exists():
        missing.append(folder)
        folder = folder.parent
    made: list[Path] = []
    try:
        for entry in reversed(missing):
            entry.mkdir(exist_ok=True)
            made.append(entry)
    except OSError:
        for entry in reversed(made):
            with contextlib.suppress(OSError):
                entry.rmdir()
        raise
    return made


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
