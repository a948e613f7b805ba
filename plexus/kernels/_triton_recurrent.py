"""A recurrent layer over time on a GPU: a product and a launch per step, forwards and backwards.

The equations are those of `_recurrent_loop`. Backwards the currents are known, so that a stretch of steps is stepped
through again by one launch. Sparse weights are written out as a matrix: a GPU multiplies those faster than it follows
synapses, unless they are very few.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from plexus.kernels._buffers import fresh_gradients
from plexus.kernels._frame import Dynamics, options_from
from plexus.kernels._products import dense
from plexus.kernels._triton import kernels, launch, stretch_of, strided, unit_numbers

__all__ = ["recurrent_backward", "recurrent_forward"]


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
    x, o = inputs[0], options_from(dynamics, options)
    samples, matrices = _samples(x), _matrices(weights, places)
    units, numbers = unit_numbers(dynamics, o, columns)
    step = kernels(dynamics, options, x, False).forward
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    currents = [x.new_empty(x.shape if keep and w is not None else (0,)) for w in matrices]
    given = [i.detach().reshape(len(x), *samples).unbind(0) for i in inputs]
    wide = [current.view(len(x), *samples).unbind(0) if current.numel() else None for current in currents]
    state = {name: _copy(m) for name, m in zip(dynamics.memory, memory, strict=True)}
    assert dynamics.echo is not None
    carried, z = dynamics.carried(o), state[dynamics.echo]
    for t, emitted in enumerate(out.unbind(0)):
        rows: list[Any] = []
        for i, w, current in zip(given, matrices, wide, strict=True):
            now = i[t]
            if w is not None:
                into = None if current is None else current[t]
                now = torch.addmm(now, z.view(samples), w.T, out=into)
            rows += [now.contiguous(), 0]
        state[dynamics.echo] = z
        before = [state[name] for name in carried]
        after = [state[name] for name in carried if name != dynamics.echo]  # each column is read, then written
        launch(step, memory[0], *rows, emitted, 1, z.numel(), units, *before, *numbers, *after, *constants)
        z = emitted
    return [out, *(state[name] for name in dynamics.memory if name != dynamics.echo), *currents]


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
    x, o = inputs[0], options_from(dynamics, options)
    samples, matrices = _samples(x), _matrices(weights, places)
    given = [i if w is None else current for i, w, current in zip(inputs, matrices, currents, strict=True)]
    units, numbers = unit_numbers(dynamics, o, columns)
    module, carried, like = kernels(dynamics, options, x, learn), dynamics.carried(o), memory[0]
    steps, total = len(x), like.numel()
    d_states, d_columns, passed = fresh_gradients(dynamics, o, memory, grad_states, learn)
    incoming = [g for name, g in zip(dynamics.states, grad_states, strict=True) if name in carried]
    for k, fresh in enumerate(passed):
        fresh.copy_(incoming[k]) if k < len(incoming) else fresh.zero_()
    deltas = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in inputs]
    stretch = stretch_of(steps, len(carried) * total * x.element_size())
    kept = x.new_empty(stretch, len(carried) * total)

    def again(first: int, before: list[Tensor]) -> list[Tensor]:
        """From what is carried into a stretch of steps to what is carried out of it."""
        now = [i[first : first + stretch] for i in given]
        after = [torch.empty_like(m) for m in before]
        extents = (len(now[0]), total, units)
        launch(module.again, like, *strided(now), kept, *extents, *before, *numbers, *after, *constants)
        return after

    starts = list(range(0, steps, stretch))
    states = [[_copy(m) for name, m in zip(dynamics.memory, memory, strict=True) if name in carried]]
    for first in starts[:-1]:
        states.append(again(first, states[-1]))
    for first in reversed(starts):
        again(first, states.pop())
        for t in reversed(range(first, min(steps, first + stretch))):
            g = _collected(grad[t].detach().reshape(samples), matrices, deltas, t + 1)
            rows = [part for i in given for part in (i[t].contiguous(), 0)]
            delta = [d[t] for d in deltas]
            extents = (kept[t - first], total, units)
            launch(module.retreat, like, *rows, g.contiguous(), 0, *delta, *extents, *numbers, *passed, *constants)
    assert dynamics.echo is not None
    echo = dynamics.states.index(dynamics.echo)
    if steps:
        d_states[echo] = _collected(d_states[echo].view(samples), matrices, deltas, 0).view(like.shape)
    before = torch.cat([memory[echo].detach().unsqueeze(0), out.detach()])[:steps].flatten(2).flatten(0, 1)
    d_weights = [
        _gradient(w, places[2 * k : 2 * k + 2], delta.flatten(2).flatten(0, 1), before) if wanted else w.new_empty(0)
        for k, (w, delta, wanted) in enumerate(zip(weights, deltas, learn_weights, strict=True))
    ]
    return [*deltas, *d_states, *d_columns, *d_weights]


def _collected(grad: Tensor, matrices: Sequence[Tensor | None], deltas: Sequence[Tensor], t: int) -> Tensor:
    """grad + Σ Wᵀ δ[t], what the step before t gets from its recurrent targets."""
    for w, delta in zip(matrices, deltas, strict=True):
        if w is not None and t < len(delta):
            grad = torch.addmm(grad, delta[t].view(grad.shape), w)
    return grad


def _gradient(weight: Tensor, places: Sequence[Tensor], delta: Tensor, before: Tensor) -> Tensor:
    """Σ_t δ[t]ᵀ z[t-1], at the places of a sparse weight's synapses where it is one."""
    found = delta.T @ before
    if weight.dim() == 2:
        return found
    starts, targets = places
    sources = torch.repeat_interleave(torch.arange(len(starts) - 1, device=starts.device), starts.diff())
    return found[targets, sources]


def _matrices(weights: Sequence[Tensor], places: Sequence[Tensor]) -> list[Tensor | None]:
    return [
        w.detach() if w.dim() == 2 else dense(w.detach(), *places[2 * k : 2 * k + 2]) if w.numel() else None
        for k, w in enumerate(weights)
    ]


def _samples(x: Tensor) -> tuple[int, int]:
    """Batch and units, several dimensions of units as one."""
    return x.shape[1], math.prod(x.shape[2:])


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().clone(memory_format=torch.contiguous_format)
