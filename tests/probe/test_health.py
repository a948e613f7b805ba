"""Health: planted faults are found and named, sound networks are left in peace, and the network is not touched."""

import math

import pytest
import torch
from torch import nn

from plexus import nn as px_nn
from plexus import probe
from plexus.errors import PlexusError, ShapeError, SiteError, UnsupportedError
from plexus.units import Site


def spiking(scale=1.0):
    net = px_nn.Sequential(nn.Linear(6, 20), px_nn.LIF(20, tau_mem=10.0), nn.Linear(20, 10), px_nn.LIF(10))
    with torch.no_grad():
        net[0].weight.uniform_(0.04, 0.06)
        net[0].bias.zero_()
        net[0].weight.mul_(scale)
        net[2].weight.uniform_(0.1, 0.3)
    return net


CURRENT = torch.rand(30, 4, 6, generator=torch.Generator().manual_seed(0))


def test_a_silent_spiking_layer_is_named_with_its_drive_and_the_remedy_works():
    net = spiking(0.1)
    report = probe.health(net, CURRENT)
    first = report["1"]
    drive = (net[0](CURRENT) / net[1].threshold).mean().item()
    assert first.drive == pytest.approx(drive, rel=1e-5)
    v, highest = torch.zeros(4, 20), 0.0
    for x in net[0](CURRENT):
        v = math.exp(-1 / 10) * v + x
        highest = max(highest, v.max().item())
    assert first.potential == pytest.approx(highest, rel=1e-5)
    assert first.rate == 0
    assert first.silent.all()
    assert report.advice[0].startswith(f"layer 1 is silent: its mean input is {drive:.2g} of the threshold")
    factor = float(report.advice[0].split("by about ")[1].split(",")[0])
    with torch.no_grad():
        net[0].weight.mul_(factor)
    assert probe.health(net, CURRENT)["1"].rate > 0
    assert (Site("1", net[1].axes), 0) in report.silent


def test_a_sound_spiking_network_is_left_in_peace():
    net = spiking(1.0)
    report = probe.health(net, CURRENT)
    spikes = net[1](net[0](CURRENT))[0]
    assert report["1"].rate == pytest.approx(spikes.mean().item())
    assert report["1"].hertz == pytest.approx(1000 * spikes.mean().item())
    assert report.ok, str(report)
    assert "nothing to complain about" in str(report)


def test_a_layer_that_fires_all_the_time():
    report = probe.health(spiking(60.0), CURRENT)
    assert report["1"].rate > 0.5
    assert any("layer 1 spikes in" in text for text in report.advice)
    assert len(report.saturated.at(report["1"].site)) > 10


def test_gradients_over_time_are_those_of_autograd():
    net, x = spiking(), CURRENT.clone()
    report = probe.health(net, x, loss=lambda output, batch: output[0][-1].sum())
    current = net[0](x).detach().requires_grad_()
    out = net[3](net[2](net[1](current)[0].flatten(0, 1)).unflatten(0, (30, 4)))[0]
    (slope,) = torch.autograd.grad(out[-1].sum(), current)
    expected = (slope.square().sum((1, 2)) / 4).sqrt().double()
    torch.testing.assert_close(report["1"].gradient_over_time, expected, rtol=1e-4, atol=1e-12)


def test_a_gradient_that_fades_over_time():
    rnn = nn.RNN(3, 5)
    with torch.no_grad():
        rnn.weight_hh_l0.mul_(0.3)
    report = probe.health(rnn, torch.randn(30, 2, 3), loss=lambda output, batch: output[0][-1].sum())
    assert any("fades over time" in text for text in report.advice)
    steady = nn.RNN(3, 5, nonlinearity="relu")
    with torch.no_grad():
        steady.weight_hh_l0.copy_(torch.eye(5))
        steady.bias_hh_l0.fill_(1.0)
    report = probe.health(steady, torch.rand(30, 2, 3), loss=lambda output, batch: output[0][-1].sum())
    assert not any("over time" in text for text in report.advice)
    with torch.no_grad():
        steady.weight_hh_l0.mul_(2.0)
    report = probe.health(steady, torch.rand(30, 2, 3), loss=lambda output, batch: output[0][-1].sum())
    assert any("grows backwards in time" in text for text in report.advice)


def test_dead_rectifiers_and_where_the_gradient_ends():
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 2))
    with torch.no_grad():
        net[0].bias.fill_(1.0)
        net[2].bias.fill_(-100.0)
    report = probe.health(net, torch.randn(16, 4))
    assert report["3"].silent.all()
    assert not report["1"].silent.any()
    assert any(text.startswith("layer 3 is silent: none of its 6 units") for text in report.advice)
    assert any(text.startswith("no gradient reaches layer 1") and "silent layer 3" in text for text in report.advice)
    with torch.no_grad():
        net[2].bias[:4] = 1.0
        net[2].bias[4:] = -100.0
    report = probe.health(net, torch.randn(16, 4))
    assert any("layer 3: 2 of 6 units are never above 0" in text for text in report.advice)


def test_vanishing_and_exploding_gradients_and_saturation():
    deep = nn.Sequential(*[layer for _ in range(12) for layer in (nn.Linear(10, 10), nn.Sigmoid())])
    report = probe.health(deep, torch.randn(20, 10))
    assert [text for text in report.advice if "the gradient vanishes: layer 1 gets" in text]
    wild = nn.Sequential(*[layer for _ in range(12) for layer in (nn.Linear(10, 10), nn.Identity(), nn.ReLU())])
    with torch.no_grad():
        for module in wild:
            if isinstance(module, nn.Linear):
                module.weight.copy_(3 * torch.eye(10))
                module.bias.fill_(0.1)
    report = probe.health(wild, torch.rand(20, 10), loss=lambda output, batch: output.sum())
    assert any("the gradient explodes" in text for text in report.advice)
    tanh = nn.Sequential(nn.Linear(10, 10), nn.Tanh())
    with torch.no_grad():
        tanh[0].weight.mul_(1000)
    report = probe.health(tanh, torch.randn(20, 10))
    assert report["1"].saturated.sum() >= 5
    assert any("at their limit" in text for text in report.advice)


def test_gradient_norms_are_those_of_autograd():
    net, x = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)), torch.randn(16, 4)
    y = torch.randint(0, 3, (16,))
    report = probe.health(net, (x, y))
    hidden = torch.tanh(net[0](x)).detach().requires_grad_()
    loss = nn.functional.cross_entropy(net[2](hidden), y)
    (slope,) = torch.autograd.grad(loss, hidden)
    assert report.loss == pytest.approx(loss.item())
    assert report["1"].gradient == pytest.approx((slope.square().sum() / 16).sqrt().item(), rel=1e-5)
    squared = probe.health(net, x)
    assert squared.loss == pytest.approx(net(x).square().mean().item())


def test_the_labels_of_a_time_first_network():
    net = px_nn.Sequential(nn.Linear(6, 20), px_nn.LIF(20), nn.Linear(20, 3))
    y = torch.tensor([0, 1, 2, 0])
    report = probe.health(net, (CURRENT, y))
    assert report.loss == pytest.approx(nn.functional.cross_entropy(net(CURRENT)[0].mean(0), y).item())


def test_nan_is_traced_to_the_first_layer_that_shows_it():
    net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh())
    with torch.no_grad():
        net[2].weight[0, 0] = math.nan
    report = probe.health(net, torch.randn(5, 4))
    assert report.advice[0].startswith("layer 3 puts out NaN or infinity, and it is the first")


def test_any_network_can_be_asked():
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=50, n_positions=32, pad_token_id=1)
    model = transformers.GPT2LMHeadModel(config)
    ids = torch.randint(2, 50, (2, 6))
    report = probe.health(model, {"input_ids": ids, "labels": ids})
    assert [layer.name for layer in report.layers] == ["transformer.h.0.mlp.act", "transformer.h.1.mlp.act"]
    assert report.loss == pytest.approx(model.eval()(input_ids=ids, labels=ids).loss.item(), rel=1e-5)
    conv = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 2))
    assert probe.health(conv, torch.randn(4, 1, 6, 6))["1"].units == 3
    assert [layer.kind for layer in probe.health(nn.Linear(3, 2), torch.randn(4, 3)).layers] == ["linear"]
    shared = nn.ReLU()
    twice = nn.Sequential(nn.Linear(4, 8), shared, nn.Linear(8, 5), shared)
    report = probe.health(twice, torch.randn(6, 4))
    assert [(layer.name, layer.units) for layer in report.layers] == [("1 (call 0)", 8), ("1 (call 1)", 5)]
    assert sum(report.silent.sizes.values()) == 13


def test_the_network_is_not_touched():
    net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(inplace=True), nn.Dropout()).train()
    for parameter in net.parameters():
        parameter.requires_grad_(False)
    state = {name: value.clone() for name, value in net.state_dict().items()}
    random = torch.get_rng_state()
    assert probe.health(net, torch.randn(6, 4, generator=torch.Generator().manual_seed(0)))["2"].gradient > 0
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())
    assert all(module.training for module in net.modules())
    assert all(parameter.grad is None for parameter in net.parameters())
    assert torch.equal(torch.get_rng_state(), random)


def test_bad_input():
    with pytest.raises(ShapeError, match="empty"):
        probe.health(nn.Linear(3, 2), torch.zeros(0, 3))
    with pytest.raises(ShapeError, match="one number"):
        probe.health(nn.Linear(3, 2), torch.zeros(2, 3), loss=lambda output, batch: output)
    with pytest.raises(PlexusError, match="nothing in this network"):
        probe.health(nn.Flatten(), torch.zeros(2, 3))
    with pytest.raises(SiteError, match="axes 't b u'"):
        probe.health(px_nn.LIF(6), torch.zeros(4, 6))
    with pytest.raises(KeyError):
        probe.health(nn.Linear(3, 2), torch.zeros(2, 3))["nope"]
    with pytest.raises(UnsupportedError, match="compiled"):
        probe.health(torch.compile(nn.Linear(3, 2), backend="eager"), torch.zeros(2, 3))


def test_wrappers_are_seen_through():
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU())
    wrapped = nn.DataParallel(net, device_ids=[])
    assert [layer.name for layer in probe.health(wrapped, torch.randn(5, 3)).layers] == ["1"]
