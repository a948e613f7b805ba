"""Layers of excitatory cells held in balance by inhibitory ones, in place of a weight layer with batch normalisation.

Input x >= 0 with fan-in d; n_E excitatory outputs, n_I = ⌊n_E / ratio⌋ inhibitory cells, which are linear rate units
and do not spike. All weights and gains are >= 0, the bias is free:

    I_EE = W_EE x,    I_IE = W_IE x                      excitation of both populations
    I_bal = I_EE - W_EI I_IE                             subtractive inhibition
    I_sh = W_EI (g_I ⊙ I_IE)                             divisive (shunting) inhibition
    I = g_E ⊙ I_bal / I_sh + b                           what the layer puts out;  an output layer: I = I_bal

E-I Init, from one batch, with E[x] and E[x²] over all its numbers and V the variance over the batch, averaged over
features:

    W_EE, W_IE ~ Exponential with mean sqrt(V / (d (E[x²] + V))),    W_EI = 1/n_I,    g_E = 1,    b = 0
    g_I = sqrt((E[x²] + V) / d) / E[x]                   so that I_EE has variance V, and I_sh is about sqrt(V)

Over draws of the weights I then has mean 0 and, for independent inputs, variance E[x²] / (E[x²] + V), which lies
between 1/2 and 1. The mean of a single layer deviates from 0 by up to about sqrt(1/n_E + 1/n_I).

E-I Prop: where I_sh is 0 it is replaced by the smallest other I_sh of the same sample, and the gradient goes straight
through; the gradient of W_EI is multiplied by 1/d. The signs are kept by projection (`project_after_step`).

There are no statistics of batches, but there is a normalisation: every sample is divided by its own inhibition.

Source: Liu, Ding & Yu 2026, Training deep normalization-free spiking neural networks with lateral inhibition.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from plexus.errors import ShapeError
from plexus.nn._ei_circuit import EILayer

__all__ = ["EIConv2d", "EILinear"]


class EILinear(EILayer):
    """`current = EILinear(64, 100)(x)`: dense excitation and lateral inhibition, input `[…, d]` >= 0.

    Takes the place of `Linear` and `BatchNorm1d` in front of neurons. Each row is a sample; in a `Sequential`, where
    time is folded into the batch, each step of each sample is.

    Args:
        in_features: d.
        out_features: n_E, the excitatory cells, whose currents come out.
        ratio: excitatory cells per inhibitory one.
        output: the layer of logits, I_bal alone: nothing is divided, and there are no gains and no bias.
        subtractive: whether inhibition is subtracted.
        divisive: whether inhibition divides; without, E-I Init sets g_E = 1/sqrt(V) for it.
        replace_zeros: whether a zero divisor is replaced (E-I Prop).
        scale_gradient: whether the gradient of W_EI is multiplied by 1/d (E-I Prop).
        generator: for the draw of the weights.
        device, dtype: of the parameters.

    Raises:
        RangeError: the ratio leaves no inhibitory cell, or the input is negative somewhere.
        ShapeError: a size is not positive, or the input does not have d features.
        PlexusError: used in evaluation mode before it was initialised.

    Examples:
        >>> layer = EILinear(20, 8, generator=torch.Generator().manual_seed(0))
        >>> current = layer(torch.rand(32, 20))          # the first batch in training mode initialises it
        >>> current.shape, bool((layer.weight_ee >= 0).all())
        (torch.Size([32, 8]), True)
    """

    axes = "b ... u"

    def __init__(
        self,
        in_features: int,
        out_features: int,
        ratio: int = 4,
        *,
        output: bool = False,
        subtractive: bool = True,
        divisive: bool = True,
        replace_zeros: bool = True,
        scale_gradient: bool = True,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        _positive(in_features=in_features, out_features=out_features)
        self.in_features, self.out_features = in_features, out_features
        super().__init__(
            in_features, (in_features,), out_features, ratio, output, subtractive, divisive, replace_zeros,
            scale_gradient, generator, {"device": device, "dtype": dtype},
        )  # fmt: skip

    def _drive(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return F.linear(x, self.weight_ee), F.linear(x, self.weight_ie)

    def _mix(self, weight: Tensor, inhibitory: Tensor) -> Tensor:
        return F.linear(inhibitory, weight)

    def _spread(self, values: Tensor) -> Tensor:
        return values

    def _rows(self, x: Tensor) -> Tensor:
        return x.flatten(0, -2)

    def _check(self, x: Tensor) -> None:
        if x.dim() < 1 or x.shape[-1] != self.in_features:
            raise ShapeError(
                "the input does not fit the layer", given=tuple(x.shape), expected=f"[…, {self.in_features}]"
            )

    def extra_repr(self) -> str:
        """What `print(layer)` shows."""
        return f"{self.in_features}, {self.out_features}, {self._shown()}"


class EIConv2d(EILayer):
    """`current = EIConv2d(1, 16, 3, padding=1)(x)`: convolutional excitation, input `[batch, channel, y, x]` >= 0.

    Takes the place of `Conv2d` and `BatchNorm2d`. The inhibitory cells are channels of the same kernel size; W_EI mixes
    them at each place. The fan-in d is channels × kernel. A sample's smallest I_sh is over its channels and places.

    Args:
        in_channels, out_channels: of the input, and excitatory ones that come out.
        kernel_size, stride, padding, dilation: as in `torch.nn.Conv2d`, one number or two.
        ratio, output, subtractive, divisive, replace_zeros, scale_gradient, generator, device, dtype: as in `EILinear`.

    Raises:
        RangeError: the ratio leaves no inhibitory channel, or the input is negative somewhere.
        ShapeError: a size is not positive, or the input is not `[batch, channel, y, x]`.
        PlexusError: used in evaluation mode before it was initialised.

    Examples:
        >>> layer = EIConv2d(1, 8, 3, padding=1, generator=torch.Generator().manual_seed(0))
        >>> layer(torch.rand(4, 1, 8, 8)).shape
        torch.Size([4, 8, 8, 8])
    """

    axes = "b u y x"
    _sample_dims = (1, 2, 3)

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Sequence[int],
        stride: int | Sequence[int] = 1,
        padding: int | Sequence[int] = 0,
        dilation: int | Sequence[int] = 1,
        ratio: int = 4,
        *,
        output: bool = False,
        subtractive: bool = True,
        divisive: bool = True,
        replace_zeros: bool = True,
        scale_gradient: bool = True,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        kernel, self.stride, self.dilation = _pair(kernel_size), _pair(stride), _pair(dilation)
        self.padding, self.kernel_size = _pair(padding), kernel
        _positive(in_channels=in_channels, out_channels=out_channels, kernel_size=min(kernel), stride=min(self.stride))
        self.in_channels, self.out_channels = in_channels, out_channels
        shape = (in_channels, *kernel)
        super().__init__(
            math.prod(shape), shape, out_channels, ratio, output, subtractive, divisive, replace_zeros,
            scale_gradient, generator, {"device": device, "dtype": dtype},
        )  # fmt: skip

    def _drive(self, x: Tensor) -> tuple[Tensor, Tensor]:
        shared = (None, self.stride, self.padding, self.dilation)
        return F.conv2d(x, self.weight_ee, *shared), F.conv2d(x, self.weight_ie, *shared)

    def _mix(self, weight: Tensor, inhibitory: Tensor) -> Tensor:
        return F.conv2d(inhibitory, weight[:, :, None, None])

    def _spread(self, values: Tensor) -> Tensor:
        return values[:, None, None]

    def _rows(self, x: Tensor) -> Tensor:
        return x

    def _check(self, x: Tensor) -> None:
        if x.dim() != 4 or x.shape[1] != self.in_channels:
            raise ShapeError(
                "the input does not fit the layer",
                given=tuple(x.shape),
                expected=f"[batch, channel, y, x] with {self.in_channels} channels",
            )

    def extra_repr(self) -> str:
        """What `print(layer)` shows."""
        size = f"kernel_size={self.kernel_size}, stride={self.stride}, padding={self.padding}"
        return f"{self.in_channels}, {self.out_channels}, {size}, {self._shown()}"


def _pair(value: int | Sequence[int]) -> tuple[int, int]:
    if isinstance(value, int):
        return value, value
    if len(value) != 2:
        raise ShapeError("a size of a convolution is one number or two", given=tuple(value))
    return int(value[0]), int(value[1])


def _positive(**sizes: int) -> None:
    for name, size in sizes.items():
        if size < 1:
            raise ShapeError(f"{name} is not positive", given=size)
