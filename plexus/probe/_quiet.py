"""Running a model without leaving a trace on it."""

from __future__ import annotations

import contextlib
import random
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from plexus.units._evaluating import differentiable

# kinds of nearly all attributes of modules, which hold no tensors: asking Tensor, whose isinstance is slow, is saved
_PLAIN = frozenset({type(None), bool, int, float, str, dict, set, OrderedDict, torch.device, torch.dtype, torch.Size})


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
    saved = [_ModuleState(module) for module in model.modules()]
    try:
        yield
    finally:
        with torch.no_grad():
            for state in saved:
                state.put_back()


@contextlib.contextmanager
def quiet(model: nn.Module, *, grad: bool = False) -> Iterator[None]:
    """Evaluation mode, without gradients unless asked; everything is put back on leaving, after errors too.

    Parameters, their gradients, training flags, buffers, tensor attributes and random state are as before. Inference
    mode is left for the time, because what is computed in it could not be used in training.
    """
    with torch.inference_mode(False), random_state_kept(), state_kept(model), torch.set_grad_enabled(grad):
        model.eval()
        with differentiable(model) if grad else contextlib.nullcontext():
            yield


class _ModuleState:
    """What one module holds besides its parameters and its children."""

    def __init__(self, module: nn.Module) -> None:
        self.module, self.training = module, module.training
        self.buffers = {name: (value, _copies(value)) for name, value in module._buffers.items()}
        self.attributes = {
            name: (value, _copies(value))
            for name, value in vars(module).items()
            if type(value) not in _PLAIN and _holds(value)
        }
        self.empty = [name for name, value in vars(module).items() if value is None]
        self.names = set(vars(module))

    def put_back(self) -> None:
        attributes = vars(self.module)
        self.module.training = self.training
        self.module._buffers.clear()
        for name, (value, copies) in self.buffers.items():
            self.module._buffers[name] = _as_it_was(value, copies)
        for name, (value, copies) in self.attributes.items():
            attributes[name] = _as_it_was(value, copies)
        for name in self.empty:
            if _holds(attributes.get(name)):
                attributes[name] = None
        if attributes.keys() != self.names:
            for name in [name for name, value in attributes.items() if name not in self.names and _holds(value)]:
                del attributes[name]


def _holds(value: Any) -> bool:
    """Whether a value is a tensor, or a tuple or list of tensors, as hidden states are."""
    parts = value if isinstance(value, tuple | list) else [value]
    return len(parts) > 0 and all(isinstance(part, Tensor) and not isinstance(part, nn.Parameter) for part in parts)


def _copies(value: Any) -> list[Tensor]:
    parts = [] if value is None else [value] if isinstance(value, Tensor) else list(value)
    return [part.detach().clone() for part in parts]


def _as_it_was(value: Any, copies: list[Tensor]) -> Any:
    parts = [] if value is None else [value] if isinstance(value, Tensor) else list(value)
    for part, copy in zip(parts, copies, strict=True):
        if part.shape != copy.shape:
            part.data = copy
        elif not torch.equal(part.detach(), copy):
            part.detach().copy_(copy)
    return value
