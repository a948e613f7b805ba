"""When an answer may be given: confidence of logits that accumulate over steps, and what stopping early costs.

    o[t] = Σ_{i<=t} y[i]   (or its mean)                          what has been read out so far
    c[t] = max_j softmax(o[t] / α)_j                              confidence
    τ = min {t : c[t] > θ}, or the last step                      when to stop
    τ* = first t at which argmax o[t] is right, or the last step  what an oracle would do

Source: Li, Jones & Furber, Unleashing the potential of spiking neural networks by dynamic confidence (ICCV 2023); the
expected calibration error of Naeini et al. 2015. A step is whatever the network repeats: time, or a layer.
"""

from __future__ import annotations

import itertools
import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from plexus.errors import RangeError, ShapeError, UnknownNameError

__all__ = [
    "LatencyCurve",
    "accumulate",
    "confidence",
    "exit_steps",
    "expected_calibration_error",
    "fit_confidence_scale",
    "latency_accuracy_curve",
    "oracle_latency",
    "pareto_front",
]

Accumulation = Literal["sum", "mean", "none"]
Confidence = Literal["softmax", "margin", "entropy", "stability"]
KINDS = ("softmax", "margin", "entropy", "stability")


class LatencyCurve(NamedTuple):
    """What each threshold costs and brings, one entry per threshold."""

    threshold: Tensor
    steps: Tensor  # mean number of steps
    accuracy: Tensor  # share of right answers


def accumulate(outputs: Tensor, how: Accumulation = "sum") -> Tensor:
    """What has been read out after each step, `[time, batch, class]`, of the outputs y of each step.

    Args:
        outputs: `[time, batch, class]`.
        how: `"sum"`, `"mean"` of the steps so far, or `"none"` where the outputs have accumulated already.

    Raises:
        ShapeError: the outputs have no time axis, or there are none. UnknownNameError: another `how`.

    Examples:
        >>> accumulate(torch.ones(3, 1, 1)).flatten().tolist()
        [1.0, 2.0, 3.0]
    """
    if outputs.dim() != 3 or 0 in outputs.shape:
        raise ShapeError(
            "outputs of each step are needed",
            given=tuple(outputs.shape),
            expected="[time, batch, class]",
            mend="keep the read-out of every step, not their mean",
        )
    if how not in ("sum", "mean", "none"):
        raise UnknownNameError.among("accumulation", how, ("sum", "mean", "none"))
    if how == "none":
        return outputs
    total = outputs.cumsum(0)
    if how == "mean":
        total = total / torch.arange(1, len(outputs) + 1, dtype=total.dtype, device=total.device).view(-1, 1, 1)
    return total


def confidence(logits: Tensor, alpha: float = 1.0, kind: Confidence = "softmax") -> Tensor:
    """How sure the accumulated logits are, `[time, batch]`, larger is surer.

    Args:
        logits: accumulated, `[time, batch, class]`.
        alpha: scale by which they are divided first.
        kind: `"softmax"`, the largest probability; `"margin"`, by how much it exceeds the second; `"entropy"`, one
            minus the entropy in units of ln(classes); `"stability"`, for how many steps the answer has not changed.

    Raises:
        RangeError: alpha is not positive. UnknownNameError: another kind.

    Examples:
        >>> confidence(torch.tensor([[[0.0, 0.0]], [[0.0, 100.0]]])).flatten().tolist()
        [0.5, 1.0]
    """
    if not alpha > 0:
        raise RangeError("the scale of the logits must be positive", given=alpha)
    if kind not in KINDS:
        raise UnknownNameError.among("confidence", kind, KINDS)
    if kind == "stability":
        answer = logits.argmax(-1)
        run = torch.ones_like(answer[0])
        runs = [run]
        for before, now in itertools.pairwise(answer):
            run = torch.where(now == before, run + 1, torch.ones_like(run))
            runs.append(run)
        return torch.stack(runs).to(logits.dtype)
    p: Tensor = torch.softmax(logits / alpha, -1)
    if kind == "softmax":
        return p.amax(-1)
    if kind == "margin":
        first, second = p.topk(2, dim=-1).values.unbind(-1)
        return first - second
    order: Tensor = torch.special.xlogy(p, p).sum(-1)
    return 1 + order / math.log(p.shape[-1])


def exit_steps(sure: Tensor, threshold: float) -> Tensor:
    """The number of steps after which each sample stops, `[batch]`: the first whose confidence exceeds the threshold.

    Examples:
        >>> exit_steps(torch.tensor([[0.2, 0.9], [0.7, 0.9], [0.7, 0.9]]), 0.6).tolist()
        [2, 1]
    """
    enough = sure > threshold
    enough = torch.cat([enough[:-1], torch.ones_like(enough[-1:])])
    return enough.to(torch.int8).argmax(0) + 1


def latency_accuracy_curve(logits: Tensor, y: Tensor, sure: Tensor, thresholds: Tensor | None = None) -> LatencyCurve:
    """Mean steps and accuracy for each threshold on the confidence.

    Args:
        logits: accumulated, `[time, batch, class]`.
        y: labels `[batch]`.
        sure: confidence `[time, batch]`.
        thresholds: to try; by default up to 256 of the values that the confidence takes.

    Raises:
        ShapeError: labels or confidence do not match the logits.

    Examples:
        >>> logits = torch.tensor([[[1.0, 0.0]], [[0.0, 9.0]]])
        >>> curve = latency_accuracy_curve(logits, torch.tensor([1]), confidence(logits), torch.tensor([0.5, 0.8]))
        >>> curve.steps.tolist()
        [1.0, 2.0]
    """
    y = _matched(logits, y)
    if sure.shape != logits.shape[:2]:
        raise ShapeError("the confidence does not fit", given=tuple(sure.shape), expected=tuple(logits.shape[:2]))
    if thresholds is None:
        values = sure.flatten().unique()
        if len(values) > 256:
            values = values[torch.linspace(0, len(values) - 1, 256).long()]
        thresholds = torch.cat([values[:1] - 1, values])
    sure, thresholds = sure.to(logits.device), thresholds.to(logits.device)
    right = (logits.argmax(-1) == y).double()
    steps = torch.stack([exit_steps(sure, threshold) for threshold in thresholds.tolist()])
    accuracy = torch.stack([right.gather(0, row.unsqueeze(0) - 1).mean() for row in steps])
    return LatencyCurve(thresholds, steps.double().mean(1), accuracy)


def pareto_front(cost: Tensor, value: Tensor) -> Tensor:
    """Places of the points that no other point beats (lower cost and at least the value), by rising cost.

    Examples:
        >>> pareto_front(torch.tensor([1.0, 2.0, 3.0, 3.0]), torch.tensor([0.5, 0.4, 0.9, 0.8])).tolist()
        [0, 2]
    """
    if cost.shape != value.shape or cost.dim() != 1:
        raise ShapeError("points need one cost and one value each", given=(tuple(cost.shape), tuple(value.shape)))
    cost, value = cost.cpu(), value.cpu()
    order = sorted(range(len(cost)), key=lambda k: (float(cost[k]), -float(value[k])))
    front: list[int] = []
    for place in order:
        if not front or value[place] > value[front[-1]]:
            front.append(place)
    return torch.tensor(front, dtype=torch.int64)


def oracle_latency(logits: Tensor, y: Tensor) -> tuple[float, Tensor]:
    """The share of samples whose answer is right at some step, and the steps of an oracle that stops at the first.

    Args:
        logits: accumulated, `[time, batch, class]`.
        y: labels `[batch]`.

    Returns:
        Accuracy, and steps `[batch]` (all of them where the answer never is right).

    Examples:
        >>> logits = torch.tensor([[[1.0, 0.0]], [[0.0, 9.0]], [[9.0, 0.0]]])
        >>> accuracy, steps = oracle_latency(logits, torch.tensor([1]))
        >>> accuracy, steps.tolist()
        (1.0, [2])
    """
    right = logits.argmax(-1) == _matched(logits, y)
    return float(right.any(0).double().mean()), exit_steps(right.to(logits.dtype), 0.5)


def expected_calibration_error(sure: Tensor, correct: Tensor, bins: int = 15) -> float:
    """Mean distance between confidence and accuracy over bins of equal width, weighted by their number of answers.

    Args:
        sure: confidences in [0, 1], any shape.
        correct: whether each answer was right, of the same shape.
        bins: number of bins.

    Raises:
        ShapeError: the shapes differ or there are no answers. RangeError: a confidence outside [0, 1], no bin.

    Examples:
        >>> expected_calibration_error(torch.tensor([0.75, 0.75, 0.75, 0.75]), torch.tensor([1, 1, 1, 0]))
        0.0
    """
    if sure.shape != correct.shape or not sure.numel():
        raise ShapeError("one answer per confidence is needed", given=(tuple(sure.shape), tuple(correct.shape)))
    if bins < 1 or not bool(((sure >= 0) & (sure <= 1)).all()):
        raise RangeError("confidences lie in [0, 1] and bins are at least one", given=(float(sure.max()), bins))
    c, right = sure.flatten().double(), correct.to(sure.device).flatten().double()
    place = (c * bins).long().clamp(max=bins - 1)
    gap = c.new_zeros(bins).index_add_(0, place, c - right)
    return float(gap.abs().sum() / len(c))


def fit_confidence_scale(logits: Tensor, y: Tensor) -> float:
    """The α whose softmax(o / α) has the smallest negative log-likelihood of the labels, all steps pooled.

    Args:
        logits: accumulated, `[time, batch, class]`.
        y: labels `[batch]`.

    Examples:
        >>> logits = 50 * torch.nn.functional.one_hot(torch.tensor([0, 1, 1, 0]), 2).float().unsqueeze(0)
        >>> fit_confidence_scale(logits, torch.tensor([0, 1, 1, 1])) > 30         # three of four are right
        True
    """
    from scipy.optimize import minimize_scalar

    o, labels = logits.double(), _matched(logits, y).expand(logits.shape[:2]).flatten()
    size = float(o.std().clamp(min=1e-12))

    def loss(log_alpha: float) -> float:
        return float(torch.nn.functional.cross_entropy((o / math.exp(log_alpha)).flatten(0, 1), labels))

    best = minimize_scalar(loss, bounds=(math.log(size) - 7, math.log(size) + 7), method="bounded")
    return math.exp(best.x)


def _matched(logits: Tensor, y: Tensor) -> Tensor:
    """The labels, where the logits lie."""
    if logits.dim() != 3 or y.shape != logits.shape[1:2]:
        raise ShapeError(
            "labels do not match the outputs",
            given=f"outputs {tuple(logits.shape)}, labels {tuple(y.shape)}",
            expected="[time, batch, class] and [batch]",
        )
    return y.to(logits.device)
