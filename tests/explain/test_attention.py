"""Patterns and values of heads as places: the logits stay those of eager attention, and edits change them."""

import copy

import pytest
import torch
from torch import nn

from plexus import edit, probe
from plexus.errors import UnsupportedError
from plexus.explain import circuits
from plexus.explain.circuits import open_attention, pattern_of
from plexus.units import Neurons, sites
from tests.families import COMMON, TOKENS, tiny


def made(family):
    import transformers as tf

    tf.logging.set_verbosity_error()
    more = {
        "grouped llama": (tf.LlamaForCausalLM, tf.LlamaConfig, {"num_key_value_heads": 2}),
        "qwen": (tf.Qwen3ForCausalLM, tf.Qwen3Config, {"num_key_value_heads": 2, "head_dim": 8}),
        "gemma": (
            tf.Gemma2ForCausalLM,
            tf.Gemma2Config,
            {"num_key_value_heads": 1, "head_dim": 8, "sliding_window": 4},
        ),
    }
    if family not in more:
        return tiny(family)
    kind, config, options = more[family]
    torch.manual_seed(0)
    model = kind(config(**COMMON, **TOKENS, **options)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model, {"input_ids": torch.randint(3, 30, (2, 6), generator=torch.Generator().manual_seed(1))}


def answer(model, inputs):
    with torch.no_grad():
        return next(v for v in model(**inputs).values() if isinstance(v, torch.Tensor))


FAMILIES = ["gpt2", "llama", "grouped llama", "qwen", "gemma", "neox", "phi3", "bert", "vit"]


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_and_patterns_are_those_of_eager_attention(family):
    model, inputs = made(family)
    model.set_attn_implementation("eager")
    expected, shown = answer(model, inputs), model(**inputs, output_attentions=True).attentions
    model.set_attn_implementation("sdpa" if family != "gemma" else "eager")
    names, state = [n for n, _ in model.named_modules()], set(model.state_dict())
    with open_attention(model) as attention:
        torch.testing.assert_close(answer(model, inputs), expected, atol=1e-6, rtol=1e-5)
        record = probe.record(model, inputs, [*attention.patterns, *attention.values])
        assert set(model.state_dict()) == state
    for site, pattern in zip(attention.patterns, shown, strict=True):
        torch.testing.assert_close(pattern_of(record, site), pattern.detach(), atol=1e-6, rtol=1e-5)
    heads = shown[0].shape[1]
    assert all(size == heads for size in record.sizes.values())
    # closed, the model is what it was
    assert [n for n, _ in model.named_modules()] == names
    assert model.config._attn_implementation == ("sdpa" if family != "gemma" else "eager")


def test_editing_a_pattern_changes_the_logits_as_plain_algebra_says():
    model, inputs = made("grouped llama")
    layer = model.model.layers[1].self_attn
    o = sites.heads(model)[1]
    with open_attention(model) as attention:
        head = Neurons.of({attention.patterns[1]: 4}, {attention.patterns[1]: [2]})
        with edit.scale(model, head, 0.0):
            through_pattern = answer(model, inputs)
        values = Neurons.of({attention.values[1]: 4}, {attention.values[1]: [2]})
        with edit.scale(model, values, 0.0):
            through_values = answer(model, inputs)
    with edit.scale(model, Neurons.of({o: 4}, {o: [2]}), 0.0):
        expected = answer(model, inputs)
    torch.testing.assert_close(through_pattern, expected, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(through_values, expected, atol=1e-6, rtol=1e-5)
    assert (answer(model, inputs) - expected).abs().max() > 1e-3
    # heads 2 and 3 share one value projection, and only head 2 was edited
    assert layer.v_proj.out_features == 2 * layer.head_dim


def test_a_pattern_patched_from_another_run_is_the_pattern_used():
    model, inputs = made("gpt2")
    other = {"input_ids": inputs["input_ids"].flip(1)}
    with open_attention(model) as attention:
        site = attention.patterns[0]
        record = probe.record(model, other, site)
        head = Neurons.of({site: 4}, {site: [1]})
        with edit.patch(model, head, record):
            seen = probe.record(model, inputs, site)
        plain = probe.record(model, inputs, site)
    patched, own, source = (pattern_of(r, site) for r in (seen, plain, record))
    assert torch.equal(patched[:, 1], source[:, 1])
    assert torch.equal(patched[:, [0, 2, 3]], own[:, [0, 2, 3]])
    assert not torch.equal(source[:, 1], own[:, 1])


@pytest.mark.parametrize("family", ["llama", "grouped llama", "gpt2"])
def test_edits_hold_during_generation_with_cache_padding_and_beams(family):
    model, inputs = made(family)
    ids = torch.cat([torch.zeros(2, 2, dtype=torch.long), inputs["input_ids"]], 1)
    mask = (torch.arange(8) >= torch.tensor([[2], [4]])).long()
    options = {"max_new_tokens": 4, "attention_mask": mask, "pad_token_id": 0, "do_sample": False}
    with open_attention(model) as attention:
        opened = model.generate(ids, **options)
        for site in (attention.patterns[0], attention.values[0]):
            with edit.scale(model, Neurons.of({site: 4}, {site: [0, 3]}), 0.0):
                one = model.generate(ids, num_beams=2, **options)
                two = model.generate(ids, num_beams=2, use_cache=False, **options)
            assert torch.equal(one, two)
        cut = edit.scale(Neurons.of({site: 4}, {site: [0]}), 0.0, positions="generated")
        with cut.on(model), pytest.raises(UnsupportedError, match="cache"):
            model.generate(ids, **options)
    model.set_attn_implementation("eager")
    assert torch.equal(opened, model.generate(ids, **options))


def test_gradients_flow_through_and_bfloat16_works():
    model, inputs = made("grouped llama")
    labels = inputs["input_ids"]

    def gradient():
        model.zero_grad()
        model(**inputs, labels=labels).loss.backward()
        return {name: p.grad.clone() for name, p in model.named_parameters()}

    model.set_attn_implementation("eager")
    expected = gradient()
    with open_attention(model):
        found = gradient()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=1e-6, rtol=1e-4)
    half = copy.deepcopy(model).to(torch.bfloat16)
    plain = answer(half, inputs)
    with open_attention(half) as attention:
        assert torch.equal(answer(half, inputs), plain)
        site = attention.patterns[0]
        with edit.scale(half, Neurons.of({site: 4}, {site: [0]}), 0.5):
            assert answer(half, inputs).dtype == torch.bfloat16


def test_what_has_no_such_attention_is_refused():
    with pytest.raises(UnsupportedError, match="registered implementation"):
        open_attention(nn.Sequential(nn.Linear(2, 2)))
    model, _ = made("gpt2")
    with open_attention(model), pytest.raises(UnsupportedError, match="open already"):
        open_attention(model)
    with open_attention(model), pytest.raises(ZeroDivisionError):
        raise ZeroDivisionError
    circuits.open_attention(model).close()
