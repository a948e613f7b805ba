"""Running masked layers without their zeros.

Masked weights on dense kernels save nothing. Sparse layers do, on the CPU, from about 70 % zeros on for 32 samples and
more and for convolutions of 3×3, from about 95 % on for one sample of a linear layer; `benchmarks/sparse_forward.py`
prints the bar of a machine.
"""

from __future__ import annotations

import copy
from typing import Literal

import torch
from torch import Tensor, nn

from plexus.edit._layers import CONVOLUTIONS
from plexus.edit.rewire._layers import is_transposed, oriented
from plexus.edit.rewire._sparse_layers import GroupedLinear, SparseConv, SparseLayer, SparseLinear
from plexus.errors import PlexusError, RangeError, UnknownNameError, UnsupportedError
from plexus.nn import mask_parameter_
from plexus.nn.synapses import Dense, Wiring
from plexus.units._paths import walk

__all__ = ["densify", "sparse_forward"]

Layout = Literal["auto", "rows", "grouped"]


def sparse_forward(
    model: nn.Module, *, at_least: float = 0.7, layout: Layout = "auto", derivative: bool = True
) -> nn.Module:
    """A copy of a model whose masked linear and convolutional layers run without their zeros, on the CPU.

    Args:
        model: with masks (`mask_`), or with layers `plexus.nn.synapses.Dense(mask=…)`.
        at_least: share of zeros from which on a layer is converted; the benchmark `sparse-forward` shows where it pays.
        layout: of linear layers: `"rows"`, `"grouped"` (those whose wiring has groups), or `"auto"`: grouped where at
            least half of the weights within groups exist, else rows.
        derivative: keep what the derivative by the input of linear layers needs (doubles the memory of weights kept by
            rows); that of a convolution goes through its whole weight.

    Returns:
        The copy. Layers less sparse than that stay dense, and so do subclasses of torch's convolutions.

    Raises:
        PlexusError: no masked layer has that many zeros. UnsupportedError: the model is not on the CPU.
        RangeError, UnknownNameError, ShapeError: an argument has no meaning for this model.

    Examples:
        >>> from plexus.edit.rewire import mask_, random_wiring
        >>> model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 4))
        >>> model = mask_(model, random_wiring(model, 0.1, exclude=["2"]), initialise=True)
        >>> fast, x = sparse_forward(model), torch.rand(5, 64)
        >>> fast[0], torch.allclose(fast(x), model(x), atol=1e-6)
        (SparseLinear(in_features=64, out_features=32, 205 weights), True)
    """
    if not 0 <= at_least <= 1:
        raise RangeError("a share lies in [0, 1]", given=at_least)
    if layout not in ("auto", "rows", "grouped"):
        raise UnknownNameError.among("layout", layout, ("auto", "rows", "grouped"))
    fast, done = copy.deepcopy(model), 0
    for name, layer in _masked_layers(fast).items():
        wiring = _wiring_of(layer)
        ungrouped = layout == "grouped" and wiring.groups_out is None and type(layer) not in CONVOLUTIONS
        if 1 - wiring.density < at_least or ungrouped:
            continue
        if layer.get_parameter("weight").device.type != "cpu":
            given = str(layer.get_parameter("weight").device)
            raise UnsupportedError("sparse execution runs on the CPU", given=given, mend="model.cpu()")
        fresh = _sparse(layer, wiring, layout, derivative).train(layer.training)
        fast = _replace(fast, name, layer, fresh)
        done += 1
    if not done:
        raise PlexusError(
            "no masked layer has that many zeros", given=f"at_least={at_least}", mend="lower it, or mask first"
        )
    return fast


def densify(model: nn.Module) -> nn.Module:
    """The way back: a copy in which sparse layers are ordinary ones with masks, ready to be trained on.

    Raises:
        PlexusError: the model has no sparse layer.

    Examples:
        >>> densify(nn.Sequential(SparseLinear(torch.eye(2))))[0].weight_mask.tolist()
        [[True, False], [False, True]]
    """
    dense, done = copy.deepcopy(model), 0
    for name, layer in [(name, layer) for name, layer in walk(dense) if isinstance(layer, SparseLayer)]:
        matrix, groups = layer.matrix(), layer._buffers
        fresh: nn.Module
        if isinstance(layer, SparseConv):
            fresh = layer.dense_layer(matrix.device)
        else:
            out, into = matrix.shape
            fresh = nn.Linear(into, out, layer.bias is not None, device=matrix.device, dtype=layer.given.dtype)
        with torch.no_grad():
            fresh.get_parameter("weight").copy_(matrix)
            if layer.bias is not None:
                fresh.get_parameter("bias").copy_(layer.bias)
        wiring = Wiring(layer.mask(), groups.get("weight_groups_out"), groups.get("weight_groups_in"))
        mask_parameter_(fresh, "weight", wiring)
        dense = _replace(dense, name, layer, fresh.train(layer.training))
        done += 1
    if not done:
        raise PlexusError("this model has no sparse layer", given=type(model).__name__)
    return dense


def _sparse(layer: nn.Module, wiring: Wiring, layout: Layout, derivative: bool) -> SparseLayer:
    weight, bias = oriented(layer, layer.get_parameter("weight").detach()), layer._parameters.get("bias")
    if type(layer) in CONVOLUTIONS:
        names = ("stride", "padding", "dilation", "groups", "padding_mode")
        return SparseConv(weight, wiring.mask, bias, **{name: getattr(layer, name) for name in names})
    kind = GroupedLinear if _is_grouped(wiring, layout) else SparseLinear
    return kind(weight, wiring, bias, derivative=derivative)


def _masked_layers(model: nn.Module) -> dict[str, nn.Module]:
    return {
        name: layer
        for name, layer in walk(model)
        if (isinstance(layer, nn.Linear | Dense) or is_transposed(layer) or type(layer) in CONVOLUTIONS)
        and (isinstance(layer._buffers.get("weight_mask"), Tensor) or isinstance(layer._buffers.get("mask"), Tensor))
    }


def _wiring_of(layer: nn.Module) -> Wiring:
    buffers = layer._buffers
    mask = buffers.get("weight_mask")
    if mask is None:
        return Wiring(layer.get_buffer("mask"))
    return Wiring(oriented(layer, mask), buffers.get("weight_groups_out"), buffers.get("weight_groups_in"))


def _is_grouped(wiring: Wiring, layout: Layout) -> bool:
    if wiring.groups_out is None or wiring.groups_in is None or layout == "rows":
        return False
    within = wiring.mask[wiring.groups_out[:, None] == wiring.groups_in]
    return layout == "grouped" or float(within.double().mean()) >= 0.5


def _replace(model: nn.Module, name: str, old: nn.Module, new: nn.Module) -> nn.Module:
    """Put a module where another one was, under each of its names."""
    if not name:
        return new
    for module in model.modules():
        for key, child in module._modules.items():
            if child is old:
                module._modules[key] = new
    return model
