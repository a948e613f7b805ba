"""Event streams and the simulated event camera against what their equations say."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from plexus.data import (
    EventStream,
    event_frames,
    natural_image,
    oriented_noise,
    random_gaze,
    saccade_movie,
    simulate_events,
    velocities,
    whiten,
)
from plexus.errors import DtypeError, MissingExtraError, RangeError, ShapeError, UnknownNameError


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


# ---------------------------------------------------------------- streams


@given(st.integers(0, 10_000), st.sampled_from([(4,), (2, 3, 5)]), st.sampled_from([0.1, 1.0, 7.5]))
@settings(max_examples=30, deadline=None)
def test_dense_and_back(seed, shape, dt):
    counts = torch.randint(0, 3, (9, *shape), generator=seeded(seed))
    stream = EventStream.from_dense(counts, dt)
    assert len(stream) == counts.sum()
    assert torch.equal(stream.to_dense(dt, steps=9), counts.float())
    assert torch.equal(stream.to_dense(dt, steps=9, binary=True), (counts > 0).float())


@given(st.integers(0, 10_000))
@settings(max_examples=20, deadline=None)
def test_bins_count_the_events_whose_time_lies_in_them(seed):
    draw = seeded(seed)
    t = torch.rand(50, generator=draw, dtype=torch.float64) * 20
    channel = torch.randint(0, 3, (50,), generator=draw)
    dense = EventStream.sorted(t, channel, (3,)).to_dense(2.5, steps=8)
    for i in range(8):
        for a in range(3):
            expected = sum(2.5 * i <= time < 2.5 * (i + 1) and c == a for time, c in zip(t, channel, strict=True))
            assert dense[i, a] == expected


def test_parts_of_a_stream():
    stream = EventStream([0.0, 1.0, 1.0, 2.0], [0, 1, 2, 0])
    assert stream.shape == (3,)
    assert stream.between(1.0, 2.0).address.flatten().tolist() == [1, 2]
    assert stream.shifted(5.0).t.tolist() == [5.0, 6.0, 6.0, 7.0]
    assert stream.flip().address.flatten().tolist() == [2, 1, 0, 2]
    assert stream.to_dense(1.0, steps=1).tolist() == [[1.0, 0.0, 0.0]]  # later ones are left out
    empty = EventStream([], [], shape=(2, 4))
    assert len(empty) == 0
    assert empty.duration == 0.0
    assert empty.to_dense(1.0).shape == (0, 2, 4)


@pytest.mark.parametrize(
    ("t", "address", "shape", "error", "word"),
    [
        ([1.0, 0.5], [0, 0], (1,), RangeError, "not sorted"),
        ([0.0, math.nan], [0, 0], (1,), RangeError, "NaN"),
        ([0.0], [0, 0], (1,), ShapeError, "do not match"),
        ([0.0], [2], (2,), RangeError, "outside"),
        ([0.0], [-1], (2,), RangeError, "outside"),
        ([0.0], [[0, 0]], (2,), ShapeError, "does not fit"),
        ([0.0], [0.5], (2,), DtypeError, "integers"),
    ],
)
def test_bad_streams_are_refused(t, address, shape, error, word):
    with pytest.raises(error, match=word):
        EventStream(t, address, shape)


def test_bad_dense_forms_are_refused():
    with pytest.raises(RangeError, match="before time 0"):
        EventStream([-1.0], [0]).to_dense(1.0)
    with pytest.raises(RangeError, match="counts"):
        EventStream.from_dense(torch.tensor([[0.5]]))
    with pytest.raises(RangeError, match="dt"):
        EventStream([0.0], [0]).to_dense(0.0)


# ---------------------------------------------------------------- the camera


@given(st.integers(0, 10_000), st.floats(0.2, 2.0))
@settings(max_examples=25, deadline=None)
def test_events_account_for_the_change_of_brightness(seed, threshold):
    steps = 0.2 * torch.randn(60, 3, 4, generator=seeded(seed), dtype=torch.float64)
    movie = steps.clamp(-threshold, threshold).cumsum(0)  # a pixel can have one event per step: no faster change
    off, on = event_frames(movie, threshold).sum(0).unbind(-3)
    left = movie[-1] - movie[0] - threshold * (on - off)
    assert bool((left.abs() <= threshold + 1e-12).all())


def test_brighter_is_on_and_negation_swaps_polarities():
    movie = torch.randn(30, 2, 5, 5, generator=seeded())
    events = event_frames(movie, 0.8)
    assert torch.equal(event_frames(-movie, 0.8), events.flip(2))
    up = event_frames(torch.arange(4.0).view(4, 1, 1).expand(4, 2, 2), 0.5)
    assert up[1:, 1].all()
    assert not up[:, 0].any()
    assert not events[0].any()


def test_thresholds_of_pixels_differ_when_asked():
    movie = torch.linspace(0, 10, 40).view(40, 1, 1).expand(40, 8, 8)
    assert event_frames(movie, 1.0).sum(0)[1].unique().numel() == 1
    counts = event_frames(movie, 1.0, spread=0.2, generator=seeded()).sum(0)[1]
    assert counts.unique().numel() > 3
    with pytest.raises(RangeError, match="drawn"):
        event_frames(movie, 1.0, spread=0.2)


def test_stream_and_frames_of_a_movie_agree():
    movie = torch.randn(12, 6, 7, generator=seeded())
    stream = simulate_events(movie, 0.7, dt=2.0)
    assert torch.equal(stream.to_dense(2.0, steps=12), event_frames(movie, 0.7))
    with pytest.raises(ShapeError, match="one movie"):
        simulate_events(movie.unsqueeze(1))
    with pytest.raises(RangeError, match="NaN"):
        event_frames(movie * torch.nan)


# ---------------------------------------------------------------- movies


def wave(height, width, ky, kx, y, x):
    """A plane wave of whole periods, read at any place."""
    return torch.cos(2 * math.pi * (ky * y / height + kx * x / width) + 0.3)


@pytest.mark.parametrize("shape", [(16, 15), (15, 20)])
def test_movies_read_between_pixels_exactly(shape):
    height, width = shape
    y, x = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in shape), indexing="ij")
    image = wave(height, width, 3, -2, y, x)
    velocity = torch.tensor([[0.3, -0.45], [0.7, 0.1], [-0.25, 0.6]], dtype=torch.float64)
    movie = saccade_movie(image, velocity, (5, 6), start=(3.2, 4.1))
    corner = torch.tensor([3.2, 4.1], dtype=torch.float64) + velocity.cumsum(0)
    for frame, (top, left) in zip(movie, corner.tolist(), strict=True):
        expected = wave(height, width, 3, -2, top + y[:5, :6], left + x[:5, :6])
        torch.testing.assert_close(frame, expected, atol=1e-9, rtol=0)


def test_whole_steps_are_crops():
    image = torch.randn(30, 40, generator=seeded(), dtype=torch.float64)
    movie = saccade_movie(image, torch.tensor([[0.0, 0.0], [1.0, 2.0]]), (8, 9), start=(4.0, 5.0))
    torch.testing.assert_close(movie[0], image[4:12, 5:14])
    torch.testing.assert_close(movie[1], image[5:13, 7:16])


def test_walks_stay_inside_the_image():
    image = torch.randn(60, 60, generator=seeded())
    gaze = random_gaze(20, velocities(8), generator=seeded())
    assert saccade_movie(image, gaze.velocity, (10, 10), generator=seeded(1)).shape == (20, 10, 10)
    with pytest.raises(RangeError, match="leaves the image"):
        saccade_movie(image, torch.ones(20, 2), (10, 10), start=(40.0, 0.0))
    with pytest.raises(RangeError, match="longer than the image"):
        saccade_movie(image, torch.full((20, 2), 3.0), (10, 10), generator=seeded())
    with pytest.raises(RangeError, match="start"):
        saccade_movie(image, gaze.velocity, (10, 10))


def test_gaze_follows_its_choices():
    choices = velocities(8, (0.5, 1.0))
    assert choices.shape == (16, 2)
    torch.testing.assert_close(choices.norm(dim=1), torch.tensor([0.5] * 8 + [1.0] * 8, dtype=torch.float64))
    torch.testing.assert_close(choices[:4], -choices[4:8])  # the opposite is half a turn away
    gaze = random_gaze(20_000, choices, mean_segment=24.0, generator=seeded())
    assert torch.equal(gaze.velocity, choices[gaze.label])
    starts = (gaze.age == 0).nonzero().flatten()
    lengths = starts.diff().double()
    assert abs(float(lengths.mean()) - 24) < 5 * math.sqrt(24 / len(lengths))
    assert abs(float(lengths.var()) / 24 - 1) < 0.25  # Poisson: as much variance as mean
    assert gaze.label.bincount().min() > 500


def test_photographs_are_white_after_whitening():
    image = natural_image("flower")
    assert image.shape == (427, 640)
    assert float(image.min()) >= 0
    assert float(image.max()) <= 1

    def power(x, low, high):
        f = (torch.fft.fftfreq(427).view(-1, 1) ** 2 + torch.fft.rfftfreq(640) ** 2).sqrt()
        return float(torch.fft.rfft2(x).abs().square()[(f > low) & (f <= high)].mean())

    before = power(image, 0.02, 0.05) / power(image, 0.15, 0.2)
    after = power(whiten(image), 0.02, 0.05) / power(whiten(image), 0.15, 0.2)
    assert before > 20 * after
    with pytest.raises(UnknownNameError):
        natural_image("chna")


def test_noise_stands_in_for_photographs_with_a_warning(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "PIL", None)
    with pytest.raises(MissingExtraError, match="PIL"):
        natural_image("china")
    with pytest.warns(UserWarning, match="1/f noise"):
        noise = natural_image("china", generator=seeded())
    assert noise.shape == (427, 640)
    assert not torch.equal(noise, whiten(noise))


def test_textures_have_the_orientation_asked_for():
    for angle in (0.0, 0.7, 2.0):
        texture = oriented_noise(96, 96, angle, spread=0.08, generator=seeded())
        gy, gx = torch.gradient(texture)
        tensor = torch.tensor([[(gx * gx).mean(), (gx * gy).mean()], [(gx * gy).mean(), (gy * gy).mean()]])
        main = torch.linalg.eigh(tensor).eigenvectors[:, -1]
        found = math.atan2(float(main[1]), float(main[0]))
        assert abs(math.remainder(found - angle, math.pi)) < 0.1
