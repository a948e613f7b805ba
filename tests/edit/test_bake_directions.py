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


GROUPED: dict[str, tuple[Callable[[], nn.Module], Any]] = {
    "convolution": (lambda: nn.Conv2d(4, 6, 3, groups=2), "output"),
    "depthwise": (lambda: nn.Conv2d(6, 6, 3, groups=6), "output"),
    "transposed": (lambda: nn.ConvTranspose2d(4, 6, 3, groups=2), "output"),
    "what a convolution reads": (lambda: nn.Conv2d(6, 4, 3, groups=2), "input"),
}


@pytest.mark.parametrize("name", GROUPED)
def test_a_direction_across_the_groups_of_a_convolution_is_refused(name: str) -> None:
    make, side = GROUPED[name]
    model, site = nn.Sequential(make()), Site("0", "b u y x", at=side)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(UnsupportedError, match="crosses the groups"):
        edit.bake(model, steer.ablate({site: torch.randn(6)}))
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("name", [name for name in GROUPED if name != "depthwise"])
def test_directions_within_groups_are_baked(name: str) -> None:
    make, side = GROUPED[name]
    model, site = nn.Sequential(make()), Site("0", "b u y x", at=side)
    one_each, x = torch.block_diag(torch.randn(1, 3), torch.randn(1, 3)), torch.randn(2, 6, 5, 5)
    action = steer.ablate({site: one_each}).then(steer.scale({site: one_each[0] + torch.eye(6)[1]}, 3.0))
    x = x[:, : model[0].in_channels]
    with action.on(model):
        steered = model(x)
    edit.bake(model, action)
    torch.testing.assert_close(model(x), steered, atol=1e-5, rtol=1e-5)


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


def glm() -> tuple[Any, dict[str, Tensor]]:
    """A model whose `attention_bias` is about query, key and value, and not about the output projection."""
    import transformers as tf

    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "intermediate_size": 32, "num_attention_heads": 4}
    sizes |= {"num_key_value_heads": 2, "head_dim": 4}
    tokens = {"vocab_size": 30, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    model = tf.GlmForCausalLM(tf.GlmConfig(attention_bias=False, **sizes, **tokens)).eval()
    return model, {"input_ids": torch.randint(3, 30, (2, 6), generator=torch.Generator().manual_seed(1))}


def test_a_bias_that_the_field_of_the_configuration_is_not_about_is_refused() -> None:
    model, _ = glm()
    before, config = set(model.state_dict()), model.config.to_dict()
    with pytest.raises(UnsupportedError, match=r"no place for a bias at \S+o_proj, also with attention_bias=True"):
        edit.bake(model, made("add", Site("model.layers.0.self_attn.o_proj")), new_bias=True)
    assert set(model.state_dict()) == before
    assert model.config.to_dict() == config


@pytest.mark.parametrize("inside", [False, True], ids=["by itself", "inside another model"])
def test_the_biases_beside_a_new_one_are_zeros_and_those_of_the_checkpoint(inside: bool, tmp_path: Any) -> None:
    model, inputs = glm()
    prefix = "backbone." if inside else ""
    around: nn.Module = nn.ModuleDict({"backbone": model}) if inside else model
    action = made("add", Site(f"{prefix}model.layers.1.self_attn.q_proj"))
    with action.on(model if not inside else around):
        steered = logits(model, inputs)
    edit.bake(around, action, new_bias=True)
    torch.testing.assert_close(logits(model, inputs), steered)
    added = {name: value for name, value in model.state_dict().items() if name.endswith(".bias")}
    assert {name.split(".")[-2] for name in added} == {"q_proj", "k_proj", "v_proj"}
    assert [name for name, value in added.items() if value.any()] == ["model.layers.1.self_attn.q_proj.bias"]
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path)
    assert again.state_dict().keys() == model.state_dict().keys()
    assert torch.equal(logits(again, inputs), logits(model, inputs))


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
