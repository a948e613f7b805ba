"""Double dissociation: two sets of units, two tasks, each set needed for its own task more than for the other.

    e_ij[k] = after - before of item k of task j under edit i                     effect, per item
    s_j     = mean_k (e_1j[k] - e_2j[k])                                          simple contrast of task j
    I       = s_1 - s_2                                                           interaction

With two edits of the same kind a difference in strength alone gives I ≠ 0 where tasks differ in how far they can fall;
what shows two functions is that the contrasts have *opposite* signs: set 1 does more to task 1, set 2 more to task 2.
So a double dissociation is called where both contrasts point that way and the largest of the p-values below, which
needs no correction (it is an intersection of claims), is small. Items are tested by sign flips of e_1j - e_2j (under
the null the two edits are exchangeable on every item); sets by pairs of matched random sets under the same edits.

Source: Teuber 1955; Davies 2010 (why single dissociations do not do); Berger 1982 (intersection-union tests).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from plexus.edit import Edit
from plexus.errors import RangeError, ShapeError
from plexus.explain._measure import (
    Measure,
    check_draws,
    check_edit,
    check_model,
    check_suite,
    items_of,
    random_state,
    run_measure,
)
from plexus.explain.controls._matched import AMONG, matched_random
from plexus.explain.controls._multiple import sign_flip
from plexus.explain.controls._null import Null, null
from plexus.probe._progress import tracked
from plexus.probe._quiet import random_state_kept
from plexus.units import Neurons, Scores


@dataclass(frozen=True)
class Dissociation:
    """Two edits on two tasks, with their interaction.

    Attributes:
        edits: names of the two edits.
        tasks: names of the two tasks; task j is the one that edit j is expected to change.
        effects: after minus before, mean over items, `[edit, task]`.
        contrasts: effect of edit 1 minus effect of edit 2 on each task, `[task]`.
        contrast_p: two-sided, by sign flips over items, per task.
        interaction: contrast on task 1 minus contrast on task 2.
        interaction_p: two-sided, by sign flips over the items of both tasks.
        controls: the interaction of pairs of matched random sets, `[control]`.
    """

    edits: tuple[str, str]
    tasks: tuple[str, str]
    effects: Tensor
    contrasts: Tensor
    contrast_p: tuple[float, float]
    interaction: float
    interaction_p: float
    controls: Tensor

    @property
    def null(self) -> Null:
        """Where the interaction stands among those of matched random pairs."""
        return null(self.interaction, self.controls)

    @property
    def crossed(self) -> bool:
        """Whether each edit changes its own task more than the other edit does (opposite signs, larger size)."""
        own = self.effects.diagonal().abs() > self.effects.flip(0).diagonal().abs()
        return bool(own.all()) and float(self.contrasts[0] * self.contrasts[1]) < 0

    @property
    def p(self) -> float:
        """The largest p-value of what is claimed together: both contrasts, the interaction, the matched pairs.

        1 where the contrasts do not cross.
        """
        return max(*self.contrast_p, self.interaction_p, self.null.p) if self.crossed else 1.0

    def to_json(self) -> dict[str, Any]:
        """Plain numbers, for a file or a report."""
        return {
            "edits": list(self.edits),
            "tasks": list(self.tasks),
            "effects": self.effects.tolist(),
            "contrasts": self.contrasts.tolist(),
            "contrast_p": list(self.contrast_p),
            "interaction": self.interaction,
            "interaction_p": self.interaction_p,
            "controls": self.controls.tolist(),
            "crossed": self.crossed,
            "p": self.p,
        }

    def __str__(self) -> str:
        found = self.null
        wide = max(len("edit 1 - edit 2"), *map(len, self.edits))
        lines = [" ".join(["".ljust(wide), *(task.rjust(12) for task in self.tasks)])]
        for name, row in zip(self.edits, self.effects.tolist(), strict=True):
            lines.append(" ".join([name.ljust(wide), *(f"{value:+12.4g}" for value in row)]))
        lines.append(" ".join(["edit 1 - edit 2".ljust(wide), *(f"{float(c):+12.4g}" for c in self.contrasts)]))
        lines.append(" ".join(["p over items".ljust(wide), *(f"{p:12.3g}" for p in self.contrast_p)]))
        lines.append(
            f"interaction {self.interaction:+.4g}, p {self.interaction_p:.3g} over items; matched random pairs "
            f"{found.low:+.3g} … {found.high:+.3g}, p {found.p:.3g}"
        )
        lines.append(f"double dissociation: {f'p {self.p:.3g}' if self.crossed else 'no, the effects do not cross'}")
        return "\n".join(lines)


def double_dissociation(
    model: nn.Module,
    edits: Mapping[str, Edit],
    tasks: Mapping[str, Measure],
    n_random: int = 99,
    seed: int = 0,
    *,
    exclude: bool = True,
    match: Scores | None = None,
    among: int = AMONG,
    tolerance: float | None = None,
    progress: bool | None = None,
) -> Dissociation:
    """Whether two sets of units serve two tasks: each edit's effect on each task, with the test of their interaction.

    Args:
        model: any module; it is as before when this returns.
        edits: two edits by name.
        tasks: two measures by name, `measure(model) -> [item]` (losses or hits of the items, not their mean), the
            first expected to depend on the first edit's units.
        n_random: pairs of matched random sets; 19 are needed for p ≥ 0.05.
        seed: of the draws.
        exclude: draw them among the units that neither edit touches.
        match: a score in which stand-ins are to be like their units; among, tolerance: see `controls.matched_random`.
        progress: show a progress line (`None`: on a terminal, when it takes longer).

    Raises:
        ShapeError: not two edits and two tasks; a task that does not give one number per item, or changes their number.
        RangeError: no control, too few other units, a number that is not finite.

    Examples:
        >>> from plexus import edit
        >>> from plexus.units import Neurons, Site
        >>> model, site = nn.Sequential(nn.Identity()), Site("0", "b u")
        >>> cut = lambda unit: edit.scale(Neurons.of({site: 60}, {site: [unit]}), 0.0)
        >>> x = 1 + torch.rand(8, 60, generator=torch.Generator().manual_seed(0))
        >>> found = double_dissociation(model, {"first": cut(0), "second": cut(1)},
        ...                             {"a": lambda m: m(x)[:, 0], "b": lambda m: m(x)[:, 1]}, n_random=39)
        >>> found.crossed, found.p
        (True, 0.025)
    """
    check_model(model)
    check_suite(tasks)
    check_draws(n_random, seed)
    if len(edits) != 2 or len(tasks) != 2:
        raise ShapeError(
            "a double dissociation has two edits and two tasks", given=f"{len(edits)} edits and {len(tasks)} tasks"
        )
    for edit in edits.values():
        check_edit(edit, "double_dissociation(model, {'a': edit.scale(a, 0.0), 'b': edit.scale(b, 0.0)}, tasks)")
    one, two = edits.values()
    options: dict[str, Any] = {"match": match, "among": among, "tolerance": tolerance}
    generator = torch.Generator().manual_seed(int(seed))
    both = one.neurons | two.neurons
    pairs = []
    for _ in range(n_random):
        first = matched_random(one, generator, exclude=_over(both, one) if exclude else False, **options)
        taken = both | first.neurons
        second = matched_random(two, generator, exclude=_over(taken, two) if exclude else False, **options)
        pairs.append((first, second))
    with random_state_kept():
        start = random_state()

        def items() -> list[Tensor]:
            return [items_of(name, run_measure(model, measure, start)) for name, measure in tasks.items()]

        before = items()

        def effects(pair: tuple[Edit, Edit]) -> list[list[Tensor]]:
            found = []
            for edit in pair:
                with edit.on(model):
                    after = items()
                for name, a, b in zip(tasks, after, before, strict=True):
                    if len(a) != len(b):
                        raise ShapeError(f"the task {name!r} changes its number of items", given=(len(b), len(a)))
                found.append([a - b for a, b in zip(after, before, strict=True)])
            return found

        own = effects((one, two))
        others = [effects(pair) for pair in tracked(pairs, "random pairs", n_random, progress)]
    apart = [own[0][task] - own[1][task] for task in (0, 1)]
    contrasts = torch.stack([difference.mean() for difference in apart])
    # one number per item whose mean is the interaction: task 2 counts negative, each task with weight one
    total = len(apart[0]) + len(apart[1])
    weighted = torch.cat([apart[0] * (total / len(apart[0])), -apart[1] * (total / len(apart[1]))])
    drawn = [float(e[0][0].mean() - e[1][0].mean() - e[0][1].mean() + e[1][1].mean()) for e in others]
    names, titles = tuple(edits), tuple(tasks)
    return Dissociation(
        (names[0], names[1]),
        (titles[0], titles[1]),
        torch.stack([torch.stack([task.mean() for task in row]) for row in own]),
        contrasts,
        (_flips(apart[0], int(seed)), _flips(apart[1], int(seed))),
        float(contrasts[0] - contrasts[1]),
        _flips(weighted, int(seed)),
        torch.tensor(drawn, dtype=torch.float64),
    )


def _flips(difference: Tensor, seed: int) -> float:
    if not bool(difference.any()):
        return 1.0
    if len(difference) < 6:
        raise RangeError(
            "too few items for a test", given=f"{len(difference)}", expected="at least 6, so that p can be below 0.05"
        )
    return sign_flip(difference.tolist(), seed=seed)


def _over(banned: Neurons, edit: Edit) -> Neurons:
    """The banned units as seen over the sites of an edit, which may be other ones than those of its partner."""
    return banned.at(*edit.neurons.sites)
