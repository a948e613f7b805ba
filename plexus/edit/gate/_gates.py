"""Gates: numbers between 0 and 1, or exactly 0 and 1, that decide whether a value takes part.

    sigmoid            s = σ((a - τ) / T)
    hard               h = 1[a > τ]
    straight-through   forward h, backward the slope of s:    h + s - sg(s)
    Gumbel (concrete)  s = σ((l + g) / T),  g = log u - log(1 - u),  u uniform on (0, 1)
    top-k              h = 1 for the k largest of a row

sg stops the gradient. As T → 0 the sigmoid becomes the hard gate.

Sources: Bengio et al. 2013 (straight-through); Maddison et al. 2017 and Jang et al. 2017 (Gumbel).
"""

from __future__ import annotations

import torch
from torch import Tensor

from plexus.errors import RangeError
from plexus.units._draws import uniform

__all__ = ["annealed", "gumbel_gate", "hard_gate", "sigmoid_gate", "straight_through", "top_k_gate"]


def sigmoid_gate(a: Tensor, threshold: Tensor | float, temperature: Tensor | float = 0.1) -> Tensor:
    """The soft gate σ((a - τ) / T) of values `[…, unit]`; threshold `[unit]` or one number.

    Examples:
        >>> sigmoid_gate(torch.tensor([0.0, 1.0]), threshold=1.0, temperature=0.01)
        tensor([0.0000, 0.5000])
    """
    if not bool(torch.as_tensor(temperature) > 0):
        raise RangeError("the temperature of a gate is positive", given=temperature, expected="T > 0")
    return torch.sigmoid((a - threshold) / temperature)


def hard_gate(a: Tensor, threshold: Tensor | float) -> Tensor:
    """1 where a value lies above its threshold, else 0, in the dtype of the values. It has no gradient.

    Examples:
        >>> hard_gate(torch.tensor([0.0, 1.0, 2.0]), 1.0)
        tensor([0., 0., 1.])
    """
    return (a > threshold).to(a.dtype)


def straight_through(hard: Tensor, soft: Tensor) -> Tensor:
    """The hard gate with the gradient of the soft one.

    Examples:
        >>> a = torch.tensor([0.1], requires_grad=True)
        >>> gate = straight_through(hard_gate(a, 0.0), sigmoid_gate(a, 0.0, 1.0))
        >>> gate.backward()
        >>> gate.item(), round(a.grad.item(), 4)
        (1.0, 0.2494)
    """
    return hard.detach() + (soft - soft.detach())


def gumbel_gate(
    logits: Tensor, temperature: float = 0.5, *, hard: bool = False, generator: torch.Generator | None = None
) -> Tensor:
    """A random gate that is open with probability σ(logit), relaxed so that it has a gradient.

    Args:
        logits: `[…]`.
        temperature: T > 0; small ones come close to 0 and 1.
        hard: give exactly 0 or 1, with the gradient of the relaxed gate.
        generator: of the noise, on any device; the same noise wherever the logits lie.

    Examples:
        >>> draw = torch.Generator().manual_seed(0)
        >>> opened = gumbel_gate(torch.full((10_000,), 1.0), hard=True, generator=draw).mean()
        >>> abs(opened.item() - torch.tensor(1.0).sigmoid().item()) < 0.02
        True
    """
    drawn = uniform(logits.shape, dtype=logits.dtype, device=logits.device, generator=generator)
    soft = sigmoid_gate(logits + torch.logit(drawn, eps=torch.finfo(logits.dtype).eps), 0.0, temperature)
    return straight_through(hard_gate(soft, 0.5), soft) if hard else soft


def top_k_gate(a: Tensor, k: int) -> Tensor:
    """1 for the k largest values of each row `[…, unit]`, 0 for the others; of equal ones exactly k are taken.

    Examples:
        >>> top_k_gate(torch.tensor([[0.3, 0.1, 0.2]]), 2)
        tensor([[1., 0., 1.]])
    """
    if not 0 < k <= a.shape[-1]:
        raise RangeError("k counts units of a row", given=k, expected=f"1 to {a.shape[-1]}")
    return torch.zeros_like(a).scatter(-1, a.topk(k, dim=-1).indices, 1.0).detach()


def annealed(start: float, end: float, progress: float) -> float:
    """The temperature on a geometric way from start to end; progress goes from 0 to 1.

    Examples:
        >>> [round(annealed(0.5, 0.05, p), 3) for p in (0.0, 0.5, 1.0)]
        [0.5, 0.158, 0.05]
    """
    if start <= 0 or end <= 0:
        raise RangeError("temperatures are positive", given=(start, end), expected="> 0")
    return float(start * (end / start) ** min(max(progress, 0.0), 1.0))
