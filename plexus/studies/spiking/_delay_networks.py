"""What both studies of learnt delays share: the networks, how they are trained, what is measured; and their data."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from plexus.data import log_mel, spoken_digits
from plexus.kernels import Surrogate
from plexus.nn import LIF, RecurrentLIF, Sequential, project_after_step
from plexus.nn.synapses import DelayAnneal, DelayedLinear, ExponentialSynapse, delay_parameters, weight_parameters
from plexus.nn.synapses._delay_kernel import SHARP, DelayKernel

LEARNT = ("learned", "sharp", "wide", "straight-through")


@dataclass(frozen=True)
class Config:
    """Settings; times in steps. `synthetic` fields are those of the recovery task."""

    method: str = "learned"
    tau: float = 1.005
    hidden: int = 24
    channels: int = 20
    classes: int = 6
    steps: int = 60
    max_delay: int = 24
    train: int = 800
    validation: int = 300
    test: int = 600
    jitter: int = 1
    noise: float = 0.02
    epochs: int = 20
    batch: int = 50
    rate: float = 0.01
    delay_rate: float = 0.3
    anneal: float = 0.7
    settle: float = 0.7
    dropout: float = 0.0
    student_epochs: int = 200
    tuning_seeds: int = 2


@dataclass
class Part:
    """Samples: events `[time, sample, channel]` and classes `[sample]`."""

    x: Tensor
    y: Tensor


def generator(*seed: int) -> torch.Generator:
    """A generator of its own for each purpose of a seed."""
    mixed = 0
    for number in seed:
        mixed = (mixed * 1_000_003 + number + 1) % 2**63
    return torch.Generator().manual_seed(mixed)


# ---------------------------------------------------------------- data


def patterns(config: Config, source: torch.Generator) -> Tensor:
    """When each channel fires after the onset, for each class, `[class, channel]`."""
    return torch.randint(0, config.max_delay + 1, (config.classes, config.channels), generator=source)


def synthetic(config: Config, pattern: Tensor, samples: int, source: torch.Generator) -> Part:
    """Every channel fires once, at a random onset plus the delay of its class plus jitter; noise everywhere.

    The last max_delay // 2 steps hold noise alone, so that late delayed spikes still count.
    """
    y = torch.randint(0, config.classes, (samples,), generator=source)
    room = config.steps - config.max_delay // 2 - config.max_delay - 2 * config.jitter
    onset = torch.randint(0, room, (samples, 1), generator=source)
    shake = torch.randint(-config.jitter, config.jitter + 1, (samples, config.channels), generator=source)
    when = onset + config.jitter + pattern[y] + shake
    x = torch.rand(config.steps, samples, config.channels, generator=source) < config.noise
    x.scatter_(0, when.unsqueeze(0), True)
    return Part(x, y)


def sounds(config: Config, seed: int) -> dict[str, Part]:
    """Spoken digits as events: 40 log-mel bands, each recording standardised, two levels, 50 bins of 20 ms.

    Recordings 0 to 4 of each speaker and digit are the test, 5 to 9 validation; training is a draw from the others.
    """
    digits = spoken_digits()
    keep = torch.nonzero(digits.index >= 10).flatten()
    keep = keep[torch.randperm(len(keep), generator=generator(seed, 7))[: config.train]]
    chosen = {
        "train": keep,
        "validation": torch.nonzero((digits.index >= 5) & (digits.index < 10)).flatten()[:: 300 // config.validation],
        "test": torch.nonzero(digits.index < 5).flatten()[:: 300 // config.test],
    }
    parts = {}
    for name, where in chosen.items():
        x = torch.zeros(config.steps, len(where), config.channels, dtype=torch.bool)
        for n, place in enumerate(where.tolist()):
            bands = log_mel(digits.audio[place], digits.rate, bands=config.channels // 2, hop=20.0)[: config.steps]
            bands = (bands - bands.mean()) / bands.std().clamp(min=1e-6)
            x[: len(bands), n] = torch.cat([bands > 0.2, bands > 1.0], 1)
        parts[name] = Part(x, digits.labels[where])
    return parts


# ---------------------------------------------------------------- networks


def synapses(config: Config, n_in: int, n_out: int, source: torch.Generator) -> nn.Module:
    """The connections that an arm asks for."""
    delayed = DelayedLinear(
        n_in,
        n_out,
        config.max_delay,
        learn=config.method in LEARNT,
        sigma=SHARP if config.method in ("sharp", "straight-through") else None,
        straight_through=config.method == "straight-through",
        generator=source,
    )
    if config.method in LEARNT:
        return delayed
    if config.method == "fixed":
        return delayed.round_().hard(True)
    plain = nn.Linear(n_in, n_out, bias=False)
    plain.weight = delayed.weight  # the same first weights
    return plain


def network(config: Config, source: torch.Generator) -> Sequential:
    """Events → hidden layer → potentials of the classes over time; the number of hidden units may follow the arm."""
    neuron: dict[str, Any] = {
        "discretisation": "euler",
        "reset": "hard",
        "detach_reset": True,
        "surrogate": Surrogate("arctan", width=2 / (5 * math.pi), height=2.5),  # alpha = 5 as published
    }
    hidden = config.hidden
    recurrent = config.method == "recurrent"
    readout = -1 / math.log(1 - 1 / config.tau)  # the decay of the hidden units
    return Sequential(
        synapses(config, config.channels, hidden, source),
        nn.BatchNorm1d(hidden),
        RecurrentLIF(hidden, config.tau, generator=source, **neuron)
        if recurrent
        else LIF(hidden, config.tau, **neuron),
        nn.Dropout(config.dropout),
        synapses(config, hidden, config.classes, source),
        ExponentialSynapse(config.classes, readout),
    )


def schedules(config: Config, steps: int) -> list[Any]:
    """One cycle for weights (a fifth of the peak, the peak at 30 %, nothing), half a cosine for delays."""

    def cycle(step: int) -> float:
        done = step / max(steps, 1)
        if done < 0.3:
            return 0.6 - 0.4 * math.cos(math.pi * done / 0.3)
        return 0.5 + 0.5 * math.cos(math.pi * (done - 0.3) / 0.7)

    return [cycle, lambda step: 0.5 + 0.5 * math.cos(math.pi * step / max(steps, 1))]


def optimiser(config: Config, model: nn.Module, steps: int, rate: float) -> tuple[torch.optim.Optimizer, Any]:
    """Weights and delays each with their rate and schedule; delays kept in range."""
    delays = delay_parameters(model)
    groups = [{"params": weight_parameters(model), "lr": rate, "weight_decay": 1e-5}]
    if delays:
        groups.append({"params": delays, "lr": config.delay_rate, "weight_decay": 0.0})
    groups = [group for group in groups if group["params"]]
    optimizer = torch.optim.Adam(groups)
    if delays:
        project_after_step(optimizer, model)
    shapes = schedules(config, steps) if len(groups) == 2 or not delays else schedules(config, steps)[1:]
    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, shapes[: len(groups)])


def trained(config: Config, model: Sequential, part: Part, source: torch.Generator) -> dict[str, float]:
    """Train in place; where delays are learnt, round them on the way and give the weights the epochs that are left.

    Annealing ends at the share `anneal` of the epochs, rounding comes at the share `settle`. Returns the accuracy on
    the training samples just before rounding and just after it.
    """
    last = round(config.settle * config.epochs) if config.method in LEARNT else 0
    found: dict[str, float] = {}
    if last:
        anneal = DelayAnneal(model, max(1, round(config.anneal * last))) if config.method == "learned" else None
        epochs(config, model, part, last, config.rate, source, anneal)
        found["before_rounding"] = accuracy(model, part)
        for layer in delayed_layers(rounded(model)):
            layer.delay.requires_grad_(False)
        found["after_rounding"] = accuracy(model, part)
    if last < config.epochs:
        epochs(config, model, part, config.epochs - last, config.rate * (0.5 if last else 1.0), source)
    return found


def epochs(
    config: Config,
    model: Sequential,
    part: Part,
    count: int,
    rate: float,
    source: torch.Generator,
    anneal: DelayAnneal | None = None,
) -> None:
    """So many epochs under the cross-entropy of the summed softmax of the classes' potentials."""
    samples = len(part.y)
    optimizer, scheduler = optimiser(config, model, count * math.ceil(samples / config.batch), rate)
    for _ in range(count):
        model.train()
        for where in torch.randperm(samples, generator=source).split(config.batch):
            potentials, _ = model(part.x[:, where].float())
            loss = nn.functional.cross_entropy(potentials.softmax(-1).sum(0), part.y[where])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scheduler.step()
        if anneal is not None:
            anneal.step()


def delayed_layers(model: nn.Module) -> list[DelayKernel]:
    """The layers of a model that have delays."""
    return [layer for layer in model.modules() if isinstance(layer, DelayKernel)]


@torch.no_grad()
def accuracy(model: Sequential, part: Part) -> float:
    """Share of samples whose class has the largest summed softmax, %."""
    model.eval()
    votes = [model(part.x[:, where].float())[0].softmax(-1).sum(0) for where in torch.arange(len(part.y)).split(200)]
    return 100 * float((torch.cat(votes).argmax(1) == part.y).float().mean())


def rounded(model: nn.Module) -> nn.Module:
    """Every delay a whole number of steps and every synapse a single tap, in place."""
    for layer in delayed_layers(model):
        layer.round_().hard(True)
    return model


def off_grid(model: nn.Module) -> float:
    """How far from whole steps the worst delay is."""
    layers = delayed_layers(model)
    return max((float((layer.delays - layer.delays.round()).abs().max()) for layer in layers), default=0.0)


def measured(config: Config, parts: dict[str, Part], seed: int) -> dict[str, float]:
    """Train the network of an arm and measure it as it would be deployed, delays in whole steps."""
    model = network(config, generator(seed, 2))
    found = trained(config, model, parts["train"], generator(seed, 3))
    rounded(model)
    found |= {name: accuracy(model, parts[name]) for name in ("train", "validation", "test")}
    return found | budget(config, model, parts["test"]) | {"off_grid": off_grid(model)}


@torch.no_grad()
def budget(config: Config, model: Sequential, part: Part) -> dict[str, float]:
    """What the network costs once delays are rounded: numbers, work per step if dense, work per sample if by events."""
    spikes, _ = Sequential(*list(model)[:3])(part.x[:, :200].float())
    into, out = config.channels * config.hidden, config.hidden * config.classes
    within = config.hidden * (config.hidden - 1) if config.method == "recurrent" else 0
    delays = sum(layer.delay.numel() for layer in delayed_layers(model))
    weights = sum(p.numel() for p in weight_parameters(model))
    learnt = delays if config.method in LEARNT else 0  # frozen by now
    fan_out = config.classes + (config.hidden - 1 if within else 0)
    by_events = part.x[:, :200].sum() * config.hidden + spikes.sum() * fan_out
    return {
        "parameters": float(weights + learnt),
        "fixed_delays": float(delays - learnt),
        "products_per_step": float(into + within + out),
        "events_per_sample": float(by_events) / min(200, len(part.y)),
        "hidden_rate": float(spikes.mean()),
    }


# ---------------------------------------------------------------- references of the synthetic task


def matched_filter(config: Config, pattern: Tensor, part: Part) -> float:
    """Accuracy of the one who knows the delays: most channels in place, at the best onset, jitter allowed; %."""
    x = part.x.float()
    near = sum(torch.roll(x, shift, 0) for shift in range(-config.jitter, config.jitter + 1)).clamp(max=1)
    last = config.steps - config.max_delay
    scores = []
    for delays in pattern:
        shifted = [near[int(d) : int(d) + last, :, j] for j, d in enumerate(delays)]
        scores.append(torch.stack(shifted).sum(0).amax(0))
    return 100 * float((torch.stack(scores).argmax(0) == part.y).float().mean())


def from_counts(train: Part, test: Part, classes: int) -> float:
    """Accuracy of a linear classifier that sees how often each channel fired, and not when; %."""

    def counts(part: Part) -> Tensor:
        total = part.x.sum(0).double()
        return torch.cat([total, torch.ones(len(total), 1).double()], 1)

    weights = torch.linalg.lstsq(counts(train), nn.functional.one_hot(train.y, classes).double()).solution
    return 100 * float(((counts(test) @ weights).argmax(1) == test.y).float().mean())


def student(config: Config, seed: int, sharp: bool) -> dict[str, float]:
    """Delays of a teacher from its currents alone: share of the strongest half found within a step, before and after.

    The student has the teacher's weights, which stay as they are, and delays of its own.
    """
    source = generator(seed, 5)
    teacher = DelayedLinear(config.channels, config.hidden, config.max_delay, learn=False, generator=source)
    teacher.round_().hard(True)
    learner = DelayedLinear(
        config.channels, config.hidden, config.max_delay, sigma=SHARP if sharp else None, generator=source
    )
    with torch.no_grad():
        learner.weight.copy_(teacher.weight)
    learner.weight.requires_grad_(False)
    strong = teacher.weight.abs() >= teacher.weight.abs().median()

    def found() -> float:
        return 100 * float(((learner.delays.round() - teacher.delays).abs() <= 1)[strong].float().mean())

    before = found()
    optimizer, scheduler = optimiser(config, learner, config.student_epochs, config.rate)
    anneal = None if sharp else DelayAnneal(learner, max(1, round(config.anneal * config.student_epochs)))
    for _ in range(config.student_epochs):
        x = (torch.rand(config.steps, config.batch, config.channels, generator=source) < 0.1).float()
        with torch.no_grad():
            target, _ = teacher(x)
        loss = (learner(x)[0] - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
        if anneal is not None:
            anneal.step()
    error = (learner.delays.round() - teacher.delays)[strong].abs()
    return {"found": found(), "found_before": before, "exact": 100 * float((error == 0).float().mean())}
