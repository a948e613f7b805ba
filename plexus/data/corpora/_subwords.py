"""A real Hugging Face tokenizer whose tokens are frequent pieces of words, learnt from the text."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from plexus.data.corpora._tokenizer import BEGIN, END, PAD, UNKNOWN, hugging_face
from plexus.errors import DtypeError, RangeError, require

__all__ = ["subword_tokenizer"]


def subword_tokenizer(texts: Iterable[str], size: int, *, whole: Iterable[str] = ()) -> Any:
    """A fast tokenizer of byte pairs merged by how often they stand together.

    Every text begins with `<s>`. Padding is on the left. The first four tokens are those of `word_tokenizer`.

    Args:
        texts: what the pieces are learnt from.
        size: of the vocabulary; the 260 tokens that there are before any merge are the least.
        whole: words that are one token each where they stand alone, the space before them included.

    Returns:
        A `transformers.PreTrainedTokenizerFast`.

    Raises:
        RangeError: a vocabulary without room for merges.
        DtypeError: one text in the place of several.
        MissingExtraError: without the extra `llm`.

    Examples:
        >>> tokenizer = subword_tokenizer(["thou art a knave, and knavish too"] * 4, 280, whole=["knave"])
        >>> tokens = tokenizer("a knave is knavish").input_ids
        >>> len([token for token in tokens if token == tokenizer.convert_tokens_to_ids("knave")])
        1
        >>> tokenizer.decode(tokens, skip_special_tokens=True)
        'a knave is knavish'
    """
    if isinstance(texts, str) or isinstance(whole, str):
        raise DtypeError("a vocabulary is learnt from several texts", given="one text", mend="pass [text]")
    whole = list(dict.fromkeys(whole))
    if size < 261 + len(whole):
        raise RangeError("a vocabulary of pieces needs room for merges", given=size, expected=f"{261 + len(whole)}")
    tokenizers = require("tokenizers", "llm", purpose="tokenizers")
    inner = tokenizers.Tokenizer(tokenizers.models.BPE(unk_token=UNKNOWN))
    inner.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    spaced = [tokenizers.decoders.Replace(tokenizers.Regex(f"^{re.escape(word)}$"), f"Ġ{word}") for word in whole]
    inner.decoder = tokenizers.decoders.Sequence([*spaced, tokenizers.decoders.ByteLevel()])
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=size - len(whole),
        special_tokens=[PAD, BEGIN, END, UNKNOWN],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    inner.train_from_iterator(texts, trainer)
    inner.add_tokens([tokenizers.AddedToken(word, single_word=True, lstrip=True, normalized=False) for word in whole])
    return hugging_face(inner)
