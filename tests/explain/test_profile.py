"""Profiles and changes of units of conditions."""

import pytest
import torch

from plexus.errors import ShapeError, UnsupportedError
from plexus.explain import condition_change, stage_profile
from plexus.probe import scores
from plexus.units import Scores, Site

SITES = [Site(f"layers.{n}.act", "b t u") for n in (0, 2, 10)]
NAMES = ("a", "b", "c")


def units(seed=0, names=NAMES, model=None, size=40):
    generator = torch.Generator().manual_seed(seed)
    p = {site: torch.rand(len(names), size, generator=generator, dtype=torch.float64) ** 3 for site in reversed(SITES)}
    return scores.condition_units(Scores(p, names, model=model), 0.4, percentile=0.8, magnitude=0.05)


def test_a_profile_counts_every_unit_once_in_the_order_of_the_layers():
    sorted_units = units()
    profile = stage_profile(sorted_units)
    assert profile.sites == tuple(SITES)  # 2 comes before 10
    assert profile.counts.sum(0).tolist() == [
        len(sorted_units.specific),
        len(sorted_units.related),
        len(sorted_units.agnostic),
    ]
    assert int(profile.counts.sum()) + len(sorted_units.unassigned) == 120
    assert profile.units.tolist() == [40, 40, 40]
    depth = sum(n / 2 * c for n, c in enumerate(profile.counts[:, 0].tolist())) / len(sorted_units.specific)
    assert profile.center("specific") == pytest.approx(depth)
    assert "specific" in str(profile)
    with pytest.raises(ValueError, match="not in tuple"):
        profile.share("odd")


def test_a_change_is_the_difference_of_the_two():
    before, after = units(0), units(1)
    change = condition_change(before, after)
    assert change.counts["specific"] == len(after.specific) - len(before.specific)
    assert change.counts["specific"] == sum(change.specific.values())
    assert torch.equal(change.after.counts, stage_profile(after).counts)
    for pair, number in change.pairs.items():
        both = [sum(n for names, n in one.sets().items() if set(pair) <= set(names) and len(names) < 3)
                for one in (before, after)]  # fmt: skip
        assert number == both[1] - both[0]
    assert change.kept["agnostic"] == len(before.agnostic & after.agnostic) / len(before.agnostic)
    nothing = condition_change(before, before)
    assert set(nothing.counts.values()) | set(nothing.specific.values()) | set(nothing.pairs.values()) == {0}
    assert set(nothing.kept.values()) == {1.0}
    assert nothing.to_json()["layers"] == [[0, 0, 0]] * 3


def test_only_like_models_are_compared():
    with pytest.raises(ShapeError, match="other conditions"):
        condition_change(units(), units(names=("a", "b", "d")))
    with pytest.raises(UnsupportedError, match="another build"):
        condition_change(units(model="one"), units(model="two"))
    with pytest.raises(UnsupportedError, match="another build"):
        condition_change(units(), units(size=30))
