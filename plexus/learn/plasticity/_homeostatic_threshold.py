"""A threshold that holds its neuron's rate: θ ← max(θ + η (rate - target), floor), from the neuron's own spikes alone.

Source: the local rule for intrinsic numbers beside STDP in Rudnicka, Szczepanski & Pregowska 2025, as far as it is
described there; Diehl & Cook 2015 adapt thresholds to the same end.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from plexus.errors import RangeError, UnsupportedError

__all__ = ["HomeostaticThreshold"]


class HomeostaticThreshold:
    """Move each unit's threshold towards the one at which it fires at a target rate.

    Args:
        target: spikes per step.
        rate: η, how far a threshold moves per sequence and unit of error.
        floor: threshold below which none goes.

    Raises:
        RangeError: the target is no share of the steps, or another number is not positive.

    Examples:
        >>> from plexus.nn import MetaNeuron
        >>> neuron = MetaNeuron(2, order=1)
        >>> spikes = torch.tensor([[[0.0, 1.0]], [[0.0, 1.0]]])                 # one silent, one at every step
        >>> HomeostaticThreshold(target=0.5, rate=0.2).update(neuron, spikes)
        >>> neuron.threshold
        tensor([0.9000, 1.1000])
    """

    def __init__(self, target: float = 0.05, rate: float = 0.1, *, floor: float = 0.01) -> None:
        if not 0 <= target <= 1:
            raise RangeError("a target rate is a share of the steps", given=target, expected="0 … 1 spikes per step")
        if not (rate > 0 and floor > 0):
            raise RangeError("the rate and the floor must be positive", given=(rate, floor), expected="> 0")
        self.target, self.rate, self.floor = target, rate, floor

    @torch.no_grad()
    def update(self, neuron: nn.Module, spikes: Tensor) -> None:
        """Change the neuron's thresholds after spikes `[time, batch, unit…]`, which it emitted.

        Raises `UnsupportedError` if the neuron has no threshold, or one for all its units.
        """
        old: Any = getattr(neuron, "threshold", None)
        assign: Any = getattr(neuron, "assign", None)
        if old is None or (assign is None and old.shape != spikes.shape[2:]):
            raise UnsupportedError(
                f"{type(neuron).__name__} has no threshold per unit",
                mend="make it with a tensor, threshold=torch.ones(units)",
            )
        new = (old + self.rate * (spikes.mean((0, 1)) - self.target)).clamp(min=self.floor)
        if assign is None:
            old.copy_(new)
        else:
            assign("threshold", new)
