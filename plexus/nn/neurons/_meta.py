"""Meta neurons: spiking neurons whose own numbers are learned with the weights, with or without chance in the spike.

    m[t] = λ v[t-1] + R x[t] - u[t-1]                     membrane, λ = 1 - dt/τ
    w[t] = u[t-1] + a (b m[t] - u[t-1])                   recovery (order 2; u = 0 in order 1)
    z[t] = H(m[t] - θ)     or     P(z[t] = 1) = σ((m[t] - θ)/Δ)
    v[t] = (1 - z[t]) m[t] + z[t] v_r,   u[t] = w[t] + d z[t]

The quadratic form has m = clip(v + (dt/τ)(v² - v + R x - u), ±limit), the Euler step of τ dV/dt = V² - V - U + R I; its
recovery, dU/dt = θ_v V - θ_u U per dt, is the one above with a = θ_u and b = θ_v/θ_u.

What is learned stays in its range, by maps of unbounded numbers q:

    λ = σ(q)            so τ = dt (1 + e^q) > dt          a = σ(q)                    0 < a < 1
    θ, R, Δ = e^q       positive                          b = λ - 1 + (2 - λ) σ(q)    λ - 1 < b < 1
    v_r = θ - e^q       below the threshold               d = q

Below threshold the linear form is (v, u) ← (λ v - u, a b λ v + (1 - a - a b) u), which is stable for every λ and a in
(0, 1) when λ - 1 < b < 1 (Jury's criterion asks for λ - 1 < b < (1 + λ)(2 - a)/a, and that bound is above 1).

Sources: Rudnicka, Szczepanski & Pregowska 2025 (learned intrinsic numbers; λ); Cheng et al. 2020 (second order, the
quadratic form); Gerstner & Kistler 2002, section 5.3 (escape noise). The linear form and the maps are ours. Time
constants in ms, potentials dimensionless.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from plexus.errors import DtypeError, RangeError, ShapeError, UnknownNameError
from plexus.kernels import MetaState, Surrogate, logistic_noise, meta
from plexus.nn._places import number_of
from plexus.units._port import Port

__all__ = ["MetaNeuron", "MetaState"]

_FIRST = ("tau_mem", "threshold", "gain", "reset_value")
_SECOND = ("recovery", "coupling", "jump")


class MetaNeuron(nn.Module):
    """`spikes, state = MetaNeuron(100, learn=("tau_mem", "threshold"))(current)`; current `[time, batch, unit…]`.

    Order 1 is the leaky integrate-and-fire neuron with hard reset. With `stochastic=True` each spike is a draw; its
    gradient is that of its probability, and the draws come from `self.generator`, which may be replaced at any time.

    Args:
        units: number of units, or their shape.
        tau_mem: time constant of the membrane in ms, longer than dt; like all numbers one for all units or a tensor
            that broadcasts to them.
        threshold: potential above which a unit spikes.
        order: 1, or 2 for a second variable, the recovery, that the membrane drives and that inhibits the membrane.
        form: `"linear"` or `"quadratic"` membrane.
        stochastic: spike by chance, with probability σ((m - θ)/temperature).
        temperature: Δ, width of the band around the threshold in which chance decides.
        gain: R, factor of the input.
        reset_value: potential after a spike, below the threshold.
        recovery: a in (0, 1), share of the way to `coupling · m` that the recovery goes per step.
        coupling: b between -dt/tau_mem and 1.
        jump: d, what a spike adds to the recovery.
        limit: bound of the potential in the quadratic form.
        dt: length of a step in ms.
        detach_reset: let no gradient flow through the reset.
        surrogate: derivative of a spike that is not stochastic.
        learn: which of the numbers, from `tau_mem` to `jump` and `temperature`, are parameters, one per unit; `"all"`
            for every number that the neuron has.
        generator: source of the draws; None is torch's own.

    Raises:
        RangeError: a number lies outside its range. ShapeError: a number or an input does not fit the units.
        UnknownNameError: another order or form, or a number to learn that this neuron does not have.

    Examples:
        >>> layer = MetaNeuron(3, tau_mem=20.0, learn="all")
        >>> spikes, state = layer(torch.ones(5, 2, 3))
        >>> spikes.shape, state.u.shape, len(list(layer.parameters()))
        (torch.Size([5, 2, 3]), torch.Size([2, 3]), 7)
        >>> chance = MetaNeuron(3, stochastic=True, generator=torch.Generator().manual_seed(0))
        >>> set(chance(torch.ones(50, 2, 3))[0].unique().tolist())
        {0.0, 1.0}
    """

    axes = "t b u"
    port: Port | None = None

    def __init__(
        self,
        units: int | Sequence[int],
        tau_mem: float | Tensor = 20.0,
        threshold: float | Tensor = 1.0,
        *,
        order: Literal[1, 2] = 2,
        form: Literal["linear", "quadratic"] = "linear",
        stochastic: bool = False,
        temperature: float | Tensor = 0.1,
        gain: float | Tensor = 1.0,
        reset_value: float | Tensor = 0.0,
        recovery: float | Tensor = 0.1,
        coupling: float | Tensor = 0.2,
        jump: float | Tensor = 0.1,
        limit: float = 4.0,
        dt: float = 1.0,
        detach_reset: bool = False,
        surrogate: Surrogate | str | Callable[[Tensor], Tensor] = "arctan",
        learn: Iterable[str] | Literal["all"] = (),
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.units = (units,) if isinstance(units, int) else tuple(units)
        if not self.units or len(self.units) > 4 or any(size < 1 for size in self.units):
            raise ShapeError("a layer needs units", given=units, expected="one to four positive sizes")
        self.axes = {1: "t b u", 2: "t b u x", 3: "t b u y x", 4: "t b u z y x"}[len(self.units)]
        if order not in (1, 2):
            raise UnknownNameError.among("order of MetaNeuron", str(order), ("1", "2"))
        if form not in ("linear", "quadratic"):
            raise UnknownNameError.among("form of MetaNeuron", form, ("linear", "quadratic"))
        if not dt > 0:
            raise RangeError("dt must be positive", given=dt, expected="ms > 0")
        self.order: Literal[1, 2] = order
        self.form: Literal["linear", "quadratic"] = form
        self.stochastic, self.limit, self.dt, self.detach_reset = stochastic, limit, dt, detach_reset
        self.surrogate = Surrogate(surrogate) if isinstance(surrogate, str) else surrogate
        self.generator = generator
        self.numbers = (
            *_FIRST,
            *(("temperature",) if stochastic else ()),
            *(_SECOND if order == 2 else ()),
        )
        self.learn = self.numbers if learn == "all" else tuple(learn)
        for name in self.learn:
            if name not in self.numbers:
                raise UnknownNameError.among("learnable number of this MetaNeuron", name, self.numbers)
        given = {
            "tau_mem": tau_mem,
            "threshold": threshold,
            "gain": gain,
            "temperature": temperature,
            "recovery": recovery,
            "coupling": coupling,
            "jump": jump,
            "reset_value": reset_value,
        }
        for name, value in given.items():  # in an order in which each finds those that bound it
            if name in self.numbers:
                self._start(name, value)
        if form == "quadratic" and not bool((self.threshold < limit).all()):
            raise RangeError("the threshold lies above the bound of the potential", given=threshold, expected=limit)

    def _start(self, name: str, value: float | Tensor) -> None:
        number = number_of(self, value)
        try:
            wide = number.expand(self.units)
        except RuntimeError as error:
            raise ShapeError(
                f"{name} does not fit the units", given=tuple(number.shape), expected=f"one number or {self.units}"
            ) from error
        if name in self.learn:
            self.register_parameter(f"raw_{name}", nn.Parameter(self._raw(name, wide).clone()))
        else:
            self.register_buffer(f"raw_{name}", self._raw(name, number).clone())

    def _raw(self, name: str, value: Tensor) -> Tensor:
        """The unbounded number q behind a value; refuses a value outside its range."""
        if name == "tau_mem":
            _within(name, value, self.dt, torch.inf, "ms")
            return torch.log(value / self.dt - 1)
        if name in ("threshold", "gain", "temperature"):
            _within(name, value, 0.0, torch.inf)
            return value.log()
        if name == "recovery":
            _within(name, value, 0.0, 1.0)
            return torch.logit(value)
        if name == "coupling":
            low = self.decay.detach() - 1
            _within(name, value, low, 1.0)
            return torch.logit((value - low) / (1 - low))
        if name == "reset_value" and name in self.learn:
            _within(name, value, -torch.inf, self.threshold.detach())
            return torch.log(self.threshold.detach() - value)
        if name == "reset_value":
            _within(name, value, -torch.inf, self.threshold.detach())
        return value

    def assign(self, name: str, value: float | Tensor) -> None:
        """Set one of the neuron's numbers, in place and one per unit.

        Raises `RangeError` if the value lies outside the number's range, `UnknownNameError` if there is no such number.

        Examples:
            >>> layer = MetaNeuron(2)
            >>> layer.assign("threshold", torch.tensor([0.5, 2.0]))
            >>> layer.threshold
            tensor([0.5000, 2.0000])
        """
        if name not in self.numbers:
            raise UnknownNameError.among("number of this MetaNeuron", name, self.numbers)
        old: Tensor = getattr(self, f"raw_{name}")
        with torch.no_grad():
            fresh = self._raw(name, torch.as_tensor(value, dtype=old.dtype, device=old.device).expand(self.units))
            if isinstance(old, nn.Parameter) or old.shape == fresh.shape:
                old.copy_(fresh)
            else:
                self.register_buffer(f"raw_{name}", fresh.clone())

    def _of(self, name: str) -> Tensor:
        raw: Tensor = getattr(self, f"raw_{name}")
        return raw

    @property
    def decay(self) -> Tensor:
        """λ, the factor of the potential per step."""
        return torch.sigmoid(self._of("tau_mem"))

    @property
    def tau_mem(self) -> Tensor:
        """Time constant of the membrane, ms."""
        return self.dt * (1 + self._of("tau_mem").exp())

    @property
    def threshold(self) -> Tensor:
        """θ, the potential above which a unit spikes."""
        return self._of("threshold").exp()

    @property
    def gain(self) -> Tensor:
        """R, the factor of the input."""
        return self._of("gain").exp()

    @property
    def temperature(self) -> Tensor:
        """Δ, the width of the band in which chance decides."""
        return self._of("temperature").exp()

    @property
    def recovery(self) -> Tensor:
        """a, the share of its way that the recovery goes per step."""
        return torch.sigmoid(self._of("recovery"))

    @property
    def coupling(self) -> Tensor:
        """b, how much of the potential the recovery follows."""
        low = self.decay - 1
        return low + (1 - low) * torch.sigmoid(self._of("coupling"))

    @property
    def jump(self) -> Tensor:
        """d, what a spike adds to the recovery."""
        return self._of("jump")

    @property
    def reset_value(self) -> Tensor:
        """v_r, the potential after a spike."""
        raw = self._of("reset_value")
        return self.threshold - raw.exp() if "reset_value" in self.learn else raw

    def initial_state(self, batch: int, *, dtype: torch.dtype | None = None) -> MetaState:
        """The state at rest, each tensor `[batch, unit…]`."""
        raw = self._of("threshold")
        zeros = torch.zeros(batch, *self.units, dtype=dtype or raw.dtype, device=raw.device)
        return MetaState(zeros, zeros.clone(), zeros.clone())

    def forward(self, x: Tensor, state: MetaState | None = None) -> tuple[Tensor, MetaState]:
        """Spikes `[time, batch, unit…]` of the current x, and the state after the last step."""
        self._check(x)
        second = {name: getattr(self, name) for name in _SECOND} if self.order == 2 else {}
        return meta(
            x,
            state,
            decay=self.decay,
            threshold=self.threshold,
            gain=self.gain,
            reset_value=self.reset_value,
            temperature=self.temperature if self.stochastic else 1.0,
            noise=logistic_noise(x, self.generator) if self.stochastic else None,
            order=self.order,
            form=self.form,
            limit=self.limit,
            detach_reset=self.detach_reset,
            surrogate=self.surrogate,
            port=self.port,
            **second,
        )

    def _check(self, x: Tensor) -> None:
        expected = f"[time, batch, {', '.join(map(str, self.units))}]"
        if not isinstance(x, Tensor):
            raise DtypeError("the input is not a tensor", given=type(x).__name__, expected=expected)
        if tuple(x.shape[2:]) != self.units or x.shape[1] == 0:
            one = tuple(x.shape[1:]) == self.units
            mend = "for one step of a batch give x.unsqueeze(0), for one sample over time x.unsqueeze(1)"
            raise ShapeError(
                "the input does not fit the layer",
                given=tuple(x.shape),
                expected=expected,
                mend=mend if one else "units come last, time comes first",
            )

    def extra_repr(self) -> str:
        """What `print(layer)` shows."""
        kind = f"order={self.order}, form={self.form!r}" + (", stochastic" if self.stochastic else "")
        learn = f", learn={self.learn}" if self.learn else ""
        return f"{'×'.join(map(str, self.units))}, {kind}{learn}"


def _within(name: str, value: Tensor, low: float | Tensor, high: float | Tensor, unit: str = "") -> None:
    if not bool(((value > low) & (value < high)).all()):
        shown = [f"{e:g}" if isinstance(e, float) else str(e.squeeze().tolist()) for e in (low, high)]
        raise RangeError(
            f"{name} lies outside its range", given=value.tolist(), expected=f"{' < … < '.join(shown)} {unit}".rstrip()
        )
