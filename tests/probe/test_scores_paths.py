"""Taylor, integrated gradients and sensitivity against closed forms, completeness and finite noise."""

import pytest
import torch
from torch import nn

from plexus import edit, probe
from plexus.errors import DtypeError, RangeError, ShapeError, SiteError, UnknownNameError
from plexus.probe import scores
from plexus.units import Neurons, Recording, Site, Table, sites

H = Site("1", "b u")


@pytest.fixture
def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 2)).double()


X = torch.randn(12, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def loss(output, batch):
    return output.square().sum()


def test_taylor_is_the_change_without_a_unit_where_all_is_linear():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 5), nn.Identity(), nn.Linear(5, 1)).double()
    change = []
    for unit in range(5):
        with edit.scale(model, Neurons.of({H: 5}, {H: [unit]}), 0.0):
            change.append((model(X) - scores_of(model)).squeeze(1))
    change = torch.stack(change, 1).detach()
    record = probe.record(model, X, H)
    slope = probe.record(model, X, H, grad=lambda output, batch: output.sum())
    torch.testing.assert_close(scores.taylor(record, slope)[H], change.abs().mean(0))
    torch.testing.assert_close(scores.taylor(record, slope, order="squared")[H], change.square().mean(0))
    labels = torch.arange(12) % 2
    by_class = scores.taylor(record, slope, labels, names=("x", "y"))
    torch.testing.assert_close(by_class["y"][H], change[1::2].abs().mean(0))
    batches = [X[:5], X[5:]]
    streamed = scores.taylor(
        probe.stream(model, batches, H), probe.stream(model, batches, H, grad=lambda output, batch: output.sum())
    )
    torch.testing.assert_close(streamed[H], change.abs().mean(0))
    with pytest.raises(UnknownNameError):
        scores.taylor(record, slope, order="third")
    with pytest.raises(ShapeError):
        scores.taylor(record, probe.record(model, X[:3], H))


def scores_of(model):
    return MODELS.setdefault(id(model), PLAIN(model))


MODELS: dict = {}


def PLAIN(model):
    return nn.functional.linear(nn.functional.linear(X, model[0].weight, model[0].bias), model[2].weight, model[2].bias)


def test_taylor_adds_up_the_rows_of_a_sample_before_their_size():
    site, rows = Site("a", "b t u"), Table([0, 0, 1], [0, 1, 0])
    values = Recording({site: torch.tensor([[1.0, 2], [1, 2], [1, 1]])}, {site: rows})
    slopes = Recording({site: torch.tensor([[1.0, 1], [-1, 1], [1, 0]])}, {site: rows})
    assert scores.taylor(values, slopes)[site].tolist() == [0.5, 2.0]


@pytest.mark.parametrize("baseline", [0.0, 0.3, "means"])
def test_integrated_gradients_are_complete(net, baseline):
    both = [H, Site("3", "b u")]
    record = probe.record(net, X, both)
    starts = scores.mean(record).values if baseline == "means" else baseline
    found = scores.integrated_gradients(net, X, both, loss, baseline=starts, steps=24)
    for site, units in zip(both, (5, 4), strict=True):
        start = starts[site] if baseline == "means" else torch.full((units,), baseline, dtype=torch.float64)
        every = Neurons.of({site: units}, {site: range(units)})
        with edit.replace(net, every, start):
            moved = loss(net(X), None)
        expected = (loss(net(X), None) - moved) / len(X)
        torch.testing.assert_close(found[site].sum(), expected.detach().double(), atol=1e-9, rtol=1e-9)


def test_few_points_are_exact_for_polynomials_and_equal_gradient_times_activation_for_lines():
    torch.manual_seed(0)
    line = nn.Sequential(nn.Linear(3, 5), nn.Identity(), nn.Linear(5, 2)).double()
    record = probe.record(line, X, H)
    slope = probe.record(line, X, H, grad=lambda y, batch: y.sum())
    simple = scores.gradient_times_activation(record, slope)
    torch.testing.assert_close(scores.integrated_gradients(line, X, H, lambda y, _: y.sum(), steps=1)[H], simple[H])
    # the gradient of a square is of first degree: one point; of a fourth power of third degree: two points
    for power, steps in ((2, 1), (4, 2)):
        few, many = (
            scores.integrated_gradients(line, X, H, lambda y, _, n=power: (y**n).sum(), steps=n)[H] for n in (steps, 20)
        )
        torch.testing.assert_close(few, many)


def test_integrated_gradients_do_not_depend_on_batches_and_know_labels(net):
    labels = torch.arange(12) % 3
    options = {"names": ("x", "y", "z"), "steps": 5}
    whole = scores.integrated_gradients(net, X, H, loss, labels, **options)
    parts = scores.integrated_gradients(net, [X[:5], X[5:]], H, loss, labels, **options)
    torch.testing.assert_close(whole[H], parts[H])
    one = scores.integrated_gradients(net, X[labels == 2], H, loss, steps=5)
    torch.testing.assert_close(whole["z"][H], one[H])
    absolute = scores.integrated_gradients(net, X, H, loss, steps=5, absolute=True)
    assert bool((absolute[H] >= scores.integrated_gradients(net, X, H, loss, steps=5)[H].abs()).all())


def test_heads_of_a_language_model_are_complete(tiny):
    model, inputs = tiny("llama")
    heads = sites.heads(model)

    def last(output, batch):
        return output.logits[:, -1, 5].sum()

    found = scores.integrated_gradients(model, inputs, heads, last, steps=32)
    rows = inputs["input_ids"].numel()
    for site in heads:
        every = Neurons.of({site: 4}, {site: range(4)})
        with torch.no_grad():
            before = last(model(**inputs), None)
            with edit.scale(model, every, 0.0):
                after = last(model(**inputs), None)
        assert found[site].sum().item() == pytest.approx(float(before - after) / rows, abs=2e-4)


def test_bad_input_of_integrated_gradients(net):
    for steps in (0, True, 1.5):
        with pytest.raises(RangeError):
            scores.integrated_gradients(net, X, H, loss, steps=steps)
    with pytest.raises(SiteError, match="lacks a site"):
        scores.integrated_gradients(net, X, H, loss, baseline={})
    with pytest.raises(ShapeError, match="baseline does not fit"):
        scores.integrated_gradients(net, X, H, loss, baseline={H: torch.zeros(3)})
    with pytest.raises(RangeError):
        scores.integrated_gradients(net, X, H, loss, baseline=float("nan"))
    with pytest.raises(ShapeError, match="one number"):
        scores.integrated_gradients(net, X, H, lambda y, batch: y)
    shared = nn.Tanh()
    twice = nn.Sequential(nn.Linear(3, 3), shared, nn.Linear(3, 3), shared).double()
    with pytest.raises(SiteError, match="more than once"):
        scores.integrated_gradients(twice, X, H, loss)
    found = scores.integrated_gradients(twice, X, Site("1", "b u", call=1), loss)
    assert found.sizes == {Site("1", "b u", call=1): 3}


def test_the_model_is_as_before(net):
    net.train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    scores.integrated_gradients(net, X, H, loss, steps=2)
    scores.sensitivity(net, X, H, generator=torch.Generator().manual_seed(0))
    assert net.training
    assert all(parameter.grad is None for parameter in net.parameters())
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_sensitivity_is_the_squared_jacobian(net):
    exact = scores.sensitivity(net, X, H, probes=None)
    hidden = torch.tanh(net[0](X)).detach()
    jacobian = torch.func.vmap(torch.func.jacrev(lambda a: net[4](net[3](net[2](a)))))(hidden)  # [row, output, unit]
    torch.testing.assert_close(exact[H], jacobian.square().sum(1).mean(0).detach())
    generator = torch.Generator().manual_seed(0)
    estimated = scores.sensitivity(net, X, H, probes=600, generator=generator)
    torch.testing.assert_close(estimated[H], exact[H], rtol=0.1, atol=0.0)


def test_sensitivity_is_the_variance_that_noise_on_a_unit_makes(net):
    exact = scores.sensitivity(net, X, H, probes=None)[H]
    generator = torch.Generator().manual_seed(0)
    size, found = 1e-3, []
    with torch.no_grad():
        for unit in range(5):
            only = Neurons.of({H: 5}, {H: [unit]})
            noisy = []
            for _ in range(100):
                amount = size * torch.randn(1, generator=generator).item()
                with edit.add(net, only, amount):
                    noisy.append(net(X))
            found.append(torch.stack(noisy).var(0).sum(1).mean() / size**2)
    torch.testing.assert_close(torch.stack(found), exact, rtol=0.4, atol=0.0)


def test_sensitivity_of_tokens_and_its_bad_input(tiny, net):
    model, inputs = tiny("gpt2")
    found = scores.sensitivity(model, inputs, sites.mlp(model), generator=torch.Generator().manual_seed(0))
    assert all(bool((found[site] >= 0).all()) for site in found.sites)
    with pytest.raises(DtypeError, match="Generator"):
        scores.sensitivity(net, X, H)
    for probes in (0, True, 1.5):
        with pytest.raises(RangeError):
            scores.sensitivity(net, X, H, probes=probes, generator=torch.Generator())
    with pytest.raises(ShapeError, match="no samples"):
        scores.sensitivity(net, X, H, probes=None, output=lambda y: y.sum())


def test_what_a_costly_score_holds_is_said_once_before_most_of_it(net, monkeypatch, capsys):
    batches, values = [X[:6], X[6:]], 6 * 5 * 8  # bytes of the values of a batch
    monkeypatch.setattr("plexus.probe._sizes.LARGE", 4 * values - 1)
    scores.integrated_gradients(net, batches, H, loss)
    assert capsys.readouterr().err.count("integrating gradients at") == 1
    scores.sensitivity(net, batches, H, generator=torch.Generator())
    assert not capsys.readouterr().err
    monkeypatch.setattr("plexus.probe._sizes.LARGE", 3 * values - 1)
    scores.sensitivity(net, batches, H, generator=torch.Generator())
    assert capsys.readouterr().err.count("sensitivity, besides the model's own passes, needs about") == 1


@pytest.mark.parametrize("probes", [None, 3])
def test_sensitivity_counts_nothing_at_padding(tiny, probes):
    model, _ = tiny("llama")
    found = sites.mlp(model)[0]
    ids = torch.tensor([[5, 6, 7]])
    padded = {"input_ids": torch.tensor([[5, 6, 7, 1, 1]]), "attention_mask": torch.tensor([[1, 1, 1, 0, 0]])}
    draw = [torch.Generator().manual_seed(0) for _ in range(2)] if probes else [None, None]
    bare = scores.sensitivity(model, {"input_ids": ids}, found, probes=None)
    with_padding = scores.sensitivity(model, padded, found, probes=probes, generator=draw[0])
    if probes is None:
        torch.testing.assert_close(with_padding[found], bare[found], rtol=1e-5, atol=1e-6)
    else:  # the rows behind the mask get no sign at all
        end = scores.sensitivity(model, padded, found, probes=probes, generator=draw[1], output=lambda o: o.logits)
        torch.testing.assert_close(with_padding[found], end[found])
