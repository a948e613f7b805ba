"""How well single units, their votes and whole layers tell texts of two classes apart, and how stable the units are."""

from __future__ import annotations

import warnings
from statistics import fmean
from typing import Any

import numpy as np
import torch
from torch import Tensor

from plexus import probe
from plexus.errors import require
from plexus.probe import scores
from plexus.units import Recording, Scores, sites

LEVELS = (0.5, 0.525, 0.55, 0.6)
"""AUROC above which a unit counts as an expert."""


def responses(model: Any, texts: Tensor, labels: Tensor) -> Recording:
    """The largest response of each hidden unit of the MLPs to each text, `[text, token]`."""
    return probe.record(model, _batches(texts), sites.mlp(model), pool="max", labels=labels.long())


def expert_analysis(
    model: Any, texts: Tensor, labels: Tensor, *, halves: int, generator: torch.Generator
) -> dict[str, float]:
    """Shares of experts and their stability; the best unit, the vote of experts and the best layer on unseen texts.

    What is chosen (the unit, the experts, the layer) is chosen on one half of the texts and judged on the other.
    """
    found = responses(model, texts, labels)
    auroc, precision = scores.auroc(found), scores.average_precision(found)
    metrics = {f"experts_{level}": 100 * _experts(auroc, level).double().mean().item() for level in LEVELS}
    metrics["best_unit_precision"] = max(float(values.max()) for values in precision.values.values())
    overlap: dict[float, list[float]] = {level: [] for level in LEVELS}
    for _ in range(halves):
        order = torch.randperm(len(texts), generator=generator)
        one, other = (scores.auroc(_rows(found, half)) for half in order.chunk(2))
        for level in LEVELS:
            a, b = _experts(one, level), _experts(other, level)
            overlap[level].append(float((a & b).sum()) / max(1, int((a | b).sum())))
    metrics |= {f"stability_{level}": 100 * fmean(values) for level, values in overlap.items()}
    train, test = torch.randperm(len(texts), generator=generator).chunk(2)
    first, second = _rows(found, train), _rows(found, test)
    learnt, judged = scores.auroc(first), scores.auroc(second)
    site, unit, _ = learnt.ranked(1)[0]
    metrics["best_unit"] = float(judged[site][unit])
    experts = _experts(learnt, LEVELS[0])
    if bool(experts.any()):
        middle = torch.cat([first[site] for site in first.sites], 1)[:, experts].median(0).values
        votes = (torch.cat([second[site] for site in second.sites], 1)[:, experts] > middle).double().mean(1)
        metrics["vote"] = _auroc(votes.numpy(), labels[test].numpy())
    else:
        metrics["vote"] = 0.5
    return metrics | _layers(model, texts, labels, train, test)


def _layers(model: Any, texts: Tensor, labels: Tensor, train: Tensor, test: Tensor) -> dict[str, float]:
    """The layer and pooling whose logistic probe does best on a part of the training texts, on unseen ones."""
    linear = require("sklearn.linear_model", "lab", purpose="the layer probe")
    metrics = require("sklearn.metrics", "lab", purpose="silhouettes")
    fit, check = train[: len(train) * 2 // 3], train[len(train) * 2 // 3 :]
    best, silhouettes = (-1.0, 0.5), []
    for pool in ("mean", "last"):
        found = probe.record(model, _batches(texts), sites.residual(model), pool=pool)  # type: ignore[arg-type]
        for site in found.sites:
            x, y = found[site].float().numpy(), labels.numpy()
            x = (x - x[fit].mean(0)) / (x[fit].std(0) + 1e-6)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                probe_ = linear.LogisticRegression(max_iter=300).fit(x[fit], y[fit])
            chosen = _auroc(probe_.decision_function(x[check]), y[check])
            best = max(best, (chosen, _auroc(probe_.decision_function(x[test]), y[test])))
            silhouettes.append(float(metrics.silhouette_score(x[test], y[test])))
    return {"layer_probe": best[1], "silhouette": max(silhouettes)}


def _experts(found: Scores, level: float) -> Tensor:
    return torch.cat([found[site] for site in found.sites]) > level


def _auroc(values: np.ndarray[Any, Any], labels: np.ndarray[Any, Any]) -> float:
    metrics = require("sklearn.metrics", "lab", purpose="areas under ROC curves")
    return float(metrics.roc_auc_score(labels, values))


def _rows(found: Recording, chosen: Tensor) -> Recording:
    """Some samples of a pooled recording, with their labels."""
    values = {site: found[site][chosen] for site in found.sites}
    table = {site: {"sample": torch.arange(len(chosen))} for site in found.sites}
    labels = found.labels
    assert isinstance(labels, Tensor)
    return Recording(values, table, labels=labels[chosen], model=found.model)


def _batches(texts: Tensor, size: int = 256) -> list[dict[str, Tensor]]:
    return [{"input_ids": rows, "attention_mask": torch.ones_like(rows)} for rows in texts.split(size)]
