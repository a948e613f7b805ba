"""The port of a unit: what an edit does to a unit's emitted value inside the loop of a recurrent or spiking layer.

    port(z) = clip(g z + c, low, high)      per unit; g = 0 gives c even where z is infinite or NaN

A layer applies its port where the value is emitted, so that everything downstream of the emission sees the edited
value: the unit's own reset, its recurrent targets and the output. Ports are closed under composition: with p = `first`
and q = `second`, both clips of affine maps,

    q(p(z)) = clip(g_q g_p z + g_q c_p + c_q, clip_q(e_low), clip_q(e_high)),
    {e_low, e_high} = g_q {low_p, high_p} + c_q    in ascending order,

so a stack of edits costs one port.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from plexus.errors import RangeError, ShapeError

__all__ = ["DensePort", "Port"]


class DensePort(NamedTuple):
    """A port written out for a kernel: every field a tensor `[unit]` of one dtype on one device."""

    gain: Tensor
    bias: Tensor
    low: Tensor
    high: Tensor


@dataclass(frozen=True, eq=False)
class Port:
    """Gain, bias and range of a unit's emitted value: `clip(gain * z + bias, low, high)`.

    Args:
        gain: factor, `[unit]` or a scalar tensor; None is 1.
        bias: offset, `[unit]` or a scalar tensor; None is 0.
        low: lower bound, `[unit]` or a scalar tensor; None is no bound.
        high: upper bound, `[unit]` or a scalar tensor; None is no bound.

    Raises:
        ShapeError: a field has more than one dimension.
        RangeError: a lower bound lies above its upper bound.

    Examples:
        >>> import torch
        >>> silence = Port(gain=torch.tensor([1.0, 0.0]))
        >>> silence.apply(torch.tensor([[1.0, float("inf")]]))
        tensor([[1., 0.]])
        >>> silence.then(Port(bias=torch.tensor(2.0))).apply(torch.tensor([[1.0, 1.0]]))
        tensor([[3., 2.]])
    """

    gain: Tensor | None = None
    bias: Tensor | None = None
    low: Tensor | None = None
    high: Tensor | None = None

    def __post_init__(self) -> None:
        for name, field in self._fields().items():
            if field is not None and field.dim() > 1:
                raise ShapeError(
                    f"the {name} of a port has too many dimensions", given=tuple(field.shape), expected="[unit] or []"
                )
        if self.low is not None and self.high is not None and bool((self.low > self.high).any()):
            raise RangeError("the lower bound of a port lies above its upper bound", given=(self.low, self.high))

    def _fields(self) -> dict[str, Tensor | None]:
        return {"gain": self.gain, "bias": self.bias, "low": self.low, "high": self.high}

    @property
    def is_identity(self) -> bool:
        """Whether no field is set, so that applying the port changes nothing."""
        return all(field is None for field in self._fields().values())

    def apply(self, z: Tensor) -> Tensor:
        """The ported values of `z` `[..., unit]`, computed in float32 or wider and cast back to the dtype of `z`."""
        if self.is_identity:
            return z
        dtype = torch.promote_types(z.dtype, torch.float32)
        y = z.to(dtype)
        if self.gain is not None:
            y = _times(self.gain.to(device=z.device, dtype=dtype), y)
        if self.bias is not None:
            y = y + self.bias.to(device=z.device, dtype=dtype)
        if self.low is not None:
            y = torch.maximum(y, self.low.to(device=z.device, dtype=dtype))
        if self.high is not None:
            y = torch.minimum(y, self.high.to(device=z.device, dtype=dtype))
        return y.to(z.dtype)

    def then(self, second: Port) -> Port:
        """The one port that does what this port followed by `second` does.

        Examples:
            >>> import torch
            >>> both = Port(low=torch.tensor(0.0)).then(Port(gain=torch.tensor(-2.0)))
            >>> both.apply(torch.tensor([-1.0, 1.0]))
            tensor([-0., -2.])
        """
        if self.is_identity or second.is_identity:
            return second if self.is_identity else self
        gain, bias = second.gain, second.bias
        inner_gain = _product(gain, self.gain)
        inner_bias = _plus(None if self.bias is None else _product(gain, self.bias), bias)
        ends: tuple[Tensor | None, Tensor | None] = (self.low, self.high)
        if gain is not None and (self.low is not None or self.high is not None):
            low = gain.new_full((), -torch.inf) if self.low is None else self.low.to(gain)
            high = gain.new_full((), torch.inf) if self.high is None else self.high.to(gain)
            scaled_low, scaled_high = _times(gain, low), _times(gain, high)
            ends = torch.minimum(scaled_low, scaled_high), torch.maximum(scaled_low, scaled_high)
        ends = (
            None if ends[0] is None else _plus(ends[0], bias),
            None if ends[1] is None else _plus(ends[1], bias),
        )
        clip = Port(low=second.low, high=second.high)
        low_end = second.low if ends[0] is None else clip.apply(ends[0])
        high_end = second.high if ends[1] is None else clip.apply(ends[1])
        return Port(inner_gain, inner_bias, low_end, high_end)

    def dense(self, units: int, like: Tensor) -> DensePort:
        """All four fields as tensors `[units]` with the dtype and device of `like`: 1, 0, -inf, inf where unset.

        Examples:
            >>> import torch
            >>> Port(bias=torch.tensor(1.0)).dense(2, torch.zeros(())).bias
            tensor([1., 1.])
        """
        defaults = {"gain": 1.0, "bias": 0.0, "low": -torch.inf, "high": torch.inf}
        out = []
        for name, field in self._fields().items():
            value = torch.tensor(defaults[name]) if field is None else field
            if value.dim() == 1 and value.shape[0] not in (1, units):
                raise ShapeError(
                    f"the {name} of the port does not fit the layer", given=tuple(value.shape), expected=f"[{units}]"
                )
            out.append(value.to(device=like.device, dtype=like.dtype).expand(units).contiguous())
        return DensePort(*out)

    @classmethod
    def on(
        cls,
        mask: Tensor,
        *,
        gain: Tensor | float | None = None,
        bias: Tensor | float | None = None,
        low: Tensor | float | None = None,
        high: Tensor | float | None = None,
    ) -> Port:
        """The port that acts on the units of `mask` (bool `[unit]`) and leaves the others alone.

        Examples:
            >>> import torch
            >>> Port.on(torch.tensor([True, False]), gain=0.5).apply(torch.tensor([4.0, 4.0]))
            tensor([2., 4.])
        """

        def only(value: Tensor | float | None, rest: float) -> Tensor | None:
            if value is None:
                return None
            number = torch.as_tensor(value, device=mask.device)
            number = number if number.is_floating_point() else number.float()
            return torch.where(mask, number, torch.full_like(number, rest))

        return cls(only(gain, 1.0), only(bias, 0.0), only(low, -torch.inf), only(high, torch.inf))


def _plus(left: Tensor | None, right: Tensor | None) -> Tensor | None:
    if left is None or right is None:
        return right if left is None else left
    return left + right.to(left)


def _product(gain: Tensor | None, value: Tensor | None) -> Tensor | None:
    if gain is None or value is None:
        return value if gain is None else gain
    return _times(gain, value.to(gain))


def _times(gain: Tensor, value: Tensor) -> Tensor:
    """`gain * value` with zero where the gain is zero, whatever the value.

    Only what is not finite is masked, so that the gradient of the gain is right at zero too.
    """
    return gain * torch.where((gain == 0) & ~torch.isfinite(value), torch.zeros_like(value), value)
