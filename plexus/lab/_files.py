"""Named byte strings in a folder or behind an fsspec URL: the ground that the store stands on.

A write is atomic (temporary file, then rename): a reader sees the old bytes, the new bytes or nothing.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import tempfile
from pathlib import Path
from typing import Any, Protocol

from plexus.errors import PlexusError, RangeError, require


class Files(Protocol):
    """What a store needs of the place it lies in. Names are relative, with `/` between parts."""

    where: str

    def read(self, name: str) -> bytes | None:
        """The bytes under a name, None where there are none."""

    def write(self, name: str, data: bytes) -> None:
        """Put bytes under a name, atomically."""

    def create(self, name: str, data: bytes) -> bool:
        """Put bytes under a name unless it is taken; False where it is."""

    def remove(self, name: str) -> None:
        """Remove a name; nothing happens where it is absent."""

    def names(self, folder: str) -> list[str]:
        """The file names directly in a folder."""


class LocalFiles:
    """A folder."""

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root).absolute()
        self.where = str(self.root)
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            probe = self.root / f".probe.{secrets.token_hex(6)}"
            probe.write_bytes(b"")
            probe.unlink()
        except OSError as error:
            raise PlexusError(
                f"the store {self.where} cannot be written",
                given=error,
                mend="pass --store FOLDER, or set PLEXUS_STORE",
            ) from error

    def path(self, name: str) -> Path:
        """The file of a name, which must lie inside the folder."""
        path = self.root / name
        if ".." in Path(name).parts or Path(name).is_absolute():
            raise PlexusError("a name leads out of the store", given=name)
        return path

    def read(self, name: str) -> bytes | None:
        try:
            return self.path(name).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None

    def write(self, name: str, data: bytes) -> None:
        path = self.path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.parent / f".{path.name}.{secrets.token_hex(6)}.tmp"
        try:
            with open(temporary, "wb") as file:
                file.write(data)
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise

    def create(self, name: str, data: bytes) -> bool:
        path = self.path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        except FileExistsError:
            return False
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        return True

    def remove(self, name: str) -> None:
        self.path(name).unlink(missing_ok=True)

    def names(self, folder: str) -> list[str]:
        try:
            return sorted(entry.name for entry in os.scandir(self.path(folder)) if not entry.name.startswith("."))
        except (FileNotFoundError, NotADirectoryError):
            return []


class RemoteFiles:
    """A place behind an fsspec URL (`s3://bucket/plexus`, `sftp://…`), which needs the `lab` extra."""

    def __init__(self, url: str) -> None:
        fsspec = require("fsspec", "lab", purpose="a store behind a URL")
        try:
            self._system, self._root = fsspec.core.url_to_fs(url)
            self._system.makedirs(self._root, exist_ok=True)
        except Exception as error:  # each backend raises its own
            raise PlexusError(f"the store {url} cannot be opened", given=f"{type(error).__name__}: {error}") from error
        self.where = url

    def _path(self, name: str) -> str:
        return f"{self._root.rstrip('/')}/{name}"

    def read(self, name: str) -> bytes | None:
        try:
            data: bytes = self._system.cat_file(self._path(name))
        except (FileNotFoundError, NotADirectoryError):
            return None
        return data

    def write(self, name: str, data: bytes) -> None:
        path = self._path(name)
        parent, _, leaf = path.rpartition("/")
        self._system.makedirs(parent, exist_ok=True)
        temporary = f"{parent}/.{leaf}.{secrets.token_hex(6)}.tmp"
        self._system.pipe_file(temporary, data)
        self._system.mv(temporary, path)
        self._forget(parent)

    def create(self, name: str, data: bytes) -> bool:
        # not every backend can create exclusively; a claim lost to a race costs a repeated trial, nothing else
        if self._exists(self._path(name)):
            return False
        self.write(name, data)
        return True

    def _exists(self, path: str) -> bool:
        self._forget(path.rpartition("/")[0])
        return bool(self._system.exists(path))

    def _forget(self, folder: str) -> None:
        self._system.invalidate_cache(folder)

    def remove(self, name: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            self._system.rm_file(self._path(name))

    def names(self, folder: str) -> list[str]:
        path = self._path(folder)
        self._forget(path)
        try:
            entries: list[Any] = self._system.ls(path, detail=False)
        except (FileNotFoundError, NotADirectoryError):
            return []
        leaves = sorted(str(entry).rstrip("/").rpartition("/")[2] for entry in entries)
        return [leaf for leaf in leaves if leaf and not leaf.startswith(".")]


def open_files(where: str | Path) -> Files:
    """A folder, or what an URL names."""
    return RemoteFiles(str(where)) if "://" in str(where) else LocalFiles(where)


def writable(folder: Path) -> Path:
    """The folder, made where it is missing, if it can be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise PlexusError(f"the folder {folder} cannot be written", given=error, mend="name another one") from error
    return folder


def file_in_writable_folder(path: Path) -> Path:
    """The path, if a file can be written there."""
    if path.is_dir():
        raise RangeError(f"{path} is a folder", expected="the name of a file")
    writable(path.absolute().parent)
    return path
