"""Constraints on weights: projection and parametrization keep the same set, and say what they cannot do."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from plexus.errors import PlexusError, RangeError, ShapeError, UnknownNameError, UnsupportedError
from plexus.nn import (
    DaleSigns,
    NonNegative,
    constrain,
    constrained_parameters,
    parametrize_,
    project_,
    project_after_step,
)

SIGNS = torch.tensor([1.0, -1.0, 1.0])
CONSTRAINTS = [NonNegative(), DaleSigns(SIGNS)]


def weights(seed: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(4, 3, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.mark.parametrize("constraint", CONSTRAINTS)
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_projection_goes_to_the_nearest_allowed_weight(constraint, seed: int) -> None:
    weight = weights(seed)
    projected = constraint.project(weight)
    assert torch.equal(constraint.project(projected), projected)  # what is allowed stays
    allowed = constraint.project(weights(seed + 1))
    assert torch.dist(weight, projected) <= torch.dist(weight, allowed)  # nothing allowed is nearer
    # and for a convex cone, the way there is at a right angle to where it ends
    assert torch.isclose(((weight - projected) * projected).sum(), torch.zeros((), dtype=torch.float64))


@pytest.mark.parametrize("constraint", CONSTRAINTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_parametrization_maps_any_number_into_the_set_and_back(constraint, dtype: torch.dtype) -> None:
    weight = constraint(weights(0, dtype))
    assert torch.equal(constraint.project(weight), weight)
    torch.testing.assert_close(constraint(constraint.right_inverse(weight)), weight)
    small = 1e-5 * constraint(weights(1, dtype))
    torch.testing.assert_close(constraint(constraint.right_inverse(small)), small, rtol=1e-3, atol=2e-6)


def test_dale_signs_work_along_any_dimension() -> None:
    weight = weights(2)
    by_row = DaleSigns(SIGNS, dim=0).project(weight.T)
    assert torch.equal(by_row, DaleSigns(SIGNS).project(weight).T)


def test_projected_descent_finds_the_constrained_minimum() -> None:
    """Of ½|w - a|² under w >= 0 the minimum is max(a, 0), and a coordinate at zero can come back."""
    target = torch.tensor([[1.0, -2.0, 0.5]], dtype=torch.float64)
    layer = constrain(nn.Linear(3, 1, bias=False, dtype=torch.float64), "weight", NonNegative())
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.2)
    with project_after_step(optimizer, layer):
        for goal in (-target, target):
            for _ in range(200):
                optimizer.zero_grad()
                (0.5 * (layer.weight - goal).square().sum()).backward()
                optimizer.step()
                assert bool((layer.weight >= 0).all())
        torch.testing.assert_close(layer.weight.detach(), target.clamp(min=0))
    optimizer.zero_grad()
    (layer.weight.sum() * 100).backward()
    optimizer.step()
    assert bool((layer.weight < 0).any())  # removed, the hook projects no more


def test_a_parametrized_weight_keeps_its_values_and_its_signs_under_any_optimiser() -> None:
    layer = constrain(nn.Linear(3, 4), "weight", DaleSigns(SIGNS))
    project_(layer)
    before = layer.weight.detach().clone()
    parametrize_(layer)
    torch.testing.assert_close(layer.weight.detach(), before, rtol=1e-5, atol=2e-6)
    assert not list(constrained_parameters(layer))
    optimizer = torch.optim.Adam(layer.parameters(), lr=1.0)
    for _ in range(5):
        optimizer.zero_grad()
        (layer.weight * SIGNS).sum().backward()
        optimizer.step()
        assert bool((layer.weight * SIGNS >= 0).all())


def test_declarations_are_copied_with_a_module_and_name_a_shared_parameter_once() -> None:
    layer = constrain(nn.Linear(3, 3), "weight", NonNegative())
    copied = copy.deepcopy(layer)
    project_(copied)
    assert bool((copied.weight >= 0).all())
    assert bool((layer.weight < 0).any())
    assert [name for name, _, _ in constrained_parameters(nn.Sequential(layer, layer))] == ["0.weight"]
    other = constrain(nn.Linear(3, 3), "weight", NonNegative())
    other.weight = layer.weight
    assert len(list(constrained_parameters(nn.Sequential(layer, other)))) == 1
    with pytest.raises(UnsupportedError, match="shared"):
        parametrize_(nn.Sequential(layer, other))


def test_bad_input_is_refused() -> None:
    with pytest.raises(UnknownNameError, match="weigth"):
        constrain(nn.Linear(2, 2), "weigth", NonNegative())
    with pytest.raises(PlexusError, match="nothing in this model is constrained"):
        project_(nn.Linear(2, 2))
    with pytest.raises(PlexusError, match="nothing"):
        parametrize_(nn.Linear(2, 2))
    with pytest.raises(RangeError, match="neither"):
        DaleSigns(torch.tensor([1.0, 0.0]))
    with pytest.raises(ShapeError, match="one number per unit"):
        DaleSigns(torch.ones(2, 2))
    with pytest.raises(ShapeError, match="do not fit"):
        DaleSigns(SIGNS).project(torch.zeros(2, 4))
    with pytest.raises(RangeError, match="negative"):
        NonNegative().right_inverse(torch.tensor([-1.0]))
