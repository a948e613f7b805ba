"""What the layers of the usual families of models are for, told from their names and shapes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import nn

__all__ = [
    "heads_into",
    "is_block_stack",
    "is_down_projection",
    "linear_size",
    "output_size",
    "projections_to",
    "stream_width",
]

# up-projection, down-projection: siblings, the second reads the first's units (half of them when gate and up are fused)
_MLP_PAIRS = (
    ("c_fc", "c_proj"),
    ("up_proj", "down_proj"),
    ("gate_up_proj", "down_proj"),
    ("dense_h_to_4h", "dense_4h_to_h"),
    ("fc_in", "fc_out"),
    ("wi", "wo"),
    ("wi_1", "wo"),
    ("ffn", "ffn_output"),
    ("intermediate.dense", "output.dense"),
    ("intermediate_dense", "output_dense"),
    ("w1", "w2"),
)
_NUMBERED = re.compile(r"(fc|lin|linear|dense|layer|hidden|l)_?(\d+)")
# the query (or fused) projection, the output projection: siblings in one attention module
_ATTENTION_PAIRS = (
    ("c_attn", "c_proj"),
    ("q_proj", "o_proj"),
    ("qkv_proj", "o_proj"),
    ("q_proj", "out_proj"),
    ("query_key_value", "dense"),
    ("q", "o"),
    ("query", "dense"),
    ("self.query", "output.dense"),
    ("attention.query", "output.dense"),
    ("q_lin", "out_lin"),
    ("Wqkv", "out_proj"),
)
_HEAD_COUNTS = ("num_heads", "num_attention_heads", "n_heads", "n_head")


Named = Mapping[str, nn.Module]


def linear_size(module: nn.Module | None) -> tuple[int, int] | None:
    """(inputs, outputs) of a linear layer, GPT-2's transposed one and PEFT's wrapped ones included; None for others."""
    if type(module).__name__ == "Conv1D" and hasattr(module, "nf"):
        weight: Any = getattr(module, "weight", None)
        return int(weight.shape[0]), int(weight.shape[1])
    size = getattr(module, "in_features", None), getattr(module, "out_features", None)
    if isinstance(module, nn.Bilinear) or not all(type(n) is int for n in size):
        return None
    return size  # type: ignore[return-value]


def output_size(module: nn.Module) -> int | None:
    """How many units a layer puts out, where its attributes tell."""
    linear = linear_size(module)
    if linear is not None:
        return linear[1]
    if isinstance(module, nn.RNNBase):
        return (module.proj_size or module.hidden_size) * (2 if module.bidirectional else 1)
    shape = getattr(module, "normalized_shape", None)
    if isinstance(shape, tuple) and shape:
        return int(shape[-1])
    units = getattr(module, "units", None)
    if isinstance(units, tuple) and units and type(units[0]) is int:
        return units[0]
    for name in ("out_channels", "num_features", "num_channels", "embedding_dim", "embed_dim", "hidden_size", "units"):
        size = getattr(module, name, None)
        if type(size) is int:
            return size
    return None


def is_down_projection(named: Named, name: str) -> bool:
    """Whether a layer reads the hidden units of an MLP."""
    size = linear_size(named[name])
    if size is None:
        return False
    for up, down in _MLP_PAIRS:
        before = linear_size(named.get(_sibling(name, down, up)))
        if before is not None and size[0] in (before[1], before[1] / 2):
            return True
    parent, _, last = name.rpartition(".")
    match = _NUMBERED.fullmatch(last)
    if match is not None:
        previous = f"{last[: match.start(2)]}{int(match[2]) - 1}"
        before = linear_size(named.get(f"{parent}.{previous}" if parent else previous))
        return before is not None and before[1] == size[0]
    container = named.get(parent)
    return isinstance(container, nn.Sequential) and _reads_hidden(container, last)


def projections_to(named: Named, name: str) -> list[str]:
    """The layers that make the hidden units which a down-projection reads, in the order of the model."""
    size = linear_size(named[name])
    hidden = 0 if size is None else size[0]
    parent = name.rpartition(".")[0]
    paired = {_sibling(name, down, up) for up, down in _MLP_PAIRS}
    found = []
    for other, module in named.items():
        made = linear_size(module)
        beside = other.rpartition(".")[0] == parent  # the gate is no member of the pairs
        if made is not None and other != name and made[1] in (hidden, 2 * hidden) and (other in paired or beside):
            found.append(other)
    return found


def heads_into(named: Named, name: str) -> int | None:
    """How many heads an attention's output projection reads; None if the layer is none."""
    size = linear_size(named[name])
    if size is None:
        return None
    for query, out in _ATTENTION_PAIRS:
        if linear_size(named.get(_sibling(name, out, query))) is None:
            continue
        attention = name.removesuffix(out).rstrip(".")
        if isinstance(named[attention], nn.MultiheadAttention):
            continue
        count = _head_count(named, attention)
        if count and size[0] % count == 0:
            return count
    return None


def is_block_stack(module: nn.ModuleList) -> bool:
    """Whether a list of modules is a stack of like blocks, each with linear layers of its own."""
    kinds = {type(block) for block in module}
    linear = [sum(linear_size(part) is not None for part in block.modules()) for block in module]
    blocks = all(linear_size(block) is None for block in module)
    return len(kinds) == 1 and blocks and min(linear) >= 2


def stream_width(block: nn.Module) -> int | None:
    """The width of the residual stream, as the block's norms have it."""
    for part in block.modules():
        weight = getattr(part, "weight", None)
        if "norm" in type(part).__name__.lower() and weight is not None and weight.dim() == 1:
            return int(weight.shape[0])
    return None


def _sibling(name: str, own: str, other: str) -> str:
    """`name` with its end `own` replaced by `other`; an impossible name if it does not end so."""
    if name != own and not name.endswith(f".{own}"):
        return "."
    return name.removesuffix(own) + other


def _reads_hidden(container: nn.Sequential, name: str) -> bool:
    """In a Sequential: a linear layer that an activation, and before it another linear layer, lead up to."""
    names = list(container._modules)
    activated = False
    for earlier in reversed(names[: names.index(name)]):
        module = container._modules[earlier]
        if linear_size(module) is not None:
            return activated
        if type(module).__module__.endswith("modules.activation") or hasattr(module, "port"):
            activated = True
        elif not isinstance(module, nn.Dropout | nn.Identity | nn.LayerNorm | nn.RMSNorm | nn.BatchNorm1d):
            return False
    return False


def _head_count(named: Named, attention: str) -> int | None:
    """The number of heads as the attention module, its parts, its parents or their configuration state it."""
    scopes = [attention, *(name for name in named if name.startswith(f"{attention}.") or not attention)]
    while attention:
        attention = attention.rpartition(".")[0]
        scopes.append(attention)
    for scope in scopes:
        module = named.get(scope)
        for holder in (module, getattr(module, "config", None)):
            for attribute in _HEAD_COUNTS:
                count = getattr(holder, attribute, None)
                if type(count) is int and count > 0:
                    return count
    return None
