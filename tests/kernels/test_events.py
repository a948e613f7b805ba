"""Products with spikes: the dense product's numbers and gradients, whatever the share of spikes."""

import pytest
import torch
from torch.func import grad, vmap

from plexus.kernels import _events, lif, spike_linear
from plexus.nn import LIF, Sequential, SpikingLinear


def spikes(share, *shape, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(shape, generator=generator) < share).to(dtype) * (1 + torch.rand(shape, generator=generator))


@pytest.mark.parametrize("share", [0.0, 0.03, 0.12, 0.6, 1.0])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("least", [0, 1 << 40], ids=["events", "dense"])
def test_it_is_the_dense_product(monkeypatch, share, bias, least):
    monkeypatch.setattr(_events, "_LEAST", least)
    monkeypatch.setattr(_events, "_FEW", 1.0)
    z = spikes(share, 9, 37, 50).transpose(0, 1).requires_grad_()  # rows that a view takes apart
    weight = torch.randn(13, 50, dtype=torch.float64, requires_grad=True)
    b = torch.randn(13, dtype=torch.float64, requires_grad=True) if bias else None
    leaves = [z, weight, *([b] if bias else [])]
    ramp = torch.arange(37 * 9 * 13).view(37, 9, 13).sin()
    results = []
    for run in (spike_linear, torch.nn.functional.linear):
        out = run(z, weight, b)
        results.append([out, *torch.autograd.grad((out * ramp).sum(), leaves)])
    torch.testing.assert_close(*results)


def test_gradients_are_true_once_and_twice(monkeypatch):
    monkeypatch.setattr(_events, "_LEAST", 0)
    leaves = [t.double().requires_grad_() for t in (spikes(0.1, 6, 8), torch.randn(3, 8), torch.randn(3))]
    assert torch.autograd.gradcheck(spike_linear, leaves)
    assert torch.autograd.gradgradcheck(spike_linear, leaves)


def test_threads_change_nothing():
    z, weight = spikes(0.05, 400, 300, dtype=torch.float32), torch.randn(200, 300, requires_grad=True)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            out = spike_linear(z, weight)
            results.append((out, torch.autograd.grad(out.square().sum(), weight)[0]))
    finally:
        torch.set_num_threads(before)
    assert _events.few(z, 200)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_recurrent_loops_walk_along_spikes_and_agree(monkeypatch):
    x = spikes(0.05, 12, 3, 60).requires_grad_()
    weight = (torch.randn(60, 60, dtype=torch.float64) / 8).requires_grad_()
    results = []
    for few in (0.0, 1.0):
        monkeypatch.setattr(_events, "_LEAST", 0)
        monkeypatch.setattr(_events, "_FEW", few)
        out, state = lif(x, decay=0.9, recurrent=weight)
        results.append([out, *torch.autograd.grad(out.sum() + state.v.sum(), [x, weight])])
    assert results[0][0].any()
    assert torch.equal(results[0][0], results[1][0])
    torch.testing.assert_close(*results)


def test_layer_is_linear_in_a_stack_a_transform_and_a_compiler():
    net = Sequential(SpikingLinear(20, 30), LIF(30, threshold=0.2), SpikingLinear(30, 4)).double()
    plain = Sequential(torch.nn.Linear(20, 30), LIF(30, threshold=0.2), torch.nn.Linear(30, 4)).double()
    plain.load_state_dict(net.state_dict())
    x = spikes(0.1, 9, 5, 20)
    torch.testing.assert_close(net(x)[0], plain(x)[0])
    compiled = torch.compile(net, backend="aot_eager", fullgraph=True)
    compiled(x)[0].square().sum().backward()
    plain(x)[0].square().sum().backward()
    for p, q in zip(net.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad)
    layer = net[0]
    found = vmap(grad(lambda w, z: torch.func.functional_call(layer, {"weight": w}, (z,)).square().sum()), (None, 0))(
        layer.weight.detach(), x[0]
    )
    torch.testing.assert_close(
        found.sum(0), grad(lambda w: (x[0] @ w.T + layer.bias.detach()).square().sum())(layer.weight.detach())
    )


@pytest.mark.parametrize("shape", [(0, 5), (3, 0), (0, 0, 4)])
def test_empty_input(shape):
    out = spike_linear(torch.zeros(shape, requires_grad=True), torch.ones(2, shape[-1], requires_grad=True))
    assert out.shape == (*shape[:-1], 2)
    out.sum().backward()
