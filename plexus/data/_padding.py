"""Rows of tokens as one batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from plexus.errors import ShapeError

__all__ = ["padded"]


def padded(rows: Sequence[Sequence[int]], pad: int = 0, side: Literal["left", "right"] = "right") -> dict[str, Tensor]:
    """Rows of tokens as `input_ids` and `attention_mask`, both int64 `[row, token]`.

    Padded on the right, every token stands at its own position. Padded on the left, as generation wants it, the batch
    holds `position_ids` too: without them learnt positions (GPT-2's) would count the padding when a model is called.

    Raises:
        ShapeError: no rows, or one without a token.

    Examples:
        >>> padded([[5, 6], [7]], side="left")["input_ids"].tolist()
        [[5, 6], [0, 7]]
    """
    if not rows or not all(len(row) for row in rows):
        raise ShapeError("there is no text, or one without a token", given=f"{len(rows)} texts")
    size = max(map(len, rows))
    ids, mask = torch.full((len(rows), size), pad), torch.zeros(len(rows), size, dtype=torch.int64)
    for place, row in enumerate(rows):
        where = slice(size - len(row), None) if side == "left" else slice(len(row))
        ids[place, where], mask[place, where] = torch.tensor(row), 1
    batch = {"input_ids": ids, "attention_mask": mask}
    if side == "left":
        batch["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0)
    return batch
