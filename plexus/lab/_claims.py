"""Claims: which trial is being worked on, so that two runs on one store do not repeat each other's work.

A claim is a small file that its owner rewrites every few seconds. Whoever meets it looks on: it is stale when its owner
is a process of this machine that is gone, or when it has not changed for a minute by the onlooker's own clock. A stale
claim is taken over. Claims only save work; a trial that two runs did twice is written twice under one name with equal
numbers.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import platform
import secrets
import time
from pathlib import Path

from plexus.lab._files import Files

BEAT = 5.0
"""Seconds between two signs of life."""
STALE = 60.0
"""Seconds without a sign of life after which a claim counts for nothing."""


@functools.lru_cache(maxsize=1)
def _machine() -> str:
    """This machine since its last start, and this process's view of it (containers number processes on their own)."""
    parts = [platform.node()]
    for path in ("/proc/sys/kernel/random/boot_id", "/proc/self/ns/pid"):
        try:
            parts.append(os.readlink(path) if path.endswith("pid") else Path(path).read_text().strip())
        except OSError:
            parts.append("")
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def _started(pid: int) -> str | None:
    """When a process of this machine started, "" where that cannot be read, None where there is no such process."""
    if Path("/proc/self/stat").exists():
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return None
        return None if fields[0] in ("Z", "X") else fields[19]
    if os.name != "posix":
        return ""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    return ""


class Claims:
    """The claims of one run on a store."""

    def __init__(self, files: Files, *, beat: float = BEAT, stale: float = STALE) -> None:
        self._files, self._beat, self._stale = files, beat, stale
        self._token = secrets.token_hex(8)
        self._held: set[str] = set()
        self._count = 0
        self._last = time.monotonic()
        self._seen: dict[str, tuple[bytes, float]] = {}

    def _content(self) -> bytes:
        pid = os.getpid()
        return json.dumps([self._token, _machine(), pid, _started(pid), self._count]).encode()

    @staticmethod
    def _name(key: str) -> str:
        return f"claims/{key}"

    def take(self, key: str) -> bool:
        """Claim a key; False where a living run has it."""
        if self._files.create(self._name(key), self._content()):
            self._held.add(key)
            return True
        if not self.is_stale(key):
            return False
        self._files.write(self._name(key), self._content())
        self._held.add(key)
        return True

    def is_stale(self, key: str) -> bool:
        """Whether nobody alive holds the key, as far as can be told now."""
        content = self._files.read(self._name(key))
        if content is None:
            return True
        try:
            token, machine, pid, started, _ = json.loads(content)
        except (ValueError, TypeError):
            token, machine, pid, started = None, None, 0, None  # being written just now, or garbage: the clock decides
        if token == self._token:
            return False
        if machine == _machine() and _started(int(pid)) != started:
            return True
        before = self._seen.get(key)
        if before is None or before[0] != content:
            self._seen[key] = (content, time.monotonic())
            return False
        return time.monotonic() - before[1] > self._stale

    def release(self, key: str) -> None:
        """Give a key up."""
        if key in self._held:
            self._held.discard(key)
            self._files.remove(self._name(key))

    def release_all(self) -> None:
        """Give all keys up."""
        for key in list(self._held):
            self.release(key)

    def beat(self) -> None:
        """Show a sign of life, if it is time."""
        if not self._held or time.monotonic() - self._last < self._beat:
            return
        self._last = time.monotonic()
        self._count += 1
        for key in self._held:
            self._files.write(self._name(key), self._content())
