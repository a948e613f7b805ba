"""Synaptic currents and conductances: spikes filtered over time.

    s[t] = a s[t-1] + x[t],                    a = exp(-dt/τ)           exponential
    y[t] = (p[t] - q[t]) / peak                p slow, q fast           double exponential, largest value 1
    y[t] = (e/τ) dt Σ_n n a^n x[t-n]                                    alpha, largest value 1 (at t = τ)
    I[t] = y[t] (E - v[t])                                              conductance, with reversal potential E

Sources: Gerstner & Kistler 2002, section 4.1.3; Dayan & Abbott 2001, section 5.8. Time constants in ms.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from plexus.errors import DtypeError, RangeError, ShapeError
from plexus.kernels import decaying_sum
from plexus.nn._places import device_of, place_of

__all__ = [
    "AlphaSynapse",
    "Conductance",
    "DoubleExponentialSynapse",
    "ExponentialSynapse",
    "FilterState",
    "leaky",
]


class FilterState(NamedTuple):
    """What a filter remembers."""

    s: Tensor  # first trace (the slow one of two)       [batch, unit…]
    r: Tensor  # second trace; zero where there is none  [batch, unit…]


def leaky(x: Tensor, decay: Tensor | float, start: Tensor) -> Tensor:
    """The trace s[t] = decay s[t-1] + x[t] at every step.

    Args:
        x: `[time, batch, unit…]`.
        decay: factor per step in [0, 1]; a number or a tensor that broadcasts to `[unit…]`.
        start: s before the first step, `[batch, unit…]`.

    Returns:
        `[time, batch, unit…]`.

    Examples:
        >>> leaky(torch.tensor([1.0, 0.0, 2.0]).reshape(3, 1, 1), 0.5, torch.zeros(1, 1)).flatten()
        tensor([1.0000, 0.5000, 2.2500])
    """
    return decaying_sum(x, start, decay=decay)[0]


class _Filter(nn.Module):
    """What all filters share: their units, time constants and state."""

    axes = "t b u"

    def __init__(self, units: int | tuple[int, ...], dt: float) -> None:
        super().__init__()
        self.units = (units,) if isinstance(units, int) else tuple(units)
        if not self.units or any(size < 1 for size in self.units):
            raise ShapeError("a layer needs at least one unit", given=units, expected="positive sizes")
        self.axes = {1: "t b u", 2: "t b u x", 3: "t b u y x"}.get(len(self.units), "t b u ...")
        self.dt = dt
        self._time("dt", dt)

    def _time(self, name: str, value: float | Tensor) -> Tensor:
        number = torch.as_tensor(value, dtype=torch.get_default_dtype()).detach().clone()
        if not bool((number > 0).all()):
            raise RangeError(f"{name} must be positive", given=value, expected="ms > 0")
        try:
            number.expand(getattr(self, "units", ()) if name != "dt" else ())
        except RuntimeError as error:
            raise ShapeError(
                f"{name} does not fit the units", given=tuple(number.shape), expected=f"one number or {self.units}"
            ) from error
        return number

    def _decay(self, log_tau: Tensor, x: Tensor) -> Tensor:
        return torch.exp(-self.dt / log_tau.to(x.dtype).exp())

    def _begin(self, x: Tensor, state: FilterState | None) -> FilterState:
        if not isinstance(x, Tensor) or not x.is_floating_point():
            raise DtypeError("the input is not a floating-point tensor", given=getattr(x, "dtype", type(x).__name__))
        if tuple(x.shape[2:]) != self.units:
            expected = f"[time, batch, {', '.join(map(str, self.units))}]"
            raise ShapeError("the input does not fit the layer", given=tuple(x.shape), expected=expected)
        if state is None:
            return FilterState(x.new_zeros(x.shape[1:]), x.new_zeros(x.shape[1:]))
        if state.s.shape != x.shape[1:]:
            raise ShapeError(
                "the state does not fit the input", given=tuple(state.s.shape), expected=tuple(x.shape[1:])
            )
        return state

    def initial_state(self, batch: int, *, dtype: torch.dtype | None = None) -> FilterState:
        """Rest."""
        rest = torch.zeros(batch, *self.units, dtype=dtype or torch.get_default_dtype(), device=device_of(self))
        return FilterState(rest, rest.clone())


def _kept(module: nn.Module, name: str, value: Tensor, learn: bool) -> None:
    """A time constant is kept by its logarithm, so that no step of learning makes it negative."""
    if learn:
        module.register_parameter(name, nn.Parameter(value.log()))
    else:
        module.register_buffer(name, value.log())


class ExponentialSynapse(_Filter):
    """`current, state = ExponentialSynapse(3, tau=5.0)(spikes)`: each spike jumps by one and decays.

    Args:
        units: number of synapses (or their shape).
        tau: time constant in ms; a number or one per unit.
        dt: step in ms.
        learn: whether `tau` is learnt.

    Raises:
        RangeError: a time constant or dt is not positive. ShapeError: the input does not fit.

    Examples:
        >>> current, _ = ExponentialSynapse(1, tau=1 / 0.6931472)(torch.tensor([1.0, 0, 0]).reshape(3, 1, 1))
        >>> current.flatten()
        tensor([1.0000, 0.5000, 0.2500])
    """

    log_tau: Tensor

    def __init__(
        self, units: int | tuple[int, ...], tau: float | Tensor = 5.0, *, dt: float = 1.0, learn: bool = False
    ) -> None:
        super().__init__(units, dt)
        _kept(self, "log_tau", self._time("tau", tau), learn)

    @property
    def tau(self) -> Tensor:
        """Time constant, ms."""
        return self.log_tau.exp()

    def forward(self, x: Tensor, state: FilterState | None = None) -> tuple[Tensor, FilterState]:
        """Traces `[time, batch, unit…]` of the spikes x."""
        begin = self._begin(x, state)
        trace = leaky(x, self._decay(self.log_tau, x), begin.s)
        return trace, FilterState(trace[-1] if len(x) else begin.s, begin.r)


class DoubleExponentialSynapse(_Filter):
    """`current, state = DoubleExponentialSynapse(3, rise=1.0, decay=5.0)(spikes)`: rises, then decays; largest value 1.

    Args:
        units: number of synapses (or their shape).
        rise, decay: time constants in ms, rise < decay; numbers or one per unit.
        dt: step in ms. The peak is that of the continuous curve.
        learn: whether both are learnt; the decay is kept as the rise plus a gap, so that it stays the slower one.

    Raises:
        RangeError: a time constant or dt is not positive, or rise >= decay. ShapeError: the input does not fit.

    Examples:
        >>> spike = torch.zeros(60, 1, 1)
        >>> spike[0] = 1
        >>> current, _ = DoubleExponentialSynapse(1, rise=2.0, decay=8.0, dt=0.1)(spike)
        >>> round(current.max().item(), 3), int(current.argmax())       # τr τd ln(τd/τr) / (τd - τr) = 3.70 ms
        (1.0, 37)
    """

    log_rise: Tensor
    log_gap: Tensor

    def __init__(
        self,
        units: int | tuple[int, ...],
        rise: float | Tensor = 1.0,
        decay: float | Tensor = 5.0,
        *,
        dt: float = 1.0,
        learn: bool = False,
    ) -> None:
        super().__init__(units, dt)
        fast, slow = (self._time(n, t).to(place_of(rise, decay)) for n, t in (("rise", rise), ("decay", decay)))
        if not bool((fast < slow).all()):
            raise RangeError("the rise must be faster than the decay", given=(rise, decay), expected="rise < decay")
        _kept(self, "log_rise", fast, learn)
        _kept(self, "log_gap", slow - fast, learn)

    @property
    def rise(self) -> Tensor:
        """Time constant of the rise, ms."""
        return self.log_rise.exp()

    @property
    def decay(self) -> Tensor:
        """Time constant of the decay, ms; always longer than the rise."""
        return self.rise + self.log_gap.exp()

    def forward(self, x: Tensor, state: FilterState | None = None) -> tuple[Tensor, FilterState]:
        """Currents `[time, batch, unit…]` of the spikes x."""
        begin = self._begin(x, state)
        fast, slow = self.rise.to(x.dtype), self.decay.to(x.dtype)
        at_peak = fast * slow / (slow - fast) * torch.log(slow / fast)
        peak = torch.exp(-at_peak / slow) - torch.exp(-at_peak / fast)
        p = leaky(x, torch.exp(-self.dt / slow), begin.s)
        q = leaky(x, torch.exp(-self.dt / fast), begin.r)
        return (p - q) / peak, FilterState(p[-1], q[-1]) if len(x) else begin


class AlphaSynapse(_Filter):
    """`current, state = AlphaSynapse(3, tau=5.0)(spikes)`: the curve (t/τ) exp(1 - t/τ) after each spike.

    Args:
        units: number of synapses (or their shape).
        tau: time to the peak in ms; a number or one per unit.
        dt: step in ms.
        learn: whether `tau` is learnt.

    Raises:
        RangeError: a time constant or dt is not positive. ShapeError: the input does not fit.

    Examples:
        >>> spike = torch.zeros(5, 1, 1)
        >>> spike[0] = 1
        >>> AlphaSynapse(1, tau=2.0)(spike)[0].flatten()
        tensor([0.0000, 0.8244, 1.0000, 0.9098, 0.7358])
    """

    log_tau: Tensor

    def __init__(
        self, units: int | tuple[int, ...], tau: float | Tensor = 5.0, *, dt: float = 1.0, learn: bool = False
    ) -> None:
        super().__init__(units, dt)
        _kept(self, "log_tau", self._time("tau", tau), learn)

    @property
    def tau(self) -> Tensor:
        """Time to the peak, ms."""
        return self.log_tau.exp()

    def forward(self, x: Tensor, state: FilterState | None = None) -> tuple[Tensor, FilterState]:
        """Currents `[time, batch, unit…]` of the spikes x."""
        begin = self._begin(x, state)
        if not len(x):
            return x, begin
        tau = self.tau.to(x.dtype)
        decay = torch.exp(-self.dt / tau)
        s = leaky(x, decay, begin.s)
        before = torch.cat([begin.s.unsqueeze(0), s[:-1]])
        r = leaky(decay * before, decay, begin.r)  # Σ n aⁿ x[t-n]
        return math.e * self.dt / tau * r, FilterState(s[-1], r[-1])


class Conductance(nn.Module):
    """`current = Conductance(reversal=-70.0)(g, v)`: what an open synapse drives, g (E - v).

    The conductance g comes from one of the filters, the potential v from the neuron, in the same step.

    Args:
        reversal: E, in the unit of v; a number or one per unit.

    Examples:
        >>> Conductance(reversal=-70.0)(torch.tensor([0.5]), torch.tensor([-60.0]))
        tensor([-5.])
    """

    reversal: Tensor

    def __init__(self, reversal: float | Tensor) -> None:
        super().__init__()
        self.register_buffer("reversal", torch.as_tensor(reversal, dtype=torch.get_default_dtype()).detach().clone())

    def forward(self, g: Tensor, v: Tensor) -> Tensor:
        """The current into the target."""
        return g * (self.reversal.to(v.dtype) - v)
