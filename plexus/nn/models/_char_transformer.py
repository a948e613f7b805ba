"""A small decoder-only transformer over a fixed alphabet.

h ← h + attention(norm(h)),  h ← h + W2 gelu(W1 norm(h)),  causal, pre-norm, learned positions
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from plexus.errors import RangeError, ShapeError


class _Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, h: Tensor) -> Tensor:
        b, t, width = h.shape
        q, k, v = self.qkv(self.norm1(h)).reshape(b, t, 3, self.heads, width // self.heads).unbind(2)
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        later = torch.ones(t, t, dtype=torch.bool, device=h.device).triu(1)
        scores = (q @ k.transpose(2, 3) / q.shape[-1] ** 0.5).masked_fill(later, float("-inf"))
        mixed = scores.softmax(-1) @ v
        h = h + self.proj(mixed.transpose(1, 2).reshape(b, t, width))
        out: Tensor = h + self.down(F.gelu(self.up(self.norm2(h))))
        return out


class CharTransformer(nn.Module):
    """Next-symbol logits `[batch, time, symbol]` from symbols `[batch, time]` (int64).

    Args:
        symbols: size of the alphabet.
        context: longest input.
        width, heads, layers: of the transformer.

    Raises:
        RangeError: a size that is not positive, or a width that heads do not divide. ShapeError: a longer input.

    Examples:
        >>> CharTransformer(30, context=16, width=8, heads=2, layers=1)(torch.zeros(2, 5, dtype=torch.long)).shape
        torch.Size([2, 5, 30])
    """

    def __init__(self, symbols: int, *, context: int = 64, width: int = 64, heads: int = 4, layers: int = 2) -> None:
        super().__init__()
        numbers = (symbols, context, width, heads, layers)
        if min(numbers) < 1 or width % heads:
            raise RangeError(
                "sizes of the network", given=numbers, expected="positive, and heads that divide the width"
            )
        self.context = context
        self.embed, self.position = nn.Embedding(symbols, width), nn.Embedding(context, width)
        self.blocks = nn.ModuleList([_Block(width, heads) for _ in range(layers)])
        self.norm = nn.LayerNorm(width)
        self.out = nn.Linear(width, symbols)

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim != 2 or x.shape[1] > self.context:
            raise ShapeError(
                "symbols of another shape", given=tuple(x.shape), expected=f"[batch, time <= {self.context}]"
            )
        h = self.embed(x) + self.position(torch.arange(x.shape[1], device=x.device))
        for block in self.blocks:
            h = block(h)
        logits: Tensor = self.out(self.norm(h))
        return logits
