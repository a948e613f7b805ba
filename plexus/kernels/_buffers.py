"""The tensors that a fused loop reads and writes, whatever it is compiled with."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from plexus.kernels._frame import Dynamics, Options

__all__ = ["fresh_gradients", "fresh_memory", "rows", "used_columns"]


def rows(x: Tensor) -> tuple[Tensor, int]:
    """x as `[time, column]` with dense rows: a flat tensor and the distance between rows (0 for a constant input)."""
    steps, total = x.shape[0], x[0].numel() if x.shape[0] else 0
    if steps == 0 or total == 0:
        return x.reshape(-1), 0
    first = x[0]
    if not first.is_contiguous():
        x = x.contiguous()
    stride = x.stride(0) if steps > 1 else total
    return torch.as_strided(x, ((steps - 1) * stride + total,), (1,)), stride


def used_columns(dynamics: Dynamics, o: Options, columns: Sequence[Tensor]) -> tuple[list[Tensor], int]:
    """The parameters and settings that the equations mention, and how many units they tell apart."""
    used = [columns[place] for place in o.used]
    return used, max([1, *(column.numel() for column in used)])


def fresh_memory(dynamics: Dynamics, o: Options, memory: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """What the operator returns after the output, and which of it the loop writes; the rest is as it was."""
    kept = [(name, m) for name, m in zip(dynamics.memory, memory, strict=True) if name != dynamics.echo]
    after = [torch.empty_like(m, memory_format=torch.contiguous_format) for _, m in kept]
    carried = dynamics.carried(o)
    for (name, m), fresh in zip(kept, after, strict=True):
        if name not in carried:
            fresh.copy_(m)
    return after, [fresh for (name, _), fresh in zip(kept, after, strict=True) if name in carried]


def fresh_gradients(
    dynamics: Dynamics, o: Options, memory: Sequence[Tensor], grad_states: Sequence[Tensor], learn: bool
) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Gradients of the first states and of the parameters per column, and which of both the loop writes."""
    like, carried, used = memory[0], dynamics.carried(o), dynamics.used(o)
    shape = like.shape
    d_first = [like.new_empty(shape) if name in carried else like.new_zeros(shape) for name in dynamics.states]
    for name, fresh, grad in zip(dynamics.states, d_first, grad_states, strict=True):
        if name not in carried and name != dynamics.echo:  # comes out as it went in
            fresh.copy_(grad)
    d_columns = [
        like.new_empty(shape if learn else (0,)) if name in used or not learn else like.new_zeros(shape)
        for name in dynamics.parameters
    ]
    written = [fresh for name, fresh in zip(dynamics.states, d_first, strict=True) if name in carried]
    written += [fresh for name, fresh in zip(dynamics.parameters, d_columns, strict=True) if learn and name in used]
    return d_first, d_columns, written
