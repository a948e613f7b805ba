"""Lempel–Ziv complexity: into how many new words a sequence falls when it is read from left to right.

    lz76    a word grows while it occurs in the text before its last symbol, overlaps allowed; it ends when it does not
    lz78    a word grows while it equals an earlier word
    C = c log2(n) / n                c words in n steps; tends to the entropy rate (bits per step) of an ergodic source

A last word that the end of the sequence cuts short counts as a word. C is biased upwards for finite n and depends on
the rate: compare sequences of one length, and beside a control that knows the rate alone (`entropy_rate_bound`).

The words of lz76 are found with a suffix automaton of the text read so far, in time and memory proportional to n
(Blumer et al. 1985); the automaton's state of the growing word follows it when that state is split.

Sources: Lempel & Ziv 1976 (lz76); Ziv & Lempel 1978 (lz78); Kaspar & Schuster 1987 (the plain scan, with which the
tests compare).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from plexus.errors import UnknownNameError
from plexus.probe.information._binary import as_binary

__all__ = ["lz_complexity"]


def lz_complexity(spikes: Any, method: Literal["lz76", "lz78"] = "lz76", normalise: bool = True) -> Any:
    """Lempel–Ziv complexity of each sequence: `[..., time]` of zeros and ones to `[...]`.

    Args:
        spikes: binary sequences, a tensor or an array. Our layers give `[time, batch, unit]`: move time to the end,
            `spikes.movedim(0, -1)`.
        method: `"lz76"` or `"lz78"`; see the head of this module.
        normalise: c log2(n) / n in bits per step, about 1 for a fair coin; else the number of words c.

    Returns:
        A float64 tensor for a tensor (an int64 one if not normalised), an array for an array.

    Raises:
        RangeError: the sequences are not binary. ShapeError: fewer than 20 steps. UnknownNameError: another method.

    Examples:
        >>> import numpy as np
        >>> lz_complexity(np.tile([0, 1], 20), normalise=False).item()      # 0 · 1 · 0101…
        3
        >>> coin = torch.randint(0, 2, (3, 1000), generator=torch.Generator().manual_seed(0))
        >>> lz_complexity(coin).round(decimals=1).tolist()
        [1.1, 1.1, 1.1]
    """
    if method not in ("lz76", "lz78"):
        raise UnknownNameError.among("method of Lempel and Ziv", method, ("lz76", "lz78"))
    values = as_binary(spikes)
    steps = values.shape[-1]
    words = np.empty(values.shape[:-1], np.int64)
    _counters()[method](values.reshape(-1, steps), words.reshape(-1))
    found: NDArray[Any] = words * (np.log2(steps) / steps) if normalise else words
    return torch.from_numpy(np.asarray(found)) if isinstance(spikes, torch.Tensor) else found


@lru_cache(maxsize=1)
def _counters() -> dict[str, Callable[[NDArray[np.uint8], NDArray[np.int64]], None]]:
    """The compiled loops by name; Numba is loaded when they are first asked for."""
    from plexus.probe.information import _lempel_ziv_loops as loops

    return {"lz76": loops.lz76, "lz78": loops.lz78}
