"""Heterogeneous delays that tell the direction of motion from events, against delays spoiled and a bank of correlators.

Gaze walks over two photographs in eight directions; an event camera of 28×28 pixels watches. One `DelayedConv` (11
delays, a disk of 9 pixels) learns on the left half of the photographs, is tuned on a strip beside it and tested on what
is left. It is trained once per seed; averaging, shuffling or reversing its delays, pruning and shortening change that
one. Decisions are made at every step, from the evidence averaged over positions, and count once a whole window has been
seen (from step 12 on), also right after the motion has changed.

What is measured against what:

- mechanism: accuracy against the best of the layers whose delays say nothing (averaged over delays, shuffled within
  each pair, or a layer that learnt with one delay only). Further: a layer without the complex-cell maximum, reversed
  time, the weakest synapses pruned against the longest delays cut off.
- advantage: accuracy against a bank of correlators that is told the velocities, tuned over as many settings.

A small convolutional network with a hidden layer, learning in as many steps, is a reference and no rival.
"""

from __future__ import annotations

import copy
import itertools
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from plexus.errors import require
from plexus.lab import TUNING_SEEDS, Arm, Outcome, Paper, Results, Study, Tuning, exact, interval, study
from plexus.studies.spiking._moving_events import (
    Movies,
    correlator,
    natural_movies,
    texture_movies,
    train_cnn,
    train_layer,
)
from plexus.studies.spiking._moving_layer import (
    KEPT,
    SHORT,
    SPOILED,
    Config,
    Prepared,
    accuracy,
    decide,
    pruned,
    spiking,
    spoil,
    trained,
)


def drop(metrics: Any, arm: str) -> float:
    return metrics["delays"]["accuracy"] - metrics[arm]["accuracy"]


@study
class HeterogeneousDelays(Study):
    """One layer whose synapses carry many delays sees which way things move."""

    paper = Paper(
        "Learning heterogeneous delays in a layer of spiking neurons for fast motion detection",
        "Grimaldi, Perrinet",
        2023,
        doi="10.1007/s00422-023-00975-8",
        venue="Biological Cybernetics",
        code="https://github.com/SpikeAI/2023_GrimaldiPerrinet_HeterogeneousDelaySNN",
    )
    claim = (
        "One layer of spiking neurons with a weight for every delay, learnt by logistic regression, tells the motion "
        "of natural scenes from events at every instant, and does so with a few percent of its synapses."
    )
    refuted_by = (
        "Accuracy less than 15 points above that of the same layer with its delays averaged, shuffled or reduced to "
        "one; for the advantage, a tuned bank of correlators that is as accurate."
    )
    fidelity = "B"
    scale_line = (
        "8 motions instead of 36, 2 photographs instead of a set, 192 movies of 28×28 pixels and 50 ms instead of "
        "1,024 of 128×128 and 200 ms; a kernel of 11 delays × 9 × 9 instead of 21 × 17 × 17."
    )
    data = ("scikit-learn sample images china and flower, seen by a simulated event camera",)
    deviations = (
        "The loss is drawn at random places of all movies in each step instead of at every place of a batch: the same "
        "gradient in the mean, at a fraction of the work.",
        "Photographs are also shown by quarter turns: with only two, orientations of their contents would pass for "
        "motions (the aperture problem).",
        "The learning rate is 2,000 times the paper's and falls along a cosine: there are 300 steps of learning.",
        "A movie walks over a piece of 128×128 pixels; one that shows hardly anything (blank sky) is drawn again.",
        "Evidence is compared with its bias included. Delays start at one step: a spike first counts in the next.",
        "One speed only: at this scale two speeds take more movies than the budget has.",
    )
    Config = Config
    scales: ClassVar = {
        "smoke": {
            "directions": 4,
            "size": 16,
            "steps": 20,
            "train": 8,
            "validation": 4,
            "test": 4,
            "textures": 4,
            "delays": 7,
            "window": 7,
            "kernel": 5,
            "iterations": 8,
            "places": 256,
            "hidden": 4,
        },
        "full": {},
        "paper": {
            "directions": 12,
            "speeds": (0.5, 1.0, 2.0),
            "size": 48,
            "tile": 320,
            "steps": 100,
            "train": 1024,
            "test": 200,
            "delays": 21,
            "window": 21,
            "kernel": 17,
            "rate": 0.003,
            "iterations": 5000,
        },
    }
    arms = (
        Arm("delays", role="method", note="a weight for every delay, maximum over swapped polarities"),
        Arm("no maximum", method="no maximum", polarity_max=False, role="ablation", note="learnt without the maximum"),
        Arm("one delay", method="one delay", delays=1, role="ablation", note="learnt with a single delay of one step"),
        Arm("averaged", method="averaged", role="ablation", note="weights averaged over delays after learning"),
        Arm("shuffled", method="shuffled", role="null", note="weights shuffled over the delays of each pair"),
        Arm("reversed", method="reversed", role="null", note="delays in the opposite order: sees the opposite motion"),
        Arm("pruned", method="pruned", role="method", note="the strongest 10 % of synapses (curve: 30 to 1 %)"),
        Arm("shortened", method="shortened", role="ablation", note="the three shortest delays (curve: 6 to 1)"),
        Arm("winner spikes", method="winner", role="method", note="decides from spikes at 1 Hz per neuron"),
        Arm(
            "LIF output", method="lif", role="method", note="evidence drives LIF neurons, which decide by their spikes"
        ),
        Arm("textures", method="textures", role="reference", note="textures of one orientation, unseen in learning"),
        Arm("correlator", method="correlator", note="Reichardt detectors for the given velocities, nothing learnt"),
        Arm(
            "cnn",
            method="cnn",
            rate=0.01,
            places=256,
            role="reference",
            note="two convolutions in space and time with a ReLU between them",
        ),
    )
    checks = (
        exact(
            "difference of event-driven from dense evidence",
            lambda m: m["pruned"]["difference of event-driven evidence"],
            margin=1e-4,
            role="sanity",
        ),
        interval(
            "accuracy of the layer, times chance",
            lambda m: m["delays"]["accuracy"] / m["delays"]["chance"],
            at_least=2.0,
            role="sanity",
        ),
        interval(
            "events tell the motion: accuracy of the correlators, times chance",
            lambda m: m["correlator"]["accuracy"] / m["correlator"]["chance"],
            at_least=3.0,
            role="control",
        ),
        interval(
            "points above the best layer whose delays say nothing (averaged, shuffled, one)",
            lambda m: min(drop(m, arm) for arm in ("averaged", "shuffled", "one delay")),
            at_least=15.0,
            primary=True,
            role="mechanism",
        ),
        interval(
            "accuracy of the layer, times chance (the bar of the mechanism)",
            lambda m: m["delays"]["accuracy"] / m["delays"]["chance"],
            at_least=3.0,
            role="mechanism",
        ),
        interval(
            "without the maximum, points from chance",
            lambda m: abs(m["no maximum"]["accuracy"] - m["no maximum"]["chance"]),
            at_most=3.0,
            role="mechanism",
        ),
        interval(
            "averaged or shuffled delays, times chance (the larger)",
            lambda m: max(m[arm]["accuracy"] / m[arm]["chance"] for arm in ("averaged", "shuffled")),
            at_most=1.5,
            role="mechanism",
        ),
        interval(
            "reversed delays: points below chance",
            lambda m: m["reversed"]["chance"] - m["reversed"]["accuracy"],
            at_least=0.0,
            role="mechanism",
        ),
        interval(
            "reversed delays: share of decisions for the opposite motion, times chance",
            lambda m: m["reversed"]["opposite"] / m["reversed"]["chance"],
            at_least=2.0,
            role="mechanism",
        ),
        interval(
            "points lost with a tenth of the synapses", lambda m: drop(m, "pruned"), at_most=8.0, role="mechanism"
        ),
        interval(
            "share of the accuracy above chance lost with the three shortest delays",
            lambda m: drop(m, "shortened") / max(m["delays"]["accuracy"] - m["delays"]["chance"], 1.0),
            at_least=0.4,
            role="mechanism",
        ),
        interval(
            "times fewer synaptic operations with 3 % of the synapses",
            lambda m: m["pruned"]["times fewer operations, 3 % kept"],
            at_least=10.0,
            role="mechanism",
        ),
        interval(
            "points above the tuned bank of correlators",
            lambda m: drop(m, "correlator"),
            at_least=0.0,
            primary=True,
            role="advantage",
        ),
    )

    def prepare(self, config: Config, seed: int) -> Prepared:
        train = natural_movies(config, "train", config.train, seed)
        test = natural_movies(config, "test", config.test, seed)
        return Prepared(train, test, train_layer(config, train, seed), (config.rate, config.init))

    def run(self, config: Config, prepared: Prepared, seed: int) -> Outcome:
        classes = config.directions * len(config.speeds)
        metrics: dict[str, float] = {"chance": 100 / classes}
        with torch.no_grad():
            if config.method == "pruned":
                found = pruned(trained(config, prepared, seed), prepared, config)
                return Outcome(metrics | found)
            if config.method == "textures":
                layer = trained(config, prepared, seed)
                for across in ("along", "blind", "random"):
                    movies = texture_movies(config, across, config.textures, seed)
                    metrics[f"accuracy, {across}"] = accuracy(decide(layer, movies), movies, config.window)
                return Outcome(metrics | {"accuracy": metrics["accuracy, random"]})
        if config.method == "shortened":
            for delays in SHORT:
                layer = copy.deepcopy(trained(config, prepared, seed))
                layer.shorten_(delays)
                metrics[f"accuracy, {delays} delays"] = accuracy(
                    decide(layer, prepared.test), prepared.test, config.window
                )
            return Outcome(metrics | {"accuracy": metrics["accuracy, 3 delays"]})
        movies = prepared.test
        if config.method in ("winner", "lif"):
            score, metrics["rate"] = spiking(trained(config, prepared, seed), prepared, config, config.method)
        else:
            score = self._score(config, prepared, movies, seed)
        decided = score.argmax(2)[config.window :]
        label, age = movies.label[config.window :], movies.age[config.window :]
        metrics["accuracy"] = 100 * float((decided == label).double().mean())
        opposite = (label + config.directions // 2) % config.directions + label // config.directions * config.directions
        metrics["opposite"] = 100 * float((decided == opposite).double().mean())
        since = [(decided == label)[age == n].double() for n in range(30)]
        arrays = {
            "confusion": torch.bincount((label * classes + decided).flatten(), minlength=classes**2)
            .view(classes, classes)
            .numpy(),
            "accuracy by age": np.array([float(hit.mean()) if len(hit) else np.nan for hit in since]),
        }
        return Outcome(metrics, arrays)

    def _score(self, config: Config, prepared: Prepared, movies: Movies, seed: int) -> Tensor:
        """Evidence for each motion at each step, `[time, movie, class]`."""
        if config.method == "correlator":
            return correlator(config, movies.events)
        if config.method == "cnn":
            return train_cnn(config, prepared.train, seed)(movies.events).mean((3, 4))
        if config.method in ("no maximum", "one delay"):
            return decide(train_layer(config, prepared.train, seed), movies)
        layer = trained(config, prepared, seed)
        return decide(spoil(layer, config.method, seed) if config.method in SPOILED else layer, movies)

    def tune(self, config: Config) -> Tuning:
        """The setting of the layer and of the correlators with the best accuracy on validation movies, out of six each.

        The network is a reference and no rival; it keeps its settings.
        """
        learnt = [{"rate": rate, "init": init} for rate, init in itertools.product((0.01, 0.02, 0.04), (0.1, 1.0))]
        grids: dict[str, list[dict[str, Any]]] = {
            "delays": learnt,
            "correlator": [{"lags": n, "frames": k} for n, k in itertools.product((2, 4, 7), (1, 4))],
        }
        budget = {name: len(grid) for name, grid in grids.items()}
        if not config.tuning_seeds:
            how = "best validation accuracy over tuning seeds (one for the layer, two for the correlators), frozen"
            return Tuning({}, budget, how)
        chosen: dict[str, dict[str, Any]] = {}
        total = {name: np.zeros(len(grid)) for name, grid in grids.items()}
        for seed in TUNING_SEEDS[: config.tuning_seeds]:
            prepared = self.prepare(config, seed)
            validation = natural_movies(config, "validation", config.validation, seed)
            for name, grid in grids.items():
                for n, setting in enumerate(grid):
                    here = replace(config, **{**self.arm(name).overrides, **setting})
                    score = self._score(here, prepared, validation, seed)
                    total[name][n] += accuracy(score, validation, config.window)
        for name, grid in grids.items():
            chosen[name] = grid[int(total[name].argmax())]
        for arm in self.arms:  # what changes the learnt layer takes its settings
            if arm.name not in (*chosen, "cnn"):
                chosen[arm.name] = chosen["delays"]
        return Tuning(chosen, budget, f"best accuracy on validation movies over {config.tuning_seeds} tuning seeds")

    def figures(self, results: Results) -> dict[str, Any]:
        graph = require("plotly.graph_objects", "lab", purpose="figures")
        chance = float(results.metric("delays", "chance").mean())
        by_arm = graph.Figure()
        for arm in results.trials:
            by_arm.add_box(y=results.metric(arm, "accuracy"), name=arm, boxpoints="all")
        by_arm.add_hline(y=chance, line_dash="dot", annotation_text="chance")
        by_arm.update_layout(yaxis_title="accuracy, %", showlegend=False)
        kept = graph.Figure()
        names = [f"accuracy, {100 * share:g} % kept" for share in (1.0, *KEPT)]
        kept.add_scatter(
            x=[100.0, *(100 * share for share in KEPT)],
            y=[results.metric("pruned", name).mean() for name in names],
            name="strongest synapses",
        )
        delays = self.Config().delays
        kept.add_scatter(
            x=[100 * n / delays for n in SHORT],
            y=[results.metric("shortened", f"accuracy, {n} delays").mean() for n in SHORT],
            name="shortest delays",
        )
        kept.add_hline(y=chance, line_dash="dot", annotation_text="chance")
        kept.update_layout(xaxis_title="synapses kept, %", xaxis_type="log", yaxis_title="accuracy, %")
        latency = graph.Figure()
        for arm in ("delays", "winner spikes", "LIF output", "cnn", "correlator"):
            curves = np.stack([outcome.arrays["accuracy by age"] for outcome in results[arm].values()])
            ages = np.flatnonzero(~np.isnan(curves).all(0))
            latency.add_scatter(x=ages, y=100 * np.nanmean(curves[:, ages], 0), name=arm)
        latency.update_layout(xaxis_title="time since the motion changed, ms", yaxis_title="accuracy, %")
        return {"Accuracy": by_arm, "Fewer synapses": kept, "How fast": latency}
