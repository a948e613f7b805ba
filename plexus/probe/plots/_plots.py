"""Figures of spikes, potentials, weights and activity, as plotly figures.

Every function takes plain tensors and returns a `plotly.graph_objects.Figure`: show it in a notebook, save it with
`write_html` (one file, no network needed) or `write_image`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from plexus.errors import RangeError, ShapeError, require

__all__ = ["histogram", "movie", "raster", "traces"]

_SPIKE, _SECOND = "#0f4c81", "#b8480c"


def raster(
    spikes: Tensor | Mapping[str, Tensor], *, dt: float = 1.0, sample: int = 0, window: float | None = None
) -> Any:
    """A dot for every spike, units over time, and below it the mean rate.

    Args:
        spikes: `[time, batch, unit…]`, or several layers by name, drawn one above the other; -1 (a spike taken back) is
            drawn in another colour.
        dt: length of a step, ms.
        sample: which of the batch.
        window: width of the bins of the rate, ms; a fortieth of the run by default.

    Raises:
        ShapeError: there is no time and batch. RangeError: no such sample.

    Examples:
        >>> figure = raster((torch.rand(50, 2, 8) < 0.1).float(), sample=1)
        >>> len(figure.data) >= 2
        True
    """
    subplots = require("plotly.subplots", "lab", purpose="figures")
    layers = spikes if isinstance(spikes, Mapping) else {"": spikes}
    figure = subplots.make_subplots(rows=2, cols=1, shared_xaxes=True, row_heights=[0.75, 0.25], vertical_spacing=0.04)
    base, marks = 0, []
    for name, raw in layers.items():
        grid = _sample(raw, sample)
        for sign, colour in ((1, _SPIKE), (-1, _SECOND)):
            time, unit = (grid.sign() == sign).nonzero(as_tuple=True)
            if sign == 1 or len(time):
                figure.add_scattergl(
                    x=(time * dt).tolist(),
                    y=(unit + base).tolist(),
                    mode="markers",
                    marker={"size": 3, "color": colour},
                    name=(name or "spikes") if sign == 1 else "taken back",
                    hovertemplate="%{x} ms, unit %{y}<extra></extra>",
                    row=1,
                    col=1,
                )
        bins = max(1, round((window or len(grid) * dt / 40) / dt))
        whole = len(grid) // bins
        rate = grid[: whole * bins].abs().unflatten(0, (whole, bins)).mean((1, 2)) * (1000.0 / dt)
        figure.add_scatter(
            x=[(k + 0.5) * bins * dt for k in range(whole)],
            y=rate.tolist(),
            mode="lines",
            name=f"rate {name}".strip(),
            line={"width": 2},
            row=2,
            col=1,
        )
        marks.append((base, name))
        base += grid.shape[1]
    if len(layers) > 1:
        figure.update_yaxes(tickvals=[at for at, _ in marks], ticktext=[name for _, name in marks], row=1, col=1)
        for at, _ in marks[1:]:
            figure.add_hline(y=at - 0.5, line={"width": 1, "color": "#98a2ad"}, row=1, col=1)
    figure.update_yaxes(title="unit", range=[-0.5, base - 0.5], row=1, col=1)
    figure.update_yaxes(title="Hz", rangemode="tozero", row=2, col=1)
    figure.update_xaxes(title="time, ms", row=2, col=1)
    figure.update_layout(template="plotly_white", margin={"t": 30}, showlegend=len(layers) > 1, height=480)
    return figure


def traces(
    potential: Tensor,
    spikes: Tensor | None = None,
    *,
    units: Sequence[int] = (0, 1, 2),
    sample: int = 0,
    dt: float = 1.0,
    threshold: float | None = None,
    unit: str = "",
) -> Any:
    """Membrane potentials of some units over time, a tick above each where it spiked.

    Args:
        potential: `[time, batch, unit…]`, for example `probe.trace(layer, x)[1].v`.
        spikes: of the same shape; None draws none.
        units: which, by their place among the flattened units.
        sample: which of the batch.
        dt: length of a step, ms.
        threshold: drawn as a dashed line.
        unit: of the potential, such as `"mV"`.

    Raises:
        ShapeError: there is no time and batch, or spikes of another shape. RangeError: no such sample or unit.

    Examples:
        >>> figure = traces(torch.rand(30, 1, 4), (torch.rand(30, 1, 4) < 0.1).float(), units=[0, 3])
        >>> [line.name for line in figure.data if line.mode == "lines"]
        ['unit 0', 'unit 3']
    """
    graph = require("plotly.graph_objects", "lab", purpose="figures")
    values = _sample(potential, sample)
    fired = None
    if spikes is not None:
        if spikes.shape != potential.shape:
            raise ShapeError(
                "spikes do not fit the potential", given=tuple(spikes.shape), expected=tuple(potential.shape)
            )
        fired = _sample(spikes, sample)
    for place in units:
        if not 0 <= place < values.shape[1]:
            raise RangeError("there is no such unit", given=place, expected=f"0 to {values.shape[1] - 1}")
    figure = graph.Figure()
    chosen = values[:, list(units)]
    low, high = float(chosen.min()), float(chosen.max() if threshold is None else max(float(chosen.max()), threshold))
    gap = 1.3 * (high - low or 1.0)
    clock = [t * dt for t in range(len(values))]
    for k, place in enumerate(units):
        shift = gap * k
        figure.add_scatter(x=clock, y=(values[:, place] + shift).tolist(), mode="lines", name=f"unit {place}")
        if threshold is not None:
            figure.add_hline(y=threshold + shift, line={"dash": "dash", "width": 1, "color": "#98a2ad"})
        if fired is not None:
            at = [t * dt for t in fired[:, place].nonzero().flatten().tolist()]
            figure.add_scatter(
                x=at,
                y=[high + shift + 0.08 * gap] * len(at),
                mode="markers",
                marker={"symbol": "line-ns-open", "size": 9, "color": _SECOND},
                name="spike",
                showlegend=False,
            )
    title = f"potential{', ' + unit if unit else ''}" + (", shifted from unit to unit" if len(units) > 1 else "")
    figure.update_layout(
        template="plotly_white", margin={"t": 30}, xaxis_title="time, ms", yaxis_title=title, height=420
    )
    return figure


def histogram(values: Tensor | nn.Module | Mapping[str, Tensor], *, bins: int = 60, label: str = "weight") -> Any:
    """How weights, delays or any numbers are distributed.

    Args:
        values: a tensor, several by name, or a module, whose weights (parameters of two and more dimensions) are taken.
        bins: number of bins.
        label: of the axis, such as `"delay, ms"`.

    Raises:
        ShapeError: there are no numbers. RangeError: they hold NaN or infinity.

    Examples:
        >>> histogram(nn.Linear(4, 3)).data[0].name
        'weight'
    """
    graph = require("plotly.graph_objects", "lab", purpose="figures")
    if isinstance(values, nn.Module):
        named: Mapping[str, Tensor] = {name: p for name, p in values.named_parameters() if p.dim() >= 2}
    else:
        named = values if isinstance(values, Mapping) else {"": values}
    if not named or not all(tensor.numel() for tensor in named.values()):
        raise ShapeError("there are no numbers to show", mend="give a tensor, or a module with weights")
    flat = {name: tensor.detach().flatten().double().cpu() for name, tensor in named.items()}
    low, high = (float(f(torch.stack([f(t) for t in flat.values()]))) for f in (torch.min, torch.max))
    if not (abs(low) < torch.inf and abs(high) < torch.inf):
        raise RangeError("the numbers hold NaN or infinity")
    if low == high:
        low, high = low - 0.5, high + 0.5
    figure = graph.Figure()
    for name, tensor in flat.items():
        counts = torch.histc(tensor, bins, low, high)
        centres = [low + (k + 0.5) * (high - low) / bins for k in range(bins)]
        figure.add_bar(x=centres, y=counts.tolist(), name=name, opacity=0.65 if len(flat) > 1 else 1.0)
    figure.update_layout(
        template="plotly_white",
        margin={"t": 30},
        barmode="overlay",
        bargap=0.02,
        xaxis_title=label,
        yaxis_title="count",
        showlegend=len(flat) > 1,
        height=380,
    )
    return figure


def movie(activity: Tensor, *, sample: int = 0, dt: float = 1.0, window: float | None = None) -> Any:
    """Activity over a map of units as a movie with a play button and a slider.

    Args:
        activity: `[time, batch, y, x]`, or `[time, batch, channel, y, x]`, whose channels are put side by side.
        sample: which of the batch.
        dt: length of a step, ms.
        window: ms that are averaged into one frame; by default so many that there are at most 100 frames.

    Raises:
        ShapeError: the units are no map. RangeError: no such sample, or a window that does not fit.

    Examples:
        >>> len(movie(torch.rand(30, 1, 5, 6)).frames)
        30
    """
    graph = require("plotly.graph_objects", "lab", purpose="figures")
    if activity.dim() not in (4, 5) or not len(activity):
        raise ShapeError(
            "a movie needs a map of units", given=tuple(activity.shape), expected="[time, batch, (channel,) y, x]"
        )
    if not 0 <= sample < activity.shape[1]:
        raise RangeError("there is no such sample", given=sample, expected=f"0 to {activity.shape[1] - 1}")
    frames = activity[:, sample].detach().double().cpu()
    if frames.dim() == 4:  # channels side by side, a blank column between them
        blank = frames.new_full((*frames.shape[:3], 1), torch.nan)
        frames = torch.cat([frames, blank], -1).permute(0, 2, 1, 3).flatten(2)[..., :-1]
    steps = round(window / dt) if window else -(-len(frames) // 100)
    if not 1 <= steps <= len(frames):
        raise RangeError("the window does not fit the run", given=window, expected=f"{dt} to {len(frames) * dt} ms")
    whole = len(frames) // steps
    frames = frames[: whole * steps].unflatten(0, (whole, steps)).mean(1)
    known = frames[torch.isfinite(frames)]
    shared = {"zmin": float(known.min()), "zmax": float(known.max()), "colorscale": "Viridis"}
    pictures = [frame.tolist() for frame in frames]
    names = [f"{k * steps * dt:g}" for k in range(whole)]
    figure = graph.Figure(
        data=[graph.Heatmap(z=pictures[0], **shared)],
        frames=[graph.Frame(data=[graph.Heatmap(z=z, **shared)], name=n) for z, n in zip(pictures, names, strict=True)],
    )
    jump = {"mode": "immediate", "frame": {"duration": 60, "redraw": True}, "transition": {"duration": 0}}
    slider = {
        "currentvalue": {"prefix": "time, ms: "},
        "steps": [{"label": n, "method": "animate", "args": [[n], jump]} for n in names],
    }
    play = {"label": "play", "method": "animate", "args": [None, {**jump, "fromcurrent": True}]}
    pause = {"label": "pause", "method": "animate", "args": [[None], {**jump, "frame": {"duration": 0}}]}
    figure.update_layout(
        template="plotly_white",
        margin={"t": 30},
        height=460,
        sliders=[slider],
        updatemenus=[{"type": "buttons", "direction": "left", "x": 0.0, "y": 1.12, "buttons": [play, pause]}],
    )
    figure.update_yaxes(autorange="reversed", scaleanchor="x")
    return figure


def _sample(x: Tensor, sample: int) -> Tensor:
    """One sample as `[time, unit]`."""
    if not isinstance(x, Tensor) or x.dim() < 3 or not x.numel():
        given = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
        raise ShapeError("there is nothing to draw", given=given, expected="[time, batch, unit…]")
    if not 0 <= sample < x.shape[1]:
        raise RangeError("there is no such sample", given=sample, expected=f"0 to {x.shape[1] - 1}")
    return x[:, sample].detach().flatten(1).double().cpu()
