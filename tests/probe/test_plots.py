"""Figures hold the numbers that they were given, and traces are the states of single steps."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from plexus.errors import RangeError, ShapeError, UnsupportedError
from plexus.nn import LIF, Sequential
from plexus.probe import plots, trace


def test_a_raster_has_a_dot_for_every_spike() -> None:
    z = (torch.rand(60, 2, 7, generator=torch.Generator().manual_seed(0)) < 0.2).float()
    figure = plots.raster({"a": z, "b": z[..., :3]}, dt=0.5, sample=1)
    first, second = (data for data in figure.data if data.type == "scattergl")
    assert {(t, u) for t, u in zip(first.x, first.y, strict=True)} == {
        (0.5 * t, u) for t, u in z[:, 1].nonzero().tolist()
    }
    assert min(second.y) >= 7  # above the first layer
    rate = next(data for data in figure.data if data.type == "scatter")
    mean = sum(rate.y) / len(rate.y)
    assert mean == pytest.approx(float(z[:, 1].mean()) * 2000, rel=0.15)


def test_traces_show_the_potentials() -> None:
    layer = LIF(4, tau_mem=5.0)
    x = torch.rand(30, 2, 4)
    spikes, state = trace(layer, x)
    assert torch.equal(spikes, layer(x)[0])
    v, by_hand = None, []
    for step in x.split(1):
        _, v = layer(step, v)
        by_hand.append(v.v)
    assert torch.equal(state.v, torch.stack(by_hand))
    figure = plots.traces(state.v, spikes, units=[2], sample=1, threshold=1.0)
    line = next(data for data in figure.data if data.mode == "lines")
    torch.testing.assert_close(torch.tensor(line.y), state.v[:, 1, 2].detach())
    ticks = next(data for data in figure.data if data.mode == "markers")
    assert len(ticks.x) == int(spikes[:, 1, 2].sum())


def test_trace_of_a_stack_and_of_what_has_no_state() -> None:
    net = Sequential(nn.Linear(3, 4), LIF(4))
    out, states = trace(net, torch.rand(6, 2, 3))
    assert states[0] is None
    assert states[1].v.shape == out.shape == (6, 2, 4)
    with pytest.raises(UnsupportedError):
        trace(nn.Linear(3, 4), torch.rand(6, 2, 3))


def test_histogram_counts_all() -> None:
    net = nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 3))
    figure = plots.histogram(net)
    assert [data.name for data in figure.data] == ["0.weight", "1.weight"]
    assert [sum(data.y) for data in figure.data] == [20, 12]
    assert sum(plots.histogram(torch.ones(9)).data[0].y) == 9


def test_movie_averages_windows_and_puts_channels_side_by_side() -> None:
    x = torch.rand(10, 1, 2, 3, 4)
    figure = plots.movie(x, window=5.0)
    assert len(figure.frames) == 2
    picture = torch.tensor(figure.frames[1].data[0].z, dtype=torch.float64)
    assert picture.shape == (3, 9)
    torch.testing.assert_close(picture[:, 5:], x[5:, 0, 1].double().mean(0))


def test_bad_input() -> None:
    with pytest.raises(ShapeError):
        plots.raster(torch.zeros(5, 3))
    with pytest.raises(RangeError, match="sample"):
        plots.raster(torch.zeros(5, 3, 2), sample=3)
    with pytest.raises(RangeError, match="unit"):
        plots.traces(torch.zeros(5, 3, 2), units=[2])
    with pytest.raises(ShapeError, match="potential"):
        plots.traces(torch.zeros(5, 3, 2), torch.zeros(5, 3, 1), units=[0])
    with pytest.raises(ShapeError):
        plots.histogram(nn.ReLU())
    with pytest.raises(RangeError):
        plots.histogram(torch.tensor([float("nan")]))
    with pytest.raises(ShapeError, match="map"):
        plots.movie(torch.zeros(5, 3, 2))
