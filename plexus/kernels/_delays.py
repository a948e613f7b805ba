"""Currents through delayed synapses, over all of time.

    I_i[t] = Σ_j Σ_d K[j, d, i] x_j[t - d],      d = 0 … D              `delayed`: a kernel over all delays
    I_i[t] = Σ_j Σ_k v[k, i, j] x_j[t - s[i, j] - k],      k = 0 … K-1    `delayed_taps`: few taps from an onset s

The input carries the D steps before it, so that a sequence run in pieces equals the sequence run whole.

`delayed` has two ways. Where few entries of the input are not zero, as of spikes, each event adds its row K[j], which
is contiguous over delays and targets, to the currents that follow. Otherwise every delay is one matrix product on a
slice of the input: time comes first, so the slice needs no copy, unlike the windows of an unfolded convolution.
`delayed_taps` goes by events or adds shifted courses, and never builds a kernel over all delays. The functions that end
in `_reference` state the same in torch; they run on other devices, under `torch.func`, forward-mode derivatives and
second derivatives.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from plexus.errors import DtypeError, RangeError, ShapeError
from plexus.kernels._delay_loops import compiled, spread

__all__ = ["delayed", "delayed_reference", "delayed_taps", "delayed_taps_reference"]

_EVENTS_BELOW = 0.15


def delayed(x: Tensor, kernel: Tensor) -> Tensor:
    """Currents of a kernel over all delays, equations above.

    Args:
        x: `[reach + time, batch, source]`, the first `reach` = D steps being those before the sequence.
        kernel: `[source, delay, target]`, delays 0 … D in steps.

    Returns:
        `[time, batch, target]`.

    Raises:
        ShapeError: shapes do not fit. DtypeError: dtypes differ.

    Examples:
        >>> kernel = torch.tensor([[[0.0], [0.0], [2.0]]])                  # one synapse, delay 2
        >>> x = torch.tensor([0.0, 0.0, 1.0, 0.0, 0.0, 0.0]).reshape(6, 1, 1)     # two steps of history, then a spike
        >>> delayed(x, kernel).flatten()
        tensor([0., 0., 2., 0.])
    """
    _check(x, kernel, kernel.shape[1] - 1 if kernel.dim() == 3 else 0, kernel.shape[0] if kernel.dim() == 3 else -1)
    if not _fusable(x, kernel):
        return delayed_reference(x, kernel)
    result: Tensor = _delayed(x, kernel)
    return result


def delayed_reference(x: Tensor, kernel: Tensor) -> Tensor:
    """The same in torch, one matrix product per delay; differentiable any number of times."""
    reach = kernel.shape[1] - 1
    time = x.shape[0] - reach
    total = x[reach : reach + time] @ kernel[:, 0]
    for d in range(1, reach + 1):
        total = total + x[reach - d : reach - d + time] @ kernel[:, d]
    return total


def delayed_taps(x: Tensor, start: Tensor, values: Tensor, reach: int) -> Tensor:
    """Currents of a few taps per synapse, equations above.

    Args:
        x: `[reach + time, batch, source]`, the first `reach` steps being those before the sequence.
        start: delay of the first tap in steps, int64 `[target, source]`, in 0 … reach + 1 - K.
        values: `[tap, target, source]`, K taps at delays start, start + 1, …
        reach: the largest delay in steps.

    Returns:
        `[time, batch, target]`.

    Raises:
        ShapeError: shapes do not fit. DtypeError: dtypes differ. RangeError: a tap lies outside 0 … reach.

    Examples:
        >>> x = torch.tensor([0.0, 0.0, 1.0, 0.0, 0.0, 0.0]).reshape(6, 1, 1)
        >>> delayed_taps(x, torch.tensor([[2]]), torch.tensor([[[2.0]]]), reach=2).flatten()
        tensor([0., 0., 2., 0.])
    """
    _check(x, values, reach, values.shape[2] if values.dim() == 3 else -1)
    if start.shape != values.shape[1:] or start.dtype != torch.int64:
        raise ShapeError(
            "the delays do not fit the taps",
            given=(tuple(start.shape), start.dtype),
            expected=(tuple(values.shape[1:]), torch.int64),
        )
    if not torch.compiler.is_compiling() and start.numel() and type(start) is Tensor:
        low, high = int(start.min()), int(start.max()) + values.shape[0] - 1
        if low < 0 or high > reach:
            raise RangeError("a tap lies outside the delays", given=(low, high), expected=f"0 … {reach}")
    if not _fusable(x, values):
        return delayed_taps_reference(x, start, values, reach)
    result: Tensor = _taps(x, start, values, reach)
    return result


def delayed_taps_reference(x: Tensor, start: Tensor, values: Tensor, reach: int) -> Tensor:
    """The same in torch: the kernel over all delays, written out."""
    return delayed_reference(x, kernel_of_taps(start, values, reach))


def kernel_of_taps(start: Tensor, values: Tensor, reach: int) -> Tensor:
    """The kernel `[source, delay, target]` of taps."""
    where = start.T.unsqueeze(1) + torch.arange(values.shape[0], device=values.device).reshape(1, -1, 1)
    kernel = values.new_zeros(values.shape[2], reach + 1, values.shape[1])
    return kernel.scatter(1, where, values.permute(2, 0, 1))


def _check(x: Tensor, kernel: Tensor, reach: int, sources: int) -> None:
    if kernel.dim() != 3:
        raise ShapeError("the kernel has three dimensions", given=tuple(kernel.shape), expected="source, delay, target")
    if x.dim() != 3 or x.shape[2] != sources or x.shape[0] < reach:
        raise ShapeError(
            "the input does not fit the kernel",
            given=tuple(x.shape),
            expected=f"[{reach} + time, batch, {sources}]",
        )
    if x.dtype != kernel.dtype or not x.is_floating_point():
        raise DtypeError("input and kernel need one floating-point dtype", given=(x.dtype, kernel.dtype))


def _fusable(x: Tensor, kernel: Tensor) -> bool:
    if x.device.type != "cpu" or kernel.device.type != "cpu" or x.dtype not in (torch.float32, torch.float64):
        return False
    if torch._C._functorch.peek_interpreter_stack() is not None:
        return False
    return all(torch.autograd.forward_ad.unpack_dual(t).tangent is None for t in (x, kernel))


# ---------------------------------------------------------------- a kernel over all delays


def _sparse(x: Tensor) -> bool:
    return int(torch.count_nonzero(x)) < _EVENTS_BELOW * x.numel()


def _with_silence(grad: Tensor, reach: int) -> Tensor:
    """A gradient by samples, `[batch, time · target]`, with `reach` steps of zeros on either side."""
    time, batch, targets = grad.shape
    around = torch.zeros(batch, time + 2 * reach, targets, dtype=grad.dtype)
    around[:, reach : reach + time] = grad.transpose(0, 1)
    return around.flatten(1)


def _threads(work: int) -> int:
    return torch.get_num_threads() if work > 200_000 else 1


@torch.library.custom_op("plexus::delayed", mutates_args=())
def _delayed(x: Tensor, kernel: Tensor) -> Tensor:
    x, kernel = x.detach().contiguous(), kernel.detach().contiguous()
    (sources, taps, targets), batch = kernel.shape, x.shape[1]
    time = x.shape[0] - taps + 1
    if _sparse(x):
        out = torch.empty(time, batch, targets, dtype=x.dtype)
        loop, arrays = compiled("_spread_events"), (x.numpy(), kernel.numpy(), out.numpy())
        spread(lambda first, last: loop(*arrays, first, last), batch, _threads(x.numel() * targets))
        return out
    rows = x.reshape(-1, sources)
    flat = torch.zeros(time * batch, targets, dtype=x.dtype)
    for d in range(taps):
        first = (taps - 1 - d) * batch
        flat.addmm_(rows[first : first + time * batch], kernel[:, d])
    return flat.view(time, batch, targets)


@_delayed.register_fake
def _(x: Tensor, kernel: Tensor) -> Tensor:
    return torch.empty(x.shape[0] - kernel.shape[1] + 1, x.shape[1], kernel.shape[2], dtype=x.dtype, device=x.device)


@torch.library.custom_op("plexus::delayed_to_kernel", mutates_args=())
def _delayed_to_kernel(x: Tensor, grad: Tensor, taps: int) -> Tensor:
    x, grad = x.detach().contiguous(), grad.detach()
    time, batch, targets = grad.shape
    sources, reach = x.shape[2], taps - 1
    if _sparse(x):
        around = _with_silence(grad, reach)
        out = torch.zeros(sources, taps, targets, dtype=x.dtype)
        loop, arrays = compiled("_gather_events"), (x.numpy(), around.numpy(), out.numpy())
        spread(lambda first, last: loop(*arrays, first, last), sources, _threads(x.numel() * targets))
        return out
    rows, flat = x.reshape(-1, sources), grad.reshape(-1, targets)
    found = torch.empty(taps, sources, targets, dtype=x.dtype)
    for d in range(taps):
        first = (reach - d) * batch
        torch.mm(rows[first : first + time * batch].T, flat, out=found[d])
    return found.transpose(0, 1).contiguous()


@_delayed_to_kernel.register_fake
def _(x: Tensor, grad: Tensor, taps: int) -> Tensor:
    return torch.empty(x.shape[2], taps, grad.shape[2], dtype=x.dtype, device=x.device)


@torch.library.custom_op("plexus::delayed_to_input", mutates_args=())
def _delayed_to_input(kernel: Tensor, grad: Tensor) -> Tensor:
    kernel, grad = kernel.detach().contiguous(), grad.detach().contiguous()
    time, batch, targets = grad.shape
    sources, taps, _ = kernel.shape
    flat = grad.view(-1, targets)
    out = torch.zeros((time + taps - 1) * batch, sources, dtype=grad.dtype)
    for d in range(taps):
        first = (taps - 1 - d) * batch
        out[first : first + time * batch].addmm_(flat, kernel[:, d].T)
    return out.view(-1, batch, sources)


@_delayed_to_input.register_fake
def _(kernel: Tensor, grad: Tensor) -> Tensor:
    shape = (grad.shape[0] + kernel.shape[1] - 1, grad.shape[1], kernel.shape[0])
    return torch.empty(shape, dtype=grad.dtype, device=grad.device)


def _delayed_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _delayed_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, kernel = ctx.saved_tensors
    needed = ctx.needs_input_grad
    if torch.is_grad_enabled():  # a second derivative is wanted
        return _again(delayed_reference(x, kernel), (x, kernel), needed, grad)
    to_x = _delayed_to_input(kernel, grad) if needed[0] else None
    to_kernel = _delayed_to_kernel(x, grad, kernel.shape[1]) if needed[1] else None
    return to_x, to_kernel


def _again(
    out: Tensor, inputs: tuple[Tensor, ...], needed: tuple[bool, ...], grad: Tensor
) -> tuple[Tensor | None, ...]:
    wanted = [tensor for tensor, need in zip(inputs, needed, strict=True) if need]
    found = iter(torch.autograd.grad(out, wanted, grad, create_graph=True))
    return tuple(next(found) if need else None for need in needed)


_delayed.register_autograd(_delayed_backward, setup_context=_delayed_setup)


# ---------------------------------------------------------------- few taps per synapse


@torch.library.custom_op("plexus::delayed_taps", mutates_args=())
def _taps(x: Tensor, start: Tensor, values: Tensor, reach: int) -> Tensor:
    batch, targets = x.shape[1], values.shape[1]
    if _sparse(x):
        events, begin, taps = x.detach().contiguous(), start.T.contiguous(), values.detach().mT.contiguous()
        out = torch.empty(x.shape[0] - reach, batch, targets, dtype=x.dtype)
        given, loop = (events.numpy(), begin.numpy(), taps.numpy(), out.numpy()), compiled("_scatter_events")
        spread(lambda first, last: loop(*given, first, last), batch, _threads(x.numel() * targets))
        return out
    courses = x.detach().permute(1, 2, 0).contiguous()
    out = torch.zeros(batch, targets, x.shape[0] - reach, dtype=x.dtype)
    arrays = (courses.numpy(), start.contiguous().numpy(), values.detach().contiguous().numpy(), out.numpy())
    loop = compiled("_shift_add")
    spread(lambda first, last: loop(*arrays, first, last), batch, _threads(x.numel() * targets))
    return out.permute(2, 0, 1).contiguous()


@_taps.register_fake
def _(x: Tensor, start: Tensor, values: Tensor, reach: int) -> Tensor:
    return torch.empty(x.shape[0] - reach, x.shape[1], values.shape[1], dtype=x.dtype, device=x.device)


@torch.library.custom_op("plexus::delayed_taps_back", mutates_args=())
def _taps_back(x: Tensor, start: Tensor, values: Tensor, grad: Tensor, part: int) -> Tensor:
    """The gradient of the input (part 0) or of the taps (part 1)."""
    threads = _threads(x.numel() * values.shape[1])
    if part == 1 and _sparse(x):
        events, around = (
            x.detach().contiguous().numpy(),
            _with_silence(grad.detach(), x.shape[0] - grad.shape[0]).numpy(),
        )
        by_source = torch.zeros(values.mT.shape, dtype=x.dtype)
        given, loop = (events, around, start.T.contiguous().numpy(), by_source.numpy()), compiled("_collect_events")
        spread(lambda first, last: loop(*given, first, last), x.shape[2], threads)
        return by_source.mT.contiguous()
    gradient = grad.detach().permute(1, 2, 0).contiguous().numpy()
    begin, v = start.contiguous().numpy(), values.detach().contiguous()
    if part == 0:
        back = torch.zeros(x.shape[1], x.shape[2], x.shape[0], dtype=x.dtype)
        loop, array = compiled("_shift_back"), back.numpy()
        spread(lambda first, last: loop(gradient, begin, v.numpy(), array, first, last), x.shape[1], threads)
        return back.permute(2, 0, 1).contiguous()
    courses, found = x.detach().permute(1, 2, 0).contiguous().numpy(), torch.zeros_like(v)
    loop, array = compiled("_shift_correlate"), found.numpy()
    spread(lambda first, last: loop(courses, gradient, begin, array, first, last), v.shape[1], threads)
    return found


@_taps_back.register_fake
def _(x: Tensor, start: Tensor, values: Tensor, grad: Tensor, part: int) -> Tensor:
    return torch.empty(x.shape if part == 0 else values.shape, dtype=x.dtype, device=x.device)


def _taps_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, start, values, ctx.reach = inputs
    ctx.save_for_backward(x, start, values)


def _taps_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, start, values = ctx.saved_tensors
    to_x, to_values = ctx.needs_input_grad[0], ctx.needs_input_grad[2]
    if torch.is_grad_enabled():
        out = delayed_taps_reference(x, start, values, ctx.reach)
        first, second = _again(out, (x, values), (to_x, to_values), grad)
        return first, None, second, None
    return (
        _taps_back(x, start, values, grad, 0) if to_x else None,
        None,
        _taps_back(x, start, values, grad, 1) if to_values else None,
        None,
    )


_taps.register_autograd(_taps_backward, setup_context=_taps_setup)
