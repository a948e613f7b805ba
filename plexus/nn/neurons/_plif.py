"""Parametric leaky integrate-and-fire neurons, as a layer: the membrane's time constant is learnt.

    m[t] = v[t-1] + σ(w) (rest - v[t-1] + x[t])           1/τ = σ(w) / dt, with one w for the whole layer
    z[t] = H(m[t] - θ),   reset as in `LIF`

It differs from `LIF(…, learn=("tau_mem",))` in how τ is kept: by a logistic function of w, so that Euler steps stay
stable whatever is learnt (τ > dt), while LIF keeps log τ and takes exponential steps.

Source: Fang et al. 2021, Incorporating learnable membrane time constant. Time constants in ms, potentials
dimensionless.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from plexus.nn.neurons._layer import Positive
from plexus.nn.neurons._lif import LIF

__all__ = ["PLIF"]


class _AboveStep(Positive):
    """A time constant longer than a step: dt / σ(`logit_rate`)."""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name, self.raw = name, "logit_rate"

    def __get__(self, layer: Any, owner: type | None = None) -> Any:
        return self if layer is None else layer.dt / layer.logit_rate.sigmoid()

    def raw_of(self, layer: Any, value: Tensor) -> Tensor:
        return torch.logit(layer.dt / value)


class PLIF(LIF):
    """`spikes, state = PLIF(100)(current)`; current `[time, batch, unit…]`.

    Args:
        units: number of units, or their shape.
        tau_mem: time constant of the membrane to start from, ms, longer than dt; one number for the layer as in the
            paper, or a tensor for one per unit.
        threshold: potential above which a unit spikes.
        scale_input: weigh the input by dt/τ.
        reset: `"hard"`, `"soft"` or `"none"`.
        learn: which numbers are parameters.
        others: as for `LIF`.

    Raises:
        RangeError: the time constant is not longer than dt.
        ShapeError: there are no units, or an input or a number does not fit them.

    Examples:
        >>> layer = PLIF(100, tau_mem=2.0)
        >>> [name for name, _ in layer.named_parameters()], round(layer.tau_mem.item(), 3)
        (['logit_rate'], 2.0)
    """

    tau_mem = _AboveStep("Time constant of the membrane, ms; longer than a step.")

    def __init__(
        self,
        units: int | Sequence[int],
        tau_mem: float | Tensor = 2.0,
        threshold: float | Tensor = 1.0,
        *,
        scale_input: bool = True,
        reset: Literal["soft", "hard", "none"] = "hard",
        learn: Iterable[str] = ("tau_mem",),
        **others: Any,
    ) -> None:
        super().__init__(
            units,
            tau_mem,
            threshold,
            discretisation="euler",
            scale_input=scale_input,
            reset=reset,
            learn=learn,
            **others,
        )
