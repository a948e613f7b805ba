"""Mutual information, activation counts and entropies over conditions, massive activations: against references."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from plexus import probe
from plexus.errors import DtypeError, RangeError, ShapeError, UnknownNameError, UnsupportedError
from plexus.probe import scores
from plexus.probe.scores import _information
from plexus.units import Recording, Scores, Site, Table

A, B = Site("a", "b u"), Site("b", "b t u")


def of(values, labels=None):
    values = torch.as_tensor(values, dtype=torch.float64)
    return Recording({A: values}, {A: Table(range(len(values)))}, labels=labels)


def rows(rows, units, seed=0):
    return torch.randn(rows, units, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# mutual information


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 1000), st.integers(2, 6), st.integers(2, 4))
def test_plug_in_information_agrees_with_scikit_learn(seed, cells, classes):
    metrics = pytest.importorskip("sklearn.metrics")
    values = rows(60, 3, seed)
    labels = torch.randint(0, classes, (60,), generator=torch.Generator().manual_seed(seed + 1))
    labels[:classes] = torch.arange(classes)
    edges = torch.linspace(-1, 1, cells - 1, dtype=torch.float64)
    binned = np.digitize(values.numpy(), edges.numpy())
    names = [f"class {k}" for k in range(classes)]
    found = scores.mutual_information(of(values), labels, names=names, bins=edges, correction=None)
    both = scores.mutual_information(of(values), labels, names=names, bins=edges, correction=None, together=True)
    for unit in range(3):
        bits = metrics.mutual_info_score(labels.numpy(), binned[:, unit]) / math.log(2)
        assert both[A][unit].item() == pytest.approx(bits, abs=1e-12)
        for k, name in enumerate(names):
            bits = metrics.mutual_info_score((labels == k).numpy(), binned[:, unit]) / math.log(2)
            assert found[name][A][unit].item() == pytest.approx(bits, abs=1e-12)


def test_the_correction_takes_the_bias_of_independent_values_away():
    values = rows(120, 400)
    labels = torch.arange(120) % 2
    plain = scores.mutual_information(of(values), labels, bins=8, correction=None)[A]
    mended = scores.mutual_information(of(values), labels, bins=8)[A]
    expected = (8 - 1) * (2 - 1) / (2 * 120 * math.log(2))
    assert plain.mean().item() == pytest.approx(expected, rel=0.15)
    assert abs(mended.mean().item()) < 0.15 * expected
    torch.testing.assert_close(plain - mended, torch.full_like(plain, expected), atol=0.01, rtol=0)


def test_equal_bins_hold_about_equally_many_rows_and_any_rescaling_gives_the_same():
    values = rows(4000, 5).abs()
    counts = _information._Counts(next(iter(scores._source.Reading(of(values), torch.arange(4000) % 2).pieces())), None)
    for piece in scores._source.Reading(of(values), torch.arange(4000) % 2).pieces():
        counts.add(piece, False)
    _, filled = counts.binned(8)
    assert int(filled.sum()) == 5 * 4000
    assert int(filled.min()) > 0.7 * 500
    assert int(filled.max()) < 1.3 * 500
    # a power of two moves every value by whole octaves of the grid, zero and sign included
    labels = (values[:, 0] > 0.5).long()
    one = scores.mutual_information(of(values), labels)[A]
    torch.testing.assert_close(scores.mutual_information(of(values * 16), labels)[A], one)
    torch.testing.assert_close(scores.mutual_information(of(-values / 4), labels)[A], one, atol=0.01, rtol=0)
    assert one[0] > 0.7
    assert one[1:].max() < 0.02


def test_cells_of_the_grid_keep_the_order_of_values():
    values = torch.cat([rows(500, 1).squeeze(1) * 10.0**k for k in range(-7, 7)]).sort().values
    cells = _information._fine(values)
    assert bool((cells.diff() >= 0).all())
    assert int(cells.min()) >= 0
    assert int(cells.max()) < _information.FINE
    zero = _information._fine(torch.tensor([0.0, -0.0, 1e-9, -1e-9, math.inf, -math.inf], dtype=torch.float64))
    assert zero.tolist() == [512, 512, 512, 512, 1024, 0]


def test_a_stream_gives_the_same_information_as_the_whole():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU())
    batches, site = [torch.randn(n, 4) for n in (7, 3, 10)], Site("1", "b u")
    labels = torch.arange(20) % 3
    names = ("x", "y", "z")
    whole = probe.record(model, batches, site)
    for options in ({}, {"together": True}, {"bins": torch.tensor([0.1, 0.4])}):
        streamed = scores.mutual_information(probe.stream(model, batches, site), labels, names=names, **options)
        expected = scores.mutual_information(whole, labels, names=names, **options)
        assert torch.equal(streamed[site], expected[site])


def test_bad_input_of_mutual_information():
    record, labels = of(rows(6, 2)), torch.tensor([0, 1, 0, 1, 0, 1])
    for bins in (1, 0, True, 2.5, 10_000, torch.tensor([1.0, 0.0]), torch.tensor([math.nan])):
        with pytest.raises(RangeError):
            scores.mutual_information(record, labels, bins=bins)
    with pytest.raises(ShapeError):
        scores.mutual_information(record, labels, bins=torch.zeros(2, 2))
    with pytest.raises(UnknownNameError):
        scores.mutual_information(record, labels, correction="jackknife")
    with pytest.raises(RangeError, match="just one"):
        scores.mutual_information(record, {"a": labels, "b": labels}, together=True)
    with pytest.warns(UserWarning, match="undefined"):
        assert bool(scores.mutual_information(record, torch.ones(6))[A].isnan().all())
    values = rows(6, 2)
    values[2, 1] = math.nan
    assert scores.mutual_information(of(values), labels)[A].isnan().tolist() == [False, True]


# activation counts and entropies over conditions


def corpus():
    """Two samples of three and two tokens under "en", one of two under "de"."""
    values = torch.tensor([[1.0, -1], [2, 0], [-1, 3], [1, 1], [1, -1], [0.5, 2], [-2, 2]])
    table = Table([0, 0, 0, 1, 1, 2, 2], [0, 1, 2, 0, 1, 0, 1])
    return Recording({B: values}, {B: table}), torch.tensor([0, 0, 1])


def test_counts_are_those_of_the_rows_and_add_up():
    record, labels = corpus()
    counts = scores.count_activations(record, labels, names=("en", "de"))
    assert counts.active[B].tolist() == [[4, 2], [1, 2]]
    assert counts.rows[B].tolist() == [5, 2]
    torch.testing.assert_close(counts.probability["en"][B], torch.tensor([0.8, 0.4], dtype=torch.float64))
    torch.testing.assert_close(counts.per({"en": 2, "de": 4})["de"][B], torch.tensor([0.25, 0.5], dtype=torch.float64))
    answers = torch.tensor([[False, True, True], [True, False, False], [False, True, False]])
    some = scores.count_activations(record, labels, names=("en", "de"), tokens=answers)
    rest = scores.count_activations(record, labels, names=("en", "de"), tokens=~answers)
    assert some.active[B].tolist() == [[2, 2], [0, 1]]
    for one, other in ((some + rest, counts), (counts - rest, some)):
        assert torch.equal(one.active[B], other.active[B])
        assert torch.equal(one.rows[B], other.rows[B])
    by_rule = scores.count_activations(
        record, labels, names=("en", "de"), tokens=lambda table: answers[table.sample, table.position]
    )
    assert torch.equal(by_rule.active[B], some.active[B])
    alone = scores.count_activations(record)
    assert alone.active[B].tolist() == [[5, 4]]
    torch.testing.assert_close(alone.probability[B], torch.tensor([5, 4], dtype=torch.float64) / 7)


def test_token_masks_of_a_stream_count_its_samples_from_the_start():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(9, 5))
    site = Site("0", "b t u")
    batches = [torch.randint(0, 9, (n, 4)) for n in (2, 3, 1)]
    labels, mask = torch.tensor([0, 1, 1, 0, 1, 0]), torch.rand(6, 4) > 0.4
    options = {"names": ("x", "y"), "tokens": mask, "threshold": 0.2}
    whole = scores.count_activations(probe.record(model, batches, site), labels, **options)
    streamed = scores.count_activations(probe.stream(model, batches, site), labels, **options)
    assert torch.equal(whole.active[site], streamed.active[site])
    values = probe.record(model, batches, site).dense(site) > 0.2
    expected = torch.stack([(values & mask[:, :, None])[labels == k].sum((0, 1)) for k in (0, 1)])
    assert torch.equal(whole.active[site], expected)
    assert whole.rows[site].tolist() == [int(mask[labels == k].sum()) for k in (0, 1)]


def test_bad_counts():
    record, labels = corpus()
    names = ("en", "de")
    counts = scores.count_activations(record, labels, names=names)
    none = scores.count_activations(record, labels, names=names, tokens=torch.zeros(3, 3, dtype=torch.bool))
    with pytest.raises(RangeError, match="no row to count"):
        _ = none.probability
    with pytest.raises(RangeError, match="no part"):
        _ = none - counts
    with pytest.raises(RangeError, match="positive amount"):
        counts.per({"en": 3})
    with pytest.raises(ShapeError, match="other conditions"):
        _ = counts + scores.count_activations(record, labels, names=("en", "fr"))
    with pytest.raises(DtypeError):
        _ = counts + 1
    one, two = (scores.ActivationCounts(names, counts.active, counts.rows, name) for name in "ab")
    with pytest.raises(UnsupportedError, match="two models"):
        _ = one + two
    for tokens, error in (
        (torch.ones(3, 3), ShapeError),
        (torch.ones(3, 2, dtype=torch.bool), ShapeError),
        (torch.ones(2, 3, dtype=torch.bool), ShapeError),
        (lambda table: table.position, ShapeError),
    ):
        with pytest.raises(error):
            scores.count_activations(record, labels, names=names, tokens=tokens)
    with pytest.raises(RangeError):
        scores.count_activations(record, labels, names=names, threshold=math.nan)
    bad = of([[math.nan, 1.0]])
    with pytest.raises(RangeError, match="neither active nor silent"):
        scores.count_activations(bad)


def probabilities(conditions=5, units=400, seed=0):
    generator = torch.Generator().manual_seed(seed)
    p = torch.rand(conditions, units, generator=generator, dtype=torch.float64) ** 3
    return Scores({A: p[:, : units // 4], B: p[:, units // 4 :]}, [f"c{k}" for k in range(conditions)])


def test_entropy_agrees_with_scipy_and_its_limits():
    stats = pytest.importorskip("scipy.stats")
    p = probabilities()
    found = scores.condition_entropy(p)
    for site in (A, B):
        expected = stats.entropy(p[site].numpy(), axis=0) / math.log(5)
        np.testing.assert_allclose(found[site].numpy(), expected, atol=1e-12)
    scale = (1 + 1 / 2 + 1 / 3 + 1 / 4 + 1 / 5) / 5
    tilted = scores.condition_entropy(p, 0.1)
    torch.testing.assert_close(tilted[A], found[A] - 0.1 * p[A].amax(0) / scale)
    # the scale of a unit does not matter to the entropy, and the order of conditions to nothing
    shuffled = Scores({A: p[A].flip(0) * 0.5}, [f"c{k}" for k in range(5)])
    torch.testing.assert_close(scores.condition_entropy(shuffled)[A], found[A])
    for bad in (Scores({A: torch.rand(3)}), Scores({A: torch.rand(1, 3)}, ("one",))):
        with pytest.raises(ShapeError):
            scores.condition_entropy(bad)
    with pytest.raises(RangeError):
        scores.condition_entropy(p, -1.0)
    with pytest.raises(RangeError):
        scores.condition_entropy(Scores({A: torch.tensor([[-0.1], [0.2]])}, ("a", "b")))


def test_units_are_sorted_by_the_conditions_that_they_serve():
    p = probabilities()
    units = scores.condition_units(p, 0.1, percentile=0.8, magnitude=0.05)
    s = scores.condition_entropy(p, 0.05)
    everything = torch.cat([s[A], s[B]])
    assert len(units.chosen) == 40
    bar = np.quantile(torch.cat([p[A].reshape(-1), p[B].reshape(-1)]).numpy(), 0.8)
    assert units.bar == pytest.approx(float(bar))
    counts = {}
    for site, unit in units.chosen:
        assert s[site][unit] <= everything.sort().values[39]
        serves = (p[site][:, unit] > bar).nonzero().squeeze(1).tolist()
        counts[(site, unit)] = len(serves)
        assert ((site, unit) in units.specific) == (len(serves) == 1)
        assert ((site, unit) in units.related) == (2 <= len(serves) <= 4)
        assert ((site, unit) in units.agnostic) == (len(serves) == 5)
        assert (site, unit) in units.exactly(f"c{k}" for k in serves)
        for k in range(5):
            assert ((site, unit) in units.of(f"c{k}")) == (serves == [k])
            assert ((site, unit) in units.of(f"c{k}", related=True)) == (k in serves and len(serves) < 5)
    assert sum(units.sets().values()) == 40
    # the kinds part all units
    kinds = (units.specific, units.related, units.agnostic, units.unassigned)
    assert sum(map(len, kinds)) == 400
    assert len(kinds[0] | kinds[1] | kinds[2] | kinds[3]) == 400
    with pytest.raises(UnknownNameError):
        units.of("c9")
    with pytest.raises(UnknownNameError):
        units.exactly(["c9"])


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 500), st.sampled_from([2, 3, 5]))
def test_the_search_ends_at_the_largest_weight_that_it_may(seed, conditions):
    p = probabilities(conditions, seed=seed)
    every = {site: (p[site] > 0).all(0) for site in p.sites}
    assert every
    try:
        units = scores.condition_units(p, 0.1, percentile=0.6)
    except RangeError as error:
        assert "Bracket(feasible=None, infeasible=0.0)" in str(error)  # noqa: PT017
        plain = scores.condition_units(p, 0.1, percentile=0.6, magnitude=0.0)
        assert len(plain.chosen & plain.agnostic) > 0
        return
    assert units.evaluations <= 12
    assert len(units.chosen & units.agnostic) == 0
    assert 0 <= units.magnitude <= 0.2
    if units.magnitude < 0.2:
        beyond = scores.condition_units(p, 0.1, percentile=0.6, magnitude=units.magnitude + 1e-3)
        assert len(beyond.chosen & beyond.agnostic) > 0


@pytest.mark.parametrize("all_open", [0.35, 0.55, 0.75, 0.95])
def test_a_geometric_search_ends_right_below_what_it_may_not_reach(all_open):
    # one unit is open in all conditions alike: it has the highest entropy, and is chosen once λ outweighs that
    p = torch.rand(5, 40, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 0.3
    p[:, 0] = all_open
    p[0, 1:9] = 0.34
    found = scores.condition_units(
        Scores({A: p}, tuple("abcde")), 8, percentile=0.7, limit=32.0, tolerance=0.02, spacing="geometric"
    )
    assert found.evaluations <= 12
    assert not len(found.chosen & found.agnostic)
    assert 0.02 <= found.magnitude < 32
    beyond = scores.condition_units(Scores({A: p}, tuple("abcde")), 8, percentile=0.7, magnitude=found.magnitude * 1.02)
    assert len(beyond.chosen & beyond.agnostic) == 1
    even = scores.condition_units(Scores({A: p}, tuple("abcde")), 8, percentile=0.7, limit=32.0, tolerance=1e-4)
    assert found.magnitude <= even.magnitude <= found.magnitude * 1.02 + 1e-4


def test_a_geometric_search_may_end_at_either_end():
    p = torch.rand(5, 40, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 0.3
    geometric = {"percentile": 0.7, "spacing": "geometric", "tolerance": 0.02}
    p[0, 1:9] = 0.9  # nothing serves all and is chosen, whatever λ
    assert scores.condition_units(Scores({A: p}, tuple("abcde")), 8, limit=32.0, **geometric).magnitude == 32
    p[:, 0] = 0.95
    coarse = {**geometric, "tolerance": 31.0}
    found = scores.condition_units(Scores({A: p}, tuple("abcde")), 8, limit=32.0, **coarse)
    assert (found.magnitude, found.evaluations) == (0.0, 3)
    with pytest.raises(UnknownNameError, match="spacing"):
        scores.condition_units(Scores({A: p}, tuple("abcde")), 8, spacing="odd")
    with pytest.raises(RangeError, match="begins below"):
        scores.condition_units(Scores({A: p}, tuple("abcde")), 8, limit=0.01, **geometric)


def test_bad_choices_of_condition_units():
    p = probabilities()
    for options in ({"percentile": 1.0}, {"percentile": 0}, {"tolerance": 0}, {"limit": -1}, {"share": 2.0}):
        with pytest.raises(RangeError):
            scores.condition_units(p, **{"share": 0.1, **options})
    with pytest.raises(ShapeError):
        scores.condition_units(Scores({A: torch.rand(1, 3)}, ("one",)))


def test_information_of_units_that_lie_far_from_zero():
    """A potential of -65 mV that moves by half a millivolt tells as much as the same movement about zero."""
    labels = torch.tensor([0, 1] * 100)
    noise = rows(200, 1, 3) * 0.02
    for offset in (-65.0, 0.0, 10.0, 1e4):
        moved = offset + 0.5 * labels[:, None] + noise
        found = scores.mutual_information(of(moved), labels, correction=None)
        assert found[A].item() == pytest.approx(1.0, abs=1e-9)
        pieces = [of(moved[:40]), of(moved[40:])]
        found = scores.mutual_information(iter(pieces), labels, correction=None)
        assert found[A].item() == pytest.approx(1.0, abs=1e-9)
    wide = -65 + 2 * rows(4000, 1, 4)
    side = (wide[:, 0] > -65).long()
    assert scores.mutual_information(of(wide), side)[A].item() > 0.9


def test_information_of_no_rows_is_undefined():
    empty = Recording({A: torch.zeros(0, 2)}, {A: Table([])}, samples=2)
    with pytest.warns(UserWarning, match="no row or every row"):
        found = scores.mutual_information(empty, torch.tensor([0, 1]))
    assert found[A].isnan().all()


@pytest.mark.parametrize("source", ["recording", "stream"])
def test_counts_take_the_labels_that_came_with_the_rows(source):
    values, labels = rows(12, 3, 5), torch.tensor([0, 1, 2] * 4)
    whole = of(values, labels)
    record = whole if source == "recording" else iter([of(values[:6], labels[:6]), of(values[6:], labels[6:])])
    found = scores.count_activations(record)
    assert found.conditions == ("0", "1", "2")
    for number in range(3):
        assert torch.equal(found.active[A][number], (values[labels == number] > 0).sum(0))


def test_counts_refuse_a_stream_of_which_only_some_pieces_have_labels():
    values = rows(12, 3, 5)
    with pytest.raises(ShapeError, match="needs labels"):
        scores.count_activations(iter([of(values[:6], torch.tensor([0, 1] * 3)), of(values[6:])]))


def test_an_equal_constant_tells_nothing_whatever_its_rounding():
    labels = (torch.arange(58) < 22).long()
    values = torch.full((58, 2), 0.7, dtype=torch.float64)
    values[:22, 1] = 0.1 + 0.2
    found = scores.dprime(of(values), labels)[A]
    assert found[0].item() == 0.0
    assert found[1].item() == -math.inf


# massive activations


def test_massive_activations_are_those_of_the_definition():
    torch.manual_seed(0)
    values = torch.randn(2, 6, 40) * 0.05
    values[0, 0, 7], values[1, 0, 7], values[1, 3, 7], values[1, 4, 2] = 500.0, -400.0, 90.0, 101.0
    values[0, 5] *= 10  # larger, not massive
    flat = values.reshape(12, 40)
    record = Recording({B: flat}, {B: Table([0] * 6 + [1] * 6, [*range(6)] * 2)})
    found = scores.massive_activations(record)
    medians = values.abs().reshape(2, -1).median(1).values
    expected = [
        (s, t, u)
        for s in range(2)
        for t in range(6)
        for u in range(40)
        if abs(values[s, t, u]) > 100 and abs(values[s, t, u]) > 1000 * medians[s]
    ]
    assert {(one.sample, one.position, one.unit) for one in found.found} == set(expected) == {
        (0, 0, 7), (1, 0, 7), (1, 4, 2),
    }  # fmt: skip
    assert [round(one.value) for one in found.found] == [500, -400, 101]
    assert found.found[0].ratio == pytest.approx(500 / float(medians[0]), rel=1e-6)
    assert found.neurons.indices(B).tolist() == [2, 7]
    assert found.shares[B][[2, 7]].tolist() == [0.5, 1.0]
    assert found.positions(B, 7) == {0: 2}
    assert "3 massive activations of 2 units in 2 samples" in str(found)
    assert not scores.massive_activations(record, magnitude=1000).found
    assert len(scores.massive_activations(record, magnitude=80, ratio=100).found) == 4
    with pytest.raises(RangeError):
        scores.massive_activations(record, ratio=-1)


def test_massive_activations_of_a_stream_have_the_streams_samples():
    model = nn.Sequential(nn.Embedding(5, 6))
    with torch.no_grad():
        model[0].weight.fill_(0.01)
        model[0].weight[3, 4] = 200.0
    site = Site("0", "b t u")
    batches = [torch.tensor([[0, 1, 3]]), torch.tensor([[0, 1, 2], [3, 3, 1]])]
    found = scores.massive_activations(probe.stream(model, batches, site))
    assert sorted((one.sample, one.position) for one in found.found) == [(0, 2), (2, 0), (2, 1)]
    assert found.found == scores.massive_activations(probe.record(model, batches, site)).found
    assert found.samples == 3


def test_samples_without_a_row_count_among_all():
    values = torch.full((4, 5), 0.1)
    values[2, 3] = -300.0
    record = Recording({B: values}, {B: Table([0, 0, 1, 1], [0, 1, 0, 1])}, samples=4)
    assert scores.massive_activations(record).shares[B][3].item() == 0.25
    assert scores.massive_activations(iter([record, record])).samples == 8
