"""Attacks: closed form on a linear model, inside the box, worse than where they began, a model left alone."""

import pytest
import torch
from torch import nn

from plexus.errors import DtypeError, RangeError
from plexus.probe import robustness


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def margin(output, y):
    return -(output * y)


def test_on_a_linear_model_both_attacks_find_the_worst_corner_of_the_box():
    weight = torch.tensor([1.0, -2.0, 0.5])
    x, y = torch.full((4, 3), 0.5), torch.tensor([1.0, -1.0, 1.0, -1.0])
    worst = x - 0.2 * (weight.sign() * y[:, None])
    options = {"loss": margin}
    torch.testing.assert_close(robustness.fgsm(lambda v: v @ weight, x, y, 0.2, **options), worst)
    found = robustness.pgd(lambda v: v @ weight, x, y, 0.2, steps=9, step_size=0.05, generator=generator(), **options)
    torch.testing.assert_close(found, worst)


def test_attacks_stay_inside_box_and_limits_and_leave_the_model_alone():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 3))
    x, y = torch.rand(20, 6, generator=generator()), torch.arange(20) % 3
    model.eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    width = torch.full((20, 1), 0.15)
    width[:5] = 0.0
    weak = robustness.fgsm(model, x, y, width)
    strong = robustness.pgd(model, x, y, width, steps=20, step_size=0.02, generator=generator())
    for found in (weak, strong):
        assert bool(((found - x).abs() <= width + 1e-6).all())
        assert 0 <= float(found.min()) <= float(found.max()) <= 1
        assert torch.equal(found[:5], x[:5])
    loss = [float(nn.functional.cross_entropy(model(v), y)) for v in (x, weak, strong)]
    assert loss[0] < loss[1]
    assert loss[0] < loss[2]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    again = robustness.pgd(model, x, y, width, steps=20, step_size=0.02, generator=generator())
    assert torch.equal(again, strong)


def test_bad_input_is_refused():
    x, y = torch.rand(2, 3), torch.zeros(2, dtype=torch.int64)
    model = nn.Linear(3, 2)
    with pytest.raises(RangeError):
        robustness.fgsm(model, x, y, -0.1)
    with pytest.raises(RangeError):
        robustness.fgsm(model, x + 1, y, 0.1)
    with pytest.raises(RangeError):
        robustness.pgd(model, x, y, 0.1, steps=0, step_size=0.1, generator=None)
    with pytest.raises(DtypeError):
        robustness.pgd(model, x, y, 0.1, steps=1, step_size=0.1, generator=3)
