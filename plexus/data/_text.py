"""Text as windows of symbols: some that comes with an installed dependency, and Shakespeare where a folder holds it."""

from __future__ import annotations

import os

import torch
from torch import Tensor

from plexus.data._images import data_folder
from plexus.errors import FormatError, RangeError, UnknownNameError, require

ALPHABET = "\n abcdefghijklmnopqrstuvwxyz0123456789.,:;-()'\"/=%"
"""Symbols of `encode`; capital letters become small ones, anything else is left out."""

_TABLES = ("iris", "wine", "breast_cancer", "diabetes", "linnerud", "digits")


def descriptions() -> str:
    """The English descriptions of scikit-learn's data sets, about 17,000 characters (extra `lab`)."""
    datasets = require("sklearn.datasets", "lab", purpose="the text")
    return "\n".join(str(getattr(datasets, f"load_{name}")().DESCR) for name in _TABLES)


def encode(text: str) -> Tensor:
    """Symbols `[time]`, int64, as places in `ALPHABET`.

    Examples:
        >>> encode("Ab!c").tolist()
        [2, 3, 4]
    """
    places = {symbol: index for index, symbol in enumerate(ALPHABET)}
    return torch.tensor([places[symbol] for symbol in text.lower() if symbol in places], dtype=torch.int64)


def decode(symbols: Tensor) -> str:
    """The text of symbols.

    Examples:
        >>> decode(encode("one 2"))
        'one 2'
    """
    try:
        return "".join(ALPHABET[index] for index in symbols.tolist())
    except IndexError as error:
        raise UnknownNameError("a symbol outside the alphabet", given=int(symbols.max())) from error


def windows(symbols: Tensor, length: int, stride: int | None = None) -> tuple[Tensor, Tensor]:
    """Inputs and next symbols, each `[window, length]`, of windows that start every `stride` (default: `length`).

    Examples:
        >>> x, y = windows(torch.arange(7), 3)
        >>> x.tolist(), y.tolist()
        ([[0, 1, 2], [3, 4, 5]], [[1, 2, 3], [4, 5, 6]])
    """
    if length < 1 or (stride is not None and stride < 1) or len(symbols) <= length:
        raise RangeError("a window does not fit", given=f"{len(symbols)} symbols, length {length}, stride {stride}")
    cut = symbols.unfold(0, length + 1, stride or length)
    return cut[:, :-1].contiguous(), cut[:, 1:].contiguous()


def shakespeare(root: str | os.PathLike[str] | None = None) -> str:
    """The 1.1 million characters of Shakespeare that small language models are often compared on.

    Args:
        root: the folder that holds `tinyshakespeare.txt` (default: the environment's `PLEXUS_DATA`).

    Raises:
        FormatError: the file is not there.
    """
    folder = data_folder(root)
    path = None if folder is None else folder / "tinyshakespeare.txt"
    if path is None or not path.is_file():
        raise FormatError(
            "tinyshakespeare.txt is not here",
            given=str(folder) if folder else "no folder",
            mend="point PLEXUS_DATA (or root=) at a folder with input.txt of "
            "https://github.com/karpathy/char-rnn (data/tinyshakespeare), saved under that name",
        )
    return path.read_text(encoding="utf-8")
