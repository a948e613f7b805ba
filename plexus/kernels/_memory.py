"""Fresh memory for large results.

Memory that the system has just handed over is mapped page by page on first touch, which takes longer than computing
what goes into it. Asking for large pages first makes that several times cheaper (Linux; elsewhere nothing happens).
"""

from __future__ import annotations

import ctypes
import mmap
import sys
from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor

__all__ = ["empty"]

_LARGE = 8 << 20
_MADV_HUGEPAGE = 14


@lru_cache(maxsize=1)
def _madvise() -> Callable[[int, int], object] | None:
    if not sys.platform.startswith("linux"):
        return None
    try:
        call = ctypes.CDLL(None).madvise
    except (OSError, AttributeError):
        return None
    call.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    return lambda start, length: call(start, length, _MADV_HUGEPAGE)


def empty(shape: tuple[int, ...], like: Tensor) -> Tensor:
    """An uninitialised tensor of `like`'s dtype; large ones on large pages where the system has them."""
    fresh = torch.empty(shape, dtype=like.dtype)
    size = fresh.numel() * fresh.element_size()
    if size >= _LARGE and (advise := _madvise()) is not None:
        start = -(-fresh.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
        advise(start, (fresh.data_ptr() + size - start) // mmap.PAGESIZE * mmap.PAGESIZE)
    return fresh
