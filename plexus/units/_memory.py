"""Where results lie: in main memory."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

__all__ = ["to_memory"]


def to_memory(owner: object, *names: str) -> None:
    """Move fields of a frozen dataclass, tensors or mappings of them, to main memory."""
    for name in names:
        value = getattr(owner, name)
        if isinstance(value, Tensor):
            object.__setattr__(owner, name, value.cpu())
        elif isinstance(value, Mapping):
            object.__setattr__(owner, name, {key: part.cpu() for key, part in value.items()})
