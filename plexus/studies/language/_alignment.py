"""Alignment of languages by preference: the answer that agrees with the one in the first language is the better one."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from plexus.data.corpora import Item
from plexus.lab.models._rows import Rows, batches, rows_of
from plexus.learn.objectives import direct_preference, sequence_log_prob


class Pair(NamedTuple):
    """A prompt with a better and a worse answer."""

    prompt: str
    chosen: str
    rejected: str


def pairs(
    model: Any, tokenizer: Any, asked: Sequence[Item], english: Sequence[str], others: Sequence[Sequence[str]], *,
    generator: torch.Generator,
) -> list[Pair]:  # fmt: skip
    """Preferences about questions in other languages.

    Args:
        model: whose answers they are about.
        tokenizer: of the model.
        asked: questions.
        english: the model's answer to each in the first language, which is preferred.
        others: of each question, answers that it could be confused with.
        generator: where a worse answer is drawn from when the model's own agrees with the better one.
    """
    own = answered(model, tokenizer, [item.prompt for item in asked])
    made = []
    for item, good, said, around in zip(asked, english, own, others, strict=True):
        wrong = [answer for answer in around if answer != good]
        drawn = wrong[int(torch.randint(len(wrong), (), generator=generator))]
        made.append(Pair(item.prompt, good, said if said in wrong else drawn))
    return made


def answered(model: Any, tokenizer: Any, prompts: Sequence[str], size: int = 256) -> list[str]:
    """The most likely next word after each prompt."""
    said: list[str] = []
    for start in range(0, len(prompts), size):
        given = tokenizer(list(prompts[start : start + size]), padding=True, return_tensors="pt")
        places = (given["attention_mask"].cumsum(1) - 1).clamp(min=0)
        with torch.no_grad():
            logits = model(**given, position_ids=places, use_cache=False).logits[:, -1]
        said += tokenizer.convert_ids_to_tokens(logits.argmax(-1).tolist())
    return said


@dataclass(frozen=True)
class Alignment:
    """How a model is aligned: parts of the loss, and the steps.

    Attributes:
        preference: weight of the preference loss (DPO).
        imitation: weight of the loss on the better answers (SFT), in nats per answer.
        beta: of the preference loss.
        steps, batch, rate: of the optimiser; as many texts of the first training come along in every step, so that what
            was learnt there is kept.
    """

    preference: float = 1.0
    imitation: float = 0.0
    beta: float = 0.1
    steps: int = 60
    batch: int = 24
    rate: float = 1e-3


def aligned(
    model: Any, tokenizer: Any, known: Sequence[Pair], replay: Rows | Sequence[str], how: Alignment, *, seed: int
) -> Any:
    """A copy of the model that has learnt from preferences without forgetting its texts, which may be rows already."""
    learner = copy.deepcopy(model)
    good = _rows(tokenizer, known, [pair.chosen for pair in known])
    bad = _rows(tokenizer, known, [pair.rejected for pair in known])
    with torch.no_grad():
        before = [torch.cat([_log_prob(model, part, rows) for rows in _split(len(known))]) for part in (good, bad)]
    numbers = torch.Generator().manual_seed(seed)
    texts = replay if isinstance(replay, Rows) else rows_of(replay, tokenizer, "text", None)
    optimiser = torch.optim.AdamW(learner.parameters(), lr=how.rate, weight_decay=0.0)
    learner.train()
    for tokens, targets, weights in batches(texts, how.batch, how.steps, numbers):
        logits = learner(input_ids=tokens, use_cache=False).logits
        each = nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
        loss = each @ (weights / weights.sum()).flatten()
        rows = torch.randint(len(known), (how.batch,), generator=numbers)
        if how.preference or how.imitation:
            both = [torch.cat([one[rows], other[rows]]) for one, other in zip(good, bad, strict=True)]
            better, worse = _log_prob(learner, both, torch.arange(2 * len(rows))).chunk(2)
            preferred = direct_preference(better, worse, before[0][rows], before[1][rows], how.beta)
            loss = loss + how.preference * preferred - how.imitation * better.mean()
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(learner.parameters(), 1.0)
        optimiser.step()
    return learner.eval()


def _rows(tokenizer: Any, known: Sequence[Pair], answers: Sequence[str]) -> list[Tensor]:
    """Tokens padded on the right, and which of them are the answer's, `[row, token]` each."""
    whole = tokenizer([f"{pair.prompt} {answer}" for pair, answer in zip(known, answers, strict=True)]).input_ids
    begun = [len(ids) for ids in tokenizer([pair.prompt for pair in known]).input_ids]
    longest = max(map(len, whole))
    tokens = torch.full((len(whole), longest), tokenizer.pad_token_id)
    counted = torch.zeros(len(whole), longest, dtype=torch.bool)
    for row, (ids, start) in enumerate(zip(whole, begun, strict=True)):
        tokens[row, : len(ids)] = torch.tensor(ids)
        counted[row, start : len(ids)] = True
    return [tokens, counted]


def _log_prob(model: Any, part: Sequence[Tensor], rows: Tensor) -> Tensor:
    tokens, counted = part[0][rows], part[1][rows]
    # the padding is on the right, where causal attention never looks
    return sequence_log_prob(model(input_ids=tokens, use_cache=False).logits, tokens, counted)


def _split(count: int, size: int = 256) -> tuple[Tensor, ...]:
    return torch.arange(count).split(size)
