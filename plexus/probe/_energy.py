"""What a forward pass costs: multiply-accumulates, synaptic operations, and the energy they would take on a chip.

A layer whose input is spikes (0, 1, and -1 where a spike is taken back) needs one addition per spike and outgoing
weight, a synaptic operation; any other input needs a multiply-accumulate per weight, each time the layer is used.

    synaptic operations = Σ over spikes of the number of weights that each of them meets
    energy              = 0.9 pJ · additions + 4.6 pJ · multiply-accumulates

Neuron updates and memory traffic are not counted; on real chips they often weigh more.

Source: Horowitz 2014 (32-bit floating point in 45 nm); Lemaire et al. 2022 on what this estimate leaves out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from plexus.errors import UnsupportedError
from plexus.nn.synapses import DelayedConv2d, DelayedLinear, Dense, Lateral, Sparse
from plexus.probe._batches import Forward, each_batch, run
from plexus.probe._quiet import quiet
from plexus.units import Site, Visit, attach
from plexus.units._axes import default_axes
from plexus.units._paths import walk

__all__ = ["Cost", "LayerCost", "synaptic_operations"]

_SPATIAL: dict[type[nn.Module], int] = {
    nn.Linear: 0,
    Dense: 0,
    Sparse: 0,
    Lateral: 0,
    DelayedLinear: 0,
    nn.Conv1d: 1,
    nn.Conv2d: 2,
    DelayedConv2d: 2,
    nn.Conv3d: 3,
}


@dataclass(frozen=True)
class LayerCost:
    """One layer's operations, per sample.

    Attributes:
        name: path of the module.
        spikes: whether its input was spikes throughout.
        operations: additions where the input was spikes, else multiply-accumulates.
        dense: multiply-accumulates of the same layer, were every input a number.
        density: share of the inputs that were not zero.
    """

    name: str
    spikes: bool
    operations: float
    dense: float
    density: float


@dataclass(frozen=True)
class Cost:
    """The cost of a forward pass, per sample; print it."""

    layers: tuple[LayerCost, ...]
    addition: float = 0.9  # pJ
    multiply_accumulate: float = 4.6  # pJ

    @property
    def synaptic_operations(self) -> float:
        """Additions, one per spike and weight it meets."""
        return sum(layer.operations for layer in self.layers if layer.spikes)

    @property
    def multiply_accumulates(self) -> float:
        """Multiply-accumulates of the layers whose input is not spikes."""
        return sum(layer.operations for layer in self.layers if not layer.spikes)

    @property
    def dense(self) -> float:
        """Multiply-accumulates, were no input a spike."""
        return sum(layer.dense for layer in self.layers)

    @property
    def picojoule(self) -> float:
        """Energy of these operations, pJ."""
        return self.addition * self.synaptic_operations + self.multiply_accumulate * self.multiply_accumulates

    def __str__(self) -> str:
        width = max((len(layer.name) for layer in self.layers), default=5)
        lines = [f"{'layer':{width}}  input    non-zero  operations       dense"]
        for layer in self.layers:
            kind = "spikes" if layer.spikes else "numbers"
            share, done, dense = f"{layer.density:.1%}", f"{layer.operations:.3g}", f"{layer.dense:.3g}"
            lines.append(f"{layer.name:{width}}  {kind:7}  {share:>8}  {done:>10}  {dense:>10}")
        additions, products = f"{self.synaptic_operations:.3g}", f"{self.multiply_accumulates:.3g}"
        total = f"{self.picojoule / 1e3:.3g} nJ, of dense {self.multiply_accumulate * self.dense / 1e3:.3g} nJ"
        return "\n".join([*lines, f"per sample: {additions} additions, {products} multiply-accumulates; {total}"])


class _Count:
    """Counts what reaches one layer."""

    records = True

    def __init__(self, name: str, module: nn.Module, axes: str, occupied: bool) -> None:
        self.site = Site(name, axes, at="input")
        self.module, self.occupied = module, occupied
        self.spikes, self.operations, self.dense, self.nonzero, self.numbers = True, 0.0, 0.0, 0.0, 0.0
        self.samples = 0

    def __call__(self, values: Tensor, visit: Visit) -> None:
        if visit.recomputing:
            return
        x = values.detach()
        if visit.call == 0:
            self.samples += x.shape[visit.rows.index("b")] if "b" in visit.rows else 1
        self.spikes &= bool(((x == 0) | (x.abs() == 1)).all())
        fired = (x != 0).to(torch.float64)
        self.nonzero += float(fired.sum())
        self.numbers += fired.numel()
        self.operations += self._met(fired, self.occupied)
        self.dense += self._met(torch.ones_like(fired), False)

    def _met(self, x: Tensor, counted: bool) -> float:
        """How many weights the entries of x `[row…, unit]` meet."""
        module: Any = self.module
        dims = _SPATIAL[_kind(module)]
        met = _synapses(module, counted)
        if not dims:
            return float((x.flatten(0, -2).sum(0) * met.sum(0)).sum())
        maps = x.movedim(-1, -1 - dims).flatten(0, -2 - dims).sum(0, keepdim=True)
        function = getattr(nn.functional, f"conv{dims}d")
        if isinstance(module, DelayedConv2d):
            return float(function(maps, met, stride=module.stride, padding=module.padding).sum())
        options = {name: getattr(module, name) for name in ("stride", "dilation", "groups")}
        return float(function(_padded(maps, module), met, **options).sum())


@torch.no_grad()
def _synapses(module: Any, occupied: bool) -> Tensor:
    """How many weights each source meets at each target: one, none where it is zero, several while delays are spread.

    Without `occupied`, as many as the layer would hold were all weights there.
    """
    if isinstance(module, DelayedLinear | DelayedConv2d) and not module.is_hard:
        taps = module.taps().movedim(0, -1)  # [delay, target, source]
        met = (taps != 0).sum(0) if occupied else torch.full(taps.shape[1:], len(taps), device=taps.device)
    else:
        weight = module.matrix() if isinstance(module, Sparse) else module.weight
        if getattr(module, "mask", None) is not None:
            weight = weight * module.mask
        met = weight != 0 if occupied else torch.ones_like(weight)
    if isinstance(module, DelayedConv2d):
        met = met.view(module.n_out, module.n_in, module.kernel_size, module.kernel_size)
    return met.double()


def _padded(maps: Tensor, module: Any) -> Tensor:
    """The maps padded as the convolution pads them; what is padded with zeros meets weights for nothing."""
    pad = module._reversed_padding_repeated_twice
    return nn.functional.pad(maps, pad, mode="constant" if module.padding_mode == "zeros" else module.padding_mode)


def _kind(module: nn.Module) -> type[nn.Module]:
    return next(kind for kind in _SPATIAL if isinstance(module, kind))


def synaptic_operations(
    model: nn.Module,
    batches: Any,
    *,
    forward: Forward | None = None,
    occupied: bool = True,
    picojoules: Mapping[str, float] | None = None,
) -> Cost:
    """Count the operations of every linear layer and convolution on some batches, with delays or without.

    While a learnt delay is still spread over several steps, a spike meets one weight for each; round the delays first.
    Recurrent weights inside a neuron layer are not reached by this count; their synaptic operations are the layer's
    spikes times its outgoing weights.

    Args:
        model: any module; it is as before when this returns.
        batches: as for `record`.
        forward: how to run the model on a batch, `(model, batch) -> output`.
        occupied: count only weights that are not zero (spikes into pruned weights cost nothing).
        picojoules: energy of an `"addition"` and a `"multiply_accumulate"`, where not 0.9 and 4.6 pJ.

    Returns:
        A `Cost`, per sample.

    Raises:
        UnsupportedError: the model has no linear layer and no convolution.

    Examples:
        >>> from plexus.nn import LIF, Sequential
        >>> net = Sequential(nn.Linear(4, 8), LIF(8), nn.Linear(8, 2))
        >>> cost = synaptic_operations(net, torch.rand(10, 3, 4))
        >>> [layer.spikes for layer in cost.layers], cost.multiply_accumulates
        ([False, True], 320.0)
    """
    named = dict(walk(model))
    kinds = tuple(_SPATIAL)
    counts = [
        _Count(name, module, default_axes(named, name, "input"), occupied)
        for name, module in named.items()
        if isinstance(module, kinds)
    ]
    if not counts:
        raise UnsupportedError("the model has no linear layer and no convolution whose operations could be counted")
    with quiet(model), attach(model, counts, all_reached=False):
        for batch in each_batch(batches):
            run(model, batch, forward, None)
    samples = max(count.samples for count in counts)
    layers = []
    for count in counts:
        if count.numbers:
            done = count.operations if count.spikes else count.dense
            share = count.nonzero / count.numbers
            layers.append(LayerCost(count.site.path, count.spikes, done / samples, count.dense / samples, share))
    energies = picojoules or {}
    return Cost(tuple(layers), energies.get("addition", 0.9), energies.get("multiply_accumulate", 4.6))
