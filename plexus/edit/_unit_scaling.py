"""Units scaled by how well each of them detects a concept.

    zero   y = 0
    damp   y = factor · x
    aura   y = (1 - 2 (AUROC - 1/2)) x       1 at chance, 0 for a perfect detector

on the units whose score lies above a threshold, or on the best few.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from plexus.edit._edit import Edit
from plexus.edit._verbs import scale, verb
from plexus.errors import DtypeError, RangeError, ShapeError, UnknownNameError
from plexus.probe._collect import Positions
from plexus.units import Neurons, Scores, Site

__all__ = ["unit_scaling"]

How = Literal["zero", "damp", "aura"]
HOW: tuple[How, ...] = ("zero", "damp", "aura")


@verb
def unit_scaling(
    scores: Scores,
    how: How = "aura",
    *,
    above: float = 0.5,
    top: int | float | None = None,
    factor: float = 0.5,
    positions: Positions = "all",
) -> Edit:
    """Scale the units that detect a concept: to nothing, to a share, or the more the better they detect it.

    Args:
        scores: one number per unit, `probe.scores.auroc(record, labels)` for instance; for "aura" an AUROC.
        how: "zero" (known as Det-0), "damp" by `factor`, or "aura".
        above: units whose score lies above it.
        top: instead, this many units (or this share of them) with the highest scores.
        factor: of "damp".
        positions: as in `edit.scale`.

    Returns:
        The edit; with a model as the first argument, a context in which it acts on that model.

    Raises:
        RangeError: no unit lies above the threshold; for "aura", a score outside [0, 1].
        ShapeError: several concepts; choose one, `scores["rude"]`.
        UnknownNameError: `how` is none of the three.

    Source: Suau et al. 2024 (arXiv 2407.12824) for AURA, and for Det-0 and damping as its rivals.

    Examples:
        >>> import torch
        >>> from plexus import edit
        >>> model = torch.nn.Sequential(torch.nn.Identity())
        >>> scores = Scores({Site("0"): torch.tensor([0.4, 0.75, 1.0])}, name="AUROC")
        >>> with edit.unit_scaling(model, scores, "aura"):
        ...     model(torch.ones(1, 3))
        tensor([[1.0000, 0.5000, 0.0000]])
    """
    if not isinstance(scores, Scores):
        raise DtypeError("units are scaled by their scores", given=type(scores).__name__, expected="Scores")
    if how not in HOW:
        raise UnknownNameError.among("scaling of units", str(how), HOW)
    if scores.concepts is not None:
        raise ShapeError(
            "units are scaled by one number each, and these scores have one per concept",
            given=f"{len(scores.concepts)} concepts",
            mend="choose one first: scores['rude']",
        )
    values = {site: scores[site].double() for site in scores.sites}
    if how == "aura" and any(bool(((v < 0) | (v > 1)).any()) for v in values.values()):
        raise RangeError("aura reads areas under a ROC curve", given="scores outside [0, 1]", mend="probe.scores.auroc")
    if top is None:
        chosen = Neurons({site: value > above for site, value in values.items()}, scores.model)
        if not len(chosen):
            raise RangeError(
                "no unit's score lies above the threshold", given=f"above={above}", mend="lower it, or top="
            )
    else:
        chosen = scores.top(top)
    numbers: dict[Site, Tensor | float] = {}
    for site, value in values.items():
        strength = (1 - 2 * (value[chosen.mask(site)].nan_to_num(0.5) - 0.5)).clamp(max=1.0)
        numbers[site] = strength if how == "aura" else factor if how == "damp" else 0.0
    return scale(chosen, numbers, positions=positions)
