"""The loops of `_csr`, for Numba; `many` runs over whole chunks of as many samples as `lanes` has members."""

# mypy: disable-error-code="no-untyped-def,call-arg"

from __future__ import annotations

import numpy as np

from plexus.kernels._vector_lanes import weighted_rows

__all__ = ["many", "one"]

_LINE = 16  # numbers that are turned at a time, so that a line of memory is read once


def one(starts, columns, values, x, out, first, last):
    for i in range(first, last):
        begin, end = starts[i], starts[i + 1]
        zero = values.dtype.type(0)
        a, b, c, d, e, f, g, h = zero, zero, zero, zero, zero, zero, zero, zero
        for k in range(begin, end - 7, 8):  # eight sums at once, as one would wait for itself
            a += values[k] * x[columns[k]]
            b += values[k + 1] * x[columns[k + 1]]
            c += values[k + 2] * x[columns[k + 2]]
            d += values[k + 3] * x[columns[k + 3]]
            e += values[k + 4] * x[columns[k + 4]]
            f += values[k + 5] * x[columns[k + 5]]
            g += values[k + 6] * x[columns[k + 6]]
            h += values[k + 7] * x[columns[k + 7]]
        for k in range(end - (end - begin) % 8, end):
            a += values[k] * x[columns[k]]
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
