"""Scores: choosing the top, concepts, files."""

import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from plexus.errors import DtypeError, FormatError, RangeError, ShapeError, SiteError, UnknownNameError
from plexus.units import Scores
from plexus.units._site import Site

A, B = Site("a", "b u"), Site("b", "b u")


def of(a, b=None):
    values = {A: torch.tensor(a, dtype=torch.float64)}
    return Scores(values if b is None else {**values, B: torch.tensor(b, dtype=torch.float64)})


@settings(deadline=None)
@given(
    st.lists(st.integers(-50, 50), min_size=1, max_size=12, unique=True),
    st.lists(st.integers(60, 90), min_size=1, max_size=12, unique=True),
    st.data(),
)
def test_top_is_the_sorted_head(a, b, data):
    scores, both = of(a, b), a + b
    k = data.draw(st.integers(1, len(both)))
    keys = {"value": lambda x: -x, "low": lambda x: x}
    for by, key in keys.items():
        chosen = scores.top(k, by=by)
        found = [float(scores[site][i]) for site, i in chosen]
        assert sorted(found, key=key) == sorted(both, key=key)[:k]
    k = data.draw(st.integers(1, min(len(a), len(b))))
    per_site = scores.top(k, per="site")
    assert per_site.counts == {A: k, B: k}
    assert {float(scores[A][i]) for s, i in per_site if s == A} == set(sorted(a)[-k:])


@settings(deadline=None)
@given(st.integers(1, 300), st.integers(1, 1000))
def test_a_share_is_rounded_up_in_decimal(n, thousandths):
    share = thousandths / 1000
    expected = -(-thousandths * n // 1000)  # integer arithmetic, exact
    assert len(of(list(range(n))).top(share)) == expected


def test_shares_that_binary_rounding_would_spoil():
    assert len(of(list(range(100))).top(0.07)) == 7
    assert len(of(list(range(48))).top(0.01)) == 1
    assert len(of(list(range(48))).top(1.0)) == 48
    assert len(of(list(range(10)), list(range(20, 23))).top(0.5, per="site")) == 5 + 2


def test_abs():
    scores = of([-3.0, 1.0, 2.0])
    assert set(scores.top(1, by="abs")) == {(A, 0)}
    assert set(scores.top(1)) == {(A, 2)}


@pytest.mark.parametrize("by", ["value", "abs", "low"])
def test_nan_comes_last(by):
    scores = of([math.nan, 1.0, math.nan, -math.inf, math.inf])
    assert set(scores.top(3, by=by)) >= {(A, 1)}
    assert not set(scores.top(3, by=by)) & {(A, 0), (A, 2)}
    with pytest.warns(UserWarning, match="NaN"):
        assert set(scores.top(4, by=by)) == {(A, 0), (A, 1), (A, 3), (A, 4)}


def test_ties_go_by_index_with_a_warning():
    with pytest.warns(UserWarning, match="3 units of the model share"):
        chosen = of([1.0, 5.0, 1.0, 1.0]).top(2)
    assert set(chosen) == {(A, 0), (A, 1)}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        of([1.0, 5.0, 1.0, 1.0]).top(1)  # the tie does not decide anything
        of([1.0, 1.0]).top(2)


@pytest.mark.parametrize(
    ("k", "error"),
    [
        (True, DtypeError),
        (None, DtypeError),
        ("3", DtypeError),
        (0, RangeError),
        (0.0, RangeError),
        (-1, RangeError),
        (-0.5, RangeError),
        (1.5, RangeError),
        (3.0, RangeError),
        (math.nan, RangeError),
        (math.inf, RangeError),
        (4, RangeError),
    ],
)
def test_bad_k(k, error):
    with pytest.raises(error):
        of([1.0, 2.0, 3.0]).top(k)


def test_bad_choices():
    with pytest.raises(RangeError, match="site b"):
        of([1.0, 2.0, 3.0], [1.0]).top(2, per="site")
    with pytest.raises(UnknownNameError, match="abs"):
        of([1.0]).top(1, by="ab")
    with pytest.raises(UnknownNameError):
        of([1.0]).top(1, per="layer")
    assert len(of([1.0, 2.0]).top(np.int64(1))) == 1
    assert len(of([1.0, 2.0]).top(np.float32(0.5))) == 1


def test_concepts():
    scores = Scores({A: torch.tensor([[1.0, 2.0, 3.0], [3.0, 2.0, 1.0]])}, ("capital", "river"))
    assert set(scores["capital"].top(1)) == {(A, 2)}
    assert set(scores["river"].top(1)) == {(A, 0)}
    assert dict(scores.items()).keys() == {"capital", "river"}
    with pytest.raises(ShapeError, match=r"scores\['capital'\]"):
        scores.top(1)
    with pytest.raises(UnknownNameError, match="did you mean 'capital'"):
        scores["capitol"]
    with pytest.raises(UnknownNameError, match="no concepts"):
        of([1.0])["capital"]
    with pytest.raises(SiteError):
        scores[B]
    with pytest.raises(ShapeError, match="one name"):
        Scores({A: torch.zeros(2, 3)}, ("x", "x"))


@pytest.mark.parametrize("value", [torch.zeros(2, 3), torch.zeros(()), torch.zeros(0)])
def test_bad_shapes(value):
    with pytest.raises(ShapeError):
        Scores({A: value})


def test_bad_values():
    with pytest.raises(ShapeError):
        Scores({A: torch.zeros(2, 3)}, ("one",))
    with pytest.raises(DtypeError):
        Scores({A: torch.zeros(2, dtype=torch.complex64)})
    with pytest.raises(DtypeError):
        Scores({"a": torch.zeros(2)})
    assert of([1, 2])[A].is_floating_point()


def test_ranked():
    ranked = of([1.0, 9.0], [5.0]).ranked(2)
    assert [(unit.site, unit.unit, unit.score) for unit in ranked] == [(A, 1, 9.0), (B, 0, 5.0)]
    assert len(of([1.0, 9.0], [5.0]).ranked(10)) == 3


def test_files(tmp_path):
    scores = Scores(
        {A: torch.randn(2, 5, dtype=torch.bfloat16), B: torch.randn(2, 3)}, ("x", "y"), name="ap", model="net-1"
    )
    scores.save(tmp_path / "s.safetensors")
    back = Scores.load(tmp_path / "s.safetensors")
    assert back.concepts == ("x", "y")
    assert (back.name, back.model, back.sites) == ("ap", "net-1", (A, B))
    assert all(torch.equal(back[site], scores[site]) and back[site].dtype == scores[site].dtype for site in (A, B))
    raw = (tmp_path / "s.safetensors").read_bytes()
    for damage in (raw[:-3], raw[:20], b"", b"not a file of ours", raw.replace(b'version\\": 1', b'version\\": 7')):
        assert damage != raw
        (tmp_path / "bad").write_bytes(damage)
        with pytest.raises(FormatError):
            Scores.load(tmp_path / "bad")
    with pytest.raises(UnknownNameError, match="did you mean"):
        Scores.load(tmp_path / "s.safetensor")
    with pytest.raises(FormatError, match="folder"):
        Scores.load(tmp_path)


def test_printing():
    text = repr(Scores({A: torch.tensor([[1.0, math.nan]])}, ("capital",), "average precision"))
    assert "average precision for 1 concept (capital), 2 units at 1 site" in text
    assert "1 NaN" in text


@given(st.lists(st.floats(-5, 5), min_size=2, max_size=30, unique=True), st.data())
def test_both_ends_are_half_of_the_highest_and_half_of_the_lowest(values, data):
    k = data.draw(st.integers(1, len(values)))
    scores = Scores({A: torch.tensor(values, dtype=torch.float64)})
    chosen = {unit for _, unit in scores.top(k, by="both")}
    order = sorted(range(len(values)), key=values.__getitem__, reverse=True)
    assert chosen == set(order[: k - k // 2]) | set(order[len(order) - k // 2 :])


def test_both_ends_of_equal_scores_are_different_units():
    with pytest.warns(UserWarning, match="share the score"):
        chosen = Scores({A: torch.zeros(5)}).top(4, by="both")
    assert len(chosen) == 4
