"""A leaky sum over time, the linear scan under slow traces, calcium and synaptic currents.

    y[t] = λ y[t-1] + x[t]

One fused loop on the CPU, the eager reference of the same equation elsewhere.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from plexus.errors import ShapeError
from plexus.kernels._frame import Dynamics
from plexus.kernels._neuron import Neuron

__all__ = ["decaying_sum"]


def step(x, y, decay, spike, o):  # type: ignore[no-untyped-def]
    s = decay * y + x
    return s, s


def adjoint(x, y, decay, d_out, d_y, spike, slope, o):  # type: ignore[no-untyped-def]
    d = d_out + d_y
    return d, d * decay, d * y


class _SumState(NamedTuple):
    y: Tensor  # the sum so far                     [batch, unit…]


_sum = Neuron(
    Dynamics(name="decaying_sum", step=step, adjoint=adjoint, states=("y",), parameters=("decay",)), _SumState
)


def decaying_sum(x: Tensor, state: Tensor | None = None, *, decay: Tensor | float) -> tuple[Tensor, Tensor]:
    """`sums, last = decaying_sum(x, decay=0.9)`: y[t] = decay y[t-1] + x[t].

    Args:
        x: `[time, batch, unit…]`.
        state: y before the first step, `[batch, unit…]`; None is zero.
        decay: factor per step, a number or a tensor that broadcasts to `[unit…]`.

    Returns:
        All sums `[time, batch, unit…]`, and the last one.

    Raises:
        ShapeError: x has fewer than three dimensions, or the state or the decay does not fit it.
        DtypeError: x is not floating point.

    Examples:
        >>> import torch
        >>> decaying_sum(torch.ones(3, 1, 1), decay=0.5)[0].flatten().tolist()
        [1.0, 1.5, 1.75]
    """
    if x.dim() >= 3 and state is not None and state.shape != x.shape[1:]:
        raise ShapeError("the state does not fit the input", given=tuple(state.shape), expected=tuple(x.shape[1:]))
    sums, (last,) = _sum(x, None if state is None else _SumState(state), {"decay": decay})
    return sums, last
