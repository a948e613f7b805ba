"""Leaky integrate-and-fire neurons as a layer.

    m[t] = rest + α (v[t-1] - rest) + κ x[t]              α = exp(-dt/τ)  or  1 - dt/τ,      κ = 1  or  1 - α
    z[t] = H(m[t] - θ)
    v[t] = m[t] - z[t] θ                                  soft reset
    v[t] = (1 - z[t]) m[t] + z[t] reset_value             hard reset

Source: Gerstner & Kistler, Spiking Neuron Models (2002), section 4.1; Neftci, Mostafa & Zenke 2019 for the discrete
form and the surrogate gradient. Time constants in ms, potentials dimensionless.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from plexus.errors import DeviceError, DtypeError, RangeError, ShapeError, UnknownNameError
from plexus.kernels import LIFState, SparseWeight, Surrogate, lif
from plexus.units._port import Port

__all__ = ["LIF", "LIFState"]

_LEARNABLE = ("tau_mem", "threshold", "rest", "reset_value")
_AXES = {1: "t b u", 2: "t b u x", 3: "t b u y x", 4: "t b u z y x"}


class LIF(nn.Module):
    """`spikes, state = LIF(100)(current)`: leaky integrate-and-fire neurons; current `[time, batch, unit…]`.

    One step and many are the same call, and a sequence run in pieces equals the sequence run whole. With several unit
    dimensions (feature maps `[time, batch, channel, y, x]`) the first one, the channel, is the unit that edits address.

    Args:
        units: number of units, or their shape.
        tau_mem: time constant of the membrane in ms, a number or a tensor that broadcasts to the units; `inf`: no leak.
        threshold: potential above which a unit spikes.
        dt: length of a step in ms.
        discretisation: `"exponential"`, α = exp(-dt/τ), or `"euler"`, α = 1 - dt/τ.
        scale_input: weigh the input by 1 - α, so that a constant input is also the potential it leads to.
        rest: potential to which the membrane decays.
        reset: `"soft"`, `"hard"` or `"none"`.
        reset_value: where a hard reset goes.
        delayed_reset: reset one step later.
        detach_reset: let no gradient flow through the reset.
        inclusive: spike at the threshold as well.
        refractory: time in ms after a spike in which the unit keeps its potential and stays silent.
        surrogate: a `Surrogate`, its name, or a function u -> dz/du.
        learn: which of `"tau_mem"`, `"threshold"`, `"rest"`, `"reset_value"` are parameters.

    Raises:
        RangeError: a time constant, dt or a threshold is not positive, or tau_mem <= dt under `"euler"`.
        ShapeError: there are no units, or an input or a number does not fit them.

    Examples:
        >>> import torch
        >>> layer = LIF(3, tau_mem=20.0)
        >>> spikes, state = layer(torch.ones(5, 2, 3))
        >>> spikes.shape, state.v.shape
        (torch.Size([5, 2, 3]), torch.Size([2, 3]))
        >>> spikes, state = layer(torch.ones(1, 2, 3), state)       # one step more
    """

    axes = "t b u"
    port: Port | None = None
    log_tau_mem: Tensor
    threshold: Tensor
    rest: Tensor
    reset_value: Tensor

    def __init__(
        self,
        units: int | Sequence[int],
        tau_mem: float | Tensor = 10.0,
        threshold: float | Tensor = 1.0,
        *,
        dt: float = 1.0,
        discretisation: Literal["exponential", "euler"] = "exponential",
        scale_input: bool = False,
        rest: float | Tensor = 0.0,
        reset: Literal["soft", "hard", "none"] = "soft",
        reset_value: float | Tensor = 0.0,
        delayed_reset: bool = False,
        detach_reset: bool = False,
        inclusive: bool = False,
        refractory: float = 0.0,
        surrogate: Surrogate | str | Callable[[Tensor], Tensor] = "arctan",
        learn: Iterable[str] = (),
    ) -> None:
        super().__init__()
        self.units = (units,) if isinstance(units, int) else tuple(units)
        if not self.units or any(size < 1 for size in self.units):
            raise ShapeError("a layer needs at least one unit", given=units, expected="positive sizes")
        if len(self.units) not in _AXES:
            raise ShapeError("units have too many dimensions", given=self.units, expected="one to four sizes")
        self.axes = _AXES[len(self.units)]
        if reset not in ("soft", "hard", "none"):
            raise UnknownNameError.among("reset", reset, ("soft", "hard", "none"))
        if discretisation not in ("exponential", "euler"):
            raise UnknownNameError.among("discretisation", discretisation, ("exponential", "euler"))
        _positive("dt", dt)
        _positive("tau_mem", tau_mem)
        if refractory < 0:
            raise RangeError("the refractory time is negative", given=refractory, expected="ms >= 0")
        if discretisation == "euler" and bool((torch.as_tensor(tau_mem) <= dt).any()):
            raise RangeError(
                "a time constant is too short for Euler steps", given=tau_mem, expected=f"more than {dt} ms"
            )
        self.dt, self.discretisation, self.scale_input = dt, discretisation, scale_input
        self.reset: Literal["soft", "hard", "none"] = reset
        self.delayed_reset, self.detach_reset = delayed_reset, detach_reset
        self.inclusive = inclusive
        self.refractory = refractory
        self.surrogate = Surrogate(surrogate) if isinstance(surrogate, str) else surrogate
        self.learn = tuple(learn)
        for name in self.learn:
            if name not in _LEARNABLE:
                raise UnknownNameError.among("learnable number of LIF", name, _LEARNABLE)
        # a time constant is kept by its logarithm, so that no step of learning makes it negative
        self._number("log_tau_mem", torch.as_tensor(tau_mem, dtype=torch.get_default_dtype()).log(), "tau_mem")
        self._number("threshold", threshold, "threshold")
        self._number("rest", rest, "rest")
        self._rests = isinstance(rest, Tensor) or rest != 0 or "rest" in self.learn  # without, a step is cheaper
        self._number("reset_value", reset_value, "reset_value")

    def _number(self, name: str, value: float | Tensor, shown: str) -> None:
        tensor = torch.as_tensor(value, dtype=torch.get_default_dtype()).detach().clone()
        try:
            tensor.expand(self.units)
        except RuntimeError as error:
            raise ShapeError(
                f"{shown} does not fit the units", given=tuple(tensor.shape), expected=f"one number or {self.units}"
            ) from error
        if shown in self.learn:
            setattr(self, name, nn.Parameter(tensor))
        else:
            self.register_buffer(name, tensor)

    @property
    def tau_mem(self) -> Tensor:
        """Time constant of the membrane, ms."""
        return self.log_tau_mem.exp()

    @property
    def decay(self) -> Tensor:
        """α, the factor of the potential per step."""
        if self.discretisation == "euler":
            return 1 - self.dt / self.tau_mem
        return torch.exp(-self.dt / self.tau_mem)

    def initial_state(self, batch: int, *, dtype: torch.dtype | None = None) -> LIFState:
        """The state at rest, each tensor `[batch, unit…]`."""
        v = self.rest.detach().to(dtype or self.rest.dtype).expand(batch, *self.units).clone()
        return LIFState(v, torch.zeros_like(v), torch.zeros_like(v))

    def forward(
        self, x: Tensor, state: LIFState | None = None, *, recurrent: Tensor | SparseWeight | None = None
    ) -> tuple[Tensor, LIFState]:
        """Spikes `[time, batch, unit…]` of the current x, and the state after the last step.

        `recurrent` is a weight through which the units drive one another (see `Recurrent`, which owns one).
        """
        self._check(x)
        decay = self.decay
        return lif(
            x,
            state,
            decay=decay,
            gain=1 - decay if self.scale_input else 1.0,
            threshold=self.threshold,
            reset_value=self.reset_value,
            rest=self.rest if self._rests else 0.0,
            reset=self.reset,
            delayed_reset=self.delayed_reset,
            detach_reset=self.detach_reset,
            inclusive=self.inclusive,
            refractory=round(self.refractory / self.dt),
            surrogate=self.surrogate,
            port=self.port,
            recurrent=recurrent,
        )

    def _check(self, x: Tensor) -> None:
        """Refuse an input that is not `[time, batch, unit…]`, with what was probably meant."""
        expected = f"[time, batch, {', '.join(map(str, self.units))}]"
        if not isinstance(x, Tensor):
            raise DtypeError("the input is not a tensor", given=type(x).__name__, expected=expected)
        if tuple(x.shape[2:]) != self.units:
            mend = None
            if tuple(x.shape[1:]) == self.units:
                mend = "for one step of a batch give x.unsqueeze(0), for one sample over time x.unsqueeze(1)"
            elif x.dim() == len(self.units) + 2 and sorted(x.shape[1:]) == sorted((x.shape[1], *self.units)):
                mend = "units come last"
            elif x.dim() == 3 and self.units[0] in x.shape:
                at = list(x.shape).index(self.units[0])
                mend = f"units come last; here they seem to be dimension {at}: permute the input"
            raise ShapeError("the input does not fit the layer", given=tuple(x.shape), expected=expected, mend=mend)
        if x.shape[1] == 0:
            raise ShapeError("the batch is empty", given=tuple(x.shape), expected=expected)
        if not x.is_floating_point():
            raise DtypeError("the input is not floating point", given=x.dtype, mend="convert it, e.g. x.float()")
        if x.device != self.log_tau_mem.device:
            raise DeviceError(
                "the input lies on another device than the layer", given=x.device, expected=self.log_tau_mem.device
            )

    def extra_repr(self) -> str:
        """What `print(layer)` shows."""
        tau = self.tau_mem.detach()
        shown = f"{tau.item():g}" if tau.numel() == 1 else f"{tau.min().item():g}…{tau.max().item():g}"
        learn = f", learn={self.learn}" if self.learn else ""
        return f"{'×'.join(map(str, self.units))}, tau_mem={shown} ms, reset={self.reset!r}{learn}"


def _positive(name: str, value: float | Tensor) -> None:
    if not bool((torch.as_tensor(value) > 0).all()):
        raise RangeError(f"{name} must be positive", given=value, expected="ms > 0")
