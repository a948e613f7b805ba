"""A leaky sum over time, the linear scan under slow traces, calcium and synaptic currents.

    y[t] = λ y[t-1] + x[t]

One fused loop on the CPU, the eager reference of the same equation elsewhere.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from plexus.errors import DtypeError, ShapeError
from plexus.kernels._frame import Dynamics, Options, options_key
from plexus.kernels._lif import _column
from plexus.kernels._operator import Operator

__all__ = ["decaying_sum"]


def step(x, y, decay, spike, o):  # type: ignore[no-untyped-def]
    s = decay * y + x
    return s, s


def adjoint(x, y, decay, d_out, d_y, spike, slope, o):  # type: ignore[no-untyped-def]
    d = d_out + d_y
    return d, d * decay, d * y


def _carried(o: Options) -> tuple[str, ...]:
    return ("y",)


def _used(o: Options) -> tuple[str, ...]:
    return ("decay",)


_DEFAULTS: dict[str, Any] = {"smooth": False, "inclusive": False, "surrogate": "arctan"}

_SUM = Dynamics(
    name="decaying_sum",
    step=step,
    adjoint=adjoint,
    states=("y",),
    counters=(),
    echo=None,
    parameters=("decay",),
    settings=(),
    constants=(),
    options=_DEFAULTS,
    carried=_carried,
    used=_used,
)
_operator = Operator(_SUM)


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
    if x.dim() < 3:
        raise ShapeError("the input has too few dimensions", given=tuple(x.shape), expected="[time, batch, unit…]")
    if not x.is_floating_point():
        raise DtypeError("the input is not floating point", given=x.dtype, mend="convert it, e.g. x.float()")
    if state is None:
        state = x.new_zeros(x.shape[1:])
    if state.shape != x.shape[1:]:
        raise ShapeError("the state does not fit the input", given=tuple(state.shape), expected=f"{tuple(x.shape[1:])}")
    arguments = x, [state], [_column("decay", decay, x)], [1.0, 1.0], options_key(_SUM, {})
    sums, last = _operator(*arguments) if _operator.takes(x) else _operator.eager(*arguments)
    return sums, last
