"""Layers whose weights are a matrix: which side of it is the input, and whose the weights are."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = [
    "CONVOLUTIONS",
    "TRANSPOSED",
    "by_input",
    "by_output",
    "from_input",
    "from_output",
    "inputs",
    "layout",
    "outputs",
    "uses",
]

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def layout(module: nn.Module | None) -> str | None:
    """How the weight of a linear layer lies: `out in`, `in out`, or None if the module is none."""
    if isinstance(module, (nn.Linear, *CONVOLUTIONS)) and not isinstance(module, nn.LazyLinear):
        return "out in"
    if isinstance(module, (nn.Embedding, *TRANSPOSED)) or (type(module).__name__ == "Conv1D" and hasattr(module, "nf")):
        return "in out"
    return None


def inputs(module: nn.Module) -> int:
    """How many units the layer reads."""
    weight: Tensor = module.weight  # type: ignore[assignment]
    return int(weight.shape[0] if layout(module) == "in out" else weight.shape[1] * getattr(module, "groups", 1))


def outputs(module: nn.Module) -> int:
    """How many units the layer puts out."""
    weight: Tensor = module.weight  # type: ignore[assignment]
    if layout(module) == "in out":
        return int(weight.shape[1] * getattr(module, "groups", 1))
    return int(weight.shape[0])


def by_input(module: nn.Module, weight: Tensor) -> Tensor:
    """The weight as `[group, out, in, …]`."""
    groups = int(getattr(module, "groups", 1))
    split: Tensor = weight.reshape(groups, -1, *weight.shape[1:])
    return split.transpose(1, 2) if layout(module) == "in out" else split


def from_input(module: nn.Module, matrix: Tensor, shape: torch.Size) -> Tensor:
    """The weight that `by_input` gave as a matrix, as it lies in the layer."""
    matrix = matrix.transpose(1, 2) if layout(module) == "in out" else matrix
    return matrix.reshape(shape)


def by_output(module: nn.Module, weight: Tensor) -> Tensor:
    """The weight as `[out, …]`."""
    if layout(module) != "in out":
        return weight
    groups = int(getattr(module, "groups", 1))
    return weight.reshape(groups, -1, *weight.shape[1:]).transpose(1, 2).flatten(0, 1)


def from_output(module: nn.Module, rows: Tensor, shape: torch.Size) -> Tensor:
    """The weight that `by_output` gave, as it lies in the layer."""
    if layout(module) != "in out":
        return rows
    groups = int(getattr(module, "groups", 1))
    return rows.reshape(groups, -1, *rows.shape[1:]).transpose(1, 2).reshape(shape)


def uses(model: nn.Module, parameter: nn.Parameter | None) -> list[str]:
    """The names under which a model uses a parameter: more than one where weights are tied or shared."""
    return [name for name, known in model.named_parameters(remove_duplicate=False) if known is parameter]
