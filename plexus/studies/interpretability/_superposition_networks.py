"""The networks whose layers are counted, several trained at once as batched products; each gives rows per member."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from plexus import data
from plexus.probe.robustness import pgd


@dataclass(frozen=True)
class Counted:
    """Rows of one layer per member, `[member, row, unit]`, and what is known of each member."""

    rows: Tensor
    facts: dict[str, Tensor]


def stream(seed: int, role: str) -> torch.Generator:
    """A generator for one use of a seed, independent of its other uses."""
    return torch.Generator().manual_seed(int(np.random.SeedSequence([seed, *role.encode()]).generate_state(1)[0]))


def drawn(shape: tuple[int, ...], fan: int, generator: torch.Generator) -> Tensor:
    """Weights spread evenly within ± 1/√fan."""
    return ((2 * torch.rand(shape, generator=generator) - 1) / math.sqrt(fan)).requires_grad_()


class Stack:
    """Rectified layers of several members: `x [member, row, in]` to the output, and to the last hidden layer."""

    def __init__(self, members: int, sizes: tuple[int, ...], generator: torch.Generator) -> None:
        pairs = list(pairwise(sizes))
        self.weights = [drawn((members, a, b), a, generator) for a, b in pairs]
        self.biases = [drawn((members, 1, b), a, generator) for a, b in pairs]

    @property
    def parameters(self) -> list[Tensor]:
        return [*self.weights, *self.biases]

    def hidden(self, x: Tensor) -> Tensor:
        for weight, bias in zip(self.weights[:-1], self.biases[:-1], strict=True):
            x = torch.baddbmm(bias, x, weight).relu()
        return x

    def read(self, hidden: Tensor) -> Tensor:
        return torch.baddbmm(self.biases[-1], hidden, self.weights[-1])

    def __call__(self, x: Tensor) -> Tensor:
        return self.read(self.hidden(x))


# 1: a toy model whose features are known


def toy(config, generator: torch.Generator) -> Counted:
    """h = W x, x̂ = ReLU(Wᵀh + b): how many of n sparse features m units keep is read off W."""
    levels = [(n, s) for n in config.toy_features for s in config.toy_sparsities]
    widest = max(config.toy_features)
    real = torch.stack([torch.arange(widest) < n for n, _ in levels]).float()[:, None]
    odds = torch.tensor([1 - s for _, s in levels])[:, None, None] * real
    importance = 0.9 ** torch.arange(widest) * real

    def sample(rows: int) -> Tensor:
        shape = (len(levels), rows, widest)
        return (torch.rand(shape, generator=generator) < odds) * torch.rand(shape, generator=generator)

    weight = torch.randn(len(levels), widest, config.toy_units, generator=generator) * (2 / widest) ** 0.5
    weight.requires_grad_()
    bias = torch.zeros(len(levels), 1, widest, requires_grad=True)
    optimizer = torch.optim.Adam([weight, bias], 5e-3, fused=True)
    for _ in range(config.toy_steps):
        x = sample(256)
        out = torch.baddbmm(bias, x @ weight, weight.mT).relu()
        loss = (importance * (out - x).square()).mean((1, 2)).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        norms = torch.linalg.vector_norm(weight, dim=-1) * real[:, 0]
        x = sample(config.toy_rows)
        rows = x @ weight
    facts = {"norm": norms.square().sum(-1), "count": (norms > 0.5).sum(-1).float()}
    return Counted(rows, {**facts, "features": torch.tensor([float(n) for n, _ in levels])})


def separate(config, generator: torch.Generator) -> Counted:
    """Sparse features along directions at right angles, no more of them than units: nothing makes them hard."""
    rows, units = config.toy_rows, config.known_units
    members = []
    for count in config.known_features:
        directions = torch.linalg.qr(torch.randn(units, units, generator=generator)).Q[:count]
        active = torch.rand(rows, count, generator=generator) < config.known_odds
        members.append((active * torch.rand(rows, count, generator=generator)) @ directions)
    return Counted(torch.stack(members), {"count": torch.tensor(config.known_features).float()})


# 2: dropout


def parity(config, generator: torch.Generator) -> Counted:
    """A hidden layer under dropout learns the parities of three groups of four bits; a code says which is asked."""
    rates = torch.tensor(config.dropouts)[:, None, None]
    members, tasks, bits = len(rates), 3, 4
    net = Stack(members, (tasks * (1 + bits), config.parity_hidden, 1), generator)
    optimizer = torch.optim.Adam(net.parameters, config.parity_rate, fused=True)

    def sample(rows: int) -> tuple[Tensor, Tensor]:
        signs = torch.randint(0, 2, (rows, tasks, bits), generator=generator)
        task = torch.randint(0, tasks, (rows,), generator=generator)
        code = functional.one_hot(task, tasks).float()
        y = signs[torch.arange(rows), task].sum(-1) % 2
        return torch.cat([code, 2.0 * signs.flatten(1) - 1], 1).expand(members, -1, -1), y.float()

    for _ in range(config.parity_steps):
        x, y = sample(256)
        hidden = net.hidden(x)
        kept = torch.rand(hidden.shape, generator=generator) >= rates
        logits = net.read(hidden * kept / (1 - rates)).squeeze(-1)
        loss = functional.binary_cross_entropy_with_logits(logits, y.expand(members, -1), reduction="none")
        optimizer.zero_grad()
        loss.mean(1).sum().backward()
        optimizer.step()
    with torch.no_grad():
        x, y = sample(config.rows)
        hidden = net.hidden(x)
        accuracy = ((net.read(hidden).squeeze(-1) > 0) == y.bool()).float().mean(1)
    return Counted(hidden, {"accuracy": accuracy})


# 3: adversarial training


def images(config, seed: int) -> tuple[data.Labelled, data.Labelled]:
    """Training and test images, flat."""
    if config.images == "digits":
        train, test = data.digits().split(0.75, seed)
    else:
        train, test = (data.idx_images(config.images, train=part) for part in (True, False))
        order = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))[: config.image_count]
        train, test = train[order], test[: config.image_count // 4]
    return train, test


def shifted(x: Tensor, generator: torch.Generator) -> Tensor:
    """Images moved by up to one pixel each way."""
    padded = functional.pad(x, (1, 1, 1, 1))
    size = x.shape[-1]
    rows, columns = torch.randint(0, 3, (2, len(x)), generator=generator)
    at = torch.arange(size)
    return padded[
        torch.arange(len(x))[:, None, None], 0, (rows[:, None] + at)[:, :, None], (columns[:, None] + at)[:, None]
    ]


def adversarial(config, width: int, seed: int, generator: torch.Generator) -> Counted:
    """Networks of one width: for each task (two classes, ten classes) one per size of the attack in training."""
    train, test = images(config, seed)
    pair = torch.randperm(10, generator=generator)[:2]
    epsilons = torch.tensor(config.epsilons * 2)[:, None, None]
    members, count = len(epsilons), len(config.epsilons)
    allowed = torch.zeros(members, 1, 10, dtype=torch.bool)
    allowed[:count, :, pair] = True
    allowed[count:] = True
    pixels = train.x[0].numel()
    net = Stack(members, (pixels, 4 * width, 2 * width, width, 10), generator)
    optimizer = torch.optim.Adam(net.parameters, config.image_rate, weight_decay=1e-4, fused=True)

    def logits(x: Tensor) -> Tensor:
        return net(x).masked_fill(~allowed, -1e4)

    def sample(source: data.Labelled, rows: int) -> tuple[Tensor, Tensor]:
        few = torch.isin(source.y, pair).nonzero().squeeze(1)
        xs, ys = [], []
        for pool in (few, torch.arange(len(source))):
            index = pool[torch.randint(0, len(pool), (rows,), generator=generator)]
            xs += [shifted(source.x[index], generator).flatten(1)] * count
            ys += [source.y[index]] * count
        return torch.stack(xs), torch.stack(ys)

    def loss(out: Tensor, y: Tensor) -> Tensor:
        return functional.cross_entropy(out.transpose(1, 2), y, reduction="none").mean(1).sum()

    def attacked(x: Tensor, y: Tensor, epsilon: Tensor) -> Tensor:
        return pgd(logits, x, y, epsilon, steps=10, step_size=epsilon / 4, generator=generator, loss=loss)

    for step in range(config.image_steps):
        x, y = sample(train, 64)
        # the attack grows over the first half: small networks learn nothing under the full one
        now = epsilons * min(1.0, 2 * step / config.image_steps)
        optimizer.zero_grad()
        loss(logits(attacked(x, y, now)), y).backward()
        optimizer.step()
    x, y = sample(test, min(500, config.rows))
    against = torch.full_like(epsilons, config.epsilons[1])
    with torch.no_grad():
        clean = (logits(x).argmax(-1) == y).float().mean(1)
    robust = (logits(attacked(x, y, against)).argmax(-1) == y).float().mean(1)
    with torch.no_grad():
        rows = net.hidden(sample(train, config.rows)[0])
    return Counted(rows, {"accuracy": clean, "robust": robust})


# 4: grokking


def grokking(config, generator: torch.Generator) -> Counted:
    """One network on a + b mod p, looked at on the way: members are moments, log-spaced."""
    p = config.modulus
    pairs = torch.cartesian_prod(torch.arange(p), torch.arange(p))
    x = torch.cat([functional.one_hot(pairs[:, 0], p), functional.one_hot(pairs[:, 1], p)], 1).float()[None]
    y = pairs.sum(1) % p
    order = torch.randperm(len(y), generator=generator)
    train, test = order.tensor_split([round(config.grok_share * len(y))])
    net = Stack(1, (2 * p, config.grok_hidden, p), generator)
    optimizer = torch.optim.AdamW(net.parameters, config.grok_rate, weight_decay=config.grok_decay, fused=True)
    looks = torch.logspace(math.log10(20), math.log10(config.grok_steps), config.grok_looks).round().int().tolist()
    rows, facts = [], {"train": [], "test": []}
    for step in range(1, config.grok_steps + 1):
        loss = functional.cross_entropy(net(x[:, train])[0], y[train])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step in looks:
            with torch.no_grad():
                hidden = net.hidden(x)
                right = (net.read(hidden)[0].argmax(-1) == y).float()
            rows.append(hidden[0])
            facts["train"].append(right[train].mean())
            facts["test"].append(right[test].mean())
    found = {name: torch.stack(values) for name, values in facts.items()}
    return Counted(torch.stack(rows), {**found, "step": torch.tensor(looks, dtype=torch.float64)})
