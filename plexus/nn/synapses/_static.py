"""Synapses without a memory: dense, convolutional and sparse, with masks and with signs.

    I_i[t] = Σ_j m_ij w_ij z_j[t] (+ b_i),        s_j w_ij >= 0 where sources have signs s (Dale's law)

Signs and masks are constraints (`plexus.nn.project_`, `project_after_step`, `parametrize_`): projection reaches exact
zeros, from which weights can grow again; parametrization keeps signs whatever the optimizer does. Weights that a mask
takes out contribute nothing in either case.

Sources: Dale's law as in Song, Yang & Wang 2016; first weights uniform as in He et al. 2015. Weights and currents are
dimensionless; there is no time constant.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from plexus.errors import RangeError, ShapeError
from plexus.kernels import SparseWeight
from plexus.kernels._sparse import sparse_linear
from plexus.nn._constraints import Constraint, DaleSigns, Masked
from plexus.nn._places import place_of

__all__ = ["Convolution", "Dense", "Lateral", "Sparse", "dale_signs"]


def dale_signs(units: int, excitatory: float = 0.8) -> Tensor:
    """Signs of sources: +1 for the first share of them, -1 for the others.

    Args:
        units: number of sources.
        excitatory: share of excitatory ones in [0, 1]; rounded to whole units.

    Raises:
        RangeError: the share is out of range or there is no unit.

    Examples:
        >>> dale_signs(5, 0.8)
        tensor([ 1.,  1.,  1.,  1., -1.])
    """
    if units < 1 or not 0 <= excitatory <= 1:
        raise RangeError("no such population", given=(units, excitatory), expected="units >= 1, a share in [0, 1]")
    signs = torch.ones(units)
    signs[round(units * excitatory) :] = -1
    return signs


def first_weights(
    shape: Sequence[int], fan_in: float, signs: Tensor | None, generator: torch.Generator | None
) -> Tensor:
    """Uniform in ± sqrt(6 / fan_in); with signs, that much below their own side of zero."""
    bound = math.sqrt(6 / max(fan_in, 1.0))
    draw = (torch.rand(*shape, generator=generator) * 2 - 1) * bound
    if signs is None:
        return draw
    draw = draw.to(signs.device)
    view = [1] * len(shape)
    view[1] = -1
    return draw.abs() * signs.view(view)


def checked_signs(signs: Tensor | None, sources: int, place: torch.device) -> Tensor | None:
    if signs is None:
        return None
    if signs.shape != (sources,):
        raise ShapeError("the signs do not fit the sources", given=tuple(signs.shape), expected=(sources,))
    DaleSigns(signs)  # refuses other numbers than ±1
    return signs.detach().clone().to(device=place, dtype=torch.get_default_dtype())


class Dense(nn.Module):
    """`current = Dense(80, 64)(spikes)`: every source to every target, or to those that a mask allows.

    Args:
        n_in, n_out: number of sources and of targets.
        bias: whether targets have a bias.
        mask: synapses that exist, bool `[n_out, n_in]`.
        signs: +1 or -1 for each source, `[n_in]`: Dale's law. First weights obey it; see `plexus.nn.project_after_step`
            and `plexus.nn.parametrize_`, which keep it.
        generator: source of the first weights.

    Raises:
        ShapeError: mask, signs or input do not fit. RangeError: a sign is neither +1 nor -1.

    Examples:
        >>> layer = Dense(3, 2, signs=torch.tensor([1.0, 1.0, -1.0]))
        >>> layer(torch.rand(5, 4, 3)).shape, bool((layer.weight[:, 2] <= 0).all())
        (torch.Size([5, 4, 2]), True)
    """

    axes = "b ... u"
    mask: Tensor | None
    signs: Tensor | None

    def __init__(
        self,
        n_in: int,
        n_out: int,
        *,
        bias: bool = False,
        mask: Tensor | None = None,
        signs: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if n_in < 1 or n_out < 1:
            raise ShapeError("a layer needs a source and a target", given=(n_in, n_out), expected="positive sizes")
        if mask is not None and mask.shape != (n_out, n_in):
            raise ShapeError("the mask does not fit", given=tuple(mask.shape), expected=(n_out, n_in))
        self.n_in, self.n_out = n_in, n_out
        place = place_of(mask, signs)
        self.register_buffer("mask", None if mask is None else mask.detach().to(place).bool().clone())
        self.register_buffer("signs", checked_signs(signs, n_in, place))
        fan_in = n_in if self.mask is None else self.mask.float().sum(1).mean().item()
        weight = first_weights((n_out, n_in), fan_in, self.signs, generator).to(place)
        self.weight = nn.Parameter(weight if self.mask is None else weight * self.mask)
        self.bias = nn.Parameter(torch.zeros(n_out, device=place)) if bias else None

    def constraints(self) -> dict[str, Constraint]:
        """What `plexus.nn.project_` keeps: signs of sources and synapses that do not exist."""
        signs = None if self.signs is None else DaleSigns(self.signs)
        if self.mask is not None:
            return {"weight": Masked(self.mask, signs)}
        return {} if signs is None else {"weight": signs}

    def forward(self, x: Tensor) -> Tensor:
        """Currents `[…, n_out]` of x `[…, n_in]`."""
        if x.shape[-1:] != (self.n_in,):
            raise ShapeError("the input does not fit the layer", given=tuple(x.shape), expected=f"[…, {self.n_in}]")
        return nn.functional.linear(x, self.weight if self.mask is None else self.weight * self.mask, self.bias)

    def extra_repr(self) -> str:
        """What `print(layer)` shows."""
        masked = "" if self.mask is None else f", {int(self.mask.sum())} synapses"
        return f"{self.n_in}, {self.n_out}{masked}{'' if self.signs is None else ', signs of sources'}"


class Convolution(nn.Conv2d):
    """`current = Convolution(2, 8, 3)(frames)`; frames `[time, batch, channel, y, x]`, or time folded into the batch.

    Args:
        n_in, n_out: number of channels.
        kernel_size, stride, padding: as for `torch.nn.Conv2d`.
        bias: whether channels have a bias.
        signs: +1 or -1 for each source channel (Dale's law), as for `Dense`.
        generator: source of the first weights.

    Raises:
        ShapeError: the signs or the input do not fit.

    Examples:
        >>> Convolution(2, 8, 3, padding=1)(torch.rand(5, 4, 2, 9, 9)).shape
        torch.Size([5, 4, 8, 9, 9])
    """

    signs: Tensor | None

    def __init__(
        self,
        n_in: int,
        n_out: int,
        kernel_size: int,
        *,
        stride: int = 1,
        padding: int = 0,
        bias: bool = False,
        signs: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(n_in, n_out, kernel_size, stride=stride, padding=padding, bias=bias)
        self.to(place_of(signs))
        self.register_buffer("signs", checked_signs(signs, n_in, place_of(signs)))
        with torch.no_grad():
            self.weight.copy_(first_weights(tuple(self.weight.shape), n_in * kernel_size**2, self.signs, generator))
            if self.bias is not None:
                self.bias.zero_()

    def constraints(self) -> dict[str, Constraint]:
        """What `plexus.nn.project_` keeps: the signs of source channels."""
        return {} if self.signs is None else {"weight": DaleSigns(self.signs, dim=1)}

    def forward(self, x: Tensor) -> Tensor:
        """Currents of frames, of the same number of dimensions."""
        if x.dim() not in (4, 5) or x.shape[-3] != self.in_channels:
            expected = f"[time, batch, {self.in_channels}, y, x]"
            raise ShapeError("the input does not fit the layer", given=tuple(x.shape), expected=expected)
        if x.dim() == 4:
            return super().forward(x)
        frames: Tensor = super().forward(x.flatten(0, 1))
        return frames.unflatten(0, x.shape[:2])  # type: ignore[no-any-return]


class Sparse(nn.Module):
    """`current = Sparse(mask)(spikes)`: only the synapses that exist are stored and computed, and only for spikes.

    Worth it from about one synapse in ten on; see `plexus.nn.synapses.small_world` and `distance_dependent` for masks.

    Args:
        mask: synapses that exist, bool `[n_out, n_in]`.
        signs: +1 or -1 for each source (Dale's law), as for `Dense`.
        generator: source of the first weights.

    Attributes:
        weight: parameter `[synapse]`, ordered by source and then by target. `matrix()` shows it as `[n_out, n_in]`.

    Raises:
        ShapeError: mask, signs or input do not fit.

    Examples:
        >>> layer = Sparse(torch.tensor([[True, False, True], [False, True, False]]))
        >>> layer.weight.shape, layer(torch.rand(5, 4, 3)).shape
        (torch.Size([3]), torch.Size([5, 4, 2]))
    """

    axes = "b ... u"
    starts: Tensor
    targets: Tensor
    signs: Tensor | None

    def __init__(self, mask: Tensor, *, signs: Tensor | None = None, generator: torch.Generator | None = None) -> None:
        super().__init__()
        if mask.dim() != 2 or 0 in mask.shape:
            raise ShapeError("the mask is no matrix", given=tuple(mask.shape), expected="[n_out, n_in]")
        self.n_out, self.n_in = mask.shape
        place = place_of(mask, signs)
        exists, signs = mask.detach().to(place).bool(), checked_signs(signs, self.n_in, place)
        first = first_weights(tuple(mask.shape), exists.float().sum(1).mean().item(), signs, generator).to(place)
        values, starts, targets = SparseWeight.of(first, exists)
        self.weight = nn.Parameter(values.clone())
        self.register_buffer("starts", starts)
        self.register_buffer("targets", targets)
        sources = torch.repeat_interleave(torch.arange(self.n_in, device=place), starts.diff())
        self.register_buffer("signs", None if signs is None else signs.to(first)[sources])

    def constraints(self) -> dict[str, Constraint]:
        """What `plexus.nn.project_` keeps: the signs of sources."""
        return {} if self.signs is None else {"weight": DaleSigns(self.signs)}

    def matrix(self) -> Tensor:
        """The weights as `[n_out, n_in]`."""
        sources = torch.repeat_interleave(torch.arange(self.n_in, device=self.starts.device), self.starts.diff())
        matrix = self.weight.new_zeros(self.n_out, self.n_in)
        return matrix.index_put((self.targets, sources), self.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Currents `[…, n_out]` of x `[…, n_in]`."""
        if x.shape[-1:] != (self.n_in,):
            raise ShapeError("the input does not fit the layer", given=tuple(x.shape), expected=f"[…, {self.n_in}]")
        rows = sparse_linear(x.reshape(-1, self.n_in), SparseWeight(self.weight, self.starts, self.targets), self.n_out)
        return rows.view(*x.shape[:-1], self.n_out)

    def extra_repr(self) -> str:
        """What `print(layer)` shows."""
        return f"{self.n_in}, {self.n_out}, {len(self.weight)} synapses"


class Lateral(nn.Module):
    """`current = Lateral(distance)(spikes)`: neighbours excite, those farther off inhibit; no unit drives itself.

        w(d) = A_e exp(-d² / 2σ_e²) - A_i exp(-d² / 2σ_i²),      w = 0 between a unit and itself

    Fixed weights; `excitation=0` is plain lateral inhibition. A difference of Gaussians as in Amari 1977.

    Args:
        distance: between units, `[unit, unit]`, see `ring_distance` and `grid_distance`.
        excitation, inhibition: A_e and A_i, at least 0.
        excitation_width, inhibition_width: σ_e and σ_i in the unit of the distance.

    Raises:
        ShapeError: the distances are not square, or the input does not fit. RangeError: a number is out of range.

    Examples:
        >>> from plexus.nn.synapses import ring_distance
        >>> layer = Lateral(ring_distance(5), excitation=0.0, inhibition=1.0, inhibition_width=1e6)
        >>> layer(torch.tensor([1.0, 0, 0, 0, 0]).reshape(1, 1, 5)).flatten()
        tensor([ 0., -1., -1., -1., -1.])
    """

    axes = "b ... u"
    weight: Tensor

    def __init__(
        self,
        distance: Tensor,
        *,
        excitation: float = 1.0,
        excitation_width: float = 1.0,
        inhibition: float = 0.5,
        inhibition_width: float = 3.0,
    ) -> None:
        super().__init__()
        if distance.dim() != 2 or distance.shape[0] != distance.shape[1]:
            raise ShapeError("distances are a square matrix", given=tuple(distance.shape), expected="[unit, unit]")
        if min(excitation, inhibition) < 0 or min(excitation_width, inhibition_width) <= 0:
            numbers = (excitation, inhibition, excitation_width, inhibition_width)
            raise RangeError("an amplitude or a width is out of range", given=numbers, expected=">= 0, widths > 0")
        near = excitation * torch.exp(-(distance**2) / (2 * excitation_width**2))
        far = inhibition * torch.exp(-(distance**2) / (2 * inhibition_width**2))
        self.register_buffer("weight", (near - far).fill_diagonal_(0.0))

    def forward(self, x: Tensor) -> Tensor:
        """Currents of x `[…, unit]`."""
        if x.shape[-1] != self.weight.shape[0]:
            expected = f"[…, {self.weight.shape[0]}]"
            raise ShapeError("the input does not fit the layer", given=tuple(x.shape), expected=expected)
        return nn.functional.linear(x, self.weight.to(x.dtype))
