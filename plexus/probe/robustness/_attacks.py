"""Inputs changed within a small box so that a model errs.

    fast gradient sign    x' = x + ε sign ∇L(x)
    projected gradient    x ← P(x + a sign ∇L(x)), from a random place in the box

P brings x back into |x - x₀| ≤ ε and [low, high].

Sources: Goodfellow et al. 2015; Madry et al. 2018.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from plexus.errors import DtypeError, RangeError
from plexus.units._evaluating import differentiable

__all__ = ["fgsm", "pgd"]

Loss = Callable[[Tensor, Tensor], Tensor]


def fgsm(
    model: Callable[[Tensor], Any],
    x: Tensor,
    y: Tensor,
    epsilon: float | Tensor,
    *,
    low: float = 0.0,
    high: float = 1.0,
    loss: Loss = nn.functional.cross_entropy,
) -> Tensor:
    """One step of size `epsilon` along the sign of the gradient: `x` within the box, in its shape.

    Args:
        model: any function of `x` whose output `loss` understands; a module keeps its mode and its gradients.
        x: inputs. y: what the loss compares with.
        epsilon: half the width of the box, one number or a tensor that broadcasts against `x`.
        low, high: limits of an input.
        loss: `(output, y)`, to be raised; summed if it is no scalar.

    Raises:
        RangeError: epsilon is negative, or an input lies outside the limits.

    Examples:
        >>> model = nn.Linear(2, 2)
        >>> x, y = torch.full((1, 2), 0.5), torch.tensor([0])
        >>> worse = fgsm(model, x, y, 0.1)
        >>> bool(nn.functional.cross_entropy(model(worse), y) > nn.functional.cross_entropy(model(x), y))
        True
    """
    width = _width(x, epsilon, low, high)
    return (x + width * _sign(model, x, y, loss)).clamp(low, high)


def pgd(
    model: Callable[[Tensor], Any],
    x: Tensor,
    y: Tensor,
    epsilon: float | Tensor,
    *,
    steps: int,
    step_size: float | Tensor,
    generator: torch.Generator | None,
    low: float = 0.0,
    high: float = 1.0,
    loss: Loss = nn.functional.cross_entropy,
) -> Tensor:
    """Several steps of size `step_size`, each brought back into the box around `x`.

    Args:
        model, x, y, epsilon, low, high, loss: as in `fgsm`.
        steps: how many. step_size: one number or a tensor that broadcasts against `x`.
        generator: draws the beginning inside the box; None begins at `x` itself.

    Raises:
        RangeError: epsilon is negative, there is no step, or an input lies outside the limits.

    Examples:
        >>> model = nn.Linear(2, 2)
        >>> x, y = torch.full((1, 2), 0.5), torch.tensor([0])
        >>> worse = pgd(model, x, y, 0.1, steps=3, step_size=0.05, generator=torch.Generator().manual_seed(0))
        >>> bool(((worse - x).abs() <= 0.1 + 1e-6).all())
        True
    """
    width = _width(x, epsilon, low, high)
    if steps < 1:
        raise RangeError("an attack takes at least one step", given=steps)
    if generator is not None and not isinstance(generator, torch.Generator):
        raise DtypeError("a random start needs a torch.Generator", given=type(generator).__name__)
    now = x
    if generator is not None:
        noise = torch.rand(x.shape, generator=generator, device=generator.device).to(x)
        now = (x + width * (2 * noise - 1)).clamp(low, high)
    for _ in range(steps):
        moved = now + step_size * _sign(model, now, y, loss)
        now = torch.minimum(torch.maximum(moved, x - width), x + width).clamp(low, high)
    return now


def _sign(model: Callable[[Tensor], Any], x: Tensor, y: Tensor, loss: Loss) -> Tensor:
    with torch.enable_grad(), differentiable(model):
        x = x.detach().requires_grad_()
        (slope,) = torch.autograd.grad(loss(model(x), y).sum(), x)
    return slope.sign()


def _width(x: Tensor, epsilon: float | Tensor, low: float, high: float) -> Tensor:
    width = torch.as_tensor(epsilon, dtype=x.dtype, device=x.device)
    if not bool((width >= 0).all()):
        raise RangeError("epsilon is not negative", given=epsilon)
    if not low < high or bool((x < low).any()) or bool((x > high).any()):
        raise RangeError("inputs lie outside their limits", given=f"{float(x.min()):.3g} … {float(x.max()):.3g}",
                         expected=f"[{low}, {high}]")  # fmt: skip
    return width
