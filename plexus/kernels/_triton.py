"""Fused loops on a GPU, by Triton: `_triton_source` writes the kernels, Triton compiles and caches them.

Nothing of Triton is imported here before the first launch. `_triton_recurrent` runs layers with recurrent weights.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from plexus.kernels._buffers import fresh_gradients, fresh_memory, rows, used_columns
from plexus.kernels._frame import Dynamics, Options, options_from
from plexus.kernels._triton_source import triton_source
from plexus.kernels._written import written_module

__all__ = [
    "backward",
    "forward",
    "installed",
    "kernels",
    "launch",
    "missing",
    "stretch_of",
    "strided",
    "unit_numbers",
]

BLOCK = 128  # columns of a program: one for each thread of four warps
MANY = 1 << 20  # columns from which on each thread takes WIDER of them: a GPU full of threads waits for memory less
WIDER = 4
LARGE = 64 << 20  # bytes of what is carried between steps that backward keeps at once


def installed() -> bool:
    """Is Triton there? It is not imported for the answer."""
    return importlib.util.find_spec("triton") is not None


def missing() -> str | None:
    """What keeps Triton's kernels from running on this machine, or None."""
    if not installed():
        return "triton is not installed"
    if not torch.backends.cuda.is_built():
        return "this PyTorch is built without CUDA"
    return None if torch.cuda.is_available() else "there is no GPU"


def forward(
    dynamics: Dynamics,
    inputs: Sequence[Tensor],
    memory: Sequence[Tensor],
    columns: Sequence[Tensor],
    constants: Sequence[float],
    options: str,
) -> list[Tensor]:
    """The fused loop: `[out, *memory]` after the last step, without the state that echoes the output."""
    x, o = inputs[0], options_from(dynamics, options)
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    after, written = fresh_memory(dynamics, o, memory)
    launch(
        kernels(dynamics, options, x, False).forward,
        memory[0],
        *strided(inputs),
        out,
        *_loop(dynamics, inputs, memory, columns, options),
        *written,
        *constants,
    )
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
    x, o = inputs[0], options_from(dynamics, options)
    carried = dynamics.carried(o)
    d_inputs = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in inputs]
    d_first, d_columns, written = fresh_gradients(dynamics, o, memory, grad_states, learn)
    incoming = [g.contiguous() for name, g in zip(dynamics.states, grad_states, strict=True) if name in carried]
    steps, size = len(x), len(carried) * memory[0].numel()
    stretch = stretch_of(steps, size * x.element_size())
    launch(
        kernels(dynamics, options, x, learn).backward,
        memory[0],
        *strided([*inputs, grad]),
        *d_inputs,
        *_loop(dynamics, inputs, memory, columns, options),
        *incoming,
        *written,
        x.new_empty(-(-steps // stretch) * size),
        x.new_empty(stretch * size),
        stretch,
        *constants,
    )
    return [*d_inputs, *d_first, *d_columns]


def kernels(dynamics: Dynamics, options: str, x: Tensor, learn: bool) -> Any:
    """The module of this model's kernels."""
    return written_module(triton_source, dynamics, options, str(x.dtype).rpartition(".")[2], True, learn)


def strided(tensors: Sequence[Tensor]) -> list[Any]:
    """Each tensor as dense rows, and the distance between them."""
    return [part for pair in map(rows, tensors) for part in pair]


def _loop(
    dynamics: Dynamics, inputs: Sequence[Tensor], memory: Sequence[Tensor], columns: Sequence[Tensor], options: str
) -> list[Any]:
    """What every loop gets: its extents, what is carried into it, and the units' numbers."""
    o = options_from(dynamics, options)
    units, numbers = unit_numbers(dynamics, o, columns)
    before = [memory[place].contiguous() for place in o.carried]
    return [len(inputs[0]), memory[0].numel(), units, *before, *numbers]


def unit_numbers(dynamics: Dynamics, o: Options, columns: Sequence[Tensor]) -> tuple[int, list[Any]]:
    """How many units there are to tell apart; and their numbers, each with the step from unit to unit."""
    used, units = used_columns(dynamics, o, columns)
    return units, [part for column in used for part in (column.contiguous(), int(column.numel() > 1))]


def stretch_of(steps: int, size: int) -> int:
    """How many steps backward walks through at once, of which each carries `size` bytes."""
    return max(1, steps if steps * size <= LARGE else math.isqrt(steps - 1) + 1)


def launch(kernel: Any, like: Tensor, *arguments: Any) -> None:
    """Run the kernel over all columns, on the device of `like`."""
    if like.numel():
        with torch.cuda.device_of(like):
            given = [a.detach() if isinstance(a, Tensor) and a.requires_grad else a for a in arguments]
            block = BLOCK * WIDER if like.numel() >= MANY else BLOCK
            kernel[(-(-like.numel() // block),)](*given, BLOCK=block, enable_fp_fusion=False)
