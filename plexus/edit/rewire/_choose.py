"""Choosing exactly k connections: the largest or smallest scores, ties broken at random.

A threshold (`score <= the k-th smallest`) takes far more than k where scores are tied, as those of silent units are at
exactly zero, and cuts these units off for good. So candidates are put in random order first and sorted stably.
"""

from __future__ import annotations

import torch
from torch import Tensor

from plexus.units._draws import random_order

__all__ = ["at_random", "largest", "put"]


def largest(score: Tensor, among: Tensor, k: int, generator: torch.Generator) -> Tensor:
    """Flat places of the k largest scores among candidates (all of them if there are fewer); NaN counts as lowest.

    Args:
        score: of any shape. among: bool of that shape.

    Examples:
        >>> largest(torch.tensor([3.0, 1.0, 2.0]), torch.tensor([False, True, True]), 1, torch.Generator()).tolist()
        [2]
    """
    places = among.flatten().nonzero().squeeze(1)
    places = places[random_order(len(places), generator).to(places.device)]
    values = score.flatten()[places].nan_to_num(nan=-torch.inf)
    return places[values.argsort(descending=True, stable=True)[:k]]


def at_random(among: Tensor, k: int, generator: torch.Generator) -> Tensor:
    """Flat places of k candidates.

    Examples:
        >>> at_random(torch.tensor([False, True]), 1, torch.Generator()).tolist()
        [1]
    """
    places = among.flatten().nonzero().squeeze(1)
    return places[random_order(len(places), generator)[:k].to(places.device)]


def put(tensor: Tensor, places: Tensor, value: bool) -> None:
    """Write a value at flat places of a tensor, in place, whatever its strides.

    Examples:
        >>> mask = torch.zeros(2, 3, dtype=torch.bool).T
        >>> put(mask, torch.tensor([2]), True)
        >>> mask.tolist()
        [[False, False], [True, False], [False, False]]
    """
    tensor[torch.unravel_index(places, tensor.shape)] = value
