"""The store: one file per finished trial, under the hash of what it is and of the code that it ran.

    trials/<slug>/<key>.npz    metrics and settings as JSON in the member `trial`, arrays beside it; never pickled
    tuning/<slug>/<key>.json   what tuning chose
    broken/<slug>/<key>.json   the traceback of a trial that broke (it runs again next time)
    code/<module>-<place>.json which modules the study loads (a note to start faster; checked before it is used)
    late/<slug>/<hash>/         modules that a trial loaded while it ran
    claims/<key>               see `_claims`
    prepared/                  see `_prepared`; this one always lies on the machine itself

Every file is written by atomic rename, so that any number of runs work on one store at once, and killing one of them at
any moment leaves it whole.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from plexus.errors import DtypeError
from plexus.lab._catalogue import Source
from plexus.lab._claims import Claims
from plexus.lab._code import PROTOCOL, Code, discover, file_hash
from plexus.lab._files import LocalFiles, open_files
from plexus.lab._ledger import plain
from plexus.lab._study import Outcome, Tuning

TRIAL, ARRAY = "trial", "array/"


@dataclass(frozen=True)
class Trial:
    """The unit of work: one arm of a study, one seed, one scale, with the overrides given by hand and by tuning."""

    study: str
    arm: str
    seed: int
    scale: str
    overrides: Mapping[str, Any]
    tuned: Mapping[str, Any]

    def key(self, code: str) -> str:
        """Hash of the trial and of the code that it runs."""
        return digest("trial", self.study, self.arm, self.seed, self.scale, self.overrides, self.tuned, code)


def digest(*parts: Any) -> str:
    """Hash of plain values, and of the lab's protocol."""
    text = json.dumps([PROTOCOL, *(plain(part) for part in parts)], sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True)
class Finished:
    """A finished trial as the store holds it."""

    outcome: Outcome
    seconds: float
    versions: Mapping[str, str]


class Store:
    """A folder, or an fsspec URL.

    Args:
        where: default `PLEXUS_STORE`, or `.plexus` in the working directory.

    Raises:
        PlexusError: it cannot be written.

    Examples:
        >>> import tempfile
        >>> store = Store(tempfile.mkdtemp())
        >>> store.save_trial("study", "key", Finished(Outcome({"accuracy": 0.9}), seconds=1.0, versions={}))
        >>> store.load_trial("study", "key").outcome.metrics
        {'accuracy': 0.9}
    """

    def __init__(self, where: str | Path | None = None) -> None:
        self.files = open_files(where or os.environ.get("PLEXUS_STORE") or ".plexus")
        self.where = self.files.where
        local = isinstance(self.files, LocalFiles)
        self.prepared_folder = Path(self.where) / "prepared" if local else cache_folder() / "prepared"
        if self.files.read("README.txt") is None:
            self.files.write(
                "README.txt", b"Finished trials of `plexus run`. Safe to delete; they are then run again.\n"
            )

    def claims(self) -> Claims:
        """The claims of a run that begins now."""
        return Claims(self.files)

    # trials

    def save_trial(self, slug: str, key: str, finished: Finished) -> None:
        """Write a finished trial."""
        self.files.write(f"trials/{slug}/{key}.npz", _pack(finished))

    def load_trial(self, slug: str, key: str) -> Finished | None:
        """A finished trial; None where there is none, or where its file is damaged."""
        data = self.files.read(f"trials/{slug}/{key}.npz")
        return None if data is None else _unpack(data)

    def has_trial(self, slug: str, key: str) -> bool:
        """Whether a whole file is there."""
        return self.load_trial(slug, key) is not None

    def copy_trial(self, slug: str, old: str, new: str) -> None:
        """Put a finished trial under a further key: its code turned out to be larger than was known."""
        data = self.files.read(f"trials/{slug}/{old}.npz")
        if data is not None and old != new:
            self.files.write(f"trials/{slug}/{new}.npz", data)

    def save_broken(self, slug: str, key: str, record: Mapping[str, Any]) -> None:
        """Keep the traceback of a trial that broke."""
        self.files.write(f"broken/{slug}/{key}.json", json.dumps(plain(record)).encode())

    # tuning

    def save_tuning(self, slug: str, key: str, tuning: Tuning, seconds: float) -> None:
        """Write what tuning chose."""
        record = {"chosen": tuning.chosen, "budget": tuning.budget, "note": tuning.note, "seconds": seconds}
        self.files.write(f"tuning/{slug}/{key}.json", json.dumps(plain(record)).encode())

    def load_tuning(self, slug: str, key: str) -> tuple[Tuning, float] | None:
        """What tuning chose, and how long it took; None where there is nothing."""
        record = self._json(f"tuning/{slug}/{key}.json")
        if record is None:
            return None
        return Tuning(record["chosen"], record["budget"], record["note"]), float(record["seconds"])

    # code

    def code(self, slug: str, source: Source) -> Code:
        """The modules of a study; asks a fresh process unless nothing has changed since it was last asked."""
        place = hashlib.sha256(f"{source.path} {Path(__file__)}".encode()).hexdigest()[:12]
        name = f"code/{source.module.rpartition('.')[2]}-{place}.json"
        known = self._json(name)
        if known is None or _state(known["modules"]) != known["state"]:
            modules = discover(source)
            known = {"modules": modules, "state": _state(modules)}
            self.files.write(name, json.dumps(known).encode())
        code = Code(known["modules"], {})
        return code.with_extras(self._late(slug, code))

    def _late(self, slug: str, code: Code) -> dict[str, str]:
        folder = f"late/{slug}/{code.base_hash}"
        notes = [self._json(f"{folder}/{name}") for name in self.files.names(folder)]
        return {name: path for name, path in filter(None, notes) if Path(path).exists()}

    def save_late(self, slug: str, code: Code) -> None:
        """Remember the modules that trials of this code loaded late."""
        for name, path in code.extras.items():
            self.files.write(f"late/{slug}/{code.base_hash}/{name}.json", json.dumps([name, path]).encode())

    def _json(self, name: str) -> Any:
        data = self.files.read(name)
        if data is None:
            return None
        try:
            return json.loads(data)
        except ValueError:
            return None


def _state(modules: Mapping[str, str]) -> dict[str, str]:
    """What decides which modules an import loads: their code, and the stubs that lazy rooms are made from."""
    state = {}
    for path in modules.values():
        state[path] = file_hash(path)
        stub = Path(path).with_suffix(".pyi")
        if stub.exists():
            state[str(stub)] = hashlib.sha256(stub.read_bytes()).hexdigest()
    return state


def _pack(finished: Finished) -> bytes:
    outcome = finished.outcome
    arrays = {}
    for name, value in outcome.arrays.items():
        array = np.asarray(value)
        if array.dtype.hasobject:
            raise DtypeError(
                f"array {name!r} of the outcome holds objects", given=array.dtype, expected="numbers or text"
            )
        arrays[ARRAY + name] = array
    head = {
        "metrics": {name: float(value) for name, value in outcome.metrics.items()},
        "seconds": finished.seconds,
        "versions": dict(finished.versions),
    }
    buffer = io.BytesIO()
    text = np.frombuffer(json.dumps(head).encode(), dtype=np.uint8)
    members: dict[str, Any] = {TRIAL: text, **arrays}
    np.savez_compressed(buffer, **members)
    return buffer.getvalue()


def _unpack(data: bytes) -> Finished | None:
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as file:
            head = json.loads(file[TRIAL].tobytes())
            arrays = {name[len(ARRAY) :]: file[name] for name in file.files if name.startswith(ARRAY)}
        return Finished(Outcome(head["metrics"], arrays), float(head["seconds"]), head["versions"])
    except (ValueError, KeyError, OSError, EOFError, zipfile.BadZipFile, zlib.error):
        return None


def cache_folder() -> Path:
    """The user's own cache folder of Plexus."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "plexus"
