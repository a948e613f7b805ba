"""Integrate-and-fire neurons with current-based synapses, as a layer.

    i[t] = ρ i[t-1] + k x[t]                              exponential,          ρ = exp(-dt/τ_syn)
    h[t] = ρ_r h[t-1] + k x[t],   i[t] = ρ i[t-1] + h[t]  double exponential,   ρ_r = exp(-dt/τ_rise)
    m[t] = rest + α (v[t-1] - rest) + κ i[t]              α = exp(-dt/τ_mem),   κ = 1  or  1 - α
    z[t] = H(m[t] - θ),   reset as in `LIF`

The current that one input of 1 leaves after n steps is k ρⁿ, and k (ρⁿ⁺¹ - ρ_rⁿ⁺¹) / (ρ - ρ_r) for the double
exponential; with τ_rise = τ_syn that is the alpha function k (n + 1) ρⁿ. The norm sets k:

    "none"  k = 1        "area"  the kernel sums to 1        "peak"  its highest value is 1

Source: Gerstner et al., Neuronal Dynamics (2014), section 3.1; Destexhe, Mainen & Sejnowski 1994 for the double
exponential. Time constants in ms, potentials dimensionless.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple, Unpack

import torch
from torch import Tensor

from plexus.errors import UnknownNameError
from plexus.kernels._cuba_model import CUBA_DYNAMICS
from plexus.kernels._neuron import Neuron, Recurrence
from plexus.nn.neurons._layer import Common, NeuronLayer, Positive, decay_of, positive
from plexus.units._port import Port

__all__ = ["CUBA", "CUBAState"]

Norm = Literal["none", "area", "peak"]


class CUBAState(NamedTuple):
    """What a neuron with current-based synapses remembers."""

    v: Tensor  # membrane potential                 [batch, unit…]
    i: Tensor  # synaptic current                   [batch, unit…]
    h: Tensor  # rising part of a double exponential[batch, unit…]
    z: Tensor  # what it last emitted               [batch, unit…]
    r: Tensor  # steps it is still refractory       [batch, unit…]


class CUBA(NeuronLayer):
    """`spikes, state = CUBA(100)(drive)`: LIF neurons behind exponential synapses; drive `[time, batch, unit…]`.

    Args:
        units: number of units, or their shape.
        tau_mem: time constant of the membrane in ms; one, or one per unit, like all numbers here.
        tau_syn: time constant with which the current decays, ms.
        tau_rise: time constant with which it rises, ms; None: it jumps. Equal to `tau_syn`: the alpha function.
        threshold: potential above which a unit spikes.
        norm: `"none"`, `"area"` or `"peak"`: what of the synaptic kernel is 1.
        scale_input: weigh the current by 1 - α.
        rest: potential to which the membrane decays.
        reset: `"soft"`, `"hard"` or `"none"`.
        reset_value: where a hard reset goes.
        others: `dt`, `refractory`, `detach_reset`, `surrogate`, `smooth` and `learn` as for `LIF`; `"tau_mem"`,
            `"tau_syn"`, `"tau_rise"`, `"threshold"`, `"rest"` and `"reset_value"` can be learnt.

    Raises:
        RangeError: a time constant or dt is not positive.
        ShapeError: there are no units, or an input or a number does not fit them.
        UnknownNameError: there is no such norm, reset, surrogate or learnable number.

    Examples:
        >>> import torch
        >>> pulse = torch.zeros(4, 1, 1)
        >>> pulse[0] = 1.0
        >>> layer = CUBA(1, tau_mem=10.0, tau_syn=2.0, threshold=5.0)
        >>> [round(layer(pulse[:n])[1].i.item(), 3) for n in (1, 2, 3, 4)]
        [1.0, 0.607, 0.368, 0.223]
    """

    neuron = Neuron(CUBA_DYNAMICS, CUBAState)
    learnable = ("tau_mem", "tau_syn", "tau_rise", "threshold", "rest", "reset_value")
    shown = ("tau_mem", "tau_syn")
    port: Port | None = None
    tau_mem = Positive("Time constant of the membrane, ms.")
    tau_syn = Positive("Time constant with which the synaptic current decays, ms.")
    tau_rise = Positive("Time constant with which the synaptic current rises, ms.")
    threshold: Tensor
    rest: Tensor
    reset_value: Tensor

    def __init__(
        self,
        units: int | Sequence[int],
        tau_mem: float | Tensor = 10.0,
        tau_syn: float | Tensor = 5.0,
        tau_rise: float | Tensor | None = None,
        threshold: float | Tensor = 1.0,
        *,
        norm: Norm = "none",
        scale_input: bool = False,
        rest: float | Tensor = 0.0,
        reset: Literal["soft", "hard", "none"] = "soft",
        reset_value: float | Tensor = 0.0,
        **others: Unpack[Common],
    ) -> None:
        super().__init__(units, reset=reset, **others)
        if norm not in ("none", "area", "peak"):
            raise UnknownNameError.among("norm", norm, ("none", "area", "peak"))
        self.norm, self.scale_input, self.rises = norm, scale_input, tau_rise is not None
        if tau_rise is None and "tau_rise" in self.learn:
            raise UnknownNameError.among("learnable number of CUBA without a rise", "tau_rise", self.learnable[:2])
        for name, tau in (("tau_mem", tau_mem), ("tau_syn", tau_syn), ("tau_rise", tau_rise)):
            if tau is not None:
                positive(name, tau)
                self._number(name, tau)
        self._number("threshold", threshold)
        self._number("rest", rest)
        self._number("reset_value", reset_value)

    def _start(self) -> dict[str, Tensor | float]:
        return {"v": self.rest}

    def _gain(self, decay: Tensor, rise: Tensor | float) -> Tensor | float:
        """k, by which the input is multiplied."""
        if self.norm == "none":
            return 1.0
        if self.norm == "area":
            return (1 - decay) * (1 - rise)
        if not isinstance(rise, Tensor):
            return 1.0
        # the kernel's real-valued peak lies where ρⁿ⁺¹ log ρ = ρ_rⁿ⁺¹ log ρ_r; the highest step is beside it
        a, b = decay.log(), rise.log()
        far = (a - b).abs() > 1e-6 * a.abs()
        ratio = torch.where(far, torch.log(b / a) / torch.where(far, a - b, torch.ones_like(a)), -1 / a)
        last = (ratio - 1).detach().clamp_min(0)
        return 1 / torch.maximum(_kernel(decay, rise, last.floor()), _kernel(decay, rise, last.ceil()))

    def forward(
        self, x: Tensor, state: CUBAState | None = None, *, recurrent: Recurrence = None
    ) -> tuple[Tensor, CUBAState]:
        """Spikes `[time, batch, unit…]` of the drive x, and the state after the last step."""
        self._check(x)
        decay, decay_syn = decay_of(self.dt, self.tau_mem), decay_of(self.dt, self.tau_syn)
        rise = decay_of(self.dt, self.tau_rise) if self.rises else 0.0
        numbers = {
            "decay": decay,
            "gain": 1 - decay if self.scale_input else 1.0,
            "decay_syn": decay_syn,
            "decay_rise": rise,
            "gain_syn": self._gain(decay_syn, rise),
            "threshold": self.threshold,
            "rest": self.rest,
            "reset": self.reset_value,
        }
        return self._loop(x, state, numbers, {"double": self.rises}, recurrent=recurrent)


def _kernel(decay: Tensor, rise: Tensor, n: Tensor) -> Tensor:
    """Current n steps after an input of 1."""
    near = (decay - rise).abs() <= 1e-5 * decay
    apart = torch.where(near, torch.ones_like(decay), decay - rise)
    return torch.where(near, (n + 1) * decay**n, (decay ** (n + 1) - rise ** (n + 1)) / apart)
