"""A Hugging Face model as its configuration builds it: what a checkpoint of it must fit to be read back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

__all__ = ["built", "holder", "in_a_line"]


def holder(named: Mapping[str, nn.Module], path: str) -> str | None:
    """The name of the outermost Hugging Face model around the module at a path; None if there is none."""
    parts = path.split(".")
    for depth in range(len(parts) + 1):
        name = ".".join(parts[:depth])
        module = named[name]
        if hasattr(module, "save_pretrained") and hasattr(module, "config"):
            return name
    return None


def built(model: nn.Module, config: Any) -> nn.Module:
    """The model that a configuration says, of shapes without numbers; raises what the model's own code raises."""
    with torch.device("meta"):
        kind: Any = type(model)
        fresh: nn.Module = kind(config)
    return fresh


def in_a_line(error: Exception) -> str:
    """What an error says, without its line breaks."""
    return " ".join(str(error).split())[:300]
