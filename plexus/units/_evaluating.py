"""Evaluation mode for a while."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import nn


@contextlib.contextmanager
def modes_kept(model: nn.Module) -> Iterator[None]:
    """Afterwards each module is in the mode that it was in, training or evaluation; frozen parts of a model differ."""
    flags = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, training in flags:
            module.training = training


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside; afterwards as `modes_kept`."""
    with modes_kept(model):
        model.eval()
        yield


@contextlib.contextmanager
def differentiable(model: object) -> Iterator[None]:
    """Inside, torch's recurrent layers have gradients in evaluation mode on a GPU too, which cuDNN refuses."""
    recurrent = (
        [part for part in model.modules() if isinstance(part, nn.RNNBase)] if isinstance(model, nn.Module) else []
    )
    if any(parameter.is_cuda for layer in recurrent for parameter in layer.parameters()):
        with torch.backends.cudnn.flags(enabled=False):
            yield
    else:
        yield
