"""Perceptrons wired from group to group, and rewired by joint activity, against sparse wiring without groups.

The hidden weights of three layers exist within groups and at 15 % between them, a quarter of all. What decides whether
groups matter is the same number of weights at random places (`unstructured`); what decides whether sparsity pays is a
narrower dense network with as many weights (`dense matched`). All arms see the same samples in the same number of
steps; accuracy is the mean over training sizes, as wiring that fits should help most where samples are few.

What is measured against what:

- mechanism: groups in mixing order against the unstructured wiring of equal density (the ablation of the groups).
- advantage: against the better, by validation accuracy of that seed, of the two baselines of equal size: unstructured
  and matched dense. The gain over the dense network of the same width, four times larger, is shown beside.
- control: a planted task in which only inputs of one group belong together: wiring within these groups must win there,
  though it has fewer weights.

Rewiring (dynamic sparse training) has arms for every rule, all on the mixing order, one on the unstructured wiring, and
one as the published code does it. Rates are tuned on seeds of their own, four for each of the four families of wirings.
"""

from __future__ import annotations

from dataclasses import replace
from statistics import fmean
from typing import Any, ClassVar

from plexus.errors import require
from plexus.lab import TUNING_SEEDS, Arm, Check, Outcome, Paper, Results, Study, Tuning, exact, interval, study
from plexus.lab._study import BySeed, Quantity
from plexus.studies.sparsity._ensembles import Config, Task, measure, tasks

RATES = (3e-4, 1e-3, 3e-3, 1e-2)
TUNED = ("dense", "dense matched", "unstructured", "mixer")
"""The arm that stands for each family of wirings in tuning."""


def gain(arm: str, rival: str, metric: str = "accuracy") -> Quantity:
    """By how much an arm's metric exceeds a rival's."""
    return lambda seed: seed[arm][metric] - seed[rival][metric]


def rival(seed: BySeed) -> str:
    """The better baseline of equal size on this seed's validation samples."""
    return max(("unstructured", "dense matched"), key=lambda arm: seed[arm]["validation"])


def arms(rates: dict[str, float]) -> tuple[Arm, ...]:
    """All arms; each takes the rate of its family."""
    dense, matched, loose, grouped = ({"lr": rates[name]} for name in TUNED)
    moved: dict[str, Any] = {**grouped, "wired": "mixer"}
    hebbian: dict[str, Any] = {**moved, "prune": "hebbian", "grow": "hebbian"}
    rewired = "mixer, rewired: prune by "
    return (
        Arm("dense", wired="dense", role="reference", note="same width, four times the weights", **dense),
        Arm("dense matched", wired="matched", note="narrower, as many weights", **matched),
        Arm("unstructured", wired="unstructured", role="ablation", note="as many, anywhere", planted=True, **loose),
        Arm("mixer", wired="mixer", role="method", note="neighbours, then every eighth unit", **grouped),
        Arm("index", wired="index", role="ablation", note="neighbours throughout", **grouped),
        Arm("random", wired="random", role="ablation", note="groups drawn at random", **grouped),
        Arm("mixer 0", p_inter=0.0, role="ablation", note="nothing between groups", **grouped),
        Arm("mixer 0.05", p_inter=0.05, role="ablation", note="5 % between groups", **grouped),
        Arm("mixer 0.3", p_inter=0.3, role="ablation", note="30 % between groups", **grouped),
        Arm(
            "isolated",
            wired="index",
            p_inter=0.0,
            role="ablation",
            note="eight networks side by side",
            planted=True,
            **grouped,
        ),
        Arm("set/random", prune="magnitude-layer", grow="random", note=rewired + "size, grow anywhere", **moved),
        Arm("set/gradient", prune="magnitude-layer", grow="gradient", note=rewired + "size, grow by gradient", **moved),
        Arm(
            "set/hebb",
            prune="magnitude-layer",
            grow="hebbian",
            role="method",
            note=rewired + "size, grow by cosine",
            **moved,
        ),
        Arm(
            "set/hebb centred",
            prune="magnitude-layer",
            grow="hebbian",
            centered=True,
            role="ablation",
            note=rewired + "size, grow by correlation",
            **moved,
        ),
        Arm("hebb/hebb", role="ablation", note=rewired + "cosine, grow by cosine", **hebbian),
        Arm("three/hebb", role="ablation", note=rewired + "all three", **{**hebbian, "prune": "three"}),
        Arm(
            "published hebb/hebb",
            role="ablation",
            published=True,
            note="thresholds with ties, one batch, old values and moments, constant fraction",
            **hebbian,
        ),
        Arm(
            "unstructured set/gradient",
            wired="unstructured",
            prune="magnitude-layer",
            grow="gradient",
            note="without groups, prune by size, grow by gradient",
            **loose,
        ),
    )


def checks(floor: float) -> tuple[Check, ...]:
    """The checks of the card, whatever the data."""
    static = ("unstructured", "index", "random", "mixer")
    exchanged = ("set/random", "set/gradient", "set/hebb", "hebb/hebb", "three/hebb", "unstructured set/gradient")
    formula = 1 / 8 + 0.15 * 7 / 8
    return (
        interval(
            "dense accuracy on most samples, %", lambda s: s["dense"]["most samples"], role="sanity", at_least=floor
        ),
        interval(
            "planted groups: points by which wiring within these groups exceeds unstructured wiring",
            gain("isolated", "unstructured", "planted"),
            role="control",
            at_least=2.0,
        ),
        exact(
            "largest deviation of a density from the formula, % of it",
            lambda s: 100 * max(abs(s[arm]["density"] / formula - 1) for arm in static),
            role="sanity",
            margin=0.5,
        ),
        exact(
            "weights that rewiring lost or made",
            lambda s: max(abs(s[arm]["weights lost"]) for arm in exchanged),
            role="sanity",
            margin=0.0,
        ),
        interval(
            "points by which groups in mixing order exceed unstructured wiring",
            gain("mixer", "unstructured"),
            role="mechanism",
            primary=True,
            at_least=0.5,
        ),
        interval(
            "the better of grouped wirings less unstructured, chosen by validation",
            lambda s: (
                s[max(static[1:], key=lambda arm: s[arm]["validation"])]["accuracy"] - s["unstructured"]["accuracy"]
            ),
            role="mechanism",
            at_least=0.5,
        ),
        interval(
            "mixer less isolated modules: does it help to mix?",
            gain("mixer", "isolated"),
            role="mechanism",
            at_least=0.0,
        ),
        interval("Hebbian growth less growth anywhere", gain("set/hebb", "set/random"), role="mechanism", at_least=0.0),
        interval("Hebbian growth less no rewiring", gain("set/hebb", "mixer"), role="mechanism", at_least=0.3),
        interval(
            "pruning by size less pruning by joint activity",
            gain("set/hebb", "hebb/hebb"),
            role="mechanism",
            at_least=0.0,
        ),
        interval(
            "points above the better baseline of equal size",
            lambda s: s["mixer"]["accuracy"] - s[rival(s)]["accuracy"],
            role="advantage",
            primary=True,
            at_least=0.5,
        ),
        interval(
            "points above the matched dense network", gain("mixer", "dense matched"), role="advantage", at_least=0.0
        ),
        interval(
            "the worst static sparse arm less dense of the same width",
            lambda s: min(s[arm]["accuracy"] for arm in static) - s["dense"]["accuracy"],
            role="advantage",
            at_least=-0.7,
        ),
        interval(
            "with Hebbian growth, points above unstructured with growth by gradient",
            gain("set/hebb", "unstructured set/gradient"),
            role="advantage",
            at_least=0.0,
        ),
    )


class _G2GNet(Study):
    """What both variants share."""

    paper = Paper(
        "Neuro-inspired Ensemble-to-Ensemble Communication Primitives for Sparse and Efficient ANNs",
        "Orestis Konstantaropoulos, Stelios Manolis Smirnakis, Maria Papadopouli",
        2025,
        arxiv="2508.14140",
    )
    claim = "Group-to-group wiring with 75 % of the weights missing is more accurate than dense; Hebbian rewiring adds."
    refuted_by = (
        "As many weights at random places come within half a point; for the advantage, those or a narrower dense "
        "network of equal size do."
    )
    fidelity = "B"
    Config = Config

    def prepare(self, config: Config, seed: int) -> dict[str, Task]:
        return tasks(config, seed)

    def run(self, config: Config, prepared: dict[str, Task], seed: int) -> Outcome:
        return Outcome(measure(config, prepared, seed))

    def tune(self, config: Config) -> Tuning:
        """The rate of each family: the best mean validation accuracy over the tuning seeds."""
        budget = {arm.name: len(RATES) * (arm.name in TUNED) for arm in self.arms}
        seeds = TUNING_SEEDS[: config.tuning_seeds]
        if not seeds:
            return Tuning({}, {arm.name: 0 for arm in self.arms}, "not tuned")
        how = "rate of Adam by mean validation accuracy over {} tuning seeds; other arms take that of their family"
        prepared = {seed: self.prepare(config, seed) for seed in seeds}
        best: dict[str, float] = {}
        for name in TUNED:
            setting = replace(config, **{**self.arm(name).overrides, "planted": False})
            scores = {
                rate: fmean(measure(replace(setting, lr=rate), prepared[seed], seed)["validation"] for seed in seeds)
                for rate in RATES
            }
            best[name] = max(scores, key=lambda rate: scores[rate])
        chosen = {arm.name: arm.overrides for arm in arms(best)}
        return Tuning({name: {"lr": found["lr"]} for name, found in chosen.items()}, budget, how.format(len(seeds)))

    def figures(self, results: Results) -> dict[str, Any]:
        graph = require("plotly.graph_objects", "lab", purpose="figures")
        figure = graph.Figure()
        for arm in results.trials:
            values = results.metric(arm, "accuracy") - results.metric("dense", "accuracy")
            figure.add_scatter(x=[arm] * len(values), y=values, mode="markers", name=arm, showlegend=False)
        figure.add_hline(y=0)
        figure.update_layout(yaxis_title="accuracy above dense of the same width, points")
        figures = {"Accuracy of every arm, each seed a dot": figure}
        some = next(iter(results["dense"].values())).metrics
        first = next(name for name in some if name.split()[-1].isdigit()).rsplit(" ", 1)[0]
        sizes = [int(name.split()[-1]) for name in some if name.startswith(f"{first} ") and name.split()[-1].isdigit()]
        curve = graph.Figure()
        for arm in ("dense", "dense matched", "unstructured", "index", "mixer", "set/hebb"):
            if arm in results.trials:
                means = [float(results.metric(arm, f"{first} {size}").mean()) for size in sizes]
                curve.add_scatter(x=sizes, y=means, name=arm)
        curve.update_layout(xaxis_title="training samples", xaxis_type="log", yaxis_title="accuracy, %")
        figures["Learning curves"] = curve
        hubs = graph.Figure()
        for arm in results.trials:
            if arm.startswith("dense"):
                continue
            x, y = (results.metric(arm, name) for name in ("modularity", "hubs"))
            hubs.add_scatter(x=x, y=y, mode="markers", name=arm)
        hubs.update_layout(
            xaxis_title="modularity after training (0 without groups)",
            yaxis_title="connections of the largest hub, times the mean",
            yaxis_type="log",
        )
        figures["Rewiring makes hubs and leaves the groups"] = hubs
        return figures


DEVIATIONS = (
    "The exact number of weights is drawn, not each weight by itself, so that arms have equally many.",
    "Grown weights start at zero with cleared moments, k edges are exchanged exactly, silent units are spared and "
    "joint activity is averaged over batches; an arm does what the published spiking code does.",
    "The fraction exchanged is 10 % (the published description; the script says 2.5 %) and falls to zero at 75 % of "
    "training.",
    "The paper's gain over dense is shown; the bars are half a point over wiring without groups of equal size.",
    "Accuracy is the mean over training sizes, at an equal number of steps.",
)


@study
class G2GNet(_G2GNet):
    """Do ensembles matter in a sparse network?"""

    name = "g2gnet"
    scale_line = "Digits of 8×8, 100 to 1,000 samples, hidden layers of 128; the paper: Fashion-MNIST and CIFAR, 2,048."
    data = ("digits", "planted groups")
    deviations = DEVIATIONS
    scales: ClassVar = {
        "smoke": {"sizes": (60,), "hidden": 32, "steps": 25, "every": 5, "tuning_seeds": 0},
        "full": {},
    }
    arms = arms(dict.fromkeys(TUNED, 1e-3))
    checks = checks(93.0)


@study
class G2GNetFashion(_G2GNet):
    """The same on Fashion-MNIST, as pixels and as fixed features."""

    name = "g2gnet-fashion"
    scale_line = (
        "4,000 of 60,000 images, hidden layers of 128, 300 steps; the paper: all images, 2,048, 20 to 40 epochs."
    )
    data = ("Fashion-MNIST (from PLEXUS_DATA)", "planted groups")
    deviations = (
        *DEVIATIONS,
        "Features of random filters stand in for the frozen layers of a ResNet that CIFAR images pass in the paper.",
        "Five seeds, as each costs more than a minute. Test images are the customary ones, 10,000, for all seeds.",
    )
    seeds = 5
    scales: ClassVar = {
        "smoke": {
            "data": "fashion",
            "sizes": (100,),
            "hidden": 32,
            "steps": 10,
            "every": 5,
            "test": 200,
            "tuning_seeds": 0,
        },
        "full": {
            "data": "fashion",
            "sizes": (1000, 4000),
            "steps": 300,
            "batch": 128,
            "every": 25,
            "validation": 1000,
            "tuning_seeds": 2,
        },
        "paper": {"data": "fashion", "sizes": (59_000,), "hidden": 2048, "steps": 10_000, "batch": 256, "every": 1000},
    }
    arms = arms(dict.fromkeys(TUNED, 1e-3))
    checks = checks(75.0)
