"""What turns the drive of features into sparse activity.

    relu         z = max(y, 0)
    top-k        z = max(y, 0) for the k largest y of each row, else 0
    batch-top-k  z = max(y, 0) for the k · rows largest y of a batch, else 0; afterwards a threshold does the same
    jump-relu    z = y H(y - θ), θ > 0

The step H has no useful gradient, so a rectangle of width ε around the threshold stands in for its derivative
(straight-through): ∂z/∂θ = -(θ/ε) Π((y - θ)/ε), and for the count of active features ∂H/∂θ = -(1/ε) Π((y - θ)/ε), with
Π(u) = 1 for |u| < 1/2; the drive gets no gradient from the step itself.

Sources: Makhzani & Frey 2014 and Gao et al. 2024 (top-k), Bussmann et al. 2024 (batch-top-k), Rajamanoharan et al. 2024
(jump-relu, eqs. 11-12).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["batch_top_k", "jump_relu", "step_count", "top_k"]


def top_k(drive: Tensor, k: int) -> Tensor:
    """The `k` largest of the last axis, rectified; zero elsewhere."""
    values, places = drive.topk(min(k, drive.shape[-1]), dim=-1)
    kept: Tensor = torch.zeros_like(drive).scatter(-1, places, values.relu())
    return kept


def batch_top_k(drive: Tensor, k: int) -> Tensor:
    """The `k · rows` largest of the last two axes, rectified; zero elsewhere."""
    flat = drive.flatten(-2)
    kept: Tensor = top_k(flat, k * drive.shape[-2]).unflatten(-1, drive.shape[-2:])
    return kept


def jump_relu(drive: Tensor, threshold: Tensor, width: float) -> Tensor:
    """`drive` where it lies above `threshold`, else 0; the threshold learns through a rectangle of `width`."""
    out: Tensor = _Jump.apply(drive, threshold, width)  # type: ignore[no-untyped-call]
    return out


def step_count(drive: Tensor, threshold: Tensor, width: float) -> Tensor:
    """1 where `drive` lies above `threshold`, else 0, with the same stand-in for its derivative."""
    out: Tensor = _Step.apply(drive, threshold, width)  # type: ignore[no-untyped-call]
    return out


def _rectangle(drive: Tensor, threshold: Tensor, width: float) -> Tensor:
    return ((drive - threshold).abs() < width / 2).to(drive.dtype) / width


def _reduced(gradient: Tensor, like: Tensor) -> Tensor:
    """The gradient summed over what was broadcast."""
    extra = gradient.dim() - like.dim()
    gradient = gradient.sum(tuple(range(extra))) if extra else gradient
    wide = tuple(i for i, size in enumerate(like.shape) if size == 1 and gradient.shape[i] != 1)
    return gradient.sum(wide, keepdim=True) if wide else gradient


class _Jump(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, drive: Tensor, threshold: Tensor, width: float) -> Tensor:
        ctx.save_for_backward(drive, threshold)
        ctx.width = width
        return drive * (drive > threshold)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        drive, threshold = ctx.saved_tensors
        near = _rectangle(drive, threshold, ctx.width)
        return gradient * (drive > threshold), _reduced(-gradient * threshold * near, threshold), None


class _Step(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, drive: Tensor, threshold: Tensor, width: float) -> Tensor:
        ctx.save_for_backward(drive, threshold)
        ctx.width = width
        return (drive > threshold).to(drive.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        drive, threshold = ctx.saved_tensors
        near = _rectangle(drive, threshold, ctx.width)
        return torch.zeros_like(drive), _reduced(-gradient * near, threshold), None
