"""The layer of the hd-snn study: its settings, how it decides, and what is done to its delays."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from plexus.data import EventStream
from plexus.nn import LIF, DelayedConv, rate_threshold, winner_spikes
from plexus.studies.spiking._moving_events import (
    Movies,
    generator,
    train_layer,
)

KEPT = (0.3, 0.1, 0.03, 0.01)
SHORT = (6, 3, 1)


@dataclass(frozen=True)
class Config:
    """Settings: the data's, the layer's, how it learns, and the rival's."""

    method: str = "delays"
    directions: int = 8
    speeds: tuple[float, ...] = (1.0,)
    size: int = 28
    tile: int = 128
    steps: int = 50
    segment: float = 24.0
    threshold: float = 0.8
    train: int = 192
    validation: int = 40
    test: int = 40
    textures: int = 16
    delays: int = 11
    window: int = 11
    kernel: int = 9
    polarity_max: bool = True
    init: float = 1.0
    rate: float = 0.02
    iterations: int = 300
    places: int = 1024
    hidden: int = 12
    lags: int = 4
    frames: int = 1
    tuning_seeds: int = 0


@dataclass
class Prepared:
    """Movies of one seed and the layer that learnt from them."""

    train: Movies
    test: Movies
    layer: DelayedConv
    learnt_with: tuple[float, float]


def decide(layer: DelayedConv, movies: Movies) -> Tensor:
    """Evidence averaged over positions, `[time, movie, class]`."""
    evidence: Tensor = layer(movies.events)[0]
    return evidence.mean((3, 4))


def accuracy(score: Tensor, movies: Movies, window: int) -> float:
    """Share of steps after the first window decided right, %."""
    return 100 * float((score.argmax(2) == movies.label)[window:].double().mean())


def averaged(layer: DelayedConv, seed: int) -> Tensor:
    return layer.weight.mean(2, keepdim=True).expand_as(layer.weight)


def shuffled(layer: DelayedConv, seed: int) -> Tensor:
    """Each weight keeps its pair and gets another of the pair's delays."""
    order = torch.rand(layer.weight.shape, generator=generator(seed, 30)).argsort(2)
    return layer.weight.gather(2, order)


def time_reversed(layer: DelayedConv, seed: int) -> Tensor:
    return layer.weight.flip(2)


SPOILED: dict[str, Callable[[DelayedConv, int], Tensor]] = {
    "averaged": averaged,
    "shuffled": shuffled,
    "reversed": time_reversed,
}


def spoil(layer: DelayedConv, how: str, seed: int) -> DelayedConv:
    """A copy of the layer whose weights went to other delays."""
    changed = copy.deepcopy(layer)
    changed.weight.copy_(SPOILED[how](layer, seed))
    return changed


def trained(config: Config, prepared: Prepared, seed: int) -> DelayedConv:
    """The prepared layer, or one that learns with other settings."""
    if prepared.learnt_with == (config.rate, config.init):
        return prepared.layer
    return train_layer(config, prepared.train, seed)


def pruned(layer: DelayedConv, prepared: Prepared, config: Config) -> dict[str, float]:
    """Accuracy with the strongest synapses only, and what events cost then."""
    found = {}
    test, dense = prepared.test, 0
    for kept in (1.0, *KEPT):
        sparse = copy.deepcopy(layer)
        sparse.prune_(1 - kept)
        found[f"accuracy, {100 * kept:g} % kept"] = accuracy(decide(sparse, test), test, config.window)
        if kept in (1.0, 0.1, 0.03):
            stream = EventStream.from_dense(test.events[:, 0])
            by_event, operations = sparse.event_forward(stream, steps=config.steps)
            by_frame = sparse(test.events[:, :1])[0][:, 0]
            dense = dense or operations
            found[f"times fewer operations, {100 * kept:g} % kept"] = dense / max(operations, 1)
            difference = float((by_event - by_frame).abs().max())
            found["difference of event-driven evidence"] = max(
                difference, found.get("difference of event-driven evidence", 0)
            )
    found["accuracy"] = found[f"accuracy, {100 * KEPT[1]:g} % kept"]
    return found


def spiking(layer: DelayedConv, prepared: Prepared, config: Config, output: str) -> tuple[Tensor, float]:
    """Decisions from spikes alone, a leaky count over 5 ms; also the rate of a neuron in Hz."""
    bias = layer.bias.view(-1, 1, 1)
    calibration = layer(prepared.train.first(20).events)[0][config.window :] - bias
    threshold = rate_threshold(calibration, rate=1.0 if output == "winner" else 20.0)
    evidence = layer(prepared.test.events)[0] - bias
    if output == "winner":
        spikes = winner_spikes(evidence, threshold)
    else:
        spikes, _ = LIF(tuple(evidence.shape[2:]), tau_mem=2.0, threshold=threshold, scale_input=True)(evidence)
    rate = 1000 * float(spikes[config.window :].mean())
    counts, trace = spikes.mean((3, 4)), torch.zeros(())
    score = []
    for count in counts:
        trace = trace * np.exp(-1 / 5.0) + count
        score.append(trace)
    return torch.stack(score), rate
