"""Synaptic operations counted against a count by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from plexus.errors import UnsupportedError
from plexus.nn import LIF, Sequential
from plexus.nn.synapses import DelayedConv2d, DelayedLinear, Dense, Sparse
from plexus.probe import synaptic_operations


def test_linear_layers_by_hand() -> None:
    torch.manual_seed(0)
    net = Sequential(nn.Linear(4, 6), LIF(6), nn.Linear(6, 3))
    with torch.no_grad():
        net[0].weight.mul_(4)
        net[2].weight[:, 2] = 0.0  # what no target hears costs nothing
        net[2].weight[0, 3] = 0.0
    x = torch.rand(12, 5, 4)
    spikes = net[1](net[0](x))[0]
    cost = synaptic_operations(net, [x])
    assert 0 < spikes.sum() < spikes.numel()
    fan_out = torch.tensor([3.0, 3, 0, 2, 3, 3])
    assert cost.multiply_accumulates == 12 * 4 * 6
    assert cost.synaptic_operations == pytest.approx(float((spikes.detach() * fan_out).sum()) / 5)
    assert cost.dense == 12 * (4 * 6 + 6 * 3)
    every = synaptic_operations(net, [x], occupied=False)
    assert every.synaptic_operations == pytest.approx(float(3 * spikes.detach().sum()) / 5)
    assert cost.picojoule == pytest.approx(0.9 * cost.synaptic_operations + 4.6 * cost.multiply_accumulates)
    assert "spikes" in str(cost)
    split = synaptic_operations(net, [x[:, :2], x[:, 2:]])
    assert split.synaptic_operations == pytest.approx(cost.synaptic_operations)


@pytest.mark.parametrize("options", [{}, {"padding": 1}, {"stride": 2}, {"groups": 2}, {"dilation": 2}])
def test_convolutions_by_unfolding(options: dict[str, int]) -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(2, 4, 3, bias=False, **options)
    x = (torch.rand(5, 2, 8, 8) < 0.3).float()
    cost = synaptic_operations(nn.Sequential(conv), [x])
    with torch.no_grad():
        conv.weight.fill_(1.0)
        expected = float(conv(x).sum()) / 5  # each output adds up the spikes that reach it
    assert cost.synaptic_operations == pytest.approx(expected)
    with torch.no_grad():
        dense = float(conv(torch.ones_like(x)).sum()) / 5
    assert cost.dense == pytest.approx(dense)


def test_numbers_are_no_spikes_and_the_model_is_left_alone() -> None:
    net = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.BatchNorm1d(3), nn.Linear(3, 2))
    before = {name: value.clone() for name, value in net.state_dict().items()}
    cost = synaptic_operations(net, torch.rand(7, 3))
    assert cost.synaptic_operations == 0
    assert cost.multiply_accumulates == 15
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert net.training
    with pytest.raises(UnsupportedError):
        synaptic_operations(nn.ReLU(), torch.rand(2, 3))


def test_synapses_count_those_that_exist() -> None:
    mask = torch.rand(6, 4, generator=torch.Generator().manual_seed(1)) < 0.5
    x = (torch.rand(12, 5, 4) < 0.4).float()
    expected = float((x @ mask.float().T).sum()) / 5
    for layer in (Dense(4, 6, mask=mask), Sparse(mask)):
        assert synaptic_operations(Sequential(layer), [x]).synaptic_operations == pytest.approx(expected)


def test_a_delayed_synapse_costs_one_addition_once_it_is_rounded() -> None:
    layer = DelayedLinear(4, 3, max_delay=5)
    x = (torch.rand(12, 5, 4) < 0.4).float()
    spread = synaptic_operations(Sequential(layer), [x])
    rounded = synaptic_operations(Sequential(layer.round_().hard(True)), [x])
    assert rounded.synaptic_operations == pytest.approx(3 * float(x.sum()) / 5)
    assert rounded.dense == 12 * 4 * 3
    assert spread.synaptic_operations > rounded.synaptic_operations
    assert spread.dense == 6 * rounded.dense


def test_delayed_convolutions_by_their_own_output() -> None:
    layer = DelayedConv2d(2, 3, 3, max_delay=2, padding=1, stride=2).round_().hard(True)
    x = (torch.rand(6, 4, 2, 7, 7) < 0.3).float()
    x[-2:] = 0.0  # room for the last spikes to arrive
    cost = synaptic_operations(Sequential(layer), [x])
    with torch.no_grad():
        layer.weight.fill_(1.0)
        assert cost.synaptic_operations == pytest.approx(float(layer(x)[0].sum()) / 4)
