"""How far an effect must go to lie beyond those of matched random units.

A unit is matched with the m others of its site that have the most similar mean response, judged on its own concept. Its
band ends at the largest of their effects (never below 0). Of m + 1 units that differ in nothing each is as likely to be
the first, so a unit without any effect of its own lies beyond its band with a probability of 1 / (m + 1), whatever the
distribution.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

MATCHED = 39  # one in 40, 2.5 %, lies beyond by chance
MOST_BY_CHANCE = 0.05  # sites where chance would put more beyond are too small to tell


class Band(NamedTuple):
    """Where the band of each unit ends.

    Attributes:
        edge: `[unit]`; infinite where there are too few units to tell.
        tail: share of units without effect that lie beyond it by chance; 0 where none can.
    """

    edge: Tensor
    tail: float


def band(mean: Tensor, by_concept: Tensor, concept: Tensor, control: Tensor | None = None) -> Band:
    """The bands of the units of one site.

    Args:
        mean: mean response, `[unit]`.
        by_concept: effects, `[concept, unit]`.
        concept: number of each unit's concept, `[unit]`.
        control: which units others may be matched with, bool `[unit]`; by default all.

    Examples:
        >>> small = band(torch.arange(6.0), torch.rand(1, 6), torch.zeros(6, dtype=torch.int64))
        >>> large = band(torch.arange(64.0), torch.rand(1, 64), torch.zeros(64, dtype=torch.int64))
        >>> small.tail, float(small.edge[0]), large.tail
        (0.0, inf, 0.025)
    """
    count = min(MATCHED, (len(mean) if control is None else int(control.sum())) - 1)
    tail = 1 / (count + 1)
    if tail > MOST_BY_CHANCE:
        return Band(torch.full((len(mean),), torch.inf, dtype=by_concept.dtype), 0.0)
    away = (mean[:, None] - mean).abs().fill_diagonal_(torch.inf)
    if control is not None:
        away[:, ~control] = torch.inf
    matched = away.topk(count, largest=False).indices
    return Band(by_concept[concept[:, None], matched].amax(1).clamp(min=0), tail)
