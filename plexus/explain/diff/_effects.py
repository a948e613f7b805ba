"""Normalised indirect effect: how far an intervention carries one kind of input to the other kind's answer.

With p = P(true) - P(false), its mean over true statements p⁺ and over false ones p⁻, and p* under the intervention:

    false → true    (p*⁻ - p⁻) / (p⁺ - p⁻)          0: no effect, 1: false statements are taken as true ones are
    true → false    (p⁺ - p*⁺) / (p⁺ - p⁻)
    to the end      (p*⁻ - p⁻) / (1 - p⁻)            the published code's other denominator: 1 is a full flip

Source: Marks & Tegmark 2023; Du et al. 2025.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from plexus.errors import RangeError, ShapeError


class IndirectEffect(NamedTuple):
    """Normalised indirect effects of an intervention on both kinds of inputs.

    Attributes:
        to_true: of the intervention on false inputs.
        to_false: of the intervention on true inputs.
        to_true_of_all: of the first, as a share of all that was left to gain.
        to_false_of_all: of the second, as a share of all that was left to lose.
    """

    to_true: float
    to_false: float
    to_true_of_all: float
    to_false_of_all: float

    @property
    def mean(self) -> float:
        """Of both directions, with the difference of the two kinds as the denominator."""
        return (self.to_true + self.to_false) / 2


def indirect_effect(true: Tensor, false: Tensor, true_edited: Tensor, false_edited: Tensor) -> IndirectEffect:
    """Normalised indirect effects from P(true) - P(false) of each input, `[input]` each.

    Args:
        true, false: of true and of false inputs, untouched.
        true_edited: of the true inputs under the intervention towards false.
        false_edited: of the false inputs under the intervention towards true.

    Raises:
        ShapeError: no inputs, or another number of them under the intervention.
        RangeError: a number outside [-1, 1], or true and false inputs that do not differ.

    Examples:
        >>> import torch
        >>> yes, no = torch.tensor([0.8, 0.6]), torch.tensor([-0.7, -0.5])
        >>> found = indirect_effect(yes, no, torch.tensor([0.0, 0.0]), yes)
        >>> round(found.to_true, 3), round(found.to_false, 3), round(found.to_true_of_all, 3)
        (1.0, 0.538, 0.813)
    """
    for kind, plain, edited in (("true", true, true_edited), ("false", false, false_edited)):
        if plain.dim() != 1 or not len(plain) or plain.shape != edited.shape:
            raise ShapeError(
                f"the {kind} inputs are measured with and without the intervention",
                given=f"{tuple(plain.shape)} and {tuple(edited.shape)}",
                expected="[input] twice",
            )
    means = [float(part.double().mean()) for part in (true, false, true_edited, false_edited)]
    if not all(-1 - 1e-6 <= mean <= 1 + 1e-6 for mean in means):
        raise RangeError("differences of probabilities lie in [-1, 1]", given=means)
    yes, no, yes_edited, no_edited = means
    if abs(yes - no) < 1e-9:
        raise RangeError("true and false inputs do not differ, so there is nothing to carry across", given=(yes, no))
    return IndirectEffect(
        (no_edited - no) / (yes - no),
        (yes - yes_edited) / (yes - no),
        (no_edited - no) / max(1 - no, 1e-9),
        (yes - yes_edited) / max(1 + yes, 1e-9),
    )
