"""What must be true of effect and overlap matrices."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from plexus import edit
from plexus.errors import DtypeError, RangeError, ShapeError, UnknownNameError
from plexus.explain import EffectMatrix, effect_matrix, overlap_matrix
from plexus.units import Neurons, Site

SITE = Site("0", "b u")
GROUPS = torch.tensor([0, 0, 1, 1, 1, 2, 2])
WEIGHT = torch.randn(12, 7, generator=torch.Generator().manual_seed(1))


def measure(model):
    """Item k reads all units through its own weights, so that every effect has a closed form."""
    return {"y": model(torch.ones(1, 12))[0] @ WEIGHT, "half": model(torch.ones(1, 12))[0] @ WEIGHT / 2}


def cuts():
    return {
        name: edit.scale(Neurons.of({SITE: 12}, {SITE: units}), 0.0)
        for name, units in (("a", [0, 1]), ("b", [2]), ("c", [3, 4, 5]))
    }


@pytest.fixture(scope="module")
def found():
    return effect_matrix(nn.Sequential(nn.Identity()), cuts(), measure, GROUPS, ("a", "b", "c"), n_random=4, seed=3)


class TestEffects:
    def test_changes_are_those_of_the_closed_form(self, found):
        lost = {"a": WEIGHT[[0, 1]].sum(0), "b": WEIGHT[2], "c": WEIGHT[[3, 4, 5]].sum(0)}
        for row, effect in enumerate(lost.values()):
            for column in range(3):
                expected = -effect[column == GROUPS].mean()
                assert torch.isclose(found["y"].change[row, column].float(), expected, atol=1e-5)

    def test_own_and_other_are_the_diagonal_and_the_rest(self, found):
        change = found["y"].change
        assert found["y"].own == pytest.approx(float(change.trace()) / 3)
        assert found["y"].other == pytest.approx(float(change.sum() - change.trace()) / 6)
        assert found["y"].random_own == pytest.approx(float(found["y"].controls.mean(1).trace()) / 3)

    def test_measures_of_one_run_keep_apart(self, found):
        assert torch.allclose(found["half"].change * 2, found["y"].change, atol=1e-5)
        assert torch.allclose(found["half"].controls * 2, found["y"].controls, atol=1e-5)

    def test_controls_are_the_same_edit_on_as_many_other_units(self, found):
        """Each control of `a` is minus the sum of two of the other ten rows of the weights."""
        sums = [WEIGHT[list(pair)].sum(0) for pair in itertools.combinations(range(2, 12), 2)]
        means = [torch.stack([-s[g == GROUPS].mean() for g in range(3)]).double() for s in sums]
        for control in found["y"].controls[0]:
            assert min(float((control - mean).abs().max()) for mean in means) < 1e-5

    def test_the_model_is_as_before_and_a_seed_repeats(self, found):
        model = nn.Sequential(nn.Identity())
        before = measure(model)["y"]
        again = effect_matrix(model, cuts(), measure, GROUPS, ("a", "b", "c"), n_random=4, seed=3)
        assert torch.equal(measure(model)["y"], before)
        assert torch.equal(again["y"].controls, found["y"].controls)
        other = effect_matrix(model, cuts(), measure, GROUPS, ("a", "b", "c"), n_random=4, seed=4)
        assert not torch.equal(other["y"].controls, found["y"].controls)

    def test_only_kept_items_count(self):
        keep = torch.tensor([True, False, True, True, False, False, True])
        found = effect_matrix(nn.Sequential(nn.Identity()), cuts(), measure, GROUPS, ("a", "b", "c"), keep=keep)["y"]
        assert torch.allclose(
            found.change[1].float(), -torch.stack([WEIGHT[2, 0], WEIGHT[2, [2, 3]].mean(), WEIGHT[2, 6]])
        )

    def test_null_places_a_change_among_its_controls(self, found):
        place = found["y"].null("b", "c")
        controls = found["y"].controls[1, :, 2]
        assert place.percentile == pytest.approx(100 * float((controls < found["y"].change[1, 2]).double().mean()))
        with pytest.raises(UnknownNameError):
            found["y"].null("d", "c")

    def test_interval_covers_the_mean_of_many_items(self):
        """Over 200 repetitions a 90 % interval of a mean of zero covers zero about nine times in ten."""
        draw = torch.Generator().manual_seed(0)
        covered = 0
        for seed in range(200):
            items = torch.randn(1, 60, generator=draw, dtype=torch.float64)
            matrix = EffectMatrix("y", ("a",), ("a",), items, torch.zeros(60).long(), torch.zeros(1, 1, 1))
            low, high = matrix.interval(level=0.9, resamples=200, seed=seed)
            covered += bool(low[0, 0] <= 0 <= high[0, 0])
        assert 165 <= covered <= 195

    def test_items_of_one_cluster_are_drawn_together(self):
        """Ten copies of each item tell no more than one: clustered, the interval is that of the ten."""
        few = torch.randn(1, 10, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        many = few.repeat_interleave(10, dim=1)
        one = EffectMatrix("y", ("a",), ("a",), few, torch.zeros(10).long(), torch.zeros(1, 1, 1))
        copied = EffectMatrix("y", ("a",), ("a",), many, torch.zeros(100).long(), torch.zeros(1, 1, 1))
        clusters = torch.arange(10).repeat_interleave(10)
        assert torch.allclose(torch.stack(copied.interval(clusters=clusters)), torch.stack(one.interval()), atol=1e-12)
        alone, together = (float(high - low) for low, high in (copied.interval(), copied.interval(clusters=clusters)))
        assert alone < together / 2

    def test_prints_and_exports(self, found):
        assert "random sets" in str(found["y"])
        assert found["y"].to_json()["groups"] == ["a", "b", "c"]
        assert len(found["y"].figure().data) == 1

    def test_bad_input(self, found):
        model = nn.Sequential(nn.Identity())
        with pytest.raises(ShapeError, match="no edits"):
            effect_matrix(model, {}, measure, GROUPS)
        with pytest.raises(DtypeError, match="no edit"):
            effect_matrix(model, {"a": Neurons.of({SITE: 12})}, measure, GROUPS)
        with pytest.raises(RangeError, match="control"):
            effect_matrix(model, cuts(), measure, GROUPS, n_random=0)
        with pytest.raises(DtypeError, match="by name"):
            effect_matrix(model, cuts(), lambda m: measure(m)["y"], GROUPS)
        with pytest.raises(ShapeError, match="differ in items"):
            effect_matrix(model, cuts(), measure, GROUPS[:5])
        with pytest.raises(ShapeError, match="has a name"):
            effect_matrix(model, cuts(), measure, GROUPS, ("a",))
        with pytest.raises(ShapeError, match="no item"):
            effect_matrix(model, cuts(), measure, GROUPS, keep=GROUPS != 1)
        with pytest.raises(ShapeError, match="whole numbers"):
            effect_matrix(model, cuts(), measure, GROUPS.float())
        with pytest.raises(RangeError, match="finite"):
            effect_matrix(model, cuts(), lambda m: {"y": torch.full((7,), torch.nan)}, GROUPS)
        with pytest.raises(ShapeError, match="common names"):
            _ = effect_matrix(model, cuts(), measure, GROUPS)["y"].own
        with pytest.raises(RangeError):
            found["y"].interval(level=1.0)
        with pytest.raises(ShapeError):
            found["y"].interval(clusters=torch.zeros(3))


class TestOverlap:
    sizes = {SITE: 6, Site("1", "b u"): 4}  # noqa: RUF012

    def test_expected_and_p_are_those_of_all_draws(self):
        """By going through every pair of sets with these counts at each site."""
        first, second = self.sizes
        one = Neurons.of(self.sizes, {first: [0, 1], second: [0]})
        two = Neurons.of(self.sizes, {first: [1, 2, 3], second: [0, 3]})
        found = overlap_matrix({"one": one, "two": two})
        counts = [
            len(set(a) & {1, 2, 3}) + len(set(b) & {0, 3})
            for a in itertools.combinations(range(6), 2)
            for b in itertools.combinations(range(4), 1)
        ]
        assert found.shared[0, 1] == 2
        assert found.expected[0, 1].item() == pytest.approx(np.mean(counts))
        assert found.p[0, 1].item() == pytest.approx(np.mean([count >= 2 for count in counts]))
        assert found.jaccard[0, 1].item() == pytest.approx(2 / 6)

    @given(st.lists(st.sets(st.integers(0, 9)), min_size=2, max_size=4))
    def test_symmetry_and_bounds(self, sets):
        found = overlap_matrix({str(k): Neurons.of({SITE: 10}, {SITE: sorted(s)}) for k, s in enumerate(sets)})
        for matrix in (found.shared, found.expected, found.jaccard):
            assert torch.allclose(matrix, matrix.T)
        assert torch.allclose(found.p, found.p.T, atol=1e-9)
        assert found.shared.diagonal().tolist() == [len(s) for s in sets]
        assert bool(((found.p > 0) & (found.p <= 1)).all())
        assert "units in common" in str(found)
        assert len(found.to_json()["names"]) == len(sets)

    def test_bad_input(self):
        one = Neurons.of({SITE: 4}, {SITE: [0]})
        with pytest.raises(ShapeError, match="two sets"):
            overlap_matrix({"one": one})
        with pytest.raises(DtypeError):
            overlap_matrix({"one": one, "two": [1]})
        with pytest.raises(ShapeError, match="different sites"):
            overlap_matrix({"one": one, "two": Neurons.of({Site("9", "b u"): 4})})
