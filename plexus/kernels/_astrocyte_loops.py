"""The loops of `_astrocyte`, as plain Python that Numba compiles: one matrix product per step and one pass over units.

Rows of scratch are [batch, unit], or [batch, 2 · unit] where gain and bias lie side by side. With `gain` the first
columns are the argument of tanh, with `bias` the last ones a current. `high` and `low` bound what a unit emits,
`a_high` and `a_low` the calcium that is read; `kind` names the surrogate.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from plexus.kernels import _reservoir_loops
from plexus.kernels._reservoir_loops import _activate
from plexus.kernels._surrogate import SURROGATES

KINDS = tuple(sorted(SURROGATES))


def _slope(u, width, height, kind):  # type: ignore[no-untyped-def]
    """h·g(u / w) of the surrogate whose place among the sorted names is `kind`."""
    r = u / width
    if kind == 0:  # arctan
        return height / (1 + r * r)
    if kind == 1:  # fast sigmoid
        return height / ((1 + abs(r)) * (1 + abs(r)))
    if kind == 2:  # gaussian
        return height * np.exp(-(r * r) / 2)
    if kind == 3:  # sigmoid
        e = np.exp(-abs(r))
        return height * 4 * e / ((1 + e) * (1 + e))
    if kind == 4:  # straight through
        return height if abs(u) <= width else height * 0
    return height * max(1 - abs(r), r * 0)  # triangular


def _forward(  # type: ignore[no-untyped-def]
    drive,
    current,
    v,
    a,
    z,
    mixed,
    listen,
    keep,
    decay,
    threshold,
    port,
    a_port,
    gain,
    bias,
    spikes,
    calcium,
    membrane,
    gains,
):
    steps, batch, units = drive.shape
    read = np.empty((batch, units), drive.dtype)
    heard = np.empty((batch, mixed.shape[1]), drive.dtype)
    row = np.empty(units, drive.dtype)
    part = np.empty(units, np.float64)
    bits = np.empty(units, np.int64)
    power = bits.view(np.float64)
    above = units if gain else 0
    for t in range(steps):
        for b in range(batch):
            for i in range(units):
                a[b, i] = keep[i] * a[b, i] + drive[t, b, i] + listen[i] * z[b, i]
                calcium[t, b, i] = a[b, i]
                read[b, i] = min(max(a_port[0, i] * a[b, i] + a_port[1, i], a_port[2, i]), a_port[3, i])
        np.dot(read, mixed, heard)
        for b in range(batch):
            if gain:
                for i in range(units):
                    row[i] = heard[b, i]
                _activate(row, part, bits, power, 1)  # type: ignore[no-untyped-call]
                for i in range(units):
                    gains[t, b, i] = row[i]
            for i in range(units):
                j = current[t, b, i]
                if gain:
                    j *= 1 + row[i]
                if bias:
                    j += heard[b, above + i]
                m = decay[i] * v[b, i] + j
                s = threshold[i] * 0
                if m > threshold[i]:
                    s = s + 1
                s = min(max(port[0, i] * s + port[1, i], port[2, i]), port[3, i])
                membrane[t, b, i] = m
                spikes[t, b, i] = s
                z[b, i] = s
                v[b, i] = (1 - s) * m


def _backward(  # type: ignore[no-untyped-def]
    current,
    mixed,
    listen,
    keep,
    decay,
    threshold,
    port,
    a_port,
    gain,
    bias,
    spikes,
    calcium,
    membrane,
    gains,
    width,
    height,
    kind,
    grad,
    grad_calcium,
    d_v,
    d_a,
    d_z,
    d_m,
    d_calcium,
):
    steps, batch, units = current.shape
    back = np.empty((batch, mixed.shape[0]), current.dtype)
    through = np.empty((batch, units), current.dtype)
    above = units if gain else 0
    one = decay[0] * 0 + 1
    for t in range(steps - 1, -1, -1):
        for b in range(batch):
            for i in range(units):
                m = membrane[t, b, i]
                s = spikes[t, b, i]
                d_s = grad[t, b, i] + d_z[b, i] - d_v[b, i] * m
                raw = port[0, i] * (one if m > threshold[i] else one * 0) + port[1, i]
                d_s = d_s * port[0, i] if port[2, i] <= raw <= port[3, i] else one * 0
                d = d_v[b, i] * (1 - s) + d_s * _slope(m - threshold[i], width, height, kind)  # type: ignore[no-untyped-call]
                d_m[t, b, i] = d
                d_v[b, i] = d * decay[i]
                if gain:
                    q = gains[t, b, i]
                    back[b, i] = d * current[t, b, i] * (1 - q * q)
                if bias:
                    back[b, above + i] = d
        np.dot(back, mixed, through)
        for b in range(batch):
            for i in range(units):
                raw = a_port[0, i] * calcium[t, b, i] + a_port[1, i]
                d = d_a[b, i] + grad_calcium[t, b, i]
                if a_port[2, i] <= raw <= a_port[3, i]:
                    d += a_port[0, i] * through[b, i]
                d_calcium[t, b, i] = d
                d_a[b, i] = keep[i] * d
                d_z[b, i] = listen[i] * d


@functools.cache
def compiled(name: str) -> Any:
    """One loop, compiled on first use and cached on disk."""
    import numba

    globals()["_activate"] = _reservoir_loops.compiled("_activate")
    if name != "_slope":
        globals()["_slope"] = compiled("_slope")
    relaxed = {"reassoc", "contract", "nsz"}
    return numba.njit(cache=True, nogil=True, error_model="numpy", fastmath=relaxed)(globals()[name])
