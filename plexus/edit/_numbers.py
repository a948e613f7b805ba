"""The numbers of an edit: one for all units, one per unit of a site, or one per chosen unit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from plexus.errors import DtypeError, RangeError, ShapeError, SiteError
from plexus.units import Neurons, Site

__all__ = ["Given", "Numbers", "in_memory", "read_numbers"]

Given = float | Tensor | Mapping[Site, Any]


@dataclass(frozen=True, eq=False)
class Numbers:
    """Numbers of every site of an edit.

    Attributes:
        values: per site `[]`, `[unit]` or `[unit, feature]` (along directions: `[direction]`).
        compact: whether they were given one per chosen unit, so that other units have none.
    """

    values: Mapping[Site, Tensor]
    compact: bool = False

    def of(self, site: Site, mask: Tensor) -> Tensor:
        """The numbers of a site, spread over all its units where they were given for the chosen ones."""
        value = self.values[site]
        if not self.compact or value.dim() == 0:
            return value
        spread = value.new_zeros(len(mask), *value.shape[1:])
        return spread.index_put((mask.nonzero().squeeze(1).to(value.device),), value)


def read_numbers(
    name: str, given: Given, neurons: Neurons, *, finite: bool = True, directions: Mapping[Site, int] | None = None
) -> Numbers:
    """The numbers that a caller gave for a set of units, in main memory unless they are being learned.

    Raises:
        SiteError: a mapping lacks a site of the set.
        ShapeError: they are neither one number, nor one per unit of the site, nor one per chosen unit.
        RangeError: one is NaN, or infinite where that has no meaning.
        DtypeError: they are no numbers.
    """
    values: dict[Site, Tensor] = {}
    compact = False
    for site, count in neurons.counts.items():
        if not count:
            continue
        if isinstance(given, Mapping):
            if site not in given:
                raise SiteError(f"no {name} was given for a site", given=str(site))
            value = _tensor(name, given[site])
        else:
            value = _tensor(name, given)
        size = neurons.sizes[site] if directions is None else directions[site]
        if value.dim() and value.shape[0] != size:
            if value.shape[0] != count or directions is not None:
                raise ShapeError(
                    f"the {name} does not fit site {site}",
                    given=f"{tuple(value.shape)}",
                    expected=f"one number, {size} (all units) or {count} (the chosen ones)"
                    if directions is None
                    else f"one number, or {size} (the directions)",
                )
            compact = True
        if bool(value.isnan().any()) or (finite and not bool(value.isfinite().all())):
            raise RangeError(f"the {name} holds a NaN or an infinite number", given=str(site))
        values[site] = value
    if compact:  # one meaning for all sites: where all units have numbers, keep those of the chosen ones
        for site, value in values.items():
            if value.dim() and value.shape[0] == neurons.sizes[site]:
                values[site] = value[neurons.mask(site).to(value.device)]
    return Numbers(values, compact)


def in_memory(value: Tensor) -> Tensor:
    """A tensor moved to main memory; one that is being learned stays where it is, so that its later steps are seen."""
    return value if value.requires_grad else value.cpu()


def _tensor(name: str, value: Any) -> Tensor:
    if isinstance(value, bool):
        raise DtypeError(f"the {name} is a number or a tensor of numbers", given=value)
    try:
        out = torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise DtypeError(f"the {name} is a number or a tensor of numbers", given=value) from error
    if out.is_complex() or out.dtype == torch.bool:
        raise DtypeError(f"the {name} is a number or a tensor of numbers", given=out.dtype)
    return in_memory(out if out.is_floating_point() else out.float())
