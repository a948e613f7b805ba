"""The loops of the Expressive Leaky Memory neuron: closed forms, fused against eager, transforms, bad input."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import forward_ad
from torch.func import grad, jvp, vmap

from plexus.errors import DtypeError, ShapeError, UnknownNameError
from plexus.kernels import ELM_ACTIVATIONS, elm_memory, elm_memory_reference, leaky_trace, leaky_trace_reference
from plexus.kernels import _elm as module


def numbers(time, batch, neurons, hidden, memory, seed=0, dtype=torch.float64):
    g = torch.Generator().manual_seed(seed)

    def normal(*shape, scale=1.0):
        return scale * torch.randn(*shape, generator=g, dtype=dtype)

    decay, gain = torch.sigmoid(normal(neurons, memory)), torch.sigmoid(normal(neurons, memory))
    inner, outer = normal(neurons, hidden, memory, scale=0.4), normal(neurons, memory, hidden, scale=0.4)
    drive, offset, start = normal(time, batch, neurons, hidden), normal(neurons, memory), normal(batch, neurons, memory)
    return [drive, inner, outer, offset, decay, gain, start]


@settings(max_examples=25, deadline=None)
@given(
    time=st.integers(0, 6),
    batch=st.integers(1, 3),
    neurons=st.integers(1, 3),
    hidden=st.integers(1, 9),
    memory=st.integers(1, 6),
    activation=st.sampled_from(ELM_ACTIVATIONS),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    seed=st.integers(0, 99),
)
def test_the_fused_loop_and_its_gradients_are_those_of_the_reference(
    time, batch, neurons, hidden, memory, activation, dtype, seed
):
    fused = [t.requires_grad_() for t in numbers(time, batch, neurons, hidden, memory, seed, dtype)]
    eager = [t.detach().clone().requires_grad_() for t in fused]
    ours = elm_memory(*fused, activation=activation)
    theirs = elm_memory_reference(*eager, activation=activation)
    bounds = {"atol": 1e-11, "rtol": 1e-9} if dtype == torch.float64 else {"atol": 2e-4, "rtol": 1e-3}
    torch.testing.assert_close(ours, theirs, **bounds)
    if time:
        push = torch.randn(ours.shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)
        ours.backward(push)
        theirs.backward(push)
        for one, other in zip(fused, eager, strict=True):
            torch.testing.assert_close(one.grad, other.grad, **bounds)


def test_gradients_are_those_of_finite_differences():
    tensors = [t.requires_grad_() for t in numbers(4, 2, 1, 3, 2)]
    for activation in ("silu", "identity"):
        assert torch.autograd.gradcheck(lambda *t, f=activation: elm_memory(*t, activation=f), tensors)
    assert torch.autograd.gradgradcheck(lambda *t: elm_memory(*t, activation="silu"), tensors)
    x, start = torch.randn(5, 2, 3, dtype=torch.float64), torch.randn(2, 3, dtype=torch.float64)
    traced = lambda *t: leaky_trace(*t, 0.7)  # noqa: E731
    assert torch.autograd.gradcheck(traced, (x.requires_grad_(), start.requires_grad_()))
    assert torch.autograd.gradgradcheck(traced, (x, start))


def test_constants_of_the_update_are_those_published():
    one, zero = torch.ones(1, 1, dtype=torch.float64), torch.zeros(1, 1, dtype=torch.float64)
    u = torch.tensor([0.3, 2.0, -5.0], dtype=torch.float64).view(3, 1, 1, 1)
    m = elm_memory(u, 0 * one[None], one[None], zero, zero, one, zero[None], activation="identity")
    expected = [1.7159 * math.tanh(2 / 3 * value) for value in (0.3, 2.0, -5.0)]
    torch.testing.assert_close(m.flatten(), torch.tensor(expected, dtype=torch.float64))


def test_what_the_network_reads_is_the_decayed_memory():
    one, zero = torch.ones(1, 1, 1, dtype=torch.float64), torch.zeros(1, 1, dtype=torch.float64)
    start, decay = torch.full((1, 1, 1), 0.8, dtype=torch.float64), torch.full((1, 1), 0.25, dtype=torch.float64)
    m = elm_memory(0 * one[None], one, one, zero, decay, zero + 1, start, activation="identity")
    assert m.item() == pytest.approx(0.2 + 1.7159 * math.tanh(2 / 3 * 0.2))


def test_trace_is_the_sum_of_decayed_inputs():
    x, start = torch.randn(30, 2, 3, dtype=torch.float64), torch.randn(2, 3, dtype=torch.float64)
    age = torch.arange(30.0, dtype=torch.float64)
    kernel = torch.tril(0.9 ** (age[:, None] - age[None, :]))
    expected = torch.einsum("ts,sbi->tbi", kernel, x) + 0.9 ** (age + 1).view(-1, 1, 1) * start
    torch.testing.assert_close(leaky_trace(x, start, 0.9), expected)
    torch.testing.assert_close(leaky_trace_reference(x, start, 0.9), expected)


def test_pieces_equal_the_whole_bit_for_bit():
    drive, *rest, start = numbers(11, 3, 2, 7, 5, dtype=torch.float32)
    whole = elm_memory(drive, *rest, start)
    first = elm_memory(drive[:4], *rest, start)
    assert torch.equal(torch.cat([first, elm_memory(drive[4:], *rest, first[-1])]), whole)
    assert torch.equal(elm_memory(drive[:0], *rest, start), whole[:0])


def test_strides_and_threads_do_not_matter():
    tensors = numbers(9, 4, 2, 6, 5)
    whole = elm_memory(*tensors)
    strange = [t.transpose(0, -1).contiguous().transpose(0, -1) for t in tensors]
    assert torch.equal(elm_memory(*strange), whole)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        assert torch.equal(elm_memory(*tensors), whole)
    finally:
        torch.set_num_threads(threads)


def test_transforms_fall_back_to_the_reference():
    drive, *rest, start = numbers(5, 2, 1, 4, 3)

    def loss(inner):
        return elm_memory(drive, inner, *rest[1:], start).square().sum()

    leaf = rest[0].clone().requires_grad_()
    loss(leaf).backward()
    torch.testing.assert_close(grad(loss)(rest[0]), leaf.grad)
    tangent = torch.ones_like(rest[0])
    assert jvp(loss, (rest[0],), (tangent,))[1] == pytest.approx((leaf.grad * tangent).sum().item())
    one = vmap(lambda u, m: elm_memory(u.unsqueeze(1), *rest, m.unsqueeze(0)), (1, 0), 1)(drive, start)
    torch.testing.assert_close(one.squeeze(2), elm_memory(drive, *rest, start))
    x = torch.randn(5, 2, 3)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(x, torch.ones_like(x))
        tangent = forward_ad.unpack_dual(leaky_trace(dual, torch.zeros(2, 3), 0.5)).tangent
    torch.testing.assert_close(tangent, leaky_trace(torch.ones_like(x), torch.zeros(2, 3), 0.5))


def test_operators_are_well_formed():
    tensors = [t.requires_grad_() for t in numbers(3, 2, 1, 4, 3)]
    tests = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(module._op, (*tensors, "silu"), test_utils=tests)
    x = torch.randn(3, 2, 2, requires_grad=True)
    torch.library.opcheck(module._trace_op, (x, torch.zeros(2, 2), 0.5, False), test_utils=tests)


def test_nan_stays_visible():
    drive, *rest = numbers(3, 1, 1, 4, 2)
    drive[1, 0, 0, 0] = torch.nan
    m = elm_memory(drive, *rest)
    assert m[0].isfinite().all()
    assert m[1].isnan().all()


def test_further_hidden_layers_are_applied_one_after_the_other():
    drive, inner, outer, offset, decay, gain, start = numbers(3, 2, 1, 4, 2)
    second = (torch.randn(1, 4, 4, dtype=torch.float64), torch.randn(1, 4, dtype=torch.float64))
    m = elm_memory(drive, inner, outer, offset, decay, gain, start, deep=[second])
    hidden = torch.relu(drive[0, :, 0] + (decay * start)[:, 0] @ inner[0].T)
    hidden = torch.relu(hidden @ second[0][0].T + second[1][0])
    expected = (decay * start)[:, 0] + gain[0] * 1.7159 * torch.tanh(2 / 3 * (hidden @ outer[0].T + offset[0]))
    torch.testing.assert_close(m[0, :, 0], expected)


def test_bad_input_is_refused():
    tensors = numbers(3, 2, 1, 4, 2)
    with pytest.raises(UnknownNameError, match="relu"):
        elm_memory(*tensors, activation="rellu")
    with pytest.raises(ShapeError, match="dimensions"):
        elm_memory(tensors[0][0], *tensors[1:])
    with pytest.raises(ShapeError, match="decay"):
        elm_memory(*tensors[:4], tensors[4][:, :1], *tensors[5:])
    with pytest.raises(DtypeError):
        elm_memory(tensors[0].float(), *tensors[1:])
    with pytest.raises(ShapeError):
        leaky_trace(torch.zeros(3, 2, 2), torch.zeros(2, 3), 0.5)
    with pytest.raises(DtypeError):
        leaky_trace(torch.zeros(3, 2, 2), torch.zeros(2, 2, dtype=torch.float64), 0.5)
