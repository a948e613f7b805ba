"""Single fused steps on the CPU, by Numba, for loops with something of their own between the steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from plexus.kernels._frame import Dynamics
from plexus.kernels._numba import flat, prepare
from plexus.kernels._source import CHUNK
from plexus.kernels._source_steps import steps_source
from plexus.kernels._threads import run_parts

__all__ = ["Steps"]

_WORTH = 1 << 17  # elements of one step that are worth a thread


class Steps:
    """A model in the middle of its loop: the state stays where the compiled steps keep it, between the calls.

    `advance` step by step and `finish`; or `again` step by step, then `turn`, `retreat` step by step and `arrive`.
    Rows are arrays `[column]`, one for each input, column = unit of one sample.
    """

    def __init__(
        self,
        dynamics: Dynamics,
        memory: Sequence[Tensor],
        columns: Sequence[Tensor],
        constants: Sequence[float],
        options: str,
        learn: bool = False,
    ) -> None:
        like = memory[0]
        module, self.o, used, _ = prepare(dynamics, like, columns, options, learn, steps_source)
        self.dynamics, self.module, self.total, self.learn = dynamics, module, like.numel(), learn
        self.carried = dynamics.carried(self.o)
        self._like, self._passed = like, dict[str, Tensor]()
        self._chunks = -(-self.total // CHUNK)
        self._place = {name: k for k, name in enumerate(module.SECTIONS)}
        self._scratch = np.empty((self._chunks, len(self._place) * CHUNK), flat(like[:0]).dtype)
        uniform = all(number.size == 1 for number in used)
        self._numbers = (*(used if uniform else ()), *constants)
        for name, m in zip(dynamics.memory, memory, strict=True):
            if name in self.carried:
                self._put(name, flat(m))
        for name, number in zip(() if uniform else dynamics.used(self.o), () if uniform else used, strict=True):
            self._put(name, np.tile(number, self.total // max(1, number.size)))

    def advance(self, rows: Sequence[Any], out: Any) -> None:
        """One step forwards."""
        self._run(self.module.advance, *rows, out, *self._numbers)

    def finish(self) -> dict[str, Tensor]:
        """What is carried on, by name."""
        return {name: self._get(name) for name in self.carried}

    def again(self, rows: Sequence[Any], kept: Any) -> None:
        """One step forwards that writes what was carried into it to `kept` `[carried, column]`."""
        self._run(self.module.again, *rows, kept, *self._numbers)

    def saved(self) -> Any:
        """What is carried at this moment, to go back to with `restore`."""
        return self._scratch[:, : len(self.carried) * CHUNK].copy()

    def restore(self, saved: Any) -> None:
        """Go back to that moment."""
        self._scratch[:, : len(self.carried) * CHUNK] = saved

    def turn(self, grad_states: Sequence[Tensor]) -> None:
        """Set out backwards from the gradients of the last states."""
        for name, g in zip(self.dynamics.states, grad_states, strict=True):
            if name in self.carried:
                self._put(f"d_{name}", flat(g))
            elif name != self.dynamics.echo:
                self._passed[name] = g.clone()  # a state that no equation reads comes out as it went in
        for name in self._place:
            if name.startswith("g_"):
                self._put(name, np.zeros(self.total, self._scratch.dtype))

    def retreat(self, rows: Sequence[Any], grad: Any, d_rows: Sequence[Any], kept: Any) -> None:
        """One step backwards."""
        self._run(self.module.retreat, *rows, grad, *d_rows, kept, *self._numbers)

    def arrive(self) -> tuple[list[Tensor], list[Tensor]]:
        """The gradients of the first states, and of each parameter as one number per column."""
        states = [self._passed.get(name, None) for name in self.dynamics.states]
        found = [self._get(f"d_{n}") if g is None else g for n, g in zip(self.dynamics.states, states, strict=True)]
        return found, [self._get(f"g_{name}") for name in self.dynamics.parameters if self.learn]

    def _put(self, name: str, values: Any) -> None:
        padded = np.zeros((self._chunks, CHUNK), self._scratch.dtype)
        padded.reshape(-1)[: self.total] = values
        k = self._place[name]
        self._scratch[:, k * CHUNK : (k + 1) * CHUNK] = padded

    def _get(self, name: str) -> Tensor:
        """One section as a tensor; zeros where the equations have no such section."""
        k = self._place.get(name)
        if k is None:
            return self._like.new_zeros(self._like.shape)
        section = self._scratch[:, k * CHUNK : (k + 1) * CHUNK].reshape(-1)[: self.total]
        return torch.from_numpy(section.copy()).view(self._like.shape)

    def _run(self, function: Callable[..., None], *arguments: Any) -> None:
        threads = max(1, min(torch.get_num_threads(), self.total // _WORTH))
        if threads == 1:
            function(*arguments, self._scratch, self.total, 0, self._chunks)
            return
        edges = [self._chunks * k // threads for k in range(threads + 1)]
        run_parts([partial(function, *arguments, self._scratch, self.total, a, b) for a, b in pairwise(edges)])
