"""Layers that keep only the weights that exist, for inference on the CPU.

    rows      y_i = Σ_k w_k x_(column k)            every weight that exists, row by row (`plexus.kernels.csr_linear`)
    grouped   y_g = W_gg x_g + Σ_k w_k x_(column k)  a dense product per group, all groups at once, and the rest by rows
    places    y_i,p = Σ_k w_k x_(offset k + p)      a convolution, many places p at a time (`plexus.kernels.csr_conv`)

Weights are constants here; the derivative by the input is there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from plexus.errors import ShapeError
from plexus.kernels import CompressedRows, csr_conv, csr_linear
from plexus.nn.synapses import Wiring

__all__ = ["GroupedLinear", "SparseConv", "SparseLayer", "SparseLinear"]

_KINDS = {3: nn.Conv1d, 4: nn.Conv2d, 5: nn.Conv3d}  # by dimensions of the weight


class SparseLayer(nn.Module):
    """What sparse layers share: weights by rows, in float32 or wider, and a bias; not a layer itself."""

    bias: Tensor | None
    given: Tensor

    def __init__(self, weight: Tensor, mask: Tensor, bias: Tensor | None, *, derivative: bool) -> None:
        super().__init__()
        if bias is not None and bias.shape != weight.shape[:1]:
            given = (tuple(weight.shape), tuple(bias.shape))
            raise ShapeError("weight and bias do not fit", given=given, expected="[out, in, …] and [out]")
        wide = weight.detach().to(torch.promote_types(weight.dtype, torch.float32))
        rows = CompressedRows.of(wide.flatten(1), mask.flatten(1), derivative=derivative)
        for name, part in zip(CompressedRows._fields, rows, strict=True):
            self.register_buffer(name, part)
        self.register_buffer("given", weight.detach().new_empty(0), persistent=False)  # its dtype, through casts too
        self.register_buffer("bias", None if bias is None else bias.detach().clone())

    @property
    def rows(self) -> CompressedRows:
        """The weights by rows."""
        return CompressedRows(*(self._buffers[name] for name in CompressedRows._fields))  # type: ignore[arg-type]

    def _whole(self, values: Tensor | None = None) -> Tensor:
        """`[out, …]` with zeros; the weights, or other values in their places."""
        raise NotImplementedError

    def matrix(self) -> Tensor:
        """The weight `[out, in, …]`, with zeros."""
        return self._whole()

    def mask(self) -> Tensor:
        """Which weights exist, bool `[out, in, …]`; one that exists may be zero."""
        return self._whole(torch.ones_like(self.rows.values)).bool()


class SparseLinear(SparseLayer):
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

    def __init__(
        self,
        weight: Tensor,
        wiring: Wiring | Tensor | None = None,
        bias: Tensor | None = None,
        *,
        derivative: bool = True,
    ) -> None:
        if weight.dim() != 2:
            raise ShapeError(
                "the weight of a linear layer is a matrix", given=tuple(weight.shape), expected="[out, in]"
            )
        wiring = wiring if isinstance(wiring, Wiring) else Wiring(weight != 0 if wiring is None else wiring)
        if wiring.mask.shape != weight.shape:
            raise ShapeError("the mask does not fit", given=tuple(wiring.mask.shape), expected=tuple(weight.shape))
        super().__init__(weight, self._by_rows(wiring), bias, derivative=derivative)
        self.out_features, self.in_features = weight.shape
        self.register_buffer("weight_groups_out", wiring.groups_out)
        self.register_buffer("weight_groups_in", wiring.groups_in)

    @staticmethod
    def _by_rows(wiring: Wiring) -> Tensor:
        """Which weights are computed by rows."""
        return wiring.mask

    def _whole(self, values: Tensor | None = None) -> Tensor:
        rows = self.rows if values is None else self.rows._replace(values=values)
        return rows.dense(self.in_features)

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
        blocks = square.diagonal(dim1=0, dim2=2).permute(2, 1, 0).contiguous()  # [group, in, out]
        self.register_buffer("blocks", blocks)
        kept = wiring.mask[order_out][:, order_in].view(square.shape).diagonal(dim1=0, dim2=2).permute(2, 1, 0)
        self.register_buffer("kept", kept.contiguous())
        self.register_buffer("order_in", order_in)
        self.register_buffer("order_out", order_out)
        self.register_buffer("place_out", order_out.argsort())
        self._in_order = bool((order_in.diff() == 1).all()), bool((order_out.diff() == 1).all())
        self._joined = bool(len(self.get_buffer("values")))

    @staticmethod
    def _by_rows(wiring: Wiring) -> Tensor:
        """Those that join groups."""
        assert wiring.groups_out is not None
        return wiring.mask & (wiring.groups_out[:, None] != wiring.groups_in)

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


class SparseConv(SparseLayer):
    """`y = SparseConv(weight, mask)(x)`: a convolution that keeps only the weights that exist; for inference.

    Args:
        weight: `[out, in / groups, *place of the kernel]`, with one, two or three dimensions of place.
        mask: bool, of that shape; None keeps what is not zero.
        bias: `[out]`.
        stride, padding, dilation, groups, padding_mode: as for `torch.nn.Conv2d`.

    Raises:
        ShapeError: weight, mask, bias or input do not fit. ValueError: torch knows no such padding.

    Examples:
        >>> layer = SparseConv(torch.tensor([[[[0.0, 2.0], [0.0, 0.0]]]]))         # twice the right neighbour
        >>> layer(torch.arange(6.0).view(1, 1, 2, 3)), layer.extra_repr()
        (tensor([[[[2., 4.]]]]), '1, 1, kernel_size=(2, 2), stride=(1, 1), bias=False, 1 weights')
    """

    def __init__(
        self,
        weight: Tensor,
        mask: Tensor | None = None,
        bias: Tensor | None = None,
        *,
        stride: Sequence[int] | int = 1,
        padding: Sequence[int] | int | str = 0,
        dilation: Sequence[int] | int = 1,
        groups: int = 1,
        padding_mode: str = "zeros",
    ) -> None:
        if weight.dim() not in _KINDS:
            expected = "[out, in / groups, *place], of one to three places"
            raise ShapeError("the weight is that of no convolution", given=tuple(weight.shape), expected=expected)
        mask = weight != 0 if mask is None else mask
        if mask.shape != weight.shape:
            raise ShapeError("the mask does not fit", given=tuple(mask.shape), expected=tuple(weight.shape))
        super().__init__(weight, mask, bias, derivative=False)
        self.options: dict[str, Any] = {
            "stride": stride, "padding": padding, "dilation": dilation, "groups": groups, "padding_mode": padding_mode,
        }  # fmt: skip
        self.shape = tuple(weight.shape)
        plain: Any = self.dense_layer(device="meta")  # torch's own layer knows what the arguments mean
        self.in_channels, self.out_channels, self.kernel_size = plain.in_channels, plain.out_channels, plain.kernel_size
        self._said = plain.extra_repr()
        self._sizes: dict[str, Any] = {"stride": plain.stride, "dilation": plain.dilation, "groups": plain.groups}
        self._around: list[int] | None = None  # by torch's pad, where the kernel does not do it itself
        if isinstance(padding, str) or padding_mode != "zeros":
            self._around = list(plain._reversed_padding_repeated_twice)
        else:
            self._sizes["padding"] = plain.padding
        self.axes = {3: "b u x", 4: "b u y x", 5: "b u z y x"}[weight.dim()]

    def dense_layer(self, device: torch.device | str | None = None) -> nn.Conv1d | nn.Conv2d | nn.Conv3d:
        """torch's layer with the same arguments and first weights of its own."""
        out, channels, *kernel = self.shape
        kind: Any = _KINDS[len(self.shape)]
        groups = self.options["groups"]
        options = {**self.options, "device": device, "dtype": self.given.dtype}
        layer: nn.Conv1d | nn.Conv2d | nn.Conv3d
        layer = kind(channels * groups, out, kernel, bias=self.bias is not None, **options)
        return layer

    def _whole(self, values: Tensor | None = None) -> Tensor:
        rows = self.rows if values is None else self.rows._replace(values=values)
        return rows.dense(math.prod(self.shape[1:])).view(self.shape)

    def forward(self, x: Tensor) -> Tensor:
        """y `[sample, out, *place]` of x `[sample, in, *place]`, or without samples; in the dtype of x."""
        count = len(self.shape) - 1
        if x.dim() not in (count, count + 1) or x.shape[-count] != self.in_channels:
            expected = f"[sample, {self.in_channels}, {', '.join(['place'] * (count - 1))}]"
            raise ShapeError("the input does not fit the layer", given=tuple(x.shape), expected=expected)
        rows = self.rows
        wide = (x if x.dim() > count else x[None]).to(rows.values.dtype)
        if self._around is not None:
            mode = self.options["padding_mode"]
            wide = F.pad(wide, self._around, mode="constant" if mode == "zeros" else mode)
        out = csr_conv(wide, rows, self.kernel_size, **self._sizes)
        if self.bias is not None:
            out += self.bias.view(-1, *[1] * (count - 1))
        return (out if x.dim() > count else out[0]).to(x.dtype)

    def extra_repr(self) -> str:
        """What `print(layer)` shows."""
        return f"{self._said}, {len(self.get_buffer('values'))} weights"
