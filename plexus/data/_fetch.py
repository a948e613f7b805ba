"""Fetch an archive once, compare it with its published checksum, and unpack it; nothing is ever left half-written."""

from __future__ import annotations

import hashlib
import os
import shutil
import tarfile
import tempfile
import urllib.request
import zipfile
from dataclasses import dataclass
from pathlib import Path

from plexus.errors import FormatError

__all__ = ["Archive", "fetch"]

_CHUNK = 1 << 20


@dataclass(frozen=True)
class Archive:
    """A zip or tar file at the official source.

    Attributes:
        url: where it is.
        file: its name in the folder of the data set.
        md5: published checksum.
        gives: the file or folder that it unpacks to.
    """

    url: str
    file: str
    md5: str
    gives: str


def fetch(archive: Archive, folder: Path, *, name: str, download: bool) -> Path:
    """Make `folder / archive.gives` from the archive in the folder, or from the source if `download`.

    Raises:
        FormatError: the archive is not here, could not be fetched, has another checksum or cannot be unpacked.
    """
    path = folder / archive.file
    if not path.exists():
        if not download:
            raise FormatError(
                f"{name} is not here",
                given=str(folder / archive.gives),
                mend=f"put {archive.file} from {archive.url} there, or ask for download=True",
            )
        _download(archive, path, name)
    if _md5(path) != archive.md5:
        raise FormatError(
            f"{archive.file} is damaged",
            given=f"md5 {_md5(path)}",
            expected=archive.md5,
            mend=f"delete {path} and fetch it again",
        )
    _unpack(archive, path)
    return folder / archive.gives


def _download(archive: Archive, path: Path, name: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        request = urllib.request.Request(archive.url, headers={"User-Agent": "plexus"})
        with os.fdopen(handle, "wb") as out, urllib.request.urlopen(request, timeout=60) as answer:
            shutil.copyfileobj(answer, out, _CHUNK)
        found = _md5(Path(temporary))
        if found != archive.md5:
            raise FormatError(
                f"what came for {name} is not what was published", given=f"md5 {found}", expected=archive.md5
            )
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except OSError as error:  # also urllib's errors
        raise FormatError(
            f"{name} could not be fetched",
            given=f"{archive.url}: {error}",
            mend=f"go online, or put {archive.file} into {path.parent} by hand",
        ) from error
    finally:
        Path(temporary).unlink(missing_ok=True)


def _unpack(archive: Archive, path: Path) -> None:
    """Unpack beside the target and move it there in one step."""
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as inside:
        try:
            if zipfile.is_zipfile(path):
                with zipfile.ZipFile(path) as packed:
                    packed.extractall(inside)
            else:
                with tarfile.open(path) as tar:
                    tar.extractall(inside, filter="data")
        except (zipfile.BadZipFile, tarfile.TarError, OSError, EOFError) as error:
            raise FormatError(f"{path.name} cannot be unpacked", given=str(error)) from error
        found = next(Path(inside).rglob(archive.gives), None)
        if found is None:
            raise FormatError(f"{path.name} does not hold {archive.gives}")
        os.replace(found, path.parent / archive.gives)


def _md5(path: Path) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
