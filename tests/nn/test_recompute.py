"""Checkpointing over time: the same numbers, the same draws, and memory that grows with the root of time."""

import weakref

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from plexus.errors import RangeError, UnknownNameError, UnsupportedError
from plexus.nn import LIF, Recurrent, RecurrentLIF, Sequential, recompute


def network(memory="keep", dropout=0.0, hidden=12):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Sequential(
            nn.Linear(3, hidden),
            LIF(hidden, 5.0, threshold=0.3, learn=("tau_mem",)),
            nn.Dropout(dropout),
            nn.Linear(hidden, hidden),
            Recurrent(LIF(hidden, 8.0, threshold=0.3)),
            nn.Linear(hidden, 2),
            memory=memory,
        )


def result(net, x, call=None):
    leaf = x.clone().requires_grad_()
    out, state = (call or net)(leaf)
    loss = (out * torch.arange(len(x)).view(-1, 1, 1).sin()).sum() + state[1].v.square().sum()
    net.zero_grad()
    loss.backward()
    return out.detach(), state, [leaf.grad, *(p.grad.clone() for p in net.parameters())]


@pytest.mark.parametrize("steps", [1, 5, 17])
def test_output_state_and_gradients_are_those_of_the_plain_call(steps):
    x = torch.rand(steps, 2, 3, generator=torch.Generator().manual_seed(1))
    out, state, grads = result(network(), x)
    net = network()
    for again in (result(network("recompute"), x), result(net, x, lambda x: recompute(net, x))):
        torch.testing.assert_close(again[0], out)
        torch.testing.assert_close(again[1][4].v, state[4].v)
        torch.testing.assert_close(again[2], grads, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("stretches", [1, 3, 100])
def test_any_number_of_stretches_and_any_module_with_a_state(stretches):
    layer = RecurrentLIF(4, 5.0, threshold=0.3, generator=torch.Generator().manual_seed(0))
    found = []
    for run in (layer, lambda x: recompute(layer, x, stretches=stretches)):
        x = torch.rand(11, 2, 4, generator=torch.Generator().manual_seed(3)).requires_grad_()
        out, state = run(x)
        found.append([out, *state, *torch.autograd.grad(out.sum() + state.v.sum(), [x, layer.weight])])
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-6)


def test_the_state_of_an_earlier_part_is_taken_and_gradients_flow_into_it():
    net = network("recompute")
    x = torch.rand(20, 2, 3, generator=torch.Generator().manual_seed(1)).requires_grad_()
    whole, after = net(x)
    first, state = net(x[:7])
    second, state = net(x[7:], state)
    torch.testing.assert_close(torch.cat([first, second]), whole)
    expected = torch.autograd.grad(whole[10:].sum(), x)[0]
    assert expected[:7].any()
    torch.testing.assert_close(torch.autograd.grad(second[3:].sum(), x)[0], expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(state[1].v, after[1].v)


class Noise(nn.Module):
    """Adds noise from a generator of its own and keeps what it added."""

    def __init__(self):
        super().__init__()
        self.generator = torch.Generator().manual_seed(5)
        self.added = []

    def forward(self, x):
        self.added.append(torch.rand(x.shape, generator=self.generator))
        return x * self.added[-1]


def test_what_is_drawn_is_drawn_again():
    noise, masks = Noise(), []
    net = Sequential(nn.Linear(3, 4), noise, nn.Dropout(0.5), LIF(4, threshold=0.2), memory="recompute")
    net[2].register_forward_hook(lambda _, inputs, out: masks.append(out.detach() == 0))
    torch.manual_seed(1)
    out, _ = net(torch.rand(9, 2, 3))
    after, after_global = noise.generator.get_state(), torch.random.get_rng_state()
    out.sum().backward()
    assert len(noise.added) == len(masks) == 6
    for drawn in (noise.added, masks):
        assert all(torch.equal(a, b) for a, b in zip(drawn[:3], reversed(drawn[3:]), strict=True))
        assert not torch.equal(drawn[0], drawn[1])
    assert torch.equal(after, noise.generator.get_state())
    assert torch.equal(after_global, torch.random.get_rng_state())


class Peak(TorchDispatchMode):
    """Bytes of the tensors that live at once, at most."""

    def __init__(self):
        super().__init__()
        self.live, self.most, self.known = 0, 0, set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                key, size = storage._cdata, storage.nbytes()
                if key not in self.known:
                    self.known.add(key)
                    self.live += size
                    self.most = max(self.most, self.live)
                    weakref.finalize(storage, self.gone, key, size)
        return out

    def gone(self, key, size):
        self.known.discard(key)
        self.live -= size


def peak(memory, steps):
    net = network(memory, hidden=256)
    x = torch.zeros(1, 1, 1).expand(steps, 4, 3)
    with Peak() as mode:
        net(x)[0].sum().backward()
    return mode.most - sum(p.numel() * 4 for p in net.parameters())


def test_memory_grows_with_the_root_of_time():
    kept, again = ([peak(memory, steps) for steps in (100, 1600)] for memory in ("keep", "recompute"))
    assert kept[1] / kept[0] > 10
    assert again[1] / again[0] < 6
    assert again[1] < kept[1] / 8


def test_where_nothing_is_kept_nothing_is_cut():
    net = network("recompute")
    calls = []
    net[0].register_forward_hook(lambda *_: calls.append(1))
    with torch.no_grad():
        net(torch.rand(20, 2, 3))
    assert len(calls) == 1
    weights = {name: p.detach() for name, p in net.named_parameters()}
    x = torch.rand(9, 2, 3)
    found = grad(lambda w: functional_call(net, w, (x,))[0].square().mean())(weights)
    net.zero_grad()
    net(x)[0].square().mean().backward()
    for name, p in net.named_parameters():
        torch.testing.assert_close(found[name], p.grad, rtol=1e-4, atol=1e-6)


def test_bad_input():
    with pytest.raises(UnknownNameError, match="memory"):
        Sequential(nn.Linear(2, 2), memory="recomputed")
    with pytest.raises(RangeError):
        recompute(LIF(3), torch.rand(4, 2, 3), stretches=0)
    net = Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), LIF(3), memory="recompute")
    with pytest.raises(UnsupportedError, match="statistics over all of time"):
        net(torch.rand(4, 2, 3))
    assert net.eval()(torch.rand(4, 2, 3))[0].shape == (4, 2, 3)
    assert recompute(LIF(3), torch.rand(0, 2, 3))[0].shape == (0, 2, 3)
