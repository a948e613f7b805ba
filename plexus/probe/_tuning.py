"""Tuning curves on a ring of stimuli, and how adaptation changes them.

    ρ_i(s) = r_i(s) - min_s r_i(s)                                     response above its baseline
    preferred_i = (P / 2π) arg Σ_s ρ_i(s) exp(2πi s / P)               circular mean with period P
    shift_i = sign(offset_i) (preferred after - preferred before),     positive: away from the adapter (repulsion)
    offset_i = preferred before - adapter                              both wrapped to [-P/2, P/2)

The circular mean resolves shifts far below the spacing of the stimuli; the largest response would hide them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from plexus.errors import RangeError, ShapeError


def preferred_stimulus(responses: Tensor, stimuli: Tensor, *, period: float = math.pi) -> Tensor:
    """Preferred stimulus of each unit, the circular mean of its response above baseline, in [0, period).

    Args:
        responses: `[stimulus, unit]`, at stimuli spread evenly over the whole period.
        stimuli: `[stimulus]`, in the unit of `period`.
        period: length of the ring (π for orientations in radians).

    Returns:
        `[unit]`; NaN for a unit whose response is flat.

    Examples:
        >>> stimuli = torch.arange(180.0)
        >>> curve = torch.exp(torch.cos(2 * torch.pi * (stimuli - 30.25) / 180))
        >>> preferred_stimulus(curve[:, None], stimuli, period=180.0)
        tensor([30.2500])
    """
    _matched(responses, stimuli)
    above = responses - responses.min(0).values
    angle = 2 * math.pi * stimuli.to(responses) / period
    x, y = torch.cos(angle) @ above, torch.sin(angle) @ above
    mean = torch.remainder(torch.atan2(y, x) * period / (2 * math.pi), period)
    return torch.where(above.amax(0) > 0, mean, torch.full_like(mean, math.nan))


def circular_difference(first: Tensor, second: Tensor | float, *, period: float = math.pi) -> Tensor:
    """`first - second` on a ring, in [-period/2, period/2).

    Examples:
        >>> circular_difference(torch.tensor([175.0]), 5.0, period=180.0)
        tensor([-10.])
    """
    return torch.remainder(first - second + period / 2, period) - period / 2


def mean_rates(responses: Tensor, prob: Tensor | None = None) -> Tensor:
    """Time-averaged rate of each unit, `[unit]`, when stimuli come with probabilities `prob` `[stimulus]`."""
    return _shares(responses, prob) @ responses


def rate_spread(responses: Tensor, prob: Tensor | None = None) -> float:
    """Largest over smallest time-averaged rate of the units: 1 is perfect equalisation.

    Examples:
        >>> rate_spread(torch.tensor([[1.0, 2.0], [1.0, 4.0]]))
        3.0
    """
    rates = mean_rates(responses, prob)
    return float(rates.max() / rates.min())


def stimulus_correlation(responses: Tensor, prob: Tensor | None = None) -> Tensor:
    """Correlation of the mean responses of each pair of units over stimuli, `[unit, unit]`; NaN for a constant unit.

    Examples:
        >>> stimulus_correlation(torch.tensor([[0.0, 1.0], [1.0, 0.0]]))
        tensor([[ 1., -1.],
                [-1.,  1.]])
    """
    share = _shares(responses, prob)
    centred = responses - share @ responses
    covariance = centred.T @ (share[:, None] * centred)
    deviation = covariance.diagonal().sqrt()
    return covariance / (deviation[:, None] * deviation)


def mean_correlation(responses: Tensor, prob: Tensor | None = None) -> float:
    """Mean absolute correlation over pairs of different units (pairs with a constant unit left out)."""
    correlation = stimulus_correlation(responses, prob)
    pairs = correlation[~torch.eye(len(correlation), dtype=torch.bool, device=correlation.device)].abs()
    return float(pairs.nanmean())


@dataclass(frozen=True)
class AdaptationReport:
    """What adaptation did to a population; every field by unit, `[unit]`, unless said otherwise."""

    offset: Tensor
    """Preferred stimulus before, relative to the adapter."""
    shift: Tensor
    """Change of the preferred stimulus; positive is away from the adapter."""
    max_ratio: Tensor
    """Largest response, after over before."""
    min_ratio: Tensor
    """Smallest response, after over before."""
    rate_ratio: Tensor
    """Time-averaged rate under `prob`, after over before."""
    spread: tuple[float, float]
    """`rate_spread` before and after."""
    correlation: tuple[Tensor, Tensor]
    """`stimulus_correlation` before and after, `[unit, unit]` each."""

    def repulsion(self, low: float, high: float) -> float:
        """Mean shift of the units whose preference lies between `low` and `high` from the adapter, on either side."""
        near = (self.offset.abs() >= low) & (self.offset.abs() <= high)
        if not bool(near.any()):
            raise RangeError("no unit prefers a stimulus in this range", given=(low, high))
        return float(self.shift[near].mean())

    @property
    def nearest(self) -> int:
        """Index of the unit whose preference is closest to the adapter."""
        return int(self.offset.abs().nan_to_num(nan=torch.inf).argmin())


def adaptation_report(
    before: Tensor,
    after: Tensor,
    stimuli: Tensor,
    adapter: float,
    *,
    prob: Tensor | None = None,
    period: float = math.pi,
) -> AdaptationReport:
    """Compare tuning curves before and after adaptation, both measured with the same probe stimuli.

    Args:
        before, after: responses `[stimulus, unit]` to a common set of probes, spread evenly over the ring.
        stimuli: `[stimulus]`. adapter: the stimulus adapted to. Both, and all shifts, in the unit of `period`.
        prob: probability of each probe in the adapting ensemble, for rates and correlations (None: equal shares).
        period: length of the ring.

    Raises:
        ShapeError: shapes differ. RangeError: NaN in a response, or `prob` is no distribution.

    Examples:
        >>> stimuli = torch.arange(0.0, 180.0, 5.0)
        >>> curves = lambda centre: torch.exp(torch.cos(2 * torch.pi * (stimuli[:, None] - centre) / 180) - 1)
        >>> before, after = curves(torch.tensor([70.0, 110.0])), curves(torch.tensor([67.0, 113.0]))
        >>> report = adaptation_report(before, 0.5 * after, stimuli, 90.0, period=180.0)
        >>> [round(shift, 3) for shift in report.shift.tolist()], round(report.repulsion(10, 30), 3)
        ([3.0, 3.0], 3.0)
    """
    if before.shape != after.shape:
        raise ShapeError("before and after differ", given=(tuple(before.shape), tuple(after.shape)))
    if not bool(torch.isfinite(before).all() and torch.isfinite(after).all()):
        raise RangeError("a response is NaN or infinite")
    preference = preferred_stimulus(before, stimuli, period=period)
    offset = circular_difference(preference, adapter, period=period)
    moved = circular_difference(preferred_stimulus(after, stimuli, period=period), preference, period=period)
    return AdaptationReport(
        offset=offset,
        shift=moved * offset.sign(),
        max_ratio=after.amax(0) / before.amax(0),
        min_ratio=after.amin(0) / before.amin(0),
        rate_ratio=mean_rates(after, prob) / mean_rates(before, prob),
        spread=(rate_spread(before, prob), rate_spread(after, prob)),
        correlation=(stimulus_correlation(before, prob), stimulus_correlation(after, prob)),
    )


def _matched(responses: Tensor, stimuli: Tensor) -> None:
    if responses.dim() != 2 or stimuli.shape != responses.shape[:1] or responses.numel() == 0:
        raise ShapeError(
            "responses and stimuli do not match",
            given=f"responses {tuple(responses.shape)}, stimuli {tuple(stimuli.shape)}",
            expected="[stimulus, unit] and [stimulus]",
        )


def _shares(responses: Tensor, prob: Tensor | None) -> Tensor:
    if responses.dim() != 2 or responses.numel() == 0:
        raise ShapeError("responses are a table", given=tuple(responses.shape), expected="[stimulus, unit]")
    if prob is None:
        return torch.full_like(responses[:, 0], 1 / len(responses))
    if prob.shape != responses.shape[:1]:
        raise ShapeError("one probability per stimulus", given=tuple(prob.shape), expected=f"[{len(responses)}]")
    if bool((prob < 0).any()) or not abs(float(prob.sum()) - 1) < 1e-5:
        raise RangeError("probabilities are non-negative and sum to 1", given=f"a sum of {float(prob.sum()):.6g}")
    return prob.to(responses)
