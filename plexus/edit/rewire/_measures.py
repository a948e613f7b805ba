"""What a wiring looks like: density, modularity, degrees, turnover, operations; and switching off what joins groups.

    modularity   Q = 1/m Σ_oi (m_oi - k_o k_i / m) δ(group_o, group_i)        m edges, degrees k_o in, k_i out
    turnover     1 - |before ∩ after| / |before|

Source of Q for two layers: Barber 2007 (bipartite networks).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from plexus.edit.rewire._layers import masked_layers, masks, oriented, wirings
from plexus.errors import PlexusError, ShapeError, UnknownNameError
from plexus.nn.synapses import Wiring

__all__ = ["Degrees", "degrees", "densities", "density", "edge_turnover", "intra_only", "modularity"]


class Degrees(NamedTuple):
    """How many connections the units of two layers have."""

    inputs: Tensor  # of each output unit, int64     [out]
    outputs: Tensor  # of each input unit, int64     [in]


def densities(model: nn.Module) -> dict[str, float]:
    """The share of weights that exist, by masked layer.

    Examples:
        >>> from plexus.edit.rewire import mask_
        >>> densities(mask_(nn.Sequential(nn.Linear(4, 4)), {"0": torch.eye(4).bool()}))
        {'0': 0.25}
    """
    return {name: float(mask.double().mean()) for name, mask in masks(model).items()}


def density(model: nn.Module) -> float:
    """The share of weights that exist, over all masked layers.

    Raises:
        PlexusError: no layer has a mask.

    Examples:
        >>> from plexus.edit.rewire import mask_
        >>> density(mask_(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)), {"0": torch.eye(4).bool()}))
        0.25
    """
    found = masks(model).values()
    if not found:
        raise PlexusError("no layer of this model has a mask", mend="plexus.edit.rewire.mask_(model, …)")
    return sum(int(mask.sum()) for mask in found) / sum(mask.numel() for mask in found)


def _edges(mask: Tensor) -> Tensor:
    if mask.dim() < 2:
        raise ShapeError("a mask joins outputs and inputs", given=tuple(mask.shape), expected="[out, in, …]")
    return mask.bool().flatten(2).sum(2).double() if mask.dim() > 2 else mask.double()


def modularity(mask: Tensor | Wiring, groups_out: Tensor | None = None, groups_in: Tensor | None = None) -> float:
    """How much more often connections stay within a group than they would at random, given the degrees of the units.

    Args:
        mask: bool `[out, in, …]` (the weights of a kernel count as parallel connections), or a `Wiring` with groups.
        groups_out, groups_in: the group of each unit, unless the wiring has them.

    Returns:
        Q: 0 for no preference, 1 - 1/G for G equal blocks, 0 without connections.

    Raises:
        ShapeError: the groups do not fit, or are missing.

    Examples:
        >>> groups = torch.tensor([0, 0, 1, 1])
        >>> modularity(groups[:, None] == groups, groups, groups), modularity(torch.ones(4, 4), groups, groups)
        (0.5, 0.0)
    """
    if isinstance(mask, Wiring):
        groups_out, groups_in, mask = mask.groups_out, mask.groups_in, mask.mask
    if groups_out is None or groups_in is None or mask.shape[:2] != (len(groups_out), len(groups_in)):
        given = None if groups_out is None or groups_in is None else (len(groups_out), len(groups_in))
        raise ShapeError("the groups do not fit the mask", given=given, expected=tuple(mask.shape[:2]))
    edges = _edges(mask)
    total = edges.sum()
    if not total:
        return 0.0
    expected = torch.outer(edges.sum(1), edges.sum(0)) / total
    same = groups_out.to(edges.device)[:, None] == groups_in.to(edges.device)
    return float(((edges - expected) * same).sum() / total)


def degrees(mask: Tensor | Wiring) -> Degrees:
    """How many connections each unit has: hubs show as large numbers of outputs.

    Args:
        mask: bool `[out, in, …]`, or a `Wiring`.

    Raises:
        ShapeError: it is no mask.

    Examples:
        >>> degrees(torch.tensor([[True, False], [True, True]]))
        Degrees(inputs=tensor([1, 2]), outputs=tensor([2, 1]))
    """
    edges = _edges(mask.mask if isinstance(mask, Wiring) else mask)
    return Degrees(edges.sum(1).long(), edges.sum(0).long())


def edge_turnover(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> dict[str, float]:
    """The share of connections that are gone, by layer.

    Args:
        before, after: masks by layer, e.g. copies of `masks(model)` at two times.

    Raises:
        UnknownNameError: the layers differ. ShapeError: a mask has another shape.

    Examples:
        >>> edge_turnover({"fc": torch.tensor([[1, 1, 0, 0]])}, {"fc": torch.tensor([[1, 0, 1, 0]])})
        {'fc': 0.5}
    """
    found = {}
    for name, old in before.items():
        if name not in after:
            raise UnknownNameError.among("mask", name, after)
        if old.shape != after[name].shape:
            raise ShapeError(f"the masks of {name!r} differ", given=tuple(after[name].shape), expected=tuple(old.shape))
        kept = int((old.bool() & after[name].to(old.device).bool()).sum())
        found[name] = 1 - kept / max(1, int(old.bool().sum()))
    return found


@contextlib.contextmanager
def intra_only(model: nn.Module) -> Iterator[nn.Module]:
    """Switch off every connection between groups; on leaving, also after an error, the weights are what they were.

    What the model learns inside is lost where connections were switched off.

    Raises:
        PlexusError: no layer of the model has groups.

    Examples:
        >>> from plexus.edit.rewire import group_wiring, mask_
        >>> model = nn.Sequential(nn.Linear(8, 8))
        >>> model = mask_(model, group_wiring(model, 2, p_inter=0.5), initialise=True)
        >>> with intra_only(model):
        ...     int((model[0].weight != 0).sum())
        32
        >>> int((model[0].weight != 0).sum())
        48
    """
    grouped = {name: w for name, w in wirings(model).items() if w.groups_out is not None and w.groups_in is not None}
    if not grouped:
        raise PlexusError("no layer of this model has groups", mend="mask it with a group_wiring")
    layers = masked_layers(model)
    kept: list[tuple[Tensor, Tensor, Tensor]] = []
    try:
        for name, wiring in grouped.items():
            weight = oriented(layers[name], layers[name].get_parameter("weight").detach())
            between = _between(wiring, weight)
            kept.append((weight, between, weight[between].clone()))
            weight[between] = 0
        yield model
    finally:
        for weight, between, values in kept:
            weight[between] = values


def _between(wiring: Wiring, weight: Tensor) -> Tensor:
    """Which weights `[out, in, …]` join different groups."""
    assert wiring.groups_out is not None
    assert wiring.groups_in is not None
    apart = wiring.groups_out[:, None].ne(wiring.groups_in)
    return apart.view(*apart.shape, *[1] * (weight.dim() - 2)).expand_as(weight)
