"""A stack of layers over time that carries the states of those that have one."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from plexus.errors import ShapeError, UnknownNameError, UnsupportedError
from plexus.nn._recompute import in_stretches

__all__ = ["Sequential", "Stateful"]

# these walk along a dimension of time of their own, which folding would hide from them
_OWN_TIME: tuple[type[nn.Module], ...] = (
    nn.RNNBase,
    nn.RNNCellBase,
    nn.MultiheadAttention,
    nn.Transformer,
    nn.TransformerEncoder,
    nn.TransformerDecoder,
    nn.TransformerEncoderLayer,
    nn.TransformerDecoderLayer,
)


@runtime_checkable
class Stateful(Protocol):
    """A module with a state: `out, state = module(x, state)`, time first, `initial_state(batch)` at rest.

    Examples:
        >>> from plexus.nn import LIF
        >>> isinstance(LIF(3), Stateful), isinstance(nn.Linear(3, 3), Stateful)
        (True, False)
    """

    def initial_state(self, batch: int, *, dtype: torch.dtype | None = None) -> Any:
        """The state at rest, batch first in each tensor."""
        ...

    def __call__(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        """Run over time from a state."""
        ...


class Sequential(nn.Sequential):
    """`out, states = Sequential(nn.Linear(8, 16), LIF(16), nn.Linear(16, 2))(x)`; x `[time, batch, …]`.

    Layers with a state (see `Stateful`) get theirs and return it; `states` is a tuple with one entry per layer, None
    for those without. Every other layer sees time folded into the batch, `[time · batch, …]`, as Linear, Conv2d,
    BatchNorm, Flatten and Dropout want it. While such a layer runs, it and the modules in it carry the fold as
    `module._plexus_fold = (time, batch)`, so that a recorder can tell samples from steps.

    Args:
        layers: the layers in order, or one ordered mapping of them.
        memory: `"keep"`, or `"recompute"`: keep only the states between √T stretches of time and run each stretch again
            in backward, so that memory grows with √T in place of T (see `recompute`).

    Raises:
        UnknownNameError: memory is neither.
        UnsupportedError: a layer without state returned a tuple, holds layers with a state (put those into a
            `Sequential` of their own), or keeps a time dimension of its own.
        ShapeError: the input has no time and batch, or the states are not one per layer.

    Examples:
        >>> from plexus.nn import LIF
        >>> net = Sequential(nn.Linear(8, 16), LIF(16), nn.Linear(16, 2))
        >>> out, states = net(torch.rand(5, 3, 8))
        >>> out.shape, [type(state).__name__ for state in states]
        (torch.Size([5, 3, 2]), ['NoneType', 'LIFState', 'NoneType'])
        >>> out, states = net(torch.rand(1, 3, 8), states)      # goes on
    """

    def __init__(self, *layers: Any, memory: Literal["keep", "recompute"] = "keep") -> None:
        super().__init__(*layers)
        if memory not in ("keep", "recompute"):
            raise UnknownNameError.among("memory", memory, ("keep", "recompute"))
        self.memory = memory

    def initial_state(self, batch: int, *, dtype: torch.dtype | None = None) -> tuple[Any, ...]:
        """The states at rest: one entry per layer, None for layers without."""
        return tuple(m.initial_state(batch, dtype=dtype) if isinstance(m, Stateful) else None for m in self)

    def forward(self, x: Tensor, state: Sequence[Any] | None = None) -> tuple[Tensor, tuple[Any, ...]]:
        """Run the layers one after the other, each over all of time."""
        if not isinstance(x, Tensor) or x.dim() < 2:
            given = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
            raise ShapeError("the input has no time and batch", given=given, expected="a tensor [time, batch, …]")
        if state is None:
            state = (None,) * len(self)
        elif not isinstance(state, (tuple, list)) or len(state) != len(self):
            raise ShapeError(
                "the states do not match the layers",
                given=f"{len(state)} states" if isinstance(state, (tuple, list)) else type(state).__name__,
                expected=f"{len(self)}, one per layer, None for layers without",
            )
        if self.memory == "recompute":
            return in_stretches(self._through, list(self.modules()), x, tuple(state))
        return self._through(x, state)

    def _through(self, x: Tensor, state: Sequence[Any]) -> tuple[Tensor, tuple[Any, ...]]:
        after: list[Any] = []
        for (name, layer), before in zip(self._modules.items(), state, strict=True):
            assert layer is not None
            if isinstance(layer, Stateful):
                x, new = layer(x, before)
                after.append(new)
            else:
                x = self._folded(name, layer, x)
                after.append(None)
        return x, tuple(after)

    def _folded(self, name: str, layer: nn.Module, x: Tensor) -> Tensor:
        _refuse(name, layer)
        time, batch = x.shape[:2]
        with _published(layer, (time, batch)):
            out: object = layer(x.flatten(0, 1))
        if not isinstance(out, Tensor):
            raise UnsupportedError(
                f"layer {name} ({type(layer).__name__}) returned a {type(out).__name__} "
                "where the next layer needs a tensor",
                expected="a tensor, or a layer with initial_state(), whose (out, state) is taken apart here",
                mend="take the tensor out of it in a module of your own, or give the layer an initial_state(batch)",
            )
        if out.dim() == 0 or out.shape[0] != time * batch:
            raise ShapeError(
                f"layer {name} ({type(layer).__name__}) did not keep the rows apart",
                given=f"{tuple(x.flatten(0, 1).shape)} became {tuple(out.shape)}",
                expected=f"{time * batch} rows: time {time} folded into batch {batch}",
            )
        unfolded: Tensor = out.unflatten(0, (time, batch))
        return unfolded


def _refuse(name: str, layer: nn.Module) -> None:
    for inner_name, inner in layer.named_modules():
        where = f"layer {name} ({type(layer).__name__})"
        if isinstance(inner, _OWN_TIME):
            raise UnsupportedError(
                f"{where} keeps a time dimension of its own, which folding time into the batch would hide from it",
                mend="wrap it in a module with forward(x, state=None) -> (out, state) and initial_state(batch)",
            )
        if inner is not layer and isinstance(inner, Stateful):
            raise UnsupportedError(
                f"{where} is an ordinary module and holds {type(inner).__name__} at {inner_name!r}, "
                "whose (out, state) it would pass on as if it were a tensor",
                mend="make it a plexus.nn.Sequential, or a module with initial_state() that hands the state on",
            )


@contextlib.contextmanager
def _published(layer: nn.Module, fold: tuple[int, int]) -> Iterator[None]:
    """Let a layer and the modules in it know the fold while they run; a compiled graph has no one to tell."""
    if torch.compiler.is_compiling():
        yield
        return
    modules = list(layer.modules())
    for module in modules:
        module.__dict__["_plexus_fold"] = fold
    try:
        yield
    finally:
        for module in modules:
            module.__dict__.pop("_plexus_fold", None)
