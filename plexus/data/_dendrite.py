"""A simulated neuron with active dendrites, as a recording to be predicted from its input spikes.

    s_k[t] = κ_s s_k[t-1] + Σ_excitatory w x[t]                  fast synapses of branch k, τ 5
    n_k[t] = κ_n n_k[t-1] + Σ_excitatory w x[t]                  slow (NMDA-like) ones, τ 30
    i_k[t] = κ_i i_k[t-1] + Σ_inhibitory w x[t]                  inhibition, τ 10
    p_k[t] = κ_p p_k[t-1] + (1 - κ_p) σ((n_k[t] - i_k[t] - 2) / 0.25)     plateau potential of the branch, τ 80
    I[t]   = Σ_k [(0.02 + 1.2 p_k[t]) s_k[t] + 0.6 p_k[t] - 0.1 i_k[t]]    a plateau amplifies its branch's synapses
    v[t]   = κ_v v[t-1] + (1 - κ_v) I[t]                         soma, τ 15; held at 0 for 3 ms after a spike
    a[t]   = κ_a a[t-1] + 0.6 z[t-1]                            adaptation of the threshold, τ 200
    z[t]   = H(v[t] - 1 - a[t]),  v[t] ← (1 - z[t]) v[t]

κ = exp(-dt/τ), dt = 1 ms, potentials in units of the resting threshold. Inputs are Poisson; all of one branch share a
rate, which jumps to a new one between 1 and 10 Hz after times that are exponential with mean 200 ms; inhibition has
rates of its own. Weights are log-normal with mean 1.

A construction of ours, after the two-layer neuron of Poirazi, Brannon & Mel 2003 with plateau potentials.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from plexus.errors import RangeError

__all__ = ["DendriticRecording", "dendritic_neuron"]


@dataclass(frozen=True)
class DendriticRecording:
    """What went into a neuron and what came out.

    Attributes:
        x: input spikes, 0 or 1, uint8 `[time, batch, input]`; excitatory inputs first, then inhibitory ones.
        spikes: output spikes, 0 or 1, uint8 `[time, batch]`.
        voltage: potential of the soma after the reset, float32 `[time, batch]`, in units of the resting threshold.
        excitatory: number of excitatory inputs.
    """

    x: Tensor
    spikes: Tensor
    voltage: Tensor
    excitatory: int

    def __len__(self) -> int:
        return len(self.x)


def dendritic_neuron(
    steps: int,
    batch: int = 1,
    *,
    branches: int = 8,
    excitatory: int = 48,
    inhibitory: int = 16,
    warm: int = 1000,
    generator: torch.Generator,
) -> DendriticRecording:
    """Simulate one neuron with active dendrites under `batch` independent inputs of `steps` ms.

    The neuron (its weights) and the inputs are drawn from the generator; all of a call come from one neuron.

    Args:
        steps: length in ms.
        batch: number of independent recordings of the neuron.
        branches: dendritic branches; inputs are dealt to them in turn.
        excitatory, inhibitory: numbers of inputs.
        warm: ms that are simulated first and thrown away, by default five times the slowest time constant; 0 starts
            at rest.

    Raises:
        RangeError: a number is not positive, or a branch gets no input.

    Examples:
        >>> recording = dendritic_neuron(500, 4, generator=torch.Generator().manual_seed(0))
        >>> recording.x.shape, recording.voltage.shape
        (torch.Size([500, 4, 64]), torch.Size([500, 4]))
        >>> bool((recording.voltage[recording.spikes == 1] == 0).all())               # reset
        True
    """
    for name, number in (("steps", steps), ("batch", batch), ("branches", branches)):
        if number < 1:
            raise RangeError(f"{name} must be positive", given=number, expected="at least 1")
    if warm < 0:
        raise RangeError("warm is negative", given=warm, expected="ms >= 0")
    if excitatory < branches or inhibitory < 0:
        raise RangeError(
            "each branch needs an excitatory input", given=(excitatory, inhibitory), expected=f">= {branches} and >= 0"
        )
    total = warm + steps
    branch = torch.cat([torch.arange(number) % branches for number in (excitatory, inhibitory)])
    group = branch + branches * (torch.arange(len(branch)) >= excitatory)
    rate = _switching(total, batch, 2 * branches, generator)[:, :, group]
    x = torch.rand(rate.shape, generator=generator) < rate / 1000
    weight = torch.exp(0.5 * torch.randn(excitatory + inhibitory, generator=generator) - 0.125)
    spikes, voltage = np.zeros((total, batch), np.uint8), np.zeros((total, batch), np.float32)
    inputs = x.to(torch.uint8)
    _compiled()(inputs.numpy(), weight.numpy(), branch.numpy(), excitatory, branches, spikes, voltage)
    return DendriticRecording(
        inputs[warm:], torch.from_numpy(spikes)[warm:], torch.from_numpy(voltage)[warm:], excitatory
    )


def _switching(steps: int, batch: int, groups: int, generator: torch.Generator) -> Tensor:
    """Rates in Hz that jump, `[time, batch, group]`."""
    jump = torch.rand(steps, batch, groups, generator=generator) < 1 / 200
    jump[0] = True
    fresh = 1 + 9 * torch.rand(steps, batch, groups, generator=generator)
    last = torch.where(jump, torch.arange(steps).view(-1, 1, 1), 0).cummax(0).values
    return fresh.gather(0, last)


def _simulate(x, weight, branch, excitatory, branches, spikes, voltage):  # type: ignore[no-untyped-def]
    fast, slow, inhibition = np.exp(-1 / 5), np.exp(-1 / 30), np.exp(-1 / 10)
    plateau, soma, adaptation = np.exp(-1 / 80), np.exp(-1 / 15), np.exp(-1 / 200)
    for b in range(x.shape[1]):
        s, n, i, p = np.zeros(branches), np.zeros(branches), np.zeros(branches), np.zeros(branches)
        v, a, z, silent = 0.0, 0.0, 0, 0
        for t in range(x.shape[0]):
            s *= fast
            n *= slow
            i *= inhibition
            for j in range(x.shape[2]):
                if x[t, b, j]:
                    k = branch[j]
                    if j < excitatory:
                        s[k] += weight[j]
                        n[k] += weight[j]
                    else:
                        i[k] += weight[j]
            current = 0.0
            for k in range(branches):
                opened = 1 / (1 + np.exp(-(n[k] - i[k] - 2) / 0.25))
                p[k] = plateau * p[k] + (1 - plateau) * opened
                current += (0.02 + 1.2 * p[k]) * s[k] + 0.6 * p[k] - 0.1 * i[k]
            a = adaptation * a + 0.6 * z
            v = soma * v + (1 - soma) * current
            if silent > 0:
                silent -= 1
                v = 0.0
            z = 1 if v > 1 + a else 0
            if z:
                v = 0.0
                silent = 3
            spikes[t, b], voltage[t, b] = z, v


@functools.cache
def _compiled() -> Any:
    import numba

    return numba.njit(cache=True)(_simulate)
