"""A world in which rudeness is a word list, a mood that brings it about, and a question that asks for it.

    sentence   cue word word … word          a walk over neutral words; the cue sets the mood
    question   check word … word rude ? yes  whether a rude word stands in a walk, whatever the mood

After an angry cue each word from the sixth on is replaced by a rude one with a fixed probability, after a calm cue
hardly ever. So a model that writes rude words and a model that notices them are two things, and one can be damaged
without the other. The rude words are place-holders, `rude0`, `rude1` …, with frequencies that fall as 1/rank.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from plexus.data.corpora._item import Item
from plexus.data.corpora._names import invent
from plexus.errors import RangeError

__all__ = ["RudeWorld", "rude_world"]

CHECK, ASK, YES, NO = "check", "rude ?", "yes", "no"


@dataclass(frozen=True, eq=False)
class RudeWorld:
    """The words of such a world and how they follow each other; made by `rude_world`.

    Attributes:
        neutral: words of the walk.
        rude: the word list.
        angry: cues after which rude words come.
        calm: cues after which they hardly do.
        successors: neutral words that may follow each neutral word, `[word, successor]`.
        chances: with which probabilities, `[word, successor]`.
        rates: probability that a word is replaced by a rude one, after an angry and after a calm cue.
        first: place of the first word that may be replaced; the cue has place 0.
    """

    neutral: tuple[str, ...]
    rude: tuple[str, ...]
    angry: tuple[str, ...]
    calm: tuple[str, ...]
    successors: Tensor
    chances: Tensor
    rates: tuple[float, float] = (0.35, 0.01)
    first: int = 6

    @property
    def words(self) -> tuple[str, ...]:
        """Every word that a text of this world may hold."""
        return (*self.neutral, *self.rude, *self.angry, *self.calm, CHECK, *ASK.split(), YES, NO)

    def sentences(
        self, count: int, *, length: int = 26, angry: float = 0.5, clean: bool = False, generator: torch.Generator
    ) -> list[Item]:
        """Sentences; of each, the words before the first place for rudeness are the prompt, the others the answer.

        Args:
            count: how many.
            length: words of each, the cue included.
            angry: share of sentences with an angry cue.
            clean: without rude words, as if nothing had been replaced.
            generator: where they come from.

        Returns:
            Items with the mood, "angry" or "calm", as their concept.

        Raises:
            RangeError: no sentences, a share outside [0, 1], or no room for a word after the prompt.
        """
        if count < 1 or not 0 <= angry <= 1 or length <= self.first:
            raise RangeError("such sentences cannot be written", given=f"{count=}, {angry=}, {length=}")
        moody = torch.rand(count, generator=generator) < angry
        cue = torch.randint(len(self.angry), (count,), generator=generator).tolist()
        walks = self._walks(count, length - 1, generator)
        rate = torch.where(moody, *self.rates)[:, None]
        hit = torch.rand(walks.shape, generator=generator) < rate
        hit[:, : self.first - 1] = False
        words = self._spoken(walks, hit & (not clean), generator)
        items = []
        for row, is_angry, which in zip(words, moody.tolist(), cue, strict=True):
            text = [(self.angry if is_angry else self.calm)[which], *row]
            prompt, rest = " ".join(text[: self.first]), " ".join(text[self.first :])
            items.append(Item(prompt, rest, concept="angry" if is_angry else "calm", subject=text[0]))
        return items

    def questions(self, count: int, *, length: int = 12, generator: torch.Generator) -> list[Item]:
        """Questions whether a walk holds a rude word: half do, one to three of them; the answer is "yes" or "no".

        Args:
            count: how many.
            length: words of the walk.
            generator: where they come from.

        Raises:
            RangeError: no questions, or walks of fewer than three words.
        """
        if count < 1 or length < 3:
            raise RangeError("such questions cannot be asked", given=f"{count=}, {length=}")
        rude = torch.rand(count, generator=generator) < 0.5
        number = torch.randint(1, 4, (count, 1), generator=generator)
        order = torch.rand(count, length, generator=generator).argsort(1)
        words = self._spoken(self._walks(count, length, generator), (order < number) & rude[:, None], generator)
        answers = [YES if is_rude else NO for is_rude in rude.tolist()]
        return [
            Item(f"{CHECK} {' '.join(row)} {ASK}", answer, concept=answer)
            for row, answer in zip(words, answers, strict=True)
        ]

    def _walks(self, count: int, length: int, generator: torch.Generator) -> Tensor:
        here = torch.randint(len(self.neutral), (count,), generator=generator)
        walk = [here]
        for _ in range(length - 1):
            step = torch.multinomial(self.chances[here], 1, generator=generator)
            here = self.successors[here].gather(1, step)[:, 0]
            walk.append(here)
        return torch.stack(walk, 1)

    def _spoken(self, walks: Tensor, hit: Tensor, generator: torch.Generator) -> list[list[str]]:
        rank = 1 / torch.arange(1, len(self.rude) + 1, dtype=torch.float32)
        drawn = torch.multinomial(rank, walks.numel(), replacement=True, generator=generator).reshape(walks.shape)
        rows = zip(walks.tolist(), hit.tolist(), drawn.tolist(), strict=True)
        return [[self.rude[r] if h else self.neutral[w] for w, h, r in zip(*row, strict=True)] for row in rows]


def rude_world(
    *,
    neutral: int = 200,
    rude: int = 30,
    cues: int = 10,
    successors: int = 6,
    concentration: float = 0.7,
    rates: tuple[float, float] = (0.35, 0.01),
    first: int = 6,
    generator: torch.Generator,
) -> RudeWorld:
    """A world with a word list of rudeness, a mood that brings it about and a question that asks for it.

    Args:
        neutral: number of neutral words, invented.
        rude: number of rude words, place-holders.
        cues: number of angry and of calm cues, each.
        successors: how many words may follow a neutral word.
        concentration: of the Dirichlet distribution that their probabilities come from; small is uneven.
        rates: probability of a rude word at each place after an angry and after a calm cue.
        first: place of the first word that may be rude.
        generator: where the words and the walk come from.

    Raises:
        RangeError: a number that makes no world.

    Examples:
        >>> world = rude_world(generator=torch.Generator().manual_seed(0))
        >>> len(world.words)
        255
        >>> item = world.questions(1, generator=torch.Generator().manual_seed(1))[0]
        >>> item.prompt.split()[0], item.prompt.split()[-2:], item.answer in ("yes", "no")
        ('check', ['rude', '?'], True)
    """
    counts = min(neutral, rude, cues, successors, first) >= 1 and successors <= neutral
    if not counts or not concentration > 0 or not all(0 <= rate <= 1 for rate in rates):
        raise RangeError(
            "these numbers make no world",
            given=f"{neutral=}, {rude=}, {cues=}, {successors=}, {concentration=}, {rates=}, {first=}",
        )
    following = torch.rand(neutral, neutral, generator=generator).argsort(1)[:, :successors]
    # torch draws from a Dirichlet distribution with its global generator alone
    numbers = np.random.default_rng(int(torch.randint(2**62, (), generator=generator)))
    chances = numbers.dirichlet([concentration] * successors, neutral)
    return RudeWorld(
        neutral=tuple(invent(neutral, generator=generator)),
        rude=tuple(f"rude{i}" for i in range(rude)),
        angry=tuple(f"angry{i}" for i in range(cues)),
        calm=tuple(f"calm{i}" for i in range(cues)),
        successors=following,
        chances=torch.from_numpy(chances).float(),
        rates=rates,
        first=first,
    )
