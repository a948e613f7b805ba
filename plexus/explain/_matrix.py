"""Which concepts lose what when the units of one concept are edited.

    D_ij  = mean over the items of group j of  (measure under edit i - measure before)      effects
    own   = mean_i D_ii        other = mean_{i≠j} D_ij

Every row stands beside the same row under matched random units: as many at each site, with the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from plexus.edit import Edit
from plexus.errors import DtypeError, RangeError, ShapeError, UnknownNameError, require
from plexus.explain._measure import (
    RandomState,
    check_draws,
    check_edit,
    check_model,
    items_of,
    random_state,
    run_measure,
)
from plexus.explain.controls._matched import AMONG, matched_random
from plexus.explain.controls._null import Null, null
from plexus.probe._progress import tracked
from plexus.probe._quiet import random_state_kept
from plexus.units import Scores
from plexus.units._memory import to_memory

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

Items = Callable[[nn.Module], Mapping[str, Tensor]]


@dataclass(frozen=True)
class EffectMatrix:
    """What each edit does to each group of items, in one measure; made by `effect_matrix`.

    Attributes:
        name: of the measure.
        edits: names of the rows.
        groups: names of the columns.
        items: measure under the edit minus before, float64 `[edit, item]`.
        members: group of each item, `[item]`; -1 for items that take no part.
        controls: mean change of each group under the same edit on random units, `[edit, control, group]`.

    Examples:
        >>> found = EffectMatrix("hits", ("a", "b"), ("a", "b"), torch.tensor([[-1.0, -0.5, 0.0], [0.0, 0.0, -1.0]]),
        ...                      torch.tensor([0, 0, 1]), torch.zeros(2, 3, 2))
        >>> found.change.tolist(), found.own, found.other
        ([[-0.75, 0.0], [0.0, -1.0]], -0.875, 0.0)
    """

    name: str
    edits: tuple[str, ...]
    groups: tuple[str, ...]
    items: Tensor
    members: Tensor
    controls: Tensor

    def __post_init__(self) -> None:
        to_memory(self, "items", "members", "controls")

    @property
    def change(self) -> Tensor:
        """Mean change of each group under each edit, `[edit, group]`."""
        return _by_group(self.items, self.members, len(self.groups))

    @property
    def random(self) -> Tensor:
        """Mean change of each group over the matched random sets of each edit, `[edit, group]`."""
        return self.controls.mean(1)

    @property
    def own(self) -> float:
        """Mean change of the groups under the edit of their own name."""
        return float(self.change[self._own].mean())

    @property
    def other(self) -> float:
        """Mean change of the groups under the edits of other names."""
        return float(self.change[~self._own].mean())

    @property
    def random_own(self) -> float:
        """Mean change of the groups under the controls of the edit of their own name."""
        return float(self.random[self._own].mean())

    def null(self, edit: str, group: str) -> Null:
        """Where one change stands among those of its controls.

        Raises:
            UnknownNameError: no such edit or group.
        """
        row, column = _place("edit", edit, self.edits), _place("group", group, self.groups)
        return null(float(self.change[row, column]), self.controls[row, :, column])

    def interval(
        self, *, level: float = 0.95, resamples: int = 1000, seed: int = 0, clusters: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Percentile bootstrap interval of each change over the items of its group: low and high, `[edit, group]` each.

        Args:
            level: coverage.
            resamples: number of draws.
            seed: of the draws.
            clusters: whole numbers `[item]`; items of one cluster (a subject asked in several ways) are drawn together.

        Raises:
            RangeError: a level outside (0, 1), fewer than one draw.
            ShapeError: clusters that are not one per item.
        """
        if not 0 < level < 1 or resamples < 1:
            raise RangeError("an interval has a level in (0, 1) and draws", given=f"{level}, {resamples} draws")
        number = (
            torch.arange(len(self.members))
            if clusters is None
            else torch.as_tensor(clusters).cpu().unique(return_inverse=True)[1]
        )
        if number.shape != self.members.shape:
            raise ShapeError("clusters are one per item", given=tuple(number.shape), expected=tuple(self.members.shape))
        generator = torch.Generator().manual_seed(seed)
        ends = []
        for group in range(len(self.groups)):
            inside = self.members == group
            kinds, place = number[inside].unique(return_inverse=True)
            sums = torch.zeros(len(self.edits), len(kinds), dtype=torch.float64).index_add_(
                1, place, self.items[:, inside]
            )
            sizes = torch.bincount(place, minlength=len(kinds)).double()
            draws = torch.randint(len(kinds), (resamples, len(kinds)), generator=generator)
            means = sums[:, draws].sum(2) / sizes[draws].sum(1)
            ends.append(means.quantile(torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64), dim=1))
        low, high = torch.stack(ends, 2)
        return low, high

    def figure(self) -> Figure:
        """The matrix as a plotly heat map.

        Raises:
            MissingExtraError: if plotly is not installed.
        """
        graph = require("plotly.graph_objects", "lab", purpose="figures")
        figure = graph.Figure(
            graph.Heatmap(
                z=self.change.tolist(), x=list(self.groups), y=list(self.edits), colorscale="RdBu", zmid=0,
                texttemplate="%{z:.2f}", colorbar={"title": self.name},
            )
        )  # fmt: skip
        figure.update_layout(xaxis_title="what changes", yaxis_title="edited units of", yaxis_autorange="reversed")
        return figure

    def to_json(self) -> dict[str, Any]:
        """Plain numbers, for a file or a report."""
        low, high = self.interval()
        return {
            "name": self.name,
            "edits": list(self.edits),
            "groups": list(self.groups),
            "change": self.change.tolist(),
            "low": low.tolist(),
            "high": high.tolist(),
            "controls": self.controls.tolist(),
        }

    def __str__(self) -> str:
        wide = max(8, *map(len, self.edits))
        cell = [max(8, len(group)) for group in self.groups]
        lines = [
            f"{self.name}: change under the edit of the row, and below it over {self.controls.shape[1]} random sets"
        ]
        lines.append(" " * wide + "".join(f"  {g:>{w}}" for g, w in zip(self.groups, cell, strict=True)))
        for number, edit in enumerate(self.edits):
            for name, row in ((edit, self.change[number]), ("", self.random[number])):
                lines.append(
                    f"{name:<{wide}}" + "".join(f"  {v:>+{w}.3f}" for v, w in zip(row.tolist(), cell, strict=True))
                )
        return "\n".join(lines)

    @property
    def _own(self) -> Tensor:
        own = torch.tensor([[edit == group for group in self.groups] for edit in self.edits])
        if not bool(own.any()) or bool(own.all()):
            raise ShapeError(
                "own and other changes need edits and groups of common names",
                given=f"edits {', '.join(self.edits)}; groups {', '.join(self.groups)}",
            )
        return own


def effect_matrix(
    model: nn.Module,
    edits: Mapping[str, Edit],
    measure: Items,
    groups: Tensor,
    names: Sequence[str] | None = None,
    *,
    keep: Tensor | None = None,
    n_random: int = 5,
    seed: int = 0,
    exclude: bool = True,
    match: Scores | None = None,
    among: int = AMONG,
    tolerance: float | None = None,
    progress: bool | None = None,
) -> dict[str, EffectMatrix]:
    """Measure every group of items under every edit, and under the same edits on matched random units.

    Args:
        model: any module; it is as before when this returns.
        edits: values by name, e.g. `{"capital": edit.scale(scores["capital"].top(0.1), 0.0)}`.
        measure: `measure(model) -> {name: [item]}`, numbers of all items, several measures from one run.
        groups: class of each item, `[item]`, whole numbers.
        names: of the classes; where they are those of edits, the matrix knows own from other changes.
        keep: items that take part, bool `[item]`, e.g. those that the model knows before any edit.
        n_random: random sets for each edit.
        seed: of their draw.
        exclude: draw them among the units that the edit does not touch.
        match: a score in which they are to be like their units; among, tolerance: see `controls.matched_random`.
        progress: show a progress line (`None`: on a terminal, when it takes longer).

    Returns:
        A matrix for each measure.

    Raises:
        ShapeError: no edits, groups that do not match the items, a group of which no item is kept.
        RangeError: no control, a measure that is not finite.
        DtypeError: what is no edit, or a measure that gives no mapping.

    Examples:
        >>> from plexus import edit
        >>> from plexus.units import Neurons, Site
        >>> model, site = nn.Sequential(nn.Identity()), Site("0", "b u")
        >>> cut = {n: edit.scale(Neurons.of({site: 4}, {site: [k]}), 0.0) for k, n in enumerate("ab")}
        >>> found = effect_matrix(model, cut, lambda m: {"y": m(torch.ones(1, 4))[0, :2]}, torch.tensor([0, 1]), "ab")
        >>> found["y"].change.tolist(), found["y"].own, found["y"].other
        ([[-1.0, 0.0], [0.0, -1.0]], -1.0, 0.0)
    """
    check_model(model)
    check_draws(n_random, seed)
    if not isinstance(edits, Mapping) or not edits:
        raise ShapeError("there are no edits", expected="a mapping of names to edits")
    for made in edits.values():
        check_edit(made, "effect_matrix(model, {name: edit.scale(chosen, 0.0)}, measure, groups)")
    members, titles = _grouped(groups, names, keep)
    generator = torch.Generator().manual_seed(int(seed))
    moved = {
        name: [
            matched_random(made, generator, exclude=exclude, match=match, among=among, tolerance=tolerance)
            for _ in range(n_random)
        ]
        for name, made in edits.items()
    }
    with random_state_kept():
        start = random_state()
        before = _items(model, measure, start, len(members))

        def under(made: Edit) -> dict[str, Tensor]:
            with made.on(model):
                after = _items(model, measure, start, len(members))
            return {name: after[name] - values for name, values in before.items()}

        own = {name: under(made) for name, made in edits.items()}
        total = n_random * len(edits)
        controls: dict[str, list[dict[str, Tensor]]] = {name: [] for name in edits}
        for name, made in tracked(((n, m) for n, row in moved.items() for m in row), "random units", total, progress):
            found = under(made)
            controls[name].append({m: _by_group(v[None], members, len(titles))[0] for m, v in found.items()})
    return {
        measured: EffectMatrix(
            measured,
            tuple(edits),
            titles,
            torch.stack([own[name][measured] for name in edits]),
            members,
            torch.stack([torch.stack([one[measured] for one in controls[name]]) for name in edits]),
        )
        for measured in before
    }


def _items(model: nn.Module, measure: Items, start: RandomState, count: int) -> dict[str, Tensor]:
    found = run_measure(model, measure, start)
    if not isinstance(found, Mapping) or not found:
        raise DtypeError("the measure gives numbers by name", given=type(found).__name__, expected="{name: [item]}")
    values = {str(name): items_of(str(name), value) for name, value in found.items()}
    for name, value in values.items():
        if len(value) != count:
            raise ShapeError(f"the measure {name!r} and the groups differ in items", given=len(value), expected=count)
    return values


def _grouped(groups: Tensor, names: Sequence[str] | None, keep: Tensor | None) -> tuple[Tensor, tuple[str, ...]]:
    members = torch.as_tensor(groups).cpu()
    if members.dim() != 1 or members.is_floating_point() or not len(members) or int(members.min()) < 0:
        raise ShapeError("groups are whole numbers, one per item", given=f"{tuple(members.shape)} {members.dtype}")
    count = int(members.max()) + 1
    titles = tuple(map(str, range(count))) if names is None else tuple(names)
    if len(titles) < count:
        raise ShapeError("each group has a name", given=f"{len(titles)} names", expected=count)
    if keep is not None:
        kept = torch.as_tensor(keep).cpu()
        if kept.shape != members.shape or kept.dtype != torch.bool:
            raise ShapeError("items are kept by one bool each", given=f"{tuple(kept.shape)} {kept.dtype}")
        members = torch.where(kept, members, -1)
    empty = [title for number, title in enumerate(titles) if not bool((members == number).any())]
    if empty:
        raise ShapeError("a group has no item", given=", ".join(empty), mend="leave the group out, or keep more items")
    return members, titles


def _by_group(items: Tensor, members: Tensor, count: int) -> Tensor:
    """Mean over the items of each group, `[row, group]`."""
    return torch.stack([items[:, members == group].mean(1) for group in range(count)], 1)


def _place(kind: str, name: str, known: Sequence[str]) -> int:
    if name not in known:
        raise UnknownNameError.among(kind, str(name), known)
    return list(known).index(name)
