"""Where layers lie: a layer is made where the tensors that it is given lie, else on torch's default device."""

from __future__ import annotations

from itertools import chain

import torch
from torch import Tensor, nn

__all__ = ["device_of", "number_of", "place_of"]


def device_of(module: nn.Module) -> torch.device | None:
    """Where a module's parameters and buffers lie, by the first of them; None of one that has none.

    Examples:
        >>> device_of(nn.Linear(2, 2)), device_of(nn.ReLU())
        (device(type='cpu'), None)
    """
    first = next(chain(module.parameters(), module.buffers()), None)
    return None if first is None else first.device


def place_of(*given: object) -> torch.device:
    """The device of the first tensor among `given` that lies outside main memory; else torch's default device.

    Examples:
        >>> place_of(None, 1.0, torch.ones(2))
        device(type='cpu')
    """
    devices = (value.device for value in given if isinstance(value, Tensor))
    return next((device for device in devices if device.type != "cpu"), torch.get_default_device())


def number_of(module: nn.Module, value: float | Tensor) -> Tensor:
    """A number of a layer that is being made, as a tensor of its own where the layer lies.

    A layer follows a number outside main memory, and what comes from main memory follows the layer.

    Examples:
        >>> number_of(nn.Linear(2, 2), 3.0)
        tensor(3.)
    """
    number = torch.as_tensor(value, dtype=torch.get_default_dtype()).detach().clone()
    device = device_of(module)
    if device is None or device == number.device:
        return number
    if number.device.type == "cpu":
        return number.to(device)
    module.to(number.device)
    return number
