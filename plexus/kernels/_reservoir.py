"""Time loop of a rate reservoir: a leaky recurrent network with a fixed weight, driven from outside.

    z[t] = W e[t-1] + d[t]                       d: drive, input weights and bias already applied
    x[t] = (1 - a) x[t-1] + a f(z[t])            a: leak in (0, 1], f: sigmoid, tanh, relu or identity
    e[t] = clip(g x[t] + c, low, high)           the unit's port; e = x where no edit is active
    e[-1] is the port of the initial state x[-1]

Backward, with λ[t] = dL/dx[t] and s[t] the port's slope:

    λ[t] = s[t] (dL/de[t] + Wᵀ δ[t+1]) + (1 - a) λ[t+1],      δ[t] = a f'(z[t]) λ[t] = dL/dd[t]
    dL/dW = Σ_t δ[t] e[t-1]ᵀ,  dL/dx[-1] = s[-1] Wᵀ δ[0] + (1 - a) λ[0]

The fused loop is Numba's: W as jagged diagonals where at most 15 % of it is occupied (there they beat dense columns by
a third to two thirds), as dense columns otherwise; samples of the batch are spread over torch's threads.
`reservoir_reference` states the same equations in torch; it runs wherever the fused loop cannot follow (other devices
and dtypes, `torch.func`, forward-mode derivatives, a second derivative, gradients of the port or the leak).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from plexus.errors import DtypeError, ShapeError, UnknownNameError
from plexus.kernels._memory import empty
from plexus.kernels._reservoir_loops import compiled, jagged, rows_of, spread
from plexus.units._port import Port

ACTIVATIONS = ("sigmoid", "tanh", "relu", "identity")
_SPARSE_BELOW = 0.15


def reservoir(
    drive: Tensor,
    weight: Tensor,
    initial: Tensor,
    *,
    leak: Tensor | float = 1.0,
    activation: str = "sigmoid",
    port: Port | None = None,
) -> tuple[Tensor, Tensor]:
    """Run the loop; fused where it can be.

    Args:
        drive: input of each unit at each step, `[time, batch, unit]`.
        weight: recurrent weight, `[unit (to), unit (from)]`.
        initial: state before the first step, `[batch, unit]`.
        leak: share of the new value in each step, in (0, 1]; a number or `[unit]`.
        activation: `sigmoid`, `tanh`, `relu` or `identity`.
        port: edits of the emitted value inside the loop.

    Returns:
        Emitted values `[time, batch, unit]` and the state after the last step `[batch, unit]` (before the port).

    Raises:
        ShapeError: shapes do not fit. DtypeError: dtypes differ. UnknownNameError: another activation.

    Examples:
        >>> emitted, _ = reservoir(torch.ones(3, 1, 1), torch.tensor([[0.5]]), torch.zeros(1, 1), activation="identity")
        >>> emitted.flatten()
        tensor([1.0000, 1.5000, 1.7500])
    """
    _check(drive, weight, initial, activation)
    units = drive.shape[-1]
    leaks = torch.as_tensor(leak, dtype=drive.dtype, device=drive.device).expand(units).contiguous()
    if not _fusable(drive, weight, initial, leaks, port):
        return reservoir_reference(drive, weight, initial, leak=leaks, activation=activation, port=port)
    dense = (Port() if port is None else port).dense(units, drive)
    if plain(drive, weight, initial):
        return _forward(drive, weight, initial, leaks, activation, *dense)
    emitted, final = _op(drive, weight, initial, leaks, activation, *dense)
    return emitted, final


def reservoir_reference(
    drive: Tensor,
    weight: Tensor,
    initial: Tensor,
    *,
    leak: Tensor | float = 1.0,
    activation: str = "sigmoid",
    port: Port | None = None,
) -> tuple[Tensor, Tensor]:
    """The same equations step by step in torch; differentiable any number of times."""
    _check(drive, weight, initial, activation)
    function = activation_function(activation)
    port = Port() if port is None else port
    x, e = initial, port.apply(initial)
    outputs = []
    for d in drive:
        x = (1 - leak) * x + leak * function(e @ weight.T + d)
        e = port.apply(x)
        outputs.append(e)
    return torch.stack(outputs) if outputs else torch.empty_like(drive), x.clone()


def activation_function(name: str) -> Callable[[Tensor], Tensor]:
    """The torch function of an activation's name."""
    if name not in ACTIVATIONS:
        raise UnknownNameError.among("activation", name, ACTIVATIONS)
    functions: dict[str, Callable[[Tensor], Tensor]] = {
        "sigmoid": torch.sigmoid,
        "tanh": torch.tanh,
        "relu": torch.relu,
    }
    return functions.get(name, lambda z: z)


def activation_slope(name: str, z: Tensor) -> Tensor:
    """The derivative of an activation at `z`."""
    y = activation_function(name)(z)
    slopes: dict[str, Callable[[], Tensor]] = {
        "sigmoid": lambda: y * (1 - y),
        "tanh": lambda: 1 - y * y,
        "relu": lambda: (z > 0).to(z.dtype),
    }
    return slopes[name]() if name in slopes else torch.ones_like(z)


def _check(drive: Tensor, weight: Tensor, initial: Tensor, activation: str) -> None:
    if activation not in ACTIVATIONS:
        raise UnknownNameError.among("activation", activation, ACTIVATIONS)
    if drive.dim() != 3:
        raise ShapeError("the drive is not time-first", given=tuple(drive.shape), expected="[time, batch, unit]")
    units = drive.shape[2]
    if weight.shape != (units, units):
        raise ShapeError(
            "the recurrent weight does not fit the drive", given=tuple(weight.shape), expected=(units, units)
        )
    if initial.shape != drive.shape[1:]:
        raise ShapeError(
            "the state does not fit the input",
            given=tuple(initial.shape),
            expected=f"[batch, unit] = {tuple(drive.shape[1:])}",
        )
    if not (drive.dtype == weight.dtype == initial.dtype) or not drive.is_floating_point():
        raise DtypeError(
            "input, weight and state need one floating-point dtype", given=(drive.dtype, weight.dtype, initial.dtype)
        )


def _fusable(drive: Tensor, weight: Tensor, initial: Tensor, leak: Tensor, port: Port | None) -> bool:
    tensors = [drive, weight, initial]
    if any(t.device.type != "cpu" for t in tensors) or drive.dtype not in (torch.float32, torch.float64):
        return False
    if torch._C._functorch.peek_interpreter_stack() is not None:
        return False
    if any(torch.autograd.forward_ad.unpack_dual(t).tangent is not None for t in tensors):
        return False
    fields = () if port is None else (port.gain, port.bias, port.low, port.high)
    return not (torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (leak, *fields)))


def plain(*tensors: Tensor) -> bool:
    """Whether nothing watches: no gradient, no tracing. Then the operator's wrapping (and torch's compiler, which its
    first call loads) is not needed."""
    if torch.is_grad_enabled() and any(t.requires_grad for t in tensors):
        return False
    if torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack() > 0:
        return False
    return all(type(t) in (Tensor, torch.nn.Parameter) for t in tensors)


# ---------------------------------------------------------------- the operator


def _forward(
    drive: Tensor,
    weight: Tensor,
    initial: Tensor,
    leak: Tensor,
    activation: str,
    gain: Tensor,
    bias: Tensor,
    low: Tensor,
    high: Tensor,
) -> tuple[Tensor, Tensor]:
    out = empty(tuple(drive.shape), drive)
    final = initial.detach().clone(memory_format=torch.contiguous_format)
    d, w = drive.detach().contiguous().numpy(), weight.detach().contiguous().numpy()
    port = [field.detach().numpy() for field in (gain, bias, low, high)]
    x, y, a, kind = final.numpy(), out.numpy(), leak.detach().numpy(), ACTIVATIONS.index(activation)
    occupied = w != 0
    if occupied.mean() <= _SPARSE_BELOW:
        rows, loop = jagged(w, occupied), compiled("_forward_sparse")
        a, *port = (field[rows[0]] for field in (a, *port))
        spread(lambda first, last: loop(d, *rows, x, a, kind, *port, y, first, last), d.shape[1])
    else:
        columns, loop = np.ascontiguousarray(w.T), compiled("_forward_dense")
        spread(lambda first, last: loop(d, columns, x, a, kind, *port, y, first, last), d.shape[1])
    return out, final


_op = torch.library.custom_op("plexus::reservoir", _forward, mutates_args=())


@_op.register_fake
def _(
    drive: Tensor,
    weight: Tensor,
    initial: Tensor,
    leak: Tensor,
    activation: str,
    gain: Tensor,
    bias: Tensor,
    low: Tensor,
    high: Tensor,
) -> tuple[Tensor, Tensor]:
    return torch.empty(drive.shape, dtype=drive.dtype), torch.empty(initial.shape, dtype=initial.dtype)


@torch.library.custom_op("plexus::reservoir_backward", mutates_args=())
def _op_backward(
    grad: Tensor, weight: Tensor, slope: Tensor, port_slope: Tensor, leak: Tensor, grad_final: Tensor
) -> tuple[Tensor, Tensor]:
    delta = torch.empty(grad.shape, dtype=grad.dtype)
    carry = grad_final.detach().clone(memory_format=torch.contiguous_format)
    w = weight.detach().contiguous().numpy()
    g, s, p = (tensor.detach().contiguous().numpy() for tensor in (grad, slope, port_slope))
    rows, loop = rows_of(w, w != 0), compiled("_backward_sparse")
    a, out, x = leak.detach().numpy(), delta.numpy(), carry.numpy()
    spread(lambda first, last: loop(g, *rows, s, p, a, out, x, first, last), g.shape[1])
    return delta, carry


@_op_backward.register_fake
def _(
    grad: Tensor, weight: Tensor, slope: Tensor, port_slope: Tensor, leak: Tensor, grad_final: Tensor
) -> tuple[Tensor, Tensor]:
    return torch.empty(grad.shape, dtype=grad.dtype), torch.empty(grad_final.shape, dtype=grad.dtype)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    drive, weight, initial, leak, activation, gain, bias, low, high = inputs
    ctx.save_for_backward(drive, weight, initial, leak, gain, bias, low, high, output[0])
    ctx.activation = activation


def _backward(ctx: Any, grad: Tensor, grad_final: Tensor) -> tuple[Tensor | None, ...]:
    drive, weight, initial, leak, gain, bias, low, high, emitted = ctx.saved_tensors
    if torch.is_grad_enabled():  # a second derivative is wanted
        port = Port(gain, bias, low, high)
        outputs = reservoir_reference(drive, weight, initial, leak=leak, activation=ctx.activation, port=port)
        wanted = [t for t, needed in zip((drive, weight, initial), ctx.needs_input_grad[:3], strict=True) if needed]
        found = iter(torch.autograd.grad(outputs, wanted, (grad, grad_final), create_graph=True))
        first = [next(found) if needed else None for needed in ctx.needs_input_grad[:3]]
        return (*first, None, None, None, None, None, None)
    port = Port(gain, bias, low, high)
    previous = torch.cat([port.apply(initial).unsqueeze(0), emitted])[:-1] if len(drive) else emitted
    z = torch.nn.functional.linear(previous, weight) + drive
    y = activation_function(ctx.activation)(z)
    states = [initial]
    for value in y:
        states.append((1 - leak) * states[-1] + leak * value)
    raw = gain * torch.stack(states) + bias
    port_slope = torch.where((raw >= low) & (raw <= high), gain.expand_as(raw), torch.zeros_like(raw))
    slope = activation_slope(ctx.activation, z)
    delta, at_start = _op_backward(grad.contiguous(), weight, slope, port_slope, leak, grad_final)
    to_weight = torch.einsum("tbi,tbj->ij", delta, previous) if ctx.needs_input_grad[1] else None
    return delta, to_weight, at_start, None, None, None, None, None, None


_op.register_autograd(_backward, setup_context=_setup)


# ---------------------------------------------------------------- the same loop while weights adapt


def homeostatic_steps(
    drive: Tensor,
    weight: Tensor,
    plastic: Tensor,
    signs: Tensor,
    initial: Tensor,
    target: Tensor,
    rate: float,
    *,
    leak: Tensor | float = 1.0,
    activation: str = "sigmoid",
) -> tuple[Tensor, Tensor, Tensor]:
    """Run the loop while every plastic synapse moves its target unit's rate towards `target`.

        W[i, j] ← W[i, j] - rate <(x_i[t] - target_i) x_j[t-1]>_batch,  kept on the side of zero that `signs[j]` names

    Args:
        drive: `[time, batch, unit]`. weight: `[unit, unit]`, not changed. initial: `[batch, unit]`.
        plastic: the synapses that may move, bool `[unit, unit]`; a synapse at zero may grow again.
        signs: +1 or -1 for each source unit, `[unit]`.
        target: wanted mean rate, `[unit]`.
        rate: learning rate per step.

    Returns:
        The new weight `[unit, unit]`, the final state `[batch, unit]`, the mean rate over these steps `[unit]`.
    """
    _check(drive, weight, initial, activation)
    leaks = torch.as_tensor(leak, dtype=drive.dtype, device=drive.device).expand(drive.shape[-1]).contiguous()
    plastic, signs, target = (part.to(drive.device) for part in (plastic, signs, target))
    if drive.device.type != "cpu" or drive.dtype not in (torch.float32, torch.float64):
        return homeostatic_steps_reference(
            drive, weight, plastic, signs, initial, target, rate, leak=leaks, activation=activation
        )
    w = weight.detach().contiguous().numpy()
    occupied = (w != 0) | plastic.numpy()
    starts, columns, values = rows_of(w, occupied)
    x = initial.detach().clone(memory_format=torch.contiguous_format)
    mean = torch.zeros(drive.shape[-1], dtype=drive.dtype)
    compiled("_adapt")(
        drive.detach().contiguous().numpy(),
        starts,
        columns,
        values,
        plastic.numpy()[occupied],
        signs.to(drive.dtype).numpy()[columns],
        x.numpy(),
        target.to(drive.dtype).contiguous().numpy(),
        float(rate),
        leaks.numpy(),
        ACTIVATIONS.index(activation),
        mean.numpy(),
    )
    new = np.zeros_like(w)
    new[occupied] = values
    return torch.from_numpy(new), x, mean


def homeostatic_steps_reference(
    drive: Tensor,
    weight: Tensor,
    plastic: Tensor,
    signs: Tensor,
    initial: Tensor,
    target: Tensor,
    rate: float,
    *,
    leak: Tensor | float = 1.0,
    activation: str = "sigmoid",
) -> tuple[Tensor, Tensor, Tensor]:
    """The same steps in torch."""
    function = activation_function(activation)
    w, x, total = weight.detach().clone(), initial.detach(), torch.zeros_like(target, dtype=drive.dtype)
    for d in drive.detach():
        before = x
        x = (1 - leak) * before + leak * function(before @ w.T + d)
        total = total + x.mean(0)
        moved = w - rate * (x - target).T @ before / len(x)
        moved = torch.where(moved * signs > 0, moved, torch.zeros_like(moved))
        w = torch.where(plastic, moved, w)
    return w, x.clone(), total / max(len(drive), 1)
