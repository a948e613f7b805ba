"""The right answers of a model as it is, and without each of its units."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from plexus.errors import RangeError
from plexus.explain._sweep import Cell, sweep
from plexus.explain.atlas._matter import Matter
from plexus.probe._batches import run
from plexus.probe._progress import tracked
from plexus.probe._quiet import quiet
from plexus.units import Site, sites

VISIBLE = 0.01  # a smaller drop of the probability of right answers nobody would see


class Answers(NamedTuple):
    """What becomes of the right answers of each unit's concept, `[unit]`.

    Attributes:
        probability: their mean probability in the model as it is.
        without: the same without the unit.
        lost: by how much the share of samples falls whose most probable answer is right; 0 without answers.
    """

    probability: Tensor
    without: Tensor
    lost: Tensor


def untouched(model: nn.Module, matter: Matter, indices: Sequence[Tensor]) -> tuple[Tensor, Tensor | None]:
    """The outcome of each sample without any edit, and whether the most probable answer is right.

    Raises:
        RangeError: an outcome is not finite.
    """
    outcomes, right = [], []
    with quiet(model):
        for index in indices:
            output = run(model, matter.batch(index), None, None)
            outcomes.append(matter.outcome(output, index).double().cpu())
            right.append(matter.right(output, index))
    return finite(torch.cat(outcomes), "the model"), _joined(right, 0)


def switched_off(
    model: nn.Module, matter: Matter, indices: Sequence[Tensor], site: Site, rows: int
) -> tuple[Tensor, Tensor | None]:
    """Without each unit: the outcome of each sample and whether its most probable answer is right, `[unit, sample]`.

    Raises:
        RangeError: an outcome is not finite.
    """
    units = sites.measure(model, matter.batch(indices[0]), [site])[site]
    cells = [Cell(unit, 0.0) for unit in range(units)]
    outcomes, right = [], []
    for index in tracked(indices, "units switched one by one", len(indices), None):
        each, hits = [], []
        for part, output in sweep(model, matter.batch(index), site, cells, rows=rows):
            copies = index.repeat(len(part))
            each.append(matter.outcome(output, copies).double().cpu().reshape(len(part), -1))
            hit = matter.right(output, copies)
            hits.append(None if hit is None else hit.reshape(len(part), -1))
        outcomes.append(torch.cat(each))
        right.append(_joined(hits, 0))
    return finite(torch.cat(outcomes, 1), f"the model without a unit of {site.path!r}"), _joined(right, 1)


def answers(
    before: Tensor,
    right: Tensor | None,
    without: Tensor,
    still: Tensor | None,
    concept: Tensor,
    matter: Matter,
    held: Tensor,
) -> Answers:
    """What becomes of the right answers, over the held-out samples of each unit's concept.

    Args:
        before: outcome of each sample, `[sample]`. right: whether its most probable answer is right.
        without: outcomes without each unit, `[unit, sample]`. still: whether the answers are right then.
        concept: number of each unit's concept.
        matter: what the model was shown.
        held: the samples to judge by, bool `[sample]`.
    """
    of = torch.nn.functional.one_hot(matter.labels[held], len(matter.concepts)).double()
    share = (of / of.sum(0))[:, concept].T  # of each sample in the mean of a unit's concept, [unit, sample]
    probability, left = (share * before[held].exp()).sum(1), (share * without[:, held].exp()).sum(1)
    if right is None or still is None:
        return Answers(probability, left, torch.zeros_like(left))
    return Answers(probability, left, (share * (right[held].double() - still[:, held].double())).sum(1))


def finite(outcomes: Tensor, what: str) -> Tensor:
    """The outcomes, or a `RangeError` if one is NaN or infinite."""
    if not bool(outcomes.isfinite().all()):
        raise RangeError(
            f"{what} gives right answers no finite log-probability",
            given=f"NaN or infinity for {int((~outcomes.isfinite()).sum())} of {outcomes.numel()} samples",
            mend="look for NaN in weights and inputs; a model in half precision may overflow: model.float()",
        )
    return outcomes


def _joined(parts: Sequence[Tensor | None], dim: int) -> Tensor | None:
    known = [part for part in parts if part is not None]
    return torch.cat(known, dim) if known else None
