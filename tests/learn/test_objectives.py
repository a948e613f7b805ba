"""Losses and decoders over time: closed forms, limits, gradients."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from plexus.errors import DtypeError, RangeError, ShapeError, UnknownNameError
from plexus.learn import objectives
from plexus.nn import decoding
from plexus.probe.spike_trains import spike_times, van_rossum_distance


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return (torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < 0.3).double()


@given(seed=st.integers(0, 200))
def test_first_spike_is_the_first(seed: int) -> None:
    z = draw(7, 2, 3, seed=seed)
    found = decoding.first_spike(z, dt=0.5)
    for b in range(2):
        for u in range(3):
            at = z[:, b, u].nonzero().flatten().tolist()
            assert float(found[b, u]) == 0.5 * (at[0] if at else 7)


def test_the_first_spike_can_be_moved_by_its_gradient() -> None:
    z = torch.zeros(5, 1, 1, dtype=torch.float64)
    z[3] = 1.0
    z.requires_grad_()
    decoding.first_spike(z).sum().backward()
    # a spike added before the first would bring it there, later ones change nothing
    assert z.grad.flatten().tolist() == [-3.0, -2.0, -1.0, -2.0, 0.0]
    assert torch.autograd.gradcheck(decoding.first_spike, torch.rand(4, 2, 2, dtype=torch.float64, requires_grad=True))


def test_decoders_agree_with_their_sums() -> None:
    z = draw(6, 2, 3)
    assert torch.equal(decoding.count(z), z.sum(0))
    torch.testing.assert_close(decoding.rate(z, dt=2.0), z.sum(0) / 0.012)
    assert torch.equal(decoding.peak(z), z.max(0).values)
    assert torch.equal(decoding.last(z), z[5])
    torch.testing.assert_close(decoding.summed_softmax(z).sum(1), torch.full((2,), 6.0, dtype=torch.float64))


@pytest.mark.parametrize(
    "loss",
    [
        objectives.cross_entropy_count,
        objectives.cross_entropy_latency,
        objectives.cross_entropy_membrane,
        lambda x, y: objectives.cross_entropy_membrane(x, y, of="mean"),
        lambda x, y: objectives.cross_entropy_membrane(x, y, of="last"),
        objectives.cross_entropy_over_time,
        lambda x, y: objectives.spike_count_loss(x, y, right=1.0, wrong=0.0),
    ],
)
def test_losses_prefer_the_right_class_and_have_right_gradients(loss) -> None:
    y = torch.tensor([0, 2])
    x = torch.zeros(5, 2, 3, dtype=torch.float64)
    x[1:, 0, 0] = x[1:, 1, 2] = 1.0
    assert float(loss(x, y)) < float(loss(x, torch.tensor([1, 1])))
    smooth = (0.1 + 0.8 * torch.rand(5, 2, 3, dtype=torch.float64)).requires_grad_()
    assert torch.autograd.gradcheck(lambda value: loss(value, y), smooth)


def test_van_rossum_loss_is_half_the_squared_distance_for_fine_steps() -> None:
    dt, tau = 0.05, 8.0
    z, target = torch.zeros(4000, 2, 1, dtype=torch.float64), torch.zeros(4000, 2, 1, dtype=torch.float64)
    for grid, at in ((z, (100, 400, 900)), (target, (130, 880))):
        grid[list(at), 0] = 1.0
        grid[50, 1] = 1.0
    found = float(objectives.van_rossum_loss(z, target, tau=tau, dt=dt)) * 2  # over two samples, the second equal
    (a, _), (b, _) = spike_times(z, dt), spike_times(target, dt)
    assert found == pytest.approx(float(van_rossum_distance([a], [b], tau=tau)) ** 2 / 2, rel=0.01)
    x = torch.rand(6, 1, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda v: objectives.van_rossum_loss(v, draw(6, 1, 2)), x)


def test_rate_bounds_push_only_what_is_outside() -> None:
    z = torch.zeros(10, 2, 3)
    z[:1, :, 1] = 1.0  # 0.1
    z[:6, :, 2] = 1.0  # 0.6
    z.requires_grad_()
    penalty = objectives.firing_rate_bounds(z, 0.05, 0.3, strength=(2.0, 1.0))
    assert float(penalty) == pytest.approx((2 * 0.05**2 + 0.3**2) / 3)
    penalty.backward()
    signs = z.grad.sum((0, 1)).sign().tolist()
    assert signs == [-1.0, 0.0, 1.0]
    in_hertz = objectives.firing_rate_bounds(z, 25.0, 150.0, dt=2.0, strength=(2.0, 1.0))
    assert float(in_hertz) == pytest.approx(float(penalty) * 500**2, rel=1e-5)


def test_bad_input() -> None:
    x, y = torch.zeros(5, 2, 3), torch.tensor([0, 1])
    with pytest.raises(ShapeError, match="time comes first"):
        objectives.cross_entropy_count(x.transpose(0, 1), y)
    with pytest.raises(DtypeError):
        objectives.cross_entropy_count(x, y.float())
    with pytest.raises(RangeError, match="no class"):
        objectives.cross_entropy_count(x, y + 2)
    with pytest.raises(UnknownNameError):
        objectives.cross_entropy_membrane(x, y, of="median")
    with pytest.raises(RangeError):
        objectives.cross_entropy_latency(x, y, tau=0.0)
    with pytest.raises(RangeError):
        objectives.spike_count_loss(x, y, right=1.5)
    with pytest.raises(ShapeError):
        objectives.van_rossum_loss(x, x[:3])
    with pytest.raises(RangeError):
        objectives.firing_rate_bounds(x, 0.5, 0.1)
    with pytest.raises(ShapeError, match="decode"):
        decoding.count(torch.zeros(3, 2))
    with pytest.raises(RangeError):
        decoding.rate(x, dt=math.nan)
