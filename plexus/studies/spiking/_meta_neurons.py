"""Tasks, networks and readouts of the study of meta neurons: what its arms share."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from plexus.data import digits, log_mel, spoken_digits
from plexus.errors import require
from plexus.lab import Results
from plexus.learn.plasticity import HomeostaticThreshold, PairSTDP, Plastic, Tempotron
from plexus.learn.readout import LZCClassifier
from plexus.nn import MetaNeuron, Sequential, intrinsic_parameters, synaptic_parameters
from plexus.nn.encoding import poisson

DT = 5.0  # ms


@dataclass(frozen=True)
class Spikes:
    """Spike trains `[sample, channel, time]` with their labels, 0 or 1."""

    x: Tensor
    y: Tensor

    def __getitem__(self, rows: Any) -> Spikes:
        return Spikes(self.x[rows], self.y[rows])

    def __len__(self) -> int:
        return len(self.y)


@dataclass(frozen=True)
class Task:
    """Two classes of spike trains, in three parts that share no sample."""

    train: Spikes
    validation: Spikes
    test: Spikes


def generator(seed: int, stream: int) -> torch.Generator:
    """One of a seed's independent sources of randomness."""
    return torch.Generator().manual_seed(seed * 1000 + stream)


def rates(samples: int, channels: int, steps: int, rng: torch.Generator) -> Spikes:
    """R: Poisson trains of 20 or 26 Hz."""
    y = labels(samples, rng)
    hertz = torch.where(y == 0, 20.0, 26.0).view(-1, 1, 1) / 26.0
    x = poisson(hertz.expand(samples, channels, 1), steps, rate=26.0, dt=DT, generator=rng)
    return Spikes(x.squeeze(-1).permute(1, 2, 0).contiguous(), y)


def structure(samples: int, channels: int, steps: int, rng: torch.Generator) -> Spikes:
    """S: each channel repeats a template of 40 steps, or has the very same spikes in random order."""
    y = labels(samples, rng)
    template = torch.rand(samples, channels, 40, generator=rng) < 0.15
    x = template.repeat(1, 1, -(-steps // 40))[..., :steps]
    x = x ^ (torch.rand(x.shape, generator=rng) < 0.02)
    order = torch.rand(x.shape, generator=rng).argsort(-1)
    return Spikes(torch.where(y.view(-1, 1, 1) == 0, x, x.gather(-1, order)).float(), y)


def regularity(samples: int, channels: int, steps: int, rng: torch.Generator) -> Spikes:
    """G: renewal trains with exponential intervals or gamma ones of shape 4, one step in eight with a spike in both.

    A step holds one spike at most, which costs the exponential trains 6 % of theirs: they run at 26.7 Hz, not at 25.
    """
    y = labels(samples, rng)
    x = torch.zeros(samples, channels, steps)
    numbers = np.random.default_rng(int(torch.randint(2**62, (), generator=rng)))
    number = int(steps * DT / 20.0) + 40
    for shape, mean, here in ((1.0, -DT / np.log(1 - DT / 40.0), y == 0), (4.0, 40.0, y == 1)):
        rows = here.nonzero().squeeze(1)
        gaps = numbers.gamma(shape, mean / shape, (len(rows), channels, number))
        times = np.cumsum(gaps, -1) - 500.0  # the first half second is not seen: the trains are stationary
        at = np.floor(times / DT).astype(int)
        inside = (at >= 0) & (at < steps)
        row, channel, _ = inside.nonzero()
        x[rows[torch.from_numpy(row)], torch.from_numpy(channel), torch.from_numpy(at[inside])] = 1.0
    return Spikes(x, y)


SIMULATED: dict[str, Callable[[int, int, int, torch.Generator], Spikes]] = {
    "rate": rates,
    "structure": structure,
    "regularity": regularity,
}


def labels(samples: int, rng: torch.Generator) -> Tensor:
    """As many of each class, in random order."""
    return (torch.arange(samples) % 2)[torch.randperm(samples, generator=rng)]


def simulated(name: str, sizes: tuple[int, int, int], channels: int, steps: int, rng: torch.Generator) -> Task:
    """One of the simulated tasks."""
    return Task(*(SIMULATED[name](size, channels, steps, rng) for size in sizes))


def threes_and_eights(sizes: tuple[int, int, int], steps: int, rng: torch.Generator) -> Task:
    """Scikit-learn's 3s and 8s, a Poisson train of up to 100 Hz per pixel; all seeds have the same test images."""
    known = digits()
    rows = ((known.y == 3) | (known.y == 8)).nonzero().squeeze(1)
    rows = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))]
    held = min(sizes[2], 120)
    seen = rows[held:][torch.randperm(len(rows) - held, generator=rng)]
    parts = (seen[: min(sizes[0], 180)], seen[180 : 180 + sizes[1]], rows[:held])
    return Task(*(coded(known.x[part].flatten(1), (known.y[part] == 8).long(), steps, rng) for part in parts))


def coded(values: Tensor, y: Tensor, steps: int, rng: torch.Generator) -> Spikes:
    """Numbers in [0, 1] as Poisson trains of up to 100 Hz."""
    spikes = poisson(values, steps, rate=100.0, dt=DT, generator=rng)
    return Spikes(spikes.permute(1, 2, 0).contiguous(), y)


def neuron(kind: str, units: int, learn: bool, tau: float | Tensor, **numbers: Any) -> MetaNeuron:
    """A layer of one of the neurons that are compared; an input drives the quadratic one as strongly as the others."""
    if kind == "quadratic":
        numbers["gain"] = tau / DT
    return MetaNeuron(
        units,
        tau,
        order=1 if kind == "LIF" else 2,
        form="quadratic" if kind == "quadratic" else "linear",
        stochastic=kind == "stochastic",
        dt=DT,
        learn="all" if learn else (),
        **numbers,
    )


def time_first(x: Tensor) -> Tensor:
    return x.permute(2, 0, 1)


def network(
    kind: str, learn: bool, channels: int, hidden: int, tau: float, seed: int, drawn: bool = False
) -> Sequential:
    """Input, hidden neurons, one output neuron per class. Arms of a seed start from the same weights."""
    rng = generator(seed, 1)
    layers: list[nn.Module] = []
    for fan_in, units in itertools.pairwise((channels, hidden, 2)):
        linear = nn.Linear(fan_in, units)
        with torch.no_grad():
            linear.weight.copy_((0.5 + torch.randn(units, fan_in, generator=rng)) / fan_in**0.5)
            linear.bias.zero_()
        layers += [linear, neuron(kind, units, learn, tau)]
        if drawn:
            scatter(layers[-1], generator(seed, 7 + len(layers)))
    net = Sequential(*layers)
    for layer in net:
        if isinstance(layer, MetaNeuron):
            layer.generator = generator(seed, 2)
    return net


def scatter(layer: nn.Module, rng: torch.Generator) -> None:
    """Time constants drawn from the range of the grid, thresholds and gains within half and twice their value."""
    assert isinstance(layer, MetaNeuron)
    units = layer.units
    layer.assign("tau_mem", 7.5 * (80 / 7.5) ** torch.rand(units, generator=rng))
    for name in ("threshold", "gain"):
        layer.assign(name, 2 ** (2 * torch.rand(units, generator=rng) - 1))


def descend(net: Sequential, data: Spikes, *, rate: float, share: float, epochs: int, batch: int, seed: int) -> None:
    """Surrogate gradients of the cross-entropy of output counts; the neurons' own numbers at a share of the rate."""
    rng = generator(seed, 3)
    groups: list[dict[str, Any]] = [{"params": list(synaptic_parameters(net))}]
    own = list(intrinsic_parameters(net))
    if own:
        groups.append({"params": own, "lr": share * rate})
    optimizer = torch.optim.Adam(groups, lr=rate)
    decline = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, epochs)
    for _ in range(epochs):
        for rows in torch.randperm(len(data), generator=rng).split(batch):
            counts = net(time_first(data.x[rows]))[0].sum(0)
            loss = nn.functional.cross_entropy(counts, data.y[rows])
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimizer.step()
        decline.step()


@dataclass(frozen=True)
class Trained:
    """What an arm learned on one task: how it decides, what its neurons emit, and how far their numbers moved."""

    accuracy: Callable[[Spikes], float]  # %, one draw where there is chance
    emit: Callable[[Tensor], Tensor]  # spikes [sample, channel, time] -> trains of the output [sample, neuron, time]
    moved: float  # mean relative change of a time constant, or of a threshold under STDP
    values: NDArray[Any]  # the time constants, or thresholds, that were learned


def by_backprop(net: Sequential, data: Spikes, tau: float, **settings: Any) -> Trained:
    """Train a network; its output neurons vote by their counts."""
    descend(net, data, **settings)
    layers = [layer for layer in net if isinstance(layer, MetaNeuron)]
    values = torch.cat([layer.tau_mem.detach().expand(layer.units) for layer in layers])

    @torch.no_grad()
    def emit(x: Tensor) -> Tensor:
        return net(time_first(x))[0].permute(1, 2, 0)

    def accuracy(part: Spikes) -> float:
        return percent(emit(part.x).sum(-1).argmax(1) == part.y)

    return Trained(accuracy, emit, float((values / tau - 1).abs().mean()), values.numpy())


def by_tempotron(kind: str, learn: bool, data: Spikes, tau: float, epochs: int, seed: int) -> Trained:
    """A tempotron; where there is chance its accuracy is that which a draw is expected to have."""
    cell = neuron(kind, 1, learn, tau)
    cell.generator = generator(seed, 2)
    model = Tempotron(
        cell, epochs=epochs, batch=20, rate=0.001, intrinsic_rate=0.02, scale=0.1, generator=generator(seed, 1)
    ).fit(data.x, data.y)
    values = model.neuron_.tau_mem.detach().expand(1)

    def accuracy(part: Spikes) -> float:
        if kind != "stochastic":
            return percent(torch.from_numpy(model.predict(part.x)) == part.y)
        chance = torch.from_numpy(model.decision_function(part.x)).sigmoid()
        return percent(torch.where(part.y == 1, chance, 1 - chance))

    return Trained(accuracy, model.spikes, float((values / tau - 1).abs().mean()), values.numpy())


def by_stdp(kind: str, learn: bool, data: Spikes, tau: float, hidden: int, epochs: int, seed: int) -> Trained:
    """Neurons that learn by pair STDP without labels, thresholds held or homeostatic; a logistic readout of counts."""
    rng = generator(seed, 1)
    channels = data.x.shape[1]
    synapse = nn.Linear(channels, hidden, bias=False)
    with torch.no_grad():
        synapse.weight.copy_(8.0 / channels * torch.rand(hidden, channels, generator=rng))
    cell = neuron(kind, hidden, False, tau)
    cell.generator = generator(seed, 2)
    home = HomeostaticThreshold(target=0.05, rate=0.5, floor=0.05) if learn else None
    rule = PairSTDP(2e-3, 2.1e-3, dt=DT)
    layer = Plastic(synapse, cell, rule, low=0.0, high=16.0 / channels, homeostasis=home)
    for _ in range(epochs):
        for rows in torch.randperm(len(data), generator=rng).split(20):
            layer.learn(time_first(data.x[rows]))

    @torch.no_grad()
    def emit(x: Tensor) -> Tensor:
        return layer(time_first(x))[0].permute(1, 2, 0)

    read = Readout(counts).fit(emit(data.x), data.y)
    values = cell.threshold.detach().expand(hidden)

    def accuracy(part: Spikes) -> float:
        return read.score(emit(part.x), part.y)

    return Trained(accuracy, emit, float((values - 1).abs().mean()), values.numpy())


def percent(right: Tensor) -> float:
    return 100.0 * float(right.double().mean())


def counts(trains: Tensor) -> NDArray[Any]:
    """Spikes of each train, and their mean over the neurons."""
    return with_mean(trains.sum(-1).double().numpy())


def variation(trains: Tensor) -> NDArray[Any]:
    """Coefficient of variation of the intervals of each train (0 with fewer than two intervals), and their mean."""
    spikes = trains.flatten(0, 1).numpy() > 0
    row, at = spikes.nonzero()
    gaps, same = np.diff(at).astype(float), np.diff(row) == 0
    row, gaps = row[1:][same], gaps[same]
    number, total, square = (np.bincount(row, w, len(spikes)) for w in (np.ones_like(gaps), gaps, gaps**2))
    mean = total / np.maximum(number, 1)
    deviation = np.sqrt(np.maximum(square / np.maximum(number, 1) - mean**2, 0))
    cv = np.where(number > 1, deviation / np.maximum(mean, 1), 0.0)
    return with_mean(cv.reshape(trains.shape[:2]))


def with_mean(features: NDArray[Any]) -> NDArray[Any]:
    return np.concatenate([features, features.mean(1, keepdims=True)], 1) if features.shape[1] > 1 else features


class Readout:
    """Logistic regression on standardised features of trains."""

    def __init__(self, features: Callable[[Tensor], NDArray[Any]]) -> None:
        self.features = features

    def fit(self, trains: Tensor, y: Tensor) -> Readout:
        linear = require("sklearn.linear_model", "lab", purpose="logistic regression")
        steps = require("sklearn.pipeline", "lab", purpose="logistic regression")
        scale = require("sklearn.preprocessing", "lab", purpose="logistic regression")
        self.model = steps.make_pipeline(scale.StandardScaler(), linear.LogisticRegression(max_iter=500))
        self.model.fit(self.features(trains), y.numpy())
        return self

    def score(self, trains: Tensor, y: Tensor) -> float:
        return 100.0 * float(self.model.score(self.features(trains), y.numpy()))


def readouts(emit: Callable[[Tensor], Tensor], task: Task, draws: int) -> dict[str, float]:
    """Test accuracy of three readouts of what an arm emits: counts, complexity, regularity."""
    trains, tests = emit(task.train.x), [emit(task.test.x) for _ in range(draws)]
    y, wanted = task.train.y, task.test.y
    complexity = LZCClassifier(base="logistic").fit(trains, y.numpy())
    found = {"lzc": 100 * float(np.mean([complexity.score(test, wanted.numpy()) for test in tests]))}
    for name, features in (("count", counts), ("cv", variation)):
        read = Readout(features).fit(trains, y)
        found[name] = float(np.mean([read.score(test, wanted) for test in tests]))
    return found


def of_input(task: Task) -> dict[str, float]:
    """The same readouts without a network, of all channels and of one, and what the rate alone says."""
    found = readouts(lambda x: x, task, 1)
    found["lzc of one channel"] = readouts(lambda x: x[:, :1], task, 1)["lzc"]
    control = LZCClassifier(base="logistic", control="rate").fit(task.train.x, task.train.y.numpy())
    found["rate alone"] = 100 * control.score(task.test.x, task.test.y.numpy())
    return found


def spoken(sizes: tuple[int, int, int], channels: int, steps: int, rng: torch.Generator) -> Task:
    """Spoken digits 0 and 1: power in mel bands as Poisson trains of up to 200 Hz; the test is the customary one."""
    known = spoken_digits()
    chosen = [k for k, label in enumerate(known.labels.tolist()) if label < 2]
    y = known.labels[chosen].long()
    test = known.index[chosen] < 5
    seen = (~test).nonzero().squeeze(1)
    seen = seen[torch.randperm(len(seen), generator=rng)]
    parts = (seen[: sizes[0]], seen[sizes[0] : sizes[0] + sizes[1]], test.nonzero().squeeze(1))
    silence = np.log(1e-6)
    values = torch.full((len(chosen), channels, steps), silence)
    for row in torch.cat(parts).tolist():
        power = log_mel(known.audio[chosen[row]], 8000, bands=channels, hop=DT).T[:, :steps]
        values[row, :, : power.shape[1]] = power.float()
    low, high = graded(values[parts[0]])
    scaled = ((values - low) / (high - low)).clamp(0, 1)
    spikes = (torch.rand(scaled.shape, generator=rng) < -torch.expm1(-scaled * 200.0 * DT / 1000)).float()
    return Task(*(Spikes(spikes[part], y[part]) for part in parts))


def graded(values: Tensor) -> tuple[float, float]:
    """Between which powers the code is graded: the median and the loudest hundredth of the training recordings."""
    ordered = values.flatten().sort().values
    return float(ordered[len(ordered) // 2]), float(ordered[int(0.99 * len(ordered))])


def figures(results: Results, taus: Sequence[float]) -> dict[str, Any]:
    """What the studies show."""
    graph = require("plotly.graph_objects", "lab", purpose="figures")
    tasks = [
        name for name in (*SIMULATED, "digits", "spoken") if name in results["input"][min(results["input"])].metrics
    ]
    bars = graph.Figure()
    trainable = [arm for arm in results.trials if arm not in ("input", "range")]
    for task in tasks:
        bars.add_bar(x=trainable, y=[results.metric(arm, task).mean() for arm in trainable], name=task)
    bars.update_layout(barmode="group", yaxis_title="accuracy by the rule's own decision, %", yaxis_range=[40, 100])
    reads = graph.Figure()
    for arm in ("input", "LIF fixed", "LIF learned", "meta learned", "stochastic learned"):
        for readout in ("count", "lzc", "cv"):
            values = [results.metric(arm, f"{task} {readout}").mean() for task in tasks]
            reads.add_bar(x=tasks, y=values, name=f"{arm}: {readout}")
    reads.update_layout(barmode="group", yaxis_title="accuracy, %", yaxis_range=[40, 100])
    cells = np.stack([outcome.arrays["accuracy"] for _, outcome in sorted(results["range"].items())])
    start = graph.Figure()
    for row, name in enumerate(("fixed", "learned")):
        start.add_scatter(x=list(taus)[: cells.shape[2]], y=cells[:, row].mean(0), name=name)
    start.update_layout(xaxis_title="starting time constant, ms", xaxis_type="log", yaxis_title="accuracy, %")
    return {
        "Fixed and learned numbers of the neurons": bars,
        "What three readouts see, with and without a network": reads,
        "The gain of learning depends on where the neurons start": start,
    }
