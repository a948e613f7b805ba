"""Real checkpoints: parts on disk, half precision, adapters, 8- and 4-bit weights; recorded and steered as any."""

import warnings

import pytest
import torch

from plexus import edit, probe
from plexus.errors import UnsupportedError
from plexus.units import Neurons, Site, sites

transformers = pytest.importorskip("transformers")
IDS = torch.randint(2, 50, (3, 5), generator=torch.Generator().manual_seed(0))
LEFT = {"input_ids": IDS, "attention_mask": (torch.arange(5) >= torch.tensor([[2], [0], [1]])).long()}
GREEDY = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}


@pytest.fixture(scope="module")
def llama():
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        hidden_size=64, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4, vocab_size=50,
        pad_token_id=1, bos_token_id=0, eos_token_id=1, tie_word_embeddings=False,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config).eval()


@pytest.fixture(scope="module")
def checkpoint(llama, tmp_path_factory):
    folder = tmp_path_factory.mktemp("llama")
    llama.save_pretrained(folder)
    return folder


def chosen(model, units=(1, 2, 40)):
    found = sites.mlp(model)
    return Neurons.of(dict.fromkeys(found, 96), {found[1]: units})


def same_recordings(one, other):
    for mine, theirs in zip(one.sites, other.sites, strict=True):
        assert torch.equal(one[mine], other[theirs])
        assert one.table[mine] == other.table[theirs]


def places():
    last = {"model.norm": "cpu", "lm_head": "cpu", "model.rotary_emb": "cpu", "model.embed_tokens": "cpu"}
    return last | {"model.layers.0": "cpu", "model.layers.1": "disk", "model.layers.2": "disk"}


@pytest.fixture(params=["some on disk", "all on disk", "all offloaded with buffers"])
def offloaded(request, llama, checkpoint, tmp_path):
    accelerate = pytest.importorskip("accelerate")
    if request.param == "some on disk":
        return transformers.AutoModelForCausalLM.from_pretrained(
            checkpoint, device_map=places(), offload_folder=str(tmp_path)
        ).eval()
    model = transformers.LlamaForCausalLM(llama.config)
    model.load_state_dict(llama.state_dict())
    if request.param == "all on disk":
        return accelerate.disk_offload(model.eval(), str(tmp_path), execution_device="cpu")
    return accelerate.cpu_offload(model.eval(), execution_device="cpu", offload_buffers=True)


def test_offloaded_models_are_recorded_and_steered_as_the_model_in_memory(offloaded, llama):
    assert any(parameter.is_meta for parameter in offloaded.parameters())
    found = sites.mlp(offloaded) + sites.residual(offloaded) + sites.heads(offloaded)
    here = sites.mlp(llama) + sites.residual(llama) + sites.heads(llama)
    same_recordings(probe.record(offloaded, LEFT, found), probe.record(llama, LEFT, here))
    loss = {"grad": lambda output, batch: output.logits[:, -1].square().sum()}
    same_recordings(probe.record(offloaded, LEFT, found, **loss), probe.record(llama, LEFT, here, **loss))
    same_recordings(
        probe.record(offloaded, LEFT, found[:3], generate=GREEDY), probe.record(llama, LEFT, here[:3], generate=GREEDY)
    )
    with torch.no_grad():
        plain = offloaded(**LEFT).logits
        for positions in ("all", "last"):
            with edit.scale(offloaded, chosen(offloaded), 5.0, positions=positions):
                ours, said = offloaded(**LEFT).logits, offloaded.generate(**LEFT, **GREEDY)
            with edit.scale(llama, chosen(llama), 5.0, positions=positions):
                assert torch.equal(ours, llama(**LEFT).logits)
                assert torch.equal(said, llama.generate(**LEFT, **GREEDY))
            assert not torch.equal(ours, plain)
        assert torch.equal(offloaded(**LEFT).logits, plain)
    assert any(parameter.is_meta for parameter in offloaded.parameters())
    with pytest.raises(UnsupportedError, match="offloaded"):
        edit.bake(offloaded, edit.scale(chosen(offloaded), 0.0))


def test_half_precision_from_a_checkpoint(checkpoint):
    model = transformers.AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.bfloat16).eval()
    found = sites.mlp(model)
    record = probe.record(model, LEFT, found)
    assert {record[site].dtype for site in record.sites} == {torch.bfloat16}
    with torch.no_grad():
        plain = model(**LEFT).logits
        with edit.scale(model, chosen(model), 0.0):
            silenced = model(**LEFT).logits
            inside = probe.record(model, LEFT, found[1])
        assert bool((inside[found[1]][:, [1, 2, 40]] == 0).all())
        assert not torch.equal(silenced, plain)
        report = edit.bake(model, edit.scale(chosen(model), 0.0))
        assert report.dtype == torch.bfloat16
        assert torch.equal(model(**LEFT).logits, silenced)  # a column of zeros is exact in any precision


def test_adapters_are_seen_through(llama):
    peft = pytest.importorskip("peft")
    model = transformers.LlamaForCausalLM(llama.config).eval()
    model.load_state_dict(llama.state_dict())
    torch.manual_seed(1)
    config = peft.LoraConfig(target_modules=["down_proj", "q_proj"], r=2, init_lora_weights=False)
    adapted = peft.get_peft_model(model, config).eval()
    found = sites.mlp(adapted)
    assert [str(site) for site in found] == [str(site) for site in sites.mlp(llama)]
    record = probe.record(adapted, LEFT, found, generate=GREEDY)
    assert record.table[found[0]] == probe.record(llama, LEFT, found, generate=GREEDY).table[found[0]]
    with torch.no_grad():
        with edit.scale(adapted, chosen(adapted), 0.0):
            silenced = adapted(**LEFT).logits
            # what the adapter adds reads the silenced units as well
            inside = probe.record(adapted, LEFT, Site(found[1].path, "b t u"))
        assert not torch.equal(silenced, llama(**LEFT).logits)
        with pytest.raises(UnsupportedError, match="merge that first"):
            edit.bake(adapted, edit.scale(chosen(adapted), 0.0))
        merged = adapted.merge_and_unload()
        edit.bake(merged, edit.scale(chosen(merged), 0.0))
        torch.testing.assert_close(merged(**LEFT).logits, silenced)
        again = probe.record(merged, LEFT, Site(found[1].path, "b t u"))
    torch.testing.assert_close(again[again.sites[0]], inside[inside.sites[0]])


@pytest.mark.parametrize("bits", [8, 4])
def test_quantised_models_are_recorded_and_steered_and_not_baked(bits, checkpoint, llama):
    pytest.importorskip("bitsandbytes")
    config = transformers.BitsAndBytesConfig(**{f"load_in_{bits}bit": True})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the casts that the kernels make
        model = transformers.AutoModelForCausalLM.from_pretrained(
            checkpoint, quantization_config=config, device_map={"": "cpu"}
        ).eval()
        found = sites.mlp(model)
        record, exact = probe.record(model, LEFT, found), probe.record(llama, LEFT, sites.mlp(llama))
        for site in found:
            assert record.table[site] == exact.table[site]
            # the same units, up to the grid of the weights
            both = torch.stack([record[site].float().flatten(), exact[site].flatten()])
            assert float(torch.corrcoef(both)[0, 1]) > 0.9
        down = model.get_submodule(found[1].path)
        with torch.no_grad():
            plain = model(**LEFT).logits
            with edit.scale(model, chosen(model), 0.0):
                silenced = model(**LEFT).logits
                inside = probe.record(model, LEFT, [found[1], Site(found[1].path, "b t u")])
            assert not torch.equal(silenced, plain)
            assert torch.equal(model(**LEFT).logits, plain)
            assert bool((inside[found[1]][:, [1, 2, 40]] == 0).all())
            torch.testing.assert_close(down(inside[found[1]]), inside[inside.sites[1]], atol=2e-2, rtol=2e-2)
            direction = torch.nn.functional.normalize(torch.arange(64.0) - 31, dim=0)
            stream = sites.residual(model)[1]
            every = Neurons.of({stream: 64}, {stream: range(64)})
            with edit.add(model, every, 3.0, basis=direction, positions="generated"):
                said = model.generate(**LEFT, **GREEDY)
            assert said.shape == (3, 9)
        weights = down.weight.clone()
        for side, size in (("input", 96), ("output", 64)):
            site = Site(found[1].path, at=side)
            with pytest.raises(UnsupportedError, match="quantised"):
                edit.bake(model, edit.scale(Neurons.of({site: size}, {site: [0]}), 0.0))
        assert torch.equal(down.weight, weights)
