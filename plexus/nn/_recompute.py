"""Activation checkpointing over time.

Backpropagation through T steps keeps what every layer computed at every step. Here time is cut into √T stretches, and
only the state between two stretches is kept; backward runs one stretch again at a time. Memory then grows with √T in
place of T, beside the input and the output themselves, for one more forward pass.

Source: Chen et al. 2016, Training deep nets with sublinear memory cost.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from plexus.errors import RangeError, UnsupportedError
from plexus.kernels._frame import out_of_reach

__all__ = ["recompute"]


def recompute(
    network: Callable[..., tuple[Tensor, Any]], x: Tensor, state: Any = None, *, stretches: int | None = None
) -> tuple[Tensor, Any]:
    """`out, state = recompute(network, x)`: as `network(x, state)`, in memory that grows with the root of time.

    Output and gradients are those of the plain call. What is drawn at random is drawn again alike: from the global
    generators, and from generators that the network's modules hold.

    Args:
        network: any module with a state, `out, state = network(x, state)`, time first; its output has x's time.
        x: input `[time, batch, …]`.
        state: where to start; None is rest.
        stretches: into how many pieces to cut time; by default about √T.

    Returns:
        The network's output and state.

    Raises:
        RangeError: there are fewer than one stretch.
        UnsupportedError: the network holds batch normalisation that would take its statistics from a stretch.

    Examples:
        >>> from plexus.nn import LIF, Sequential
        >>> net = Sequential(nn.Linear(3, 4), LIF(4), nn.Linear(4, 1))
        >>> x = torch.rand(100, 2, 3)
        >>> torch.allclose(recompute(net, x)[0], net(x)[0])
        True
    """
    modules = list(network.modules()) if isinstance(network, nn.Module) else []
    return in_stretches(network, modules, x, state, stretches)


def in_stretches(
    run: Callable[..., tuple[Tensor, Any]],
    modules: Sequence[nn.Module],
    x: Tensor,
    state: Any,
    stretches: int | None = None,
) -> tuple[Tensor, Any]:
    """`run(x, state)`, a function of these modules, stretch by stretch."""
    if stretches is not None and stretches < 1:
        raise RangeError("time cannot be cut into so few stretches", given=stretches, expected=">= 1")
    for module in modules:
        if isinstance(module, _BatchNorm) and (module.training or module.running_mean is None):
            raise UnsupportedError(
                f"{type(module).__name__} takes its statistics over all of time, which is cut into stretches here",
                mend='use memory="keep", or freeze its statistics with .eval()',
            )
    if len(x) == 0 or not torch.is_grad_enabled() or out_of_reach([x]):
        return run(x, state)
    length = math.isqrt(len(x) - 1) + 1 if stretches is None else -(-len(x) // stretches)
    generators = _generators(modules)
    outputs = []
    for piece in x.split(length):
        out, state = checkpoint(run, piece, state, use_reentrant=False, context_fn=_Replay(generators).contexts)
        outputs.append(out)
    return torch.cat(outputs), state


def _generators(modules: Sequence[nn.Module]) -> list[torch.Generator]:
    found = [value for module in modules for value in vars(module).values() if isinstance(value, torch.Generator)]
    return list({id(generator): generator for generator in found}.values())


class _Replay:
    """Lets a second run draw the numbers of the first from the same generators, and leaves them where they were."""

    def __init__(self, generators: Sequence[torch.Generator]) -> None:
        self.generators = generators
        self.start: list[Tensor] = []

    def contexts(self) -> tuple[contextlib.AbstractContextManager[None], contextlib.AbstractContextManager[None]]:
        """Around the first run and around the second."""
        return self.first(), self.again()

    @contextlib.contextmanager
    def first(self) -> Iterator[None]:
        self.start = [generator.get_state() for generator in self.generators]
        yield

    @contextlib.contextmanager
    def again(self) -> Iterator[None]:
        now = [generator.get_state() for generator in self.generators]
        for generator, then in zip(self.generators, self.start, strict=True):
            generator.set_state(then)
        try:
            yield
        finally:
            for generator, there in zip(self.generators, now, strict=True):
                generator.set_state(there)
