"""Rows of a recording as they come: in memory, or on disk once they are too many."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import warnings
import weakref
from collections.abc import Sequence

import torch
from torch import Tensor

from plexus.errors import PlexusError, ShapeError
from plexus.probe._sizes import ROW, announce
from plexus.units import Recording, Site, Table
from plexus.units._recording import Labels
from plexus.units._shards import Shards, ShardWriter

SHARD = 64 * 2**20  # bytes of rows gathered before a shard is written


class Store:
    """Rows in memory, or on disk once they are too many."""

    def __init__(
        self,
        sites: Sequence[Site],
        pool: str | None,
        model: str,
        budget: int | None,
        spill: str | os.PathLike[str] | None,
    ) -> None:
        self.sites, self.pool, self.model, self.budget = list(sites), pool, model, budget
        self.values: dict[Site, list[Tensor]] = {site: [] for site in self.sites}
        self.table: dict[Site, list[Table]] = {site: [] for site in self.sites}
        self.held = 0
        self.temporary: str | None = None
        self.writer: ShardWriter | None = None
        if spill is not None:
            self.writer = ShardWriter(spill, self.sites, model, pool)

    def __enter__(self) -> Store:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            return
        if self.temporary is not None:
            shutil.rmtree(self.temporary, ignore_errors=True)
        elif self.writer is not None:
            if not issubclass(kind, PlexusError):
                with contextlib.suppress(OSError):
                    self.flush()  # what was recorded until an interruption stays readable
            if issubclass(kind, PlexusError) or self.writer.count == 0:
                self.writer.discard()  # refused input leaves nothing

    def add(self, values: dict[Site, Tensor], table: dict[Site, Table]) -> None:
        """Rows of one batch; raises `ShapeError` if a site has another number of units than before."""
        for site, value in values.items():
            if self.values[site] and self.values[site][0].shape[1:] != value.shape[1:]:
                raise ShapeError(
                    f"{site} has another number of units in this batch",
                    given=tuple(value.shape[1:]),
                    expected=tuple(self.values[site][0].shape[1:]),
                )
            self.values[site].append(value)
            self.table[site].append(table[site])
            self.held += value.numel() * value.element_size() + ROW * len(value)
        if self.writer is None and self.budget is not None and self.held > self.budget:
            self.temporary = tempfile.mkdtemp(prefix="plexus-recording-")
            self.writer = ShardWriter(self.temporary, self.sites, self.model, self.pool)
        if self.writer is not None and self.held > min(SHARD, self.budget or SHARD):
            self.flush()

    def foresee(self, batches: int | None) -> None:
        """Say what is coming, once the first batch is here, if it will not fit into the budget."""
        if self.budget is not None and batches is not None and self.writer is None:
            announce("this recording, more than its budget,", self.held * batches, "on disk", self.budget)

    def flush(self) -> None:
        """Write what is held as a shard, where rows go to disk."""
        if self.writer is None or not self.held:
            return
        # the last shapes stay behind as empty tensors, so that later batches are still compared with them
        self.writer.append(
            {site: torch.cat(parts) for site, parts in self.values.items() if parts},
            {site: Table.cat(parts) for site, parts in self.table.items() if parts},
        )
        self.values = {site: [part[:0] for part in parts[:1]] for site, parts in self.values.items()}
        self.table = {site: [part[:0] for part in parts[:1]] for site, parts in self.table.items()}
        self.held = 0

    def close(self, samples: int, labels: Labels | None) -> Recording:
        """The recording of all that was added; warns of experts that no token was sent to."""
        unsent = [str(site) for site, parts in self.values.items() if not parts]
        if unsent:
            warnings.warn(f"no token was sent to the experts at {', '.join(unsent[:6])}", stacklevel=3)
        if self.writer is not None:
            self.flush()
            self.writer.close(samples, labels)
            shards = Shards(self.writer.folder)
            if self.temporary is not None:
                weakref.finalize(shards, shutil.rmtree, self.temporary, ignore_errors=True)
            return Recording._spilled(shards)
        return Recording(
            {site: torch.cat(parts) for site, parts in self.values.items() if parts},
            {site: Table.cat(parts) for site, parts in self.table.items() if parts},
            samples=samples,
            labels=labels,
            model=self.model,
            pooled=self.pool,
        )
