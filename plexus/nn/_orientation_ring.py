"""A ring of orientation-tuned units with known constants, the usual model of a hypercolumn.

    f_i(s) = exp(κ_i (cos 2(θ_i - s) - 1)) + b                        drive of unit i by orientation s, θ_i on [0, π)
    W_ij = w_E E(θ_i - θ_j) - w_I I(θ_i - θ_j)                        recurrent weights, receiving unit first
    E, I ∝ exp(κ_E,I (cos 2Δ - 1)), each row summing to 1             narrow excitation, wide inhibition

A jitter moves every width and weight by up to that share, and every preferred angle by up to that share of the spacing.
Angles in radians, rates dimensionless.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from plexus.errors import RangeError


@dataclass(frozen=True)
class OrientationRing:
    """Units tuned to orientation; made by `orientation_ring`."""

    preferred: Tensor
    """θ, `[unit]`, in radians."""
    width: Tensor
    """κ, `[unit]`."""
    weight: Tensor
    """W, `[unit, unit]`, for `RecurrentRate`."""
    baseline: float
    """b."""

    def drive(self, stimuli: Tensor) -> Tensor:
        """Feed-forward drive by orientations `[stimulus]` in radians: `[stimulus, unit]`, where these lie."""
        preferred, width = self.preferred.to(stimuli.device), self.width.to(stimuli.device)
        return torch.exp(width * (torch.cos(2 * (preferred - stimuli[:, None])) - 1)) + self.baseline


def orientation_ring(
    units: int = 36,
    *,
    width: float = 2.8,
    baseline: float = 0.02,
    excitation: float = 1.05,
    excitation_width: float = 4.06,
    inhibition: float = 0.25,
    inhibition_width: float = 1.55,
    recurrence: float = 1.0,
    jitter: float = 0.0,
    generator: torch.Generator | None = None,
) -> OrientationRing:
    """Build a ring in float64.

    Args:
        units: number of units, evenly spaced over [0, π).
        width: κ of the drive. baseline: b.
        excitation, inhibition: w_E, w_I. excitation_width, inhibition_width: κ_E, κ_I.
        recurrence: factor on all recurrent weights.
        jitter: uniform, relative; needs a `generator` above 0.

    Raises:
        RangeError: fewer than three units, a width that is not positive, or a jitter without a generator.

    Examples:
        >>> ring = orientation_ring(8)
        >>> ring.drive(ring.preferred).argmax(1).tolist()
        [0, 1, 2, 3, 4, 5, 6, 7]
        >>> ring.weight.sum(1)[0].item()
        0.8
    """
    if units < 3:
        raise RangeError("a ring has at least three units", given=units)
    if min(width, excitation_width, inhibition_width) <= 0:
        raise RangeError("widths must be positive", given=(width, excitation_width, inhibition_width))
    if jitter and generator is None:
        raise RangeError("a jitter is random", mend="pass a torch.Generator")

    def shaken(*shape: int) -> Tensor:
        noise = torch.zeros(*shape, dtype=torch.float64)
        return noise.uniform_(-jitter, jitter, generator=generator) if jitter else noise

    grid = torch.arange(units, dtype=torch.float64) * math.pi / units
    distance = torch.cos(2 * (grid[:, None] - grid)) - 1
    excite, inhibit = torch.exp(excitation_width * distance), torch.exp(inhibition_width * distance)
    weight = excitation * excite / excite.sum(1, keepdim=True) - inhibition * inhibit / inhibit.sum(1, keepdim=True)
    return OrientationRing(
        preferred=grid + shaken(units) * math.pi / units,
        width=width * (1 + shaken(units)),
        weight=recurrence * weight * (1 + shaken(units, units)),
        baseline=baseline,
    )
