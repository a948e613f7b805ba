"""Atomic steering scales what it says and no more, and folds into the weights."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from plexus import edit
from plexus.errors import DtypeError, RangeError, ShapeError, UnsupportedError
from plexus.explain.controls import matched_random
from plexus.probe import steering_sites
from plexus.units import Neurons, Scores, Site

ONE, TWO = Site("0"), Site("1")
BETA = Scores({ONE: torch.tensor([0.5, -0.9, 0.7]), TWO: torch.tensor([-0.6, 1.0, 0.55])})


def gains(action: edit.Edit) -> list[float]:
    net = nn.Sequential(nn.Identity(), nn.Identity())
    with action.on(net):
        return [round(x, 6) for x in [*net[0](torch.ones(1, 3))[0].tolist(), *net[1](torch.ones(1, 3))[0].tolist()]]


def test_the_most_consistent_are_scaled_by_one_plus_strength_times_beta() -> None:
    assert gains(edit.atomic_steering(BETA, 2, 10.0)) == [1, -8, 1, 1, 11, 1]
    assert gains(edit.atomic_steering(BETA, 6, 2.0)) == [2, -0.8, 2.4, -0.2, 3, 2.1]
    assert gains(edit.atomic_steering(BETA, 2, -10.0)) == [1, 10, 1, 1, -9, 1]


def test_only_those_allowed_and_no_further_than_the_limit() -> None:
    allowed = Neurons.of({ONE: 3, TWO: 3}, {ONE: [2], TWO: [0]})
    assert gains(edit.atomic_steering(BETA, 1, 10.0, among=allowed)) == [1, 1, 8, 1, 1, 1]
    with pytest.warns(UserWarning, match="only 2 of 4"):
        assert gains(edit.atomic_steering(BETA, 4, 10.0, among=allowed)) == [1, 1, 8, -5, 1, 1]
    with pytest.warns(UserWarning, match="1 of 2"):
        assert gains(edit.atomic_steering(BETA, 2, 10.0, limit=9.5)) == [1, -8, 1, 1, 10.5, 1]


def test_the_numbers_go_along_to_random_coordinates() -> None:
    action = edit.atomic_steering(BETA, 2, 10.0)
    moved = matched_random(action, torch.Generator().manual_seed(0))
    assert sorted(gains(moved)) == sorted(gains(action))
    assert gains(moved) != gains(action)


@pytest.mark.parametrize("family", ["llama", "gpt2", "neox"])
@pytest.mark.parametrize("kind", ["attention", "ffn"])
def test_it_folds_into_the_weights(family: str, kind: str, tiny: Callable[..., Any]) -> None:
    model, inputs = tiny(family)
    g = torch.Generator().manual_seed(0)
    beta = Scores({site: torch.rand(16, generator=g) * 2 - 1 for site in steering_sites(model, kind)})
    action = edit.atomic_steering(beta, 9, 5.0)
    folded = copy.deepcopy(model)
    edit.bake(folded, action)
    with torch.no_grad():
        before = model(**inputs).logits
        with action.on(model):
            steered = model(**inputs).logits
        torch.testing.assert_close(folded(**inputs).logits, steered, atol=1e-5, rtol=1e-5)
        assert not torch.allclose(steered, before, atol=1e-3)
        assert torch.equal(model(**inputs).logits, before)


def test_the_residual_stream_cannot_be_folded(tiny: Callable[..., Any]) -> None:
    model, _ = tiny("llama")
    beta = Scores({site: torch.ones(16) for site in steering_sites(model, "layer")})
    with pytest.raises(UnsupportedError):
        edit.bake(model, edit.atomic_steering(beta, 32, 1.0))


def test_bad_input() -> None:
    for k in (0, 7, True, 1.0):
        with pytest.raises(RangeError):
            edit.atomic_steering(BETA, k, 1.0)  # type: ignore[arg-type]
    with pytest.raises(RangeError, match=r"\[-1, 1\]"):
        edit.atomic_steering(Scores({ONE: torch.tensor([1.5])}), 1, 1.0)
    with pytest.raises(RangeError, match="limit"):
        edit.atomic_steering(BETA, 1, 1.0, limit=0.0)
    with pytest.raises(RangeError, match="nothing to choose"):
        edit.atomic_steering(BETA, 1, 1.0, among=Neurons.of({ONE: 3, TWO: 3}))
    with pytest.raises(ShapeError):
        edit.atomic_steering(Scores({ONE: torch.ones(2, 3)}, ("a", "b")), 1, 1.0)
    with pytest.raises(DtypeError):
        edit.atomic_steering({ONE: torch.ones(2)}, 1, 1.0)  # type: ignore[arg-type]
