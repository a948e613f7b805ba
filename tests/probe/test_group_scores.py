"""Quantiles, scores without one group, and what average precision says of units that say nothing."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from plexus.errors import DtypeError, RangeError, ShapeError
from plexus.probe.scores import auroc, average_precision, leave_one_out, quantile
from plexus.units import Recording, Site, Table

SITE = Site("fc1", "b u")


def recording(values, **options):
    values = torch.as_tensor(values, dtype=torch.float32)
    return Recording({SITE: values}, {SITE: Table(list(range(len(values))))}, **options)


@given(st.integers(1, 12), st.integers(0, 3), st.integers(0, 99))
def test_a_unit_that_says_nothing_scores_the_prevalence(with_it, without, seed):
    labels = torch.tensor([1] * with_it + [0] * without)
    labels = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))]
    found = average_precision(recording(torch.full((len(labels), 2), 3.0)), labels)[SITE]
    assert torch.allclose(found, torch.tensor(with_it / len(labels), dtype=torch.float64))


class TestQuantile:
    @given(st.integers(1, 30), st.floats(0, 1), st.integers(0, 99))
    def test_it_is_that_of_numpy(self, rows, q, seed):
        values = torch.randn(rows, 3, generator=torch.Generator().manual_seed(seed))
        assert np.allclose(quantile(recording(values), q)[SITE], np.quantile(values.numpy(), q, axis=0), atol=1e-6)

    def test_of_each_concept_by_itself_and_from_a_stream(self):
        values, labels = torch.randn(10, 4), torch.tensor([0, 1, 2, 0, 1, 2, 0, 1, 2, 0])
        names = ["a", "b", "c"]
        found = quantile(recording(values), 0.5, labels, names=names)
        for place, name in enumerate(names):
            assert torch.allclose(found[name][SITE].float(), values[labels == place].quantile(0.5, dim=0), atol=1e-6)
        pieces = [recording(values[:4]), recording(values[4:])]
        assert torch.equal(quantile(iter(pieces), 0.5, labels, names=names)[SITE], found[SITE])

    def test_nan_stays_with_its_unit_and_its_concept(self):
        values = torch.tensor([[1.0, torch.nan], [2.0, 5.0]])
        assert quantile(recording(values), 0.0)[SITE].isnan().tolist() == [False, True]
        with pytest.warns(UserWarning, match="no row"):
            found = quantile(recording(values), 0.0, [0, 0], names=["a", "b"])
        assert found["b"][SITE].isnan().all()
        with pytest.raises(RangeError):
            quantile(recording(values), 1.1)


class TestLeaveOneOut:
    wording = torch.arange(4).repeat_interleave(10)
    labels = torch.tensor([1, 0] * 20)

    def test_a_unit_of_one_wording_falls_and_one_of_all_stays(self):
        of_all = self.labels.float()
        of_one = self.labels.float() * (self.wording == 0)
        record = recording(torch.stack([of_all, of_one], 1))
        whole = average_precision(record, self.labels)[SITE]
        found = leave_one_out(average_precision, record, self.labels, self.wording)[SITE]
        assert found[0] == whole[0] == 1
        assert found[1] == 0.5  # the prevalence: nothing is left of it without its wording
        assert whole[1] > 0.6

    @pytest.mark.parametrize("score", [average_precision, auroc])
    def test_it_is_the_lowest_of_the_scores_without_a_group(self, score):
        record = recording(torch.randn(40, 5))
        classes = torch.randint(0, 3, (40,))
        found = leave_one_out(score, record, classes, self.wording, names=["a", "b", "c"])
        parts = []
        for group in range(4):
            kept = self.wording != group
            parts.append(score(recording(record[SITE][kept]), classes[kept], names=["a", "b", "c"])[SITE])
        assert torch.equal(found[SITE], torch.stack(parts).amin(0))
        assert found.concepts == ("a", "b", "c")

    def test_bad_groups(self):
        record = recording(torch.randn(40, 2))
        with pytest.raises(ShapeError, match="one per sample"):
            leave_one_out(auroc, record, self.labels, [0, 1])
        with pytest.raises(ShapeError, match="of itself"):
            leave_one_out(auroc, record, self.labels, torch.zeros(40))
        with pytest.raises(DtypeError):
            leave_one_out(auroc, iter([record]), self.labels, self.wording)
