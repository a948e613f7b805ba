"""A perceptron whose hidden layers are wired from group to group.

    h_l = f((m_l ⊙ w_l) h_{l-1} + b_l),   l = 1 … L - 1       m from `group_connectivity`
    logits = w_L h_{L-1} + b_L                                 dense

With eight groups, all weights within a group and 15 % between groups, a quarter of the hidden weights exist. In the
mixing order of groups, units that share a group in one layer are spread over all groups in the next.

Source: Konstantaropoulos, Smirnakis & Papadopouli 2025.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import nn

from plexus.errors import RangeError, UnknownNameError
from plexus.nn._masks import MaskedLinear, fan_in_
from plexus.nn.synapses._groups import Scheme, group_connectivity

__all__ = ["G2GMLP", "existing_weights"]

SCHEMES = ("index", "random", "interleaved", "mixer")


class G2GMLP(nn.Sequential):
    """`logits = G2GMLP([64, 256, 256, 256, 10])(x)`; x `[batch, …]`, logits `[batch, class]`.

    Masks and groups are buffers of the layers; `plexus.nn.project_after_step` or
    `plexus.edit.rewire.SparseTraining` keep absent weights at zero in training.

    Args:
        sizes: of the input, the hidden layers and the logits. All but the last are multiples of `groups`.
        groups: number of groups in each layer.
        p_inter, p_intra: share of weights that exist between groups and within them.
        scheme: which units form a group: `"index"` (neighbours), `"random"`, `"interleaved"`, or `"mixer"`: neighbours
            in even layers and every G-th unit in odd ones.
        activation: makes the nonlinearity after each hidden layer.
        generator: source of groups, masks and first weights.

    Raises:
        RangeError: no hidden layer, or a probability is not in [0, 1]. ShapeError: a layer does not split into groups.
        UnknownNameError: another scheme.

    Examples:
        >>> model = G2GMLP([64, 128, 128, 10])
        >>> model(torch.rand(3, 1, 8, 8)).shape, existing_weights(model)
        (torch.Size([3, 10]), 7577)
    """

    def __init__(
        self,
        sizes: Sequence[int],
        groups: int = 8,
        p_inter: float = 0.15,
        p_intra: float = 1.0,
        *,
        scheme: Scheme | Literal["mixer"] = "mixer",
        activation: Callable[[], nn.Module] = nn.ReLU,
        generator: torch.Generator | None = None,
    ) -> None:
        if len(sizes) < 3:
            raise RangeError("a perceptron has a hidden layer", given=list(sizes), expected="[input, hidden …, logits]")
        if scheme not in SCHEMES:
            raise UnknownNameError.among("grouping", scheme, SCHEMES)
        layers: list[nn.Module] = [nn.Flatten()]
        for depth, (n_in, n_out) in enumerate(pairwise(sizes[:-1])):
            here: Scheme = ("interleaved" if depth % 2 else "index") if scheme == "mixer" else scheme
            wiring = group_connectivity(n_in, n_out, groups, p_intra, p_inter, here, generator=generator)
            layers += [MaskedLinear(wiring, generator=generator), activation()]
        layers.append(fan_in_(nn.Linear(sizes[-2], sizes[-1]), generator=generator))
        super().__init__(*layers)

    def __getitem__(self, index: Any) -> Any:
        """A layer, or of a slice a plain `Sequential` of the same layers."""
        if isinstance(index, slice):
            return nn.Sequential(*list(self._modules.values())[index])
        return super().__getitem__(index)


def existing_weights(model: nn.Module) -> int:
    """How many weights exist in the linear layers of a model, biases not counted."""
    found = 0
    for layer in model.modules():
        if isinstance(layer, nn.Linear):
            mask = layer._buffers.get("weight_mask")
            found += layer.weight.numel() if mask is None else int(mask.sum())
    return found
