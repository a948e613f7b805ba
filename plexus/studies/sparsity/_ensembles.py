"""What the studies of group-to-group wiring share: settings, tasks, networks, training, measures.

digits     8×8 images; training on 100, 300 and 1,000 of them
planted    eight groups of eight inputs, all noise; one group, the class, has a pattern of its own added with a random
           sign. No input differs between classes in its mean; a unit that hears a whole group tells its pattern from
           noise, which wiring by these groups gives beforehand
fashion    28×28 images as pixels, and as 512 fixed features: random 5×5 filters, rectified, pooled to 4×4
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from math import sqrt
from statistics import fmean
from typing import Any, Literal

import torch
from torch import Tensor, nn

from plexus.data import Labelled, digits, idx_images
from plexus.edit.rewire import (
    SparseTraining,
    degrees,
    density,
    edge_turnover,
    intra_only,
    mask_,
    masks,
    modularity,
    random_wiring,
    wirings,
)
from plexus.nn import fan_in_
from plexus.nn.models import G2GMLP, existing_weights
from plexus.studies.sparsity._published import PublishedRewiring

LAYERS = ("first layer", "second layer", "third layer", "read-out")
PATTERN = 5.0
"""Size of the planted pattern, in standard deviations of the noise."""

Wired = Literal["dense", "matched", "unstructured", "index", "random", "mixer"]


@dataclass(frozen=True)
class Config:
    """All settings; the defaults are those of `g2gnet` at full scale."""

    data: Literal["digits", "fashion"] = "digits"
    sizes: tuple[int, ...] = (100, 300, 1000)
    validation: int = 200
    test: int = 10_000
    hidden: int = 128
    groups: int = 8
    p_inter: float = 0.15
    steps: int = 240
    batch: int = 64
    lr: float = 1e-3
    wired: Wired = "mixer"
    prune: str = ""
    grow: str = "gradient"
    centered: bool = False
    published: bool = False
    every: int = 20
    fraction: float = 0.1
    average: float = 0.8
    until: float = 0.75
    planted: bool = False
    planted_lr: float = 1e-3
    tuning_seeds: int = 3


@dataclass(frozen=True)
class Task:
    """Inputs as rows, in three disjoint parts; `sizes` are the first so many of the training part."""

    train: Labelled
    validation: Labelled
    test: Labelled
    sizes: tuple[int, ...]


@dataclass(frozen=True)
class Trained:
    """A network after training on the first `size` samples of a task, and what it was before."""

    model: nn.Sequential
    task: Task
    size: int
    weights: int
    start: dict[str, Tensor]  # masks before training
    sparse: SparseTraining | None


def generator(seed: int, part: int) -> torch.Generator:
    """A stream of random numbers of its own for each use."""
    return torch.Generator().manual_seed(1_000_003 * part + seed)


def tasks(config: Config, seed: int) -> dict[str, Task]:
    """What the arms share: every task's data, drawn for this seed."""
    if config.data == "digits":
        whole = digits()
        order = torch.randperm(len(whole), generator=generator(seed, 1))
        whole = Labelled(whole.x.flatten(1)[order], whole.y[order], whole.name)
        ends = (0, config.sizes[-1], config.sizes[-1] + config.validation)
        train, validation = (whole[slice(a, b)] for a, b in pairwise(ends))
        test = whole[ends[-1] : ends[-1] + config.test]
        return {"digits": Task(train, validation, test, config.sizes), "planted": planted(config, seed)}
    images = idx_images("fashion-mnist")
    order = torch.randperm(len(images), generator=generator(seed, 1))[: config.sizes[-1] + config.validation]
    chosen, unseen = images[order], idx_images("fashion-mnist", train=False)[: config.test]
    found = {}
    for name, sizes in (("pixels", config.sizes), ("features", config.sizes[-1:])):
        known, test = (rows(part, name) for part in (chosen, unseen))
        found[name] = Task(known[: sizes[-1]], known[sizes[-1] :], test, sizes)
    return found | {"planted": planted(config, seed)}


def rows(images: Labelled, kind: str) -> Labelled:
    """Pixels `[sample, 784]`, or 512 features of random filters, the same for all seeds; scaled to mean square one."""
    if kind == "pixels":
        x = images.x.flatten(1)
    else:
        filters = torch.randn(32, 1, 5, 5, generator=torch.Generator().manual_seed(0))
        filters -= filters.mean((2, 3), keepdim=True)
        parts = [nn.functional.conv2d(part, filters, stride=2).relu() for part in images.x.split(2000)]
        x = torch.cat([nn.functional.adaptive_avg_pool2d(part, 4).flatten(1) for part in parts])
    return Labelled(x / x.square().mean().sqrt(), images.y, images.name)


def planted(config: Config, seed: int) -> Task:
    """The task in which wiring by groups must help: the positive control. Sizes as in the study, at most 4,000."""
    draw = generator(seed, 2)
    sizes = tuple(dict.fromkeys(min(4000, size) for size in config.sizes))
    count, groups, width = sizes[-1] + config.validation + 2000, config.groups, 64 // config.groups
    x = torch.randn(count, groups, width, generator=draw)
    patterns = torch.randn(groups, width, generator=draw)
    patterns /= patterns.norm(dim=1, keepdim=True)
    y = torch.randint(groups, (count,), generator=draw)
    signs = 2 * torch.randint(2, (count, 1), generator=draw) - 1
    x[torch.arange(count), y] += PATTERN * signs * patterns[y]
    whole = Labelled(x.flatten(1), y, "planted")
    ends = (0, sizes[-1], sizes[-1] + config.validation, count)
    train, validation, test = (whole[slice(a, b)] for a, b in pairwise(ends))
    return Task(train, validation, test, sizes)


def network(config: Config, inputs: int, classes: int, draw: torch.Generator) -> nn.Sequential:
    """The network of an arm, three hidden layers and a dense read-out; sparse ones have equally many weights."""
    sizes = [inputs, *[config.hidden] * 3, classes]
    options: dict[str, Any] = {"groups": config.groups, "p_inter": config.p_inter, "generator": draw}
    if config.wired in ("index", "random", "mixer"):
        return G2GMLP(sizes, scheme=config.wired, **options)  # type: ignore[arg-type]
    like = G2GMLP(sizes, **options)
    if config.wired == "matched":
        sizes[1:-1] = [matched_width(existing_weights(like), inputs, classes)] * 3
    layers = [nn.Flatten()]
    for n_in, n_out in pairwise(sizes):
        layers += [fan_in_(nn.Linear(n_in, n_out), generator=draw), nn.ReLU()]
    model = nn.Sequential(*layers[:-1])
    if config.wired == "unstructured":
        last = f"{len(model) - 1}"
        wiring = random_wiring(model, density(like), allocation="uniform", exclude=[last], generator=draw)
        mask_(model, wiring, initialise=True, generator=draw)
    return model


def matched_width(weights: int, inputs: int, classes: int) -> int:
    """The width of three dense hidden layers with about so many weights: 2 w² + (inputs + classes) w = weights."""
    ends = inputs + classes
    return round((-ends + sqrt(ends**2 + 8 * weights)) / 4)


def accuracy(model: nn.Module, part: Labelled) -> float:
    """In per cent."""
    with torch.no_grad():
        return 100 * float((model.eval()(part.x).argmax(1) == part.y).double().mean())


def trained(config: Config, place: int, given: Mapping[int, Task]) -> list[Trained]:
    """The networks of one arm for one task, for all seeds `{seed: task}` and, within each, all training sizes."""
    found, parts, draws = [], [], []
    for seed, task in given.items():
        for size in task.sizes:
            draw = generator(seed, 10 + place)
            model = network(config, task.train.x.shape[1], task.train.classes, draw)
            start = {key: mask.clone() for key, mask in masks(model).items()}
            found.append(Trained(model, task, size, existing_weights(model), start, None))
            parts.append(task.train[:size])
            draws.append(draw)
    if config.prune:
        one_by_one = zip(found, parts, draws, strict=True)
        return [replace(one, sparse=train_rewired(config, one.model, part, draw)) for one, part, draw in one_by_one]
    train_together(config, [one.model for one in found], parts, draws)
    return found


def batches(config: Config, samples: int, draw: torch.Generator) -> Iterator[Tensor]:
    """Which samples each step sees, so many steps whatever the number of samples."""
    order = torch.empty(0, dtype=torch.long)
    for _ in range(config.steps):
        while len(order) < config.batch:
            order = torch.cat([order, torch.randperm(samples, generator=draw)])
        yield order[: config.batch]
        order = order[config.batch :]


def train_together(
    config: Config, models: Sequence[nn.Sequential], parts: Sequence[Labelled], draws: Sequence[torch.Generator]
) -> None:
    """Adam on the cross entropy for networks of one shape, each on samples of its own, in one product per layer.

    Networks learn as they would alone: a sum of losses, and moments for each weight. Absent weights stay at zero, as
    their gradients are put to zero.
    """
    layers = list(zip(*([part for part in model if isinstance(part, nn.Linear)] for model in models), strict=True))
    weights = [torch.stack([layer.weight.detach().T for layer in depth]).requires_grad_() for depth in layers]
    biases = [torch.stack([layer.bias.detach()[None] for layer in depth]).requires_grad_() for depth in layers]
    exist = [
        torch.stack([layer.get_buffer("weight_mask").T for layer in depth])
        if "weight_mask" in depth[0]._buffers
        else None
        for depth in layers
    ]
    optimizer = torch.optim.Adam([*weights, *biases], lr=config.lr, fused=True)
    orders = [batches(config, len(part), draw) for part, draw in zip(parts, draws, strict=True)]
    for chosen in zip(*orders, strict=True):
        h = torch.stack([part.x[rows] for part, rows in zip(parts, chosen, strict=True)])
        y = torch.cat([part.y[rows] for part, rows in zip(parts, chosen, strict=True)])
        optimizer.zero_grad()
        for depth, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
            h = torch.baddbmm(bias, h.relu() if depth else h, weight)
        (nn.functional.cross_entropy(h.flatten(0, 1), y, reduction="sum") / config.batch).backward()
        for weight, mask in zip(weights, exist, strict=True):
            if mask is not None and weight.grad is not None:
                weight.grad.mul_(mask)
        optimizer.step()
    with torch.no_grad():
        for depth, weight, bias in zip(layers, weights, biases, strict=True):
            for place, layer in enumerate(depth):
                layer.weight.copy_(weight[place].T)
                layer.bias.copy_(bias[place, 0])


def train_rewired(config: Config, model: nn.Module, part: Labelled, draw: torch.Generator) -> SparseTraining:
    """The same for one network whose connections move."""
    optimizer = torch.optim.Adam(model.parameters(), lr=config.lr, fused=True)
    kind = PublishedRewiring if config.published else SparseTraining
    model.train()
    with kind(model, optimizer, generator=draw, **rewiring(config)) as sparse:
        for rows in batches(config, len(part), draw):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(part.x[rows]), part.y[rows]).backward()
            optimizer.step()
            sparse.step()
    return sparse


def rewiring(config: Config) -> dict[str, Any]:
    """Arguments of `SparseTraining`."""
    thirds = {"magnitude-layer": 1 / 3, "random": 1 / 3, "hebbian": 1 / 3}
    return {
        "every": config.every,
        "fraction": config.fraction,
        "until": None if config.published else round(config.until * config.steps),
        "prune": thirds if config.prune == "three" else config.prune,
        "grow": config.grow,
        "centered": config.centered,
        "average": 0.0 if config.published else config.average,
    }


def validation(config: Config, prepared: Mapping[int, Mapping[str, Task]], planted: bool = False) -> float:
    """What tuning reads: mean accuracy on validation samples over tasks, sizes and seeds; planted, or all others."""
    scores = []
    for place, name in enumerate(next(iter(prepared.values()))):
        if (name == "planted") == planted:
            networks = trained(config, place, {seed: found[name] for seed, found in prepared.items()})
            scores.append(fmean(accuracy(one.model, one.task.validation) for one in networks))
    return fmean(scores)


def measure(config: Config, prepared: dict[str, Task], seed: int) -> dict[str, float]:
    """All numbers of one arm and seed; accuracies in per cent."""
    metrics: dict[str, float] = {}
    curve: list[str] = []
    largest: Trained | None = None
    for place, (name, task) in enumerate(prepared.items()):
        if name == "planted" and not config.planted:
            continue
        rate = config.planted_lr if name == "planted" else config.lr
        networks = trained(replace(config, lr=rate), place, {seed: task})
        keys = [f"{name} {one.size}" for one in networks]
        for key, one in zip(keys, networks, strict=True):
            metrics[key] = accuracy(one.model, task.test)
            metrics[f"{key} validation"] = accuracy(one.model, task.validation)
        if name == "planted":
            metrics["planted"] = fmean(metrics[key] for key in keys)
            metrics["planted validation"] = fmean(metrics[f"{key} validation"] for key in keys)
        else:
            curve += keys
        largest = largest or networks[-1]
    assert largest is not None
    metrics["accuracy"] = fmean(metrics[key] for key in curve)
    metrics["validation"] = fmean(metrics[f"{key} validation"] for key in curve)
    return metrics | operations(largest.model, metrics["accuracy"]) | structure(largest)


def operations(model: nn.Sequential, reached: float) -> dict[str, float]:
    """Multiply-adds of a forward pass of one sample, one for each weight that exists, and accuracy for its cost.

    Dense kernels do those of absent weights, too; `multiply-adds, dense kernels` counts them.
    """
    layers = [layer for layer in model if isinstance(layer, nn.Linear)]
    counts = {
        f"multiply-adds, {name}": float(existing_weights(part)) for name, part in zip(LAYERS, layers, strict=True)
    }
    total = sum(counts.values())
    return {
        "multiply-adds": total,
        **counts,
        "multiply-adds, dense kernels": float(sum(layer.weight.numel() for layer in layers)),
        "points per 1,000 multiply-adds": 1000 * reached / total,
    }


def structure(found: Trained) -> dict[str, float]:
    """Density, modularity, hubs, turnover, and what is left without connections between groups."""
    model, test = found.model, found.task.test
    reached = accuracy(model, test)
    measured = {
        "most samples": reached,
        "weights": float(found.weights),
        "weights lost": float(found.weights - existing_weights(model)),
        "exchanges": 0.0 if found.sparse is None else float(len(found.sparse.history)),
        "density": 1.0,
        "modularity": 0.0,
        "hubs": 1.0,
        "most inputs": 1.0,
        "unheard": 0.0,
        "turnover": 0.0,
        "within groups": reached,
    }
    now = masks(model)
    if not now:
        return measured
    measured["density"] = density(model)
    turned = edge_turnover(found.start, now)
    measured["turnover"] = 100 * sum(turned.values()) / len(turned)
    ends = [degrees(mask) for mask in now.values()]
    measured["hubs"] = max(float(end.outputs.max() / end.outputs.double().mean()) for end in ends)
    measured["most inputs"] = max(float(end.inputs.max() / end.inputs.double().mean()) for end in ends)
    measured["unheard"] = 100 * float(torch.cat([end.outputs == 0 for end in ends]).double().mean())
    grouped = {key: wiring for key, wiring in wirings(model).items() if wiring.groups_out is not None}
    if grouped:
        parts = [modularity(now[key], wiring.groups_out, wiring.groups_in) for key, wiring in grouped.items()]
        measured["modularity"] = sum(parts) / len(parts)
        with intra_only(model):
            measured["within groups"] = accuracy(model, test)
    return measured
