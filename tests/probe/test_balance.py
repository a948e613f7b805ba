"""The balance of E-I layers: numbers that can be told from the circuit, and no trace on the model."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from plexus.errors import PlexusError
from plexus.nn import LIF, EILinear, Sequential, initialise_ei
from plexus.probe import ei_balance


def network() -> tuple[Sequential, torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    net = Sequential(EILinear(20, 40, generator=draw), LIF(40), EILinear(40, 8, output=True, generator=draw))
    x = torch.rand(4, 50, 20, generator=draw)
    initialise_ei(net, x)
    return net, x


def test_it_reports_what_the_circuit_does() -> None:
    net, x = network()
    found = ei_balance(net, x)
    current = net[0](x)
    now = net[0].currents(x)
    balanced = now.excitation - now.inhibition
    assert found["0"].mean == pytest.approx(float(current.mean()), abs=1e-6)
    assert found["0"].std == pytest.approx(float(current.std()))
    assert found["0"].balance == pytest.approx(float(balanced.mean().abs() / balanced.std()), abs=1e-6)
    assert found["0"].rate == pytest.approx(float(net[1](current)[0].mean()))
    assert found["2"].rate is None
    assert found["2"].gain == 1.0


def test_the_gain_is_the_factor_of_the_cells() -> None:
    net, x = network()
    before = ei_balance(net, x)["0"].gain
    with torch.no_grad():
        net[0].gain_e.mul_(3)
        net[0].bias.fill_(2.0)
    assert ei_balance(net, x)["0"].gain == pytest.approx(3 * before, rel=1e-4)


def test_balance_grows_when_inhibition_goes() -> None:
    net, x = network()
    before = ei_balance(net, x)["0"].balance
    with torch.no_grad():
        net[0].weight_ei.mul_(0.5)
    assert ei_balance(net, x)["0"].balance > before + 1


def test_zeros_and_broken_signs_are_counted() -> None:
    net, x = network()
    weights = sum(p.numel() for name, p in net[0].named_parameters() if name != "bias")
    with torch.no_grad():
        net[0].weight_ee[0] = 0
        net[0].weight_ee[1] = -1
        net[0].bias.fill_(-1.0)
    found = ei_balance(net, x)["0"]
    assert found.zeros == pytest.approx(20 / weights)
    assert found.negative == pytest.approx(20 / weights)


def test_the_model_is_as_before() -> None:
    net, x = network()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    ei_balance(net, x)
    assert net.training
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())


def test_what_cannot_be_measured_is_refused() -> None:
    with pytest.raises(PlexusError, match="no E-I layer"):
        ei_balance(nn.Linear(2, 2), torch.rand(3, 2))
    with pytest.raises(PlexusError, match="initialised"):
        ei_balance(EILinear(4, 4), torch.rand(3, 4))
