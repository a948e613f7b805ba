"""How an effect grows with its dose, beside the same doses on matched random units or along random directions.

    T_i = max_d |e_i(d) - m(d)| / s(d)          largest departure of curve i; m, s over all curves, the tested one too
    p   = (1 + #{i : T_i >= T}) / (1 + n)       one p-value for the whole curve

The stand-ins are drawn once per control and serve at every dose, so that each control is a curve of its own: sets that
grow with the dose keep growing. Monotonicity is Kendall's τ_b between dose and change.

Source: Myllymäki et al. 2017 (global envelope test, studentised maximum).
"""

from __future__ import annotations

import numbers
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from plexus.edit import Edit
from plexus.errors import DtypeError, RangeError, ShapeError
from plexus.explain._measure import (
    Measure,
    check_draws,
    check_edit,
    check_model,
    check_suite,
    measured,
    random_state,
)
from plexus.explain.controls._matched import AMONG, is_along, stand_in_map
from plexus.explain.controls._null import Null, null
from plexus.probe._progress import tracked
from plexus.probe._quiet import random_state_kept
from plexus.units import Scores

if TYPE_CHECKING:
    from plotly.graph_objects import Figure


@dataclass(frozen=True)
class DoseCurve:
    """A measure's change over the dose of an edit, with the band of its controls.

    Attributes:
        name: of the measure.
        before: the measure on the model as it is.
        doses: `[dose]`, ascending.
        change: measure under the edit minus before, `[dose]`.
        controls: the same on matched random units or along random directions, `[control, dose]`.
        beside: what the controls are, in words.

    Raises:
        ShapeError: without controls; a curve is not reported without them.

    Examples:
        >>> curve = DoseCurve("loss", 1.0, torch.tensor([0.0, 1.0, 2.0]), torch.tensor([0.0, 1.0, 2.0]),
        ...                   torch.tensor([[0.0, 0.1, 0.1], [0.0, -0.1, 0.0], [0.0, 0.0, 0.1]]))
        >>> curve.monotonicity, curve.p, curve.leaves_band
        (1.0, 0.25, 1.0)
    """

    name: str
    before: float
    doses: Tensor
    change: Tensor
    controls: Tensor
    beside: str = "matched random sets"

    def __post_init__(self) -> None:
        for field in ("doses", "change", "controls"):
            object.__setattr__(self, field, torch.as_tensor(getattr(self, field)).cpu().double())
        if self.controls.dim() != 2 or len(self.controls) == 0 or self.controls.shape[1] != len(self.doses):
            raise ShapeError(
                "a dose curve is reported beside those of its controls",
                given=tuple(self.controls.shape),
                expected=f"[control, {len(self.doses)} doses]",
            )

    @property
    def band(self) -> tuple[Tensor, Tensor]:
        """2.5th and 97.5th percentile of the controls at each dose, `[dose]` each."""
        low, high = torch.quantile(self.controls, torch.tensor([0.025, 0.975], dtype=torch.float64), dim=0)
        return low, high

    @property
    def monotonicity(self) -> float:
        """Kendall's τ_b between dose and change, 1 where the change only grows; 0 where it never changes."""
        return _kendall(self.doses, self.change)[0]

    @property
    def monotonicity_p(self) -> float:
        """Two-sided p of the monotonicity: how often unordered doses would look as ordered."""
        return _kendall(self.doses, self.change)[1]

    @property
    def at_largest(self) -> Null:
        """Where the change at the largest dose stands among those of the controls."""
        return null(float(self.change[-1]), self.controls[:, -1])

    @property
    def p(self) -> float:
        """Whether the curve as a whole differs from those of its controls (studentised maximum)."""
        curves = torch.cat([self.change[None], self.controls])
        spread = curves.std(0, correction=0)
        apart = (curves - curves.mean(0)).abs() / torch.where(spread > 0, spread, torch.ones_like(spread))
        largest = apart.amax(1)
        return (1 + int((largest[1:] >= largest[0] - 1e-12).sum())) / len(curves)

    @property
    def outside(self) -> tuple[float, ...]:
        """The doses at which the change lies outside the band of the controls."""
        low, high = self.band
        return tuple(self.doses[(self.change < low) | (self.change > high)].tolist())

    @property
    def leaves_band(self) -> float | None:
        """The smallest dose from which on the change stays outside the band of the controls; None if there is none.

        For doses that begin where nothing is changed. A factor changes nothing at 1: there see `outside`.
        """
        inside = torch.tensor([dose not in self.outside for dose in self.doses.tolist()]).nonzero().squeeze(1)
        first = 0 if not len(inside) else int(inside[-1]) + 1
        return None if first == len(self.doses) else float(self.doses[first])

    def figure(self) -> Figure:
        """The curve over the band of its controls, as a plotly figure.

        Raises:
            MissingExtraError: if plotly is not installed.
        """
        from plexus.errors import require

        go = require("plotly.graph_objects", "lab", purpose="figures")
        low, high = (self.before + end for end in self.band)
        x = self.doses.tolist()
        figure = go.Figure()
        figure.add_scatter(x=x, y=high.tolist(), mode="lines", line={"width": 0}, showlegend=False, hoverinfo="skip")
        figure.add_scatter(
            x=x, y=low.tolist(), mode="lines", line={"width": 0}, fill="tonexty", fillcolor="rgba(128,128,128,0.25)",
            name=f"95 % of {len(self.controls)} {self.beside}",
        )  # fmt: skip
        figure.add_scatter(x=x, y=(self.before + self.change).tolist(), mode="lines+markers", name="this edit")
        figure.add_hline(y=self.before, line_dash="dot", annotation_text="without the edit")
        figure.update_layout(xaxis_title="dose", yaxis_title=self.name)
        return figure

    def to_json(self) -> dict[str, Any]:
        """Plain numbers, for a file or a report."""
        low, high = self.band
        return {
            "name": self.name,
            "before": self.before,
            "doses": self.doses.tolist(),
            "change": self.change.tolist(),
            "controls": self.controls.tolist(),
            "beside": self.beside,
            "low": low.tolist(),
            "high": high.tolist(),
            "monotonicity": self.monotonicity,
            "p": self.p,
            "outside": list(self.outside),
            "leaves_band": self.leaves_band,
        }

    def __str__(self) -> str:
        low, high = self.band
        outside = ", ".join(f"{dose:g}" for dose in self.outside)
        leaves = f"outside the band at {outside}" if outside else "never outside the band"
        lines = [
            f"{self.name}: {self.before:.4g} before; beside {len(self.controls)} {self.beside}: p {self.p:.3g}, "
            f"{leaves}; Kendall's tau with dose {self.monotonicity:+.2f}"
        ]
        for dose, change, one, two in zip(self.doses, self.change, low, high, strict=True):
            lines.append(
                f"  dose {float(dose):<10g} {float(change):+.4g}   random {float(one):+.3g} … {float(two):+.3g}"
            )
        return "\n".join(lines)


def dose_curve(
    model: nn.Module,
    edit_at: Callable[[Any], Edit],
    doses: Sequence[float],
    suite: Mapping[str, Measure],
    n_random: int = 20,
    seed: int = 0,
    *,
    exclude: bool = True,
    match: Scores | None = None,
    among: int = AMONG,
    tolerance: float | None = None,
    progress: bool | None = None,
) -> dict[str, DoseCurve]:
    """Measure a model under an edit of growing dose, and under the same doses on matched random units.

    The controls of an edit along directions are the same doses along random directions, of the same lengths and angles,
    within the same units.

    Args:
        model: any module; it is as before when this returns.
        edit_at: from a dose to the edit: of growing strength (`lambda a: edit.add(chosen, a)`), or of more and more
            units (`lambda k: edit.scale(scores.top(k), 0.0)`).
        doses: at least two different ones; strengths, or counts of units (whole numbers stay whole).
        suite: measures by name, each `measure(model) -> number`.
        n_random: number of controls, each with stand-ins for all units that any dose touches, or with directions that
            serve at every dose.
        seed: of their draw.
        exclude: draw the stand-ins among the units that no dose touches.
        match: a score in which stand-ins are to be like their units; among, tolerance: see `controls.matched_random`.
        progress: show a progress line (`None`: on a terminal, when it takes longer).

    Raises:
        ShapeError: fewer than two doses, an empty suite.
        RangeError: no control, too few other units, a dose or a measure that is not finite.
        DtypeError: what is no edit, measure or number.
        UnsupportedError: some steps act along directions and some do not, or with `match`.

    Examples:
        >>> from plexus import edit
        >>> from plexus.units import Neurons, Site
        >>> model, site = nn.Sequential(nn.Identity()), Site("0", "b u")
        >>> first = Neurons.of({site: 5}, {site: [0]})
        >>> weights = torch.tensor([3.0, 1.0, 1.0, 1.0, 1.0])
        >>> curves = dose_curve(model, lambda a: edit.add(first, a), [0.0, 1.0, 2.0],
        ...                     {"y": lambda m: m(torch.ones(1, 5))[0] @ weights}, n_random=19)
        >>> curves["y"].change.tolist(), curves["y"].p, curves["y"].monotonicity
        ([0.0, 3.0, 6.0], 0.05, 1.0)
    """
    check_model(model)
    check_suite(suite)
    check_draws(n_random, seed)
    ordered = _doses(doses)
    edits = []
    for dose in ordered:
        made = edit_at(dose)
        check_edit(made, "dose_curve(model, lambda dose: edit.add(chosen, dose), doses, suite)")
        edits.append(made)
    generator = torch.Generator().manual_seed(int(seed))
    moved: list[list[Edit]]
    beside = "matched random sets"
    if match is None and all(map(is_along, edits)):
        beside = "random directions of the same lengths and angles"
        moved = [_redirected(edits, generator) for _ in range(n_random)]
    else:
        union = reduce(lambda one, other: one | other, (made.neurons for made in edits))
        places = [stand_in_map(union, generator, exclude, match, among, tolerance) for _ in range(n_random)]
        moved = [[made.moved(place) for made in edits] for place in places]
    with random_state_kept():
        start = random_state()
        before = measured(model, suite, start)

        def curve(row: Sequence[Edit]) -> list[dict[str, float]]:
            found = []
            for made in row:
                with made.on(model):
                    found.append(measured(model, suite, start))
            return found

        own = curve(edits)
        controls = [curve(row) for row in tracked(moved, "random units", n_random, progress)]
    at = torch.tensor([float(dose) for dose in ordered])

    def changes(row: Sequence[Mapping[str, float]], name: str) -> Tensor:
        return torch.tensor([found[name] - before[name] for found in row], dtype=torch.float64)

    return {
        name: DoseCurve(
            name, before[name], at, changes(own, name), torch.stack([changes(row, name) for row in controls]), beside
        )
        for name in suite
    }


def _redirected(edits: Sequence[Edit], generator: torch.Generator) -> list[Edit]:
    """The edits along random directions; those with the same directions, or longer ones, get the same."""
    seed = int(torch.randint(2**62, (1,), generator=generator))
    return [made.redirected(torch.Generator().manual_seed(seed)) for made in edits]


def _doses(doses: Sequence[float]) -> list[Any]:
    found: list[Any] = []
    for dose in doses:
        if isinstance(dose, bool) or not isinstance(dose, numbers.Real):
            raise DtypeError("a dose is a number", given=type(dose).__name__)
        if not float("-inf") < dose < float("inf"):
            raise RangeError("a dose is finite", given=dose)
        found.append(int(dose) if isinstance(dose, numbers.Integral) else float(dose))
    if len(set(found)) < 2 or len(set(found)) != len(found):
        raise ShapeError("a curve needs at least two different doses", given=list(doses))
    return sorted(found)


def _kendall(doses: Tensor, change: Tensor) -> tuple[float, float]:
    if bool((change == change[0]).all()):
        return 0.0, 1.0
    from scipy.stats import kendalltau

    found = kendalltau(doses.numpy(), change.numpy())
    return float(found.statistic), float(found.pvalue)
