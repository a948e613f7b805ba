"""Biases for layers that have none, declared where a checkpoint is read back.

A Hugging Face model is rebuilt from its configuration, which says for all MLPs (`mlp_bias`) or all attention layers
(`attention_bias`) at once whether their projections have biases. So the layers beside get biases of zero.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from plexus.units._paths import unwrap, walk

__all__ = ["declare_biases", "why_no_bias"]

# field of the configuration: what the modules are called whose linear layers it is about
_FIELDS = {"mlp_bias": ("mlp", "feed_forward"), "attention_bias": ("self_attn", "attention", "attn")}


def why_no_bias(model: nn.Module, module: nn.Module, path: str) -> str | None:
    """Why a layer cannot be given a bias, in words; None if it can. `path` is the full name of the bias."""
    if not isinstance(module, nn.Linear):
        return f"a {type(module).__name__} takes no bias"
    config: Any = getattr(unwrap(model), "config", None)
    if config is not None and hasattr(config, "model_type") and _field(config, path) is None:
        return f"a checkpoint of {type(config).__name__} has no place for a bias at {path}"
    return None


def declare_biases(model: nn.Module, paths: list[str]) -> None:
    """Let the model's configuration say that the layers of these new biases have one; those beside get zeros."""
    config: Any = getattr(unwrap(model), "config", None)
    if config is None or not hasattr(config, "model_type"):
        return
    for field in dict.fromkeys(_field(config, path) for path in paths):
        if field is None:
            continue
        setattr(config, field, True)
        for name, module in walk(model):
            beside = getattr(module, "bias", 0) is None and _field(config, f"{name}.bias") == field
            if isinstance(module, nn.Linear) and beside:
                weight = module.weight
                zeros = torch.zeros(weight.shape[0], dtype=weight.dtype, device=weight.device)
                module.bias = nn.Parameter(zeros, requires_grad=weight.requires_grad)


def _field(config: Any, path: str) -> str | None:
    """The field of the configuration that says whether the layer at a path has a bias."""
    within = path.split(".")[:-2]
    return next((f for f, names in _FIELDS.items() if hasattr(config, f) and any(n in within for n in names)), None)
