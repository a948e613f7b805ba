"""Answer as soon as the network is sure: early exit of a classifier that reads out at every step.

    o[t] = Σ_{i<=t} y[i];   stop a sample once confidence(o[t] / α) > θ;   answer argmax o[τ]

One α and one θ for all samples and steps, both chosen on calibration data. Samples that have stopped leave the batch,
so their later steps are not computed.

Source: Li, Jones & Furber, Unleashing the potential of spiking neural networks by dynamic confidence (ICCV 2023).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from plexus.errors import PlexusError, RangeError, ShapeError, UnsupportedError
from plexus.nn import Stateful
from plexus.probe import (
    LatencyCurve,
    accumulate,
    confidence,
    exit_steps,
    fit_confidence_scale,
    latency_accuracy_curve,
    pareto_front,
)
from plexus.probe._latency import Accumulation, Confidence

__all__ = ["EarlyExit", "Exited", "OverLayers", "Stepwise"]


class Exited(NamedTuple):
    """What an early exit answers."""

    logits: Tensor  # accumulated up to the exit        [batch, class]
    steps: Tensor  # that each sample took, from 1       [batch]
    confidence: Tensor  # at the exit                    [batch]


@runtime_checkable
class Stepwise(Protocol):
    """A classifier that goes on step by step: over time, or over its layers.

    The state is a tensor or nested tuples (also NamedTuples) of tensors, None and numbers; each tensor has the batch
    first.
    """

    def start(self, x: Any) -> Any:
        """The state before the first step."""
        ...

    def step(self, state: Any, t: int) -> tuple[Tensor, Any]:
        """The read-out of step t, `[batch, class]`, and the state after it."""
        ...


class _OverTime:
    """A module with state, time first, one step at a time."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def start(self, x: Tensor) -> Any:
        return x.transpose(0, 1), None

    def step(self, state: Any, t: int) -> tuple[Tensor, Any]:
        x, inner = state
        out, inner = self.model(x[:, t].unsqueeze(0), inner)
        return out[0], (x, inner)


class OverLayers:
    """A stack of blocks with a read-out after each: the step is the layer.

    Args:
        embed: the input → what the first block takes, `[batch, …]`.
        blocks: one after the other, `[batch, …]` → `[batch, …]`.
        heads: one read-out for all blocks or one for each, → `[batch, class]`.

    Raises:
        ShapeError: the heads are not one per block.

    Examples:
        >>> blocks = [nn.Sequential(nn.Linear(4, 4), nn.ReLU()) for _ in range(3)]
        >>> stack = OverLayers(nn.Identity(), blocks, nn.Linear(4, 2))
        >>> model = EarlyExit(stack, 3, alpha=1.0, threshold=0.9, accumulate="none")
        >>> model(torch.rand(5, 4)).logits.shape
        torch.Size([5, 2])
    """

    def __init__(
        self,
        embed: Callable[[Any], Tensor],
        blocks: Sequence[Callable[[Tensor], Tensor]],
        heads: Callable[[Tensor], Tensor] | Sequence[Callable[[Tensor], Tensor]],
    ) -> None:
        self.embed, self.blocks = embed, blocks
        self.heads = [heads] * len(blocks) if callable(heads) else list(heads)
        if len(self.heads) != len(blocks):
            raise ShapeError("read-outs do not match the blocks", given=len(self.heads), expected=f"1 or {len(blocks)}")

    def start(self, x: Any) -> Tensor:
        """The embedded input."""
        return self.embed(x)

    def step(self, state: Tensor, t: int) -> tuple[Tensor, Tensor]:
        """Block t and its read-out."""
        state = self.blocks[t](state)
        return self.heads[t](state), state


class EarlyExit:
    """`logits, steps, confidence = EarlyExit(model, t_max).calibrate(x, y)(x_new)`.

    Args:
        model: a module of ours with state (`out, state = model(x, state)`, x `[time, batch, …]`, out `[time, batch,
            class]`), or anything with `start` and `step` (see `Stepwise`, `OverLayers`).
        t_max: the last step at which an answer is given.
        alpha: scale of the accumulated read-out; `calibrate` sets it where it is None.
        threshold: confidence above which a sample stops; `calibrate` sets it.
        accumulate: `"sum"` of the read-outs (confidence then rises with time, also where the answer is wrong),
            `"mean"`, or `"none"` where each read-out stands for itself.
        kind: of confidence: `"softmax"`, `"margin"`, `"entropy"` or `"stability"`.

    Raises:
        UnsupportedError: the model keeps its state to itself, so that samples cannot leave.
        RangeError: t_max or alpha is not positive, or a softmax threshold lies outside (1 / classes, 1).

    Examples:
        >>> from plexus.nn import LIF, Sequential
        >>> net = Sequential(nn.Linear(4, 16), LIF(16), nn.Linear(16, 3))
        >>> x, y = torch.rand(12, 20, 4), torch.randint(0, 3, (20,))
        >>> sooner = EarlyExit(net, t_max=12).calibrate(x, y)
        >>> answer = sooner(x)
        >>> answer.logits.shape, bool((answer.steps <= 12).all())
        (torch.Size([20, 3]), True)
    """

    def __init__(
        self,
        model: nn.Module | Stepwise,
        t_max: int,
        *,
        alpha: float | None = None,
        threshold: float | None = None,
        accumulate: Accumulation = "sum",
        kind: Confidence = "softmax",
    ) -> None:
        if t_max < 1:
            raise RangeError("there must be a step", given=t_max, expected="t_max >= 1")
        if alpha is not None and not alpha > 0:
            raise RangeError("the scale of the read-out must be positive", given=alpha)
        if isinstance(model, Stepwise):
            self.steps: Stepwise = model
        elif isinstance(model, Stateful):
            self.steps = _OverTime(model)
        else:
            raise UnsupportedError(
                f"{type(model).__name__} does not hand its state on, so samples cannot leave it",
                expected="`out, state = model(x, state)` with initial_state(), or an object with start() and step()",
                mend="wrap it in an object with start(x) -> state and step(state, t) -> (logits, state)",
            )
        self.t_max, self.alpha, self.threshold = t_max, alpha, threshold
        self.accumulate: Accumulation = accumulate
        self.kind: Confidence = kind
        self.curve: LatencyCurve | None = None

    @torch.no_grad()
    def trace(self, x: Any) -> Tensor:
        """The read-outs of all steps for all samples, `[time, batch, class]`: for analysis, nothing is skipped."""
        state, outputs = self.steps.start(x), []
        for t in range(self.t_max):
            out, state = self.steps.step(state, t)
            outputs.append(_logits(out))
        return torch.stack(outputs)

    def calibrate(
        self, x: Any, y: Tensor | None = None, *, target: str | float = "no_loss", latency: float | None = None
    ) -> EarlyExit:
        """Choose α (where it is None) and θ on held-out data; returns self.

        α has the smallest negative log-likelihood of the labels over all steps. θ is the point with the fewest steps on
        the Pareto front of mean steps and accuracy that reaches the target.

        Args:
            x: inputs, or an iterable of `(x, y)` batches.
            y: labels `[batch]`.
            target: `"no_loss"`, the accuracy of the last step, or an accuracy in [0, 1].
            latency: the mean number of steps allowed, in place of a target: the most accurate point within it.

        Raises:
            ShapeError: there are no samples. RangeError: no threshold reaches the target.
        """
        batches: Iterable[Any] = x if y is None else [(x, y)]
        outputs, labels = [], []
        for batch, label in batches:
            outputs.append(self.trace(batch))
            labels.append(label)
        if not labels or not sum(map(len, labels)):
            raise ShapeError("there is nothing to calibrate on", expected="at least one (x, y) batch")
        return self.calibrate_on(torch.cat(outputs, 1), torch.cat(labels), target=target, latency=latency)

    def calibrate_on(
        self, outputs: Tensor, y: Tensor, *, target: str | float = "no_loss", latency: float | None = None
    ) -> EarlyExit:
        """`calibrate` from read-outs `[time, batch, class]` that `trace` has given."""
        logits, y = accumulate(outputs[: self.t_max], self.accumulate), y.to(outputs.device)
        if self.alpha is None:
            self.alpha = fit_confidence_scale(logits, y) if self.kind != "stability" else 1.0
        self.curve = latency_accuracy_curve(logits, y, confidence(logits, self.alpha, self.kind))
        front = pareto_front(self.curve.steps, self.curve.accuracy)
        steps, accuracy = self.curve.steps[front], self.curve.accuracy[front]
        if latency is not None:
            fit = (steps <= latency).nonzero().flatten()
            place = int(fit[-1]) if len(fit) else None
        else:
            full = float((logits[-1].argmax(-1) == y).double().mean())
            wanted = full if target == "no_loss" else float(target)
            fit = (accuracy >= wanted - 1e-12).nonzero().flatten()
            place = int(fit[0]) if len(fit) else None
        if place is None:
            raise RangeError(
                "no threshold reaches the target on the calibration data",
                given=f"latency {latency}" if latency is not None else f"target {target}",
                expected=f"accuracy up to {float(accuracy.max()):.3f}, steps from {float(steps.min()):.2f}",
            )
        self.threshold = float(self.curve.threshold[front[place]])
        return self

    def decide(self, outputs: Tensor) -> Exited:
        """What `trace`d read-outs `[time, batch, class]` would have been answered, and when."""
        alpha, threshold = self._ready(outputs.shape[-1])
        logits = accumulate(outputs[: self.t_max], self.accumulate)
        sure = confidence(logits, alpha, self.kind)
        steps = exit_steps(sure, threshold)
        rows = torch.arange(len(steps), device=steps.device)
        return Exited(logits[steps - 1, rows], steps, sure[steps - 1, rows])

    @torch.no_grad()
    def __call__(self, x: Any) -> Exited:
        """Answer each sample as early as its confidence allows; those that have stopped are not computed further."""
        state = self.steps.start(x)
        alive: Tensor | None = None
        total: Tensor | None = None
        history: Tensor | None = None
        for t in range(self.t_max):
            out, state = self.steps.step(state, t)
            out = _logits(out)
            if alive is None:
                alive = torch.arange(len(out), device=out.device)
                answer = torch.empty_like(out)
                sure_at = out.new_empty(len(out))
                steps = torch.empty(len(out), dtype=torch.int64, device=out.device)
            alpha, threshold = self._ready(out.shape[-1])
            total = out if total is None or self.accumulate == "none" else total + out
            logits = total / (t + 1) if self.accumulate == "mean" else total
            if self.kind == "stability":  # needs the answers so far
                history = logits.unsqueeze(0) if history is None else torch.cat([history, logits.unsqueeze(0)])
                sure = confidence(history, alpha, self.kind)[-1]
            else:
                sure = confidence(logits.unsqueeze(0), alpha, self.kind)[0]
            done = (sure > threshold) if t < self.t_max - 1 else torch.ones_like(sure, dtype=torch.bool)
            leaving = alive[done]
            answer[leaving], sure_at[leaving], steps[leaving] = logits[done], sure[done], t + 1
            stay = (~done).nonzero().squeeze(1)
            if not len(stay):
                break
            if len(stay) < len(alive):
                alive, total = alive[stay], total[stay]
                history = None if history is None else history[:, stay]
                state = _select(state, stay)
        return Exited(answer, steps, sure_at)

    def _ready(self, classes: int) -> tuple[float, float]:
        if self.alpha is None or self.threshold is None:
            raise PlexusError(
                "the early exit has no threshold yet", mend="calibrate(x, y), or give alpha and threshold"
            )
        if self.kind == "softmax" and self.curve is None and not 1 / classes < self.threshold < 1:
            raise RangeError(
                "a confidence threshold lies between chance and certainty",
                given=self.threshold,
                expected=f"in ({1 / classes:.3g}, 1)",
            )
        return self.alpha, self.threshold


def _logits(out: Tensor) -> Tensor:
    if not isinstance(out, Tensor) or out.dim() != 2:
        given = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
        raise ShapeError("a step must read out classes", given=given, expected="[batch, class] at every step")
    return out


def _select(state: Any, rows: Tensor) -> Any:
    """The state of some samples only."""
    if isinstance(state, Tensor):
        return state[rows] if state.dim() else state
    if isinstance(state, tuple):
        parts = [_select(part, rows) for part in state]
        return type(state)(*parts) if hasattr(state, "_fields") else tuple(parts)
    if isinstance(state, list):
        return [_select(part, rows) for part in state]
    if isinstance(state, dict):
        return {key: _select(part, rows) for key, part in state.items()}
    return state
