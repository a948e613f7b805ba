"""Networks of snnTorch and SpikingJelly as networks of ours, weights and all.

    snnTorch      Leaky(β):  τ_mem = -dt / ln β;  Synaptic(α, β):  also τ_syn = -dt / ln α
    SpikingJelly  LIFNode(τ): τ_mem = τ dt, Euler steps, spikes at the threshold itself, rest = v_reset

Neither package has to be installed where a model of it was unpickled by its own means; modules are told by their type.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from plexus.errors import UnsupportedError
from plexus.nn._sequential import Sequential
from plexus.nn.neurons import CUBA, IF, LIF

__all__ = ["from_snntorch", "from_spikingjelly"]

_PLAIN = (
    nn.Linear,
    nn.Conv1d,
    nn.Conv2d,
    nn.BatchNorm1d,
    nn.BatchNorm2d,
    nn.AvgPool2d,
    nn.MaxPool2d,
    nn.Flatten,
    nn.Dropout,
    nn.Identity,
)


def from_snntorch(model: nn.Module, example: Tensor, *, dt: float = 1.0, surrogate: Any = "arctan") -> Sequential:
    """A `Sequential` of ours that spikes as an snnTorch network of `Leaky` and `Synaptic` neurons does.

    One difference is left: with `reset_delay=False` and a reset by subtraction, snnTorch subtracts once more where the
    potential is above the threshold even after the reset; ours does not.

    Args:
        model: `nn.Sequential` of torch's layers and snnTorch's neurons (or one of them).
        example: an input of one step, `[batch, …]`, from which the numbers of units follow.
        dt: length of a step that ours shall name, ms.
        surrogate: of the spiking layers; snnTorch keeps its own as a function without a name.

    Raises:
        UnsupportedError: a layer that has no counterpart here, named.

    Examples:
        >>> from_snntorch(nn.Sequential(nn.Linear(3, 4)), torch.zeros(1, 3))          # and snntorch.Leaky, Synaptic
        Sequential(
          (0): Linear(in_features=3, out_features=4, bias=True)
        )
    """
    return _converted(model, example, "snntorch", {"Leaky": _leaky, "Synaptic": _synaptic}, dt, surrogate)


def from_spikingjelly(model: nn.Module, example: Tensor, *, dt: float = 1.0, surrogate: Any = "arctan") -> Sequential:
    """A `Sequential` of ours that spikes as a SpikingJelly network of `IFNode`, `LIFNode` and `ParametricLIFNode` does.

    Args:
        model: `nn.Sequential` of torch's or SpikingJelly's layers and its neurons (or one of them).
        example: an input of one step, `[batch, …]`, from which the numbers of units follow.
        dt: length of a step that ours shall name, ms.
        surrogate: of the spiking layers.

    Raises:
        UnsupportedError: a layer that has no counterpart here, named.

    Examples:
        >>> from_spikingjelly(nn.Sequential(nn.Linear(3, 4)), torch.zeros(1, 3))      # and IFNode, LIFNode, …
        Sequential(
          (0): Linear(in_features=3, out_features=4, bias=True)
        )
    """
    neurons = {"IFNode": _if_node, "LIFNode": _lif_node, "ParametricLIFNode": _lif_node}
    return _converted(model, example, "spikingjelly", neurons, dt, surrogate)


Convert = Callable[[Any, tuple[int, ...], dict[str, Any]], nn.Module]


def _converted(
    model: nn.Module, example: Tensor, package: str, neurons: Mapping[str, Convert], dt: float, surrogate: Any
) -> Sequential:
    found: list[nn.Module] = []
    shape = tuple(example.shape[1:])
    for name, layer in _opened(model):
        kind = type(layer)
        if kind.__module__.startswith(package) and kind.__name__ in neurons:
            try:
                found.append(neurons[kind.__name__](layer, shape, {"dt": dt, "surrogate": surrogate}))
            except UnsupportedError as error:
                raise UnsupportedError(f"layer {name} ({kind.__name__}) cannot be converted: {error.what}") from error
        else:
            found.append(_plain(name, layer))
            with torch.no_grad():
                like = next(layer.parameters(), example)
                blank = torch.zeros(2, *shape, dtype=like.dtype, device=like.device)
                shape = tuple(copy.deepcopy(found[-1]).eval()(blank).shape[1:])
    return Sequential(*found)


def _opened(model: nn.Module, prefix: str = "") -> list[tuple[str, nn.Module]]:
    if not isinstance(model, nn.Sequential):
        return [(prefix or "model", model)]
    parts = model._modules.items()  # named_children would leave out a layer's second use
    return [pair for name, part in parts if part is not None for pair in _opened(part, f"{prefix}.{name}".strip("."))]


def _plain(name: str, layer: nn.Module) -> nn.Module:
    """A layer of torch's, also where a package has derived from it to fold time."""
    kind = next((k for k in _PLAIN if isinstance(layer, k)), None)
    if kind is None:
        raise UnsupportedError(
            f"layer {name} ({type(layer).__name__}) has no counterpart here",
            expected="layers of torch and the neurons that the documentation lists",
        )
    if type(layer) is kind:
        return copy.deepcopy(layer)
    plain = kind.__new__(kind)
    plain.__dict__ = {k: v for k, v in copy.deepcopy(layer).__dict__.items() if k != "_forward_hooks"}
    plain.__dict__["_forward_hooks"] = type(layer._forward_hooks)()
    return plain


def _tau(decay: Any, dt: float) -> Tensor:
    """τ = -dt / ln decay, of one decay or one per unit."""
    value = torch.as_tensor(decay).detach().double().clamp(0, 1)  # as snnTorch clamps it
    if bool((value == 0).any()):
        raise UnsupportedError("a decay of zero: units without a memory")
    return torch.where(value < 1, -dt / value.log(), math.inf)


def _snn_common(layer: Any, options: dict[str, Any]) -> dict[str, Any]:
    reset = {"subtract": "soft", "zero": "hard", "none": "none"}[layer.reset_mechanism]
    if getattr(layer, "inhibition", False):
        raise UnsupportedError("only one unit of the layer may spike (inhibition)")
    factor = torch.as_tensor(getattr(layer, "graded_spikes_factor", 1.0))
    if bool((factor != 1).any()):
        raise UnsupportedError("graded spikes")
    if getattr(layer, "state_quant", False):
        raise UnsupportedError("a quantised state")
    return options | {"reset": reset, "threshold": torch.as_tensor(layer.threshold).detach().double()}


def _leaky(layer: Any, shape: tuple[int, ...], options: dict[str, Any]) -> nn.Module:
    common = _snn_common(layer, options)
    # a reset to zero comes to the same at once or a step later
    delayed = bool(layer.reset_delay) and common["reset"] == "soft"
    return LIF(shape, _tau(layer.beta, options["dt"]), delayed_reset=delayed, **common)


def _synaptic(layer: Any, shape: tuple[int, ...], options: dict[str, Any]) -> nn.Module:
    common = _snn_common(layer, options)
    if layer.reset_delay and common["reset"] == "soft":
        raise UnsupportedError("a subtraction one step after the spike behind a synapse (reset_delay=True)")
    dt = options["dt"]
    return CUBA(shape, _tau(layer.beta, dt), _tau(layer.alpha, dt), **common)


def _jelly_common(layer: Any, options: dict[str, Any]) -> dict[str, Any]:
    reset = layer.v_reset
    hard = {"reset": "soft"} if reset is None else {"reset": "hard", "reset_value": float(reset)}
    return options | hard | {"threshold": float(layer.v_threshold), "inclusive": True}


def _if_node(layer: Any, shape: tuple[int, ...], options: dict[str, Any]) -> nn.Module:
    common = _jelly_common(layer, options)
    start = 0.0 if layer.v_reset is None else float(layer.v_reset)  # where nothing leaks, the rest is but the start
    return IF(shape, rest=start, detach_reset=bool(layer.detach_reset), **common)


def _lif_node(layer: Any, shape: tuple[int, ...], options: dict[str, Any]) -> nn.Module:
    common = _jelly_common(layer, options)
    tau = 1 / layer.w.detach().double().sigmoid() if hasattr(layer, "w") else float(layer.tau)
    rest: dict[str, Any] = {} if layer.v_reset is None else {"rest": float(layer.v_reset)}
    return LIF(
        shape,
        tau * options["dt"],
        discretisation="euler",
        scale_input=bool(layer.decay_input),
        detach_reset=bool(layer.detach_reset),
        **rest,
        **common,
    )
