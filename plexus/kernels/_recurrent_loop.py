"""A recurrent layer over time on the CPU: a product per step around a fused step, forwards and backwards.

    forwards     i[t] = x[t] + W z[t-1]                     z[t], state[t] = step(i[t], state[t-1])
    backwards    g[t] = dL/dz[t] + Wᵀ δ[t+1]                δ[t] = dL/di[t] = adjoint(i[t], state[t-1], g[t], …)
                 dL/dW = Σ_t δ[t] z[t-1]ᵀ                   dL/dx[t] = δ[t],    dL/dz[-1] = Wᵀ δ[0]

Backwards needs i, the output and the first state. States in between are stepped through again, in stretches of √T steps
where the whole would be large, each from a state that a first walk has left.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from plexus.kernels._frame import Dynamics
from plexus.kernels._memory import empty
from plexus.kernels._numba_steps import Steps
from plexus.kernels._products import Product, product

__all__ = ["recurrent_backward", "recurrent_forward"]

_LARGE = 16 << 20  # bytes of states in between that are kept at once


def recurrent_forward(
    dynamics: Dynamics,
    inputs: Sequence[Tensor],
    memory: Sequence[Tensor],
    columns: Sequence[Tensor],
    weights: Sequence[Tensor],
    places: Sequence[Tensor],
    constants: Sequence[float],
    options: str,
    keep: bool,
) -> list[Tensor]:
    """`[out, *memory, *currents]` without the state that echoes the output; currents are empty unless kept."""
    x = inputs[0]
    out = empty(tuple(x.shape), x)
    samples = _samples(x)
    products = _products(weights, places)
    currents = [
        empty(tuple(x.shape) if keep else tuple(x.shape[1:]), x) if p is not None else x.new_empty(0) for p in products
    ]
    steps = Steps(dynamics, memory, columns, constants, options)
    z = _echo(dynamics, memory).detach().reshape(samples)
    emitted = out.view(len(x), *samples)
    for t in range(len(x)):
        rows = []
        for given, p, current in zip(inputs, products, currents, strict=True):
            now = given[t].detach().reshape(samples)
            if p is not None:
                total = (current[t] if keep else current).view(samples)
                p.add(now, z, total)
                now = total
            rows.append(now.contiguous().view(-1).numpy())
        z = emitted[t]
        steps.advance(rows, z.view(-1).numpy())
    carried = steps.finish()
    after = [
        carried[name] if name in carried else m.detach().clone(memory_format=torch.contiguous_format)
        for name, m in zip(dynamics.memory, memory, strict=True)
        if name != dynamics.echo
    ]
    return [out, *after, *(current if keep else current.new_empty(0) for current in currents)]


def recurrent_backward(
    dynamics: Dynamics,
    inputs: Sequence[Tensor],
    memory: Sequence[Tensor],
    columns: Sequence[Tensor],
    weights: Sequence[Tensor],
    places: Sequence[Tensor],
    constants: Sequence[float],
    options: str,
    currents: Sequence[Tensor],
    out: Tensor,
    grad: Tensor,
    grad_states: Sequence[Tensor],
    learn: bool,
    learn_weights: Sequence[bool],
) -> list[Tensor]:
    """`[*d_inputs, *d_states, *d_parameters, *d_weights]`, parameters as one number per column."""
    x, samples = inputs[0], _samples(inputs[0])
    products = _products(weights, places)
    given = [i if p is None else current for i, p, current in zip(inputs, products, currents, strict=True)]
    steps = Steps(dynamics, memory, columns, constants, options, learn)
    deltas = [empty(tuple(x.shape), x).view(len(x), *samples) for _ in inputs]
    total, length = memory[0].numel(), len(x)
    g = torch.empty(samples, dtype=x.dtype)

    def rows(t: int) -> list[Any]:
        return [i[t].detach().contiguous().view(-1).numpy() for i in given]

    stretch = _stretch(length, total * x.element_size() * len(steps.carried))
    starts = list(range(0, length, stretch)) if length else []
    saved = []
    unused = g.view(-1).numpy()
    for t in range(starts[-1] if starts else 0):
        if t % stretch == 0:
            saved.append(steps.saved())
        steps.advance(rows(t), unused)
    kept = np.empty((min(stretch, length), len(steps.carried), total), unused.dtype)
    for k in reversed(range(len(starts))):
        if k < len(saved):
            steps.restore(saved.pop())
        stop = min(length, starts[k] + stretch)
        for t in range(starts[k], stop):
            steps.again(rows(t), kept[t - starts[k]])
        if stop == length:
            steps.turn(grad_states)
        for t in reversed(range(starts[k], stop)):
            _collect(g, grad[t].detach().reshape(samples), products, deltas, t + 1)
            now = [delta[t].view(-1).numpy() for delta in deltas]
            steps.retreat(rows(t), g.view(-1).numpy(), now, kept[t - starts[k]])
    if not length:
        steps.turn(grad_states)
    d_states, d_columns = steps.arrive()
    echo = _echo(dynamics, memory).detach().reshape(samples)
    d_echo = d_states[dynamics.states.index(dynamics.echo)] if dynamics.echo else None
    assert d_echo is not None
    if length:
        _collect(d_echo.view(samples), d_echo.view(samples), products, deltas, 0)
    d_weights = [
        p.gradient(delta, out.detach().view(len(x), *samples), echo) if p is not None and wanted and length
        else torch.zeros_like(w) if wanted else w.new_empty(0)
        for p, delta, w, wanted in zip(products, deltas, weights, learn_weights, strict=True)
    ]  # fmt: skip
    d_columns = d_columns if learn else [x.new_zeros(0) for _ in dynamics.parameters]
    return [*(delta.view(x.shape) for delta in deltas), *d_states, *d_columns, *d_weights]


def _collect(g: Tensor, grad: Tensor, products: Sequence[Product | None], deltas: Sequence[Tensor], t: int) -> None:
    """g = grad + Σ Wᵀ δ[t], what the step before t gets from its recurrent targets."""
    for p, delta in zip(products, deltas, strict=True):
        if p is not None and t < len(delta):
            p.add_back(grad, delta[t], g)
            grad = g
    if grad is not g:
        g.copy_(grad)


def _stretch(length: int, size: int) -> int:
    return length if length * size <= _LARGE else math.isqrt(length - 1) + 1


def _samples(x: Tensor) -> tuple[int, int]:
    """Batch and units, several dimensions of units as one."""
    return x.shape[1], math.prod(x.shape[2:])


def _echo(dynamics: Dynamics, memory: Sequence[Tensor]) -> Tensor:
    assert dynamics.echo is not None
    return memory[dynamics.states.index(dynamics.echo)]


def _products(weights: Sequence[Tensor], places: Sequence[Tensor]) -> list[Product | None]:
    return [product(w, *places[2 * k : 2 * k + 2]) for k, w in enumerate(weights)]
