"""Scores against scikit-learn, NumPy and closed forms; streams against whole recordings; labels."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from plexus import probe
from plexus.errors import DtypeError, RangeError, ShapeError
from plexus.probe import scores
from plexus.probe.scores import _ranking
from plexus.units import Recording, Site, Table

A, B = Site("a", "b u"), Site("b", "b t (u:2 f)")


def of(values, labels=None):
    values = torch.as_tensor(values, dtype=torch.float64)
    return Recording({A: values}, {A: Table(range(len(values)))}, labels=labels)


@st.composite
def ranked(draw):
    rows, units = draw(st.integers(2, 30)), draw(st.integers(1, 4))
    numbers = st.integers(-3, 3) if draw(st.booleans()) else st.floats(-1, 1, width=16)
    values = [draw(st.lists(numbers, min_size=units, max_size=units)) for _ in range(rows)]
    labels = draw(st.lists(st.integers(0, 1), min_size=rows, max_size=rows).filter(lambda x: 0 < sum(x) < len(x)))
    return torch.tensor(values, dtype=torch.float64), torch.tensor(labels)


@settings(deadline=None, max_examples=40)
@given(ranked())
def test_ranking_scores_agree_with_scikit_learn_with_ties(data):
    metrics = pytest.importorskip("sklearn.metrics")
    values, labels = data
    record = of(values)
    for ours, theirs in (
        (scores.average_precision, metrics.average_precision_score),
        (scores.auroc, metrics.roc_auc_score),
    ):
        expected = [theirs(labels.numpy(), values[:, unit].numpy()) for unit in range(values.shape[1])]
        np.testing.assert_allclose(ours(record, labels)[A].numpy(), expected, atol=1e-12)


@settings(deadline=None, max_examples=50)
@given(ranked())
def test_auroc_is_the_chance_that_a_shown_row_is_higher(data):
    values, labels = data
    pairs = values[labels == 1][:, None] - values[labels == 0][None]
    expected = (pairs > 0).double().mean((0, 1)) + (pairs == 0).double().mean((0, 1)) / 2
    torch.testing.assert_close(scores.auroc(of(values), labels)[A], expected)
    torch.testing.assert_close(scores.auroc(of(-values), labels)[A], 1 - expected)


def test_units_are_ranked_in_blocks(monkeypatch):
    values, labels = torch.randn(20, 7, dtype=torch.float64), torch.arange(20) % 2
    whole = scores.average_precision(of(values), labels)[A]
    monkeypatch.setattr(_ranking, "_BLOCK", 40)
    torch.testing.assert_close(scores.average_precision(of(values), labels)[A], whole)


@settings(deadline=None)
@given(st.integers(1, 40), st.integers(1, 5), st.integers(0, 10**6), st.sampled_from([0.0, 1e6]))
def test_moments_agree_with_numpy_however_they_are_fed(rows, units, seed, offset):
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(rows, units, generator=generator, dtype=torch.float64) + offset
    cuts = sorted(torch.randint(0, rows + 1, (2,), generator=generator).tolist())
    parts = [values[: cuts[0]], values[cuts[0] : cuts[1]], values[cuts[1] :]]
    pieces = [of(part) for part in parts if len(part)]
    np.testing.assert_allclose(scores.mean(iter(pieces))[A].numpy(), values.numpy().mean(0), rtol=1e-12)
    if rows > 1:
        variance = values.numpy().var(0, ddof=1)
        np.testing.assert_allclose(scores.variance(iter(pieces))[A].numpy(), variance, rtol=1e-6)
    np.testing.assert_allclose(scores.variance(of(values), correction=0)[A].numpy(), values.numpy().var(0), rtol=1e-6)


def test_dprime_against_its_formula():
    values, labels = torch.randn(50, 3, dtype=torch.float64), torch.arange(50) % 3 == 0
    x, y = values[labels].numpy(), values[~labels].numpy()
    expected = (x.mean(0) - y.mean(0)) / np.sqrt((x.var(0, ddof=1) + y.var(0, ddof=1)) / 2)
    np.testing.assert_allclose(scores.dprime(of(values), labels)[A].numpy(), expected)
    np.testing.assert_allclose(scores.dprime(of(values), ~labels)[A].numpy(), -expected)
    constant = scores.dprime(of([[1.0, 0.0], [1.0, 0.0], [1.0, 2.0], [1.0, 2.0]]), [0, 0, 1, 1])[A]
    assert constant.tolist() == [0.0, math.inf]


def test_a_planted_unit_is_found():
    labels = torch.arange(40) % 2
    values = torch.randn(40, 10)
    values[:, 6] += 10 * labels
    for score in (scores.average_precision, scores.auroc, scores.dprime):
        assert set(score(of(values), labels).top(1)) == {(A, 6)}


def test_labels_of_classes_concepts_and_columns():
    values, classes = torch.randn(30, 4), torch.arange(30) % 3
    record = of(values)
    by_class = scores.average_precision(record, classes)
    assert by_class.concepts == ("0", "1", "2")
    named = scores.average_precision(record, classes, names=("x", "y", "z"))
    onehot = nn.functional.one_hot(classes)
    columns = scores.average_precision(record, onehot, names=("x", "y", "z"))
    mapping = scores.average_precision(record, {n: onehot[:, i] for i, n in enumerate("xyz")})
    alone = scores.average_precision(record, classes == 1)
    assert alone.concepts is None
    assert named.concepts == columns.concepts == mapping.concepts == ("x", "y", "z")
    for other in (columns, mapping):
        torch.testing.assert_close(other[A], named[A])
    torch.testing.assert_close(named["y"][A], alone[A])
    means = scores.mean(record, classes)
    for i in range(3):
        torch.testing.assert_close(means[str(i)][A], values[classes == i].double().mean(0))
    torch.testing.assert_close(scores.auroc(of(values, labels=classes == 1))[A], scores.auroc(record, classes == 1)[A])


def test_every_row_of_a_sample_has_its_label():
    values = torch.randn(6, 2)
    record = Recording({A: values}, {A: Table([0, 0, 1, 1, 1, 2], [0, 1, 0, 1, 2, 0])})
    rows = torch.tensor([1, 1, 0, 0, 0, 1])
    expected = scores.auroc(of(values), rows)[A]
    torch.testing.assert_close(scores.auroc(record, torch.tensor([1, 0, 1]))[A], expected)


@pytest.mark.parametrize(
    ("labels", "error", "message"),
    [
        (["a", "b", "a", "b"], DtypeError, "cannot be read"),
        ({"x": ["a"] * 4}, DtypeError, "cannot be read"),
        (None, ShapeError, "needs labels"),
        (torch.zeros(3), ShapeError, "do not match"),
        (torch.zeros(5), ShapeError, "do not match"),
        ({"x": torch.zeros(3)}, ShapeError, "do not match"),
        ({}, ShapeError, "no concepts"),
        ({"x": torch.zeros(4), "y": torch.zeros(5)}, ShapeError, "differ in number"),
        ({"x": torch.tensor([0, 1, 2, 0])}, RangeError, "zeros and ones"),
        (torch.tensor([0.5, 0, 0, 1]), RangeError, "whole numbers"),
        (torch.tensor([math.nan, 0, 0, 1]), RangeError, "whole numbers"),
        (torch.tensor([-1, 0, 0, 1]), RangeError, "negative"),
        (torch.zeros(4, 2, 2), ShapeError, "wrong shape"),
    ],
)
def test_bad_labels(labels, error, message):
    for score in (scores.average_precision, scores.auroc, scores.dprime):
        with pytest.raises(error, match=message):
            score(of(torch.randn(4, 2)), labels)


def test_bad_names_and_sources():
    with pytest.raises(ShapeError, match="2 names, 3 concepts"):
        scores.auroc(of(torch.randn(3, 1)), torch.tensor([0, 1, 2]), names=("x", "y"))
    for source in (torch.randn(3, 1), 3, "record", [torch.randn(3)]):
        with pytest.raises(DtypeError):
            scores.mean(source)
    with pytest.raises(ShapeError, match="nothing to score"):
        scores.mean([])


def test_undefined_scores_are_nan_with_a_warning():
    record = of(torch.randn(4, 2))
    with pytest.warns(UserWarning, match="undefined"):
        assert scores.average_precision(record, torch.zeros(4))[A].isnan().all()
    with pytest.warns(UserWarning, match="every row"):
        assert scores.auroc(record, torch.ones(4))[A].isnan().all()
    with pytest.warns(UserWarning, match="each side needs two"):
        assert scores.dprime(record, torch.tensor([1, 0, 0, 0]))[A].isnan().all()
    with pytest.warns(UserWarning, match="of x is undefined"):
        found = scores.mean(record, {"x": torch.zeros(4), "y": torch.ones(4)})
    assert found["x"][A].isnan().all()
    assert found["y"][A].isfinite().all()
    bad = of([[1.0, math.nan], [2.0, 1.0]])
    ap = scores.average_precision(bad, [0, 1])[A]
    assert ap[0] == 1
    assert ap[1].isnan()


def test_features_need_a_word():
    values = torch.randn(4, 2, 3)
    record = Recording({B: values}, {B: Table(range(4))})
    with pytest.raises(ShapeError, match="features='norm'"):
        scores.mean(record)
    torch.testing.assert_close(scores.mean(record, features="mean")[B], values.double().mean((0, 2)))
    torch.testing.assert_close(scores.mean(record, features="norm")[B], values.double().norm(dim=2).mean(0))


def test_streams_give_what_the_whole_recording_gives():
    model = nn.Sequential(nn.Linear(3, 5), nn.ReLU())
    x, y = torch.randn(20, 3), torch.arange(20) % 2
    site = Site("1", "b u")
    batches = list(zip(x.split(6), y.split(6), strict=True))
    whole = probe.record(model, batches, site)
    for score in (scores.mean, scores.variance, scores.dead):
        streamed = score(probe.stream(model, batches, site))
        torch.testing.assert_close(streamed[site], score(whole)[site])
    for score in (scores.average_precision, scores.auroc, scores.dprime):
        expected = score(whole, y)[site]
        torch.testing.assert_close(score(probe.stream(model, batches, site))[site], expected)  # labels of the batches
        torch.testing.assert_close(score(probe.stream(model, x.split(6), site), y)[site], expected)
        with pytest.raises(ShapeError, match="do not match"):
            score(probe.stream(model, x.split(6), site), y[:-1])
        with pytest.raises(ShapeError, match="do not match"):
            score(probe.stream(model, x.split(6), site), torch.cat([y, y[:1]]))


def test_a_stream_whose_pieces_show_different_classes_asks_for_names():
    values = torch.randn(6, 2)
    pieces = [of(values[:3], labels=torch.tensor([0, 1, 2])), of(values[3:], labels=torch.tensor([0, 1, 3]))]
    with pytest.raises(ShapeError, match="pass names="):
        scores.auroc(iter(pieces))
    named = scores.auroc(iter(pieces), names="abcd")
    expected = scores.auroc(of(values), torch.tensor([0, 1, 2, 0, 1, 3]), names="abcd")
    torch.testing.assert_close(named[A], expected[A])


def test_spilled_recordings_score_alike(tmp_path):
    model = nn.Sequential(nn.Linear(3, 5), nn.ReLU())
    x, y, sites = torch.randn(12, 3), torch.arange(12) % 2, [Site("0", "b u"), Site("1", "b u")]
    here = probe.record(model, x.split(4), sites, labels=y)
    there = probe.record(model, x.split(4), sites, labels=y, spill=tmp_path / "r", budget=1)
    assert len(list(there.chunks(sites[0]))) == 3
    for score in (scores.mean, scores.auroc, scores.dprime, scores.dead):
        for site in sites:
            torch.testing.assert_close(score(there)[site], score(here)[site])


def test_dead_and_saturated():
    record = of([[0.0, 1.0, -1.0, math.nan], [0.0, 0.5, 0.995, 1.0], [0.3, 1.2, 0.0, 1.0], [0.0, 0.0, 0.0, 1.0]])
    dead = scores.dead(record)[A]
    assert dead[:3].tolist() == [0.75, 0.25, 0.5]
    assert dead[3].isnan()
    assert scores.dead(record, threshold=0.4)[A][0] == 1.0
    assert scores.saturated(record)[A][:3].tolist() == [0.0, 0.5, 0.25]
    assert scores.saturated(record, low=-1.0)[A][:3].tolist() == [0.0, 0.5, 0.5]
    assert scores.saturated(record, margin=0.001)[A][2] == 0.0
    for bad in (lambda: scores.dead(record, -1.0), lambda: scores.dead(record, math.nan)):
        with pytest.raises(RangeError):
            bad()
    for options in ({"high": None}, {"high": 0.0, "low": 1.0}, {"margin": -1.0}):
        with pytest.raises(RangeError):
            scores.saturated(record, **options)


def test_gradient_times_activation():
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    x, site = torch.randn(10, 3), Site("1", "b u")
    values = probe.record(model, x, site)
    slopes = probe.record(model, x, site, grad=lambda output, batch: output[:, 1].sum())
    found = scores.gradient_times_activation(values, slopes)[site]
    expected = (values[site] * model[2].weight[1]).mean(0).double()
    torch.testing.assert_close(found, expected.detach())
    # linear above the site: the product is exactly how much the output falls when the unit is silenced
    for unit in range(4):
        hidden = values[site].clone()
        hidden[:, unit] = 0
        drop = (model(x)[:, 1] - model[2](hidden)[:, 1]).mean()
        assert abs(found[unit] - drop) < 1e-6
    absolute = scores.gradient_times_activation(values, slopes, absolute=True)[site]
    assert (absolute >= found.abs() - 1e-12).all()
    y = torch.arange(10) % 2
    by = scores.gradient_times_activation(values, slopes, {"odd": y, "even": 1 - y})
    torch.testing.assert_close((by["odd"][site] + by["even"][site]) / 2, found)
    with pytest.raises(ShapeError, match="different rows"):
        scores.gradient_times_activation(values.where(sample=range(5)), slopes)
    with pytest.raises(ShapeError, match="different sites"):
        scores.gradient_times_activation(probe.record(model, x, Site("0", "b u")), slopes)
    with pytest.raises(ShapeError, match="row by row"):
        scores.gradient_times_activation(values.pool("mean"), slopes.pool("mean"))
    with pytest.raises(ShapeError, match="number of batches"):
        scores.gradient_times_activation([values, values], slopes)
