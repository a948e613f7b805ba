"""The cochlea against the gammatone's closed form, and against what a cochlea does."""

import itertools
import math
import os

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from plexus.data import spoken_digits
from plexus.errors import DtypeError, RangeError, ShapeError
from plexus.nn import LIF, Sequential, Stateful
from plexus.nn.encoding import Cochlea, erb_centres

RATE = 16_000.0


def tone(frequency, level=0.3, duration=0.4, rate=8000.0):
    t = torch.arange(round(duration * rate), dtype=torch.float64) / rate
    return level * torch.sin(2 * math.pi * frequency * t).unsqueeze(1)


def noise(samples, batch, seed=0):
    return 0.1 * torch.randn(samples, batch, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_impulse_response_is_a_gammatone():
    cochlea = Cochlea(6, sample_rate=RATE, low=300.0, high=3000.0)
    click = torch.zeros(640, 1, dtype=torch.float64)
    click[0] = 1.0
    memory = torch.view_as_complex(cochlea.initial_state(1).filters).numpy()
    found = torch.from_numpy(cochlea._gammatone(click.numpy(), memory)[0])[:, 0]
    n = torch.arange(640, dtype=torch.float64)
    for c, f in enumerate(cochlea.centres.tolist()):
        b = 1.019 * 24.7 * (0.00437 * f + 1)
        # four equal poles in a row: the envelope's t³ is (n+1)(n+2)(n+3)/6 of whole samples
        envelope = (n + 1) * (n + 2) * (n + 3) / 6 * torch.exp(-2 * math.pi * b * n / RATE)
        gain = 2 * (1 - math.exp(-2 * math.pi * b / RATE)) ** 4
        torch.testing.assert_close(found[:, c], gain * envelope * torch.cos(2 * math.pi * f * n / RATE))


@pytest.mark.parametrize("channel", [3, 10, 17])
def test_a_tone_excites_the_channel_of_its_frequency(channel):
    cochlea = Cochlea(20)
    spikes, _ = cochlea(tone(cochlea.centres[channel].item()))
    rate = spikes.mean((0, 1))
    assert rate.argmax() == channel
    assert rate[channel] > 0.03
    assert rate[channel] > 1.5 * rate[max(channel - 4, 0)]
    assert rate[channel] > 1.5 * rate[min(channel + 4, 19)]


def test_a_filter_passes_its_centre_unchanged():
    cochlea = Cochlea(8, low=200.0, high=3000.0)
    memory = torch.view_as_complex(cochlea.initial_state(1).filters).numpy()
    for c, f in enumerate(cochlea.centres.tolist()):
        moved = cochlea._gammatone(tone(f, level=0.5).numpy(), memory)[0][1600:, 0, c]
        assert abs(moved).max() == pytest.approx(0.5, rel=0.05)


def test_louder_is_faster_but_less_than_proportionally():
    cochlea = Cochlea(20)
    rates = [cochlea(tone(1000.0, level))[0].mean() for level in (0.0, 0.01, 0.1, 1.0)]
    assert rates[0] == 0
    assert rates[0] <= rates[1] < rates[2] < rates[3]
    drive = [cochlea.drive(tone(1000.0, level))[0].mean() for level in (0.1, 1.0)]
    assert drive[1] / drive[0] == pytest.approx(10**0.3)


@given(st.lists(st.integers(0, 12), min_size=1, max_size=5), st.sampled_from([torch.float32, torch.float64]))
@settings(max_examples=15, deadline=None)
def test_a_recording_in_pieces_is_the_recording(cuts, dtype):
    cochlea = Cochlea(7)
    edges = [0, *sorted(80 * cut for cut in cuts), 960]
    x = (5 * noise(960, 2)).to(dtype)
    whole, last = cochlea(x)
    assert whole.any()
    state, pieces = cochlea.initial_state(2, dtype=dtype), []
    for start, stop in itertools.pairwise(edges):
        spikes, state = cochlea(x[start:stop], state)
        pieces.append(spikes)
    assert torch.equal(torch.cat(pieces), whole)
    for ours, theirs in zip(state, last, strict=True):
        assert torch.equal(ours, theirs)


def test_samples_of_a_batch_do_not_meet():
    cochlea = Cochlea(5)
    x = 5 * noise(400, 3)
    together = cochlea(x)[0]
    for b in range(3):
        assert torch.equal(cochlea(x[:, b : b + 1])[0], together[:, b : b + 1])


def test_centres_are_even_on_the_scale_of_bandwidths():
    centres = erb_centres(30, 100.0, 6000.0)
    scale = 21.4 * torch.log10(0.00437 * centres + 1)
    torch.testing.assert_close(scale.diff(), scale.diff().mean().expand(29))
    assert centres[[0, -1]].tolist() == pytest.approx([100.0, 6000.0])


def test_it_leads_a_stack():
    net = Sequential(Cochlea(12), torch.nn.Linear(12, 4), LIF(4))
    assert isinstance(net[0], Stateful)
    out, _ = net(noise(400, 2).float())
    assert out.shape == (50, 2, 4)
    assert out.dtype == torch.float32


@pytest.mark.skipif("PLEXUS_DATA" not in os.environ, reason="needs the spoken digits")
def test_spoken_digits_become_spikes_that_tell_them_apart():
    """Rates of channels over thirds of a recording, nearest class mean: three times one in ten."""
    digits = spoken_digits()
    cochlea = Cochlea(30)
    chosen = torch.randperm(len(digits.audio), generator=torch.Generator().manual_seed(0))[:150].tolist()
    features = []
    for n in chosen:
        audio = digits.audio[n]
        spikes, _ = cochlea(audio[: len(audio) // 8 * 8].unsqueeze(1))
        features.append(torch.cat([part.mean((0, 1)) for part in spikes.tensor_split(3)]))
    x, y = torch.stack(features), digits.labels[chosen]
    assert 0.005 < float(x.mean()) < 0.15
    x = x / x.norm(dim=1, keepdim=True)  # some speak louder
    train, test = slice(0, 100), slice(100, 150)
    means = torch.stack([x[train][y[train] == k].mean(0) for k in range(10)])
    assert float((torch.cdist(x[test], means).argmin(1) == y[test]).double().mean()) > 0.3


@pytest.mark.parametrize(
    "keywords",
    [
        {"channels": 0},
        {"channels": 4, "low": -1.0},
        {"channels": 4, "high": 5000.0},
        {"channels": 4, "low": 900.0, "high": 800.0},
        {"channels": 4, "dt": 0.3},
        {"channels": 4, "compression": 0.0},
        {"channels": 4, "refractory": -1.0},
    ],
)
def test_bad_settings_are_refused(keywords):
    with pytest.raises(RangeError):
        Cochlea(**keywords)


def test_bad_audio_is_refused():
    cochlea = Cochlea(4)
    with pytest.raises(ShapeError, match="whole steps"):
        cochlea(torch.zeros(81, 1))
    with pytest.raises(ShapeError, match="unsqueeze"):
        cochlea(torch.zeros(80))
    with pytest.raises(ShapeError, match="state"):
        cochlea(torch.zeros(80, 2), cochlea.initial_state(1))
    with pytest.raises(DtypeError):
        cochlea(torch.zeros(80, 1, dtype=torch.int16))
