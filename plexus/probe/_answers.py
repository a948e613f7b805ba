"""What a language model holds when it has read the right answer to a question, and when it has read the wrong one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal, NamedTuple

from torch import nn

from plexus.errors import DtypeError, ShapeError, UnknownNameError
from plexus.probe._directions import device_of, token_batches
from plexus.probe._record import record
from plexus.units import Recording, Site, SiteList, sites

__all__ = ["AnswerPair", "AnswerStates", "answer_states", "steering_sites"]


class AnswerPair(NamedTuple):
    """A prompt with a right and a wrong answer.

    Examples:
        >>> AnswerPair("is fire cold ?", "no", "yes").right
        'no'
    """

    prompt: str
    right: str
    wrong: str


class AnswerStates(NamedTuple):
    """One row per pair at each site; made by `answer_states`."""

    right: Recording
    wrong: Recording


def answer_states(
    model: nn.Module,
    tokenizer: Any,
    pairs: Sequence[AnswerPair],
    at: Site | Iterable[Site],
    *,
    position: Literal["answer", "pre_answer"] = "answer",
    longest: int | None = 512,
    batch: int = 64,
) -> AnswerStates:
    """Record the last token of each prompt with its right and with its wrong answer.

    Args:
        model, tokenizer: a language model and what makes `input_ids` of texts.
        pairs: prompts with a right and a wrong answer. Where answers come from few words ("yes", "no"), let each be
            right as often as wrong, or the word itself is what tells the two apart.
        at: the sites, `steering_sites(model, "attention")` for instance.
        position: "answer" reads the last token of the answer; "pre_answer" the last token of the prompt asked once
            more, after prompt and answer: the state that is about to answer, having seen a right or a wrong one.
        longest: tokens after which a text is cut off.
        batch: texts per pass.

    Raises:
        ShapeError: no pairs.
        UnknownNameError: another position.

    Examples:
        >>> from transformers import GPT2Config, GPT2LMHeadModel
        >>> from plexus.probe._language import Letters
        >>> model = GPT2LMHeadModel(GPT2Config(vocab_size=128, n_embd=16, n_layer=2, n_head=2))
        >>> pairs = [AnswerPair("1+1=", "2", "3"), AnswerPair("2+1=", "3", "2")]
        >>> found = answer_states(model, Letters(), pairs, steering_sites(model, "ffn"))
        >>> found.right.samples, len(found.right.sites)
        (2, 2)
    """
    if position not in ("answer", "pre_answer"):
        raise UnknownNameError.among("position", str(position), ("answer", "pre_answer"))
    if not len(pairs):
        raise ShapeError("there are no pairs")
    if isinstance(pairs, str) or not all(len(pair) == 3 for pair in pairs):
        raise DtypeError("a pair is a prompt, a right and a wrong answer", given=type(pairs).__name__)

    places = [at] if isinstance(at, Site) else list(at)

    def states(which: int) -> Recording:
        texts = [f"{pair[0]} {pair[which]}" for pair in pairs]
        if position == "pre_answer":
            texts = [f"{text} {pair[0]}" for text, pair in zip(texts, pairs, strict=True)]
        batches = token_batches(tokenizer, texts, batch=batch, longest=longest, device=device_of(model))
        return record(model, batches, places, pool="last", progress=False)

    return AnswerStates(states(1), states(2))


def steering_sites(model: nn.Module, kind: Literal["attention", "ffn", "layer"]) -> SiteList:
    """The places at which single coordinates of a transformer are steered, one per layer.

    Args:
        model: of a family that `sites` knows.
        kind: "attention", the heads side by side where the output projection reads them; "ffn", what the MLP puts out;
            "layer", what the block puts out.

    Raises:
        UnknownNameError: another kind.
        SiteError: the family is not known.

    Examples:
        >>> from transformers import GPT2Config, GPT2Model
        >>> model = GPT2Model(GPT2Config(n_embd=16, n_layer=1, n_head=4))
        >>> [str(steering_sites(model, kind)[0]) for kind in ("attention", "ffn", "layer")]
        ['h.0.attn.c_proj (input) [b ... u]', 'h.0.mlp.c_proj (output) [b ... u]', 'h.0 (output) [b ... u]']
    """
    if kind == "attention":
        return SiteList([Site(s.path, s.axes.replace(s.unit_axis, "u"), at="input") for s in sites.heads(model)])
    if kind == "ffn":
        return SiteList([Site(site.path, site.axes) for site in sites.mlp(model)])
    if kind == "layer":
        return sites.residual(model)
    raise UnknownNameError.among("kind of site", str(kind), ("attention", "ffn", "layer"))
