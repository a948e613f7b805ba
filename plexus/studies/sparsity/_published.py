"""Rewiring as the published spiking code does it, kept as an arm.

Weights are pruned by a threshold (all whose score is at most the k-th smallest, so ties go together, and the scores of
silent units are tied at zero); grown weights take up the values that they last had, moments are not cleared; the number
of connections is not kept where ties were cut.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from plexus.edit.rewire import SparseTraining
from plexus.edit.rewire._choose import at_random, largest

__all__ = ["PublishedRewiring"]


class PublishedRewiring(SparseTraining):
    """`SparseTraining` with thresholds, old values and old moments; rules `hebbian`, `magnitude-layer` and `random`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._before: dict[str, Tensor] = {}
        for name, layer in self._layers.items():
            bound = math.sqrt(6 / layer.get_parameter("weight")[0].numel())
            draw = torch.rand(layer.get_parameter("weight").shape, generator=self.generator)
            self._before[name] = (2 * draw - 1) * bound  # absent weights have first values, too

    @torch.no_grad()
    def _rewire(self, name: str, layer: nn.Module, fraction: float) -> int:
        weight, mask = layer.get_parameter("weight").detach(), layer.get_buffer("weight_mask")
        free = ~mask
        k = min(math.floor(fraction * int(mask.sum())), int(free.sum()))
        if not k:
            return 0
        rule, growth = next(iter(self.prune)), next(iter(self.grow))
        if rule == "random":
            gone = torch.zeros_like(mask)
            gone.view(-1)[at_random(mask, k, self.generator)] = True
        else:
            score = weight.abs() if rule == "magnitude-layer" else self._joint_scores(name, layer)[0]
            gone = mask & (score <= score[mask].kthvalue(k).values)
        if growth == "hebbian":
            come = largest(self._joint_scores(name, layer)[0], free, k, self.generator)
        else:
            come = at_random(free, k, self.generator)
        self._before[name][gone] = weight[gone]
        mask[gone] = False
        mask.view(-1)[come] = True
        weight[gone] = 0
        weight.view(-1)[come] = self._before[name].view(-1)[come]
        return int(gone.sum())
