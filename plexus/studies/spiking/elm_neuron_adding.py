"""Expressive Leaky Memory neuron as a recurrent cell: adding spoken digits.

Two recordings of spoken digits (zero to four) follow one another as binary log-mel spectrograms, and a model that has
read both must say their sum. What was said first must be kept until the end, some thirty steps of 40 ms; the same
sounds in steps of 20 and 10 ms ask for a memory two and four times as long in steps. The test uses the recordings of
the customary test part (index below 5), validation those of index 5 to 9, training all others.

What is measured against what:

- mechanism: the neuron, its time constants up to the length of the sequence, against its own with short ones (up to
  three steps of 40 ms) and with λ = 1. The null learns from sums that belong to other sounds.
- advantage: against an LSTM, an LSTM with chrono initialisation, and recurrent spiking networks with and without
  adaptive thresholds, all of as many parameters, each with its learning rate chosen among as many.

Needs the Free Spoken Digit Dataset in the folder that `PLEXUS_DATA` names.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from plexus.data import digit_adding, digit_raster, spoken_digits
from plexus.errors import require
from plexus.lab import TUNING_SEEDS, Arm, Outcome, Results, Study, Tuning, exact, interval, study
from plexus.studies.spiking._elm_rivals import (
    Readout,
    SpikingNet,
    elm,
    long_short_term,
    parameters,
    seeded,
    train,
)
from plexus.studies.spiking.elm_neuron import ExpressiveLeakyMemory, above, of

RIVALS = ("lstm", "chrono lstm", "lif", "alif")
FINER = (20.0, 10.0)
BANDS = 40
LENGTH = 640.0  # ms of a recording; nine in ten are shorter


@dataclass(frozen=True)
class Config:
    """Settings; times in ms. Those of the model are set by the arms."""

    model: str = "elm"
    memory: int = 20
    tau: tuple[float, float] = (0.0, 2 * LENGTH)
    scale: float = 5.0
    width: int = 0
    shuffled: bool = False
    step: float = 40.0
    digits: int = 5
    updates: int = 1200
    batch: int = 16
    test_sums: int = 2000
    rate: float = 1e-2
    rates: tuple[float, ...] = (5e-3, 1e-2, 2e-2)
    steps: tuple[float, ...] = (40.0, 20.0, 10.0)
    tuning_seeds: int = 1


Part = tuple[Tensor, Tensor]
"""Spectrograms `[recording, time, band]` (bool) and the digits `[recording]`."""


@functools.cache
def rasters(step: float, digits: int) -> dict[str, Part]:
    """The recordings of the first digits in steps of one length, by part."""
    spoken = spoken_digits()
    spoken = spoken[spoken.labels < digits]
    raster = digit_raster(spoken, step=step, duration=LENGTH, bands=BANDS).bool()
    parts = {"test": spoken.index < 5, "validation": (spoken.index >= 5) & (spoken.index < 10)}
    parts["train"] = ~(parts["test"] | parts["validation"])
    return {name: (raster[mask], spoken.labels[mask]) for name, mask in parts.items()}


def build(config: Config, seed: int) -> nn.Module:
    """The model of an arm; it reads `[time, batch, band]` and gives a logit for each sum."""
    sums = 2 * config.digits - 1
    if config.model in ("lstm", "chrono lstm"):
        longest = 2 * LENGTH / config.step if config.model == "chrono lstm" else None
        return long_short_term(BANDS, config.width, sums, longest)
    if config.model in ("lif", "alif"):
        slow = LENGTH if config.model == "alif" else None
        body = SpikingNet(BANDS, config.width, tau=80.0, tau_adapt=slow, tau_count=LENGTH, dt=config.step)
        return Readout(body, config.width, sums)
    tau = (config.tau[0] or config.step, config.tau[1])
    return elm(BANDS, sums, config.memory, seed=seed, tau=tau, scale=config.scale, tau_syn=60.0, dt=config.step)


def accuracy(model: nn.Module, part: Part, count: int, draw: torch.Generator) -> float:
    """Share of sums that are right, %."""
    x, y = digit_adding(*part, count, generator=draw)
    with torch.no_grad():
        right = [model(some.float())[0][-1].argmax(1) for some in x.split(500, 1)]
    return 100 * (torch.cat(right) == y).float().mean().item()


@study
class SpokenDigitAdding(Study):
    """A single neuron that adds spoken digits."""

    name = "elm-neuron-adding"
    paper = ExpressiveLeakyMemory.paper
    claim = (
        "A single neuron with leaky memory on a wide range of time constants adds two spoken digits better than "
        "recurrent networks of as many parameters, and bears longer sequences better."
    )
    refuted_by = (
        "Short time constants or λ = 1 add as well; or an LSTM, with or without chrono initialisation, or a recurrent "
        "spiking network of as many parameters does."
    )
    fidelity = "B"
    scale_line = (
        "Recordings of five digits by six speakers and 3,500 parameters; the paper: SHD-Adding, ten digits in two "
        "languages as spike trains, in longer sequences, and training to convergence."
    )
    data = ("Free Spoken Digit Dataset",)
    deviations = (
        "Real recordings stand in for the spiking cochlea of the Spiking Heidelberg Digits.",
        "Digits zero to four, so that the sum is learned in 1,200 small batches; chance is about 20 %.",
        "Five seeds: each trains thirteen recurrent networks, four of them over 64 or 128 steps.",
        "Half the parameters of the card's setting, for the same reason.",
        "The hidden layer's activation is SiLU, which the authors' best model uses.",
    )
    Config = Config
    seeds = 5
    scales: ClassVar = {
        "smoke": {
            "updates": 3,
            "test_sums": 100,
            "tuning_seeds": 1,
            "rates": (1e-2,),
        },
        "full": {},
        "paper": {"digits": 10, "memory": 30, "updates": 20_000, "batch": 64},
    }
    arms = (
        Arm("elm", role="method", note="time constants up to the length of the sequence"),
        Arm("tau to 320", tau=(0.0, 320.0), role="ablation", note="time constants up to a quarter of it"),
        Arm("short tau", tau=(0.0, 120.0), role="ablation", note="time constants up to three steps of 40 ms"),
        Arm("lambda 1", scale=1.0, role="ablation", note="slow units are hardly written to"),
        Arm("mismatched", shuffled=True, role="null", note="learns from the sums of other sounds"),
        Arm("lstm", model="lstm", width=15, note="as many parameters"),
        Arm("chrono lstm", model="chrono lstm", width=15, note="gates start at time constants up to the sequence's"),
        Arm("lif", model="lif", width=39, note="recurrent spiking network, 80 ms membranes, counts of 640 ms"),
        Arm("alif", model="alif", width=39, note="the same with adaptive thresholds of 640 ms"),
        *(Arm(f"elm {step:g} ms", step=step, role="method", note="the same sounds in finer steps") for step in FINER),
        *(Arm(f"lstm {step:g} ms", model="lstm", width=15, step=step, note="in finer steps") for step in FINER),
    )
    checks = (
        interval(
            "accuracy after learning mismatched sums, %", of("mismatched", "accuracy"), at_most=30.0, role="sanity"
        ),
        exact(
            "mean parameters of the rivals over the neuron's",
            lambda seed: fmean(seed[arm]["parameters"] for arm in RIVALS) / seed["elm"]["parameters"],
            center=1.0,
            margin=0.12,
            role="sanity",
        ),
        interval(
            "accuracy of the best of the neuron and its rivals, %",
            lambda seed: max(seed[arm]["accuracy"] for arm in ("elm", *RIVALS)),
            at_least=50.0,
            role="control",
        ),
        interval(
            "points over short time constants",
            above("short tau", metric="accuracy", arm="elm"),
            at_least=30.0,
            primary=True,
            role="mechanism",
        ),
        interval(
            "points over time constants up to 320 ms",
            above("tau to 320", metric="accuracy", arm="elm"),
            at_least=0.0,
            role="mechanism",
        ),
        interval("points over λ = 1", above("lambda 1", metric="accuracy", arm="elm"), at_least=5.0, role="mechanism"),
        interval(
            "points over the best of two LSTMs and two spiking networks",
            above(*RIVALS, metric="accuracy", arm="elm"),
            at_least=5.0,
            primary=True,
            role="advantage",
        ),
        interval("points over the LSTM", above("lstm", metric="accuracy", arm="elm"), at_least=5.0, role="advantage"),
        interval(
            "points by which finer steps (10 ms) cost the LSTM more",
            lambda seed: (
                (seed["lstm"]["accuracy"] - seed["lstm 10 ms"]["accuracy"])
                - (seed["elm"]["accuracy"] - seed["elm 10 ms"]["accuracy"])
            ),
            at_least=0.0,
            role="advantage",
        ),
        interval(
            "points over the LSTM in steps of 10 ms",
            above("lstm 10 ms", metric="accuracy", arm="elm 10 ms"),
            at_least=5.0,
            role="advantage",
        ),
    )

    def prepare(self, config: Config, seed: int) -> dict[float, dict[str, Part]]:
        return {step: rasters(step, config.digits) for step in config.steps}

    def run(self, config: Config, prepared: dict[float, dict[str, Part]], seed: int) -> Outcome:
        data, draw, model = prepared[config.step], seeded(seed, 2), build(config, seed)
        sounds, labels = data["train"]

        def loss(model: nn.Module, update: int) -> Tensor:
            x, y = digit_adding(sounds, labels, config.batch, generator=draw)
            if config.shuffled:
                y = y[torch.randperm(len(y), generator=draw)]
            return cross_entropy(model(x.float())[0][-1], y)

        final = train(model, loss, config.updates, config.rate)
        metrics = {
            "accuracy": accuracy(model, data["test"], config.test_sums, seeded(seed, 3)),
            "validation accuracy": accuracy(model, data["validation"], config.test_sums, seeded(seed, 4)),
            "loss": final,
            "parameters": float(parameters(model)),
        }
        return Outcome(metrics)

    def tune(self, config: Config) -> Tuning:
        """Learning rates with the best accuracy on validation; ablations and finer steps take those of their model."""
        tuned, best = ("elm", *RIVALS), {}
        seeds = TUNING_SEEDS[: config.tuning_seeds]
        prepared = self.prepare(replace(config, steps=(config.step,)), 0)  # the recordings are the same for every seed
        for name in tuned:
            tried = {}
            for rate in config.rates:
                setting = replace(config, **{**self.arm(name).overrides, "rate": rate})
                tried[rate] = fmean(self.run(setting, prepared, seed).metrics["validation accuracy"] for seed in seeds)
            best[name] = max(tried, key=lambda rate, tried=tried: tried[rate])
        chosen = {
            arm.name: {"rate": best[arm.name if arm.name in tuned else str(arm.overrides.get("model", "elm"))]}
            for arm in self.arms
        }
        budget = {arm.name: len(config.rates) * (arm.name in tuned) for arm in self.arms}
        return Tuning(chosen, budget, f"learning rate on validation recordings, {config.tuning_seeds} tuning seeds")

    def figures(self, results: Results) -> dict[str, Any]:
        graph = require("plotly.graph_objects", "lab", purpose="figures")
        bars = graph.Figure()
        for name in (arm.name for arm in self.arms if arm.name in results.trials):
            bars.add_box(y=results.metric(name, "accuracy"), name=name, boxpoints="all")
        bars.update_layout(yaxis_title="sums that are right, %", showlegend=False)
        lines = graph.Figure()
        for model in ("elm", "lstm"):
            names = [(40.0, model), *((step, f"{model} {step:g} ms") for step in FINER)]
            names = [(step, name) for step, name in names if name in results.trials]
            means = [float(results.metric(name, "accuracy").mean()) for _, name in names]
            lines.add_scatter(x=[2 * LENGTH / step for step, _ in names], y=means, name=model, mode="lines+markers")
        lines.update_layout(xaxis_title="steps of the sequence", yaxis_title="sums that are right, %", xaxis_type="log")
        return {"Adding two spoken digits": bars, "The same sounds in finer steps": lines}
