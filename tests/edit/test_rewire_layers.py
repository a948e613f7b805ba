"""Rewiring on layers of every kind: adapted, offloaded, of any strides, in half precision."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import plexus as px
from plexus.edit import rewire
from plexus.errors import UnknownNameError, UnsupportedError


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# weights that are not here, or stand below an adapter


def test_offloaded_weights_are_refused(tiny: Callable[..., Any], tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    model, inputs = tiny("llama")
    model.save_pretrained(tmp_path / "model")
    parts = {"model.embed_tokens": "cpu", "model.norm": "cpu", "model.rotary_emb": "cpu", "lm_head": "cpu"}
    places = parts | {"model.layers.0": "cpu", "model.layers.1": "disk"}
    model = type(model).from_pretrained(tmp_path / "model", device_map=places, offload_folder=tmp_path / "disk")
    name = "model.layers.1.mlp.up_proj"
    with torch.no_grad():
        before = model(**inputs).logits
        for refused in (
            lambda: rewire.mask_(model, {name: torch.zeros(32, 16).bool()}),
            lambda: rewire.random_wiring(model, 0.5, name),
            lambda: rewire.maskable(model),
        ):
            with pytest.raises(UnsupportedError, match=r"layers\.1(.|\n)*offloaded"):
                refused()
        assert rewire.densities(model) == {}
        rewire.mask_(model, {"model.layers.0.mlp.up_proj": torch.zeros(32, 16).bool()})
        assert rewire.densities(model) == {"model.layers.0.mlp.up_proj": 0.0}
        assert not torch.allclose(model(**inputs).logits, before)


def adapted(tiny: Callable[..., Any], family: str, *targets: str) -> tuple[Any, dict[str, torch.Tensor], Any]:
    """A model with an adapter that does something, and the model as it was."""
    peft = pytest.importorskip("peft")
    plain, inputs = tiny(family)
    settings = peft.LoraConfig(r=2, target_modules=list(targets), init_lora_weights=False)
    return peft.get_peft_model(copy.deepcopy(plain), settings).eval(), inputs, plain


@pytest.mark.parametrize(
    ("family", "target"), [("llama", "model.layers.0.mlp.up_proj"), ("gpt2", "transformer.h.0.mlp.c_fc")]
)
def test_below_an_adapter_the_base_weight_is_masked_under_the_name_of_its_site(
    family: str, target: str, tiny: Callable[..., Any]
) -> None:
    model, inputs, plain = adapted(tiny, family, target.rpartition(".")[2])
    exclude = [name for name in ("lm_head",) if family == "gpt2"]  # tied
    assert list(rewire.maskable(model, exclude=exclude)) == list(rewire.maskable(plain, exclude=exclude))
    (site,) = px.sites(model, target)
    wiring = rewire.random_wiring(model, 0.3, site.path, generator=seeded())
    rewire.mask_(model, wiring)
    assert list(rewire.masks(model)) == [target]
    rewire.mask_(plain, wiring)
    assert torch.equal(
        model.get_base_model().get_submodule(target).base_layer.weight, plain.get_submodule(target).weight
    )
    with torch.no_grad():
        adapter = model(**inputs).logits
        with model.disable_adapter():
            torch.testing.assert_close(model(**inputs).logits, plain(**inputs).logits)
        assert not torch.allclose(adapter, plain(**inputs).logits)
        assert torch.equal(rewire.unmask_(model)(**inputs).logits, adapter)


def test_the_layers_of_an_adapter_are_masked_where_they_are_named(tiny: Callable[..., Any]) -> None:
    model, _, _ = adapted(tiny, "llama", "up_proj", "q_proj")
    name = "model.layers.0.mlp.up_proj.lora_A.default"
    assert list(rewire.maskable(model, name)) == [name]
    assert len(rewire.maskable(model, "*.lora_?.*")) == 8
    assert not any("lora" in name for name in rewire.maskable(model, ["*proj", "lm_head"]))
    assert rewire.maskable(model, exclude=["*.lora_?.*"]).keys() == rewire.maskable(model).keys()
    rewire.mask_(model, {name: torch.ones(2, 16).bool()})
    assert list(rewire.masks(model)) == [name]
    with pytest.raises(UnknownNameError):
        rewire.maskable(model, "*.lora_Z")


# strides


RULES = [
    ("magnitude-layer", "gradient"),
    ("random", "random"),
    ({"magnitude-layer": 0.5, "random": 0.5}, {"gradient": 0.5, "random": 0.5}),
]


def conv(channels_last: bool) -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 4, 3), nn.Flatten()).double()
    rewire.mask_(model, rewire.random_wiring(model, 0.3, generator=seeded()))
    return model.to(memory_format=torch.channels_last) if channels_last else model


@pytest.mark.parametrize(("prune", "grow"), [*RULES, ("hebbian", "hebbian")])
def test_strides_change_nothing_of_what_is_rewired(prune: Any, grow: Any) -> None:
    if prune == "hebbian":
        prune, grow = {"magnitude-layer": 0.5, "hebbian": 0.5}, {"gradient": 0.5, "hebbian": 0.5}
    x, found = torch.randn(8, 3, 7, 7, generator=seeded(3), dtype=torch.float64), []
    for channels_last in (False, True):
        model = conv(channels_last)
        assert model[0].weight_mask.is_contiguous() is not channels_last
        edges = {name: int(mask.sum()) for name, mask in rewire.masks(model).items()}
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        settings: dict[str, Any] = {"prune": prune, "grow": grow, "fraction": 0.3, "generator": seeded()}
        with rewire.SparseTraining(model, optimizer, every=1, **settings) as sparse:
            for _ in range(3):
                optimizer.zero_grad()
                model(x).square().mean().backward()
                optimizer.step()
                assert sum(sparse.step().exchanged.values()) > 10
        assert {name: int(mask.sum()) for name, mask in rewire.masks(model).items()} == edges
        assert all(not model.get_submodule(name).weight[~mask].any() for name, mask in rewire.masks(model).items())
        found.append({name: mask.clone() for name, mask in rewire.masks(model).items()})
    assert rewire.edge_turnover(*found) == {"0": 0.0, "2": 0.0}


@pytest.mark.parametrize(("prune", "grow"), RULES)
def test_the_transposed_layers_of_gpt2_are_rewired(prune: Any, grow: Any, tiny: Callable[..., Any]) -> None:
    model, inputs = tiny("gpt2")
    rewire.mask_(model, rewire.random_wiring(model, 0.2, exclude=["lm_head"], generator=seeded()))
    before = {name: mask.clone() for name, mask in rewire.masks(model).items()}
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    with rewire.SparseTraining(model, optimizer, every=1, prune=prune, grow=grow, generator=seeded()) as sparse:
        for _ in range(2):
            optimizer.zero_grad()
            model(**inputs, labels=inputs["input_ids"]).loss.backward()
            optimizer.step()
            change = sparse.step()
    after = rewire.masks(model)
    assert all(int(after[name].sum()) == int(mask.sum()) for name, mask in before.items())
    assert change.exchanged == {name: int(0.1 * int(mask.sum())) for name, mask in before.items()}
    assert min(rewire.edge_turnover(before, after).values()) > 0.05
    for name, mask in after.items():
        weight = model.get_parameter(f"{name}.weight").T
        assert not weight[~mask].any()
        assert bool(mask.any(1).all())  # every unit keeps an input


def test_growth_in_a_transposed_layer_is_where_its_gradient_is_largest() -> None:
    from transformers.pytorch_utils import Conv1D

    torch.manual_seed(0)
    flat, turned = nn.Linear(12, 8), Conv1D(8, 12)
    turned.load_state_dict({"weight": flat.weight.T.clone(), "bias": flat.bias})
    x, masks = torch.randn(16, 12, generator=seeded(3)), []
    for layer in (flat, turned):
        model = nn.Sequential(layer)
        rewire.mask_(model, rewire.random_wiring(model, 0.4, generator=seeded()))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        with rewire.SparseTraining(model, optimizer, every=1, fraction=0.5) as sparse:
            model(x).square().mean().backward()
            optimizer.step()
            sparse.step()
        masks.append(rewire.masks(model)["0"])
    assert torch.equal(*masks)


# half precision


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("kind", ["linear", "without bias", "grouped", "convolution"])
def test_layers_come_back_in_their_dtype(kind: str, dtype: torch.dtype) -> None:
    layer = nn.Conv2d(4, 6, 3) if kind == "convolution" else nn.Linear(16, 8, bias=kind != "without bias")
    model = nn.Sequential(layer, nn.ReLU()).to(dtype)
    if kind == "grouped":
        wiring = rewire.group_wiring(model, 4, p_inter=0.1, generator=seeded())
    else:
        wiring = rewire.random_wiring(model, 0.2, generator=seeded())
    rewire.mask_(model, wiring)
    fast = rewire.sparse_forward(model, at_least=0.5)
    back = rewire.densify(fast)
    assert {name: value.dtype for name, value in back.state_dict().items()} == {
        name: value.dtype for name, value in model.state_dict().items()
    }
    assert torch.equal(back[0].weight, model[0].weight)
    x = torch.randn(3, 4, 6, 6) if kind == "convolution" else torch.randn(3, 16)
    assert torch.equal(back(x.to(dtype)), model(x.to(dtype)))
    assert rewire.densify(fast.double())[0].weight.dtype == torch.float64  # as the copy was cast
    assert fast.state_dict().keys() == rewire.sparse_forward(model, at_least=0.5).state_dict().keys()
