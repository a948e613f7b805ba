"""Baselines of gain control against what they are defined to do."""

import pytest
import torch

from plexus.errors import RangeError, ShapeError
from plexus.learn.homeostasis import GainControl, divisive_gain, uniform_gain


def test_full_divisive_normalisation_restores_the_mean_drive():
    usual, now = torch.rand(5) + 0.1, torch.rand(5) + 0.1
    torch.testing.assert_close(divisive_gain(usual, now, floor=0.0) * now, usual)
    assert torch.equal(divisive_gain(usual, now, power=0.0), torch.ones(5))


def test_no_other_common_factor_has_a_lower_loss():
    drive, gain = torch.rand(7, 4, dtype=torch.float64), torch.rand(4, dtype=torch.float64) + 0.5
    weight = 0.2 * torch.rand(4, 4, dtype=torch.float64)
    control = GainControl(4).double()
    best = uniform_gain(control, drive, gain, weight)
    assert torch.allclose(best / gain, (best / gain)[0].expand(4))
    lowest = control.loss(drive, gain=best, weight=weight)
    for factor in (0.9, 0.99, 1.01, 1.1):
        assert control.loss(drive, gain=factor * best, weight=weight) > lowest


def test_the_free_optimum_is_at_least_as_good_as_the_uniform_one():
    drive, weight = torch.rand(7, 4, dtype=torch.float64), 0.2 * torch.rand(4, 4, dtype=torch.float64)
    control = GainControl(4).double()
    uniform = uniform_gain(control, drive, torch.ones(4, dtype=torch.float64), weight)
    free = control.solve(drive, weight)
    assert control.loss(drive, gain=free, weight=weight) <= control.loss(drive, gain=uniform, weight=weight)


@pytest.mark.parametrize(
    ("error", "call"),
    [
        (ShapeError, lambda: divisive_gain(torch.ones(2), torch.ones(3))),
        (RangeError, lambda: divisive_gain(-torch.ones(2), torch.ones(2))),
    ],
)
def test_bad_input(error, call):
    with pytest.raises(error):
        call()
