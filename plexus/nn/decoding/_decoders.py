"""Decoders: from spikes or potentials `[time, batch, unit…]` to one number per unit `[batch, unit…]`.

    count            Σ_t z[t]
    rate             Σ_t z[t] / (T dt)                                                    Hz
    first_spike      Σ_t t z[t] Π_{s<t} (1 - z[s])  +  T Π_s (1 - z[s])                  T where there is no spike
    mean, peak, last of a potential over time
    summed_softmax   Σ_t softmax(v[t])

All are differentiable; the time of the first spike is a polynomial in the spikes, exact where they are 0 or 1.

Sources: Neftci, Mostafa & Zenke 2019 (rate and peak readouts); Hammouamri et al. 2024 (the sum of softmaxes).
"""

from __future__ import annotations

import torch
from torch import Tensor

from plexus.errors import RangeError, ShapeError

__all__ = ["count", "first_spike", "last", "mean", "peak", "rate", "summed_softmax"]


def count(spikes: Tensor) -> Tensor:
    """Number of spikes, `[batch, unit…]`.

    Examples:
        >>> count(torch.tensor([1.0, 0.0, 1.0]).view(3, 1, 1)).item()
        2.0
    """
    return _checked(spikes).sum(0)


def rate(spikes: Tensor, dt: float = 1.0) -> Tensor:
    """Mean rate in Hz, `[batch, unit…]`, of spikes in steps of dt ms.

    Examples:
        >>> rate(torch.tensor([1.0, 0.0, 1.0, 0.0]).view(4, 1, 1), dt=5.0).item()
        100.0
    """
    if not dt > 0:
        raise RangeError("the length of a step must be positive", given=dt, expected="ms > 0")
    return _checked(spikes).mean(0) * (1000.0 / dt)


def first_spike(spikes: Tensor, dt: float = 1.0) -> Tensor:
    """Time of the first spike in ms, `[batch, unit…]`, counted from 0; the length of the run where there is none.

    Examples:
        >>> first_spike(torch.tensor([[0.0, 0.0], [1.0, 0.0], [1.0, 0.0]]).unsqueeze(1), dt=2.0).tolist()
        [[2.0, 6.0]]
    """
    if not dt > 0:
        raise RangeError("the length of a step must be positive", given=dt, expected="ms > 0")
    spikes = _checked(spikes)
    silent = torch.cumprod(1 - spikes, 0)  # up to and with each step
    return dt * silent.sum(0)


def mean(potential: Tensor) -> Tensor:
    """Mean over time, `[batch, unit…]`.

    Examples:
        >>> mean(torch.tensor([1.0, 3.0]).view(2, 1, 1)).item()
        2.0
    """
    return _checked(potential).mean(0)


def peak(potential: Tensor) -> Tensor:
    """Highest value over time, `[batch, unit…]`.

    Examples:
        >>> peak(torch.tensor([1.0, 3.0, 2.0]).view(3, 1, 1)).item()
        3.0
    """
    return _checked(potential).amax(0)


def last(potential: Tensor) -> Tensor:
    """Value of the last step, `[batch, unit…]`.

    Examples:
        >>> last(torch.tensor([1.0, 3.0, 2.0]).view(3, 1, 1)).item()
        2.0
    """
    return _checked(potential)[-1]


def summed_softmax(potential: Tensor) -> Tensor:
    """Sum over time of the softmax over classes, `[batch, class]`: a vote per step.

    Examples:
        >>> summed_softmax(torch.zeros(4, 1, 2)).tolist()
        [[2.0, 2.0]]
    """
    potential = _checked(potential)
    if potential.dim() != 3:
        raise ShapeError("votes need classes", given=tuple(potential.shape), expected="[time, batch, class]")
    return torch.softmax(potential, -1).sum(0)


def _checked(x: Tensor) -> Tensor:
    if not isinstance(x, Tensor) or x.dim() < 3 or not len(x):
        given = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
        raise ShapeError("there is nothing to decode", given=given, expected="[time, batch, unit…], at least one step")
    return x
