"""Steering files in the GGUF format, and additions moved to where they can be a bias."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from plexus import edit
from plexus.edit import steer
from plexus.errors import FormatError, RangeError, ShapeError, SiteError, UnknownNameError, UnsupportedError
from plexus.units import Neurons, Site, sites


def logits(model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    with torch.no_grad():
        return model(**inputs).logits


def by_hand(path: Path, tensors: dict[str, np.ndarray[Any, Any]], architecture: str = "controlvector") -> Path:
    """A file as llama.cpp's and repeng's writers make it."""
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_string("controlvector.model_hint", "llama")
    writer.add_uint32("controlvector.layer_count", len(tensors))
    for name, data in tensors.items():
        writer.add_tensor(name, data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("family", ["gpt2", "llama", "neox", "phi3"])
def test_a_control_vector_comes_back_as_the_same_steering(
    family: str, tmp_path: Path, tiny: Callable[..., Any]
) -> None:
    model, inputs = tiny(family)
    site, some = sites.residual(model)[1], torch.randn(16)
    units = Neurons.of({site: 16}, {site: [2, 9]})
    push = steer.add({site: some}, 2.5).then(edit.add(units, torch.tensor([1.0, -3.0])))
    path = steer.write_gguf(push, tmp_path / "push.gguf", model)
    with push.on(model):
        steered = logits(model, inputs)
    again = steer.read_gguf(path, model)
    with again.on(model):
        torch.testing.assert_close(logits(model, inputs), steered)
    twice = steer.write_gguf(again, tmp_path / "again.gguf", model)
    assert twice.read_bytes() == path.read_bytes()
    with steer.read_gguf(path, model, scale=-1.0).on(model), push.on(model):
        undone = logits(model, inputs)
    torch.testing.assert_close(undone, logits(model, inputs), atol=1e-5, rtol=1e-4)


def test_the_file_is_what_llama_cpp_reads(tmp_path: Path, tiny: Callable[..., Any]) -> None:
    model, _ = tiny("llama")
    push = torch.randn(16)
    path = steer.write_gguf(edit.add(~Neurons.of({sites.residual(model)[1]: 16}), push), tmp_path / "a.gguf", model)
    reader = gguf.GGUFReader(path)
    text = {
        key: bytes(reader.get_field(key).parts[-1]).decode()
        for key in ("general.architecture", "controlvector.model_hint")
    }
    assert text == {"general.architecture": "controlvector", "controlvector.model_hint": "llama"}
    assert int(reader.get_field("controlvector.layer_count").parts[-1][0]) == 1
    (tensor,) = reader.tensors
    assert tensor.name == "direction.1"  # after block 1, counted from 0
    assert tensor.tensor_type == gguf.GGMLQuantizationType.F32
    assert tensor.data.tolist() == push.tolist()


def test_a_file_of_others_steers_the_stream_after_its_block(tmp_path: Path, tiny: Callable[..., Any]) -> None:
    model, inputs = tiny("llama")
    data = np.random.default_rng(0).standard_normal(16).astype(np.float32)
    found = steer.read_gguf(by_hand(tmp_path / "b.gguf", {"direction.1": data}), model, scale=0.5)
    handle = model.model.layers[1].register_forward_hook(lambda module, args, out: out + 0.5 * torch.from_numpy(data))
    expected = logits(model, inputs)
    handle.remove()
    with found.on(model):
        torch.testing.assert_close(logits(model, inputs), expected)


def test_what_is_no_control_vector_is_refused(tmp_path: Path, tiny: Callable[..., Any]) -> None:
    model, _ = tiny("llama")
    first, second = sites.residual(model)
    one = torch.ones(16)
    for action, why in (
        (steer.add({first: one}, 1.0), "begins with block 1"),
        (steer.ablate({second: one}), "more than add"),
        (steer.add({second: one}, 1.0, by="norm"), "more than add"),
        (steer.add({second: one}, 1.0, positions="last"), "more than add"),
        (steer.add({Site("model.norm"): one}, 1.0), "residual stream"),
    ):
        with pytest.raises(UnsupportedError, match=why):
            steer.write_gguf(action, tmp_path / "no.gguf", model)
    with pytest.raises(RangeError, match="adds nothing"):
        steer.write_gguf(edit.add(Neurons.of({second: 16}), 1.0), tmp_path / "no.gguf", model)
    assert not (tmp_path / "no.gguf").exists()
    vector = np.ones(16, np.float32)
    with pytest.raises(FormatError, match="no control vector"):
        steer.read_gguf(by_hand(tmp_path / "c", {"direction.1": vector}, "llama"), model)
    for name, data in (("direction.0", vector), ("other", vector), ("direction.1", vector.astype(np.float16))):
        with pytest.raises(FormatError, match="no direction"):
            steer.read_gguf(by_hand(tmp_path / "d", {name: data}), model)
    with pytest.raises(FormatError, match="NaN"):
        steer.read_gguf(by_hand(tmp_path / "e", {"direction.1": vector * np.nan}), model)
    with pytest.raises(ShapeError, match="fewer blocks"):
        steer.read_gguf(by_hand(tmp_path / "f", {"direction.2": vector}), model)
    with pytest.raises(ShapeError, match="another width"):
        steer.read_gguf(by_hand(tmp_path / "g", {"direction.1": np.ones(8, np.float32)}), model)
    with pytest.raises(UnknownNameError):
        steer.read_gguf(tmp_path / "absent.gguf", model)
    whole = by_hand(tmp_path / "h", {"direction.1": vector}).read_bytes()
    for cut in (0, 3, 20, 60, len(whole) - 40):
        (tmp_path / "cut").write_bytes(whole[:cut])
        with pytest.raises(FormatError):
            steer.read_gguf(tmp_path / "cut", model)


@pytest.mark.parametrize("family", ["gpt2", "llama", "neox", "phi3"])
def test_adding_to_the_stream_is_adding_to_what_writes_last(family: str, tiny: Callable[..., Any]) -> None:
    model, inputs = tiny(family)
    push = steer.add({site: torch.randn(16) for site in sites.residual(model)}, 1.5)
    with push.on(model):
        steered = logits(model, inputs)
    moved = steer.at_writers(model, push, inputs)
    assert all(site.path != stream.path for site in moved.neurons.sites for stream in sites.residual(model))
    with moved.on(model):
        torch.testing.assert_close(logits(model, inputs), steered, atol=1e-5, rtol=1e-4)
    if family in ("gpt2", "llama", "neox"):
        edit.bake(model, moved, new_bias=True)
        torch.testing.assert_close(logits(model, inputs), steered, atol=1e-5, rtol=1e-4)


def test_a_norm_after_the_mlp_is_noticed() -> None:
    from transformers import Gemma2Config, Gemma2ForCausalLM

    torch.manual_seed(0)
    config = Gemma2Config(
        vocab_size=30, hidden_size=16, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=32, head_dim=4,
    )  # fmt: skip
    model, inputs = Gemma2ForCausalLM(config).eval(), {"input_ids": torch.tensor([[3, 4, 5]])}
    push = steer.add({sites.residual(model)[0]: torch.randn(16)}, 1.5)
    with pytest.raises(UnsupportedError, match="straight"):
        steer.at_writers(model, push, inputs)
    with pytest.raises(UnsupportedError, match="additions"):
        steer.at_writers(model, steer.ablate({sites.residual(model)[0]: torch.randn(16)}), inputs)
    with pytest.raises(SiteError, match="residual"):
        steer.at_writers(model, steer.add({Site("model.norm"): torch.randn(16)}, 1.0), inputs)
