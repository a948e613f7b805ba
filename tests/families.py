"""Tiny models of the usual families with random weights, and an input for each."""

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

COMMON = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 32}
TOKENS = {"vocab_size": 30, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}


def tiny(family: str, **config: Any) -> tuple[nn.Module, dict[str, Tensor]]:
    """A model in eval mode and the keyword arguments of one call."""
    import transformers as tf

    tf.logging.set_verbosity_error()
    torch.manual_seed(0)
    narrow = {"n_embd": 16, "n_layer": 2, "n_head": 4, "n_inner": 32, "n_positions": 64}
    grouped = {**COMMON, "num_key_value_heads": 2, "head_dim": 4}
    shared = {**COMMON, "num_hidden_layers": 3, "vocab_size": 30, "embedding_size": 8}
    makers: dict[str, tuple[Any, Any]] = {
        "gpt2": (tf.GPT2LMHeadModel, lambda: tf.GPT2Config(**narrow, **TOKENS, **config)),
        "llama": (tf.LlamaForCausalLM, lambda: tf.LlamaConfig(**COMMON, **TOKENS, **config)),
        "neox": (tf.GPTNeoXForCausalLM, lambda: tf.GPTNeoXConfig(**COMMON, **TOKENS, **config)),
        "qwen": (tf.Qwen3ForCausalLM, lambda: tf.Qwen3Config(**grouped, **TOKENS, **config)),
        "gemma": (tf.Gemma2ForCausalLM, lambda: tf.Gemma2Config(**grouped, **TOKENS, **config)),
        "phi3": (tf.Phi3ForCausalLM, lambda: tf.Phi3Config(**COMMON, **TOKENS, **config)),
        "bert": (tf.BertModel, lambda: tf.BertConfig(**COMMON, vocab_size=30, **config)),
        "albert": (tf.AlbertModel, lambda: tf.AlbertConfig(**shared, **config)),
        "vit": (tf.ViTModel, lambda: tf.ViTConfig(**COMMON, image_size=8, patch_size=4, **config)),
        "t5": (tf.T5ForConditionalGeneration, lambda: _t5(tf, "relu", **config)),
        "gated t5": (tf.T5ForConditionalGeneration, lambda: _t5(tf, "gated-gelu", **config)),
    }  # fmt: skip
    kind, make = makers[family]
    model = kind(make()).eval()
    with torch.no_grad():  # the usual small weights leave tiny models nearly linear
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model, _inputs(family)


def _t5(tf: Any, activation: str, **config: Any) -> Any:
    return tf.T5Config(
        vocab_size=30, d_model=16, d_kv=4, d_ff=32, num_layers=2, num_heads=4, feed_forward_proj=activation,
        decoder_start_token_id=0, pad_token_id=0, eos_token_id=1, **config,
    )  # fmt: skip


@cache
def _inputs(family: str) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    if family == "vit":
        return {"pixel_values": torch.randn(2, 3, 8, 8, generator=generator)}
    ids = torch.randint(3, 30, (2, 6), generator=generator)
    if "t5" in family:
        return {"input_ids": ids, "decoder_input_ids": ids[:, :4].flip(1)}
    return {"input_ids": ids}
