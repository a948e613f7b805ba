"""Layers that graphs of other tools hold and ours otherwise have no need of: a factor per unit, a delay line."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from plexus.errors import RangeError, ShapeError

__all__ = ["Delay", "DelayLineState", "Scale"]


class Scale(nn.Module):
    """Every unit times its own factor: y = s ⊙ x.

    Args:
        scale: factors, of the shape of one sample.

    Examples:
        >>> Scale(torch.tensor([1.0, 2.0]))(torch.ones(3, 2)).tolist()[0]
        [1.0, 2.0]
    """

    scale: Tensor

    def __init__(self, scale: Tensor) -> None:
        super().__init__()
        self.register_buffer("scale", scale)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


class DelayLineState(NamedTuple):
    """What a delay line holds."""

    past: Tensor  # the inputs of the last steps, oldest first         [batch, step, unit…]


class Delay(nn.Module):
    """`late, state = Delay(3)(x)`: every unit's signal some steps later, silence before; x `[time, batch, unit…]`.

    Args:
        steps: whole numbers of steps, one for all units or one per unit.
        units: number of units or their shape; needed where one number of steps stands for all.

    Raises:
        RangeError: a delay is negative or not a whole number of steps. ShapeError: the input does not fit.

    Examples:
        >>> late, state = Delay(torch.tensor([0, 2]))(torch.tensor([[1.0, 1.0], [0, 0], [0, 0]]).unsqueeze(1))
        >>> late.squeeze(1).T.tolist()
        [[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]
    """

    axes = "t b u ..."
    steps: Tensor

    def __init__(self, steps: int | Tensor, units: int | tuple[int, ...] | None = None) -> None:
        super().__init__()
        delays = torch.as_tensor(steps)
        if not bool((delays >= 0).all()) or not bool((delays == delays.round()).all()):
            raise RangeError("a delay is a whole number of steps", given=steps, expected=">= 0")
        if units is not None:
            delays = delays.expand((units,) if isinstance(units, int) else units).clone()
        if not delays.dim():
            raise ShapeError("the number of units is not known", given=steps, expected="delays per unit, or units=")
        self.units = tuple(delays.shape)
        self.register_buffer("steps", delays.long())

    def initial_state(self, batch: int, *, dtype: torch.dtype | None = None) -> DelayLineState:
        """Silence."""
        longest = int(self.steps.max())
        dtype = dtype or torch.get_default_dtype()
        return DelayLineState(torch.zeros(batch, longest, *self.units, dtype=dtype, device=self.steps.device))

    def forward(self, x: Tensor, state: DelayLineState | None = None) -> tuple[Tensor, DelayLineState]:
        """The delayed signal, and the steps that are still on their way."""
        if x.dim() < 3 or tuple(x.shape[2:]) != self.units:
            raise ShapeError(
                "the input does not fit the delays", given=tuple(x.shape), expected=f"[time, batch, *{self.units}]"
            )
        past = self.initial_state(x.shape[1], dtype=x.dtype).past if state is None else state.past
        if past.shape[0] != x.shape[1] or past.shape[2:] != x.shape[2:]:
            raise ShapeError("the state does not fit the input", given=tuple(past.shape), expected=tuple(x.shape[1:]))
        longest = past.shape[1]
        rows = torch.cat([past.transpose(0, 1), x])
        at = torch.arange(len(x), device=x.device).view(-1, *(1,) * len(self.units)) + longest - self.steps
        late = rows.gather(0, at.unsqueeze(1).expand(x.shape))
        return late, DelayLineState(rows[len(rows) - longest :].transpose(0, 1).contiguous())

    def extra_repr(self) -> str:
        """What `print(layer)` shows."""
        low, high = int(self.steps.min()), int(self.steps.max())
        return f"{'×'.join(map(str, self.units))}, {low if low == high else f'{low}…{high}'} steps"
