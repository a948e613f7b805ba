"""The product W z[t-1] of a recurrent layer and its derivatives, for dense and for sparse W.

What a spiking unit sends is mostly zero: of a dense W only the columns of units that emitted something are read, where
these are few (see `_events`). A sparse W is kept by columns, the synapses that leave unit j at `starts[j] …
starts[j + 1]`, and the loops walk along those of units that emitted something, and no others.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from plexus.kernels._events import add_events, few, gather_events
from plexus.kernels._threads import run_parts

__all__ = ["Product", "SparseWeight", "product"]

_WORTH = 1 << 17  # additions that are worth a thread


class SparseWeight(NamedTuple):
    """Weights of the synapses that exist, ordered by source and then by target."""

    values: Tensor  # [synapse]
    starts: Tensor  # where the synapses of each source begin, and the end, int64    [unit + 1]
    targets: Tensor  # unit that each synapse leads to, int64                        [synapse]

    @classmethod
    def of(cls, weight: Tensor, mask: Tensor | None = None) -> SparseWeight:
        """From a matrix `[unit (to), unit (from)]`; where the mask holds, or where the weight is not zero.

        Examples:
            >>> SparseWeight.of(torch.tensor([[0.0, 2.0], [3.0, 0.0]]))
            SparseWeight(values=tensor([3., 2.]), starts=tensor([0, 1, 2]), targets=tensor([1, 0]))
        """
        exists = (weight.detach() != 0 if mask is None else mask.bool()).T
        sources, targets = exists.nonzero(as_tuple=True)
        starts = torch.cat([sources.new_zeros(1), exists.sum(1).cumsum(0)])
        return cls(weight.T[sources, targets], starts, targets)

    def dense(self) -> Tensor:
        """The matrix `[unit (to), unit (from)]`; gradients reach the values."""
        return dense(self.values, self.starts, self.targets)


def dense(values: Tensor, starts: Tensor, targets: Tensor) -> Tensor:
    """The matrix of a sparse weight's parts."""
    units = len(starts) - 1
    sources = torch.repeat_interleave(
        torch.arange(units, device=starts.device), starts.diff(), output_size=len(targets)
    )
    return values.new_zeros(units * units).scatter(0, targets * units + sources, values).view(units, units)


class Product:
    """W, dense, between samples `[batch, unit]`."""

    def __init__(self, weight: Tensor) -> None:
        self.weight = weight
        self._transposed: Tensor | None = None

    def add(self, x: Tensor, z: Tensor, out: Tensor) -> None:
        """out = x + z Wᵀ."""
        if not few(z, len(self.weight)):
            torch.addmm(x, z, self.weight.T, out=out)
            return
        if self._transposed is None:
            self._transposed = self.weight.T.contiguous()
        out.copy_(x)
        add_events(z, self._transposed, out)

    def add_back(self, grad: Tensor, delta: Tensor, out: Tensor) -> None:
        """out = grad + delta W; out may be grad."""
        torch.addmm(grad, delta, self.weight, out=out)

    def gradient(self, delta: Tensor, z: Tensor, first: Tensor) -> Tensor:
        """Σ_t δ[t]ᵀ z[t-1] of delta and z `[time, batch, unit]`, z[-1] = first."""
        found = delta[0].T @ first
        if len(delta) < 2:
            return found
        later, before = delta[1:].flatten(0, 1), z[:-1].flatten(0, 1)
        return found + gather_events(before, later) if few(before, len(found)) else found.addmm_(later.T, before)


class _Sparse(Product):
    """W by columns."""

    def __init__(self, values: Tensor, starts: Tensor, targets: Tensor) -> None:
        self.values, self.rows = values.contiguous().numpy(), (starts.numpy(), targets.numpy())
        self.like = values

    def add(self, x: Tensor, z: Tensor, out: Tensor) -> None:
        out.copy_(x)
        arguments = (*self.rows, self.values, z.contiguous().numpy(), out.numpy())
        _spread(_compiled("scatter"), arguments, len(z), z.numel())

    def add_back(self, grad: Tensor, delta: Tensor, out: Tensor) -> None:
        if out is not grad:
            out.copy_(grad)
        arguments = (*self.rows, self.values, delta.numpy(), out.numpy())
        _spread(_compiled("gather"), arguments, len(delta), len(self.values) * len(delta))

    def gradient(self, delta: Tensor, z: Tensor, first: Tensor) -> Tensor:
        found = torch.zeros_like(self.like, memory_format=torch.contiguous_format)
        arguments = (*self.rows, delta.numpy(), z.contiguous().numpy(), first.contiguous().numpy(), found.numpy())
        _spread(_compiled("outer"), arguments, z.shape[2], delta.numel())
        return found


def product(weight: Tensor, starts: Tensor, targets: Tensor) -> Product | None:
    """The product of a weight `[unit, unit]`, or of values `[synapse]` with their places; None of an empty one."""
    if weight.dim() == 2:
        return Product(weight.detach())
    return _Sparse(weight.detach(), starts, targets) if weight.numel() else None


def _spread(loop: Callable[..., None], arguments: tuple[Any, ...], size: int, work: int) -> None:
    threads = max(1, min(torch.get_num_threads(), size, work // _WORTH))
    edges = [size * k // threads for k in range(threads + 1)]
    run_parts([functools.partial(loop, *arguments, a, b) for a, b in pairwise(edges)])


def scatter(starts, targets, values, z, out, first, last):  # type: ignore[no-untyped-def]
    for b in range(first, last):
        for j in range(z.shape[1]):
            s = z[b, j]
            if s != 0:
                for k in range(starts[j], starts[j + 1]):
                    out[b, targets[k]] += s * values[k]


def gather(starts, targets, values, delta, out, first, last):  # type: ignore[no-untyped-def]
    for b in range(first, last):
        for j in range(out.shape[1]):
            total = out[b, j]
            for k in range(starts[j], starts[j + 1]):
                total += values[k] * delta[b, targets[k]]
            out[b, j] = total


def outer(starts, targets, delta, z, start, out, first, last):  # type: ignore[no-untyped-def]
    for t in range(delta.shape[0]):
        before = z[t - 1] if t else start
        for b in range(delta.shape[1]):
            for j in range(first, last):
                s = before[b, j]
                if s != 0:
                    for k in range(starts[j], starts[j + 1]):
                        out[k] += s * delta[t, b, targets[k]]


@functools.cache
def _compiled(name: str) -> Any:
    """One loop, compiled on first use and cached on disk."""
    import numba

    return numba.njit(cache=True, nogil=True, error_model="numpy")(globals()[name])
