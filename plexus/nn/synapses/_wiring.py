"""Who is connected to whom: masks `[unit (to), unit (from)]` for `Dense`, `Sparse` and recurrent layers.

    small world           a ring in which each unit hears its k nearest neighbours; each link keeps its target and gets
                          another source, drawn among those not yet used, with probability β
    distance dependent    a link over distance d exists with probability p exp(-d² / 2λ²), or p exp(-d / λ)

Sources: Watts & Strogatz 1998 (there for links without direction); Perin, Berger & Markram 2011 for connection
probabilities that fall with distance. Distances in units of the spacing of neighbours unless positions are given.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from plexus.errors import RangeError, ShapeError, UnknownNameError

__all__ = ["distance_dependent", "grid_distance", "ring_distance", "small_world"]


def ring_distance(units: int) -> Tensor:
    """Distances along a ring of units, `[unit, unit]`.

    Examples:
        >>> ring_distance(4)[0]
        tensor([0., 1., 2., 1.])
    """
    if units < 1:
        raise RangeError("a ring needs a unit", given=units)
    apart = (torch.arange(units)[:, None] - torch.arange(units)).abs()
    return torch.minimum(apart, units - apart).to(torch.get_default_dtype())


def grid_distance(rows: int, columns: int, *, wrap: bool = False) -> Tensor:
    """Euclidean distances on a grid, `[unit, unit]`, row by row; `wrap` joins opposite edges to a torus.

    Examples:
        >>> grid_distance(2, 3)[0]
        tensor([0.0000, 1.0000, 2.0000, 1.0000, 1.4142, 2.2361])
    """
    if rows < 1 or columns < 1:
        raise RangeError("a grid needs a unit", given=(rows, columns))
    place = torch.cartesian_prod(torch.arange(rows), torch.arange(columns))
    apart = (place[:, None] - place).abs()
    if wrap:
        apart = torch.minimum(apart, torch.tensor([rows, columns]) - apart)
    distance: Tensor = torch.linalg.vector_norm(apart.to(torch.get_default_dtype()), dim=-1)
    return distance


def small_world(
    units: int, neighbours: int, rewire: float = 0.1, *, generator: torch.Generator | None = None
) -> Tensor:
    """A small-world mask, bool `[unit (to), unit (from)]`: every unit hears `neighbours` others, none hears itself.

    Args:
        units: number of units.
        neighbours: k, even, below `units`.
        rewire: β in [0, 1]; 0 is the ring lattice, 1 a random graph of the same in-degree.
        generator: source of the links that change.

    Raises:
        RangeError: a number is out of range.

    Examples:
        >>> mask = small_world(10, 4, rewire=0.0)
        >>> mask.sum(1).unique().tolist(), mask[0].nonzero().flatten().tolist()
        ([4], [1, 2, 8, 9])
    """
    if neighbours % 2 or not 0 < neighbours < units or not 0 <= rewire <= 1:
        given = (units, neighbours, rewire)
        raise RangeError("no such graph", given=given, expected="even neighbours in 2 … units - 1, rewire in [0, 1]")
    mask = (ring_distance(units) <= neighbours // 2).fill_diagonal_(False)
    keep = mask & (torch.rand(units, units, generator=generator) >= rewire)
    lost = mask.sum(1) - keep.sum(1)
    # a new source is one of those that are neither the unit itself nor kept, each as likely: the lowest random numbers
    order = torch.rand(units, units, generator=generator)
    order[keep] = 2.0
    order.fill_diagonal_(2.0)
    rank = order.argsort(1).argsort(1)
    return keep | (rank < lost[:, None])


def distance_dependent(
    distance: Tensor,
    scale: float,
    *,
    probability: float = 1.0,
    profile: Literal["gaussian", "exponential"] = "gaussian",
    autapses: bool = False,
    generator: torch.Generator | None = None,
) -> Tensor:
    """A mask whose links grow rare with distance, bool `[to, from]`.

    Args:
        distance: `[to, from]`; see `ring_distance`, `grid_distance`, or `torch.cdist` of positions.
        scale: λ, in the unit of the distance.
        probability: p, of a link over no distance.
        profile: `"gaussian"` or `"exponential"`.
        autapses: whether the diagonal may be linked (of a square matrix).
        generator: source of the links.

    Raises:
        ShapeError: the distances are no matrix. RangeError: a number is out of range.

    Examples:
        >>> distance_dependent(ring_distance(6), 1e9).sum(1).tolist()
        [5, 5, 5, 5, 5, 5]
    """
    if distance.dim() != 2:
        raise ShapeError("distances are a matrix", given=tuple(distance.shape), expected="[to, from]")
    if not scale > 0 or not 0 <= probability <= 1 or bool((distance < 0).any()):
        raise RangeError("no such wiring", given=(scale, probability), expected="scale > 0, a probability, d >= 0")
    if profile not in ("gaussian", "exponential"):
        raise UnknownNameError.among("profile", profile, ("gaussian", "exponential"))
    far = distance / scale
    chance = probability * torch.exp(-(far**2) / 2 if profile == "gaussian" else -far)
    mask = torch.rand(distance.shape, generator=generator).to(chance.device) < chance
    if not autapses and distance.shape[0] == distance.shape[1]:
        mask.fill_diagonal_(False)
    return mask
