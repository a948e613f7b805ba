"""Integrate-and-fire neurons that can take a spike back.

    u[t] = v[t-1] + x[t]
    z[t] = 1 where u[t] >= θ;   -1 where u[t] <= -ε θ and more spikes were emitted than taken back;   else 0
    v[t] = u[t] - z[t] θ

Over time θ Σ z[t] is what the input has summed to, up to one threshold, as long as that is not negative: what a
rectifier passes on. Without the spike that is taken back, a neuron that fired on an early excess keeps its error.

Source: Li, Jones & Furber, Unleashing the potential of spiking neural networks by dynamic confidence (2023) and the
conversion that it builds on. Potentials dimensionless, no leak, so no time constant.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from plexus.errors import DtypeError, RangeError, ShapeError
from plexus.kernels._frame import options_key
from plexus.kernels._operator import Operator
from plexus.kernels._signed_if_model import SIGNED_IF_DYNAMICS
from plexus.kernels._surrogate import Surrogate
from plexus.nn.neurons._lif import _AXES as AXES
from plexus.units._port import Port

__all__ = ["SignedIF", "SignedIFState"]

_operator = Operator(SIGNED_IF_DYNAMICS)


class SignedIFState(NamedTuple):
    """What a neuron that can take a spike back remembers."""

    v: Tensor  # membrane potential                              [batch, unit…]
    n: Tensor  # spikes emitted less those taken back            [batch, unit…]


class SignedIF(nn.Module):
    """`spikes, state = SignedIF(8)(current)`; current and spikes `[time, batch, unit…]`, spikes in {-1, 0, 1}.

    With feature maps the first unit dimension, the channel, is the unit.

    Args:
        units: number of units, or their shape.
        threshold: θ, one number.
        start: initial potential in thresholds; one half rounds to the nearest count instead of down.
        negligible: ε: a spike is taken back once the potential is this far below zero, in thresholds.
        signed: False never takes a spike back.
        surrogate: derivative of the spike.
        learn_threshold: make the threshold a parameter (kept positive by its logarithm).

    Raises:
        RangeError: the threshold is not positive. ShapeError: there are no units, or an input does not fit them.
        DtypeError: the input is not floating point.

    Examples:
        >>> layer = SignedIF(1, threshold=1.0)
        >>> spikes, state = layer(torch.tensor([1.2, -0.5, -0.5, 0.0]).view(4, 1, 1))
        >>> spikes.flatten().tolist(), round(state.v.item(), 6)
        ([1.0, -1.0, 0.0, 0.0], 0.2)
    """

    axes = "t b u"
    port: Port | None = None
    log_threshold: Tensor

    def __init__(
        self,
        units: int | Sequence[int],
        threshold: float | Tensor = 1.0,
        *,
        start: float = 0.0,
        negligible: float = 1e-3,
        signed: bool = True,
        surrogate: Surrogate | str = "arctan",
        learn_threshold: bool = False,
    ) -> None:
        super().__init__()
        self.units = (units,) if isinstance(units, int) else tuple(units)
        if not self.units or min(self.units) < 1 or len(self.units) not in AXES:
            raise ShapeError("a layer needs units", given=units, expected="one to four positive sizes")
        self.axes = AXES[len(self.units)]
        value = torch.as_tensor(threshold, dtype=torch.get_default_dtype()).detach()
        if value.numel() != 1 or not bool(value > 0):
            raise RangeError("the threshold must be one positive number", given=threshold)
        if negligible < 0:
            raise RangeError("what is negligible is not negative", given=negligible, expected=">= 0")
        self.start, self.negligible, self.signed = start, negligible, signed
        self.surrogate = Surrogate(surrogate) if isinstance(surrogate, str) else surrogate
        if learn_threshold:
            self.log_threshold = nn.Parameter(value.reshape(()).log())
        else:
            self.register_buffer("log_threshold", value.reshape(()).log())

    @property
    def threshold(self) -> Tensor:
        """θ."""
        return self.log_threshold.exp()

    def initial_state(self, batch: int, *, dtype: torch.dtype | None = None) -> SignedIFState:
        """The state at the start, each tensor `[batch, unit…]`."""
        v = (self.start * self.threshold.detach()).to(dtype or self.log_threshold.dtype)
        v = v.expand(batch, *self.units).clone()
        return SignedIFState(v, torch.zeros_like(v))

    def forward(self, x: Tensor, state: SignedIFState | None = None) -> tuple[Tensor, SignedIFState]:
        """Spikes `[time, batch, unit…]`, and the state after the last step."""
        expected = f"[time, batch, {', '.join(map(str, self.units))}]"
        if not isinstance(x, Tensor) or tuple(x.shape[2:]) != self.units:
            shown = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
            raise ShapeError("the input does not fit the layer", given=shown, expected=expected)
        if not x.is_floating_point():
            raise DtypeError("the input is not floating point", given=x.dtype, mend="convert it, e.g. x.float()")
        if state is None:
            state = self.initial_state(x.shape[1], dtype=x.dtype)
        elif state.v.shape != x.shape[1:]:
            raise ShapeError(
                "the state does not fit the input", given=tuple(state.v.shape), expected=tuple(x.shape[1:])
            )
        threshold = self.threshold.to(x.dtype)
        ported = self.port is not None and not self.port.is_identity
        key = options_key(SIGNED_IF_DYNAMICS, {"signed": self.signed, "port": ported, "surrogate": self.surrogate.name})
        if ported:
            assert self.port is not None
            trail = (1,) * (len(self.units) - 1)
            fields = self.port.dense(self.units[0], x)
            dense = [field.view(-1, *trail).expand(self.units).contiguous() for field in fields]
        else:
            dense = [x.new_zeros(1)] * 4
        assert self.surrogate.width is not None
        low = -self.negligible * float(threshold.detach())
        numbers = [low, float(self.surrogate.width), float(self.surrogate.height)]
        run = _operator if _operator.takes(x) else _operator.eager
        spikes, *memory = run(x, list(state), [threshold.reshape(1), *dense], numbers, key)
        return spikes, SignedIFState(*memory)

    def extra_repr(self) -> str:
        """What `print(layer)` shows."""
        return f"{'×'.join(map(str, self.units))}, threshold={self.threshold.item():.3g}, signed={self.signed}"
