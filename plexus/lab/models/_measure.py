"""What a language model knows: its next word after a prompt, and the probability of an answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from plexus.data.corpora import Item, batches
from plexus.errors import DtypeError, ShapeError
from plexus.probe._quiet import quiet


class Recall(NamedTuple):
    """One number per prompt; made by `recall`.

    Attributes:
        correct: whether the most likely words are the answer, bool `[prompt]`.
        log_prob: log-probability of the answer, all its words together, in nats `[prompt]`.
    """

    correct: Tensor
    log_prob: Tensor

    @property
    def accuracy(self) -> float:
        """Share of prompts answered correctly."""
        return float(self.correct.double().mean())


def recall(
    model: nn.Module,
    tokenizer: Any,
    prompts: Sequence[str | Item],
    answers: Sequence[str] | None = None,
    *,
    batch: int = 256,
) -> Recall:
    """How well a model continues each prompt by its answer, word by word given the words before (no sampling).

    Edits on the model take part, those of particular positions too: each row is the prompt and its answer, padded on
    the left, in one pass.

    Args:
        model: any causal language model of Hugging Face.
        tokenizer: of the model.
        prompts: texts that end right before the answer, or items.
        answers: one per prompt; those of the items where left out.
        batch: rows a pass.

    Raises:
        ShapeError: no prompts, or another number of answers.
        DtypeError: texts without answers.

    Examples:
        >>> from plexus.lab.models import train_language_model
        >>> made = train_language_model(["one two", "two three"], layers=1, hidden=16, heads=2, steps=60, cache=False)
        >>> recall(made.model, made.tokenizer, ["one", "two"], ["two", "three"]).correct
        tensor([True, True])
    """
    said = [prompt.text if isinstance(prompt, Item) else None for prompt in prompts]
    asked = [prompt.prompt if isinstance(prompt, Item) else prompt for prompt in prompts]
    if answers is not None:
        if len(answers) != len(prompts):
            raise ShapeError("each prompt has one answer", given=f"{len(answers)} answers", expected=len(prompts))
        said = [f"{prompt} {answer}" for prompt, answer in zip(asked, answers, strict=True)]
    if not asked:
        raise ShapeError("there are no prompts")
    if any(text is None for text in said):
        raise DtypeError("a prompt that is a text needs an answer", mend="pass answers=, or items")
    device = next(model.parameters()).device
    correct, log_prob = [], []
    with quiet(model):
        for at in range(0, len(asked), batch):
            known = [len(ids) for ids in tokenizer(asked[at : at + batch]).input_ids]
            tokens, seen, spoken = _spoken(model, tokenizer, [str(text) for text in said[at : at + batch]])
            width = tokens.shape[1]
            start = width - seen.sum(1) + torch.tensor(known, device=device)  # of the answer
            answer = torch.arange(1, width, device=device) >= start[:, None]
            here = spoken.gather(2, tokens[:, 1:, None])[..., 0]
            log_prob.append(torch.where(answer, here, 0.0).sum(1).cpu())
            correct.append(((spoken.argmax(-1) == tokens[:, 1:]) | ~answer).all(1).cpu())
    return Recall(torch.cat(correct), torch.cat(log_prob))


def _spoken(model: nn.Module, tokenizer: Any, texts: list[str]) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens and mask `[row, token]`, and log-probabilities of the next token `[row, token - 1, word]`."""
    device = next(model.parameters()).device
    (whole,) = batches(texts, tokenizer, len(texts))
    whole = {name: value.to(device) for name, value in whole.items()}
    logits = model(**whole, use_cache=False).logits
    return whole["input_ids"], whole["attention_mask"], logits[:, :-1].float().log_softmax(-1)
