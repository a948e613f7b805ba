"""Quantised activations and the spiking networks that they become."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import plexus as px
from plexus.errors import DtypeError, RangeError, ShapeError, UnsupportedError
from plexus.nn import QuantisedReLU, SignedIF, convert_quantised, quantise_activations


def slow(x: torch.Tensor, threshold: float, start: float, signed: bool) -> torch.Tensor:
    """The neuron in plain Python, one number at a time."""
    out = torch.zeros_like(x)
    for b in range(x.shape[1]):
        for u in range(x.shape[2]):
            v, count = start * threshold, 0
            for t in range(len(x)):
                v += float(x[t, b, u])
                if v >= threshold:
                    z = 1
                elif signed and v <= -1e-3 and count > 0:
                    z = -1
                else:
                    z = 0
                v -= z * threshold
                count += z
                out[t, b, u] = z
    return out


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 999), signed=st.booleans(), start=st.sampled_from([0.0, 0.5]))
def test_spikes_are_those_of_the_equations(seed: int, signed: bool, start: float) -> None:
    x = torch.randn(30, 2, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 0.7
    layer = SignedIF(4, 1.3, start=start, signed=signed).double()
    spikes, state = layer(x)
    assert torch.equal(spikes, slow(x, float(layer.threshold), start, signed))
    assert torch.equal(state.n, spikes.sum(0))
    # nothing is lost: what came in is what went out and what is left
    torch.testing.assert_close(state.v, start * layer.threshold + x.sum(0) - layer.threshold * spikes.sum(0))
    first, between = layer(x[:11])
    second, after = layer(x[11:], between)
    assert torch.equal(torch.cat([first, second]), spikes)
    assert torch.equal(after.v, state.v)


@given(current=st.floats(-2, 3), steps=st.sampled_from([8, 64]))
@settings(max_examples=30, deadline=None)
def test_a_constant_current_is_rectified_and_clipped(current: float, steps: int) -> None:
    spikes, _ = SignedIF(1, 1.5, start=0.5)(torch.full((steps, 1, 1), current))
    assert abs(1.5 * float(spikes.mean()) - min(max(current, 0.0), 1.5)) <= 1.5 / steps + 1e-5


def test_an_early_excess_is_taken_back_only_by_signed_spikes() -> None:
    x = torch.tensor([2.0, *[-0.2] * 10]).view(-1, 1, 1)
    assert float(SignedIF(1, 1.0)(x)[0].sum()) == 0.0
    assert float(SignedIF(1, 1.0, signed=False)(x)[0].sum()) > 0.0


def test_gradients_are_those_of_the_eager_reference() -> None:
    x = torch.randn(12, 3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = []
    for backend in ("fused", "eager"):
        layer = SignedIF(5, 0.8, start=0.5, learn=["threshold"]).double()
        layer.backend = backend
        given_x = x.clone().requires_grad_()
        spikes, state = layer(given_x)
        (spikes * torch.arange(12.0, dtype=torch.float64).view(-1, 1, 1) + state.v).sum().backward()
        found.append((spikes.detach(), given_x.grad, layer.log_threshold.grad))
    assert torch.equal(found[0][0], found[1][0])
    torch.testing.assert_close(found[0][1], found[1][1])
    torch.testing.assert_close(found[0][2], found[1][2])


def test_an_edit_silences_a_unit_inside() -> None:
    layer = SignedIF(3, 1.0)
    net = px.nn.Sequential(layer)
    x = torch.full((6, 2, 3), 0.7)
    chosen = px.probe.scores.mean(
        px.probe.record(net, x * torch.tensor([1.0, 1.4, 1.0]), at=px.sites.spiking(net))
    ).top(1)
    with px.edit.scale(net, chosen, 0.0):
        spikes, (state,) = net(x)
    assert float(spikes[..., 1].sum()) == 0.0
    torch.testing.assert_close(state.v[:, 1], torch.full((2,), 4.2))  # it never reset
    assert torch.equal(spikes[..., 0], net(x)[0][..., 0])


def test_levels_and_their_gradients() -> None:
    relu = QuantisedReLU(4, 0.5)
    x = torch.tensor([[-1.0, 0.2, 0.3, 1.2, 1.6, 7.0]], requires_grad=True)
    out = relu(x)
    assert out.tolist() == [[0.0, 0.0, 0.5, 1.0, 1.5, 1.5]]
    out.sum().backward()
    assert x.grad.tolist() == [[0.0, 1.0, 1.0, 1.0, 0.0, 0.0]]
    # learned step size: round(q) - q inside, L - 1 above, 0 below, over sqrt(6 · 3); times s for its logarithm
    expected = sum([0 - 0.4, 1 - 0.6, 2 - 2.4, 3, 3]) / 18**0.5 * 0.5
    assert float(relu.log_step.grad) == pytest.approx(expected, rel=1e-5)


def small_cnn() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Dropout(0.5),
        nn.Sequential(nn.Linear(64, 12), nn.BatchNorm1d(12), nn.ReLU()),
        nn.Linear(12, 3),
    )


@given(x=st.lists(st.floats(-1, 2.5), min_size=3, max_size=3), levels=st.integers(2, 9))
@settings(max_examples=30, deadline=None)
def test_after_as_many_steps_as_levels_the_count_is_the_level(x: list[float], levels: int) -> None:
    given_x = torch.tensor(x, dtype=torch.float64)
    relu = QuantisedReLU(levels, 1.5 / (levels - 1)).double()
    quotient = given_x / relu.step.detach()
    if float((quotient - quotient.floor() - 0.5).abs().min()) < 1e-6:
        return  # ties may be rounded either way
    spikes, _ = SignedIF(3, 1.5, start=0.5).double()(given_x.expand(levels - 1, 1, 3))
    torch.testing.assert_close(1.5 / (levels - 1) * spikes.sum((0, 1)), relu(given_x.unsqueeze(0))[0].detach())


def test_the_mean_of_the_spiking_network_tends_to_the_clipped_one() -> None:
    torch.manual_seed(0)
    net = small_cnn()
    x = torch.rand(6, 1, 8, 8)
    for _ in range(20):
        net(torch.rand(16, 1, 8, 8))  # batch statistics that folding must take along
    net.eval()
    quantised = quantise_activations(net, levels=4, batch=x).eval()
    spiking = convert_quantised(quantised, x[:1])
    clipped = copy.deepcopy(quantised)
    for relu in (m for m in clipped.modules() if isinstance(m, QuantisedReLU)):
        top = relu.step.detach() * (relu.levels - 1)
        relu.forward = lambda x, top=top: x.clamp(0, float(top))
    with torch.no_grad():
        wanted = clipped(x)
        errors = [float((spiking(x.expand(n, *x.shape))[0].mean(0) - wanted).abs().max()) for n in (16, 160, 1600)]
    assert errors[1] < 0.2 * errors[0]
    assert errors[2] < 0.2 * errors[1]  # of the order of one over the steps
    assert [tuple(layer.units) for layer in spiking if isinstance(layer, SignedIF)] == [(4, 8, 8), (12,)]
    assert sum(isinstance(m, nn.ReLU) for m in net.modules()) == 2  # the original is left alone


def test_what_cannot_be_converted_is_said() -> None:
    quantised = nn.Sequential(nn.Conv2d(1, 2, 3), QuantisedReLU(), nn.Flatten(), nn.Linear(8, 2))
    with pytest.raises(ShapeError, match="example"):
        convert_quantised(quantised)
    with pytest.raises(UnsupportedError, match="MaxPool2d"):
        convert_quantised(nn.Sequential(nn.Conv2d(1, 2, 3), QuantisedReLU(), nn.MaxPool2d(2)), torch.zeros(1, 1, 4, 4))
    with pytest.raises(UnsupportedError, match="QuantisedReLU"):
        convert_quantised(nn.Sequential(nn.Linear(2, 2)))
    with pytest.raises(ShapeError, match="last layer"):
        convert_quantised(nn.Sequential(nn.Linear(2, 2), QuantisedReLU()))
    with pytest.raises(UnsupportedError, match="rectifier"):
        quantise_activations(nn.Linear(2, 2))
    with pytest.raises(RangeError):
        QuantisedReLU(1)
    with pytest.raises(RangeError):
        SignedIF(3, -1.0)
    with pytest.raises(ShapeError):
        SignedIF(0)
    with pytest.raises(ShapeError):
        SignedIF(3)(torch.zeros(4, 2, 5))
    with pytest.raises(DtypeError):
        SignedIF(3)(torch.zeros(4, 2, 3, dtype=torch.int64))


def test_measuring_levels_leaves_frozen_parts_in_their_mode() -> None:
    net = nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 8), nn.ReLU()).train()
    net[0].eval()
    made = quantise_activations(net, levels=4, batch=torch.rand(16, 4))
    assert [module.training for module in made[:2]] == [False, True]
