"""Expressive Leaky Memory neuron: one cortical neuron as leaky memory units that a small network writes to.

    s_j[t] = κ_s s_j[t-1] + w_j x_j[t]                      trace of a synapse, w = relu(p) ≥ 0, κ_s = exp(-dt/τ_s)
    s[t] = Σ_synapses of each branch s_j[t]
    Δ[t] = 1.7159 tanh(2/3 MLP([s[t]; κ m[t-1]]))           what is written, κ = exp(-dt/τ)
    m[t] = κ m[t-1] + λ (1 - κ) Δ[t]                        memory, version 1
    m[t] = κ m[t-1] + (1 - exp(-λ dt/τ)) Δ[t]               memory, version 2
    y[t] = W m[t] + b

Version 1 was published with a trace per synapse that branches sum, version 2 with a trace per branch. With one τ_s
both are weighted sums of the traces of the inputs, ξ[t] = κ_s ξ[t-1] + x[t]; so those are what is kept, and weights of
synapses and of the network's first layer act on them as one matrix. Time constants in ms, all else dimensionless.

Source: Spieler, Rahaman, Martius, Schölkopf & Levina, ICLR 2024 (arXiv 2306.16922), equations 1–5; version 2 and the
routing of branches after the authors' code.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from plexus.errors import DeviceError, DtypeError, RangeError, ShapeError, UnknownNameError
from plexus.kernels._elm import ELM_ACTIVATIONS, elm_memory, leaky_trace

__all__ = ["ELM", "ELMState"]

Routing = Literal["interleaved", "random"]
_INNER = 0.98  # share of the range of log τ in which learnable time constants start: at its ends they could not move


class ELMState(NamedTuple):
    """What an Expressive Leaky Memory neuron remembers."""

    trace: Tensor  # leaky sum of each input, ξ     [batch, input]
    memory: Tensor  # memory units                  [batch, memory]


def routes(
    inputs: int,
    branches: int,
    synapses_per_branch: int,
    routing: Routing | None,
    *,
    inhibitory: int = 0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Which input each synapse of each branch reads, int64 `[branch, synapse]`.

    Without routing, branches read consecutive inputs, each input once. `"interleaved"` first spreads the inhibitory
    inputs (the last ones) evenly among the others, then gives each branch a window of neighbours; windows start
    ceil(inputs / branches) apart, overlap, and wrap around at the end. `"random"` draws the inputs of each branch.

    Raises:
        ShapeError: without routing, synapses and inputs differ in number.
        RangeError: a number is not positive, a branch has more synapses than there are inputs, or windows leave gaps.
        UnknownNameError: another routing.

    Examples:
        >>> routes(4, 2, 2, None).tolist()
        [[0, 1], [2, 3]]
        >>> routes(4, 2, 3, "interleaved", inhibitory=2).tolist()
        [[0, 2, 1], [1, 3, 0]]
    """
    for name, number in (("inputs", inputs), ("branches", branches), ("synapses_per_branch", synapses_per_branch)):
        if number < 1:
            raise RangeError(f"{name} must be positive", given=number, expected="at least 1")
    if routing is None:
        if branches * synapses_per_branch != inputs:
            raise ShapeError(
                "without routing each input has one synapse",
                given=f"{branches} branches of {synapses_per_branch} synapses for {inputs} inputs",
                expected=f"{inputs} synapses",
                mend='pass routing="interleaved" or routing="random"',
            )
        return torch.arange(inputs).view(branches, synapses_per_branch)
    if routing not in ("interleaved", "random"):
        raise UnknownNameError.among("routing", routing, ("interleaved", "random"))
    if synapses_per_branch > inputs:
        raise RangeError(
            "a branch has more synapses than there are inputs", given=synapses_per_branch, expected=f"at most {inputs}"
        )
    if routing == "random":
        drawn = [torch.randperm(inputs, generator=generator)[:synapses_per_branch] for _ in range(branches)]
        return torch.stack(drawn)
    if not 0 <= inhibitory <= inputs:
        raise RangeError("inhibitory inputs are some of the inputs", given=inhibitory, expected=f"0 to {inputs}")
    stride = math.ceil(inputs / branches)
    if synapses_per_branch < stride:
        raise RangeError(
            "windows this short leave inputs out",
            given=f"{branches} windows of {synapses_per_branch}",
            expected=f"at least {stride} synapses per branch",
        )
    groups = [size for size in (inputs - inhibitory, inhibitory) if size]
    place = torch.cat([(torch.arange(size, dtype=torch.float64) + 0.5) / size for size in groups])
    order = place.argsort(stable=True)
    window = torch.arange(branches).unsqueeze(1) * stride + torch.arange(synapses_per_branch)
    return order[window % inputs]


class Dendrite(nn.Module):
    """What `ELM` and `ELMLayer` have in common: parameters (of one neuron, or of each of several) and the memory."""

    tau_fixed: Tensor | None
    tau_raw: Tensor | None
    route: Tensor
    input_weight: Tensor
    inner: Tensor
    hidden_bias: Tensor
    outer: Tensor
    outer_bias: Tensor

    def __init__(
        self,
        read: int,
        route: Tensor,
        memory: int,
        *,
        tau: tuple[float, float] | float,
        tau_syn: float,
        scale: float,
        hidden: int | None,
        layers: int,
        activation: str,
        learn_tau: bool,
        version: int,
        dt: float,
        generator: torch.Generator | None,
    ) -> None:
        super().__init__()
        if memory < 1:
            raise RangeError("a neuron needs memory", given=memory, expected="at least 1 unit")
        if layers < 0 or (hidden is not None and hidden < 1):
            raise RangeError("the network has no such layers", given=f"{layers} of {hidden}", expected="layers >= 0")
        if activation not in ELM_ACTIVATIONS:
            raise UnknownNameError.among("activation", activation, ELM_ACTIVATIONS)
        if version not in (1, 2):
            raise RangeError("there is no such version", given=version, expected="1 or 2")
        for name, number in (("dt", dt), ("tau_syn", tau_syn), ("scale", scale)):
            if not number > 0:
                raise RangeError(f"{name} must be positive", given=number, expected="a number > 0")
        self.memory, self.scale, self.version, self.dt, self.tau_syn = memory, scale, version, dt, tau_syn
        self.layers, self.learn_tau = layers, learn_tau
        # with no hidden layer, the drive goes to the memory units directly: the loop then has an identity in between
        self.hidden = memory if layers == 0 else hidden or 2 * memory
        self.activation = "identity" if layers == 0 else activation
        self.read, self._lead = read, tuple(route.shape[:-2])
        branches, width = route.shape[-2], self.hidden
        self.register_buffer("route", route)
        self.synapse_raw = nn.Parameter(torch.full(tuple(route.shape), 0.5))
        self._start_tau(tau)

        def uniform(*shape: int, fan_in: int) -> nn.Parameter:
            drawn = torch.rand((*self._lead, *shape), generator=generator)
            return nn.Parameter((2 * drawn - 1) / math.sqrt(fan_in))

        first = branches + memory
        self.input_weight = uniform(width, branches, fan_in=first)
        self.inner = uniform(width, memory, fan_in=first)
        self.hidden_bias = uniform(width, fan_in=first)
        self.deep = nn.ParameterList()
        for _ in range(layers - 1):
            self.deep.append(uniform(width, width, fan_in=width))
            self.deep.append(uniform(width, fan_in=width))
        if layers:
            self.outer = uniform(memory, width, fan_in=width)
            self.outer_bias = uniform(memory, fan_in=width)

    def _start_tau(self, tau: tuple[float, float] | float) -> None:
        low, high = (tau, tau) if isinstance(tau, (int, float)) else tau
        if isinstance(tau, tuple) and not 0 < low < high:
            raise RangeError(
                "time constants need a range",
                given=tau,
                expected="0 < shortest < longest",
                mend="give one number for equal time constants",
            )
        if not low > 0:
            raise RangeError("tau must be positive", given=tau, expected="ms > 0")
        if self.learn_tau and low == high:
            raise RangeError("equal time constants cannot be learned", given=tau, expected="(shortest, longest) in ms")
        self.tau_range = (float(low), float(high))
        # one memory unit alone takes the middle of the range
        share = torch.linspace(0, 1, self.memory) if self.memory > 1 else torch.full((1,), 0.5)
        if self.learn_tau:
            raw = torch.logit((share - 0.5) * _INNER + 0.5)
            self.tau_raw = nn.Parameter(raw.expand(*self._lead, -1).clone())
            self.register_buffer("tau_fixed", None)
        else:
            self.tau_raw = None
            self.register_buffer("tau_fixed", (low * (high / low) ** share).expand(*self._lead, -1).clone())

    @property
    def synapses(self) -> Tensor:
        """Weights of the synapses, w ≥ 0, `[branch, synapse]` (of each neuron)."""
        return torch.relu(self.synapse_raw)

    def branch_weight(self) -> Tensor:
        """What each branch sums: the weight of each input on it, `[branch, input]` (of each neuron)."""
        weight, route = self.synapses, self.route
        branch = torch.arange(route.shape[-2], device=route.device).unsqueeze(1)
        place: tuple[Tensor, ...] = (branch, route)
        if self._lead:
            place = (torch.arange(len(route), device=route.device).view(-1, 1, 1), *place)
        empty = weight.new_zeros(*self._lead, route.shape[-2], self.read)
        return empty.index_put(place, weight, accumulate=True)

    def timescales(self) -> Tensor:
        """τ of the memory units in ms, `[memory]` (of each neuron), within the range given.

        Learnable ones move by a sigmoid on log τ, so that short and long ones learn at the same relative rate.
        """
        if self.tau_raw is None:
            assert self.tau_fixed is not None
            return self.tau_fixed
        low, high = self.tau_range
        grown: Tensor = low * (high / low) ** torch.sigmoid(self.tau_raw)
        return grown.clamp(low, high)

    def numbers(self) -> tuple[Tensor, Tensor]:
        """κ, the factor of the memory per step, and the gain of what is written, `[memory]` (of each neuron)."""
        rate = self.dt / self.timescales()
        if self.version == 1:
            return torch.exp(-rate), -self.scale * torch.expm1(-rate)
        return torch.exp(-rate), -torch.expm1(-self.scale * rate)

    def network(self) -> tuple[tuple[Tensor, Tensor, Tensor, Tensor, Tensor], list[tuple[Tensor, Tensor]]]:
        """Weights of the loop, with a dimension of neurons: inner, outer, offset, κ and gain; further hidden layers."""
        outer: Tensor
        if self.layers:
            outer, offset = self.outer, self.outer_bias
        else:
            outer = torch.eye(self.memory, dtype=self.inner.dtype, device=self.inner.device)
            outer = outer.expand(*self._lead, -1, -1)
            offset = outer.new_zeros((*self._lead, self.memory))
        parts: list[Tensor] = [self.inner, outer, offset, *self.numbers(), *self.deep]
        if not self._lead:
            parts = [part.unsqueeze(0) for part in parts]
        inner, outer, offset, decay, gain, *deep = parts
        return (inner, outer, offset, decay, gain), list(zip(deep[::2], deep[1::2], strict=True))

    def _check(self, x: Tensor, inputs: int) -> None:
        expected = f"[time, batch, {inputs}]"
        if not isinstance(x, Tensor) or not x.is_floating_point():
            given = x.dtype if isinstance(x, Tensor) else type(x).__name__
            raise DtypeError("the input is not a floating-point tensor", given=given, expected=expected)
        if x.dim() != 3 or x.shape[2] != inputs:
            mend = None
            if tuple(x.shape[1:]) == (inputs,):
                mend = "for one step of a batch give x.unsqueeze(0), for one sample over time x.unsqueeze(1)"
            elif x.dim() == 3 and inputs in x.shape:
                mend = "inputs come last, and time first"
            raise ShapeError("the input does not fit the neuron", given=tuple(x.shape), expected=expected, mend=mend)
        if x.shape[1] == 0:
            raise ShapeError("the batch is empty", given=tuple(x.shape), expected=expected)
        if x.device != self.inner.device:
            raise DeviceError("the input lies on another device", given=x.device, expected=self.inner.device)
        if x.dtype != self.inner.dtype:
            raise DtypeError(
                "the input has another dtype than the neuron", given=x.dtype, expected=self.inner.dtype, mend="x.to(…)"
            )

    def _fits(self, state: tuple[Tensor, ...], rest: tuple[Tensor, ...]) -> None:
        for name, part, like in zip(getattr(rest, "_fields", ()), state, rest, strict=True):
            if part.shape != like.shape or part.dtype != like.dtype or part.device != like.device:
                raise ShapeError(
                    f"{name} of the state does not fit the input",
                    given=(tuple(part.shape), part.dtype, part.device),
                    expected=(tuple(like.shape), like.dtype, like.device),
                    mend="start from None, or from the state that an input of this batch size left",
                )

    def _shown(self) -> str:
        low, high = self.tau_range
        tau = f"{low:g}" if low == high else f"{low:g}…{high:g}"
        learned = ", learn_tau=True" if self.learn_tau else ""
        return f"memory={self.memory}, tau={tau} ms{learned}, scale={self.scale:g}, version={self.version}"


class ELM(Dendrite):
    """`y, state = ELM(64, 2, 20)(x)`: one Expressive Leaky Memory neuron; x `[time, batch, input]`.

    As a model of a cortical neuron it reads spike trains and predicts spikes (y is then a logit) and the potential; as
    a recurrent cell it reads any sequence. One step and many are the same call, and a sequence run in pieces equals the
    sequence run whole. On a CPU the loop over time is fused (one hidden layer or none). It does not fire, and its
    outputs do not re-enter it, so edits of them need no port.

    Args:
        inputs: number of inputs.
        outputs: number of outputs.
        memory: number of memory units.
        branches: number of dendritic branches; None: one per input, each with its own weight (the plain neuron).
        synapses_per_branch: how many inputs a branch reads.
        tau: shortest and longest time constant of the memory in ms, log-spaced in between (one unit alone: the middle);
            or one number for all units.
        tau_syn: time constant of the traces in ms.
        scale: λ, how strongly slow units are written to; with 1 they hardly move.
        hidden: width of the hidden layers; None: twice the memory.
        layers: number of hidden layers; 0: an affine map instead of a network.
        activation: of the hidden layers, `"relu"`, `"silu"` or `"identity"`.
        learn_tau: learn the time constants, within their range.
        routing: which inputs a branch reads: None (consecutive ones, each input once), `"interleaved"` (overlapping
            windows) or `"random"`.
        inhibitory: how many of the last inputs are inhibitory; `"interleaved"` spreads them among the others.
        version: 1 or 2 (equations at the head of the module).
        dt: length of a step in ms.
        generator: source of the initial weights and of random routes.

    Raises:
        RangeError: memory < 1, a time constant, scale or dt is not positive, the shortest time constant is not below
            the longest, or another number is out of range.
        ShapeError: branches and synapses do not match the inputs and there is no routing, or an input does not fit.
        UnknownNameError: another activation or routing.
        DtypeError, DeviceError: an input is not of the neuron's dtype and device.

    Examples:
        >>> import torch
        >>> neuron = ELM(6, 2, 4, tau=(1.0, 100.0))
        >>> y, state = neuron(torch.rand(5, 3, 6).round())
        >>> y.shape, state.memory.shape
        (torch.Size([5, 3, 2]), torch.Size([3, 4]))
        >>> neuron.timescales().round()
        tensor([  1.,   5.,  22., 100.])
        >>> branched = ELM(6, 2, 4, branches=3, synapses_per_branch=4, routing="interleaved")
        >>> branched.synapses.shape, branched.branch_weight().shape
        (torch.Size([3, 4]), torch.Size([3, 6]))
    """

    axes = "t b u"

    def __init__(
        self,
        inputs: int,
        outputs: int,
        memory: int = 100,
        *,
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
        inhibitory: int = 0,
        version: Literal[1, 2] = 1,
        dt: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> None:
        if outputs < 1:
            raise RangeError("a neuron needs an output", given=outputs, expected="at least 1")
        branches = inputs if branches is None else branches
        route = routes(inputs, branches, synapses_per_branch, routing, inhibitory=inhibitory, generator=generator)
        super().__init__(
            inputs,
            route,
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
        self.inputs, self.outputs, self.branches, self.routing = inputs, outputs, branches, routing
        bound = 1 / math.sqrt(memory)
        self.weight = nn.Parameter(bound * (2 * torch.rand(outputs, memory, generator=generator) - 1))
        self.bias = nn.Parameter(bound * (2 * torch.rand(outputs, generator=generator) - 1))

    def initial_state(self, batch: int, *, dtype: torch.dtype | None = None) -> ELMState:
        """The state at rest, each tensor `[batch, …]`."""
        like = self.inner.detach()
        trace = torch.zeros(batch, self.inputs, dtype=dtype or like.dtype, device=like.device)
        return ELMState(trace, trace.new_zeros(batch, self.memory))

    def forward(self, x: Tensor, state: ELMState | None = None) -> tuple[Tensor, ELMState]:
        """Outputs `[time, batch, output]` of the inputs x, and the state after the last step."""
        self._check(x, self.inputs)
        rest = self.initial_state(x.shape[1])
        if state is None:
            state = rest
        self._fits(state, rest)
        trace = leaky_trace(x, state.trace, math.exp(-self.dt / self.tau_syn))
        drive = nn.functional.linear(trace, self.input_weight @ self.branch_weight(), self.hidden_bias)
        parts, deep = self.network()
        memory = elm_memory(
            drive.unsqueeze(2), *parts, state.memory.unsqueeze(1), deep=deep, activation=self.activation
        ).squeeze(2)
        y = nn.functional.linear(memory, self.weight, self.bias)
        return y, ELMState(trace[-1].clone(), memory[-1].clone()) if len(x) else state

    def extra_repr(self) -> str:
        """What `print(neuron)` shows."""
        branches = "" if self.branches == self.inputs and self.routing is None else f", branches={self.branches}"
        return f"{self.inputs}, {self.outputs}{branches}, {self._shown()}"
