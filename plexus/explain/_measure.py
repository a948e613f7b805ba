"""Measuring a model: each measure with the same random numbers, the model as before when it is done."""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from plexus.edit import Edit
from plexus.errors import DtypeError, RangeError, ShapeError
from plexus.probe._quiet import random_state_kept, state_kept

Measure = Callable[[nn.Module], Any]
RandomState = tuple[Tensor, list[Tensor]]
"""Of torch: in main memory, and on each GPU."""


def random_state() -> RandomState:
    """The random numbers that torch would draw now, on every device."""
    return torch.get_rng_state(), torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []


def measured(model: nn.Module, suite: Mapping[str, Measure], start: RandomState) -> dict[str, float]:
    """Every measure's number; each begins at the random state `start`."""
    return {name: number_of(name, run_measure(model, measure, start)) for name, measure in suite.items()}


def run_measure(model: nn.Module, measure: Measure, start: RandomState) -> Any:
    """What one measure gives, begun at the random state `start`."""
    with random_state_kept(), state_kept(model):
        torch.set_rng_state(start[0])
        if start[1]:
            torch.cuda.set_rng_state_all(start[1])
        return measure(model)


def number_of(name: str, value: Any) -> float:
    """One finite number.

    Raises:
        DtypeError: it is none.
        RangeError: it is NaN or infinite.
    """
    if isinstance(value, Tensor) and value.numel() == 1:
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        given = f"{type(value).__name__} {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise DtypeError(f"the measure {name!r} gave no number", given=given, expected="a float")
    if not math.isfinite(value):
        raise RangeError(f"the measure {name!r} is not finite", given=value)
    return float(value)


def items_of(name: str, value: Any) -> Tensor:
    """One finite number per item, float64 `[item]`.

    Raises:
        ShapeError: there are fewer than two, or they have several dimensions.
        RangeError: one is NaN or infinite.
    """
    try:
        items = torch.as_tensor(value).detach().cpu().double()
    except (TypeError, ValueError, RuntimeError) as error:
        raise DtypeError(f"the measure {name!r} gave no numbers", given=type(value).__name__) from error
    if items.dim() != 1 or len(items) < 2:
        raise ShapeError(
            f"the measure {name!r} gives one number per item",
            given=tuple(items.shape),
            expected="[item], at least two",
            mend="return the losses or the hits of the items, not their mean",
        )
    if not bool(items.isfinite().all()):
        raise RangeError(f"the measure {name!r} is not finite", given=items[~items.isfinite()][:3].tolist())
    return items


def check_model(model: object) -> None:
    """Raise `DtypeError` unless it is a torch module."""
    if not isinstance(model, nn.Module):
        raise DtypeError("what is compared is a torch module", given=type(model).__name__)


def check_edit(edit: object, form: str) -> None:
    """Raise `DtypeError` unless it is an edit as a value; `form` shows how the call looks."""
    if not isinstance(edit, Edit):
        raise DtypeError("this is no edit as a value", given=type(edit).__name__, mend=f"leave the model out: {form}")


def check_suite(suite: object) -> None:
    """Raise unless it maps names to at least one measure."""
    if not isinstance(suite, Mapping):
        raise DtypeError("a suite maps names to measures", given=type(suite).__name__)
    if not suite:
        raise ShapeError("the suite is empty", expected="at least one measure")
    for name, measure in suite.items():
        if not callable(measure):
            raise DtypeError(f"the measure {name!r} cannot be called", given=type(measure).__name__)


def check_draws(n_random: object, seed: object) -> None:
    """Raise unless there is at least one control, drawn with an integer seed."""
    for what, number in (("n_random", n_random), ("seed", seed)):
        if isinstance(number, bool) or not isinstance(number, numbers.Integral):
            raise DtypeError(f"{what} is an integer", given=repr(number))
    if isinstance(n_random, numbers.Integral) and n_random < 1:
        raise RangeError(
            "an effect is reported beside its control", given=f"n_random={n_random}", expected="at least 1"
        )
