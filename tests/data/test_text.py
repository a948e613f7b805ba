"""Text as symbols and windows."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from plexus.data import ALPHABET, decode, descriptions, encode, windows
from plexus.errors import RangeError, UnknownNameError


@given(st.text(alphabet=ALPHABET))
def test_round_trip(text: str) -> None:
    assert decode(encode(text)) == text


@given(st.text())
def test_any_text_is_taken(text: str) -> None:
    assert all(symbol in ALPHABET for symbol in decode(encode(text)))


@given(n=st.integers(2, 60), length=st.integers(1, 20), stride=st.integers(1, 9))
def test_windows_are_the_text_and_its_next_symbol(n: int, length: int, stride: int) -> None:
    symbols = torch.arange(n)
    if n <= length:
        with pytest.raises(RangeError):
            windows(symbols, length, stride)
        return
    x, y = windows(symbols, length, stride)
    assert torch.equal(y, x + 1)
    assert x[:, 0].tolist() == list(range(0, n - length, stride))


def test_descriptions_are_english() -> None:
    text = descriptions()
    assert len(encode(text)) > 10_000
    for title in ("iris plants", "wine recognition", "breast cancer", "diabetes", "linnerrud", "handwritten digits"):
        assert title in text.lower()


def test_unknown_symbol() -> None:
    with pytest.raises(UnknownNameError, match="alphabet"):
        decode(torch.tensor([999]))
