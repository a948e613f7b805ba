"""Delayed recall: a key, distractors, a query, and the key as the answer; training, scoring and interventions."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from plexus.edit import clamp
from plexus.nn.models import AstroSNN
from plexus.nn.neurons import AstrocyteState
from plexus.units import Neurons, Site

KEYS, DISTRACTORS = 8, 8
SYMBOLS = KEYS + DISTRACTORS + 1


@dataclass
class Recall:
    """Sequences of one lag: `[set, time, batch]` small integers; the key stands first, the query last."""

    train: Tensor
    validation: Tensor
    test: Tensor


def sequences(lag: int, sets: int, batch: int, generator: torch.Generator) -> Tensor:
    """`[set, lag + 2, batch]`: a key, `lag` distractors, the query."""
    key = torch.randint(KEYS, (sets, 1, batch), generator=generator)
    others = torch.randint(KEYS, KEYS + DISTRACTORS, (sets, lag, batch), generator=generator)
    return torch.cat([key, others, torch.full((sets, 1, batch), SYMBOLS - 1)], 1).byte()


def recall_task(lag: int, steps: int, batch: int, test: int, seed: int) -> Recall:
    """Training batches, each seen once, and sequences to choose by and to test on, all drawn anew."""
    g = torch.Generator().manual_seed(1000 * seed + lag)
    return Recall(sequences(lag, steps, batch, g), sequences(lag, 1, test, g)[0], sequences(lag, 1, test, g)[0])


def train(model: nn.Module, task: Recall, lr: float) -> None:
    """One pass over the training batches: Adam on the cross-entropy of the last step, gradients clipped at norm 1.

    The first batches keep five of their distractors, and more and more until 60 % of the steps are over.
    """
    optimiser = torch.optim.Adam(model.parameters(), lr=lr, fused=True)
    for n, batch in enumerate(task.train):
        symbols = shortened(batch, n / len(task.train)).long()
        loss = F.cross_entropy(model(symbols)[0][-1], symbols[0])
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()


def shortened(batch: Tensor, progress: float) -> Tensor:
    """The sequences with as many of their distractors as this share of the training calls for."""
    lag = len(batch) - 2
    kept = min(lag, 5 + int((lag - 5) * progress / 0.6))
    return torch.cat([batch[: 1 + kept], batch[-1:]])


def share_right(model: nn.Module, symbols: Tensor) -> float:
    """Percentage of keys named at the query."""
    symbols = symbols.long()
    with torch.no_grad():
        return _right(model(symbols)[0], symbols)


def _right(logits: Tensor, symbols: Tensor) -> float:
    return 100 * float((logits[-1, :, :KEYS].argmax(-1) == symbols[0]).double().mean())


def calcium(model: AstroSNN) -> Neurons:
    """The calcium of all astrocytes of a network."""
    sites = {Site(f"blocks.{n}.unit.astrocytes", "t b u"): _width(model) for n in range(len(model.blocks))}
    return Neurons.of(sites, {site: list(range(size)) for site, size in sites.items()})


def _width(model: AstroSNN) -> int:
    return int(model.embed.weight.shape[1])


def interventions(model: AstroSNN, symbols: Tensor) -> dict[str, float]:
    """Recall when the calcium is clamped to 0, when it is emptied midway, and when everything else is."""
    symbols = symbols.long()
    half = len(symbols) // 2
    found = {}
    with torch.no_grad():
        with clamp(model, calcium(model), low=0.0, high=0.0):
            found["clamped"] = _right(model(symbols)[0], symbols)
        _, state = model(symbols[:half])
        zero = torch.zeros_like(state[0].a)
        empty = {
            "emptied calcium": tuple(AstrocyteState(s.v, zero, s.z) for s in state),
            "emptied membranes": tuple(AstrocyteState(zero, s.a, zero) for s in state),
        }
        for name, cut in empty.items():
            found[name] = _right(model(symbols[half:], cut)[0], symbols)
    return found


def spike_rate(model: AstroSNN, symbols: Tensor) -> float:
    """Mean share of steps at which a unit with a memory spikes."""
    rates: list[Tensor] = []
    handles = [b.unit.register_forward_hook(lambda m, i, out: rates.append(out[0].mean())) for b in model.blocks]
    with torch.no_grad():
        model(symbols.long())
    for handle in handles:
        handle.remove()
    return float(torch.stack(rates).mean())
