"""The loop of `_csr_conv`, for Numba; it runs over whole tiles of as many places as `lanes` has members."""

# mypy: disable-error-code="no-untyped-def,call-arg"

from __future__ import annotations

from plexus.kernels._vector_lanes import weighted_slices

__all__ = ["tiled"]


def tiled(starts, offsets, values, x, out, lanes, tiles, first, last):
    width, channels = len(lanes), out.shape[1]
    for job in range(first, last):
        sample = job // tiles
        place = (job - sample * tiles) * width
        for i in range(channels):
            weighted_slices(values, offsets, starts[i], starts[i + 1], x[sample], place, out[sample, i], place, lanes)
