"""The group-to-group perceptron: its density, its groups, and what it refuses."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import plexus as px
from plexus.errors import RangeError, ShapeError, UnknownNameError
from plexus.nn.models import G2GMLP, existing_weights


def test_a_quarter_of_the_hidden_weights_exists() -> None:
    model = G2GMLP([64, 128, 128, 10], generator=torch.Generator().manual_seed(0))
    share = 1 / 8 + 0.15 * 7 / 8
    assert existing_weights(model) == pytest.approx(share * (64 * 128 + 128 * 128) + 1280, abs=2)


def test_absent_weights_stay_absent_and_copies_are_exact() -> None:
    model = G2GMLP([16, 16, 16, 4], groups=4, generator=torch.Generator().manual_seed(0))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    px.nn.project_after_step(optimizer, model)
    x = torch.rand(8, 16)
    for _ in range(5):
        optimizer.zero_grad()
        model(x).square().sum().backward()
        optimizer.step()
    for layer in (model[1], model[3]):
        assert torch.equal(layer.weight != 0, layer.weight_mask)
    other = G2GMLP([16, 16, 16, 4], groups=4)
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(x), model(x))
    assert torch.equal(copy.deepcopy(model)(x), model(x))
    assert torch.equal(model[4:](model[:4](x)), model(x))


def test_the_same_seed_gives_the_same_network() -> None:
    one, two = (G2GMLP([16, 16, 4], groups=4, generator=torch.Generator().manual_seed(3)) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True))


def test_bad_sizes() -> None:
    with pytest.raises(RangeError):
        G2GMLP([16, 4])
    with pytest.raises(ShapeError):
        G2GMLP([20, 16, 4])
    with pytest.raises(RangeError):
        G2GMLP([16, 16, 4], p_inter=1.2)
    with pytest.raises(UnknownNameError):
        G2GMLP([16, 16, 4], scheme="mixture")  # type: ignore[arg-type]
    assert isinstance(G2GMLP([16, 16, 4], activation=nn.GELU)[2], nn.GELU)
