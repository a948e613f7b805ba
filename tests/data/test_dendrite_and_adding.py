"""A simulated neuron with dendrites, and sums of spoken digits."""

import math

import pytest
import torch

from plexus.data import SpokenDigits, dendritic_neuron, digit_adding, digit_raster
from plexus.errors import RangeError, ShapeError


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def test_a_recording_is_that_of_its_generator():
    one, same = (dendritic_neuron(300, 3, generator=seeded(4)) for _ in range(2))
    assert torch.equal(one.x, same.x)
    assert torch.equal(one.voltage, same.voltage)
    assert not torch.equal(one.x, dendritic_neuron(300, 3, generator=seeded(5)).x)
    assert not torch.equal(one.x[:, 0], one.x[:, 1])


def test_rates_and_refractoriness_are_as_stated():
    recording = dendritic_neuron(4000, 12, generator=seeded())
    assert recording.x.float().mean() * 1000 == pytest.approx(5.5, abs=0.4)
    spikes = recording.spikes.float()
    assert 1 < spikes.mean() * 1000 < 20
    for lag in (1, 2, 3):
        assert (spikes[lag:] * spikes[:-lag]).sum() == 0
    assert (recording.voltage[recording.spikes == 1] == 0).all()
    assert recording.voltage.max() > 1


def test_inputs_of_a_branch_share_their_rate_and_no_others_do():
    x = dendritic_neuron(30_000, 8, generator=seeded(1)).x[..., :48].float()
    counts = x.unflatten(0, (-1, 100)).sum(1).flatten(0, 1)
    r = torch.corrcoef(counts.T)
    together = (torch.arange(48)[:, None] % 8 == torch.arange(48) % 8) & ~torch.eye(48, dtype=torch.bool)
    assert r[together].mean() > 0.07
    assert r[~together & ~torch.eye(48, dtype=torch.bool)].mean().abs() < 0.01


def test_spikes_and_potential_follow_the_stated_equations():
    recording = dendritic_neuron(4000, 1, warm=0, generator=seeded(7))
    again = seeded(7)
    for groups in (16, 16, 64):  # the draws before the weights: jumps, rates, input spikes
        torch.rand(4000, 1, groups, generator=again)
    weight = torch.exp(0.5 * torch.randn(64, generator=again) - 0.125).double()
    k = {name: math.exp(-1 / tau) for name, tau in zip("snipva", (5, 30, 10, 80, 15, 200), strict=True)}
    s = n = i = p = torch.zeros(8, dtype=torch.float64)
    v, a, z, hold, potential, spikes = 0.0, 0.0, 0, 0, [], []
    for x in recording.x[:, 0].double():
        excited, inhibited = ((weight * x)[part].view(-1, 8).sum(0) for part in (slice(48), slice(48, 64)))
        s, n, i = k["s"] * s + excited, k["n"] * n + excited, k["i"] * i + inhibited
        p = k["p"] * p + (1 - k["p"]) * torch.sigmoid((n - i - 2) / 0.25)
        a = k["a"] * a + 0.6 * z
        v = k["v"] * v + (1 - k["v"]) * ((0.02 + 1.2 * p) * s + 0.6 * p - 0.1 * i).sum().item()
        if hold:
            hold, v = hold - 1, 0.0
        z = int(v > 1 + a)
        if z:
            v, hold = 0.0, 3
        potential.append(v)
        spikes.append(z)
    assert sum(spikes) >= 3
    assert spikes == recording.spikes[:, 0].tolist()
    torch.testing.assert_close(torch.tensor(potential), recording.voltage[:, 0], atol=1e-5, rtol=1e-5)


def test_bad_neurons_are_refused():
    for options in ({"steps": 0}, {"batch": 0}, {"branches": 0}, {"excitatory": 3}, {"inhibitory": -1}, {"warm": -1}):
        with pytest.raises(RangeError):
            dendritic_neuron(**{"steps": 10, "generator": seeded(), **options})


def spoken():
    tone = torch.sin(2 * math.pi * 1000 * torch.arange(4000) / 8000)
    return SpokenDigits((tone, tone[:1600]), torch.tensor([2, 7]), ("jo", "jo"), torch.tensor([0, 1]))


@pytest.mark.parametrize("step", [10.0, 20.0, 40.0])
def test_rasters_hold_the_same_sound_in_any_step(step):
    raster = digit_raster(spoken(), step=step, duration=600.0)
    assert raster.shape == (2, 600 / step, 40)
    assert set(raster.unique().tolist()) == {0.0, 1.0}
    on = raster.any(2)
    assert on[0, : int(400 / step)].all()
    assert not on[0, int(500 / step) + 1 :].any()
    assert not on[1, int(200 / step) + 1 :].any()
    bands = raster[0, : int(400 / step)].mean(0)
    assert bands.argmax() == raster[1].mean(0).argmax()
    assert bands.min() == 0


def test_sums_are_sums_and_their_terms_stand_one_after_the_other():
    sounds, labels = torch.rand(6, 5, 3), torch.arange(6) * 10
    x, y = digit_adding(sounds, labels, 50, terms=3, generator=seeded())
    assert x.shape == (15, 50, 3)
    for column in range(50):
        terms = [next(i for i in range(6) if torch.equal(x[5 * k : 5 * k + 5, column], sounds[i])) for k in range(3)]
        assert labels[terms].sum() == y[column]
    assert len(y.unique()) > 5


def test_bad_sums_are_refused():
    with pytest.raises(ShapeError):
        digit_adding(torch.rand(3, 2, 2), torch.arange(2), 5, generator=seeded())
    with pytest.raises(RangeError):
        digit_adding(torch.rand(3, 2, 2), torch.arange(3), 0, generator=seeded())
    with pytest.raises(RangeError):
        digit_raster(spoken(), step=0.0)
