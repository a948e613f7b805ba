"""The tempotron: its kernel in closed form and by simulation, its rule by hand, and what it can and cannot learn."""

import numpy as np
import pytest
import torch

from plexus.errors import RangeError, ShapeError, UnsupportedError
from plexus.learn.plasticity import Tempotron
from plexus.nn import MetaNeuron


def patterns(samples, channels, steps, seed):
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(samples, channels, steps, generator=generator) < 0.03).float()


def ready(neuron, channels, steps=40, **settings):
    """A tempotron with known weights, before it has learned anything."""
    model = Tempotron(neuron, epochs=0, **settings)
    y = [k % max(2, neuron.units[0]) for k in range(8)]
    return model.fit(patterns(8, channels, steps, 0), y)


def test_kernel_is_the_difference_of_two_exponentials():
    model = ready(MetaNeuron(1, 20.0, order=1), 3, tau_syn=5.0)
    lam, rho = 1 - 1 / 20, np.exp(-1 / 5)
    t = np.arange(1, 121)
    wanted = lam**t - rho**t
    np.testing.assert_allclose(model.kernel(120)[0].detach(), wanted / wanted.max(), rtol=1e-4, atol=1e-6)
    assert model.kernel(120).max() == 1


@pytest.mark.parametrize("order", [1, 2])
def test_potential_is_that_of_the_neuron_which_never_spikes(order):
    neuron = MetaNeuron(1, 12.0, order=order, gain=1.7, recovery=0.3, coupling=0.6)
    model = ready(neuron, 4)
    x = patterns(5, 4, 40, 1)
    silent = MetaNeuron(1, 12.0, order=order, gain=1.7, recovery=0.3, coupling=0.6, threshold=1e6)
    synapse, wanted, state = torch.zeros(5, 1), [], None
    for now in torch.einsum("ci,sit->tsc", model.weight_, x):
        synapse = synapse * float(np.exp(-1 / 3)) + now
        _, state = silent(synapse.unsqueeze(0), state)
        wanted.append(state.v)
    potential = (model._above(x) + neuron.threshold).squeeze(1).T
    scale = (torch.stack(wanted).squeeze(-1) / potential)[potential.abs() > 1e-3]
    torch.testing.assert_close(scale, scale[:1].expand(scale.shape), rtol=1e-3, atol=1e-4)
    # so that what it emits, resets included, crosses the threshold where the potential first does
    emitted = model.spikes(x).squeeze(1)
    for row, trace in zip(emitted, potential.T, strict=True):
        crossed = (trace > 1.0).nonzero()
        first = row.nonzero()
        assert (len(crossed) > 0) == (len(first) > 0)
        if len(crossed):
            assert crossed[0] == first[0]


def test_one_error_changes_the_weights_as_the_rule_says():
    model = ready(MetaNeuron(1, 15.0, order=1, threshold=5.0), 6)
    x = patterns(4, 6, 40, 2)
    goal = torch.tensor([[True], [False], [True], [False]])
    model.weight_.requires_grad_()
    loss, wrong = model._loss(x, goal, torch.Generator())
    loss.backward()
    assert wrong == 2  # nothing crosses 5, so those that should have are missed
    kernel = model.kernel(40)[0].detach()
    expected = torch.zeros(6)
    potential = model._above(x)[:, 0].detach()
    for sample in (0, 2):
        begun = int(x[sample].any(0).nonzero()[0])
        peak = begun + int(potential[sample, begun:].argmax())
        for channel in range(6):
            for t in x[sample, channel].nonzero().flatten().tolist():
                if t <= peak:
                    expected[channel] += kernel[peak - t]
    torch.testing.assert_close(-model.weight_.grad[0], expected / 4, rtol=1e-4, atol=1e-5)


def test_numbers_of_the_neuron_learn_by_the_gradient_of_the_peak():
    neuron = MetaNeuron(1, 15.0, threshold=5.0, learn=("tau_mem", "threshold", "recovery", "coupling")).double()
    model = ready(neuron, 6)
    x, goal = patterns(4, 6, 40, 2).double(), torch.ones(4, 1, dtype=torch.bool)
    model.weight_ = model.weight_.double()
    own = list(model.neuron_.parameters())
    loss, _ = model._loss(x, goal, torch.Generator())
    found = torch.autograd.grad(loss, own)
    for parameter, slope in zip(own, found, strict=True):
        ends = []
        for step in (1e-5, -1e-5):
            with torch.no_grad():
                parameter.add_(step)
                ends.append(model._loss(x, goal, torch.Generator())[0].item())
                parameter.sub_(step)
        assert slope.item() == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-3, abs=1e-7)


def test_learns_random_patterns_at_a_low_load():
    x = patterns(12, 40, 60, 3)
    y = np.arange(12) % 2
    model = Tempotron(epochs=40, batch=1, generator=torch.Generator().manual_seed(0)).fit(x, y)
    assert model.score(x, y) >= 0.95
    assert np.mean(model.errors_[-5:]) < np.mean(model.errors_[:5]) / 2
    assert model.neuron_.tau_mem == MetaNeuron(1, 15.0, order=1).tau_mem  # not asked to learn, not moved


def test_timing_alone_is_enough_and_shuffled_labels_are_not():
    generator = torch.Generator().manual_seed(0)
    at = torch.rand(200, 10, generator=generator)
    y = (torch.arange(200) % 2).numpy()
    at[:, :5] = torch.where(torch.from_numpy(y).bool().unsqueeze(1), at[:, :5] * 5 + 20, at[:, :5] * 5 + 5)
    at[:, 5:] = at[:, 5:] * 5 + 20
    x = torch.zeros(200, 10, 50).scatter(2, at.long().unsqueeze(2), 1.0)
    fit = {"epochs": 20, "generator": torch.Generator().manual_seed(1)}
    assert Tempotron(**fit).fit(x[:100], y[:100]).score(x[100:], y[100:]) > 0.95
    shuffled = np.random.default_rng(0).permutation(y[:100])
    assert Tempotron(**fit).fit(x[:100], shuffled).score(x[100:], y[100:]) < 0.7


def test_chance_of_a_response_is_that_of_its_draws():
    neuron = MetaNeuron(1, 15.0, order=1, stochastic=True, temperature=0.2)
    model = ready(neuron, 5)
    x = patterns(3, 5, 40, 4)
    above = model._above(x).detach()
    draws = torch.rand(4000, *above.shape, generator=torch.Generator().manual_seed(0)) < torch.sigmoid(above / 0.2)
    chance = torch.from_numpy(model.decision_function(x)).sigmoid()
    torch.testing.assert_close(draws.any(-1).float().mean(0).squeeze(1), chance, atol=0.04, rtol=0.0)


def test_several_classes_have_a_neuron_each():
    x = torch.zeros(60, 6, 40)
    y = np.arange(60) % 3
    for row, label in enumerate(y):
        x[row, 2 * label : 2 * label + 2, 10 + row % 7] = 1
    model = Tempotron(generator=torch.Generator().manual_seed(0)).fit(x, y)
    assert model.weight_.shape == (3, 6)
    assert model.score(x, y) == 1.0
    assert model.spikes(x).shape == (60, 3, 40)


def test_names_of_labels_and_clones():
    base = pytest.importorskip("sklearn.base")
    x, y = patterns(10, 4, 40, 5), np.array(["no", "yes"] * 5)
    model = base.clone(Tempotron(MetaNeuron(1, learn="all"), epochs=1)).fit(x, y)
    assert set(model.predict(x)) <= {"no", "yes"}
    assert base.is_classifier(model)


@pytest.mark.parametrize(
    ("error", "act"),
    [
        (RangeError, lambda x, y: Tempotron().predict(x)),
        (RangeError, lambda x, y: Tempotron(rate=0.0).fit(x, y)),
        (RangeError, lambda x, y: Tempotron(momentum=1.0).fit(x, y)),
        (RangeError, lambda x, y: Tempotron().fit(x, np.zeros(6))),
        (RangeError, lambda x, y: Tempotron().fit(x * torch.nan, y)),
        (ShapeError, lambda x, y: Tempotron().fit(x[0], y)),
        (ShapeError, lambda x, y: Tempotron().fit(x, y[:3])),
        (ShapeError, lambda x, y: Tempotron(MetaNeuron(2)).fit(x, y)),
        (ShapeError, lambda x, y: Tempotron(epochs=0).fit(x, y).predict(x[:, :2])),
        (UnsupportedError, lambda x, y: Tempotron(MetaNeuron(1, form="quadratic")).fit(x, y)),
    ],
)
def test_each_mistake_has_its_error(error, act):
    with pytest.raises(error):
        act(patterns(6, 4, 30, 0), np.arange(6) % 2)
