"""A convolution whose missing weights cost nothing, in any number of dimensions.

    out[b, i, p] = Σ_k values[k] x[b, offset_k + stride · p]        over the weights k of output channel i

The padded input is laid out with one plane per channel and per residue of the stride, so that a weight meets its inputs
at neighbouring places as one run of memory, `offset_k` away from the output's. The sum over weights stays in vector
registers while up to 64 places go side by side (`_vector_lanes`); rows are computed to the padded width and the surplus
is dropped. Nothing is turned into columns: the input is copied once, and a weight costs its value, its offset and one
run of input that its neighbours read as well. The derivative by x goes through the whole weight, on dense kernels, and
so does `csr_conv_reference`, which runs on other devices, under `torch.func` and for forward-mode derivatives.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from plexus.errors import DtypeError, RangeError, ShapeError
from plexus.kernels._csr import CompressedRows, _dense, _spread
from plexus.kernels._sparse import fusable

__all__ = ["csr_conv", "csr_conv_reference"]

_WORTH = 1 << 16  # products that are worth a thread
_LANE_BYTES = 256  # of one sum; a processor with 16 registers of 32 bytes holds it and hides the wait of an addition
_REACH = 2**31  # places of one sample that an offset can name

Sizes = Sequence[int]


def csr_conv(
    x: Tensor,
    weight: CompressedRows,
    kernel_size: Sizes,
    *,
    stride: Sizes | int = 1,
    padding: Sizes | int = 0,
    dilation: Sizes | int = 1,
    groups: int = 1,
) -> Tensor:
    """x `[sample, channel, *place]` convolved with a sparse weight into `[sample, row, *place]`; differentiable by x.

    Args:
        x: float32 or float64.
        weight: the rows of `[out, channel / groups · place of the kernel]`, the weight of a convolution flattened.
        kernel_size: one number per dimension of place, as for the others, or one number for all.
        stride, padding, dilation, groups: as for `torch.nn.functional.conv2d`; padding is with zeros, on both sides.

    Raises:
        ShapeError: the input has other dimensions than the kernel, or is smaller than it.
        RangeError: a stride or dilation below 1, a negative padding, groups that do not divide.
        DtypeError: dtypes differ.

    Examples:
        >>> kernel = torch.tensor([[[[0.0, 2.0], [0.0, 0.0]]]])                 # twice the right neighbour
        >>> x = torch.arange(6.0).view(1, 1, 2, 3)
        >>> csr_conv(x, CompressedRows.of(kernel.flatten(1)), (2, 2))
        tensor([[[[2., 4.]]]])
    """
    sizes = _checked(x, weight, kernel_size, stride, padding, dilation, groups)
    plane = math.prod(n + 2 * p + s for n, p, s in zip(x.shape[2:], sizes[2], sizes[1], strict=True))
    if not fusable(x, weight.values) or x.shape[1] * plane >= _REACH:
        return csr_conv_reference(x, weight, *sizes, groups)
    if not (torch.is_grad_enabled() and x.requires_grad) and not torch.compiler.is_compiling():
        return _convolve(x, weight.values, weight.columns, weight.starts, *sizes, groups)
    result: Tensor = _conv(x, *weight[:3], *map(list, sizes), groups)
    return result


def csr_conv_reference(
    x: Tensor, weight: CompressedRows, kernel: Sizes, stride: Sizes, padding: Sizes, dilation: Sizes, groups: int
) -> Tensor:
    """The same through the whole weight, with one number per dimension everywhere."""
    full = _whole(weight.values, weight.columns, weight.starts, x.shape[1] // groups, kernel)
    convolve: Any = (F.conv1d, F.conv2d, F.conv3d)[len(kernel) - 1]
    return cast(Tensor, convolve(x, full, None, stride, padding, dilation, groups))


def _checked(
    x: Tensor,
    weight: CompressedRows,
    kernel_size: Sizes,
    stride: Sizes | int,
    padding: Sizes | int,
    dilation: Sizes | int,
    groups: int,
) -> tuple[Sizes, Sizes, Sizes, Sizes]:
    """Kernel size, stride, padding and dilation, one number per dimension each."""
    kernel = tuple(kernel_size)
    count = len(kernel)
    if not 1 <= count <= 3 or x.dim() != count + 2:
        expected = f"[sample, channel, {', '.join(['place'] * count)}]"
        raise ShapeError("the input does not fit the kernel", given=tuple(x.shape), expected=expected)
    stride, padding, dilation = ((n,) * count if isinstance(n, int) else tuple(n) for n in (stride, padding, dilation))
    for name, numbers, least in (("stride", stride, 1), ("padding", padding, 0), ("dilation", dilation, 1)):
        if len(numbers) != count or min(numbers) < least:
            raise RangeError(f"a {name}", given=numbers, expected=f"{count} whole numbers, {least} or more")
    rows = len(weight.starts) - 1
    if groups < 1 or x.shape[1] % groups or rows % groups:
        raise RangeError("groups divide the channels", given=f"{groups} groups, {x.shape[1]} channels, {rows} rows")
    width = weight.columns_of
    if width is not None and width != x.shape[1] // groups * math.prod(kernel):
        expected = f"{width // math.prod(kernel) * groups} channels"
        raise ShapeError("the input does not fit the weight", given=tuple(x.shape), expected=expected)
    if x.dtype != weight.values.dtype:
        raise DtypeError("input and weight need one dtype", given=(x.dtype, weight.values.dtype))
    if min(_out_sizes(x.shape[2:], kernel, stride, padding, dilation)) < 1:
        raise ShapeError(
            "the kernel is larger than the padded input", given=tuple(x.shape), expected=f"{kernel}, dilated"
        )
    return kernel, stride, padding, dilation


def _out_sizes(space: Sizes, kernel: Sizes, stride: Sizes, padding: Sizes, dilation: Sizes) -> list[int]:
    return [
        (n + 2 * p - d * (k - 1) - 1) // s + 1
        for n, k, s, p, d in zip(space, kernel, stride, padding, dilation, strict=True)
    ]


def _whole(values: Tensor, columns: Tensor, starts: Tensor, channels: int, kernel: Sizes) -> Tensor:
    return _dense(values, columns, starts, channels * math.prod(kernel)).view(-1, channels, *kernel)


@torch.library.custom_op("plexus::csr_conv", mutates_args=())
def _conv(
    x: Tensor,
    values: Tensor,
    columns: Tensor,
    starts: Tensor,
    kernel: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
) -> Tensor:
    return _convolve(x, values, columns, starts, kernel, stride, padding, dilation, groups)


def _convolve(
    x: Tensor,
    values: Tensor,
    columns: Tensor,
    starts: Tensor,
    kernel: Sizes,
    stride: Sizes,
    padding: Sizes,
    dilation: Sizes,
    groups: int,
) -> Tensor:
    samples, channels, *space = x.shape
    rows = len(starts) - 1
    ends = _out_sizes(space, kernel, stride, padding, dilation)
    # places per plane: the padded input by the stride, rounded up
    grid = [-(-(n + 2 * p) // s) for n, p, s in zip(space, padding, stride, strict=True)]
    offsets = _offsets(channels // groups, kernel, stride, dilation, grid)
    taken = offsets[columns.numpy()]
    if groups > 1:
        apart = channels // groups * math.prod(stride) * math.prod(grid)
        each = np.diff(starts.numpy())
        taken = taken + np.repeat(np.arange(rows) // (rows // groups) * apart, each)
    places = ends[0] * math.prod(grid[1:])
    lanes = _lanes(places, x.element_size())
    tiles = -(-places // lanes)
    reach = int(offsets.max()) + (channels - channels // groups) * math.prod(stride) * math.prod(grid) + tiles * lanes
    laid = _laid_out(x.detach(), stride, padding, grid, reach)
    out = torch.empty(samples, rows, tiles * lanes, dtype=x.dtype)
    if out.numel():
        threads = max(1, min(torch.get_num_threads(), len(values) * samples * places // _WORTH))
        matrix = (starts.numpy(), taken.astype(np.uint32), values.detach().numpy())
        _spread(_loop(), (*matrix, laid.numpy(), out.numpy(), (0,) * lanes, tiles), samples * tiles, threads)
    whole = out[..., :places].view(samples, rows, ends[0], *grid[1:])
    for axis, n in enumerate(ends, 2):
        whole = whole.narrow(axis, 0, n)
    return whole.contiguous()


def _lanes(places: int, number_bytes: int) -> int:
    """How many places go side by side: as many as registers allow, fewer where the planes are small."""
    lanes = _LANE_BYTES // number_bytes
    while lanes > 8 and lanes // 2 >= places:
        lanes //= 2
    return lanes


def _offsets(channels: int, kernel: Sizes, stride: Sizes, dilation: Sizes, grid: Sizes) -> np.ndarray[Any, Any]:
    """Where the inputs of each weight of a row begin: int64 `[channel · place of the kernel]`."""
    inner = []
    for place in itertools.product(*map(range, kernel)):
        steps = [k * d for k, d in zip(place, dilation, strict=True)]
        phase = shift = 0
        for step, s, n in zip(steps, stride, grid, strict=True):
            phase, shift = phase * s + step % s, shift * n + step // s
        inner.append(phase * math.prod(grid) + shift)
    plane = math.prod(stride) * math.prod(grid)
    offsets: np.ndarray[Any, Any] = np.add.outer(np.arange(channels) * plane, np.array(inner))
    return offsets.reshape(-1)


def _laid_out(x: Tensor, stride: Sizes, padding: Sizes, grid: Sizes, reach: int) -> Tensor:
    """`[sample, channel · residues of the stride · places]` with zeros around, and behind as far as a tile reaches."""
    samples, channels, *space = x.shape
    size = channels * math.prod(stride) * math.prod(grid)
    laid = torch.zeros(samples, max(size, reach), dtype=x.dtype)
    planes = laid[:, :size].unflatten(1, (channels, *stride, *grid))
    count = len(space)
    if max(stride) == 1:
        inside = tuple(slice(p, p + n) for n, p in zip(space, padding, strict=True))
        planes.view(samples, channels, *grid)[(..., *inside)] = x
        return laid
    around = [(p, n * s - p - m) for m, p, n, s in zip(space, padding, grid, stride, strict=True)]
    padded = F.pad(x, [width for sides in reversed(around) for width in sides])
    apart = padded.view(samples, channels, *itertools.chain(*zip(grid, stride, strict=True)))
    planes.copy_(apart.permute(0, 1, *(3 + 2 * i for i in range(count)), *(2 + 2 * i for i in range(count))))
    return laid


@_conv.register_fake
def _(
    x: Tensor,
    values: Tensor,
    columns: Tensor,
    starts: Tensor,
    kernel: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
) -> Tensor:
    return x.new_empty(x.shape[0], starts.shape[0] - 1, *_out_sizes(x.shape[2:], kernel, stride, padding, dilation))


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, values, columns, starts, *ctx.sizes, ctx.groups = inputs
    ctx.shape = x.shape
    ctx.save_for_backward(values, columns, starts)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    if not ctx.needs_input_grad[0]:
        return (None,) * 9
    kernel, stride, padding, dilation = ctx.sizes
    values, columns, starts = ctx.saved_tensors
    full = _whole(values, columns, starts, ctx.shape[1] // ctx.groups, kernel)
    found = torch.ops.aten.convolution_backward(
        grad, grad.new_empty(1).expand(ctx.shape), full, None, stride, padding, dilation, False,
        [0] * len(kernel), ctx.groups, [True, False, False],
    )  # fmt: skip
    return found[0], *(None,) * 8


_conv.register_autograd(_backward, setup_context=_setup)


@functools.cache
def _loop() -> Any:
    """The loop, compiled on first use and cached on disk."""
    import numba

    from plexus.kernels import _csr_conv_loops

    return numba.njit(cache=True, nogil=True, error_model="numpy")(_csr_conv_loops.tiled)
