"""What must be true of the protocol of relation-neurons."""

import dataclasses
import math

import pytest
import torch

from plexus.edit import scale
from plexus.explain import EffectMatrix, effect_matrix
from plexus.probe import record
from plexus.studies.interpretability import _relation_pairs as pairs
from plexus.studies.interpretability import _relations as rel
from plexus.studies.interpretability import _silenced as sil
from plexus.studies.interpretability import relation_neurons as protocol
from plexus.studies.interpretability.relation_neurons import METHOD, RelationNeurons
from plexus.units import Neurons, Scores, sites


@pytest.fixture(scope="module")
def config():
    return RelationNeurons.configure("smoke")


@pytest.fixture(scope="module")
def prepared(config):
    return rel.trained(config, 0)


@pytest.fixture(scope="module")
def found(config, prepared):
    return rel.ranked(config, prepared.model, rel.to_choose_on(prepared), rel.to_test_with(prepared), 0)


def test_units_are_chosen_on_other_subjects_than_the_test_asks_for(prepared):
    choose, test = rel.to_choose_on(prepared), rel.to_test_with(prepared)
    assert not {i.subject for i in choose.items} & {i.subject for i in test.items}
    assert protocol.UNSEEN in test.templates
    assert protocol.UNSEEN not in choose.templates
    assert torch.bincount(choose.labels).unique().numel() == 1  # negatives are balanced over the other relations


def test_ablations_change_what_they_say_and_nothing_else():
    method = dict(RelationNeurons.arm(METHOD).overrides)
    assert method == {"details": True, "controls": 3}
    for arm in RelationNeurons.arms:
        if arm.role in ("ablation", "null"):
            assert len(arm.overrides) == 1
    rivals = [arm.name for arm in RelationNeurons.arms if arm.role == "baseline"]
    assert set(rivals) == {*protocol.RIVALS, "best rival"}


def test_random_sets_are_others_and_as_large_at_every_site(config, found):
    own = rel.chosen(config, found, 0)
    other = rel.chosen(dataclasses.replace(config, random=True), found, 0)
    for name, units in own.items():
        assert units.counts == other[name].counts
        assert units != other[name]
        assert len(units) == math.ceil(config.share * sum(units.sizes.values()))


def test_a_ranking_may_take_most_of_a_site(config, prepared):
    """Attribution likes the down-projections; the controls must still exist."""
    test = rel.to_test_with(prepared)
    most = dataclasses.replace(config, where="down", share=0.7)
    units = rel.chosen(most, rel.ranked(most, prepared.model, rel.to_choose_on(prepared), test, 0), 0)
    matrices = sil.asked(most, sil.Silencing(prepared.model, test.batches), test, units, 0)
    assert matrices["accuracy"].controls.shape == (8, 1, 8)


def test_where_restricts_the_units(config, prepared):
    for where, count in (("all", 3), ("gate", 1), ("up", 1), ("down", 1), ("hidden", 1)):
        at = rel.places(dataclasses.replace(config, where=where), prepared.model)
        assert len(at) == count
    assert rel.places(dataclasses.replace(config, where="hidden"), prepared.model)[0].at == "input"


def test_shuffled_labels_and_left_out_wordings_give_other_scores(config, prepared, found):
    choose, test = rel.to_choose_on(prepared), rel.to_test_with(prepared)
    mixed = rel.ranked(dataclasses.replace(config, shuffle=True), prepared.model, choose, test, 0)
    careful = rel.ranked(dataclasses.replace(config, left_out=True), prepared.model, choose, test, 0)
    best = [torch.stack([s[site].amax() for site in s.sites]).max() for s in (found, mixed)]
    assert best[1] < best[0]
    assert set(careful.concepts) == set(found.concepts)
    assert any(not torch.equal(careful[site], found[site]) for site in found.sites)


def test_attribution_is_value_times_slope_of_the_answers_logit(config, prepared):
    """Against the change of the logit when the value of a unit is scaled a little."""
    test = rel.to_test_with(prepared)
    at = sites.projections(prepared.model)[:1]
    found = rel.attribution(prepared.model, test, at)

    def logits():
        with torch.no_grad():
            parts = [prepared.model(**b).logits[:, -1] for b in test.batches]
        return torch.cat(parts).double().gather(1, test.answers[:, None])[:, 0]

    before, step = logits(), 0.02
    for unit in (0, 5):
        with scale(prepared.model, Neurons.of(found.sizes, {at[0]: [unit]}), 1 + step, positions="last"):
            slope = (logits() - before) / step
        for number, name in enumerate(test.names):
            expected = slope[test.labels == number].abs().mean()
            assert float(found[name][at[0]][unit]) == pytest.approx(float(expected), rel=0.1, abs=1e-3)


def test_contrast_takes_away_the_mean_of_the_others():
    site = sites.projections(torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.ReLU(), torch.nn.Linear(2, 2)))[0]
    scores = Scores({site: torch.tensor([[3.0, 1.0], [1.0, 1.0], [2.0, 4.0]])}, ("a", "b", "c"))
    assert rel.contrast(scores)["a"][site].tolist() == [1.5, -1.5]


def test_held_units_are_at_their_medians(config, prepared, found):
    choose, units = rel.to_choose_on(prepared), rel.chosen(config, found, 0)
    assert rel.held(config, prepared.model, choose, units) is None
    forced = dataclasses.replace(config, force=True)
    name = choose.names[0]
    at = rel.places(config, prepared.model)
    values = record(prepared.model, choose.batches, at, pool="last")
    with rel.held(forced, prepared.model, choose, units)[name].on(prepared.model):
        inside = record(prepared.model, choose.batches, at)
    for site in at:
        mask = units[name].mask(site)
        median = values[site][choose.labels == 0].double().quantile(0.5, dim=0).float()[mask]
        assert torch.allclose(inside[site][:, mask], median.expand(len(inside[site]), -1), atol=1e-5)


@pytest.fixture(scope="module")
def deep(config):
    """Three layers: the first, one in the middle and the last are computed each in its own way."""
    return rel.trained(dataclasses.replace(config, layers=3, steps=5), 0, early=False)


@pytest.mark.parametrize("where", ["all", "gate", "up", "down", "hidden"])
def test_silencing_is_the_edit_that_multiplies_by_zero(config, prepared, deep, where):
    for made in (prepared, deep):
        test, setting = rel.to_test_with(made), dataclasses.replace(config, where=where, share=0.3)
        draw = torch.Generator().manual_seed(0)
        at = rel.places(setting, made.model)
        sizes = sites.measure(made.model, test.batches[0], at)
        some = [Neurons({s: torch.rand(n, generator=draw) < 0.4 for s, n in sizes.items()}) for _ in range(3)]
        found = sil.Silencing(made.model, test.batches)([*some, Neurons({})])
        for units, said in zip(some, found, strict=False):
            with scale(made.model, units, 0.0):
                assert torch.allclose(said, test.says(made.model), atol=1e-4)
        assert torch.allclose(found[-1], test.says(made.model), atol=1e-4)
        assert not torch.allclose(found[0], found[-1], atol=1e-2)
        rows = test.labels == 3
        assert torch.allclose(sil.Silencing(made.model, test.batches, rows)(some), found[:3, rows], atol=1e-5)


def test_effects_are_those_of_the_library(config, prepared, found):
    test, units = rel.to_test_with(prepared), rel.chosen(config, found, 0)
    every = torch.ones(len(test.items), dtype=torch.bool)
    setting = dataclasses.replace(config, controls=2)
    ours = sil.asked(setting, sil.Silencing(prepared.model, test.batches), test, units, 5, keep=every)
    cut = {name: scale(one, 0.0) for name, one in units.items()}
    theirs = effect_matrix(
        prepared.model, cut, test, test.labels, test.names, keep=every, n_random=2, seed=5, exclude=False
    )
    for name, one in theirs.items():
        assert torch.allclose(ours[name].items, one.items, atol=1e-4)
        assert torch.allclose(ours[name].controls, one.controls, atol=1e-4)
        assert torch.equal(ours[name].members, one.members)


def test_the_worst_single_unit_is_sought_among_all_that_were_chosen(config, prepared, found):
    """Against the library's edit, one unit after the other; what the model says counts as right."""
    names = rel.to_test_with(prepared).names[:2]
    items = [item for item in rel.to_test_with(prepared).items if item.concept in names]
    test = rel.Questions(items, prepared.tokenizer)
    test.answers = test.says(prepared.model).argmax(-1)
    units, losses = rel.chosen(config, found, 0), []
    for number, name in enumerate(names):
        for site, unit in units[name]:
            with scale(prepared.model, Neurons.of(units[name].sizes, {site: [unit]}), 0.0):
                losses.append(float(1 - test(prepared.model)["accuracy"][test.labels == number].mean()))
    assert max(losses) > 0
    known = torch.ones(len(items), dtype=torch.bool)
    assert sil.worst_single(prepared.model, test, units, known) == pytest.approx(max(losses))


def test_mantel_is_exact():
    blocks = torch.zeros(4, 4)
    blocks[:2, :2] = blocks[2:, 2:] = 1
    assert pairs.mantel(blocks, blocks * 3 + 1)[:2] == pytest.approx((1, 1 / 3))  # three ways to pair four rows
    assert pairs.mantel(blocks, -blocks)[:2] == pytest.approx((-1, 1))
    assert pairs.mantel(blocks, torch.ones(4, 4)) == (0, 1, 0)


def test_mantel_calls_tables_without_relation_related_in_one_of_twenty():
    draw, subjects = torch.Generator().manual_seed(0), torch.block_diag(*(torch.ones(n, n) for n in (2, 2, 3)))
    found = [pairs.mantel(subjects, torch.rand(7, 7, generator=draw)) for _ in range(150)]
    assert sum(one.r > one.bar + 1e-9 for one in found) / 150 < 0.1
    assert abs(sum(one.r for one in found) / 150) < 0.05
    assert all((one.p <= 0.05) >= (one.r > one.bar + 1e-9) for one in found)


def test_relations_of_a_pool_share_subjects_and_no_two_share_an_answer(prepared):
    names = list(prepared.world.relations)
    subjects, answers = pairs.entities(prepared.world, names)
    pools = [prepared.world.relations[name].pool for name in names]
    assert subjects.tolist() == [[float(one == other) for other in pools] for one in pools]
    assert torch.equal(answers, torch.eye(8, dtype=torch.float64))


def matrix(change, controls=0.0, draws=5, spread=0.0, facts=12):
    """`facts` items of each group, in pairs of one subject, whose changes lie `spread` around the mean."""
    size = len(change)
    names = tuple("abcd"[:size])
    around = spread * torch.tensor([1.0, 1, -1, -1] * (facts // 4)).double()
    items = torch.tensor(change, dtype=torch.float64).repeat_interleave(facts, 1) + around.repeat(size)
    groups = torch.arange(size).repeat_interleave(facts)
    return EffectMatrix("y", names, names, items, groups, torch.full((size, draws, size), float(controls)).double())


def gained(*matrices):
    return pairs.gains(matrices, torch.arange(matrices[0].items.shape[1]) // 2)


def test_gains_are_counted_off_the_diagonal_and_beyond_random():
    change = [[9.0, 0.2, -1.0], [0.0, 9.0, 0.3], [0.05, -0.1, 9.0]]
    assert gained(matrix(change, controls=0.1, draws=7)) == (pytest.approx(2 / 6), [pytest.approx(2 / 6)], 0.5)
    assert gained(matrix(change, controls=0.1, draws=6)).any == 0  # 18 random sets give no p of 0.05
    assert gained(matrix([[1.0, -0.1], [-0.2, 1.0]], controls=-0.5, draws=20)).any == 0  # less harm is no gain


def test_a_gain_of_a_few_facts_only_is_none():
    change = [[9.0, 0.2], [0.3, 9.0]]
    assert gained(matrix(change, draws=20)).any == 1
    assert gained(matrix(change, draws=20, spread=1.0)) == (0, [0], 0)


def test_a_pair_that_gains_at_one_share_of_units_counts_once():
    some, other, none = ([[9.0, a], [b, 9.0]] for a, b in ((0.2, 0.0), (0.2, 0.3), (0.0, 0.0)))
    found = gained(*(matrix(one, draws=20) for one in (some, other, none)))
    assert found == (1, [0.5, 1, 0], 1)


def test_facts_that_do_not_change_gain_in_one_pair_of_twenty_at_most():
    """Six shares with noise of their own, and random sets that do nothing: the interval alone must hold the rate."""
    draw = torch.Generator().manual_seed(0)
    found = []
    for _ in range(8):
        items = torch.randn(6, 4, 4 * 32, generator=draw, dtype=torch.float64)
        groups = torch.arange(4).repeat_interleave(32)
        controls = torch.full((4, 6, 4), -9.0, dtype=torch.float64)
        found.append(
            pairs.gains([EffectMatrix("y", tuple("abcd"), tuple("abcd"), one, groups, controls) for one in items],
                        torch.arange(4 * 32)).any
        )  # fmt: skip
    assert sum(found) / 8 < 0.09  # 2.5 % in the limit of many facts; the percentile interval of 32 is a little narrow


def test_losses_are_positive_where_accuracy_falls():
    found = protocol.losses(matrix([[-0.4, 0.0], [-0.1, -0.2]]), 100.0, "")
    assert found == pytest.approx({"own": 30, "other": 5, "random": 0, "selectivity": 25})


def test_only_keeps_a_group_that_would_be_empty():
    found = EffectMatrix("y", ("a", "b"), ("a", "b"), torch.tensor([[1.0, 3.0, 5.0], [0.0, 0.0, 2.0]]).double(),
                         torch.tensor([0, 0, 1]), torch.zeros(2, 1, 2))  # fmt: skip
    assert protocol.only(found, torch.tensor([False, True, False])).change.tolist() == [[3.0, 5.0], [0.0, 2.0]]


def test_facts_that_the_model_does_not_know_do_not_count(config, prepared):
    test = rel.to_test_with(prepared)

    class Half(rel.Questions):
        def brings(self, said):
            hit = torch.zeros(said.shape[:-1], dtype=torch.float64)
            hit[:, ::2] = 1
            return {"accuracy": hit, "log-probability": torch.zeros(said.shape[:-1])}

    half = Half.__new__(Half)
    half.__dict__.update(test.__dict__)
    units = rel.chosen(config, rel.ranked(config, prepared.model, rel.to_choose_on(prepared), test, 0), 0)
    found = sil.asked(config, sil.Silencing(prepared.model, half.batches), half, units, 0)["accuracy"]
    assert ((found.members >= 0) == (torch.arange(len(test.items)) % 2 == 0)).all()


@pytest.mark.parametrize(
    ("own", "other", "random", "passes"), [(40, 2, 3, True), (40, 9, 3, False), (10, 0, 0, False), (40, 2, 15, False)]
)
def test_the_primary_check_can_fail_in_each_of_its_three_ways(own, other, random, passes):
    seed = {METHOD: {"own": own, "other": other, "random": random}}
    check = next(c for c in RelationNeurons.checks if c.primary and c.role == "mechanism")
    assert (check.quantity(seed) >= 0) == passes


def test_figures_show_what_was_measured(config, prepared):
    from plexus.lab import Results

    study = RelationNeurons()
    arm = dataclasses.replace(config, details=True)
    outcome = study.run(arm, prepared, 0)
    assert all(math.isfinite(value) for value in outcome.metrics.values())
    figures = study.figures(Results({METHOD: {0: outcome}}))
    assert len(figures) == 5
