"""How many units sets have in common, beside how many sets of their sizes share by chance.

    O_ij = |S_i ∩ S_j|,      E[O_ij] = Σ_site n_i n_j / N
    p_ij = P(Σ_site H_site >= O_ij),   H_site hypergeometric with N units, n_i marked, n_j drawn

Both sets count as drawn at random at each site, as many units as they have there; so units that gather in one layer do
not pass for common ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np
import torch
from torch import Tensor

from plexus.errors import DtypeError, ShapeError
from plexus.units import Neurons


@dataclass(frozen=True)
class OverlapMatrix:
    """What sets of units share; made by `overlap_matrix`.

    Attributes:
        names: of the sets.
        shared: number of common units, float64 `[set, set]`.
        expected: the same for sets drawn at random, as many units at each site.
        jaccard: common units over all units of both; 0 for two empty sets.
        p: probability of sharing at least so many by chance, exact; 1 on the diagonal.

    Examples:
        >>> from plexus.units import Site
        >>> site = Site("fc1", "b u")
        >>> one, two = (Neurons.of({site: 10}, {site: units}) for units in ([0, 1], [1, 2]))
        >>> found = overlap_matrix({"one": one, "two": two})
        >>> found.shared[0, 1].item(), found.expected[0, 1].item(), round(found.p[0, 1].item(), 4)
        (1.0, 0.4, 0.3778)
    """

    names: tuple[str, ...]
    shared: Tensor
    expected: Tensor
    jaccard: Tensor
    p: Tensor

    @property
    def pairs(self) -> Tensor:
        """Places `[2, pair]` of the pairs of different sets, each once: `matrix.shared[tuple(matrix.pairs)]`."""
        return torch.triu_indices(len(self.names), len(self.names), 1)

    def to_json(self) -> dict[str, Any]:
        """Plain numbers, for a file or a report."""
        parts = {name: getattr(self, name).tolist() for name in ("shared", "expected", "jaccard", "p")}
        return {"names": list(self.names), **parts}

    def __str__(self) -> str:
        wide = max(8, *map(len, self.names))
        lines = [
            "units in common (by chance)",
            " " * wide + "".join(f"  {name:>{max(12, len(name))}}" for name in self.names),
        ]
        for row, name in enumerate(self.names):
            cells = [f"{int(s)} ({e:.1f})" for s, e in zip(self.shared[row], self.expected[row].tolist(), strict=True)]
            lines.append(
                f"{name:<{wide}}" + "".join(f"  {c:>{max(12, len(n))}}" for c, n in zip(cells, self.names, strict=True))
            )
        return "\n".join(lines)


def overlap_matrix(sets: Mapping[str, Neurons]) -> OverlapMatrix:
    """Count the units that sets have in common.

    Args:
        sets: by name, all of one model and over the same sites.

    Raises:
        ShapeError: fewer than two sets, or sets over different sites.
        DtypeError: what is no set of units.
        SiteError: sets of different models.

    Examples:
        >>> from plexus.units import Site
        >>> site = Site("fc1", "b u")
        >>> same = Neurons.of({site: 10}, {site: [3, 4]})
        >>> overlap_matrix({"a": same, "b": same}).jaccard.tolist()
        [[1.0, 1.0], [1.0, 1.0]]
    """
    if not isinstance(sets, Mapping) or len(sets) < 2:
        raise ShapeError("an overlap needs at least two sets", given=type(sets).__name__)
    for units in sets.values():
        if not isinstance(units, Neurons):
            raise DtypeError("what overlaps are sets of units", given=type(units).__name__, expected="Neurons")
    names, chosen = tuple(sets), list(sets.values())
    if any(set(units.sites) != set(chosen[0].sites) for units in chosen):
        raise ShapeError("the sets cover different sites", mend="extend them: a.over(b)")
    size = (len(names), len(names))
    shared, expected, jaccard, p = (torch.zeros(size, dtype=torch.float64) for _ in range(4))
    for i, one in enumerate(chosen):
        for j, two in enumerate(chosen):
            common, union = len(one & two), len(one | two)
            counts = [(n, one.counts[site], two.counts[site]) for site, n in one.sizes.items()]
            shared[i, j], jaccard[i, j] = common, common / union if union else 0.0
            expected[i, j] = sum(a * b / n for n, a, b in counts)
            p[i, j] = 1.0 if i == j else _tail(counts, common)
    return OverlapMatrix(names, shared, expected, jaccard, p)


def _tail(counts: list[tuple[int, int, int]], common: int) -> float:
    from scipy.stats import hypergeom

    parts = [hypergeom.pmf(np.arange(min(a, b) + 1), n, a, b) for n, a, b in counts]
    return min(1.0, float(reduce(np.convolve, parts)[common:].sum()))
