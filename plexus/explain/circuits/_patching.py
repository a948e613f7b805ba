"""Activation patching: values of one run put into another, place by place, many places in one pass.

    denoise   run the corrupted input with one place from the clean run: what suffices to restore the answer
    noise     run the clean input with one place from the corrupted run: what is needed for it
    effect    m(patched) - m(run that was patched)
    share     mean effect / mean (m(run the values came from) - m(run that was patched))

The control of a patch is the patch from the wrong pair: a place that moves the metric whatever is put there does not
carry the answer.

Source: Vig et al. 2020; Meng et al. 2022; Heimersheim & Nanda 2024 (denoising, noising, metrics).
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from plexus.errors import DtypeError, RangeError, ShapeError, UnknownNameError, UnsupportedError
from plexus.explain._prefix import Prefix, taken
from plexus.explain.circuits._places import Metric, PatchMap, Place, Positions, each_place, read_metric, site_list
from plexus.explain.circuits._rows import (
    ALL,
    RowPatch,
    Rows,
    check_control,
    check_pairs,
    held_by,
    lengths_of,
    refuse_cache,
    sizes_of,
    spots,
)
from plexus.probe._batches import Forward, run
from plexus.probe._progress import tracked
from plexus.probe._quiet import quiet
from plexus.units import Neurons, Site, attach, fingerprint

Direction = Literal["denoise", "noise"]
ROWS = 256
"""Rows of one pass, unless said otherwise."""


def logit_difference(right: Tensor, wrong: Tensor, position: int | Tensor = -1) -> Metric:
    """The metric logit(right) - logit(wrong) at one position, with one pair of answers per pair of inputs.

    Args:
        right: token of the answer to the clean input, `[pair]`.
        wrong: token of the answer to the corrupted input, `[pair]`.
        position: column of the logits; -1, the last, is right for left-padded batches. For right-padded ones a column
            for each pair, `[pair]`: `attention_mask.sum(1) - 1`.

    Raises:
        ShapeError: the answers are not one token per pair (several-token answers have no single logit), or the columns
            not one per pair.

    Examples:
        >>> metric = logit_difference(torch.tensor([2]), torch.tensor([0]))
        >>> metric(torch.tensor([[[0.0, 1.0, 5.0]]]), torch.tensor([0]))
        tensor([5.])
    """
    right, wrong = torch.as_tensor(right).cpu(), torch.as_tensor(wrong).cpu()
    if right.dim() != 1 or right.shape != wrong.shape:
        raise ShapeError(
            "answers are one token per pair",
            given=f"{tuple(right.shape)} and {tuple(wrong.shape)}",
            expected="[pair] each",
            mend="choose answers of a single token, or score longer ones with a metric of your own",
        )
    if right.is_floating_point() or wrong.is_floating_point():
        raise DtypeError("answers are token numbers", given=right.dtype)
    columns = torch.as_tensor(position).cpu()
    if columns.dim() and columns.shape != right.shape:
        raise ShapeError("columns are one per pair", given=tuple(columns.shape), expected=tuple(right.shape))
    columns = columns.expand(right.shape)

    def metric(output: Any, pair: Tensor) -> Tensor:
        logits = output if isinstance(output, Tensor) else output.logits
        index = pair.cpu()
        if logits.dim() == 3:
            logits = logits[torch.arange(len(logits), device=logits.device), columns[index].to(logits.device)]
        last = logits.float()
        one, two = (last.gather(1, side[index].to(last.device)[:, None]) for side in (right, wrong))
        return (one - two).squeeze(1)

    return metric


def activation_patching(
    model: nn.Module,
    clean: Any,
    corrupted: Any,
    at: Site | Sequence[Site],
    metric: Metric,
    *,
    direction: Direction = "denoise",
    positions: Positions = "each",
    per: Literal["site", "unit"] = "site",
    units: Neurons | None = None,
    source_model: nn.Module | None = None,
    control: bool = True,
    rows: int = ROWS,
    forward: Forward | None = None,
    progress: bool | None = None,
) -> PatchMap:
    """Patch every place on its own and read the metric, many places in one pass.

    In a transformer whose blocks are one stack, those before a patched place are not run again: they give what they
    gave without the patch.

    Args:
        model: any module; as before when this returns.
        clean, corrupted: one batch each, tensors or mappings of tensors with the samples first; sample i of both is
            pair i, with as many tokens and the same padding.
        at: the sites, for instance `px.sites.residual(model)` or `px.sites.heads(model)`.
        metric: `(output, pair) -> [row]`; `pair` `[row]` says which pair each row belongs to. See `logit_difference`.
        direction: "denoise" or "noise".
        positions: "each" token by itself, "all" at once, some columns (negative ones count from the end), or by name
            columns that differ from pair to pair, `{"subject": [pair]}`.
        per: patch whole "site"s, or every "unit" by itself (heads, neurons).
        units: with `per="unit"`, only these.
        source_model: take the values from this model (its build must be the same); the default is `model` itself.
        control: also patch from the wrong pair (the next one), which needs two pairs.
        rows: rows of one pass; all cells go through in passes of this many.
        forward: how to run the model on a batch, where a plain call is not it.
        progress: show a progress line (`None`: on a terminal, when it takes longer).

    Raises:
        ShapeError: the inputs of a pair differ in length or padding, or the models in width.
        UnknownNameError: a direction or a choice of `per` that does not exist.
        UnsupportedError: the two models are of different builds.

    Examples:
        >>> model = nn.Sequential(nn.Identity(), nn.Linear(3, 1, bias=False))
        >>> _ = nn.init.ones_(model[1].weight)
        >>> clean, corrupted = torch.tensor([[1.0, 5.0, 0.0], [2.0, 1.0, 0.0]]), torch.zeros(2, 3)
        >>> found = activation_patching(model, clean, corrupted, Site("0", "b u"), lambda y, pair: y[:, 0],
        ...                             per="unit", positions="all")
        >>> found.effects[:, 0].tolist()
        [1.0, 5.0, 0.0]
    """
    if direction not in ("denoise", "noise"):
        raise UnknownNameError.among("direction", str(direction), ("denoise", "noise"))
    if per not in ("site", "unit"):
        raise UnknownNameError.among("choice of `per`", str(per), ("site", "unit"))
    sites = site_list(at)
    pairs = check_pairs(clean, corrupted)
    refuse_cache(clean)
    if isinstance(rows, bool) or not isinstance(rows, int) or rows < 1:
        raise RangeError("a pass has at least one row", given=rows)
    check_control(control, pairs)
    other = model if source_model is None else source_model
    _same_build(model, other)
    source_input, base_input = (clean, corrupted) if direction == "denoise" else (corrupted, clean)
    every = torch.arange(pairs)
    with quiet(other), torch.no_grad():
        held, output = held_by(other, source_input, sites, forward)
    with quiet(model), torch.no_grad():
        source = read_metric(metric, output if other is model else run(model, source_input, forward, None), every)
        prefix = Prefix(model, base_input, pairs) if forward is None else None
        plain = run(model, base_input, forward, None) if prefix is None else prefix.run()
        base = read_metric(metric, plain, every)
        if prefix is not None:
            prefix.try_out([prefix.before(site) for site in sites])
        chosen = _units(sites, per, units, sizes_of(held))
        places = list(each_place(sites, positions, lengths_of(held), chosen, pairs))
        donors = [every, every.roll(-1)] if control else [every]
        runner = Runner(model, base_input, pairs, metric, forward, rows, prefix)
        found = [runner.patched(held, places, donor, progress) for donor in donors]
    return PatchMap(
        tuple(place for place, _ in places),
        found[0] - base,
        source - base,
        base,
        found[1] - base if control else None,
        direction,
        fingerprint(model),
    )


class Runner:
    """Runs the cells (place × pair) of a map as rows of few passes."""

    def __init__(
        self,
        model: nn.Module,
        batch: Any,
        pairs: int,
        metric: Metric,
        forward: Forward | None,
        rows: int,
        prefix: Prefix | None,
    ) -> None:
        self.model, self.batch, self.pairs, self.metric = model, batch, pairs, metric
        self.forward, self.rows, self.prefix = forward, rows, prefix

    def patched(
        self,
        held: Mapping[Site, Mapping[int, Tensor]],
        places: Sequence[tuple[Place, Tensor]],
        donor: Tensor,
        progress: bool | None,
    ) -> Tensor:
        """The metric with each place patched from pair `donor[pair]` of the held values, `[place, pair]`."""
        out = torch.empty(len(places) * self.pairs, dtype=torch.float64)
        passes = self._passes([place.site for place, _ in places])
        for chunk, blocks in tracked(passes, "patching", len(passes), progress):
            place, pair = chunk // self.pairs, chunk % self.pairs
            patches = []
            for site in dict.fromkeys(places[i][0].site for i in place.tolist()):
                row = torch.tensor([i for i, p in enumerate(place.tolist()) if places[p][0].site == site])
                mine = [(places[int(place[i])], int(pair[i])) for i in row.tolist()]
                where = self.where(mine, held[site], site)
                patches.append(RowPatch(site, held[site], Rows(row, donor[pair[row]], where)))
            spared = contextlib.nullcontext() if self.prefix is None else self.prefix.skipping(blocks, pair)
            with spared, attach(self.model, patches):
                output = run(self.model, taken(self.batch, pair, self.pairs), self.forward, None)
            out[chunk] = read_metric(self.metric, output, pair)
        return out.reshape(len(places), self.pairs)

    def _passes(self, sites: Sequence[Site]) -> list[tuple[Tensor, int]]:
        """The cells of each pass, and how many blocks lie before all of them."""
        known = {site: 0 if self.prefix is None else self.prefix.before(site) for site in dict.fromkeys(sites)}
        before = torch.tensor([known[site] for site in sites]).repeat_interleave(self.pairs)
        order = before.argsort(stable=True)
        passes: list[tuple[Tensor, int]] = []
        waiting: list[Tensor] = []
        for count in before.unique().tolist():  # a pass begins with a block, unless it would hold few rows
            waiting.append(order[before[order] == count])
            cells = torch.cat(waiting)
            if 2 * len(cells) >= self.rows:
                passes += self._split(cells, before)
                waiting = []
        return passes + self._split(torch.cat(waiting), before) if waiting else passes

    def _split(self, cells: Tensor, before: Tensor) -> list[tuple[Tensor, int]]:
        return [(chunk, int(before[chunk].min())) for chunk in cells.split(self.rows)]

    @staticmethod
    def where(mine: Sequence[tuple[tuple[Place, Tensor], int]], held: Mapping[int, Tensor], site: Site) -> Tensor:
        """At which positions and units of a site each of these (place, pair) puts its values, `[n, position, unit]`."""
        position = torch.stack([column[pair] for (_, column), pair in mine])
        unit = torch.tensor([ALL if place.unit is None else place.unit for (place, _), _ in mine])
        return spots(position, unit, lengths_of({site: held})[site], sizes_of({site: held})[site])


def _units(
    sites: Sequence[Site], per: str, units: Neurons | None, sizes: Mapping[Site, int]
) -> dict[Site, Sequence[int | None]]:
    if per == "site":
        if units is not None:
            raise UnsupportedError("single units are chosen for a map over units", mend="pass per='unit'")
        return {site: [None] for site in sites}
    if units is None:
        return {site: range(sizes[site]) for site in sites}
    return {site: units.indices(site).tolist() for site in sites}


def _same_build(model: nn.Module, other: nn.Module) -> None:
    if other is model:
        return
    if fingerprint(model) != fingerprint(other):
        raise UnsupportedError(
            "values move only between two models of one build",
            given=f"{fingerprint(other)} into {fingerprint(model)}",
            expected="the same layers, widths and depths",
        )
