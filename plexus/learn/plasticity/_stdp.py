"""Spike-timing-dependent plasticity between pairs of spikes.

    x̄[t] = ρ₊ x̄[t-1] + x[t]                                trace of the inputs, ρ₊ = exp(-dt/τ₊)
    ȳ[t] = ρ₋ ȳ[t-1] + z[t]                                trace of the outputs, ρ₋ = exp(-dt/τ₋)
    Δw = Σ_t  A₊ z[t] x̄[t]  -  A₋ ρ₋ ȳ[t-1] x[t]

So a pair with the output s >= 0 steps after the input adds A₊ ρ₊^s, and one with the input s >= 1 steps after the
output takes A₋ ρ₋^s. Input and output in one step count as causal, as our neurons answer within the step. With
`pairs="nearest"` a trace starts anew at 1 with each spike, so that only the last spike of the other side counts.

Sources: Song, Miller & Abbott 2000 (all pairs); Morrison, Diesmann & Gerstner 2008 (traces, nearest pairs). Time
constants in ms.
"""

from __future__ import annotations

import math
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from plexus.errors import RangeError, UnknownNameError
from plexus.learn.plasticity._rule import Signals

__all__ = ["PairSTDP", "PairTraces"]


class PairTraces(NamedTuple):
    """What pair STDP remembers."""

    pre: Tensor  # trace of the inputs        [batch, pre]
    post: Tensor  # trace of the outputs      [batch, post]


class PairSTDP:
    """Pair STDP as a `Rule`: potentiation for inputs before outputs, depression for inputs after them.

    Args:
        potentiation: A₊. depression: A₋.
        tau_plus: τ₊ in ms. tau_minus: τ₋ in ms.
        dt: length of a step in ms.
        pairs: `"all"` or `"nearest"`.
        acts: `"sequence"` changes the weights after each sequence, `"step"` after each step.
        reduction: the batch shares the `"mean"` or the `"sum"` of its changes.

    Raises:
        RangeError: a time constant or dt is not positive. UnknownNameError: another name.

    Examples:
        >>> from plexus.learn.plasticity import Signals
        >>> pre, post = torch.zeros(2, 4, 1, 1)
        >>> pre[0], post[2] = 1, 1                                              # the output two steps after the input
        >>> rule = PairSTDP(potentiation=1.0, tau_plus=20.0)
        >>> delta, _ = rule.step(torch.zeros(1, 1), Signals(pre, post), None, rule.init(1, 1, 1))
        >>> round(delta.item(), 4), round(math.exp(-2 / 20), 4)
        (0.9048, 0.9048)
    """

    needs: ClassVar[tuple[str, ...]] = ("pre", "post")
    sign: ClassVar[int] = 1

    def __init__(
        self,
        potentiation: float = 0.01,
        depression: float = 0.0105,
        *,
        tau_plus: float = 20.0,
        tau_minus: float = 20.0,
        dt: float = 1.0,
        pairs: Literal["all", "nearest"] = "all",
        acts: Literal["step", "sequence"] = "sequence",
        reduction: Literal["mean", "sum"] = "mean",
    ) -> None:
        for name, number in (("tau_plus", tau_plus), ("tau_minus", tau_minus), ("dt", dt)):
            if not number > 0:
                raise RangeError(f"{name} must be positive", given=number, expected="ms > 0")
        for kind, word, known in (
            ("choice of pairs", pairs, ("all", "nearest")),
            ("time at which a rule acts", acts, ("step", "sequence")),
            ("reduction", reduction, ("mean", "sum")),
        ):
            if word not in known:
                raise UnknownNameError.among(kind, word, known)
        self.potentiation, self.depression = potentiation, depression
        self.tau_plus, self.tau_minus, self.dt = tau_plus, tau_minus, dt
        self.pairs = pairs
        self.acts: Literal["step", "sequence"] = acts
        self.reduction: Literal["mean", "sum"] = reduction

    def init(self, batch: int, pre: int, post: int, *, dtype: torch.dtype | None = None) -> PairTraces:
        """Traces at zero."""
        return PairTraces(torch.zeros(batch, pre, dtype=dtype), torch.zeros(batch, post, dtype=dtype))

    def step(
        self,
        weight: Tensor,
        signals: Signals,
        modulator: Tensor | None,
        state: PairTraces,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, PairTraces]:
        """The change over the steps of the signals, and the traces after them."""
        batch = signals.pre.shape[1]
        here = signals.pre.device
        given = signals.pre.new_ones(()) if modulator is None else torch.as_tensor(modulator, device=here)
        share = given.expand(batch)
        if self.reduction == "mean":
            share = share / batch
        pre = self._traces(signals.pre, state.pre.to(here), self.tau_plus)
        post = self._traces(signals.post, state.post.to(here), self.tau_minus)
        share = share.to(pre.dtype).unsqueeze(-1)
        delta = self.potentiation * _outer(signals.post * share, pre[1:])
        faded = post[:-1] * math.exp(-self.dt / self.tau_minus)
        delta = delta - self.depression * _outer(faded * share, signals.pre)
        return delta.to(weight.dtype), PairTraces(pre[-1], post[-1])

    def _traces(self, spikes: Tensor, start: Tensor, tau: float) -> Tensor:
        """The trace before the first step and after each, `[time + 1, batch, unit]`."""
        decay = math.exp(-self.dt / tau)
        traces = [start]
        for now in spikes.unbind(0):
            faded = traces[-1] * decay
            traces.append(faded + now if self.pairs == "all" else torch.where(now > 0, now, faded))
        return torch.stack(traces)


def _outer(post: Tensor, pre: Tensor) -> Tensor:
    """Σ over time and batch of post ⊗ pre."""
    return post.flatten(0, 1).T @ pre.flatten(0, 1)
