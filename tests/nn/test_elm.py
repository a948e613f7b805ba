"""Expressive Leaky Memory neurons: the published equations step by step, limits, routing, time constants, ports."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.func import functional_call, grad, vmap

import plexus as px
from plexus.errors import DtypeError, PlexusError, RangeError, ShapeError, UnknownNameError
from plexus.nn import ELM, ELMLayer, ELMLayerState, ELMState, Sequential
from plexus.nn.neurons._elm import routes
from plexus.units import Neurons, Port, Site

BAD = {
    "no memory": (RangeError, {"memory": 0}),
    "shortest is zero": (RangeError, {"tau": (0.0, 10.0)}),
    "shortest is longest": (RangeError, {"tau": (10.0, 10.0)}),
    "reversed": (RangeError, {"tau": (20.0, 10.0)}),
    "negative": (RangeError, {"tau": -1.0}),
    "equal ones learned": (RangeError, {"tau": 5.0, "learn_tau": True}),
    "no synaptic time": (RangeError, {"tau_syn": 0.0}),
    "no scale": (RangeError, {"scale": 0.0}),
    "version": (RangeError, {"version": 3}),
    "layers": (RangeError, {"layers": -1}),
    "activation": (UnknownNameError, {"activation": "gelu"}),
    "routing": (UnknownNameError, {"routing": "interleave"}),
    "count of synapses": (ShapeError, {"branches": 3, "synapses_per_branch": 3}),
    "more synapses than inputs": (RangeError, {"branches": 2, "synapses_per_branch": 9, "routing": "random"}),
    "windows with gaps": (RangeError, {"branches": 2, "synapses_per_branch": 2, "routing": "interleaved"}),
    "inhibitory": (RangeError, {"synapses_per_branch": 2, "routing": "interleaved", "inhibitory": 7}),
}


def published(neuron, x):
    """The equations of the paper, synapse by synapse and step by step, in plain Python over tensors."""
    weight, route = neuron.synapses, neuron.route
    s = torch.zeros(x.shape[1], *weight.shape, dtype=x.dtype)
    m = torch.zeros(x.shape[1], neuron.memory, dtype=x.dtype)
    tau, y = neuron.timescales(), []
    kappa = torch.exp(-neuron.dt / tau)
    write = neuron.scale * (1 - kappa) if neuron.version == 1 else 1 - torch.exp(-neuron.scale * neuron.dt / tau)
    function = {"relu": torch.relu, "silu": nn.functional.silu}.get(neuron.activation, lambda z: z)
    for now in x:
        s = math.exp(-neuron.dt / neuron.tau_syn) * s + weight * now[:, route]
        seen = torch.cat([s.sum(2), kappa * m], 1)
        hidden = function(seen @ torch.cat([neuron.input_weight, neuron.inner], 1).T + neuron.hidden_bias)
        for k in range(0, len(neuron.deep), 2):
            hidden = function(hidden @ neuron.deep[k].T + neuron.deep[k + 1])
        if neuron.layers:
            hidden = hidden @ neuron.outer.T + neuron.outer_bias
        m = kappa * m + write * 1.7159 * torch.tanh(2 / 3 * hidden)
        y.append(m @ neuron.weight.T + neuron.bias)
    return torch.stack(y)


@settings(max_examples=15, deadline=None)
@given(
    layers=st.integers(0, 2),
    version=st.sampled_from([1, 2]),
    routing=st.sampled_from([None, "interleaved", "random"]),
    learn_tau=st.booleans(),
    activation=st.sampled_from(["relu", "silu"]),
    seed=st.integers(0, 50),
)
def test_the_neuron_is_the_published_one(layers, version, routing, learn_tau, activation, seed):
    g = torch.Generator().manual_seed(seed)
    branches = {"branches": 3, "synapses_per_branch": 2 if routing is None else 4}
    options = {"layers": layers, "version": version, "learn_tau": learn_tau, "activation": activation, "dt": 2.0}
    neuron = ELM(6, 2, 5, tau=(1.0, 80.0), routing=routing, inhibitory=2, generator=g, **branches, **options).double()
    with torch.no_grad():
        neuron.synapse_raw.copy_(torch.randn(neuron.synapse_raw.shape, generator=g))  # some of them silent
    x = (torch.rand(9, 3, 6, generator=g, dtype=torch.float64) < 0.4).double()
    torch.testing.assert_close(neuron(x)[0], published(neuron, x))


def test_every_parameter_learns_as_it_does_in_the_published_form():
    g = torch.Generator().manual_seed(0)
    neuron = ELM(6, 1, 4, tau=(1.0, 50.0), learn_tau=True, generator=g).double()
    x = torch.rand(7, 2, 6, generator=g, dtype=torch.float64)
    ours = torch.autograd.grad(neuron(x)[0].square().sum(), list(neuron.parameters()))
    theirs = torch.autograd.grad(published(neuron, x).square().sum(), list(neuron.parameters()))
    for one, other in zip(ours, theirs, strict=True):
        assert one.abs().max() > 0
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_pieces_equal_the_whole(dtype):
    g = torch.Generator().manual_seed(0)
    models = [
        ELM(5, 2, 6, generator=g),
        ELM(5, 2, 6, layers=2, version=2, generator=g),
        ELMLayer(5, 3, 4, generator=g),
        ELMLayer(5, 3, 4, recurrent=False, spiking=True, threshold=0.0, generator=g),
        ELMLayer(
            5, 3, 4, spiking=True, threshold=0.0, branches=2, synapses_per_branch=5, routing="random", generator=g
        ),
    ]
    x = torch.rand(12, 3, 5, generator=g).to(dtype)
    for model in models:
        model.to(dtype)
        whole, last = model(x)
        first, state = model(x[:5])
        second, state = model(x[5:], state)
        torch.testing.assert_close(torch.cat([first, second]), whole)
        for one, other in zip(state, last, strict=True):
            torch.testing.assert_close(one, other)
        empty, same = model(x[:0], state)
        assert len(empty) == 0
        assert all(torch.equal(a, b) for a, b in zip(same, state, strict=True))


def test_a_layer_is_neurons_side_by_side():
    g = torch.Generator().manual_seed(1)
    layer = ELMLayer(4, 3, 5, recurrent=False, tau=(1.0, 30.0), generator=g).double()
    x = torch.rand(8, 2, 4, generator=g, dtype=torch.float64)
    z, _ = layer(x)
    for n in range(3):
        one = ELM(4, 1, 5, tau=(1.0, 30.0)).double()
        with torch.no_grad():
            for name, parameter in one.named_parameters():
                parameter.copy_(getattr(layer, name)[n])
        torch.testing.assert_close(one(x)[0].squeeze(2), z[:, :, n])


def test_a_recurrent_layer_reads_what_it_emitted_one_step_before():
    g = torch.Generator().manual_seed(2)
    layer = ELMLayer(4, 3, 5, generator=g).double()
    x = torch.rand(8, 2, 4, generator=g, dtype=torch.float64)
    z, _ = layer(x)
    fed = ELMLayer(7, 3, 5, recurrent=False).double()  # the same neurons, given the emissions as inputs
    fed.load_state_dict(layer.state_dict())
    before = torch.cat([torch.zeros(1, 2, 3, dtype=torch.float64), z[:-1]])
    torch.testing.assert_close(fed(torch.cat([x, before], 2))[0], z)


def test_spikes_are_those_of_the_analog_value_and_learn_by_the_surrogate():
    g = torch.Generator().manual_seed(3)
    analog = ELMLayer(4, 3, 5, recurrent=False, generator=g)
    spiking = ELMLayer(4, 3, 5, recurrent=False, spiking=True, threshold=0.1)
    spiking.load_state_dict(analog.state_dict())
    x = torch.rand(20, 2, 4, generator=g)
    v, z = analog(x)[0], spiking(x)[0]
    assert torch.equal(z, (v > 0.1).float())
    assert 0 < z.mean() < 1
    (found,) = torch.autograd.grad(z.sum(), spiking.bias)
    torch.testing.assert_close(found, px.kernels.Surrogate("arctan").derivative(v - 0.1).sum((0, 1)))


def test_a_port_acts_inside_the_loop():
    g = torch.Generator().manual_seed(4)
    layer = ELMLayer(4, 3, 5, generator=g)
    x = torch.rand(10, 2, 4, generator=g)
    plain, _ = layer(x)
    layer.port = Port.on(torch.tensor([True, False, False]), gain=0.0)
    edited, state = layer(x)
    assert (edited[..., 0] == 0).all()
    assert (state.z[:, 0] == 0).all()
    assert not torch.allclose(edited[1:, :, 1:], plain[1:, :, 1:])
    assert torch.equal(edited[0, :, 1:], plain[0, :, 1:])


def test_gradients_of_each_sample_add_up_to_those_of_the_batch():
    g = torch.Generator().manual_seed(6)
    neuron = ELM(5, 2, 4, generator=g).double()
    x, weights = torch.rand(6, 3, 5, generator=g, dtype=torch.float64), dict(neuron.named_parameters())

    def loss(weights, sample):
        return functional_call(neuron, weights, (sample.unsqueeze(1),))[0].square().sum()

    each = vmap(grad(loss), (None, 1))(weights, x)
    neuron(x)[0].square().sum().backward()
    for name, parameter in weights.items():
        torch.testing.assert_close(each[name].sum(0), parameter.grad)


def test_memory_keeps_its_promise_of_time():
    """Left alone with a network that writes nothing, each unit decays with the time constant it shows."""
    neuron = ELM(3, 1, 4, tau=(2.0, 200.0)).double()
    with torch.no_grad():
        neuron.outer.zero_()
        neuron.outer_bias.zero_()
    start = ELMState(torch.zeros(1, 3, dtype=torch.float64), torch.ones(1, 4, dtype=torch.float64))
    _, state = neuron(torch.zeros(50, 1, 3, dtype=torch.float64), start)
    torch.testing.assert_close(state.memory[0], torch.exp(-50 / neuron.timescales()))


def test_scale_is_what_moves_slow_units():
    torch.manual_seed(0)
    moved = {}
    for scale in (1.0, 5.0):
        neuron = ELM(2, 1, 1, tau=1000.0, scale=scale)
        with torch.no_grad():
            neuron.outer.zero_()
            neuron.outer_bias.fill_(100.0)
        moved[scale] = neuron(torch.zeros(1, 1, 2))[1].memory.item()
    assert moved[5.0] == pytest.approx(5 * moved[1.0], rel=1e-4)
    assert moved[1.0] == pytest.approx(1.7159e-3, rel=1e-2)


@settings(max_examples=20, deadline=None)
@given(low=st.floats(0.5, 20.0), factor=st.floats(1.5, 500.0), memory=st.integers(1, 12), push=st.floats(-1e3, 1e3))
def test_learnable_time_constants_stay_in_their_range(low, factor, memory, push):
    neuron = ELM(2, 1, memory, tau=(low, low * factor), learn_tau=True).double()
    fixed = ELM(2, 1, memory, tau=(low, low * factor)).double().timescales()
    assert (neuron.timescales() / fixed).log().abs().max() <= 0.0101 * math.log(factor) + 1e-6
    with torch.no_grad():
        neuron.tau_raw.add_(push)
    tau = neuron.timescales()
    assert (tau >= low).all()
    assert (tau <= low * factor).all()


def test_time_constants_are_log_spaced():
    tau = ELM(2, 1, 4, tau=(1.0, 1000.0)).timescales()
    torch.testing.assert_close(tau, torch.tensor([1.0, 10.0, 100.0, 1000.0]))
    torch.testing.assert_close(ELM(2, 1, 1, tau=(1.0, 100.0)).timescales(), torch.tensor([10.0]))
    assert (ELM(2, 1, 3, tau=30.0).timescales() == 30).all()


def test_interleaved_windows_mix_and_cover():
    """The published setting: 1278 inputs, half of them inhibitory, 45 branches of 100 synapses."""
    route = routes(1278, 45, 100, "interleaved", inhibitory=639)
    inhibitory = (route >= 639).float().mean(1)
    assert ((inhibitory - 0.5).abs() < 0.02).all()
    assert set(route.flatten().tolist()) == set(range(1278))
    assert all(len(set(row)) == 100 for row in route.tolist())
    shared = set(route[0].tolist()) & set(route[1].tolist())
    assert len(shared) == 100 - math.ceil(1278 / 45)


def test_random_routes_come_from_the_generator_and_differ_between_neurons():
    one, other = (routes(20, 4, 6, "random", generator=torch.Generator().manual_seed(5)) for _ in range(2))
    assert torch.equal(one, other)
    assert all(len(set(row)) == 6 for row in one.tolist())
    layer = ELMLayer(20, 2, 3, branches=4, synapses_per_branch=6, routing="random")
    assert not torch.equal(layer.route[0], layer.route[1])


def test_synapses_never_turn_negative():
    neuron = ELM(4, 1, 3)
    assert (neuron.synapses == 0.5).all()
    with torch.no_grad():
        neuron.synapse_raw.fill_(-1.0)
    assert (neuron.synapses == 0).all()
    still = neuron(torch.rand(6, 1, 4))[0]
    torch.testing.assert_close(neuron(torch.zeros(6, 1, 4))[0], still)


def test_inside_sequential_and_under_edits():
    torch.manual_seed(0)
    net = Sequential(nn.Linear(4, 8), ELMLayer(8, 6, 3, spiking=True, threshold=0.0), ELM(6, 2, 4), nn.Linear(2, 2))
    x = torch.rand(7, 3, 4)
    out, states = net(x)
    assert isinstance(states[1], ELMLayerState)
    assert isinstance(states[2], ELMState)
    first, middle = net(x[:3])
    torch.testing.assert_close(torch.cat([first, net(x[3:], middle)[0]]), out)
    chosen = Neurons({Site("1", "t b u"): torch.tensor([True, False, True, False, False, False])})
    with px.edit.scale(net, chosen, 0.0):
        edited, states = net(x)
    assert (states[1].z[:, [0, 2]] == 0).all()
    assert not torch.equal(edited, out)
    assert torch.equal(net(x)[0], out)


@pytest.mark.parametrize("name", BAD)
def test_bad_numbers_are_refused(name):
    error, options = BAD[name]
    with pytest.raises(error):
        ELM(6, 1, **{"memory": 3, **options})


def test_bad_input_is_refused():
    neuron = ELM(6, 1, 3)
    with pytest.raises(ShapeError, match="unsqueeze"):
        neuron(torch.zeros(2, 6))
    with pytest.raises(ShapeError, match="inputs come last"):
        neuron(torch.zeros(2, 6, 5))
    with pytest.raises(ShapeError, match="empty"):
        neuron(torch.zeros(2, 0, 6))
    with pytest.raises(DtypeError):
        neuron(torch.zeros(2, 1, 6, dtype=torch.int64))
    with pytest.raises(DtypeError, match="another dtype"):
        neuron(torch.zeros(2, 1, 6, dtype=torch.float64))
    with pytest.raises(PlexusError, match="memory"):
        neuron(torch.zeros(2, 1, 6), ELMState(torch.zeros(1, 6), torch.zeros(2, 3)))
    with pytest.raises(RangeError):
        ELM(6, 0)
    with pytest.raises(RangeError):
        ELMLayer(6, 0)
