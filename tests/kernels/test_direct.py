"""A fused loop called without torch's dispatcher gives what its operator gives, and steps aside where one looks on."""

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from plexus.kernels import _neuron, _operator, _recurrent, lif

RECURRENT = torch.randn(4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


def results(recurrent, second=False):
    x = torch.rand(6, 2, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()
    decay = torch.linspace(0.5, 0.9, 4, dtype=torch.float64).requires_grad_()
    weight = RECURRENT.clone().requires_grad_() if recurrent else None
    out, state = lif(x, decay=decay, recurrent=weight, delayed_reset=True, backend="fused")
    leaves = [x, decay] + ([weight] if recurrent else [])
    loss = (out * torch.arange(48.0).view(6, 2, 4)).sum() + state.v.square().sum()
    grads = torch.autograd.grad(loss, leaves, create_graph=second)
    if second:
        grads = torch.autograd.grad(grads[1].square().sum(), leaves, allow_unused=True, materialize_grads=True)
    return [out, *state, *grads]


@pytest.mark.parametrize("second", [False, True])
@pytest.mark.parametrize("recurrent", [False, True])
def test_as_the_operator(recurrent, second, monkeypatch):
    directly = results(recurrent, second)
    for module in (_operator, _recurrent, _neuron):
        monkeypatch.setattr(module, "overlooked", lambda tensors: False)
    for a, b in zip(directly, results(recurrent, second), strict=True):
        assert torch.equal(a, b)


def test_a_trace_holds_the_operator():
    traced = make_fx(lambda x: lif(x, decay=0.9)[0])(torch.rand(3, 1, 2))
    assert any("plexus.lif" in str(node.target) for node in traced.graph.nodes)


def test_numbers_are_kept_and_may_be_saved_after_inference_mode():
    x = torch.rand(3, 1, 2)
    with torch.inference_mode():
        lif(x, decay=0.8125)
    y = x.clone().requires_grad_()
    lif(y, decay=0.8125)[0].sum().backward()
    assert y.grad is not None
    assert _neuron.constant(0.8125, x) is _neuron.constant(0.8125, x)
    assert _neuron.constant(0.8125, x.double()).dtype == torch.float64


def test_a_subclass_sees_the_operator():
    seen = []

    class Watching(torch.Tensor):
        @classmethod
        def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
            seen.append(str(func))
            plain = torch.utils._pytree.tree_map(lambda t: t.held if isinstance(t, cls) else t, (args, kwargs or {}))
            return func(*plain[0], **plain[1])

    x = torch.rand(3, 1, 2)
    watched = torch.Tensor._make_wrapper_subclass(Watching, x.shape, dtype=x.dtype)
    watched.held = x
    assert torch.equal(lif(watched, decay=0.9)[0], lif(x, decay=0.9)[0])
    assert any(name.startswith("plexus.lif") for name in seen)


def test_numbers_met_first_inside_a_transform_are_good_outside():
    x = torch.rand(3, 1, 2, dtype=torch.float64)
    torch.func.vmap(lambda each: lif(each, decay=0.40625)[0])(x.expand(4, 3, 1, 2))
    torch.func.jvp(lambda each: lif(each, decay=0.46875, smooth=True)[0], (x,), (x,))
    for number in (0.40625, 0.46875):
        assert not torch._C._functorch.is_functorch_wrapped_tensor(_neuron.constant(number, x))
    assert torch.equal(lif(x, decay=0.40625)[0], lif(x, decay=torch.tensor(0.40625, dtype=torch.float64))[0])
