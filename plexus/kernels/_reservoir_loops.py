"""The loops of `_reservoir`, as plain Python that Numba compiles, and the layouts of the weight that they read.

`kind` is the index of the activation in `_reservoir.ACTIVATIONS`; samples `first … last` of the batch are run.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from math import floor
from typing import Any

import numpy as np
import torch

Array = np.ndarray[Any, Any]


def _activate(z, part, bits, power, kind):  # type: ignore[no-untyped-def]
    """f in place, in vector instructions: e^x - 1 = 2^k p + (2^k - 1) with p = e^r - 1 by its series, |r| ≤ ln 2 / 2.

    Within 4 units in the last place of a double; `power` views `bits`, where 2^k is put together.
    """
    if kind == 2:
        for i in range(len(z)):
            z[i] = max(z[i], z[i] * 0)
    if kind > 1:
        return
    factor, bound = (-1.0, 700.0) if kind == 0 else (2.0, 40.0)
    for i in range(len(z)):
        x = min(max(factor * z[i], -bound), bound)
        k = floor(x * 1.4426950408889634 + 0.5)
        r = (x - k * 6.93147180369123816490e-01) - k * 1.90821492927058770002e-10
        p = 1 / 6227020800.0
        p = p * r + 1 / 479001600.0
        p = p * r + 1 / 39916800.0
        p = p * r + 1 / 3628800.0
        p = p * r + 1 / 362880.0
        p = p * r + 1 / 40320.0
        p = p * r + 1 / 5040.0
        p = p * r + 1 / 720.0
        p = p * r + 1 / 120.0
        p = p * r + 1 / 24.0
        p = p * r + 1 / 6.0
        p = p * r + 0.5
        part[i] = r + r * r * p
        bits[i] = (np.int64(k) + 1023) << 52
    if kind == 0:
        for i in range(len(z)):
            z[i] = 1 / (1 + (power[i] * part[i] + power[i]))
    else:
        for i in range(len(z)):
            above = power[i] * part[i] + (power[i] - 1)
            z[i] = above / (above + 2)


def _forward_sparse(  # type: ignore[no-untyped-def]
    drive, order, lengths, columns, values, x, leak, kind, gain, bias, low, high, out, first, last
):
    steps, units = drive.shape[0], drive.shape[2]
    e = np.empty(units, drive.dtype)
    z = np.empty(units, drive.dtype)
    part = np.empty(units, np.float64)
    bits = np.empty(units, np.int64)
    power = bits.view(np.float64)
    for b in range(first, last):  # inside, units stand in the order of the jagged rows; `x` and `e` too
        state = x[b][order]
        for p in range(units):
            raw = gain[p] * state[p] if gain[p] != 0 else gain[p]
            e[p] = min(max(raw + bias[p], low[p]), high[p])
        for t in range(steps):
            for p in range(units):
                z[p] = drive[t, b, order[p]]
            for k in range(0, len(lengths), 4):  # shorter rows are filled with zeros up to a multiple of four
                for p in range(lengths[k]):
                    z[p] += (
                        values[k, p] * e[columns[k, p]]
                        + values[k + 1, p] * e[columns[k + 1, p]]
                        + values[k + 2, p] * e[columns[k + 2, p]]
                        + values[k + 3, p] * e[columns[k + 3, p]]
                    )
            _activate(z, part, bits, power, kind)  # type: ignore[no-untyped-call]
            for p in range(units):
                state[p] = (1 - leak[p]) * state[p] + leak[p] * z[p]
                raw = gain[p] * state[p] if gain[p] != 0 else gain[p]
                e[p] = min(max(raw + bias[p], low[p]), high[p])
            for p in range(units):
                out[t, b, order[p]] = e[p]
        for p in range(units):
            x[b, order[p]] = state[p]


def _forward_dense(  # type: ignore[no-untyped-def]
    drive, columns, x, leak, kind, gain, bias, low, high, out, first, last
):
    steps, units = drive.shape[0], drive.shape[2]
    e = np.empty(units, drive.dtype)
    z = np.empty(units, drive.dtype)
    part = np.empty(units, np.float64)
    bits = np.empty(units, np.int64)
    power = bits.view(np.float64)
    for b in range(first, last):
        for i in range(units):
            e[i] = min(max((gain[i] * x[b, i] if gain[i] != 0 else gain[i]) + bias[i], low[i]), high[i])
        for t in range(steps):
            for i in range(units):
                z[i] = drive[t, b, i]
            for j in range(units):
                for i in range(units):
                    z[i] += columns[j, i] * e[j]
            _activate(z, part, bits, power, kind)  # type: ignore[no-untyped-call]
            for i in range(units):
                x[b, i] = (1 - leak[i]) * x[b, i] + leak[i] * z[i]
                e[i] = min(max((gain[i] * x[b, i] if gain[i] != 0 else gain[i]) + bias[i], low[i]), high[i])
                out[t, b, i] = e[i]


def _backward_sparse(  # type: ignore[no-untyped-def]
    grad, indptr, columns, values, slope, port_slope, leak, delta, carry, first, last
):
    steps, units = grad.shape[0], grad.shape[2]
    back = np.zeros(units, grad.dtype)
    for b in range(first, last):
        back[:] = 0
        for t in range(steps - 1, -1, -1):
            for i in range(units):
                carry[b, i] += port_slope[t + 1, b, i] * (grad[t, b, i] + back[i])
                delta[t, b, i] = leak[i] * slope[t, b, i] * carry[b, i]
                carry[b, i] *= 1 - leak[i]
                back[i] = 0
            for i in range(units):
                d = delta[t, b, i]
                for k in range(indptr[i], indptr[i + 1]):
                    back[columns[k]] += values[k] * d
        for i in range(units):
            carry[b, i] += port_slope[0, b, i] * back[i]


def _adapt(  # type: ignore[no-untyped-def]
    drive, indptr, columns, values, plastic, side, x, target, rate, leak, kind, mean
):
    steps, batch, units = drive.shape
    before = x.copy()
    z = np.empty(units, drive.dtype)
    part = np.empty(units, np.float64)
    bits = np.empty(units, np.int64)
    power = bits.view(np.float64)
    for t in range(steps):
        for b in range(batch):
            for i in range(units):
                before[b, i] = x[b, i]
            for i in range(units):
                total = drive[t, b, i]
                for k in range(indptr[i], indptr[i + 1]):
                    total += values[k] * before[b, columns[k]]
                z[i] = total
            _activate(z, part, bits, power, kind)  # type: ignore[no-untyped-call]
            for i in range(units):
                x[b, i] = (1 - leak[i]) * before[b, i] + leak[i] * z[i]
                mean[i] += x[b, i]
        for i in range(units):
            for k in range(indptr[i], indptr[i + 1]):
                if plastic[k]:
                    change = 0.0
                    for b in range(batch):
                        change += (x[b, i] - target[i]) * before[b, columns[k]]
                    moved = values[k] - rate * change / batch
                    values[k] = moved if moved * side[k] > 0 else 0.0
    for i in range(units):
        mean[i] /= max(steps * batch, 1)


@functools.cache
def compiled(name: str) -> Any:
    """One loop, compiled on first use and cached on disk; sums may be reordered, NaN is kept."""
    import numba

    if name != "_activate":
        globals()["_activate"] = compiled("_activate")  # the name by which the loops call it
    relaxed = {"reassoc", "contract", "nsz"}
    return numba.njit(cache=True, nogil=True, error_model="numpy", fastmath=relaxed)(globals()[name])


def rows_of(weight: Array, occupied: Array) -> tuple[Array, Array, Array]:
    """Compressed rows of a matrix: row starts, column indices, values."""
    starts = np.zeros(len(weight) + 1, np.int64)
    np.cumsum(occupied.sum(1), out=starts[1:])
    return starts, np.nonzero(occupied)[1].astype(np.uint32), weight[occupied]


def jagged(weight: Array, occupied: Array) -> tuple[Array, Array, Array, Array]:
    """Jagged diagonals: the k-th entries of all rows side by side, rows by falling length, so that sums run in vectors.

    Returns the order of rows `[row]`, how many rows have a k-th entry `[k]`, columns and values `[k, row]`; rows and
    columns are counted in that order.
    """
    lengths = occupied.sum(1)
    order = np.argsort(-lengths, kind="stable").astype(np.uint32)
    longest = -(-int(lengths.max(initial=0)) // 4) * 4
    columns = np.zeros((longest, len(weight)), np.uint32)
    values = np.zeros((longest, len(weight)), weight.dtype)
    row, column = np.nonzero(occupied[order])
    rank = np.arange(len(row)) - np.repeat(np.cumsum(lengths[order]) - lengths[order], lengths[order])
    place = np.empty(len(order), np.uint32)
    place[order] = np.arange(len(order))
    columns[rank, row] = place[column]
    values[rank, row] = weight[order[row], column]
    return order, (lengths[None, :] > np.arange(longest)[:, None]).sum(1), columns, values


def spread(loop: Callable[[int, int], None], batch: int) -> None:
    """Run `loop(first, last)` over the batch on as many threads as torch uses."""
    threads = min(torch.get_num_threads(), batch)
    if threads < 2:
        loop(0, batch)
        return
    edges = [batch * n // threads for n in range(threads + 1)]
    with ThreadPoolExecutor(threads) as pool:
        for future in [pool.submit(loop, a, b) for a, b in itertools.pairwise(edges)]:
            future.result()
