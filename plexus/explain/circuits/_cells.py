"""A universe of places, of which some are kept and the others hold what they held in another run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from plexus.errors import DtypeError, RangeError, SiteError, UnknownNameError
from plexus.explain.circuits._circuit import Circuit
from plexus.explain.circuits._places import PatchMap, Place, columns_of
from plexus.explain.circuits._rows import ALL
from plexus.units import Neurons, Site

Universe = Neurons | PatchMap | Iterable[Place]


def places_of(universe: Universe) -> tuple[Place, ...]:
    """The places of a universe, each once: of a set of units, each unit at all positions.

    Raises:
        DtypeError: it is something else. RangeError: it is empty.
    """
    if isinstance(universe, Neurons):
        found = tuple(Place(site, None, unit) for site in universe.sites for unit in universe.indices(site).tolist())
    else:
        listed = list(universe.places if isinstance(universe, PatchMap) else universe)
        stray = next((place for place in listed if not isinstance(place, Place)), None)
        if stray is not None:
            raise DtypeError(
                "a universe is a set of units, a map of patches or places", given=type(stray).__name__, expected="Place"
            )
        found = tuple(dict.fromkeys(listed))
    if not found:
        raise RangeError("the universe is empty", given="no place", expected="all places that the circuit may be of")
    return found


def inside(circuit: Circuit | Neurons, places: Sequence[Place]) -> Tensor:
    """Which places belong to a circuit, bool `[place]`; a node without a unit or a position covers all of them.

    Raises:
        SiteError: a node covers no place.
    """
    nodes = list(circuit.nodes) if isinstance(circuit, Circuit) else list(places_of(circuit)) if len(circuit) else []
    here: dict[Site, list[int]] = {}
    for number, place in enumerate(places):
        here.setdefault(place.site, []).append(number)
    found = torch.zeros(len(places), dtype=torch.bool)
    for node in nodes:
        covered = [
            number
            for number in here.get(node.site, ())
            if node.position in (None, places[number].position) and node.unit in (None, places[number].unit)
        ]
        if not covered:
            raise SiteError(
                "the universe lacks a node of the circuit",
                given=str(node),
                expected=", ".join(map(str, places[:3])) + (", …" if len(places) > 3 else ""),
                mend="pass the map that the circuit was taken from; a node at one position is no unit at all of them",
            )
        found[covered] = True
    return found


class _Site(NamedTuple):
    """The places of one site."""

    numbers: Tensor  # among all places              [place]
    column: Tensor  # `ALL` for every position       [place, pair]
    unit: Tensor  # `ALL` for every unit             [place]
    length: int  # positions that a mask needs
    units: int  # units that a mask needs


class Cells:
    """Masks over positions and units for choices among the places of a universe.

    Args:
        places: of the universe.
        lengths, sizes: positions and units of each site.
        positions: columns of positions that are named, one for all pairs or `[pair]`.
        pairs: how many.

    Raises:
        UnknownNameError: a named position is not given. RangeError: a position or a unit lies outside its site.
    """

    def __init__(
        self,
        places: Sequence[Place],
        lengths: Mapping[Site, int],
        sizes: Mapping[Site, int],
        positions: Mapping[str, int | Tensor] | None,
        pairs: int,
    ) -> None:
        self.sites: dict[Site, _Site] = {}
        for site in dict.fromkeys(place.site for place in places):
            numbers = [i for i, place in enumerate(places) if place.site == site]
            columns = {
                position: _column(position, lengths[site], positions or {}, pairs)
                for position in dict.fromkeys(places[i].position for i in numbers)
            }
            column = torch.stack([columns[places[i].position] for i in numbers])
            listed = [places[i].unit for i in numbers]
            unit = torch.tensor([ALL if u is None else u for u in listed])
            if int(unit.max()) >= sizes[site]:
                raise RangeError(f"the universe has a unit beyond {site}", given=int(unit.max()), expected=sizes[site])
            self.sites[site] = _Site(
                torch.tensor(numbers),
                column,
                unit,
                lengths[site] if bool((column != ALL).any()) else 1,
                sizes[site] if bool((unit != ALL).any()) else 1,
            )

    def where(self, site: Site, gone: Tensor, pair: Tensor) -> Tensor:
        """Where the rows of a batch are to be changed at a site, bool `[row, position, unit]`.

        Args:
            site: one of the universe.
            gone: the places that each row loses, bool `[row, place]` over all places.
            pair: the pair of each row.
        """
        here = self.sites[site]
        row, number = gone[:, here.numbers].nonzero(as_tuple=True)
        column, unit = here.column[number, pair[row]], here.unit[number]
        out = torch.zeros(len(gone), here.length, here.units, dtype=torch.bool)
        every, whole = column == ALL, unit == ALL
        for rows, columns, units in (
            (~every & ~whole, column, unit),
            (every & ~whole, slice(None), unit),
            (~every & whole, column, slice(None)),
            (every & whole, slice(None), slice(None)),
        ):
            index = (row[rows], *(part if isinstance(part, slice) else part[rows] for part in (columns, units)))
            out[index] = True
        return out


def _column(position: int | str | None, length: int, named: Mapping[str, int | Tensor], pairs: int) -> Tensor:
    if position is None:
        return columns_of("all", length, pairs)[None]
    if isinstance(position, int):
        return columns_of([position], length, pairs)[position]
    if position not in named:
        raise UnknownNameError.among("position", position, named)
    return columns_of({position: named[position]}, length, pairs)[position]
