"""Learn the numbers of the neurons themselves, and classify by the complexity of what they emit.

Four tasks of two classes, 200 steps of 5 ms: R, Poisson trains of 20 or 26 Hz; S, repeated templates or the very same
spikes in random order; G, Poisson or gamma intervals at one rate; and scikit-learn's 3s and 8s as Poisson trains. A
second study, of the same machinery, has spoken digits.

Three neurons (LIF, the second-order meta neuron, the same with chance in its spikes) learn by three rules
(backpropagation with a surrogate gradient, the tempotron, pair STDP with a readout of counts), each with its own
numbers fixed or learned. Four readouts look at what the output neurons emit: the rule's own decision, spike counts,
Lempel–Ziv complexity, and the variation of intervals; the last three also look at the input with no network at all.

What is measured against what:

- mechanism: the learned LIF on R against the fixed one and against a null whose numbers are as diverse but drawn.
- advantage: the learned LIF against the fixed one, each with the best of five time constants and two learning rates
  per task, chosen on validation.

A fixed neuron that is badly set loses to a learned one by any margin, so both start where the fixed one can learn:
positive mean weights and biases, as without them every unit of R has to find its working point by its threshold.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from plexus.lab import TUNING_SEEDS, Arm, Check, Outcome, Paper, Results, Study, Tuning, exact, interval, study
from plexus.lab._study import BySeed, Quantity
from plexus.probe.information import lz_complexity
from plexus.studies.spiking import _meta_neurons as tools

TASKS = ("rate", "structure", "regularity", "digits")
NEURONS = ("LIF", "meta", "stochastic")
RULES = ("backprop", "tempotron", "STDP")
TUNED = ("LIF fixed grid", "LIF learned grid")
LOCAL = (("LIF", " tempotron"), ("meta", " tempotron"), ("LIF", " STDP"))
ONE_TASK = {"tasks": ("spoken",), "tau": (20.0,), "rate": (0.02,)}


def same(value: float, tasks: int = len(TASKS)) -> tuple[float, ...]:
    """One number for all tasks."""
    return (value,) * tasks


@dataclass(frozen=True)
class Config:
    """Settings; those that tuning may choose hold one number per task, those in the plural are the grids."""

    tasks: tuple[str, ...] = TASKS
    rule: str = "backprop"
    kind: str = "LIF"
    learn: bool = False
    drawn: bool = False
    tau: tuple[float, ...] = same(20.0)
    rate: tuple[float, ...] = same(0.02)
    share: float = 1.0
    channels: int = 16
    hidden: int = 16
    steps: int = 200
    sizes: tuple[int, int, int] = (120, 120, 300)
    epochs: int = 8
    tempotron_epochs: int = 15
    stdp_epochs: int = 2
    batch: int = 10
    draws: int = 10
    taus: tuple[float, ...] = (7.5, 10.0, 20.0, 40.0, 80.0)
    learning_rates: tuple[float, ...] = (0.01, 0.03)
    tuning_seeds: int = 1


def trained(config: Config, index: int, task: tools.Task, seed: int) -> tools.Trained:
    """What one arm learns on one task."""
    tau = config.tau[index]
    if config.rule == "tempotron":
        return tools.by_tempotron(config.kind, config.learn, task.train, tau, config.tempotron_epochs, seed)
    if config.rule == "STDP":
        return tools.by_stdp(config.kind, config.learn, task.train, tau, config.hidden, config.stdp_epochs, seed)
    channels = task.train.x.shape[1]
    net = tools.network(config.kind, config.learn, channels, config.hidden, tau, seed, config.drawn)
    return tools.by_backprop(
        net,
        task.train,
        tau,
        rate=config.rate[index],
        share=config.share,
        epochs=config.epochs,
        batch=config.batch,
        seed=seed,
    )


def gain(learned: str, fixed: str, *tasks: str) -> Quantity:
    """Points by which one arm is better than another, mean over tasks."""
    return lambda m: float(np.mean([m[learned][task] - m[fixed][task] for task in tasks]))


def of(arm: str, metric: str) -> Quantity:
    """A metric of an arm."""
    return lambda m: m[arm][metric]


def over_ablation_and_null(task: str) -> Quantity:
    """Points by which the learned LIF is better than the fixed one and than the drawn one, whichever is better."""
    return lambda m: m["LIF learned"][task] - max(m["LIF fixed"][task], m["LIF drawn"][task])


def complexity_against(rival: str, task: str) -> Quantity:
    """Points by which complexity of the input tells more than another readout of it."""
    return lambda m: m["input"][f"{task} lzc"] - m["input"][f"{task} {rival}"]


def of_networks(m: BySeed, tasks: tuple[str, ...]) -> float:
    """Points by which complexity of the learned LIF's output is better than that of its input, mean over tasks."""
    return float(np.mean([m["LIF learned"][f"{task} lzc"] - m["input"][f"{task} lzc"] for task in tasks]))


def over_forms(m: BySeed) -> float:
    """In which share of the forms of the meta neuron learning gains three points, on the task of the claim."""
    task = "rate" if "rate" in m["input"] else "spoken"
    return float(np.mean([gain(f"{k} learned", f"{k} fixed", task)(m) >= 3 for k in ("meta", "quadratic")]))


def shared_checks(label: str, task: str, *, counts: float) -> tuple[Check, ...]:
    """What is asked of the task on which the claims are primarily judged."""
    silent = of("input", "words of silence")
    return (
        exact("words of a silent train of 200 steps", silent, center=2, margin=0, role="sanity"),
        interval(
            f"{label}learned time constants move, relative",
            of("LIF learned", f"{task} moved"),
            at_least=0.05,
            role="sanity",
        ),
        interval(
            f"{label}counts of the input tell the classes, %",
            of("input", f"{task} count"),
            at_least=counts,
            role="control",
        ),
        interval(
            f"{label}LIF learned over fixed and over drawn numbers, points",
            over_ablation_and_null(task),
            at_least=3,
            role="mechanism",
            primary=True,
        ),
        interval(
            f"{label}LIF learned over fixed, both tuned, points",
            gain("LIF learned grid", "LIF fixed grid", task),
            at_least=1,
            role="advantage",
            primary=True,
        ),
    )


def arms() -> tuple[Arm, ...]:
    """All arms; those that learn by backpropagation have no suffix."""
    found = []
    for rule, kind, learn in itertools.product(RULES, NEURONS, (False, True)):
        suffix = "" if rule == "backprop" else f" {rule}"
        found.append(
            Arm(
                f"{kind} {'learned' if learn else 'fixed'}{suffix}",
                role="method" if learn else "ablation",
                note=f"{rule}; the neurons' own numbers {'learn' if learn else 'stay'}",
                rule=rule,
                kind=kind,
                learn=learn,
            )
        )
    found += [
        Arm(f"quadratic {word}", role=role, note="membrane V² - V", kind="quadratic", learn=role == "method")
        for word, role in (("fixed", "ablation"), ("learned", "method"))
    ]
    return (
        *found,
        Arm("LIF drawn", role="null", note="numbers as diverse as the grid, drawn, not learned", drawn=True),
        Arm("LIF fixed grid", note="best of the grid of time constants and learning rates, per task"),
        Arm("LIF learned grid", role="method", note="learns from the best of the same grid", learn=True),
        Arm("LIF learned from grid", role="method", note="learns from the best fixed setting", learn=True),
        Arm("input", role="baseline", note="readouts of the input, no network", rule="none"),
        Arm("range", role="reference", note="fixed and learned LIF from five time constants", rule="range"),
    )


class MetaNeuronStudy(Study):
    """What the two studies share."""

    paper = Paper(
        "Learning Internal Biological Neuron Parameters and Complexity-Based Encoding for Improved Spiking Neural "
        "Networks Performance",
        "Rudnicka, Szczepanski, Pregowska",
        2025,
        arxiv="2508.11674",
    )
    claim = (
        "Learning the neurons' own numbers besides the weights improves classification over networks tuned in learning "
        "rate alone, under several learning rules, and Lempel–Ziv complexity of spike trains serves as a feature."
    )
    fidelity = "C"
    inferred: ClassVar = {
        "time constant at which the neurons start": "7.5 to 80 ms, five values; the bar is on 20 ms",
        "form of the meta neuron": "a linear form that is stable at this step, and the quadratic one, clamped",
    }
    shares: ClassVar = {
        "learning gains three points (over the starting time constants)": of("range", "share of three points"),
        "learning gains three points (over the forms of the meta neuron)": over_forms,
        "learning gains anything (over the starting time constants)": of("range", "share of any gain"),
    }
    Config = Config
    arms = arms()

    def prepare(self, config: Config, seed: int) -> dict[str, tools.Task]:
        found = {}
        for index, name in enumerate(config.tasks):
            rng = tools.generator(seed, 10 + index)
            if name == "digits":
                found[name] = tools.threes_and_eights(config.sizes, config.steps, rng)
            elif name == "spoken":
                found[name] = tools.spoken(config.sizes, config.channels, config.steps, rng)
            else:
                found[name] = tools.simulated(name, config.sizes, config.channels, config.steps, rng)
        return found

    def run(self, config: Config, prepared: dict[str, tools.Task], seed: int) -> Outcome:
        if config.rule == "range":
            return self._range(config, prepared, seed)
        metrics: dict[str, float] = {}
        arrays: dict[str, np.ndarray[Any, Any]] = {}
        for index, (name, task) in enumerate(prepared.items()):
            if config.rule == "none":
                found = tools.of_input(task)
                metrics[name] = found["count"]
                metrics["words of silence"] = float(lz_complexity(np.zeros(200), normalise=False))
            else:
                arm = trained(config, index, task, seed)
                draws = config.draws if config.kind == "stochastic" else 1
                metrics[name] = float(np.mean([arm.accuracy(task.test) for _ in range(draws)]))
                metrics[f"{name} moved"] = arm.moved
                arrays[name] = arm.values
                found = tools.readouts(arm.emit, task, draws)
            metrics |= {f"{name} {key}": value for key, value in found.items()}
        return Outcome(metrics, arrays)

    def _range(self, config: Config, prepared: dict[str, tools.Task], seed: int) -> Outcome:
        """The first task, fixed and learned, from every time constant of the grid."""
        task = next(iter(prepared.values()))
        cells = np.empty((2, len(config.taus)))
        for (row, learn), (column, tau) in itertools.product(enumerate((False, True)), enumerate(config.taus)):
            here = replace(config, rule="backprop", learn=learn, tau=same(tau, len(config.tasks)))
            cells[row, column] = trained(here, 0, task, seed).accuracy(task.test)
        gains = cells[1] - cells[0]
        metrics = {
            "share of three points": float((gains >= 3).mean()),
            "share of any gain": float((gains > 0).mean()),
            "mean gain": float(gains.mean()),
            "least gain": float(gains.min()),
        }
        return Outcome(metrics, {"accuracy": cells})

    def tune(self, config: Config) -> Tuning:
        """Per task, the time constant and learning rate with the best accuracy on validation samples."""
        grid = list(itertools.product(config.taus, config.learning_rates))
        found = {arm: np.zeros((len(config.tasks), len(grid))) for arm in TUNED}
        for seed in TUNING_SEEDS[: config.tuning_seeds]:
            for index, task in enumerate(self.prepare(config, seed).values()):
                for arm, (column, (tau, rate)) in itertools.product(TUNED, enumerate(grid)):
                    each = {"tau": same(tau, len(config.tasks)), "rate": same(rate, len(config.tasks))}
                    here = replace(config, learn=self.arm(arm).overrides.get("learn", False), **each)
                    found[arm][index, column] += trained(here, index, task, seed).accuracy(task.validation)
        chosen: dict[str, Mapping[str, Any]] = {}
        for arm, accuracy in found.items():
            best = [grid[column] for column in accuracy.argmax(1)]
            chosen[arm] = {"tau": tuple(tau for tau, _ in best), "rate": tuple(rate for _, rate in best)}
        chosen["LIF learned from grid"] = chosen["LIF fixed grid"]
        budget = {**dict.fromkeys(TUNED, len(grid)), "LIF learned from grid": 0}
        note = f"per task, on validation, over {config.tuning_seeds} tuning seed(s); `from grid` takes what fixed got"
        return Tuning(chosen, budget, note)

    def figures(self, results: Results) -> dict[str, Any]:
        return tools.figures(results, self.Config().taus)


@study
class MetaNeuronLZC(MetaNeuronStudy):
    """Learned numbers of neurons and classification by complexity, on simulated trains and digits."""

    refuted_by = (
        "On Poisson rates the learned LIF is less than three points better than the fixed one, or than one with drawn "
        "numbers; for the advantage, less than one point better than a fixed one tuned with equal effort. For the "
        "complexity: below 95 % where classes differ in order alone."
    )
    scale_line = (
        "120 training samples of 16 channels and 200 steps, 16 hidden neurons; the paper's sizes are not all given."
    )
    data = ("simulated spike trains", "scikit-learn digits")
    deviations = (
        "Weights start with a positive mean and units have biases; without, the fixed network cannot find its working "
        "point and the gain of learning is a matter of how bad the start is.",
        "The tempotron is one neuron that spikes for class 1; on G, where class 0 peaks higher, it falls below chance.",
        "STDP learns without labels; in the learned arm thresholds are homeostatic; a readout of counts decides.",
        "The card's bar of three points is asked against a null with drawn numbers too.",
        "The samples of a seed are 120 for training and 300 for the test, not 400.",
    )
    scales: ClassVar = {
        "smoke": {
            "sizes": (12, 12, 12),
            "steps": 40,
            "hidden": 6,
            "epochs": 1,
            "tempotron_epochs": 1,
            "stdp_epochs": 1,
            "draws": 1,
            "taus": (20.0,),
            "learning_rates": (0.01,),
        },
        "full": {},
        "paper": {"sizes": (400, 200, 400), "hidden": 64, "epochs": 30},
    }
    checks = (
        *shared_checks("R: ", "rate", counts=95.0),
        interval(
            "S: spike counts of the input tell nothing, %", of("input", "structure count"), at_most=60, role="sanity"
        ),
        *(
            interval(
                f"R: {kind} learned over fixed{suffix}, points",
                gain(f"{kind} learned{suffix}", f"{kind} fixed{suffix}", "rate"),
                at_least=3,
                role="mechanism",
            )
            for kind, suffix in (*((kind, "") for kind in (*NEURONS, "quadratic")), *LOCAL)
        ),
        interval("S: complexity of the input, %", of("input", "structure lzc"), at_least=95, role="mechanism"),
        interval(
            "S: complexity over what the rate alone tells, points",
            complexity_against("rate alone", "structure"),
            at_least=30,
            role="mechanism",
        ),
        interval(
            "all tasks: LIF learned over fixed, both tuned, points",
            gain("LIF learned grid", "LIF fixed grid", *TASKS),
            at_least=1,
            role="advantage",
        ),
        interval(
            "R: LIF learned and tuned over counts of the input, points",
            gain("LIF learned grid", "input", "rate"),
            at_least=0,
            role="advantage",
        ),
        interval(
            "all tasks: complexity of the learned output over that of the input, points",
            lambda m: of_networks(m, TASKS),
            at_least=0,
            role="advantage",
        ),
        interval(
            "S: complexity over variation of intervals, input, points",
            complexity_against("cv", "structure"),
            at_least=5,
            role="advantage",
        ),
        interval(
            "G: complexity over variation of intervals, input, points",
            complexity_against("cv", "regularity"),
            at_least=0,
            role="advantage",
        ),
    )


@study
class MetaNeuronLZCAudio(MetaNeuronStudy):
    """The same on spoken digits, 0 against 1."""

    name = "meta-neuron-lzc-audio"
    refuted_by = (
        "On spoken digits the learned LIF is less than three points better than the fixed one, or than one with drawn "
        "numbers; for the advantage, less than one point better than a fixed one tuned with equal effort."
    )
    scale_line = "240 recordings of 16 mel bands and 100 steps, 16 hidden neurons; the paper has no spoken digits."
    data = ("Free Spoken Digit Dataset, 0 and 1",)
    deviations = (
        "Spoken digits stand in for the paper's data; the test is the customary one, the same for all seeds.",
        *MetaNeuronLZC.deviations[:4],
    )
    scales: ClassVar = {
        "smoke": {**MetaNeuronLZC.scales["smoke"], **ONE_TASK},
        "full": {**ONE_TASK, "steps": 100, "sizes": (240, 240, 60), "tuning_seeds": 2},
    }
    checks = (
        *shared_checks("", "spoken", counts=90.0),
        *(
            interval(
                f"{kind} learned over fixed{suffix}, points",
                gain(f"{kind} learned{suffix}", f"{kind} fixed{suffix}", "spoken"),
                at_least=3,
                role="mechanism",
            )
            for kind, suffix in (("meta", ""), ("stochastic", ""), ("LIF", " tempotron"), ("LIF", " STDP"))
        ),
        interval(
            "complexity of the learned output over that of the input, points",
            lambda m: of_networks(m, ("spoken",)),
            at_least=0,
            role="advantage",
        ),
        interval(
            "complexity over counts, input, points", complexity_against("count", "spoken"), at_least=0, role="advantage"
        ),
    )
