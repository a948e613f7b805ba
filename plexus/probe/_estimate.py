"""What a recording will need, from its first batch, before it is made."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from torch import nn

from plexus.errors import DtypeError
from plexus.probe._batches import Forward, each_batch
from plexus.probe._collect import Positions
from plexus.probe._record import BUDGET, Loss, record
from plexus.probe._sizes import ROW, Estimate, count_of, sized
from plexus.probe._store import SHARD
from plexus.units import Site
from plexus.units._rows import How

__all__ = ["estimate"]


def estimate(
    model: nn.Module,
    batches: Any,
    at: Site | Iterable[Site],
    *,
    pool: How | None = None,
    by: Sequence[str] = ("sample",),
    positions: Positions = "all",
    grad: Loss | None = None,
    forward: Forward | None = None,
    generate: Mapping[str, Any] | bool | None = None,
    before_batch: Callable[[nn.Module], object] | None = None,
    budget: int | None = BUDGET,
) -> Estimate:
    """How large a recording will be, in memory and on disk, from its first batch; nothing is kept.

    Args and raises: as `record`; an iterator of batches is refused, because its first batch would be gone.

    Examples:
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU())
        >>> import torch
        >>> batches = [torch.randn(16, 4)] * 100
        >>> found = estimate(model, batches, Site("1", "b u"), budget=10_000)
        >>> found.rows, found.bytes, found.disk > 0
        (1600, 102400, True)
        >>> recorded = record(model, batches, Site("1", "b u"))
        >>> recorded[Site("1", "b u")].nbytes + 32 * 1600 == found.bytes
        True
    """
    batch = next(each_batch(_first_of(batches)))
    first = record(
        model, [batch], at, pool=pool, by=by, positions=positions, grad=grad, forward=forward, generate=generate,
        before_batch=before_batch, budget=None, progress=False,
    )  # fmt: skip
    size = sum(first[site].nbytes + ROW * len(first.table[site]) for site in first.sites)
    rows = sum(len(first.table[site]) for site in first.sites)
    return sized(size, rows, sum(first.sizes.values()), count_of(batches), budget, SHARD)


def _first_of(batches: Any) -> Any:
    """The first batch, where looking at it does not use it up.

    Raises:
        DtypeError: the batches come from an iterator.
    """
    if isinstance(batches, Iterator):
        raise DtypeError(
            "an estimate looks at the first batch, which uses up an iterator",
            given=type(batches).__name__,
            mend="pass a list or a DataLoader",
        )
    if isinstance(batches, Mapping) or not isinstance(batches, Iterable) or hasattr(batches, "shape"):
        return batches
    return next(iter(batches), batches)
