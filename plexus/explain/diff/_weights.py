"""How far the weights moved.

relative   ‖W₁ - W₀‖ / ‖W₀‖            of a parameter, of a layer, or of the weights into one unit
cosine     ⟨W₀, W₁⟩ / (‖W₀‖ ‖W₁‖)
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from plexus.errors import UnsupportedError
from plexus.explain.diff._related import check_build
from plexus.units import Scores, Site, fingerprint
from plexus.units._axes import default_axes, known_axes
from plexus.units._families import linear_size
from plexus.units._paths import walk

_NUMBER = re.compile(r"(.*?\.\d+)(\.|$)")


class Moved(NamedTuple):
    """How far one group of weights moved.

    Attributes:
        name: of the parameter or layer.
        numbers: how many weights it has.
        relative: length of the change over the length of the weights.
        cosine: between before and after.
    """

    name: str
    numbers: int
    relative: float
    cosine: float


@dataclass(frozen=True)
class WeightDiff:
    """How far the weights of two checkpoints are apart.

    Attributes:
        parameters: each parameter, in the order of the model; tied ones once.
        layers: the same by block (`model.layers.0`, …); what stands outside of blocks goes by its module.
        units: per linear or convolutional layer, the relative change of the weights into each of its units.
        cosine: over all weights.
    """

    parameters: tuple[Moved, ...]
    layers: tuple[Moved, ...]
    units: Scores
    cosine: float

    def to_json(self) -> dict[str, Any]:
        """Plain numbers, for a file or a report."""
        return {
            "cosine": self.cosine,
            "layers": [moved._asdict() for moved in self.layers],
            "parameters": [moved._asdict() for moved in self.parameters],
        }

    def __str__(self) -> str:
        wide = max(len(moved.name) for moved in self.layers)
        wide = max(wide, len("layer"))
        lines = [f"{'layer':<{wide}}    weights  relative change    cosine"]
        lines += [f"{m.name:<{wide}}  {m.numbers:>9}  {m.relative:>15.4f}  {m.cosine:>8.5f}" for m in self.layers]
        return "\n".join(lines)


def weights(base: nn.Module, tuned: nn.Module) -> WeightDiff:
    """Compare the weights of two checkpoints of one model.

    Args:
        base: the model before.
        tuned: the model after.

    Raises:
        UnsupportedError: the two differ in layers or shapes, or their weights are packed (and have no lengths) or
            offloaded.

    Examples:
        >>> import copy
        >>> base = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
        >>> tuned = copy.deepcopy(base)
        >>> with torch.no_grad():
        ...     _ = tuned[0].weight[1].mul_(1.5)
        >>> found = weights(base, tuned)
        >>> [round(value, 3) for value in found.units[Site("0")].tolist()], found.layers[1].relative
        ([0.0, 0.5, 0.0, 0.0], 0.0)
    """
    check_build(base, tuned)
    parameters: list[Moved] = []
    sums: dict[str, tuple[int, Tensor]] = {}
    with torch.no_grad():
        for name, one, two in _pairs(base, tuned):
            if not one.is_floating_point():
                raise UnsupportedError("packed weights have no lengths to compare", given=f"{name}: {one.dtype}")
            if one.is_meta or two.is_meta:
                raise UnsupportedError(
                    "offloaded weights are not in memory", given=name, mend="load both models without offloading"
                )
            before, after = one.detach().double().cpu().flatten(), two.detach().double().cpu().flatten()
            found = torch.stack(
                [(after - before).square().sum(), before.square().sum(), after.square().sum(), before @ after]
            )
            parameters.append(_moved(name, before.numel(), found))
            layer = _layer(name)
            count, total = sums.get(layer, (0, torch.zeros(4, dtype=torch.float64)))
            sums[layer] = count + before.numel(), total + found
        layers = tuple(_moved(name, count, total) for name, (count, total) in sums.items())
        whole = torch.stack([total for _, total in sums.values()]).sum(0)
        units = Scores(dict(_units(base, tuned)), None, "relative change of the weights", fingerprint(base))
    return WeightDiff(tuple(parameters), layers, units, _moved("", 0, whole).cosine)


def _moved(name: str, numbers: int, sums: Tensor) -> Moved:
    change, before, after, product = sums.tolist()
    relative = 0.0 if change == 0 else float("inf") if before == 0 else (change / before) ** 0.5
    cosine = 1.0 if change == 0 else 0.0 if before == 0 or after == 0 else product / (before * after) ** 0.5
    return Moved(name, numbers, relative, min(1.0, max(-1.0, cosine)))


def _layer(name: str) -> str:
    block = _NUMBER.match(name)
    return block[1] if block else name.rpartition(".")[0] or name


def _pairs(base: nn.Module, tuned: nn.Module) -> Iterator[tuple[str, Tensor, Tensor]]:
    seen: set[int] = set()
    for (path, one), (_, two) in zip(walk(base), walk(tuned), strict=True):
        for name, value in one._parameters.items():
            other = two._parameters[name]
            if value is not None and other is not None and id(value) not in seen:
                seen.add(id(value))
                yield f"{path}.{name}" if path else name, value, other


def _units(base: nn.Module, tuned: nn.Module) -> Iterator[tuple[Site, Tensor]]:
    """Per layer with a weight matrix, the relative change of the weights into each output unit."""
    named = dict(walk(base))
    for (path, one), (_, two) in zip(walk(base), walk(tuned), strict=True):
        weight, other = getattr(one, "weight", None), getattr(two, "weight", None)
        if (
            not isinstance(weight, Tensor)
            or not isinstance(other, Tensor)
            or weight.dim() < 2
            or isinstance(one, nn.Embedding)
        ):
            continue
        if linear_size(one) is None and not (known_axes(one) or "").startswith("b u "):
            continue
        rows, after = weight.detach().double().cpu(), other.detach().double().cpu()
        if type(one).__name__ == "Conv1D":  # stored as [input, output]
            rows, after = rows.T, after.T
        elif isinstance(one, nn.modules.conv._ConvTransposeNd):
            rows, after = rows.transpose(0, 1), after.transpose(0, 1)
        length = rows.flatten(1).norm(dim=1)
        change = (after - rows).flatten(1).norm(dim=1)
        yield Site(path, default_axes(named, path)), torch.where(change == 0, 0.0, change / length)
