"""A recurrent network over symbols whose memory is spiking units with astrocytes.

    x = E[symbol]
    y = x + U unit(norm(x))                             unit: spikes with a memory, over time
    x ← y + W₂ H(W₁ norm(y) - 1)                        mixing of channels through spikes, within a step
    logits = E norm(x)                                  tied, or through a matrix of its own

L such blocks; norm is RMSNorm, no map has a bias, so silence in is silence out and a unit at rest stays at rest. The
stream x is real-valued: only the products with U and W₂ take spikes and are additions (`additions` gives their share).

Source: a reconstruction of the model family that Shen et al. 2023 (arXiv 2312.07625) describe, in the residual form of
RWKV (Peng et al. 2023); see `plexus.nn.AstrocyteUnit`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from plexus.errors import DtypeError, RangeError, ShapeError
from plexus.kernels import lif
from plexus.nn.neurons import AstrocyteUnit

__all__ = ["AstroSNN"]

State = tuple[Any, ...]


class _Spike(nn.Module):
    """H(x - 1) within a step, with the surrogate derivative."""

    def forward(self, x: Tensor) -> Tensor:
        return lif(x, decay=0.0, reset="none")[0]


class _Block(nn.Module):
    def __init__(self, width: int, unit: nn.Module, mix: int, generator: torch.Generator | None) -> None:
        super().__init__()
        self.unit_norm, self.mix_norm = nn.RMSNorm(width), nn.RMSNorm(width)
        self.unit = unit
        self.out = _linear(width, width, generator)
        self.up, self.spike, self.down = _linear(width, mix, generator), _Spike(), _linear(mix, width, generator)

    def forward(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        memory, state = self.unit(self.unit_norm(x), state)
        y = x + self.out(memory)
        return y + self.down(self.spike(self.up(self.mix_norm(y)))), state


class AstroSNN(nn.Module):
    """`logits, state = AstroSNN(17)(symbols)`: symbols `[time, batch]` (int64), logits `[time, batch, symbol]`.

    The state holds three numbers per unit and does not grow with the text.

    Args:
        symbols: size of the alphabet.
        width: of the residual stream, and units per layer.
        layers: number of blocks.
        mix: spiking channels of the mixing within a step; None: twice the width.
        unit: what remembers, made from the width: `out, state = unit(x, state)`; None: an `AstrocyteUnit` of rank 16.
        tied: read out through the embedding; else through a matrix of its own.
        generator: source of the initial weights of the maps around the units.

    Raises:
        RangeError: a size is not positive. DtypeError: the symbols are not integers.
        ShapeError: the symbols are not `[time, batch]` with at least one step, or `reset` is of another shape.

    Examples:
        >>> model = AstroSNN(17, width=8, layers=1, unit=AstrocyteUnit)
        >>> logits, state = model(torch.zeros(5, 2, dtype=torch.long))
        >>> logits.shape
        torch.Size([5, 2, 17])
        >>> logits, state = model(torch.ones(1, 2, dtype=torch.long), state)       # goes on
    """

    axes = "t b u"

    def __init__(
        self,
        symbols: int,
        *,
        width: int = 48,
        layers: int = 2,
        mix: int | None = None,
        unit: Callable[[int], nn.Module] | None = None,
        tied: bool = True,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        mix = 2 * width if mix is None else mix
        if min(symbols, width, layers, mix) < 1:
            raise RangeError("sizes of the network", given=(symbols, width, layers, mix), expected="positive")

        def default(units: int) -> nn.Module:
            return AstrocyteUnit(units, rank=min(16, units), generator=generator)

        self.embed = nn.Embedding(symbols, width)
        self.embed.weight = nn.Parameter(torch.randn(symbols, width, generator=generator) / width**0.5)
        self.blocks = nn.ModuleList([_Block(width, (unit or default)(width), mix, generator) for _ in range(layers)])
        self.norm = nn.RMSNorm(width)
        self.read = None if tied else _linear(width, symbols, generator)

    def initial_state(self, batch: int, *, dtype: torch.dtype | None = None) -> State:
        """The states of the units at rest, one entry per block."""
        units: list[Any] = [block.unit for block in self.blocks]
        return tuple(unit.initial_state(batch, dtype=dtype) for unit in units)

    def forward(
        self, symbols: Tensor, state: State | None = None, *, reset: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """Logits of the next symbol; where `reset` `[time, batch]` is true a new document begins, from rest."""
        if symbols.is_floating_point():
            raise DtypeError("symbols are whole numbers", given=symbols.dtype, expected="int64")
        if symbols.dim() != 2 or 0 in symbols.shape:
            raise ShapeError(
                "the symbols have another shape",
                given=tuple(symbols.shape),
                expected="[time, batch], at least one step",
            )
        stream, state = self.stream(self.embed(symbols), state, reset=reset)
        return self.logits(stream), state

    def stream(self, x: Tensor, state: State | None = None, *, reset: Tensor | None = None) -> tuple[Tensor, State]:
        """The residual stream `[time, batch, width]` after all blocks, of embedded symbols."""
        now: State = self.initial_state(x.shape[1], dtype=x.dtype) if state is None else tuple(state)
        if reset is None:
            return self._run(x, now)
        if reset.shape != x.shape[:2]:
            raise ShapeError("reset does not fit", given=tuple(reset.shape), expected=tuple(x.shape[:2]))
        reset = reset.to(x.device)
        starts = sorted({0, *reset.any(1).nonzero().flatten().tolist()})
        parts = []
        for start, stop in zip(starts, [*starts[1:], len(x)], strict=True):
            fresh = reset[start]
            now = tree_map(lambda part, fresh=fresh: torch.where(fresh[:, None], torch.zeros_like(part), part), now)
            part, now = self._run(x[start:stop], now)
            parts.append(part)
        return torch.cat(parts), now

    def logits(self, stream: Tensor) -> Tensor:
        """Logits of the next symbol from the stream."""
        normed = self.norm(stream)
        logits: Tensor = normed @ self.embed.weight.T if self.read is None else self.read(normed)
        return logits

    def _run(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        after = []
        for block, before in zip(self.blocks, state, strict=True):
            x, now = block(x, before)
            after.append(now)
        return x, tuple(after)

    def additions(self) -> float:
        """Share of the multiplications of a step that are additions because one factor is a spike.

        Counts matrices: those of U and W₂ against all, the read-out included; a spike that is absent costs nothing and
        is not taken off.

        Examples:
            >>> round(AstroSNN(17, width=8, layers=1, unit=AstrocyteUnit).additions(), 2)
            0.3
        """
        blocks: list[Any] = list(self.blocks)
        spiking = sum(block.out.weight.numel() + block.down.weight.numel() for block in blocks)
        total = sum(p.numel() for p in self.parameters() if p.dim() == 2)
        total -= 0 if self.read is None else self.embed.weight.numel()  # looked up, not multiplied
        share: float = spiking / total
        return share


def _linear(inputs: int, outputs: int, generator: torch.Generator | None) -> nn.Linear:
    layer = nn.Linear(inputs, outputs, bias=False)
    layer.weight = nn.Parameter(torch.randn(outputs, inputs, generator=generator) / inputs**0.5)
    return layer
