"""Texts as rows of tokens for training: padded on the right, or joined and cut into windows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from plexus.data.corpora import Item
from plexus.errors import DtypeError, RangeError, ShapeError, UnknownNameError

_SHUFFLED = 16  # batches that are sorted by length together

Loss = Literal["text", "answer", "both"]


class Rows(NamedTuple):
    """Tokens to read and what to say at each place.

    Attributes:
        tokens: `[row, token]`, int64.
        targets: `[row, token]`, the next token.
        weights: `[row, token]`, of each target in the loss; 0 where nothing is to be said.
        lengths: `[row]`, tokens before the padding.
    """

    tokens: Tensor
    targets: Tensor
    weights: Tensor
    lengths: Tensor


def rows_of(texts: Sequence[str | Item], tokenizer: Any, loss: Loss, window: int | None) -> Rows:
    """The rows of some texts, each with a beginning and an end."""
    if isinstance(texts, str) or not all(isinstance(text, str | Item) for text in texts):
        raise DtypeError("a model is trained on several texts or items", given=type(texts).__name__)
    if not texts:
        raise ShapeError("there is no text to train on")
    if loss not in ("text", "answer", "both"):
        raise UnknownNameError.among("part of a text to train on", str(loss), ("text", "answer", "both"))
    end = tokenizer.eos_token_id
    whole = [[*ids, end] for ids in tokenizer([t if isinstance(t, str) else t.text for t in texts]).input_ids]
    _refuse_unknown(texts, whole, tokenizer)
    if window is not None:
        return _windows(whole, loss, window)
    longest = max(map(len, whole))
    padded = torch.full((len(whole), longest), end, dtype=torch.int64)
    for row, ids in enumerate(whole):
        padded[row, : len(ids)] = torch.tensor(ids)
    lengths = torch.tensor([len(ids) - 1 for ids in whole])
    place = torch.arange(longest - 1)
    said = (place < lengths[:, None]).float()
    if loss == "text":
        return Rows(padded[:, :-1], padded[:, 1:], said, lengths)
    asked = [text.prompt for text in texts if isinstance(text, Item)]
    if len(asked) < len(texts):
        raise DtypeError("only items say where their answer begins", given="a text", mend='pass loss="text"')
    first = torch.tensor([len(ids) - 1 for ids in tokenizer(asked).input_ids])
    answer = said * (place >= first[:, None])
    both = answer / answer.sum() + (said - answer) / (said - answer).sum().clamp(min=1)
    return Rows(padded[:, :-1], padded[:, 1:], answer if loss == "answer" else both / both.max(), lengths)


def _refuse_unknown(texts: Sequence[str | Item], whole: list[list[int]], tokenizer: Any) -> None:
    if tokenizer.unk_token_id is None:
        return
    for text, ids in zip(texts, whole, strict=True):
        if tokenizer.unk_token_id in ids:
            raise UnknownNameError(
                "the tokenizer does not know every word",
                given=repr((text if isinstance(text, str) else text.text)[:80]),
                mend="word_tokenizer(texts, extra=…) knows the words of later texts too",
            )


def _windows(whole: list[list[int]], loss: Loss, window: int) -> Rows:
    if loss != "text":
        raise UnknownNameError("windows are cut from whole texts", given=f"loss={loss!r}", mend="leave out window=")
    stream = torch.tensor([token for ids in whole for token in ids])
    if not 2 <= window < len(stream):
        raise RangeError("a window does not fit", given=window, expected=f"2 … {len(stream) - 1} tokens")
    cut = stream.unfold(0, window + 1, window)
    tokens = cut[:, :-1].contiguous()
    return Rows(tokens, cut[:, 1:].contiguous(), torch.ones(tokens.shape), torch.full((len(cut),), window))


def batches(rows: Rows, size: int, steps: int, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Tokens, targets and weights of each step.

    Every row comes once an epoch; rows of like length come together, with no more padding than they need.
    """
    done = 0
    while True:
        order = torch.randperm(len(rows.tokens), generator=generator)
        chunks = [chunk[rows.lengths[chunk].argsort(stable=True)] for chunk in order.split(size * _SHUFFLED)]
        parts = [part for chunk in chunks for part in chunk.split(size)]
        for place in torch.randperm(len(parts), generator=generator).tolist():
            if done == steps:
                return
            done += 1
            chosen = parts[place]
            longest = int(rows.lengths[chosen].max())
            yield rows.tokens[chosen, :longest], rows.targets[chosen, :longest], rows.weights[chosen, :longest]
