"""Which parts of a network are layers of units, and what their numbers mean."""

from __future__ import annotations

import glob
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor, nn

from plexus.errors import SiteError
from plexus.units import Site, sites
from plexus.units._paths import walk

Kind = Literal["spiking", "rectified", "bounded", "smooth", "linear"]

_RECTIFIED = (nn.ReLU, nn.ReLU6, nn.Threshold, nn.Hardshrink, nn.Softshrink)
_LIMITS: dict[type[nn.Module], tuple[float, float]] = {
    nn.Sigmoid: (0.0, 1.0),
    nn.Hardsigmoid: (0.0, 1.0),
    nn.Tanh: (-1.0, 1.0),
    nn.Hardtanh: (-1.0, 1.0),
    nn.Softsign: (-1.0, 1.0),
    nn.ReLU6: (0.0, 6.0),
    nn.RNN: (-1.0, 1.0),
    nn.GRU: (-1.0, 1.0),
    nn.LSTM: (-1.0, 1.0),
    nn.RNNCell: (-1.0, 1.0),
    nn.GRUCell: (-1.0, 1.0),
    nn.LSTMCell: (-1.0, 1.0),
}
_NOT_WEIGHTS = (nn.Embedding, nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm)
_NOT_UNITS = (nn.MultiheadAttention, nn.Softmax, nn.LogSoftmax, nn.Softmin, nn.Softmax2d)


@dataclass(frozen=True)
class Layer:
    """A module whose output is the activity of units.

    Attributes:
        site: its output.
        module: itself.
        kind: spiking, rectified (silent means not above 0), bounded, smooth, or linear (read for want of activations).
        limits: lowest and highest value, where it has any.
        inner: sites of its input, for spiking layers.
    """

    site: Site
    module: nn.Module
    kind: Kind
    limits: tuple[float, float] | None = None

    @property
    def loops(self) -> bool:
        """Whether the layer keeps a state from step to step."""
        return self.kind == "spiking" or isinstance(self.module, nn.RNNBase) or hasattr(self.module, "initial_state")


def layers(network: nn.Module) -> tuple[list[Layer], list[str]]:
    """The layers of a network in its order, and the names of those whose axes could not be told.

    These are neurons with a state, recurrent layers and activation functions; where a network has none of them as
    modules, its weight layers.
    """
    found: list[Layer] = []
    unclear: list[str] = []
    inside: list[str] = []
    named = _once(network)
    for name, module in named:
        if any(name.startswith(f"{outer}.") for outer in inside):
            continue
        kind = _kind(module)
        if kind is None:
            continue
        _append(found, unclear, network, name, module, kind)
        inside.append(name)
    if not found and not unclear:
        for name, module in named:
            leaf = not list(module.children()) and getattr(module, "weight", None) is not None
            if leaf and not isinstance(module, _NOT_WEIGHTS):
                _append(found, unclear, network, name, module, "linear")
    return found, unclear


def _once(network: nn.Module) -> list[tuple[str, nn.Module]]:
    """Every module under its first name; wrappers do not show."""
    first: dict[nn.Module, str] = {}
    for name, module in walk(network):
        first.setdefault(module, name)
    return [(name, module) for module, name in first.items()]


def threshold_of(module: nn.Module) -> Tensor | None:
    """The firing threshold of a spiking module, a number or one per unit; None if it shows none.

    A membrane in mV has none that an input could be compared with.
    """
    if getattr(module, "biophysical", False) is True:
        return None
    for name in ("threshold", "v_th", "v_threshold"):
        value: Any = getattr(module, name, getattr(getattr(module, "p", None), name, None))
        if isinstance(value, Tensor | float | int) and not isinstance(value, bool):
            return torch.as_tensor(value).detach()
    return None


def membrane_of(module: nn.Module) -> tuple[Tensor, Tensor, Tensor] | None:
    """Decay per step, gain of the input and resting potential of a leaky unit; None if they cannot be told."""
    decay: Any = getattr(module, "decay", getattr(module, "beta", None))
    if not isinstance(decay, Tensor | float):
        return None
    decay = torch.as_tensor(decay).detach()
    gain = 1 - decay if getattr(module, "scale_input", False) is True else torch.ones(())
    rest: Any = getattr(module, "rest", 0.0)
    return decay, gain, torch.as_tensor(rest if isinstance(rest, Tensor | float | int) else 0.0).detach()


def _kind(module: nn.Module) -> Kind | None:
    declared = getattr(module, "activity", None)  # our own neurons say what they put out
    if declared in get_args(Kind):
        return cast(Kind, declared)
    container = isinstance(module, nn.Sequential | nn.ModuleList)
    stepped = isinstance(getattr(module, "axes", None), str) or membrane_of(module) is not None
    if stepped and not container and threshold_of(module) is not None and not isinstance(module, nn.Threshold):
        return "spiking"
    if isinstance(module, _RECTIFIED):
        return "rectified"
    if type(module) in _LIMITS:
        return "bounded"
    if not container and hasattr(module, "initial_state") and isinstance(getattr(module, "axes", None), str):
        return "smooth"
    place = type(module).__module__
    if place in ("torch.nn.modules.activation", "transformers.activations") and not isinstance(module, _NOT_UNITS):
        return "smooth"
    return None


def _append(
    found: list[Layer], unclear: list[str], network: nn.Module, name: str, module: nn.Module, kind: Kind
) -> None:
    try:
        site = sites(network, glob.escape(name))[0] if name else sites(network, "")[0]
    except SiteError:
        unclear.append(name)
        return
    limits = _LIMITS.get(type(module)) if kind != "spiking" else (0.0, 1.0)
    found.append(Layer(site, module, kind, limits))
