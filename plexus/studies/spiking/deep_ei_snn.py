"""Deep spiking networks without batch statistics: lateral inhibition against normalisations and against its own parts.

Perceptrons of leaky integrate-and-fire neurons (a time constant of two steps, four steps of a constant image)
classify small images, at two, four and eight weight layers; at sixteen, only whether training stays finite is asked.
Every method trains with the same data, number of steps and schedule, and every arm gets three learning rates, tried at
the full depth on held-out training images of tuning seeds.

What is measured against what:

- mechanism: the whole circuit against the better of two ablations, without E-I Init and without division; then against
  each further part taken out, against a constant gain in the place of division, and against hidden layers that are not
  trained at all, the null.
- advantage: against the better of two networks without any normalisation, one with He's initialisation and one whose
  weights are scaled by data until every layer fires; then against batch and layer normalisation.

"Without normalisation" means without statistics of a batch: each sample is divided by its own inhibition. The
inhibitory cells are linear and do not spike.

The layers give the outputs and gradients of the published code to rounding, for the same weights (dense and
convolutional, with silent samples and with zero divisors).

Pilots on seeds below 100 decided the width and where to tune: at 64 units a layer has sixteen inhibitory cells, whose
draw unbalances it, and it learned half as well as at 128 in the same number of steps; and at four layers a learning
rate serves best that kills a network of eight.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from statistics import fmean
from typing import Any, ClassVar

import numpy as np

from plexus.errors import require
from plexus.lab import TUNING_SEEDS, Arm, Check, Outcome, Paper, Results, Study, Tuning, exact, interval, study, wins
from plexus.lab._study import Quantity
from plexus.studies.spiking._ei_networks import (
    WITHOUT,
    Config,
    Data,
    accuracy,
    build,
    load,
    over_time,
    train,
    watch,
    zeros,
)

DEPTHS = ("shallow", "middle", "deep")
FAST = {"rates": (3e-2, 1e-1, 3e-1)}
SLOW = {"rates": (1e-2, 3e-2, 1e-1)}
SLOWEST = {"rates": (1e-3, 3e-3, 1e-2)}


def above(*rivals: str, depth: str = "deep") -> Quantity:
    """Points of accuracy above the best of some arms."""
    return lambda seed: seed["ei"][f"{depth} accuracy"] - max(seed[arm][f"{depth} accuracy"] for arm in rivals)


def of(arm: str, metric: str) -> Quantity:
    """A metric of an arm."""
    return lambda seed: seed[arm][metric]


def ablation(name: str, note: str, *, role: Any = "ablation", **overrides: Any) -> Arm:
    """An arm that is trained at the full depth alone."""
    return Arm(name, method=name, only_deep=True, role=role, note=note, **overrides)


def checks(control: float) -> tuple[Check, ...]:
    """The bars of both studies; what the control must reach depends on the data."""
    points = "points"
    parts: tuple[tuple[str, str, float], ...] = (
        ("no init", "without E-I Init", 5.0),
        ("no division", "without division", 5.0),
        ("constant gain", "with a constant gain in place of division", 5.0),
        ("no subtraction", "without subtraction", 5.0),
        ("no replacement", "without the replacement of zeros", 5.0),
        ("no gradient scale", "without the scaled gradient", 0.0),
        ("frozen", "with hidden layers that are not trained", 5.0),
    )
    everywhere: Callable[..., Check] = lambda name, metric, **bar: wins(  # noqa: E731
        name, of("ei", metric), 10, 10, role="sanity", **bar
    )
    return (
        everywhere("after E-I Init: least deviation of the current in any layer", "least std", at_least=0.7),
        everywhere("after E-I Init: largest deviation of the current in any layer", "largest std", at_most=1.4),
        everywhere("after E-I Init: mean of the current, root mean square over layers", "mean", at_most=0.3),
        exact("16 layers: steps of 200 without NaN", of("ei", "deepest steps"), center=1.0, margin=0.0, role="sanity"),
        exact("steps that broke a sign", of("ei", "broken signs"), margin=0.0, role="sanity"),
        wins(
            "the same without projection, where signs must break", of("free signs", "broken signs"), 10, 10,
            at_least=1.0, role="sanity",
        ),
        interval(
            "batch norm, 8 layers: accuracy", of("batch norm", "deep accuracy"), at_least=control, role="control",
            unit="%",
        ),
        interval(
            "8 layers: points above the better of two ablations, without E-I Init and without division",
            above("no init", "no division"), at_least=5.0, role="mechanism", primary=True, unit=points,
        ),
        *(
            interval(
                f"8 layers: points above the circuit {what}", above(arm), at_least=bar, role="mechanism", unit=points
            )
            for arm, what, bar in parts
        ),
        interval(
            "8 layers: points above the better of two networks without normalisation (He's or firing initialisation)",
            above(*WITHOUT), at_least=5.0, role="advantage", primary=True, unit=points,
        ),
        interval(
            "8 layers: points above He's initialisation", above("plain"), at_least=40.0, role="advantage", unit=points
        ),
        *(
            interval(f"8 layers: points above {rival}", above(rival), at_least=bar, role="advantage", unit=points)
            for rival, bar in (("batch norm", -10.0), ("layer norm", 0.0))
        ),
        interval(
            "4 layers: points above batch norm", above("batch norm", depth="middle"), at_least=-10.0, role="advantage",
            unit=points,
        ),
    )  # fmt: skip


class _DeepEISNN(Study):
    """What both studies share."""

    paper = Paper(
        "Training Deep Normalization-Free Spiking Neural Networks with Lateral Inhibition",
        "Peiyu Liu, Jianhao Ding, Zhaofei Yu",
        2026,
        venue="ICLR 2026",
        code="https://github.com/vwOvOwv/DeepEISNN",
    )
    refuted_by = (
        "At eight layers, the circuit without E-I Init or without division comes within 5 points of it; or a network "
        "without normalisation whose layers were merely scaled until they fire does."
    )
    Config = Config
    arms = (
        Arm("plain", method="plain", note="no normalisation, He's initialisation", **FAST),
        Arm("plain firing", method="plain firing", note="the same, scaled until each layer fires at 0.2", **FAST),
        Arm("batch norm", method="batch norm", note="what the circuit is to replace", **FAST),
        Arm("layer norm", method="layer norm", note="each sample normalised by itself", **SLOW),
        Arm("ei", method="ei", role="method", note="lateral inhibition, E-I Init, E-I Prop"),
        ablation("no init", "weights uniform and positive in place of E-I Init"),
        ablation("no division", "nothing in the place of the division"),
        ablation("constant gain", "divided by what E-I Init expects, not by the sample's inhibition"),
        ablation("no subtraction", "inhibition only divides"),
        ablation("no gradient scale", "the gradient of the mixing weights as it is", **SLOWEST),
        ablation("no replacement", "zero divisors stay"),
        ablation("free signs", "no projection: weights may become negative"),
        ablation("frozen", "only the output layer is trained", role="null"),
    )

    def prepare(self, config: Config, seed: int) -> dict[str, Data]:
        return {name: load(config, name, seed) for name in config.data}

    def run(self, config: Config, prepared: dict[str, Data], seed: int) -> Outcome:
        metrics: dict[str, float] = {}
        arrays: dict[str, np.ndarray[Any, Any]] = {}
        starts: list[dict[str, list[float]]] = []
        broken = 0
        for depth, layers in list(zip(DEPTHS, config.depths, strict=True))[-1 if config.only_deep else 0 :]:
            for name, data in prepared.items():
                x, y = over_time(data.train.x[: config.start_batch], config.time), data.train.y[: config.start_batch]
                network = build(config.method, layers, x, data.train.classes, config.width, seed)
                before = watch(network, x, y)
                fit = train(config, network, data.train, seed)
                after = watch(network, x, y)
                metrics[f"{name} {depth} accuracy"] = accuracy(config, network, data.test)
                broken += fit.broken_signs
                starts.append(before)
                if depth == "deep":
                    metrics[f"{name} diverged"] = float(fit.diverged)
                    metrics[f"{name} rate"] = fmean(after["rate"])
                    metrics[f"{name} first over last gradient"] = before["slope"][0] / max(before["slope"][-1], 1e-12)
                    metrics[f"{name} zeros"] = zeros(network)
                    arrays |= {f"{name} {key}": np.array(value) for key, value in before.items()}
                    arrays[f"{name} rate after"] = np.array(after["rate"])
            metrics[f"{depth} accuracy"] = fmean(metrics[f"{name} {depth} accuracy"] for name in prepared)
        metrics["least std"] = min(min(start["std"]) for start in starts)
        metrics["largest std"] = max(max(start["std"]) for start in starts)
        metrics["mean"] = float(np.sqrt(np.mean([mean**2 for start in starts for mean in start["mean"]])))
        metrics["broken signs"] = float(broken)
        if config.method == "ei":
            metrics["deepest steps"] = self._deepest(config, next(iter(prepared.values())), seed)
        return Outcome(metrics, arrays)

    def _deepest(self, config: Config, data: Data, seed: int) -> float:
        """The share of the steps that a very deep network trains without NaN."""
        start = over_time(data.train.x[: config.start_batch], config.time)
        network = build(config.method, config.deepest, start, data.train.classes, config.width, seed)
        fit = train(config, network, data.train, seed, steps=config.deepest_steps, batch=config.deepest_batch)
        return 0.0 if fit.diverged else fit.steps / config.deepest_steps

    def tune(self, config: Config) -> Tuning:
        """Each arm's learning rate: the best accuracy at full depth on validation images."""
        seeds = TUNING_SEEDS[: config.tuning_seeds]
        prepared = {seed: load(config, config.data[0], seed) for seed in seeds}
        chosen = {}
        for arm in self.arms:
            scores = {}
            for rate in arm.overrides.get("rates", config.rates):
                setting = replace(config, **{**arm.overrides, "rate": rate})
                scores[rate] = fmean(self._validated(setting, prepared[seed], seed) for seed in seeds)
            chosen[arm.name] = {"rate": max(scores, key=scores.__getitem__)}
        budget = {arm.name: len(arm.overrides.get("rates", config.rates)) for arm in self.arms}
        return Tuning(chosen, budget, f"learning rate at full depth on validation images, {len(seeds)} tuning seeds")

    def _validated(self, config: Config, data: Data, seed: int) -> float:
        start = over_time(data.train.x[: config.start_batch], config.time)
        network = build(config.method, config.depths[-1], start, data.train.classes, config.width, seed)
        train(config, network, data.train, seed)
        return accuracy(config, network, data.validation)

    def figures(self, results: Results) -> dict[str, Any]:
        graph = require("plotly.graph_objects", "lab", purpose="figures")
        learned = graph.Figure()
        for depth, layers in zip(DEPTHS, self.Config().depths, strict=True):
            arms = [arm for arm in results.trials if f"{depth} accuracy" in next(iter(results[arm].values())).metrics]
            values = [results.metric(arm, f"{depth} accuracy") for arm in arms]
            spread = {"type": "data", "array": [float(value.std()) for value in values]}
            learned.add_bar(x=arms, y=[float(v.mean()) for v in values], error_y=spread, name=f"{layers} layers")
        learned.update_layout(yaxis_title="test accuracy, %", barmode="group")
        figures = {"Accuracy by depth": learned}
        for key, title, axis in (
            ("std", "Current at the start", "standard deviation of the current"),
            ("rate after", "Firing after training", "spikes per neuron and step"),
        ):
            figure = graph.Figure()
            for arm in results.trials:
                seeds = [outcome.arrays for outcome in results[arm].values()]
                data = [name for name in seeds[0] if name.endswith(f" {key}")]
                mean = np.mean([arrays[name] for arrays in seeds for name in data], axis=0)
                figure.add_scatter(x=np.arange(1, len(mean) + 1), y=mean, name=arm, mode="lines+markers")
            figure.update_layout(xaxis_title="hidden layer", yaxis_title=axis)
            figures[title] = figure
        return figures


SMOKE: dict[str, Any] = {
    "train": 64,
    "validation": 20,
    "test": 50,
    "width": 32,
    "depths": (2, 3, 4),
    "deepest": 5,
    "deepest_steps": 3,
    "epochs": 1,
    "tuning_seeds": 1,
}
DEVIATIONS = (
    "A few passes in place of 300, a tenth of the steps as warm-up, and learning rates tuned for that.",
    "Learning rates are tuned at the full depth: at four layers those win that kill eight.",
    "The bar on the mean current is 0.3, root mean square over layers: the draw of 128 and 32 cells leaves up to "
    "sqrt(1/128 + 1/32) = 0.2; a bar of 0.1 on each layer needs far wider ones.",
    "Without division E-I Init cannot keep the variance; in a second ablation the gain of the excitatory cells does.",
    "Two baselines of ours: weights scaled by data until all layers fire, and layer normalisation.",
    "One weight decay, 5e-4, for all; the published configuration has 1e-4 for batch normalisation.",
)


@study
class DeepEISNN(_DeepEISNN):
    """Deep spiking networks with lateral inhibition in place of batch normalisation."""

    claim = (
        "Lateral inhibition with E-I Init and E-I Prop trains deep spiking networks without normalisation, nearly as "
        "well as batch normalisation does, where plain ones fail."
    )
    fidelity = "A"
    scale_line = "900 digits of 8×8, perceptrons of 128 units; the paper: CIFAR-10 and -100, VGG-19 and ResNet-18."
    data = ("digits",)
    deviations = DEVIATIONS
    scales: ClassVar = {"smoke": SMOKE, "full": {}}
    checks = checks(85.0)


@study
class DeepEISNNOnMNIST(_DeepEISNN):
    """The same on MNIST and Fashion-MNIST, from files."""

    name = "deep-ei-snn-mnist"
    claim = (
        "Lateral inhibition with E-I Init and E-I Prop trains deep spiking networks without normalisation, nearly as "
        "well as batch normalisation does, where plain ones fail."
    )
    fidelity = "A"
    scale_line = "2,560 images each of MNIST and Fashion-MNIST, perceptrons of 128 units; the paper: CIFAR, VGG-19."
    data = ("MNIST", "Fashion-MNIST")
    seeds = 5
    deviations = (
        *DEVIATIONS,
        "Five seeds, as there are two data sets; an accuracy is the mean of both; tuned on MNIST.",
    )
    scales: ClassVar = {
        "smoke": {**SMOKE, "data": ("mnist", "fashion-mnist")},
        "full": {
            "data": ("mnist", "fashion-mnist"),
            "train": 2560,
            "validation": 400,
            "test": 1000,
            "epochs": 3,
        },
    }
    checks = checks(70.0)
