"""One way to train, shared by the trained baselines of unlearning and by its audit."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from plexus.errors import RangeError, UnsupportedError
from plexus.probe.scores._batch import Batch, Forward, cross_entropy, predict
from plexus.units._evaluating import modes_kept

Objective = Callable[[nn.Module, Batch], Tensor]


def labelled_loss(forward: Forward | None = None) -> Objective:
    """Cross-entropy with the labels of the batch."""

    def objective(model: nn.Module, batch: Batch) -> Tensor:
        logits, targets = predict(model, batch, forward)
        if targets is None:
            raise UnsupportedError("these batches carry no labels")
        return cross_entropy(logits, targets)

    return objective


def descend(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    optimizer: torch.optim.Optimizer,
    epochs: int = 1,
    objective: Objective | None = None,
    forward: Forward | None = None,
    clip: float | None = None,
) -> nn.Module:
    """Gradient descent over the batches, in training mode; flags are put back. `clip` bounds the gradient's norm.

    Raises:
        RangeError: the loss is not finite.
    """
    compute = objective or labelled_loss(forward)
    with modes_kept(model), torch.enable_grad():
        model.train()
        for _ in range(epochs):
            for raw in batches:
                loss = compute(model, Batch.of(raw))
                if not bool(torch.isfinite(loss)):
                    raise RangeError("the loss is not finite", given=loss.item(), mend="lower the learning rate")
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                if clip is not None:
                    nn.utils.clip_grad_norm_(model.parameters(), clip)
                optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return model
