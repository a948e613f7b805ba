"""Controls: matched in what they promise, level where nothing is planted, and finding what is planted."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import nn

from plexus import edit, explain, probe
from plexus.errors import DtypeError, RangeError, ShapeError, SiteError, UnknownNameError, UnsupportedError
from plexus.explain import controls
from plexus.units import Neurons, Recording, Scores, Site, Table

A, B = Site("0", "b u"), Site("1", "b u")


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def of(site, size, *units):
    return Neurons.of({site: size}, {site: units})


# matched random sets


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 12), st.integers(1, 6), st.booleans())
def test_matched_sets_have_as_many_units_and_stay_outside_what_is_excluded(seed, count, among, exclude):
    generator = seeded(seed)
    scores = Scores({A: torch.rand(30, generator=generator), B: torch.rand(25, generator=generator)})
    chosen = scores.top(count)
    drawn = controls.matched_random(chosen, generator, exclude=exclude, match=scores, among=among)
    assert drawn.counts == chosen.counts
    if exclude:
        assert len(drawn & chosen) == 0


def test_matching_removes_the_difference_in_score_that_unmatched_sets_have():
    scores = Scores({A: torch.rand(400, generator=seeded()).pow(3)})
    # every fourth one of the most active units: the others are there to stand in
    chosen = of(A, 400, *scores.top(80).indices(A)[::4].tolist())
    matched = [controls.matched_random(chosen, seeded(i), match=scores, among=5) for i in range(20)]
    plain = [controls.matched_random(chosen, seeded(i)) for i in range(20)]
    assert np.mean([controls.imbalance(chosen, other, scores) for other in plain]) > 1
    assert np.abs([controls.imbalance(chosen, other, scores) for other in matched]).max() < 0.25
    assert len(set(matched)) > 10  # still a random choice


def test_each_stand_in_is_among_the_nearest_free_units():
    scores = Scores({A: torch.tensor([0.0, 1.0, 2.0, 3.0, 4.0, 100.0])})
    chosen = of(A, 6, 0, 5)
    # unit 5 is like unit 4, unit 0 like unit 1, whatever the order of the draw
    for seed in range(10):
        drawn = controls.matched_random(chosen, seeded(seed), match=scores, among=1)
        assert drawn.indices(A).tolist() == [1, 4]
    # an edit's numbers go with the pairs: what was added to unit 5 is added to unit 4
    amounts = edit.add(chosen, torch.tensor([7.0, 9.0]))
    moved = controls.matched_random(amounts, seeded(), match=scores, among=1)
    with moved.on(model := nn.Sequential(nn.Identity())):
        assert model(torch.zeros(1, 6)).tolist() == [[0, 7, 0, 0, 9, 0]]


def test_what_cannot_be_matched_is_refused():
    scores = Scores({A: torch.tensor([0.0, 1.0, 2.0, 100.0])})
    with pytest.raises(RangeError, match="is like unit 3"):
        controls.matched_random(of(A, 4, 3), seeded(), match=scores, tolerance=0.5)
    with pytest.raises(RangeError, match="too few"):
        controls.matched_random(of(A, 4, 0, 1, 2), seeded(), match=scores)
    with pytest.raises(SiteError, match="lacks a site"):
        controls.matched_random(of(B, 4, 0), seeded(), match=scores)
    with pytest.raises(ShapeError, match="another size"):
        controls.matched_random(of(A, 5, 0), seeded(), match=scores)
    with pytest.raises(RangeError, match="NaN"):
        controls.matched_random(of(A, 2, 0), seeded(), match=Scores({A: torch.tensor([0.0, math.nan])}))
    with pytest.raises(ShapeError, match="one per concept"):
        controls.matched_random(of(A, 2, 0), seeded(), match=Scores({A: torch.zeros(1, 2)}, ("c",)))
    with pytest.raises(RangeError, match="at least one"):
        controls.matched_random(of(A, 4, 0), seeded(), match=scores, among=0)
    with pytest.raises(RangeError, match="needs a score"):
        controls.matched_random(of(A, 4, 0), seeded(), tolerance=0.1)
    with pytest.raises(DtypeError, match="matched in a score"):
        controls.matched_random(of(A, 4, 0), seeded(), match=torch.zeros(4))


def test_imbalance_is_cohens_d():
    scores = Scores({A: torch.randn(50, generator=seeded())})
    one, two = of(A, 50, *range(20)), of(A, 50, *range(20, 50))
    x, y = scores[A][:20].numpy(), scores[A][20:].numpy()
    expected = (x.mean() - y.mean()) / np.sqrt((x.var(ddof=1) + y.var(ddof=1)) / 2)
    assert controls.imbalance(one, two, scores) == pytest.approx(expected, rel=1e-5)
    assert controls.imbalance(one, two, scores) == -controls.imbalance(two, one, scores)
    assert controls.imbalance(one, one, scores) == 0


def test_compare_uses_matched_sets_and_says_so():
    rates = Scores({A: torch.arange(40.0)}, None, "rate")
    model = nn.Sequential(nn.Identity())
    weight = torch.arange(40.0)

    def total(model):
        return (model(torch.ones(1, 40))[0] * weight).sum()

    cut = edit.scale(of(A, 40, 35), 0.0)
    plain = explain.compare(model, cut, {"y": total}, n_random=39)
    matched = explain.compare(model, cut, {"y": total}, n_random=39, match=rates, among=4)
    # against any other unit the large one stands out, against units of its kind it does not
    assert plain["y"].percentile < 20
    assert 20 < matched["y"].percentile < 80
    assert "alike in rate" in str(matched)
    assert matched.to_json()["matched"] == "rate"


def test_an_effect_without_its_control_is_not_reported():
    with pytest.raises(ShapeError, match="beside its controls"):
        explain.Effect("y", 1.0, 2.0, torch.tensor([]))
    with pytest.raises(ShapeError, match="controls"):
        controls.DoseCurve("y", 0.0, torch.arange(2.0), torch.zeros(2), torch.zeros(0, 2))


def test_several_measures_are_corrected():
    effects = (
        explain.Effect("a", 0.0, 5.0, torch.linspace(-1, 1, 19)),
        explain.Effect("b", 0.0, 0.5, torch.linspace(-1, 1, 19)),
    )
    found = explain.Comparison(edit.scale(of(A, 4, 0), 0.0), effects, 19, 0)
    assert found.corrected == {"a": pytest.approx(0.1), "b": pytest.approx(found["b"].p)}
    with pytest.raises(UnknownNameError):
        controls.adjusted({"a": 0.1}, "bonferoni")


# label shuffles


def test_shuffled_labels_keep_their_numbers_and_their_groups():
    labels = torch.arange(12)
    group = torch.tensor([2, 0, 1] * 4)
    mixed = controls.shuffled(labels, seeded(), within=group)
    assert sorted(mixed.tolist()) == list(range(12))
    assert torch.equal(group[mixed], group)
    assert not torch.equal(mixed, labels)
    # every order of a group of three is as likely
    seen = {tuple(controls.shuffled(torch.arange(3), seeded(i)).tolist()) for i in range(60)}
    assert seen == set(itertools.permutations(range(3)))
    with pytest.raises(ShapeError):
        controls.shuffled(labels, seeded(), within=group[:5])
    with pytest.raises(DtypeError):
        controls.shuffled(labels, 3)


def test_label_shuffles_find_the_planted_unit_alone_and_are_level():
    y = (torch.arange(60) % 2).bool()
    x = torch.randn(60, 30, generator=seeded())
    x[y, 4] += 2.0
    record = Recording({A: x}, {A: Table(range(60))})

    def score(labels):
        return probe.scores.auroc(record, labels)

    found = controls.label_shuffles(score, y, seeded(1), n=199)
    assert found.significant().indices(A).tolist() == [4]
    np.testing.assert_allclose(found.q[A].numpy(), stats.false_discovery_control(found.p[A].numpy()))
    assert "1 of 30 units" in str(found)
    # the exact definition of both p-values
    draws = [score(controls.shuffled(y, g))[A] for g in [seeded(1)] for _ in range(199)]
    expected = (1 + sum((d >= score(y)[A]).double() for d in draws)) / 200
    torch.testing.assert_close(found.p[A], expected)
    largest = torch.stack(draws).amax(1)
    torch.testing.assert_close(found.p_family[A], (1 + (largest[:, None] >= score(y)[A]).double().sum(0)) / 200)
    # without anything planted, no more units than one in twenty, and none over all
    x[y, 4] -= 2.0
    sham = controls.label_shuffles(score, y, seeded(2), n=99)
    assert len(sham.significant(correct="none")) <= 5
    assert not len(sham.significant())


def test_label_shuffles_of_one_number_give_a_null():
    y = torch.arange(20) % 2
    found = controls.label_shuffles(lambda labels: (labels[:10].float().mean() - 0.5).abs(), y, seeded(), n=50)
    assert found.mean > 0
    with pytest.raises(RangeError, match="control"):
        controls.label_shuffles(lambda labels: 0.0, y, seeded(), n=0)
    with pytest.raises(DtypeError):
        controls.label_shuffles(lambda labels: "high", y, seeded(), n=2)
    with pytest.raises(RangeError, match="NaN"):
        controls.label_shuffles(lambda labels: Scores({A: torch.tensor([math.nan])}), y, seeded(), n=2)


# dose curves

SIZE = 24


def linear(weights):
    model = nn.Sequential(nn.Identity())
    return model, {"y": lambda m: m(torch.ones(1, SIZE))[0] @ weights}


def test_a_dose_curve_is_the_closed_form_of_a_linear_model():
    weights = torch.randn(SIZE, generator=seeded())
    model, suite = linear(weights)
    chosen = of(A, SIZE, 3, 4)
    curve = controls.dose_curve(model, lambda a: edit.add(chosen, a), [2.0, -1.0, 0.0], suite, n_random=9)["y"]
    slope = float(weights[3] + weights[4])
    assert curve.doses.tolist() == [-1, 0, 2]
    torch.testing.assert_close(curve.change, slope * curve.doses, atol=1e-5, rtol=1e-5)
    assert curve.monotonicity == np.sign(slope)
    # each control is a line too: its stand-ins are the same at every dose
    ratio = curve.controls[:, 2] / curve.controls[:, 0]
    torch.testing.assert_close(ratio, torch.full_like(ratio, -2.0), atol=1e-3, rtol=1e-3)
    assert (curve.controls[:, 1] == 0).all()


def test_sets_that_grow_have_controls_that_grow():
    model, suite = linear(torch.ones(SIZE))
    scores = Scores({A: torch.arange(float(SIZE))})
    curve = controls.dose_curve(model, lambda k: edit.scale(scores.top(k), 0.0), [1, 3, 6], suite, n_random=5)["y"]
    assert curve.change.tolist() == [-1, -3, -6]
    assert (curve.controls == curve.change).all()  # all units weigh the same
    assert curve.p == 1
    assert curve.leaves_band is None


def test_the_p_value_of_a_curve_is_level_without_an_effect_and_small_with_one():
    weights = torch.randn(SIZE, generator=seeded(5))
    weights[0] = 50.0
    model, suite = linear(weights)
    p = []
    for seed in range(24):
        unit = int(torch.randint(1, SIZE, (1,), generator=seeded(seed)))
        sham = controls.dose_curve(
            model, lambda a, u=unit: edit.add(of(A, SIZE, u), a), [0.0, 1.0], suite, n_random=9, seed=seed,
            exclude=False,
        )["y"]  # fmt: skip
        p.append(sham.p)
    assert np.mean(np.array(p) <= 0.1) < 0.1 + 3 * math.sqrt(0.1 * 0.9 / 24)
    planted = controls.dose_curve(model, lambda a: edit.add(of(A, SIZE, 0), a), [0.0, 1.0], suite, n_random=19)["y"]
    assert planted.p == pytest.approx(0.05)
    assert planted.leaves_band == 1
    assert planted.outside == (1.0,)
    figure = planted.figure()
    assert len(figure.data) == 3


def test_a_factor_is_outside_its_band_on_both_sides_of_one():
    weights = torch.randn(SIZE, generator=seeded(5)) * 0.01
    weights[0] = 50.0
    model, suite = linear(weights)
    curve = controls.dose_curve(
        model, lambda factor: edit.scale(of(A, SIZE, 0), factor), [0.0, 1.0, 2.0], suite, n_random=19
    )["y"]
    assert curve.outside == (0.0, 2.0)
    assert "outside the band at 0, 2" in str(curve)


def t_of(x, y):
    return stats.ttest_ind(x, y).statistic


@pytest.mark.filterwarnings("ignore:Precision loss")
def test_a_permutation_test_of_what_is_no_number_is_refused():
    with pytest.raises(RangeError, match="not a number"):
        controls.permutation([1.0, 1.0, 1.0], [1.0, 1.0, 1.0], t_of, draws=99)
    with pytest.raises(RangeError, match="not a number"):
        controls.permutation([1.0, 2.0], [3.0, 4.0], lambda x, y: math.nan, draws=99)
    # an infinite statistic is as large as any: of the six ways to deal four values, two are as extreme
    p = controls.permutation([1.0, 1.0], [2.0, 2.0], lambda x, y: math.inf if x[0] == x[1] else 0.0, draws=2999)
    assert p == pytest.approx(1 / 3, abs=0.05)


def test_corrections_by_name_want_names():
    with pytest.raises(DtypeError, match="by name"):
        controls.adjusted([0.1, 0.2])


def test_monotonicity_is_kendalls_tau():
    change = torch.tensor([0.0, 2.0, 1.0, 5.0, 4.0])
    curve = controls.DoseCurve("y", 0.0, torch.arange(5.0), change, torch.zeros(3, 5))
    found = stats.kendalltau(range(5), change)
    assert (curve.monotonicity, curve.monotonicity_p) == (pytest.approx(found.statistic), pytest.approx(found.pvalue))
    assert curve.to_json()["monotonicity"] == pytest.approx(found.statistic)
    assert "Kendall" in str(curve)
    flat = controls.DoseCurve("y", 0.0, torch.arange(5.0), torch.zeros(5), torch.zeros(3, 5))
    assert (flat.monotonicity, flat.monotonicity_p) == (0, 1)


def test_bad_doses_are_refused():
    model, suite = linear(torch.ones(SIZE))

    def make(a):
        return edit.add(of(A, SIZE, 0), a)

    for doses, error in (
        ([1.0], ShapeError),
        ([1.0, 1.0], ShapeError),
        ([0.0, math.inf], RangeError),
        (["a", 1], DtypeError),
    ):
        with pytest.raises(error):
            controls.dose_curve(model, make, doses, suite)
    with pytest.raises(RangeError, match="control"):
        controls.dose_curve(model, make, [0.0, 1.0], suite, n_random=0)
    with pytest.raises(DtypeError, match="no edit"):
        controls.dose_curve(model, lambda a: a, [0.0, 1.0], suite)
    along, plain = edit.add(~of(A, SIZE), 1.0, basis=torch.ones(SIZE)), edit.add(of(A, SIZE, 0), 1.0)
    with pytest.raises(UnsupportedError, match="direction"):
        controls.dose_curve(model, lambda a: along if a else plain, [0.0, 1.0], suite, exclude=False)


def test_doses_along_a_direction_stand_beside_random_directions_that_serve_at_every_dose():
    weights = torch.randn(SIZE, generator=seeded(5))
    model, suite = linear(weights)

    def along(a, direction=weights):
        return edit.add(~of(A, SIZE), a, basis=direction)

    curve = controls.dose_curve(model, along, [0.0, 1.0, 2.0], suite, n_random=19)["y"]
    per_dose = curve.change[1]
    torch.testing.assert_close(curve.change, per_dose * torch.tensor([0.0, 1.0, 2.0], dtype=torch.float64))
    torch.testing.assert_close(curve.controls[:, 2], 2 * curve.controls[:, 1], atol=1e-5, rtol=1e-5)
    assert len(curve.controls[:, 1].unique()) == 19
    assert curve.p == pytest.approx(0.05)  # no direction of its length does as much as the weights' own
    by_length = controls.dose_curve(
        model, lambda a: along(1.0, (1 + a) * weights), [0.0, 1.0], suite, n_random=5
    )["y"].controls  # fmt: skip
    torch.testing.assert_close(by_length[:, 1], 2 * by_length[:, 0], atol=1e-5, rtol=1e-5)
    again = controls.dose_curve(model, along, [0.0, 1.0, 2.0], suite, n_random=19)["y"]
    assert torch.equal(again.controls, curve.controls)


# double dissociation

ITEMS = 16


def two_tasks(noise, own=1.0):
    """Task j reads unit j (and a little of every other one)."""
    generator = seeded(3)
    x = 1 + torch.rand(ITEMS, 40, generator=generator)
    read = noise * torch.randn(40, 2, generator=generator)
    read[0, 0] += own
    read[1, 1] += own
    return nn.Sequential(nn.Identity()), {"a": lambda m: m(x) @ read[:, 0], "b": lambda m: m(x) @ read[:, 1]}, x, read


def cuts(one=0, two=1):
    return {"one": edit.scale(of(A, 40, one), 0.0), "two": edit.scale(of(A, 40, two), 0.0)}


def test_a_planted_double_dissociation_is_found_with_its_closed_form():
    model, tasks, x, read = two_tasks(0.02)
    found = controls.double_dissociation(model, cuts(), tasks, n_random=39)
    expected = -(x.mean(0)[:2, None] * read[:2])
    torch.testing.assert_close(found.effects, expected.double(), atol=1e-5, rtol=1e-5)
    assert found.interaction == pytest.approx(
        float(expected[0, 0] - expected[1, 0] - expected[0, 1] + expected[1, 1]), rel=1e-4
    )
    assert found.crossed
    assert found.p == pytest.approx(1 / 40)
    assert "double dissociation: p" in str(found)
    # named the other way round the effects do not cross: set 1 is not the one that serves task 1
    swapped = controls.double_dissociation(model, cuts(1, 0), tasks, n_random=19)
    assert not swapped.crossed
    assert swapped.p == 1
    assert swapped.interaction == pytest.approx(-found.interaction)


def test_a_single_dissociation_and_a_difference_in_strength_are_none():
    model, tasks, _, read = two_tasks(0.0)
    read[0] = torch.tensor([3.0, 1.0])  # the first unit serves both tasks, the second one neither
    read[1] = 0.0
    found = controls.double_dissociation(model, cuts(), tasks, n_random=19)
    assert abs(found.interaction) > 1  # the interaction alone would say yes
    assert not found.crossed
    assert found.to_json()["p"] == 1


def test_random_sets_do_not_dissociate():
    model, tasks, *_ = two_tasks(1.0, own=0.0)
    p = [
        controls.double_dissociation(model, cuts(one, one + 1), tasks, n_random=19, seed=one).p
        for one in range(2, 34, 4)
    ]
    assert np.mean(np.array(p) <= 0.05) <= 0.15


def test_what_is_no_double_dissociation_is_refused():
    model, tasks, *_ = two_tasks(0.1)
    with pytest.raises(ShapeError, match="two edits"):
        controls.double_dissociation(model, {"one": cuts()["one"]}, tasks)
    with pytest.raises(ShapeError, match="per item"):
        controls.double_dissociation(model, cuts(), {"a": lambda m: 1.0, "b": tasks["b"]})
    few = {name: (lambda m, task=task: task(m)[:4]) for name, task in tasks.items()}
    with pytest.raises(RangeError, match="at least 6"):
        controls.double_dissociation(model, cuts(), few, n_random=2)
    counts = itertools.count(6)
    with pytest.raises(ShapeError, match="number of items"):
        controls.double_dissociation(
            model, cuts(), {"a": tasks["a"], "b": lambda m: torch.rand(next(counts))}, n_random=2
        )


def test_sets_at_different_sites_are_dissociated_too():
    model = nn.Sequential(nn.Identity(), nn.Identity())
    x = 1 + torch.rand(ITEMS, 40, generator=seeded(0))
    edits = {"one": edit.scale(of(A, 40, 0), 0.0), "two": edit.scale(of(B, 40, 1), 0.0)}
    tasks = {"a": lambda m: m(x)[:, 0], "b": lambda m: m(x)[:, 1]}
    found = controls.double_dissociation(model, edits, tasks, n_random=19)
    assert found.crossed
    assert found.p == pytest.approx(0.05)
