"""Autoencoder whose code is the steady state of a rectified recurrent network.

    f = relu(E x + b)                      drive
    r = relu(g∘f + W r)                    rates, the steady state of `RecurrentRate`
    x ≈ c + D r                            reconstruction
    loss = mean ‖x - c - D r‖² + price · mean ‖r‖²

Trained through the steady state by implicit gradients; it starts from the principal components of the data, one unit
for each sign of each, with weak random recurrence.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from plexus.errors import RangeError, ShapeError
from plexus.nn._recurrent_rate import RecurrentRate


class RecurrentAutoencoder(nn.Module):
    """`RecurrentAutoencoder(features, units)(x)` reconstructs `[batch, feature]`; `fit` trains it.

    Args:
        features: number of features. units: number of units, even.

    Attributes:
        net: the `RecurrentRate` whose steady state is the code.

    Raises:
        RangeError: units not even or not positive, or more than twice the features.

    Examples:
        >>> x = torch.randn(64, 6, generator=torch.Generator().manual_seed(0))
        >>> model = RecurrentAutoencoder(6, 8)
        >>> model.fit(x, steps=50, generator=torch.Generator().manual_seed(0))
        >>> bool((x - model(x)).square().sum() < (x - x.mean(0)).square().sum())
        True
    """

    def __init__(self, features: int, units: int) -> None:
        super().__init__()
        if units < 2 or units % 2 or units > 2 * features:
            raise RangeError("units come in pairs, at most two per feature", given=(features, units))
        self.features, self.units = features, units
        self.encode = nn.Parameter(torch.zeros(units, features))
        self.bias = nn.Parameter(torch.zeros(units))
        self.decode = nn.Parameter(torch.zeros(features, units))
        self.centre = nn.Parameter(torch.zeros(features))
        self.net = RecurrentRate(nn.Parameter(torch.zeros(units, units)), activation=torch.relu)

    def drive(self, x: Tensor) -> Tensor:
        """Feed-forward drive, `[batch, feature]` to `[batch, unit]`."""
        if x.dim() != 2 or x.shape[1] != self.features:
            raise ShapeError("input does not fit", given=tuple(x.shape), expected=f"[batch, {self.features}]")
        return torch.relu(x @ self.encode.T + self.bias)

    def forward(self, x: Tensor, *, gain: Tensor | None = None, tol: float | None = None) -> Tensor:
        """Reconstruction `[batch, feature]`; `gain` `[unit]` scales the drive, `tol` is that of the steady state."""
        rates = self.net.steady_state(self.drive(x), gain=gain, tol=tol)
        return self.centre + rates @ self.decode.T

    def fit(
        self,
        x: Tensor,
        *,
        steps: int = 150,
        generator: torch.Generator,
        price: float = 0.02,
        rate: float = 5e-3,
        batch: int = 128,
    ) -> None:
        """Train on `x` `[sample, feature]` with Adam, starting from its principal components."""
        x = x.to(self.encode.device)
        with torch.no_grad():
            self._start(x, generator)
        optimizer = torch.optim.Adam(self.parameters(), lr=rate)
        for _ in range(steps):
            now = x[torch.randint(len(x), (batch,), generator=generator, device=generator.device).to(x.device)]
            rates = self.net.steady_state(self.drive(now), tol=1e-3)
            error = (now - self.centre - rates @ self.decode.T).square().sum(1)
            optimizer.zero_grad()
            (error + price * rates.square().sum(1)).mean().backward()
            optimizer.step()

    def _start(self, x: Tensor, generator: torch.Generator) -> None:
        mean = x.mean(0)
        _, size, axes = torch.linalg.svd(x - mean, full_matrices=False)
        half = self.units // 2
        if len(size) < half or not float(size[half - 1]) > 0:
            raise RangeError("the data span too few directions", given=int((size > 0).sum()), expected=half)
        axes = axes[:half] / (size[:half] / math.sqrt(len(x)))[:, None].sqrt()
        self.encode.copy_(torch.cat([axes, -axes]))
        self.bias.copy_(-(self.encode @ mean))
        self.decode.copy_(torch.linalg.pinv(self.encode))
        self.centre.copy_(mean)
        weight = torch.randn(self.units, self.units, generator=generator, device=generator.device)
        self.net.weight.copy_(0.1 * weight / math.sqrt(self.units))
