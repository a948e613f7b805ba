"""The study of neuron modes: pairs of tasks, base networks, and the ways of adapting them."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.functional import affine_grid, cross_entropy, grid_sample, pad

from plexus.data import Labelled, digits, idx_images
from plexus.edit.gate import NeuronModes, annealed, merge_gain, mode_report, prune_off_neurons
from plexus.errors import require

PAIRS = ("rotated", "inverted", "missing")


@dataclass(frozen=True)
class Config:
    """All settings; `rate_…` are learning rates of the adaptation, one for each pair of tasks."""

    data: str = "digits"
    pairs: tuple[str, ...] = PAIRS
    train: int = 900
    validation: int = 300
    test: int = 597
    hidden: int = 48
    base_epochs: int = 40
    base_rate: float = 2e-3
    epochs: int = 10
    batch: int = 64
    method: str = "frozen"
    threshold: bool = True
    gain: bool = True
    gates: str = "hard"  # at inference
    temperature: float = 0.1
    start: float | None = None
    anneal: tuple[float, float] | None = None
    straight_epochs: int = 0
    facts: bool = False
    rank: int = 1
    grid: str = ""
    rate_rotated: float = 1e-2
    rate_inverted: float = 1e-2
    rate_missing: float = 1e-2
    tuning_seeds: int = 4

    def rate(self, pair: str) -> float:
        """The learning rate of a pair."""
        return float(getattr(self, f"rate_{pair}"))


@dataclass
class Task:
    """A base network and what it is adapted from and to.

    Attributes:
        base: frozen.
        target: images and labels to adapt to, for training; likewise `validation` and `test`.
        source: the other half of what the base network knows: upright, for training, and for the test.
    """

    base: nn.Sequential
    target: Labelled
    validation: Labelled
    test: Labelled
    source: Labelled
    source_test: Labelled


@dataclass
class Adapted:
    """What an adaptation leaves: a network, how many numbers were learnt, and for modes the modes."""

    model: Callable[[Tensor], Tensor]
    trainable: int
    modes: NeuronModes | None = None
    facts: dict[str, float] = field(default_factory=dict)
    arrays: dict[str, Tensor] = field(default_factory=dict)


def generator(seed: int, stream: int) -> torch.Generator:
    """A source of randomness of its own for each use."""
    return torch.Generator().manual_seed(seed * 100 + stream)


def rotate(x: Tensor, degrees: float = 45.0) -> Tensor:
    """Images `[sample, 1, y, x]` turned about their centre, between pixels bilinear, outside 0."""
    angle = torch.tensor(degrees).deg2rad()
    turn = torch.stack([torch.stack([angle.cos(), -angle.sin()]), torch.stack([angle.sin(), angle.cos()])])
    matrix = torch.cat([turn, torch.zeros(2, 1)], 1).expand(len(x), 2, 3)
    return grid_sample(x, affine_grid(matrix, list(x.shape), align_corners=False), align_corners=False)


def invert(x: Tensor) -> Tensor:
    """Dark for bright."""
    return 1 - x


def parts(config: Config, seed: int) -> tuple[Labelled, Labelled, Labelled]:
    """Training, validation and test images, disjoint, drawn again for every seed."""
    draw = generator(seed, 0)
    if config.data == "digits":
        images = digits()
        images = Labelled(pad(images.x, (2, 2, 2, 2)), images.y, images.name)  # so that the corners stay when it turns
        order = torch.randperm(len(images), generator=draw)
        ends = torch.tensor([config.train, config.validation, config.test]).cumsum(0).tolist()
        return images[order[: ends[0]]], images[order[ends[0] : ends[1]]], images[order[ends[1] : ends[2]]]
    known, unseen = idx_images(config.data), idx_images(config.data, train=False)
    order = torch.randperm(len(known), generator=draw)
    test = torch.randperm(len(unseen), generator=draw)[: config.test]
    return known[order[: config.train]], known[order[config.train :][: config.validation]], unseen[test]


def network(inputs: int, hidden: int, classes: int, draw: torch.Generator) -> nn.Sequential:
    """A perceptron of two hidden layers of rectified units; the customary uniform weights, from a generator."""
    sizes = (inputs, hidden, hidden, classes)
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for place, name in enumerate(("one", "two", "out")):
        layer = nn.Linear(sizes[place], sizes[place + 1])
        bound = sizes[place] ** -0.5
        with torch.no_grad():
            for parameter in layer.parameters():
                parameter.copy_((2 * torch.rand(parameter.shape, generator=draw) - 1) * bound)
        layers[name] = layer
        if name != "out":
            layers[f"relu_{name}"] = nn.ReLU()
    return nn.Sequential(layers)


def fit(
    model: Callable[[Tensor], Tensor],
    parameters: Iterable[nn.Parameter],
    data: Labelled,
    *,
    rate: float,
    epochs: int,
    batch: int,
    draw: torch.Generator,
    before: Callable[[float], None] | None = None,
) -> None:
    """Adam on the cross-entropy; `before` is told the progress from 0 to 1 ahead of every epoch."""
    optimizer = torch.optim.Adam(list(parameters), lr=rate, fused=True)
    with model.on() if isinstance(model, NeuronModes) else nullcontext():
        for epoch in range(epochs):
            if before is not None:
                before(epoch / max(epochs - 1, 1))
            for x, y in data.batches(batch, generator=draw):
                optimizer.zero_grad()
                cross_entropy(model(x), y).backward()
                optimizer.step()


@torch.no_grad()
def accuracy(model: Callable[[Tensor], Tensor], data: Labelled) -> float:
    """In per cent."""
    return 100 * float((model(data.x).argmax(-1) == data.y).double().mean())


def flat(data: Labelled, change: Callable[[Tensor], Tensor] | None = None) -> Labelled:
    """Images as rows, changed before."""
    return Labelled((data.x if change is None else change(data.x)).flatten(1), data.y, data.name)


def task(config: Config, pair: str, images: tuple[Labelled, Labelled, Labelled], seed: int) -> Task:
    """The pair of tasks and the base network: trained half and half, for `missing` on upright images alone."""
    change = invert if pair == "inverted" else rotate
    train, validation, test = images
    place = PAIRS.index(pair)
    upright, target = flat(train), flat(train, change)
    half = torch.randperm(len(train), generator=generator(seed, 10 + place)) < len(train) // 2
    mixture = upright if pair == "missing" else Labelled(torch.where(half[:, None], target.x, upright.x), train.y)
    base = network(target.x.shape[1], config.hidden, 10, generator(seed, 20 + place))
    fit(
        base,
        base.parameters(),
        mixture,
        rate=config.base_rate,
        epochs=config.base_epochs,
        batch=config.batch,
        draw=generator(seed, 30 + place),
    )
    base.eval().requires_grad_(False)
    return Task(base, target, flat(validation, change), flat(test, change), upright, flat(test))


def learnt_mode(
    config: Config, modes: NeuronModes, name: str, data: Labelled, pair: str, draw: torch.Generator
) -> NeuronModes:
    """Train a mode, with falling temperature and straight-through epochs at the end where the arm says so."""
    mode = modes.add(name)

    def cool(progress: float) -> None:
        if config.anneal is not None:
            mode.temperature = annealed(*config.anneal, progress)

    rate, straight = config.rate(pair), min(config.straight_epochs, config.epochs)
    shared = {"rate": rate, "batch": config.batch, "draw": draw}
    fit(modes, modes.train_parameters(name), data, epochs=config.epochs - straight, before=cool, **shared)
    if straight:
        modes.harden()
        fit(modes, modes.train_parameters(name), data, epochs=straight, **shared)
    modes.gates = "soft" if config.gates == "soft" else "auto"
    return modes.eval()


def shuffled(modes: NeuronModes, name: str, draw: torch.Generator, thresholds_only: bool = False) -> None:
    """Deal the numbers of a mode to other neurons of the same layer."""
    mode = modes[name]
    with torch.no_grad():
        for place in range(len(modes.sites)):
            order = torch.randperm(len(mode.gains[place]), generator=draw)
            mode.thresholds[place].copy_(mode.thresholds[place][order])
            mode.gains[place].copy_(torch.ones_like(order) if thresholds_only else mode.gains[place][order])


def adapt(config: Config, task: Task, pair: str, seed: int) -> Adapted:
    """Adapt the base network of a task to its target by the method of the arm."""
    draw, method = generator(seed, 40 + PAIRS.index(pair)), config.method
    loop = {"rate": config.rate(pair), "epochs": config.epochs, "batch": config.batch, "draw": draw}
    if method == "frozen":
        return Adapted(task.base, 0)
    if method in ("modes", "shuffled", "random gates", "two modes"):
        modes = NeuronModes(
            task.base,
            threshold=config.threshold,
            gain=config.gain,
            temperature=config.temperature,
            start=config.start,
        )
        learnt_mode(config, modes, "target", task.target, pair, draw)
        count = sum(p.numel() for p in modes["target"].parameters())
        if method == "shuffled":
            shuffled(modes, "target", generator(seed, 50))
        if method == "random gates":
            shuffled(modes, "target", generator(seed, 50), thresholds_only=True)
            modes.train_parameters("target")
            modes.harden()
            fit(modes, list(modes["target"].gains), task.target, **loop)
            count, modes.gates = count // 2, "auto"
            modes.eval()
        facts, arrays = mode_facts(modes, task) if config.facts else ({}, {})
        if method == "two modes":
            facts = swap_facts(config, modes, task, pair, draw)
            modes.activate("target")
        return Adapted(modes, count, modes, facts, arrays)
    model = copy.deepcopy(task.base)
    if method == "lora":
        peft = require("peft", "llm", purpose="LoRA")
        torch.manual_seed(seed)  # peft draws its first factors from the global state
        model = peft.get_peft_model(
            model, peft.LoraConfig(r=config.rank, lora_alpha=2 * config.rank, target_modules=["one", "two"])
        )
        parameters = [p for p in model.parameters() if p.requires_grad]
    elif method == "bias":
        parameters = [model.one.bias.requires_grad_(True), model.two.bias.requires_grad_(True)]
    else:
        parameters = list(model.requires_grad_(True).parameters())
    fit(model, parameters, task.target, **loop)
    return Adapted(model.eval(), sum(p.numel() for p in parameters))


def mode_facts(modes: NeuronModes, task: Task) -> tuple[dict[str, float], dict[str, Tensor]]:
    """What a mode does neuron by neuron, and whether merging and pruning keep its answers."""
    report = mode_report(modes, task.target.x)
    arrays = {
        name: torch.cat(list(scores.values.values()))
        for name, scores in (
            ("on-rate", report.on_rate),
            ("on-rate of the base", report.base_on_rate),
            ("threshold", report.threshold),
            ("gain", report.gain),
        )
    }
    on = arrays["on-rate"]
    with torch.no_grad():
        answer = modes(task.target.x)
        merged = merge_gain(modes)
        smaller, removed = prune_off_neurons(modes, task.target.x)
        errors = [(other(task.target.x) - answer).abs().max() / answer.abs().max() for other in (merged, smaller)]
    facts = {
        "on-rate": 100 * float(on.mean()),
        "on-rate of the base": 100 * float(arrays["on-rate of the base"].mean()),
        "thresholds above 0": 100 * float((arrays["threshold"] > 0).double().mean()),
        "strongly active": 100 * float((on > 0.5).double().mean()),
        "changed neurons": 100 * len(report.changed()) / len(on),
        "neurons removed": 100 * sum(had - has for had, has in removed.sizes.values()) / len(on),
        "merging error": float(errors[0]),
        "pruning error": float(errors[1]),
    }
    return facts, arrays


def swap_facts(config: Config, modes: NeuronModes, task: Task, pair: str, draw: torch.Generator) -> dict[str, float]:
    """A second mode on the same base network; batches of both tasks in turn, each in its mode."""
    tests = {"target": task.test, "source": task.source_test}
    batches = torch.arange(len(task.test)).split(config.batch)
    alone: dict[str, list[Tensor]] = {}
    different, right = 0.0, {"target": 0, "source": 0}
    with torch.no_grad():
        alone["target"] = [modes(task.test.x[index]) for index in batches]
    learnt_mode(config, modes, "source", task.source, pair, draw)
    with torch.no_grad():
        alone["source"] = [modes(task.source_test.x[index]) for index in batches]
        for place, index in enumerate(batches):
            for name, data in tests.items():
                answer = modes.activate(name)(data.x[index])
                different = max(different, float((answer - alone[name][place]).abs().max()))
                right[name] += int((answer.argmax(-1) == data.y[index]).sum())
    return {
        "swapping error": different,
        "target in its mode": 100 * right["target"] / len(task.test),
        "source in its mode": 100 * right["source"] / len(task.test),
        "numbers swapped": float(sum(p.numel() for p in modes["target"].parameters())),
    }
