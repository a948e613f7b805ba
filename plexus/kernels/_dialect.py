"""The words in which a neuron model is written, so that one source runs on tensors and on scalars.

These are the tensor versions; `_source` and `_triton_source` give the scalar ones. A model's functions may use these,
arithmetic and comparisons (combined with `&` and `|`), and nothing else; an `if` may only ask for an option, never for
a value.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["absolute", "arctan", "clip", "erf", "exp", "stop", "where"]

Number = Tensor | float


def where(condition: Tensor, yes: Number, no: Number) -> Tensor:
    """`yes` where the condition holds, else `no`; the branch not taken leaves no trace, be it infinite."""
    return torch.where(condition, yes, no)


def clip(x: Tensor, low: Number, high: Number) -> Tensor:
    """x kept within [low, high]; the gradient passes where x lies inside, bounds included."""
    return torch.where(x < low, low, torch.where(x > high, high, x))


def absolute(x: Tensor) -> Tensor:
    """|x|."""
    return torch.abs(x)


def exp(x: Tensor) -> Tensor:
    """eˣ."""
    return torch.exp(x)


def arctan(x: Tensor) -> Tensor:
    """arctan x."""
    return torch.arctan(x)


def erf(x: Tensor) -> Tensor:
    """The error function."""
    return torch.erf(x)


def stop(x: Tensor) -> Tensor:
    """x, through which no gradient flows."""
    return x.detach()
