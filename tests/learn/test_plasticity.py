"""Local rules: pair STDP against the sum over pairs, the loop's promises, homeostasis at its fixed point."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from plexus.errors import RangeError, UnknownNameError, UnsupportedError
from plexus.learn.plasticity import HomeostaticThreshold, PairSTDP, Plastic, Rule, Signals
from plexus.nn import LIF, MetaNeuron


def trains(steps, batch, units, seed, p=0.3):
    return (torch.rand(steps, batch, units, generator=torch.Generator().manual_seed(seed)) < p).double()


def by_pairs(rule, pre, post):
    """The change by its definition, pair after pair."""
    delta = torch.zeros(post.shape[2], pre.shape[2], dtype=torch.float64)
    for sample in range(pre.shape[1]):
        for o in range(post.shape[2]):
            for i in range(pre.shape[2]):
                for t in post[:, sample, o].nonzero().flatten().tolist():
                    before = [s for s in pre[:, sample, i].nonzero().flatten().tolist() if s <= t]
                    for s in before if rule.pairs == "all" else before[-1:]:
                        delta[o, i] += rule.potentiation * math.exp(-(t - s) * rule.dt / rule.tau_plus)
                for t in pre[:, sample, i].nonzero().flatten().tolist():
                    before = [s for s in post[:, sample, o].nonzero().flatten().tolist() if s < t]
                    for s in before if rule.pairs == "all" else before[-1:]:
                        delta[o, i] -= rule.depression * math.exp(-(t - s) * rule.dt / rule.tau_minus)
    return delta


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**20), st.sampled_from(["all", "nearest"]), st.integers(1, 12))
def test_traces_give_the_sum_over_pairs(seed, pairs, steps):
    rule = PairSTDP(0.7, 0.4, tau_plus=12.0, tau_minus=31.0, dt=2.0, pairs=pairs, reduction="sum")
    pre, post = trains(steps, 2, 3, seed), trains(steps, 2, 2, seed + 1)
    found, _ = rule.step(torch.zeros(2, 3).double(), Signals(pre, post), None, rule.init(2, 3, 2, dtype=torch.float64))
    torch.testing.assert_close(found, by_pairs(rule, pre, post))


def test_pieces_add_up_to_the_whole_and_the_mean_is_the_sum_over_the_batch():
    pre, post, weight = trains(20, 4, 3, 0), trains(20, 4, 2, 1), torch.zeros(2, 3).double()
    rule = PairSTDP(reduction="sum")
    whole, after = rule.step(weight, Signals(pre, post), None, rule.init(4, 3, 2, dtype=torch.float64))
    first, state = rule.step(weight, Signals(pre[:7], post[:7]), None, rule.init(4, 3, 2, dtype=torch.float64))
    second, state = rule.step(weight, Signals(pre[7:], post[7:]), None, state)
    torch.testing.assert_close(first + second, whole)
    torch.testing.assert_close(state.pre, after.pre)
    torch.testing.assert_close(state.post, after.post)
    mean = PairSTDP(reduction="mean")
    found, _ = mean.step(weight, Signals(pre, post), None, mean.init(4, 3, 2, dtype=torch.float64))
    torch.testing.assert_close(found * 4, whole)


def test_a_modulator_weighs_each_sample():
    rule = PairSTDP(reduction="sum")
    pre, post, weight = trains(20, 2, 3, 0), trains(20, 2, 2, 1), torch.zeros(2, 3).double()

    def change(rows, modulator=None):
        signals = Signals(pre[:, rows], post[:, rows])
        return rule.step(weight, signals, modulator, rule.init(len(rows), 3, 2, dtype=torch.float64))[0]

    expected = 2 * change([0]) - 0.5 * change([1])
    torch.testing.assert_close(change([0, 1], torch.tensor([2.0, -0.5])), expected)
    torch.testing.assert_close(change([0, 1], torch.tensor(0.0)), torch.zeros_like(expected))


def test_order_in_time_decides_the_sign():
    early, late = torch.zeros(10, 1, 1), torch.zeros(10, 1, 1)
    early[2], late[5] = 1, 1
    rule = PairSTDP()
    causal, _ = rule.step(torch.zeros(1, 1), Signals(early, late), None, rule.init(1, 1, 1))
    acausal, _ = rule.step(torch.zeros(1, 1), Signals(late, early), None, rule.init(1, 1, 1))
    assert causal > 0 > acausal


class TestPlastic:
    def layer(self, rule=None, **others):
        synapse = nn.Linear(5, 3, bias=False)
        with torch.no_grad():
            synapse.weight.copy_(torch.rand(3, 5, generator=torch.Generator().manual_seed(0)))
        return Plastic(synapse, LIF(3, threshold=torch.ones(3)), rule or PairSTDP(0.5, 0.4), **others)

    def test_forward_learns_nothing(self):
        layer, x = self.layer(), trains(20, 2, 5, 0).float()
        before = layer.synapse.weight.clone()
        spikes, _ = layer(x)
        assert spikes.any()
        assert torch.equal(layer.synapse.weight, before)
        learned, _ = layer.learn(x)
        assert torch.equal(learned, spikes)  # a rule per sequence: the weights of the start throughout
        assert not torch.equal(layer.synapse.weight, before)

    def test_weights_stay_within_their_bounds(self):
        layer = self.layer(PairSTDP(5.0, 6.0), low=0.0, high=1.0)
        for seed in range(3):
            layer.learn(trains(20, 2, 5, seed).float())
        weight = layer.synapse.weight
        assert weight.min() == 0.0 or weight.max() == 1.0
        assert ((weight >= 0) & (weight <= 1)).all()

    def test_a_rule_per_step_is_whole_in_pieces(self):
        x = trains(20, 2, 5, 0).float()
        layers = [self.layer(PairSTDP(0.1, 0.05, acts="step")) for _ in range(2)]
        whole, after = layers[0].learn(x)
        first, state = layers[1].learn(x[:8])
        second, state = layers[1].learn(x[8:], state)
        assert torch.equal(torch.cat([first, second]), whole)
        assert torch.equal(layers[0].synapse.weight, layers[1].synapse.weight)
        assert torch.equal(state.rule.pre, after.rule.pre)

    def test_a_rule_per_step_feels_its_own_changes(self):
        x = trains(40, 2, 5, 0).float()
        sequence, step = self.layer(PairSTDP(0.5, 0.1)), self.layer(PairSTDP(0.5, 0.1, acts="step"))
        assert not torch.equal(sequence.learn(x)[0], step.learn(x)[0])

    def test_a_rule_may_ask_for_the_membrane_and_return_a_gradient(self):
        class Membrane(PairSTDP):
            needs = ("post", "membrane")
            sign = -1

            def step(self, weight, signals, modulator, state, generator=None):
                assert signals.membrane.shape == signals.post.shape
                return torch.full_like(weight, signals.membrane.abs().mean().item()), state

        layer, x = self.layer(Membrane()), trains(20, 2, 5, 0).float()
        before = layer.synapse.weight.clone()
        layer.learn(x)
        assert (layer.synapse.weight < before).all()

    def test_coincident_inputs_win_over_random_ones(self):
        """Song, Miller & Abbott: correlated inputs are potentiated at the cost of the others."""
        generator = torch.Generator().manual_seed(2)
        synapse = nn.Linear(20, 1, bias=False)
        with torch.no_grad():
            synapse.weight.fill_(0.12)
        layer = Plastic(synapse, LIF(1), PairSTDP(0.002, 0.0024), low=0.0, high=0.25)
        for _ in range(20):
            x = (torch.rand(200, 10, 20, generator=generator) < 0.04).float()
            x[..., :10] = torch.maximum(x[..., :10] * 0.5, (torch.rand(200, 10, 1, generator=generator) < 0.02).float())
            layer.learn(x)
        assert synapse.weight[0, :10].mean() > 1.5 * synapse.weight[0, 10:].mean()

    def test_mistakes(self):
        class Strange(PairSTDP):
            needs = ("dopamine",)

        for wrong in (
            lambda: self.layer(Strange()),
            lambda: Plastic(nn.Linear(3, 3), nn.Identity(), PairSTDP()),
        ):
            with pytest.raises(UnsupportedError):
                wrong()
        with pytest.raises(RangeError):
            self.layer(low=1.0, high=0.0)
        assert not isinstance(nn.Linear(3, 3), Rule)


class TestHomeostaticThreshold:
    @pytest.mark.parametrize("make", [lambda: LIF(4, threshold=torch.ones(4)), lambda: MetaNeuron(4, order=1)])
    def test_rates_come_to_their_target(self, make):
        neuron, home = make(), HomeostaticThreshold(target=0.1, rate=1.0)
        generator = torch.Generator().manual_seed(0)
        drive = torch.tensor([0.2, 0.5, 1.0, 2.0])
        for _ in range(80):
            x = torch.rand(100, 10, 4, generator=generator) * drive
            spikes, _ = neuron(x)
            home.update(neuron, spikes)
        torch.testing.assert_close(spikes.mean((0, 1)), torch.full((4,), 0.1), rtol=0.2, atol=0.0)
        assert (neuron.threshold.diff() > 0).all()  # the stronger the drive, the higher

    def test_never_goes_below_the_floor(self):
        neuron = MetaNeuron(2)
        for _ in range(5):
            HomeostaticThreshold(target=1.0, rate=10.0, floor=0.2).update(neuron, torch.zeros(10, 1, 2))
        torch.testing.assert_close(neuron.threshold, torch.full((2,), 0.2))

    def test_mistakes(self):
        with pytest.raises(UnsupportedError, match=r"threshold=torch\.ones"):
            HomeostaticThreshold().update(LIF(3), torch.zeros(5, 1, 3))
        for wrong in ({"target": 1.5}, {"rate": 0.0}, {"floor": 0.0}):
            with pytest.raises(RangeError):
                HomeostaticThreshold(**wrong)


@pytest.mark.parametrize(
    ("error", "wrong"),
    [
        (RangeError, {"tau_plus": 0.0}),
        (RangeError, {"dt": -1.0}),
        (UnknownNameError, {"pairs": "some"}),
        (UnknownNameError, {"acts": "epoch"}),
        (UnknownNameError, {"reduction": "max"}),
    ],
)
def test_stdp_out_of_range(error, wrong):
    with pytest.raises(error):
        PairSTDP(**wrong)
