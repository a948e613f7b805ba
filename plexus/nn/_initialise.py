"""Initial weights with which a spiking layer fires.

With n inputs that spike with probability p per step, weights of mean μ_w and standard deviation σ_w, decay α and input
gain κ, the potential without reset has

    mean       μ_U = n μ_w p ε̄,                        ε̄ = κ / (1 - α)        sum of the kernel κ αᵏ
    variance   σ_U² = n (σ_w² + μ_w²) p (1 - p) ε̂,     ε̂ = κ² / (1 - α²)      sum of its square

and the weights are drawn so that the threshold lies ξ standard deviations above the mean.

Source: Rossbroich, Gygax & Zenke 2022, Fluctuation-driven initialization for spiking neural network training (there for
Poisson input in continuous time: p (1 - p) is p).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from plexus.errors import RangeError, ShapeError, UnsupportedError
from plexus.nn._sequential import Sequential, Stateful
from plexus.nn.neurons import LIF
from plexus.units._draws import drawn_
from plexus.units._evaluating import evaluating

__all__ = ["fluctuation_driven_", "init_firing_"]


@torch.no_grad()
def fluctuation_driven_(
    weight: Tensor,
    neuron: LIF,
    *,
    input_rate: float,
    xi: float = 1.5,
    mean: float = 0.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Draw the weights into a layer of LIF neurons so that fluctuations carry them to the threshold; in place.

    Args:
        weight: `[units, inputs, …]`, as of Linear or Conv.
        neuron: the layer that the weights drive.
        input_rate: probability with which an input spikes in a step, in (0, 1).
        xi: how many standard deviations of the potential the threshold lies above its mean.
        mean: mean of the potential, below the threshold.
        generator: source of the weights.

    Raises:
        RangeError: a number is out of range, the neurons do not leak, or the mean asks for more than xi allows.

    Examples:
        >>> import torch
        >>> from plexus.nn import LIF
        >>> linear, layer = torch.nn.Linear(400, 50, bias=False), LIF(50, tau_mem=10.0)
        >>> _ = fluctuation_driven_(linear.weight, layer, input_rate=0.05, generator=torch.Generator().manual_seed(0))
        >>> spikes, _ = layer(linear((torch.rand(100, 4, 400) < 0.05).float()))
        >>> 0.005 < spikes.mean().item() < 0.2
        True
    """
    if not 0.0 < input_rate < 1.0:
        raise RangeError("the input rate is not a probability", given=input_rate, expected="in (0, 1)")
    if not xi > 0:
        raise RangeError("xi must be positive", given=xi, expected="> 0, usually 1 to 3")
    decay, threshold = float(neuron.decay.mean()), float(torch.as_tensor(neuron.threshold).mean())
    rest = float(torch.as_tensor(neuron.rest).mean())
    if not 0.0 <= decay < 1.0:
        raise RangeError(
            "neurons that do not leak have no stationary potential", given=f"decay {decay:g}", expected="< 1"
        )
    if not mean < threshold - rest:
        raise RangeError("the mean potential lies above the threshold", given=mean, expected=f"< {threshold - rest:g}")
    gain = 1 - decay if neuron.scale_input else 1.0
    n = weight[0].numel()
    if n == 0:
        raise ShapeError("there are no inputs", given=tuple(weight.shape))
    weight_mean = mean * (1 - decay) / (n * input_rate * gain)
    second = ((threshold - rest - mean) / xi) ** 2 * (1 - decay**2) / (n * input_rate * (1 - input_rate) * gain**2)
    if second <= weight_mean**2:
        raise RangeError(
            "the mean alone fluctuates more than xi allows", given=f"mean {mean:g}, xi {xi:g}", mend="lower both"
        )
    std = math.sqrt(second - weight_mean**2)
    return drawn_(weight, lambda t: t.normal_(weight_mean, std, generator=generator), generator)


@torch.no_grad()
def init_firing_(
    network: Sequential,
    x: Tensor,
    *,
    rate: float = 0.05,
    tolerance: float = 0.2,
    iterations: int = 24,
) -> dict[str, float]:
    """Scale the weights in front of each spiking layer until its mean rate on x is the wanted one; in place.

    Args:
        network: a `Sequential` in which every spiking layer has a layer with a `weight` somewhere before it.
        x: a batch of input, `[time, batch, …]`.
        rate: spikes per unit and step to reach, in (0, 1).
        tolerance: relative distance at which a layer is done.
        iterations: bisection steps per layer.

    Returns:
        The rate reached by each spiking layer, by name.

    Raises:
        RangeError: a number is out of range, or no scale of the weights reaches the rate (silent input, or a bias that
            drives the units alone).
        UnsupportedError: nothing in front of a spiking layer can be scaled.

    Examples:
        >>> import torch
        >>> from plexus.nn import LIF, Sequential
        >>> net = Sequential(torch.nn.Linear(20, 30), LIF(30), torch.nn.Linear(30, 10), LIF(10))
        >>> rates = init_firing_(net, torch.rand(50, 8, 20), rate=0.1)
        >>> all(0.08 <= rate <= 0.12 for rate in rates.values())
        True
    """
    if not 0.0 < rate < 1.0:
        raise RangeError("the wanted rate is not a probability", given=rate, expected="in (0, 1)")
    reached: dict[str, float] = {}
    segment: list[tuple[str, nn.Module]] = []
    with evaluating(network):
        for name, layer in network.named_children():
            segment.append((name, layer))
            if isinstance(layer, Stateful) and getattr(layer, "activity", None) == "spiking":
                stack = Sequential()
                for inner_name, inner in segment:
                    stack.add_module(inner_name, inner)
                reached[name] = _scale(name, segment, stack, x, rate, tolerance, iterations)
                x = stack(x)[0]
                segment = []
    return reached


def _scale(
    name: str,
    segment: list[tuple[str, nn.Module]],
    stack: Sequential,
    x: Tensor,
    rate: float,
    tolerance: float,
    steps: int,
) -> float:
    weights: list[Any] = [m.weight for _, m in segment[:-1] if isinstance(getattr(m, "weight", None), Tensor)]
    weights = [w for w in weights if w.dim() > 1]
    if not weights:
        raise UnsupportedError(
            f"nothing in front of layer {name} has weights to scale", mend="put a Linear or Conv there"
        )
    weight, start = weights[-1], weights[-1].detach().clone()

    def at(logarithm: float) -> float:
        weight.copy_(start * math.exp(logarithm))
        return float(stack(x)[0].mean())

    low, high = -12.0, 12.0
    if at(low) > rate or at(high) < rate:
        found = f"{at(low):.3g} to {at(high):.3g}"
        weight.copy_(start)
        raise RangeError(
            f"no scale of the weights makes layer {name} fire at the wanted rate",
            given=rate,
            expected=f"a rate within {found}",
            mend="check that the input is not silent and that biases stay below the threshold",
        )
    best, best_scale = math.inf, 0.0
    found_rate = math.nan
    for _ in range(steps):
        middle = (low + high) / 2
        now = at(middle)
        if abs(now - rate) < best:
            best, best_scale, found_rate = abs(now - rate), middle, now
        if best <= tolerance * rate / 4:
            break
        low, high = (middle, high) if now < rate else (low, middle)
    at(best_scale)
    if best > tolerance * rate:
        raise RangeError(
            f"layer {name} jumps over the wanted rate", given=rate, expected=f"e.g. {found_rate:.3g}",
            mend="give a larger batch or a wider tolerance",
        )  # fmt: skip
    return found_rate
