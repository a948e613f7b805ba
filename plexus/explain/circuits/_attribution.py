"""Attribution patching: activation patching to first order, for the price of two forward passes and one backward.

    effect(place) ≈ Σ (a_source - a_base) · ∂m/∂a |_base         summed over the features of the place

Exact where the metric is linear in the place; it fails where softmaxes or gates saturate. With `steps > 1` the gradient
is averaged along the straight line from base to source at the place's whole site (integrated gradients), which is
exact for the site as a whole.

Source: Nanda 2023; Syed et al. 2023; Sundararajan et al. 2017 and Hanna et al. 2024 (integrated).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from plexus.errors import RangeError, UnknownNameError
from plexus.explain.circuits._patching import Direction
from plexus.explain.circuits._places import Metric, PatchMap, Place, Positions, columns_of, read_metric, site_list
from plexus.explain.circuits._rows import ALL, check_pairs, held_by, laid_back, laid_out, refuse_cache
from plexus.probe._batches import Forward, run
from plexus.probe._quiet import quiet
from plexus.units import Site, Visit, attach, fingerprint


def attribution_patching(
    model: nn.Module,
    clean: Any,
    corrupted: Any,
    at: Site | Sequence[Site],
    metric: Metric,
    *,
    direction: Direction = "denoise",
    positions: Positions = "each",
    per: Literal["site", "unit"] = "site",
    steps: int = 1,
    forward: Forward | None = None,
) -> PatchMap:
    """Approximate the effect of patching every place, from gradients.

    Args:
        model, clean, corrupted, at, metric, direction, positions, per, forward: as in `activation_patching`.
        steps: points on the line from base to source at which the gradient is taken, one site after the other; 1 is the
            gradient at the base, for all sites from one backward pass.

    Returns:
        The map; it has no controls, since it is an approximation: verify what it finds with `activation_patching`.

    Raises:
        As `activation_patching`.

    Examples:
        >>> model = nn.Sequential(nn.Identity(), nn.Linear(3, 1, bias=False))
        >>> _ = nn.init.ones_(model[1].weight)
        >>> clean, corrupted = torch.tensor([[1.0, 5.0, 0.0]]), torch.zeros(1, 3)
        >>> attribution_patching(model, clean, corrupted, Site("0", "b u"), lambda y, pair: y[:, 0],
        ...                      per="unit", positions="all").effects[:, 0].tolist()
        [1.0, 5.0, 0.0]
    """
    if direction not in ("denoise", "noise"):
        raise UnknownNameError.among("direction", str(direction), ("denoise", "noise"))
    if per not in ("site", "unit"):
        raise UnknownNameError.among("choice of `per`", str(per), ("site", "unit"))
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise RangeError("the gradient is taken at one point or more", given=steps)
    sites = site_list(at)
    pairs = check_pairs(clean, corrupted)
    refuse_cache(clean)
    source_input, base_input = (clean, corrupted) if direction == "denoise" else (corrupted, clean)
    every = torch.arange(pairs)
    with quiet(model), torch.no_grad():
        held, output = held_by(model, source_input, sites, forward)
        source = read_metric(metric, output, every)
        own, output = held_by(model, base_input, sites, forward)
        base = read_metric(metric, output, every)
    slopes: dict[Site, dict[int, Tensor]] = {}
    with quiet(model, grad=True):
        if steps == 1:
            slopes = _slopes(model, base_input, [_Line(site) for site in sites], metric, every, forward)
        else:
            for site in sites:
                found = [
                    _slopes(model, base_input, [_Line(site, held[site], (k + 0.5) / steps)], metric, every, forward)[
                        site
                    ]
                    for k in range(steps)
                ]
                slopes[site] = {call: torch.stack([f[call] for f in found]).mean(0) for call in found[0]}
    places: list[Place] = []
    effects: list[Tensor] = []
    for site in sites:
        along = torch.stack([_per_unit(site, held[site][c] - own[site][c], slopes[site][c]) for c in own[site]]).sum(0)
        for position, column in columns_of(positions, along.shape[1], pairs).items():
            here = along.sum(1) if int(column[0]) == ALL else along[every.to(along.device), column.to(along.device)]
            kept: list[int | None] = [None] if per == "site" else list(range(along.shape[2]))
            for unit in kept:
                places.append(Place(site, position, unit))
                effects.append(here.sum(1) if unit is None else here[:, unit])
    grid = torch.stack(effects).double().cpu()
    return PatchMap(tuple(places), grid, source - base, base, None, direction, fingerprint(model))


class _Line:
    """Passes values through, moved towards the source, and keeps them so that the metric can be differentiated."""

    records = False

    def __init__(self, site: Site, held: dict[int, Tensor] | None = None, share: float = 0.0) -> None:
        self.site, self.held, self.share = site, held, share
        self.kept: dict[int, tuple[Tensor, Visit]] = {}

    def __call__(self, values: Tensor, visit: Visit) -> Tensor:
        if self.held is not None:
            laid = laid_out(values.detach(), visit)
            values = laid_back(laid + self.share * (self.held[visit.call].to(laid) - laid), visit)
        value = values if values.requires_grad else values.detach().requires_grad_()
        self.kept[visit.call] = value, visit
        return value.clone()


def _slopes(
    model: nn.Module, batch: Any, lines: Sequence[_Line], metric: Metric, every: Tensor, forward: Forward | None
) -> dict[Site, dict[int, Tensor]]:
    """The gradient of each pair's metric at each site, by call, `[pair, position, …, unit(, feature)]`."""
    with attach(model, lines):
        total = read_metric(metric, run(model, batch, forward, None), every).sum()
        kept = [(line.site, call, *line.kept[call]) for line in lines for call in line.kept]
        found = torch.autograd.grad(total, [value for _, _, value, _ in kept], allow_unused=True)
    out: dict[Site, dict[int, Tensor]] = {line.site: {} for line in lines}
    for (site, call, value, visit), slope in zip(kept, found, strict=True):
        out[site][call] = laid_out(torch.zeros_like(value) if slope is None else slope, visit).detach()
    return out


def _per_unit(site: Site, difference: Tensor, slope: Tensor) -> Tensor:
    """The product summed over features and further row axes, `[pair, position, unit]`."""
    product = difference.float() * slope.float()
    if site.has_features:
        product = product.sum(-1)
    return product if product.dim() == 3 else product.flatten(2, -2).sum(2)
