"""Draws by a generator that may lie on another device than what is drawn: equal numbers on every device."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

__all__ = ["drawn_", "random_order", "uniform"]


def random_order(count: int, generator: torch.Generator) -> Tensor:
    """The numbers below `count` in random order, in main memory, wherever the generator draws.

    Examples:
        >>> random_order(3, torch.Generator().manual_seed(0)).sort().values
        tensor([0, 1, 2])
    """
    return torch.randperm(count, generator=generator, device=generator.device).cpu()


def uniform(
    shape: Sequence[int], *, dtype: torch.dtype, device: torch.device, generator: torch.Generator | None
) -> Tensor:
    """Numbers in [0, 1), drawn on the generator's device and moved to `device`; without a generator drawn there.

    Examples:
        >>> here = torch.device("cpu")
        >>> one = uniform((3,), dtype=torch.float32, device=here, generator=torch.Generator().manual_seed(0))
        >>> torch.equal(one, torch.rand(3, generator=torch.Generator().manual_seed(0)))
        True
    """
    drawn = device if generator is None else generator.device
    return torch.rand(*shape, dtype=dtype, device=drawn, generator=generator).to(device)


@torch.no_grad()
def drawn_(tensor: Tensor, draw: Callable[[Tensor], object], generator: torch.Generator | None) -> Tensor:
    """Fill a tensor in place by `draw`, which draws with the generator into a tensor of the generator's device.

    Examples:
        >>> generator = torch.Generator().manual_seed(0)
        >>> drawn_(torch.empty(2), lambda t: t.exponential_(generator=generator), generator).shape
        torch.Size([2])
    """
    if generator is None or generator.device.type == tensor.device.type:
        draw(tensor)
        return tensor
    other = torch.empty_like(tensor, device=generator.device)
    draw(other)
    return tensor.copy_(other)
