"""The loops of `_delays`, as plain Python that Numba compiles.

Shapes: history and input `x [time + reach, batch, source]`, where reach is the largest delay and row s is what a source
emitted at time s - reach; results `[time, batch, target]`. `first … last` is the part of the batch (or of the sources)
that one thread does.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from typing import Any

import numpy as np

from plexus.kernels._threads import run_parts


def _spread_events(x, kernel, out, first, last):  # type: ignore[no-untyped-def]
    """Every event adds its source's kernel `[tap, target]`, one contiguous row, to the currents that follow it."""
    rows, sources = x.shape[0], x.shape[2]
    taps, targets = kernel.shape[1], kernel.shape[2]
    reach = taps - 1
    row = taps * targets
    flat = kernel.reshape(sources, row)
    current = np.empty((rows + reach) * targets, out.dtype)
    for b in range(first, last):
        current[:] = 0
        for s in range(rows):
            start = s * targets
            for j in range(sources):
                a = x[s, b, j]
                if a != 0:
                    after, synapses = current[start : start + row], flat[j]
                    for m in range(row):  # over slices that start at 0, so that the compiler can use vectors
                        after[m] += a * synapses[m]
        for t in range(rows - reach):
            for i in range(targets):
                out[t, b, i] = current[(t + reach) * targets + i]


def _gather_events(x, grad, to_kernel, first, last):  # type: ignore[no-untyped-def]
    """The kernel's gradient: every event adds the piece of the gradient that followed it, `grad [batch, time · target]`
    with `reach` silent steps on either side."""
    rows, batch = x.shape[0], x.shape[1]
    targets = to_kernel.shape[2]
    row = to_kernel.shape[1] * targets
    flat = to_kernel.reshape(to_kernel.shape[0], row)
    for b in range(batch):
        for s in range(rows):
            start = s * targets
            for j in range(first, last):
                a = x[s, b, j]
                if a != 0:
                    after, synapses = grad[b, start : start + row], flat[j]
                    for m in range(row):
                        synapses[m] += a * after[m]


def _shift_add(x, start, values, out, first, last):  # type: ignore[no-untyped-def]
    """Every tap adds its source's shifted course to its target's; `[batch, source, row]` to `[batch, target, time]`."""
    steps = out.shape[2]
    reach = x.shape[2] - steps
    taps, targets, sources = values.shape
    for b in range(first, last):
        for i in range(targets):
            for j in range(sources):
                for k in range(taps):
                    v = values[k, i, j]
                    if v != 0:
                        s = reach - start[i, j] - k
                        source, target = x[b, j, s : s + steps], out[b, i]
                        for t in range(steps):
                            target[t] += v * source[t]


def _scatter_events(x, start, values, out, first, last):  # type: ignore[no-untyped-def]
    """Every event adds to each target's current where its taps lie; start `[source, target]`, values `[tap, source,
    target]`."""
    rows, sources = x.shape[0], x.shape[2]
    taps, _, targets = values.shape
    reach = rows - out.shape[0]
    current = np.empty((rows + reach + 1) * targets, out.dtype)
    for b in range(first, last):
        current[:] = 0
        for s in range(rows):
            for j in range(sources):
                a = x[s, b, j]
                if a != 0:
                    for k in range(taps):
                        when, weights = start[j], values[k, j]
                        for i in range(targets):
                            current[np.uint64((s + k + when[i]) * targets + i)] += a * weights[i]
        for t in range(rows - reach):
            for i in range(targets):
                out[t, b, i] = current[(t + reach) * targets + i]


def _collect_events(x, grad, start, to_values, first, last):  # type: ignore[no-untyped-def]
    """The taps' gradient from the events, `grad [batch, time · target]` with `reach` silent steps on either side."""
    rows, batch = x.shape[0], x.shape[1]
    taps, _, targets = to_values.shape
    for b in range(batch):
        for s in range(rows):
            for j in range(first, last):
                a = x[s, b, j]
                if a != 0:
                    for k in range(taps):
                        when, found, after = start[j], to_values[k, j], grad[b]
                        for i in range(targets):
                            found[i] += a * after[np.uint64((s + k + when[i]) * targets + i)]


def _shift_back(grad, start, values, to_x, first, last):  # type: ignore[no-untyped-def]
    """What `_shift_add` sends back to its input."""
    steps = grad.shape[2]
    reach = to_x.shape[2] - steps
    taps, targets, sources = values.shape
    for b in range(first, last):
        for i in range(targets):
            for j in range(sources):
                for k in range(taps):
                    v = values[k, i, j]
                    if v != 0:
                        s = reach - start[i, j] - k
                        source, target = to_x[b, j, s : s + steps], grad[b, i]
                        for t in range(steps):
                            source[t] += v * target[t]


def _shift_correlate(x, grad, start, to_values, first, last):  # type: ignore[no-untyped-def]
    """What `_shift_add` sends back to its taps: products of the shifted course with the gradient; over targets."""
    steps = grad.shape[2]
    reach = x.shape[2] - steps
    taps, sources = to_values.shape[0], to_values.shape[2]
    for b in range(x.shape[0]):
        for i in range(first, last):
            for j in range(sources):
                for k in range(taps):
                    s = reach - start[i, j] - k
                    source, target = x[b, j, s : s + steps], grad[b, i]
                    total = to_values[k, i, j]
                    for t in range(steps):
                        total += source[t] * target[t]
                    to_values[k, i, j] = total


@functools.cache
def compiled(name: str) -> Any:
    """One loop, compiled on first use and cached on disk; sums may be reordered, NaN is kept."""
    import numba

    return numba.njit(cache=True, nogil=True, error_model="numpy", fastmath={"reassoc", "contract", "nsz"})(
        globals()[name]
    )


def spread(loop: Callable[[int, int], None], size: int, threads: int) -> None:
    """Run `loop(first, last)` over `size` items on so many threads."""
    threads = max(1, min(threads, size))
    edges = [size * n // threads for n in range(threads + 1)]
    run_parts([functools.partial(loop, a, b) for a, b in itertools.pairwise(edges)])
