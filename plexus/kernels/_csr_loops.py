"""The loops of `_csr`, for Numba; `many` runs over whole chunks of as many samples as `lanes` has members."""

# mypy: disable-error-code="no-untyped-def,call-arg"

from __future__ import annotations

import numpy as np

from plexus.kernels._vector_lanes import weighted_rows

__all__ = ["many", "one"]

_LINE = 16  # numbers that are turned at a time, so that a line of memory is read once


def one(starts, columns, values, x, out, first, last):
    for i in range(first, last):
        # counted from zero, as an index that might be negative costs a comparison each
        column, value = columns[starts[i] : starts[i + 1]], values[starts[i] : starts[i + 1]]
        whole = len(value) // 8 * 8
        zero = values.dtype.type(0)
        a, b, c, d, e, f, g, h = zero, zero, zero, zero, zero, zero, zero, zero
        for k in range(0, whole, 8):  # eight sums at once, as one would wait for itself
            a += value[k] * x[column[k]]
            b += value[k + 1] * x[column[k + 1]]
            c += value[k + 2] * x[column[k + 2]]
            d += value[k + 3] * x[column[k + 3]]
            e += value[k + 4] * x[column[k + 4]]
            f += value[k + 5] * x[column[k + 5]]
            g += value[k + 6] * x[column[k + 6]]
            h += value[k + 7] * x[column[k + 7]]
        for k in range(whole, len(value)):
            a += value[k] * x[column[k]]
        out[i] = ((a + b) + (c + d)) + ((e + f) + (g + h))


def many(starts, columns, values, x, out, lanes, first, last):
    width, inputs, outputs = len(lanes), x.shape[1], out.shape[1]
    turned, sums = np.zeros((inputs, width), values.dtype), np.empty((outputs, width), values.dtype)
    for chunk in range(first, last):
        begin = chunk * width
        samples = min(width, len(x) - begin)
        for start in range(0, inputs, _LINE):
            for b in range(samples):
                for j in range(start, min(inputs, start + _LINE)):
                    turned[j, b] = x[begin + b, j]
        for i in range(outputs):
            weighted_rows(values, columns, starts[i], starts[i + 1], turned, sums[i], lanes)
        for start in range(0, outputs, _LINE):
            for b in range(samples):
                for i in range(start, min(outputs, start + _LINE)):
                    out[begin + b, i] = sums[i, b]
