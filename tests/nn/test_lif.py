"""LIF and RecurrentLIF as layers: their numbers, their states, their ports and what they refuse."""

import copy
import math

import pytest
import torch

from plexus.errors import DeviceError, DtypeError, PlexusError, RangeError, ShapeError, UnknownNameError
from plexus.kernels import lif
from plexus.nn import LIF, RecurrentLIF, Sequential, fluctuation_driven_, init_firing_
from plexus.nn.synapses import DelayedLinear
from plexus.units import Port


class TestLIF:
    def test_decay_of_a_time_constant(self):
        assert LIF(2, tau_mem=20.0, dt=0.5).decay.item() == pytest.approx(math.exp(-0.5 / 20))
        assert LIF(2, tau_mem=20.0, dt=0.5, discretisation="euler").decay.item() == pytest.approx(1 - 0.5 / 20)
        assert LIF(2, tau_mem=math.inf).decay.item() == 1.0

    def test_layer_is_the_operator_with_its_numbers(self):
        layer = LIF(5, tau_mem=torch.linspace(3, 9, 5), threshold=0.7, scale_input=True, refractory=2.0, reset="hard")
        x = 3 * torch.rand(40, 3, 5)
        decay = torch.exp(-1 / torch.linspace(3, 9, 5))
        expected, _ = lif(x, decay=decay, gain=1 - decay, threshold=0.7, refractory=2, reset="hard", backend="eager")
        assert expected.any()
        assert torch.equal(layer(x)[0], expected)

    def test_refractory_time_is_in_ms(self):
        spikes, _ = LIF(1, refractory=1.5, dt=0.5)(torch.full((50, 1, 1), 20.0))
        assert spikes.flatten().nonzero().flatten().diff().unique().tolist() == [4]

    def test_state_at_rest_is_none(self):
        layer = LIF((2, 3), rest=-0.4, learn=("rest",))
        x = torch.rand(6, 4, 2, 3)
        for a, b in zip(layer(x)[1], layer(x, layer.initial_state(4))[1], strict=True):
            assert torch.equal(a, b)
        assert layer.initial_state(4).v.shape == (4, 2, 3)

    def test_learnt_numbers_receive_gradients_and_stay_positive(self):
        layer = LIF(3, tau_mem=5.0, learn=("tau_mem", "threshold", "reset_value"), reset="hard")
        assert {name for name, _ in layer.named_parameters()} == {"log_tau_mem", "threshold", "reset_value"}
        optimizer = torch.optim.SGD(layer.parameters(), lr=0.01)
        before = [p.detach().clone() for p in layer.parameters()]
        for _ in range(3):
            optimizer.zero_grad()
            layer(torch.rand(20, 4, 3))[0].mean().backward()
            optimizer.step()
        assert all(not torch.equal(p, b) for p, b in zip(layer.parameters(), before, strict=True))
        assert (layer.tau_mem > 0).all()

    def test_fixed_numbers_are_not_parameters(self):
        assert not list(LIF(3).parameters())
        assert set(LIF(3).state_dict()) == {"log_tau_mem", "threshold", "rest", "reset_value"}

    def test_port_is_no_part_of_what_is_saved(self):
        layer = LIF(3)
        layer.port = Port(gain=torch.zeros(3))
        assert set(layer.state_dict()) == set(LIF(3).state_dict())
        assert not layer(torch.ones(5, 1, 3))[0].any()
        layer.port = None
        assert layer(torch.ones(5, 1, 3))[0].any()

    def test_feature_maps(self):
        layer = LIF((2, 4, 5), tau_mem=torch.tensor([3.0, 9.0]).view(2, 1, 1))
        assert layer.axes == "t b u y x"
        x = torch.rand(12, 3, 2, 4, 5)
        spikes, _ = layer(x)
        assert spikes.shape == x.shape
        for channel, tau in enumerate((3.0, 9.0)):
            alone, _ = LIF((4, 5), tau_mem=tau)(x[:, :, channel])
            assert torch.equal(spikes[:, :, channel], alone)
        layer.port = Port(gain=torch.tensor([0.0, 1.0]))
        edited, _ = layer(x)
        assert not edited[:, :, 0].any()
        assert torch.equal(edited[:, :, 1], spikes[:, :, 1])

    def test_copies_and_double_precision(self):
        layer = copy.deepcopy(LIF(3)).double()
        assert layer(torch.rand(4, 2, 3).double())[0].dtype == torch.float64

    @pytest.mark.parametrize(
        ("error", "build"),
        [
            (ShapeError, lambda: LIF(0)),
            (ShapeError, lambda: LIF(())),
            (ShapeError, lambda: LIF(3, tau_mem=torch.ones(2))),
            (RangeError, lambda: LIF(3, tau_mem=0.0)),
            (RangeError, lambda: LIF(3, tau_mem=math.nan)),
            (RangeError, lambda: LIF(3, dt=-1.0)),
            (RangeError, lambda: LIF(3, tau_mem=0.5, discretisation="euler")),
            (RangeError, lambda: LIF(3, refractory=-1.0)),
            (UnknownNameError, lambda: LIF(3, reset="sfot")),
            (UnknownNameError, lambda: LIF(3, surrogate="atan")),
            (UnknownNameError, lambda: LIF(3, learn=("tau",))),
            (ShapeError, lambda: RecurrentLIF((2, 3))),
            (ShapeError, lambda: LIF(3)(torch.rand(4, 2, 5))),
            (ShapeError, lambda: LIF(3)(torch.rand(4, 0, 3))),
            (DtypeError, lambda: LIF(3)(torch.ones(4, 2, 3, dtype=torch.int64))),
            (DtypeError, lambda: LIF(3)([1.0, 2.0, 3.0])),
            (DeviceError, lambda: LIF(3)(torch.rand(4, 2, 3, device="meta"))),
        ],
    )
    def test_each_mistake_has_its_error(self, error, build):
        with pytest.raises(error) as caught:
            build()
        assert isinstance(caught.value, PlexusError)

    def test_hints(self):
        with pytest.raises(ShapeError, match=r"x\.unsqueeze\(0\)"):
            LIF(3)(torch.rand(2, 3))
        with pytest.raises(ShapeError, match="dimension 1"):
            LIF(3)(torch.rand(2, 3, 4))
        layer = LIF(3)
        _, state = layer(torch.rand(7, 2, 3))
        with pytest.raises(ShapeError, match=r"x\.transpose\(0, 1\)"):
            layer(torch.rand(2, 7, 3), state)


class TestRecurrentLIF:
    def loop(self, layer, x, silent=()):
        """The same network, step by step from its equations."""
        v, z, out = torch.zeros_like(x[0]), torch.zeros_like(x[0]), []
        weight = layer.weight if layer.mask is None else layer.weight * layer.mask
        for current in x:
            m = layer.decay * v + (current + z @ weight.T)
            z = (m > layer.threshold).to(x.dtype)
            z[:, list(silent)] = 0
            v = m - z * layer.threshold
            out.append(z)
        return torch.stack(out)

    def layer(self, **kw):
        return RecurrentLIF(6, tau_mem=5.0, weight_gain=2.0, generator=torch.Generator().manual_seed(1), **kw).double()

    @pytest.mark.parametrize("autapses", [False, True])
    def test_equals_its_equations(self, autapses):
        layer, x = self.layer(autapses=autapses), torch.rand(30, 3, 6, dtype=torch.float64)
        assert torch.equal(layer(x)[0], self.loop(layer, x))

    def test_silenced_unit_is_silent_for_its_targets(self):
        layer, x = self.layer(), torch.rand(30, 3, 6, dtype=torch.float64)
        free = layer(x)[0]
        layer.port = Port.on(torch.tensor([False, True, False, False, False, False]), gain=0.0)
        edited = layer(x)[0]
        assert torch.equal(edited, self.loop(layer, x, silent=(1,)))
        others = [0, 2, 3, 4, 5]
        assert not torch.equal(edited[..., others], free[..., others])

    def test_pieces_equal_the_whole(self):
        layer, x = self.layer(), torch.rand(20, 3, 6, dtype=torch.float64)
        whole, after = layer(x)
        first, state = layer(x[:7])
        second, state = layer(x[7:], state)
        assert torch.equal(torch.cat([first, second]), whole)
        assert all(torch.equal(a, b) for a, b in zip(state, after, strict=True))

    def test_weights_learn_and_no_unit_drives_itself(self):
        layer, x = self.layer(), torch.rand(20, 3, 6, dtype=torch.float64)
        layer(x)[0].sum().backward()
        assert layer.weight.grad.diagonal().abs().sum() == 0
        assert (layer.weight.grad.abs() > 0).sum() == 30


class TestInitialisation:
    def test_fluctuations_carry_the_membrane_as_said(self):
        generator = torch.Generator().manual_seed(0)
        layer = LIF(400, tau_mem=8.0, threshold=1.3)
        weight = fluctuation_driven_(
            torch.empty(400, 300, dtype=torch.float64), layer, input_rate=0.1, xi=2.0, mean=0.3, generator=generator
        )
        decay = math.exp(-1 / 8)
        # by the definition: the stationary mean and variance of a filtered Bernoulli train through these weights
        mean = weight.sum(1) * 0.1 / (1 - decay)
        variance = weight.square().sum(1) * 0.1 * 0.9 / (1 - decay**2)
        assert mean.mean().item() == pytest.approx(0.3, abs=0.1)
        assert variance.mean().sqrt().item() == pytest.approx((1.3 - 0.3) / 2.0, rel=0.02)

    @pytest.mark.parametrize("rate", [0.02, 0.2])
    def test_deep_network_fires_in_the_band(self, rate):
        torch.manual_seed(4)
        net = Sequential(torch.nn.Linear(30, 60), LIF(60), torch.nn.Linear(60, 40), LIF(40), torch.nn.Linear(40, 3))
        x = torch.rand(40, 16, 30)
        reached = init_firing_(net, x, rate=rate)
        hidden = x
        for name, layer in net.named_children():
            hidden = layer(hidden)[0] if isinstance(layer, LIF) else layer(hidden)
            if isinstance(layer, LIF):
                assert hidden.mean().item() == pytest.approx(rate, rel=0.2)
                assert reached[name] == pytest.approx(hidden.mean().item(), rel=1e-3)
        assert net.training

    def test_delayed_synapses_are_scaled_too(self):
        net = Sequential(DelayedLinear(30, 40, max_delay=4), LIF(40), torch.nn.Linear(40, 3))
        x = torch.rand(40, 16, 30)
        rates = init_firing_(net, x, rate=0.1)
        assert rates["1"] == pytest.approx(0.1, rel=0.2)
        assert net[:2](x)[0].mean().item() == pytest.approx(rates["1"], rel=1e-3)

    def test_what_cannot_fire_is_refused_and_left_as_it_was(self):
        net = Sequential(torch.nn.Linear(4, 3, bias=False), LIF(3))
        before = net[0].weight.detach().clone()
        with pytest.raises(RangeError, match="silent"):
            init_firing_(net, torch.zeros(5, 2, 4))
        assert torch.equal(net[0].weight, before)

    @pytest.mark.parametrize(
        "wrong", [{"input_rate": 0.0}, {"input_rate": 0.1, "xi": 0.0}, {"input_rate": 0.1, "mean": 2.0}]
    )
    def test_numbers_out_of_range(self, wrong):
        with pytest.raises(RangeError):
            fluctuation_driven_(torch.empty(3, 5), LIF(3), **wrong)
