"""Meta neurons as layers: their numbers in range whatever is learned, their state, chance, and what they refuse."""

import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from plexus.errors import DtypeError, PlexusError, RangeError, ShapeError, UnknownNameError
from plexus.kernels import lif, meta
from plexus.nn import (
    LIF,
    MetaNeuron,
    RecurrentLIF,
    Sequential,
    freeze_intrinsic,
    intrinsic_parameters,
    synaptic_parameters,
)
from plexus.units import Port

NUMBERS = {
    "tau_mem": 13.0,
    "threshold": 0.7,
    "gain": 1.4,
    "reset_value": -0.2,
    "temperature": 0.3,
    "recovery": 0.25,
    "coupling": -0.04,
    "jump": 0.15,
}


@pytest.mark.parametrize("learn", [(), "all"])
def test_numbers_come_back_from_their_maps(learn):
    layer = MetaNeuron(3, stochastic=True, learn=learn, **NUMBERS)
    for name, value in NUMBERS.items():
        torch.testing.assert_close(getattr(layer, name).expand(3), torch.full((3,), value), rtol=1e-5, atol=1e-6)
    assert layer.decay.unique().item() == pytest.approx(1 - 1 / 13)
    assert len(list(layer.parameters())) == (8 if learn else 0)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(-15, 15), min_size=8, max_size=8))
def test_whatever_is_learned_stays_in_range_and_stable(raw):
    layer = MetaNeuron(1, stochastic=True, learn="all").double()
    with torch.no_grad():
        for parameter, value in zip(layer.parameters(), raw, strict=True):
            parameter.fill_(value)
    lam, a, b = (getattr(layer, name).item() for name in ("decay", "recovery", "coupling"))
    assert layer.tau_mem > layer.dt
    assert min(layer.threshold, layer.gain, layer.temperature) > 0
    assert layer.reset_value < layer.threshold
    below = torch.tensor([[lam, -1.0], [a * b * lam, 1 - a - a * b]], dtype=torch.float64)
    assert torch.linalg.eigvals(below).abs().max() < 1 + 1e-9


def test_layer_is_the_operator_with_its_numbers():
    layer = MetaNeuron(5, tau_mem=torch.linspace(3, 9, 5), threshold=0.7, jump=0.2, dt=0.5, learn=("tau_mem",))
    x = torch.rand(40, 3, 5)
    expected, _ = meta(
        x, decay=1 - 0.5 / torch.linspace(3, 9, 5), threshold=layer.threshold, recovery=layer.recovery,
        coupling=layer.coupling, jump=0.2, backend="eager",
    )  # fmt: skip
    assert expected.any()
    assert torch.equal(layer(x)[0], expected)


@pytest.mark.parametrize("kind", [{}, {"order": 1}, {"form": "quadratic", "gain": 20.0}, {"stochastic": True}])
def test_pieces_equal_the_whole(kind):
    x = torch.rand(20, 3, 4) * 2
    layers = [MetaNeuron(4, generator=torch.Generator().manual_seed(3), **kind) for _ in range(2)]
    whole, after = layers[0](x)
    assert whole.any()
    first, state = layers[1](x[:7])
    second, state = layers[1](x[7:], state)
    assert torch.equal(torch.cat([first, second]), whole)
    assert all(torch.equal(a, b) for a, b in zip(state, after, strict=True))


def test_chance_comes_from_the_generator_alone():
    x = torch.rand(20, 3, 4)

    def draw(seed):
        torch.manual_seed(torch.seed() % 2**31)
        return MetaNeuron(4, stochastic=True, generator=torch.Generator().manual_seed(seed))(x)[0]

    assert torch.equal(draw(1), draw(1))
    assert not torch.equal(draw(1), draw(2))


def test_learning_moves_every_number_and_threading_through_sequential_works():
    torch.manual_seed(0)
    model = Sequential(nn.Linear(6, 8), MetaNeuron(8, stochastic=True, threshold=0.4, learn="all"), nn.Linear(8, 2))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    for _ in range(2):
        optimizer.zero_grad()
        out, states = model(torch.rand(30, 4, 6))
        out.square().mean().backward()
        optimizer.step()
    assert all(not torch.equal(p, before[name]) for name, p in model.named_parameters())
    assert states[1].u.shape == (4, 8)


def test_double_precision_copies_and_saved_numbers():
    layer = copy.deepcopy(MetaNeuron(3, learn="all", generator=torch.Generator())).double()
    assert layer(torch.rand(4, 2, 3).double())[0].dtype == torch.float64
    other = MetaNeuron(3, learn="all", threshold=0.2)
    other.load_state_dict(MetaNeuron(3, learn="all", threshold=0.9).state_dict())
    torch.testing.assert_close(other.threshold, torch.full((3,), 0.9))


def test_port_reaches_the_reset():
    layer, x = MetaNeuron(2, order=1), torch.full((30, 1, 2), 0.2)
    layer.port = Port.on(torch.tensor([True, False]), gain=0.0)
    spikes, state = layer(x)
    assert not spikes[..., 0].any()
    assert spikes[..., 1].any()
    assert state.v[0, 0] > 1.0  # never reset


def test_assign_sets_one_number_per_unit():
    layer = MetaNeuron(2, order=1, learn=("reset_value",))
    layer.assign("threshold", torch.tensor([0.5, 3.0]))
    layer.assign("reset_value", 0.25)
    torch.testing.assert_close(layer.threshold, torch.tensor([0.5, 3.0]))
    torch.testing.assert_close(layer.reset_value, torch.full((2,), 0.25))
    with pytest.raises(RangeError):
        layer.assign("threshold", -1.0)
    with pytest.raises(UnknownNameError):
        layer.assign("jump", 0.1)


@pytest.mark.parametrize(
    ("error", "build"),
    [
        (ShapeError, lambda: MetaNeuron(0)),
        (ShapeError, lambda: MetaNeuron(3, tau_mem=torch.full((2,), 5.0))),
        (RangeError, lambda: MetaNeuron(3, tau_mem=1.0)),
        (RangeError, lambda: MetaNeuron(3, threshold=0.0)),
        (RangeError, lambda: MetaNeuron(3, gain=-1.0)),
        (RangeError, lambda: MetaNeuron(3, stochastic=True, temperature=0.0)),
        (RangeError, lambda: MetaNeuron(3, recovery=1.0)),
        (RangeError, lambda: MetaNeuron(3, tau_mem=10.0, coupling=-0.2)),
        (RangeError, lambda: MetaNeuron(3, reset_value=1.0)),
        (RangeError, lambda: MetaNeuron(3, dt=0.0)),
        (RangeError, lambda: MetaNeuron(3, form="quadratic", threshold=5.0)),
        (RangeError, lambda: MetaNeuron(3, threshold=math.nan)),
        (UnknownNameError, lambda: MetaNeuron(3, order=3)),
        (UnknownNameError, lambda: MetaNeuron(3, form="cubic")),
        (UnknownNameError, lambda: MetaNeuron(3, order=1, learn=("jump",))),
        (UnknownNameError, lambda: MetaNeuron(3, learn=("temperature",))),
        (ShapeError, lambda: MetaNeuron(3)(torch.rand(4, 2, 5))),
        (ShapeError, lambda: MetaNeuron(3)(torch.rand(4, 0, 3))),
        (DtypeError, lambda: MetaNeuron(3)(torch.ones(4, 2, 3, dtype=torch.int64))),
        (DtypeError, lambda: MetaNeuron(3)([1.0])),
    ],
)
def test_each_mistake_has_its_error(error, build):
    with pytest.raises(error) as caught:
        build()
    assert isinstance(caught.value, PlexusError)


class TestIntrinsic:
    def model(self):
        return Sequential(
            nn.Linear(3, 4),
            RecurrentLIF(4, learn=("tau_mem", "threshold")),
            nn.Linear(4, 5),
            MetaNeuron(5, order=1, learn=("tau_mem",)),
        )

    def test_the_two_kinds_are_all_there_is_and_share_nothing(self):
        model = self.model()
        own, between = list(intrinsic_parameters(model)), list(synaptic_parameters(model))
        assert len(own) == 3
        assert {id(p) for p in own} | {id(p) for p in between} == {id(p) for p in model.parameters()}
        assert len(own) + len(between) == len(list(model.parameters()))
        assert any(p is model[1].weight for p in between)

    def test_shared_neurons_count_once(self):
        layer = LIF(3, learn=("tau_mem",))
        assert len(list(intrinsic_parameters(Sequential(layer, nn.Linear(3, 3), layer)))) == 1

    def test_frozen_neurons_stay_and_synapses_move(self):
        model = self.model()
        assert freeze_intrinsic(model) == 3
        model(torch.rand(20, 4, 3) * 4)[0].sum().backward()
        assert all(p.grad is None for p in intrinsic_parameters(model))
        assert model[0].weight.grad is not None
        freeze_intrinsic(model, frozen=False)
        assert all(p.requires_grad for p in intrinsic_parameters(model))


class TestGainOfLIF:
    def test_multiplies_the_input(self):
        x = torch.rand(20, 2, 3)
        gain = torch.tensor([0.5, 1.0, 2.0])
        spikes, _ = LIF(3, gain=gain)(x)
        assert torch.equal(spikes, lif(x, decay=math.exp(-0.1), gain=LIF(3, gain=gain).gain)[0])
        scaled, _ = LIF(3, gain=2.0, scale_input=True)(x)
        assert torch.equal(scaled, LIF(3, scale_input=True)(2 * x)[0])

    def test_learns_and_stays_positive(self):
        layer = LIF(3, learn=("gain",))
        layer(torch.rand(20, 2, 3))[0].sum().backward()
        assert layer.log_gain.grad.abs().sum() > 0
        with torch.no_grad():
            layer.log_gain.fill_(-50.0)
        assert (layer.gain > 0).all()

    def test_is_no_part_of_what_is_saved_unless_used(self):
        assert "log_gain" not in LIF(3).state_dict()
        assert "log_gain" in LIF(3, gain=2.0).state_dict()

    @pytest.mark.parametrize("gain", [0.0, -1.0, math.nan])
    def test_refuses_what_is_not_positive(self, gain):
        with pytest.raises(RangeError):
            LIF(3, gain=gain)
