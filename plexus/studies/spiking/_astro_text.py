"""Shakespeare's text as windows of symbols, training on it, and what a language model makes of it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from plexus.data import ALPHABET, encode, shakespeare
from plexus.edit import clamp
from plexus.nn.models import AstroSNN
from plexus.studies.spiking._astro_recall import calcium

TEXT_SYMBOLS = len(ALPHABET)


@dataclass
class Text:
    """Windows `[set, time + 1, batch]` for training, `[time + 1, batch]` to choose by and to test on; the text's last
    fifth is never trained on, its first half chooses, its second half tests."""

    train: Tensor
    validation: Tensor
    test: Tensor


def text_task(steps: int, batch: int, context: int, test: int, seed: int) -> Text:
    """Windows at random places of the three parts of the text."""
    symbols = encode(shakespeare()).to(torch.uint8)
    edges = [int(len(symbols) * share) for share in (0.0, 0.8, 0.9, 1.0)]
    g = torch.Generator().manual_seed(seed)

    def windows(part: int, count: int) -> Tensor:
        starts = torch.randint(edges[part], edges[part + 1] - context - 1, (count,), generator=g)
        return symbols[starts[:, None] + torch.arange(context + 1)]

    train = windows(0, steps * batch).view(steps, batch, context + 1).transpose(1, 2).contiguous()
    return Text(train, windows(1, test).T.contiguous(), windows(2, test).T.contiguous())


def train_on_text(model: nn.Module, task: Text, lr: float) -> None:
    """One pass: Adam on the cross-entropy of every next symbol, each window from rest, gradients clipped at norm 1."""
    optimiser = torch.optim.Adam(model.parameters(), lr=lr, fused=True)
    for window in task.train:
        loss = _nats(model, window.long()).mean()
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()


def _nats(model: nn.Module, window: Tensor) -> Tensor:
    logits, _ = model(window[:-1])
    return F.cross_entropy(logits.flatten(0, 1), window[1:].flatten(), reduction="none").view(window[1:].shape)


def bits(model: nn.Module, windows: Tensor) -> Tensor:
    """Bits per symbol at each position in the window, `[time]`."""
    with torch.no_grad():
        return (_nats(model, windows.long()) / math.log(2)).mean(1)


def bits_clamped(model: AstroSNN, windows: Tensor) -> float:
    """Bits per symbol with all calcium clamped to 0."""
    with torch.no_grad(), clamp(model, calcium(model), low=0.0, high=0.0):
        return float(_nats(model, windows.long()).mean() / math.log(2))


def state_bytes(model: nn.Module, length: int) -> float:
    """What one sequence must be carried along by, after so many symbols: the state, counted, in bytes."""
    with torch.no_grad():
        _, state = model(torch.zeros(length, 1, dtype=torch.long))
    return float(sum(leaf.numel() * leaf.element_size() for leaf in tree_leaves(state) if isinstance(leaf, Tensor)))
