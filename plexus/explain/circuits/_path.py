"""Path patching: what one place does to another directly, everything in between held still.

    1  base and source run are recorded
    2  the base input runs with every frozen place at its base value, but the sender at its source value;
       what then *comes in* at the receivers has changed by the direct path alone (through the residual stream)
    3  the base input runs with just that put in at the receivers, everything else free, and the metric is read

Without receivers the metric is read in step 2: the direct effect of the sender on the output. Receivers are frozen too
once their input is noted, so that a path never goes through one receiver into another.

Source: Wang et al. 2023 (path patching); Goldowsky-Dill et al. 2023 (why the rest is frozen).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from plexus.errors import RangeError, SiteError, UnknownNameError
from plexus.explain._prefix import taken
from plexus.explain.circuits._patching import ROWS, Direction, Runner
from plexus.explain.circuits._places import Metric, PatchMap, Place, Positions, each_place, read_metric, site_list
from plexus.explain.circuits._rows import (
    Frozen,
    RowPatch,
    Rows,
    check_control,
    check_pairs,
    held_by,
    lengths_of,
    refuse_cache,
    sizes_of,
)
from plexus.probe._batches import Forward, run
from plexus.probe._progress import tracked
from plexus.probe._quiet import quiet
from plexus.units import Neurons, Site, attach, fingerprint, sites


def path_patching(
    model: nn.Module,
    clean: Any,
    corrupted: Any,
    senders: Site | Sequence[Site],
    receivers: Site | Sequence[Site] | Neurons | None,
    metric: Metric,
    *,
    freeze: Sequence[Site] | None = None,
    direction: Direction = "noise",
    positions: Positions = "all",
    per: Literal["site", "unit"] = "unit",
    control: bool = True,
    rows: int = ROWS,
    forward: Forward | None = None,
    progress: bool | None = None,
) -> PatchMap:
    """The effect of every sender on the metric through its direct paths into the receivers, many senders in one pass.

    Args:
        model, clean, corrupted, metric, direction, control, rows, forward, progress: as in `activation_patching`.
        positions, per: of the senders.
        senders: their sites, for instance `px.sites.heads(model)`.
        receivers: sites, or units of them, for instance the queries of some heads; None is the output of the model.
        freeze: what is held still: by default every attention head and every MLP. Leave the MLPs out to count the paths
            through them as direct.

    Returns:
        The map over the senders; its controls send what the sender does in another pair.

    Raises:
        SiteError: a receiver without units; default sites that are not found in this model.
        ShapeError: the inputs of a pair differ in length or padding.

    Examples:
        >>> class Block(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.first, self.second = nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)
        ...     def forward(self, x):
        ...         x = x + self.first(x)
        ...         return x + self.second(x)
        >>> model = Block()
        >>> for layer in (model.first, model.second):
        ...     _ = nn.init.eye_(layer.weight)
        >>> first, second, into = Site("first", "b u"), Site("second", "b u"), Site("second", "b u", at="input")
        >>> pair = torch.ones(2, 2), torch.zeros(2, 2)
        >>> total = lambda y, pair: y.sum(1)
        >>> for receivers in (None, into):
        ...     found = path_patching(model, *pair, first, receivers, total, freeze=[first, second], per="site")
        ...     found.effects.tolist()
        [[-2.0, -2.0]]
        [[-2.0, -2.0]]
    """
    if direction not in ("denoise", "noise"):
        raise UnknownNameError.among("direction", str(direction), ("denoise", "noise"))
    if per not in ("site", "unit"):
        raise UnknownNameError.among("choice of `per`", str(per), ("site", "unit"))
    if isinstance(rows, bool) or not isinstance(rows, int) or rows < 1:
        raise RangeError("a pass has at least one row", given=rows)
    from_sites = site_list(senders)
    to_sites, chosen = _receivers(receivers)
    still = list(dict.fromkeys([*sites.heads(model), *sites.mlp(model)] if freeze is None else freeze))
    pairs = check_pairs(clean, corrupted)
    refuse_cache(clean)
    check_control(control, pairs)
    source_input, base_input = (clean, corrupted) if direction == "denoise" else (corrupted, clean)
    every = torch.arange(pairs)
    with quiet(model), torch.no_grad():
        held, output = held_by(model, source_input, from_sites, forward)
        source = read_metric(metric, output, every)
        own, output = held_by(model, base_input, [*still, *to_sites], forward)
        base = read_metric(metric, output, every)
        kept = {site: list(range(n)) if per == "unit" else [None] for site, n in sizes_of(held).items()}
        places = list(each_place(from_sites, positions, lengths_of(held), kept, pairs))
        paths = _Paths(model, base_input, pairs, metric, forward, held, own, still, to_sites, chosen, places)
        donors = [every, every.roll(-1)] if control else [every]
        effects = [paths.sent(donor, rows, progress) for donor in donors]
    return PatchMap(
        tuple(spot for spot, _ in places),
        effects[0] - base,
        source - base,
        base,
        effects[1] - base if len(effects) > 1 else None,
        direction,
        fingerprint(model),
    )


@dataclass(frozen=True)
class _Paths:
    """Runs the cells (place × pair) of a map: what a place sends into the receivers, and what that does."""

    model: nn.Module
    base_input: Any
    pairs: int
    metric: Metric
    forward: Forward | None
    held: dict[Site, dict[int, Tensor]]
    own: dict[Site, dict[int, Tensor]]
    still: Sequence[Site]
    to_sites: Sequence[Site]
    chosen: Mapping[Site, Tensor | None]
    places: Sequence[tuple[Place, Tensor]]

    def sent(self, donor: Tensor, rows: int, progress: bool | None) -> Tensor:
        """The metric where each place sends what it holds in pair `donor[pair]`, `[place, pair]`."""
        cells = torch.arange(len(self.places) * self.pairs)
        effects = torch.empty(len(cells), dtype=torch.float64)
        chunks = list(cells.split(rows))
        for chunk in tracked(chunks, "path patching", len(chunks), progress):
            effects[chunk] = self._cells(chunk // self.pairs, chunk % self.pairs, donor)
        return effects.reshape(len(self.places), self.pairs)

    def _cells(self, place: Tensor, pair: Tensor, donor: Tensor) -> Tensor:
        batch = taken(self.base_input, pair, self.pairs)
        freezers = [Frozen(site, self.own[site], pair) for site in dict.fromkeys([*self.still, *self.to_sites])]
        patches: list[RowPatch] = []
        for site in dict.fromkeys(self.places[i][0].site for i in place.tolist()):
            row = torch.tensor([i for i, p in enumerate(place.tolist()) if self.places[p][0].site == site])
            mine = [(self.places[int(place[i])], int(pair[i])) for i in row.tolist()]
            where = Runner.where(mine, self.held[site], site)
            patches.append(RowPatch(site, self.held[site], Rows(row, donor[pair[row]], where)))
        with attach(self.model, [*freezers, *patches]):
            output = run(self.model, batch, self.forward, None)
        if self.to_sites:
            came = {f.site: f.came for f in freezers if f.site in self.to_sites}
            put = [RowPatch(site, came[site], _into(len(pair), self.chosen[site])) for site in self.to_sites]
            with attach(self.model, put):
                output = run(self.model, batch, self.forward, None)
        return read_metric(self.metric, output, pair)


def _receivers(receivers: Site | Sequence[Site] | Neurons | None) -> tuple[list[Site], dict[Site, Tensor | None]]:
    """The receiving sites, and of each the units that receive (None: all)."""
    if receivers is None:
        return [], {}
    if isinstance(receivers, Neurons):
        found = [site for site, count in receivers.counts.items() if count]
        if not found:
            raise SiteError("there is no receiver in this set", given=repr(receivers).splitlines()[0])
        return found, {site: receivers.mask(site) for site in found}
    listed = site_list(receivers)
    return listed, dict.fromkeys(listed)


def _into(rows: int, units: Tensor | None) -> Rows:
    every = torch.arange(rows)
    where = torch.ones(1, dtype=torch.bool) if units is None else units
    return Rows(every, every, where.expand(rows, 1, len(where)))
