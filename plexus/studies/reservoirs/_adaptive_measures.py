"""What the study of E-I adaptive reservoirs measures on its five tasks, and how it draws it."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from plexus.data import Series
from plexus.errors import require
from plexus.lab import Outcome, Results
from plexus.learn.homeostasis import InhibitoryHomeostasis
from plexus.learn.readout import RidgeReadout
from plexus.nn.reservoirs import EchoState, EchoStateState
from plexus.probe import echo_state, memory_capacity, neuronal_entropy, spectral_radius, valid_time

TASKS = ("memory", "narma", "mackey-glass", "lorenz", "digits")
WASHOUT = 200
READOUT = RidgeReadout(per_target=True)


def generator(seed: int, stream: int) -> torch.Generator:
    """One stream of random numbers of a seed."""
    return torch.Generator().manual_seed(100 * seed + stream)


def fitted(series: Series) -> int:
    """The number of steps, washout included, before the test part."""
    return WASHOUT + int(0.6 * (len(series) - WASHOUT))


def validation_error(reservoir: EchoState, series: Series) -> float:
    """Normalised squared error on the validation steps: what everything that is chosen is chosen by."""
    part = slice(WASHOUT, fitted(series))
    y = series.y[part, 0]
    errors = READOUT.held_out_errors(reservoir(series.u[: part.stop])[0][part, 0], y)
    return float((errors.min(0) / y.var(0, correction=0).numpy()).mean())


def score(task: int, reservoir: EchoState, series: Series, seed: int, delays: int) -> Outcome:
    """Memory capacity, or normalised root-mean-square error, on the test part."""
    name, split = TASKS[task], fitted(series)
    states, _ = reservoir(series.u)
    x, y = states[:, 0], series.y[:, 0]
    if name == "memory":
        memory = memory_capacity(x, series.u[:, 0, 0], delays, generator=generator(seed, 4), washout=WASHOUT)
        return Outcome({name: memory.total}, {"memory by delay": memory.per_delay.numpy(), "states": x.numpy()})
    readout = READOUT.fit(x[WASHOUT:split], y[WASHOUT:split])
    missed = (torch.from_numpy(readout.predict(x[split:])) - y[split:]).square().mean(0)
    metrics = {name: float((missed / y[split:].var(0, correction=0)).mean().sqrt())}
    if name in ("mackey-glass", "lorenz"):  # let it run free from ten points of the test part
        horizon = int(0.6 * (len(y) - split))
        starts = torch.linspace(split, len(y) - horizon, 10).long()
        made, _ = reservoir.free_run(*readout.tensors(), EchoStateState(x[starts]), horizon)
        truth = torch.stack([y[start : start + horizon] for start in starts.tolist()], 1)
        metrics[f"{name} valid time"] = float(valid_time(made, truth).double().mean())
    return Outcome(metrics)


def diagnose(
    reservoir: EchoState, home: InhibitoryHomeostasis | None, series: Series, states: Tensor, seed: int
) -> dict[str, float]:
    """Rates and stability on the test part of the memory task."""
    late, low = states[fitted(series) :], -1.0 if reservoir.activation == "tanh" else 0.0
    found = {
        "mean rate": float(late.mean()),
        "entropy": neuronal_entropy(late, low=low),
        "jacobian radius": float(spectral_radius(reservoir.jacobian(series.u[-1], EchoStateState(states[-2:-1])))),
        "forgets": float(echo_state(reservoir, series.u[-500:], generator=generator(seed, 5), low=low).converged),
    }
    if home is not None:
        found["rate error"] = float((late.mean(0) - home.targets).abs().mean())
    return found


def figures(arms: list[str], results: Results, config: Any) -> dict[str, Any]:
    """Memory of every arm and by delay, the grid, and the tuned arms by task."""
    go = require("plotly.graph_objects", "lab", purpose="figures")
    names = [arm for arm in arms if arm in results.trials and arm != "grid"]
    dots = [
        go.Box(x=results.metric(name, "memory"), name=name, boxpoints="all", pointpos=0, jitter=0.3, line_width=0)
        for name in names
    ]
    memory = go.Figure(dots).update_layout(
        xaxis_title="memory capacity (each seed a dot)", showlegend=False, yaxis_autorange="reversed"
    )
    by_delay = go.Figure().update_layout(xaxis_title="delay (steps)", yaxis_title="squared correlation")
    for name in ("balance +0.5", "best balance", "adaptive 0.5", "adaptive mixed", "tuned tanh"):
        curves = [outcome.arrays["memory by delay"] for outcome in results[name].values()]
        by_delay.add_scatter(x=np.arange(1, len(curves[0]) + 1), y=np.mean(curves, 0), name=name)
    grids = [outcome.arrays for outcome in results["grid"].values()]
    ratio = np.mean([grid["adaptive 0.5"] / grid["best balance"] for grid in grids], 0)
    cells = go.Heatmap(
        z=np.log2(ratio),
        zmid=0,
        colorscale="RdBu",
        x=[f"{scale:g}" for scale in config.input_scales[: ratio.shape[1]]],
        y=[f"{gain:g}" for gain in config.gains[: ratio.shape[0]]],
        text=np.round(ratio, 2),
        texttemplate="%{text}×",
        showscale=False,
    )
    grid = go.Figure(cells).update_layout(xaxis_title="input scale", yaxis_title="gain")
    bars = []
    for name in ("tuned balance", "tuned tanh", "tuned adaptive"):
        means = [results.metric(name, task) / results.metric("best balance", task) for task in TASKS]
        better = [np.exp(np.log(m if task == "memory" else 1 / m).mean()) for m, task in zip(means, TASKS, strict=True)]
        bars.append(go.Bar(x=list(TASKS), y=better, name=name))
    tasks = go.Figure(bars).update_layout(yaxis_title="times better than the untuned best balance", yaxis_type="log")
    return {
        "Memory capacity of every arm": memory,
        "Memory by delay": by_delay,
        "Memory of adaptive 0.5 over the best balance, by gain and input scale": grid,
        "The tuned arms, task by task": tasks,
    }
