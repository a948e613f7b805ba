"""A layer of Expressive Leaky Memory neurons, each with memory and weights of its own, that may drive one another.

    x'[t] = [x[t]; z[t-1]]                    what a neuron's synapses read: the inputs and what the layer last emitted
    m_n[t] from x'[t] as in `ELM`, for each neuron n
    v_n[t] = w_n m_n[t] + b_n
    z_n[t] = port(v_n[t])  or, with spikes,  port(H(v_n[t] - θ)) with a surrogate derivative

An extension of ours: the published neuron is used alone. Time constants in ms, all else dimensionless.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from plexus.errors import RangeError
from plexus.kernels._elm import elm_memory, elm_step, leaky_trace
from plexus.kernels._frame import _Spike
from plexus.kernels._surrogate import Surrogate
from plexus.nn.neurons._elm import Dendrite, Routing, routes
from plexus.units._port import Port

__all__ = ["ELMLayer", "ELMLayerState"]


class ELMLayerState(NamedTuple):
    """What a layer of Expressive Leaky Memory neurons remembers."""

    trace: Tensor  # leaky sum of all that neurons read            [batch, input (+ unit)]
    memory: Tensor  # memory units of each neuron                  [batch, unit, memory]
    z: Tensor  # what each neuron last emitted, after the port     [batch, unit]


class ELMLayer(Dendrite):
    """`z, state = ELMLayer(8, 16, 5)(x)`: many Expressive Leaky Memory neurons; x `[time, batch, input]`.

    Without recurrence the loop over time is fused on a CPU; with it each step waits for the one before.

    Args:
        inputs: number of inputs of the layer.
        units: number of neurons.
        memory: memory units of each.
        recurrent: let each neuron read what all emitted one step before, beside the inputs.
        spiking: emit 0 or 1 (a step with a surrogate derivative) instead of the analog value.
        threshold: analog value above which a neuron spikes.
        surrogate: a `Surrogate`, its name, or a function u -> dz/du.
        branches: branches of each neuron; None: one for each of what it reads.
        routing: as for `ELM`, over all that a neuron reads; `"random"` draws for each neuron anew.
        others: as for `ELM`.

    Raises:
        RangeError, ShapeError, UnknownNameError, DtypeError, DeviceError: as for `ELM`.

    Examples:
        >>> import torch
        >>> layer = ELMLayer(3, 4, 2, spiking=True)
        >>> z, state = layer(torch.rand(5, 2, 3))
        >>> z.shape, bool(((z == 0) | (z == 1)).all())
        (torch.Size([5, 2, 4]), True)
        >>> state.memory.shape                                   # of each neuron
        torch.Size([2, 4, 2])
    """

    axes = "t b u"
    port: Port | None = None

    def __init__(
        self,
        inputs: int,
        units: int,
        memory: int = 10,
        *,
        recurrent: bool = True,
        spiking: bool = False,
        threshold: float = 0.5,
        surrogate: Surrogate | str | Callable[[Tensor], Tensor] = "arctan",
        branches: int | None = None,
        synapses_per_branch: int = 1,
        tau: tuple[float, float] | float = (1.0, 1000.0),
        tau_syn: float = 5.0,
        scale: float = 5.0,
        hidden: int | None = None,
        layers: int = 1,
        activation: Literal["relu", "silu", "identity"] = "relu",
        learn_tau: bool = False,
        routing: Routing | None = None,
        version: Literal[1, 2] = 1,
        dt: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> None:
        if units < 1:
            raise RangeError("a layer needs at least one neuron", given=units, expected="at least 1")
        read = inputs + units * recurrent
        branches = read if branches is None else branches
        drawn = [
            routes(read, branches, synapses_per_branch, routing, generator=generator)
            for _ in range(units if routing == "random" else 1)
        ]
        super().__init__(
            read,
            torch.stack(drawn).expand(units, -1, -1).clone(),
            memory,
            tau=tau,
            tau_syn=tau_syn,
            scale=scale,
            hidden=hidden,
            layers=layers,
            activation=activation,
            learn_tau=learn_tau,
            version=version,
            dt=dt,
            generator=generator,
        )
        self.inputs, self.units, self.branches = inputs, units, branches
        self.recurrent, self.spiking, self.threshold = recurrent, spiking, threshold
        self.surrogate = Surrogate(surrogate) if isinstance(surrogate, str) else surrogate
        bound = 1 / math.sqrt(memory)
        self.weight = nn.Parameter(bound * (2 * torch.rand(units, memory, generator=generator) - 1))
        self.bias = nn.Parameter(bound * (2 * torch.rand(units, generator=generator) - 1))

    def initial_state(self, batch: int, *, dtype: torch.dtype | None = None) -> ELMLayerState:
        """The state at rest, each tensor `[batch, unit, …]`."""
        like = self.inner.detach()
        trace = torch.zeros(batch, self.read, dtype=dtype or like.dtype, device=like.device)
        return ELMLayerState(trace, trace.new_zeros(batch, self.units, self.memory), trace.new_zeros(batch, self.units))

    def forward(self, x: Tensor, state: ELMLayerState | None = None) -> tuple[Tensor, ELMLayerState]:
        """What the neurons emit, `[time, batch, unit]`, and the state after the last step."""
        self._check(x, self.inputs)
        rest = self.initial_state(x.shape[1])
        if state is None:
            state = rest
        self._fits(state, rest)
        if not len(x):
            return x.new_zeros(0, x.shape[1], self.units), state
        decay = math.exp(-self.dt / self.tau_syn)
        weight = self.input_weight @ self.branch_weight()
        before, own = state.trace[:, : self.inputs], state.trace[:, self.inputs :]
        trace = leaky_trace(x, before, decay)
        drive = torch.einsum("tbi,nhi->tbnh", trace, weight[..., : self.inputs]) + self.hidden_bias
        parts, deep = self.network()
        if not self.recurrent:
            memory = elm_memory(drive, *parts, state.memory, deep=deep, activation=self.activation)
            z = self._emitted(memory)
            return z, ELMLayerState(trace[-1].clone(), memory[-1].clone(), z[-1].clone())
        among, m, z, out = weight[..., self.inputs :], state.memory, state.z, []
        for now in drive.unbind(0):
            own = decay * own + z
            pushed = now + torch.einsum("bi,nhi->bnh", own, among)
            m = elm_step(pushed, *parts, m, deep=deep, activation=self.activation)
            z = self._emitted(m)
            out.append(z)
        return torch.stack(out), ELMLayerState(torch.cat([trace[-1], own], 1), m, z)

    def _emitted(self, memory: Tensor) -> Tensor:
        """What neurons emit from their memory `[…, unit, memory]`, `[…, unit]`."""
        z = (memory * self.weight).sum(-1) + self.bias
        if self.spiking:
            slope = self.surrogate.derivative if isinstance(self.surrogate, Surrogate) else self.surrogate
            z = _Spike.apply(z - self.threshold, slope, False)  # type: ignore[no-untyped-call]
        return z if self.port is None else self.port.apply(z)

    def extra_repr(self) -> str:
        """What `print(layer)` shows."""
        emits = f"spikes above {self.threshold:g}" if self.spiking else "analog"
        return f"{self.inputs}, {self.units}, recurrent={self.recurrent}, {emits}, {self._shown()}"
