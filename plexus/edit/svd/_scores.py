"""Which singular directions of a layer carry what its states show.

    c(h) = Vᵀ h,  Δ_i = mean over h⁺ of c_i - mean over h⁻ of c_i

    margin_i = s_i Δ_i (mean of u_i over the concept's outputs - mean over the others)
    push_i   = s_i (mean over h⁺ of c_i) (mean of u_i over the concept's outputs - mean over the others)
    abs_i    = |Δ_i| / σ_i        σ_i the standard deviation of c_i within the two groups
    signed_i = Δ_i

`margin` is what direction i adds to the difference of the mean logits between the two groups, `push` what it adds to
the logits of the concept where it is about to come, and so what is lost when it is taken out; they agree where
directions are centred, and not where one (of word frequency, for instance) pushes everywhere. Both need the list of
outputs; `abs` needs the states alone. The three are the same for (u_i, v_i) and (-u_i, -v_i). `signed` is as published
and is not: its order hangs on the signs that the decomposition happened to return.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from plexus.edit.svd._directions import Directions
from plexus.errors import RangeError, ShapeError, UnknownNameError

__all__ = ["FEWEST", "By", "direction_scores", "shift"]

By = Literal["margin", "push", "abs", "signed"]
BY: tuple[By, ...] = ("margin", "push", "abs", "signed")
FEWEST = 30
"""States that each of the two groups must have; the mean of fewer says little."""


def shift(found: Directions, present: Tensor, absent: Tensor) -> tuple[Tensor, Tensor]:
    """Δ and σ of each direction, `[direction]` each; states are checked.

    Raises:
        ShapeError: the states are not what the layer reads.
        RangeError: a group has fewer than 30 states, or some are not finite.
    """
    for name, states in (("present", present), ("absent", absent)):
        if states.dim() == 2 and len(states) < FEWEST:
            raise RangeError(
                f"there are too few states in which the concept is {name}",
                given=len(states),
                expected=f"at least {FEWEST}",
                mend="record more prompts",
            )
        if not bool(states.isfinite().all()):
            raise RangeError(f"states in which the concept is {name} hold NaN or infinity")
    one, other = found.coordinates(present).double(), found.coordinates(absent).double()
    freedom = len(one) + len(other) - 2
    within = (one.var(0) * (len(one) - 1) + other.var(0) * (len(other) - 1)) / freedom
    return one.mean(0) - other.mean(0), within.sqrt()


def direction_scores(
    found: Directions,
    present: Tensor,
    absent: Tensor,
    *,
    by: By = "margin",
    outputs: Sequence[int] | Tensor | None = None,
) -> Tensor:
    """How much each singular direction of a layer has to do with a concept.

    Args:
        found: the directions, from `directions`.
        present: what the layer read when it was about to put out the concept, `[row, in]`, at least 30 rows.
        absent: what it read otherwise, `[row, in]`, at least 30 rows.
        by: "margin", "push", "abs" or "signed", see the head of this module.
        outputs: for "margin" and "push", the outputs of the concept (of a language model: tokens).

    Returns:
        `[direction]`, float64.

    Raises:
        ShapeError: the states are not what the layer reads.
        RangeError: too few states, states that are not finite, no outputs for "margin" or "push", or beyond the layer.
        UnknownNameError: `by` is none of the four.

    Source: Shaik et al. 2025 (arXiv 2509.16660), `signed`; the others are its forms without the ambiguity of sign.

    Examples:
        >>> from plexus.edit import svd
        >>> head = torch.nn.Linear(3, 4, bias=False)
        >>> states = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
        >>> scores = svd.direction_scores(svd.directions(head, ""), states + 1, states, outputs=[2])
        >>> difference = head(torch.ones(3))  # what the step from one group to the other does to the logits
        >>> margin = difference[2] - difference[[0, 1, 3]].mean()
        >>> torch.isclose(scores.sum(), margin.double(), atol=1e-5).item()
        True
    """
    if by not in BY:
        raise UnknownNameError.among("score of directions", str(by), BY)
    moved, spread = shift(found, present, absent)
    if by == "signed":
        return moved
    if by == "abs":
        return moved.abs() / spread.clamp(min=torch.finfo(spread.dtype).tiny)
    members = _members(outputs, len(found.u))
    u = found.u.double().cpu()
    written = u[members].mean(0) - u[~members].mean(0)
    read = moved if by == "margin" else found.coordinates(present).double().mean(0)
    return found.s.double() * read * written.to(read)


def _members(outputs: Sequence[int] | Tensor | None, size: int) -> Tensor:
    """The concept's outputs as a mask `[out]`."""
    if outputs is None:
        raise RangeError(
            "this score needs the outputs of the concept",
            given="outputs=None",
            mend="outputs=[…] (token ids), or by='abs', which needs the states alone",
        )
    places = torch.as_tensor(outputs).reshape(-1).cpu()
    if places.is_floating_point() or places.dtype == torch.bool:
        raise ShapeError("outputs are places in the layer's output", given=str(places.dtype), expected="integers")
    if not len(places) or int(places.min()) < 0 or int(places.max()) >= size:
        raise RangeError("these outputs are not the layer's", given=places.tolist()[:8], expected=f"0 to {size - 1}")
    mask = torch.zeros(size, dtype=torch.bool)
    mask[places.long()] = True
    if bool(mask.all()):
        raise RangeError("the concept's outputs are all of the layer's, so nothing is left to compare with")
    return mask
