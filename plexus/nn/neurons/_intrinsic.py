"""The two kinds of numbers that a spiking network learns: those of its neurons, and those of the synapses between.

A module is a neuron if it says what it can learn (`learn`) and has a state; the parameters that it owns itself are
intrinsic, except its recurrent weights (`weight…`, `bias…`). Everything else is synaptic.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from plexus.nn._sequential import Stateful

__all__ = ["freeze_intrinsic", "intrinsic_parameters", "synaptic_parameters"]


def intrinsic_parameters(model: nn.Module) -> Iterator[nn.Parameter]:
    """The parameters of the neurons themselves: time constants, thresholds, resets … Each once.

    Examples:
        >>> import torch
        >>> from plexus.nn import LIF, Sequential
        >>> model = Sequential(nn.Linear(3, 4), LIF(4, learn=("tau_mem", "threshold")))
        >>> len(list(intrinsic_parameters(model))), len(list(synaptic_parameters(model)))
        (2, 2)
        >>> optimizer = torch.optim.Adam(
        ...     [{"params": synaptic_parameters(model)}, {"params": intrinsic_parameters(model), "lr": 3e-4}], lr=1e-3
        ... )
    """
    seen: set[int] = set()
    for module in model.modules():
        if not (hasattr(module, "learn") and isinstance(module, Stateful)):
            continue
        for name, parameter in module.named_parameters(recurse=False):
            if not name.startswith(("weight", "bias")) and id(parameter) not in seen:
                seen.add(id(parameter))
                yield parameter


def synaptic_parameters(model: nn.Module) -> Iterator[nn.Parameter]:
    """All parameters that are not intrinsic: weights and biases of the synapses, recurrent ones among them. Each once.

    Examples:
        >>> from plexus.nn import RecurrentLIF
        >>> [tuple(p.shape) for p in synaptic_parameters(RecurrentLIF(4, learn=("tau_mem",)))]
        [(4, 4)]
    """
    intrinsic = {id(parameter) for parameter in intrinsic_parameters(model)}
    return (parameter for parameter in model.parameters() if id(parameter) not in intrinsic)


def freeze_intrinsic(model: nn.Module, frozen: bool = True) -> int:
    """Let only the synapses learn (or, with `frozen=False`, the neurons again); returns how many tensors it concerns.

    Examples:
        >>> from plexus.nn import LIF
        >>> layer = LIF(4, learn=("tau_mem",))
        >>> freeze_intrinsic(layer), layer.log_tau_mem.requires_grad
        (1, False)
    """
    parameters = list(intrinsic_parameters(model))
    for parameter in parameters:
        parameter.requires_grad_(not frozen)
    return len(parameters)
