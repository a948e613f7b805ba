"""What must be true of the protocol of relation-neurons."""

import dataclasses
import math

import pytest
import torch

from plexus.explain import EffectMatrix
from plexus.probe import record
from plexus.studies.interpretability import _relations as rel
from plexus.studies.interpretability import relation_neurons as protocol
from plexus.studies.interpretability.relation_neurons import METHOD, RelationNeurons
from plexus.units import Scores, sites


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


def test_random_sets_are_as_large_at_every_site_and_others(config, found):
    own = rel.chosen(config, found, 0)
    other = rel.chosen(dataclasses.replace(config, random=True), found, 0)
    for name, units in own.items():
        assert units.counts == other[name].counts
        assert not units & other[name]
        assert len(units) == math.ceil(config.share * sum(units.sizes.values()))


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
    from plexus.edit import scale
    from plexus.units import Neurons

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


def test_held_units_are_at_their_medians_and_silenced_ones_at_zero(config, prepared, found):
    choose, units = rel.to_choose_on(prepared), rel.chosen(config, found, 0)
    forced = dataclasses.replace(config, force=True)
    name = choose.names[0]
    at = rel.places(config, prepared.model)
    values = record(prepared.model, choose.batches, at, pool="last")
    for settings in (config, forced):
        with rel.edits(settings, prepared.model, choose, units)[name].on(prepared.model):
            inside = record(prepared.model, choose.batches, at)
        for site in at:
            mask = units[name].mask(site)
            median = values[site][choose.labels == 0].double().quantile(0.5, dim=0).float()
            target = median[mask] if settings.force else torch.zeros(int(mask.sum()))
            assert torch.allclose(inside[site][:, mask], target.expand(len(inside[site]), -1), atol=1e-5)


def matrix(change, controls=0.0, draws=5):
    size = len(change)
    names = tuple("abcd"[:size])
    items = torch.tensor(change, dtype=torch.float64)
    return EffectMatrix(
        "y", names, names, items, torch.arange(size), torch.full((size, draws, size), float(controls)).double()
    )


def test_gains_are_counted_off_the_diagonal_and_beyond_random():
    change = [[9.0, 0.2, -1.0], [0.0, 9.0, 0.3], [0.05, -0.1, 9.0]]
    assert protocol.gains(matrix(change, controls=0.1, draws=7)) == pytest.approx(2 / 6)
    assert protocol.gains(matrix(change, controls=0.1, draws=6)) == 0  # 18 random sets give no p of 0.05
    assert protocol.gains(matrix([[1.0, -0.1], [-0.2, 1.0]], controls=-0.5, draws=20)) == 0  # less harm is no gain


def test_random_sets_gain_in_one_pair_of_twenty_at_most():
    draw = torch.Generator().manual_seed(0)
    found = []
    for _ in range(300):
        table = torch.randn(4, 4, generator=draw, dtype=torch.float64)
        controls = torch.randn(4, 6, 4, generator=draw, dtype=torch.float64)
        found.append(protocol.gains(EffectMatrix("y", tuple("abcd"), tuple("abcd"), table, torch.arange(4), controls)))
    assert 0.02 < sum(found) / 300 < 0.055


def test_losses_are_positive_where_accuracy_falls():
    found = protocol.losses(matrix([[-0.4, 0.0], [-0.1, -0.2]]), 100.0, "")
    assert found == pytest.approx({"own": 30, "other": 5, "random": 0, "selectivity": 25})


def test_only_keeps_a_group_that_would_be_empty():
    found = EffectMatrix("y", ("a", "b"), ("a", "b"), torch.tensor([[1.0, 3.0, 5.0], [0.0, 0.0, 2.0]]).double(),
                         torch.tensor([0, 0, 1]), torch.zeros(2, 1, 2))  # fmt: skip
    assert protocol.only(found, torch.tensor([False, True, False])).change.tolist() == [[3.0, 5.0], [0.0, 2.0]]


def test_facts_that_the_model_does_not_know_do_not_count(config, prepared):
    test = rel.to_test_with(prepared)

    def answers_first_half(model):
        hit = torch.zeros(len(test.items), dtype=torch.float64)
        hit[::2] = 1
        return {"accuracy": hit, "log-probability": torch.zeros(len(test.items))}

    class Half(rel.Questions):
        __call__ = staticmethod(answers_first_half)

    half = Half.__new__(Half)
    half.__dict__.update(test.__dict__)
    units = rel.chosen(config, rel.ranked(config, prepared.model, rel.to_choose_on(prepared), test, 0), 0)
    made = rel.edits(config, prepared.model, test, units)
    found = protocol.asked(config, prepared.model, half, made, 0)["accuracy"]
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
    assert len(figures) == 4
