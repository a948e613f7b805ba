"""The table of rows of a recording, and how rows of one sample are pooled, piece by piece."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from plexus.errors import DtypeError, ShapeError, UnknownNameError

COLUMNS = ("sample", "position", "call", "step")
How = Literal["last", "first", "mean", "sum", "max", "min"]
HOW: tuple[str, ...] = get_args(How)


class Table:
    """What each row of a recording is: four columns, int64 `[row]`.

    Args:
        sample: number of the input, over all batches.
        position: place inside the sample; -1 where rows of several places were pooled.
        call: n-th use of the module in one pass.
        step: n-th pass of the model over the batch.

    A column left out is zero.

    Raises:
        ShapeError: if the columns differ in length.

    Examples:
        >>> table = Table(sample=[0, 0, 1], position=[0, 1, 0])
        >>> len(table), table[table.sample == 0].position
        (3, tensor([0, 1]))
    """

    __slots__ = (*COLUMNS, "_memo")

    sample: Tensor
    position: Tensor
    call: Tensor
    step: Tensor

    def __init__(
        self,
        sample: Tensor | Iterable[int],
        position: Tensor | Iterable[int] | None = None,
        call: Tensor | Iterable[int] | None = None,
        step: Tensor | Iterable[int] | None = None,
    ) -> None:
        self._memo: dict[tuple[str, ...], tuple[Tensor, ...]] = {}
        self.sample = _column("sample", sample)
        for name, given in (("position", position), ("call", call), ("step", step)):
            column = torch.zeros_like(self.sample) if given is None else _column(name, given)
            if len(column) != len(self.sample):
                raise ShapeError("columns of a table differ in length", given=f"{len(self.sample)} and {len(column)}")
            setattr(self, name, column)

    @classmethod
    def of(cls, columns: Mapping[str, object]) -> Table:
        """The table with these columns.

        Raises:
            UnknownNameError: if there is a column that tables do not have.
        """
        for name in columns:
            if name not in COLUMNS:
                raise UnknownNameError.among("column", name, COLUMNS)
        return cls(**columns)  # type: ignore[arg-type]

    @staticmethod
    def cat(tables: Sequence[Table]) -> Table:
        """Tables below each other."""
        if not tables:
            return Table([])
        return Table(*(torch.cat([getattr(table, name) for table in tables]) for name in COLUMNS))

    def order(self, by: Sequence[str]) -> Tensor:
        """Indices that sort the rows by these columns, first column first; equal rows keep their order."""
        order = torch.arange(len(self))
        for name in reversed(by):
            order = order[torch.argsort(getattr(self, name)[order], stable=True)]
        return order

    def groups(self, by: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Distinct values of these columns, `[group, column]` in order, and the group of each row, `[row]`."""
        key = ("groups", *by)
        if key not in self._memo:
            if len(by) == 1:  # ten times faster than unique rows
                group, member = torch.unique(getattr(self, by[0]), return_inverse=True)
                self._memo[key] = group[:, None], member
            else:
                keys = torch.stack([getattr(self, name) for name in by], 1)
                self._memo[key] = torch.unique(keys, dim=0, return_inverse=True)
        group, member = self._memo[key]
        return group, member

    def ends(self, by: Sequence[str], *, last: bool) -> Tensor:
        """Index of the last (or first) row of each group, in the order of call, position and step.

        Of rows equal in all columns (beams) the one recorded first is taken, whichever end is asked for.
        """
        key = ("last" if last else "first", *by)
        if key not in self._memo:
            group, member = self.groups(by)
            start = torch.arange(len(member))
            order = start.flip(0) if last else start
            for name in ("call", "position", "step"):
                order = order[torch.argsort(getattr(self, name)[order], stable=True)]
            order = order[torch.argsort(member[order], stable=True)]
            counts = torch.bincount(member, minlength=len(group))
            ends = counts.cumsum(0)
            self._memo[key] = (order[ends - 1] if last else order[ends - counts],)
        return self._memo[key][0]

    def __reduce__(self) -> tuple[Any, ...]:
        return Table, tuple(getattr(self, name) for name in COLUMNS)

    def __len__(self) -> int:
        return len(self.sample)

    def __getitem__(self, index: Tensor | slice) -> Table:
        index = index.cpu() if isinstance(index, Tensor) else index
        return Table(*(getattr(self, name)[index] for name in COLUMNS))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Table):
            return NotImplemented
        return all(torch.equal(getattr(self, name), getattr(other, name)) for name in COLUMNS)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        spans = ", ".join(
            f"{name} {int(column.min())}…{int(column.max())}" for name in COLUMNS if len(column := getattr(self, name))
        )
        return f"Table({len(self)} rows{': ' + spans if spans else ''})"


def counted(n: int, noun: str) -> str:
    """A number and its noun: "1 site", "2 sites"."""
    return f"{n} {noun}" + ("" if n == 1 else "s")


class Pool:
    """Reduces rows to one per group, fed piece by piece; a group may be spread over pieces.

    Args:
        how: "last", "first", "mean", "sum", "max" or "min".
        by: the columns that make a group.

    Raises:
        UnknownNameError: if `how` or a column does not exist.

    Examples:
        >>> pool = Pool("mean")
        >>> pool.add(torch.tensor([[1.0], [3.0]]), Table([0, 0]))
        >>> pool.add(torch.tensor([[5.0], [7.0]]), Table([0, 1]))
        >>> pool.result()[0]
        tensor([[3.],
                [7.]])
    """

    def __init__(self, how: str, by: Sequence[str] = ("sample",)) -> None:
        if how not in HOW:
            raise UnknownNameError.among("pooling", str(how), HOW)
        for name in by:
            if name not in COLUMNS:
                raise UnknownNameError.among("column", name, COLUMNS)
        self.how, self.by = how, tuple(by)
        self._values: Tensor | None = None
        self._table = Table([])
        self._weight = torch.empty(0)

    def add(self, values: Tensor, table: Table) -> None:
        """More rows, `[row, unit(, feature)]`, and their table."""
        if self.how in ("mean", "sum") and values.dtype != torch.float64:
            values = values.float()
        weight = torch.ones(len(values))
        if self._values is not None:
            values = torch.cat([self._values, values])
            table = Table.cat([self._table, table])
            weight = torch.cat([self._weight, weight])
        if not len(values):
            self._values, self._table, self._weight = values, table, weight
            return
        group, member = table.groups(self.by)
        if self.how in ("last", "first"):
            chosen = table.ends(self.by, last=self.how == "last")
            self._values, self._table, self._weight = values[chosen], table[chosen], weight[chosen]
            return
        shape = (len(group), *values.shape[1:])
        if self.how in ("mean", "sum"):
            reduced = values.new_zeros(shape).index_add_(0, member, values)
        else:
            index = member.reshape(-1, *[1] * (values.dim() - 1)).expand_as(values)
            mode = "amax" if self.how == "max" else "amin"
            reduced = values.new_zeros(shape).scatter_reduce(0, index, values, mode, include_self=False)
        self._values = reduced
        self._weight = torch.zeros(len(group)).index_add_(0, member, weight)
        pooled = torch.full((len(group),), -1, dtype=torch.int64)
        self._table = Table(*(group[:, self.by.index(name)] if name in self.by else pooled for name in COLUMNS))

    def result(self) -> tuple[Tensor, Table]:
        """One row per group, in the order of the group's columns, and their table."""
        if self._values is None:
            raise ShapeError("there are no rows to pool")
        if self.how != "mean":
            return self._values, self._table
        weight = self._weight.to(self._values.dtype).reshape(-1, *[1] * (self._values.dim() - 1))
        return self._values / weight, self._table


def _column(name: str, values: Tensor | Iterable[int]) -> Tensor:
    column = values if isinstance(values, Tensor) else torch.as_tensor(list(values), dtype=torch.int64)
    if column.is_floating_point() or column.is_complex() or column.dtype == torch.bool:
        raise DtypeError(f"the column {name!r} of a table is not of integers", given=str(column.dtype))
    if column.dim() != 1:
        raise ShapeError(f"the column {name!r} of a table is not one-dimensional", given=tuple(column.shape))
    return column.detach().to("cpu", torch.int64)
