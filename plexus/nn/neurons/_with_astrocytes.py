"""Astrocytes for any layer of spiking units; their equations stand in `_astrocyte`.

out[t], … = layer(x[t] (1 + tanh(G a[t])) + H a[t]),      a[t] = λ a[t-1] + (1 - λ) (w_pre x[t] + w_post out[t-1])
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from plexus.errors import ShapeError, UnsupportedError
from plexus.nn._places import device_of
from plexus.nn.neurons._astrocyte import Astrocytes, check_input, check_state
from plexus.units._port import Port

__all__ = ["AstrocyteModulated", "ModulatedState", "with_astrocytes"]


class ModulatedState(NamedTuple):
    """What a layer wrapped by `with_astrocytes` remembers."""

    layer: Any  # the state of the wrapped layer
    a: Tensor  # calcium of the astrocytes          [batch, unit]
    z: Tensor  # what the layer last gave out       [batch, unit]


class AstrocyteModulated(nn.Module):
    """A layer of spiking units with astrocytes at its input; made by `with_astrocytes`."""

    axes = "t b u"

    def __init__(self, layer: nn.Module, astrocytes: Astrocytes) -> None:
        super().__init__()
        self.layer, self.astrocytes = layer, astrocytes

    def initial_state(self, batch: int, *, dtype: torch.dtype | None = None) -> ModulatedState:
        """The state at rest, of the layer and of its astrocytes."""
        layer: Any = self.layer
        a = self.astrocytes.initial_state(batch, dtype=dtype)
        return ModulatedState(layer.initial_state(batch, dtype=dtype), a, torch.zeros_like(a))

    def forward(self, x: Tensor, state: ModulatedState | None = None) -> tuple[Tensor, ModulatedState]:
        """What the layer gives out, `[time, batch, unit]`, under the modulated current, and the state after it."""
        check_input(x, self.astrocytes.units)
        state = self.initial_state(x.shape[1], dtype=x.dtype) if state is None else state
        check_state(state, x)
        if not self.astrocytes.use_post:
            calcium, last = self.astrocytes(x, state.a)
            out, inner = self.layer(self.astrocytes.modulate(x, calcium), state.layer)
            return out, ModulatedState(inner, last, out[-1])

        def loop(drive: Tensor, keep: Tensor, listen: Tensor, port: Port | None) -> tuple[Tensor, Any]:
            inner, a, z = state
            outputs, calcium = [], []
            for u, current in zip(drive.unbind(0), x.unbind(0), strict=True):
                a = keep * a + u + listen * z
                calcium.append(a if port is None else port.apply(a))
                out, inner = self.layer(self.astrocytes.modulate(current, calcium[-1]).unsqueeze(0), inner)
                z = out[0]
                outputs.append(z)
            return torch.stack(calcium), (torch.stack(outputs), ModulatedState(inner, a, z))

        _, (out, after) = self.astrocytes(x, state.a, loop)
        return out, after


def with_astrocytes(layer: nn.Module, units: int | None = None, **options: Any) -> AstrocyteModulated:
    """Any layer of spiking units, with astrocytes that scale its input current and add to it.

    The layer keeps its own equations: it is given J = x (1 + tanh(G a)) + H a in place of its current x. The astrocytes
    hear x and what the layer gives out.

    Args:
        layer: a module with state, `out, state = layer(current, state)`, with one dimension of units.
        units: number of units; None reads it off the layer.
        **options: of `Astrocytes`.

    Raises:
        UnsupportedError: the layer has no state, or several dimensions of units.
        ShapeError: the number of units cannot be read off the layer.

    Examples:
        >>> import torch
        >>> from plexus.nn import LIF
        >>> layer = with_astrocytes(LIF(5, tau_mem=20.0), tau_range=(5.0, 100.0))
        >>> spikes, state = layer(torch.rand(6, 2, 5))
        >>> spikes.shape, state.a.shape
        (torch.Size([6, 2, 5]), torch.Size([2, 5]))
    """
    if not callable(getattr(layer, "initial_state", None)):
        raise UnsupportedError(
            f"{type(layer).__name__} has no state", expected="a layer with initial_state() and (out, state)"
        )
    size = getattr(layer, "units", None) if units is None else units
    sizes = (size,) if isinstance(size, int) else size
    if not isinstance(sizes, (tuple, list)):
        raise ShapeError(f"{type(layer).__name__} does not say how many units it has", mend="give units=…")
    if len(sizes) != 1:
        raise UnsupportedError("astrocytes stand over one dimension of units", given=tuple(sizes), expected="(units,)")
    options.setdefault("dt", getattr(layer, "dt", 1.0))
    return AstrocyteModulated(layer, Astrocytes(sizes[0], **options).to(device_of(layer)))
