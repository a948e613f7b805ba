"""Layers whose features are known, counted by autoencoders under many penalties at once; what tuning chooses there."""

from __future__ import annotations

from collections.abc import Iterable
from statistics import fmean

import numpy as np
import torch

from plexus.studies.interpretability import _superposition_counts as measure
from plexus.studies.interpretability import _superposition_networks as networks

PENALTIES = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0)
COLUMNS = {"sae": "features", "l0": "l0", "alive": "alive"}


def toy_layers(
    config, seed: int, penalties: tuple[float, ...]
) -> tuple[networks.Counted, dict[str, dict[str, np.ndarray]]]:
    """The toy models, and their counts by penalty, with those of normal noise under the method's."""
    toy = networks.toy(config, networks.stream(seed, "toy models"))
    noise = measure.gaussian(toy.rows, networks.stream(seed, "toy noise"))
    rows = torch.cat([toy.rows] * len(penalties) + [noise])
    l1 = [weight for weight in (*penalties, config.l1) for _ in range(len(noise))]
    found = measure.counts(rows, l1, config.toy_width, config.toy_training, networks.stream(seed, "toy autoencoders"))
    names = [*(f"{weight:g}" for weight in penalties), "noise"]
    parts = {name: np.split(value, len(names)) for name, value in found.items()}
    return toy, {name: {key: value[i] for key, value in parts.items()} for i, name in enumerate(names)}


def known_layers(config, seed: int) -> dict[str, float]:
    """The method where the count is known beforehand and nothing makes it hard; and noise of equal covariance there."""
    known = networks.separate(config, networks.stream(seed, "known features"))
    noise = measure.gaussian(known.rows, networks.stream(seed, "known noise"))
    rows, generator = torch.cat([known.rows, noise]), networks.stream(seed, "known autoencoders")
    found = measure.counts(rows, [config.l1] * len(rows), config.toy_width, config.toy_training, generator)
    own, others = (measure.error(part, known.facts["count"]) for part in np.split(found["features"], 2))
    return {"known_error": own, "known_gain": others - own}


def constants(config) -> tuple[float, ...]:
    """The numbers that a constant count may be: all that a dictionary can give."""
    return tuple(float(number) for number in range(1, config.toy_width + 1))


def best(config, seeds: Iterable[int]) -> dict[str, dict[str, float]]:
    """The penalty of each count, and the constant, whose error on the toy models is least over the seeds."""
    errors: dict[str, dict[float, list[float]]] = {name: {} for name in (*COLUMNS, "constant")}
    for seed in seeds:
        toy, found = toy_layers(config, seed, PENALTIES)
        truth = toy.facts["count"]
        for weight in PENALTIES:
            for name, column in COLUMNS.items():
                errors[name].setdefault(weight, []).append(measure.error(found[f"{weight:g}"][column], truth))
        for number in constants(config):
            errors["constant"].setdefault(number, []).append(measure.error(np.full(len(truth), number), truth))
    least = {name: min(tried, key=lambda value, tried=tried: fmean(tried[value])) for name, tried in errors.items()}
    return {name: {"constant" if name == "constant" else "l1": value} for name, value in least.items()}
