"""The state of a network after every step, where a plain run gives only the last one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from plexus.errors import UnsupportedError
from plexus.nn import Stateful
from plexus.probe._quiet import quiet

__all__ = ["trace"]


def trace(model: nn.Module, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
    """Run a model with state step by step: what it puts out, and its state after each step.

    Args:
        model: `out, state = model(x, state)`, time first (a neuron layer of ours, a `Sequential`); it is as before when
            this returns.
        x: `[time, batch, …]`.
        state: where to start; None is rest.

    Returns:
        The output `[time, batch, …]`, and the state with time put first in each tensor: `[time, batch, …]`.

    Raises:
        UnsupportedError: the model does not hand its state on.

    Examples:
        >>> from plexus.nn import LIF
        >>> spikes, state = trace(LIF(3), torch.ones(5, 2, 3))
        >>> spikes.shape, state.v.shape
        (torch.Size([5, 2, 3]), torch.Size([5, 2, 3]))
    """
    if not isinstance(model, Stateful):
        raise UnsupportedError(
            f"{type(model).__name__} does not hand its state on",
            expected="`out, state = model(x, state)` with initial_state()",
        )
    outputs, states = [], []
    with quiet(model), torch.no_grad():
        for step in x.split(1):
            out, state = model(step, state)
            outputs.append(out)
            states.append(state)
    return torch.cat(outputs), _stacked(states)


def _stacked(states: list[Any]) -> Any:
    first = states[0]
    if isinstance(first, Tensor):
        return torch.stack(states)
    if isinstance(first, tuple | list):
        parts = [_stacked(list(part)) for part in zip(*states, strict=True)]
        return type(first)(*parts) if hasattr(first, "_fields") else type(first)(parts)
    return first
