"""Spiking units whose synapses are modulated by astrocytes: slow calcium that scales the current and adds to it.

    I[t] = W x[t]                                               synaptic current
    a[t] = λ a[t-1] + (1 - λ) (w_pre x[t] + w_post z[t-1])      calcium, λ = 1 - dt/τ = sigmoid(r), per unit
    g[t] = 1 + tanh(G a[t]),    h[t] = H a[t]                   gain (release probability) and slow inward current
    J[t] = I[t] g[t] + h[t]
    m[t] = α v[t-1] + J[t]                                      α = exp(-dt/τ_m)
    z[t] = H(m[t] - 1),         v[t] = (1 - z[t]) m[t]          spike and reset, through which gradients flow

Without w_post (`use_post=False`) the calcium depends on the input alone: it is a linear scan, the products with W, G
and H are done for all of time at once, and only the membrane walks, in the fused loop of `lif`. With it each step waits
for the last one's spikes, in the fused loop of `astrocyte_loop`. The two are different models: the first hears what
arrives, the second also what the unit does about it.

Source: a reconstruction. Shen, Zhao, Dong, Li, Li, Sun & Zeng 2023 (arXiv 2312.07625) describe the unit; these
equations are the usual reduction of the tripartite synapse (De Pittà et al. 2011) that fits the description, not the
authors' code. Time constants in ms, potentials dimensionless.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from plexus.errors import DtypeError, RangeError, ShapeError
from plexus.kernels import LIFState, Surrogate, astrocyte_loop, decaying_sum, lif
from plexus.units._port import Port

__all__ = ["AstrocyteState", "AstrocyteUnit", "Astrocytes"]


class AstrocyteState(NamedTuple):
    """What an astrocyte-modulated unit remembers: three numbers, however long the past."""

    v: Tensor  # membrane potential                 [batch, unit]
    a: Tensor  # calcium of the astrocyte           [batch, unit]
    z: Tensor  # last spike                         [batch, unit]


class Astrocytes(nn.Module):
    """`calcium, last = Astrocytes(100)(x)`: one slow trace per unit, and how it acts on the unit's current.

    Its output, the calcium that is read, is a site of its own: clamping it there clamps it inside the loop.

    Args:
        units: number of units.
        tau_range: shortest and longest time constant of calcium in ms, spread evenly in log(τ/dt - 1); equal: one for
            all.
        rank: rank of G and H; None: full.
        use_pre, use_post: hear what comes in, hear what the unit emits.
        gain, bias: scale the current, add to it.
        learn_tau: whether time constants are learned; they stay longer than dt.
        listen: initial w_pre and w_post.
        dt: length of a step in ms.
        generator: source of the initial G and H.

    Raises:
        RangeError: a time constant is not longer than dt or the range descends, the rank is not within 1 … units, there
            is nothing to hear or nothing to act on.

    Examples:
        >>> import torch
        >>> astrocytes = Astrocytes(3, tau_range=(10.0, 10.0), use_post=False)
        >>> calcium, last = astrocytes(torch.ones(50, 1, 3))
        >>> round(calcium[-1, 0, 0].item(), 3)                      # w_pre (1 - 0.9^50)
        0.497
    """

    axes = "t b u"
    port: Port | None = None

    def __init__(
        self,
        units: int,
        *,
        tau_range: tuple[float, float] = (2.0, 150.0),
        rank: int | None = None,
        use_pre: bool = True,
        use_post: bool = True,
        gain: bool = True,
        bias: bool = True,
        learn_tau: bool = True,
        listen: float = 0.5,
        dt: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if units < 1:
            raise RangeError("a layer needs at least one unit", given=units, expected="units >= 1")
        shortest, longest = tau_range
        if not dt < shortest <= longest < math.inf:
            raise RangeError(
                "the range of time constants of calcium",
                given=tau_range,
                expected=f"(shortest, longest) in ms, longer than dt = {dt:g}, the longest last",
            )
        if rank is not None and not 1 <= rank <= units:
            raise RangeError("the rank of gain and bias", given=rank, expected=f"1 … {units}, or None for full")
        if not (use_pre or use_post):
            raise RangeError("the astrocytes hear nothing", mend="set use_pre, use_post or both")
        if not (gain or bias):
            raise RangeError("the astrocytes act on nothing", mend="set gain, bias or both")
        self.units, self.dt, self.use_pre, self.use_post = units, dt, use_pre, use_post
        self.gain, self.bias = gain, bias
        raw = torch.linspace(math.log(shortest / dt - 1), math.log(longest / dt - 1), units)
        if learn_tau:
            self.raw_keep = nn.Parameter(raw)
        else:
            self.register_buffer("raw_keep", raw)
        self.pre = nn.Parameter(torch.full((units,), listen)) if use_pre else None
        self.post = nn.Parameter(torch.full((units,), listen)) if use_post else None
        self.gain_map = _map(units, rank, generator) if gain else None
        self.bias_map = _map(units, rank, generator) if bias else None

    @property
    def keep(self) -> Tensor:
        """λ, the factor of calcium per step, `[unit]`."""
        return self.raw_keep.sigmoid()

    def timescales(self) -> Tensor:
        """Time constants of calcium in ms, `[unit]`: dt / (1 - λ).

        Examples:
            >>> Astrocytes(3, tau_range=(2.0, 150.0)).timescales().round().tolist()
            [2.0, 13.0, 150.0]
        """
        return self.dt * (1 + self.raw_keep.exp())  # 1 / (1 - sigmoid(r)) without its rounding

    def initial_state(self, batch: int, *, dtype: torch.dtype | None = None) -> Tensor:
        """No calcium, `[batch, unit]`."""
        return self.raw_keep.new_zeros((batch, self.units), dtype=dtype)

    def forward(
        self, x: Tensor, state: Tensor | None = None, loop: Callable[..., tuple[Tensor, Any]] | None = None
    ) -> tuple[Tensor, Any]:
        """Calcium `[time, batch, unit]` that the input x leaves, and the calcium after the last step.

        `loop(drive, keep, listen, port)` runs it instead where astrocytes hear spikes that depend on them, and returns
        the calcium and whatever state it has.
        """
        share = torch.sigmoid(-self.raw_keep)  # 1 - λ
        drive = x * (share * self.pre) if self.pre is not None else torch.zeros_like(x)
        if loop is not None:
            listen = share * self.post if self.post is not None else torch.zeros_like(share)
            return loop(drive, self.keep, listen, self.port)
        calcium, last = decaying_sum(drive, state, decay=self.keep)
        return (calcium if self.port is None else self.port.apply(calcium)), last

    def modulate(self, current: Tensor, calcium: Tensor) -> Tensor:
        """J = I (1 + tanh(G a)) + H a, for any leading dimensions."""
        if self.gain_map is not None:
            current = current * (1 + self.gain_map(calcium).tanh())
        return current if self.bias_map is None else current + self.bias_map(calcium)

    def mixing(self) -> Tensor:
        """(G, H)ᵀ side by side, `[unit, unit]` or `[unit, 2 · unit]`."""
        maps = [m for m in (self.gain_map, self.bias_map) if m is not None]
        eye = torch.eye(self.units, dtype=self.raw_keep.dtype, device=self.raw_keep.device)
        return torch.cat([m.weight.T if isinstance(m, nn.Linear) else m(eye) for m in maps], 1)

    def extra_repr(self) -> str:
        """What `print(layer)` shows."""
        taus = self.timescales().detach()
        hears = " and ".join(n for n, on in (("input", self.use_pre), ("spikes", self.use_post)) if on)
        return f"{self.units}, tau={taus.min().item():.3g}…{taus.max().item():.3g} ms, hears {hears}"


def _map(units: int, rank: int | None, generator: torch.Generator | None) -> nn.Module:
    """A linear map whose outputs vary as its inputs do, full or through `rank` numbers."""
    sizes = [(units, units)] if rank is None else [(rank, units), (units, rank)]
    layers = []
    for rows, columns in sizes:
        layers.append(nn.Linear(columns, rows, bias=False))
        layers[-1].weight = nn.Parameter(torch.randn(rows, columns, generator=generator) / columns**0.5)
    return layers[0] if rank is None else nn.Sequential(*layers)


class AstrocyteUnit(nn.Module):
    """`spikes, state = AstrocyteUnit(48)(x)`: synapses, astrocytes and spiking units; x `[time, batch, unit]`.

    A reconstruction after a description, not the authors' exact model; see the head of the module.

    Args:
        units: number of units, and of inputs.
        tau_range: shortest and longest time constant of the astrocytes' calcium in ms.
        rank: rank of the maps from calcium to gain and bias; None: full.
        use_pre, use_post: let the astrocytes hear inputs, and the units' own spikes. Without the latter the unit runs
            in parallel mode: all that is not the membrane is computed for all of time at once.
        gain, bias: let the astrocytes scale the synaptic current, and add to it.
        learn_tau: whether the time constants of calcium are learned.
        tau_mem: initial time constant of the membrane in ms, learned per unit; the default keeps half per step.
        listen: initial w_pre and w_post.
        dt: length of a step in ms.
        surrogate: a `Surrogate`, or the name of one.
        generator: source of the initial weights.

    Raises:
        RangeError: as for `Astrocytes`, or `tau_mem` is not positive.
        ShapeError: an input is not `[time, batch, unit]`, has no steps, or a state is of another batch.

    Examples:
        >>> import torch
        >>> unit = AstrocyteUnit(4, rank=2)
        >>> spikes, state = unit(torch.rand(10, 3, 4))
        >>> spikes.shape, state.a.shape
        (torch.Size([10, 3, 4]), torch.Size([3, 4]))
        >>> spikes, state = unit.step(torch.rand(3, 4), state)      # one step more
        >>> spikes.shape
        torch.Size([3, 4])
    """

    axes = "t b u"
    port: Port | None = None

    def __init__(
        self,
        units: int,
        tau_range: tuple[float, float] = (2.0, 150.0),
        rank: int | None = None,
        *,
        use_pre: bool = True,
        use_post: bool = True,
        gain: bool = True,
        bias: bool = True,
        learn_tau: bool = True,
        tau_mem: float = 1 / math.log(2.0),
        listen: float = 0.5,
        dt: float = 1.0,
        surrogate: Surrogate | str = "arctan",
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.astrocytes = Astrocytes(
            units,
            tau_range=tau_range,
            rank=rank,
            use_pre=use_pre,
            use_post=use_post,
            gain=gain,
            bias=bias,
            learn_tau=learn_tau,
            listen=listen,
            dt=dt,
            generator=generator,
        )
        if not tau_mem > 0:
            raise RangeError("the time constant of the membrane", given=tau_mem, expected="ms > 0")
        self.units, self.dt = units, dt
        self.weight = nn.Parameter(torch.randn(units, units, generator=generator) / units**0.5)
        self.log_tau_mem = nn.Parameter(torch.full((units,), math.log(tau_mem)))
        self.surrogate = Surrogate(surrogate) if isinstance(surrogate, str) else surrogate

    @property
    def decay(self) -> Tensor:
        """α, the factor of the membrane potential per step, `[unit]`."""
        return torch.exp(-self.dt / self.log_tau_mem.exp())

    def timescales(self) -> Tensor:
        """Time constants of the astrocytes in ms, `[unit]`."""
        return self.astrocytes.timescales()

    def initial_state(self, batch: int, *, dtype: torch.dtype | None = None) -> AstrocyteState:
        """The state at rest: no potential, no calcium, no spike."""
        zeros = self.weight.new_zeros((batch, self.units), dtype=dtype)
        return AstrocyteState(zeros, zeros.clone(), zeros.clone())

    def forward(self, x: Tensor, state: AstrocyteState | None = None) -> tuple[Tensor, AstrocyteState]:
        """Spikes `[time, batch, unit]`, and the state after the last step."""
        check_input(x, self.units)
        state = self.initial_state(x.shape[1], dtype=x.dtype) if state is None else state
        check_state(state, x)
        v, a, z = state
        current = x @ self.weight.T
        if self.astrocytes.use_post:

            def loop(drive: Tensor, keep: Tensor, listen: Tensor, port: Port | None) -> tuple[Tensor, Any]:
                found = astrocyte_loop(
                    drive,
                    current,
                    v,
                    a,
                    z,
                    self.astrocytes.mixing(),
                    keep=keep,
                    listen=listen,
                    decay=self.decay,
                    threshold=torch.ones_like(keep),
                    gain=self.astrocytes.gain,
                    bias=self.astrocytes.bias,
                    surrogate=self.surrogate,
                    port=self.port,
                    calcium_port=port,
                )
                return (found.calcium if port is None else port.apply(found.calcium)), found

            _, found = self.astrocytes(x, a, loop)
            return found.spikes, AstrocyteState(found.v, found.calcium[-1], found.spikes[-1])
        calcium, last = self.astrocytes(x, a)
        spikes, membrane = lif(
            self.astrocytes.modulate(current, calcium),
            LIFState(v, z, torch.zeros_like(v)),
            decay=self.decay,
            reset="hard",
            surrogate=self.surrogate,
            port=self.port,
        )
        return spikes, AstrocyteState(membrane.v, last, spikes[-1])

    def step(self, x: Tensor, state: AstrocyteState | None = None) -> tuple[Tensor, AstrocyteState]:
        """One step: spikes `[batch, unit]` of an input `[batch, unit]`, and the state after it."""
        spikes, state = self(x.unsqueeze(0), state)
        return spikes[0], state


def check_input(x: Tensor, units: int) -> None:
    expected = f"[time, batch, {units}], at least one step"
    if x.dim() != 3 or x.shape[-1] != units or 0 in x.shape:
        mend = "for one step of a batch give x.unsqueeze(0), or call step" if x.dim() == 2 else None
        raise ShapeError("the input does not fit the units", given=tuple(x.shape), expected=expected, mend=mend)
    if not x.is_floating_point():
        raise DtypeError("the input is not floating point", given=x.dtype, mend="convert it, e.g. x.float()")


def check_state(state: Any, x: Tensor) -> None:
    for name, part in zip(state._fields, state, strict=True):
        if isinstance(part, Tensor) and part.shape != x.shape[1:]:
            raise ShapeError(
                f"{name} of the state does not fit the input",
                given=f"state {tuple(part.shape)} for input {tuple(x.shape)}",
                expected=f"{tuple(x.shape[1:])}: [batch, unit] of an input [time, batch, unit]",
                mend="start from None, or from the state that an input of this batch size left",
            )
