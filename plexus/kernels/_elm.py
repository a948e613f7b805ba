"""Time loops of the Expressive Leaky Memory neuron: its memory, and the leaky traces of its synapses.

    d[t] = κ m[t-1]                                     memory, decayed
    h[t] = f(u[t] + W d[t])                             u: drive of the hidden layer, input weights and bias applied
    r[t] = tanh(2/3 (V h[t] + b))
    m[t] = d[t] + g A r[t],   A = 1.7159                g: gain, λ (1 - κ) in the neuron

Backward, with λ[t] = dL/dm[t], p[t] = dL/d(V h[t] + b) and δ[t] = dL/du[t]:

    λ[t] = dL/dm[t] from outside + κ ε[t+1]
    p[t] = 2/3 g A (1 - r[t]²) λ[t],   δ[t] = f'(u[t] + W d[t]) Vᵀ p[t],   ε[t] = λ[t] + Wᵀ δ[t]
    dL/dκ = Σ ε[t] m[t-1],  dL/dg = Σ A r[t] λ[t],  dL/dW = Σ δ[t] d[t]ᵀ,  dL/dV = Σ p[t] h[t]ᵀ,  dL/dm[-1] = κ ε[0]

All that does not depend on the memory is left out of the loop, and so are the sums over time: they are matrix products
over all steps at once. What is left is fused by Numba, samples spread over torch's threads. `elm_memory_reference`
states the same equations in torch; it runs wherever the fused loop cannot follow (other devices and dtypes,
`torch.func`, forward-mode derivatives, a second derivative).

Source: Spieler, Rahaman, Martius, Schölkopf & Levina 2024 (arXiv 2306.16922), equations 1–4.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import pad

from plexus.errors import DtypeError, ShapeError, UnknownNameError
from plexus.kernels._elm_loops import compiled
from plexus.kernels._frame import out_of_reach
from plexus.kernels._memory import empty
from plexus.kernels._reservoir import plain
from plexus.kernels._reservoir_loops import spread

__all__ = ["ELM_ACTIVATIONS", "elm_memory", "elm_memory_reference", "elm_step", "leaky_trace", "leaky_trace_reference"]

ELM_ACTIVATIONS = ("relu", "silu", "identity")
AMPLITUDE, SLOPE = 1.7159, 2 / 3


# ---------------------------------------------------------------- synaptic traces


def leaky_trace(x: Tensor, initial: Tensor, decay: float) -> Tensor:
    """Leaky sums over time, `y[t] = decay y[t-1] + x[t]`; fused where it can be.

    Args:
        x: `[time, batch, …]`.
        initial: y before the first step, `[batch, …]`.
        decay: factor per step.

    Raises:
        ShapeError: shapes do not fit. DtypeError: dtypes differ.

    Examples:
        >>> leaky_trace(torch.tensor([1.0, 0.0, 0.0]).view(3, 1, 1), torch.zeros(1, 1), 0.5).flatten()
        tensor([1.0000, 0.5000, 0.2500])
    """
    if x.dim() < 2 or initial.shape != x.shape[1:]:
        raise ShapeError(
            "the state does not fit the input", given=tuple(initial.shape), expected=f"{tuple(x.shape[1:])}"
        )
    if x.dtype != initial.dtype:
        raise DtypeError("input and state differ in dtype", given=(x.dtype, initial.dtype))
    if not _fusable(x, initial):
        return leaky_trace_reference(x, initial, decay)
    return _trace(x, initial, decay, False) if plain(x, initial) else _trace_op(x, initial, decay, False)


def leaky_trace_reference(x: Tensor, initial: Tensor, decay: float) -> Tensor:
    """The same step by step in torch."""
    y, out = initial, []
    for now in x.unbind(0):
        y = decay * y + now
        out.append(y)
    return torch.stack(out) if out else torch.empty_like(x)


def _trace(x: Tensor, initial: Tensor, decay: float, backwards: bool) -> Tensor:
    out = empty(tuple(x.shape), x)
    size = initial.numel()
    loop, steps, start = compiled("_trace"), x.detach().reshape(len(x), size).contiguous(), initial.detach()
    rows, first, y = steps.numpy(), start.reshape(size).contiguous().numpy(), out.view(len(x), size).numpy()
    spread(lambda low, high: loop(rows, first, decay, backwards, y, low, high), size)
    return out


_trace_op = torch.library.custom_op("plexus::leaky_trace", _trace, mutates_args=())


@_trace_op.register_fake
def _(x: Tensor, initial: Tensor, decay: float, backwards: bool) -> Tensor:
    return torch.empty(x.shape, dtype=x.dtype)


def _trace_save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, _, ctx.decay, ctx.backwards = inputs


def _trace_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    # the adjoint is the same filter with time reversed, and so has derivatives of every order
    back = _trace_op(grad, torch.zeros_like(grad.select(0, 0)), ctx.decay, not ctx.backwards) if len(grad) else grad
    if not len(grad):
        return back, grad.new_zeros(grad.shape[1:]), None, None
    return back, ctx.decay * back[-1 if ctx.backwards else 0], None, None


_trace_op.register_autograd(_trace_backward, setup_context=_trace_save)


# ---------------------------------------------------------------- the memory


def elm_memory(
    drive: Tensor,
    inner: Tensor,
    outer: Tensor,
    offset: Tensor,
    decay: Tensor,
    gain: Tensor,
    initial: Tensor,
    *,
    deep: Sequence[tuple[Tensor, Tensor]] = (),
    activation: str = "relu",
    backend: Literal["auto", "eager"] = "auto",
) -> Tensor:
    """The memory of Expressive Leaky Memory neurons over time; fused where it can be.

    Args:
        drive: u, what inputs and bias give to the hidden layer, `[time, batch, neuron, hidden]`.
        inner: W, from the decayed memory to the hidden layer, `[neuron, hidden, memory]`.
        outer: V, from the hidden layer to the update of the memory, `[neuron, memory, hidden]`.
        offset: b, `[neuron, memory]`.
        decay: κ, factor of each memory unit per step, `[neuron, memory]`.
        gain: g, how far an update of one moves each memory unit, `[neuron, memory]`.
        initial: m before the first step, `[batch, neuron, memory]`.
        deep: weight `[neuron, hidden, hidden]` and bias `[neuron, hidden]` of further hidden layers, each followed by
            f; with them the reference runs.
        activation: f, `"relu"`, `"silu"` or `"identity"`.
        backend: `"auto"`, or `"eager"` for the reference.

    Returns:
        m, `[time, batch, neuron, memory]`.

    Raises:
        ShapeError: shapes do not fit. DtypeError: dtypes differ. UnknownNameError: another activation.

    Examples:
        >>> eye, zero, half = torch.ones(1, 1, 1), torch.zeros(1, 1), torch.full((1, 1), 0.5)
        >>> m = elm_memory(torch.full((3, 1, 1, 1), 9.0), 0 * eye, eye, zero, half, half, torch.zeros(1, 1, 1))
        >>> m.flatten()                                 # saturated: half way to 1.7159 in each step
        tensor([0.8579, 1.2869, 1.5014])
    """
    tensors = (drive, inner, outer, offset, decay, gain, initial)
    _check(*tensors, activation)
    if backend == "eager" or deep or not _fusable(*tensors):
        return elm_memory_reference(*tensors, deep=deep, activation=activation)
    return _forward(*tensors, activation) if plain(*tensors) else _op(*tensors, activation)


def elm_memory_reference(
    drive: Tensor,
    inner: Tensor,
    outer: Tensor,
    offset: Tensor,
    decay: Tensor,
    gain: Tensor,
    initial: Tensor,
    *,
    deep: Sequence[tuple[Tensor, Tensor]] = (),
    activation: str = "relu",
) -> Tensor:
    """The same equations step by step in torch; differentiable any number of times."""
    m, out = initial, []
    for u in drive.unbind(0):
        m = elm_step(u, inner, outer, offset, decay, gain, m, deep=deep, activation=activation)
        out.append(m)
    return torch.stack(out) if out else drive.new_empty((0, *initial.shape))


def elm_step(
    drive: Tensor,
    inner: Tensor,
    outer: Tensor,
    offset: Tensor,
    decay: Tensor,
    gain: Tensor,
    m: Tensor,
    *,
    deep: Sequence[tuple[Tensor, Tensor]] = (),
    activation: str = "relu",
) -> Tensor:
    """One step in torch: drive `[batch, neuron, hidden]` and m `[batch, neuron, memory]` give the next m."""
    function = elm_activation(activation)
    d = decay * m
    hidden = function(drive + torch.einsum("nhm,bnm->bnh", inner, d))
    for weight, bias in deep:
        hidden = function(torch.einsum("nkh,bnh->bnk", weight, hidden) + bias)
    return d + gain * (AMPLITUDE * torch.tanh(SLOPE * (torch.einsum("nmh,bnh->bnm", outer, hidden) + offset)))


def elm_activation(name: str) -> Callable[[Tensor], Tensor]:
    """The torch function of an activation's name."""
    if name not in ELM_ACTIVATIONS:
        raise UnknownNameError.among("activation", name, ELM_ACTIVATIONS)
    functions: dict[str, Callable[[Tensor], Tensor]] = {"relu": torch.relu, "silu": torch.nn.functional.silu}
    return functions.get(name, lambda z: z)


def _slope(name: str, z: Tensor) -> Tensor:
    if name == "relu":
        return (z > 0).to(z.dtype)
    if name == "silu":
        s = torch.sigmoid(z)
        return s * (1 + z * (1 - s))
    return torch.ones_like(z)


def _apply(weight: Tensor, vector: Tensor) -> Tensor:
    """`weight[n] @ vector[t, b, n]` for each neuron, over all steps at once."""
    if len(weight) == 1:
        return torch.nn.functional.linear(vector, weight[0])
    return torch.einsum("nij,tbnj->tbni", weight, vector)


def _products(left: Tensor, right: Tensor) -> Tensor:
    """Σ over steps and samples of `left rightᵀ`, for each neuron."""
    if left.shape[2] == 1:
        return (left.flatten(0, 2).T @ right.flatten(0, 2)).unsqueeze(0)
    return torch.einsum("tbni,tbnj->nij", left, right)


def _check(
    drive: Tensor,
    inner: Tensor,
    outer: Tensor,
    offset: Tensor,
    decay: Tensor,
    gain: Tensor,
    initial: Tensor,
    activation: str,
) -> None:
    if activation not in ELM_ACTIVATIONS:
        raise UnknownNameError.among("activation", activation, ELM_ACTIVATIONS)
    if drive.dim() != 4 or inner.dim() != 3:
        raise ShapeError(
            "drive and weight have the wrong number of dimensions",
            given=(tuple(drive.shape), tuple(inner.shape)),
            expected="[time, batch, neuron, hidden] and [neuron, hidden, memory]",
        )
    _, batch, neurons, hidden = drive.shape
    memory = inner.shape[2]
    expected = {
        "inner": (neurons, hidden, memory),
        "outer": (neurons, memory, hidden),
        "offset": (neurons, memory),
        "decay": (neurons, memory),
        "gain": (neurons, memory),
        "initial": (batch, neurons, memory),
    }
    for (name, shape), tensor in zip(expected.items(), (inner, outer, offset, decay, gain, initial), strict=True):
        if tensor.shape != shape:
            raise ShapeError(f"{name} does not fit the drive", given=tuple(tensor.shape), expected=shape)
        if tensor.dtype != drive.dtype or not drive.is_floating_point():
            raise DtypeError("all need one floating-point dtype", given=(drive.dtype, tensor.dtype))


def _fusable(*tensors: Tensor) -> bool:
    if any(t.device.type != "cpu" or t.dtype not in (torch.float32, torch.float64) for t in tensors):
        return False
    return torch.compiler.is_compiling() or not out_of_reach(tensors)


def _rows(weight: Tensor) -> Any:
    """`[neuron, row, column]` for the loops: rows filled with zeros up to a multiple of four."""
    return pad(weight.detach(), (0, 0, 0, -weight.shape[1] % 4)).contiguous().numpy()


def _forward(
    drive: Tensor,
    inner: Tensor,
    outer: Tensor,
    offset: Tensor,
    decay: Tensor,
    gain: Tensor,
    initial: Tensor,
    activation: str,
) -> Tensor:
    out = empty((len(drive), *initial.shape), drive)
    columns = _rows(inner.transpose(1, 2)), _rows(outer.transpose(1, 2))
    rest = [t.detach().contiguous().numpy() for t in (offset, decay, AMPLITUDE * gain, initial)]
    u, kind, m, loop = drive.detach().contiguous().numpy(), ELM_ACTIVATIONS.index(activation), out.numpy(), "_forward"
    run = compiled(loop)
    spread(lambda first, last: run(u, *columns, *rest, kind, m, first, last), drive.shape[1])
    return out


_op = torch.library.custom_op("plexus::elm_memory", _forward, mutates_args=())


@_op.register_fake
def _(
    drive: Tensor,
    inner: Tensor,
    outer: Tensor,
    offset: Tensor,
    decay: Tensor,
    gain: Tensor,
    initial: Tensor,
    activation: str,
) -> Tensor:
    return torch.empty((drive.shape[0], *initial.shape), dtype=drive.dtype)


@torch.library.custom_op("plexus::elm_memory_backward", mutates_args=())
def _op_backward(
    grad: Tensor, slope_in: Tensor, slope_out: Tensor, inner: Tensor, outer: Tensor, decay: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """δ, p and λ of the equations above, and dL/dm[-1]."""
    delta, p, total = empty(tuple(slope_in.shape), grad), empty(tuple(grad.shape), grad), empty(tuple(grad.shape), grad)
    carry = grad.new_zeros(grad.shape[1:])
    given = [t.detach().contiguous().numpy() for t in (grad, slope_in, slope_out)]
    rows, kappa = (_rows(inner), _rows(outer)), decay.detach().contiguous().numpy()
    found, run = [t.numpy() for t in (delta, p, total, carry)], compiled("_backward")
    spread(lambda first, last: run(*given, *rows, kappa, *found, first, last), grad.shape[1])
    return delta, p, total, carry


@_op_backward.register_fake
def _(
    grad: Tensor, slope_in: Tensor, slope_out: Tensor, inner: Tensor, outer: Tensor, decay: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    shapes = (slope_in.shape, grad.shape, grad.shape, grad.shape[1:])
    one, two, three, four = (torch.empty(shape, dtype=grad.dtype) for shape in shapes)
    return one, two, three, four


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.activation = inputs
    ctx.save_for_backward(*tensors, output)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    *tensors, memory = ctx.saved_tensors
    drive, inner, outer, offset, decay, gain, initial = tensors
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():  # a second derivative is wanted
        with torch.enable_grad():
            copies = [t.view_as(t) for t in tensors]
            out = elm_memory_reference(*copies, activation=ctx.activation)
            wanted = [t for t, needed in zip(copies, ctx.needs_input_grad, strict=False) if needed]
            found = iter(torch.autograd.grad(out, wanted, grad, create_graph=True, allow_unused=True))
        return (*(next(found) if needed else None for needed in ctx.needs_input_grad[:7]), None)
    before = torch.cat([initial.unsqueeze(0), memory])[:-1]
    d = decay * before
    z = drive + _apply(inner, d)
    hidden = elm_activation(ctx.activation)(z)
    r = torch.tanh(SLOPE * (_apply(outer, hidden) + offset))
    slope_out = (AMPLITUDE * SLOPE) * gain * (1 - r * r)
    delta, p, total, carry = _op_backward(grad, _slope(ctx.activation, z), slope_out, inner, outer, decay)
    needs = ctx.needs_input_grad
    return (
        delta,
        _products(delta, d) if needs[1] else None,
        _products(p, hidden) if needs[2] else None,
        p.sum((0, 1)) if needs[3] else None,
        ((total + _apply(inner.transpose(1, 2), delta)) * before).sum((0, 1)) if needs[4] else None,
        AMPLITUDE * (r * total).sum((0, 1)) if needs[5] else None,
        carry,
        None,
    )


_op.register_autograd(_backward, setup_context=_save)
