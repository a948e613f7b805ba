"""The networks of the study: how each method builds a deep spiking perceptron, how it is trained, what is measured."""

from __future__ import annotations

import copy
import math
import warnings
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from plexus.data import Labelled, digits, idx_images
from plexus.nn import (
    LIF,
    EILinear,
    Sequential,
    SilentInputWarning,
    constrained_parameters,
    init_firing_,
    initialise_ei,
    project_after_step,
)

NORMS = {"batch norm": nn.BatchNorm1d, "layer norm": nn.LayerNorm}
WITHOUT = ("plain", "plain firing")
PARTS: dict[str, dict[str, bool]] = {
    "no division": {"divisive": False},
    "constant gain": {"divisive": False},
    "no subtraction": {"subtractive": False},
    "no gradient scale": {"scale_gradient": False},
}
"""What an ablation takes out of the layers; the others change the start, the signs, or what is trained."""


@dataclass(frozen=True)
class Config:
    """All settings. `method` is an arm's name; `rate` is the learning rate, chosen from `rates` by tuning."""

    data: tuple[str, ...] = ("digits",)
    train: int = 900
    validation: int = 400
    test: int = 450
    width: int = 128
    time: int = 4
    depths: tuple[int, int, int] = (2, 4, 8)
    only_deep: bool = False
    deepest: int = 16
    deepest_steps: int = 200
    deepest_batch: int = 16
    epochs: int = 5
    batch: int = 32
    start_batch: int = 256
    momentum: float = 0.9
    decay: float = 5e-4
    warm_up: float = 0.1
    method: str = "ei"
    rates: tuple[float, ...] = (3e-3, 1e-2, 3e-2)
    rate: float = 1e-2
    tuning_seeds: int = 1


@dataclass
class Data:
    """One data set: what is trained on, what settings are chosen on, what is reported."""

    train: Labelled
    validation: Labelled
    test: Labelled


def load(config: Config, name: str, seed: int) -> Data:
    """The data of one seed. The test items never change sides: tuning and training draw from the other ones alone."""
    draw = torch.Generator().manual_seed(seed)
    pool, test = digits().split(0.75, 0) if name == "digits" else (idx_images(name), idx_images(name, train=False))
    order = torch.randperm(len(pool), generator=draw)
    again = torch.randint(len(test), (config.test,), generator=draw)
    middle, end = config.train, config.train + config.validation
    return Data(pool[order[:middle]], pool[order[middle:end]], test[again])


@dataclass
class Fit:
    """A trained network and what was seen on the way."""

    network: Sequential
    diverged: bool
    broken_signs: int
    steps: int


def is_ei(method: str) -> bool:
    """Whether the network is made of E-I layers."""
    return method not in (*WITHOUT, *NORMS)


def neurons(width: int) -> LIF:
    """The paper's neuron: a time constant of two steps, soft reset without gradient, sigmoid surrogate."""
    return LIF(width, 2.0, discretisation="euler", inclusive=True, detach_reset=True, surrogate="sigmoid")


def build(method: str, depth: int, start: Tensor, classes: int, width: int, seed: int) -> Sequential:
    """A network of `depth` weight layers, initialised; `start` is a batch `[time, batch, pixel]` of training data."""
    draw = torch.Generator().manual_seed(seed)
    sizes = [start.shape[2], *[width] * (depth - 1), classes]
    layers: list[nn.Module] = []
    for i, (fan_in, fan_out) in enumerate(pairwise(sizes)):
        last = i == depth - 1
        if is_ei(method):
            layers.append(EILinear(fan_in, fan_out, output=last, generator=draw, **PARTS.get(method, {})))
        else:
            layer = nn.Linear(fan_in, fan_out)
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu", generator=draw)
            nn.init.zeros_(layer.bias)
            layers += [layer] + ([NORMS[method](fan_out)] if method in NORMS and not last else [])
        if not last:
            layers.append(neurons(fan_out))
    network = Sequential(*layers)
    if method == "no init":
        uniform_(network, draw)
    elif is_ei(method):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SilentInputWarning)
            initialise_ei(network, start)
    circuits = [layer for layer in network if isinstance(layer, EILinear)]
    for layer in circuits:
        layer.replace_zeros = method != "no replacement"
        if method == "no division" and layer.gain_e is not None:
            nn.init.ones_(layer.gain_e)
    if method == "plain firing":
        init_firing_(network, start, rate=0.2)
    if method == "frozen":
        for layer in list(network)[:-1]:
            layer.requires_grad_(False)
    return network


@torch.no_grad()
def uniform_(network: Sequential, draw: torch.Generator) -> None:
    """What one would do without E-I Init: torch's bound for a linear layer, folded to positive numbers; gains of 1."""
    for layer in network:
        if isinstance(layer, EILinear):
            for weight in (layer.weight_ee, layer.weight_ie, layer.weight_ei):
                weight.uniform_(0, 1 / math.sqrt(weight.shape[1]), generator=draw)
            layer.initialised.fill_(True)


def over_time(x: Tensor, time: int) -> Tensor:
    """Images as a constant current, `[time, batch, pixel]`."""
    return x.flatten(1).expand(time, -1, -1)


def logits(network: Sequential, x: Tensor, time: int) -> Tensor:
    """The output averaged over time, `[batch, class]`."""
    out: Tensor = network(over_time(x, time))[0]
    return out.mean(0)


def train(config: Config, network: Sequential, data: Labelled, seed: int, *, steps: int = 0, batch: int = 0) -> Fit:
    """Momentum descent with warm-up and cosine; stops where the loss is no number."""
    optimizer = torch.optim.SGD(
        [p for p in network.parameters() if p.requires_grad],
        lr=config.rate,
        momentum=config.momentum,
        weight_decay=config.decay,
    )
    free = config.method == "free signs"
    if is_ei(config.method) and not free:
        project_after_step(optimizer, network)
    batch = batch or config.batch
    total = steps or config.epochs * math.ceil(len(data) / batch)
    warm = max(1, round(config.warm_up * total))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda n: (n + 1) / warm if n < warm else 0.5 * (1 + math.cos(math.pi * (n - warm) / max(1, total - warm))),
    )
    shuffle = torch.Generator().manual_seed(seed)
    watched = [weight.detach() for _, weight, _ in constrained_parameters(network)]
    network.train()
    done = broken = 0
    while done < total:
        for x, y in data.batches(batch, generator=shuffle):
            loss = F.cross_entropy(logits(network, x, config.time), y)
            if not bool(torch.isfinite(loss)):
                return Fit(network, True, broken, done)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
            broken += any(float(weight.min()) < 0 for weight in watched)
            done += 1
            if done == total:
                break
    return Fit(network, not finite(network), broken, done)


def finite(network: nn.Module) -> bool:
    """Whether all parameters are numbers."""
    return all(bool(torch.isfinite(parameter).all()) for parameter in network.parameters())


@torch.no_grad()
def accuracy(config: Config, network: Sequential, data: Labelled) -> float:
    """Per cent right; an output that is no number is wrong."""
    network.eval()
    out = logits(network, data.x, config.time)
    right = (out.argmax(1) == data.y) & torch.isfinite(out).all(1)
    return 100 * float(right.float().mean())


def watch(network: Sequential, x: Tensor, y: Tensor) -> dict[str, list[float]]:
    """Per hidden layer: mean and deviation of the current into the neurons, their rate, the gradient of the weights.

    Looks at a copy in training mode: a normalisation shows the statistics of this batch, and learns nothing of it.
    """
    network = copy.deepcopy(network).train().requires_grad_(True)
    seen: dict[str, list[float]] = {"mean": [], "std": [], "rate": []}

    def look(_: nn.Module, inputs: tuple[Any, ...], out: Any) -> None:
        current = inputs[0].detach()
        for key, value in (("mean", current.mean()), ("std", current.std()), ("rate", out[0].detach().mean())):
            seen[key].append(float(value.nan_to_num(0.0, 0.0, 0.0)))

    handles = [layer.register_forward_hook(look) for layer in network if isinstance(layer, LIF)]
    weights = [
        layer.weight_ee if isinstance(layer, EILinear) else layer.weight
        for layer in network
        if isinstance(layer, (EILinear, nn.Linear))
    ]
    loss = F.cross_entropy(network(x)[0].mean(0), y)
    for handle in handles:
        handle.remove()
    slopes = torch.autograd.grad(loss, weights)
    seen["slope"] = [float(slope.norm().nan_to_num(0.0, 0.0, 0.0)) for slope in slopes[:-1]]
    return seen


def zeros(network: Sequential) -> float:
    """Share of the constrained weights that are exactly zero; 0 in a network without any."""
    weights = [weight.detach() for _, weight, _ in constrained_parameters(network)]
    return sum(int((w == 0).sum()) for w in weights) / max(1, sum(w.numel() for w in weights))
