"""Edits along directions written into weights, against the same edits of values."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from plexus import edit
from plexus.edit import steer
from plexus.errors import UnsupportedError
from plexus.units import Neurons, Site

RANDOM = torch.Generator().manual_seed(5)
DIRECTION, PAIR = torch.randn(16, generator=RANDOM), torch.randn(2, 16, generator=RANDOM)


def logits(model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    with torch.no_grad():
        return model(**inputs).logits


def made(name: str, site: Site) -> edit.Edit:
    return {
        "add": lambda: steer.add({site: DIRECTION}, 0.7),
        "ablate": lambda: steer.ablate({site: DIRECTION}),
        "ablate two": lambda: steer.ablate({site: PAIR}),
        "scale": lambda: steer.scale({site: DIRECTION}, 2.5),
        "rotate": lambda: steer.rotate({site: PAIR}, 50),
        "hold": lambda: edit.clamp(~Neurons.of({site: 16}), 1.5, basis=DIRECTION),
    }[name]()


NAMES = ("add", "ablate", "ablate two", "scale", "rotate", "hold")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("family", "path", "side"),
    [
        ("gpt2", "transformer.h.0.mlp.c_proj", "output"),
        ("gpt2", "transformer.h.1.attn.c_proj", "input"),
        ("neox", "gpt_neox.layers.0.mlp.dense_4h_to_h", "output"),
        ("neox", "gpt_neox.layers.1.attention.dense", "input"),
        ("neox", "gpt_neox.embed_in", "output"),
    ],
)
def test_baked_is_steered(name: str, family: str, path: str, side: Any, tiny: Callable[..., Any]) -> None:
    model, inputs = tiny(family)
    action = made(name, Site(path, at=side))
    with action.on(model):
        steered = logits(model, inputs)
    assert not torch.allclose(steered, logits(model, inputs), atol=1e-4)
    edit.bake(model, action)
    torch.testing.assert_close(logits(model, inputs), steered, atol=2e-5, rtol=1e-4)


def test_a_direction_within_some_units_and_two_edits_in_a_row() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))
    site, x = Site("0"), torch.randn(5, 4)
    some = Neurons.of({site: 6}, {site: [0, 2, 3]})
    both = edit.scale(some, 0.5, basis=torch.arange(1.0, 7.0)).then(steer.rotate({site: torch.randn(2, 6)}, 33.0))
    with both.on(model):
        steered = model(x)
    edit.bake(model, both)
    torch.testing.assert_close(model(x), steered)


def test_adding_to_a_norm_is_its_bias(tiny: Callable[..., Any]) -> None:
    model, inputs = tiny("gpt2")
    action, before = made("add", Site("transformer.h.1.ln_2")), copy.deepcopy(model)
    with action.on(model):
        steered = logits(model, inputs)
    assert edit.bake(model, action).parameters == ("transformer.h.1.ln_2.bias",)
    torch.testing.assert_close(logits(model, inputs), steered)
    added = model.transformer.h[1].ln_2.bias - before.transformer.h[1].ln_2.bias
    torch.testing.assert_close(added, 0.7 * DIRECTION / DIRECTION.norm(), atol=1e-6, rtol=0)


@pytest.mark.parametrize("path", ["model.layers.0.mlp.down_proj", "model.layers.1.self_attn.o_proj"])
def test_a_new_bias_is_saved_and_read(path: str, tmp_path: Any, tiny: Callable[..., Any]) -> None:
    model, inputs = tiny("llama")
    action = made("add", Site(path))
    with pytest.raises(UnsupportedError, match=r"new_bias=True"):
        edit.bake(model, action)
    with action.on(model):
        steered = logits(model, inputs)
    assert edit.bake(model, action, new_bias=True).parameters == (f"{path}.bias",)
    torch.testing.assert_close(logits(model, inputs), steered)
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path)
    assert torch.equal(logits(again, inputs), logits(model, inputs))
    assert all(torch.equal(again.state_dict()[name], value) for name, value in model.state_dict().items())


def test_a_bias_that_no_checkpoint_could_hold_is_refused(tiny: Callable[..., Any]) -> None:
    model, _ = tiny("phi3")
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(UnsupportedError, match="no place"):
        edit.bake(model, made("add", Site("model.layers.0.mlp.down_proj")), new_bias=True)
    assert model.state_dict().keys() == before.keys()


def test_what_is_not_linear_is_refused(tiny: Callable[..., Any]) -> None:
    model, _ = tiny("gpt2")
    site = Site("transformer.h.0.mlp.c_proj")
    for action in (
        steer.rotate({site: PAIR}, 50, mode="absolute"),
        steer.rotate({site: PAIR}, 50, mode="adaptive"),
        steer.add({site: DIRECTION}, 0.5, by="norm"),
    ):
        with pytest.raises(UnsupportedError, match="not linear"):
            edit.bake(model, action)
    with pytest.raises(UnsupportedError, match="tokens only"):
        edit.bake(model, steer.add({site: DIRECTION}, 0.5, positions="last"))
    with pytest.raises(UnsupportedError, match="by itself"):
        edit.bake(model, steer.ablate({Site("transformer.h.1.ln_2"): DIRECTION}))
    with pytest.raises(UnsupportedError, match="several places"):
        edit.bake(model, steer.ablate({Site("transformer.wte"): DIRECTION}))


def test_a_new_bias_takes_part_in_the_steps_that_follow() -> None:
    model = nn.Sequential(nn.Linear(4, 6, bias=False), nn.Tanh())
    site, x = Site("0"), torch.randn(5, 4)
    steps = steer.add({site: torch.randn(6)}, 2.0).then(steer.rotate({site: torch.randn(2, 6)}, 70))
    steps = steps.then(edit.scale(~Neurons.of({site: 6}), 0.5)).then(steer.add({site: torch.randn(6)}, 1.0))
    with steps.on(model):
        steered = model(x)
    edit.bake(model, steps, new_bias=True)
    torch.testing.assert_close(model(x), steered)
