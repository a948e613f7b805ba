"""Fused loops on the CPU, by Numba: compiled once, cached on disk.

The loop runs over chunks of columns (unit × batch) that fit the cache, with time inside, and on several threads over
disjoint ranges of columns, as many as `torch.get_num_threads()`. Backward reads the input again and steps through the
chunk a second time instead of keeping the membrane: what must be saved is the input and the initial state.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from plexus.kernels._frame import Dynamics, Options, options_from
from plexus.kernels._memory import empty
from plexus.kernels._source import CHUNK, source
from plexus.kernels._threads import run_parts

__all__ = ["backward", "cache_folder", "flat", "forward", "prepare"]

_SCRATCH = 512 << 10  # bytes that the steps of a chunk may take while backward walks through them again
_WORTH = 1 << 15  # elements that are worth a thread


@lru_cache(maxsize=1)
def cache_folder() -> Path:
    """Where compiled loops are kept: `$PLEXUS_CACHE`, else the user's cache folder, else a fresh temporary one."""
    base = os.environ.get("PLEXUS_CACHE") or os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    folder = Path(base) / ("kernels" if os.environ.get("PLEXUS_CACHE") else "plexus/kernels")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError:
        return Path(tempfile.mkdtemp(prefix="plexus-kernels-"))


_building = threading.Lock()


@lru_cache(maxsize=256)
def _module(
    write: Callable[..., str], dynamics: Dynamics, key: str, dtype: str, uniform: bool, learn: bool
) -> ModuleType:
    text = write(dynamics, options_from(dynamics, key), dtype, uniform, learn)
    name = f"_plexus_{dynamics.name}_{hashlib.sha256(text.encode()).hexdigest()[:20]}"
    with _building:
        path = cache_folder() / f"{name}.py"
        if not (path.exists() and path.read_text(encoding="utf-8") == text):
            handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(text)
            os.replace(temporary, path)
        specification = importlib.util.spec_from_file_location(name, path)
        assert specification is not None
        assert specification.loader is not None
        module = importlib.util.module_from_spec(specification)
        sys.modules[name] = module
        specification.loader.exec_module(module)
    return module


def _spread(kernel: Callable[..., None], arguments: tuple[Any, ...], total: int, steps: int) -> None:
    """Run the kernel over all columns: on several threads where there is enough to do."""
    threads = max(1, min(torch.get_num_threads(), total * steps // _WORTH))
    edges = [min(total, -(-total * k // threads) // 64 * 64) for k in range(threads)] + [total]
    run_parts([partial(kernel, *arguments, a, b) for a, b in pairwise(edges) if a < b])


def _rows(x: Tensor) -> tuple[Tensor, int]:
    """x as `[time, column]` with dense rows: a flat tensor and the distance between rows (0 for a constant input)."""
    steps, total = x.shape[0], x[0].numel() if x.shape[0] else 0
    if steps == 0 or total == 0:
        return x.reshape(-1), 0
    first = x[0]
    if not first.is_contiguous():
        x = x.contiguous()
    stride = x.stride(0) if steps > 1 else total
    return torch.as_strided(x, ((steps - 1) * stride + total,), (1,)), stride


def _strided(rows: Sequence[tuple[Tensor, int]]) -> list[Any]:
    return [part for row, stride in rows for part in (row.detach().numpy(), stride)]


def flat(tensor: Tensor) -> np.ndarray[Any, Any]:
    """A tensor's numbers in one dimension, without a copy where they are dense."""
    return tensor.detach().contiguous().view(-1).numpy()


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
    used = [column for name, column in zip(dynamics.columns, columns, strict=True) if name in dynamics.used(o)]
    uniform = all(column.numel() == 1 for column in used)
    units = max([1, *(column.numel() for column in used)])
    module = _module(write, dynamics, options, str(like.dtype).rpartition(".")[2], uniform, learn)
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
    rows = [_rows(x) for x in inputs]
    carried = dynamics.carried(o)
    before = [flat(m) for name, m in zip(dynamics.memory, memory, strict=True) if name in carried]
    kept = [(name, m) for name, m in zip(dynamics.memory, memory, strict=True) if name != dynamics.echo]
    after = [torch.empty_like(m, memory_format=torch.contiguous_format) for _, m in kept]
    for (name, m), fresh in zip(kept, after, strict=True):
        if name not in carried:
            fresh.copy_(m)
    final = [flat(fresh) for (name, _), fresh in zip(kept, after, strict=True) if name in carried]
    arguments = (
        *_strided(rows),
        flat(out),
        steps,
        total,
        units,
        *before,
        *used,
        *final,
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
    rows = [_rows(x) for x in inputs]
    given_grad = [_rows(grad)]
    before = [flat(m) for name, m in zip(dynamics.memory, memory, strict=True) if name in carried]
    shape = memory[0].shape
    d_first = [x.new_empty(shape) if name in carried else x.new_zeros(shape) for name in dynamics.states]
    for k, name in enumerate(dynamics.states):
        if name not in carried and name != dynamics.echo:  # comes out as it went in
            d_first[k].copy_(grad_states[k])
    named = dynamics.used(o)
    d_columns = [
        x.new_empty(shape) if learn and name in named else x.new_zeros(shape if learn else (0,))
        for name in dynamics.parameters
    ]
    real = [k for k, name in enumerate(dynamics.states) if name in carried]
    learnt = [k for k, name in enumerate(dynamics.parameters) if name in named]
    chunk = _SCRATCH // max(1, steps * x.element_size() * len(carried))
    chunk = max(64, min(CHUNK, chunk // 64 * 64))
    arguments = (*_strided(rows), *_strided(given_grad), *(flat(d) for d in d_inputs), steps, total, units)
    adjoints = (
        *(flat(grad_states[k]) for k in real),
        *(flat(d_first[k]) for k in real),
        *(flat(d_columns[k]) for k in learnt if learn),
    )
    _spread(module.backward, (*arguments, *before, *used, *adjoints, *constants, chunk), total, steps)
    return [*d_inputs, *d_first, *d_columns]
