"""The orientation ring and the recurrent autoencoder."""

import math

import pytest
import torch

from plexus.data import digits
from plexus.errors import RangeError, ShapeError
from plexus.nn import RecurrentAutoencoder, orientation_ring, spectral_abscissa


def test_ring_weights_are_circulant_with_the_stated_row_sum():
    ring = orientation_ring(12, excitation=0.9, inhibition=0.4)
    for shift in range(12):
        torch.testing.assert_close(ring.weight.roll((shift, shift), (0, 1)), ring.weight)
    torch.testing.assert_close(ring.weight.sum(1), torch.full((12,), 0.5, dtype=torch.float64))
    # a circulant matrix's row sum is an eigenvalue, here the largest
    assert spectral_abscissa(orientation_ring().weight) == pytest.approx(0.8)


def test_ring_drive_peaks_at_the_preference_and_falls_to_the_baseline():
    ring = orientation_ring(10, width=4.0, baseline=0.3)
    drive = ring.drive(torch.tensor([ring.preferred[3], ring.preferred[3] + math.pi / 2], dtype=torch.float64))
    assert drive[0, 3] == pytest.approx(1.3)
    assert drive[1, 3] == pytest.approx(0.3 + math.exp(-8.0))


def test_jitter_stays_within_its_share_and_follows_the_generator():
    plain = orientation_ring(20)
    shaken = [orientation_ring(20, jitter=0.1, generator=torch.Generator().manual_seed(s)) for s in (1, 1, 2)]
    assert torch.equal(shaken[0].weight, shaken[1].weight)
    assert not torch.equal(shaken[0].weight, shaken[2].weight)
    assert ((shaken[0].weight - plain.weight).abs() <= 0.1 * plain.weight.abs() + 1e-15).all()
    assert ((shaken[0].width / plain.width - 1).abs() <= 0.1).all()
    assert ((shaken[0].preferred - plain.preferred).abs() <= 0.1 * math.pi / 20).all()


def test_autoencoder_explains_most_of_the_digits_and_trains_all_parts():
    x = digits().x.flatten(1)[:600]
    model = RecurrentAutoencoder(64, 32)
    model.fit(x, steps=60, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        share = (x - model(x)).square().sum() / (x - x.mean(0)).square().sum()
    assert share < 0.25
    assert model.net.weight.abs().max() > 0
    assert model.net.weight.requires_grad


def test_rectified_code_is_homogeneous_in_the_gains():
    x = digits().x.flatten(1)[:50].double()
    model = RecurrentAutoencoder(64, 16).double()
    model.fit(x, steps=5, generator=torch.Generator().manual_seed(0))
    one = torch.ones(16, dtype=torch.float64)
    rates = [model.net.steady_state(model.drive(x), gain=c * one) for c in (1.0, 2.5)]
    torch.testing.assert_close(2.5 * rates[0], rates[1], rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize(
    ("error", "call"),
    [
        (RangeError, lambda: orientation_ring(2)),
        (RangeError, lambda: orientation_ring(5, width=0.0)),
        (RangeError, lambda: orientation_ring(5, jitter=0.1)),
        (RangeError, lambda: RecurrentAutoencoder(4, 3)),
        (RangeError, lambda: RecurrentAutoencoder(4, 10)),
        (ShapeError, lambda: RecurrentAutoencoder(4, 4)(torch.ones(2, 5))),
        (RangeError, lambda: RecurrentAutoencoder(4, 4).fit(torch.ones(9, 4), generator=torch.Generator())),
    ],
)
def test_bad_input(error, call):
    with pytest.raises(error):
        call()
