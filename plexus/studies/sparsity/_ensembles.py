"""What the studies of group-to-group wiring share: settings, tasks, networks, training, measures.

digits     8×8 images; training on 100, 300 and 1,000 of them
planted    eight groups of eight inputs; the class is the group whose inputs are most alike a pattern of its own:
           only inputs of one group belong together, which wiring by these groups knows beforehand
fashion    28×28 images as pixels, and as 512 fixed features: random 5×5 filters, rectified, pooled to 4×4
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from math import sqrt
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
from plexus.nn import fan_in_, project_after_step
from plexus.nn.models import G2GMLP, existing_weights
from plexus.studies.sparsity._published import PublishedRewiring

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
    tuning_seeds: int = 3


@dataclass(frozen=True)
class Task:
    """Inputs as rows, in three disjoint parts; `sizes` are the first so many of the training part."""

    train: Labelled
    validation: Labelled
    test: Labelled
    sizes: tuple[int, ...]


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
    """The task in which wiring by groups must help: the positive control."""
    draw = generator(seed, 2)
    n = min(1000, config.sizes[-1])
    count, groups, size = n + config.validation + 2000, config.groups, 64 // config.groups
    x = torch.randn(count, groups, size, generator=draw)
    patterns = torch.randn(groups, size, generator=draw)
    y = torch.einsum("sgi,gi->sg", x, patterns / patterns.norm(dim=1, keepdim=True)).argmax(1)
    whole = Labelled(x.flatten(1), y, "planted")
    return Task(whole[:n], whole[n : n + config.validation], whole[n + config.validation :], (n,))


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


def train(config: Config, model: nn.Module, part: Labelled, draw: torch.Generator) -> SparseTraining | None:
    """Adam on the cross entropy, so many steps whatever the number of samples; with rewiring where the arm asks."""
    optimizer = torch.optim.Adam(model.parameters(), lr=config.lr)
    sparse = None
    if config.prune:
        kind = PublishedRewiring if config.published else SparseTraining
        sparse = kind(model, optimizer, generator=draw, **rewiring(config))
        sparse.__enter__()
    elif masks(model):
        project_after_step(optimizer, model)
    model.train()
    order = torch.empty(0, dtype=torch.long)
    for _ in range(config.steps):
        if len(order) < config.batch:
            order = torch.cat([order, torch.randperm(len(part), generator=draw)])
        chosen, order = order[: config.batch], order[config.batch :]
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(part.x[chosen]), part.y[chosen]).backward()
        optimizer.step()
        if sparse is not None:
            sparse.step()
    if sparse is not None:
        sparse.close()
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


def measure(config: Config, prepared: dict[str, Task], seed: int) -> dict[str, float]:
    """All numbers of one arm and seed; accuracies in per cent."""
    metrics: dict[str, float] = {}
    first = next(iter(prepared))
    for place, (name, task) in enumerate(prepared.items()):
        if name == "planted" and not config.planted:
            continue
        for size in task.sizes:
            draw = generator(seed, 10 + place)
            model = network(config, task.train.x.shape[1], task.train.classes, draw)
            start = {key: mask.clone() for key, mask in masks(model).items()}
            groups = wirings(model)
            weights = existing_weights(model)
            sparse = train(config, model, task.train[:size], draw)
            metrics[f"{name} {size}"] = accuracy(model, task.test)
            metrics[f"{name} {size} validation"] = accuracy(model, task.validation)
            if (name, size) == (first, task.sizes[-1]):
                metrics |= {"weights": float(weights), "weights lost": float(weights - existing_weights(model))}
                metrics |= structure(model, start, groups, task)
                metrics["exchanges"] = float(len(sparse.history)) if sparse is not None else 0.0
    curve = [key for key in metrics if key.split()[0] != "planted" and key.split()[-1].isdigit()]
    metrics["accuracy"] = sum(metrics[key] for key in curve) / len(curve)
    metrics["most samples"] = metrics[f"{first} {prepared[first].sizes[-1]}"]
    if config.planted and "planted" in prepared:
        metrics["planted"] = metrics[f"planted {prepared['planted'].sizes[-1]}"]
    metrics["validation"] = sum(metrics[f"{key} validation"] for key in curve) / len(curve)
    return metrics


def structure(model: nn.Module, start: dict[str, Tensor], groups: dict[str, Any], task: Task) -> dict[str, float]:
    """Density, modularity, hubs, turnover, and what is left without connections between groups."""
    found = {
        "density": 1.0,
        "modularity": 0.0,
        "hubs": 1.0,
        "turnover": 0.0,
        "within groups": accuracy(model, task.test),
    }
    now = masks(model)
    if not now:
        return found
    found["density"] = density(model)
    turned = edge_turnover(start, now)
    found["turnover"] = 100 * sum(turned.values()) / len(turned)
    outputs = [degrees(mask).outputs.double() for mask in now.values()]
    found["hubs"] = float(max(part.max() / part.mean() for part in outputs))
    grouped = {key: wiring for key, wiring in groups.items() if wiring.groups_out is not None}
    if grouped:
        parts = [modularity(now[key], wiring.groups_out, wiring.groups_in) for key, wiring in grouped.items()]
        found["modularity"] = sum(parts) / len(parts)
        with intra_only(model):
            found["within groups"] = accuracy(model, task.test)
    return found
