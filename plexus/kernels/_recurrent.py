"""A model's operator with recurrent weights: what the units emit comes back to their inputs one step later.

    i_k[t] = x_k[t] + W_k z[t-1]            for each input k that has a W; z: the state that echoes the output

It has the same rules and the same ways out as `_operator.Operator`; `eager_recurrent_loop` is its reference.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from plexus.kernels._frame import Dynamics, Options, options_from, out_of_reach, spike_function
from plexus.kernels._operator import (
    BACKENDS,
    Direct,
    filled_grads,
    gradients_again,
    overlooked,
    summed_over_samples,
    with_echo,
)
from plexus.kernels._products import dense

__all__ = ["RecurrentOperator", "eager_recurrent_loop"]


def eager_recurrent_loop(
    dynamics: Dynamics,
    inputs: Sequence[Tensor],
    memory: Sequence[Tensor],
    columns: Sequence[Tensor],
    weights: Sequence[Tensor | None],
    constants: Sequence[float],
    o: Options,
    spike: Callable[[Tensor], Tensor],
) -> tuple[Tensor, ...]:
    """The reference, step after step; weights `[unit (to), unit (from)]` or None, one for each input."""
    assert dynamics.echo is not None
    echo, outputs = dynamics.states.index(dynamics.echo), []
    for now in zip(*(x.unbind(0) for x in inputs), strict=True):
        z = memory[echo].flatten(1)
        driven = [
            x if w is None else torch.addmm(x.flatten(1), z, w.T).view(x.shape)
            for x, w in zip(now, weights, strict=True)
        ]
        out, *memory = dynamics.step(*driven, *memory, *columns, *constants, spike, o)
        outputs.append(out)
    return (torch.stack(outputs) if outputs else torch.zeros_like(inputs[0]), *memory)


class RecurrentOperator:
    """`operator(inputs, memory, columns, weights, places, constants, options) -> (out, *memory)` for one model.

    Weights come one for each input: `[unit, unit]`, or the values `[synapse]` of a sparse one, or empty; places are two
    for each input, starts and targets of a sparse weight (see `_products`), else empty.
    """

    def __init__(self, dynamics: Dynamics) -> None:
        self.dynamics = dynamics
        name = f"plexus::{dynamics.name}_recurrent"
        given = (
            "Tensor[] inputs, Tensor[] memory, Tensor[] columns, Tensor[] weights, Tensor[] places, float[] constants, "
        )
        schema = f"({given}str options, bool keep) -> Tensor[]"
        self._forward = torch.library.custom_op(name, self._run, mutates_args=(), schema=schema)
        self._forward.register_fake(self._fake)
        schema = (
            f"({given}str options, Tensor[] currents, Tensor out, Tensor grad, Tensor[] grad_states, bool learn, "
            "bool[] learn_weights) -> Tensor[]"
        )
        self._backward = torch.library.custom_op(f"{name}_backward", self._run_back, mutates_args=(), schema=schema)
        self._backward.register_fake(self._fake_back)
        self._forward.register_autograd(self._differentiate, setup_context=self._save)

    def __call__(
        self,
        inputs: Sequence[Tensor],
        memory: Sequence[Tensor],
        columns: Sequence[Tensor],
        weights: Sequence[Tensor],
        places: Sequence[Tensor],
        constants: Sequence[float],
        options: str,
    ) -> tuple[Tensor, ...]:
        tensors = [*inputs, *memory, *columns, *weights]
        if out_of_reach(tensors):
            return self.eager(inputs, memory, columns, weights, places, constants, options)
        keep = torch.is_grad_enabled() and any(t.requires_grad for t in tensors)
        groups = [list(part) for part in (inputs, memory, columns, weights, places)]
        rest = (list(constants), options, keep)
        if not overlooked([*tensors, *places]):
            out, *after = self._forward(*groups, *rest)
        elif keep:
            out, *after = Direct.apply(self, [len(group) for group in groups], rest, *tensors, *places)  # type: ignore[no-untyped-call]
        else:
            out, *after = self._run(*groups, *rest)
        return with_echo(self.dynamics, out, memory, after[: len(memory) - 1])

    def takes(self, x: Tensor) -> bool:
        """Is there a fused loop for this tensor's device and dtype?"""
        backend = BACKENDS.get(x.device.type)
        return backend is not None and backend.recurrent_forward is not None and x.dtype in backend.dtypes

    def eager(
        self,
        inputs: Sequence[Tensor],
        memory: Sequence[Tensor],
        columns: Sequence[Tensor],
        weights: Sequence[Tensor],
        places: Sequence[Tensor],
        constants: Sequence[float],
        options: str,
        slope: Callable[[Tensor], Tensor] | None = None,
    ) -> tuple[Tensor, ...]:
        """The same by the eager reference; `slope` is a surrogate derivative given as a function."""
        o = options_from(self.dynamics, options)
        *plain, width, height = constants
        spike = spike_function(o, width, height, slope)
        full = [
            w if w.dim() == 2 else dense(w, *places[2 * k : 2 * k + 2]) if w.numel() else None
            for k, w in enumerate(weights)
        ]
        return eager_recurrent_loop(self.dynamics, inputs, memory, columns, full, plain, o, spike)

    def _run(self, *arguments: Any) -> list[Tensor]:
        run = BACKENDS[arguments[0][0].device.type].recurrent_forward
        assert run is not None
        return run(self.dynamics, *arguments)

    def _run_back(self, *arguments: Any) -> list[Tensor]:
        run = BACKENDS[arguments[0][0].device.type].recurrent_backward
        assert run is not None
        return run(self.dynamics, *arguments)

    def _fake(self, *arguments: Any) -> list[Tensor]:
        inputs, memory, _, weights, *_, keep = arguments
        kept = [m for name, m in zip(self.dynamics.memory, memory, strict=True) if name != self.dynamics.echo]
        currents = [x.new_empty(x.shape if keep and w.numel() else (0,)) for x, w in zip(inputs, weights, strict=True)]
        return [inputs[0].new_empty(inputs[0].shape), *(m.new_empty(m.shape) for m in kept), *currents]

    def _fake_back(self, *arguments: Any) -> list[Tensor]:
        inputs, memory, _, weights, *_, learn, learn_weights = arguments
        x, shape = inputs[0], memory[0].shape
        return [
            *(x.new_empty(x.shape) for x in inputs),
            *(x.new_empty(shape) for _ in self.dynamics.states),
            *(x.new_empty(shape if learn else (0,)) for _ in self.dynamics.parameters),
            *(w.new_empty(w.shape if wanted else (0,)) for w, wanted in zip(weights, learn_weights, strict=True)),
        ]

    @staticmethod
    def _save(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
        given, memory, columns, weights, places, ctx.constants, ctx.options, _ = inputs
        ctx.set_materialize_grads(False)
        ctx.learn = any(column.requires_grad for column in columns)
        ctx.learn_weights = [w.requires_grad for w in weights]
        ctx.sizes = [len(part) for part in (given, memory, columns, weights, places)]
        currents = output[len(output) - len(given) :]
        ctx.save_for_backward(*given, *memory, *columns, *weights, *places, *currents, output[0])

    def _differentiate(self, ctx: Any, grads: Sequence[Tensor | None]) -> tuple[Any, ...]:
        d, (*saved, out) = self.dynamics, ctx.saved_tensors
        parts = []
        for size in ctx.sizes:
            parts.append(saved[:size])
            saved = saved[size:]
        inputs, memory, columns, weights, places = parts
        nothing = [None] * len(places)
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            found = gradients_again(partial(self._eagerly, ctx, places), d, parts[:4], grads)
            return (*found, nothing, None, None, None)
        grad, grad_states = filled_grads(d, inputs[0], memory, grads)
        tensors = [grad, out, *saved, *(t for part in parts for t in part)]
        back: Any = self._run_back if overlooked(tensors) else self._backward
        found = back(*parts, ctx.constants, ctx.options, saved, out, grad, grad_states, ctx.learn, ctx.learn_weights)
        groups = []
        for size in (len(inputs), len(d.states), len(d.parameters), len(weights)):
            groups.append(found[:size])
            found = found[size:]
        d_inputs, d_states, d_columns, d_weights = groups
        d_memory = [*d_states, *(None for _ in d.counters)]
        learnt = summed_over_samples(d_columns if ctx.learn else [], columns)
        d_weights = [g if wanted else None for g, wanted in zip(d_weights, ctx.learn_weights, strict=True)]
        return d_inputs, d_memory, learnt, d_weights, nothing, None, None, None

    def _eagerly(self, ctx: Any, places: list[Tensor], *groups: Any) -> tuple[Tensor, ...]:
        inputs, memory, columns, weights = groups
        return self.eager(inputs, memory, columns, weights, places, ctx.constants, ctx.options)
