"""Recurrent rate network with a multiplicative gain per unit, its dynamics and its steady state.

    τ dr/dt = -r + F(r, f),      F = φ(g∘f + W r)       gain on the input
                                 F = φ(g∘(f + W r))     gain on the total input
                                 F = φ(f + W (g∘r))     gain on the output, as other units receive it
    r[t] = a r[t-1] + (1 - a) F(r[t-1], f[t]),  a = exp(-dt/τ)         simulated in time
    (I - W) r = g∘f     (I - diag(g) W) r = g∘f     (I - W diag(g)) r = f      steady states where φ(x) = x

The linear network settles if the spectral abscissa (the largest real part of an eigenvalue) of the effective recurrent
matrix, W or diag(g) W, is below 1. With input gain the steady response is linear in the gains, which is what gives gain
adaptation its closed form. Time constants in ms, rates dimensionless.

Source: Duong, Bredenberg, Heeger & Simoncelli 2023 (arXiv 2305.19869) for gains that spread through fixed recurrent
weights; where the gain enters is a choice left to the caller.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from plexus.errors import DeviceError, DtypeError, RangeError, ShapeError, UnknownNameError
from plexus.nn._fixed_point import fixed_point
from plexus.units._port import Port

GainOn = Literal["input", "total", "output"]
_GAIN_ON = ("input", "total", "output")


class RateState(NamedTuple):
    """State of `RecurrentRate`."""

    r: Tensor
    """Rates before the port, `[batch, unit]`."""


def spectral_abscissa(weight: Tensor) -> float:
    """The largest real part of an eigenvalue of a square matrix: the growth rate of `dr/dt = W r`.

    Examples:
        >>> spectral_abscissa(torch.tensor([[0.5, 9.0], [0.0, -2.0]]))
        0.5
    """
    return float(torch.linalg.eigvals(weight.detach()).real.max())


class RecurrentRate(nn.Module):
    """`rates, state = RecurrentRate(weight)(drive)`; drive `[time, batch, unit]`. `steady_state(drive)` skips the time.

    Args:
        weight: recurrent weights `[unit, unit]`, row = receiving unit. An `nn.Parameter` is trained, a tensor is fixed.
        gain_on: where the gains act: `input`, `total` or `output` (equations above).
        activation: φ, elementwise; None is the identity, for which steady states are solved directly.
        tau: time constant in ms.
        dt: step in ms.

    Attributes:
        gain: `[unit]`, a buffer of ones that `set_gain` changes; every call also takes gains of its own (`gain=`).
        port: what an edit does to the rates where they are emitted, inside the loop; None leaves them alone.

    Raises:
        ShapeError: `weight` is not square or does not fit. RangeError: the spectral abscissa of `weight` is 1 or more,
        or a time constant is not positive. DtypeError, DeviceError: drive and weight differ.

    Examples:
        >>> net = RecurrentRate(torch.tensor([[0.0, 0.5], [0.5, 0.0]]))
        >>> net.steady_state(torch.tensor([[3.0, 0.0]]))
        tensor([[4., 2.]])
        >>> net.steady_state(torch.tensor([[3.0, 0.0]]), gain=torch.tensor([0.5, 1.0]))
        tensor([[2., 1.]])
        >>> rates, state = net(torch.ones(500, 1, 2))
        >>> rates.shape, bool(torch.allclose(state.r, net.steady_state(torch.ones(1, 2))))
        (torch.Size([500, 1, 2]), True)
    """

    axes = "t b u"
    gain: Tensor
    weight: Tensor

    def __init__(
        self,
        weight: Tensor,
        *,
        gain_on: GainOn = "input",
        activation: Callable[[Tensor], Tensor] | None = None,
        tau: float = 10.0,
        dt: float = 1.0,
    ) -> None:
        super().__init__()
        if weight.dim() != 2 or weight.shape[0] != weight.shape[1] or weight.numel() == 0:
            raise ShapeError(
                "recurrent weights are a square matrix", given=tuple(weight.shape), expected="[unit, unit]"
            )
        if not weight.is_floating_point():
            raise DtypeError("recurrent weights are floating point", given=weight.dtype)
        if not bool(torch.isfinite(weight).all()):
            raise RangeError("the recurrent weights hold NaN or infinity")
        if gain_on not in _GAIN_ON:
            raise UnknownNameError.among("place for the gain", gain_on, _GAIN_ON)
        if not (tau > 0 and dt > 0):
            raise RangeError("tau and dt must be positive", given=(tau, dt))
        self.units = weight.shape[0]
        self.gain_on, self.activation, self.tau, self.dt = gain_on, activation, tau, dt
        self.port: Port | None = None
        if isinstance(weight, nn.Parameter):
            self.weight = weight
        else:
            self.register_buffer("weight", weight.detach().clone())
        self.register_buffer("gain", torch.ones_like(weight[0], requires_grad=False))
        self._checked: tuple[int, int] | None = None
        self._require_stable(None)

    def extra_repr(self) -> str:
        name = getattr(self.activation, "__name__", None) or (repr(self.activation) if self.activation else "identity")
        return f"units={self.units}, gain_on={self.gain_on!r}, activation={name}, tau={self.tau}, dt={self.dt}"

    @torch.no_grad()
    def set_gain(self, gain: Tensor | float) -> None:
        """Fix the gains used when a call brings none: `[unit]` or one number."""
        value = torch.as_tensor(gain, dtype=self.gain.dtype, device=self.gain.device)
        if value.shape not in ((), self.gain.shape):
            raise ShapeError("gains do not fit the units", given=tuple(value.shape), expected=tuple(self.gain.shape))
        if not bool(torch.isfinite(value).all()):
            raise RangeError("gains hold NaN or infinity")
        self.gain.copy_(value.expand_as(self.gain))

    def initial_state(self, batch: int) -> RateState:
        """Rest: rates of zero, `[batch, unit]`."""
        return RateState(self.weight.new_zeros(batch, self.units))

    def forward(
        self, drive: Tensor, state: RateState | None = None, *, gain: Tensor | None = None
    ) -> tuple[Tensor, RateState]:
        """Simulate: drive `[time, batch, unit]` to rates `[time, batch, unit]` and the state after the last step."""
        self._check(drive, 3, "[time, batch, unit]")
        state = self.initial_state(drive.shape[1]) if state is None else state
        if state.r.shape != drive.shape[1:]:
            raise ShapeError(
                "the state is that of another batch",
                given=tuple(state.r.shape),
                expected=tuple(drive.shape[1:]),
                mend="drive is time-first, [time, batch, unit]",
            )
        gain = self._gain(gain, drive)
        decay = math.exp(-self.dt / self.tau)
        r, out = state.r, []
        for now in drive:
            r = decay * r + (1 - decay) * self._target(self._emit(r), now, gain)
            out.append(self._emit(r))
        return (torch.stack(out) if out else drive.new_zeros(drive.shape)), RateState(r)

    def steady_state(
        self, drive: Tensor, *, gain: Tensor | None = None, tol: float | None = None, max_steps: int = 2000
    ) -> Tensor:
        """Where the rates settle under a constant drive: `[batch, unit]` to `[batch, unit]`, differentiable.

        Without an activation and a port the linear system is solved; otherwise the fixed point is found iteratively
        and differentiated implicitly, so the cost in memory does not depend on how long it takes to settle.

        Args:
            drive: constant input, `[batch, unit]`.
            gain: gains for this call, `[unit]` or `[batch, unit]` (default: the buffer `gain`).
            tol: accepted residual of the iteration; max_steps: its longest length.

        Raises:
            RangeError: the effective recurrent matrix has a spectral abscissa of 1 or more, or the iteration does not
            converge. ShapeError, DtypeError, DeviceError: drive or gain do not fit.
        """
        self._check(drive, 2, "[batch, unit]")
        gain = self._gain(gain, drive)
        if self.activation is None and self.port is None:
            self._require_stable(gain)
            return self._linear(drive, gain)
        # Anderson's least squares also settle networks with strong inhibition, whose plain iteration oscillates.
        found = fixed_point(
            lambda r: self._target(self._emit(r), drive, gain), torch.zeros_like(drive), tol=tol, max_steps=max_steps
        )
        return self._emit(found.value)

    def reader(self) -> Tensor:
        """`I - W`, `[unit, unit]`: reads the drive back from the rates of the linear network at a gain of one."""
        return torch.eye(self.units, dtype=self.weight.dtype, device=self.weight.device) - self.weight.detach()

    def _emit(self, r: Tensor) -> Tensor:
        return r if self.port is None else self.port.apply(r)

    def _target(self, emitted: Tensor, drive: Tensor, gain: Tensor) -> Tensor:
        if self.gain_on == "input":
            total = gain * drive + emitted @ self.weight.T
        elif self.gain_on == "total":
            total = gain * (drive + emitted @ self.weight.T)
        else:
            total = drive + (gain * emitted) @ self.weight.T
        return total if self.activation is None else self.activation(total)

    def _linear(self, drive: Tensor, gain: Tensor) -> Tensor:
        eye = torch.eye(self.units, dtype=drive.dtype, device=drive.device)
        if self.gain_on == "input":
            solved: Tensor = torch.linalg.solve(eye - self.weight, (gain * drive).T).T
            return solved
        if self.gain_on == "total":
            matrix, right = eye - gain[..., :, None] * self.weight, gain * drive
        else:
            matrix, right = eye - self.weight * gain[..., None, :], drive
        if matrix.dim() == 2:
            solved = torch.linalg.solve(matrix, right.T).T
        else:
            solved = torch.linalg.solve(matrix, right[..., None]).squeeze(-1)
        return solved

    def _require_stable(self, gain: Tensor | None) -> None:
        """Refuse a linear network that does not settle; the eigenvalues of fixed weights are computed once."""
        if gain is None or self.gain_on == "input":
            if self._checked == (id(self.weight), self.weight._version):
                return
            effective = self.weight
        else:
            effective = gain.detach()[..., :, None] * self.weight
        abscissa = spectral_abscissa(effective)
        if not abscissa < 1:
            raise RangeError(
                "the recurrent network is unstable",
                given=f"spectral abscissa {abscissa:.4g}",
                expected="below 1",
                mend="scale the recurrent weights (or the gains on them) down",
            )
        if effective is self.weight:
            self._checked = (id(self.weight), self.weight._version)

    def _check(self, drive: Tensor, dim: int, axes: str) -> None:
        if drive.dim() != dim or drive.shape[-1] != self.units:
            raise ShapeError(
                "the drive does not fit the network",
                given=tuple(drive.shape),
                expected=f"{axes} with {self.units} units",
            )
        if drive.dtype != self.weight.dtype:
            raise DtypeError("drive and weights differ in dtype", given=drive.dtype, expected=self.weight.dtype)
        if drive.device != self.weight.device:
            raise DeviceError("drive and weights lie apart", given=drive.device, expected=self.weight.device)

    def _gain(self, gain: Tensor | None, drive: Tensor) -> Tensor:
        if gain is None:
            return self.gain
        if gain.shape not in ((self.units,), (drive.shape[-2], self.units)):
            raise ShapeError(
                "gains do not fit the units",
                given=tuple(gain.shape),
                expected=f"[{self.units}] or [batch, {self.units}]",
            )
        return gain.to(self.weight)
