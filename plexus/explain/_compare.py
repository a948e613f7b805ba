"""What an edit does to the measures that matter, each beside the same edit on matched random units."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from plexus.edit import Edit
from plexus.errors import ShapeError, UnknownNameError
from plexus.explain._measure import (
    Measure,
    check_draws,
    check_edit,
    check_model,
    check_suite,
    measured,
    random_state,
)
from plexus.explain.controls._matched import AMONG, matched_random
from plexus.explain.controls._multiple import adjusted
from plexus.explain.controls._null import Null, null
from plexus.probe._progress import tracked
from plexus.probe._quiet import random_state_kept
from plexus.units import Scores
from plexus.units._memory import to_memory


@dataclass(frozen=True)
class Effect:
    """One measure before and after an edit, beside its controls.

    Attributes:
        name: of the measure.
        before: on the model as it is.
        after: under the edit.
        controls: the measure's change under the same edit on random units, float64 `[control]`.

    Raises:
        ShapeError: without controls; an effect is not reported without them.

    Examples:
        >>> effect = Effect("accuracy", before=0.9, after=0.4, controls=torch.tensor([-0.1, 0.0, -0.2]))
        >>> effect.change, effect.percentile, effect.p
        (-0.5, 0.0, 0.25)
    """

    name: str
    before: float
    after: float
    controls: Tensor

    def __post_init__(self) -> None:
        to_memory(self, "controls")
        if self.controls.dim() != 1 or len(self.controls) == 0:
            raise ShapeError(
                "an effect is reported beside its controls", given=tuple(self.controls.shape), expected="[control]"
            )

    @property
    def change(self) -> float:
        """After minus before."""
        return self.after - self.before

    @property
    def null(self) -> Null:
        """Where the change stands among those of the controls."""
        return null(self.change, self.controls)

    @property
    def p(self) -> float:
        """Two-sided p-value of the change against its controls."""
        return self.null.p

    @property
    def percentile(self) -> float:
        """Share of the controls whose change lies below, in percent."""
        return self.null.percentile


class Comparison(Mapping[str, Effect]):
    """The effects of an edit, by measure; printing it gives a table.

    Attributes:
        edit: what was done.
        n_random: number of controls.
        seed: of their draw.
        matched: name of the score in which the random units are like the chosen ones, if any.

    Examples:
        >>> from plexus import edit as px_edit
        >>> from plexus.units import Neurons, Site
        >>> site = Site("0", "b u")
        >>> doubled = px_edit.scale(Neurons.of({site: 4}, {site: [0]}), 2.0)
        >>> model = nn.Sequential(nn.Identity())
        >>> found = compare(model, doubled, {"sum": lambda m: m(torch.ones(1, 4)).sum()}, n_random=3)
        >>> list(found), found["sum"].change, found["sum"].p
        (['sum'], 1.0, 1.0)
    """

    def __init__(
        self, edit: Edit, effects: tuple[Effect, ...], n_random: int, seed: int, matched: str | None = None
    ) -> None:
        self.edit, self.n_random, self.seed, self.matched = edit, n_random, seed, matched
        self._effects = {effect.name: effect for effect in effects}

    def __getitem__(self, name: str) -> Effect:
        if name not in self._effects:
            error = UnknownNameError.among("measure", str(name), self._effects)
            raise KeyError(str(error))
        return self._effects[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._effects)

    def __len__(self) -> int:
        return len(self._effects)

    @property
    def corrected(self) -> dict[str, float]:
        """The p-values of the measures, Holm-corrected for their number."""
        return adjusted({name: effect.p for name, effect in self._effects.items()})

    def to_json(self) -> dict[str, Any]:
        """Plain numbers, for a file or a report."""
        corrected = self.corrected
        effects = {
            name: {
                "before": e.before,
                "after": e.after,
                "controls": e.controls.tolist(),
                **e.null._asdict(),
                "p_corrected": corrected[name],
            }
            for name, e in self._effects.items()
        }
        return {
            "edit": repr(self.edit),
            "n_random": self.n_random,
            "seed": self.seed,
            "matched": self.matched,
            "effects": effects,
        }

    def __str__(self) -> str:
        head = ("measure", "before", "after", "change", "random", "95 % of them", "percentile", "p")
        rows = [head, *(_row(effect) for effect in self._effects.values())]
        if len(self._effects) > 1:
            corrected = ["p (Holm)", *(f"{p:.3g}" for p in self.corrected.values())]
            rows = [(*row, p) for row, p in zip(rows, corrected, strict=True)]
        wide = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        alike = "" if self.matched is None else f", alike in {self.matched}"
        along = all(step.basis is not None for step in self.edit.steps)
        controls = "along {} random directions" if along else "on {} matched random sets of units"
        lines = [f"{self.edit!r}; beside the same {controls.format(self.n_random)}{alike}"]
        for row in rows:
            cells = [cell.rjust(w) if i else cell.ljust(w) for i, (cell, w) in enumerate(zip(row, wide, strict=True))]
            lines.append("  ".join(cells).rstrip())
        return "\n".join(lines)

    __repr__ = __str__


def compare(
    model: nn.Module,
    edit: Edit,
    suite: Mapping[str, Measure],
    n_random: int = 20,
    seed: int = 0,
    *,
    exclude: bool = True,
    match: Scores | None = None,
    among: int = AMONG,
    tolerance: float | None = None,
    progress: bool | None = None,
) -> Comparison:
    """Measure a model before and after an edit, and under the same edit on matched random units.

    Every measure sees the same random numbers each time, so that only the edit differs; the model and the random state
    are as before when this returns. The p-values are per measure; `corrected` has them
    for a claim that rests on several.

    Args:
        model: any module.
        edit: a value, `edit.scale(chosen, 0.0)`, without the model.
        suite: measures by name, each `measure(model) -> number`.
        n_random: number of random sets, each with as many units at each site; 20 give p ≥ 0.048, 999 p ≥ 0.001.
        seed: of their draw.
        exclude: draw the random sets among the units that were not chosen.
        match: a score in which each random unit is to be like the one it stands for, for instance mean rates; among,
            tolerance: how alike, see `controls.matched_random`.
        progress: show a progress line (`None`: on a terminal, when it takes longer).

    Raises:
        DtypeError: an edit that is none, a measure that cannot be called or gives no number, a seed that is no integer.
        RangeError: fewer than one random set, too few other units at a site, a measure that is NaN or infinite.
        ShapeError: an empty suite.
        UnsupportedError: an edit some of whose steps act along directions and some do not, or with `match`.

    Examples:
        >>> from plexus import edit as px_edit
        >>> from plexus.units import Neurons, Site
        >>> _ = torch.manual_seed(0)
        >>> model = nn.Sequential(nn.Linear(4, 50), nn.ReLU(), nn.Linear(50, 1))
        >>> x, site = torch.rand(8, 4), Site("1", "b u")
        >>> with torch.no_grad():
        ...     model[2].weight[0, 7] = 10.0
        ...     model[0].weight[7] = 1.0
        >>> cut = px_edit.scale(Neurons.of({site: 50}, {site: [7]}), 0.0)
        >>> found = compare(model, cut, {"output": lambda m: m(x).mean().item()}, n_random=39)
        >>> found["output"].percentile, found["output"].p
        (0.0, 0.025)
    """
    check_model(model)
    check_edit(edit, "compare(model, edit.scale(chosen, 0.0), suite)")
    check_suite(suite)
    check_draws(n_random, seed)
    generator = torch.Generator().manual_seed(int(seed))
    # drawn before anything runs, so that what cannot be controlled is refused before it is measured
    moved = [
        matched_random(edit, generator, exclude=exclude, match=match, among=among, tolerance=tolerance)
        for _ in range(n_random)
    ]
    with random_state_kept():
        start = random_state()
        before = measured(model, suite, start)
        with edit.on(model):
            after = measured(model, suite, start)
        controls: list[dict[str, float]] = []
        for control in tracked(moved, "random units", n_random, progress):
            with control.on(model):
                controls.append(measured(model, suite, start))
    effects = [
        Effect(name, before[name], after[name], torch.tensor([c[name] - before[name] for c in controls]).double())
        for name in suite
    ]
    return Comparison(edit, tuple(effects), n_random, int(seed), None if match is None else match.name)


def _row(effect: Effect) -> tuple[str, ...]:
    found = effect.null
    return (
        effect.name,
        f"{effect.before:.4g}",
        f"{effect.after:.4g}",
        f"{effect.change:+.4g}",
        f"{found.mean:+.4g}",
        f"{found.low:+.3g} … {found.high:+.3g}",
        f"{found.percentile:.0f}",
        f"{found.p:.3g}",
    )
