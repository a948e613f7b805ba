"""Weights that exist and weights that do not: masks beside the parameters of any module.

    w ← m ⊙ w      once, and again after every step of the optimiser (`project_after_step`)

The forward pass uses w as it is, so a weight that does not exist still has the gradient that it would have if it did.
That is what decides where a connection shall grow; a product w ⊙ m inside the forward pass (`torch.nn.utils.prune`)
gives zero there. Mask and groups are buffers: they are in the `state_dict`, move with the module and copy with it.

Source: dense gradients at absent weights as in Evci et al. 2020 (RigL).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from plexus.errors import RangeError, ShapeError, UnknownNameError, UnsupportedError
from plexus.nn._constraints import MASKED
from plexus.nn._places import place_of
from plexus.nn.synapses._groups import Wiring

__all__ = ["MaskedLinear", "fan_in_", "mask_parameter_", "unmask_parameter_"]


def mask_parameter_(module: nn.Module, name: str, mask: Tensor | Wiring) -> nn.Module:
    """Say which weights of a parameter exist, in place; the others become zero.

    A second mask replaces the first; weights that it brings back begin at zero. `plexus.nn.project_after_step` keeps
    absent weights at zero in training.

    Args:
        module: that owns the parameter.
        name: of the parameter, e.g. `"weight"`.
        mask: bool, of the parameter's shape; or a `Wiring`, whose groups are kept beside it.

    Returns:
        The module, with the buffers `<name>_mask` and, of a wiring with groups, `<name>_groups_out` and `_in`.

    Raises:
        UnknownNameError: there is no such parameter. ShapeError: the mask has another shape.
        UnsupportedError: the module masks this parameter by itself (`Dense(mask=…)`).

    Examples:
        >>> layer = mask_parameter_(nn.Linear(2, 2), "weight", torch.eye(2).bool())
        >>> (layer.weight != 0).tolist(), list(layer.state_dict())
        ([[True, False], [False, True]], ['weight', 'bias', 'weight_mask'])
    """
    parameter = module._parameters.get(name)
    if not isinstance(parameter, nn.Parameter):
        raise UnknownNameError.among("parameter", name, (key for key, _ in module.named_parameters(recurse=False)))
    wiring = mask if isinstance(mask, Wiring) else Wiring(mask)
    if wiring.mask.shape != parameter.shape:
        raise ShapeError("the mask does not fit", given=tuple(wiring.mask.shape), expected=tuple(parameter.shape))
    if name == "weight" and isinstance(getattr(module, "mask", None), Tensor):
        raise UnsupportedError(
            "this layer multiplies its weight by a mask of its own, where nothing can grow",
            given=type(module).__name__,
            mend="build it without mask= and mask it here",
        )
    parts = {"mask": wiring.mask.bool(), "groups_out": wiring.groups_out, "groups_in": wiring.groups_in}
    for part, value in parts.items():
        before = module._buffers.get(f"{name}_{part}")
        fresh = None if value is None else value.detach().to(parameter.device).clone()
        if before is not None and fresh is not None and before.shape == fresh.shape:
            before.copy_(fresh)  # whoever holds the mask sees the new one
        elif part == "mask" or fresh is not None or before is not None:
            module.register_buffer(f"{name}_{part}", fresh)
    known = module.__dict__.get(MASKED, ())
    module.__dict__[MASKED] = known if name in known else (*known, name)
    with torch.no_grad():
        parameter.mul_(module.get_buffer(f"{name}_mask"))
    return module


def unmask_parameter_(module: nn.Module, name: str) -> nn.Module:
    """Forget the mask of a parameter, in place; its zeros stay zeros until something trains them.

    Raises:
        UnknownNameError: the parameter has no mask.

    Examples:
        >>> layer = mask_parameter_(nn.Linear(2, 2), "weight", torch.eye(2).bool())
        >>> list(unmask_parameter_(layer, "weight").state_dict())
        ['weight', 'bias']
    """
    known = module.__dict__.get(MASKED, ())
    if name not in known:
        raise UnknownNameError.among("masked parameter", name, known)
    for part in ("mask", "groups_out", "groups_in"):
        module._buffers.pop(f"{name}_{part}", None)
    module.__dict__[MASKED] = tuple(other for other in known if other != name)
    return module


@torch.no_grad()
def fan_in_(layer: nn.Module, *, generator: torch.Generator | None = None) -> nn.Module:
    """First weights of a masked layer, as large as each unit's own number of inputs asks for, in place.

        w_ij = m_ij u_ij sqrt(n / n_i),   u ~ U(± sqrt(6 / n)),      b_i ~ U(± 1 / sqrt(mean n_i))

    n is the number of inputs of a unit, n_i that of those it hears: a unit's input keeps the variance that it has in
    the dense layer (He et al. 2015, for rectified units).

    Args:
        layer: with a parameter `weight` `[out, in, …]` and perhaps `bias`; without a mask all inputs count.
        generator: source of the weights.

    Examples:
        >>> layer = mask_parameter_(nn.Linear(400, 200), "weight", torch.rand(200, 400) < 0.1)
        >>> x = torch.randn(500, 400)
        >>> abs(fan_in_(layer)(x).var().item() - 2) < 0.3
        True
    """
    weight = layer.get_parameter("weight")
    mask = layer._buffers.get("weight_mask")
    inputs = weight[0].numel()
    bound = math.sqrt(6 / inputs)
    draw = torch.rand(weight.shape, generator=generator) * (2 * bound) - bound
    heard = torch.full((len(weight),), float(inputs))
    if mask is not None:
        mask = mask.to(draw.device)
        heard = mask.flatten(1).sum(1).float()
        draw = draw * mask * (inputs / heard.clamp(min=1)).sqrt().view(-1, *[1] * (weight.dim() - 1))
    weight.copy_(draw)
    bias = layer._parameters.get("bias")
    if bias is not None:
        width = 1 / math.sqrt(max(heard.mean().item(), 1.0))
        bias.copy_(torch.rand(bias.shape, generator=generator) * (2 * width) - width)
    return layer


class MaskedLinear(nn.Linear):
    """`y = MaskedLinear(mask)(x)`: a linear layer of which some weights do not exist; with fan-in-aware first weights.

    Args:
        mask: bool `[out, in]`, or a `Wiring` (`plexus.nn.synapses.group_connectivity`).
        bias: whether units have a bias.
        generator: source of the first weights.

    Raises:
        ShapeError: the mask is no matrix. RangeError: a unit hears nothing.

    Examples:
        >>> layer = MaskedLinear(torch.eye(3, 5).bool())
        >>> layer(torch.ones(2, 5)).shape, int((layer.weight != 0).sum())
        (torch.Size([2, 3]), 3)
    """

    def __init__(self, mask: Tensor | Wiring, bias: bool = True, *, generator: torch.Generator | None = None) -> None:
        wiring = mask if isinstance(mask, Wiring) else Wiring(mask)
        if wiring.mask.dim() != 2 or 0 in wiring.mask.shape:
            raise ShapeError("the mask is no matrix", given=tuple(wiring.mask.shape), expected="[out, in]")
        silent = int((~wiring.mask.bool().any(1)).sum())
        if silent:
            raise RangeError("there are units without any input", given=silent, mend="draw the mask again, or denser")
        super().__init__(wiring.mask.shape[1], wiring.mask.shape[0], bias=bias, device=place_of(wiring.mask))
        mask_parameter_(self, "weight", wiring)
        fan_in_(self, generator=generator)

    def extra_repr(self) -> str:
        """What `print(layer)` shows."""
        return f"{super().extra_repr()}, {int(self.get_buffer('weight_mask').sum())} weights"
