"""A model's operator: a `torch.library` custom op with its fake and gradient rules, and the way to the eager loop.

The eager reference runs instead of the fused loop under `torch.func` transforms, forward-mode AD and double backward,
and for devices, dtypes and spike functions that no fused backend takes. A backend is a pair of functions registered for
a type of device.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from plexus.kernels import _numba
from plexus.kernels._frame import Dynamics, eager_loop, options_from, spike_function

__all__ = ["BACKENDS", "Backend", "Operator"]


@dataclass(frozen=True)
class Backend:
    """Fused loops for one type of device.

    `forward(dynamics, inputs, memory, columns, constants, options) -> [out, *memory]`, without the state that echoes
    the output, and `backward(dynamics, inputs, memory, columns, constants, options, grad, grad_states, learn)
    -> [*d_inputs, *d_states, *d_parameters]`, the last as one number per column (unit of one sample).
    """

    name: str
    dtypes: tuple[torch.dtype, ...]
    forward: Callable[..., list[Tensor]]
    backward: Callable[..., list[Tensor]]


BACKENDS: dict[str, Backend] = {
    "cpu": Backend("numba", (torch.float32, torch.float64), _numba.forward, _numba.backward),
}


def _transformed() -> bool:
    """Is a `torch.func` transform active?"""
    return torch._C._functorch.peek_interpreter_stack() is not None


def _is_dual(tensors: Sequence[Tensor]) -> bool:
    """Does a forward-mode tangent ride on one of the tensors?"""
    if forward_ad._current_level < 0:
        return False
    return any(forward_ad.unpack_dual(t).tangent is not None for t in tensors)


class Operator:
    """`operator(inputs, memory, columns, constants, options) -> (out, *memory)` for one model."""

    def __init__(self, dynamics: Dynamics) -> None:
        self.dynamics = dynamics
        self._echo = None if dynamics.echo is None else dynamics.states.index(dynamics.echo)
        name = f"plexus::{dynamics.name}"
        schema = "(Tensor[] inputs, Tensor[] memory, Tensor[] columns, float[] constants, str options) -> Tensor[]"
        self._forward = torch.library.custom_op(name, self._run, mutates_args=(), schema=schema)
        self._forward.register_fake(self._fake)
        schema = (
            "(Tensor[] inputs, Tensor[] memory, Tensor[] columns, float[] constants, str options, "
            "Tensor grad, Tensor[] grad_states, bool learn) -> Tensor[]"
        )
        self._backward = torch.library.custom_op(f"{name}_backward", self._run_back, mutates_args=(), schema=schema)
        self._backward.register_fake(self._fake_back)
        self._forward.register_autograd(self._differentiate, setup_context=self._save)

    def __call__(
        self,
        inputs: Sequence[Tensor],
        memory: Sequence[Tensor],
        columns: Sequence[Tensor],
        constants: Sequence[float],
        options: str,
    ) -> tuple[Tensor, ...]:
        if not torch.compiler.is_compiling() and (_transformed() or _is_dual([*inputs, *memory, *columns])):
            return self.eager(inputs, memory, columns, constants, options)
        out, *after = self._forward(list(inputs), list(memory), list(columns), list(constants), options)
        if self._echo is not None:
            # cut from the output here, so that autograd sees where it comes from
            after.insert(self._echo, out[-1].clone() if len(out) else memory[self._echo])
        return (out, *after)

    def takes(self, x: Tensor) -> bool:
        """Is there a fused loop for this tensor's device and dtype?"""
        backend = BACKENDS.get(x.device.type)
        return backend is not None and x.dtype in backend.dtypes

    def eager(
        self,
        inputs: Sequence[Tensor],
        memory: Sequence[Tensor],
        columns: Sequence[Tensor],
        constants: Sequence[float],
        options: str,
        slope: Callable[[Tensor], Tensor] | None = None,
    ) -> tuple[Tensor, ...]:
        """The same by the eager reference; `slope` is a surrogate derivative given as a function."""
        o = options_from(self.dynamics, options)
        *plain, width, height = constants
        spike = spike_function(o, width, height, slope)
        return eager_loop(self.dynamics, inputs, memory, columns, plain, o, spike)

    def _run(
        self, inputs: list[Tensor], memory: list[Tensor], columns: list[Tensor], constants: list[float], options: str
    ) -> list[Tensor]:
        return BACKENDS[inputs[0].device.type].forward(self.dynamics, inputs, memory, columns, constants, options)

    def _fake(
        self, inputs: list[Tensor], memory: list[Tensor], columns: list[Tensor], constants: list[float], options: str
    ) -> list[Tensor]:
        x = inputs[0]
        return [x.new_empty(x.shape), *(m.new_empty(m.shape) for k, m in enumerate(memory) if k != self._echo)]

    def _run_back(
        self,
        inputs: list[Tensor],
        memory: list[Tensor],
        columns: list[Tensor],
        constants: list[float],
        options: str,
        grad: Tensor,
        grad_states: list[Tensor],
        learn: bool,
    ) -> list[Tensor]:
        backend = BACKENDS[inputs[0].device.type]
        return backend.backward(self.dynamics, inputs, memory, columns, constants, options, grad, grad_states, learn)

    def _fake_back(
        self,
        inputs: list[Tensor],
        memory: list[Tensor],
        columns: list[Tensor],
        constants: list[float],
        options: str,
        grad: Tensor,
        grad_states: list[Tensor],
        learn: bool,
    ) -> list[Tensor]:
        x, shape = inputs[0], memory[0].shape
        n_states, n_parameters = len(self.dynamics.states), len(self.dynamics.parameters)
        return [
            *(x.new_empty(x.shape) for x in inputs),
            *(x.new_empty(shape) for _ in range(n_states)),
            *(x.new_empty(shape if learn else (0,)) for _ in range(n_parameters)),
        ]

    @staticmethod
    def _save(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
        given, memory, columns, ctx.constants, ctx.options = inputs
        ctx.set_materialize_grads(False)
        ctx.ends = len(given), len(given) + len(memory)
        ctx.learn = any(column.requires_grad for column in columns)
        ctx.save_for_backward(*given, *memory, *columns)

    def _differentiate(self, ctx: Any, grads: Sequence[Tensor | None]) -> tuple[Any, ...]:
        d, saved = self.dynamics, ctx.saved_tensors
        first, second = ctx.ends
        inputs, memory, columns = saved[:first], saved[first:second], saved[second:]
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            return self._differentiate_eagerly(ctx, grads, saved)
        grad = grads[0]
        if grad is None:
            grad = inputs[0].new_zeros(inputs[0].shape[1:]).expand(inputs[0].shape)
        incoming = iter(grads[1:])
        grad_states = [torch.zeros_like(m) if k == self._echo else next(incoming) for k, m in enumerate(memory)]
        grad_states = [
            torch.zeros_like(m) if g is None else g for g, m in zip(grad_states[: len(d.states)], memory, strict=False)
        ]
        found = self._backward(
            list(inputs), list(memory), list(columns), ctx.constants, ctx.options, grad, grad_states, ctx.learn
        )
        d_inputs, found = found[:first], found[first:]
        d_memory: list[Tensor | None] = [*found[: len(d.states)], *(None for _ in d.counters)]
        d_columns: list[Tensor | None] = [None] * len(columns)
        if ctx.learn:
            for k, (summand, column) in enumerate(zip(found[len(d.states) :], columns, strict=False)):
                d_columns[k] = (
                    summand.sum().reshape(1) if column.numel() == 1 else summand.reshape(-1, column.numel()).sum(0)
                )
        return d_inputs, d_memory, d_columns, None, None

    def _differentiate_eagerly(
        self, ctx: Any, grads: Sequence[Tensor | None], saved: Sequence[Tensor]
    ) -> tuple[Any, ...]:
        """Gradients that can be differentiated again."""
        first, second = ctx.ends
        with torch.enable_grad():
            copies = [t.view_as(t) for t in saved]
            outputs = list(
                self.eager(copies[:first], copies[first:second], copies[second:], ctx.constants, ctx.options)
            )
            if self._echo is not None:
                outputs.pop(1 + self._echo)
            pairs = [(o, g) for o, g in zip(outputs, grads, strict=True) if g is not None and o.requires_grad]
            wanted = [c for c in copies if c.requires_grad]
            found = iter(
                torch.autograd.grad(
                    [o for o, _ in pairs], wanted, [g for _, g in pairs], create_graph=True, allow_unused=True
                )
            )
        result = [next(found) if c.requires_grad else None for c in copies]
        return result[:first], result[first:second], result[second:], None, None
