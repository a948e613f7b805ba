"""How well a language model predicts texts, and whether a text holds together.

s_i = -log p(w_i | w_1 … w_{i-1})             surprisal of a token, in nats
perplexity = exp(mean of s_i over all tokens of all texts)

repetition  = 1 - different runs of n words / runs of n words     (n = 4)
compression = bytes after zlib / bytes before                     low where a text repeats itself
foreign     = letters of other scripts / letters
"""

from __future__ import annotations

import math
import unicodedata
import zlib
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from plexus.data._padding import padded
from plexus.errors import DtypeError, RangeError, ShapeError, UnsupportedError
from plexus.probe._quiet import quiet

__all__ = ["Coherence", "coherence", "perplexity", "surprisal"]


class Coherence(NamedTuple):
    """Signs that generated text has come apart.

    Attributes:
        repetition: share of runs of four words that repeat an earlier one; 0 in most texts, towards 1 in a loop.
        compression: bytes after zlib over bytes before; about 0.4 to 0.6 in a paragraph, near 0 in a loop.
        foreign: share of letters that belong to another script.

    Examples:
        >>> Coherence(repetition=0.9, compression=0.1, foreign=0.0).repetition
        0.9
    """

    repetition: float
    compression: float
    foreign: float


def coherence(text: str, *, words: int = 4, script: str = "LATIN") -> Coherence:
    """Repetition, compression and foreign letters of a text.

    Args:
        text: what a model wrote. Where there is nothing to measure (no run of words, no letter) it counts as coherent.
        words: length of the runs of words that are compared.
        script: the script of the text, as Unicode names it: "LATIN", "CYRILLIC", "CJK" …

    Raises:
        DtypeError: it is no text.
        RangeError: runs of less than one word.

    Examples:
        >>> coherence("quick brown foxes jump")
        Coherence(repetition=0.0, compression=1.0, foreign=0.0)
        >>> loop = coherence("so it goes on and " * 50)
        >>> loop.repetition > 0.9, loop.compression < 0.1
        (True, True)
        >>> coherence("yes да").foreign
        0.4
    """
    if not isinstance(text, str):
        raise DtypeError("coherence is that of a text", given=type(text).__name__, expected="a str")
    if words < 1:
        raise RangeError("runs of words have at least one", given=words)
    split = text.split()
    runs = [tuple(split[i : i + words]) for i in range(len(split) - words + 1)]
    raw = text.encode()
    packed = len(zlib.compress(raw, 9)) - len(zlib.compress(b"", 9))  # less what an empty text costs
    letters = [letter for letter in text if letter.isalpha()]
    other = sum(_script(letter) != script for letter in letters)
    return Coherence(
        repetition=1 - len(set(runs)) / len(runs) if runs else 0.0,
        compression=min(1.0, packed / len(raw)) if raw else 1.0,
        foreign=other / len(letters) if letters else 0.0,
    )


@lru_cache(maxsize=65536)
def _script(letter: str) -> str:
    return unicodedata.name(letter, "UNKNOWN").split()[0]


def surprisal(
    model: nn.Module,
    tokenizer: Any,
    texts: Sequence[str],
    *,
    prompts: Sequence[str] | None = None,
    batch: int = 16,
    longest: int | None = None,
) -> list[Tensor]:
    """How surprised a causal language model is by each token of each text, under whatever edits are on.

    Texts are padded on the right, so that positions are those of the texts alone. The model is as before afterwards.

    Args:
        model: a causal language model in the style of Hugging Face: `model(input_ids=, attention_mask=).logits`.
        tokenizer: gives `input_ids` for texts; it needs no padding token.
        texts: what is predicted.
        prompts: one per text, to be read before it; only the text counts.
        batch: texts per pass.
        longest: tokens after which a text is cut off.

    Returns:
        For each text the surprisal of its tokens in nats, float32 `[token]`; a first token without anything before it
        has none.

    Raises:
        ShapeError: no texts, or prompts of another number.
        DtypeError: a single text where several are meant.
        UnsupportedError: the model gives no logits.

    Examples:
        >>> from transformers import GPT2Config, GPT2LMHeadModel
        >>> from plexus.probe._language import Letters
        >>> model = GPT2LMHeadModel(GPT2Config(vocab_size=128, n_embd=16, n_layer=1, n_head=2))
        >>> [len(text) for text in surprisal(model, Letters(), ["a cat", "dogs bark"])]
        [4, 8]
    """
    pairs = _tokens(tokenizer, texts, prompts, longest)
    if batch < 1:
        raise RangeError("a batch holds at least one text", given=batch)
    order = sorted(range(len(pairs)), key=lambda i: len(pairs[i][0]))  # texts of one length lie together
    found: dict[int, Tensor] = {}
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    with quiet(model):
        for start in range(0, len(order), batch):
            rows = order[start : start + batch]
            known = [pairs[row][0] or [0] for row in rows]  # a text without a token has nothing to be predicted
            ids, mask = padded(known).values()
            logits = _logits(model, ids.to(device), mask.to(device)) if ids.shape[1] > 1 else None
            for place, row in enumerate(rows):
                tokens, first = pairs[row]
                if len(tokens) < 2 or logits is None:
                    found[row] = torch.zeros(0)
                    continue
                scores = logits[place, first - 1 : len(tokens) - 1].float().log_softmax(-1)
                wanted = ids[place, first : len(tokens), None].to(scores.device)
                found[row] = -scores.gather(-1, wanted).squeeze(-1).cpu()
    return [found[row] for row in range(len(pairs))]


def perplexity(
    model: nn.Module,
    tokenizer: Any,
    texts: Sequence[str],
    *,
    prompts: Sequence[str] | None = None,
    batch: int = 16,
    longest: int | None = None,
) -> float:
    """Perplexity of texts under a causal language model: `exp` of the mean surprisal over all their tokens.

    Args:
        model, tokenizer, texts, prompts, batch, longest: as in `surprisal`.

    Returns:
        At least 1; the size of the vocabulary for a model that knows nothing.

    Raises:
        ShapeError: besides those of `surprisal`, no text has a token to be predicted.

    Examples:
        >>> from transformers import GPT2Config, GPT2LMHeadModel
        >>> from plexus.probe._language import Letters
        >>> model = GPT2LMHeadModel(GPT2Config(vocab_size=128, n_embd=16, n_layer=1, n_head=2))
        >>> _ = model.lm_head.weight.data.zero_()  # every letter is as likely as any other
        >>> round(perplexity(model, Letters(), ["a cat", "dogs bark"]), 3)
        128.0
    """
    values = torch.cat(surprisal(model, tokenizer, texts, prompts=prompts, batch=batch, longest=longest)).double()
    if not len(values):
        raise ShapeError("no text has a token to be predicted", given=f"{len(texts)} texts", expected="two tokens")
    return math.exp(min(float(values.mean()), 700.0))


class Letters:
    """The plainest tokenizer: one token per letter, its code point below 128. For examples and tests."""

    def __call__(self, texts: Sequence[str], **options: Any) -> dict[str, list[list[int]]]:
        return {"input_ids": [[min(ord(letter), 127) for letter in text] for text in texts]}


def _tokens(
    tokenizer: Any, texts: Sequence[str], prompts: Sequence[str] | None, longest: int | None
) -> list[tuple[list[int], int]]:
    """For each text its tokens, a prompt's before them, and the first one that is predicted."""
    for given in (texts, prompts):
        if isinstance(given, str):
            raise DtypeError("texts come as a list", given="one str", expected="[text]")
    texts = list(texts)
    if not texts:
        raise ShapeError("there are no texts")
    if prompts is None:
        pairs = [(list(tokens), 1) for tokens in tokenizer(texts)["input_ids"]]
    else:
        if len(prompts) != len(texts):
            raise ShapeError("there is one prompt for each text", given=len(prompts), expected=len(texts))
        before = tokenizer(list(prompts))["input_ids"]
        after = tokenizer(texts, add_special_tokens=False)["input_ids"]
        pairs = [([*a, *b], max(1, len(a))) for a, b in zip(before, after, strict=True)]
    return [(tokens[:longest], first) for tokens, first in pairs]


def _logits(model: nn.Module, ids: Tensor, mask: Tensor) -> Tensor:
    output = model(input_ids=ids, attention_mask=mask)
    logits = getattr(output, "logits", output)
    if not isinstance(logits, Tensor) or logits.dim() != 3 or logits.shape[:2] != ids.shape:
        raise UnsupportedError(
            "perplexity needs the logits of a causal language model",
            given=f"an output {type(output).__name__}",
            expected="logits [batch, token, vocabulary]",
        )
    return logits
