"""The loops of `_elm`, as plain Python that Numba compiles.

`kind` is the index of the activation in `_elm.ELM_ACTIVATIONS`; samples (or columns) `first … last` are run. Weights
come as rows `[neuron, from, to]`, filled with rows of zeros up to a multiple of four: four rows at a time
are added to a vector, where one would load and store it anew for each.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from plexus.kernels import _reservoir_loops


def _trace(x, initial, decay, backwards, out, first, last):  # type: ignore[no-untyped-def]
    steps = len(x)
    y = initial[first:last].copy()
    for k in range(steps):
        t = steps - 1 - k if backwards else k
        for i in range(first, last):
            y[i - first] = decay * y[i - first] + x[t, i]
            out[t, i] = y[i - first]


def _add_product(rows, vector, total):  # type: ignore[no-untyped-def]
    """total += vector @ rows."""
    for j in range(0, len(rows), 4):
        a, b, c, d = vector[j], vector[j + 1], vector[j + 2], vector[j + 3]
        if a == 0 and b == 0 and c == 0 and d == 0:
            continue
        for i in range(len(total)):
            total[i] += rows[j, i] * a + rows[j + 1, i] * b + rows[j + 2, i] * c + rows[j + 3, i] * d


def _forward(  # type: ignore[no-untyped-def]
    drive, inner, outer, offset, decay, gain, initial, kind, out, first, last
):
    steps, neurons, hidden, units = drive.shape[0], drive.shape[2], drive.shape[3], decay.shape[1]
    d = np.zeros(inner.shape[1], drive.dtype)
    h = np.zeros(outer.shape[1], drive.dtype)
    z = np.empty(hidden, drive.dtype)
    r = np.empty(units, drive.dtype)
    part = np.empty(max(units, hidden), np.float64)
    bits = np.empty(max(units, hidden), np.int64)
    power = bits.view(np.float64)
    for n in range(neurons):
        for b in range(first, last):
            for i in range(units):
                d[i] = decay[n, i] * initial[b, n, i]
            for t in range(steps):
                for i in range(hidden):
                    z[i] = drive[t, b, n, i]
                _add_product(inner[n], d, z)  # type: ignore[no-untyped-call]
                if kind == 0:
                    for i in range(hidden):
                        h[i] = max(z[i], z[i] * 0)  # NaN stays NaN
                else:
                    for i in range(hidden):
                        h[i] = z[i]
                    if kind == 1:
                        _activate(z, part, bits, power, 0)  # type: ignore[name-defined]  # noqa: F821
                        for i in range(hidden):
                            h[i] *= z[i]
                for i in range(units):
                    r[i] = offset[n, i]
                _add_product(outer[n], h, r)  # type: ignore[no-untyped-call]
                for i in range(units):
                    r[i] *= 2 / 3
                _activate(r, part, bits, power, 1)  # type: ignore[name-defined]  # noqa: F821
                for i in range(units):
                    m = d[i] + gain[n, i] * r[i]
                    out[t, b, n, i] = m
                    d[i] = decay[n, i] * m


def _backward(  # type: ignore[no-untyped-def]
    grad, slope_in, slope_out, inner, outer, decay, delta, p, total, carry, first, last
):
    steps, neurons, hidden, units = grad.shape[0], grad.shape[2], slope_in.shape[3], grad.shape[3]
    push = np.zeros(outer.shape[1], grad.dtype)
    pull = np.zeros(inner.shape[1], grad.dtype)
    back = np.empty(hidden, grad.dtype)
    whole = np.empty(units, grad.dtype)
    later = np.empty(units, grad.dtype)
    for n in range(neurons):
        for b in range(first, last):
            later[:] = 0
            for t in range(steps - 1, -1, -1):
                for i in range(units):
                    whole[i] = grad[t, b, n, i] + later[i]
                for i in range(units):
                    push[i] = slope_out[t, b, n, i] * whole[i]
                for i in range(units):
                    total[t, b, n, i] = whole[i]
                for i in range(units):
                    p[t, b, n, i] = push[i]
                for i in range(hidden):
                    back[i] = 0
                _add_product(outer[n], push, back)  # type: ignore[no-untyped-call]
                for i in range(hidden):
                    pull[i] = slope_in[t, b, n, i] * back[i]
                for i in range(hidden):
                    delta[t, b, n, i] = pull[i]
                _add_product(inner[n], pull, whole)  # type: ignore[no-untyped-call]
                for i in range(units):
                    later[i] = decay[n, i] * whole[i]
            carry[b, n] = later


@functools.cache
def compiled(name: str) -> Any:
    """One loop, compiled on first use and cached on disk; sums may be reordered, NaN is kept."""
    import numba

    if name in ("_forward", "_backward"):  # the names by which the loops call these
        globals()["_activate"] = _reservoir_loops.compiled("_activate")
        globals()["_add_product"] = compiled("_add_product")
    relaxed = {"reassoc", "contract", "nsz"}
    return numba.njit(cache=True, nogil=True, error_model="numpy", fastmath=relaxed)(globals()[name])
