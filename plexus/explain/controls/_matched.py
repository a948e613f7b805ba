"""The same edit on random units: as many at each site, with the same numbers."""

from __future__ import annotations

from typing import overload

import torch
from torch import Tensor

from plexus.edit import Edit
from plexus.errors import DtypeError, RangeError
from plexus.units import Neurons, Site


@overload
def matched_random(what: Neurons, generator: torch.Generator, *, exclude: bool = True) -> Neurons: ...
@overload
def matched_random(what: Edit, generator: torch.Generator, *, exclude: bool = True) -> Edit: ...
def matched_random(what: Neurons | Edit, generator: torch.Generator, *, exclude: bool = True) -> Neurons | Edit:
    """Random units in the place of the chosen ones, as many at each site; of an edit, the edit moved there.

    An edit of several steps is moved as a whole: a unit that two steps share has one stand-in.

    Args:
        what: a set of units or an edit.
        generator: where the draw comes from.
        exclude: draw among the other units only.

    Raises:
        RangeError: if a site has too few other units.
        UnsupportedError: if the edit acts along directions, which belong to their units.

    Examples:
        >>> site = Site("fc1", "b u")
        >>> chosen = Neurons.of({site: 10}, {site: [0, 1]})
        >>> stand_in = matched_random(chosen, torch.Generator().manual_seed(0))
        >>> len(stand_in), len(stand_in & chosen)
        (2, 0)
    """
    if isinstance(what, Neurons):
        return _drawn(what, generator, exclude)
    if not isinstance(what, Edit):
        raise DtypeError(
            "a control stands beside an edit or a set of units",
            given=type(what).__name__,
            expected="Edit, for example edit.scale(chosen, 0.0) without the model",
        )
    chosen = what.neurons
    drawn = _drawn(chosen, generator, exclude)
    stand_in: dict[Site, Tensor] = {}
    for site, size in chosen.sizes.items():
        own, other = chosen.indices(site), drawn.indices(site)
        stand_in[site] = torch.arange(size)
        stand_in[site][own] = other[torch.randperm(len(other), generator=generator, device=generator.device).cpu()]

    def place(units: Neurons) -> Neurons:
        return Neurons.of(units.sizes, {s: stand_in[s][units.indices(s)].tolist() for s in units.sites}, units.model)

    return what.moved(place)


def _drawn(chosen: Neurons, generator: torch.Generator, exclude: bool) -> Neurons:
    if not len(chosen):
        raise RangeError("there are no units to find a control for", given=repr(chosen).splitlines()[0])
    return chosen.random_like(generator, exclude=exclude)
