"""Events as frames, voxel grids and time surfaces, against one loop over the events each."""

import math

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from plexus.data import EventStream, frames, from_structured, time_surface, to_structured, voxel_grid
from plexus.errors import DtypeError, RangeError, ShapeError


def stream(seed=0, count=40, shape=(2, 4, 5)):
    draw = torch.Generator().manual_seed(seed)
    t = torch.rand(count, generator=draw, dtype=torch.float64) * 30
    address = torch.stack([torch.randint(0, n, (count,), generator=draw) for n in shape], 1)
    return EventStream.sorted(t, address, shape)


def rows(events):
    return zip(events.t.tolist(), events.address.tolist(), strict=True)


@given(st.integers(0, 1000), st.integers(1, 7))
@settings(max_examples=20, deadline=None)
def test_voxels_share_each_event_between_two_points(seed, bins):
    events = stream(seed)
    grid = torch.zeros(bins, 4, 5, dtype=torch.float64)
    first, last = float(events.t[0]), float(events.t[-1])
    for t, (p, y, x) in rows(events):
        tau = (bins - 1) * (t - first) / (last - first)
        for i in range(bins):
            grid[i, y, x] += (2 * p - 1) * max(0.0, 1 - abs(i - tau))
    found = voxel_grid(events, bins, dtype=torch.float64)
    torch.testing.assert_close(found, grid)
    on = int(events.address[:, 0].sum())
    assert found.sum().item() == pytest.approx(on - (len(events) - on))


def test_voxels_between_given_times():
    events = stream()
    inside = voxel_grid(events.between(5.0, 20.0), 4, start=5.0, stop=20.0, dtype=torch.float64)
    torch.testing.assert_close(voxel_grid(events, 4, start=5.0, stop=20.0, dtype=torch.float64), inside)
    assert not voxel_grid(EventStream([], [], (2, 3, 3)), 4).any()
    at_once = voxel_grid(EventStream([1.0, 1.0], [[1, 0], [1, 1]], (2, 2)), 3)
    assert at_once.tolist() == [[1.0, 1.0], [0.0, 0.0], [0.0, 0.0]]


@given(st.integers(0, 1000), st.floats(0.5, 50))
@settings(max_examples=20, deadline=None)
def test_surfaces_forget_the_latest_event(seed, tau):
    events = stream(seed)
    times = [0.0, 3.0, 3.0, 11.5, 40.0]
    found = time_surface(events, times, tau, dtype=torch.float64)
    for n, now in enumerate(times):
        latest = {}
        for t, address in rows(events):
            if t <= now:
                latest[tuple(address)] = t
        for place in np.ndindex(2, 4, 5):
            expected = math.exp((latest[place] - now) / tau) if place in latest else 0.0
            assert found[n][place].item() == pytest.approx(expected, abs=1e-12)


@given(st.integers(0, 1000), st.integers(1, 9))
@example(774, 1)  # an event a rounding before the end of a window
@settings(max_examples=20, deadline=None)
def test_frames_hold_every_event_once(seed, count):
    events = stream(seed)
    by_count = frames(events, count=count)
    assert by_count.shape == (count, 2, 4, 5)
    assert by_count.sum() == len(events)
    edges = torch.linspace(float(events.t[0]), float(events.t[-1]), count + 1, dtype=torch.float64)
    for i in range(count):
        last = i == count - 1
        expected = sum(edges[i] <= t and (t < edges[i + 1] or last) for t, _ in rows(events))
        assert abs(by_count[i].sum() - expected) <= 0
    equal = frames(events, per_frame=count)
    assert torch.equal(equal.flatten(1).sum(1), torch.full((len(events) // count,), float(count)))
    cut = frames(events, window=4.0)
    assert torch.equal(cut, events.shifted(-float(events.t[0])).to_dense(4.0))


def test_structured_arrays_and_back():
    events = stream()
    array = to_structured(events, unit=1e-6)
    back = from_structured(array, (2, 4, 5), unit=1e-6)
    torch.testing.assert_close(back.t, events.t, atol=1e-6, rtol=0)
    assert torch.equal(back.address, events.address)
    assert torch.equal(voxel_grid(array, 3, shape=(2, 4, 5)), voxel_grid(from_structured(array, (2, 4, 5)), 3))
    audio = np.array([(700, 5, 1), (3, 1, 1)], dtype=[("t", int), ("x", int), ("p", int)])
    assert from_structured(audio).shape == (6,)
    assert from_structured(audio, (700,)).t.tolist() == pytest.approx([0.003, 0.7])
    assert to_structured(from_structured(audio, (700,)))["x"].tolist() == [1, 5]
    with pytest.raises(DtypeError, match="fields"):
        from_structured(np.zeros(3))
    with pytest.raises(ShapeError, match="not there"):
        from_structured(audio, (2, 34, 34))


def test_tonic_agrees():
    transforms = pytest.importorskip("tonic.transforms")
    events = stream(count=200)
    array = to_structured(events)
    theirs = transforms.ToFrame(sensor_size=(5, 4, 2), event_count=20)(array)
    ours = frames(array, per_frame=20, shape=(2, 4, 5))
    assert np.array_equal(theirs[: len(ours)], ours.numpy())


def test_bad_requests_are_refused():
    events = stream()
    for keywords in ({}, {"count": 2, "window": 1.0}, {"count": 0}, {"window": -1.0}):
        with pytest.raises(RangeError, match="one way"):
            frames(events, **keywords)
    with pytest.raises(ShapeError, match="two polarities"):
        voxel_grid(stream(shape=(3, 4, 5)), 3)
    with pytest.raises(RangeError, match="bin"):
        voxel_grid(events, 0)
    with pytest.raises(RangeError, match="backwards"):
        voxel_grid(events, 3, start=2.0, stop=1.0)
    with pytest.raises(RangeError, match="tau"):
        time_surface(events, [1.0], 0.0)
    with pytest.raises(RangeError, match="ascend"):
        time_surface(events, [2.0, 1.0], 1.0)
    with pytest.raises(DtypeError, match="EventStream"):
        frames([1, 2], count=2)
