"""What `Study.prepare` returned, kept on disk.

Prepared things are arbitrary Python objects (modules, tensors, data), so this cache is pickled — the one place in
Plexus that reads a pickle. It therefore reads only what this user wrote: each file begins with a keyed hash (HMAC-
SHA256, the key in the user's own cache folder, readable by that user alone) of its name and content, which is checked
before anything is loaded. A file that is damaged, truncated, renamed or written by somebody else counts as absent. Only
files directly in the cache's folder are opened. The least recently used go when the folder outgrows its cap
(`PLEXUS_CACHE_GB`, 4 by default).

Each trial gets a copy of its own, loaded from the bytes, the first one too.
"""

from __future__ import annotations

import contextlib
import functools
import hmac
import io
import math
import os
import secrets
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from plexus.errors import RangeError
from plexus.lab._files import LocalFiles
from plexus.lab._store import cache_folder

MAGIC = b"plexus prepared 1\n"
DIGEST = 32
HOUR = 3600.0


@functools.lru_cache(maxsize=1)
def _secret() -> bytes:
    """The user's key; one for this process alone where none can be kept."""
    path = cache_folder() / "key"
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.parent / f".key.{secrets.token_hex(6)}"
        handle = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
        with os.fdopen(handle, "wb") as file:
            file.write(secrets.token_bytes(32))
        try:
            with contextlib.suppress(FileExistsError):
                os.link(temporary, path)  # the first one wins
        finally:
            temporary.unlink()
    with contextlib.suppress(OSError):
        key = path.read_bytes()
        if len(key) == 32:
            return key
    return secrets.token_bytes(32)


def cap_in_bytes() -> int:
    """The cap that `PLEXUS_CACHE_GB` sets, 4 GB by default."""
    text = os.environ.get("PLEXUS_CACHE_GB") or "4"
    try:
        cap = float(text)
        if not (math.isfinite(cap) and cap >= 0):
            raise ValueError
    except ValueError:
        raise RangeError(
            "PLEXUS_CACHE_GB caps the cache of prepared data", given=text, expected="a number of GB"
        ) from None
    return int(cap * 1e9)


def _seal(name: str, body: bytes) -> bytes:
    return hmac.digest(_secret(), MAGIC + name.encode() + b"\n" + body, "sha256")


def serialise(value: Any) -> bytes:
    """Any picklable object as bytes; modules and tensors included, with what they share."""
    import torch

    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def restore(body: bytes) -> Any:
    """The object of `serialise`. Only ever called on bytes that this process made, or whose seal was checked."""
    import torch

    return torch.load(io.BytesIO(body), weights_only=False)


class PreparedCache:
    """The cache in one folder.

    Args:
        folder: made when first written to.
        cap: most bytes to keep.
    """

    def __init__(self, folder: Path, cap: int | None = None) -> None:
        self.folder = folder
        self.cap = cap_in_bytes() if cap is None else cap

    def read(self, key: str) -> bytes | None:
        """The bytes of a prepared object that this user wrote, whole; None otherwise."""
        path = self.folder / f"{key}.prepared"
        if path.parent != self.folder or path.is_symlink():
            return None
        try:
            data = path.read_bytes()
        except OSError:
            return None
        head = len(MAGIC) + DIGEST
        if len(data) < head or not data.startswith(MAGIC):
            return None
        seal, body = data[len(MAGIC) : head], data[head:]
        if not hmac.compare_digest(seal, _seal(key, body)):
            return None
        with contextlib.suppress(OSError):
            os.utime(path)
        return body

    def write(self, key: str, body: bytes) -> bool:
        """Keep a prepared object, and drop the least recently used ones beyond the cap; False where it does not fit."""
        data = MAGIC + _seal(key, body) + body
        if len(data) > self.cap:
            return False
        LocalFiles(self.folder).write(f"{key}.prepared", data)
        self._evict(keep=f"{key}.prepared")
        return True

    def _evict(self, keep: str) -> None:
        files = []
        for entry in os.scandir(self.folder):
            with contextlib.suppress(OSError):
                stat = entry.stat()
                if entry.name.endswith(".tmp") and time.time() - stat.st_mtime > HOUR:
                    os.unlink(entry)  # of a writer that was killed
                else:
                    files.append((stat.st_mtime_ns, stat.st_size, entry.name))
        total = sum(size for _, size, _ in files)
        for _, size, name in sorted(files):
            if total <= self.cap:
                break
            if name != keep and name.endswith(".prepared"):
                (self.folder / name).unlink(missing_ok=True)
                total -= size

    def get(self, key: str, make: Callable[[], Any]) -> Any:
        """A copy of the prepared object, made and kept where it is not there yet.

        What cannot be pickled is handed out as it was made, and made anew for every trial.
        """
        body = self.read(key)
        if body is not None:
            return restore(body)
        value = make()
        try:
            body = serialise(value)
        except Exception:  # pickling raises whatever the object's own methods raise
            return value
        with contextlib.suppress(OSError):
            self.write(key, body)
        return restore(body)
