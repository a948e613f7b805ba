"""Which numbers of which layers go when units go: all worked out first, so that a refusal changes nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from plexus.errors import UnsupportedError
from plexus.units import Site
from plexus.units._exact import why_not_exact

__all__ = ["Cuts", "check_plain", "layer_kind", "refusal", "width_in", "width_out"]

_CONV = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass
class Cuts:
    """What is kept of tensors, what is added to biases before, and what numbers of modules change.

    Attributes:
        keep: (module name, tensor name, dimension) → bool mask of what stays.
        shifts: module name → what its bias gains `[out]`: what removed units put in that is not 0.
        attributes: (module name, attribute) → its new value.
        config: configurations, what changes in them, and the new value.
    """

    keep: dict[tuple[str, str, int], Tensor] = field(default_factory=dict)
    shifts: dict[str, Tensor] = field(default_factory=dict)
    attributes: dict[tuple[str, str], Any] = field(default_factory=dict)
    config: list[tuple[Any, str, Any]] = field(default_factory=list)

    def add(self, site: Site, path: str, name: str, dim: int, keep: Tensor) -> None:
        """Keep some slices of a tensor."""
        if (path, name, dim) in self.keep:
            raise refusal(
                site, f"its units are also those of another site ({path}.{name} is cut twice)", "name each unit once"
            )
        self.keep[path, name, dim] = keep

    def outputs(self, site: Site, path: str, module: nn.Module, keep: Tensor) -> None:
        """Keep some of what a linear layer or convolution puts out."""
        kind = layer_kind(module)
        self.add(site, path, "weight", 1 if kind == "transposed" else 0, keep)
        if getattr(module, "bias", None) is not None:
            self.add(site, path, "bias", 0, keep)
        name = {"conv": "out_channels", "transposed": "nf"}.get(str(kind), "out_features")
        self.attributes[path, name] = int(keep.sum())

    def inputs(self, site: Site, path: str, module: nn.Module, keep: Tensor) -> None:
        """Keep some of what a linear layer or convolution reads."""
        kind = layer_kind(module)
        self.add(site, path, "weight", 0 if kind == "transposed" else 1, keep)
        name = {"conv": "in_channels", "transposed": "nx"}.get(str(kind), "in_features")
        if hasattr(module, name):
            self.attributes[path, name] = int(keep.sum())

    def shape(self, path: str, name: str, tensor: Tensor) -> tuple[int, ...]:
        """The shape that a tensor will have."""
        return tuple(
            int(self.keep[path, name, dim].sum()) if (path, name, dim) in self.keep else size
            for dim, size in enumerate(tensor.shape)
        )

    def apply(self, find: Callable[[str], nn.Module]) -> None:
        """Make the change. Parameters become new ones; their gradients are dropped."""
        with torch.no_grad():
            for path, shift in self.shifts.items():
                bias: Any = find(path).bias
                bias.copy_((bias.to(shift.dtype) + shift.to(bias.device)).to(bias.dtype))
            for (path, name, dim), keep in self.keep.items():
                module = find(path)
                old = getattr(module, name)
                new = old.detach().index_select(dim, keep.nonzero().squeeze(1).to(old.device)).clone()
                if isinstance(old, nn.Parameter):
                    module._parameters[name] = nn.Parameter(new, old.requires_grad)
                else:
                    module._buffers[name] = new
            for (path, name), value in self.attributes.items():
                setattr(find(path), name, value)
            for config, name, value in self.config:
                setattr(config, name, value)

    def touched(self) -> Iterator[tuple[str, str]]:
        """Module and tensor names that change."""
        yield from dict.fromkeys((path, name) for path, name, _ in self.keep)
        yield from ((path, "bias") for path in self.shifts)


def layer_kind(module: nn.Module) -> str | None:
    """`linear`, `conv`, `transposed` (GPT-2's linear layer), or None for what is none of these."""
    if type(module) is nn.Linear:
        return "linear"
    if type(module) in _CONV:
        return "conv"
    if type(module).__name__ == "Conv1D" and hasattr(module, "nf"):
        return "transposed"
    return None


def check_plain(site: Site, path: str, module: nn.Module) -> None:
    """Raise `UnsupportedError` if a layer's weights are not plain tensors of its own."""
    reason = why_not_exact(module)
    if reason is None and layer_kind(module) is None:
        reason = "it is no plain linear layer or convolution"
    if reason is not None:
        raise refusal(site, f"{path} is a {type(module).__name__}; {reason}")


def width_in(module: nn.Module) -> int:
    """How many numbers (channels) a layer reads."""
    weight: Any = module.weight
    return int(weight.shape[0 if layer_kind(module) == "transposed" else 1])


def width_out(module: nn.Module) -> int:
    """How many numbers (channels) a layer puts out."""
    weight: Any = module.weight
    return int(weight.shape[1 if layer_kind(module) == "transposed" else 0])


def refusal(site: Site, reason: str, mend: str | None = None) -> UnsupportedError:
    """The error for a site whose units cannot be removed exactly."""
    return UnsupportedError(
        f"units at site {site} cannot be removed: {reason}",
        mend=mend or "silence them with an edit in place of removing them: edit.scale(model, units, 0.0)",
    )
