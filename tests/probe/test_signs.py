"""Sign consistency is the sign test, whatever the sizes; and states after answers are those of the text."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from plexus import probe
from plexus.errors import RangeError, ShapeError, UnknownNameError
from plexus.probe import AnswerPair
from plexus.probe.scores import sign_consistency
from plexus.units import Recording, Site, Table

tiny = runpy.run_path(str(Path(__file__).parents[1] / "families.py"))["tiny"]
ONE, TWO = Site("0"), Site("1")


def recording(values: torch.Tensor, site: Site = ONE) -> Recording:
    return Recording({site: values}, {site: Table(range(len(values)))})


@settings(deadline=None, max_examples=40)
@given(st.integers(20, 60), st.integers(0, 10**6))
def test_it_is_the_sign_test(pairs: int, seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    moved = (torch.randn(pairs, 4, generator=g) + torch.tensor([0.0, 0.5, -0.5, 2.0])) * 3
    moved[torch.rand(moved.shape, generator=g) < 0.1] = 0.0
    wrong = torch.randint(-5, 5, moved.shape, generator=g).float()
    found = sign_consistency(recording(wrong.double() + moved.double()), recording(wrong.double()))
    for unit in range(4):
        up, down = int((moved[:, unit] > 0).sum()), int((moved[:, unit] < 0).sum())
        assert float(found.beta[ONE][unit]) == pytest.approx((1 if up >= down else -1) * max(up, down) / pairs)
        expected = stats.binomtest(up, up + down).pvalue if up + down else 1.0
        assert float(found.p_value[ONE][unit]) == pytest.approx(expected)


def test_sizes_do_not_matter_and_members_may_be_exchanged() -> None:
    g = torch.Generator().manual_seed(0)
    wrong, moved = torch.randn(50, 6, generator=g), torch.randn(50, 6, generator=g)
    found = sign_consistency(recording(wrong + moved), recording(wrong))
    outlier = moved.clone()
    outlier[3] *= 1000
    assert torch.equal(sign_consistency(recording(wrong + outlier), recording(wrong)).beta[ONE], found.beta[ONE])
    turned = sign_consistency(recording(wrong), recording(wrong + moved))
    assert torch.equal(turned.beta[ONE].abs(), found.beta[ONE].abs())


def test_of_many_units_that_do_nothing_hardly_one_is_believed() -> None:
    g = torch.Generator().manual_seed(1)
    wrong, moved = torch.zeros(300, 4000), torch.randn(300, 4000, generator=g)
    moved[:, :5] += 1.0
    found = sign_consistency(recording(moved), recording(wrong))
    assert float(found.beta[ONE][5:].abs().max()) > 0.58  # and yet
    believed = found.significant(0.05)
    assert set(range(5)) <= set(believed.indices(ONE).tolist())
    assert len(believed) <= 8


def test_rows_are_matched_by_sample() -> None:
    g = torch.Generator().manual_seed(2)
    wrong, moved = torch.randn(30, 3, generator=g), torch.randn(30, 3, generator=g) + 0.5
    order = torch.randperm(30, generator=g)
    shuffled = Recording({ONE: (wrong + moved)[order]}, {ONE: Table(order)})
    assert torch.equal(
        sign_consistency(shuffled, recording(wrong)).beta[ONE],
        sign_consistency(recording(wrong + moved), recording(wrong)).beta[ONE],
    )


def test_refusals() -> None:
    x = torch.randn(30, 3)
    with pytest.raises(RangeError, match="so few"):
        sign_consistency(recording(x[:19]), recording(x[:19]))
    with pytest.raises(ShapeError, match="two members"):
        sign_consistency(recording(x), recording(x[:25]))
    with pytest.raises(ShapeError, match="different sites"):
        sign_consistency(recording(x), recording(x, TWO))
    with pytest.raises(RangeError, match="level"):
        sign_consistency(recording(x), recording(x)).significant(1.0)


class Words:
    def __call__(self, texts: list[str], **options: object) -> dict[str, list[list[int]]]:
        return {"input_ids": [[3 + sum(map(ord, word)) % 27 for word in text.split()] for text in texts]}


PAIRS = [AnswerPair("one two three", "four", "five six"), AnswerPair("seven", "eight", "nine")]


@pytest.mark.parametrize("family", ["llama", "gpt2", "neox"])
@pytest.mark.parametrize("kind", ["attention", "ffn", "layer"])
def test_states_are_those_of_the_last_token(family: str, kind: str) -> None:
    model, _ = tiny(family)
    places = probe.steering_sites(model, kind)
    assert len(places) == 2
    for position in ("answer", "pre_answer"):
        found = probe.answer_states(model, Words(), PAIRS, places, position=position)
        for member, which in ((found.right, 1), (found.wrong, 2)):
            for row, pair in enumerate(PAIRS):
                text = f"{pair[0]} {pair[which]}" + (f" {pair[0]}" if position == "pre_answer" else "")
                ids = torch.tensor(Words()([text])["input_ids"])
                alone = probe.record(model, {"input_ids": ids}, places, pool="last")
                for site in places:
                    torch.testing.assert_close(member[site][row], alone[site][0], atol=1e-5, rtol=1e-4)
    with pytest.raises(UnknownNameError):
        probe.answer_states(model, Words(), PAIRS, places, position="before")
    with pytest.raises(ShapeError):
        probe.answer_states(model, Words(), [], places)
