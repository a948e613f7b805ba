"""How alike two checkpoints are in what their units do, on the same inputs.

    r_u   = Pearson's correlation of unit u before and after, over rows
    CKA   = ‖Yᵀ X‖² / (‖Xᵀ X‖ ‖Yᵀ Y‖)           X, Y centred [row, unit]; 1 for equal up to rotation and scale
    own   = share of units whose best correlated partner in the other model is their own counterpart

The control of CKA is CKA with the rows of one model shifted against the other's, which keeps everything but the inputs.
Sums of products are kept, not rows, so any number of inputs streams through.

Source: Kornblith et al. 2019 (linear CKA).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from plexus.errors import RangeError, ShapeError, UnsupportedError
from plexus.explain.diff._related import check_build
from plexus.probe import stream
from plexus.probe._batches import Forward, each_batch
from plexus.probe._collect import Positions
from plexus.units import Neurons, Scores, Site, fingerprint
from plexus.units._rows import How


@dataclass(frozen=True)
class RecordingDiff:
    """How alike two checkpoints are at some sites.

    Attributes:
        cka: per site.
        cka_control: per site, the same with the rows of one model shifted.
        own: per site, the share of units that are best correlated with their own counterpart.
        shift: per site and unit, the change of the mean in standard deviations of the base.
        rows: how many rows were compared.
        least: the smallest median correlation of units with their counterparts at which they are taken for the same.
    """

    cka: dict[Site, float]
    cka_control: dict[Site, float]
    own: dict[Site, float]
    shift: Scores
    rows: int
    least: float
    _correlation: Scores

    @property
    def median(self) -> dict[Site, float]:
        """The median correlation of a unit with its counterpart, per site; units that never vary are left out."""
        return {site: float(self._correlation[site].nanmedian()) for site in self._correlation.sites}

    @property
    def related(self) -> bool:
        """Whether unit j of one model is unit j of the other: at every site the median correlation is large enough."""
        return all(value >= self.least for value in self.median.values())

    @property
    def correlation(self) -> Scores:
        """The correlation of every unit with its counterpart; NaN for units that never vary.

        Raises:
            UnsupportedError: the units do not correspond, so that a number per unit would mean nothing.
        """
        if not self.related:
            worst = min(self.median, key=lambda site: self.median[site])
            raise UnsupportedError(
                "the units of these two models do not correspond",
                given=f"median correlation {self.median[worst]:.3f} at {worst}, "
                f"{self.own[worst]:.0%} best matched by their own counterpart",
                expected=f"at least {self.least}",
                mend="compare whole layers (cka), or a checkpoint that was trained on from the other one",
            )
        return self._correlation

    def to_json(self) -> dict[str, Any]:
        """Plain numbers, for a file or a report."""
        return {
            "rows": self.rows,
            "related": self.related,
            "sites": [
                {
                    "site": site.to_json(),
                    "cka": self.cka[site],
                    "cka_control": self.cka_control[site],
                    "median_correlation": self.median[site],
                    "own": self.own[site],
                }
                for site in self.cka
            ],
        }

    def __str__(self) -> str:
        wide = max(len(str(site)) for site in self.cka)
        lines = [f"{'site':<{wide}}     CKA  shifted rows  units: median r  own best partner"]
        for site, value in self.cka.items():
            median = f"{self.median[site]:14.3f}" if self.related else "not comparable"
            lines.append(
                f"{site!s:<{wide}}  {value:6.3f}  {self.cka_control[site]:12.3f}  {median}  {self.own[site]:>16.0%}"
            )
        return "\n".join(lines)


def recordings(
    base: nn.Module,
    tuned: nn.Module,
    batches: Any,
    at: Site | Iterable[Site],
    *,
    pool: How | None = None,
    positions: Positions = "all",
    least: float = 0.5,
    forward: Forward | None = None,
) -> RecordingDiff:
    """Compare what the units of two checkpoints do on the same inputs.

    Args:
        base, tuned: two models of one build.
        batches: the inputs; as in `probe.record`.
        at: the sites.
        pool, positions, forward: as in `probe.record`.
        least: see `RecordingDiff.least`.

    Raises:
        UnsupportedError: the models differ in layers or shapes.
        ShapeError: fewer than three rows.

    Examples:
        >>> import copy
        >>> base = nn.Sequential(nn.Linear(3, 5), nn.Tanh())
        >>> found = recordings(base, copy.deepcopy(base), torch.randn(20, 3), Site("1", "b u"))
        >>> round(found.cka[Site("1", "b u")], 6), found.own[Site("1", "b u")], found.related
        (1.0, 1.0, True)
    """
    check_build(base, tuned)
    if not -1 <= least <= 1:
        raise RangeError("a correlation lies in [-1, 1]", given=least)
    sites = [at] if isinstance(at, Site) else list(at)
    kept = list(each_batch(batches))
    sums: dict[Site, _Sums] = {}
    first = stream(base, kept, sites, pool=pool, positions=positions, forward=forward)
    second = stream(tuned, kept, sites, pool=pool, positions=positions, forward=forward)
    for one, two in zip(first, second, strict=True):
        for site in sites:
            x, y = (_matrix(record[site]) for record in (one, two))
            if site not in sums:
                sums[site] = _Sums(x[0], y[0], one[site].shape[1])
            sums[site].add(x, y)
    results = {site: total.result() for site, total in sums.items()}
    name = fingerprint(base)
    rows = next(iter(sums.values())).rows
    if rows < 3:
        raise ShapeError("a correlation needs rows", given=rows, expected="at least 3")
    return RecordingDiff(
        {site: found.cka for site, found in results.items()},
        {site: found.control for site, found in results.items()},
        {site: found.own for site, found in results.items()},
        Scores({site: found.shift for site, found in results.items()}, None, "shift of the mean", name),
        rows,
        least,
        Scores({site: found.correlation for site, found in results.items()}, None, "correlation", name),
    )


@dataclass(frozen=True)
class _Result:
    cka: float
    control: float
    own: float
    correlation: Tensor
    shift: Tensor


class _Sums:
    """Sums of products of two recordings, about the first row, so that large means cost no digits."""

    def __init__(self, x: Tensor, y: Tensor, units: int) -> None:
        self.about = x.clone(), y.clone()
        self.units, self.rows = units, 0
        n = len(x)
        self.x, self.y = torch.zeros(n, dtype=torch.float64), torch.zeros(n, dtype=torch.float64)
        self.xx, self.yy, self.xy, self.xz = (torch.zeros(n, n, dtype=torch.float64) for _ in range(4))
        self.lag = 0  # rows that the control is off by, half of the first batch
        self.start = self.late = torch.zeros(0, n, dtype=torch.float64)

    def add(self, x: Tensor, y: Tensor) -> None:
        x, y = x - self.about[0], y - self.about[1]
        self.rows += len(x)
        self.x += x.sum(0)
        self.y += y.sum(0)
        self.xx += x.T @ x
        self.yy += y.T @ y
        self.xy += x.T @ y
        if not self.lag:
            self.lag = max(1, len(y) // 2)
        # every row beside the one `lag` rows before it; the first rows wait for the last ones
        behind = torch.cat([self.late, y])
        early = min(len(x), self.lag - len(self.start))
        self.start = torch.cat([self.start, x[:early]])
        self.xz += x[early:].T @ behind[: len(x) - early]
        self.late = behind[len(x) - early :]

    def result(self) -> _Result:
        n = max(self.rows, 1)
        apart = self.xz + self.start.T @ self.late
        mx, my = self.x / n, self.y / n
        xx, yy = self.xx / n - mx.outer(mx), self.yy / n - my.outer(my)
        xy, xz = self.xy / n - mx.outer(my), apart / n - mx.outer(my)
        scale = float(xx.norm() * yy.norm())
        spread_x, spread_y = xx.diagonal().clamp(min=0).sqrt(), yy.diagonal().clamp(min=0).sqrt()
        still = (spread_x < 1e-9 * (1 + mx.abs())) | (spread_y < 1e-9 * (1 + my.abs()))
        r = xy / torch.where(still, 1.0, spread_x)[:, None] / torch.where(still, 1.0, spread_y)[None]
        r[still], r[:, still] = -torch.inf, -torch.inf
        varied = (~still).nonzero().squeeze(1)
        own = float((r[varied].argmax(1) == varied).double().mean()) if len(varied) else 0.0
        per = self._per_unit(xy.diagonal(), xx.diagonal(), yy.diagonal())
        features = len(mx) // self.units
        moved = ((my + self.about[1]) - (mx + self.about[0])) / torch.where(spread_x > 0, spread_x, torch.nan)
        shift = moved.reshape(self.units, features).square().mean(1).sqrt() if features > 1 else moved
        return _Result(
            float(xy.square().sum()) / scale if scale > 0 else float("nan"),
            float(xz.square().sum()) / scale if scale > 0 else float("nan"),
            own,
            per,
            shift,
        )

    def _per_unit(self, both: Tensor, one: Tensor, two: Tensor) -> Tensor:
        """Correlation per unit; of a unit with features that of all its features together."""
        both, one, two = (part.reshape(self.units, -1).sum(1) for part in (both, one, two))
        spread = (one.clamp(min=0) * two.clamp(min=0)).sqrt()
        tiny = 1e-18 * (1 + one.max() * two.max()).sqrt()
        return torch.where(spread > tiny, both / torch.where(spread > 0, spread, 1.0), torch.nan).clamp(-1, 1)


def _matrix(values: Tensor) -> Tensor:
    return values.double().flatten(1)


@dataclass(frozen=True)
class Overlap:
    """What two sets of units have in common.

    Attributes:
        jaccard: shared over all.
        expected: the same, on average over two random sets of their sizes.
        p: chance that two random sets share as many.
        shared: how many units.
    """

    jaccard: float
    expected: float
    p: float
    shared: int


def overlap(first: Neurons, second: Neurons) -> Overlap:
    """How much two sets of units have in common, beside what two random sets of their sizes would.

    Args:
        first, second: sets over the same universe, for instance those that one score chooses in two checkpoints.

    Raises:
        ShapeError: the sets cover different sites.

    Examples:
        >>> site = Site("0", "b u")
        >>> one, two = (Neurons.of({site: 10}, {site: units}) for units in ([0, 1, 2], [1, 2, 3]))
        >>> found = overlap(one, two)
        >>> found.jaccard, round(found.p, 3)
        (0.5, 0.183)
    """
    if first.sizes != second.sizes:
        raise ShapeError("two sets are compared over the same sites", given=f"{first.sites} and {second.sites}")
    from scipy.stats import hypergeom

    shared = len(first & second)
    size, a, b = sum(first.sizes.values()), len(first), len(second)
    union = len(first | second)
    expected: Sequence[float] = [
        k / (a + b - k) * float(hypergeom.pmf(k, size, a, b)) for k in range(min(a, b) + 1) if a + b - k
    ]
    return Overlap(
        shared / union if union else 1.0, float(sum(expected)), float(hypergeom.sf(shared - 1, size, a, b)), shared
    )
