"""What an operation is told when it fires: which pass of the model, which call, which positions, which mask.

A *pass* begins when the model (or, outside of it, any module inside it) is called and ends when that call returns.
Inside a pass, tokens may flow in more than one *stream*: the encoder and the decoder of a sequence-to-sequence model
have their own lengths and masks. The stream of a module is that of the innermost caller that takes a padding mask.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from plexus.units._routing import Routed
from plexus.units._site import Site

__all__ = ["Generation", "Pass", "Visit", "open_pass", "opens_stream", "stream_of"]


@dataclass(frozen=True, eq=False)
class Pass:
    """One pass of the model, as seen from one stream of tokens.

    Attributes:
        index: count of passes since the operations were attached, from 0.
        args: positional arguments of the call that began the pass.
        kwargs: keyword arguments of that call.
        phase: "generated" when the tokens of the pass (or some of them) were generated, else "prompt".
        positions: the model's position of each token, `[b, t]`, or None when the model has no tokens.
        mask: which tokens are real, bool `[b, t]`, or None when none is padding as far as the model is told.
        samples: which sample each row belongs to, `[b]`, when beams or several returns share a sample; else None.
        generated: which tokens were generated, bool `[t]`, or None when the model has no tokens.
        memo: what operations worked out about these rows and need not work out again at the next site.
    """

    index: int
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    phase: Literal["prompt", "generated"] = "prompt"
    positions: Tensor | None = None
    mask: Tensor | None = None
    samples: Tensor | None = None
    generated: Tensor | None = None
    memo: dict[Any, Any] = field(init=False, repr=False, default_factory=dict)


@dataclass(frozen=True, eq=False)
class Visit:
    """One firing of an operation.

    Attributes:
        site: the place.
        rows: names of the leading axes of the values.
        call: the n-th call of this module in this pass, from 0.
        run: the pass, as seen from the stream of this site.
        recomputing: inside backward, where a checkpointed part of the model runs a second time.
        routed: which tokens the rows of an axis `r` are, in a mixture of experts; else None.
    """

    site: Site
    rows: tuple[str, ...]
    call: int
    run: Pass
    recomputing: bool = False
    routed: Routed | None = None


class Generation(NamedTuple):
    """A running `generate`: how many samples it was given, how many tokens the prompt of the decoder has."""

    samples: int | None
    prompt: int | None
    two_streams: bool = False


_TOKENS = ("input_ids", "inputs_embeds", "decoder_input_ids", "decoder_inputs_embeds")
_PADDING = ("src_key_padding_mask", "tgt_key_padding_mask")


def open_pass(
    index: int, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], generation: Generation | None
) -> Pass:
    """The pass that the call of `module` begins."""
    run = Pass(index, args, kwargs)
    return stream_of(run, module, args, kwargs, generation) or run


def stream_of(
    run: Pass, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], generation: Generation | None
) -> Pass | None:
    """The pass as the stream sees it that the call of `module` opens, or None if it opens none."""
    kind: Any = type(module)
    names = _parameter_names(kind)
    padding = next((name for name in _PADDING if name in names), None)
    if not opens_stream(module):
        return None
    given = {**dict(zip(names, args, strict=False)), **kwargs}
    if padding is not None:
        return _padded_stream(run, given.get(padding))
    prefix = "decoder_" if "decoder_input_ids" in names else ""
    ids, embeds = given.get(f"{prefix}input_ids"), given.get(f"{prefix}inputs_embeds")
    source = ids if isinstance(ids, Tensor) else embeds
    if not isinstance(source, Tensor) or source.dim() < 2:
        return replace(run, mask=None, positions=None, generated=None) if prefix else None
    batch, length = source.shape[:2]
    past = _cache_length(given.get("past_key_values"))
    columns = torch.arange(past, past + length, device=source.device)
    mask = _mask(given.get(f"{prefix}attention_mask"), batch, length, past)
    reads = generation is not None and generation.two_streams and not prefix
    encodes = "past_key_values" not in names or (reads and given.get("encoder_hidden_states") is None)
    generated = columns < 0 if encodes and not prefix else columns >= _prompt_length(generation, past, length)
    return replace(
        run,
        phase="generated" if bool(generated.any()) else "prompt",
        positions=_positions(given.get("position_ids"), columns, batch, length),
        mask=mask,
        samples=_samples(generation, batch, source.device),
        generated=generated,
    )


def _prompt_length(generation: Generation | None, past: int, length: int) -> int:
    """How many leading tokens were given and not generated; outside `generate`, a step of one is generated."""
    if generation is not None and generation.prompt is not None:
        return generation.prompt
    return past if past > 0 and length == 1 else past + length


def _padded_stream(run: Pass, padding: Any) -> Pass | None:
    if not isinstance(padding, Tensor) or padding.dim() != 2:
        return replace(run, mask=None)
    real = ~padding if padding.dtype == torch.bool else padding == 0
    return replace(run, mask=real)


def _positions(given: Any, columns: Tensor, batch: int, length: int) -> Tensor:
    if isinstance(given, Tensor) and given.dim() <= 2 and given.shape[-1] == length:
        rows = given.reshape(-1, length)
        if rows.shape[0] in (1, batch):
            return rows.expand(batch, length)
    return columns.expand(batch, length)


def _samples(generation: Generation | None, batch: int, device: torch.device) -> Tensor | None:
    if generation is None or not generation.samples or batch <= generation.samples or batch % generation.samples:
        return None
    return torch.arange(batch, device=device) // (batch // generation.samples)


def _cache_length(cache: Any) -> int:
    if cache is None:
        return 0
    if hasattr(cache, "get_seq_length"):
        return int(cache.get_seq_length())
    if isinstance(cache, tuple | list) and cache and isinstance(cache[0], tuple | list) and len(cache[0]) > 1:
        return int(cache[0][0].shape[-2])
    return 0


def _mask(mask: Any, batch: int, length: int, past: int) -> Tensor | None:
    """Which of the tokens are real, `[b, t]`, from a mask over tokens, or from one over queries and keys.

    A cache of fixed size is given the latter, `[b, 1, query, key]`, or one for each kind of attention layer; there a
    token that may not even look at itself is padding.
    """
    if isinstance(mask, Mapping):
        mask = next((value for value in mask.values() if isinstance(value, Tensor)), None)
    if not isinstance(mask, Tensor) or mask.shape[0] != batch:
        return None
    if mask.dim() == 2 and mask.shape[1] >= length:
        return mask[:, -length:].bool()
    if mask.dim() == 4 and mask.shape[2] == length and mask.shape[3] >= past + length:
        itself = mask[:, 0, :, past : past + length].diagonal(dim1=1, dim2=2)
        return itself if itself.dtype == torch.bool else itself == 0
    return None


def opens_stream(module: nn.Module) -> bool:
    """Whether calls of the module can open a stream: it takes tokens and their mask, or a mask of padding."""
    kind: Any = type(module)
    return _opens(kind)


@lru_cache(maxsize=4096)
def _opens(kind: Any) -> bool:
    names = _parameter_names(kind)
    tokens = any(name in names for name in _TOKENS) and "attention_mask" in names
    return tokens or any(name in names for name in _PADDING)


@lru_cache(maxsize=4096)
def _parameter_names(kind: Any) -> tuple[str, ...]:
    try:
        return tuple(inspect.signature(kind.forward).parameters)[1:]
    except (TypeError, ValueError):
        return ()
