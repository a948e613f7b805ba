"""Running a model without leaving a trace on it."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


@contextlib.contextmanager
def random_state_kept() -> Iterator[None]:
    """Put the random state of torch (and its GPUs), NumPy and Python back on leaving."""
    cuda = torch.cuda.is_available() and torch.cuda.is_initialized()
    saved = torch.get_rng_state(), np.random.get_state(), random.getstate()  # noqa: NPY002 (the global state is the point)
    saved_cuda = torch.cuda.get_rng_state_all() if cuda else []
    try:
        yield
    finally:
        torch.set_rng_state(saved[0])
        np.random.set_state(saved[1])  # noqa: NPY002
        random.setstate(saved[2])
        if saved_cuda:
            torch.cuda.set_rng_state_all(saved_cuda)


@contextlib.contextmanager
def state_kept(model: nn.Module) -> Iterator[None]:
    """Put training flags, buffers and tensors kept as plain attributes back on leaving, values and identities."""
    saved = [
        (
            module,
            module.training,
            _copies(module._buffers),
            _copies({name: value for name, value in vars(module).items() if isinstance(value, Tensor)}),
        )
        for module in model.modules()
    ]
    try:
        yield
    finally:
        with torch.no_grad():
            for module, training, buffers, attributes in saved:
                module.training = training
                module._buffers.clear()
                for name, (value, copy) in buffers.items():
                    module._buffers[name] = _as_it_was(value, copy)
                for name, (value, copy) in attributes.items():
                    vars(module)[name] = _as_it_was(value, copy)


@contextlib.contextmanager
def quiet(model: nn.Module, *, grad: bool = False) -> Iterator[None]:
    """Evaluation mode, without gradients unless asked; everything is put back on leaving, after errors too.

    Parameters, their gradients, training flags, buffers, tensor attributes and random state are as before.
    """
    with random_state_kept(), state_kept(model), torch.set_grad_enabled(grad):
        model.eval()
        yield


def _copies(tensors: dict[str, Any]) -> dict[str, tuple[Tensor | None, Tensor | None]]:
    return {name: (value, None if value is None else value.detach().clone()) for name, value in tensors.items()}


def _as_it_was(value: Tensor | None, copy: Tensor | None) -> Tensor | None:
    if value is None or copy is None:
        return value
    if value.shape != copy.shape:
        value.data = copy
    elif not torch.equal(value.detach(), copy):
        value.detach().copy_(copy)
    return value
