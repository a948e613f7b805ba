"""Who is connected to whom between two layers: groups, blocks, at random, small worlds; masks `[out, in]`.

    groups        m_oi = 1 with probability p where o and i are in the same group (ensemble), p' elsewhere;
                  density p / G + p' (1 - 1 / G) of G groups
    small world   inputs and outputs on rings of one length: an output hears its nearest inputs, and each of these
                  links gets another source with probability β

Sources: Konstantaropoulos, Smirnakis & Papadopouli 2025 (ensemble to ensemble; groups by place, at random or
interleaved); Watts & Strogatz 1998, carried over from one ring to two.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from plexus.errors import RangeError, ShapeError, UnknownNameError

__all__ = ["Scheme", "Wiring", "group_connectivity", "random_connectivity", "small_world_between"]

Scheme = Literal["index", "random", "interleaved"]
_TRIES = 100


class Wiring(NamedTuple):
    """A mask and, where units come in groups, the group of each."""

    mask: Tensor  # which weights exist, bool                  [out, in, …]
    groups_out: Tensor | None = None  # group of each output   [out]
    groups_in: Tensor | None = None  # group of each input     [in]

    @property
    def density(self) -> float:
        """The share of weights that exist."""
        return float(self.mask.double().mean())


def group_connectivity(
    n_in: int,
    n_out: int,
    groups: int,
    p_intra: float = 1.0,
    p_inter: float = 0.15,
    scheme: Scheme = "index",
    *,
    exact: bool = True,
    generator: torch.Generator | None = None,
) -> Wiring:
    """Groups of inputs project to the group of outputs of the same number, and sparsely to the others.

    Args:
        n_in, n_out: number of inputs and outputs, multiples of `groups`.
        groups: G.
        p_intra, p_inter: p within a group and p' between groups; p' = 0 gives isolated blocks.
        scheme: `"index"`: neighbours by number share a group; `"random"`: a random permutation of that, another one for
            inputs than for outputs; `"interleaved"`: group i mod G.
        exact: draw the expected number of weights (rounded) instead of each by itself, so that wirings to be compared
            have equally many.
        generator: source of groups and weights.

    Returns:
        Mask and groups. Drawn again where an output would hear nothing.

    Raises:
        ShapeError: a size is no multiple of `groups`. RangeError: a probability is not in [0, 1], or outputs without an
            input remain. UnknownNameError: another scheme.

    Examples:
        >>> wiring = group_connectivity(64, 32, 8)
        >>> wiring.mask.shape, round(wiring.density, 3)                 # 1/8 + 0.15 · 7/8
        (torch.Size([32, 64]), 0.256)
        >>> group_connectivity(4, 4, 2, p_inter=0.0, scheme="interleaved").mask.int()
        tensor([[1, 0, 1, 0],
                [0, 1, 0, 1],
                [1, 0, 1, 0],
                [0, 1, 0, 1]], dtype=torch.int32)
    """
    if groups < 1 or min(n_in, n_out) < 1 or n_in % groups or n_out % groups:
        raise ShapeError("the units do not split into groups", given=(n_in, n_out), expected=f"multiples of {groups}")
    if not (0 <= p_intra <= 1 and 0 <= p_inter <= 1):
        raise RangeError("a probability lies in [0, 1]", given=(p_intra, p_inter))
    members = [_members(units, groups, scheme, generator) for units in (n_out, n_in)]
    same = members[0][:, None] == members[1]

    def draw() -> Tensor:
        within, between = _draw(same, p_intra, exact, generator), _draw(~same, p_inter, exact, generator)
        return within | between

    return Wiring(_heard(draw), *members)


def random_connectivity(
    n_in: int, n_out: int, density: float, *, exact: bool = True, generator: torch.Generator | None = None
) -> Wiring:
    """Weights at random places, without any structure: the control for every wiring that has one.

    Args:
        n_in, n_out: number of inputs and outputs.
        density: share of weights that exist, in (0, 1].
        exact: as for `group_connectivity`.
        generator: source of the weights.

    Raises:
        ShapeError: no units. RangeError: the density is not in (0, 1], or outputs without an input remain.

    Examples:
        >>> random_connectivity(10, 10, 0.3).mask.sum()
        tensor(30)
    """
    if min(n_in, n_out) < 1:
        raise ShapeError("a wiring needs inputs and outputs", given=(n_in, n_out))
    if not 0 < density <= 1:
        raise RangeError("a density lies in (0, 1]", given=density)
    everywhere = torch.ones(n_out, n_in, dtype=torch.bool)
    return Wiring(_heard(lambda: _draw(everywhere, density, exact, generator)))


def small_world_between(
    n_in: int, n_out: int, neighbours: int, rewire: float = 0.1, *, generator: torch.Generator | None = None
) -> Wiring:
    """Every output hears the inputs nearest to its place, some of them exchanged for others from anywhere.

    Inputs and outputs lie on two rings of one length, one above the other.

    Args:
        n_in, n_out: number of inputs and outputs.
        neighbours: inputs that an output hears.
        rewire: β in [0, 1], the chance of a link to get another source; 0 is local, 1 is random of the same in-degree.
        generator: source of the links that change.

    Raises:
        RangeError: a number is out of range.

    Examples:
        >>> small_world_between(6, 3, 3, rewire=0.0).mask.int()
        tensor([[1, 1, 0, 0, 0, 1],
                [0, 1, 1, 1, 0, 0],
                [0, 0, 0, 1, 1, 1]], dtype=torch.int32)
    """
    if min(n_in, n_out) < 1 or not 1 <= neighbours <= n_in or not 0 <= rewire <= 1:
        given = (n_in, n_out, neighbours, rewire)
        raise RangeError("no such graph", given=given, expected="neighbours in 1 … n_in, rewire in [0, 1]")
    places = torch.arange(n_out)[:, None] / n_out - torch.arange(n_in) / n_in
    apart = torch.minimum(places % 1, -places % 1)
    rank = apart.argsort(dim=1, stable=True).argsort(1)
    mask = rank < neighbours
    keep = mask & (torch.rand(mask.shape, generator=generator) >= rewire)
    lost = neighbours - keep.sum(1)
    order = torch.rand(mask.shape, generator=generator).masked_fill(keep, 2.0)
    return Wiring(keep | (order.argsort(1).argsort(1) < lost[:, None]))


def _members(units: int, groups: int, scheme: str, generator: torch.Generator | None) -> Tensor:
    """The group of each unit; equally many in each."""
    place = torch.arange(units)
    if scheme == "interleaved":
        return place % groups
    if scheme not in ("index", "random"):
        raise UnknownNameError.among("grouping", scheme, ("index", "random", "interleaved"))
    by_index = place * groups // units
    return by_index if scheme == "index" else by_index[torch.randperm(units, generator=generator)]


def _draw(where: Tensor, probability: float, exact: bool, generator: torch.Generator | None) -> Tensor:
    if not exact:
        return where & (torch.rand(where.shape, generator=generator) < probability)
    places = where.flatten().nonzero().squeeze(1)
    chosen = places[torch.randperm(len(places), generator=generator)[: round(probability * len(places))]]
    mask = torch.zeros(where.numel(), dtype=torch.bool)
    mask[chosen] = True
    return mask.view(where.shape)


def _heard(draw: Callable[[], Tensor]) -> Tensor:
    for _ in range(_TRIES):
        mask = draw()
        silent = int((~mask.any(1)).sum())
        if not silent:
            return mask
    raise RangeError(
        f"{_TRIES} draws left outputs without any input", given=f"{silent} in the last", mend="choose a larger density"
    )
