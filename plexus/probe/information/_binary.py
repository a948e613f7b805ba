"""Binary sequences as arrays, checked: what the measures of this room are computed from."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from plexus.errors import RangeError, ShapeError

__all__ = ["SHORTEST", "as_binary"]

SHORTEST = 20
"""Steps below which a complexity says nothing: every sequence has about as many words as any other."""


def as_binary(spikes: Any) -> NDArray[np.uint8]:
    """Zeros and ones `[..., time]` as bytes; refuses other values and sequences shorter than `SHORTEST`."""
    values = spikes.detach().cpu().numpy() if isinstance(spikes, torch.Tensor) else np.asarray(spikes)
    if values.ndim == 0 or values.shape[-1] < SHORTEST:
        raise ShapeError(
            "the sequences are too short", given=tuple(values.shape), expected=f"[..., time], time >= {SHORTEST}"
        )
    if values.dtype != bool and not bool(((values == 0) | (values == 1)).all()):
        raise RangeError(
            "the sequences are not binary",
            expected="zeros and ones",
            mend="count events per bin and compare, e.g. (counts > 0)",
        )
    return np.ascontiguousarray(values, dtype=np.uint8)
