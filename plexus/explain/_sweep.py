"""One unit changed at a time, for many units, with many of them in one pass of the model.

A batch of B samples is repeated K times; in the k-th copy unit u_k of one site is multiplied by its own factor and
everything else is left alone. So K interventions cost one forward pass of K·B rows, and each row is what the model
gives under that one edit. What lies before the site in a stack of blocks is the same in all of them: a `Prefix` keeps
it from one pass, where a trial shows that to be exact.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from plexus.errors import DtypeError, RangeError, ShapeError, SiteError
from plexus.explain._prefix import Prefix, taken
from plexus.probe._batches import run
from plexus.probe._progress import length, tracked
from plexus.probe._quiet import quiet
from plexus.units import Site, Visit, attach, sites

Outcome = Callable[[Any, Any], Tensor]


class Cell(NamedTuple):
    """One intervention: a unit of the site and what it is multiplied by."""

    unit: int
    factor: float


def sweep(
    model: nn.Module,
    batch: Any,
    site: Site,
    cells: Sequence[Cell | tuple[int, float]],
    *,
    rows: int = 1024,
    prefix: Prefix | None = None,
    among: Tensor | None = None,
) -> Iterator[tuple[list[Cell], Any]]:
    """What the model gives for a batch under each of many edits of single units.

    Args:
        model: any module whose inputs are batch first; runs in evaluation mode and is left as it was.
        batch: a tensor `[sample, …]`, or a mapping of such tensors that is passed by keyword.
        site: where the units live.
        cells: (unit, factor) pairs; factor 0 switches the unit off, 1 changes nothing.
        rows: how many rows of samples a pass may have; it decides how many cells share one.
        prefix: of this model and batch, from `kept_prefix`; the blocks before the site are then not run again.
        among: where the samples stand in the batch of the prefix, `[sample]`, if that is a larger one.

    Yields:
        Some of the cells, and the model's output for them: its rows are the samples of the first cell, then those of
        the second, and so on.

    Raises:
        DtypeError: the batch is neither. ShapeError: it is empty or its tensors differ in length. RangeError: a unit
            that the site does not have, or a factor that is not finite. SiteError: the site has no axis of samples.

    Examples:
        >>> from plexus.units import Site
        >>> model = nn.Sequential(nn.Identity(), nn.Flatten())
        >>> for cells, out in sweep(model, torch.ones(1, 3), Site("0", "b u"), [(0, 0.0), (2, 5.0)]):
        ...     print(len(cells), out.tolist())
        2 [[0.0, 1.0, 1.0], [1.0, 1.0, 5.0]]
    """
    wanted = [Cell(int(unit), float(factor)) for unit, factor in cells]
    for cell in wanted:
        if not torch.isfinite(torch.tensor(cell.factor)) or cell.unit < 0:
            raise RangeError("a cell is a unit and a finite factor", given=tuple(cell))
    samples = batch_length(batch)
    together = max(1, rows // samples)
    for start in range(0, len(wanted), together):
        part = wanted[start : start + together]
        copies = torch.arange(samples).repeat(len(part))
        given = copies if among is None else among[copies]
        # the blocks before the site see what they saw without the edit
        spared = contextlib.nullcontext() if prefix is None else prefix.skipping(prefix.before(site), given)
        with quiet(model), spared, attach(model, [_OneEach(site, part, samples)]):
            output = run(model, taken(batch, copies, samples), None, None)
        yield part, output


def kept_prefix(model: nn.Module, batch: Any, at: Sequence[Site]) -> tuple[Prefix, Any]:
    """What the blocks before these sites give for a batch, kept where it can be used again; and the model's output."""
    with quiet(model):
        prefix = Prefix(model, batch, batch_length(batch))
        output = prefix.run()
        prefix.try_out([prefix.before(site) for site in at])
    return prefix, output


def unit_effects(
    model: nn.Module,
    batches: Iterable[Any],
    at: Site | Sequence[Site],
    outcome: Outcome,
    *,
    factor: float = 0.0,
    rows: int = 1024,
) -> dict[Site, Tensor]:
    """By how much each unit, changed alone, changes an outcome of each sample.

    Args:
        model: any module whose inputs are batch first.
        batches: tensors `[sample, …]` or mappings of such tensors.
        at: sites whose units are taken one by one.
        outcome: `outcome(output, batch)` gives a number per row, for instance the log-probability of the right answer;
            it is called with outputs of several copies of the batch, and with the batch repeated alike.
        factor: what the unit is multiplied by: 0 switches it off.
        rows: how many rows of samples a pass may have.

    Returns:
        Per site `[unit, sample]`: outcome under the edit minus outcome without.

    Raises:
        ShapeError: the outcome is not one number per row. Others as `sweep`.

    Examples:
        >>> from plexus.units import Site
        >>> model = nn.Sequential(nn.Identity(), nn.Flatten())
        >>> site = Site("0", "b u")
        >>> unit_effects(model, [torch.tensor([[1.0, 2.0]])], site, lambda out, batch: out.sum(1))[site].tolist()
        [[-1.0], [-2.0]]
    """
    chosen = [at] if isinstance(at, Site) else list(at)
    found: dict[Site, list[Tensor]] = {site: [] for site in chosen}
    for batch in tracked(batches, "units switched one by one", length(batches), None):
        samples = batch_length(batch)
        with quiet(model):
            sizes = sites.measure(model, batch, chosen)
        prefix, output = kept_prefix(model, batch, chosen)
        before = _per_row(outcome(output, batch), samples)

        def again(times: int, batch: Any = batch, samples: int = samples) -> Any:
            return taken(batch, torch.arange(samples).repeat(times), samples)

        for site in chosen:
            cells = [Cell(unit, factor) for unit in range(sizes[site])]
            changed = [
                _per_row(outcome(output, again(len(part))), len(part) * samples).reshape(len(part), samples)
                for part, output in sweep(model, batch, site, cells, rows=rows, prefix=prefix)
            ]
            found[site].append(torch.cat(changed) - before)
    return {site: torch.cat(parts, dim=1) for site, parts in found.items()}


def batch_length(batch: Any) -> int:
    """Number of samples of a batch: a tensor, or a mapping of tensors, samples first."""
    tensors = list(_tensors(batch))
    lengths = {len(tensor) for tensor in tensors if tensor.dim()}
    if len(lengths) != 1 or 0 in lengths:
        raise ShapeError("a batch needs samples, and its tensors as many each", given=sorted(lengths))
    return lengths.pop()


class _OneEach:
    """Multiplies one unit of each copy of the batch."""

    records = False

    def __init__(self, site: Site, cells: Sequence[Cell], samples: int) -> None:
        self.site, self.cells, self.samples = site, cells, samples

    def __call__(self, values: Tensor, visit: Visit) -> Tensor:
        if "b" not in visit.rows:
            raise SiteError(
                f"site {self.site.path!r} has no axis of samples",
                given=f"axes {self.site.axes!r}",
                mend="rows that a mixture sends to an expert are no samples: take the mixture's output, or other sites",
            )
        axis, lead, copies = visit.rows.index("b"), len(visit.rows), len(self.cells)
        units = values.shape[lead]
        worst = max(cell.unit for cell in self.cells)
        if worst >= units:
            raise RangeError(f"site {self.site.path!r} has no such unit", given=worst, expected=f"0 to {units - 1}")
        if values.shape[axis] != copies * self.samples:
            raise ShapeError(
                f"site {self.site.path!r} sees another number of samples than the batch has",
                given=int(values.shape[axis]),
                expected=copies * self.samples,
            )
        factor = torch.ones(copies, units, dtype=values.dtype)
        for row, cell in enumerate(self.cells):
            factor[row, cell.unit] = cell.factor
        factor = factor.to(values.device).repeat_interleave(self.samples, 0)
        shape = [1] * values.dim()
        shape[axis], shape[lead] = factor.shape
        factor = factor.reshape(shape)
        # where, not the product alone: 0 · inf would be NaN
        return torch.where(factor == 0, torch.zeros_like(values), values * factor)


def _tensors(batch: Any) -> Iterator[Tensor]:
    if isinstance(batch, Tensor):
        yield batch
    elif isinstance(batch, Mapping):
        yield from (value for value in batch.values() if isinstance(value, Tensor))
    else:
        raise DtypeError(
            "these are samples of no kind that can be repeated",
            given=type(batch).__name__,
            expected="a tensor or a mapping of tensors, samples first",
        )


def _per_row(values: Any, rows: int) -> Tensor:
    if not isinstance(values, Tensor) or values.shape != (rows,):
        given = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
        raise ShapeError("an outcome is one number per row", given=given, expected=(rows,))
    return values.detach().double().cpu()
