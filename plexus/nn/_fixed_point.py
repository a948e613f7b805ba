"""Fixed points of a map, and their gradient by the implicit function theorem.

    x* = F(x*, θ)                                   forward: Anderson acceleration or damped Picard iteration
    (I - Jᵀ) λ = ∂L/∂x*,   J = ∂F/∂x at x*          backward: the same iteration on  λ ← ∂L/∂x* + Jᵀ λ
    ∂L/∂θ = λᵀ ∂F/∂θ

The gradient needs the fixed point alone, not the path to it: memory does not grow with the number of iterations, and
the result does not depend on where the iteration began.

Sources: implicit differentiation of equilibria, Almeida 1987 and Pineda 1987; Anderson acceleration, Anderson 1965,
in the unconstrained least-squares form of Walker & Ni 2011.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from plexus.errors import DtypeError, RangeError, ShapeError, UnknownNameError, UnsupportedError

Method = Literal["anderson", "picard"]
_METHODS = ("anderson", "picard")


class FixedPoint(NamedTuple):
    """What the solver found."""

    value: Tensor
    """The fixed point, `[batch, …]`, differentiable with respect to whatever the map uses."""
    residual: Tensor
    """Largest |F(x) - x| of each sample relative to 1 + max|x|, `[batch]`."""
    steps: int
    """Evaluations of the map."""


def fixed_point(
    step: Callable[[Tensor], Tensor],
    start: Tensor,
    *,
    tol: float | None = None,
    max_steps: int = 2000,
    method: Method = "anderson",
    damping: float = 1.0,
    memory: int = 5,
) -> FixedPoint:
    """Solve `x = step(x)` for each sample, with an implicit gradient to everything `step` depends on.

    Args:
        step: the map, `[batch, …] -> [batch, …]`; deterministic. Parameters it closes over receive gradients.
        start: where to begin, `[batch, …]`; it gets no gradient, since the fixed point does not depend on it.
        tol: accepted residual per sample (default: 1e-11 in float64, 1e-5 in float32, 1e-2 below).
        max_steps: the most evaluations of `step`, forward and backward each.
        method: `anderson` (memory of a few iterates, least squares) or `picard` (plain, damped iteration).
        damping: mixing in (0, 1]; below 1 a map that oscillates converges. With `picard` this is an Euler step of
            `dx/dt = -x + step(x)`, so a stable equilibrium is found when `damping` is small enough.
        memory: how many earlier iterates Anderson acceleration combines.

    Returns:
        `FixedPoint(value, residual, steps)`.

    Raises:
        RangeError: not converged in `max_steps` (forward or backward), or a setting out of range.
        ShapeError: `step` changes the shape. DtypeError: `start` is not floating point.

    The gradient is first order: `create_graph=True` raises `UnsupportedError` instead of giving an incomplete answer.

    Examples:
        >>> a = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
        >>> found = fixed_point(lambda x: a * torch.cos(x), torch.zeros(1, dtype=torch.float64))
        >>> round(found.value.item(), 6)
        0.450184
        >>> found.value.backward()                      # dx/da = cos x / (1 + a sin x)
        >>> x = found.value.detach()
        >>> bool(torch.isclose(a.grad, torch.cos(x) / (1 + a * torch.sin(x))))
        True
    """
    if not start.is_floating_point():
        raise DtypeError("a fixed point is sought in floating-point numbers", given=start.dtype)
    if start.dim() < 1 or start.numel() == 0:
        raise ShapeError("nothing to solve", given=tuple(start.shape), expected="[batch, …] with at least one number")
    if method not in _METHODS:
        raise UnknownNameError.among("fixed-point method", method, _METHODS)
    if not 0 < damping <= 1:
        raise RangeError("damping must lie in (0, 1]", given=damping)
    if memory < 1 or max_steps < 1:
        raise RangeError("memory and max_steps must be at least 1", given=(memory, max_steps))
    tol = _default_tol(start.dtype) if tol is None else tol
    if not tol > 0:
        raise RangeError("tol must be positive", given=tol)

    def solve(g: Callable[[Tensor], Tensor], x: Tensor, what: str) -> tuple[Tensor, Tensor, int]:
        found, residual, steps = _iterate(g, x, tol, max_steps, method, damping, memory)
        if not bool((residual <= tol).all()):
            raise RangeError(
                f"the {what} did not converge in {max_steps} evaluations",
                given=f"residual {float(residual.max()):.3g}",
                expected=f"at most {tol:.3g}",
                mend="check that the map is stable; use damping < 1, more max_steps or a larger tol",
            )
        return found, residual, steps

    with torch.no_grad():
        value, residual, steps = solve(step, start.detach(), "fixed point")
    if not torch.is_grad_enabled():
        return FixedPoint(value, residual, steps)
    # The graph of the Jacobian is built now, so that autograd notices parameters changed in place before backward.
    here = value.detach().requires_grad_()
    image = step(here)
    there = step(value)
    if not there.requires_grad:
        return FixedPoint(value, residual, steps)

    def adjoint(grad: Tensor) -> Tensor:
        if not image.requires_grad:
            return grad

        def transpose(vector: Tensor) -> Tensor:
            (product,) = torch.autograd.grad(image, here, vector, retain_graph=True, allow_unused=True)
            return grad if product is None else grad + product

        scale = grad.abs().amax().clamp_min(torch.finfo(grad.dtype).tiny)  # the tolerance is relative to the gradient

        def scaled(vector: Tensor) -> Tensor:
            return transpose(vector * scale) / scale

        return solve(scaled, grad / scale, "adjoint of the fixed point")[0] * scale

    attached: Tensor = _Adjoint.apply(there, value, adjoint)  # type: ignore[no-untyped-call]
    return FixedPoint(attached, residual, steps)


class _Adjoint(torch.autograd.Function):
    """Returns the fixed point; turns the gradient that arrives into the adjoint λ before it meets `step`."""

    @staticmethod
    def forward(ctx: Any, image: Tensor, value: Tensor, adjoint: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.adjoint = adjoint
        return value.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        if torch.is_grad_enabled():  # create_graph=True: λ itself depends on the parameters, which is not recorded
            raise UnsupportedError(
                "the gradient of a fixed point is first order", mend="call backward without create_graph=True"
            )
        return ctx.adjoint(grad), None, None


def _default_tol(dtype: torch.dtype) -> float:
    return {torch.float64: 1e-11, torch.float32: 1e-5}.get(dtype, 1e-2)


def _residual(x: Tensor, image: Tensor) -> Tensor:
    """Largest change of each sample relative to its size; NaN counts as infinite."""
    change = (image - x).flatten(1).abs().amax(1) if x.dim() > 1 else (image - x).abs()
    size = x.flatten(1).abs().amax(1) if x.dim() > 1 else x.abs()
    return (change / (1 + size)).nan_to_num(nan=torch.inf)


def _iterate(
    step: Callable[[Tensor], Tensor],
    x: Tensor,
    tol: float,
    max_steps: int,
    method: str,
    damping: float,
    memory: int,
) -> tuple[Tensor, Tensor, int]:
    """The best iterate of each sample, its residual, and how often the map was evaluated."""
    shape, batch = x.shape, x.shape[0]
    points: list[Tensor] = []  # the last iterates and their changes, [batch, number]
    changes: list[Tensor] = []
    best, lowest = x, torch.full((batch,), torch.inf, dtype=x.dtype, device=x.device)
    for count in range(1, max_steps + 1):
        image = step(x)
        if image.shape != shape:
            raise ShapeError("the map must keep the shape", given=tuple(image.shape), expected=tuple(shape))
        residual = _residual(x, image)
        better = residual < lowest
        best = torch.where(better.view(-1, *[1] * (x.dim() - 1)), x, best)
        lowest = torch.where(better, residual, lowest)
        if bool((lowest <= tol).all()):
            return best, lowest, count
        flat, change = x.reshape(batch, -1), (image - x).reshape(batch, -1)
        if not bool(torch.isfinite(change).all()):
            return best, lowest, count
        following = flat + damping * change
        if method == "anderson":
            if points:
                following = following - _correction(points, changes, flat, change, damping)
            points, changes = [*points, flat][-memory:], [*changes, change][-memory:]
        x = following.reshape(shape)
    return best, lowest, max_steps


def _correction(points: list[Tensor], changes: list[Tensor], x: Tensor, change: Tensor, damping: float) -> Tensor:
    """What Anderson's least squares takes off a damped step: (ΔX + β ΔF) argmin_γ ‖f - ΔF γ‖, per sample."""
    d_x = torch.stack([x - earlier for earlier in points], -1)  # [batch, number, memory]
    d_f = torch.stack([change - earlier for earlier in changes], -1)
    gram = d_f.transpose(-1, -2) @ d_f
    size = gram.diagonal(dim1=-2, dim2=-1).amax(-1)
    # A little of the identity keeps the system solvable when iterates have become parallel.
    ridge = (10 * torch.finfo(x.dtype).eps * size + torch.finfo(x.dtype).tiny)[:, None, None]
    eye = torch.eye(gram.shape[-1], dtype=x.dtype, device=x.device)
    weights = torch.linalg.solve(gram + ridge * eye, d_f.transpose(-1, -2) @ change[..., None])
    taken: Tensor = ((d_x + damping * d_f) @ weights).squeeze(-1)
    return taken.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
