"""The right answers of a model as it is, and without each of its units."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from plexus.errors import RangeError
from plexus.explain._sweep import Cell, kept_prefix, sweep
from plexus.explain.atlas._matter import Matter, fed
from plexus.probe._batches import run
from plexus.probe._progress import tracked
from plexus.probe._quiet import quiet
from plexus.units import Site

VISIBLE = 0.01  # a smaller drop of the probability of right answers nobody would see
LOGITS = 2**29  # bytes of logits that a pass may give: a large vocabulary at every token soon takes more than the model


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


class Untouched(NamedTuple):
    """The model as it is.

    Attributes:
        outcome: of each sample, `[sample]`.
        right: whether its most probable answer is right; None where there are no answers.
        rows: how many rows of samples a pass may have, so that their logits fit into `LOGITS` bytes.
    """

    outcome: Tensor
    right: Tensor | None
    rows: int


def untouched(model: nn.Module, matter: Matter, indices: Sequence[Tensor], rows: int) -> Untouched:
    """The outcome of each sample without any edit.

    Raises:
        RangeError: an outcome is not finite.
    """
    outcomes, right = [], []
    with quiet(model):
        for index in indices:
            output = run(model, fed(model, matter, index), None, None)
            outcomes.append(matter.outcome(output, index).double().cpu())
            right.append(matter.right(output, index))
            logits = getattr(output, "logits", output)
            if isinstance(logits, Tensor):
                rows = min(rows, max(1, LOGITS * len(index) // (logits.numel() * logits.element_size())))
    return Untouched(finite(torch.cat(outcomes), "the model"), _joined(right, 0), rows)


class Without(NamedTuple):
    """A model without each of some units of a site, `[unit, sample]`.

    Attributes:
        outcome: of each sample.
        right: whether its most probable answer is right; None where there are no answers.
    """

    outcome: Tensor
    right: Tensor | None


def switched_off(
    model: nn.Module, matter: Matter, indices: Sequence[Tensor], units: Mapping[Site, Tensor], rows: int
) -> dict[Site, Without]:
    """The outcomes of samples without each of these units, one at a time.

    Raises:
        RangeError: an outcome is not finite.
    """
    found: dict[Site, list[Without]] = {site: [] for site in units}
    steps = [(index, site) for index in indices for site in units]
    prefix, last = None, None
    for index, site in tracked(steps, "units switched off one by one", len(steps), None):
        if index is not last:
            batch, last = fed(model, matter, index), index
            prefix, _ = kept_prefix(model, batch, list(units))
        cells = [Cell(int(unit), 0.0) for unit in units[site]]
        each, hits = [], []
        for part, output in sweep(model, batch, site, cells, rows=rows, prefix=prefix):
            copies = index.repeat(len(part))
            each.append(matter.outcome(output, copies).double().cpu().reshape(len(part), -1))
            hit = matter.right(output, copies)
            hits.append(None if hit is None else hit.reshape(len(part), -1))
        found[site].append(Without(torch.cat(each), _joined(hits, 0)))
    return {
        site: Without(
            finite(torch.cat([part.outcome for part in parts], 1), f"the model without a unit of {site.path!r}"),
            _joined([part.right for part in parts], 1),
        )
        for site, parts in found.items()
    }


def answers(
    before: Tensor,
    right: Tensor | None,
    without: Without,
    concept: Tensor,
    matter: Matter,
    held: Tensor,
) -> Answers:
    """What becomes of the right answers, over the held-out samples of each unit's concept.

    Args:
        before: outcome of each sample, `[sample]`. right: whether its most probable answer is right.
        without: what becomes of the samples to judge by without each unit.
        concept: number of each unit's concept.
        matter: what the model was shown.
        held: the samples to judge by, bool `[sample]`.
    """
    of = torch.nn.functional.one_hot(matter.labels[held], len(matter.concepts)).double()
    share = (of / of.sum(0))[:, concept].T  # of each sample in the mean of a unit's concept, [unit, sample]
    probability, left = (share * before[held].exp()).sum(1), (share * without.outcome.exp()).sum(1)
    if right is None or without.right is None:
        return Answers(probability, left, torch.zeros_like(left))
    return Answers(probability, left, (share * (right[held].double() - without.right.double())).sum(1))


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
