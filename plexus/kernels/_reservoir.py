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

import functools
import itertools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from math import floor
from typing import Any

import numpy as np
import torch
from torch import Tensor

from plexus.errors import DtypeError, ShapeError, UnknownNameError
from plexus.kernels._memory import empty
from plexus.units._port import Port

ACTIVATIONS = ("sigmoid", "tanh", "relu", "identity")
_SPARSE_BELOW = 0.15

Array = np.ndarray[Any, Any]


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

    Example:
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


# ---------------------------------------------------------------- the loops, plain Python that Numba compiles


def _activate(z, part, bits, power, kind):  # type: ignore[no-untyped-def]
    """f in place, in vector instructions: e^x - 1 = 2^k p + (2^k - 1) with p = e^r - 1 by its series, |r| ≤ ln 2 / 2.

    Within 4 units in the last place of a double; `power` views `bits`, where 2^k is put together.
    """
    if kind == 2:
        for i in range(len(z)):
            z[i] = max(z[i], z[i] * 0)
    if kind > 1:
        return
    factor, bound = (-1.0, 700.0) if kind == 0 else (2.0, 40.0)
    for i in range(len(z)):
        x = min(max(factor * z[i], -bound), bound)
        k = floor(x * 1.4426950408889634 + 0.5)
        r = (x - k * 6.93147180369123816490e-01) - k * 1.90821492927058770002e-10
        p = 1 / 6227020800.0
        p = p * r + 1 / 479001600.0
        p = p * r + 1 / 39916800.0
        p = p * r + 1 / 3628800.0
        p = p * r + 1 / 362880.0
        p = p * r + 1 / 40320.0
        p = p * r + 1 / 5040.0
        p = p * r + 1 / 720.0
        p = p * r + 1 / 120.0
        p = p * r + 1 / 24.0
        p = p * r + 1 / 6.0
        p = p * r + 0.5
        part[i] = r + r * r * p
        bits[i] = (np.int64(k) + 1023) << 52
    if kind == 0:
        for i in range(len(z)):
            z[i] = 1 / (1 + (power[i] * part[i] + power[i]))
    else:
        for i in range(len(z)):
            above = power[i] * part[i] + (power[i] - 1)
            z[i] = above / (above + 2)


def _forward_sparse(  # type: ignore[no-untyped-def]
    drive, order, lengths, columns, values, x, leak, kind, gain, bias, low, high, out, first, last
):
    steps, units = drive.shape[0], drive.shape[2]
    e = np.empty(units, drive.dtype)
    z = np.empty(units, drive.dtype)
    part = np.empty(units, np.float64)
    bits = np.empty(units, np.int64)
    power = bits.view(np.float64)
    for b in range(first, last):  # inside, units stand in the order of the jagged rows; `x` and `e` too
        state = x[b][order]
        for p in range(units):
            raw = gain[p] * state[p] if gain[p] != 0 else gain[p]
            e[p] = min(max(raw + bias[p], low[p]), high[p])
        for t in range(steps):
            for p in range(units):
                z[p] = drive[t, b, order[p]]
            for k in range(0, len(lengths), 4):  # shorter rows are filled with zeros up to a multiple of four
                for p in range(lengths[k]):
                    z[p] += (
                        values[k, p] * e[columns[k, p]]
                        + values[k + 1, p] * e[columns[k + 1, p]]
                        + values[k + 2, p] * e[columns[k + 2, p]]
                        + values[k + 3, p] * e[columns[k + 3, p]]
                    )
            _activate(z, part, bits, power, kind)  # type: ignore[no-untyped-call]
            for p in range(units):
                state[p] = (1 - leak[p]) * state[p] + leak[p] * z[p]
                raw = gain[p] * state[p] if gain[p] != 0 else gain[p]
                e[p] = min(max(raw + bias[p], low[p]), high[p])
            for p in range(units):
                out[t, b, order[p]] = e[p]
        for p in range(units):
            x[b, order[p]] = state[p]


def _forward_dense(  # type: ignore[no-untyped-def]
    drive, columns, x, leak, kind, gain, bias, low, high, out, first, last
):
    steps, units = drive.shape[0], drive.shape[2]
    e = np.empty(units, drive.dtype)
    z = np.empty(units, drive.dtype)
    part = np.empty(units, np.float64)
    bits = np.empty(units, np.int64)
    power = bits.view(np.float64)
    for b in range(first, last):
        for i in range(units):
            e[i] = min(max((gain[i] * x[b, i] if gain[i] != 0 else gain[i]) + bias[i], low[i]), high[i])
        for t in range(steps):
            for i in range(units):
                z[i] = drive[t, b, i]
            for j in range(units):
                for i in range(units):
                    z[i] += columns[j, i] * e[j]
            _activate(z, part, bits, power, kind)  # type: ignore[no-untyped-call]
            for i in range(units):
                x[b, i] = (1 - leak[i]) * x[b, i] + leak[i] * z[i]
                e[i] = min(max((gain[i] * x[b, i] if gain[i] != 0 else gain[i]) + bias[i], low[i]), high[i])
                out[t, b, i] = e[i]


def _backward_sparse(  # type: ignore[no-untyped-def]
    grad, indptr, columns, values, slope, port_slope, leak, delta, carry, first, last
):
    steps, units = grad.shape[0], grad.shape[2]
    back = np.zeros(units, grad.dtype)
    for b in range(first, last):
        back[:] = 0
        for t in range(steps - 1, -1, -1):
            for i in range(units):
                carry[b, i] += port_slope[t + 1, b, i] * (grad[t, b, i] + back[i])
                delta[t, b, i] = leak[i] * slope[t, b, i] * carry[b, i]
                carry[b, i] *= 1 - leak[i]
                back[i] = 0
            for i in range(units):
                d = delta[t, b, i]
                for k in range(indptr[i], indptr[i + 1]):
                    back[columns[k]] += values[k] * d
        for i in range(units):
            carry[b, i] += port_slope[0, b, i] * back[i]


def _adapt(  # type: ignore[no-untyped-def]
    drive, indptr, columns, values, plastic, side, x, target, rate, leak, kind, mean
):
    steps, batch, units = drive.shape
    before = x.copy()
    z = np.empty(units, drive.dtype)
    part = np.empty(units, np.float64)
    bits = np.empty(units, np.int64)
    power = bits.view(np.float64)
    for t in range(steps):
        for b in range(batch):
            for i in range(units):
                before[b, i] = x[b, i]
            for i in range(units):
                total = drive[t, b, i]
                for k in range(indptr[i], indptr[i + 1]):
                    total += values[k] * before[b, columns[k]]
                z[i] = total
            _activate(z, part, bits, power, kind)  # type: ignore[no-untyped-call]
            for i in range(units):
                x[b, i] = (1 - leak[i]) * before[b, i] + leak[i] * z[i]
                mean[i] += x[b, i]
        for i in range(units):
            for k in range(indptr[i], indptr[i + 1]):
                if plastic[k]:
                    change = 0.0
                    for b in range(batch):
                        change += (x[b, i] - target[i]) * before[b, columns[k]]
                    moved = values[k] - rate * change / batch
                    values[k] = moved if moved * side[k] > 0 else 0.0
    for i in range(units):
        mean[i] /= max(steps * batch, 1)


@functools.cache
def _compiled(name: str) -> Any:
    """One loop, compiled on first use and cached on disk; sums may be reordered, NaN is kept."""
    import numba

    if name != "_activate":
        globals()["_activate"] = _compiled("_activate")  # the name by which the loops call it
    relaxed = {"reassoc", "contract", "nsz"}
    return numba.njit(cache=True, nogil=True, error_model="numpy", fastmath=relaxed)(globals()[name])


def _rows(weight: Array, occupied: Array) -> tuple[Array, Array, Array]:
    """Compressed rows of a matrix: row starts, column indices, values."""
    starts = np.zeros(len(weight) + 1, np.int64)
    np.cumsum(occupied.sum(1), out=starts[1:])
    return starts, np.nonzero(occupied)[1].astype(np.uint32), weight[occupied]


def _jagged(weight: Array, occupied: Array) -> tuple[Array, Array, Array, Array]:
    """Jagged diagonals: the k-th entries of all rows side by side, rows by falling length, so that sums run in vectors.

    Returns the order of rows `[row]`, how many rows have a k-th entry `[k]`, columns and values `[k, row]`; rows and
    columns are counted in that order.
    """
    lengths = occupied.sum(1)
    order = np.argsort(-lengths, kind="stable").astype(np.uint32)
    longest = -(-int(lengths.max(initial=0)) // 4) * 4
    columns = np.zeros((longest, len(weight)), np.uint32)
    values = np.zeros((longest, len(weight)), weight.dtype)
    row, column = np.nonzero(occupied[order])
    rank = np.arange(len(row)) - np.repeat(np.cumsum(lengths[order]) - lengths[order], lengths[order])
    place = np.empty(len(order), np.uint32)
    place[order] = np.arange(len(order))
    columns[rank, row] = place[column]
    values[rank, row] = weight[order[row], column]
    return order, (lengths[None, :] > np.arange(longest)[:, None]).sum(1), columns, values


def _spread(loop: Callable[[int, int], None], batch: int) -> None:
    """Run `loop(first, last)` over the batch on as many threads as torch uses."""
    threads = min(torch.get_num_threads(), batch)
    if threads < 2:
        loop(0, batch)
        return
    edges = [batch * n // threads for n in range(threads + 1)]
    with ThreadPoolExecutor(threads) as pool:
        for future in [pool.submit(loop, a, b) for a, b in itertools.pairwise(edges)]:
            future.result()


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
        rows, loop = _jagged(w, occupied), _compiled("_forward_sparse")
        a, *port = (field[rows[0]] for field in (a, *port))
        _spread(lambda first, last: loop(d, *rows, x, a, kind, *port, y, first, last), d.shape[1])
    else:
        columns, loop = np.ascontiguousarray(w.T), _compiled("_forward_dense")
        _spread(lambda first, last: loop(d, columns, x, a, kind, *port, y, first, last), d.shape[1])
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
    rows, loop = _rows(w, w != 0), _compiled("_backward_sparse")
    a, out, x = leak.detach().numpy(), delta.numpy(), carry.numpy()
    _spread(lambda first, last: loop(g, *rows, s, p, a, out, x, first, last), g.shape[1])
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
    if drive.device.type != "cpu" or drive.dtype not in (torch.float32, torch.float64):
        return homeostatic_steps_reference(
            drive, weight, plastic, signs, initial, target, rate, leak=leaks, activation=activation
        )
    w = weight.detach().contiguous().numpy()
    occupied = (w != 0) | plastic.numpy()
    starts, columns, values = _rows(w, occupied)
    x = initial.detach().clone(memory_format=torch.contiguous_format)
    mean = torch.zeros(drive.shape[-1], dtype=drive.dtype)
    _compiled("_adapt")(
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
