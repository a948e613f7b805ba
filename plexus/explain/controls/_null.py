"""Where an effect stands among the effects of its controls.

    p = (1 + #{i : |e_i| ≥ |e|}) / (1 + n)        two-sided; the effect itself counts among the draws
    percentile = 100 (#{e_i < e} + #{e_i = e} / 2) / n

Source: Phipson & Smyth 2010 (why p is never zero).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from plexus.errors import RangeError, ShapeError


class Null(NamedTuple):
    """How an effect compares with its controls.

    Attributes:
        percentile: share of controls below it, in percent, ties half.
        p: two-sided.
        mean: of the controls.
        low: 2.5th percentile of the controls.
        high: 97.5th percentile of the controls.

    Examples:
        >>> null(3.0, torch.tensor([1.0, 1.0, 1.0])).mean
        1.0
    """

    percentile: float
    p: float
    mean: float
    low: float
    high: float


def null(effect: float, controls: Tensor) -> Null:
    """Compare an effect with those of its controls, `[control]`.

    Raises:
        ShapeError: if there are no controls.
        RangeError: if a number is NaN.

    Examples:
        >>> found = null(-0.5, torch.tensor([0.1, -0.1, 0.2]))
        >>> found.percentile, found.p
        (0.0, 0.25)
    """
    controls = torch.as_tensor(controls, dtype=torch.float64, device="cpu")
    if controls.dim() != 1 or len(controls) == 0:
        raise ShapeError("an effect is compared with at least one control", given=tuple(controls.shape))
    if effect != effect or bool(controls.isnan().any()):
        raise RangeError("an effect or a control is NaN", given=effect)
    below = (controls < effect).double().mean() + (controls == effect).double().mean() / 2
    as_large = int((controls.abs() >= abs(effect)).sum())
    low, high = torch.quantile(controls, torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return Null(100 * float(below), (1 + as_large) / (1 + len(controls)), float(controls.mean()), low, high)
