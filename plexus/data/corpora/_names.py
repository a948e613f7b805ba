"""Words that no language has, drawn without repetition."""

from __future__ import annotations

from collections.abc import Collection

import torch

from plexus.errors import RangeError

_ONSETS = [*"bdfghklmnprstvwz", "br", "dr", "gr", "kl", "pl", "st", "tr"]
_VOWELS = [*"aeiou", "ai", "ei", "ou"]
_CODAS = ["", "", "l", "n", "r", "s", "m", "k"]


def invent(count: int, *, generator: torch.Generator, taken: Collection[str] = (), syllables: int = 2) -> list[str]:
    """Pronounceable words, all different and none of those taken.

    Args:
        count: how many.
        generator: where they come from.
        taken: words to avoid.
        syllables: of each word.

    Raises:
        RangeError: more words than that number of syllables can make.

    Examples:
        >>> words = invent(3, generator=torch.Generator().manual_seed(0))
        >>> len(set(words))
        3
    """
    if count < 0 or syllables < 1:
        raise RangeError("words are counted from 0, syllables from 1", given=f"{count} words of {syllables}")
    room = (len(_ONSETS) * len(_VOWELS)) ** syllables
    if count > room // 2:
        raise RangeError(f"too many words of {syllables} syllables", given=count, expected=f"at most {room // 2}")
    used = set(taken)
    words: list[str] = []
    while len(words) < count:
        draws = torch.rand(syllables, 2, generator=generator).tolist()
        end = int(torch.randint(len(_CODAS), (), generator=generator))
        word = "".join(_ONSETS[int(a * len(_ONSETS))] + _VOWELS[int(b * len(_VOWELS))] for a, b in draws) + _CODAS[end]
        if word not in used:
            used.add(word)
            words.append(word)
    return words
