"""Selective synaptic dampening at small scale: four requests to forget, each against a network trained anew.

A convolutional network learns the digits and is asked to forget all samples of one class; one of two clusters of a
digit, which share their label; a few per cent of the samples, scattered. A one-layer transformer learns English text
in which one document of random words stands ten times, and is asked to forget the document. Every method is judged by
its gap to a network trained anew on what is left: the difference of forget accuracy plus that of retain accuracy, in
points. Forget accuracy is taken on unseen samples of the class or cluster, and on the forgotten samples themselves
for the other two. Rivals may cost, in gradients, what dampening costs in all: one pass over all data for the
importances. `seconds` counts forgetting with stored importances; `seconds_with_importances` counts that pass too.

What building it showed. Scattered digits leave hardly a trace: on eight tuning seeds an entropy attack calls 82 % of
them members in the original and 82 % in the retrained network, so a method that forgets nothing meets the membership
bar. A check of its own therefore asks whether dampening comes closer to retraining than the original does.

The rule itself (fixed alpha, squared batch means) was compared with the published code on five networks, three requests
and three settings: the same weights, bit for bit.

The primary checks came to count seeds after a first confirming run, and a run on seeds 100 to 109, had been seen: both
were undecided or lost under the mean over seeds. So only the confirming seeds of the present row are fresh evidence for
them; seeds 100 to 109 are not.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import replace
from statistics import fmean
from typing import Any, ClassVar

from plexus.errors import require
from plexus.lab import (
    TUNING_SEEDS,
    Arm,
    Outcome,
    Paper,
    Results,
    Study,
    Tuning,
    equivalent,
    exact,
    interval,
    study,
    wins,
)
from plexus.lab._study import BySeed, Quantity
from plexus.learn import unlearning as un
from plexus.studies.unlearning._methods import forget, measure, undone
from plexus.studies.unlearning._requests import Request, batches, requests_of, timed
from plexus.studies.unlearning._settings import GRID, NULLS, REQUESTS, Config, for_request, tuned


def nearest(seed: BySeed, arms: Iterable[str], request: str) -> float:
    """The smallest gap among some arms."""
    return min(seed[arm][f"{request}_gap"] for arm in arms)


def slack(seed: BySeed) -> float:
    """How far inside the bar: at most 5 % of the class left, at most 1.5 points lost on the others."""
    return min(5.0 - seed["ssd"]["class_forget"], 1.5 - seed["original"]["class_retain"] + seed["ssd"]["class_retain"])


def closer(rival: str, request: str) -> Quantity:
    """By how many points dampening is closer to the retrained network than a rival."""
    return lambda seed: seed[rival][f"{request}_gap"] - seed["ssd"][f"{request}_gap"]


def of(arm: str, metric: str) -> Quantity:
    """A metric of an arm."""
    return lambda seed: seed[arm][metric]


@study
class SelectiveSynapticDampening(Study):
    """Forget parts of the training data without retraining."""

    paper = Paper(
        "Fast Machine Unlearning Without Retraining Through Selective Synaptic Dampening",
        "Jack Foster, Stefan Schoepf, Alexandra Brintrup",
        2024,
        arxiv="2308.07707",
        venue="AAAI 2024",
        code="https://github.com/if-loops/selective-synaptic-dampening",
    )
    claim = "Dampening the weights that matter most to the forget set forgets as retraining does, and much faster."
    refuted_by = (
        "Dampening as many weights at random, or by shuffled importances, comes as close to the retrained network; "
        "or tuned ascent on the forget set with descent on the rest comes closer at the same cost."
    )
    fidelity = "A"
    scale_line = "1,347 digits, a CNN of 72,000 weights, 15,000 characters; the paper: CIFAR, faces, ResNet-18, ViT."
    data = ("digits", "descriptions")
    deviations = (
        "Alpha is chosen by the later percentile rule or by a loss budget, not by hand for each data set.",
        "Scattered samples are 3 % of the digits (40 samples), as 1 % would be 13; on MNIST 1 %.",
        "The document in a language model is a request of ours.",
        "Baselines get the gradients of one epoch, what importances of all data cost; UNSIR gets two, and its noise.",
        "A class is forgotten wholly or hardly at all, so the primary checks count seeds. A first confirming run "
        "judged them by the mean over seeds: the intervals were 80 points wide, and both questions stayed undecided.",
    )
    Config = Config
    scales: ClassVar = {
        "smoke": {
            "train": 160,
            "test": 80,
            "text": 700,
            "copies": 2,
            "epochs": 2,
            "text_epochs": 1,
            "shadows": 0,
            "relearn_limit": 1,
        },
        "full": {},
        "mnist": {"data": "mnist", "train": 10_000, "epochs": 6, "random_share": 0.01},
    }
    arms = (
        Arm("original", role="reference", note="nothing is forgotten"),
        Arm("retrained", method="retrained", role="reference", note="trained anew without the forget set"),
        Arm("ssd", method="ssd", role="method", note="squared batch means, alpha by percentile", **tuned("percentile")),
        Arm("ssd-budget", method="ssd", auto="budget", role="method", note="alpha by a probe", **tuned("budget")),
        Arm("ssd-fixed", method="ssd", auto=None, role="ablation", note="alpha 10, as published for ResNet-18"),
        Arm("ssd-sample", method="ssd", mode="sample", role="ablation", note="exact squares", **tuned("percentile")),
        Arm("random", method="random", role="null", note="as many entries, anywhere", **tuned("percentile")),
        Arm("random-layer", method="random-layer", role="null", note="as many in each layer", **tuned("percentile")),
        Arm("shuffled", method="shuffled", role="null", note="importances at random places", **tuned("percentile")),
        *(Arm(name, method=name, **tuned(name)) for name in list(GRID)[2:]),
    )
    checks = (
        interval("test accuracy of the original, %", of("original", "accuracy"), role="sanity", at_least=96.0),
        interval("accuracy on the class, original, %", of("original", "class_forget"), role="sanity", at_least=90.0),
        wins("weights that dampening changed", of("ssd", "changed_weights"), 10, 10, role="sanity", at_least=1.0),
        exact("of these, weights that undo leaves different", of("ssd", "undo_errors"), role="sanity", margin=0.0),
        wins("class after retraining, %", of("retrained", "class_forget"), 10, 10, role="control", at_most=5.0),
        wins(
            "class: points closer to retraining than the nearest of three nulls",
            lambda seed: nearest(seed, NULLS, "class") - seed["ssd"]["class_gap"],
            8,
            10,
            role="mechanism",
            primary=True,
            at_least=50.0,
        ),
        wins(
            "class: slack to 5 % left and 1.5 points lost on the others", slack, 8, 10, role="mechanism", at_least=0.0
        ),
        interval(
            "class: accuracy after as much dampening at random, the lower of two ways, %",
            lambda seed: min(seed["random"]["class_forget"], seed["random-layer"]["class_forget"]),
            role="mechanism",
            at_least=80.0,
        ),
        equivalent(
            "scattered: membership rate, points above retraining (forgetting nothing may meet this, so see the next)",
            lambda seed: seed["ssd"]["random_membership"] - seed["retrained"]["random_membership"],
            role="mechanism",
            margin=10.0,
        ),
        interval(
            "scattered: points closer to retraining than the original",
            closer("original", "random"),
            role="mechanism",
            at_least=1.0,
        ),
        wins(
            "class: points closer to retraining than ascent with descent (no dearer than importances of all data)",
            closer("ascent-descent", "class"),
            8,
            10,
            role="advantage",
            primary=True,
            at_least=0.0,
        ),
        interval(
            "class: points closer to retraining than one pass of ascent (equal cost with stored importances)",
            closer("ascent-pass", "class"),
            role="advantage",
            at_least=0.0,
        ),
        *(
            interval(
                f"{name}: points closer to retraining than ascent with descent",
                closer("ascent-descent", request),
                role="advantage",
                at_least=0.0,
            )
            for name, request in (("cluster of a class", "subclass"), ("document", "document"))
        ),
        wins(
            "class: times less processor time than retraining, with importances of all data stored beforehand",
            lambda seed: seed["retrained"]["class_seconds"] / seed["ssd"]["class_seconds"],
            9,
            10,
            role="advantage",
            at_least=20.0,
        ),
    )

    def prepare(self, config: Config, seed: int) -> dict[str, Request]:
        return requests_of(config, seed)

    def run(self, config: Config, prepared: dict[str, Request], seed: int) -> Outcome:
        images = prepared["random"]
        metrics = {"accuracy": 100 * un.accuracy(images.known.model, batches(config, images.unseen))}
        undo = []
        for name, request in prepared.items():
            if config.method == "noise" and name == "document":
                continue
            chosen = for_request(config, name)
            model = copy.deepcopy(request.known.model)
            extra, seconds = timed(lambda c=chosen, r=request, m=model: forget(c, r, m, seed))
            if config.method == "retrained":
                model, seconds = request.retrained, request.seconds
            found = {**measure(config, request, model), **extra, "seconds": seconds}
            beforehand = request.known.seconds[config.mode] if config.dampens else 0.0
            found["seconds_with_importances"] = seconds + beforehand
            metrics |= {f"{name}_{key}": value for key, value in found.items()}
            if config.method == "ssd" and not config.tuning:
                undo.append(undone(chosen, request, seed))
        if undo:
            metrics["changed_weights"], metrics["undo_errors"] = (float(sum(part)) for part in zip(*undo, strict=True))
        return Outcome(metrics)

    def tune(self, config: Config) -> Tuning:
        """Each arm's setting for each request: the smallest mean gap on samples split off the training set.

        Arms that share a grid share what the first of them chose, so only that one counts as tuned.
        """
        arms = {arm.name: arm for arm in self.arms if arm.overrides.get("grid")}
        first = {grid: next(name for name, arm in arms.items() if arm.overrides["grid"] == grid) for grid in GRID}
        budget = {name: len(GRID[arm.overrides["grid"]]) * (name in first.values()) for name, arm in arms.items()}
        shared = (
            "; ablations and nulls of `ssd` take its settings, none of their own was tried; settings that were "
            "replaced in the grids of rivals while building are not counted"
        )
        seeds = TUNING_SEEDS[: config.tuning_seeds]
        if not seeds:
            how = "smallest mean gap over ten tuning seeds on held-out training samples, found beforehand and frozen"
            return Tuning({}, budget, how + shared)
        base = replace(config, tuning=True, shadows=0)
        prepared = {seed: self.prepare(base, seed) for seed in seeds}
        best: dict[str, dict[str, Any]] = {}
        for grid, options in GRID.items():
            found = []
            for index in range(len(options)):
                here = {f"setting_{name}": index for name in REQUESTS}
                setting = replace(base, **{**arms[first[grid]].overrides, **here})
                trials = [self.run(setting, prepared[seed], seed).metrics for seed in seeds]
                found.append({name: fmean(t.get(f"{name}_gap", 0.0) for t in trials) for name in REQUESTS})
            best[grid] = {
                f"setting_{name}": min(range(len(options)), key=lambda index, name=name: found[index][name])
                for name in REQUESTS
            }
        chosen = {name: best[arm.overrides["grid"]] for name, arm in arms.items()}
        how = f"smallest mean gap over {len(seeds)} tuning seeds on held-out training samples"
        return Tuning(chosen, budget, how + shared)

    def figures(self, results: Results) -> dict[str, Any]:
        graph = require("plotly.graph_objects", "lab", purpose="figures")
        figures = {}
        for name, title in (("class", "Forgetting a class"), ("document", "Forgetting a document")):
            figure = graph.Figure()
            for arm in results.trials:
                if name == "document" and arm == "noise":
                    continue
                x, y = (results.metric(arm, f"{name}_{part}") for part in ("forget", "retain"))
                figure.add_scatter(x=x, y=y, mode="markers", name=arm)
            figure.update_layout(xaxis_title="accuracy on what is to be forgotten, %", yaxis_title="on the rest, %")
            figures[title] = figure
        figure = graph.Figure()
        for key, name in (("seconds", "importances stored"), ("seconds_with_importances", "with their pass")):
            times = {arm: float(results.metric(arm, f"class_{key}").mean()) for arm in results.trials}
            times.pop("original", None)
            figure.add_bar(x=list(times), y=list(times.values()), name=name)
        figure.update_layout(yaxis_title="processor time, s", yaxis_type="log", barmode="group")
        figures["Time to forget a class"] = figure
        return figures
