"""The networks of the study of dynamic confidence: trained, run over all steps, their read-outs and spikes kept."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from plexus.data import Labelled, digits, idx_images, log_mel, spoken_digits
from plexus.nn import LIF, Sequential, convert_quantised, quantise_activations
from plexus.nn.encoding import direct, rate
from plexus.probe import record
from plexus.units import sites


@dataclass(frozen=True)
class Config:
    """All settings."""

    data: str = "digits"
    networks: tuple[str, ...] = ("converted", "spiking")
    train: int = 800
    calibration: int = 500
    hidden: int = 64
    levels: int = 4
    steps: int = 16
    epochs: int = 30
    lr: float = 5e-3
    noise: float = 0.2
    policy: str = "full"
    kind: str = "softmax"
    accumulate: str = "sum"
    alpha: float | None = None
    threshold: float | None = None
    on_test: bool = False


@dataclass(frozen=True)
class Run:
    """One network over all steps on one set of samples."""

    outputs: Tensor  # read-out of each step                  [time, sample, class]
    spikes: Tensor  # of all neurons                          [time, sample]
    y: Tensor  # [sample]


def generator(seed: int, stream: int) -> torch.Generator:
    """A source of randomness of its own for each use."""
    return torch.Generator().manual_seed(seed * 100 + stream)


def parts(config: Config, seed: int) -> tuple[Labelled, Labelled, Labelled]:
    """Training, calibration and test samples, disjoint; drawn again for every seed, audio's test part excepted."""
    if config.data == "audio":
        train, test = _words(config)
        order = torch.randperm(len(train), generator=generator(seed, 0))
        return train[order[config.calibration :]], train[order[: config.calibration]], test
    whole = digits() if config.data == "digits" else idx_images(config.data)
    order = torch.randperm(len(whole), generator=generator(seed, 0))
    first, second = config.train, config.train + config.calibration
    rest = slice(second, second + (len(whole) if config.data == "digits" else 2000))
    return whole[order[:first]], whole[order[first:second]], whole[order[rest]]


def _words(config: Config) -> tuple[Labelled, Labelled]:
    """Spoken digits as log-mel frames of 20 ms, `[word, time, band]`, bands standardised; long words are cut."""
    found = []
    for part in spoken_digits().split():
        frames = [log_mel(sound, frame=32.0, hop=20.0, bands=24) for sound in part.audio]
        silent = torch.full((config.steps, 24), float(min(f.min() for f in frames)))
        x = torch.stack([torch.cat([f, silent])[: config.steps] for f in frames])
        found.append(Labelled(x, part.labels, "spoken digits"))
    middle, spread = found[0].x.mean((0, 1)), found[0].x.std((0, 1))
    return tuple(Labelled((d.x - middle) / (2 * spread), d.y, d.name) for d in found)  # type: ignore[return-value]


def drive(config: Config, network: str, x: Tensor, source: torch.Generator) -> Tensor:
    """What enters the network over time, `[time, sample, feature]`."""
    if config.data == "audio":
        return x.transpose(0, 1).contiguous()
    x = x.flatten(1)
    return direct(x, config.steps) if network == "converted" else rate(x, config.steps, generator=source)


def trained(config: Config, network: str, data: Labelled, seed: int) -> Sequential:
    """A network of two hidden layers that classifies at every step."""
    source = generator(seed, 1)
    features = data.x.shape[-1] if config.data == "audio" else data.x[0].numel()
    sizes = (features, config.hidden, config.hidden)
    if network == "converted":
        model: nn.Sequential = nn.Sequential(
            *(m for a, b in itertools.pairwise(sizes) for m in (nn.Linear(a, b), nn.ReLU())),
            nn.Linear(config.hidden, data.classes),
        )
        model = quantise_activations(model, config.levels, batch=data.x[:200].flatten(1))  # type: ignore[assignment]
    else:
        leak = {"tau_mem": 5.0, "surrogate": "fast_sigmoid"}
        model = Sequential(
            *(m for a, b in itertools.pairwise(sizes) for m in (nn.Linear(a, b), LIF(b, **leak))),
            nn.Linear(config.hidden, data.classes),
        )
        with torch.no_grad():  # enough current to fire from the start
            for layer in model:
                if isinstance(layer, nn.Linear):
                    layer.weight.mul_(2.0)
    adam = torch.optim.Adam(model.parameters(), config.lr)
    batches = -(-len(data) // 64) * config.epochs
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, batches)
    for _ in range(config.epochs):
        for x, y in data.batches(64, generator=source):
            if network == "converted":
                loss = cross_entropy(model(x.flatten(1)), y)
            else:
                out, _ = model(drive(config, network, x, source))
                loss = cross_entropy(out.mean(0), y)
            adam.zero_grad()
            loss.backward()
            adam.step()
            schedule.step()
    return convert_quantised(model) if network == "converted" else model  # type: ignore[return-value]


def run(config: Config, network: str, model: Sequential, data: Labelled, source: torch.Generator) -> Run:
    """The read-outs and the number of spikes of every step."""
    x = drive(config, network, data.x, source)
    with torch.no_grad():
        outputs, _ = model(x)
    places = sites.spiking(model)
    recording = record(model, x, at=places)
    spikes = sum(recording.dense(place).abs().sum(-1) for place in places)  # type: ignore[union-attr]
    return Run(outputs, spikes.T, data.y)  # type: ignore[union-attr]


def noisy(data: Labelled, share: float, source: torch.Generator) -> Labelled:
    """The samples with Gaussian noise; images are kept within [0, 1]."""
    x = data.x + share * torch.randn(data.x.shape, generator=source)
    return Labelled(x.clamp(0, 1) if data.x.dim() == 4 else x, data.y, data.name)
