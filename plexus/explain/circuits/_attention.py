"""Attention whose pattern and values are places that edits reach.

    P = softmax(q kᵀ / √d + mask)      the pattern     [batch, head, query, key]
    z = P v                            v per head      [batch, key, head, feature]

The attention of transformers returns P after having used it, so that editing what comes out changes nothing. While a
model is opened here, it runs a registered attention implementation that computes P as the model's own eager code does
(soft caps, sinks and masks included), passes P and v through two modules of the attention layer, and multiplies what
comes back. With grouped queries every head has its own copy of the values of its group, so that one head can be edited
alone.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from plexus.errors import SiteError, UnsupportedError, require
from plexus.units import Site, SiteList
from plexus.units._dispatch import entries_of
from plexus.units._families import _head_count
from plexus.units._paths import unwrap, walk
from plexus.units._sites import Found

NAME = "plexus"
PATTERN, VALUES = "attention_pattern", "head_values"


class AttentionPattern(nn.Identity):
    """The pattern of one attention layer passes through here, `[batch, head, query, key]`."""

    axes = "b u t k"


class HeadValues(nn.Identity):
    """The values of one attention layer pass through here, `[batch, key, (head feature)]`."""

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.axes = f"b t (u:{heads} f)"


class OpenedAttention:
    """What `open_attention` gives: undo with `close()`, or by leaving a `with`.

    Attributes:
        patterns: a site per attention layer, units are heads, one row per query and key.
        values: a site per attention layer, units are heads of features, one row per key.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model: Any = unwrap(model)
        self._layers = dict(_attention_layers(model))
        if not self._layers:
            raise UnsupportedError(
                "no attention layer of this model takes a registered implementation",
                given=type(self._model).__name__,
                expected="a transformers model whose attention goes through AttentionInterface",
            )
        if any(PATTERN in layer._modules for layer in self._layers.values()):
            raise UnsupportedError("the attention of this model is open already", mend="close it first")
        _register()
        named = dict(walk(model))
        heads: dict[str, int] = {}
        for path in self._layers:
            count = _head_count(named, path)
            if count is None:
                raise SiteError("the number of heads of an attention layer cannot be told", given=path)
            heads[path] = count
        self._before = {id(c): (c, c._attn_implementation) for c in _configurations(self._model)}
        for path, layer in self._layers.items():
            layer.add_module(PATTERN, AttentionPattern())
            layer.add_module(VALUES, HeadValues(heads[path]))
        for config, _ in self._before.values():
            config._attn_implementation_internal = NAME
        self.patterns = SiteList(
            {
                Site(f"{path}.{PATTERN}", AttentionPattern.axes): Found(heads[path], "attention pattern of a head")
                for path in self._layers
            }
        )
        self.values = SiteList(
            {
                Site(f"{path}.{VALUES}", f"b t (u:{heads[path]} f)"): Found(heads[path], "values that a head reads")
                for path in self._layers
            }
        )

    def close(self) -> None:
        """Put the model's own attention back; the two modules of every layer are gone."""
        for layer in self._layers.values():
            for name in (PATTERN, VALUES):
                layer._modules.pop(name, None)
        for config, before in self._before.values():
            config._attn_implementation_internal = before
        self._layers, self._before = {}, {}

    def __enter__(self) -> OpenedAttention:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open_attention(model: nn.Module) -> OpenedAttention:
    """Make the attention patterns and the values of every head of a transformer places that edits and records reach.

    The logits stay those of the model's eager attention. The model has two modules more per attention layer until it
    is closed, so its fingerprint differs: choose the units of an edit while it is open. It has no new parameters.

    Args:
        model: a transformers model of a family whose attention goes through `AttentionInterface` (Llama, Qwen, Gemma,
            GPT-2, GPT-NeoX, BERT, ViT and most others).

    Raises:
        UnsupportedError: no attention layer takes a registered implementation, or the model is open already.
        SiteError: the number of heads cannot be told.

    Examples:
        >>> from transformers import LlamaConfig, LlamaModel
        >>> from plexus import edit, probe
        >>> from plexus.units import Neurons
        >>> config = LlamaConfig(vocab_size=20, hidden_size=16, intermediate_size=16, num_hidden_layers=1,
        ...                      num_attention_heads=4, num_key_value_heads=2)
        >>> model, ids = LlamaModel(config), torch.tensor([[1, 5, 7]])
        >>> with open_attention(model) as attention:
        ...     record = probe.record(model, {"input_ids": ids}, attention.patterns)
        ...     pattern = pattern_of(record, attention.patterns[0])
        ...     head = Neurons.of({attention.patterns[0]: 4}, {attention.patterns[0]: [2]})
        ...     with edit.scale(model, head, 0.0):
        ...         silenced = model(input_ids=ids)
        >>> pattern.shape, bool((pattern.sum(-1) - 1).abs().max() < 1e-6)
        (torch.Size([1, 4, 3, 3]), True)
    """
    return OpenedAttention(model)


def pattern_of(recording: Any, site: Site) -> Tensor:
    """The pattern in a recording as `[sample, head, query, key]`, of samples of one length.

    Raises:
        ShapeError: the samples have different lengths, or several passes were recorded.
    """
    flat: Tensor = recording.dense(site)  # [sample, query · key, head]
    length = round(flat.shape[1] ** 0.5)
    if length * length != flat.shape[1]:
        raise SiteError(
            "the recorded patterns are not square, as those of generation with a cache are",
            given=f"{flat.shape[1]} pairs of query and key",
            mend="record a plain forward pass",
        )
    square: Tensor = flat.unflatten(1, (length, length)).movedim(3, 1)
    return square


def _attention_layers(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The layers whose forward looks up a registered implementation."""
    for path, module in walk(model):
        code = getattr(inspect.unwrap(type(module).forward), "__code__", None)
        if code is not None and "ALL_ATTENTION_FUNCTIONS" in code.co_names and _eager(type(module)) is not None:
            yield path, module


def _eager(kind: type) -> Callable[..., tuple[Tensor, Tensor]] | None:
    """The eager attention of the family that a class belongs to."""
    for base in kind.__mro__:
        found = getattr(sys.modules.get(base.__module__), "eager_attention_forward", None)
        if found is not None:
            return found  # type: ignore[no-any-return]
    return None


def _configurations(model: nn.Module) -> list[Any]:
    found = {}
    for module in model.modules():
        config = getattr(module, "config", None)
        if config is not None and hasattr(config, "_attn_implementation_internal"):
            found[id(config)] = config
    return list(found.values())


def _register() -> None:
    transformers: Any = require("transformers", "llm", purpose="attention implementations")
    masks: Any = require("transformers.masking_utils", "llm", purpose="attention masks")
    transformers.AttentionInterface.register(NAME, _attention)
    masks.AttentionMaskInterface.register(NAME, masks.eager_mask)


def _attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, Tensor]:
    """The registered implementation: values `[batch, head, key, feature]` in, `[batch, query, head, feature]` out."""
    eager = _eager(type(module))
    assert eager is not None
    if PATTERN not in module._modules:
        return eager(module, query, key, value, attention_mask, **options)
    # the family's own code gives the pattern; the product with the values is made again, so one feature is enough
    pattern = eager(module, query, key, value[..., :1], attention_mask, **options)[1]
    heads = query.shape[1]
    own = value if value.shape[1] == heads else value.repeat_interleave(heads // value.shape[1], dim=1)
    if key.shape[-2] != query.shape[-2]:
        _refuse_positions(module._modules[VALUES])
    pattern = module._modules[PATTERN](pattern)  # type: ignore[misc]
    laid = own.transpose(1, 2)
    laid = module._modules[VALUES](laid.flatten(-2)).unflatten(-1, laid.shape[-2:])  # type: ignore[misc]
    out = torch.matmul(pattern, laid.transpose(1, 2))
    return out.transpose(1, 2).contiguous(), pattern


def _refuse_positions(values: nn.Module | None) -> None:
    """With a cache, the rows of the values are all keys so far, not this step's: only `all` has a meaning."""
    for entry in entries_of.get(values, ()) if values is not None else ():
        step = getattr(entry.operation, "step", None)
        if step is not None and (step.positions != "all" or step.source is not None):
            raise UnsupportedError(
                "values in a cache cannot be edited at chosen positions",
                given=f"positions={step.positions!r}",
                mend="positions='all', use_cache=False, or edit the output of the value projection",
            )
