"""Encoders against what their equations say."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from plexus.errors import DtypeError, RangeError, ShapeError
from plexus.kernels import lif
from plexus.nn import encoding


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(
    ("encode", "expected"),
    [
        (encoding.rate, lambda x: x),
        (
            lambda x, n, generator: encoding.poisson(x, n, rate=300.0, dt=2.0, generator=generator),
            lambda x: 1 - (-0.6 * x).exp(),
        ),
    ],
    ids=["rate", "poisson"],
)
def test_spike_probabilities(encode, expected):
    x = torch.linspace(0, 1, 11).unsqueeze(0)
    n = 40_000
    spikes = encode(x, n, generator=seeded())
    assert spikes.shape == (n, 1, 11)
    p = expected(x)
    assert ((spikes.mean(0) - p).abs() <= 5 * (p * (1 - p) / n).sqrt() + 1e-9).all()
    # independent from step to step
    middle = spikes[:, 0, 5] - spikes[:, 0, 5].mean()
    assert abs((middle[1:] * middle[:-1]).mean().item()) < 5 * middle.var().item() / math.sqrt(n)


def test_same_generator_same_spikes():
    x = torch.rand(3, 4)
    for encode in (encoding.rate, encoding.poisson):
        assert torch.equal(encode(x, 50, generator=seeded(5)), encode(x, 50, generator=seeded(5)))
    assert not torch.equal(encoding.rate(x, 50, generator=seeded(5)), encoding.rate(x, 50, generator=seeded(6)))


def test_latency_is_the_charging_time():
    x = torch.linspace(0.05, 1, 40, dtype=torch.float64).unsqueeze(0)
    spikes = encoding.latency(x, 4000, tau=20.0, threshold=0.04, dt=0.01)
    assert (spikes.sum(0) <= 1).all()
    at = spikes.argmax(0)[0] * 0.01
    # the potential x (1 - exp(-t / tau)) is at the threshold then
    reached = x[0] * (1 - torch.exp(-at / 20.0))
    fired = spikes.sum(0)[0] == 1
    assert fired.sum() > 30
    torch.testing.assert_close(reached[fired], torch.full_like(reached[fired], 0.04), atol=6e-4, rtol=0)
    assert (at[fired].diff() <= 0).all()


def test_latency_below_threshold_is_silence():
    assert not encoding.latency(torch.tensor([[0.0, 0.01]]), 1000, threshold=0.01).any()


def test_direct_is_a_view_that_the_kernel_takes():
    x = torch.rand(2, 3)
    current = encoding.direct(x, 20)
    assert current.data_ptr() == x.data_ptr()
    assert torch.equal(lif(current, decay=0.8)[0], lif(current.contiguous(), decay=0.8)[0])


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 30), st.integers(0, 999), st.integers(1, 29))
def test_delta_follows_a_slow_signal_and_goes_on_from_its_reference(steps, seed, cut):
    walk = (torch.rand(steps, 2, 3, generator=seeded(seed), dtype=torch.float64) - 0.5).cumsum(0)
    events, reference = encoding.delta(walk, 0.5)
    # a signal that moves by at most the threshold per step is never further than a threshold from the reference
    rebuilt = walk[0] + 0.5 * events.cumsum(0)
    assert ((walk - rebuilt).abs() < 0.5 + 1e-9).all()
    torch.testing.assert_close(rebuilt[-1], reference)
    first, middle = encoding.delta(walk[:cut], 0.5)
    if cut < steps:
        second, end = encoding.delta(walk[cut:], 0.5, middle)
        assert torch.equal(torch.cat([first, second]), events)
        assert torch.equal(end, reference)


@pytest.mark.parametrize(
    ("error", "call"),
    [
        (RangeError, lambda: encoding.rate(torch.tensor([[1.2]]), 3)),
        (RangeError, lambda: encoding.rate(torch.tensor([[-0.1]]), 3)),
        (RangeError, lambda: encoding.poisson(torch.tensor([[math.nan]]), 3)),
        (RangeError, lambda: encoding.poisson(torch.tensor([[0.5]]), 3, rate=0.0)),
        (RangeError, lambda: encoding.rate(torch.tensor([[0.5]]), -1)),
        (DtypeError, lambda: encoding.rate(torch.tensor([[1]]), 3)),
        (DtypeError, lambda: encoding.direct([[1.0]], 3)),
        (RangeError, lambda: encoding.latency(torch.tensor([[0.5]]), 3, tau=-1.0)),
        (RangeError, lambda: encoding.delta(torch.rand(3, 1, 1), 0.0)),
        (ShapeError, lambda: encoding.delta(torch.rand(3, 1, 1), 0.1, torch.zeros(2, 1))),
        (ShapeError, lambda: encoding.delta(torch.rand(0, 1, 1), 0.1)),
    ],
)
def test_bad_input(error, call):
    with pytest.raises(error):
        call()
