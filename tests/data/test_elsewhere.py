"""Data made of tensors from another device: events and sets lie in main memory, pictures and sounds where they came."""

import pytest
import torch
from torch.testing import assert_close

from plexus import data


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("name", ["init", "sorted", "from_dense"])
def test_streams_lie_in_main_memory(name, elsewhere):
    t, address = torch.tensor([0.0, 1.5, 1.7, 3.0]), torch.tensor([[1, 0], [0, 2], [0, 2], [1, 1]])
    if name == "from_dense":
        counts = (torch.rand(5, 2, 3, generator=seeded()) < 0.4).float()
        here, there = data.EventStream.from_dense(counts), data.EventStream.from_dense(counts.to(elsewhere))
    else:
        make = data.EventStream if name == "init" else data.EventStream.sorted
        here, there = make(t, address, (2, 3)), make(t.to(elsewhere), address.to(elsewhere), (2, 3))
    assert there.t.device.type == there.address.device.type == "cpu"
    assert_close(there.to_dense(), here.to_dense())
    assert_close(data.frames(there, count=2), data.frames(here, count=2))
    times = torch.tensor([1.0, 3.0])
    assert_close(data.time_surface(there, times.to(elsewhere), 5.0), data.time_surface(here, times, 5.0))
    assert_close(data.EventStream(t.to(elsewhere), address, (2, 3)).t, t.double())


def test_movies_and_their_events(elsewhere):
    image = torch.rand(16, 16, generator=seeded())
    gaze = data.random_gaze(6, 0.3 * data.velocities(4), generator=seeded())
    movie = data.saccade_movie(image, gaze.velocity, (6, 6), generator=seeded(1))
    for velocity in (gaze.velocity, gaze.velocity.to(elsewhere)):
        found = data.saccade_movie(image.to(elsewhere), velocity, (6, 6), generator=seeded(1))
        assert found.device.type == elsewhere.type
        assert_close(found.cpu(), movie, rtol=1e-4, atol=1e-5)
    steps = torch.randint(-2, 3, (6, 5, 5), generator=seeded()).cumsum(0).float()
    events = data.event_frames(steps.to(elsewhere), 0.7, spread=0.1, generator=seeded(2))
    assert events.device.type == elsewhere.type
    assert_close(events.cpu(), data.event_frames(steps, 0.7, spread=0.1, generator=seeded(2)))
    assert data.simulate_events(steps.to(elsewhere)).t.device.type == "cpu"
    white = data.whiten(image.to(elsewhere))
    assert_close(white.cpu(), data.whiten(image), rtol=1e-3, atol=1e-4)


def test_sounds(elsewhere):
    audio = torch.randn(2000, generator=seeded())
    found = data.log_mel(audio.to(elsewhere), bands=10)
    assert found.device.type == elsewhere.type
    assert_close(found.cpu(), data.log_mel(audio, bands=10), rtol=1e-3, atol=1e-3)
    sounds = data.SpokenDigits((audio, audio), torch.tensor([3, 4]), ("jo", "mo"), torch.tensor([0, 7]))
    assert sounds[torch.tensor([False, True]).to(elsewhere)].speakers == ("mo",)
    assert len(sounds[torch.tensor([1, 0]).to(elsewhere)]) == 2
    raster, labels = torch.rand(3, 2, 4, generator=seeded()), torch.tensor([3, 4, 5])
    x, y = data.digit_adding(raster.to(elsewhere), labels.to(elsewhere), 5, generator=seeded())
    expected = data.digit_adding(raster, labels, 5, generator=seeded())
    assert_close((x.cpu(), y.cpu()), expected)


def test_labelled_samples(elsewhere):
    x, y = torch.rand(12, 2, generator=seeded()), torch.arange(12) % 3
    here, there = data.Labelled(x, y), data.Labelled(x.to(elsewhere), y.to(elsewhere))
    for part, expected in zip(there.split(0.5, 0), here.split(0.5, 0), strict=True):
        assert part.x.device.type == elsewhere.type
        assert_close(part.x.cpu(), expected.x)
    batches = (part.batches(5, generator=seeded()) for part in (there, here))
    for (found, _), (expected, _) in zip(*batches, strict=True):
        assert_close(found.cpu(), expected)
    assert there.classes == 3
    symbols = torch.arange(9).to(elsewhere)
    assert data.windows(symbols, 3)[0].device.type == elsewhere.type
    assert data.decode(symbols) == data.decode(symbols.cpu())


def test_sets_of_streams(elsewhere):
    label, group = torch.tensor([0, 1, 0, 1]), torch.tensor([0, 0, 1, 1])
    events = data.EventSet(
        label.to(elsewhere), lambda n: data.EventStream([1.0 * n], [n % 2], (2,)), (2,), group.to(elsewhere)
    )
    assert events.label.device.type == "cpu"
    assert [one for _, one in events.subset(torch.tensor([1, 3]).to(elsewhere))] == [1, 1]
    assert [len(part) for part in events.held_out(0.5)] == [2, 2]
    assert_close(events.dense(1.0, 4, torch.tensor([2]).to(elsewhere))[1], torch.tensor([0]))
