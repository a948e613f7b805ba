"""A matrix product with spikes: of the weights, only those of units that spiked are read.

    out[r] = x[r] + Σ_{j: z[r, j] ≠ 0} z[r, j] W[:, j],      dL/dW[:, j] = Σ_{r: z[r, j] ≠ 0} z[r, j] δ[r]

Additions are a share of those of the dense product, as large as the share of spikes; dL/dz = δ W stays dense. Where
more than 15 % spikes, the dense product is the faster one and runs instead.
"""

from __future__ import annotations

import functools
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from plexus.kernels._frame import out_of_reach
from plexus.kernels._memory import empty
from plexus.kernels._threads import run_parts

__all__ = ["add_events", "few", "gather_events", "spike_linear"]

_FEW = 0.15  # share of spikes below which walking along them beats the dense product
_LEAST = 1 << 20  # multiplications of a dense product that is too small to be worth looking at
_BLOCK = 128  # rows whose δ stay in the cache while the spikes of a unit in them are gathered


def spike_linear(z: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`torch.nn.functional.linear(z, weight, bias)`, fast where most of z is zero.

    Args:
        z: what units emitted, `[…, unit (from)]`; spikes or any numbers.
        weight: `[unit (to), unit (from)]`.
        bias: `[unit (to)]` or None.

    Returns:
        `[…, unit (to)]`; sums run in another order than in `linear`.

    Examples:
        >>> spike_linear(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[2.0, 3.0]]))
        tensor([[2.],
                [3.]])
    """
    tensors = [z, weight] if bias is None else [z, weight, bias]
    plain = z.device.type == "cpu" and z.dtype == weight.dtype and z.dtype in (torch.float32, torch.float64)
    if not plain or out_of_reach(tensors) or weight.shape[1] != z.shape[-1]:
        return torch.nn.functional.linear(z, weight, bias)
    out: Tensor = _operator(z.flatten(0, -2) if z.dim() > 1 else z.unsqueeze(0), weight, bias)
    return out.view(*z.shape[:-1], len(weight))


def few(z: Tensor, outputs: int) -> bool:
    """Is walking along the spikes of z `[row, unit]` worth it?"""
    if z.numel() * outputs < _LEAST:
        return False
    some = z[:: max(1, len(z) >> 9)]  # some hundred rows tell
    return int(some.count_nonzero()) <= _FEW * some.numel()


def add_events(z: Tensor, transposed: Tensor, out: Tensor) -> None:
    """out += z Wᵀ, of z `[row, unit]`, Wᵀ `[unit (from), unit (to)]` and out `[row, unit (to)]`, all dense."""
    arrays = (z.detach().numpy(), transposed.detach().numpy(), out.numpy())
    _spread("walk", arrays, len(z), z.numel() * out.shape[1] // 16)


def gather_events(z: Tensor, delta: Tensor) -> Tensor:
    """δᵀ z of dense δ `[row, unit (to)]` and z `[row, unit (from)]`."""
    found = delta.new_zeros(z.shape[1], delta.shape[1])
    arrays = (z.detach().numpy(), delta.detach().numpy(), found.numpy(), _BLOCK)
    _spread("gather", arrays, z.shape[1], z.numel() * delta.shape[1] // 16)
    return found.T


def _forward(z: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    if not few(z, len(weight)):
        return torch.nn.functional.linear(z, weight, bias)
    out = empty((len(z), len(weight)), z)
    if bias is None:
        out.zero_()
    else:
        out.copy_(bias.detach())
    add_events(z.contiguous(), weight.detach().T.contiguous(), out)
    return out


def _gradient(delta: Tensor, z: Tensor) -> Tensor:
    if not few(z, delta.shape[1]):
        return delta.T @ z
    return gather_events(z.contiguous(), delta.contiguous()).contiguous()


_operator = torch.library.custom_op(
    "plexus::spike_linear", _forward, mutates_args=(), schema="(Tensor z, Tensor weight, Tensor? bias) -> Tensor"
)
_operator.register_fake(lambda z, weight, bias: z.new_empty(len(z), len(weight)))
_back = torch.library.custom_op(
    "plexus::spike_linear_gradient", _gradient, mutates_args=(), schema="(Tensor delta, Tensor z) -> Tensor"
)
_back.register_fake(lambda delta, z: z.new_empty(delta.shape[1], z.shape[1]))


def _save(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor | None], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:2])


def _backward(ctx: Any, delta: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    z, weight = ctx.saved_tensors
    needs_z, needs_weight, needs_bias = ctx.needs_input_grad
    twice = torch.is_grad_enabled() and not torch.compiler.is_compiling()
    d_weight = None
    if needs_weight:
        d_weight = delta.T @ z if twice else _back(delta, z)
    return delta @ weight if needs_z else None, d_weight, delta.sum(0) if needs_bias else None


_operator.register_autograd(_backward, setup_context=_save)


def _spread(name: str, arrays: tuple[Any, ...], size: int, work: int) -> None:
    threads = max(1, min(torch.get_num_threads(), size, work >> 18))
    edges = [size * k // threads for k in range(threads + 1)]
    run_parts([functools.partial(_compiled(name), *arrays, a, b) for a, b in pairwise(edges)])


def walk(z, weight, out, first, last):  # type: ignore[no-untyped-def]
    active = np.empty(z.shape[1], np.int64)
    for r in range(first, last):
        n = 0
        for j in range(z.shape[1]):
            if z[r, j] != 0:
                active[n] = j
                n += 1
        o = out[r]
        for k in range(0, n - n % 4, 4):
            j0, j1, j2, j3 = active[k], active[k + 1], active[k + 2], active[k + 3]
            s0, s1, s2, s3 = z[r, j0], z[r, j1], z[r, j2], z[r, j3]
            w0, w1, w2, w3 = weight[j0], weight[j1], weight[j2], weight[j3]
            for i in range(len(o)):
                o[i] += (s0 * w0[i] + s1 * w1[i]) + (s2 * w2[i] + s3 * w3[i])
        for k in range(n - n % 4, n):
            s, w = z[r, active[k]], weight[active[k]]
            for i in range(len(o)):
                o[i] += s * w[i]


def gather(z, delta, out, block, first, last):  # type: ignore[no-untyped-def]
    places = np.empty((last - first) * block, np.int64)
    counts = np.empty(last - first, np.int64)
    for start in range(0, len(z), block):
        for j in range(last - first):
            counts[j] = 0
        for r in range(start, min(start + block, len(z))):
            for j in range(last - first):
                if z[r, first + j] != 0:
                    places[j * block + counts[j]] = r
                    counts[j] += 1
        for j in range(last - first):
            o, n, at = out[first + j], counts[j], j * block
            for k in range(at, at + n - n % 4, 4):
                r0, r1, r2, r3 = places[k], places[k + 1], places[k + 2], places[k + 3]
                s0, s1, s2, s3 = z[r0, first + j], z[r1, first + j], z[r2, first + j], z[r3, first + j]
                d0, d1, d2, d3 = delta[r0], delta[r1], delta[r2], delta[r3]
                for i in range(len(o)):
                    o[i] += (s0 * d0[i] + s1 * d1[i]) + (s2 * d2[i] + s3 * d3[i])
            for k in range(at + n - n % 4, at + n):
                s, d = z[places[k], first + j], delta[places[k]]
                for i in range(len(o)):
                    o[i] += s * d[i]


@functools.cache
def _compiled(name: str) -> Any:
    """One loop, compiled on first use and cached on disk."""
    import numba

    return numba.njit(cache=True, nogil=True, error_model="numpy", fastmath={"contract"})(globals()[name])
