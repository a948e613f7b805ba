"""Spike functions: a step forwards, and in place of its derivative a surrogate that learning can follow.

With u = v - threshold, width w and height h, the surrogate derivative is h·g(u / w), where g(0) = 1:

    fast_sigmoid        g = 1 / (1 + |u|/w)²                 Zenke & Ganguli 2018
    arctan              g = 1 / (1 + (u/w)²)                 Fang et al. 2021
    sigmoid             g = 4 σ(u/w) (1 - σ(u/w))            Neftci, Mostafa & Zenke 2019
    triangular          g = max(0, 1 - |u|/w)                Bellec et al. 2018
    gaussian            g = exp(-(u/w)²/2)                   Yin, Corradi & Bohté 2021
    straight_through    g = 1 where |u| <= w, else 0         Bengio et al. 2013 (w = inf by default)

`S(u)` beside each is its integral, with S(0) = 0: the spike of a smooth neuron is 1/2 + h·S(u), and the surrogate is
then its true derivative. Each pair is written once, in functions that run on tensors and on scalars alike.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from plexus.errors import RangeError, UnknownNameError
from plexus.kernels._dialect import absolute, arctan, clip, erf, exp, where

__all__ = ["SURROGATES", "Surrogate"]


def fast_sigmoid(u, width):  # type: ignore[no-untyped-def]
    a = 1.0 + absolute(u) / width
    return 1.0 / (a * a)


def fast_sigmoid_integral(u, width):  # type: ignore[no-untyped-def]
    return u / (1.0 + absolute(u) / width)


def arctan_derivative(u, width):  # type: ignore[no-untyped-def]
    a = u / width
    return 1.0 / (1.0 + a * a)


def arctan_integral(u, width):  # type: ignore[no-untyped-def]
    return width * arctan(u / width)


def sigmoid(u, width):  # type: ignore[no-untyped-def]
    e = exp(0.0 - absolute(u) / width)
    a = 1.0 + e
    return 4.0 * e / (a * a)


def sigmoid_integral(u, width):  # type: ignore[no-untyped-def]
    e = exp(0.0 - absolute(u) / width)
    half = (1.0 - e) / (1.0 + e)
    return 2.0 * width * where(u < 0.0, 0.0 - half, half)


def triangular(u, width):  # type: ignore[no-untyped-def]
    a = 1.0 - absolute(u) / width
    return where(a > 0.0, a, 0.0)


def triangular_integral(u, width):  # type: ignore[no-untyped-def]
    a = clip(u, 0.0 - width, width)
    return a - a * absolute(a) / (2.0 * width)


def gaussian(u, width):  # type: ignore[no-untyped-def]
    a = u / width
    return exp(0.0 - 0.5 * (a * a))


def gaussian_integral(u, width):  # type: ignore[no-untyped-def]
    return width * 1.2533141373155001 * erf(u / width * 0.7071067811865476)


def straight_through(u, width):  # type: ignore[no-untyped-def]
    return where(absolute(u) <= width, 1.0 + 0.0 * u, 0.0)


def straight_through_integral(u, width):  # type: ignore[no-untyped-def]
    return clip(u, 0.0 - width, width)


@dataclass(frozen=True)
class _Kind:
    derivative: Callable[..., Tensor]
    integral: Callable[..., Tensor]
    width: float


SURROGATES: dict[str, _Kind] = {
    "arctan": _Kind(arctan_derivative, arctan_integral, 1.0 / math.pi),
    "fast_sigmoid": _Kind(fast_sigmoid, fast_sigmoid_integral, 0.1),
    "gaussian": _Kind(gaussian, gaussian_integral, 0.5),
    "sigmoid": _Kind(sigmoid, sigmoid_integral, 0.25),
    "straight_through": _Kind(straight_through, straight_through_integral, math.inf),
    "triangular": _Kind(triangular, triangular_integral, 1.0),
}


@dataclass(frozen=True)
class Surrogate:
    """A surrogate derivative by name, with its width and height.

    Args:
        name: `"arctan"`, `"fast_sigmoid"`, `"sigmoid"`, `"triangular"`, `"gaussian"` or `"straight_through"`.
        width: scale of the distance to threshold, in the units of the potential; `None` is the kind's usual one.
        height: the derivative at threshold.

    Raises:
        UnknownNameError: for another name.
        RangeError: if width or height is not positive.

    Examples:
        >>> import torch
        >>> Surrogate("triangular", width=0.5)
        Surrogate(name='triangular', width=0.5, height=1.0)
        >>> Surrogate("arctan").derivative(torch.tensor([0.0, 1 / torch.pi]))
        tensor([1.0000, 0.5000])
    """

    name: str = "arctan"
    width: float | None = None
    height: float = 1.0

    def __post_init__(self) -> None:
        if self.name not in SURROGATES:
            raise UnknownNameError.among("surrogate", self.name, SURROGATES)
        if self.width is None:
            object.__setattr__(self, "width", SURROGATES[self.name].width)
        for label, number in (("width", self.width), ("height", self.height)):
            if not (isinstance(number, (int, float)) and number > 0):
                raise RangeError(f"the {label} of a surrogate must be positive", given=number, expected="a number > 0")

    def derivative(self, u: Tensor) -> Tensor:
        """h·g(u / w), elementwise."""
        return self.height * SURROGATES[self.name].derivative(u, self.width)

    def smooth(self, u: Tensor) -> Tensor:
        """1/2 + h·S(u): the smooth spike whose true derivative this surrogate is."""
        return 0.5 + self.height * SURROGATES[self.name].integral(u, self.width)
