"""Steering planes: planted directions, the rule of two standard errors, and what is refused."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from plexus import edit
from plexus.edit import steer
from plexus.errors import RangeError, ShapeError, SiteError
from plexus.probe._language import Letters
from plexus.units import Recording, Site, Table, sites
from tests.families import tiny

SITES = tuple(Site(f"blocks.{block}.{name}") for block in range(3) for name in ("first", "second"))


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def recorded(rows: dict[Site, Tensor]) -> Recording:
    return Recording(rows, {site: Table(range(len(values))) for site, values in rows.items()})


def planted(offsets: list[float], samples: int = 200, units: int = 8) -> tuple[Recording, Recording]:
    """Classes at offset ± 1 along nearly one direction, which leans a little more to a second one at each site."""
    b1, b2 = steer.plane(normal(2, units, seed=9))
    yes, no = {}, {}
    for place, (site, offset) in enumerate(zip(SITES, offsets, strict=True)):
        direction = normalize(b1 + 0.1 * (place - 2.5) * b2, dim=0)
        noise = 0.2 * normal(2, samples, units, seed=place)
        yes[site], no[site] = noise[0] + (offset + 1) * direction, noise[1] + (offset - 1) * direction
    return recorded(yes), recorded(no)


def test_the_planted_plane_is_found() -> None:
    plane = steer.SteeringPlane.fit(*planted([0.0] * 6))
    b1, b2 = steer.plane(normal(2, 8, seed=9))
    assert float(plane.b1 @ b1) > 0.99
    assert abs(float(plane.b2 @ b2)) > 0.97
    torch.testing.assert_close(torch.stack([plane.b1, plane.b2]) @ torch.stack([plane.b1, plane.b2]).T, torch.eye(2))
    assert plane.candidates.shape == (6, 8)


def test_sites_are_discriminative_where_the_classes_lie_on_both_sides() -> None:
    plane = steer.SteeringPlane.fit(*planted([0.0, 0.0, 3.0, 0.0, -3.0, 0.0]))
    each = plane.discriminative_sites(require_all_in_block=False)
    assert each == (SITES[0], SITES[1], SITES[3], SITES[5])
    assert plane.discriminative_sites() == SITES[:2]  # the other blocks have a site that fails
    assert list(plane.profile().sites) == list(SITES)
    signs = plane.profile().positive * plane.profile().negative
    assert (signs < 0).tolist() == [True, True, False, True, False, True]


def test_means_within_two_standard_errors_of_zero_have_no_sign() -> None:
    high, low = planted([1.0 - 0.01, 0.0, 0.0, 0.0, 0.0, 0.0], samples=12)
    plane = steer.SteeringPlane.fit(high, low)
    at = plane.stats.sites.index(SITES[0])
    mean, error = plane.stats.negative[at], plane.stats.negative_error[at]
    rows = low[SITES[0]].double()
    along = (rows @ plane.b1.double()) / rows.norm(dim=1)
    torch.testing.assert_close(mean, along.mean(), atol=1e-6, rtol=0)
    torch.testing.assert_close(error, along.std() / math.sqrt(12), atol=1e-6, rtol=0)
    sure = bool(mean < 0) and bool(mean.abs() > 2 * error)
    assert (SITES[0] in plane.discriminative_sites(require_all_in_block=False)) == sure
    few = plane.discriminative_sites(errors=1e9, require_all_in_block=False)
    assert few == ()
    with pytest.raises(RangeError, match="no site is left"):
        plane.rotate(30, sites=few)


def test_half_a_turn_mirrors_the_plane_and_the_widest_sites_are_widest() -> None:
    plane = steer.SteeringPlane.fit(*planted([0.0] * 6))
    model, x = nn.Sequential(nn.Identity()), normal(5, 8, seed=3)
    here = steer.SteeringPlane(plane.b1, plane.b2, plane.candidates, plane.stats._replace(sites=(Site("0"),)))
    with here.rotate(180, sites=[Site("0")]).on(model):
        y = model(x)
    inside = torch.stack([here.b1, here.b2])
    torch.testing.assert_close(y @ inside.T, -(x @ inside.T), atol=1e-5, rtol=0)
    torch.testing.assert_close(y - y @ inside.T @ inside, x - x @ inside.T @ inside, atol=1e-5, rtol=0)
    best = plane.widest_sites(2)
    rest = [i for i, site in enumerate(plane.stats.sites) if site not in best]
    chosen = [i for i, site in enumerate(plane.stats.sites) if site in best]
    assert plane.stats.separation.abs()[chosen].min() >= plane.stats.separation.abs()[rest].max()


def test_a_site_where_nothing_differs_is_left_out() -> None:
    high, low = planted([0.0] * 6)
    same = torch.ones(200, 8)
    high = recorded({**high.values, SITES[0]: same})
    low = recorded({**low.values, SITES[0]: same})
    plane = steer.SteeringPlane.fit(high, low)
    assert not bool(plane.candidates[0].any())
    assert SITES[0] not in plane.discriminative_sites(require_all_in_block=False)


def test_what_planes_refuse() -> None:
    high, low = planted([0.0] * 6)
    one = high.at(SITES[0]), low.at(SITES[0])
    with pytest.raises(RangeError, match="parallel"):
        steer.SteeringPlane.fit(*one)
    with pytest.raises(RangeError, match="do not differ"):
        steer.SteeringPlane.fit(high, high)
    wide = {SITES[0]: high[SITES[0]], SITES[1]: normal(200, 5)}
    with pytest.raises(ShapeError, match="one width"):
        steer.SteeringPlane.fit(recorded(wide), recorded(wide))
    broken = recorded({**high.values, SITES[2]: torch.full((200, 8), math.nan)})
    with pytest.raises(RangeError, match="NaN"):
        steer.SteeringPlane.fit(broken, low)
    with pytest.raises(ShapeError, match="two samples"):
        steer.SteeringPlane.fit(recorded({s: v[:1] for s, v in high.values.items()}), low)
    plane = steer.SteeringPlane.fit(high, low)
    with pytest.raises(SiteError, match="not fitted"):
        plane.rotate(10, sites=[Site("elsewhere")])
    with pytest.raises(RangeError, match="so many"):
        plane.widest_sites(7)


@pytest.mark.parametrize("mode", ["relative", "absolute", "adaptive"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_turning_a_language_model_keeps_the_norms_at_its_sites(mode: Any, dtype: torch.dtype) -> None:
    model, _ = tiny("llama")
    model = model.to(dtype)
    yes, no = ["\x05\x06\x07", "\x08\x09", "\x05\x0a"], ["\x0b\x0c", "\x0d\x0e\x0f", "\x0b\x10"]
    plane = steer.SteeringPlane.fit_prompts(model, Letters(), yes, no, batch=2)
    where = sites.norms(model)
    assert list(plane.stats.sites) == list(where)
    seen: list[Tensor] = []

    class Keep:
        records = False

        def __init__(self, site: Site) -> None:
            self.site = site

        def __call__(self, values: Tensor, visit: Any) -> None:
            seen.append(values.clone())

    from plexus.units import attach

    turned = plane.rotate(100, sites=where, mode=mode)
    pairs = [Keep(site) for site in where]
    with attach(model, pairs), turned.on(model), attach(model, [Keep(site) for site in where]), torch.no_grad():
        model(torch.tensor([[5, 6, 7, 8]]))
    tolerance = 1e-5 if dtype == torch.float32 else 1e-2
    for before, after in zip(seen[::2], seen[1::2], strict=True):
        torch.testing.assert_close(after.norm(dim=-1), before.norm(dim=-1), rtol=tolerance, atol=0)
    assert isinstance(turned, edit.Edit)
