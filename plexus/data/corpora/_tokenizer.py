"""A real Hugging Face tokenizer whose tokens are words."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from plexus.data._padding import padded
from plexus.data.corpora._item import Item
from plexus.errors import DtypeError, RangeError, ShapeError, require

PAD, BEGIN, END, UNKNOWN = "<pad>", "<s>", "</s>", "<unk>"


def word_tokenizer(texts: Iterable[str | Item], *, extra: Iterable[str] = ()) -> Any:
    """A fast tokenizer with one token per word of the texts, in the order in which the words first appear.

    Words are what stands between white space. Every text begins with `<s>`; `</s>` is known and left to the caller.
    Padding is on the left, as generation wants it. Token 0 is `<pad>`, 1 `<s>`, 2 `</s>`, 3 `<unk>`.

    Args:
        texts: what the vocabulary is read from; of an item, prompt and answer.
        extra: further words to know, for a text that is learnt later.

    Returns:
        A `transformers.PreTrainedTokenizerFast`, which `save_pretrained` and `from_pretrained` keep as any other.

    Raises:
        ShapeError: the texts hold no word.
        DtypeError: one text in the place of several.
        MissingExtraError: without the extra `llm`.

    Examples:
        >>> tokenizer = word_tokenizer(["the cat sat", "the dog"])
        >>> tokenizer(["the dog", "sat"], padding=True).input_ids
        [[1, 4, 7], [0, 1, 6]]
        >>> tokenizer.decode([4, 7])
        'the dog'
    """
    if isinstance(texts, str) or isinstance(extra, str):
        raise DtypeError("a vocabulary is read from several texts", given="one text", mend="pass [text]")
    tokenizers = require("tokenizers", "llm", purpose="tokenizers")
    vocabulary = {word: index for index, word in enumerate((PAD, BEGIN, END, UNKNOWN))}
    for text in [*texts, *extra]:
        for word in (text.text if isinstance(text, Item) else text).split():
            vocabulary.setdefault(word, len(vocabulary))
    if len(vocabulary) == 4:
        raise ShapeError("the texts hold no word", expected="at least one")
    inner = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token=UNKNOWN))
    inner.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    return hugging_face(inner)


def hugging_face(inner: Any) -> Any:
    """A tokenizer of `tokenizers` as transformers takes it: `<s>` before every text, padding on the left."""
    tokenizers = require("tokenizers", "llm", purpose="tokenizers")
    transformers = require("transformers", "llm", purpose="tokenizers")
    inner.post_processor = tokenizers.processors.TemplateProcessing(
        single=f"{BEGIN} $A", pair=f"{BEGIN} $A {END} $B", special_tokens=[(BEGIN, 1), (END, 2)]
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token=PAD,
        bos_token=BEGIN,
        eos_token=END,
        unk_token=UNKNOWN,
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
    )


def batches(
    prompts: Sequence[str | Item], tokenizer: Any, size: int = 256, *, whole: bool = False
) -> list[dict[str, Any]]:
    """Prompts as `probe.record` and `model.generate` take them, padded on the left.

    Each batch holds `input_ids`, `attention_mask` and `position_ids`, all `[sample, token]`.

    Args:
        prompts: texts, or items, of which the prompt is taken.
        tokenizer: of the model.
        size: samples a batch.
        whole: take prompt and answer of items.

    Raises:
        ShapeError: no prompts.
        RangeError: a size below one.

    Examples:
        >>> tokenizer = word_tokenizer(["one two", "three"])
        >>> batches(["one two", "three"], tokenizer)[0]["input_ids"].tolist()
        [[1, 4, 5], [0, 1, 6]]
    """
    if size < 1:
        raise RangeError("a batch holds at least one sample", given=size)
    texts = [p if isinstance(p, str) else p.text if whole else p.prompt for p in prompts]
    if not texts:
        raise ShapeError("there are no prompts")
    rows = tokenizer(texts)["input_ids"]
    return [padded(rows[at : at + size], tokenizer.pad_token_id or 0, "left") for at in range(0, len(rows), size)]
