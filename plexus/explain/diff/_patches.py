"""Where knowledge sits, before and after: patch maps of two checkpoints, and across them.

    base, tuned   each model patched with its own values
    forward       the tuned model patched with values of the base
    backward      the base patched with values of the tuned
    r             Pearson's correlation of two maps, over their cells
    largest       the largest absolute difference of two maps

The maps are shares of each model's own difference between clean and corrupted, so they have one scale. A map made with
values of the same prompt is the noise floor.

Source: Meng et al. 2022 (maps); Du et al. 2025 (across models).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from plexus.errors import ShapeError, require
from plexus.explain.circuits._patching import ROWS, Direction, activation_patching
from plexus.explain.circuits._places import Metric, PatchMap, Positions
from plexus.explain.diff._related import check_build
from plexus.probe._batches import Forward
from plexus.units import Site

if TYPE_CHECKING:
    from plotly.graph_objects import Figure


@dataclass(frozen=True)
class PatchDiff:
    """Patch maps of two checkpoints, and across them.

    Attributes:
        base, tuned: each with its own values.
        forward: values of the base in the tuned model.
        backward: values of the tuned in the base model.
        noise: the base patched with its own values of the same run; nothing should happen.
    """

    base: PatchMap
    tuned: PatchMap
    forward: PatchMap
    backward: PatchMap
    noise: float

    @property
    def correlation(self) -> float:
        """Of the two models' own maps."""
        return map_correlation(self.base, self.tuned)

    @property
    def forward_correlation(self) -> float:
        """Of the tuned model's own map and the one with values of the base."""
        return map_correlation(self.tuned, self.forward)

    @property
    def backward_correlation(self) -> float:
        """Of the base's own map and the one with values of the tuned."""
        return map_correlation(self.base, self.backward)

    def largest(self, positions: Sequence[int | str | None] | None = None) -> float:
        """The largest absolute difference of the two models' own maps, over some positions or all."""
        keep = [i for i, place in enumerate(self.base.places) if positions is None or place.position in positions]
        if not keep:
            raise ShapeError("the maps have none of these positions", given=positions, expected=self.base.positions)
        return float((self.base.normalised - self.tuned.normalised)[keep].abs().max())

    def figure(self) -> Figure:
        """Four heat maps, as a plotly figure.

        Raises:
            MissingExtraError: if plotly is not installed.
        """
        go: Any = require("plotly.graph_objects", "lab", purpose="figures")
        subplots: Any = require("plotly.subplots", "lab", purpose="figures")
        titles = ("base", "tuned", "base values in the tuned", "tuned values in the base")
        figure = subplots.make_subplots(rows=1, cols=4, subplot_titles=titles, shared_yaxes=True)
        for column, found in enumerate((self.base, self.tuned, self.forward, self.backward), 1):
            heat = found.figure().data[0]
            figure.add_trace(
                go.Heatmap(z=heat.z, x=heat.x, y=heat.y, zmin=-1, zmax=1, colorscale="RdBu", showscale=column == 4),
                row=1,
                col=column,
            )
        return figure

    def to_json(self) -> dict[str, Any]:
        """Plain numbers, for a file or a report."""
        return {
            "correlation": self.correlation,
            "forward_correlation": self.forward_correlation,
            "backward_correlation": self.backward_correlation,
            "largest": self.largest(),
            "noise": self.noise,
            **{name: getattr(self, name).to_json() for name in ("base", "tuned", "forward", "backward")},
        }

    def __str__(self) -> str:
        return (
            f"patch maps over {len(self.base.places)} places: base and tuned r {self.correlation:.3f}, "
            f"largest difference {self.largest():.3f}; base values in the tuned r {self.forward_correlation:.3f}, "
            f"tuned values in the base r {self.backward_correlation:.3f}; noise {self.noise:.1e}"
        )


def patch_maps(
    base: nn.Module,
    tuned: nn.Module,
    clean: Any,
    corrupted: Any,
    at: Site | Sequence[Site],
    metric: Metric,
    *,
    direction: Direction = "denoise",
    positions: Positions = "each",
    rows: int = ROWS,
    forward: Forward | None = None,
) -> PatchDiff:
    """Make the patch maps of two checkpoints and across them.

    Args:
        base, tuned: two models of one build.
        clean, corrupted, at, metric, direction, positions, rows, forward: as in `circuits.activation_patching`.

    Raises:
        UnsupportedError: the models differ in layers or shapes.
        RangeError: a model in which clean and corrupted inputs do not differ in the metric.

    Examples:
        >>> model = nn.Sequential(nn.Identity(), nn.Linear(3, 1, bias=False))
        >>> pair = torch.rand(4, 3), torch.zeros(4, 3)
        >>> places = {"at": Site("0", "b u"), "metric": lambda y, pair: y[:, 0], "positions": "all"}
        >>> found = patch_maps(model, model, *pair, **places)
        >>> found.largest(), found.noise
        (0.0, 0.0)
    """
    check_build(base, tuned)
    options: dict[str, Any] = {"direction": direction, "positions": positions, "rows": rows, "forward": forward}
    options["control"] = False
    own = [activation_patching(model, clean, corrupted, at, metric, **options) for model in (base, tuned)]
    across = [
        activation_patching(into, clean, corrupted, at, metric, source_model=source, **options)
        for into, source in ((tuned, base), (base, tuned))
    ]
    still = activation_patching(base, corrupted, corrupted, at, metric, **options)
    span = max(float(own[0].total.mean().abs()), 1e-12)
    return PatchDiff(own[0], own[1], across[0], across[1], float(still.effects.abs().max()) / span)


def map_correlation(first: PatchMap, second: PatchMap) -> float:
    """Pearson's correlation of two maps over their places; 0 where one of them is flat.

    Raises:
        ShapeError: the maps cover different places.

    Examples:
        >>> from plexus.explain.circuits import Place
        >>> places = tuple(Place(Site("0"), i) for i in range(3))
        >>> one = PatchMap(places, torch.tensor([[1.0], [2.0], [4.0]]), torch.ones(1), torch.zeros(1), None, "noise")
        >>> round(map_correlation(one, one), 6)
        1.0
    """
    if first.places != second.places:
        raise ShapeError(
            "maps are compared place by place", given=f"{len(first.places)} and {len(second.places)} places"
        )
    both = torch.stack([first.normalised, second.normalised])
    if not bool((both.std(1) > 0).all()):
        return 0.0
    out: Tensor = torch.corrcoef(both)[0, 1]
    return float(out)
