"""Wirings for the layers of a whole model: at random, in groups, as small worlds.

Densities of layers: `"uniform"`, or by the Erdős–Rényi kernel, which leaves thin layers denser:

    density_l = min(1, ε Σ dims_l / Π dims_l),      ε such that  Σ_l density_l |w_l| = density Σ_l |w_l|

Source: Mocanu et al. 2018 (Erdős–Rényi), Evci et al. 2020 (with kernels). A layer that would be more than full is full,
and ε is solved again for the others.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import prod
from typing import Literal

import torch
from torch import nn

from plexus.edit.rewire._layers import maskable, shape_of
from plexus.errors import RangeError, UnknownNameError
from plexus.nn.synapses import Wiring, group_connectivity, random_connectivity, small_world_between

__all__ = ["erk_densities", "group_wiring", "random_wiring", "small_world_wiring"]


def erk_densities(shapes: Mapping[str, tuple[int, ...]], density: float) -> dict[str, float]:
    """Densities of layers by the Erdős–Rényi kernel, of a given mean over all weights.

    Args:
        shapes: name → `[out, in, …]`.
        density: share of all weights, in (0, 1].

    Raises:
        RangeError: the density is not in (0, 1], or there is no layer.

    Examples:
        >>> {name: round(d, 3) for name, d in erk_densities({"wide": (100, 100), "thin": (10, 100)}, 0.1).items()}
        {'wide': 0.071, 'thin': 0.39}
    """
    if not shapes or not 0 < density <= 1:
        raise RangeError("a density in (0, 1] of some layers", given=(density, len(shapes)))
    sizes = {name: prod(shape) for name, shape in shapes.items()}
    raw = {name: sum(shape) / sizes[name] for name, shape in shapes.items()}
    full: set[str] = set()
    while True:
        rest = [name for name in shapes if name not in full]
        if not rest:
            return dict.fromkeys(shapes, 1.0)
        wanted = density * sum(sizes.values()) - sum(sizes[name] for name in full)
        epsilon = wanted / sum(raw[name] * sizes[name] for name in rest)
        fullest = max(rest, key=lambda name: raw[name])
        if epsilon * raw[fullest] <= 1:
            return {name: 1.0 if name in full else epsilon * raw[name] for name in shapes}
        full.add(fullest)


def random_wiring(
    model: nn.Module,
    density: float,
    at: str | Iterable[str] = "*",
    *,
    allocation: Literal["erk", "uniform"] = "erk",
    exclude: Iterable[str] = (),
    generator: torch.Generator | None = None,
) -> dict[str, Wiring]:
    """Weights at random places in every layer, exactly as many as the density asks for.

    Args:
        model: any module.
        density: share of all weights of the chosen layers, in (0, 1].
        at, exclude: names or patterns of layers.
        allocation: how the density is shared out among layers: `"erk"` or `"uniform"`.
        generator: source of the weights.

    Raises:
        RangeError: the density is not in (0, 1] or leaves units without any input. UnknownNameError: another name.

    Examples:
        >>> model = nn.Sequential(nn.Linear(50, 40), nn.ReLU(), nn.Linear(40, 10))
        >>> wiring = random_wiring(model, 0.2)
        >>> {name: int(part.mask.sum()) for name, part in wiring.items()}
        {'0': 309, '2': 171}
    """
    shapes = {name: shape_of(module) for name, module in maskable(model, at, exclude=exclude).items()}
    if allocation not in ("erk", "uniform"):
        raise UnknownNameError.among("allocation", allocation, ("erk", "uniform"))
    densities = erk_densities(shapes, density) if allocation == "erk" else dict.fromkeys(shapes, density)
    found = {}
    for name, shape in shapes.items():
        flat = random_connectivity(prod(shape[1:]), shape[0], densities[name], generator=generator)
        found[name] = Wiring(flat.mask.view(shape))
    return found


def group_wiring(
    model: nn.Module,
    groups: int,
    p_intra: float = 1.0,
    p_inter: float = 0.15,
    at: str | Iterable[str] = "*",
    *,
    scheme: Literal["index", "random", "interleaved", "mixer"] = "mixer",
    exclude: Iterable[str] = (),
    generator: torch.Generator | None = None,
) -> dict[str, Wiring]:
    """Group-to-group wiring of every layer, see `plexus.nn.synapses.group_connectivity`.

    Args:
        model: any module; its chosen layers in the order in which they run. Of a convolution, whole kernels are wired.
        groups: number of groups in each layer; `p_inter=0` gives blocks.
        p_intra, p_inter: share of weights within and between groups.
        at, exclude: names or patterns of layers.
        scheme: as there, or `"mixer"`: neighbours share a group in even layers, every G-th unit does in odd ones, so
            that what the groups know is mixed.
        generator: source of groups and weights.

    Raises:
        ShapeError: a layer does not split into groups. RangeError: a probability is not in [0, 1].

    Examples:
        >>> model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
        >>> {name: part.density for name, part in group_wiring(model, 8, exclude=["4"]).items()}
        {'0': 0.25634765625, '2': 0.25634765625}
    """
    found = {}
    for depth, (name, module) in enumerate(maskable(model, at, exclude=exclude).items()):
        shape = shape_of(module)
        here = ("interleaved" if depth % 2 else "index") if scheme == "mixer" else scheme
        found[name] = group_connectivity(shape[1], shape[0], groups, p_intra, p_inter, here, generator=generator)
    return found


def small_world_wiring(
    model: nn.Module,
    density: float,
    rewire: float = 0.1,
    at: str | Iterable[str] = "*",
    *,
    exclude: Iterable[str] = (),
    generator: torch.Generator | None = None,
) -> dict[str, Wiring]:
    """Local links and some far ones in every layer, see `plexus.nn.synapses.small_world_between`.

    Args:
        model: any module. Of a convolution, whole kernels are wired.
        density: share of its inputs that a unit hears; at least one.
        rewire: β in [0, 1].
        at, exclude: names or patterns of layers.
        generator: source of the far links.

    Raises:
        RangeError: a number is out of range.

    Examples:
        >>> {n: w.mask.sum(1).tolist() for n, w in small_world_wiring(nn.Sequential(nn.Linear(10, 4)), 0.3).items()}
        {'0': [3, 3, 3, 3]}
    """
    if not 0 < density <= 1:
        raise RangeError("a density lies in (0, 1]", given=density)
    found = {}
    for name, module in maskable(model, at, exclude=exclude).items():
        outputs, inputs = shape_of(module)[:2]
        neighbours = max(1, round(density * inputs))
        found[name] = small_world_between(inputs, outputs, neighbours, rewire, generator=generator)
    return found
