"""What a binary sequence's entropy rate can at most be, given how its symbols follow on the last few.

    H_k = Σ_w p(w) h(p(1 | w)),     w: the k symbols before, h(p) = -p log2 p - (1 - p) log2(1 - p)

The entropy rate of a stationary source is at most H_k for every k, and H_k falls with k (Cover & Thomas 2006, ch. 4).
H_0 = h(rate) is what the rate alone allows: a Lempel–Ziv complexity well below it speaks of structure in time.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from plexus.errors import RangeError
from plexus.probe.information._binary import as_binary

__all__ = ["entropy_rate_bound"]


def entropy_rate_bound(spikes: Any, order: int = 0) -> Any:
    """Upper bound of the entropy rate in bits per step, from the symbols' counts: `[..., time]` to `[...]`.

    Args:
        spikes: binary sequences, time last, a tensor or an array.
        order: k, how many symbols before each are known. The counts need many more steps than 2^(k + 1).

    Returns:
        H_k of each sequence, a float64 tensor for a tensor, an array for an array. The first k steps only serve as
        the past.

    Raises:
        RangeError: the sequences are not binary, or the order is negative or leaves fewer than 2^(k + 1) steps.
        ShapeError: fewer than 20 steps.

    Examples:
        >>> import numpy as np
        >>> entropy_rate_bound(np.tile([0, 1], 50)).item(), abs(entropy_rate_bound(np.tile([0, 1], 50), order=1)).item()
        (1.0, 0.0)
    """
    values = as_binary(spikes)
    steps = values.shape[-1]
    if order < 0 or steps - order < 2 ** (order + 1):
        raise RangeError(
            "the order does not suit the sequences",
            given=f"order {order} for {steps} steps",
            expected="0 or more, and at least 2^(order + 1) steps after the first",
        )
    before = np.zeros((*values.shape[:-1], steps - order), np.int64)
    for lag in range(order):
        before = 2 * before + values[..., lag : steps - order + lag]
    now = values[..., order:]
    bound = np.zeros(values.shape[:-1])
    for word in range(2**order):
        here = before == word
        seen = here.sum(-1)
        p: NDArray[Any] = np.divide((here & (now == 1)).sum(-1), seen, out=np.zeros(bound.shape), where=seen > 0)
        bound += seen / (steps - order) * _binary_entropy(p)
    return torch.from_numpy(np.asarray(bound)) if isinstance(spikes, torch.Tensor) else bound


def _binary_entropy(p: NDArray[Any]) -> NDArray[Any]:
    inside = np.clip(p, 1e-300, 1.0)
    outside = np.clip(1.0 - p, 1e-300, 1.0)
    return np.asarray(-p * np.log2(inside) - (1.0 - p) * np.log2(outside))
