"""Fused loops on the CPU, by Numba: compiled once, cached on disk.

The loop runs over chunks of columns (unit × batch) that fit the cache, with time inside, and on several threads over
disjoint ranges of columns, as many as `torch.get_num_threads()`. Backward reads the input again and steps through the
chunk a second time instead of keeping the membrane: what must be saved is the input and the initial state.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from plexus.kernels._buffers import fresh_gradients, fresh_memory, rows, used_columns
from plexus.kernels._frame import Dynamics, Options, options_from
from plexus.kernels._memory import empty
from plexus.kernels._source import CHUNK, source
from plexus.kernels._threads import run_parts
from plexus.kernels._written import written_module

__all__ = ["backward", "flat", "forward", "prepare"]

_SCRATCH = 512 << 10  # bytes that the steps of a chunk may take while backward walks through them again
_WORTH = 1 << 15  # elements that are worth a thread


def _spread(kernel: Callable[..., None], arguments: tuple[Any, ...], total: int, steps: int) -> None:
    """Run the kernel over all columns: on several threads where there is enough to do."""
    threads = max(1, min(torch.get_num_threads(), total * steps // _WORTH))
    edges = [min(total, -(-total * k // threads) // 64 * 64) for k in range(threads)] + [total]
    run_parts([partial(kernel, *arguments, a, b) for a, b in pairwise(edges) if a < b])


def _strided(tensors: Sequence[Tensor]) -> list[Any]:
    return [part for row, stride in map(rows, tensors) for part in (row.detach().numpy(), stride)]


def flat(tensor: Tensor) -> np.ndarray[Any, Any]:
    """A tensor's numbers in one dimension, without a copy where they are dense."""
    return tensor.detach().numpy().reshape(-1)


def prepare(
    dynamics: Dynamics,
    like: Tensor,
    columns: Sequence[Tensor],
    options: str,
    learn: bool = False,
    write: Callable[..., str] = source,
) -> tuple[ModuleType, Options, list[np.ndarray[Any, Any]], int]:
    """The compiled module, its options, the numbers that it uses, and how many units they tell apart."""
    o = options_from(dynamics, options)
    used, units = used_columns(dynamics, o, columns)
    uniform = all(column.numel() == 1 for column in used)
    module = written_module(write, dynamics, options, str(like.dtype).rpartition(".")[2], uniform, learn)
    return module, o, [flat(column) for column in used], units


def forward(
    dynamics: Dynamics,
    inputs: Sequence[Tensor],
    memory: Sequence[Tensor],
    columns: Sequence[Tensor],
    constants: Sequence[float],
    options: str,
) -> list[Tensor]:
    """The fused loop: `[out, *memory]` after the last step, without the state that echoes the output."""
    x = inputs[0]
    module, o, used, units = prepare(dynamics, x, columns, options)
    out = empty(tuple(x.shape), x)
    steps, total = x.shape[0], memory[0].numel()
    before = [flat(memory[place]) for place in o.carried]
    after, written = fresh_memory(dynamics, o, memory)
    arguments = (
        *_strided(inputs),
        flat(out),
        steps,
        total,
        units,
        *before,
        *used,
        *(flat(fresh) for fresh in written),
        *constants,
        CHUNK,
    )
    _spread(module.forward, arguments, total, steps)
    return [out, *after]


def backward(
    dynamics: Dynamics,
    inputs: Sequence[Tensor],
    memory: Sequence[Tensor],
    columns: Sequence[Tensor],
    constants: Sequence[float],
    options: str,
    grad: Tensor,
    grad_states: Sequence[Tensor],
    learn: bool,
) -> list[Tensor]:
    """The fused adjoint: `[*d_inputs, *d_states, *d_parameters]`, parameters as one number per column."""
    x = inputs[0]
    module, o, used, units = prepare(dynamics, x, columns, options, learn)
    steps, total = x.shape[0], memory[0].numel()
    carried = dynamics.carried(o)
    d_inputs = [empty(tuple(x.shape), x) for _ in inputs]
    before = [flat(memory[place]) for place in o.carried]
    d_first, d_columns, written = fresh_gradients(dynamics, o, memory, grad_states, learn)
    chunk = _SCRATCH // max(1, steps * x.element_size() * len(carried))
    chunk = max(64, min(CHUNK, chunk // 64 * 64))
    arguments = (*_strided([*inputs, grad]), *(flat(d) for d in d_inputs), steps, total, units)
    incoming = [g for name, g in zip(dynamics.states, grad_states, strict=True) if name in carried]
    adjoints = [flat(tensor) for tensor in (*incoming, *written)]
    _spread(module.backward, (*arguments, *before, *used, *adjoints, *constants, chunk), total, steps)
    return [*d_inputs, *d_first, *d_columns]
