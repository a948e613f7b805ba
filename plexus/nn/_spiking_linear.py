"""A linear layer that spikes go into: it reads the weights of the units that spiked, and no others."""

from __future__ import annotations

from torch import Tensor, nn

from plexus.kernels import spike_linear

__all__ = ["SpikingLinear"]


class SpikingLinear(nn.Linear):
    """`nn.Linear` for an input that is mostly zero: same parameters, same numbers, less work.

    Forward and the gradient of the weight cost a share of the dense product as large as the share of inputs that are
    not zero (up to 15 %; beyond, and on other devices than the CPU, it is `nn.Linear`). Sums run in another order than
    there, so results agree to rounding.

    Examples:
        >>> import torch
        >>> layer = SpikingLinear(700, 100)
        >>> spikes = (torch.rand(200, 700) < 0.05).float()
        >>> torch.allclose(layer(spikes), nn.functional.linear(spikes, layer.weight, layer.bias), atol=1e-5)
        True
    """

    def forward(self, input: Tensor) -> Tensor:
        """`input` `[…, in_features]` to `[…, out_features]`."""
        return spike_linear(input, self.weight, self.bias)
