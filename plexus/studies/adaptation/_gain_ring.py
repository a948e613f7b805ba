"""The ring of `adaptive_gain_control`: what gains do to tuning, at the reconstructed constants and over their range.

The settings (`config`) are that study's `Config`.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor

from plexus.learn.homeostasis import GainControl
from plexus.nn import OrientationRing, RecurrentRate, orientation_ring, spectral_abscissa
from plexus.probe import adaptation_report, mean_correlation

DEGREES = 180 / math.pi
EFFECTS = ("repulsion", "lower maximum", "lower minimum", "equalisation", "decorrelation")
CONSTANTS = ("alpha", "gamma", "recurrence", "drive_width", "excitation_width", "inhibition_width", "adapter", "units")


def ring_of(config: Any, seed: int) -> OrientationRing:
    """The ring of a seed."""
    widths = {name: getattr(config, name) for name in ("excitation_width", "inhibition_width", "recurrence", "jitter")}
    generator = torch.Generator().manual_seed(seed)
    return orientation_ring(config.units, width=config.drive_width, generator=generator, **widths)


class Bench:
    """A ring and its two ensembles: what a pair of gains does to it."""

    def __init__(self, config: Any, ring: OrientationRing) -> None:
        n = config.units
        self.config, self.ring, self.net = config, ring, RecurrentRate(ring.weight)
        self.reader = self.net.reader()
        self.stimuli = torch.arange(n, dtype=torch.float64) * math.pi / n
        self.drive, self.adapter = ring.drive(self.stimuli), float(self.stimuli[n // 2])
        self.uniform = torch.full((n,), 1 / n, dtype=torch.float64)
        self.biased = torch.full((n,), (1 - config.adapter) / (n - 1), dtype=torch.float64)
        self.biased[n // 2] = config.adapter
        self.control = GainControl(n, alpha=config.alpha, gamma=config.gamma, memory=math.inf).double()
        self.before, self.after = (self.solve(prob) for prob in (self.uniform, self.biased))

    def solve(self, prob: Tensor) -> Tensor:
        return self.control.solve(self.drive, self.ring.weight, prob)

    def measure(self, before: Tensor, after: Tensor, *nets: RecurrentRate) -> tuple[dict[str, float], dict[str, Any]]:
        """Tuning curves on a fine grid of probes, rates and correlations under the ensembles."""
        nets = nets if len(nets) == 2 else (nets or (self.net,)) * 2
        probes = torch.arange(self.config.probes, dtype=torch.float64) * math.pi / self.config.probes
        fine, gains = self.ring.drive(probes), (before, after)
        curves = [net.steady_state(fine, gain=gain) for net, gain in zip(nets, gains, strict=True)]
        rates = [net.steady_state(self.drive, gain=gain) for net, gain in zip(nets, gains, strict=True)]
        report = adaptation_report(curves[0], curves[1], probes, self.adapter)
        spread = adaptation_report(rates[0], rates[1], self.stimuli, self.adapter, prob=self.biased).spread
        at, order = report.nearest, report.offset.argsort()
        error = (self.drive - rates[1] @ self.reader.T).square().sum(1)
        metrics = {
            "repulsion": DEGREES * report.repulsion(10 / DEGREES, 30 / DEGREES),
            "max_ratio": float(report.max_ratio[at]),
            "min_change": float((curves[1][:, at].min() - curves[0][:, at].min()) / curves[0][:, at].max()),
            "spread_before": spread[0],
            "spread_after": spread[1],
            "spread_fall": 1 - spread[1] / spread[0],
            "correlation_control": mean_correlation(rates[0], self.uniform),
            "correlation_biased": mean_correlation(rates[0], self.biased),
            "correlation_adapted": mean_correlation(rates[1], self.biased),
            "error": float(self.biased @ error),
            "activity": float(self.biased @ rates[1].square().sum(1)),
        }
        metrics["correlation_excess"] = metrics["correlation_adapted"] - metrics["correlation_control"]
        arrays = {
            "offset": (DEGREES * report.offset[order]).numpy(),
            "shift": (DEGREES * report.shift * report.offset.sign())[order].numpy(),
            "rates_before": (self.biased @ rates[0]).numpy(),
            "rates_after": (self.biased @ rates[1]).numpy(),
        }
        return metrics, arrays


def held(metrics: dict[str, float]) -> dict[str, bool]:
    """Which effects are there at a size that one would notice; decorrelation undoes half of what the bias added."""
    added = metrics["correlation_biased"] - metrics["correlation_control"]
    undone = metrics["correlation_biased"] - metrics["correlation_adapted"]
    return {
        "repulsion": metrics["repulsion"] >= 0.5,
        "lower maximum": metrics["max_ratio"] <= 0.95,
        "lower minimum": metrics["min_change"] <= -0.005,
        "equalisation": metrics["spread_fall"] >= 0.10,
        "decorrelation": undone >= max(0.001, 0.5 * added),
    }


def effects_at(config: Any, seed: int) -> dict[str, float] | None:
    """The metrics of the closed form at other constants, or None where the network does not settle."""
    ring = ring_of(config, seed)
    if spectral_abscissa(ring.weight) >= 0.98:
        return None
    bench = Bench(replace(config, probes=180), ring)
    return bench.measure(bench.before, bench.after)[0]


def over_constants(config: Any, seed: int) -> tuple[dict[str, float], dict[str, Any]]:
    """The effects at random draws of the inferred constants, and over a grid of alpha and gamma."""
    rng, rows, effects = np.random.default_rng(seed), [], []
    spans = {"alpha": 3, "gamma": 3, "drive_width": 2, "excitation_width": 2, "inhibition_width": 2}
    while len(rows) < config.constants:
        drawn: dict[str, Any] = {
            name: getattr(config, name) * span ** rng.uniform(-1, 1) for name, span in spans.items()
        }
        drawn |= {
            "recurrence": rng.uniform(0.5, 1.2),
            "adapter": rng.uniform(0.1, 0.5),
            "units": int(rng.integers(24, 61)),
        }
        metrics = effects_at(replace(config, **drawn), seed)
        if metrics is not None:
            rows.append([float(drawn[name]) for name in CONSTANTS])
            effects.append(metrics)
    there = np.array([[held(m)[name] for name in EFFECTS] for m in effects])
    shares = {f"share {name}": float(there[:, i].mean()) for i, name in enumerate(EFFECTS)}
    shares |= {
        "share all": float(there.all(1).mean()),
        "share repelled": float(np.mean([m["repulsion"] > 0 for m in effects])),
    }
    scale = np.geomspace(0.1, 10, config.map_points)
    grid = [
        [effects_at(replace(config, alpha=a, gamma=g), seed) for a in config.alpha * scale]
        for g in config.gamma * scale
    ]
    maps = {name: np.array([[m[name] for m in row] for row in grid]) for name in ("repulsion", "spread_fall")}
    return shares, {"constants": np.array(rows), "effects": there, **maps}


def adapt_synapses(bench: Bench, prob: Tensor) -> Tensor:
    """All recurrent weights adapted to the same objective by gradient, the pull holding them where they were."""
    start, config, n = bench.ring.weight, bench.config, bench.config.units
    drive, eye = bench.before * bench.drive, torch.eye(n, dtype=torch.float64)

    def evaluate(flat: np.ndarray[Any, Any]) -> tuple[float, np.ndarray[Any, Any]]:
        weight = torch.from_numpy(flat.reshape(n, n).copy()).requires_grad_()
        rates = torch.linalg.solve(eye - weight, drive.T).T
        cost = (bench.drive - rates @ bench.reader.T).square().sum(1) + config.alpha * rates.square().sum(1)
        loss = prob @ cost + config.gamma * (weight - start).square().sum()
        (slope,) = torch.autograd.grad(loss, weight)
        return loss.item(), slope.numpy().ravel()

    settings = {"maxiter": config.synaptic_steps}
    found = minimize(evaluate, start.numpy().ravel(), jac=True, method="L-BFGS-B", options=settings)
    return torch.from_numpy(found.x.reshape(n, n))
