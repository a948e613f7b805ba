"""Results compared number by number, whatever they are made of and wherever they lie."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from plexus.probe import Directions
from plexus.probe.sae import Quality
from plexus.probe.scores import ActivationCounts
from plexus.units import Neurons, Recording, Scores, Table


def numbers(found: Any, held: bool = False) -> Iterator[Tensor]:
    """The tensors and numbers in a result; those of the currency (`held`) must lie in main memory."""
    if isinstance(found, Tensor):
        assert not held or found.device.type == "cpu", "the currency lies in main memory"
        yield found.detach().cpu().double()
    elif isinstance(found, bool | int | float):
        yield torch.tensor(float(found), dtype=torch.float64)
    elif isinstance(found, Table):
        yield from numbers([found.sample, found.position, found.call, found.step], True)
    elif isinstance(found, Recording):
        yield from numbers([dict(found.values), dict(found.table), found.labels], True)
    elif isinstance(found, Scores):
        yield from numbers(found.values, True)
    elif isinstance(found, Neurons):
        yield from numbers([found.mask(site) for site in found.sites], True)
    elif isinstance(found, Mapping) and not isinstance(found, Directions):
        yield from numbers([found[key] for key in sorted(found, key=str)], held)
    elif isinstance(found, tuple | list):
        for part in found:
            yield from numbers(part, held)
    elif isinstance(found, nn.Module):
        yield from numbers(found.state_dict())
    elif dataclasses.is_dataclass(found):
        held = held or isinstance(found, Directions | ActivationCounts | Quality)
        yield from numbers([getattr(found, field.name) for field in dataclasses.fields(found)], held)


def same_numbers(found: Any, plain: Any, rtol: float = 1e-4, atol: float = 1e-5) -> None:
    """Fail unless both results hold the same numbers, up to rounding in single precision."""
    mine, theirs = list(numbers(found)), list(numbers(plain))
    assert len(mine) == len(theirs) > 0
    for one, other in zip(mine, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=rtol, atol=atol, equal_nan=True)
