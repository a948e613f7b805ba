"""What an edit does to the measures that matter, each beside the same edit on matched random units."""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from plexus.edit import Edit
from plexus.errors import DtypeError, RangeError, ShapeError, UnknownNameError
from plexus.explain.controls._matched import matched_random
from plexus.explain.controls._null import Null, null
from plexus.probe._progress import tracked
from plexus.probe._quiet import random_state_kept, state_kept

Measure = Callable[[nn.Module], Any]


@dataclass(frozen=True)
class Effect:
    """One measure before and after an edit, beside its controls.

    Attributes:
        name: of the measure.
        before: on the model as it is.
        after: under the edit.
        controls: the measure's change under the same edit on random units, float64 `[control]`.

    Examples:
        >>> effect = Effect("accuracy", before=0.9, after=0.4, controls=torch.tensor([-0.1, 0.0, -0.2]))
        >>> effect.change, effect.percentile, effect.p
        (-0.5, 0.0, 0.25)
    """

    name: str
    before: float
    after: float
    controls: Tensor

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

    def __init__(self, edit: Edit, effects: tuple[Effect, ...], n_random: int, seed: int) -> None:
        self.edit, self.n_random, self.seed = edit, n_random, seed
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

    def to_json(self) -> dict[str, Any]:
        """Plain numbers, for a file or a report."""
        effects = {
            name: {"before": e.before, "after": e.after, "controls": e.controls.tolist(), **e.null._asdict()}
            for name, e in self._effects.items()
        }
        return {"edit": repr(self.edit), "n_random": self.n_random, "seed": self.seed, "effects": effects}

    def __str__(self) -> str:
        head = ("measure", "before", "after", "change", "random units", "95 % of them", "percentile", "p")
        rows = [head, *(_row(effect) for effect in self._effects.values())]
        wide = [max(len(row[i]) for row in rows) for i in range(len(head))]
        lines = [f"{self.edit!r}; beside the same on {self.n_random} matched random sets of units"]
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
    progress: bool | None = None,
) -> Comparison:
    """Measure a model before and after an edit, and under the same edit on matched random units.

    Every measure sees the same random numbers each time, so that only the edit differs; the model and the random state
    are as before when this returns. The p-values are per measure: correct them when a claim rests on several.

    Args:
        model: any module.
        edit: a value, `edit.scale(chosen, 0.0)`, without the model.
        suite: measures by name, each `measure(model) -> number`.
        n_random: number of random sets, each with as many units at each site; 20 give p ≥ 0.048, 999 p ≥ 0.001.
        seed: of their draw.
        exclude: draw the random sets among the units that were not chosen.
        progress: show a progress line (`None`: on a terminal, when it takes longer).

    Raises:
        DtypeError: an edit that is none, a measure that cannot be called or gives no number, a seed that is no integer.
        RangeError: fewer than one random set, too few other units at a site, a measure that is NaN or infinite.
        ShapeError: an empty suite.
        UnsupportedError: an edit along directions, which cannot be moved to other units.

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
    _check(model, edit, suite, n_random, seed)
    generator = torch.Generator().manual_seed(int(seed))
    # drawn before anything runs, so that what cannot be controlled is refused before it is measured
    moved = [matched_random(edit, generator, exclude=exclude) for _ in range(n_random)]
    with random_state_kept():
        start = torch.get_rng_state()
        before = _measure(model, suite, start)
        with edit.on(model):
            after = _measure(model, suite, start)
        controls: list[dict[str, float]] = []
        for control in tracked(moved, "random units", n_random, progress):
            with control.on(model):
                controls.append(_measure(model, suite, start))
    effects = [
        Effect(name, before[name], after[name], torch.tensor([c[name] - before[name] for c in controls]).double())
        for name in suite
    ]
    return Comparison(edit, tuple(effects), n_random, int(seed))


def _measure(model: nn.Module, suite: Mapping[str, Measure], start: Tensor) -> dict[str, float]:
    found: dict[str, float] = {}
    for name, measure in suite.items():
        with random_state_kept(), state_kept(model):
            torch.set_rng_state(start)
            found[name] = _number(name, measure(model))
    return found


def _number(name: str, value: Any) -> float:
    if isinstance(value, Tensor) and value.numel() == 1:
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        given = f"{type(value).__name__} {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise DtypeError(f"the measure {name!r} gave no number", given=given, expected="a float")
    if not math.isfinite(value):
        raise RangeError(f"the measure {name!r} is not finite", given=value)
    return float(value)


def _check(model: object, edit: object, suite: object, n_random: object, seed: object) -> None:
    if not isinstance(model, nn.Module):
        raise DtypeError("what is compared is a torch module", given=type(model).__name__)
    if not isinstance(edit, Edit):
        raise DtypeError(
            "this is no edit as a value",
            given=type(edit).__name__,
            mend="leave the model out: compare(model, edit.scale(chosen, 0.0), suite)",
        )
    if not isinstance(suite, Mapping):
        raise DtypeError("a suite maps names to measures", given=type(suite).__name__)
    if not suite:
        raise ShapeError("the suite is empty", expected="at least one measure")
    for name, measure in suite.items():
        if not callable(measure):
            raise DtypeError(f"the measure {name!r} cannot be called", given=type(measure).__name__)
    for what, number in (("n_random", n_random), ("seed", seed)):
        if isinstance(number, bool) or not isinstance(number, numbers.Integral):
            raise DtypeError(f"{what} is an integer", given=repr(number))
    if isinstance(n_random, numbers.Integral) and n_random < 1:
        raise RangeError(
            "an effect is reported beside its control", given=f"n_random={n_random}", expected="at least 1"
        )


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
