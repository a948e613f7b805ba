"""An edit beside its controls: planted effects are found, shams are not, and nothing is left behind."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from plexus import edit, explain
from plexus.errors import DtypeError, RangeError, ShapeError, UnknownNameError, UnsupportedError
from plexus.explain.controls import matched_random, null
from plexus.units import Neurons, Site, fingerprint, sites

HIDDEN = Site("1", "b u")


def planted(units=40, unit=7):
    """A network whose output hangs on one unit."""
    model = nn.Sequential(nn.Linear(4, units), nn.ReLU(), nn.Linear(units, 2))
    with torch.no_grad():
        model[0].weight.uniform_(0.1, 0.2)
        model[2].weight.uniform_(-0.01, 0.01)
        model[2].weight[0, unit] = 5.0
    return model


X = torch.rand(16, 4)
SUITE = {
    "first": lambda model: model(X)[:, 0].mean(),
    "second": lambda model: model(X)[:, 1].mean().item(),
}


def chosen(*units, size=40):
    return Neurons.of({HIDDEN: size}, {HIDDEN: units})


def test_a_planted_effect_is_found_and_is_what_a_plain_computation_gives():
    model = planted()
    found = explain.compare(model, edit.scale(chosen(7), 0.0), SUITE, n_random=39, seed=3)
    hidden = model[1](model[0](X)).detach()
    effect = found["first"]
    assert effect.before == pytest.approx(model(X)[:, 0].mean().item())
    expected = -(hidden[:, 7] * model[2].weight[0, 7]).mean().item()
    assert effect.change == pytest.approx(expected, rel=1e-4)
    assert effect.percentile == 0
    assert effect.p == pytest.approx(1 / 40)
    assert found["second"].p > 1 / 40
    # every control is the same edit on one other unit, and so one of these numbers
    possible = -(hidden * model[2].weight[0]).mean(0).detach()
    assert all((possible - control).abs().min() < 1e-5 for control in effect.controls.float())


def test_a_sham_is_called_as_often_as_its_p_value_says():
    model = planted()
    with torch.no_grad():
        model[2].weight.normal_()
    generator, p = torch.Generator().manual_seed(0), []
    for seed in range(60):
        sham = matched_random(chosen(1, 2, 3), generator, exclude=False)
        p.append(explain.compare(model, edit.scale(sham, 0.0), {"y": SUITE["first"]}, n_random=9, seed=seed)["y"].p)
    p = np.array(p)
    for level in (0.1, 0.3, 0.5):
        # binomial with 60 draws: three standard deviations above the level
        assert (p <= level).mean() <= level + 3 * math.sqrt(level * (1 - level) / 60)
    assert 0.35 < p.mean() < 0.75


def test_it_repeats_with_a_seed_and_differs_with_another():
    model = planted()
    cut = edit.scale(chosen(7, 8), 0.0)
    one, two, three = (explain.compare(model, cut, SUITE, n_random=5, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(one["first"].controls, two["first"].controls)
    assert not torch.equal(one["first"].controls, three["first"].controls)


def test_measures_that_draw_random_numbers_see_the_same_ones():
    model = planted()

    def noisy(model):
        return model(X + torch.randn(16, 4))[:, 0].mean().item()

    nothing = edit.scale(chosen(7), 1.0)
    found = explain.compare(model, nothing, {"noisy": noisy}, n_random=4)
    assert found["noisy"].change == 0
    assert (found["noisy"].controls == 0).all()


def test_model_and_random_state_are_as_before():
    model = nn.Sequential(nn.Linear(4, 40), nn.ReLU(), nn.BatchNorm1d(40), nn.Dropout()).train()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    random = torch.get_rng_state()

    def measure(model):
        value = model(X).sum().item()
        model.eval()
        return value

    explain.compare(model, edit.scale(chosen(7), 0.0), {"y": measure}, n_random=3)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert all(module.training for module in model.modules())
    assert torch.equal(torch.get_rng_state(), random)

    def fails(model):
        model(X)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        explain.compare(model, edit.scale(chosen(7), 0.0), {"y": fails}, n_random=3)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    y = model.eval()(X)
    torch.testing.assert_close(y, model(X))


@pytest.mark.parametrize(
    "make",
    [
        lambda n: edit.clamp(n, 3.0),
        lambda n: edit.clamp(n, low=0.5, high=0.6),
        lambda n: edit.add(n, torch.tensor([1.0, 2.0])),
        lambda n: edit.replace(n, torch.tensor([1.0, 2.0])),
        lambda n: edit.scale(n, 0.5).then(edit.add(n, 1.0)),
    ],
)
def test_every_verb_has_its_control(make):
    found = explain.compare(planted(), make(chosen(7, 9)), SUITE, n_random=19)
    assert found["first"].p == pytest.approx(1 / 20)


def test_controls_match_counts_at_every_site_and_steps_share_stand_ins():
    other = Site("0", "b u")
    both = Neurons.of({HIDDEN: 40, other: 40}, {HIDDEN: [1, 2, 3], other: [5]})
    generator = torch.Generator().manual_seed(0)
    drawn = matched_random(both, generator)
    assert drawn.counts == both.counts
    assert len(drawn & both) == 0
    two = edit.scale(both, 0.5).then(edit.add(both.at(HIDDEN), 1.0))
    moved = matched_random(two, generator)
    first, second = (step.neurons for step in moved.steps)
    assert first.counts == both.counts
    assert second == first.at(HIDDEN)
    assert len(first & both) == 0
    apart = edit.scale(chosen(1), 0.5).then(edit.add(chosen(2), 1.0))
    a, b = (step.neurons for step in matched_random(apart, generator).steps)
    assert len(a & b) == 0
    with pytest.raises(RangeError, match="no units"):
        matched_random(chosen(), generator)
    with pytest.raises(DtypeError):
        matched_random([1, 2], generator)


def test_null_against_its_definition():
    controls = torch.tensor([-2.0, -1.0, 0.0, 1.0])
    assert null(-1.0, controls).p == pytest.approx(4 / 5)
    assert null(-3.0, controls) == (0.0, 1 / 5, -0.5, *np.quantile(controls.numpy(), [0.025, 0.975]))
    assert null(-1.0, controls).percentile == pytest.approx(37.5)
    assert null(9.0, controls).percentile == 100
    with pytest.raises(ShapeError):
        null(1.0, torch.zeros(0))
    with pytest.raises(RangeError):
        null(math.nan, controls)


def test_bad_questions():
    model, cut = planted(), edit.scale(chosen(7), 0.0)
    with pytest.raises(DtypeError, match="leave the model out"):
        explain.compare(model, edit.scale(model, chosen(7), 0.0), SUITE)
    with pytest.raises(DtypeError):
        explain.compare("model", cut, SUITE)
    with pytest.raises(ShapeError, match="empty"):
        explain.compare(model, cut, {})
    with pytest.raises(DtypeError, match="cannot be called"):
        explain.compare(model, cut, {"x": 3})
    with pytest.raises(DtypeError, match="maps names"):
        explain.compare(model, cut, [SUITE["first"]])
    for value in (torch.ones(2), "x", None, True):
        with pytest.raises(DtypeError, match="'x' gave no number"):
            explain.compare(model, cut, {"x": lambda model, value=value: (model(X), value)[1]})
    for value in (math.nan, math.inf, torch.tensor(math.nan)):
        with pytest.raises(RangeError, match="'x' is not finite"):
            explain.compare(model, cut, {"x": lambda model, value=value: (model(X), value)[1]})
    for seed in (1.5, "0", None, True):
        with pytest.raises(DtypeError, match="seed is an integer"):
            explain.compare(model, cut, SUITE, seed=seed)
    for n in (0, -1):
        with pytest.raises(RangeError, match="beside its control"):
            explain.compare(model, cut, SUITE, n_random=n)
    with pytest.raises(DtypeError, match="n_random is an integer"):
        explain.compare(model, cut, SUITE, n_random=2.5)
    with pytest.raises(RangeError, match="too few units"):
        explain.compare(model, edit.scale(chosen(*range(21)), 0.0), SUITE)
    assert len(explain.compare(model, edit.scale(chosen(*range(21)), 0.0), SUITE, n_random=2, exclude=False)) == 2
    both = edit.add(~chosen(), 1.0, basis=torch.randn(40)).then(edit.scale(chosen(7), 0.0))
    with pytest.raises(UnsupportedError, match="directions"):
        explain.compare(model, both, SUITE, exclude=False)
    elsewhere = edit.scale(Neurons.of({HIDDEN: 40}, {HIDDEN: [7]}, fingerprint(planted(41))), 0.0)
    nowhere = edit.scale(Neurons.of({Site("9", "b u"): 40}, {Site("9", "b u"): [7]}), 0.0)
    with pytest.raises(UnsupportedError, match="another model"):
        explain.compare(model, elsewhere, SUITE)
    with pytest.raises(UnknownNameError, match="no module '9'"):
        explain.compare(model, nowhere, SUITE)


def test_printing_shows_each_measure_beside_its_control():
    found = explain.compare(planted(), edit.scale(chosen(7), 0.0), SUITE, n_random=19)
    lines = str(found).splitlines()
    assert "19 matched random sets" in lines[0]
    assert lines[1].split()[:4] == ["measure", "before", "after", "change"]
    assert lines[2].startswith("first")
    assert lines[2].split()[-2:] == ["0.05", "0.1"]  # its own p, and Holm-corrected for two measures
    assert list(found) == ["first", "second"]
    assert found.to_json()["effects"]["first"]["p"] == pytest.approx(0.05)
    with pytest.raises(KeyError, match="did you mean"):
        found["frist"]


def test_on_a_language_model_and_on_a_spiking_network():
    transformers = pytest.importorskip("transformers")
    from plexus import nn as px_nn

    config = transformers.GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=50, n_positions=32, pad_token_id=1)
    model = transformers.GPT2LMHeadModel(config).eval()
    ids = torch.randint(2, 50, (2, 6))
    site = sites.mlp(model)[1]
    some = Neurons.of({site: 64}, {site: range(8)}, fingerprint(model))
    suite = {"loss": lambda m: m(input_ids=ids, labels=ids).loss}
    found = explain.compare(model, edit.scale(some, 0.0), suite, n_random=9)
    assert found["loss"].controls.unique().numel() > 5
    net = px_nn.Sequential(nn.Linear(4, 20), px_nn.LIF(20), nn.Linear(20, 2))
    with torch.no_grad():
        net[0].weight.uniform_(0.2, 0.4)
    spikes = sites.spiking(net)[0]
    cut = edit.scale(Neurons.of({spikes: 20}, {spikes: [3]}), 0.0)
    found = explain.compare(net, cut, {"out": lambda m: m(torch.ones(10, 3, 4))[0].mean()}, n_random=9)
    assert found["out"].change != 0
    assert (found["out"].controls != 0).all()


def test_an_edit_along_a_direction_stands_beside_random_directions() -> None:
    model = planted()
    strongest = model[2].weight.detach()[0]
    along = edit.add(~chosen(), 3.0, basis=strongest / strongest.norm())
    found = explain.compare(model, along, {"output": lambda m: m(X)[:, 0].mean().item()}, n_random=39)
    assert found["output"].change == pytest.approx(3 * float(strongest.norm()), rel=1e-4)
    assert found["output"].percentile == 100  # no other direction of that length changes the output as much
