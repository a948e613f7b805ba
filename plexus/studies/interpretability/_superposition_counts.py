"""How each measure counts the features of layers, and what is asked of a count on each of the testbeds."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import Tensor

from plexus.probe import sae
from plexus.probe.geometry import participation_ratio
from plexus.studies.interpretability._superposition_networks import Counted

Count = np.ndarray[Any, Any]
PUBLISHED = {"tied": True, "unit_norm": False, "decoder_bias": False}


def halves(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Nine tenths to train on, a tenth to judge; rows come in random order."""
    cut = rows.shape[1] - rows.shape[1] // 10
    return rows[:, :cut], rows[:, cut:]


def counts(
    rows: Tensor, l1: list[float], features: int, settings: dict[str, Any], generator: torch.Generator
) -> dict[str, Count]:
    """Counts by an autoencoder per member: F held out and in sample, after the first part of training, L0, alive, FVU.

    A layer that never varies, in the rows trained on or in those judged, has no features.
    """
    train, judged = halves(rows)
    varies = [(part != part[:, :1]).flatten(1).any(1) for part in (train, judged)]
    living = (varies[0] & varies[1]).nonzero().squeeze(1).tolist()
    names = ("features", "in_sample", "early", "l0", "alive", "fvu")
    found = {name: np.zeros(len(rows)) for name in names}
    if not living:
        return found
    options = {**PUBLISHED, **settings}
    early = options.pop("early", options["steps"])
    fits = sae.fit_many(
        train[living], features=features, l1=[l1[i] for i in living], generator=generator, **options,
    )  # fmt: skip
    for i, done in zip(living, fits, strict=True):
        out, inside = (sae.quality(done.autoencoder, part[i]) for part in (judged, train))
        steps = done.curve["step"]
        at = int((steps <= early).sum()) - 1
        early_count = float(done.curve["effective_features"][max(at, 0)])
        values = (out.effective_features, inside.effective_features, early_count, out.l0, out.alive, out.fvu)
        for name, value in zip(names, values, strict=True):
            found[name][i] = value
    return found


def plain(rows: Tensor) -> dict[str, Count]:
    """Counts that need no autoencoder: the participation ratio; and the mean kurtosis of the units, no count at all."""
    out: dict[str, list[float]] = {"participation": [], "kurtosis": []}
    for member in rows.double():
        spread = member.var(0) > 1e-12
        out["participation"].append(participation_ratio(member) if bool(spread.any()) else 0.0)
        centred = member[:, spread] - member[:, spread].mean(0)
        fourth = centred.pow(4).mean(0) / centred.square().mean(0).square()
        out["kurtosis"].append(float(fourth.mean()) if bool(spread.any()) else 0.0)
    return {name: np.array(values) for name, values in out.items()}


def gaussian(rows: Tensor, generator: torch.Generator) -> Tensor:
    """Rows drawn from normal distributions with the mean and covariance of each member: no features, same geometry."""
    mean = rows.mean(1, keepdim=True)
    centred = (rows - mean).double()
    values, vectors = torch.linalg.eigh(centred.mT @ centred / rows.shape[1])
    root = vectors * values.clamp_min(0).sqrt().unsqueeze(-2)
    noise = torch.randn(rows.shape, generator=generator, dtype=torch.float64)
    return mean + (noise @ root.mT).float()


def rank(count: Count, truth: Count) -> float:
    """Spearman correlation; 0 where a count is the same everywhere."""
    if np.ptp(count) == 0 or np.ptp(truth) == 0:
        return 0.0
    return float(spearmanr(count, truth).statistic)


def error(count: Count, truth: Tensor) -> float:
    """Mean distance of a count from the truth, in log units."""
    return float(np.abs(np.log(np.maximum(count, 1e-3) / np.maximum(truth.numpy(), 1.0))).mean())


def on_toy(count: Count, facts: dict[str, Tensor]) -> dict[str, float]:
    """How a count goes with the number of features that the toy models keep."""
    truth, widest = facts["count"].numpy(), facts["features"] == facts["features"].max()
    return {
        "toy_rank": rank(count, truth),
        "toy_rank_widest": rank(count[widest.numpy()], truth[widest.numpy()]),
        "toy_rank_norms": rank(count, facts["norm"].numpy()),
        "toy_error": error(count, facts["count"]),
    }


def on_networks(count: dict[str, Count], layers: dict[str, Counted], dropouts: tuple[float, ...],
                epsilons: tuple[float, ...]) -> dict[str, float]:  # fmt: skip
    """What dropout, adversarial training and grokking do to a count."""
    dropped = count["parity"]
    found = {"dropout_ratio": float(dropped[dropouts.index(0.5)] / max(dropped[0], 1e-9))}
    slopes = {}
    for name in ("wide", "narrow"):
        for task, part in zip(("two", "ten"), np.split(count[name], 2), strict=True):
            slopes[name, task] = float(np.polyfit(epsilons, part, 1)[0])
            found[f"slope_{name}_{task}"] = slopes[name, task]
    found["slope_difference"] = slopes["wide", "two"] - slopes["narrow", "ten"]
    facts = layers["grokking"].facts
    steps, seen, unseen = (facts[name].numpy() for name in ("step", "train", "test"))
    memorised = int(np.argmax(seen >= 0.99)) if bool((seen >= 0.99).any()) else int(seen.argmax())
    track = np.maximum(count["grokking"], 1e-9)
    found["grokking_ratio"] = float(track[-1] / track[memorised])
    moments, span = np.log(steps[1:] * steps[:-1]) / 2, np.log(steps[-1] / steps[0])
    away = np.abs(moments - moments[np.argmax(np.diff(unseen))]) / span
    found["grokking_lag"] = float(away[np.argmin(track[1:] / track[:-1])])
    found["grokking_lag_random"] = float(away.mean())  # expected of a place drawn evenly among the looks
    return found
