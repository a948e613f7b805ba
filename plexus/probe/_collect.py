"""From what an operation sees at a site to rows of a recording."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from plexus.errors import RangeError, ShapeError, SiteError
from plexus.units import Site, Table, Visit
from plexus.units._routing import Routed
from plexus.units._rows import Pool

Positions = Literal["all", "prompt", "generated", "last"]
POSITIONS: tuple[Positions, ...] = ("all", "prompt", "generated", "last")


@dataclass(frozen=True)
class Layout:
    """Which rows a visit gives: their place in the batch, and which of them count.

    Attributes:
        sample: sample within the batch, `[row]`.
        position: `[row]`.
        keep: boolean `[row]`, false for padding and for positions not asked for; None keeps all.
        samples: number of samples in the batch.
    """

    sample: Tensor
    position: Tensor
    keep: Tensor | None
    samples: int


def layout(lead: Sequence[int], visit: Visit, positions: Positions) -> Layout:
    """The rows of values with leading sizes `lead`, as the visit names them; worked out once per pass."""
    if visit.routed is not None:
        return _routed(visit, visit.routed, positions)
    key = ("layout", tuple(lead), visit.rows, positions)
    if key not in visit.run.memo:
        visit.run.memo[key] = _layout(lead, visit, positions)
    found: Layout = visit.run.memo[key]
    return found


def _layout(lead: Sequence[int], visit: Visit, positions: Positions) -> Layout:
    names, run = visit.rows, visit.run
    index = dict(
        zip(names, torch.meshgrid(*[torch.arange(n) for n in lead], indexing="ij"), strict=True) if names else ()
    )
    sizes = dict(zip(names, lead, strict=True))
    rows = math.prod(lead)
    batch, time = sizes.get("b", 1), sizes.get("t")
    row = index["b"].reshape(-1) if "b" in index else torch.zeros(rows, dtype=torch.int64)
    if run.samples is not None and len(run.samples) == batch:
        of_sample = run.samples.cpu()
    else:
        of_sample = torch.arange(batch)
    step = index["t"].reshape(-1) if "t" in index else None
    token = (batch, time)
    position = torch.zeros(rows, dtype=torch.int64)
    axes = [name for name in names if name != "b"]
    if step is not None and run.positions is not None and tuple(run.positions.shape) == token:
        position = run.positions.cpu().to(torch.int64)[row, step]
        axes.remove("t")
    for name in axes:
        position = position * sizes[name] + index[name].reshape(-1)
    keep: Tensor | None = None
    if step is not None and run.mask is not None and tuple(run.mask.shape) == token:
        keep = run.mask.cpu().bool()[row, step]
    if step is not None and positions in ("prompt", "generated"):
        generated = torch.zeros(time or 0, dtype=torch.bool)
        if run.generated is not None and len(run.generated) == time:
            generated = run.generated.cpu()
        wanted = (generated if positions == "generated" else ~generated)[step]
        keep = wanted if keep is None else keep & wanted
    if step is not None and positions == "last":
        real = torch.ones(rows, dtype=torch.bool) if keep is None else keep
        latest = torch.full((batch,), -1).scatter_reduce(0, row, torch.where(real, step, -1), "amax")
        keep = real & (step == latest[row])
    return Layout(of_sample[row], position, keep, int(of_sample.max()) + 1)


def _table(rows: Layout, visit: Visit, step: int) -> Table:
    """The table of the rows that are kept; sites with equal rows share it, so that their grouping is found once."""
    if visit.routed is not None:  # each expert has rows of its own
        return _tabled(rows, visit, step)
    key = ("table", id(rows), visit.call, step)
    if key not in visit.run.memo:
        visit.run.memo[key] = _tabled(rows, visit, step)
    found: Table = visit.run.memo[key]
    return found


def _tabled(rows: Layout, visit: Visit, step: int) -> Table:
    sample, position = rows.sample, rows.position
    if rows.keep is not None:
        sample, position = sample[rows.keep], position[rows.keep]
    return Table(sample, position, torch.full_like(sample, visit.call), torch.full_like(sample, step))


def _routed(visit: Visit, routed: Routed, positions: Positions) -> Layout:
    """The rows that an expert was sent: those of all tokens, picked."""
    if visit.rows != ("r",):
        raise SiteError(f"routed rows stand alone, as in 'r u', at site {visit.site.path!r}", given=visit.site.axes)
    names: tuple[str, ...] = ("b",)
    lead: tuple[int, ...] = (routed.batch,)
    known = visit.run.positions if visit.run.positions is not None else visit.run.mask
    if routed.time is not None:
        names, lead = ("b", "t"), (routed.batch, routed.time)
    elif known is not None and known.numel() == routed.batch:  # the block was called with the tokens in one row
        names, lead = ("b", "t"), (int(known.shape[0]), int(known.shape[1]))
    every = layout(lead, replace(visit, rows=names, routed=None), positions)
    keep = None if every.keep is None else every.keep[routed.token]
    return Layout(every.sample[routed.token], every.position[routed.token], keep, every.samples)


class Collector:
    """Takes visits of one batch and gives the rows of each site.

    Args:
        sites: what is recorded.
        pool: reduce the rows of each sample as they come; None keeps all.
        by: columns that stay apart when pooling.
        finite: refuse NaN and infinity.
    """

    def __init__(self, sites: Sequence[Site], pool: str | None, by: Sequence[str], finite: bool) -> None:
        self.sites, self.pool, self.by, self.finite = list(sites), pool, tuple(by), finite
        self.begin()

    def begin(self) -> None:
        """A new batch."""
        self._pieces: dict[Site, list[tuple[Tensor, Table]]] = {site: [] for site in self.sites}
        self._pools = {site: Pool(self.pool, self.by) for site in self.sites} if self.pool else {}
        self._passes: dict[Site, dict[int, int]] = {site: {} for site in self.sites}
        self._samples: dict[Site, int] = {}

    def add(self, site: Site, values: Tensor, visit: Visit, rows: Layout) -> None:
        """Values `[*rows, unit(, feature)]` of one visit, copied at once."""
        known = self._samples.setdefault(site, rows.samples)
        if known != rows.samples:
            raise ShapeError(
                f"{site} saw different numbers of samples within one batch", given=f"{known} and {rows.samples}"
            )
        lead = len(visit.rows)
        if 0 in values.shape[lead:]:
            raise ShapeError(f"site {site} has no units", given=tuple(values.shape))
        flat = values.detach().reshape(len(rows.sample), *values.shape[lead:])
        flat = (flat.clone() if rows.keep is None else flat[rows.keep.to(flat.device)]).cpu()
        passes = self._passes[site]
        table = _table(rows, visit, passes.setdefault(visit.run.index, len(passes)))
        # a finite sum has finite terms, and adding is cheaper than looking at each; if it overflows, they are looked at
        if self.finite and flat.is_floating_point() and not math.isfinite(flat.sum()) and not flat.isfinite().all():
            self._complain(site, flat, table)
        if self.pool:
            self._pools[site].add(flat, table)
        else:
            self._pieces[site].append((flat, table))

    def finish(self, first: int) -> tuple[dict[Site, Tensor], dict[Site, Table], int | None]:
        """Values and table of each site that was visited, and the number of samples; `first` numbers the first one."""
        counts = set(self._samples.values())
        if len(counts) > 1:
            few, many = (
                min(self._samples, key=self._samples.__getitem__),
                max(self._samples, key=self._samples.__getitem__),
            )
            raise ShapeError(
                "two sites saw different numbers of samples in one batch",
                given=f"{few}: {self._samples[few]}; {many}: {self._samples[many]}",
                mend="name the axes of the folded one, for example axes='(t:10 b) u', or record it by itself",
            )
        values: dict[Site, Tensor] = {}
        table: dict[Site, Table] = {}
        for site in self._samples:
            if self.pool:
                values[site], rows = self._pools[site].result()
            else:
                pieces = self._pieces[site]
                values[site] = torch.cat([piece for piece, _ in pieces])
                rows = Table.cat([part for _, part in pieces])
            table[site] = Table(rows.sample + first, rows.position, rows.call, rows.step)
        samples = counts.pop() if counts else None
        self.begin()
        return values, table, samples

    def _complain(self, site: Site, flat: Tensor, table: Table) -> None:
        bad = ~flat.isfinite()
        while bad.dim() > 1:
            bad = bad.any(-1)
        row = int(bad.nonzero()[0])
        kind = "NaN" if bool(flat[row].isnan().any()) else "an infinite value"
        raise RangeError(
            f"{kind} at {site}",
            given=f"sample {int(table.sample[row])} of the batch, position {int(table.position[row])}; "
            f"{int(bad.sum())} of {len(flat)} rows are affected",
            mend="look at the input and the weights, or pass nonfinite='keep' to record it as it is",
        )
