"""What a recurrent network does with its input: memory, echo-state property, local stability, use of its range.

    memory capacity   MC = Σ_k (r²_k - r²_shuffled),  r_k: correlation, on unseen steps, of u[t-k] with its read-out
    echo states       trajectories from different states under one input meet:  max_ij ‖x_i[t] - x_j[t]‖ → 0
    Jacobian radius   spectral radius of dx[t]/dx[t-1] along a trajectory
    neuronal entropy  mean over units of the entropy of the histogram of the unit's rate over time, in bits

Sources: Jaeger 2001 (memory capacity, echo states). The correlation of unrelated series of T steps has an expected
square of about 1/T; over many delays this adds up, so the share that shuffled targets reach is subtracted.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from plexus.errors import RangeError, ShapeError
from plexus.probe._ridge import check_penalties, held_out_errors, ridge_factors
from plexus.units._draws import random_order


class Recurrent(Protocol):
    """A module with state: `out, state = module(u, state)`, time-first, its state a tuple of tensors, batch first."""

    def __call__(self, u: Tensor, state: Any = None) -> tuple[Tensor, Any]: ...
    def initial_state(self, batch: int = 1) -> Any: ...


class MemoryCapacity(NamedTuple):
    """Linear memory of white noise."""

    total: float
    """Sum over delays of the squared correlations, less the shuffled baseline."""
    per_delay: Tensor
    """The same for each delay 1 … K, `[delay]`."""
    baseline: float
    """Squared correlation that shuffled targets reach, mean over delays."""


def memory_capacity(
    states: Tensor,
    u: Tensor,
    delays: int = 60,
    *,
    generator: torch.Generator,
    washout: int = 200,
    train: float = 0.6,
    lambdas: Sequence[float] = (1e-9, 1e-8, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3),
    shuffles: int = 20,
) -> MemoryCapacity:
    """How many past values of a white input a linear read-out recovers.

    Args:
        states: `[time, unit]`, driven by `u`.
        u: the input, white noise, `[time]`.
        delays: the longest delay K.
        generator: draws the shuffles.
        washout: first steps left out; at least `delays`.
        train: share of the rest that is fitted (its last fifth chooses λ, for each delay); the remainder is measured.
        lambdas: ridge penalties to choose from.
        shuffles: random orders of the targets for the baseline.

    Raises:
        ShapeError: states and input differ in length. RangeError: too few steps, or values that are not finite.

    Examples:
        >>> u = torch.rand(1000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        >>> line = torch.stack([u.roll(k) for k in range(5)], 1)  # holds delays 0 to 4
        >>> round(memory_capacity(line, u, 20, generator=torch.Generator().manual_seed(1)).total, 1)
        4.0
    """
    if states.dim() != 2 or u.shape != states.shape[:1]:
        raise ShapeError(
            "memory needs one sequence", given=(tuple(states.shape), tuple(u.shape)), expected="[time, unit] and [time]"
        )
    if delays < 1 or washout < delays or not 0 < train < 1:
        raise RangeError("memory needs 1 ≤ delays ≤ washout and a share to train on", given=(delays, washout, train))
    x, noise = states.detach().cpu().double().numpy(), u.detach().cpu().double().numpy()
    _finite(x, "states")
    first, last = washout, len(x)
    split = first + int(train * (last - first))
    inner = first + int(0.8 * (split - first))
    if inner - first < 10 or last - split < 10:
        raise RangeError("too few steps to measure memory", given=len(x), mend="give some thousands")
    y = np.stack([np.roll(noise, k) for k in range(1, delays + 1)], 1)
    path = check_penalties(lambdas)
    factors = ridge_factors(x[first:inner], y[first:inner], smallest=path[0])
    best = path[held_out_errors(factors, path, x[inner:split], y[inner:split]).argmin(0)]
    weights, intercept = ridge_factors(x[first:split], y[first:split], smallest=path[0]).coefficients(best)
    predicted, wanted = x[split:] @ weights + intercept, y[split:]
    squared = _correlation(predicted, wanted) ** 2
    chance = np.zeros_like(squared)
    for _ in range(shuffles):
        order = random_order(len(wanted), generator).numpy()
        chance += _correlation(predicted, wanted[order]) ** 2 / shuffles
    baseline = float(chance.mean())
    per_delay = torch.from_numpy(squared - baseline)
    return MemoryCapacity(float(per_delay.sum()), per_delay, baseline)


def neuronal_entropy(states: Tensor, *, bins: int = 20, low: float = 0.0, high: float = 1.0) -> float:
    """Mean over units of the entropy in bits of the histogram of each unit's rate over time (and batch).

    Args:
        states: `[time, …, unit]`.
        bins: of the histogram on `[low, high]`; what lies outside counts in the outermost bins.

    Examples:
        >>> neuronal_entropy(torch.tensor([[0.1], [0.9], [0.1], [0.9]]), bins=2)
        1.0
    """
    if bins < 1 or not low < high:
        raise RangeError("a histogram needs bins and a range", given=(bins, low, high))
    x = states.detach().cpu().double().flatten(0, -2)
    if x.numel() == 0:
        raise ShapeError("no states", given=tuple(states.shape))
    _finite(x.numpy(), "states")
    index = ((x - low) / (high - low) * bins).long().clamp(0, bins - 1)
    counts = torch.zeros(bins, x.shape[1], dtype=torch.float64)
    counts.scatter_add_(0, index, torch.ones_like(x))
    share = counts / len(x)
    return float(-torch.special.xlogy(share, share).sum(0).mean() / np.log(2)) + 0.0


class EchoCheck(NamedTuple):
    """Whether a network forgets where it started."""

    converged: bool
    """All trajectories met: their largest distance at the end is below the tolerance."""
    distance: Tensor
    """Largest root-mean-square distance of two trajectories after each step, `[time]`."""
    rate: float
    """Change of the logarithm of the distance per step, a finite-time Lyapunov exponent; -inf if they met at once."""


def echo_state(
    module: Recurrent,
    u: Tensor,
    *,
    generator: torch.Generator,
    starts: int = 3,
    low: float = 0.0,
    high: float = 1.0,
    tolerance: float = 1e-3,
) -> EchoCheck:
    """Run one input from several random states and see whether the trajectories meet.

    Args:
        module: a recurrent module of ours, its state a tuple of tensors `[batch, …]`.
        u: one input sequence, `[time, 1, feature]`; long enough for a slow network to forget.
        generator: draws the states. starts: how many. low, high: range they are drawn from, uniformly.
        tolerance: root-mean-square distance at the end that counts as met.

    Examples:
        >>> from plexus.nn.reservoirs import EchoState
        >>> generator = torch.Generator().manual_seed(0)
        >>> tame = EchoState(1, 50, gain=0.5, generator=generator)
        >>> echo_state(tame, torch.rand(200, 1, 1), generator=generator).converged
        True
    """
    if u.dim() != 3 or u.shape[1] != 1 or len(u) < 2:
        raise ShapeError(
            "the echo-state check takes one sequence", given=tuple(u.shape), expected="[time ≥ 2, 1, feature]"
        )
    if starts < 2:
        raise RangeError("the echo-state check needs at least two starts", given=starts)
    rest = module.initial_state(starts)

    def draw(like: Tensor) -> Tensor:
        noise = torch.rand(like.shape, generator=generator, dtype=torch.float64, device=generator.device).to(like)
        return low + (high - low) * noise if like.is_floating_point() else like

    state = (
        type(rest)(*(draw(part) for part in rest)) if hasattr(rest, "_fields") else tuple(draw(part) for part in rest)
    )
    with torch.no_grad():
        out, _ = module(u.expand(-1, starts, -1).contiguous(), state)
    _finite(out.double().cpu().numpy(), "states")
    gaps = [(out[:, i] - out[:, j]).double().square().mean(-1).sqrt() for i in range(starts) for j in range(i)]
    distance = torch.stack(gaps).amax(0)
    return EchoCheck(bool(distance[-1] < tolerance), distance, _slope(distance, 1e3 * torch.finfo(out.dtype).eps))


def _slope(distance: Tensor, floor: float) -> float:
    """Least-squares slope of the logarithm over time where the distance is above the floor, less the first tenth."""
    above = (distance > floor).nonzero().flatten()
    above = above[len(above) // 10 :]
    if len(above) < 2:
        return -np.inf
    steps, logs = above.double(), distance[above].log()
    centred = steps - steps.mean()
    return float((centred * (logs - logs.mean())).sum() / centred.square().sum())


def valid_time(made: Tensor, truth: Tensor, *, tolerance: float = 0.4) -> Tensor:
    """Steps for which a forecast stays within `tolerance` of the truth, in units of the truth's spread, `[batch]`.

    Args:
        made, truth: `[time, batch, feature]`. A forecast that never leaves counts all its steps.

    Examples:
        >>> truth = torch.tensor([1.0, -1.0, 1.0, -1.0]).reshape(4, 1, 1)
        >>> valid_time(truth + torch.tensor([0.0, 0.3, 0.5, 0.0]).reshape(4, 1, 1), truth)
        tensor([2])
    """
    if made.shape != truth.shape or truth.dim() != 3:
        raise ShapeError("forecast and truth do not line up", given=(tuple(made.shape), tuple(truth.shape)))
    spread = truth.var((0, 1), correction=0).sum().sqrt()
    off = ~((made - truth).square().sum(-1).sqrt() <= tolerance * spread)  # NaN is off
    return torch.where(off.any(0), off.int().argmax(0), len(off))


def spectral_radius(matrix: Tensor) -> Tensor:
    """Largest modulus of an eigenvalue, of `[…, unit, unit]`.

    Examples:
        >>> round(float(spectral_radius(torch.tensor([[0.0, 2.0], [-2.0, 0.0]]))), 4)
        2.0
    """
    if matrix.dim() < 2 or matrix.shape[-1] != matrix.shape[-2]:
        raise ShapeError("a spectral radius is of a square matrix", given=tuple(matrix.shape))
    radius: Tensor = torch.linalg.eigvals(matrix).abs().amax(-1)
    return radius


def jacobian_radius(module: Recurrent, u: Tensor, *, washout: int = 100, samples: int = 5) -> Tensor:
    """Spectral radius of the state's one-step Jacobian at steps spread over a trajectory, `[sample]`.

    The Jacobian is taken by automatic differentiation of one step with respect to the whole state, edits included, so
    that it serves any of our recurrent modules. Below 1 the step contracts near its fixed point; along a driven
    trajectory this is a guide and `echo_state` the test.

    Args:
        module: a recurrent module of ours.
        u: one sequence, `[time, 1, feature]`.
        washout: steps before the first sample.

    Examples:
        >>> from plexus.nn.reservoirs import EchoState
        >>> line = EchoState.from_weights(torch.tensor([[-0.5]]), torch.ones(1, 1), activation="identity")
        >>> jacobian_radius(line, torch.zeros(20, 1, 1), washout=10, samples=2)
        tensor([0.5000, 0.5000])
    """
    if u.dim() != 3 or u.shape[1] != 1:
        raise ShapeError(
            "the Jacobian is taken along one sequence", given=tuple(u.shape), expected="[time, 1, feature]"
        )
    if samples < 1 or len(u) <= washout + samples:
        raise RangeError("too few steps for the samples wanted", given=(len(u), washout, samples))
    at = np.linspace(washout, len(u) - 1, samples).round().astype(int)
    state, radii, reached = module.initial_state(1), [], 0
    for t in at.tolist():
        if t > reached:
            with torch.no_grad():
                _, state = module(u[reached:t], state)
        reached = t
        radii.append(spectral_radius(_step_jacobian(module, u[t : t + 1], state)))
    return torch.stack(radii)


def _step_jacobian(module: Recurrent, u: Tensor, state: Any) -> Tensor:
    """d(state after)/d(state before), `[component, component]`, through one step."""
    shapes = [part.shape for part in state]
    sizes = [part.numel() for part in state]
    rows = sum(sizes)

    def after(flat: Tensor) -> Tensor:  # one copy of the step per row of `flat`, so that a batch gives all rows at once
        parts = [part.reshape(len(flat), *shape[1:]) for part, shape in zip(flat.split(sizes, 1), shapes, strict=True)]
        given = type(state)(*parts) if hasattr(state, "_fields") else tuple(parts)
        _, new = module(u.expand(-1, len(flat), -1).contiguous(), given)
        return torch.cat([part.reshape(len(flat), -1) for part in new], 1)

    flat = torch.cat([part.detach().reshape(1, -1) for part in state], 1).expand(rows, -1).contiguous().requires_grad_()
    with torch.enable_grad():
        found = after(flat)
        (jacobian,) = torch.autograd.grad(found.diagonal().sum(), flat)
    return jacobian


def _correlation(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """Pearson correlation of matching columns; 0 where a column is constant."""
    a, b = a - a.mean(0), b - b.mean(0)
    scale = np.sqrt((a * a).sum(0) * (b * b).sum(0))
    found: NDArray[np.float64] = np.divide((a * b).sum(0), scale, out=np.zeros(a.shape[1]), where=scale > 0)
    return found


def _finite(x: NDArray[np.float64], name: str) -> None:
    if not np.all(np.isfinite(x)):
        raise RangeError(f"the {name} hold NaN or infinity", mend="the network diverged or its input held NaN")
