"""Losses on what a spiking network puts out over time, `[time, batch, class]`, against labels `[batch]`.

    count       CE(Σ_t z[t], y)
    latency     CE(-t_first / τ, y)                      the class that spikes first wins
    membrane    CE(max_t v[t], y)   or of the mean or the last potential
    over time   1/T Σ_t CE(v[t], y)
    spike count mean (Σ_t z[t] / T - wanted share)²      one share for the right class, one for the others
    van Rossum  1/τ Σ_t (f[t] - g[t])² dt,   f[t] = e^(-dt/τ) f[t-1] + z[t]   and g likewise of the target

Sources: Neftci, Mostafa & Zenke 2019; Mostafa 2018 (latency); van Rossum 2001; Eshraghian et al. 2023 for the names.
"""

from __future__ import annotations

import math
from typing import Literal

from torch import Tensor
from torch.nn.functional import cross_entropy, one_hot

from plexus.errors import DtypeError, RangeError, ShapeError, UnknownNameError
from plexus.kernels import decaying_sum
from plexus.nn import decoding

__all__ = [
    "cross_entropy_count",
    "cross_entropy_latency",
    "cross_entropy_membrane",
    "cross_entropy_over_time",
    "spike_count_loss",
    "van_rossum_loss",
]

_POTENTIALS = {"peak": decoding.peak, "mean": decoding.mean, "last": decoding.last}


def cross_entropy_count(spikes: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy of the softmax over spike counts.

    Args:
        spikes: `[time, batch, class]`.
        y: labels `[batch]`.

    Examples:
        >>> import torch
        >>> round(cross_entropy_count(torch.zeros(5, 2, 4), torch.tensor([0, 3])).item(), 4)                 # ln 4
        1.3863
    """
    y = _checked(spikes, y)
    return cross_entropy(decoding.count(spikes), y)


def cross_entropy_latency(spikes: Tensor, y: Tensor, tau: float = 5.0, dt: float = 1.0) -> Tensor:
    """Cross-entropy of the softmax over -(time of the first spike) / tau, times in ms.

    Args:
        spikes: `[time, batch, class]`.
        y: labels `[batch]`.
        tau: by how many ms earlier the right class must spike to be e times as likely.
        dt: length of a step, ms.

    Examples:
        >>> import torch
        >>> spikes = torch.zeros(5, 1, 2)
        >>> spikes[1, 0, 0] = 1.0
        >>> cross_entropy_latency(spikes, torch.tensor([0])) < cross_entropy_latency(spikes, torch.tensor([1]))
        tensor(True)
    """
    y = _checked(spikes, y)
    if not tau > 0:
        raise RangeError("the scale of times must be positive", given=tau, expected="ms > 0")
    return cross_entropy(-decoding.first_spike(spikes, dt) / tau, y)


def cross_entropy_membrane(potential: Tensor, y: Tensor, of: Literal["peak", "mean", "last"] = "peak") -> Tensor:
    """Cross-entropy of the softmax over the peak, mean or last potential of each class.

    Args:
        potential: `[time, batch, class]`.
        y: labels `[batch]`.
        of: which number of the potential counts.

    Examples:
        >>> import torch
        >>> round(cross_entropy_membrane(torch.zeros(5, 2, 4), torch.tensor([0, 3])).item(), 4)                 # ln 4
        1.3863
    """
    y = _checked(potential, y)
    if of not in _POTENTIALS:
        raise UnknownNameError.among("readout of the potential", of, _POTENTIALS)
    return cross_entropy(_POTENTIALS[of](potential), y)


def cross_entropy_over_time(potential: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy at every step, averaged: the network shall be right early and stay so.

    Args:
        potential: `[time, batch, class]`.
        y: labels `[batch]`.

    Examples:
        >>> import torch
        >>> round(cross_entropy_over_time(torch.zeros(5, 2, 4), torch.tensor([0, 3])).item(), 4)                 # ln 4
        1.3863
    """
    y = _checked(potential, y)
    return cross_entropy(potential.flatten(0, 1), y.expand(potential.shape[:2]).flatten())


def spike_count_loss(spikes: Tensor, y: Tensor, right: float = 0.8, wrong: float = 0.05) -> Tensor:
    """Mean squared distance of the share of steps with a spike from what is wanted of the right and of other classes.

    Args:
        spikes: `[time, batch, class]`.
        y: labels `[batch]`.
        right, wrong: wanted share of steps, in [0, 1].

    Examples:
        >>> import torch
        >>> round(spike_count_loss(torch.zeros(5, 1, 2), torch.tensor([0]), right=1.0, wrong=0.0).item(), 6)
        0.5
    """
    y = _checked(spikes, y)
    if not (0 <= wrong <= 1 and 0 <= right <= 1):
        raise RangeError("a share of steps lies in [0, 1]", given=(right, wrong))
    wanted = wrong + (right - wrong) * one_hot(y, spikes.shape[-1]).to(spikes.dtype)
    return (spikes.mean(0) - wanted).square().mean()


def van_rossum_loss(spikes: Tensor, target: Tensor, tau: float = 20.0, dt: float = 1.0) -> Tensor:
    """Squared van Rossum distance to target spike trains, summed over units, averaged over the batch.

    One spike more or less adds about 1/2 (1/2 exactly for steps much shorter than tau and a long run).

    Args:
        spikes, target: `[time, batch, unit…]`.
        tau: time constant of the kernel, ms; short ones ask for the right times, long ones for the right counts.
        dt: length of a step, ms.

    Examples:
        >>> import torch
        >>> z = torch.zeros(500, 1, 1)
        >>> target = z.clone()
        >>> target[0] = 1.0
        >>> abs(van_rossum_loss(z, target, tau=20.0).item() - 0.5) < 0.03
        True
    """
    if spikes.shape != target.shape or spikes.dim() < 3:
        raise ShapeError(
            "spikes and target do not match",
            given=(tuple(spikes.shape), tuple(target.shape)),
            expected="both [time, batch, unit…]",
        )
    if not (tau > 0 and dt > 0):
        raise RangeError("times must be positive", given=(tau, dt), expected="ms > 0")
    traces, _ = decaying_sum(spikes - target.to(spikes.device), decay=math.exp(-dt / tau))
    return traces.square().sum() * (dt / tau) / spikes.shape[1]


def _checked(x: Tensor, y: Tensor) -> Tensor:
    """The labels, where the outputs lie."""
    if x.dim() != 3 or y.shape != x.shape[1:2]:
        raise ShapeError(
            "labels do not match the outputs",
            given=f"outputs {tuple(x.shape)}, labels {tuple(y.shape)}",
            expected="[time, batch, class] and [batch]",
            mend="time comes first: x.transpose(0, 1)" if x.dim() == 3 and y.shape == x.shape[:1] else None,
        )
    if y.is_floating_point():
        raise DtypeError("labels are integers", given=y.dtype, expected="int64")
    if y.numel() and not 0 <= int(y.min()) <= int(y.max()) < x.shape[-1]:
        raise RangeError("a label is no class", given=(int(y.min()), int(y.max())), expected=f"0 to {x.shape[-1] - 1}")
    return y.to(x.device)
