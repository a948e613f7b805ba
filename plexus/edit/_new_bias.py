"""Biases for layers that have none, declared where a checkpoint is read back.

A Hugging Face model is rebuilt from its configuration, which says for all MLPs (`mlp_bias`) or all attention layers
(`attention_bias`) at once whether their projections have biases; which projections, the model's own code says. So the
model is built from the changed configuration, and the layers that have a bias there beside the wanted one get zeros.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from plexus.edit._checkpoint import built, holder, in_a_line
from plexus.units._paths import walk

__all__ = ["NewBiases", "plan_biases"]

# field of the configuration: what the modules are called whose linear layers it is about
_FIELDS = {"mlp_bias": ("mlp", "feed_forward"), "attention_bias": ("self_attn", "attention", "attn")}


@dataclass
class NewBiases:
    """What goes with new biases, so that they are read back.

    Attributes:
        refused: layer → why its bias would be lost, in words.
        fields: configurations, and the field of each that becomes true.
        beside: further layers that get a bias of zeros.
    """

    refused: dict[nn.Module, str] = field(default_factory=dict)
    fields: list[tuple[Any, str]] = field(default_factory=list)
    beside: list[nn.Linear] = field(default_factory=list)

    def declare(self) -> None:
        """Change the configurations, and make the zeros."""
        for config, name in self.fields:
            setattr(config, name, True)
        for layer in self.beside:
            weight = layer.weight
            zeros = torch.zeros(weight.shape[0], dtype=weight.dtype, device=weight.device)
            layer.bias = nn.Parameter(zeros, requires_grad=weight.requires_grad)


def plan_biases(model: nn.Module, layers: Iterable[nn.Module]) -> NewBiases:
    """What new biases of some layers of a model ask of its configuration; changes nothing."""
    named, plan = dict(walk(model)), NewBiases()
    paths = {layer: next(path for path, module in named.items() if module is layer) for layer in layers}
    held: dict[str, list[nn.Module]] = {}
    for layer, path in paths.items():
        around = holder(named, path)
        if not isinstance(layer, nn.Linear):
            plan.refused[layer] = f"a {type(layer).__name__} takes no bias"
        elif around is not None:
            held.setdefault(around, []).append(layer)
    for around, inside in held.items():
        _plan_model(named[around], inside, plan)
    return plan


def _plan_model(model: nn.Module, layers: list[nn.Module], plan: NewBiases) -> None:
    """What the new biases of one Hugging Face model ask of its configuration."""
    held: Any = model
    config, named = held.config, dict(walk(model))
    paths = {layer: next(path for path, module in named.items() if module is layer) for layer in layers}
    names = {layer: _field(config, path) for layer, path in paths.items()}
    new = copy.deepcopy(config)
    for name in {name for name in names.values() if name is not None}:
        setattr(new, name, True)
        plan.fields.append((config, name))
    try:
        before, after = _parameters(built(model, copy.deepcopy(config))), _parameters(built(model, new))
    except Exception as error:  # the model's own code, in its own words
        reason = f"the {type(model).__name__} is not built by its configuration alone ({in_a_line(error)})"
        plan.refused |= dict.fromkeys(layers, reason)
        return
    for layer, path in paths.items():
        if names[layer] is None or f"{path}.bias" not in after:
            what = "" if names[layer] is None else f", also with {names[layer]}=True"
            plan.refused[layer] = f"a checkpoint of {type(config).__name__} has no place for a bias at {path}{what}"
    wanted = {f"{path}.bias" for path in paths.values()}
    for full in sorted(before ^ after):
        path, _, name = full.rpartition(".")
        beside = named.get(path)
        beside = getattr(beside, "base_layer", beside)  # under an adapter
        if full in before or name != "bias" or not isinstance(beside, nn.Linear):
            reason = f"the changed {type(config).__name__} would also change {full}"
            plan.refused |= {layer: reason for layer in layers if layer not in plan.refused}
        elif full not in wanted and beside.bias is None:
            plan.beside.append(beside)


def _parameters(model: nn.Module) -> set[str]:
    return {name for name, _ in model.named_parameters(remove_duplicate=False)}


def _field(config: Any, path: str) -> str | None:
    """The field of the configuration that says whether the layer at a path has a bias."""
    within = path.split(".")[:-1]
    return next((f for f, names in _FIELDS.items() if hasattr(config, f) and any(n in within for n in names)), None)
