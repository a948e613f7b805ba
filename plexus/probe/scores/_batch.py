"""Batches in a common form, and what a model predicts for them: plain pairs and Hugging Face mappings alike."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from plexus.errors import ShapeError, UnsupportedError

Forward = Callable[[nn.Module, Any], Any]

IGNORED = -100
"""The label that is left out of every loss."""


@dataclass(frozen=True)
class Batch:
    """One batch in a common form: tensors that count examples, constants, and targets."""

    tensors: dict[str, Tensor]
    constants: dict[str, Any]
    targets: Tensor | None
    keyed: bool
    drawn: Tensor | None = None

    @classmethod
    def of(cls, raw: Any) -> Batch:
        if isinstance(raw, Mapping):
            tensors = {key: value for key, value in raw.items() if isinstance(value, Tensor)}
            constants = {key: value for key, value in raw.items() if not isinstance(value, Tensor)}
            if not tensors:
                raise ShapeError("a batch without tensors", given=sorted(map(str, raw)))
            return cls(tensors, constants, tensors.get("labels"), True)
        if isinstance(raw, Tensor):
            return cls({"x": raw}, {}, None, False)
        if isinstance(raw, (tuple, list)) and len(raw) in (1, 2) and all(isinstance(part, Tensor) for part in raw):
            return cls({"x": raw[0]}, {}, raw[1] if len(raw) == 2 else None, False)
        raise ShapeError(
            "a batch is x, (x, y) or a mapping of keyword arguments", given=type(raw).__name__, expected="tensors"
        )

    def size(self, dim: int) -> int:
        sizes = {key: value.shape[0 if self.keyed else dim] for key, value in self.tensors.items()}
        if self.targets is not None:
            sizes["y"] = len(self.targets)
        if len(set(sizes.values())) != 1:
            raise ShapeError("labels do not match samples", given=sizes, expected="one number of examples")
        return next(iter(sizes.values()))

    def slice(self, start: int, length: int, dim: int) -> Batch:
        def cut(value: Tensor | None, along: int = 0) -> Tensor | None:
            return None if value is None else value.narrow(along, start, length)

        tensors = {key: value.narrow(0 if self.keyed else dim, start, length) for key, value in self.tensors.items()}
        return replace(self, tensors=tensors, targets=cut(self.targets), drawn=cut(self.drawn))


def logits_of(output: Any) -> Tensor:
    """The logits in what a model returned."""
    if isinstance(output, Tensor):
        return output
    logits = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", None)
    if isinstance(logits, Tensor):
        return logits
    raise UnsupportedError(
        "cannot tell which output of the model is the logits",
        given=type(output).__name__,
        mend="pass forward=lambda model, x: …, returning the logits",
    )


def predict(model: nn.Module, batch: Batch, forward: Forward | None = None) -> tuple[Tensor, Tensor | None]:
    """Logits and the targets in step with them and where they lie; a causal language model's are shifted by a token."""
    inputs: Any = {**batch.tensors, **batch.constants} if batch.keyed else batch.tensors["x"]
    if forward:
        logits = logits_of(forward(model, inputs))
    else:
        logits = logits_of(model(**inputs) if batch.keyed else model(inputs))
    targets = None if batch.targets is None else batch.targets.to(logits.device)
    if not batch.keyed:
        return logits, targets
    kind = type(model).__name__
    causal = "CausalLM" in kind or "LMHead" in kind
    if targets is None and causal and "input_ids" in batch.tensors:
        targets = batch.tensors["input_ids"]
        if "attention_mask" in batch.tensors:
            targets = targets.masked_fill(batch.tensors["attention_mask"] == 0, IGNORED)
    if causal and targets is not None and logits.ndim == 3:
        logits, targets = logits[:, :-1], targets[:, 1:]
    return logits, targets


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean over examples of each example's mean over its labelled positions; classes last, or second as in torch."""
    if logits.shape[:-1] != targets.shape:
        if logits.ndim > 2 and (logits.shape[0], *logits.shape[2:]) == tuple(targets.shape):
            logits = logits.movedim(1, -1)
        else:
            raise ShapeError(
                "labels do not match the logits", given=f"logits {tuple(logits.shape)}, labels {tuple(targets.shape)}"
            )
    flat = F.cross_entropy(
        logits.reshape(-1, logits.shape[-1]), targets.reshape(-1), ignore_index=IGNORED, reduction="none"
    )
    losses = flat.reshape(len(targets), -1)
    counted = (targets != IGNORED).reshape(len(targets), -1).sum(1).clamp(min=1)
    return (losses.sum(1) / counted).mean()
