"""Languages made from a language: every word has another name, and sentences their own order of words.

    word     w → π(w),  π one-to-one; words of `keep` and words that π does not know stay
    order    "same", "reverse", "swap" (words 2k and 2k+1 change places), "verb-last" (the second word goes to the end);
             a phrase of `together` moves as one word

A share of the vocabulary can be that of another cipher: the two are related languages.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, TypeVar

import torch

from plexus.data.corpora._names import invent
from plexus.errors import DtypeError, RangeError, ShapeError, UnknownNameError

Order = Literal["same", "reverse", "swap", "verb-last"]
_T = TypeVar("_T")
ORDERS = ("same", "reverse", "swap", "verb-last")


@dataclass(frozen=True)
class Cipher:
    """A language whose words stand for those of another; made by `cipher`.

    Attributes:
        name: of the language.
        words: each word of the source and its name here; one-to-one.
        order: of the words of a sentence.
        together: phrases, such as names of two words, that the order takes as one word: their words stay side by side
            and in place among themselves. No text may hold one by chance, or it cannot be undone.

    Examples:
        >>> other = Cipher("other", {"the": "da", "cat": "mi", "sleeps": "ro"}, "reverse")
        >>> other("the cat sleeps"), other.undo("ro mi da")
        ('ro mi da', 'the cat sleeps')
        >>> Cipher("other", {"sleeps": "ro"}, "reverse", together={"Ada Lovelace"})("Ada Lovelace sleeps")
        'ro Ada Lovelace'
    """

    name: str
    words: Mapping[str, str]
    order: Order = "same"
    together: Collection[str] = frozenset()

    def __post_init__(self) -> None:
        if len(set(self.words.values())) != len(self.words):
            raise ShapeError(f"two words of {self.name!r} are the same", expected="one name for each word")
        if self.order not in ORDERS:
            raise UnknownNameError.among("order of words", str(self.order), ORDERS)

    def __call__(self, text: str) -> str:
        """A text in this language; words that it has no name for stay as they are."""
        pieces = _ordered(_pieces(text.split(), self.together), self.order)
        return " ".join(self.words.get(word, word) for piece in pieces for word in piece)

    def undo(self, text: str) -> str:
        """The source of a text in this language."""
        back = {name: word for word, name in self.words.items()}
        pieces = _pieces([back.get(word, word) for word in text.split()], self.together)
        places = _ordered(list(range(len(pieces))), self.order)
        source = sorted(zip(places, pieces, strict=True), key=lambda pair: pair[0])
        return " ".join(word for _, piece in source for word in piece)


def _pieces(words: list[str], together: Collection[str]) -> list[list[str]]:
    """Words one by one, and phrases whole, the longest first."""
    if not together:
        return [[word] for word in words]
    longest = max(len(phrase.split()) for phrase in together)
    found, start = [], 0
    while start < len(words):
        lengths = range(min(longest, len(words) - start), 1, -1)
        length = next((n for n in lengths if " ".join(words[start : start + n]) in together), 1)
        found.append(words[start : start + length])
        start += length
    return found


def _ordered(words: list[_T], order: str) -> list[_T]:
    if order == "reverse":
        return words[::-1]
    if order == "swap":
        return [words[k ^ 1] if k ^ 1 < len(words) else words[k] for k in range(len(words))]
    if order == "verb-last" and len(words) > 2:
        return [words[0], *words[2:], words[1]]
    return words


def cipher(
    texts: Iterable[str],
    name: str,
    *,
    order: Order = "same",
    together: Collection[str] = (),
    keep: Collection[str] = (),
    related: Cipher | None = None,
    share: float = 0.0,
    avoid: Collection[str] = (),
    generator: torch.Generator,
) -> Cipher:
    """Invent a language over the words of some texts.

    Args:
        texts: the source; every word in them gets a name.
        name: of the language.
        order: of words.
        together: phrases that move as one word where the order changes, see `Cipher`.
        keep: words that stay as they are (names, punctuation, numbers).
        related: a language to share words with.
        share: of the vocabulary that is named as in `related`, rounded to whole words; the words are drawn.
        avoid: further words that must not come up as names, for example those of a third language.
        generator: where names come from.

    Raises:
        RangeError: a share outside [0, 1].
        ShapeError: a share without a language to share with, or one that does not know enough of the words.

    Examples:
        >>> draw = torch.Generator().manual_seed(0)
        >>> one = cipher(["the cat saw the dog ."], "one", keep=["."], generator=draw)
        >>> two = cipher(["the cat saw the dog ."], "two", keep=["."], related=one, share=0.5, generator=draw)
        >>> sum(one.words[word] == two.words[word] for word in one.words), len(one.words)
        (2, 4)
        >>> one("the cat .").split()[-1]
        '.'
    """
    if isinstance(texts, str) or isinstance(together, str):
        raise DtypeError("a language is invented over several texts", given="one text", mend="pass [text]")
    if not 0 <= share <= 1:
        raise RangeError("a share of the vocabulary lies in [0, 1]", given=share)
    if share and related is None:
        raise ShapeError("there is no language to share words with", given=f"share {share}", mend="pass related=")
    source = [word for word in dict.fromkeys(word for text in texts for word in text.split()) if word not in keep]
    common: dict[str, str] = {}
    taken = {*source, *keep, *avoid}
    if related is not None:
        count = round(share * len(source))
        candidates = [word for word in source if word in related.words]
        if len(candidates) < count:
            raise ShapeError(
                f"{related.name!r} does not know enough of the words",
                given=len(candidates),
                expected=f"at least {count}",
            )
        drawn = torch.randperm(len(candidates), generator=generator)[:count].tolist()
        common = {candidates[index]: related.words[candidates[index]] for index in drawn}
        taken |= set(related.words.values())
    fresh = iter(invent(len(source) - len(common), generator=generator, taken=taken, syllables=3))
    return Cipher(name, {word: common.get(word) or next(fresh) for word in source}, order, frozenset(together))
