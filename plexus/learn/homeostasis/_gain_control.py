"""Adaptation of neurons to the statistics of their input by one gain each, with every synapse frozen.

    C = Σ_s p(s) f(s) f(s)ᵀ,    A = (I - W)⁻¹,    r = A (g∘f)                drive, network, response
    L_p(g) = E‖f - D r‖² + α E‖r‖² + γ ‖g - 1‖²,    D = I - W                fidelity, activity, homeostasis
           = Σ_i (1 - g_i)² C_ii + α gᵀ[(AᵀA)∘C] g + γ ‖g - 1‖²
    g*(p) = [diag(C) + α (AᵀA)∘C + γ I]⁻¹ (diag(C) + γ 1) = H⁻¹ b            its unique minimum
    online: C ← (1 - w) C + w E_batch[f fᵀ];   g ← [g - η (H g - b)]₊,  η = 1/‖H‖_∞,  or a conjugate-gradient step

∘ is the elementwise product; H is positive definite by the Schur product theorem. The reader D is fixed and never
adapts. W = 0 decouples the units: g_i = (C_ii + γ) / ((1 + α) C_ii + γ).

Source: Duong, Bredenberg, Heeger & Simoncelli 2023 (arXiv 2305.19869) for the three terms and the fixed reader. Where
the gain acts (on the input), the form of the reader and hence the closed form are a reconstruction.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from plexus.errors import DtypeError, RangeError, ShapeError, UnknownNameError, UnsupportedError
from plexus.nn._recurrent_rate import RecurrentRate, spectral_abscissa

StepMethod = Literal["gradient", "conjugate"]


class GainControl(nn.Module):
    """One gain per unit: `GainControl(n)(x)` is `gain * x`; `solve`, `step`, `fit` and `reset` change the gains.

    Args:
        units: number of units.
        alpha: price of activity, ≥ 0.
        gamma: pull of each gain towards 1, ≥ 0; in units of the drive's second moment.
        positive: keep gains at or above zero, and refuse negative drive (unless `recurrent` is False, where the optimum
            is positive for any drive).
        memory: time constant of the running second moment, in stimuli; `math.inf` averages over all of them.
        recurrent: keep the full second moment, `[unit, unit]`, which recurrent weights need; False keeps the diagonal.
        learn: make `gain` an `nn.Parameter` for gradient training (default: a buffer).

    Attributes:
        gain: `[unit]`. moment: running second moment. seen: number of stimuli in it.

    Raises:
        RangeError: alpha or gamma negative, memory below 1, zero units.

    Examples:
        >>> control = GainControl(2, alpha=1.0, gamma=1.0)
        >>> control.solve(torch.tensor([[2.0, 0.0], [2.0, 0.0]]))    # unit 0 is driven: (4 + 1) / (2·4 + 1)
        tensor([0.5556, 1.0000])
        >>> control(torch.ones(2))
        tensor([0.5556, 1.0000])
    """

    gain: Tensor
    moment: Tensor
    seen: Tensor
    direction: Tensor
    gradient: Tensor

    def __init__(
        self,
        units: int,
        *,
        alpha: float = 1.0,
        gamma: float = 1.9,
        positive: bool = True,
        memory: float = 100.0,
        recurrent: bool = True,
        learn: bool = False,
    ) -> None:
        super().__init__()
        if units < 1:
            raise RangeError("gain control needs units", given=units, expected="at least 1")
        if not (alpha >= 0 and gamma >= 0):
            raise RangeError("alpha and gamma must not be negative", given=(alpha, gamma))
        if not memory >= 1:
            raise RangeError("memory is a number of stimuli", given=memory, expected="at least 1")
        self.units, self.alpha, self.gamma = units, alpha, gamma
        self.positive, self.memory, self.recurrent = positive, memory, recurrent
        if learn:
            self.gain = nn.Parameter(torch.ones(units))
        else:
            self.register_buffer("gain", torch.ones(units))
        self.register_buffer("moment", torch.zeros((units, units) if recurrent else (units,)))
        self.register_buffer("seen", torch.zeros((), dtype=torch.float64))
        self.register_buffer("direction", torch.zeros(units))
        self.register_buffer("gradient", torch.zeros(units))
        self._kept: tuple[Tensor, tuple[int, torch.dtype, torch.device], Tensor] | None = None

    def extra_repr(self) -> str:
        return f"{self.units}, alpha={self.alpha}, gamma={self.gamma}, positive={self.positive}, memory={self.memory}"

    def forward(self, x: Tensor) -> Tensor:
        """`gain * x`, `[…, unit]`."""
        if x.dim() < 1 or x.shape[-1] != self.units:
            raise ShapeError("the input does not fit the gains", given=tuple(x.shape), expected=f"[…, {self.units}]")
        return self.gain * x

    def loss(
        self, drive: Tensor, *, gain: Tensor | None = None, weight: Tensor | None = None, prob: Tensor | None = None
    ) -> Tensor:
        """L_p(g) of the closed form, a differentiable scalar.

        Args:
            drive: `[…, unit]`, one row per stimulus. gain: `[unit]` (default: the current ones).
            weight: recurrent weights `[unit, unit]`, None for none. prob: `[stimulus]`, None for equal shares.
        """
        moment = self._moment(drive, prob, weight is not None)
        gain = self.gain if gain is None else gain
        matrix, vector = self._normal(moment, weight, gain.dtype)
        diagonal = (moment if moment.dim() == 1 else moment.diagonal()).to(gain.dtype)
        return gain @ _times(matrix, gain) - 2 * (vector @ gain) + diagonal.sum() + self.gamma * self.units

    @torch.no_grad()
    def solve(self, drive: Tensor, weight: Tensor | None = None, prob: Tensor | None = None) -> Tensor:
        """Set the gains to the optimum for a context, in closed form, and return them, `[unit]`.

        With `positive`, where the free optimum has a negative gain, the optimum among non-negative gains is found
        (non-negative least squares). Computed in float64.

        Args:
            drive: the feed-forward drive of each stimulus, `[…, unit]`.
            weight: recurrent weights `[unit, unit]`; None is W = 0.
            prob: probability of each stimulus, `[stimulus]`; None is equal shares.

        Raises:
            ShapeError: shapes do not match. RangeError: probabilities are negative or do not sum to 1, a drive is
            negative or not finite, the weights are unstable, or the optimum is not unique (gamma 0, silent units).
        """
        return self.solve_moment(self._moment(drive, prob, weight is not None), weight)

    @torch.no_grad()
    def solve_moment(self, moment: Tensor | None = None, weight: Tensor | None = None) -> Tensor:
        """Like `solve`, from a second moment `[unit, unit]` or its diagonal `[unit]` (default: the running one)."""
        moment = self.moment if moment is None else moment
        matrix, vector = self._normal(moment, weight, torch.float64)
        self.gain.copy_(self._minimum(matrix, vector))
        return self.gain.detach().clone()

    @torch.no_grad()
    def step(
        self,
        drive: Tensor,
        weight: Tensor | None = None,
        prob: Tensor | None = None,
        *,
        method: StepMethod = "gradient",
        rate: float | None = None,
    ) -> Tensor:
        """Take in a batch of stimuli and move the gains one step towards the optimum for what was seen.

        Args:
            drive: `[…, unit]`. weight: recurrent weights. prob: shares within the batch.
            method: `gradient`, or `conjugate`: an exact line search along conjugate directions.
            rate: step size of `gradient` (default: one over the row-sum norm of the curvature, which never diverges).

        Returns:
            The new gains, `[unit]`.
        """
        if method not in ("gradient", "conjugate"):
            raise UnknownNameError.among("kind of step", method, ("gradient", "conjugate"))
        self.observe(drive, prob)
        matrix, vector = self._normal(self.moment, weight, torch.float64)
        gain = self.gain.double()
        gradient = _times(matrix, gain) - vector
        if method == "gradient":
            largest = matrix.max() if matrix.dim() == 1 else matrix.abs().sum(1).max()
            gain = gain - (1 / float(largest) if rate is None else rate) * gradient
            self._restart()
        else:
            past, direction = self.gradient.double(), self.direction.double()
            size = float(past @ past)
            # Polak–Ribière, restarted when it stops helping: the curvature moves with the running moment.
            beta = max(0.0, float(gradient @ (gradient - past)) / size) if size > 0 else 0.0
            direction = beta * direction - gradient
            if float(direction @ gradient) > 0:
                direction = -gradient
            curvature = float(direction @ _times(matrix, direction))
            if curvature > 0:
                gain = gain - float(direction @ gradient) / curvature * direction
            self.direction.copy_(direction)
            self.gradient.copy_(gradient)
        if self.positive and bool((gain < 0).any()):
            gain = gain.clamp_min(0)
            self._restart()
        self.gain.copy_(gain)
        return self.gain.detach().clone()

    @torch.no_grad()
    def observe(self, drive: Tensor, prob: Tensor | None = None, *, memory: float | None = None) -> None:
        """Take a batch `[…, unit]` into the running second moment without moving the gains.

        The average starts as a plain mean and forgets with time constant `memory` (default: the module's own) once
        that many stimuli were seen.
        """
        moment = self._moment(drive, prob, self.recurrent)
        number = drive.numel() // self.units
        forget = 1 - (1 - 1 / (self.memory if memory is None else memory)) ** number
        share = max(forget, number / (float(self.seen) + number))
        self.moment.lerp_(moment.to(self.moment), share)
        self.seen += number

    @torch.no_grad()
    def reset(self) -> None:
        """Back to gains of 1 and no memory of past input."""
        self.gain.fill_(1.0)
        self.moment.zero_()
        self.seen.zero_()
        self._restart()

    def fit(
        self,
        network: RecurrentRate,
        drive: Tensor,
        prob: Tensor | None = None,
        *,
        reader: Tensor | None = None,
        target: Tensor | None = None,
        max_steps: int = 500,
        tol: float = 1e-10,
        state_tol: float | None = None,
    ) -> Tensor:
        """Minimise the same loss for any `RecurrentRate`, also with an activation, through its steady state.

        Gradients come from the implicit function theorem, the minimiser is L-BFGS with bounds. Where a closed form
        exists (input gain, no activation) it gives the same gains.

        Args:
            network: gives the responses; its weights stay as they are.
            drive: `[stimulus, unit]`. prob: `[stimulus]`.
            reader: fixed linear reader `[output, unit]`, target ≈ rates @ readerᵀ (default: `network.reader()`). Fit
                it once (`linear_reader`), and pass the same one in every context.
            target: what the reader should give, `[stimulus, output]` (default: the drive).
            max_steps: most iterations. tol: accepted relative change of the loss. state_tol: that of the steady state.

        Raises:
            RangeError: the minimiser stopped without converging, besides what `solve` raises.
        """
        from scipy.optimize import minimize

        share = self._prob(prob, drive)
        self._values(drive)
        reader = network.reader() if reader is None else reader.detach()
        share, target = share.to(drive.dtype), drive if target is None else target
        if reader.shape != (target.shape[-1], self.units) or target.shape[:-1] != drive.shape[:-1]:
            raise ShapeError(
                "reader and target do not match",
                given=f"reader {tuple(reader.shape)}, target {tuple(target.shape)}",
                expected=f"[output, {self.units}] and [stimulus, output]",
            )

        def loss_of(gain: Tensor) -> Tensor:
            rates = network.steady_state(drive, gain=gain, tol=state_tol)
            error = (target - rates @ reader.T).square().sum(-1)
            return share @ (error + self.alpha * rates.square().sum(-1)) + self.gamma * (gain - 1).square().sum()

        def evaluate(flat: np.ndarray[Any, Any]) -> tuple[float, np.ndarray[Any, Any]]:
            with torch.enable_grad():
                gain = torch.tensor(flat, dtype=drive.dtype, device=drive.device).requires_grad_()
                value = loss_of(gain)
                (slope,) = torch.autograd.grad(value, gain)
            return value.item(), slope.double().cpu().numpy()

        bounds = [(0.0 if self.positive else None, None)] * self.units
        start = self.gain.detach().double().cpu().numpy()
        settings = {"maxiter": max_steps, "ftol": tol, "gtol": 1e-9, "maxfun": 4 * max_steps}
        found = minimize(evaluate, start, jac=True, method="L-BFGS-B", bounds=bounds, options=settings)
        if not found.success and found.status == 1:
            raise RangeError("the gains did not converge", given=found.message, mend="allow more max_steps")
        with torch.no_grad():
            self.gain.copy_(torch.from_numpy(found.x))
        return self.gain.detach().clone()

    def _restart(self) -> None:
        self.direction.zero_()
        self.gradient.zero_()

    def _values(self, drive: Tensor) -> None:
        if drive.dim() < 1 or drive.shape[-1] != self.units:
            raise ShapeError(
                "the drive does not fit the gains", given=tuple(drive.shape), expected=f"[…, {self.units}]"
            )
        if not drive.is_floating_point():
            raise DtypeError("the drive must be floating point", given=drive.dtype)
        if drive.numel() == 0:
            raise ShapeError("the drive holds no stimulus", given=tuple(drive.shape))
        if not bool(torch.isfinite(drive).all()):
            raise RangeError("the drive holds NaN or infinity")
        if self.positive and self.recurrent and bool((drive < 0).any()):
            raise RangeError(
                "the drive is negative",
                given=f"a smallest value of {float(drive.min()):.3g}",
                mend="pass firing rates, or GainControl(..., positive=False) for signed signals",
            )

    def _prob(self, prob: Tensor | None, drive: Tensor) -> Tensor:
        stimuli = drive.numel() // self.units
        if prob is None:
            return torch.full((stimuli,), 1 / stimuli, dtype=torch.float64, device=drive.device)
        if prob.numel() != stimuli:
            raise ShapeError("one probability per stimulus", given=tuple(prob.shape), expected=f"[{stimuli}]")
        prob = prob.flatten().to(device=drive.device, dtype=torch.float64)
        if bool((prob < 0).any()) or not abs(float(prob.sum()) - 1) < 1e-5:
            raise RangeError("probabilities are non-negative and sum to 1", given=f"a sum of {float(prob.sum()):.6g}")
        return prob

    def _moment(self, drive: Tensor, prob: Tensor | None, full: bool) -> Tensor:
        """Σ_s p(s) f fᵀ in float64: `[unit, unit]`, or its diagonal `[unit]`."""
        self._values(drive)
        rows = drive.detach().reshape(-1, self.units).double()
        share = self._prob(prob, drive)
        return rows.T @ (share[:, None] * rows) if full else share @ rows.square()

    def _normal(self, moment: Tensor, weight: Tensor | None, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """H and b of the closed form; H is `[unit, unit]`, or its diagonal `[unit]` without recurrent weights."""
        moment = moment.to(dtype)
        diagonal = moment if moment.dim() == 1 else moment.diagonal()
        if diagonal.shape != (self.units,):
            raise ShapeError("the second moment does not fit the gains", given=tuple(moment.shape))
        vector = diagonal + self.gamma
        if weight is None:
            return (1 + self.alpha) * diagonal + self.gamma, vector
        if moment.dim() == 1:
            raise UnsupportedError(
                "recurrent weights need the full second moment", mend="build GainControl(..., recurrent=True)"
            )
        if weight.shape != (self.units, self.units):
            raise ShapeError("the weights do not fit", given=tuple(weight.shape), expected=(self.units, self.units))
        return torch.diag(diagonal + self.gamma) + self.alpha * self._spread(weight, moment) * moment, vector

    def _spread(self, weight: Tensor, like: Tensor) -> Tensor:
        """AᵀA, how the activity of one unit spreads; kept while the weights stay the same."""
        key = weight._version, like.dtype, like.device
        if self._kept is None or self._kept[0] is not weight or self._kept[1] != key:
            abscissa = spectral_abscissa(weight)
            if not abscissa < 1:
                raise RangeError(
                    "the recurrent weights are unstable", given=abscissa, expected="a spectral abscissa below 1"
                )
            eye = torch.eye(self.units, dtype=like.dtype, device=like.device)
            response = torch.linalg.inv(eye - weight.detach().to(like))
            self._kept = weight, key, response.T @ response
        return self._kept[2]

    def _minimum(self, matrix: Tensor, vector: Tensor) -> Tensor:
        if matrix.dim() == 1:
            if not bool((matrix > 0).all()):
                raise _not_unique()
            return vector / matrix
        factor, info = torch.linalg.cholesky_ex(matrix)
        if int(info) != 0:
            raise _not_unique()
        gain = torch.cholesky_solve(vector[:, None], factor).squeeze(1)
        if self.positive and bool((gain < 0).any()):
            from scipy.optimize import nnls

            right = torch.linalg.solve_triangular(factor, vector[:, None], upper=False).squeeze(1)
            best, _ = nnls(factor.T.cpu().numpy(), right.cpu().numpy())
            gain = torch.from_numpy(best).to(matrix)
        return gain


def _times(matrix: Tensor, vector: Tensor) -> Tensor:
    return matrix * vector if matrix.dim() == 1 else matrix @ vector


def _not_unique() -> RangeError:
    return RangeError(
        "the optimal gains are not unique: some unit is never driven and gamma is 0", mend="use gamma > 0"
    )


def linear_reader(responses: Tensor, drive: Tensor, prob: Tensor | None = None) -> Tensor:
    """The least-squares reader `[unit, unit]` with drive ≈ responses @ readerᵀ, for networks without `I - W`.

    Fit it in the control context at a gain of 1 and leave it as it is: a reader that follows the gains would undo
    what is to be measured.

    Args:
        responses, drive: `[stimulus, unit]`. prob: share of each stimulus, None for equal shares.

    Examples:
        >>> drive = torch.eye(3, dtype=torch.float64)
        >>> linear_reader(2 * drive, drive).diagonal()
        tensor([0.5000, 0.5000, 0.5000], dtype=torch.float64)
    """
    if responses.shape != drive.shape or responses.dim() != 2:
        raise ShapeError("responses and drive do not match", given=(tuple(responses.shape), tuple(drive.shape)))
    root = torch.ones_like(drive[:, :1]) if prob is None else prob.to(drive).sqrt()[:, None]
    # the pseudo-inverse gives the shortest reader where units are silent and many fit
    reader: Tensor = torch.linalg.pinv(root * responses.detach()) @ (root * drive.detach())
    return reader.T
