"""Edits of transformers against the same model with its weights edited by hand."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from plexus import edit
from plexus.errors import SiteError
from plexus.units import Neurons, Recording, Site, Table, attach, sites

FAMILIES = ("gpt2", "llama", "neox", "phi3", "vit", "bert", "t5", "gated t5", "albert")


def outputs(model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    with torch.no_grad():
        out = model(**inputs)
    return out.logits if hasattr(out, "logits") else out.last_hidden_state


def columns(module: nn.Module) -> Tensor:
    """The weight with what the layer reads along the last dimension; GPT-2's lies the other way round."""
    return module.weight.data.T if type(module).__name__ == "Conv1D" else module.weight.data


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", FAMILIES)
def test_hidden_units(family: str, dtype: torch.dtype, tiny: Callable[..., Any]) -> None:
    model, inputs = tiny(family)
    if "pixel_values" in inputs:
        inputs = {"pixel_values": inputs["pixel_values"].to(dtype)}
    model = model.to(dtype)
    plain, by_hand = outputs(model, inputs), copy.deepcopy(model)
    found = sites.mlp(model)
    chosen = Neurons.of(dict.fromkeys(found, 32), {site: [3, 17, 20] for site in found})
    for site in found:
        columns(by_hand.get_submodule(site.path))[:, [3, 17, 20]] = 0
    with edit.scale(model, chosen, 0.0):
        silenced = outputs(model, inputs)
    torch.testing.assert_close(silenced, outputs(by_hand, inputs))
    assert not torch.allclose(silenced, plain)
    assert torch.equal(outputs(model, inputs), plain)


@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "gated t5"])
def test_heads(family: str, tiny: Callable[..., Any]) -> None:
    model, inputs = tiny(family)
    by_hand, found = copy.deepcopy(model), sites.heads(model)
    chosen = Neurons.of(dict.fromkeys(found, 4), {site: [1] for site in found})
    for site in found:
        width = columns(by_hand.get_submodule(site.path)).shape[1] // 4
        columns(by_hand.get_submodule(site.path))[:, width : 2 * width] *= 0.5
    with edit.scale(model, chosen, 0.5):
        torch.testing.assert_close(outputs(model, inputs), outputs(by_hand, inputs))


@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "gated t5"])
def test_residual_stream(family: str, tiny: Callable[..., Any]) -> None:
    model, inputs = tiny(family)
    site = sites.residual(model)[0]
    direction = torch.randn(16)
    by_hand = copy.deepcopy(model)

    def push(module: nn.Module, args: Any, out: Any) -> Any:
        return (out[0] + 2 * direction, *out[1:]) if isinstance(out, tuple) else out + 2 * direction

    by_hand.get_submodule(site.path).register_forward_hook(push)
    everywhere = ~Neurons.of({site: 16})
    with edit.add(model, everywhere, 2.0, basis=direction):
        along = outputs(model, inputs)
    with edit.add(model, everywhere, 2 * direction):
        amount = outputs(model, inputs)
    expected = outputs(by_hand, inputs)
    torch.testing.assert_close(along, expected)
    torch.testing.assert_close(amount, expected)
    assert not torch.allclose(expected, outputs(model, inputs))


def test_a_direction_is_taken_out_of_the_stream(tiny: Callable[..., Any]) -> None:
    model, inputs = tiny("llama")
    site = sites.residual(model)[1]
    basis = torch.randn(2, 16)
    projector = torch.eye(16) - torch.linalg.pinv(basis) @ basis
    by_hand = copy.deepcopy(model)
    by_hand.get_submodule(site.path).register_forward_hook(lambda module, args, out: out @ projector)
    with edit.scale(model, ~Neurons.of({site: 16}), 0.0, basis=basis):
        torch.testing.assert_close(outputs(model, inputs), outputs(by_hand, inputs))


def test_queries_of_interleaved_and_stacked_projections(tiny: Callable[..., Any]) -> None:
    neox, inputs = tiny("neox")
    site = Site("gpt_neox.layers.0.attention.query_key_value", "b t (u:4 part:3 f)", part=(0, 1))
    by_hand = copy.deepcopy(neox)
    fused = by_hand.gpt_neox.layers[0].attention.query_key_value
    for parameter in (fused.weight.data, fused.bias.data):
        parameter.view(4, 3, 4, *parameter.shape[1:])[2, 0] = 0
    with edit.scale(neox, Neurons.of({site: 4}, {site: [2]}), 0.0):
        torch.testing.assert_close(outputs(neox, inputs), outputs(by_hand, inputs))
    gpt2, inputs = tiny("gpt2")
    site = Site("transformer.h.1.attn.c_attn", "b t (u:4 f)", part=(16, 32))  # the keys
    by_hand = copy.deepcopy(gpt2)
    fused = by_hand.transformer.h[1].attn.c_attn
    for parameter in (fused.weight.data, fused.bias.data):
        parameter[..., 16:32].view(*parameter.shape[:-1], 4, 4)[..., 3, :] = 0
    with edit.scale(gpt2, Neurons.of({site: 4}, {site: [3]}), 0.0):
        torch.testing.assert_close(outputs(gpt2, inputs), outputs(by_hand, inputs))


def test_half_of_a_fused_gate(tiny: Callable[..., Any]) -> None:
    model, inputs = tiny("phi3")
    site = Site("model.layers.0.mlp.gate_up_proj", "b t u", part=(32, 64))  # the up-projection
    by_hand = copy.deepcopy(model)
    by_hand.model.layers[0].mlp.gate_up_proj.weight.data[32 + 5] = 0
    with edit.scale(model, Neurons.of({site: 32}, {site: [5]}), 0.0):
        torch.testing.assert_close(outputs(model, inputs), outputs(by_hand, inputs))


def test_one_call_of_a_shared_block(tiny: Callable[..., Any]) -> None:
    model, inputs = tiny("albert")
    path = sites.mlp(model)[0].path
    site = Site(path, at="input", call=1)
    by_hand, count = copy.deepcopy(model), []

    def silence(module: nn.Module, args: Any) -> Any:
        count.append(0)
        if len(count) != 2:
            return None
        hidden = args[0].clone()
        hidden[..., 4] = 0
        return (hidden,)

    by_hand.get_submodule(path).register_forward_pre_hook(silence)
    with edit.scale(model, Neurons.of({site: 32}, {site: [4]}), 0.0):
        first, again = outputs(model, inputs), outputs(model, inputs)
    torch.testing.assert_close(first, outputs(by_hand, inputs))
    assert torch.equal(first, again)


def test_tied_embeddings_are_edited_where_the_site_says(tiny: Callable[..., Any]) -> None:
    model, inputs = tiny("gpt2")
    assert model.lm_head.weight is model.transformer.wte.weight
    site = Site("transformer.wte", "b t u")
    by_hand = copy.deepcopy(model)
    by_hand.lm_head.weight = nn.Parameter(by_hand.lm_head.weight.detach().clone())
    by_hand.transformer.wte.weight.data[:, 5] = 0
    with edit.scale(model, Neurons.of({site: 16}, {site: [5]}), 0.0):
        torch.testing.assert_close(outputs(model, inputs), outputs(by_hand, inputs))


def test_patching_a_position_from_another_run(tiny: Callable[..., Any]) -> None:
    model, inputs = tiny("gpt2")
    site = sites.residual(model)[0]
    donor = {"input_ids": inputs["input_ids"].flip(0, 1)}
    with torch.no_grad():
        streams = [model(**each, output_hidden_states=True).hidden_states[1] for each in (inputs, donor)]
        # by hand: from the mixed stream on through the last block, the norm and the head
        mixed = streams[0].clone()
        mixed[1, 2] = streams[1][0, 4]
        block = model.transformer.h[1](mixed)
        expected = model.lm_head(model.transformer.ln_f(block[0] if isinstance(block, tuple) else block))
    theirs = outputs(model, donor)
    rows = Table(torch.arange(2).repeat_interleave(6), torch.arange(6).repeat(2))
    record = Recording({site: streams[1].flatten(0, 1)}, {site: rows})
    everywhere = ~Neurons.of({site: 16})
    with edit.patch(model, everywhere, record, rows={(1, 2): (0, 4)}):
        torch.testing.assert_close(outputs(model, inputs), expected)
    with edit.patch(model, everywhere, record):  # all rows to their own places: from here on it is the donor's run
        torch.testing.assert_close(outputs(model, inputs), theirs)
    with edit.patch(model, everywhere, record, rows={0: 1, 1: 0}):
        torch.testing.assert_close(outputs(model, inputs), theirs.flip(0))
    far = edit.patch(everywhere, record, rows={(7, 0): (0, 0)})
    with pytest.raises(SiteError, match="never met"), far.on(model):
        outputs(model, inputs)


# --- generation: passes, positions, beams ----------------------------------------------------------------------------


class Look:
    records = True

    def __init__(self, site: Site) -> None:
        self.site = site
        self.runs: list[Any] = []
        self.shapes: list[tuple[int, ...]] = []

    def __call__(self, values: Tensor, visit: Any) -> None:
        self.runs.append(visit.run)
        self.shapes.append(tuple(values.shape))


def padded() -> dict[str, Tensor]:
    ids = torch.tensor([[5, 6, 7, 8], [0, 0, 9, 10]])
    return {"input_ids": ids, "attention_mask": (ids != 0).long()}


@pytest.mark.parametrize("family", ["gpt2", "llama", "neox", "phi3"])
@pytest.mark.parametrize("cached", [True, False])
def test_positions_go_on_while_generating(family: str, cached: bool, tiny: Callable[..., Any]) -> None:
    model, _ = tiny(family)
    seen = Look(sites.mlp(model)[0])
    with attach(model, [seen]):
        model.generate(**padded(), max_new_tokens=3, min_new_tokens=3, do_sample=False, use_cache=cached)
    assert [run.index for run in seen.runs] == [0, 1, 2]
    lengths = [4, 1, 1] if cached else [4, 5, 6]
    assert [run.positions.shape for run in seen.runs] == [(2, length) for length in lengths]
    # the model's own positions: the second sample is padded on the left by two
    assert [run.positions[:, -1].tolist() for run in seen.runs] == [[3, 1], [4, 2], [5, 3]]
    assert seen.runs[0].mask.tolist() == padded()["attention_mask"].bool().tolist()
    assert all(run.mask.shape == run.positions.shape for run in seen.runs)
    assert [run.phase for run in seen.runs] == ["prompt", "generated", "generated"]
    assert [run.generated.sum().item() for run in seen.runs] == ([0, 1, 1] if cached else [0, 1, 2])
    assert all(run.samples is None for run in seen.runs)


def test_beams_know_their_sample(tiny: Callable[..., Any]) -> None:
    model, _ = tiny("gpt2")
    seen = Look(sites.mlp(model)[0])
    with attach(model, [seen]):
        model.generate(**padded(), max_new_tokens=3, min_new_tokens=3, num_beams=3, do_sample=False)
    assert seen.shapes[-1][0] == 6
    assert seen.runs[-1].samples.tolist() == [0, 0, 0, 1, 1, 1]


def test_encoder_and_decoder_are_streams_of_their_own(tiny: Callable[..., Any]) -> None:
    model, _ = tiny("t5")
    encoder, decoder = (Look(sites.mlp(model)[index]) for index in (0, 2))
    head = Look(Site("lm_head"))
    inputs = padded()
    with attach(model, [encoder, decoder, head]):
        model(**inputs, decoder_input_ids=torch.tensor([[0, 4, 5], [0, 6, 0]]))
        model.generate(**inputs, max_new_tokens=3, min_new_tokens=3, num_beams=2, do_sample=False)
    real = inputs["attention_mask"].bool()
    assert [run.index for run in encoder.runs] == [0, 1]  # in generate the encoder runs once, before the decoder
    assert all(torch.equal(run.mask, real) for run in encoder.runs)
    assert all(run.phase == "prompt" for run in encoder.runs)
    assert decoder.runs[0].mask is None
    assert decoder.runs[0].positions.tolist() == [[0, 1, 2]] * 2
    assert head.runs[0].mask is None
    assert head.runs[0].positions.tolist() == [[0, 1, 2]] * 2
    steps = decoder.runs[1:]
    assert [run.positions.tolist() for run in steps] == [[[n]] * 4 for n in range(3)]
    assert [run.phase for run in steps] == ["prompt", "generated", "generated"]
    assert all(run.samples.tolist() == [0, 0, 1, 1] for run in steps)
    assert all(run.mask is None for run in steps)


def test_decoding_by_hand_with_a_cache_goes_on_too(tiny: Callable[..., Any]) -> None:
    model, inputs = tiny("llama")
    seen = Look(sites.mlp(model)[0])
    with attach(model, [seen]), torch.no_grad():
        cache = model(**inputs, use_cache=True).past_key_values
        model(inputs["input_ids"][:, -1:], past_key_values=cache, use_cache=True)
    assert seen.runs[0].positions.tolist() == [list(range(6))] * 2
    assert seen.runs[1].positions.tolist() == [[6], [6]]
    assert [run.phase for run in seen.runs] == ["prompt", "generated"]


@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize("beams", [1, 2])
@pytest.mark.parametrize("family", ["gpt2", "llama", "t5"])
def test_generating_under_an_edit_is_generating_with_edited_weights(
    family: str, beams: int, cached: bool, tiny: Callable[..., Any]
) -> None:
    model, _ = tiny(family)
    by_hand, found = copy.deepcopy(model), sites.mlp(model)
    for site in found:
        columns(by_hand.get_submodule(site.path))[:, ::2] = 0
    chosen = Neurons.of(dict.fromkeys(found, 32), {site: range(0, 32, 2) for site in found})
    how = {"max_new_tokens": 5, "num_beams": beams, "do_sample": False, "use_cache": cached}
    with edit.scale(model, chosen, 0.0):
        out = model.generate(**padded(), **how)
    assert torch.equal(out, by_hand.generate(**padded(), **how))


@pytest.mark.parametrize("cached", [True, False])
def test_edits_of_prompt_generated_and_last_tokens(cached: bool, tiny: Callable[..., Any]) -> None:
    model, _ = tiny("gpt2")
    site = sites.mlp(model)[0]
    chosen = Neurons.of({site: 32}, {site: range(32)})
    kept: list[Tensor] = []

    class Keep(Look):
        def __call__(self, values: Tensor, visit: Any) -> None:
            kept.append(values.clone())

    silent = {}
    for where in ("all", "prompt", "generated", "last"):
        kept.clear()
        with edit.scale(model, chosen, 0.0, positions=where), attach(model, [Keep(site)]):
            model.generate(**padded(), max_new_tokens=3, min_new_tokens=3, do_sample=False, use_cache=cached)
        silent[where] = [(values == 0).all(-1)[0].tolist() for values in kept]
    yes, no = True, False
    assert silent["all"] == [[yes] * len(step) for step in silent["all"]]
    if cached:
        assert silent["prompt"] == [[yes] * 4, [no], [no]]
        assert silent["generated"] == [[no] * 4, [yes], [yes]]
        assert silent["last"] == [[no] * 3 + [yes], [yes], [yes]]
    else:
        assert silent["prompt"] == [[yes] * 4, [yes] * 4 + [no], [yes] * 4 + [no] * 2]
        assert silent["generated"] == [[no] * 4, [no] * 4 + [yes], [no] * 4 + [yes] * 2]
        assert silent["last"] == [[no] * n + [yes] for n in (3, 4, 5)]


def test_the_last_token_is_the_last_real_one(tiny: Callable[..., Any]) -> None:
    model, _ = tiny("bert")
    site = sites.mlp(model)[1]
    ids = torch.tensor([[5, 6, 7, 8], [9, 10, 0, 0]])
    inputs = {"input_ids": ids, "attention_mask": (ids != 0).long()}
    kept: list[Tensor] = []

    class Keep(Look):
        def __call__(self, values: Tensor, visit: Any) -> None:
            kept.append((values == 0).all(-1))

    with edit.scale(model, ~Neurons.of({site: 32}), 0.0, positions="last"), attach(model, [Keep(site)]):
        model(**inputs)
    assert kept[0].int().tolist() == [[0, 0, 0, 1], [0, 1, 0, 0]]
