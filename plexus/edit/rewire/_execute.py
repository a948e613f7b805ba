"""Running masked layers without their zeros.

    rows      y_i = Σ_k w_k x_(column k)            every weight that exists, row by row (`plexus.kernels.csr_linear`)
    grouped   y_g = W_gg x_g + Σ_k w_k x_(column k)  a dense product per group, all groups at once, and the rest by rows

Masked weights on dense kernels save nothing. These do, on the CPU, from about 70 % zeros on for 32 samples and more,
from about 95 % on for one; `benchmarks/sparse_forward.py` prints the bar of a machine. Weights are constants here; the
derivative by the input is there. Convolutions stay dense: turned into columns, one of 3×3 would first write and read
nine times its input.
"""

from __future__ import annotations

import copy
from typing import Literal

import torch
from torch import Tensor, nn

from plexus.edit.rewire._layers import is_transposed, oriented
from plexus.errors import PlexusError, RangeError, ShapeError, UnknownNameError, UnsupportedError
from plexus.kernels import CompressedRows, csr_linear
from plexus.nn import mask_parameter_
from plexus.nn.synapses import Dense, Wiring
from plexus.units._paths import walk

__all__ = ["GroupedLinear", "SparseLinear", "densify", "sparse_forward"]

Layout = Literal["auto", "rows", "grouped"]


class SparseLinear(nn.Module):
    """`y = SparseLinear(weight, wiring)(x)`: a linear layer that keeps only the weights that exist; for inference.

    Args:
        weight: `[out, in]`.
        wiring: mask, or a `Wiring` whose groups are remembered; None keeps what is not zero.
        bias: `[out]`.
        derivative: whether the transpose is kept, which the derivative by the input needs.

    Raises:
        ShapeError: weight, mask, bias or input do not fit.

    Examples:
        >>> layer = SparseLinear(torch.tensor([[0.0, 2.0], [3.0, 0.0]]))
        >>> layer(torch.tensor([1.0, 10.0])), layer.extra_repr()
        (tensor([20.,  3.]), 'in_features=2, out_features=2, 2 weights')
    """

    axes = "b ... u"
    weight_groups_out: Tensor | None
    weight_groups_in: Tensor | None
    bias: Tensor | None

    def __init__(
        self,
        weight: Tensor,
        wiring: Wiring | Tensor | None = None,
        bias: Tensor | None = None,
        *,
        derivative: bool = True,
    ) -> None:
        super().__init__()
        if weight.dim() != 2 or (bias is not None and bias.shape != weight.shape[:1]):
            given = (tuple(weight.shape), None if bias is None else tuple(bias.shape))
            raise ShapeError("weight and bias do not fit", given=given, expected="[out, in] and [out]")
        self.out_features, self.in_features = weight.shape
        wiring = wiring if isinstance(wiring, Wiring) else Wiring(weight != 0 if wiring is None else wiring)
        for name, part in zip(CompressedRows._fields, self._kept(weight, wiring, derivative), strict=True):
            self.register_buffer(name, part)
        self.register_buffer("bias", None if bias is None else bias.detach().clone())
        self.register_buffer("weight_groups_out", wiring.groups_out)
        self.register_buffer("weight_groups_in", wiring.groups_in)

    def _kept(self, weight: Tensor, wiring: Wiring, derivative: bool) -> CompressedRows:
        """The weights that are computed by rows."""
        wide = weight.detach().to(torch.promote_types(weight.dtype, torch.float32))
        return CompressedRows.of(wide, wiring.mask, derivative=derivative)

    @property
    def rows(self) -> CompressedRows:
        """The weights by rows."""
        return CompressedRows(*(self._buffers[name] for name in CompressedRows._fields))  # type: ignore[arg-type]

    def matrix(self) -> Tensor:
        """The weight `[out, in]`, with zeros."""
        return self.rows.dense(self.in_features)

    def mask(self) -> Tensor:
        """Which weights exist, bool `[out, in]`; one that exists may be zero."""
        rows = self.rows
        return rows._replace(values=torch.ones_like(rows.values)).dense(self.in_features).bool()

    def forward(self, x: Tensor) -> Tensor:
        """y `[…, out]` of x `[…, in]`, in the dtype of x."""
        if x.shape[-1:] != (self.in_features,):
            expected = f"[…, {self.in_features}]"
            raise ShapeError("the input does not fit the layer", given=tuple(x.shape), expected=expected)
        rows = self.rows
        out = self._product(x.reshape(-1, self.in_features).to(rows.values.dtype), rows)
        if self.bias is not None:
            out = out + self.bias
        return out.view(*x.shape[:-1], self.out_features).to(x.dtype)

    def _product(self, x: Tensor, rows: CompressedRows) -> Tensor:
        return csr_linear(x, rows)

    def extra_repr(self) -> str:
        """What `print(layer)` shows."""
        weights = len(self.get_buffer("values"))
        return f"in_features={self.in_features}, out_features={self.out_features}, {weights} weights"


class GroupedLinear(SparseLinear):
    """A linear layer in groups: one dense product per group, all in one batch, and what joins groups by rows.

    Args:
        weight: `[out, in]`.
        wiring: with groups of equal size on both sides.
        bias: `[out]`.
        derivative: as for `SparseLinear`.

    Raises:
        ShapeError: the wiring has no groups, or groups of different sizes.

    Examples:
        >>> from plexus.nn.synapses import group_connectivity
        >>> wiring = group_connectivity(8, 4, 2, p_inter=0.0, scheme="interleaved")
        >>> weight, x = torch.rand(4, 8) * wiring.mask, torch.rand(3, 8)
        >>> torch.allclose(GroupedLinear(weight, wiring)(x), x @ weight.T)
        True
    """

    blocks: Tensor
    order_in: Tensor
    order_out: Tensor

    def __init__(self, weight: Tensor, wiring: Wiring, bias: Tensor | None = None, *, derivative: bool = True) -> None:
        out, into = wiring.groups_out, wiring.groups_in
        if out is None or into is None:
            raise ShapeError("the wiring has no groups", expected="a group_connectivity")
        sizes = [torch.bincount(groups) for groups in (out, into)]
        if len(sizes[0]) != len(sizes[1]) or any(len(size.unique()) > 1 for size in sizes):
            raise ShapeError("groups differ in size", given=[size.tolist() for size in sizes])
        super().__init__(weight, wiring, bias, derivative=derivative)
        order_out, order_in = (groups.argsort(stable=True) for groups in (out, into))
        groups = len(sizes[0])
        wide = weight.detach().to(self.get_buffer("values").dtype) * wiring.mask
        square = wide[order_out][:, order_in].view(groups, self.out_features // groups, groups, -1)
        self.register_buffer(
            "blocks", square.diagonal(dim1=0, dim2=2).permute(2, 1, 0).contiguous()
        )  # [group, in, out]
        kept = wiring.mask[order_out][:, order_in].view(square.shape).diagonal(dim1=0, dim2=2).permute(2, 1, 0)
        self.register_buffer("kept", kept.contiguous())
        self.register_buffer("order_in", order_in)
        self.register_buffer("order_out", order_out)
        self.register_buffer("place_out", order_out.argsort())
        self._in_order = bool((order_in.diff() == 1).all()), bool((order_out.diff() == 1).all())
        self._joined = bool(len(self.get_buffer("values")))

    def _kept(self, weight: Tensor, wiring: Wiring, derivative: bool) -> CompressedRows:
        assert wiring.groups_out is not None
        between = wiring.mask & (wiring.groups_out[:, None] != wiring.groups_in)
        return super()._kept(weight, Wiring(between), derivative)

    def _placed(self, blocks: Tensor) -> Tensor:
        """Blocks `[group, in, out]` as a matrix `[out, in]`."""
        groups, into, out = blocks.shape
        matrix = blocks.new_zeros(groups, out, groups, into)
        index = torch.arange(groups, device=blocks.device)
        matrix[index, :, index] = blocks.transpose(1, 2)
        placed = torch.zeros(self.out_features, self.in_features, dtype=blocks.dtype, device=blocks.device)
        placed[self.order_out[:, None], self.order_in] = matrix.view(self.out_features, self.in_features)
        return placed

    def matrix(self) -> Tensor:
        """The weight `[out, in]`, with zeros."""
        return super().matrix() + self._placed(self.blocks)

    def mask(self) -> Tensor:
        """Which weights exist, bool `[out, in]`."""
        return super().mask() | self._placed(self.get_buffer("kept"))

    def _product(self, x: Tensor, rows: CompressedRows) -> Tensor:
        groups, into, _ = self.blocks.shape
        grouped = x if self._in_order[0] else x.index_select(1, self.order_in)
        within = torch.bmm(grouped.view(-1, groups, into).transpose(0, 1), self.blocks)
        out = within.transpose(0, 1).reshape(len(x), self.out_features)
        out = out if self._in_order[1] else out.index_select(1, self.get_buffer("place_out"))
        return out + csr_linear(x, rows) if self._joined else out

    def extra_repr(self) -> str:
        """What `print(layer)` shows."""
        return f"{super().extra_repr()} between {len(self.blocks)} dense groups"


def sparse_forward(
    model: nn.Module, *, at_least: float = 0.7, layout: Layout = "auto", derivative: bool = True
) -> nn.Module:
    """A copy of a model whose masked linear layers run without their zeros, on the CPU.

    Args:
        model: with masks (`mask_`), or with layers `plexus.nn.synapses.Dense(mask=…)`.
        at_least: share of zeros from which on a layer is converted; the benchmark `sparse-forward` shows where it pays.
        layout: `"rows"`, `"grouped"` (layers whose wiring has groups), or `"auto"`: grouped where at least half of the
            weights within groups exist, else rows.
        derivative: keep what the derivative by the input needs (doubles the memory of weights kept by rows).

    Raises:
        PlexusError: no masked linear layer has that many zeros. UnsupportedError: the model is not on the CPU.
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
    for name, layer in _linear_layers(fast).items():
        wiring = _wiring_of(layer)
        if 1 - wiring.density < at_least or (layout == "grouped" and wiring.groups_out is None):
            continue
        weight = oriented(layer, layer.get_parameter("weight").detach())
        if weight.device.type != "cpu":
            raise UnsupportedError("sparse execution runs on the CPU", given=str(weight.device), mend="model.cpu()")
        kind = GroupedLinear if _is_grouped(wiring, layout) else SparseLinear
        bias = layer._parameters.get("bias")
        fresh = kind(weight, wiring, bias, derivative=derivative).train(layer.training)
        fast = _replace(fast, name, layer, fresh)
        done += 1
    if not done:
        raise PlexusError(
            "no masked linear layer has that many zeros", given=f"at_least={at_least}", mend="lower it, or mask first"
        )
    return fast


def densify(model: nn.Module) -> nn.Module:
    """The way back: a copy in which sparse layers are linear ones with masks, ready to be trained on.

    Raises:
        PlexusError: the model has no sparse layer.

    Examples:
        >>> densify(nn.Sequential(SparseLinear(torch.eye(2))))[0].weight_mask.tolist()
        [[True, False], [False, True]]
    """
    dense, done = copy.deepcopy(model), 0
    for name, layer in [(name, layer) for name, layer in walk(dense) if isinstance(layer, SparseLinear)]:
        matrix = layer.matrix()
        fresh = nn.Linear(layer.in_features, layer.out_features, layer.bias is not None, dtype=matrix.dtype)
        with torch.no_grad():
            fresh.weight.copy_(matrix)
            if layer.bias is not None:
                fresh.bias.copy_(layer.bias)
        mask_parameter_(fresh, "weight", Wiring(layer.mask(), layer.weight_groups_out, layer.weight_groups_in))
        dense = _replace(dense, name, layer, fresh.train(layer.training))
        done += 1
    if not done:
        raise PlexusError("this model has no sparse layer", given=type(model).__name__)
    return dense


def _linear_layers(model: nn.Module) -> dict[str, nn.Module]:
    return {
        name: layer
        for name, layer in walk(model)
        if (isinstance(layer, nn.Linear | Dense) or is_transposed(layer))
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
