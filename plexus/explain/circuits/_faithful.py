"""Does a circuit do what the model does, and is nothing left outside it?

    m(S)           metric of the clean input with every place of the universe outside S at its corrupted value
    faithfulness   (m(C) - m(∅)) / (m(U) - m(∅))             1: the circuit alone does what the model does
    completeness   1 - (m(U \\ C) - m(∅)) / (m(U) - m(∅))     1: without the circuit nothing of it is left

A place is a unit, a position, or a unit at a position. Beside both stand those of random circuits with as many places
at each site: in a model that is redundant any large set is faithful, and in a fragile one any set is complete.

Source: Wang et al. 2023; Marks et al. 2024 (the complement's faithfulness); Miller et al. 2024 (why controls matter).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from plexus.errors import RangeError
from plexus.explain._measure import check_draws
from plexus.explain._prefix import taken
from plexus.explain.circuits._cells import Cells, Universe, inside, places_of
from plexus.explain.circuits._circuit import Circuit
from plexus.explain.circuits._patching import ROWS
from plexus.explain.circuits._places import Metric, read_metric
from plexus.explain.circuits._rows import (
    RowPatch,
    Rows,
    check_pairs,
    held_by,
    lengths_of,
    refuse_cache,
    sizes_of,
)
from plexus.explain.controls._null import Null, null
from plexus.probe._batches import Forward, run
from plexus.probe._quiet import quiet
from plexus.units import Neurons, attach


@dataclass(frozen=True)
class Faithfulness:
    """How much of a behaviour a circuit carries, beside random circuits of its size.

    Attributes:
        faithfulness: share of the behaviour that the circuit alone has.
        completeness: share of the behaviour that is gone without the circuit.
        controls: both, of random circuits, `[control, 2]`.
        places: places in the circuit, and in the universe.
    """

    faithfulness: float
    completeness: float
    controls: Tensor
    places: tuple[int, int]

    @property
    def faithfulness_null(self) -> Null:
        """Where the faithfulness stands among those of random circuits."""
        return _above(self.faithfulness, self.controls[:, 0])

    @property
    def completeness_null(self) -> Null:
        """Where the completeness stands among those of random circuits."""
        return _above(self.completeness, self.controls[:, 1])

    def __str__(self) -> str:
        lines = [
            f"{self.places[0]} of {self.places[1]} places; beside {len(self.controls)} random circuits of that size"
        ]
        for name, value, found in (
            ("faithfulness", self.faithfulness, self.faithfulness_null),
            ("completeness", self.completeness, self.completeness_null),
        ):
            lines.append(f"  {name} {value:.3f}   random {found.low:.3f} … {found.high:.3f}, p {found.p:.3g}")
        return "\n".join(lines)


def faithfulness(
    model: nn.Module,
    circuit: Circuit | Neurons,
    clean: Any,
    corrupted: Any,
    metric: Metric,
    universe: Universe,
    n_random: int = 20,
    seed: int = 0,
    *,
    positions: Mapping[str, int | Tensor] | None = None,
    rows: int = ROWS,
    forward: Forward | None = None,
) -> Faithfulness:
    """Run the model with all but a circuit at corrupted values, and with all but the rest.

    Args:
        model: any module; as before when this returns.
        circuit: the circuit, or a set of units.
        clean, corrupted, metric, rows, forward: as in `activation_patching`.
        universe: all that could belong to the circuit; what lies outside it stays free. A set of units, for instance
            every head; or the map that the circuit was taken from, or places, where positions count.
        n_random: random circuits with as many places at each site, drawn among all places of the universe.
        seed: of their draw.
        positions: the columns of positions by name, as given to `activation_patching`.

    Raises:
        RangeError: an empty circuit, one that is the whole universe, or a universe whose corruption changes nothing;
            a universe of other sizes than the model's.
        SiteError: the universe lacks a node of the circuit.
        UnknownNameError: a position has a name that `positions` lacks.

    Examples:
        >>> model = nn.Sequential(nn.Identity(), nn.Linear(4, 1, bias=False))
        >>> _ = model[1].weight.data.copy_(torch.tensor([[3.0, 1.0, 0.0, 0.0]]))
        >>> from plexus.units import Site
        >>> site = Site("0", "b u")
        >>> first, every = Neurons.of({site: 4}, {site: [0]}), Neurons.of({site: 4}, {site: range(4)})
        >>> found = faithfulness(model, first, torch.ones(1, 4), torch.zeros(1, 4), lambda y, pair: y[:, 0], every)
        >>> found.faithfulness, found.completeness
        (0.75, 0.75)
    """
    check_draws(n_random, seed)
    pairs = check_pairs(clean, corrupted)
    refuse_cache(clean)
    places = places_of(universe)
    chosen = inside(circuit, places)
    size = int(chosen.sum())
    if size in (0, len(places)):
        raise RangeError(
            "a circuit is a part of its universe", given=f"{size} of {len(places)} places", expected="some of them"
        )
    sites = list(dict.fromkeys(place.site for place in places))
    at = torch.tensor([sites.index(place.site) for place in places])
    generator = torch.Generator().manual_seed(int(seed))
    every = torch.ones_like(chosen)
    kept = [every, ~every, chosen, ~chosen]
    for _ in range(n_random):
        other = _alike(chosen, at, generator)
        kept += [other, ~other]
    with quiet(model), torch.no_grad():
        held, _ = held_by(model, corrupted, sites, forward)
        sizes = sizes_of(held)
        for site, units in sizes.items():
            if isinstance(universe, Neurons) and units != universe.sizes[site]:
                raise RangeError(f"the universe has another size at {site}", given=universe.sizes[site], expected=units)
        cells = Cells(places, lengths_of(held), sizes, positions, pairs)
        out = torch.empty(len(kept) * pairs, dtype=torch.float64)
        for chunk in torch.arange(len(out)).split(rows):
            which, pair = chunk // pairs, chunk % pairs
            gone, row = torch.stack([~kept[i] for i in which.tolist()]), torch.arange(len(chunk))
            patches = [RowPatch(site, held[site], Rows(row, pair, cells.where(site, gone, pair))) for site in sites]
            with attach(model, patches):
                output = run(model, taken(clean, pair, pairs), forward, None)
            out[chunk] = read_metric(metric, output, pair)
    mean = out.reshape(len(kept), pairs).mean(1)
    span = float(mean[0] - mean[1])
    if abs(span) < 1e-12:
        raise RangeError("corrupting the whole universe does not change the metric", given=span)
    share = ((mean[2:] - mean[1]) / span).reshape(-1, 2)
    found = torch.stack([share[:, 0], 1 - share[:, 1]], 1)
    return Faithfulness(float(found[0, 0]), float(found[0, 1]), found[1:], (size, len(places)))


def _alike(chosen: Tensor, at: Tensor, generator: torch.Generator) -> Tensor:
    """As many places at each site, drawn, bool `[place]`."""
    other = torch.zeros_like(chosen)
    for site in at.unique():
        here = (at == site).nonzero().squeeze(1)
        drawn = torch.randperm(len(here), generator=generator)[: int(chosen[here].sum())]
        other[here[drawn]] = True
    return other


def _above(value: float, controls: Tensor) -> Null:
    """One-sided: how often a random circuit does as well."""
    found = null(value, controls)
    as_good = int((controls >= value - 1e-12).sum())
    return found._replace(p=(1 + as_good) / (1 + len(controls)))
