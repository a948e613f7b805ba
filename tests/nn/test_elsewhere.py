"""Layers on another device than the CPU compute there what they compute here; what is made beside them follows."""

import copy
from functools import partial

import pytest
import torch
from torch.testing import assert_close
from torch.utils._pytree import tree_map

from plexus import nn
from plexus.data import EventStream
from plexus.nn import decoding, encoding, interop, models, reservoirs, synapses

U = 4


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def half() -> torch.Tensor:
    return torch.rand(U, U, generator=seeded(1)) < 0.6


def signs() -> torch.Tensor:
    return synapses.dale_signs(U, 0.5)


def moved(values, device):
    return tree_map(lambda part: part.to(device) if isinstance(part, torch.Tensor) else part, values)


def close(found, expected, device=None, **tolerance):
    """Equal numbers; found lies on the device, where one is named."""
    if device is not None:
        tree_map(lambda part: _lies(part, device), found)
    assert_close(moved(found, "cpu"), moved(expected, "cpu"), **{"rtol": 1e-4, "atol": 1e-5, **tolerance})


def _lies(part, device):
    assert not isinstance(part, torch.Tensor) or part.device.type == device.type
    return part


STATEFUL = {
    "IF": partial(nn.IF, U),
    "LIF": partial(nn.LIF, U, refractory=2.0),
    "PLIF": partial(nn.PLIF, U),
    "RecurrentLIF": partial(nn.RecurrentLIF, U, tau_mem=5.0),
    "ALIF": partial(nn.ALIF, U, beta=0.3, a=0.2, b=0.1),
    "CUBA": partial(nn.CUBA, U, tau_rise=4.0, tau_syn=4.0),
    "COBA": partial(nn.COBA, U),
    "AdEx": partial(nn.AdEx, U, dt=1.0, substeps=3),
    "Izhikevich": partial(nn.Izhikevich.of_type, ["RS", "FS", "CH", "IB"]),
    "ResonateAndFire": partial(nn.ResonateAndFire, U, frequency=30.0),
    "BalancedResonate": partial(nn.BalancedResonate, U, frequency=30.0),
    "TwoCompartment": partial(nn.TwoCompartment, U),
    "LeakyIntegrator": partial(nn.LeakyIntegrator, U),
    "SignedIF": partial(nn.SignedIF, U, start=0.5),
    "MetaNeuron": partial(nn.MetaNeuron, U, learn=("threshold",)),
    "Recurrent": lambda: nn.Recurrent(nn.LIF(U), generator=seeded()),
    "Recurrent sparse": lambda: nn.Recurrent(nn.LIF(U), sparse=True, mask=half()),
    "AstrocyteUnit": partial(nn.AstrocyteUnit, U, rank=2),
    "AstrocyteUnit in parallel": partial(nn.AstrocyteUnit, U, use_post=False),
    "with_astrocytes": lambda: nn.with_astrocytes(nn.LIF(U)),
    "ELMLayer": partial(nn.ELMLayer, U, U),
    "DelayedLinear": partial(synapses.DelayedLinear, U, U, 5),
    "HeterogeneousDelays": lambda: synapses.HeterogeneousDelays(U, U, 5, mask=half(), signs=signs()),
    "ShortTermPlasticity": partial(synapses.ShortTermPlasticity, U, tau_facilitation=50.0),
    "ExponentialSynapse": partial(synapses.ExponentialSynapse, U),
    "DoubleExponentialSynapse": partial(synapses.DoubleExponentialSynapse, U, learn=True),
    "AlphaSynapse": partial(synapses.AlphaSynapse, U),
    "HeterogeneousDelayLayer": partial(nn.HeterogeneousDelayLayer, U, U, 5),
    "EchoState": partial(reservoirs.EchoState, U, 10),
    "RecurrentRate": lambda: nn.RecurrentRate(torch.full((U, U), 0.1), activation=torch.relu),
    "Delay": lambda: interop.Delay(torch.arange(U)),
    "Sequential": lambda: nn.Sequential(torch.nn.Linear(U, U), nn.LIF(U), synapses.AlphaSynapse(U)),
    "Sequential, recomputed": lambda: nn.Sequential(torch.nn.Linear(U, U), nn.LIF(U), memory="recompute"),
}
PLAIN = {
    "Dense": lambda: synapses.Dense(U, U, mask=half(), signs=signs(), bias=True),
    "Sparse": lambda: synapses.Sparse(half(), signs=signs()),
    "Lateral": lambda: synapses.Lateral(synapses.ring_distance(U)),
    "GapJunctions": lambda: synapses.GapJunctions(half() & half().T, learn=True),
    "SpikingLinear": partial(nn.SpikingLinear, U, U),
    "MaskedLinear": lambda: nn.MaskedLinear(half()),
    "QuantisedReLU": nn.QuantisedReLU,
    "Scale": lambda: interop.Scale(torch.rand(U)),
}


def gradients(layer):
    return {name: p.grad for name, p in layer.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", [*STATEFUL, *PLAIN])
def test_a_layer_moved_computes_what_it_did(name, elsewhere):
    layer = {**STATEFUL, **PLAIN}[name]()
    x = 3 * torch.rand(12, 2, U)

    def run(layer, x):
        first = layer(x[:7])
        if name in PLAIN:
            return first
        out, state = layer(x[7:], first[1])
        return torch.cat([first[0], out]), state

    there = copy.deepcopy(layer).to(elsewhere)
    expected, found = run(layer, x), run(there, x.to(elsewhere))
    close(found, expected, elsewhere)
    if expected[0].requires_grad:
        (expected if name in PLAIN else expected[0]).square().sum().backward()
        (found if name in PLAIN else found[0]).square().sum().backward()
        close(gradients(there), gradients(layer), elsewhere, rtol=1e-3)


@pytest.mark.parametrize("name", STATEFUL)
def test_the_state_at_rest_lies_where_the_layer_does(name, elsewhere):
    layer = STATEFUL[name]()
    if name == "HeterogeneousDelayLayer":
        pytest.skip("silence is made from the input")
    x = torch.rand(3, 2, U)
    there = copy.deepcopy(layer).to(elsewhere)
    close(there(x.to(elsewhere), there.initial_state(2)), layer(x), elsewhere)


@pytest.mark.parametrize(
    "make",
    [
        lambda to: nn.LIF(U, tau_mem=to(torch.linspace(5, 20, U)), threshold=torch.ones(U)),
        lambda to: nn.Izhikevich(U, c=-60.0, v_peak=to(torch.full((U,), 25.0))),
        lambda to: nn.MetaNeuron(U, tau_mem=5.0, threshold=to(torch.ones(U))),
        lambda to: nn.RecurrentLIF(U, threshold=to(torch.ones(U)), generator=seeded()),
        lambda to: nn.Recurrent(nn.LIF(U).to(to(torch.ones(1)).device), weight=torch.eye(U), mask=half()),
        lambda to: nn.with_astrocytes(nn.LIF(U, threshold=to(torch.ones(U))), generator=seeded()),
        lambda to: synapses.DoubleExponentialSynapse(U, rise=torch.ones(U), decay=to(torch.full((U,), 5.0))),
        lambda to: synapses.ShortTermPlasticity(U, tau_depression=to(torch.full((U,), 90.0))),
        lambda to: synapses.Dense(U, U, mask=to(half()), signs=signs(), generator=seeded()),
        lambda to: synapses.Sparse(to(half()), signs=signs(), generator=seeded()),
        lambda to: synapses.HeterogeneousDelays(
            U, U, 5, delays=to(torch.full((U, U), 2)), mask=half(), generator=seeded()
        ),
        lambda to: synapses.Lateral(to(synapses.ring_distance(U))),
        lambda to: synapses.GapJunctions(to(half() & half().T), 0.2),
        lambda to: nn.MaskedLinear(to(half()), generator=seeded(), bias=False),
        lambda to: nn.RecurrentRate(to(torch.full((U, U), 0.1))),
    ],
)  # fmt: skip
def test_a_layer_is_made_where_its_numbers_and_masks_lie(make, elsewhere):
    here, there = make(lambda t: t), make(lambda t: t.to(elsewhere))
    close(there.state_dict(), here.state_dict(), elsewhere)
    x = torch.rand(5, 2, U)
    close(there(x.to(elsewhere)), here(x), elsewhere)


def test_spaces_and_images(elsewhere):
    frames, x = torch.rand(6, 2, 2, 7, 7), torch.rand(3, 1, 8, 8)
    for layer, given in (
        (synapses.DelayedConv2d(2, 3, 3, max_delay=4), frames),
        (synapses.Convolution(2, 3, 3, signs=torch.tensor([1.0, -1.0])), frames),
        (nn.DelayedConv(2, 3, delays=3, kernel=3), frames),
        (models.SmallCNN(8, 10).eval(), x),
    ):
        layer, given = layer.double(), given.double()  # convolutions of a GPU round numbers of single precision
        there = copy.deepcopy(layer).to(elsewhere)
        close(there(given.to(elsewhere)), layer(given), elsewhere)


def test_delayed_convolutions_read_places_and_events(elsewhere):
    layer = nn.DelayedConv(2, 3, delays=3, kernel=3)
    x = (torch.rand(8, 1, 2, 6, 6) < 0.2).float()
    places, stream = torch.tensor([[7, 0, 2, 3], [4, 0, 1, 1]]), EventStream.from_dense(x[:, 0])
    expected, driven = layer.at(x, places), layer.event_forward(stream)
    layer.to(elsewhere)
    close(layer.at(x.to(elsewhere), places), expected, elsewhere)
    found = layer.event_forward(stream)
    assert found.operations == driven.operations
    close(found.evidence, driven.evidence, torch.device("cpu"))
    evidence = layer(x.to(elsewhere))[0]
    threshold = torch.full((3,), nn.rate_threshold(evidence, rate=5.0))
    assert nn.winner_spikes(evidence, threshold).device.type == elsewhere.type
    assert 0 < layer.prune_(0.5) == layer.count


@pytest.mark.parametrize("kind", ["linear", "convolution"])
def test_balanced_circuits(kind, elsewhere):
    if kind == "linear":
        make, x = partial(nn.EILinear, 6, 8, dtype=torch.float64), torch.rand(5, 6, dtype=torch.float64)
    else:
        make, x = partial(nn.EIConv2d, 2, 8, 3, dtype=torch.float64), torch.rand(5, 2, 6, 6, dtype=torch.float64)
    here = make(generator=seeded())
    there = make(generator=seeded(), device=elsewhere)
    close(there.state_dict(), here.state_dict(), elsewhere)
    here.init_from(x)
    there.init_from(x.to(elsewhere))
    close(there(x.to(elsewhere)), here(x), elsewhere)
    nn.project_(there)
    assert there.weight_ee.device.type == elsewhere.type


def test_a_network_is_rewritten_where_it_lies(elsewhere):
    net = torch.nn.Sequential(torch.nn.Linear(5, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
    x = torch.rand(6, 5)
    there = copy.deepcopy(net).to(elsewhere)
    levels, moved_levels = (
        nn.quantise_activations(net, 4, batch=x),
        nn.quantise_activations(there, 4, batch=x.to(elsewhere)),
    )
    assert next(nn.quantise_activations(there)[1].parameters()).device.type == elsewhere.type
    spiking, moved_spiking = nn.convert_quantised(levels), nn.convert_quantised(moved_levels)
    close(moved_spiking(x.expand(9, 6, 5).to(elsewhere)), spiking(x.expand(9, 6, 5)), elsewhere)
    circuit, moved_circuit = (nn.to_ei(n, generator=seeded()) for n in (net, there))
    nn.initialise_ei(circuit, x)
    nn.initialise_ei(moved_circuit, x.to(elsewhere))
    close(moved_circuit(x.to(elsewhere)), circuit(x), elsewhere)


def test_first_weights_are_equal_everywhere(elsewhere):
    linear = torch.nn.Linear(40, U)
    for draw in (
        lambda layer: nn.fluctuation_driven_(layer.weight, nn.LIF(U), input_rate=0.1, generator=seeded()),
        lambda layer: nn.fan_in_(layer, generator=seeded()),
    ):
        there = copy.deepcopy(linear).to(elsewhere)
        draw(linear)
        draw(there)
        close(there.state_dict(), linear.state_dict(), elsewhere)
    mask = torch.rand(U, 40) < 0.5
    nn.mask_parameter_(there, "weight", mask)
    nn.fan_in_(there, generator=seeded())
    nn.fan_in_(nn.mask_parameter_(linear, "weight", mask), generator=seeded())
    close(there.state_dict(), linear.state_dict(), elsewhere)
    net = nn.Sequential(torch.nn.Linear(6, 20), nn.LIF(20), torch.nn.Linear(20, 5), nn.LIF(5)).to(elsewhere)
    x = (torch.rand(30, 4, 6) < 0.3).float().to(elsewhere)
    assert set(nn.init_firing_(net, x, rate=0.1)) == {"1", "3"}


def test_masks_are_drawn_where_distances_lie(elsewhere):
    distance = synapses.ring_distance(8)
    here, there = (synapses.distance_dependent(d, 2.0, generator=seeded()) for d in (distance, distance.to(elsewhere)))
    close(there, here, elsewhere)


@pytest.mark.parametrize("encode", ["rate", "poisson", "latency", "direct"])
def test_encoders_give_equal_spikes(encode, elsewhere):
    x, function = torch.rand(3, U), getattr(encoding, encode)
    own = [{"generator": seeded()} if encode in ("rate", "poisson") else {} for _ in range(2)]
    close(function(x.to(elsewhere), 20, **own[0]), function(x, 20, **own[1]), elsewhere, rtol=0, atol=0)


def test_codes_of_signals_and_back(elsewhere):
    x = torch.rand(20, 3, U)
    close(encoding.delta(x.to(elsewhere), 0.2), encoding.delta(x, 0.2), elsewhere)
    spikes = (x < 0.3).float()
    for decode in (decoding.count, decoding.rate, decoding.first_spike, decoding.peak, decoding.summed_softmax):
        close(decode(spikes.to(elsewhere)), decode(spikes), elsewhere)


def test_a_cochlea_hears_sound_from_anywhere(elsewhere):
    sound = 0.5 * torch.sin(torch.arange(800) * 0.8).unsqueeze(1)
    cochlea = encoding.Cochlea(5)
    expected = cochlea(sound)
    there = cochlea.to(elsewhere)
    first, state = there(sound[:400].to(elsewhere), there.initial_state(1))
    second, state = there(sound[400:].to(elsewhere), state)
    close((torch.cat([first, second]), state), expected, elsewhere)


def test_chance_is_the_generators(elsewhere):
    x = torch.rand(30, 2, U)

    def layer():
        return nn.MetaNeuron(U, stochastic=True, generator=torch.Generator().manual_seed(3))

    close(layer().to(elsewhere)(x.to(elsewhere)), layer()(x), elsewhere)


def test_constraints(elsewhere):
    for step in (nn.project_, nn.parametrize_):
        layer = nn.constrain(torch.nn.Linear(U, 3), "weight", nn.DaleSigns(signs()))
        nn.project_(layer)
        layer.to(elsewhere)
        step(layer)
        assert bool((layer.weight * signs().to(elsewhere) >= 0).all())
        layer(torch.rand(2, U).to(elsewhere)).sum().backward()


def test_rate_networks(elsewhere):
    ring = nn.orientation_ring(6)
    stimuli = torch.tensor([0.1, 1.0, 2.0], dtype=torch.float64)
    close(ring.drive(stimuli.to(elsewhere)), ring.drive(stimuli), elsewhere)
    here, there = nn.RecurrentRate(ring.weight), nn.RecurrentRate(ring.weight.to(elsewhere))
    gain = torch.full((6,), 0.8, dtype=torch.float64)
    drive = ring.drive(stimuli)
    close(there.steady_state(drive.to(elsewhere), gain=gain), here.steady_state(drive, gain=gain), elsewhere)
    there.set_gain(gain)
    close(there.reader(), here.reader(), elsewhere)


@pytest.mark.parametrize("given", ["there", "here"])
def test_the_recurrent_autoencoder_learns_where_it_lies(given, elsewhere):
    x = torch.randn(64, 6, generator=seeded())
    here, there = nn.RecurrentAutoencoder(6, 8), nn.RecurrentAutoencoder(6, 8).to(elsewhere)
    here.fit(x, steps=5, generator=seeded())
    there.fit(x.to(elsewhere) if given == "there" else x, steps=5, generator=seeded())
    loss = [(x - model(x.to(model.encode.device)).cpu()).square().sum() for model in (here, there)]
    assert_close(loss[1], loss[0], rtol=0.02, atol=0)  # principal components have no sign of their own


def test_reservoirs(elsewhere):
    here = reservoirs.EchoState(2, 10, generator=seeded())
    there = copy.deepcopy(here).to(elsewhere)
    u, state = torch.rand(5, 1, 2), here.initial_state()
    close(there.jacobian(u[0].to(elsewhere), there.initial_state()), here.jacobian(u[0], state), elsewhere)
    given = (0.1 * torch.rand(2, 10), torch.zeros(2), state, 4)
    close(there.free_run(*moved(given, elsewhere)), here.free_run(*given), elsewhere)
    made = reservoirs.EchoState.from_weights(here.weight.to(elsewhere), here.input_weight, here.bias)
    plain = reservoirs.EchoState.from_weights(here.weight, here.input_weight, here.bias)
    close(made.state_dict(), plain.state_dict(), elsewhere)


def test_models(elsewhere):
    symbols = torch.randint(0, 9, (6, 2))
    reset = torch.zeros(6, 2, dtype=torch.bool)
    reset[3, 1] = True
    astro = models.AstroSNN(9, width=8, layers=1, unit=nn.AstrocyteUnit)
    there = copy.deepcopy(astro).to(elsewhere)
    close(there(symbols.to(elsewhere), reset=reset), astro(symbols, reset=reset), elsewhere)
    char = models.CharTransformer(9, context=8, width=8, heads=2, layers=1).eval()
    close(copy.deepcopy(char).to(elsewhere)(symbols.to(elsewhere)), char(symbols), elsewhere)
    wide = models.G2GMLP([8, 16, 4], groups=4, generator=seeded())
    x = torch.rand(3, 8)
    close(copy.deepcopy(wide).to(elsewhere)(x.to(elsewhere)), wide(x), elsewhere)


def test_a_graph_of_layers_is_written_from_anywhere(elsewhere):
    pytest.importorskip("nir")
    net = nn.Sequential(torch.nn.Linear(U, U), nn.LIF(U, reset="hard"), torch.nn.Linear(U, 2))
    x = torch.rand(6, 2, U)
    expected = net(x)[0].detach()
    again = interop.from_nir(interop.to_nir(copy.deepcopy(net).to(elsewhere), x.to(elsewhere)))
    close(again(x)[0], expected, torch.device("cpu"))
    close(again.to(elsewhere)(x.to(elsewhere))[0], expected, elsewhere)
