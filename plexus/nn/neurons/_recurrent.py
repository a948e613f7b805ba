"""Recurrent weights around any layer of neurons.

    current[t] = x[t] + W z[t-1]            z: what the units emitted, as their port lets it through

One matrix product per step around the neurons' fused step, and one product for dL/dW after the loop; a sparse W walks
along the synapses of those units that spiked. Neurons whose `forward` takes no `recurrent` run step by step.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from plexus.errors import ShapeError, UnsupportedError
from plexus.kernels import SparseWeight
from plexus.nn._places import device_of, place_of
from plexus.units._port import Port

__all__ = ["Recurrent"]


class Recurrent(nn.Module):
    """`out, state = Recurrent(LIF(100))(current)`: units that drive one another; current `[time, batch, unit…]`.

    State, axes and port are those of the neurons: a silenced unit is silent for its recurrent targets too. Several
    dimensions of units count as one, in row-major order.

    Args:
        neuron: a layer of neurons of ours, whose state has `z`, what the units last emitted.
        weight: initial weight `[unit (to), unit (from)]`; by default normal with standard deviation
            weight_gain / sqrt(d), d the mean number of synapses onto a unit.
        mask: which synapses exist, bool `[unit (to), unit (from)]`; by default all.
        autapses: whether a unit may drive itself; if not, the mask's diagonal is cleared.
        sparse: keep and run only the synapses that exist: pays where the mask leaves less than about a tenth of them.
        weight_gain: scale of the default weight.
        generator: source of the default weight.

    Raises:
        ShapeError: weight or mask do not fit the units.
        UnsupportedError: the neurons do not remember what they emitted.

    Examples:
        >>> import torch
        >>> from plexus.nn import LIF
        >>> layer = Recurrent(LIF(4, tau_mem=5.0), mask=torch.ones(4, 4).tril(), sparse=True)
        >>> layer.weight.shape, layer.matrix().shape
        (torch.Size([6]), torch.Size([4, 4]))
        >>> spikes, state = layer(torch.rand(6, 2, 4))
        >>> spikes.shape
        torch.Size([6, 2, 4])
    """

    activity = "spiking"
    port: Port | None = None
    mask: Tensor | None
    starts: Tensor
    targets: Tensor

    def __init__(
        self,
        neuron: nn.Module,
        *,
        weight: Tensor | None = None,
        mask: Tensor | None = None,
        autapses: bool = False,
        sparse: bool = False,
        weight_gain: float = 0.2,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.neuron, self.autapses, self.sparse = neuron, autapses, sparse
        sizes = neuron.units
        self.units: tuple[int, ...] = (sizes,) if isinstance(sizes, int) else tuple(sizes)  # type: ignore[arg-type]
        if "z" not in getattr(neuron.initial_state(1), "_fields", ()):  # type: ignore[operator]
            raise UnsupportedError(
                f"{type(neuron).__name__} does not remember what it emitted",
                expected="neurons whose state has z",
                mend="put a spiking neuron here; a readout has no recurrent targets",
            )
        self.axes = neuron.axes
        size = math.prod(self.units)
        for name, given in (("weight", weight), ("mask", mask)):
            if given is not None and given.shape != (size, size):
                raise ShapeError(f"the {name} does not fit the units", given=tuple(given.shape), expected=(size, size))
        full = mask is None and autapses
        place = device_of(neuron) or place_of(weight, mask)
        exists = torch.ones(size, size, dtype=torch.bool) if mask is None else mask.bool().clone()
        exists = exists.to(place)
        if not autapses:
            exists.fill_diagonal_(False)
        if weight is None:
            scale = weight_gain / max(1.0, float(exists.sum()) / size) ** 0.5
            weight = torch.randn(size, size, generator=generator) * scale
        start = weight.detach().to(device=place, dtype=torch.get_default_dtype())
        if sparse:
            values, starts, targets = SparseWeight.of(start, exists)
            self.weight = nn.Parameter(values.clone())
            self.register_buffer("starts", starts)
            self.register_buffer("targets", targets)
        else:
            self.weight = nn.Parameter(start * exists)
            self.register_buffer("mask", None if full else exists.to(start.dtype))
        takes = "recurrent" in inspect.signature(neuron.forward).parameters
        self._fused = takes and getattr(neuron, "substeps", 1) == 1  # between substeps nothing comes back

    def matrix(self) -> Tensor:
        """The weight as a matrix `[unit (to), unit (from)]`, 0 where there is no synapse."""
        recurrent = self._recurrent()
        return recurrent.dense() if isinstance(recurrent, SparseWeight) else recurrent

    def initial_state(self, batch: int, *, dtype: torch.dtype | None = None) -> Any:
        """The neurons' state at rest."""
        return self.neuron.initial_state(batch, dtype=dtype)  # type: ignore[operator]

    def forward(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        """What the units emit `[time, batch, unit…]` for the current x, and the state after the last step."""
        with self._handed_on():
            if self._fused:
                return self.neuron(x, state, recurrent=self._recurrent())  # type: ignore[no-any-return]
            return self._walk(x, state)

    def _recurrent(self) -> Tensor | SparseWeight:
        if self.sparse:
            return SparseWeight(self.weight, self.starts, self.targets)
        return self.weight if self.mask is None else self.weight * self.mask

    def _walk(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        """Step by step, for neurons that know of no recurrent weight."""
        if state is None:
            state = self.initial_state(x.shape[1], dtype=x.dtype)
        weight, outputs = self.matrix().T, []
        for current in x.split(1):
            out, state = self.neuron(current + (state.z.flatten(1) @ weight).view(current.shape), state)
            outputs.append(out)
        return torch.cat(outputs) if outputs else torch.zeros_like(x), state

    @contextmanager
    def _handed_on(self) -> Iterator[None]:
        """Let the neurons have the port that an edit has put on this layer, for the length of one call."""
        if self.port is None:
            yield
            return
        own: dict[Literal["port"], Port | None] = vars(self.neuron)  # type: ignore[assignment]
        before: Port | None = self.neuron.port  # type: ignore[assignment]
        had = "port" in own
        own["port"] = self.port if before is None else before.then(self.port)
        try:
            yield
        finally:
            if had:
                own["port"] = before
            else:
                del own["port"]

    def extra_repr(self) -> str:
        """What `print(layer)` shows."""
        synapses = self.weight.numel() if self.sparse or self.mask is None else int(self.mask.count_nonzero())
        return f"{synapses} synapses{', sparse' if self.sparse else ''}"
