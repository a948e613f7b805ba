"""Places, and what patching each of them does."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from torch import Tensor

from plexus.errors import DtypeError, RangeError, ShapeError, SiteError, UnknownNameError, require
from plexus.explain.circuits._rows import ALL
from plexus.explain.controls._multiple import sign_flip
from plexus.units import Scores, Site
from plexus.units._memory import to_memory

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

Metric = Callable[[Any, Tensor], Tensor]
Positions = Literal["each", "all"] | int | Sequence[int] | Mapping[str, int | Tensor]


class Place(NamedTuple):
    """Where one patch goes.

    Attributes:
        site: the site.
        position: a column of the input, counted from the end if negative; the name of positions that differ from pair
            to pair; None for all at once.
        unit: one unit of the site (a head, a neuron); None for all at once.

    Examples:
        >>> print(Place(Site("h.0", "b t u"), -1, None))
        h.0 @ -1
    """

    site: Site
    position: int | str | None = None
    unit: int | None = None

    def __str__(self) -> str:
        at = "" if self.position is None else f" @ {self.position}"
        return f"{self.site.path}{'' if self.unit is None else f' #{self.unit}'}{at}"

    def to_json(self) -> dict[str, Any]:
        """Plain values that `from_json` reads back."""
        return {"site": self.site.to_json(), "position": self.position, "unit": self.unit}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Place:
        """The place that `to_json` wrote."""
        return cls(Site.from_json(data["site"]), data["position"], data["unit"])


@dataclass(frozen=True)
class PatchMap:
    """What putting values of one run into another does to a metric, place by place.

    Attributes:
        places: where.
        effects: the metric with the patch minus without, `[place, pair]`.
        total: the metric of the run that the values came from minus that of the run they went to, `[pair]`.
        base: the metric of the run that was patched, `[pair]`.
        controls: the effects when every pair gets the values of another pair, `[place, pair]`; None for approximations.
        direction: "denoise" (values of the clean run go into the corrupted one) or "noise" (the other way round).
        model: fingerprint of the model that was patched, if known.

    Examples:
        >>> place = Place(Site("h.0", "b t u"), -1)
        >>> effects, total = torch.tensor([[1.0, 2.0]]), torch.tensor([2.0, 4.0])
        >>> found = PatchMap((place,), effects, total, torch.zeros(2), None, "noise")
        >>> found.normalised.tolist(), found[place]
        ([0.5], 0.5)
    """

    places: tuple[Place, ...]
    effects: Tensor
    total: Tensor
    base: Tensor
    controls: Tensor | None
    direction: str
    model: str | None = None

    def __post_init__(self) -> None:
        to_memory(self, "effects", "total", "base", "controls")

    @property
    def normalised(self) -> Tensor:
        """Mean effect as a share of the mean difference between the two runs, `[place]`: 1 restores (or breaks) all.

        Raises:
            RangeError: if the two runs do not differ in the metric.
        """
        return self.effects.mean(1) / self._span()

    @property
    def normalised_controls(self) -> Tensor | None:
        """The same of the controls."""
        return None if self.controls is None else self.controls.mean(1) / self._span()

    @property
    def p(self) -> Tensor:
        """Two-sided p of each place's effect against its control (or against none, of an approximation), over pairs.

        By sign flips; correct them for the number of places (`controls.holm`).
        """
        against = self.effects if self.controls is None else self.effects - self.controls
        flat = [1.0 if not bool(row.any()) else sign_flip(row.tolist()) for row in against]
        return torch.tensor(flat, dtype=torch.float64)

    def __getitem__(self, place: Place) -> float:
        if place not in self.places:
            raise UnknownNameError.among("place", str(place), map(str, self.places))
        return float(self.normalised[self.places.index(place)])

    def top(self, k: int = 10) -> list[tuple[Place, float]]:
        """The `k` places with the largest absolute effect, normalised, best first."""
        order = self.normalised.abs().argsort(descending=True, stable=True)[:k]
        return [(self.places[i], float(self.normalised[i])) for i in order.tolist()]

    def grid(self) -> Tensor:
        """The normalised effects of whole sites, `[site, position]`; NaN where a site has no such position.

        Raises:
            ShapeError: if the map is one over units.
        """
        return self._grid(self.normalised)

    @property
    def sites(self) -> tuple[Site, ...]:
        """The sites, in order."""
        return tuple(dict.fromkeys(place.site for place in self.places))

    @property
    def positions(self) -> tuple[int | str | None, ...]:
        """The positions, in order."""
        return tuple(dict.fromkeys(place.position for place in self.places))

    def scores(self, position: int | str | None = None) -> Scores:
        """The normalised effects of single units at one position as scores.

        Raises:
            ShapeError: if the map is not one over units at that position.
        """
        values: dict[Site, dict[int, float]] = {}
        for place, effect in zip(self.places, self.normalised.tolist(), strict=True):
            if place.unit is not None and place.position == position:
                values.setdefault(place.site, {})[place.unit] = effect
        if not values:
            raise ShapeError("this map holds no single units there", given=position, mend="patch with per='unit'")
        out = {}
        for site, units in values.items():
            if sorted(units) != list(range(len(units))):
                raise ShapeError(f"this map holds only some of the units of {site}", given=sorted(units)[:8])
            out[site] = torch.tensor([units[i] for i in range(len(units))], dtype=torch.float64)
        return Scores(out, None, f"effect of patching ({self.direction})")

    def figure(self, labels: Sequence[str] | None = None) -> Figure:
        """A heat map, sites (or units) against positions, as a plotly figure.

        Args:
            labels: names of the positions, for instance the tokens.

        Raises:
            MissingExtraError: if plotly is not installed.
        """
        go: Any = require("plotly.graph_objects", "lab", purpose="figures")
        columns = list(self.positions)
        rows = list(dict.fromkeys(str(place._replace(position=None)) for place in self.places))
        z = torch.full((len(rows), len(columns)), float("nan"), dtype=torch.float64)
        for place, effect in zip(self.places, self.normalised.tolist(), strict=True):
            z[rows.index(str(place._replace(position=None))), columns.index(place.position)] = effect
        names = list(labels) if labels is not None else ["all" if c is None else str(c) for c in columns]
        figure = go.Figure(go.Heatmap(z=z.tolist(), x=names, y=rows, colorscale="RdBu", zmid=0))
        figure.update_layout(xaxis_title="position", title=f"share of the metric that a patch moves ({self.direction})")
        return figure

    def to_json(self) -> dict[str, Any]:
        """Plain numbers, for a file or a report."""
        return {
            "places": [place.to_json() for place in self.places],
            "effects": self.effects.tolist(),
            "total": self.total.tolist(),
            "base": self.base.tolist(),
            "controls": None if self.controls is None else self.controls.tolist(),
            "direction": self.direction,
        }

    def __str__(self) -> str:
        beside = self.normalised_controls
        lines = [f"{len(self.places)} places patched ({self.direction}) on {len(self.total)} pairs; largest effects:"]
        for place, effect in self.top(8):
            control = (
                "" if beside is None else f"   values of another pair {float(beside[self.places.index(place)]):+.3f}"
            )
            lines.append(f"  {place!s:<40} {effect:+.3f}{control}")
        return "\n".join(lines)

    def _grid(self, values: Tensor) -> Tensor:
        if any(place.unit is not None for place in self.places):
            raise ShapeError("a grid is over whole sites, and this map is over units", mend="use scores(position)")
        sites, positions = list(self.sites), list(self.positions)
        out = torch.full((len(sites), len(positions)), float("nan"), dtype=torch.float64)
        for place, value in zip(self.places, values.tolist(), strict=True):
            out[sites.index(place.site), positions.index(place.position)] = value
        return out

    def _span(self) -> float:
        span = float(self.total.mean())
        if abs(span) < 1e-12:
            raise RangeError(
                "the two runs do not differ in the metric, so nothing can be a share of their difference",
                given=span,
                mend="look at the pairs and the metric, or use the raw effects",
            )
        return span


def columns_of(positions: Positions, length: int, pairs: int) -> dict[int | str | None, Tensor]:
    """For each position asked for, its column in every pair, `[pair]`; `ALL` for every column.

    Raises:
        RangeError: a position lies outside the input.
        ShapeError: positions by name are not one per pair.
    """
    if positions == "all":
        return {None: torch.full((pairs,), ALL)}
    if positions == "each":
        return {column: torch.full((pairs,), column) for column in range(length)}
    if isinstance(positions, str):
        raise UnknownNameError.among("choice of positions", positions, ("each", "all"))
    if isinstance(positions, Mapping):
        return {str(name): _column(given, length, pairs) for name, given in positions.items()}
    listed = [positions] if isinstance(positions, int) else list(positions)
    return {int(column): _column(column, length, pairs) for column in listed}


def _column(given: int | Tensor, length: int, pairs: int) -> Tensor:
    column = torch.as_tensor(given).cpu()
    if column.is_floating_point() or column.dtype == torch.bool:
        raise DtypeError("a position is a whole number", given=column.dtype)
    column = column.expand(pairs) if column.dim() == 0 else column
    if column.shape != (pairs,):
        raise ShapeError("positions by name are one per pair", given=tuple(column.shape), expected=f"[{pairs}]")
    column = torch.where(column < 0, column + length, column)
    if bool(((column < 0) | (column >= length)).any()):
        raise RangeError("a position lies outside the input", given=torch.as_tensor(given).tolist(), expected=length)
    return column.to(torch.int64)


def each_place(
    sites: Sequence[Site],
    positions: Positions,
    lengths: Mapping[Site, int],
    units: Mapping[Site, Sequence[int | None]],
    pairs: int,
) -> Iterator[tuple[Place, Tensor]]:
    """Every place with its column in each pair, `[pair]`."""
    for site in sites:
        for position, column in columns_of(positions, lengths[site], pairs).items():
            for unit in units[site]:
                yield Place(site, position, unit), column


def site_list(at: Site | Sequence[Site]) -> list[Site]:
    """The sites, each once.

    Raises:
        SiteError: there is none.
    """
    sites = [at] if isinstance(at, Site) else list(dict.fromkeys(at))
    if not sites or not all(isinstance(site, Site) for site in sites):
        raise SiteError(
            "a patch goes to a site", given=repr(at)[:80], mend="px.sites.residual(model) and others find sites"
        )

    return sites


def read_metric(metric: Metric, output: Any, pair: Tensor) -> Tensor:
    """The metric of every row, float64 `[row]`.

    Raises:
        ShapeError: it does not give one number per row.
        RangeError: a number is NaN or infinite.
    """
    found = metric(output, pair)
    if not isinstance(found, Tensor) or found.shape != pair.shape:
        given = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise ShapeError("a metric gives one number per row", given=given, expected=f"[{len(pair)}]")
    if not bool(found.isfinite().all()):
        raise RangeError("the metric is not finite", given=f"{int((~found.isfinite()).sum())} of {len(found)} rows")
    return found.double().cpu()
