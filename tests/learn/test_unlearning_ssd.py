"""Selective synaptic dampening: the published rule, its bound, exact undo, automatic strength, refusals."""

from __future__ import annotations

import copy
import math
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from plexus.errors import RangeError, ShapeError, UnknownNameError, UnsupportedError
from plexus.learn.unlearning import Batches, SelectiveSynapticDampening, accuracy, mean_loss
from plexus.probe.scores import Importances, diagonal_fisher


def blobs(seed: int = 0, n: int = 40) -> tuple[Tensor, Tensor]:
    """Three classes, each around its own corner."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % 3
    return 3 * torch.eye(3)[y] + torch.randn(n, 3, generator=generator), y


def trained(seed: int = 0, steps: int = 60) -> nn.Sequential:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(3, 16), nn.ReLU(), nn.Linear(16, 3))
    x, y = blobs()
    optimizer = torch.optim.Adam(model.parameters(), 0.02)
    for _ in range(steps):
        loss = nn.functional.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.zero_grad(set_to_none=True)
    return model


X, Y = blobs()
FORGET = Batches(X[Y == 0], Y[Y == 0], 16)
RETAIN = Batches(X[Y != 0], Y[Y != 0], 16)
ALL = Batches(X, Y, 16)


def published(model: nn.Module, whole: dict[str, Tensor], part: dict[str, Tensor], alpha: float, lam: float) -> None:
    """The rule, entry by entry, in plain Python."""
    with torch.no_grad():
        for name, p in model.named_parameters():
            for index in torch.cartesian_prod(*[torch.arange(k) for k in p.shape]).reshape(-1, p.ndim):
                place = tuple(index.tolist())
                i_d, i_f = float(whole[name][place]), float(part[name][place])
                if i_f > alpha * i_d:
                    p[place] *= min(lam * i_d / i_f, 1.0)


@pytest.mark.parametrize("mode", ["sample", "batch"])
@pytest.mark.parametrize(("alpha", "lam"), [(1.2, 1.0), (1.5, 0.3), (2.0, 5.0)])
def test_follows_the_published_rule(mode: str, alpha: float, lam: float) -> None:
    model = trained()
    expected = copy.deepcopy(model)
    whole = diagonal_fisher(model, ALL, mode=mode)
    published(expected, whole, diagonal_fisher(model, FORGET, mode=mode), alpha, lam)
    report = SelectiveSynapticDampening(alpha, lam).fit(whole).forget(model, FORGET)
    assert report.count > 0
    for found, wanted in zip(model.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-8)


def test_forgets_the_class_and_keeps_the_rest() -> None:
    model = trained()
    assert accuracy(model, ALL) > 0.9
    ssd = SelectiveSynapticDampening(auto="budget", tolerance=0.1).fit(diagonal_fisher(model, ALL, mode="batch"))
    report = ssd.forget(model, FORGET, probe=RETAIN)
    assert accuracy(model, FORGET) < 0.3
    assert accuracy(model, RETAIN) > 0.9
    assert report.loss_after - report.loss_before <= 0.1
    assert report.loss_after == pytest.approx(mean_loss(model, RETAIN))


@settings(max_examples=15, deadline=None)
@given(alpha=st.floats(0.2, 2.4), lam=st.floats(0.01, 3.0), seed=st.integers(0, 3))
def test_undo_is_exact_and_in_reverse_order(alpha: float, lam: float, seed: int) -> None:
    model = trained(seed, steps=5)
    with torch.no_grad():
        model[0].weight[0, 0] = -0.0
    bits = [p.detach().clone().view(torch.int32) for p in model.parameters()]
    ssd = SelectiveSynapticDampening(alpha, lam).fit(diagonal_fisher(model, ALL))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ssd.forget(model, FORGET)
        middle = [p.detach().clone() for p in model.parameters()]
        ssd.forget(model, FORGET)
    ssd.undo()
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), middle, strict=True))
    ssd.undo()
    assert all(torch.equal(p.detach().view(torch.int32), q) for p, q in zip(model.parameters(), bits, strict=True))
    with pytest.raises(UnsupportedError, match="nothing to undo"):
        ssd.undo()


def test_never_grows_a_weight_and_touches_only_what_it_reports() -> None:
    model = trained()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    report = SelectiveSynapticDampening(1.2, 1e6).fit(diagonal_fisher(model, ALL)).forget(model, FORGET)
    assert report.count > 0
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())  # every beta is capped at 1
    report = SelectiveSynapticDampening(1.2).fit(diagonal_fisher(model, ALL)).forget(model, FORGET)
    for name, p in model.named_parameters():
        assert bool((p.abs() <= before[name].abs()).all())
        assert int((p != before[name]).sum()) <= report.selected[name]


def test_an_entry_that_matters_to_nothing_else_is_zeroed_without_a_nan() -> None:
    model = nn.Linear(2, 2)
    whole = {"weight": torch.tensor([[0.0, 1.0], [0.0, 1.0]]), "bias": torch.zeros(2)}
    report = SelectiveSynapticDampening(1.0).fit(whole).forget(model, [(torch.tensor([[1.0, 0.0]]), torch.tensor([0]))])
    assert model.weight[:, 0].tolist() == [0.0, 0.0]
    assert bool((model.weight[:, 1] != 0).all())
    assert report.selected == {"weight": 2, "bias": 2}


def test_bound_of_per_example_importances() -> None:
    model = trained()
    x, y = X[:30], torch.arange(30) % 10 // 4
    whole = diagonal_fisher(model, [(x, y)])
    part = [(x[:3], y[:3])]
    with pytest.raises(RangeError, match="at most n/m") as caught:
        SelectiveSynapticDampening(10.0).fit(whole).forget(model, part)
    assert "alpha < 10" in str(caught.value)
    reported = SelectiveSynapticDampening(1.5).fit(whole).forget(model, part)
    assert reported.count > 0
    plain = SelectiveSynapticDampening(10.0).fit(diagonal_fisher(model, [(x, y)], mode="batch"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        plain.forget(model, part)  # squared batch means have no such bound


def test_percentile_selects_the_share_it_names() -> None:
    model = trained()
    whole = diagonal_fisher(model, ALL, mode="batch")
    share = len(FORGET.y) / len(Y)
    report = SelectiveSynapticDampening(auto="percentile").fit(whole).forget(model, FORGET)
    defined = sum(int((value > 0).sum()) for value in whole.values())
    expected = math.log1p(100 * share) / 100 * defined
    assert abs(report.count - expected) <= 1.5


def test_budget_is_the_strongest_within_tolerance() -> None:
    model = trained()
    ssd = SelectiveSynapticDampening(auto="budget", tolerance=5e-4, steps=20)
    ssd.fit(diagonal_fisher(model, ALL, mode="batch"))
    report = ssd.forget(model, FORGET, probe=RETAIN)
    assert report.evaluations == 20
    ssd.undo()
    before = mean_loss(model, RETAIN)
    stronger = SelectiveSynapticDampening(report.alpha * 0.98).fit(ssd.importances)
    stronger.forget(model, FORGET)
    assert mean_loss(model, RETAIN) - before > 5e-4


def test_params_protect_the_rest() -> None:
    model = trained()
    before = model[0].weight.detach().clone()
    ssd = SelectiveSynapticDampening(1.2, params="2.*").fit(diagonal_fisher(model, ALL))
    report = ssd.forget(model, FORGET)
    assert set(report.total) == {"2.weight", "2.bias"}
    assert torch.equal(model[0].weight, before)
    with pytest.raises(UnknownNameError, match="parameter"):
        SelectiveSynapticDampening(params="7.*").fit(diagonal_fisher(model, ALL)).forget(model, FORGET)


def test_report_prints() -> None:
    model = trained()
    report = SelectiveSynapticDampening(1.2).fit(diagonal_fisher(model, ALL)).forget(model, FORGET, probe=RETAIN)
    text = str(report)
    assert f"dampened {report.count:,} of 115" in text
    assert "0.weight" in text
    assert "loss on the probe" in text
    counts, edges = report.histogram()
    assert int(counts.sum()) == report.count
    assert len(edges) == len(counts) + 1
    assert report.fraction == pytest.approx(report.count / 115)


def test_saved_importances_do_the_same(tmp_path) -> None:
    model, twin = trained(), trained()
    whole = diagonal_fisher(model, ALL)
    whole.save(tmp_path / "all.safetensors")
    SelectiveSynapticDampening(1.2).fit(whole).forget(model, FORGET)
    SelectiveSynapticDampening(1.2).fit(Importances.load(tmp_path / "all.safetensors")).forget(twin, FORGET)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), twin.parameters(), strict=True))


def test_refusals_leave_the_model_alone() -> None:
    model = trained()
    before = copy.deepcopy(model.state_dict())
    whole = diagonal_fisher(model, ALL)
    ssd = SelectiveSynapticDampening(1.2).fit(whole)
    for bad in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(RangeError, match="alpha"):
            SelectiveSynapticDampening(bad)
        with pytest.raises(RangeError, match="lam"):
            SelectiveSynapticDampening(1.0, bad)
    with pytest.raises(UnknownNameError, match="automatic"):
        SelectiveSynapticDampening(auto="percentil")
    with pytest.raises(UnsupportedError, match="importances"):
        SelectiveSynapticDampening().forget(model, FORGET)
    with pytest.raises(RangeError, match="no importances"):
        SelectiveSynapticDampening().fit({})
    with pytest.raises(RangeError, match="negative"):
        SelectiveSynapticDampening().fit({"0.weight": torch.full((1,), -1.0)})
    with pytest.raises(RangeError, match="not finite"):
        SelectiveSynapticDampening().fit({"0.weight": torch.full((1,), torch.nan)})
    for empty in ([], [(X[:0], Y[:0])]):
        with pytest.raises(RangeError, match=r"empty|no example"):
            ssd.forget(model, empty)
    with pytest.raises(RangeError, match="all of the training data"):
        ssd.forget(model, ALL)
    with pytest.raises(UnsupportedError, match="probe"):
        SelectiveSynapticDampening(auto="budget").fit(whole).forget(model, FORGET)
    with pytest.raises(UnsupportedError, match="number of training samples"):
        SelectiveSynapticDampening(auto="percentile").fit(dict(whole)).forget(model, FORGET)
    with pytest.raises(UnknownNameError, match="stored importance"):
        SelectiveSynapticDampening().fit({"weight": torch.ones(1)}).forget(model, FORGET)
    with pytest.raises(UnknownNameError, match="trainable parameter"):
        SelectiveSynapticDampening().fit({**whole, "9.weight": torch.ones(1)}).forget(model, FORGET)
    with pytest.raises(ShapeError, match="another model"):
        SelectiveSynapticDampening().fit({**whole, "2.bias": torch.ones(9)}).forget(model, FORGET)
    with pytest.raises(RangeError, match="not finite"):
        ssd.forget(model, [(X[:2] * torch.nan, Y[:2])])
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
    with torch.no_grad():
        model[0].weight[0, 0] = torch.nan
    with pytest.raises(RangeError, match=r"0\.weight"):
        ssd.forget(model, FORGET)


def test_nothing_selected_is_a_warning() -> None:
    model = trained()
    before = copy.deepcopy(model.state_dict())
    ssd = SelectiveSynapticDampening(1e6).fit(diagonal_fisher(model, ALL, mode="batch"))
    with pytest.warns(UserWarning, match="nothing was selected"):
        report = ssd.forget(model, FORGET)
    assert report.count == 0
    assert "0.00 %" in str(report)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


def test_frozen_parameters_stay() -> None:
    model = trained()
    model[0].requires_grad_(False)
    before = model[0].weight.clone()
    SelectiveSynapticDampening(1.2).fit(diagonal_fisher(model, ALL)).forget(model, FORGET)
    assert torch.equal(model[0].weight, before)
