"""How much a unit's value tells about a concept, in bits.

    I = Σ p(x, y) log2 [ p(x, y) / (p(x) p(y)) ]                       x: the bin of the value, y: the concept
    I_corrected = I - (R_xy - R_x - R_y + 1) / (2 N ln 2)              R: bins that any of the N rows fell into

The plug-in I is never negative and too large by about the correction; the corrected one scatters around zero for a unit
that tells nothing. Values are counted, row by row, on a fine grid that needs no range: sixteen steps per octave of
their distance from an origin, on both sides, from 2⁻¹⁷ to 2¹⁶. Neighbouring steps are then joined into bins that hold
about equally many rows. The origin is zero, where rectified units are; for a unit that stays far from zero (in the
first rows read, its median lies further away than they spread) it is that median.

Sources: Miller 1955 and Madow 1948 (correction), Panzeri et al. 2007 (review).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from plexus.errors import RangeError, ShapeError, UnknownNameError
from plexus.probe._sizes import announce
from plexus.probe.scores._moments import concept_scores
from plexus.probe.scores._source import Features, Piece, Reading, Source, warn_undefined
from plexus.units import Scores, Site
from plexus.units._recording import Labels

_OCTAVES, _STEPS, _LOWEST = 32, 16, -16  # the grid: octaves on each side of zero, steps in each, exponent of the lowest
_SIDE = _OCTAVES * _STEPS
FINE = 2 * _SIDE + 1


def mutual_information(
    record: Source,
    labels: Labels | None = None,
    *,
    names: Sequence[str] | None = None,
    bins: int | Tensor = 8,
    correction: Literal["miller-madow"] | None = "miller-madow",
    together: bool = False,
    features: Features = None,
) -> Scores:
    """Mutual information of each unit's binned value and each concept, in bits.

    Args:
        record: a `Recording` or a stream of them; read once. Only counts are held.
        labels: as in `auroc`; classes are scored one against the rest.
        names: of the classes or concepts.
        bins: how many bins of about equally many rows, or the edges `[edge]` between them, ascending, in the units'
            own numbers: a value lies in the bin after the last edge that it reaches.
        correction: subtract the first-order bias ("miller-madow"), or give the plug-in estimate (None).
        together: one number per unit, for all classes at once, instead of one per concept.
        features: how a unit that holds several features becomes one number ("norm", "mean").

    Returns:
        Scores `[concept, unit]`, or `[unit]` for one nameless concept or `together`; NaN for units with NaN, and, with
        a warning, for a concept that no row or every row shows.

    Raises:
        ShapeError: no labels, labels that do not match the samples.
        RangeError: fewer than two bins, edges that do not ascend, `together` with rows that show no or two concepts.

    Examples:
        >>> from plexus.units import Recording, Site, Table
        >>> hidden = Site("fc1", "b u")
        >>> rec = Recording({hidden: torch.tensor([[0.0, 1.0], [0.0, 2.0], [3.0, 1.0], [3.0, 2.0]])},
        ...                 {hidden: Table(range(4))})
        >>> mutual_information(rec, torch.tensor([0, 0, 1, 1]), bins=2, correction=None)[hidden]
        tensor([1., 0.], dtype=torch.float64)
    """
    edges = _checked(bins)
    if correction not in ("miller-madow", None):
        raise UnknownNameError.among("correction", str(correction), ("miller-madow", "None"))
    reading = Reading(record, labels, features, names, required=True)
    found: dict[Site, _Counts] = {}
    for piece in reading.pieces():
        if piece.site not in found:
            found[piece.site] = _Counts(piece, edges)
        found[piece.site].add(piece, together)
    values: dict[Site, dict[str, Tensor]] = {}
    for site, counts in found.items():
        joint, rows = counts.binned(None if edges is not None else int(bins))  # [concept, unit, bin], [unit, bin]
        if together:
            values[site] = {"": _masked(_information(joint, correction), counts.broken)}
            continue
        values[site] = {}
        for concept, shown in zip(counts.concepts, joint, strict=True):
            if int(shown[0].sum()) in (0, int(rows[0].sum())):
                warn_undefined("mutual information", concept, "no row or every row shows it")
                bits = torch.full((len(rows),), torch.nan, dtype=torch.float64)
            else:
                bits = _information(torch.stack([shown, rows - shown]), correction)
            values[site][concept] = _masked(bits, counts.broken)
    if together:
        return Scores({site: by[""] for site, by in values.items()}, None, "mutual information", reading.model)
    return concept_scores(values, reading, "mutual information")


def bytes_needed(units: int, concepts: int, cells: int = FINE) -> int:
    """Memory of the counts of one site."""
    return 8 * units * (concepts + 1) * cells


class _Counts:
    """Rows per fine cell: of each concept `[concept, unit, cell]` and of all `[unit, cell]`."""

    def __init__(self, piece: Piece, edges: Tensor | None) -> None:
        self.edges, self.units = edges, piece.values.shape[1]
        self.concepts = tuple(piece.shown)
        self.cells = FINE if edges is None else len(edges) + 1
        announce(f"mutual information at {piece.site}", bytes_needed(self.units, len(self.concepts), self.cells))
        self.of = torch.zeros(len(self.concepts), self.units, self.cells, dtype=torch.int64)
        self.all = torch.zeros(self.units, self.cells, dtype=torch.int64)
        self.broken = torch.zeros(self.units, dtype=torch.bool)
        self.origin = _origin(piece.values) if len(piece.values) else None

    def add(self, piece: Piece, together: bool) -> None:
        if together and bool((torch.stack(list(piece.shown.values())).sum(0) != 1).any()):
            raise RangeError("together needs classes: every row shows just one", given=", ".join(self.concepts))
        values = piece.values
        self.broken |= values.isnan().any(0)
        values = values.nan_to_num(0.0, math.inf, -math.inf)
        if self.origin is None and len(values):
            self.origin = _origin(values)
        if self.edges is not None:
            cell = torch.bucketize(values, self.edges.to(values), right=True)
        else:
            cell = _fine(values if self.origin is None else values - self.origin)
        index = cell + torch.arange(self.units) * self.cells
        self.all += self._count(index)
        for number, shown in enumerate(piece.shown.values()):
            self.of[number] += self._count(index[shown])

    def binned(self, bins: int | None) -> tuple[Tensor, Tensor]:
        """The counts with neighbouring cells joined."""
        if bins is None:
            return self.of, self.all
        # a cell goes where the middle of its ranks lies
        middle = self.all.cumsum(1) - self.all / 2
        coarse = (middle / self.all.sum(1, keepdim=True).clamp(min=1) * bins).long().clamp(max=bins - 1)
        rows = torch.zeros(self.units, bins, dtype=torch.int64).scatter_add(1, coarse, self.all)
        shape = (len(self.of), self.units, bins)
        index = coarse.expand(len(self.of), -1, -1)
        return torch.zeros(shape, dtype=torch.int64).scatter_add(2, index, self.of), rows

    def _count(self, index: Tensor) -> Tensor:
        return torch.bincount(index.reshape(-1), minlength=self.units * self.cells).view(self.units, self.cells)


def _origin(values: Tensor) -> Tensor:
    """Where the fine grid of each unit is finest, `[unit]`."""
    some = values[:4096].nan_to_num(0.0, 0.0, 0.0)
    middle = some.median(0).values
    return torch.where(middle.abs() > some.amax(0) - some.amin(0), middle, 0.0)


def _fine(values: Tensor) -> Tensor:
    """The cell of the fine grid of each value; larger values lie in later cells."""
    mantissa, exponent = torch.frexp(values.abs().clamp(max=2.0 ** (_LOWEST + _OCTAVES)))
    step = (exponent - _LOWEST) * _STEPS + ((mantissa - 0.5) * 2 * _STEPS).long()
    step = (step + 1).clamp(0, _SIDE)  # what is smaller than the lowest step counts as zero
    step = torch.where(values == 0, 0, step)
    return _SIDE + step * values.sign().long()


def _information(joint: Tensor, correction: str | None) -> Tensor:
    """Bits that the bins `[concept, unit, bin]` tell about which concept it is, `[unit]`."""
    counts = joint.double()
    total = counts.sum((0, 2))
    of_concept, of_bin = counts.sum(2, keepdim=True), counts.sum(0, keepdim=True)
    ratio = counts * total[:, None] / (of_concept * of_bin)
    terms = torch.where(counts > 0, counts * ratio.log2(), 0.0)
    bits: Tensor = terms.sum((0, 2)) / total
    if correction is None:
        return bits.clamp(min=0)
    used = (counts > 0).sum((0, 2)) - (of_concept > 0).sum((0, 2)) - (of_bin > 0).sum((0, 2)) + 1
    return bits - used / (2 * total * math.log(2))


def _masked(bits: Tensor, broken: Tensor) -> Tensor:
    return torch.where(broken, torch.nan, bits)


def _checked(bins: int | Tensor) -> Tensor | None:
    if isinstance(bins, Tensor):
        edges = bins.double().cpu()
        if edges.dim() != 1 or not len(edges):
            raise ShapeError("edges of bins have the wrong shape", given=tuple(edges.shape), expected="[edge]")
        if not bool((edges.diff() > 0).all()) or not bool(edges.isfinite().all()):
            raise RangeError("edges of bins ascend", given=edges.tolist()[:8])
        return edges
    if isinstance(bins, bool) or not isinstance(bins, int) or not 2 <= bins <= FINE:
        raise RangeError("a number of bins", given=bins, expected=f"an int, 2 to {FINE}, or edges")
    return None
