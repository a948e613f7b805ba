"""Clustered directions and the probe that chooses among them."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, layer_norm, normalize

from plexus import edit, probe
from plexus.edit import steer
from plexus.errors import DtypeError, RangeError, ShapeError, UnsupportedError
from plexus.units import Recording, Site, Table, attach, sites

SITE = Site("0")


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def recorded(rows: Tensor) -> Recording:
    return Recording({SITE: rows}, {SITE: Table(range(len(rows)))})


def planted(pairs: int = 60, units: int = 12) -> tuple[Recording, Recording, Tensor, Tensor]:
    """Three kinds of prompts, each of which needs a push of its own."""
    kind = torch.arange(pairs) % 3
    pushes, topics = normalize(normal(3, units, seed=1)) * torch.tensor([[1.0], [2.0], [3.0]]), 4 * normal(3, units)
    low = topics[kind] + normal(pairs, units, seed=2)
    return recorded(low + pushes[kind] + 0.01 * normal(pairs, units, seed=3)), recorded(low), kind, pushes


def fit(clusters: int = 3, **options: Any) -> steer.ClusteredDirections:
    high, low, _, _ = planted()
    return steer.ClusteredDirections.fit(high, low, clusters, torch.Generator().manual_seed(0), **options)


def test_planted_clusters_are_found_and_told_apart() -> None:
    high, low, kind, pushes = planted()
    found = fit()
    for k in range(3):
        own = int(found.clusters[SITE][kind == k].mode().values)
        assert bool((found.clusters[SITE][kind == k] == own).all())
        assert cosine_similarity(found.directions[SITE][own], pushes[k], 0) > 0.999
        assert found.lengths[SITE][own] == pytest.approx(float(pushes[k].norm()), rel=0.01)
    assert found.accuracy(low, found.clusters)[SITE] == 1.0
    identity = nn.Sequential(nn.Identity())
    with steer.choose(identity, found, 1.0, by="own", per="token"):
        torch.testing.assert_close(identity(low[SITE]), high[SITE], atol=0.2, rtol=0)


def test_one_cluster_is_the_mean_contrast() -> None:
    high, low, _, _ = planted()
    found, plain = fit(1), probe.directions(high, low)
    torch.testing.assert_close(found.directions[SITE][0], plain[SITE])
    assert float(found.lengths[SITE][0]) == pytest.approx(float((high[SITE] - low[SITE]).mean(0).norm()), rel=1e-5)


def test_refining_is_gradient_descent_on_cross_entropy() -> None:
    found, states, wanted = fit(), recorded(normal(20, 12, seed=7)), torch.arange(20) % 3
    weight = found.weight[SITE].clone().requires_grad_()
    bias = found.bias[SITE].clone().requires_grad_()
    optimizer = torch.optim.SGD([weight, bias], lr=0.3)
    for _ in range(4):
        optimizer.zero_grad()
        logits = layer_norm(states[SITE], (12,)) @ weight.T + bias
        nn.functional.cross_entropy(logits, wanted).backward()
        optimizer.step()
    moved = found.refined(states, {SITE: wanted}, rate=0.3, steps=4)
    torch.testing.assert_close(moved.weight[SITE], weight.detach())
    torch.testing.assert_close(moved.bias[SITE], bias.detach())
    assert torch.equal(moved.directions[SITE], found.directions[SITE])
    better = found.refined(states, {SITE: wanted}, rate=0.3, steps=300)
    assert better.accuracy(states, {SITE: wanted})[SITE] > found.accuracy(states, {SITE: wanted})[SITE]


def clustered_at(site: Site) -> steer.ClusteredDirections:
    rows, weight = normalize(normal(3, 16, seed=4)), normal(3, 16, seed=5)
    return steer.ClusteredDirections(
        {site: rows}, {site: torch.ones(3)}, {site: weight}, {site: torch.zeros(3)}, {}
    )  # fmt: skip


class Keep:
    records = True

    def __init__(self, site: Site) -> None:
        self.site, self.seen = site, []

    def __call__(self, values: Tensor, visit: Any) -> None:
        self.seen.append(values.clone())


def padded() -> dict[str, Tensor]:
    ids = torch.tensor([[0, 0, 5, 6], [7, 8, 9, 10], [0, 11, 12, 13]])
    return {"input_ids": ids, "attention_mask": (ids != 0).long()}


@pytest.mark.parametrize(
    "how", [{}, {"use_cache": False}, {"num_beams": 3}, {"do_sample": True, "num_return_sequences": 2}]
)
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_choice_per_sample_is_made_on_the_prompt_and_kept(
    family: str, how: dict[str, Any], tiny: Callable[..., Any]
) -> None:
    model, _ = tiny(family)
    site = sites.residual(model)[0]
    ids = torch.tensor([[5, 6, 0, 0], [7, 8, 9, 10], [11, 12, 13, 0]])  # as `padded`, on the right
    prompts = probe.record(model, {"input_ids": ids, "attention_mask": (ids != 0).long()}, site, pool="last")
    clustered = replace(clustered_at(site), weight={site: layer_norm(prompts[site], (16,))})
    expected = clustered.choice(prompts)[site]
    assert expected.tolist() == [0, 1, 2]
    after = Keep(site)
    options = {"do_sample": False, **how, "max_new_tokens": 4, "min_new_tokens": 4}

    class Before(Keep):
        records = False

        def __call__(self, values: Tensor, visit: Any) -> None:
            self.seen.append(values.clone())

    before = Before(site)
    with attach(model, [before]), steer.choose(model, clustered, 5.0), attach(model, [after]):
        model.generate(**padded(), **options)
    copies = len(after.seen[0]) // 3
    pushes = 5 * clustered.directions[site][expected].repeat_interleave(copies, 0)
    for old, new in zip(before.seen, after.seen, strict=True):
        torch.testing.assert_close(new - old, pushes[:, None].expand_as(old), atol=1e-5, rtol=0)


def test_a_choice_per_token_is_the_largest_logit_at_each(tiny: Callable[..., Any]) -> None:
    model, inputs = tiny("llama")
    site = sites.residual(model)[0]
    clustered = clustered_at(site)
    plain = probe.record(model, inputs, site)
    with steer.choose(model, clustered, 2.0, per="token", by="norm"):
        steered = probe.record(model, inputs, site)
    which = clustered.choice(plain)[site]
    assert len(which.unique()) > 1
    push = 2 * plain[site].norm(dim=1, keepdim=True) * clustered.directions[site][which]
    torch.testing.assert_close(steered[site], plain[site] + push, atol=1e-5, rtol=1e-4)


def test_a_choice_that_was_never_made_is_an_error(tiny: Callable[..., Any]) -> None:
    model, inputs = tiny("llama")
    clustered = clustered_at(sites.residual(model)[0])
    with torch.no_grad():
        cache = model(**inputs, use_cache=True).past_key_values
        with pytest.raises(UnsupportedError, match="while the prompt is read"), steer.choose(model, clustered, 1.0):
            model(inputs["input_ids"][:, -1:], past_key_values=cache, use_cache=True)


def test_what_clusters_refuse() -> None:
    high, low, _, _ = planted()
    generator = torch.Generator()
    with pytest.raises(DtypeError, match="Generator"):
        steer.ClusteredDirections.fit(high, low, 2, 0)  # type: ignore[arg-type]
    with pytest.raises(RangeError, match="as many clusters"):
        steer.ClusteredDirections.fit(high, low, 61, generator)
    with pytest.raises(ShapeError, match="pairs"):
        steer.ClusteredDirections.fit(high, recorded(low[SITE][:5]), 2, generator)
    with pytest.raises(RangeError, match="mean of zero"):
        steer.ClusteredDirections.fit(low, low, 1, generator)
    with pytest.raises(RangeError, match="no such cluster"):
        fit().refined(low, {SITE: torch.full((60,), 5)})
    with pytest.raises(ShapeError, match="one cluster per state"):
        fit().refined(low, {SITE: torch.zeros(3, dtype=torch.long)})
    with pytest.raises(DtypeError, match="clustered"):
        steer.choose({SITE: torch.ones(3)}, 1.0)  # type: ignore[call-overload]
    assert isinstance(steer.choose(fit(), 1.0), edit.Edit)
