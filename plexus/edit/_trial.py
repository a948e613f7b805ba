"""A layer with new weights beside the edited layer, on random numbers in float64: are they one function?

    layer'(x)  =  edits of its output (layer(edits of its input (x)))

It holds for what layers of torch compute, and it is run because a layer may compute something else with its weights:
standardise them, scale what it looks up, apply them by groups.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from plexus.edit._layers import CONVOLUTIONS, TRANSPOSED, inputs

__all__ = ["why_other"]

_CLOSE = 1e-6  # far above the rounding of float64, far below what a wrong weight does
_PLACES = {nn.BatchNorm2d: (2, 2), nn.BatchNorm3d: (2, 2, 2), nn.GroupNorm: (3,)}

Affine = tuple[Tensor, Tensor]
"""Gain `[unit]`, or a matrix `[unit, unit]`, and offset `[unit]`."""


@torch.no_grad()
def why_other(module: nn.Module, new: Mapping[str, Tensor], reads: Iterable[Affine], puts: Iterable[Affine]) -> str:
    """Why a layer with new parameters is not the layer under edits, in words; empty if it is.

    Args:
        module: the layer, with its present parameters.
        new: name in the layer → value, float64.
        reads, puts: the edits of what it reads and of what it puts out, in the order in which they act.
    """
    old = {name: value.to(torch.float64, copy=True) for name, value in module._parameters.items() if value is not None}
    generator, device = torch.Generator().manual_seed(0), old["weight"].device
    if isinstance(module, nn.Embedding):
        x = torch.randint(module.num_embeddings, (1, 64), generator=generator).to(device)
    else:
        x = torch.randn(_shape(module), dtype=torch.float64, generator=generator).to(device)
    try:
        out = _call(module, old | dict(new), x)
        wanted, largest = _edited(x, reads)
        wanted, seen = _edited(_call(module, old, wanted), puts)
    except Exception as error:  # a forward of its own, which may take anything
        line = str(error).partition("\n")[0]
        return f"the {type(module).__name__} does not run as its kind does ({type(error).__name__}: {line})"
    apart = torch.where(wanted.isfinite(), (out - wanted).abs(), torch.zeros_like(wanted)).max()
    if float(apart) <= _CLOSE * max(largest, seen):
        return ""
    return f"a {type(module).__name__} with the weights changed is not the edited layer, it computes something else"


def _edited(values: Tensor, edits: Iterable[Affine]) -> tuple[Tensor, float]:
    """Values `[row, unit, …]` under edits, and the largest number on the way."""
    largest = _size(values)
    for gain, bias in edits:
        gain, bias = gain.to(values), bias.to(values)
        rest = (1,) * (values.dim() - 2)
        if gain.dim() == 2:
            values = torch.einsum("ij,rj...->ri...", gain, values)
        else:
            columns = gain.reshape(-1, *rest)
            values = torch.where(columns == 0, torch.zeros_like(values), values * columns)
        values = values + bias.reshape(-1, *rest)
        largest = max(largest, _size(values))
    return values, largest


def _size(values: Tensor) -> float:
    return float(values.abs().nan_to_num(nan=0.0, posinf=0.0).max()) if values.is_floating_point() else 0.0


def _call(module: nn.Module, parameters: Mapping[str, Tensor], x: Tensor) -> Tensor:
    """What a layer of these parameters computes in evaluation mode, without hooks, as `[row, unit, …]`."""
    twin = copy.copy(module)
    own: dict[str, Tensor | None] = dict(module._buffers)
    for name, value in module._buffers.items():
        if value is not None:
            own[name] = value.to(torch.float64 if value.is_floating_point() else value.dtype, copy=True)
    weights = dict.fromkeys(module._parameters) | dict(parameters)
    vars(twin).update(_parameters=weights, _buffers=own, training=False)
    kind: Any = type(module)
    out: Tensor = kind.forward(twin, x)
    return out[0] if isinstance(module, nn.Embedding) else out


def _shape(module: Any) -> tuple[int, ...]:
    """Of numbers that a layer reads, `[row, unit, …]`."""
    if isinstance(module, (*CONVOLUTIONS, *TRANSPOSED)):
        padding = (0,) * len(module.kernel_size) if isinstance(module.padding, str) else module.padding
        parts = zip(module.kernel_size, module.dilation, padding, strict=True)
        return 4, inputs(module), *(step * (size - 1) + 2 * around + 3 for size, step, around in parts)
    if isinstance(module, nn.LayerNorm | nn.RMSNorm):
        return 4, *module.normalized_shape
    places = next((places for kind, places in _PLACES.items() if isinstance(module, kind)), ())
    return 4, module.weight.shape[0] if places or isinstance(module, nn.BatchNorm1d) else inputs(module), *places
