"""What an Expressive Leaky Memory neuron is compared with, and how all of them are trained; time first throughout."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from plexus.kernels import leaky_trace
from plexus.nn import ELM
from plexus.nn.neurons._elm import Routing

Loss = Callable[[nn.Module, int], Tensor]
"""The loss of a model on the batch of an update."""


def seeded(seed: int, stream: int) -> torch.Generator:
    """A generator for one use of a seed."""
    return torch.Generator().manual_seed(1000 * seed + stream)


class Readout(nn.Module):
    """A model over time and a linear map of its output; `bias` is that of the map."""

    def __init__(self, body: nn.Module, width: int, outputs: int) -> None:
        super().__init__()
        self.body, self.map = body, nn.Linear(width, outputs)

    @property
    def bias(self) -> nn.Parameter:
        return self.map.bias

    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        y = self.body(x)
        return self.map(y[0] if isinstance(y, tuple) else y), None


class LinearFilters(nn.Module):
    """Exponential filters of every input, time constants in steps: the features of a generalised linear model."""

    def __init__(self, *taus: float) -> None:
        super().__init__()
        self.taus = taus

    def forward(self, x: Tensor) -> Tensor:
        rest = torch.zeros_like(x[0])
        return torch.cat([leaky_trace(x, rest, math.exp(-1 / tau)) / math.sqrt(tau) for tau in self.taus], -1)


class Convolutions(nn.Module):
    """A causal convolutional network: residual layers of kernel 3, dilated 1, 3, 9, 27 and 81; it sees 243 steps."""

    def __init__(self, inputs: int, channels: int, layers: int = 5) -> None:
        super().__init__()
        self.enter = nn.Conv1d(inputs, channels, 1)
        self.layers = nn.ModuleList(nn.Conv1d(channels, channels, 3, dilation=3**k) for k in range(layers))

    def forward(self, x: Tensor) -> Tensor:
        h = self.enter(x.permute(1, 2, 0))
        for k, layer in enumerate(self.layers):
            h = h + torch.relu(layer(pad(h, (2 * 3**k, 0))))
        return h.permute(2, 0, 1)


class SpikingLoop(torch.autograd.Function):
    """Recurrent adaptive spiking units over time, with the adjoint written out (autograd takes ten times as long).

    u = α v + d[t] + W z,  s = u - 1 - β a,  z = H(s),  v = u - z,  a ← ρ a + (1 - ρ) z      (Bellec et al. 2018)
    """

    @staticmethod
    def forward(ctx: Any, drive: Tensor, weight: Tensor, alpha: float, beta: float, rho: float) -> Tensor:
        v = a = z = torch.zeros_like(drive[0])
        above, out = torch.empty_like(drive), torch.empty_like(drive)
        for t, now in enumerate(drive):
            u = torch.addmm(now, z, weight.T).add_(v, alpha=alpha)
            s = torch.sub(u - 1, a, alpha=beta, out=above[t])
            z = torch.gt(s, 0, out=out[t])
            v, a = u - z, rho * a + (1 - rho) * z
        ctx.save_for_backward(weight, above, out)
        ctx.numbers = alpha, beta, rho
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        weight, above, out = ctx.saved_tensors
        alpha, beta, rho = ctx.numbers
        slope = 0.3 * (1 - above.abs()).clamp(min=0)
        to_v = to_a = to_z = torch.zeros_like(grad[0])
        delta = torch.empty_like(grad)
        for t in range(len(grad) - 1, -1, -1):
            through = (grad[t] + to_z - to_v + (1 - rho) * to_a) * slope[t]
            du = torch.add(to_v, through, out=delta[t])
            to_v, to_a, to_z = alpha * du, rho * to_a - beta * through, du @ weight
        return delta, torch.einsum("tbi,tbj->ij", delta[1:], out[:-1]), None, None, None


class SpikingNet(nn.Module):
    """Recurrent leaky integrate-and-fire units, with or without an adaptive threshold; gives their leaky spike counts.

    The leak of the counts is as slow as asked for, so that the readout remembers even where the units do not.
    """

    def __init__(
        self, inputs: int, units: int, *, tau: float, tau_adapt: float | None, tau_count: float, dt: float
    ) -> None:
        super().__init__()
        self.enter, self.among = nn.Linear(inputs, units), nn.Linear(units, units, bias=False)
        nn.init.normal_(self.enter.weight, std=2 / inputs**0.5)
        nn.init.normal_(self.among.weight, std=0.5 / units**0.5)
        self.alpha, self.count = math.exp(-dt / tau), math.exp(-dt / tau_count)
        self.beta, self.rho = (0.0, 0.0) if tau_adapt is None else (1.8, math.exp(-dt / tau_adapt))

    def forward(self, x: Tensor) -> Tensor:
        spikes = SpikingLoop.apply(self.enter(x), self.among.weight, self.alpha, self.beta, self.rho)
        return (1 - self.count) * leaky_trace(spikes, torch.zeros_like(spikes[0]), self.count)


def long_short_term(inputs: int, units: int, outputs: int, longest: float | None = None) -> Readout:
    """An LSTM; with `longest` (in steps) its gates start at time constants up to that one (Tallec & Ollivier 2018)."""
    body = nn.LSTM(inputs, units)
    if longest is not None:
        start = torch.log(1 + (longest - 2) * torch.rand(units))
        with torch.no_grad():
            body.bias_hh_l0.zero_()
            body.bias_ih_l0.zero_()
            body.bias_ih_l0[:units], body.bias_ih_l0[units : 2 * units] = -start, start
    return Readout(body, units, outputs)


def elm(
    inputs: int,
    outputs: int,
    memory: int,
    *,
    seed: int,
    tau: tuple[float, float],
    branches: int | None = None,
    synapses: int = 1,
    inhibitory: int = 0,
    scale: float = 5.0,
    layers: int = 1,
    learn_tau: bool = False,
    tau_syn: float = 5.0,
    dt: float = 1.0,
) -> ELM:
    """The neuron as the studies build it; a range of one number means equal time constants."""
    routing: Routing | None = None if branches is None else "interleaved"
    return ELM(
        inputs,
        outputs,
        memory,
        tau=tau[0] if tau[0] == tau[1] else tau,
        branches=branches,
        synapses_per_branch=synapses,
        routing=routing,
        inhibitory=inhibitory,
        scale=scale,
        layers=layers,
        learn_tau=learn_tau,
        tau_syn=tau_syn,
        dt=dt,
        activation="silu",
        generator=seeded(seed, 1),
    )


def parameters(model: nn.Module) -> int:
    """How many numbers a model learns."""
    return sum(p.numel() for p in model.parameters())


def train(model: nn.Module, loss: Loss, updates: int, rate: float) -> float:
    """Adam, the rate rising over a tenth of the updates and falling to nothing as a cosine; returns the last loss."""
    optimiser = torch.optim.Adam(model.parameters(), rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, total_steps=max(updates, 2), pct_start=0.1)
    value = torch.zeros(())
    for update in range(updates):
        value = loss(model, update)
        optimiser.zero_grad()
        value.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
    return value.item()
