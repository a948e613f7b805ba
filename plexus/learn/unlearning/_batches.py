"""Batches that can be gone through again, and means over them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from plexus.errors import RangeError, ShapeError
from plexus.probe.scores._batch import IGNORED, Batch, Forward, cross_entropy, predict
from plexus.units._draws import random_order
from plexus.units._evaluating import evaluating


class Batches:
    """`(x, y)` batches of a data set, as often as they are asked for; newly shuffled each time when given a generator.

    Examples:
        >>> batches = Batches(torch.arange(5.0), torch.arange(5), size=2)
        >>> [len(y) for _, y in batches], [len(y) for _, y in batches]
        ([2, 2, 1], [2, 2, 1])
    """

    def __init__(self, x: Tensor, y: Tensor, size: int = 64, *, generator: torch.Generator | None = None) -> None:
        if len(x) != len(y):
            raise ShapeError("labels do not match samples", given=f"{len(x)} samples, {len(y)} labels")
        if size < 1:
            raise RangeError("a batch holds at least one example", given=size)
        self.x, self.y, self.size, self.generator = x, y, size, generator

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        n = len(self.y)
        draw = self.generator
        order = torch.arange(n) if draw is None else random_order(n, draw)
        for index in order.to(self.x.device).split(self.size):
            if len(index):
                yield self.x[index], self.y[index.to(self.y.device)]

    def __len__(self) -> int:
        return -(-len(self.y) // self.size)


def reusable(batches: Iterable[Any], name: str) -> list[Any] | Iterable[Any]:
    """The batches, in a form that can be gone through several times; refused when there are none."""
    again: list[Any] | Iterable[Any] = list(batches) if iter(batches) is batches else batches
    if next(iter(again), None) is None:
        raise RangeError(f"the {name} set is empty")
    return again


@torch.no_grad()
def outputs(model: nn.Module, batches: Iterable[Any], forward: Forward | None = None) -> tuple[Tensor, Tensor]:
    """Logits `[row, class]` and targets `[row]` of every labelled position, in eval mode."""
    logits, targets = [], []
    with evaluating(model):
        for raw in batches:
            found, wanted = predict(model, Batch.of(raw), forward)
            if wanted is None:
                raise ShapeError("these batches carry no labels", expected="(x, y) or a mapping with labels")
            if found.shape[:-1] != wanted.shape:
                found = found.movedim(1, -1)
            rows = found.reshape(-1, found.shape[-1])
            keep = wanted.reshape(-1) != IGNORED
            logits.append(rows[keep].float())
            targets.append(wanted.reshape(-1)[keep])
    if not logits:
        raise RangeError("there is no batch")
    return torch.cat(logits), torch.cat(targets)


def accuracy(model: nn.Module, batches: Iterable[Any], forward: Forward | None = None) -> float:
    """Share of labelled positions whose largest logit is at the label.

    Examples:
        >>> model = nn.Identity()
        >>> accuracy(model, [(torch.eye(3), torch.tensor([0, 1, 0]))])
        0.6666666865348816
    """
    logits, targets = outputs(model, batches, forward)
    return float((logits.argmax(-1) == targets).float().mean())


@torch.no_grad()
def mean_loss(model: nn.Module, batches: Iterable[Any], forward: Forward | None = None) -> float:
    """Cross-entropy over all examples, in nats, in eval mode."""
    total, count = 0.0, 0
    with evaluating(model):
        for raw in batches:
            logits, targets = predict(model, Batch.of(raw), forward)
            if targets is None:
                raise ShapeError("these batches carry no labels", expected="(x, y) or a mapping with labels")
            total += float(cross_entropy(logits, targets)) * len(targets)
            count += len(targets)
    if not count:
        raise RangeError("there is no batch")
    return total / count
