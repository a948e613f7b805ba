"""A model's operator: a `torch.library` custom op with its fake and gradient rules, and the way to the eager loop.

The eager reference runs instead of the fused loop under `torch.func` transforms, forward-mode AD and double backward,
and for devices, dtypes and spike functions that no fused backend takes. A backend is a pair of functions registered for
a type of device. Where nothing looks on (`overlooked`), the fused loop is called without torch's dispatcher, which
takes longer than a small layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from plexus.kernels import _numba, _recurrent_loop, _triton, _triton_recurrent
from plexus.kernels._frame import Dynamics, eager_loop, options_from, out_of_reach, spike_function

__all__ = ["BACKENDS", "Backend", "Direct", "Operator", "overlooked"]


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
    recurrent_forward: Callable[..., list[Tensor]] | None = None
    recurrent_backward: Callable[..., list[Tensor]] | None = None


BACKENDS: dict[str, Backend] = {
    "cpu": Backend(
        "numba",
        (torch.float32, torch.float64),
        _numba.forward,
        _numba.backward,
        _recurrent_loop.recurrent_forward,
        _recurrent_loop.recurrent_backward,
    ),
}
# a PyTorch built for GPUs and Triton beside it; whether a GPU is there is known when a tensor lies on one
if torch.backends.cuda.is_built() and _triton.installed():
    BACKENDS["cuda"] = Backend(
        "triton",
        (torch.float32, torch.float64),
        _triton.forward,
        _triton.backward,
        _triton_recurrent.recurrent_forward,
        _triton_recurrent.recurrent_backward,
    )


def overlooked(tensors: Iterable[Tensor]) -> bool:
    """Does nothing look on that has to see an operator: no compiler, tracer, transform, mode or tensor subclass?"""
    return not (
        torch.compiler.is_compiling()
        or torch._C._functorch.peek_interpreter_stack() is not None
        or torch._C._len_torch_dispatch_stack()
        or torch._C._get_tracing_state() is not None
        or any(type(t) is not Tensor and type(t) is not nn.Parameter for t in tensors)
    )


class Direct(torch.autograd.Function):
    """A fused loop with its gradient rule, and no operator in between.

    `apply(operator, sizes, rest, *tensors)`: the tensors in groups of these sizes, and what follows them, are the
    arguments of `operator._run`; `operator._save` and `operator._differentiate` are the rule.
    """

    @staticmethod
    def forward(ctx: Any, operator: Any, sizes: Sequence[int], rest: Sequence[Any], *tensors: Tensor) -> Any:
        remaining = iter(tensors)
        groups = [[next(remaining) for _ in range(size)] for size in sizes]
        out = operator._run(*groups, *rest)
        ctx.operator = operator
        operator._save(ctx, (*groups, *rest), out)
        return tuple(out)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> Any:
        groups = (part for part in ctx.operator._differentiate(ctx, grads) if part is not None)
        return None, None, None, *(found for group in groups for found in group)


def with_echo(dynamics: Dynamics, out: Tensor, memory: Sequence[Tensor], after: list[Tensor]) -> tuple[Tensor, ...]:
    """Output and states, the one that echoes the output cut from it: so autograd sees where it comes from."""
    if dynamics.echo is not None:
        echo = dynamics.states.index(dynamics.echo)
        after = [*after[:echo], out[-1].clone() if len(out) else memory[echo], *after[echo:]]
    return (out, *after)


def filled_grads(
    dynamics: Dynamics, like: Tensor, memory: Sequence[Tensor], grads: Sequence[Tensor | None]
) -> tuple[Tensor, list[Tensor]]:
    """Gradients of the output and of all states, from those of what an operator returns; zeros where there are none."""
    grad, incoming = grads[0], iter(grads[1:])
    if grad is None:
        grad = like.new_zeros(like.shape[1:]).expand(like.shape)
    states = []
    for name, m in zip(dynamics.states, memory, strict=False):
        given = None if name == dynamics.echo else next(incoming)
        states.append(torch.zeros_like(m) if given is None else given)
    return grad, states


def summed_over_samples(found: Sequence[Tensor], columns: Sequence[Tensor]) -> list[Tensor | None]:
    """Gradients of the parameters from one number per column; None for the settings after them."""
    sums: list[Tensor | None] = [
        g.sum().reshape(1) if column.numel() == 1 else g.sum(0) for g, column in zip(found, columns, strict=False)
    ]
    return sums + [None] * (len(columns) - len(sums))


def gradients_again(
    run: Callable[..., tuple[Tensor, ...]],
    dynamics: Dynamics,
    groups: Sequence[Sequence[Tensor]],
    grads: Sequence[Tensor | None],
) -> list[list[Tensor | None]]:
    """Gradients that can be differentiated again, by the eager reference `run(*groups)`; grouped like the tensors."""
    with torch.enable_grad():
        copies = [[t.view_as(t) for t in group] for group in groups]
        outputs = list(run(*copies))
        if dynamics.echo is not None:
            outputs.pop(1 + dynamics.states.index(dynamics.echo))
        pairs = [(o, g) for o, g in zip(outputs, grads, strict=False) if g is not None and o.requires_grad]
        wanted = [c for group in copies for c in group if c.requires_grad]
        found = iter(
            torch.autograd.grad(
                [o for o, _ in pairs], wanted, [g for _, g in pairs], create_graph=True, allow_unused=True
            )
        )
    return [[next(found) if c.requires_grad else None for c in group] for group in copies]


class Operator:
    """`operator(inputs, memory, columns, constants, options) -> (out, *memory)` for one model."""

    def __init__(self, dynamics: Dynamics) -> None:
        self.dynamics = dynamics
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
        if out_of_reach([*inputs, *memory, *columns]):
            return self.eager(inputs, memory, columns, constants, options)
        groups, rest = (list(inputs), list(memory), list(columns)), (list(constants), options)
        tensors = [t for group in groups for t in group]
        if not overlooked(tensors):
            out, *after = self._forward(*groups, *rest)
        elif torch.is_grad_enabled() and any(t.requires_grad for t in tensors):
            out, *after = Direct.apply(self, [len(group) for group in groups], rest, *tensors)  # type: ignore[no-untyped-call]
        else:
            out, *after = self._run(*groups, *rest)
        return with_echo(self.dynamics, out, memory, after)

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
        kept = [m for name, m in zip(self.dynamics.memory, memory, strict=True) if name != self.dynamics.echo]
        return [x.new_empty(x.shape), *(m.new_empty(m.shape) for m in kept)]

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
        inputs, memory, columns = list(saved[:first]), list(saved[first:second]), list(saved[second:])
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            return (*gradients_again(partial(self._eagerly, ctx), d, (inputs, memory, columns), grads), None, None)
        grad, grad_states = filled_grads(d, inputs[0], memory, grads)
        back = self._run_back if overlooked([grad, *saved]) else self._backward
        found = back(inputs, memory, columns, ctx.constants, ctx.options, grad, grad_states, ctx.learn)
        d_inputs, d_states, d_columns = (
            found[:first],
            found[first : first + len(d.states)],
            found[first + len(d.states) :],
        )
        d_memory: list[Tensor | None] = [*d_states, *(None for _ in d.counters)]
        return d_inputs, d_memory, summed_over_samples(d_columns if ctx.learn else [], columns), None, None

    def _eagerly(self, ctx: Any, *groups: Any) -> tuple[Tensor, ...]:
        inputs, memory, columns = groups
        return self.eager(inputs, memory, columns, ctx.constants, ctx.options)
