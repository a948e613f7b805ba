"""Many patches in one pass: every row of a batch gets its own.

A batch is repeated, one row for each pair of (place, sample), and at every site one operation puts into each row what
that row asks for. So a map over layers × positions × units × samples costs as many rows as it has cells, in as few
passes as memory allows, instead of one pass per cell.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from plexus.errors import DtypeError, RangeError, ShapeError, SiteError, UnsupportedError
from plexus.probe._batches import Forward, run
from plexus.units import Operation, Site, Visit, attach

ALL = -1
"""The position or unit that stands for every one."""


def laid_out(values: Tensor, visit: Visit) -> Tensor:
    """Values as `[sample, position, …, unit(, feature)]`: position is the token, else the first other row axis."""
    rows = list(visit.rows)
    if "b" not in rows:
        raise SiteError(
            f"site {visit.site.path!r} has no samples to patch row by row",
            given=f"axes {visit.site.axes}",
            mend="rows that a mixture sends to an expert are no samples: take the mixture's output, or other sites",
        )
    out = values.movedim(rows.index("b"), 0)
    rows.remove("b")
    if not rows:
        return out.unsqueeze(1)
    return out if "t" not in rows else out.movedim(1 + rows.index("t"), 1)


def laid_back(laid: Tensor, visit: Visit) -> Tensor:
    """The inverse of `laid_out`."""
    rows = list(visit.rows)
    at = rows.index("b")
    rows.remove("b")
    out = laid.squeeze(1) if not rows else laid if "t" not in rows else laid.movedim(1, 1 + rows.index("t"))
    return out.movedim(0, at)


class Capture:
    """Keeps what a site held, by call, `[sample, position, …, unit(, feature)]`."""

    records = True

    def __init__(self, site: Site) -> None:
        self.site = site
        self.held: dict[int, Tensor] = {}

    def __call__(self, values: Tensor, visit: Visit) -> None:
        self.held[visit.call] = laid_out(values.detach(), visit).clone()


@dataclass(frozen=True)
class Rows:
    """What each row of a batch gets at one site; rows that get nothing there are left out.

    Attributes:
        row: the row of the batch, `[n]`.
        source: the row of the held values that it takes, `[n]`.
        where: at which positions and units, bool `[n, position, unit]`; either may be 1 long, which means every one.
    """

    row: Tensor
    source: Tensor
    where: Tensor

    @classmethod
    def whole(cls, source: Tensor) -> Rows:
        """Every row of the batch gets the row `source[row]` of the held values, all of it."""
        return cls(torch.arange(len(source)), source, torch.ones(len(source), 1, 1, dtype=torch.bool))


class RowPatch:
    """Puts values held from another run into rows of a batch."""

    records = False

    def __init__(self, site: Site, held: Mapping[int, Tensor], rows: Rows) -> None:
        self.site, self.held, self.rows = site, held, rows

    def __call__(self, values: Tensor, visit: Visit) -> Tensor:
        held, rows = self.held.get(visit.call), self.rows
        laid = laid_out(values, visit)
        if held is None or held.shape[1:] != laid.shape[1:]:
            raise ShapeError(
                f"the two runs differ at site {self.site.path!r}",
                given="no such call" if held is None else tuple(held.shape[1:]),
                expected=tuple(laid.shape[1:]),
                mend="both inputs have one length, and both models one width",
            )
        # [n, position, unit] with the row axes in between, and the features behind
        between = laid.dim() - 3 - self.site.has_features
        here = rows.where.to(laid.device)
        here = here.reshape(len(here), here.shape[1], *(1 for _ in range(between)), here.shape[2])
        here = here.unsqueeze(-1) if self.site.has_features else here
        row = rows.row.to(laid.device)
        mine = laid.index_select(0, row)
        new = torch.where(here, held.to(laid)[rows.source.to(laid.device)], mine)
        return laid_back(laid.index_copy(0, row, new), visit)


class Frozen(RowPatch):
    """Puts the held values into every row, and keeps what came in: what would have been without."""

    def __init__(self, site: Site, held: Mapping[int, Tensor], source: Tensor) -> None:
        super().__init__(site, held, Rows.whole(source))
        self.came: dict[int, Tensor] = {}

    def __call__(self, values: Tensor, visit: Visit) -> Tensor:
        self.came[visit.call] = laid_out(values.detach(), visit).clone()
        return super().__call__(values, visit)


def spots(position: Tensor, unit: Tensor, length: int, units: int) -> Tensor:
    """Where each of n patches goes, bool `[n, position, unit]`; `ALL` is every position, or every unit."""
    along = torch.ones(len(position), 1, dtype=torch.bool)
    if bool((position != ALL).any()):
        along = (position[:, None] == ALL) | (position[:, None] == torch.arange(length))
    across = torch.ones(len(unit), 1, dtype=torch.bool)
    if bool((unit != ALL).any()):
        across = (unit[:, None] == ALL) | (unit[:, None] == torch.arange(units))
    return along[:, :, None] & across[:, None, :]


def count_samples(batch: Any) -> int:
    """The number of samples of a batch: the first dimension of its first tensor."""
    values = (
        list(batch.values()) if isinstance(batch, Mapping) else batch if isinstance(batch, tuple | list) else [batch]
    )
    for value in values:
        if isinstance(value, Tensor) and value.dim():
            if not len(value):
                raise ShapeError("the batch is empty", given=tuple(value.shape))
            return len(value)
    raise DtypeError(
        "the inputs are one batch", given=type(batch).__name__, expected="a tensor or a mapping of tensors"
    )


def check_control(control: bool, pairs: int) -> None:
    """Refuse a control where there is no other pair to take values from."""
    if control and pairs < 2:
        raise RangeError(
            "the control of a patch takes the values of another pair",
            given="one pair",
            mend="pass two pairs or more, or control=False",
        )


def check_pairs(first: Any, second: Any) -> int:
    """The number of pairs; raises unless both inputs have the same shapes and the same padding.

    Raises:
        ShapeError: they differ in samples, lengths or padding.
    """
    pairs = count_samples(first)
    one, two = _tensors(first), _tensors(second)
    if type(first) is not type(second) and not (isinstance(first, Mapping) and isinstance(second, Mapping)):
        raise DtypeError(
            "both inputs of a pair have one form", given=f"{type(first).__name__} and {type(second).__name__}"
        )
    if one.keys() != two.keys():
        raise ShapeError("both inputs of a pair have the same arguments", given=f"{sorted(one)} and {sorted(two)}")
    for name, value in one.items():
        if value.shape != two[name].shape:
            raise ShapeError(
                f"the inputs of a pair differ in shape{f' ({name})' if name else ''}",
                given=f"{tuple(value.shape)} and {tuple(two[name].shape)}",
                mend="pairs have as many tokens: choose answers and subjects of one length, and pad both alike",
            )
        if "mask" in name and not torch.equal(value, two[name]):
            raise ShapeError(
                "the inputs of a pair are padded differently",
                given=name,
                mend="pairs have as many tokens: choose answers and subjects of one length",
            )
    return pairs


def _tensors(batch: Any) -> dict[str, Tensor]:
    if isinstance(batch, Tensor):
        return {"": batch}
    items = batch.items() if isinstance(batch, Mapping) else enumerate(batch)
    return {str(name): value for name, value in items if isinstance(value, Tensor)}


def held_by(
    model: nn.Module, batch: Any, sites: Sequence[Site], forward: Forward | None, edits: Sequence[Operation] = ()
) -> tuple[dict[Site, dict[int, Tensor]], Any]:
    """What the sites hold when the model runs on a batch, and the output."""
    captures = [Capture(site) for site in dict.fromkeys(sites)]
    with attach(model, [*edits, *captures]):
        output = run(model, batch, forward, None)
    return {capture.site: capture.held for capture in captures}, output


def sizes_of(held: Mapping[Site, Mapping[int, Tensor]]) -> dict[Site, int]:
    """The number of units of each site that was held."""
    return {site: next(iter(calls.values())).shape[-2 if site.has_features else -1] for site, calls in held.items()}


def lengths_of(held: Mapping[Site, Mapping[int, Tensor]]) -> dict[Site, int]:
    """The number of positions of each site that was held."""
    return {site: next(iter(calls.values())).shape[1] for site, calls in held.items()}


def refuse_cache(batch: Any) -> None:
    """Raise if a batch brings a cache of its own, which rows cannot be taken from."""
    if isinstance(batch, Mapping) and batch.get("past_key_values") is not None:
        raise UnsupportedError("a batch with a cache cannot be repeated row by row", mend="pass the whole prompt")
