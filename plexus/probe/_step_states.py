"""What a language model holds at each step of generation, just before it names the next token."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from plexus.errors import DtypeError, RangeError, UnsupportedError
from plexus.probe._batches import each_batch
from plexus.probe._record import record
from plexus.units import Site
from plexus.units._paths import unwrap, walk

__all__ = ["StepStates", "step_states"]


class StepStates(NamedTuple):
    """One state per generated token: the one that predicts it.

    Attributes:
        states: at the last position of each step, `[sample, step, unit]`.
        tokens: the token that was then put out, `[sample, step]`.
        predicted: the token with the highest logit at that state, `[sample, step]`; another one than `tokens` where
            the model was sampled or its logits were processed.
        live: whether the sample was still going, `[sample, step]`: true up to and with its end token. Where it is
            false the other numbers mean nothing.
    """

    states: Tensor
    tokens: Tensor
    predicted: Tensor
    live: Tensor

    @property
    def sure(self) -> Tensor:
        """The steps that are going and put out the token with the highest logit, `[sample, step]`."""
        return self.live & (self.tokens == self.predicted)


def step_states(
    model: nn.Module,
    batches: Any,
    new_tokens: int = 20,
    *,
    at: Site | None = None,
    generator: torch.Generator | None = None,
    options: Mapping[str, Any] | None = None,
) -> StepStates:
    """Generate from prompts and keep the state that predicted each token: what the output layer read then.

    That is after the final norm. Works with batches, padding (left, as `generate` wants it) and the cache; only the
    last position of each step is kept, also of the first one, in which the whole prompt runs.

    Args:
        model: a language model with `generate` and an output layer.
        batches: as in `record`; mappings with `input_ids` and `attention_mask`.
        new_tokens: how many to generate at most.
        at: another site than the input of the output layer, `[b, t, u]`.
        generator: draws the tokens where the options ask for sampling.
        options: further ones of `generate`, for instance `{"do_sample": True, "top_p": 0.95}`; greedy without.

    Raises:
        UnsupportedError: the model does not generate, or beams or several returns per prompt are asked for.
        RangeError: sampling without a generator, or no tokens to generate.

    Examples:
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> config = LlamaConfig(vocab_size=20, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
        ...     num_attention_heads=2, pad_token_id=0, eos_token_id=None)
        >>> model = LlamaForCausalLM(config).eval()
        >>> steps = step_states(model, {"input_ids": torch.tensor([[3, 4, 5]])}, 4)
        >>> steps.states.shape
        torch.Size([1, 4, 8])
        >>> bool((model.lm_head(steps.states).argmax(2) == steps.tokens).all())
        True
    """
    inner: Any = unwrap(model)
    head = inner.get_output_embeddings() if hasattr(inner, "get_output_embeddings") else None
    if head is None or not hasattr(model, "generate"):
        raise UnsupportedError(
            "steps of generation need a model with `generate` and an output layer", given=type(inner).__name__
        )
    asked = _options(options, new_tokens, generator)
    path = next(path for path, module in walk(model) if module is head)
    site = Site(path, "b t u", at="input")
    sequences: list[Tensor] = []

    def generate(model: nn.Module, batch: Any) -> Tensor:
        if generator is not None:
            torch.manual_seed(int(torch.randint(2**62, (), generator=generator, device=generator.device)))
        given = batch if isinstance(batch, Mapping) else {"input_ids": batch}
        out: Tensor = model.generate(**given, **asked)  # type: ignore[operator]
        sequences.append(out.cpu())
        return out

    ends = _ends(model, asked)
    states, tokens, live, predicted = [], [], [], []
    for batch in each_batch(batches):
        found = record(
            model, [batch], [site] if at is None else [site, at], positions="last", forward=generate, progress=False
        )
        rows = found.table[site]
        count, steps = found.samples, int(rows.step.max()) + 1
        read = _spread(found[site], rows.sample, rows.step, count, steps)
        weight: Tensor = head.weight
        with torch.no_grad():
            predicted.append(head(read.to(weight)).argmax(-1).cpu())
        if at is not None:
            rows = found.table[at]
            read = _spread(found[at], rows.sample, rows.step, count, steps)
        states.append(read)
        tokens.append(sequences.pop()[:, -steps:])
        over = torch.isin(tokens[-1], ends).long().cumsum(1) - torch.isin(tokens[-1], ends).long()
        live.append(over == 0)
    return StepStates(_stacked(states), _stacked(tokens), _stacked(predicted), _stacked(live))


def _options(given: Mapping[str, Any] | None, new_tokens: int, generator: torch.Generator | None) -> dict[str, Any]:
    options = {"do_sample": False, **(given or {})}
    if isinstance(new_tokens, bool) or not isinstance(new_tokens, int) or new_tokens < 1:
        raise RangeError("the number of new tokens is a count", given=new_tokens, expected="1 or more")
    for name in ("num_beams", "num_return_sequences"):
        if (options.get(name) or 1) != 1:
            raise UnsupportedError(
                "a step of several beams or returns has no one state", given=f"{name}={options[name]}", expected="1"
            )
    if options["do_sample"] and generator is None:
        raise RangeError("sampling draws, so it needs a generator", mend="generator=torch.Generator().manual_seed(0)")
    if generator is not None and not isinstance(generator, torch.Generator):
        raise DtypeError("a draw needs a torch.Generator", given=type(generator).__name__)
    return {**options, "max_new_tokens": new_tokens, "return_dict_in_generate": False}


def _ends(model: nn.Module, options: Mapping[str, Any]) -> Tensor:
    """The tokens that end a sample."""
    config: Any = getattr(model, "generation_config", None)
    end = options.get("eos_token_id", getattr(config, "eos_token_id", None))
    return torch.as_tensor([] if end is None else end, dtype=torch.int64).reshape(-1).cpu()


def _spread(values: Tensor, sample: Tensor, step: Tensor, samples: int, steps: int) -> Tensor:
    out = values.new_zeros(samples, steps, values.shape[1])
    out[sample, step] = values
    return out


def _stacked(pieces: list[Tensor]) -> Tensor:
    """Batches below each other; those that ended early are filled up with zeros."""
    longest = max(piece.shape[1] for piece in pieces)
    out = []
    for piece in pieces:
        full = piece.new_zeros(len(piece), longest, *piece.shape[2:])
        full[:, : piece.shape[1]] = piece
        out.append(full)
    return torch.cat(out)
