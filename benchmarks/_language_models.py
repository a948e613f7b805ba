"""The model and the prompts that the language-model benchmarks share, saved where a peer's process can read them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

VOCABULARY = 2048


@dataclass(frozen=True)
class Size:
    """A Llama of random weights, and how many prompts of how many tokens it reads."""

    layers: int
    hidden: int
    prompts: int
    tokens: int
    batch: int


def save_model(folder: Path, size: Size) -> None:
    """A Llama of random weights with a tokenizer of as many words, as `from_pretrained` reads them."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=size.hidden,
        intermediate_size=8 * size.hidden // 3,
        num_hidden_layers=size.layers,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=2 * size.tokens,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    special = {"unk_token": "<unk>", "bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>"}
    words = [*special.values(), *(f"w{i}" for i in range(VOCABULARY - len(special)))]
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=core, **special).save_pretrained(folder)


def load_model(folder: Path):
    """What `save_model` saved, ready to run."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, attn_implementation="sdpa").eval()


def prompts(size: Size) -> tuple[torch.Tensor, torch.Tensor]:
    """Clean and corrupted prompts `[prompt, token]`, which differ in one token of the first half."""
    generator = torch.Generator().manual_seed(1)
    clean = torch.randint(4, VOCABULARY, (size.prompts, size.tokens), generator=generator)
    corrupted = clean.clone()
    corrupted[:, size.tokens // 3] = torch.randint(4, VOCABULARY, (size.prompts,), generator=generator)
    return clean, corrupted


def logit_difference(logits: torch.Tensor) -> torch.Tensor:
    """Logit of one word minus that of another at the last position, mean over prompts: what patching is judged by."""
    return (logits[:, -1, 10] - logits[:, -1, 11]).mean()
