"""Sets of units: the laws of Boolean algebra, their universe, matched random draws, files."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from plexus.errors import DtypeError, FormatError, RangeError, ShapeError, SiteError
from plexus.units import Neurons, UnwritableError, fingerprint
from plexus.units._site import Site

A, B, C = Site("a", "b u"), Site("b", "b u"), Site("c", "b t (u:4 f)")
SIZES = {A: 5, B: 1, C: 4}


@st.composite
def neurons(draw, sizes=None):
    sizes = SIZES if sizes is None else sizes
    masks = {
        site: torch.tensor(draw(st.lists(st.booleans(), min_size=n, max_size=n)), dtype=torch.bool)
        for site, n in sizes.items()
    }
    return Neurons(masks)


@settings(deadline=None)
@given(neurons(), neurons(), neurons())
def test_laws_of_boolean_algebra(a, b, c):
    none, everything = Neurons.of(SIZES), ~Neurons.of(SIZES)
    assert a | b == b | a
    assert a & b == b & a
    assert (a | b) | c == a | (b | c)
    assert (a & b) & c == a & (b & c)
    assert a & (b | c) == (a & b) | (a & c)
    assert a | (b & c) == (a | b) & (a | c)
    assert a | (a & b) == a
    assert a & (a | b) == a
    assert a | a == a
    assert a & a == a
    assert ~(a | b) == ~a & ~b
    assert ~(a & b) == ~a | ~b
    assert ~~a == a
    assert a | ~a == everything
    assert a & ~a == none
    assert a | none == a
    assert a & everything == a
    assert a - b == a & ~b
    assert a ^ b == (a - b) | (b - a)
    assert (a ^ b) ^ b == a


@settings(deadline=None)
@given(neurons(), neurons())
def test_the_set_agrees_with_pythons_own(a, b):
    x, y = set(a), set(b)
    assert set(a | b) == x | y
    assert set(a & b) == x & y
    assert set(a - b) == x - y
    assert set(a ^ b) == x ^ y
    assert len(a) == len(x)
    assert len(a) + len(~a) == sum(SIZES.values())
    assert (a <= b) == (x <= y)
    assert (a >= b) == (x >= y)
    assert (a == b) == (x == y)
    assert all(unit in a for unit in x)
    assert all(((site, i) in a) == ((site, i) in x) for site, n in SIZES.items() for i in range(n))
    if a == b:
        assert hash(a) == hash(b)


@settings(deadline=None)
@given(neurons())
def test_json_round_trip(a):
    text = json.dumps(a.to_json())
    back = Neurons.from_json(text)
    assert back == a
    assert back.sizes == a.sizes
    assert Neurons.from_json((~a).to_json()) == ~a


@settings(deadline=None)
@given(neurons(), st.integers(0, 2**31))
def test_random_like_matches_counts_per_site(a, seed):
    drawn = a.random_like(torch.Generator().manual_seed(seed))
    assert drawn.counts == a.counts
    assert drawn.sizes == a.sizes
    assert drawn == a.random_like(torch.Generator().manual_seed(seed))
    if all(2 * count <= SIZES[site] for site, count in a.counts.items()):
        other = a.random_like(torch.Generator().manual_seed(seed), exclude=True)
        assert other.counts == a.counts
        assert len(other & a) == 0
    else:
        with pytest.raises(RangeError, match="too few units"):
            a.random_like(torch.Generator().manual_seed(seed), exclude=True)


def test_random_like_is_uniform():
    a = Neurons.of({A: 5}, {A: [0, 1]})
    generator = torch.Generator().manual_seed(0)
    counts = sum(a.random_like(generator).mask(A).double() for _ in range(2000))
    # each unit is drawn with probability 2/5; five standard deviations of a binomial of 2000
    assert (counts - 800).abs().max() < 5 * (2000 * 0.4 * 0.6) ** 0.5
    avoid = Neurons.of({A: 5}, {A: [4]})
    assert all((A, 4) not in a.random_like(generator, exclude=avoid) for _ in range(50))


def test_sets_over_different_sites_join_and_a_complement_must_say_its_universe():
    a, b = Neurons.of({A: 5}, {A: [0]}), Neurons.of({B: 1, A: 5}, {B: [0], A: [0, 2]})
    assert set(a | b) == {(A, 0), (A, 2), (B, 0)}
    assert set(b - a) == {(A, 2), (B, 0)}
    with pytest.raises(SiteError, match="complement"):
        b & ~a
    assert b & ~a.over(b) == b - a
    assert set(~a | b) == set(~a) | set(b)
    with pytest.raises(SiteError, match="lacks"):
        b.over(a)
    assert b.at(A).sizes == {A: 5}


def test_sets_of_different_models_do_not_mix():
    with pytest.raises(ShapeError, match="different models"):
        Neurons.of({A: 5}) | Neurons.of({A: 6})
    one, two = nn.Linear(2, 5), nn.Linear(3, 5)
    a, b = Neurons.of({A: 5}, model=fingerprint(one)), Neurons.of({A: 5}, model=fingerprint(two))
    for operation in (lambda: a | b, lambda: a & b, lambda: a - b, lambda: a ^ b, lambda: a <= b, lambda: a.over(b)):
        with pytest.raises(SiteError, match="different models"):
            operation()
    with pytest.raises(SiteError, match="different models"):
        a.random_like(torch.Generator(), exclude=b)
    assert a != b
    assert (a | Neurons.of({A: 5}, {A: [1]})).model == fingerprint(one)
    with pytest.raises(TypeError):
        a | {(A, 1)}


def test_fingerprint_follows_the_shape_and_not_the_numbers():
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    before = fingerprint(model)
    with torch.no_grad():
        model[0].weight.add_(1)
    assert fingerprint(model) == before
    model[0] = nn.Linear(2, 3, bias=False)
    assert fingerprint(model) != before
    assert "LazyLinear" in fingerprint(nn.LazyLinear(3))
    assert fingerprint(nn.DataParallel(model)) == fingerprint(model)
    assert fingerprint(torch.compile(model)) == fingerprint(model)
    stateful = nn.Sequential(nn.Linear(2, 3))
    before = fingerprint(stateful)
    stateful.register_buffer("state", torch.zeros(7, 3))
    assert fingerprint(stateful) == before


@pytest.mark.parametrize(
    ("mask", "error"),
    [
        (torch.tensor([0, 1]), DtypeError),
        ([True, False], DtypeError),
        (torch.ones(2, 2, dtype=torch.bool), ShapeError),
        (torch.ones(0, dtype=torch.bool), ShapeError),
    ],
)
def test_bad_masks(mask, error):
    with pytest.raises(error):
        Neurons({A: mask})


def test_bad_indices_and_questions():
    with pytest.raises(RangeError, match="no unit 5"):
        Neurons.of({A: 5}, {A: [5]})
    with pytest.raises(RangeError, match="no unit -1"):
        Neurons.of({A: 5}, {A: [-1]})
    with pytest.raises(SiteError):
        Neurons.of({A: 5}, {B: [0]})
    with pytest.raises(DtypeError):
        Neurons({"a": torch.ones(2, dtype=torch.bool)})
    with pytest.raises(DtypeError):
        3 in Neurons.of({A: 5})  # noqa: B015
    with pytest.raises(SiteError, match="does not cover"):
        Neurons.of({A: 5}).mask(B)
    with pytest.raises(DtypeError, match="Generator"):
        Neurons.of({A: 5}).random_like(0)
    assert (B, 0) not in Neurons.of({A: 5})
    assert (A, 9) not in ~Neurons.of({A: 5})


def test_a_set_cannot_be_changed_from_outside():
    mask = torch.tensor([True, False])
    a = Neurons({A: mask})
    mask[1] = True
    a.mask(A)[1] = True
    assert len(a) == 1


def test_files(tmp_path):
    a = Neurons.of(SIZES, {A: [1, 4], C: [0]}, model="net-1")
    a.save(tmp_path / "deep" / "a.json")
    back = Neurons.load(tmp_path / "deep" / "a.json")
    assert back == a
    assert back.model == "net-1"
    text = (tmp_path / "deep" / "a.json").read_text()
    for damage in (text[: len(text) // 2], "", "[]", "{}", text.replace('"version": 1', '"version": 99')):
        (tmp_path / "bad.json").write_text(damage)
        with pytest.raises(FormatError):
            Neurons.load(tmp_path / "bad.json")
    document = a.to_json()
    document["body"]["sites"][0]["units"] = [77]
    with pytest.raises(FormatError, match="damaged"):
        Neurons.from_json(document)
    with pytest.raises(UnwritableError):
        a.save(tmp_path / "bad.json" / "a.json")


def test_printing_says_what_is_held():
    text = repr(Neurons.of(SIZES, {A: [1, 4]}))
    assert "2 of 10 units at 3 sites" in text
    assert "2 of 5 (1, 4)" in text
