"""Rules of learning on another device than the CPU: the same numbers, where the model lies."""

import copy

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from plexus import nn
from plexus.learn import objectives, unlearning
from plexus.learn.homeostasis import (
    GainControl,
    InhibitoryHomeostasis,
    attach_gain_control,
    divisive_gain,
    linear_reader,
    uniform_gain,
)
from plexus.learn.plasticity import HomeostaticThreshold, PairSTDP, Plastic, Tempotron
from plexus.learn.readout import LZCClassifier, RecursiveReadout, RidgeReadout
from plexus.nn.reservoirs import EchoState
from plexus.probe.scores import diagonal_fisher
from plexus.units import Site


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def close(found, expected, **tolerance):
    assert_close(found.cpu(), expected, **{"rtol": 1e-4, "atol": 1e-5, **tolerance})


def both(module, device):
    """A module here and a copy of it there."""
    return module, copy.deepcopy(module).to(device)


def mlp():
    return torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))


@pytest.mark.parametrize("activation", ["sigmoid", "tanh"])
@pytest.mark.parametrize("synapses", ["inhibitory", "excitatory"])
def test_inhibition_adapts_to_its_input(activation, synapses, elsewhere):
    cell = EchoState(1, 12, density=0.8, gain=0.5, activation=activation, generator=seeded(), dtype=torch.float64)
    here, there = both(cell, elsewhere)
    u = 2 * torch.rand(60, 2, 1, generator=seeded(1), dtype=torch.float64) - 1
    settings = {"spread": 0.1, "synapses": synapses, "window": 20, "tolerance": 0.0}
    result = InhibitoryHomeostasis(here, 0.5, generator=seeded(2), **settings).run(u, on_chaos="allow")
    rule = InhibitoryHomeostasis(there, 0.5, generator=seeded(2), **settings)
    found = rule.run(u.to(elsewhere), on_chaos="allow")
    close(there.weight, here.weight)
    close(found.history, result.history)
    assert there.weight.device.type == rule.targets.device.type == elsewhere.type


def test_inhibition_adapts_in_one_shot_and_in_a_module_moved_afterwards(elsewhere):
    cell = EchoState(2, 12, density=0.8, generator=seeded(), dtype=torch.float64)
    here, there = both(cell, elsewhere)
    rho = torch.full((12,), 0.4)
    factor = InhibitoryHomeostasis(here, rho).one_shot(torch.ones(2))
    close(InhibitoryHomeostasis(there, rho.to(elsewhere)).one_shot(torch.ones(2)), factor)
    close(there.weight, here.weight)
    later = copy.deepcopy(cell)
    rule = InhibitoryHomeostasis(later, rho)
    later.to(elsewhere)
    close(rule.one_shot(torch.zeros(2).to(elsewhere)), InhibitoryHomeostasis(cell, rho).one_shot())


def test_a_spiking_network_adapts_step_by_step(elsewhere):
    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.read = torch.nn.Parameter(torch.rand(6, 1, generator=seeded()))
            self.cell = nn.Recurrent(nn.LIF(6, tau_mem=3.0), weight=-0.3 * torch.rand(6, 6, generator=seeded(1)))

        @property
        def weight(self):
            return self.cell.weight

        def initial_state(self, batch=1):
            return self.cell.initial_state(batch)

        def forward(self, u, state=None):
            return self.cell(u @ self.read.T, state)

    here, there = both(Net(), elsewhere)
    u = torch.rand(60, 2, 1, generator=seeded(2))
    for net, stream in ((here, u), (there, u.to(elsewhere))):
        rule = InhibitoryHomeostasis(net, 0.3, smoothing=0.9, window=20, tolerance=0.0, unreachable="skip")
        rule.run(stream, on_chaos="allow")
    close(there.weight.detach(), here.weight.detach())


def test_gain_control(elsewhere):
    weight = 0.1 * torch.rand(6, 6, dtype=torch.float64, generator=seeded())
    drive = torch.rand(9, 6, dtype=torch.float64, generator=seeded(1))
    prob = torch.rand(9, dtype=torch.float64, generator=seeded(2)).softmax(0)
    here, there = both(GainControl(6, alpha=1.3).double(), elsewhere)
    far = weight.to(elsewhere), drive.to(elsewhere)
    close(there.solve(far[1], far[0], prob), here.solve(drive, weight, prob))
    close(there.loss(far[1], weight=far[0]), here.loss(drive, weight=weight))
    for method in ("gradient", "conjugate"):
        close(there.step(far[1], far[0], method=method), here.step(drive, weight, method=method))
    networks = nn.RecurrentRate(weight, activation=torch.relu), nn.RecurrentRate(far[0], activation=torch.relu)
    close(there.fit(networks[1], far[1], max_steps=50), here.fit(networks[0], drive, max_steps=50), rtol=1e-3)
    close(uniform_gain(there, far[1], there.gain, far[0]), uniform_gain(here, drive, here.gain, weight), rtol=1e-3)
    close(linear_reader(2 * far[1], far[1]), linear_reader(2 * drive, drive))
    close(divisive_gain(far[1][0], far[1][1]), divisive_gain(drive[0], drive[1]))


def test_gains_on_the_layers_of_any_model(elsewhere):
    here, there = both(mlp(), elsewhere)
    usual, unusual = torch.randn(20, 4, generator=seeded()), 3 * torch.randn(20, 4, generator=seeded(1))
    before = there(unusual.to(elsewhere))
    with (
        attach_gain_control(here, "0", reference=[usual]) as control,
        attach_gain_control(there, "0", reference=[usual.to(elsewhere)]) as far,
    ):
        for move in ("adapt", "step"):
            batch = [unusual] if move == "adapt" else unusual
            moved = [unusual.to(elsewhere)] if move == "adapt" else unusual.to(elsewhere)
            (expected,), (found,) = (getattr(c, move)(b).values() for c, b in ((control, batch), (far, moved)))
            close(found, expected)
    assert torch.equal(there(unusual.to(elsewhere)), before)


def test_gains_inside_a_loop(elsewhere):
    here, there = both(nn.Sequential(torch.nn.Linear(4, 6), nn.LIF(6)), elsewhere)
    x = torch.rand(8, 3, 4, generator=seeded())
    gains = []
    for model, batch in ((here, x), (there, x.to(elsewhere))):
        with attach_gain_control(model, "0", reference=[batch]) as control:
            gains.append(next(iter(control.adapt([2 * batch]).values())))
    close(gains[1], gains[0])
    net, far = both(nn.RecurrentRate(torch.full((4, 4), 0.1)), elsewhere)
    gains = []
    for model, batch in ((net, x), (far, x.to(elsewhere))):
        with attach_gain_control(model, Site("", axes="t b u"), reference=[batch]) as control:
            gains.append(next(iter(control.adapt([2 * batch]).values())))
    close(gains[1], gains[0])


@pytest.mark.parametrize("pairs", ["all", "nearest"])
@pytest.mark.parametrize("acts", ["sequence", "step"])
def test_a_plastic_layer(pairs, acts, elsewhere):
    made = Plastic(
        torch.nn.Linear(5, 3, bias=False), nn.LIF(3, threshold=torch.full((3,), 0.5)), PairSTDP(pairs=pairs, acts=acts),
        homeostasis=HomeostaticThreshold(0.3),
    )  # fmt: skip
    here, there = both(made, elsewhere)
    x = (torch.rand(20, 2, 5, generator=seeded()) < 0.4).float()
    modulator = torch.tensor([1.0, -0.5])
    _, state = here.learn(x[:10], modulator=modulator)
    _, far = there.learn(x[:10].to(elsewhere), there.initial_state(2), modulator=modulator)
    spikes, state = here.learn(x[10:], state)
    found, far = there.learn(x[10:].to(elsewhere), far)
    close(found, spikes)
    close(far.rule.pre, state.rule.pre)
    close(there.synapse.weight.detach(), here.synapse.weight.detach())
    close(there.neuron.threshold, here.neuron.threshold)


@pytest.mark.parametrize("stochastic", [False, True])
@pytest.mark.parametrize("classes", [2, 3])
def test_a_tempotron_learns_where_its_spikes_lie(classes, stochastic, elsewhere):
    x = (torch.rand(12, 6, 20, generator=seeded()) < 0.2).float()
    y = torch.arange(12) % classes

    def made():
        units = 1 if classes == 2 else classes
        neuron = nn.MetaNeuron(units, 8.0, order=1, stochastic=stochastic, learn=("threshold",), generator=seeded(5))
        return Tempotron(neuron, epochs=4, generator=seeded(1))

    here, there = made().fit(x, y), made().fit(x.to(elsewhere), y.to(elsewhere))
    assert there.weight_.device.type == elsewhere.type
    close(there.weight_, here.weight_)
    assert np.allclose(there.decision_function(x.to(elsewhere)), here.decision_function(x), rtol=1e-3, atol=1e-4)
    assert (there.predict(x) == here.predict(x)).all()
    assert there.score(x.to(elsewhere), y.to(elsewhere)) == here.score(x, y)
    assert there.spikes(x.to(elsewhere)).shape == here.spikes(x).shape


def test_readouts(elsewhere):
    x = torch.randn(40, 3, generator=seeded(), dtype=torch.float64)
    y = x @ torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    for made in (RidgeReadout(), RecursiveReadout(1e-3)):
        here = copy.deepcopy(made).fit(x, y)
        there = made.fit(x.to(elsewhere), y.to(elsewhere))
        assert np.allclose(there.coef_, here.coef_)
        weight = torch.ones(40)
        assert there.score(x.to(elsewhere), y.to(elsewhere), weight.to(elsewhere)) == pytest.approx(1.0, abs=1e-4)
    trains = torch.randint(0, 2, (10, 3, 40), generator=seeded()).float()
    labels = torch.arange(10) % 2
    model = nn.LIF(3, tau_mem=2.0)
    found = [
        LZCClassifier(m).fit(a, b).transform(a)
        for m, a, b in ((model, trains, labels), (copy.deepcopy(model).to(elsewhere), trains.to(elsewhere), labels))
    ]
    assert np.allclose(*found)
    assert LZCClassifier().fit(trains.to(elsewhere), labels.to(elsewhere)).score(trains, labels) > 0.4


def test_objectives(elsewhere):
    out = torch.rand(6, 4, 3, generator=seeded())
    spikes, y = (out > 0.6).float(), torch.tensor([0, 2, 1, 1])
    for loss, given in (
        (objectives.cross_entropy_count, spikes),
        (objectives.cross_entropy_latency, spikes),
        (objectives.cross_entropy_membrane, out),
        (objectives.cross_entropy_over_time, out),
        (objectives.spike_count_loss, spikes),
    ):
        for labels in (y, y.to(elsewhere)):
            close(loss(given.to(elsewhere), labels), loss(given, y))
    close(
        objectives.van_rossum_loss(spikes.to(elsewhere), spikes.flip(0)),
        objectives.van_rossum_loss(spikes, spikes.flip(0)),
    )
    close(
        objectives.firing_rate_bounds(spikes.to(elsewhere), high=0.2), objectives.firing_rate_bounds(spikes, high=0.2)
    )
    tokens = torch.randint(0, 3, (6, 4), generator=seeded())
    said = objectives.sequence_log_prob(out.to(elsewhere), tokens, tokens > 0)
    close(said, objectives.sequence_log_prob(out, tokens, tokens > 0))
    before = torch.zeros(6)
    close(objectives.direct_preference(said, said, before, before), torch.tensor(2.0).log())


def test_dampening_and_what_it_must_beat(elsewhere):
    x, y = torch.randn(30, 4, generator=seeded()), torch.arange(30) % 3
    far = x.to(elsewhere), y.to(elsewhere)
    here, there = both(mlp(), elsewhere)
    reports = []
    for model, (a, b) in ((here, (x, y)), (there, far)):
        ssd = unlearning.SelectiveSynapticDampening(alpha=1.2).fit(diagonal_fisher(model, [(a, b)]))
        before = model[0].weight.clone()
        reports.append(ssd.forget(model, [(a[b == 1], b[b == 1])], probe=[(a, b)]))
        ssd.undo()
        assert torch.equal(model[0].weight, before)
    assert reports[1].selected == reports[0].selected
    assert str(reports[1])
    for within in ("layer", "model"):
        undo = [
            unlearning.random_dampening(m, r, within=within, generator=seeded())
            for m, r in zip((here, there), reports, strict=True)
        ]
        close(there[0].weight.detach(), here[0].weight.detach())
        for back in undo:
            back()
    shares = [unlearning.shuffled({"w": m[0].weight.detach()}, generator=seeded())["w"] for m in (here, there)]
    close(shares[1], shares[0])


@pytest.mark.parametrize("way", ["fine_tune", "gradient_ascent", "relabel", "bad_teacher", "noise_impair", "retrain"])
def test_other_ways_to_forget(way, elsewhere):
    x, y = torch.randn(30, 4, generator=seeded()), torch.arange(30) % 3
    options = (
        {"generator": seeded()} if way in ("relabel", "noise_impair") else {"epochs": 1} if way == "retrain" else {}
    )
    models = both(mlp(), elsewhere)
    for model, place in zip(models, ("cpu", elsewhere), strict=True):
        if "generator" in options:
            options["generator"] = seeded()
        forget = unlearning.Batches(x[:10].to(place), y[:10].to(place), 5)
        retain = unlearning.Batches(x[10:].to(place), y[10:].to(place), 10, generator=seeded(1))
        getattr(unlearning, way)(model, forget, retain, **options)
    assert models[1][0].weight.device.type == elsewhere.type
    if way not in ("retrain", "bad_teacher"):  # those draw first weights, on the device of the model
        close(models[1][0].weight.detach(), models[0][0].weight.detach(), rtol=1e-3, atol=1e-4)


def test_what_is_left_is_measured(elsewhere):
    x, y = torch.randn(30, 4, generator=seeded()), torch.arange(30) % 3
    found = []
    for model, place in zip(both(mlp(), elsewhere), ("cpu", elsewhere), strict=True):
        parts = [[(x[rows].to(place), y[rows].to(place))] for rows in (slice(0, 10), slice(10, 20), slice(20, 30))]
        other = copy.deepcopy(model)
        sheet = unlearning.audit(
            model, forget=parts[0], retain=parts[1], test=parts[2], retrained=other, target=0.5, lr=0.05
        )
        found.append(sheet)
        assert unlearning.likelihood_ratio_auc(model, [other, other, model], parts[0], parts[1]) >= 0
        assert unlearning.mean_loss(model, parts[0]) > 0
    assert (found[0].forget, found[0].retain, found[0].relearn) == (found[1].forget, found[1].retain, found[1].relearn)
