"""Verbs along directions. With h the values at a site, b a direction of length one, (b1, b2) an orthonormal plane:

    add       h + s b                    s a length, a multiple of the gap between the classes, or of ‖h‖
    ablate    h - (h·b) b
    scale     h + (factor - 1) (h·b) b
    rotate    relative   (a, b) ← (a cos θ - b sin θ, a sin θ + b cos θ)     a = h·b1, b = h·b2, the rest untouched
              absolute   (a, b) ← ‖(a, b)‖ (cos θ, sin θ)
              adaptive   absolute where a > threshold

Every rotation keeps ‖h‖. Everything is computed from the two coordinates, never from a matrix of the width squared.

Source: Turner et al. 2023 (adding), Arditi et al. 2024 (taking out), Vu and Nguyen 2025 (absolute and adaptive
turning), Dang and Ngo 2026 (relative turning).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal, get_args

import torch
from torch import Tensor

from plexus.edit._edit import Edit
from plexus.edit._numbers import Given
from plexus.edit._verbs import make, verb
from plexus.edit._verbs import scale as scale_units
from plexus.errors import DtypeError, RangeError, ShapeError, SiteError, UnknownNameError
from plexus.probe import Directions
from plexus.probe._collect import Positions
from plexus.units import Neurons, Site

__all__ = ["Along", "ablate", "add", "neurons_of", "plane", "rotate", "scale"]

Along = Directions | Mapping[Site, Tensor]
By = Literal["length", "gap", "norm"]
Mode = Literal["relative", "absolute", "adaptive"]


@verb
def add(directions: Along, strength: Given, *, by: By = "length", positions: Positions = "all") -> Edit:
    """Add a direction to the values of every site.

    Args:
        directions: per site one direction `[unit]`; its length is taken as one.
        strength: how far, one number or one per site; negative goes the other way.
        by: what the strength counts in: "length" as it is; "gap", the distance between the two classes along the
            direction (1 carries the mean of the negative samples to that of the positive ones); "norm", the length of
            the values at each token.
        positions: "all" tokens, those of the "prompt", the "generated" ones, or the "last" real one of each pass.

    Returns:
        The edit; with a model as the first argument, a context in which it acts on that model.

    Raises:
        RangeError: a direction is zero or not finite.
        DtypeError: these are no directions, or "gap" was asked of ones that have none.

    Examples:
        >>> from torch import nn
        >>> from plexus.edit import steer
        >>> model = nn.Sequential(nn.Identity())
        >>> with steer.add(model, {Site("0"): torch.tensor([0.0, 3.0])}, 2.0):
        ...     model(torch.ones(1, 2))
        tensor([[1., 3.]])
    """
    if by not in get_args(By):
        raise UnknownNameError.among("measure of strength", str(by), get_args(By))
    if by == "gap":
        if not isinstance(directions, Directions):
            raise DtypeError("only directions that were found between classes have a gap", given=type(directions))
        each = strength if isinstance(strength, Mapping) else dict.fromkeys(directions, strength)
        missing = [site for site in directions if site not in each]
        if missing:
            raise SiteError("no strength was given for a site", given=str(missing[0]))
        strength = {site: torch.as_tensor(each[site]) * directions.gap[site] for site in directions}
    key = "share" if by == "norm" else "amount"
    return make("add", neurons_of(directions), {key: strength}, positions, _unit(directions))


@verb
def ablate(directions: Along, *, positions: Positions = "all") -> Edit:
    """Take a direction, or all of several, out of the values of every site.

    Args:
        directions: per site one direction `[unit]`, or several `[direction, unit]`.
        positions: as in `add`.

    Examples:
        >>> from torch import nn
        >>> from plexus.edit import steer
        >>> model = nn.Sequential(nn.Identity())
        >>> with steer.ablate(model, {Site("0"): torch.tensor([1.0, 1.0])}):
        ...     model(torch.tensor([[3.0, 1.0]]))
        tensor([[ 1., -1.]])
    """
    return make("scale", neurons_of(directions), {"factor": 0.0}, positions, dict(directions))


@verb
def scale(what: Along | Neurons, factor: Given, *, positions: Positions = "all") -> Edit:
    """Scale the part of the values along a direction, or single units.

    Args:
        what: directions as in `ablate`; or units, and then this is `edit.scale`.
        factor: one number, or one per site; for units also one per unit. 0 takes out, -1 mirrors.
        positions: as in `add`.

    Examples:
        >>> from torch import nn
        >>> from plexus.edit import steer
        >>> model = nn.Sequential(nn.Identity())
        >>> with steer.scale(model, {Site("0"): torch.tensor([0.0, 5.0])}, -1.0):
        ...     model(torch.tensor([[3.0, 1.0]]))
        tensor([[ 3., -1.]])
    """
    if isinstance(what, Neurons):
        return scale_units(what, factor, positions=positions)
    return make("scale", neurons_of(what), {"factor": factor}, positions, dict(what))


@verb
def rotate(
    planes: Mapping[Site, Tensor],
    degrees: float,
    *,
    mode: Mode = "relative",
    threshold: float = 0.0,
    positions: Positions = "all",
) -> Edit:
    """Turn the values in a plane; their length stays.

    Args:
        planes: per site two vectors `[2, unit]` that span the plane; the first is its zero angle, the second is taken
            at a right angle to it.
        degrees: the angle.
        mode: "relative" turns by the angle; "absolute" turns to it, whatever the angle was; "adaptive" does so only
            where the values point along the first vector.
        threshold: of "adaptive": how far they must point along it.
        positions: as in `add`.

    Raises:
        RangeError: the two vectors of a plane are parallel or zero, or the angle is no number.

    Examples:
        >>> from torch import nn
        >>> from plexus.edit import steer
        >>> model = nn.Sequential(nn.Identity())
        >>> with steer.rotate(model, {Site("0"): torch.eye(3)[:2]}, 90):
        ...     model(torch.tensor([[2.0, 0.0, 7.0]])).round(decimals=4) + 0.0
        tensor([[0., 2., 7.]])
    """
    if mode not in get_args(Mode):
        raise UnknownNameError.among("mode of rotation", str(mode), get_args(Mode))
    if isinstance(degrees, bool) or not isinstance(degrees, int | float | Tensor) or torch.as_tensor(degrees).dim():
        raise DtypeError("the angle is one number of degrees", given=type(degrees).__name__)
    if not math.isfinite(degrees):
        raise RangeError("the angle is a finite number of degrees", given=degrees)
    bases = {site: plane(pair) for site, pair in _mapping(planes).items()}
    numbers: dict[str, Given] = {"angle": torch.as_tensor(degrees, dtype=torch.float64)}
    if mode == "adaptive":
        numbers["threshold"] = float(threshold)
    name: Literal["rotate", "turn"] = "rotate" if mode == "relative" else "turn"
    return make(name, neurons_of(bases, planes), numbers, positions, bases)


def plane(vectors: Tensor) -> Tensor:
    """The orthonormal pair `[2, unit]` that two vectors span, the first keeping its direction.

    Raises:
        ShapeError: these are not two vectors.
        RangeError: they are parallel, zero or not finite.

    Examples:
        >>> plane(torch.tensor([[2.0, 0.0], [5.0, 3.0]]))
        tensor([[1., 0.],
                [0., 1.]])
    """
    if not isinstance(vectors, Tensor) or vectors.dim() != 2 or len(vectors) != 2:
        given = tuple(vectors.shape) if isinstance(vectors, Tensor) else type(vectors).__name__
        raise ShapeError("a plane is spanned by two vectors", given=given, expected="[2, unit]")
    one, two = vectors.double()
    length = one.norm()
    first = one / length
    rest = two / two.norm()
    for _ in range(2):  # once more, for what rounding leaves
        rest = rest - (rest @ first) * first
    if not bool(length.isfinite()) or not bool(rest.norm() > 1e-6):
        raise RangeError(
            "two parallel vectors span no plane", given=f"lengths {float(length):g}, {float(two.norm()):g}"
        )
    dtype = torch.promote_types(vectors.dtype, torch.float32)
    return torch.stack([first, rest / rest.norm()]).to(dtype)


def neurons_of(directions: Mapping[Site, Tensor], named: object = None) -> Neurons:
    """All units of the sites that the directions belong to, with the model that they were found in."""
    source = directions if named is None else named
    sizes = {}
    for site, vector in _mapping(directions).items():
        if not isinstance(vector, Tensor) or vector.dim() not in (1, 2):
            raise ShapeError(f"a direction of site {site} is a vector [unit]", given=type(vector).__name__)
        sizes[site] = int(vector.shape[-1])
    return ~Neurons.of(sizes, model=getattr(source, "model", None))


def _mapping(directions: Mapping[Site, Tensor]) -> Mapping[Site, Tensor]:
    if not isinstance(directions, Mapping) or not all(isinstance(site, Site) for site in directions):
        raise DtypeError(
            "directions are given per site",
            given=type(directions).__name__,
            expected="Directions, or a mapping of sites to tensors",
        )
    if not len(directions):
        raise SiteError("there is no direction")
    return directions


def _unit(directions: Mapping[Site, Tensor]) -> dict[Site, Tensor]:
    out = {}
    for site, vector in directions.items():
        if vector.dim() != 1:
            raise ShapeError(f"one direction is added per site, at {site}", given=tuple(vector.shape))
        wide = vector.to(torch.promote_types(vector.dtype, torch.float32))
        length = wide.norm()
        if not bool(length > 0) or not bool(length.isfinite()):
            raise RangeError("a direction is zero or not finite", given=str(site))
        out[site] = wide / length
    return out
