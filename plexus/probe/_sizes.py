"""How much memory and disk recordings and scores need, and saying so."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from plexus.errors import UnknownNameError
from plexus.probe._progress import length
from plexus.units._recording import _bytes as in_words

LARGE = 2**30  # bytes in memory from which a score says what it needs
ROW = 32  # bytes of the table per row


@dataclass(frozen=True)
class Estimate:
    """Sizes of a recording that was not made yet, from its first batch. Printing says it in words.

    Attributes:
        batches: how many there are, or None where that is not known; then all numbers are those of one batch.
        rows: rows of all sites together, about.
        units: units of all sites together.
        bytes: size of all values and their table.
        batch_bytes: the same of one batch, which is what a stream holds at once.
        memory: bytes that `record` would hold at once with its budget.
        disk: bytes that would go to disk; 0 where all fits into the budget.

    Examples:
        >>> print(Estimate(batches=100, rows=3200, units=64, bytes=921600, batch_bytes=9216, memory=921600, disk=0))
        about 3,200 rows of 64 units: 900 KiB, in memory
    """

    batches: int | None
    rows: int
    units: int
    bytes: int
    batch_bytes: int
    memory: int
    disk: int

    def score(self, kind: Literal["moments", "ranking", "histogram", "medians"], concepts: int = 1) -> int:
        """Bytes that a score of this kind holds at once, besides a batch.

        Args:
            kind: "moments" for means, variances, d', attributions, counts; "ranking" for AUROC and average precision;
                "histogram" for mutual information; "medians" for massive activations.
            concepts: how many.

        Raises:
            UnknownNameError: another kind.

        Examples:
            >>> whole = Estimate(None, 100, 8, 9600, 9600, 9600, 0)
            >>> whole.score("moments", concepts=3), whole.score("ranking")
            (384, 9600)
        """
        sizes = {
            "moments": 16 * self.units * concepts,
            "ranking": self.memory,
            "histogram": 8 * self.units * (concepts + 1) * 1025,
            "medians": 0,
        }
        if kind not in sizes:
            raise UnknownNameError.among("kind of score", str(kind), sizes)
        return sizes[kind]

    def __str__(self) -> str:
        what = f"about {self.rows:,} rows of {self.units:,} units: {in_words(self.bytes)}"
        if self.batches is None:
            what += " for each batch; how many there are is not known"
        return what + (f", of which {in_words(self.memory)} at once in memory, on disk" if self.disk else ", in memory")


def sized(batch_bytes: int, rows: int, units: int, batches: int | None, budget: int | None, shard: int) -> Estimate:
    """The estimate for `batches` batches like one that was seen."""
    count = batches or 1
    total = batch_bytes * count
    spills = budget is not None and total > budget
    held = min(total, max(min(shard, budget or shard), 0) + batch_bytes) if spills else total
    return Estimate(batches, rows * count, units, total, batch_bytes, held, total if spills else 0)


def announce(what: str, size: int, where: str = "in memory", large: int | None = None) -> None:
    """Say on stderr what a costly step needs, before it starts; those up to `large` (`LARGE`) bytes say nothing."""
    if size > (LARGE if large is None else large):
        print(f"{what} needs about {in_words(size)} {where}", file=sys.stderr)


def count_of(batches: Any) -> int | None:
    """How many batches there are, if that is known."""
    if isinstance(batches, Mapping) or hasattr(batches, "shape"):
        return 1
    return length(batches)
