"""Synapses with learnable delays: the bump that carries each delay while it is learnt.

    K_ij(n) = w_ij g(n - d_ij) / Σ_m g(m - d_ij),        n = 0 … D steps,    d_ij in [0, D]
    g(u) = exp(-(u / (σ + 0.27))² / 2)                   Gaussian
    g(u) = max(0, 1 + σ - |u|)                           triangle; at σ = 0, linear interpolation of two steps
    K_ij(n) = w_ij if n = round(d_ij) else 0             hard

The bump is wide early in training, so that a delay feels whether the input some steps off would help, and narrows to
a step. Learning through rounding (`straight_through`) has the hard kernel forwards and, backwards, the slope of the
bump around the rounded delay.

Source: Hammouamri, Khalfaoui-Hassani & Masquelier 2024 (arXiv 2306.17670); Khalfaoui-Hassani, Pellegrini & Masquelier
2023 for the interpolations; the 0.27 and the 1e-7 of the normalisation are those of the published code. Delays are in
steps.
"""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple, Self, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from plexus.errors import RangeError, ShapeError, UnknownNameError
from plexus.kernels import delayed, delayed_taps
from plexus.nn._constraints import Constraint

__all__ = ["SHARP", "DelayKernel", "DelayState"]

SHARP = 0.23
"""The width at which annealing ends: 0.23 + 0.27 is half a step."""

_LEAST, _EPSILON = 0.27, 1e-7
_REACH = 6.0  # a Gaussian tap that lies so many widths away is below the resolution of single precision

Bump = Literal["gaussian", "triangle"]


class DelayState(NamedTuple):
    """What delayed synapses remember."""

    past: Tensor  # the last `max_delay` inputs, oldest first        [batch, max_delay, source…]


class Within(Constraint):
    """Numbers in [low, high]; as a parametrization, low + (high - low) sigmoid(ρ)."""

    def __init__(self, low: float, high: float) -> None:
        super().__init__()
        self.low, self.high = low, high

    def project(self, weight: Tensor) -> Tensor:
        """The nearest number in the range."""
        return weight.clamp(self.low, self.high)

    def forward(self, raw: Tensor) -> Tensor:
        """low + (high - low) sigmoid(ρ)."""
        return self.low + (self.high - self.low) * torch.sigmoid(raw)

    def right_inverse(self, weight: Tensor) -> Tensor:
        """The logit; the edges themselves move in by a millionth of the range."""
        return torch.logit((weight - self.low) / (self.high - self.low), eps=1e-6)


class DelayKernel(nn.Module):
    """Weights and delays `[target, source]` and the currents that they give: what delayed layers share.

    Not a layer itself; see `DelayedLinear` and `DelayedConv2d`, which say what the arguments mean.
    """

    weight: nn.Parameter
    delay: nn.Parameter

    def __init__(
        self,
        sources: int,
        targets: int,
        max_delay: int,
        *,
        learn: bool,
        kernel: Bump,
        sigma: float | None,
        straight_through: bool,
        generator: torch.Generator | None,
    ) -> None:
        super().__init__()
        if sources < 1 or targets < 1:
            raise ShapeError("a layer needs a source and a target", given=(sources, targets), expected="positive sizes")
        if max_delay < 1:
            raise RangeError("there is no delay to choose", given=max_delay, expected="max_delay >= 1 step")
        if kernel not in ("gaussian", "triangle"):
            raise UnknownNameError.among("delay kernel", kernel, ("gaussian", "triangle"))
        self.max_delay, self.kernel, self.straight_through = int(max_delay), kernel, straight_through
        bound = math.sqrt(6 / sources)
        self.weight = nn.Parameter((torch.rand(targets, sources, generator=generator) * 2 - 1) * bound)
        start = torch.rand(targets, sources, generator=generator) * max_delay
        self.delay = nn.Parameter(start, requires_grad=learn)
        self._hard = False
        self.sigma = 1.0
        self.set_sigma(float((max_delay + 1) // 2) if sigma is None else sigma)

    @property
    def learn(self) -> bool:
        """Whether the delays are learnt."""
        return self.stored_delay.requires_grad

    @property
    def stored_delay(self) -> nn.Parameter:
        """The parameter that learning changes: `delay`, or what `plexus.nn.parametrize_` put behind it."""
        if parametrize.is_parametrized(self, "delay"):
            return cast("nn.Parameter", cast("Any", self).parametrizations["delay"].original)
        return self.delay

    @property
    def delays(self) -> Tensor:
        """The delays in steps, `[target, source]`, within [0, max_delay]."""
        return self.delay.detach().clamp(0, self.max_delay)

    @property
    def is_hard(self) -> bool:
        """Whether each synapse is a single tap at its rounded delay."""
        return self._hard

    def set_sigma(self, sigma: float) -> None:
        """Set the width σ of the bump, in steps.

        Raises:
            RangeError: the width is negative, or it is zero while Gaussian delays are learnt (no gradient would come).
        """
        if not (sigma >= 0 and math.isfinite(sigma)):
            raise RangeError("the width of the kernel is out of range", given=sigma, expected="sigma >= 0 steps")
        if sigma == 0 and self.learn and self.kernel == "gaussian":
            raise RangeError(
                "a Gaussian kernel without width gives delays no gradient",
                given=sigma,
                expected="sigma > 0 steps",
                mend="stop at 0.23 and call round_() and hard(True), or use kernel='triangle'",
            )
        self.sigma = float(sigma)

    def hard(self, on: bool = True) -> Self:
        """Use one tap per synapse, at the rounded delay, from now on (or the bump again); returns the layer."""
        self._hard = on
        return self

    @torch.no_grad()
    def round_(self) -> Self:
        """Round the delays to whole steps, in place; returns the layer."""
        rounded = self.delays.round()
        if parametrize.is_parametrized(self, "delay"):
            self.delay = rounded  # type: ignore[assignment]
        else:
            self.delay.copy_(rounded)
        return self

    def constraints(self) -> dict[str, Constraint]:
        """What `plexus.nn.project_` keeps: learnt delays in their range."""
        return {"delay": Within(0.0, self.max_delay)} if self.learn else {}

    def get_extra_state(self) -> Tensor:
        """Width and hardness belong to the layer's state dict."""
        return torch.tensor([self.sigma, float(self._hard)])

    def set_extra_state(self, state: Tensor) -> None:
        """Take width and hardness from a state dict."""
        self.sigma, self._hard = float(state[0]), bool(state[1])

    def taps(self) -> Tensor:
        """The kernel over all delays, `[source, delay, target]`; costs max_delay + 1 numbers per synapse."""
        steps = torch.arange(self.max_delay + 1, dtype=self.delay.dtype, device=self.delay.device)
        where = self._where().T.unsqueeze(1)
        centre = where.round() if self._hard else where
        return self.weight.T.unsqueeze(1) * self._shares(steps.reshape(1, -1, 1), centre)

    def current(self, x: Tensor) -> Tensor:
        """Currents `[time, batch, target]` of x `[max_delay + time, batch, source]`."""
        width = self._width()
        if 3 * width > self.max_delay + 1 and not self._hard:
            return delayed(x, self.taps())
        where = self._where()
        if self._hard:
            start = where.detach().round().long()
            values = self.weight.unsqueeze(0)
        else:
            first = where.detach().round().long() - width // 2
            start = first.clamp(0, self.max_delay + 1 - width)
            offsets = torch.arange(width, device=x.device).reshape(-1, 1, 1)
            values = self.weight * self._shares((start + offsets).to(where.dtype), where.unsqueeze(0), dim=0)
        return delayed_taps(x, start, values, self.max_delay)

    def _width(self) -> int:
        """How many steps a bump spans."""
        if self._hard:
            return 1
        half = _REACH * (self.sigma + _LEAST) if self.kernel == "gaussian" else 1 + self.sigma
        return min(2 * math.ceil(half - 0.5 - 1e-9) + 1, self.max_delay + 1)

    def _where(self) -> Tensor:
        """The delays, in range; the gradient passes as if they had been there all along, so that they can come back."""
        where = self.delay + (self.delay.clamp(0, self.max_delay) - self.delay).detach()
        if self.straight_through:
            where = where + (where.round() - where).detach()
        return where

    def _shares(self, steps: Tensor, where: Tensor, dim: int = 1) -> Tensor:
        """How a synapse's weight is shared out over steps; sums to one over `dim`."""
        u = steps - where
        if self._hard:
            return (u == 0).to(u.dtype)
        if self.kernel == "gaussian":
            bump = torch.exp(-0.5 * (u / (self.sigma + _LEAST)) ** 2)
        else:
            bump = (1 + self.sigma - u.abs()).clamp(min=0)
        shares = bump / (bump.sum(dim, keepdim=True) + _EPSILON)
        if self.straight_through:
            shares = shares + ((u == 0).to(u.dtype) - shares).detach()
        return shares
