"""How strong a steering may be: the largest strength at which a model still predicts ordinary text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from plexus.edit._edit import Edit
from plexus.errors import DtypeError, RangeError
from plexus.probe import WithinBudget, largest_within, perplexity

__all__ = ["Strength", "strongest"]


@dataclass(frozen=True)
class Strength:
    """What `strongest` found.

    Attributes:
        value: the strength.
        edit: the edit of that strength.
        perplexity: under it.
        plain: without it.
        search: everything that was tried.

    Examples:
        >>> from plexus.edit import add
        >>> from plexus.units import Neurons, Site
        >>> push = add(Neurons.of({Site("0"): 2}, {Site("0"): [1]}), 0.5)
        >>> Strength(0.5, push, 11.0, 10.0, WithinBudget(0.5, 11.0, 0.6, ())).edit
        Edit: add 1 unit at 1 site
    """

    value: float
    edit: Edit
    perplexity: float
    plain: float
    search: WithinBudget


def strongest(
    make: Callable[[float], Edit],
    model: nn.Module,
    tokenizer: Any,
    texts: Sequence[str],
    *,
    high: float,
    ratio: float = 1.2,
    prompts: Sequence[str] | None = None,
    tolerance: float = 0.01,
    batch: int = 16,
) -> Strength:
    """Bisect for the largest strength at which the perplexity of texts stays within a multiple of the plain one.

    Args:
        make: the edit of a strength, `lambda s: steer.add(directions, s)`; strength 0 must change nothing.
        model, tokenizer: a causal language model.
        texts: what it should go on predicting; text of another kind than that which the steering was found on.
        high: the largest strength.
        ratio: the perplexity allowed, in multiples of that without steering.
        prompts: as in `probe.perplexity`.
        tolerance: as a share of `high`.
        batch: texts per pass.

    Raises:
        RangeError: a ratio below 1, or an edit of strength 0 that costs more than the budget.
        DtypeError: `make` gives no edit.

    Examples:
        >>> import torch
        >>> from transformers import GPT2Config, GPT2LMHeadModel
        >>> from plexus.edit import steer
        >>> from plexus.probe._language import Letters
        >>> from plexus.units import sites
        >>> _ = torch.manual_seed(0)
        >>> model = GPT2LMHeadModel(GPT2Config(vocab_size=128, n_embd=16, n_layer=2, n_head=2))
        >>> up = {sites.residual(model)[1]: torch.randn(16)}
        >>> found = strongest(lambda s: steer.add(up, s), model, Letters(), ["a cat", "a dog"], high=1e3, ratio=1.01)
        >>> 0 <= found.value < 1e3, found.perplexity <= 1.01 * found.plain
        (True, True)
    """
    if not ratio >= 1:
        raise RangeError("the perplexity allowed is at least the plain one", given=ratio, expected="ratio >= 1")
    plain = perplexity(model, tokenizer, texts, prompts=prompts, batch=batch)

    def edit(value: float) -> Edit:
        made = make(value)
        if not isinstance(made, Edit):
            raise DtypeError("make gives the edit of a strength", given=type(made).__name__, expected="Edit")
        return made

    def cost(value: float) -> float:
        if value == 0:
            return plain
        with edit(value).on(model):
            return perplexity(model, tokenizer, texts, prompts=prompts, batch=batch)

    found = largest_within(cost, ratio * plain, high=high, tolerance=tolerance)
    return Strength(found.value, edit(found.value), found.cost, plain, found)
