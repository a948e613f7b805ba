"""Short-term plasticity: synapses that tire and synapses that warm up.

    u ← u + U (1 - u)        at a spike: more of what is left will be released (facilitation),
    release = u x            the amount that is released,
    x ← x - u x              and what is left (depression);
    u → 0 with τ_f,  x → 1 with τ_d     between spikes, exactly

At a steady rate of one spike per T, with f = exp(-T/τ_f) and d = exp(-T/τ_d):

    u = U / (1 - (1 - U) f),    x = (1 - d) / (1 - (1 - u) d)       just before release

Source: Tsodyks & Markram 1997; Markram, Wang & Tsodyks 1998, eqs. 1-3 and their steady states. Times in ms; U, u, x in
[0, 1]. τ_f → 0 leaves pure depression with u = U.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from plexus.errors import DtypeError, RangeError, ShapeError
from plexus.nn._places import place_of

__all__ = ["ShortTermPlasticity", "ShortTermState"]


class ShortTermState(NamedTuple):
    """What a plastic synapse remembers, just after the last step."""

    u: Tensor  # share that a spike releases, before its jump      [batch, unit]
    x: Tensor  # what there is to release                          [batch, unit]


class ShortTermPlasticity(nn.Module):
    """`released, state = ShortTermPlasticity(80)(spikes)`: one synapse type per source, before the weights.

    Args:
        units: number of sources.
        use: U, the share released by a spike after long silence, in (0, 1]; a number or one per source.
        tau_depression: τ_d in ms.
        tau_facilitation: τ_f in ms; 0 for pure depression.
        dt: step in ms.

    The defaults are those of a depressing synapse between pyramidal cells (Tsodyks & Markram 1997); a facilitating one
    has, for example, U = 0.05, τ_d = 100, τ_f = 500.

    Raises:
        RangeError: a number is out of range. ShapeError: a number or the input does not fit.

    Examples:
        >>> layer = ShortTermPlasticity(1, use=0.5, tau_depression=1e9, tau_facilitation=0.0)
        >>> released, state = layer(torch.ones(4, 1, 1))
        >>> released.flatten()                                  # halves without recovery
        tensor([0.5000, 0.2500, 0.1250, 0.0625])
    """

    axes = "t b u"
    use: Tensor
    recovery: Tensor
    forgetting: Tensor

    def __init__(
        self,
        units: int,
        use: float | Tensor = 0.5,
        *,
        tau_depression: float | Tensor = 800.0,
        tau_facilitation: float | Tensor = 0.0,
        dt: float = 1.0,
    ) -> None:
        super().__init__()
        if units < 1:
            raise ShapeError("a layer needs at least one unit", given=units, expected="a positive number")
        numbers = {"use": use, "tau_depression": tau_depression, "tau_facilitation": tau_facilitation}
        settings: Any = {"dtype": torch.get_default_dtype(), "device": place_of(*numbers.values())}
        tensors = {name: torch.as_tensor(value, **settings) for name, value in numbers.items()}
        for name, tensor in tensors.items():
            if tensor.shape not in ((), (1,), (units,)):
                raise ShapeError(f"{name} does not fit", given=tuple(tensor.shape), expected=f"one number or {units}")
        share, depression, facilitation = tensors.values()
        if not bool(((share > 0) & (share <= 1)).all()):
            raise RangeError("the share that is used is out of range", given=use, expected="0 < use <= 1")
        if not bool((depression > 0).all()) or not bool((facilitation >= 0).all()) or not dt > 0:
            given = (tau_depression, tau_facilitation, dt)
            raise RangeError("a time is out of range", given=given, expected="tau_depression, dt > 0, the other >= 0")
        self.units, self.dt = units, dt
        self.register_buffer("use", share.clone())
        self.register_buffer("recovery", torch.exp(-dt / depression))  # what is left of 1 - x after a step
        self.register_buffer("forgetting", torch.exp(-dt / facilitation))  # what is left of u; exp(-inf) is 0

    def initial_state(self, batch: int, *, dtype: torch.dtype | None = None) -> ShortTermState:
        """Long silence: nothing facilitated, everything there."""
        u = torch.zeros(batch, self.units, dtype=dtype or self.use.dtype, device=self.use.device)
        return ShortTermState(u, torch.ones_like(u))

    def forward(self, x: Tensor, state: ShortTermState | None = None) -> tuple[Tensor, ShortTermState]:
        """What is released, `[time, batch, unit]`, by spikes x (0 or 1; values between act in proportion)."""
        if not isinstance(x, Tensor) or not x.is_floating_point():
            raise DtypeError("the input is not a floating-point tensor", given=getattr(x, "dtype", type(x).__name__))
        if x.dim() != 3 or x.shape[2] != self.units:
            expected = f"[time, batch, {self.units}]"
            raise ShapeError("the input does not fit the layer", given=tuple(x.shape), expected=expected)
        u, there = self.initial_state(x.shape[1], dtype=x.dtype) if state is None else state
        use, recovery, forgetting = (t.to(x.dtype) for t in (self.use, self.recovery, self.forgetting))
        released = []
        for spike in x:
            u = u + use * (1 - u) * spike
            out = u * there * spike
            released.append(out)
            u, there = forgetting * u, 1 - recovery * (1 - there + out)
        return torch.stack(released) if released else x, ShortTermState(u, there)
