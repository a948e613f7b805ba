"""Samples times a sparse matrix that is kept by rows: the forward pass of a layer whose missing weights cost nothing.

    out[b, i] = Σ_k values[k] x[b, column_k]        over the weights k of row i

What moves per weight is its value and its column, 8 bytes in float32, against 4 of a dense weight; so one sample gains
from well above half zeros on. Several samples are turned into lanes, eight to thirty-two at a time, so that a weight is
read once for all of them and multiplies in vector registers (`_vector_lanes`). The derivative by x is the same product
with the transpose, which is kept beside; the weights are constants here. `csr_reference` writes the matrix out; it runs
on other devices, under `torch.func` and for forward-mode derivatives.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from plexus.errors import DtypeError, ShapeError, UnsupportedError
from plexus.kernels._sparse import fusable
from plexus.kernels._threads import run_parts

__all__ = ["CompressedRows", "csr_linear", "csr_reference"]

_WORTH = 1 << 16  # products that are worth a thread
_NEAR = 256 << 10  # bytes of a chunk of samples that should stay in a core's own cache
_LANES = 32


class CompressedRows(NamedTuple):
    """A matrix `[row, column]` by rows, and its transpose for derivatives."""

    values: Tensor  # [weight], by row and then by column
    columns: Tensor  # column of each weight, int32                              [weight]
    starts: Tensor  # where the weights of each row begin, and the end, int64    [row + 1]
    back_values: Tensor  # the same by column and then by row
    back_rows: Tensor
    back_starts: Tensor

    @classmethod
    def of(cls, weight: Tensor, mask: Tensor | None = None, *, derivative: bool = True) -> CompressedRows:
        """From a matrix; where the mask holds, or where the weight is not zero.

        Args:
            weight: `[row, column]`.
            mask: which weights are kept, of the same shape.
            derivative: whether the transpose is kept as well, which doubles the memory.

        Raises:
            ShapeError: the weight is no matrix, or the mask has another shape.

        Examples:
            >>> CompressedRows.of(torch.tensor([[0.0, 2.0], [3.0, 4.0]]))[:3]
            (tensor([2., 3., 4.]), tensor([1, 0, 1], dtype=torch.int32), tensor([0, 1, 3]))
        """
        if weight.dim() != 2 or (mask is not None and mask.shape != weight.shape):
            given = (tuple(weight.shape), None if mask is None else tuple(mask.shape))
            raise ShapeError("a matrix and its mask are wanted", given=given, expected="[row, column] twice")
        weight = weight.detach()
        exists = weight != 0 if mask is None else mask.bool()
        back = _rows(weight.T, exists.T) if derivative else _rows(weight.T[:0], exists.T[:0])
        return cls(*_rows(weight, exists), *back)

    @property
    def columns_of(self) -> int | None:
        """The number of columns, where the transpose is there to tell it."""
        return len(self.back_starts) - 1 or None

    def dense(self, columns: int) -> Tensor:
        """The matrix `[row, column]`.

        Examples:
            >>> CompressedRows.of(torch.eye(2)).dense(2)
            tensor([[1., 0.],
                    [0., 1.]])
        """
        return _dense(self.values, self.columns, self.starts, columns)


def _rows(weight: Tensor, exists: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    rows, columns = exists.nonzero(as_tuple=True)
    starts = torch.cat([rows.new_zeros(1), exists.sum(1).cumsum(0)])
    return weight[rows, columns].contiguous(), columns.int(), starts


def _dense(values: Tensor, columns: Tensor, starts: Tensor, width: int) -> Tensor:
    height = len(starts) - 1
    rows = torch.repeat_interleave(torch.arange(height, device=starts.device), starts.diff(), output_size=len(values))
    return values.new_zeros(height * width).scatter(0, rows * width + columns, values).view(height, width)


def csr_linear(x: Tensor, weight: CompressedRows) -> Tensor:
    """x `[sample, column]` through a sparse matrix into `[sample, row]`; differentiable by x.

    Raises:
        ShapeError: the columns do not match. DtypeError: dtypes differ.
        UnsupportedError: backward without the transpose.

    Examples:
        >>> weight = CompressedRows.of(torch.tensor([[0.0, 2.0, 0.0], [3.0, 0.0, 0.0]]))
        >>> csr_linear(torch.tensor([[1.0, 10.0, 5.0]]), weight)
        tensor([[20.,  3.]])
    """
    width = weight.columns_of
    if x.dim() != 2 or (width is not None and x.shape[1] != width):
        raise ShapeError("the input does not fit the matrix", given=tuple(x.shape), expected=f"[sample, {width}]")
    if x.dtype != weight.values.dtype:
        raise DtypeError("input and weight need one dtype", given=(x.dtype, weight.values.dtype))
    if not fusable(x, weight.values):
        return csr_reference(x, weight)
    if type(x) is Tensor and not (torch.is_grad_enabled() and x.requires_grad) and not torch.compiler.is_compiling():
        return _product(x, *weight[:3])  # a call through the dispatcher costs as much as a small layer
    result: Tensor = _csr(x, *weight)
    return result


def csr_reference(x: Tensor, weight: CompressedRows) -> Tensor:
    """The same through the whole matrix."""
    return x @ weight.dense(x.shape[1]).T


@torch.library.custom_op("plexus::csr_linear", mutates_args=())
def _csr(
    x: Tensor,
    values: Tensor,
    columns: Tensor,
    starts: Tensor,
    back_values: Tensor,
    back_rows: Tensor,
    back_starts: Tensor,
) -> Tensor:
    return _product(x, values, columns, starts)


def _product(x: Tensor, values: Tensor, columns: Tensor, starts: Tensor) -> Tensor:
    out = torch.empty(x.shape[0], len(starts) - 1, dtype=x.dtype)
    if not out.numel() or not len(values):
        return out.zero_()
    matrix = (starts.numpy(), columns.numpy().view("uint32"), values.detach().numpy())
    samples = x.detach().contiguous().numpy()
    threads = max(1, min(torch.get_num_threads(), len(values) * len(x) // _WORTH))
    if len(x) == 1:
        _spread(_loops()[0], (*matrix, samples[0], out[0].numpy()), out.shape[1], threads)
        return out
    lanes = _lanes(len(x), x.shape[1] * x.element_size(), threads)
    arguments = (*matrix, samples, out.numpy(), (0,) * lanes)
    _spread(_loops()[1], arguments, -(-len(x) // lanes), threads)
    return out


def _lanes(samples: int, row_bytes: int, threads: int) -> int:
    """How many samples go side by side: few enough to stay near, and to leave every thread a part."""
    lanes = _LANES
    while lanes > 8 and (lanes * row_bytes > _NEAR or lanes // 2 * threads >= samples):
        lanes //= 2
    return lanes


def _spread(loop: Callable[..., None], arguments: tuple[Any, ...], size: int, threads: int) -> None:
    threads = min(threads, size)
    edges = [size * k // threads for k in range(threads + 1)]
    run_parts([functools.partial(loop, *arguments, a, b) for a, b in pairwise(edges)])


@_csr.register_fake
def _(
    x: Tensor,
    values: Tensor,
    columns: Tensor,
    starts: Tensor,
    back_values: Tensor,
    back_rows: Tensor,
    back_starts: Tensor,
) -> Tensor:
    return x.new_empty(x.shape[0], starts.shape[0] - 1)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[1:])


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    values, columns, starts, *back = ctx.saved_tensors
    if not ctx.needs_input_grad[0]:
        return (None,) * 7
    if len(back[2]) < 2:
        raise UnsupportedError(
            "this sparse matrix keeps no transpose, which the derivative by its input needs",
            mend="build it with derivative=True",
        )
    return _csr(grad, *back, values, columns, starts), *(None,) * 6


_csr.register_autograd(_backward, setup_context=_setup)


@functools.cache
def _loops() -> tuple[Any, Any]:
    """The loops for one sample and for many, compiled on first use and cached on disk."""
    import numba

    from plexus.kernels import _csr_loops

    compiled = numba.njit(cache=True, nogil=True, error_model="numpy")
    return compiled(_csr_loops.one), compiled(_csr_loops.many)
