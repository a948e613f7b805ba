"""Encoders: from numbers to spikes or currents over time.

    rate      z[t] ~ Bernoulli(x)
    poisson   z[t] ~ Bernoulli(1 - exp(-x r dt))                    at least one event of a Poisson process in the bin
    latency   one spike at the time a leaky capacitor driven by x crosses θ:  τ ln(x / (x - θ));  none for x <= θ
    direct    x at every step
    delta     +1 or -1 where x[t] has moved by θ or more from a reference, which follows by θ per event

x is in [0, 1] for the first three. Rates in Hz, times in ms.

Sources: Gerstner & Kistler 2002, section 5.2 (Poisson); Thorpe et al. 2001 and the charging curve of an RC circuit
(latency); Miskowicz 2006 (send on delta).
"""

from __future__ import annotations

import torch
from torch import Tensor

from plexus.errors import DtypeError, RangeError, ShapeError
from plexus.units._draws import uniform

__all__ = ["delta", "direct", "latency", "poisson", "rate"]


def rate(x: Tensor, steps: int, *, generator: torch.Generator | None = None) -> Tensor:
    """Spikes `[steps, *x.shape]`, each with probability x.

    Raises `RangeError` if x lies outside [0, 1] or is NaN, `DtypeError` if it is not floating point.

    Examples:
        >>> rate(torch.tensor([[0.0, 1.0]]), steps=3).squeeze(1).tolist()
        [[0.0, 1.0], [0.0, 1.0], [0.0, 1.0]]
    """
    _check(x, steps)
    return _draw(x, steps, generator)


def poisson(
    x: Tensor, steps: int, *, rate: float = 100.0, dt: float = 1.0, generator: torch.Generator | None = None
) -> Tensor:
    """Spikes `[steps, *x.shape]` of Poisson processes of x · rate Hz, at most one per step of dt ms.

    Raises `RangeError` if x lies outside [0, 1] or is NaN or a number is not positive, `DtypeError` if x is not
    floating point.

    Examples:
        >>> generator = torch.Generator().manual_seed(0)
        >>> spikes = poisson(torch.full((1, 1000), 0.5), 100, rate=40.0, generator=generator)
        >>> abs(spikes.mean().item() - 0.02) < 0.002            # 20 Hz: about 0.02 in a step of 1 ms
        True
    """
    _check(x, steps)
    _positive("rate", rate)
    _positive("dt", dt)
    return _draw(-torch.expm1(-x * (rate * dt / 1000.0)), steps, generator)


def latency(x: Tensor, steps: int, *, tau: float = 5.0, threshold: float = 0.01, dt: float = 1.0) -> Tensor:
    """One spike per number, the earlier the larger it is; `[steps, *x.shape]`.

    The time is that at which a leaky integrator with time constant tau (ms), driven by x, crosses the threshold.
    Numbers at or below the threshold, and those that would spike after the last step, never do.

    Raises `RangeError` if x lies outside [0, 1] or is NaN or a number is not positive, `DtypeError` if x is not
    floating point.

    Examples:
        >>> spikes = latency(torch.tensor([[1.0, 0.05, 0.0]]), steps=10, tau=5.0, threshold=0.04)
        >>> spikes.squeeze(1).T.nonzero().tolist()           # unit and time: the last unit never spikes
        [[0, 0], [1, 8]]
    """
    _check(x, steps)
    _positive("tau", tau)
    _positive("threshold", threshold)
    _positive("dt", dt)
    reached = x > threshold
    driven = torch.where(reached, x, torch.ones_like(x) + threshold)
    at = torch.floor(tau / dt * torch.log(driven / (driven - threshold)))
    clock = torch.arange(steps, dtype=x.dtype, device=x.device).view(-1, *(1,) * x.dim())
    return ((clock == at) & reached).to(x.dtype)


def direct(x: Tensor, steps: int) -> Tensor:
    """The same current at every step, `[steps, *x.shape]`: a view, no memory is taken.

    Raises `RangeError` if steps is negative, `DtypeError` if x is not floating point.

    Examples:
        >>> direct(torch.tensor([[0.3, 0.7]]), steps=2).tolist()
        [[[0.30000001192092896, 0.699999988079071]], [[0.30000001192092896, 0.699999988079071]]]
    """
    _check(x, steps, bounded=False)
    return x.expand(steps, *x.shape)


def delta(x: Tensor, threshold: float, reference: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Events of a signal that moves: `events, reference = delta(x, threshold)`.

    Args:
        x: signal `[time, batch, unit…]`.
        threshold: a step up or down of this size makes one event.
        reference: where the encoder stands, `[batch, unit…]`; None is the first value of the signal.

    Returns:
        Events of the shape of x, +1 up, -1 down, 0 otherwise, at most one per step, and the reference to go on from. A
        signal that moves by more than the threshold per step is caught up with in the steps that follow.

    Raises:
        RangeError: the threshold is not positive.
        ShapeError: the reference does not fit the signal, or there is no step to take one from.

    Examples:
        >>> events, reference = delta(torch.tensor([0.0, 0.5, 1.0, 1.0, 0.0]).view(5, 1, 1), threshold=0.5)
        >>> events.flatten().tolist(), reference.item()
        ([0.0, 1.0, 1.0, 0.0, -1.0], 0.5)
    """
    _check(x, x.shape[0] if x.dim() else 0, bounded=False)
    _positive("threshold", threshold)
    if x.dim() < 2 or (reference is None and not len(x)):
        raise ShapeError("a signal is needed", given=tuple(x.shape), expected="[time, batch, unit…]")
    if reference is None:
        reference = x[0]
    elif reference.shape != x.shape[1:]:
        raise ShapeError(
            "the reference does not fit the signal", given=tuple(reference.shape), expected=tuple(x.shape[1:])
        )
    events = []
    for value in x.unbind(0):
        moved = value - reference
        event = (moved >= threshold).to(x.dtype) - (moved <= -threshold).to(x.dtype)
        reference = reference + threshold * event
        events.append(event)
    return torch.stack(events) if events else torch.zeros_like(x), reference


def _draw(probability: Tensor, steps: int, generator: torch.Generator | None) -> Tensor:
    shape = (steps, *probability.shape)
    drawn = uniform(shape, dtype=probability.dtype, device=probability.device, generator=generator)
    return (drawn < probability).to(probability.dtype)


def _check(x: Tensor, steps: int, *, bounded: bool = True) -> None:
    if not isinstance(x, Tensor) or not x.is_floating_point():
        given = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise DtypeError(
            "encoders take floating point tensors", given=given, mend="scale and convert it, x.float() / 255"
        )
    if steps < 0:
        raise RangeError("the number of steps is negative", given=steps, expected=">= 0")
    if not bool(torch.isfinite(x).all()):
        raise RangeError("the input holds NaN or infinity")
    if bounded and x.numel() and not (float(x.min()) >= 0.0 and float(x.max()) <= 1.0):
        raise RangeError(
            "the input lies outside [0, 1]",
            given=f"[{float(x.min()):g}, {float(x.max()):g}]",
            mend="scale it first, e.g. (x - x.min()) / (x.max() - x.min())",
        )


def _positive(name: str, value: float) -> None:
    if not value > 0:
        raise RangeError(f"{name} must be positive", given=value, expected="> 0")
