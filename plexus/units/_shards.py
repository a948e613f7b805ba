"""Recordings too large for memory: a folder of shards, written one after another and read lazily.

    header.json              the sites, written first
    shard-000000.safetensors rows of all sites that had any, each shard moved into place whole
    labels.safetensors       labels, if any
    complete.json            the number of shards and samples, written last

A writer that is killed leaves whole shards and no `complete.json`.
"""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from safetensors import safe_open
from torch import Tensor

from plexus.errors import FormatError
from plexus.units._files import UnwritableError, read_json, read_tensors, write_json, write_tensors
from plexus.units._rows import COLUMNS, Table
from plexus.units._site import Site

KIND, VERSION = "recording-shards", 1
Value = TypeVar("Value")


class ShardWriter:
    """Appends rows to a folder, shard by shard.

    Raises:
        UnwritableError: if the folder cannot be made or already holds something.
    """

    def __init__(
        self, folder: str | os.PathLike[str], sites: list[Site], model: str | None, pooled: str | None
    ) -> None:
        self.folder = Path(folder)
        if self.folder.exists() and (not self.folder.is_dir() or any(self.folder.iterdir())):
            raise UnwritableError(
                "a recording spills into a folder of its own, and this one is not empty",
                given=self.folder,
                mend="name a new folder, or remove the old recording",
            )
        self._sites, self.count = sites, 0
        self._made = [place for place in (self.folder, *self.folder.parents) if not place.exists()]
        body = {"sites": [site.to_json() for site in sites], "model": model, "pooled": pooled}
        write_json(self.folder / "header.json", KIND, VERSION, body)

    def discard(self) -> None:
        """Remove what was written, and the folders that were made for it."""
        for entry in self.folder.iterdir():
            entry.unlink()
        for place in self._made:
            with contextlib.suppress(OSError):  # somebody else has put something there
                place.rmdir()

    def append(self, values: Mapping[Site, Tensor], table: Mapping[Site, Table]) -> None:
        """Write one shard."""
        tensors: dict[str, Tensor] = {}
        for i, site in enumerate(self._sites):
            if site in values and len(values[site]):
                tensors[f"values.{i}"] = values[site]
                tensors.update({f"{name}.{i}": getattr(table[site], name) for name in COLUMNS})
        if tensors:
            write_tensors(self.folder / _shard(self.count), KIND, VERSION, {"shard": self.count}, tensors)
            self.count += 1

    def close(self, samples: int, labels: Tensor | Mapping[str, Tensor] | None) -> None:
        """Write labels and the mark that all is there."""
        named = list(labels) if isinstance(labels, Mapping) else []
        if labels is not None:
            tensors = (
                {f"label.{i}": labels[name] for i, name in enumerate(named)}
                if isinstance(labels, Mapping)
                else {"labels": labels}
            )
            write_tensors(self.folder / "labels.safetensors", KIND, VERSION, {"concepts": named}, tensors)
        body = {"shards": self.count, "samples": samples, "labels": labels is not None}
        write_json(self.folder / "complete.json", KIND, VERSION, body)


class Shards:
    """A folder of shards, read lazily.

    Raises:
        FormatError: if the folder is not a recording, of another version, or a shard is missing.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        if not (folder / "header.json").exists():
            raise FormatError("this folder is not a recording", given=folder, expected="header.json in it")
        header = read_json(folder / "header.json", KIND, VERSION)
        self.complete = (folder / "complete.json").exists()
        count = len(list(folder.glob("shard-*.safetensors")))
        ending: dict[str, Any] = read_json(folder / "complete.json", KIND, VERSION) if self.complete else {}
        try:
            self._sites = [Site.from_json(entry) for entry in header["sites"]]
            self.model, self.pooled = header["model"], header["pooled"]
            count = ending.get("shards", count)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise FormatError("the header of this recording is damaged", given=f"{folder}: {error}") from error
        self._paths = [folder / _shard(i) for i in range(count)]
        for path in self._paths:
            if not path.exists():
                raise FormatError("a shard of this recording is missing", given=path)
        # what each shard holds, from the headers of the files alone
        self._shapes = [_shapes(path) for path in self._paths]
        if not self.complete:
            warnings.warn(
                f"the writer of {folder} did not finish: {count} shards are there, and no labels", stacklevel=4
            )
        self.samples = ending["samples"] if self.complete else self._seen()
        self.labels = self._read_labels() if ending.get("labels") else None

    @property
    def values(self) -> Mapping[Site, Tensor]:
        """The values of each site, read when looked up."""
        return _Lazy(self._present(), self._read_values)

    @property
    def table(self) -> Mapping[Site, Table]:
        """The table of each site, read when looked up."""
        return _Lazy(self._present(), self._read_table)

    @property
    def sizes(self) -> dict[Site, int]:
        """The number of units of each site."""
        return {site: self.shape(site)[0][1] for site in self._present()}

    def shape(self, site: Site) -> tuple[tuple[int, ...], str]:
        """Shape and dtype of all the values of one site, without reading them."""
        key = f"values.{self._sites.index(site)}"
        found = [shapes[key] for shapes in self._shapes if key in shapes]
        return (sum(shape[0] for shape, _ in found), *found[0][0][1:]), found[0][1]

    def chunks(self, site: Site) -> Iterator[tuple[Tensor, Table]]:
        """Values and table of one site, shard by shard."""
        i = self._sites.index(site)
        for path in self._having(i):
            _, tensors = read_tensors(path, KIND, VERSION, only=lambda name: name.rpartition(".")[2] == str(i))
            yield tensors[f"values.{i}"], Table(*(tensors[f"{name}.{i}"] for name in COLUMNS))

    def _present(self) -> list[Site]:
        return [site for i, site in enumerate(self._sites) if any(self._having(i))]

    def _having(self, i: int) -> list[Path]:
        return [p for p, shapes in zip(self._paths, self._shapes, strict=True) if f"values.{i}" in shapes]

    def _read_values(self, site: Site) -> Tensor:
        return torch.cat([values for values, _ in self.chunks(site)])

    def _read_table(self, site: Site) -> Table:
        i = self._sites.index(site)
        keys = [f"{name}.{i}" for name in COLUMNS]
        read = [read_tensors(path, KIND, VERSION, only=lambda name: name in keys)[1] for path in self._having(i)]
        return Table.cat([Table(*(tensors[key] for key in keys)) for tensors in read])

    def _seen(self) -> int:
        return max((int(self._read_table(site).sample.max()) + 1 for site in self._present()), default=0)

    def _read_labels(self) -> Tensor | dict[str, Tensor]:
        body, tensors = read_tensors(self.folder / "labels.safetensors", KIND, VERSION)
        if body["concepts"]:
            return {name: tensors[f"label.{i}"] for i, name in enumerate(body["concepts"])}
        return tensors["labels"]


class _Lazy(Mapping[Site, Value], Generic[Value]):
    def __init__(self, sites: list[Site], read: Callable[[Site], Value]) -> None:
        self._sites, self._read = sites, read

    def __getitem__(self, site: Site) -> Value:
        if site not in self._sites:
            raise KeyError(site)
        return self._read(site)

    def __iter__(self) -> Iterator[Site]:
        return iter(self._sites)

    def __len__(self) -> int:
        return len(self._sites)


def _shard(number: int) -> str:
    return f"shard-{number:06d}.safetensors"


def _shapes(path: Path) -> dict[str, tuple[tuple[int, ...], str]]:
    read_tensors(path, KIND, VERSION, only=lambda name: False)
    names = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "I64": "int64", "I32": "int32"}
    names |= {"I16": "int16", "I8": "int8", "U8": "uint8", "BOOL": "bool"}
    with safe_open(str(path), framework="pt") as file:
        found = {}
        for name in file.keys():  # noqa: SIM118
            part = file.get_slice(name)
            dtype = part.get_dtype()
            found[name] = (tuple(part.get_shape()), f"torch.{names.get(dtype, dtype)}")
        return found
