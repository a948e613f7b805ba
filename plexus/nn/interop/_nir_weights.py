"""What the reader of NIR graphs shares: arrays to tensors, and layers that carry only weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from plexus.errors import UnsupportedError

__all__ = ["conv", "linear", "raw", "scalar", "tensor"]


def tensor(array: Any) -> Tensor:
    return torch.from_numpy(np.atleast_1d(np.asarray(array, dtype=np.float64))).to(torch.get_default_dtype())


def scalar(value: Tensor) -> Tensor | float:
    """One number where all are equal."""
    first = value.flatten()[0]
    return float(first) if bool((value == first).all()) else value


def raw(layer: nn.Module, node: Any, name: str) -> None:
    """Take over the raw number a layer of ours was written with, where it says what the node says."""
    written: Mapping[str, Any] = node.metadata or {}
    if name not in written:
        return
    raw, kept = torch.as_tensor(np.asarray(written[name])), getattr(layer, name)
    if raw.numel() == kept.numel() and torch.allclose(raw.to(kept).view_as(kept), kept, rtol=1e-4, atol=1e-5):
        with torch.no_grad():
            kept.copy_(raw.view_as(kept))


def linear(node: Any) -> nn.Module:
    weight, bias = tensor(node.weight), getattr(node, "bias", None)
    if weight.dim() != 2:
        raise UnsupportedError("a linear map of more than one dimension of units", given=tuple(weight.shape))
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    with torch.no_grad():
        layer.weight.copy_(weight)
        if bias is not None:
            layer.bias.copy_(tensor(bias))
    return layer


def conv(node: Any, kind: type[nn.Conv1d] | type[nn.Conv2d]) -> nn.Module:
    weight = tensor(node.weight)
    options = {}
    for name in ("stride", "padding", "dilation"):
        value = getattr(node, name)
        value = value.decode() if isinstance(value, bytes) else value
        options[name] = value if isinstance(value, str) else tuple(int(v) for v in np.atleast_1d(value))
    written = (node.metadata or {}).get("bias", True)
    bias = bool(np.ravel(written)[0]) or bool(np.any(node.bias))
    layer: Any = kind(
        weight.shape[1] * int(node.groups),
        weight.shape[0],
        tuple(weight.shape[2:]),  # type: ignore[arg-type]
        groups=int(node.groups),
        bias=bias,
        **options,  # type: ignore[arg-type]
    )
    with torch.no_grad():
        layer.weight.copy_(weight)
        if bias:
            layer.bias.copy_(tensor(node.bias))
    return layer  # type: ignore[no-any-return]
