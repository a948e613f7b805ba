"""The product of samples with a sparse weight of any shape, and its derivatives; by events where inputs are zero.

    out[r, i] = Σ_k values[k] x[r, source_k]  over the synapses k that lead to i

Weights are kept by columns, as in `SparseWeight`. The loops are those of the recurrent layers; `sparse_reference`
writes the matrix out and runs on other devices, under `torch.func`, forward-mode derivatives and second derivatives.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from plexus.errors import DtypeError, ShapeError
from plexus.kernels._products import SparseWeight, product

__all__ = ["sparse_linear", "sparse_reference"]


def sparse_linear(x: Tensor, weight: SparseWeight, units: int) -> Tensor:
    """x `[row, source]` through a sparse weight into `[row, target]` with `units` targets.

    Raises:
        ShapeError: the sources do not match. DtypeError: dtypes differ.

    Examples:
        >>> weight = SparseWeight.of(torch.tensor([[0.0, 2.0, 0.0], [3.0, 0.0, 0.0]]))
        >>> sparse_linear(torch.tensor([[1.0, 10.0, 5.0]]), weight, 2)
        tensor([[20.,  3.]])
    """
    if x.dim() != 2 or x.shape[1] != len(weight.starts) - 1:
        raise ShapeError(
            "the input does not fit the weight", given=tuple(x.shape), expected=f"[row, {len(weight.starts) - 1}]"
        )
    if x.dtype != weight.values.dtype:
        raise DtypeError("input and weight need one dtype", given=(x.dtype, weight.values.dtype))
    if not fusable(x, weight.values):
        return sparse_reference(x, weight, units)
    result: Tensor = _sparse(x, *weight, units)
    return result


def sparse_reference(x: Tensor, weight: SparseWeight, units: int) -> Tensor:
    """The same through the whole matrix; differentiable any number of times."""
    inputs = len(weight.starts) - 1
    sources = torch.repeat_interleave(
        torch.arange(inputs, device=x.device), weight.starts.diff(), output_size=len(weight.targets)
    )
    matrix = weight.values.new_zeros(inputs * units).scatter(0, sources * units + weight.targets, weight.values)
    return x @ matrix.view(inputs, units)


def fusable(*tensors: Tensor) -> bool:
    if any(t.device.type != "cpu" or t.dtype not in (torch.float32, torch.float64) for t in tensors):
        return False
    if torch._C._functorch.peek_interpreter_stack() is not None:
        return False
    if torch.autograd.forward_ad._current_level < 0:  # asking each tensor takes longer than a small product
        return True
    return all(torch.autograd.forward_ad.unpack_dual(t).tangent is None for t in tensors)


@torch.library.custom_op("plexus::sparse_linear", mutates_args=())
def _sparse(x: Tensor, values: Tensor, starts: Tensor, targets: Tensor, units: int) -> Tensor:
    out = torch.zeros(x.shape[0], units, dtype=x.dtype)
    synapses = product(values, starts, targets)
    if synapses is not None:
        synapses.add(out.clone(), x.detach().contiguous(), out)
    return out


@_sparse.register_fake
def _(x: Tensor, values: Tensor, starts: Tensor, targets: Tensor, units: int) -> Tensor:
    return torch.empty(x.shape[0], units, dtype=x.dtype, device=x.device)


@torch.library.custom_op("plexus::sparse_linear_back", mutates_args=())
def _sparse_back(x: Tensor, values: Tensor, starts: Tensor, targets: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    delta, z = grad.detach().contiguous(), x.detach().contiguous()
    to_x = torch.zeros(z.shape, dtype=z.dtype)
    synapses = product(values, starts, targets)
    if synapses is None or not len(z):
        return to_x, torch.zeros(values.shape, dtype=values.dtype)
    synapses.add_back(to_x, delta, to_x)
    return to_x, synapses.gradient(delta.unsqueeze(0), z.unsqueeze(0), z)


@_sparse_back.register_fake
def _(x: Tensor, values: Tensor, starts: Tensor, targets: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty(x.shape, dtype=x.dtype, device=x.device), torch.empty(
        values.shape, dtype=values.dtype, device=x.device
    )


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, values, starts, targets, ctx.units = inputs
    ctx.save_for_backward(x, values, starts, targets)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, values, starts, targets = ctx.saved_tensors
    needed = ctx.needs_input_grad[:2]
    if torch.is_grad_enabled():  # a second derivative is wanted
        out = sparse_reference(x, SparseWeight(values, starts, targets), ctx.units)
        wanted = [tensor for tensor, need in zip((x, values), needed, strict=True) if need]
        found = iter(torch.autograd.grad(out, wanted, grad, create_graph=True))
        first, second = [next(found) if need else None for need in needed]
        return first, second, None, None, None
    to_x, to_values = _sparse_back(x, values, starts, targets, grad)
    return (to_x if needed[0] else None), (to_values if needed[1] else None), None, None, None


_sparse.register_autograd(_backward, setup_context=_setup)
