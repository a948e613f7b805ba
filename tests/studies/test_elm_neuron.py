"""The studies of the Expressive Leaky Memory neuron: arms differ by what they say, parts do not mix, checks fail."""

import math

import pytest
import torch

from plexus.data import SpokenDigits
from plexus.studies.spiking import elm_neuron, elm_neuron_adding
from plexus.studies.spiking._elm_rivals import Convolutions, SpikingLoop, long_short_term, parameters, seeded, train
from plexus.studies.spiking.elm_neuron import ExpressiveLeakyMemory as Fitting
from plexus.studies.spiking.elm_neuron_adding import SpokenDigitAdding as Adding


def of(study, arm, scale="smoke", **more):
    return study.configure(scale, study.arm(arm).overrides, more)


@pytest.mark.parametrize("arm", ["tau 1", "tau 30", "tau to 5", "lambda 1", "mismatched"])
def test_an_ablation_starts_from_the_weights_of_the_method(arm):
    whole, part = (elm_neuron.build(of(Fitting, name), 3) for name in ("elm 10", arm))
    for (name, one), (_, other) in zip(whole.named_parameters(), part.named_parameters(), strict=True):
        assert torch.equal(one, other), name
    same = {"mismatched": True}.get(arm, False)
    x = (torch.rand(20, 2, 64) < 0.1).float()
    assert torch.equal(whole(x)[0], part(x)[0]) is same


def test_ablations_take_away_what_they_say():
    assert (elm_neuron.build(of(Fitting, "tau 1"), 0).timescales() == 1).all()
    assert (elm_neuron.build(of(Fitting, "tau 30"), 0).timescales() == 30).all()
    assert elm_neuron.build(of(Fitting, "tau to 50"), 0).timescales().max() == pytest.approx(50)
    assert elm_neuron.build(of(Fitting, "lambda 1"), 0).scale == 1
    assert elm_neuron.build(of(Fitting, "no hidden layer"), 0).layers == 0
    branched = elm_neuron.build(of(Fitting, "branch elm"), 0)
    assert branched.synapses.shape == (16, 8)
    assert len(branched.route.unique()) == 64
    short = elm_neuron_adding.build(of(Adding, "short tau"), 0).timescales()
    assert short.min() == pytest.approx(40)
    assert short.max() == pytest.approx(120)
    assert elm_neuron_adding.build(of(Adding, "elm 10 ms"), 0).timescales().max() == pytest.approx(1280)


def test_rivals_have_as_many_parameters():
    neuron = parameters(elm_neuron.build(of(Fitting, "elm 10"), 0))
    for arm in ("tcn", "lstm"):
        assert parameters(elm_neuron.build(of(Fitting, arm), 0)) == pytest.approx(neuron, rel=0.05)
    assert parameters(elm_neuron.build(of(Fitting, "tcn x10"), 0)) == pytest.approx(10 * neuron, rel=0.05)
    cell = parameters(elm_neuron_adding.build(of(Adding, "elm"), 0))
    for arm in elm_neuron_adding.RIVALS:
        assert parameters(elm_neuron_adding.build(of(Adding, arm), 0)) == pytest.approx(cell, rel=0.05)


@pytest.mark.parametrize("arm", ["elm 10", "branch elm", "glm", "tcn", "lstm"])
def test_no_model_sees_the_future_and_each_sees_the_past(arm):
    torch.manual_seed(0)
    model = elm_neuron.build(of(Fitting, arm), 0)
    x = (torch.rand(120, 1, 64) < 0.05).float()
    changed = x.clone()
    changed[60] = 1 - changed[60]
    with torch.no_grad():
        before, after = model(x)[0], model(changed)[0]
    assert torch.allclose(before[:60], after[:60], atol=1e-6)
    assert (before[60:] != after[60:]).any()


def test_a_dilated_network_sees_243_steps():
    torch.manual_seed(0)
    model = Convolutions(1, 32).double()
    x = torch.randn(300, 1, 1, dtype=torch.float64, requires_grad=True)
    (grad,) = torch.autograd.grad(model(x)[-1].sum(), x)
    seen = grad.flatten().nonzero().flatten()
    assert seen.tolist() == list(range(300 - 243, 300))


def test_windows_of_training_validation_and_test_are_of_different_recordings():
    config = Fitting.configure("smoke")
    prepared = Fitting().prepare(config, 0)
    again, other = Fitting().prepare(config, 0), Fitting().prepare(config, 1)
    assert torch.equal(prepared["test"][0], again["test"][0])
    assert not torch.equal(prepared["test"][0], other["test"][0])
    seen = {name: {bytes(w.numpy().tobytes()) for w in part[0].unbind(1)} for name, part in prepared.items()}
    assert not seen["train"] & seen["test"]
    assert not seen["train"] & seen["validation"]
    assert not seen["validation"] & seen["test"]
    x, spikes, voltage = prepared["train"]
    assert x.shape == (300, 30, 64)
    assert spikes.shape == voltage.shape == (300, 30)
    assert (voltage[spikes == 1] == 0).all()


def test_what_is_measured_leaves_out_the_time_to_settle():
    config = Fitting.configure("smoke")
    x, spikes, voltage = Fitting().prepare(config, 0)["test"]

    class Oracle(torch.nn.Module):
        def forward(self, _):
            y = torch.stack([spikes, voltage], -1)
            y[: config.settle] = torch.randn(y[: config.settle].shape)
            return y, None

    found = elm_neuron.measure(Oracle(), (x, spikes, voltage), config, torch.tensor(0.0), torch.tensor(1.0))
    assert found == {"auc": 1.0, "r2": 1.0}


def test_the_spiking_loop_has_the_gradients_of_its_equations():
    g = torch.Generator().manual_seed(0)
    drive = torch.randn(12, 3, 5, generator=g, dtype=torch.float64).mul(1.5).requires_grad_()
    weight = torch.randn(5, 5, generator=g, dtype=torch.float64).requires_grad_()
    alpha, beta, rho = 0.8, 1.8, 0.9
    push = torch.randn(drive.shape, generator=g, dtype=torch.float64)

    def stepped():
        v = a = z = torch.zeros(3, 5, dtype=torch.float64)
        out = []
        for now in drive:
            u = alpha * v + now + z @ weight.T
            s = u - 1 - beta * a
            smooth = 0.3 * (s - s * s.abs() / 2)  # its derivative is the triangle, within one of the threshold
            smooth = torch.where(s.abs() < 1, smooth, smooth.detach())
            z = (s > 0).double() + smooth - smooth.detach()
            v, a = u - z, rho * a + (1 - rho) * z
            out.append(z)
        return torch.stack(out)

    fused, plain = SpikingLoop.apply(drive, weight, alpha, beta, rho), stepped()
    assert torch.equal(fused, plain.round())
    assert 0 < fused.mean() < 1
    ours, theirs = (torch.autograd.grad((y * push).sum(), (drive, weight)) for y in (fused, plain))
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other)


def test_chrono_gates_start_at_time_constants_up_to_the_longest():
    torch.manual_seed(0)
    bias = long_short_term(4, 200, 2, 32.0).body.bias_ih_l0
    forget = torch.sigmoid(bias[200:400])
    longest = 1 / (1 - forget)
    assert longest.min() >= 2
    assert 25 < longest.max() <= 32
    torch.testing.assert_close(bias[:200], -bias[200:400])


def test_training_learns_and_ends_with_a_rate_of_nothing():
    model = torch.nn.Linear(3, 1)
    x = torch.randn(64, 3, generator=seeded(0, 0))
    first = (model(x) - x.sum(1, keepdim=True)).square().mean().item()
    assert train(model, lambda m, _: (m(x) - x.sum(1, keepdim=True)).square().mean(), 200, 3e-2) < 0.05 * first


def spoken():
    """Fifty short sounds, five digits of ten recordings: a digit is a tone."""
    time = torch.arange(1600) / 8000
    tones = [torch.sin(2 * math.pi * 400 * (1 + digit) * time) for digit in range(5)]
    audio = tuple(tones[k % 5] * (1 + k / 50) for k in range(75))
    return SpokenDigits(audio, torch.arange(75) % 5, ("jo",) * 75, torch.arange(75) // 5)


def test_sounds_of_training_validation_and_test_do_not_mix(monkeypatch):
    monkeypatch.setattr(elm_neuron_adding, "spoken_digits", spoken)
    elm_neuron_adding.rasters.cache_clear()
    parts = elm_neuron_adding.rasters(40.0, 4)
    elm_neuron_adding.rasters.cache_clear()
    assert {name: len(part[1]) for name, part in parts.items()} == {"test": 20, "validation": 20, "train": 20}
    assert all(part[0].shape[1:] == (16, 40) for part in parts.values())
    assert all(int(part[1].max()) == 3 for part in parts.values())


@pytest.mark.parametrize("arm", ["elm", "mismatched", "chrono lstm", "alif", "lstm 20 ms"])
def test_an_arm_of_the_adding_study_runs(monkeypatch, arm):
    monkeypatch.setattr(elm_neuron_adding, "spoken_digits", spoken)
    elm_neuron_adding.rasters.cache_clear()
    config = of(Adding, arm)
    metrics = Adding().run(config, Adding().prepare(config, 0), 0).metrics
    elm_neuron_adding.rasters.cache_clear()
    assert 0 <= metrics["accuracy"] <= 100
    assert all(math.isfinite(value) for value in metrics.values())


def test_a_spiking_network_and_a_neuron_learn_to_tell_sums_apart(monkeypatch):
    monkeypatch.setattr(elm_neuron_adding, "spoken_digits", spoken)
    elm_neuron_adding.rasters.cache_clear()
    config = of(Adding, "elm", digits=2, updates=60)
    metrics = Adding().run(config, Adding().prepare(config, 0), 0).metrics
    elm_neuron_adding.rasters.cache_clear()
    assert metrics["accuracy"] > 90  # of three sums of two tones, of which one half is in the middle


@pytest.mark.parametrize("study", [Fitting, Adding])
def test_every_check_can_fail(study):
    """Where all arms measure the same, the method is no better than its ablations and rivals."""
    flat = {"auc": 0.5, "r2": 0.0, "accuracy": 20.0, "parameters": 1.0}
    metrics = {arm.name: dict(flat) for arm in study.arms}
    met = {check.name: check.quantity(metrics) for check in study.checks}
    for check in study.checks:
        if check.at_least is not None and check.at_least > 0:
            assert met[check.name] < check.at_least
        if check.role in ("mechanism", "advantage") and check.primary:
            metrics["elm 10" if study is Fitting else "elm"].update(auc=0.4, accuracy=10.0)
            assert check.quantity(metrics) < check.at_least
            metrics["elm 10" if study is Fitting else "elm"].update(flat)
