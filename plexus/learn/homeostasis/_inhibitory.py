"""Inhibitory homeostasis: each unit tunes the inhibition that it receives until its mean rate meets a target.

    I_ij ← [ I_ij + η (r_i[t] - ρ_i) r_j[t-1] ]_+        for existing synapses from inhibitory units j, at every step

A rate above the target calls for more inhibition. Excitatory weights, input weights, mask and signs stay as they are.
The run ends when the mean over units of |<r_i> - ρ_i| within a window falls below a tolerance, or after a number of
steps.

In one shot, without iteration: with all rates at their targets, unit i receives E_i·ρ of excitation, and its mean-field
input should be f⁻¹(ρ_i), so its row of I is scaled to  I_i·ρ = max(0, E_i·ρ + b_i + W_in,i·<u> - f⁻¹(ρ_i)).

Targets differ between units where `spread` h > 0: ρ_i = clip(ρ + h U(-1, 1), 0.03, 0.97).

Sources: Vogels et al. 2011 (inhibitory plasticity); Srinivasan, Plenz & Girvan 2025, arXiv 2504.12480 (its use in
reservoirs; the form of the rule is inferred, theirs is not published in the abstract). Rates dimensionless, η per step.
"""

from __future__ import annotations

import warnings
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from plexus.errors import PlexusError, RangeError, ShapeError, UnknownNameError, UnsupportedError
from plexus.kernels._reservoir import homeostatic_steps
from plexus.nn.reservoirs._echo_state import EchoState, dale_signs
from plexus.probe._dynamics import EchoCheck, echo_state
from plexus.units._draws import uniform


class ChaoticReservoirError(PlexusError, RuntimeError):
    """The rates meet their targets but the network no longer forgets its initial state."""


class ChaoticReservoirWarning(UserWarning):
    """The same, as a warning."""


class Adaptation(NamedTuple):
    """What a homeostatic run did."""

    steps: int
    """Steps of plasticity."""
    rate_error: float
    """Mean over units of |mean rate - target| in the last window."""
    converged: bool
    """Whether the error fell below the tolerance."""
    history: Tensor
    """The rate error of each window, `[window]`."""
    echo: EchoCheck | None
    """The echo-state check of the frozen network; None where it was not asked for."""


class InhibitoryHomeostasis:
    """Adapt the inhibition inside a recurrent module to its input, unsupervised.

    Works on `EchoState` (fused) and on any recurrent module, `rates, state = module(u, state)` time-first, whose signed
    recurrent weight is an attribute `[unit (to), unit (from)]`; spiking modules give rates through `smoothing`.

    Args:
        module: the recurrent module.
        target: mean rate wanted of every unit ρ, in (0, 1); or one per unit, `[unit]`.
        spread: h, half the width of the uniform distribution of targets around ρ.
        lr: η, the change per step.
        generator: draws the targets; needed when `spread` > 0.
        synapses: which synapses move: `inhibitory`, or `excitatory` (its opposite, an ablation).
        tolerance: rate error at which to stop.
        window: steps over which rates are averaged.
        max_steps: when to give up.
        smoothing: share of the past in the low-pass filter of the output, in [0, 1); 0 for rates, 0.95 for spikes.
        weight: name of the module's weight.
        unreachable: units that receive no such synapse and cannot adapt: `raise`, or `skip` (they are in `bare`).

    Raises:
        RangeError: targets outside (0, 1), a column of the weight with both signs, or units without a synapse that
            could adapt (they are listed). ShapeError: targets that do not fit the units.

    Examples:
        >>> generator = torch.Generator().manual_seed(0)
        >>> reservoir = EchoState(1, 100, balance=0.3, generator=generator)
        >>> stream = 2 * torch.rand(1500, 1, 1, generator=generator) - 1
        >>> adapted = InhibitoryHomeostasis(reservoir, target=0.5).run(stream)
        >>> adapted.converged, adapted.rate_error < 0.01
        (True, True)
    """

    def __init__(
        self,
        module: nn.Module,
        target: float | Tensor = 0.5,
        *,
        spread: float = 0.0,
        lr: float = 0.02,
        generator: torch.Generator | None = None,
        synapses: Literal["inhibitory", "excitatory"] = "inhibitory",
        tolerance: float = 0.01,
        window: int = 100,
        max_steps: int = 1500,
        smoothing: float = 0.0,
        weight: str = "weight",
        unreachable: Literal["raise", "skip"] = "raise",
    ) -> None:
        if synapses not in ("inhibitory", "excitatory"):
            raise UnknownNameError.among("kind of synapses", synapses, ("inhibitory", "excitatory"))
        if unreachable not in ("raise", "skip"):
            raise UnknownNameError.among("way to meet units without synapses", unreachable, ("raise", "skip"))
        for name, value, good in (
            ("lr", lr, lr > 0),
            ("tolerance", tolerance, tolerance >= 0),
            ("window", window, window >= 1),
            ("max_steps", max_steps, max_steps >= 1),
            ("smoothing", smoothing, 0 <= smoothing < 1),
            ("spread", spread, spread >= 0),
        ):
            if not good:
                raise RangeError(f"{name} lies outside its range", given=value)
        self.module, self.lr, self.tolerance, self.window = module, lr, tolerance, window
        self.max_steps, self.smoothing, self._name = max_steps, smoothing, weight
        w = self._weight()
        self.signs = dale_signs(w)
        if isinstance(module, EchoState) and module.dale:  # a silent column keeps the sign it was made with
            self.signs = torch.where(self.signs == 0, module.signs, self.signs)
        mask = getattr(module, "mask", None)
        existing = mask if isinstance(mask, Tensor) and mask.shape == w.shape else w != 0
        self.plastic = existing.bool() & (self.signs == (-1.0 if synapses == "inhibitory" else 1.0))
        self._kind = synapses
        self.bare = tuple((~self.plastic.any(1)).nonzero().flatten().tolist())
        """Units that receive no plastic synapse."""
        if self.bare and unreachable == "raise":
            raise RangeError(
                f"{len(self.bare)} of {len(w)} units receive no {synapses} synapse and cannot adapt",
                given=f"units {list(self.bare[:20])}{' …' if len(self.bare) > 20 else ''}",
                mend="raise the density or the share of such units, or pass unreachable='skip'",
            )
        self.targets = self._targets(target, spread, generator)
        self.rate_error = float("nan")
        """Rate error of the last window run; NaN before."""

    def _placed(self) -> None:
        """What was made from the weight follows it, where the module was moved since."""
        device = self._weight().device
        self.signs, self.plastic, self.targets = (t.to(device) for t in (self.signs, self.plastic, self.targets))

    def _weight(self) -> Tensor:
        w = getattr(self.module, self._name, None)
        if not isinstance(w, Tensor) or w.dim() != 2 or w.shape[0] != w.shape[1]:
            raise UnsupportedError(
                f"{type(self.module).__name__} has no square recurrent weight {self._name!r}",
                mend="name the attribute that holds it: weight='weight_hh'",
            )
        return w.detach()

    def _targets(self, target: float | Tensor, spread: float, generator: torch.Generator | None) -> Tensor:
        w = self._weight()
        rho = torch.as_tensor(target, dtype=torch.float64, device=w.device)
        if rho.dim() > 1 or (rho.dim() == 1 and len(rho) != len(w)):
            raise ShapeError("targets do not fit the units", given=tuple(rho.shape), expected=f"one, or [{len(w)}]")
        if not bool(((rho > 0) & (rho < 1)).all()):
            raise RangeError("target rates lie in (0, 1)", given=target)
        rho = rho.expand(len(w))
        if spread > 0:
            if generator is None:
                raise RangeError("heterogeneous targets need a generator", mend="pass generator=torch.Generator()")
            noise = uniform((len(w),), dtype=torch.float64, device=w.device, generator=generator)
            rho = (rho + spread * (2 * noise - 1)).clamp(0.03, 0.97)
        return rho.to(w.dtype)

    def run(
        self,
        u: Tensor,
        state: Any = None,
        *,
        on_chaos: Literal["raise", "warn", "allow"] = "raise",
        generator: torch.Generator | None = None,
    ) -> Adaptation:
        """Adapt on a stream, then check and freeze.

        The stream must be of the kind the network will work on: homeostasis balances what it sees. A step's update is
        the mean over the batch. After it, trajectories from random states must meet on the stream's end, since rates on
        target do not mean stability.

        Args:
            u: `[time, batch, feature]`. state: where to start (None: rest).
            on_chaos: a network that fails the check: `raise` (and put the old weights back), `warn`, or `allow`, which
                leaves judging `Adaptation.echo` to the caller. Spiking networks seldom forget spike by spike.
            generator: draws the states of the check (default: seeded with 0).

        Raises:
            ChaoticReservoirError: see `on_chaos`. RangeError: the stream is empty, or holds NaN.
        """
        if on_chaos not in ("raise", "warn", "allow"):
            raise UnknownNameError.among("way to meet chaos", on_chaos, ("raise", "warn", "allow"))
        if u.dim() != 3 or u.shape[0] == 0 or u.shape[1] == 0:
            raise ShapeError(
                "the stream is empty or not time-first", given=tuple(u.shape), expected="[time, batch, feature]"
            )
        if not bool(torch.isfinite(u).all()):
            raise RangeError("the stream holds NaN or infinity")
        self._placed()
        u = u.to(self.targets.device)
        old, before = self._weight().clone(), self.rate_error
        try:
            history, steps = self._adapt(u[: self.max_steps], state)
            generator = torch.Generator().manual_seed(0) if generator is None else generator
            echo = echo_state(self.module, u[-1000:, :1], generator=generator)  # type: ignore[arg-type]
        except BaseException:
            self._store(old)
            self.rate_error = before
            raise
        result = Adaptation(steps, history[-1], history[-1] < self.tolerance, torch.tensor(history), echo)
        if not echo.converged and on_chaos != "allow":
            text = "rates are adapted, but the network does not forget its initial state (no echo-state property)"
            facts = (
                f"distance {float(echo.distance[-1]):.3g} after {len(echo.distance)} steps, exponent {echo.rate:+.3g}"
            )
            if on_chaos == "raise":
                self._store(old)
                self.rate_error = before
                raise ChaoticReservoirError(
                    text,
                    given=facts,
                    mend="lower the gain; the old weights are back. on_chaos='warn' freezes it anyway",
                )
            warnings.warn(f"{text}: {facts}", ChaoticReservoirWarning, stacklevel=2)
        return result

    @torch.no_grad()
    def _adapt(self, u: Tensor, state: Any) -> tuple[list[float], int]:
        history: list[float] = []
        steps = 0
        trace: Tensor | None = None
        for part in u.split(self.window):
            if len(part) < self.window and history:
                break  # a shorter window would be a noisier judge
            if isinstance(self.module, EchoState) and self.smoothing == 0 and self.module.port is None:
                mean, state = self._fused(part, state)
            else:
                mean, state, trace = self._stepwise(part, state, trace)
            if not bool(torch.isfinite(mean).all()):
                raise RangeError(
                    "the state of the module became NaN or infinite while adapting", mend="lower lr or gain"
                )
            steps += len(part)
            self.rate_error = float((mean - self.targets).abs().mean())
            history.append(self.rate_error)
            if self.rate_error < self.tolerance:
                break
        return history, steps

    def _fused(self, u: Tensor, state: Any) -> tuple[Tensor, Any]:
        module = self.module
        assert isinstance(module, EchoState)
        state = module.initial_state(u.shape[1]) if state is None else state
        w, x, mean = homeostatic_steps(
            module.drive(u),
            module.weight,
            self.plastic,
            self.signs,
            state.x,
            self.targets,
            self.lr,
            leak=module.leak,
            activation=module.activation,
        )
        self._store(w)
        return mean, type(state)(x)

    def _stepwise(self, u: Tensor, state: Any, trace: Tensor | None) -> tuple[Tensor, Any, Tensor]:
        total = torch.zeros_like(self.targets)
        for now in u:
            out, state = self.module(now.unsqueeze(0), state)
            rate = out[0].to(self.targets)
            if trace is None:
                trace = torch.zeros_like(rate)  # nothing emitted before the first step
            new = self.smoothing * trace + (1 - self.smoothing) * rate
            moved = self._weight() - self.lr * (new - self.targets).T @ trace / len(new)
            moved = torch.where(moved * self.signs > 0, moved, torch.zeros_like(moved))
            self._store(torch.where(self.plastic, moved, self._weight()))
            total += new.mean(0)
            trace = new
        assert trace is not None
        return total / len(u), state, trace

    def _store(self, w: Tensor) -> None:
        self._weight().copy_(w)

    @torch.no_grad()
    def one_shot(self, mean_input: Tensor | None = None) -> Tensor:
        """Set the inhibition of each unit so that its mean-field rate is its target; nothing is run.

        For an `EchoState` of sigmoid units. Units whose excitation is too weak for their target lose their inhibition.

        Args:
            mean_input: mean of the input, `[feature]` (default zero).

        Returns:
            The factor by which the inhibition of each unit was scaled, `[unit]`; 1 for a unit that receives none.

        Raises:
            UnsupportedError: not an `EchoState` of sigmoid units, or not for its inhibition.
            RangeError: a unit's inhibition is all zero, so that no factor helps.
        """
        module = self.module
        if not isinstance(module, EchoState) or module.activation != "sigmoid" or self._kind != "inhibitory":
            raise UnsupportedError("the one-shot design is for the inhibition of an EchoState of sigmoid units")
        self._placed()
        w = module.weight
        inhibition = -torch.where(self.plastic, w, torch.zeros_like(w))
        excitation = w + inhibition
        received = inhibition @ self.targets
        reached = self.plastic.any(1)
        zero = (reached & (received <= 0)).nonzero().flatten().tolist()
        if zero:
            raise RangeError("the inhibition of some units is zero and cannot be scaled", given=f"units {zero[:20]}")
        outside = module.bias if mean_input is None else module.bias + module.input_weight @ mean_input.to(w)
        wanted = (excitation @ self.targets + outside - torch.logit(self.targets)).clamp(min=0)
        factor = torch.where(reached, wanted / received, torch.ones_like(wanted))
        self._store(excitation - factor.unsqueeze(1) * inhibition)
        return factor
