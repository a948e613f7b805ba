"""How often a unit is silent, and how often it is at its limit."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from plexus.errors import RangeError
from plexus.probe.scores._source import Features, Reading, Source
from plexus.units import Scores, Site


def dead(record: Source, threshold: float = 0.0, *, features: Features = None) -> Scores:
    """The share of rows in which a unit is silent: its absolute value is at most `threshold`. 1 is a dead unit.

    Args:
        record: a `Recording` or a stream of them; read once.
        threshold: in the unit's own numbers, not negative.
        features: how a unit that holds several features becomes one number ("norm", "mean").

    Raises:
        RangeError: if the threshold is negative or NaN.

    Examples:
        >>> from plexus.units import Recording, Site, Table
        >>> hidden = Site("relu", "b u")
        >>> rec = Recording({hidden: torch.tensor([[0.0, 2.0], [0.0, 0.0]])}, {hidden: Table([0, 1])})
        >>> dead(rec)[hidden]
        tensor([1.0000, 0.5000], dtype=torch.float64)
    """
    if not threshold >= 0:
        raise RangeError("a threshold of silence is not negative", given=threshold)
    return _share(record, lambda values: values.abs() <= threshold, "share of silent rows", features)


def saturated(
    record: Source,
    high: float | None = 1.0,
    low: float | None = None,
    *,
    margin: float = 0.01,
    features: Features = None,
) -> Scores:
    """The share of rows in which a unit is at its limit: within `margin` of `high` or of `low`, or beyond.

    Args:
        record: a `Recording` or a stream of them; read once.
        high: upper limit (1 for a sigmoid, tanh or spike), or None.
        low: lower limit (-1 for tanh), or None.
        margin: in the unit's own numbers.
        features: how a unit that holds several features becomes one number ("norm", "mean").

    Raises:
        RangeError: if there is no limit, the limits cross, or the margin is negative.

    Examples:
        >>> from plexus.units import Recording, Site, Table
        >>> hidden = Site("tanh", "b u")
        >>> rec = Recording({hidden: torch.tensor([[0.999, 0.2], [-1.0, 0.4]])}, {hidden: Table([0, 1])})
        >>> saturated(rec, high=1.0, low=-1.0)[hidden]
        tensor([1., 0.], dtype=torch.float64)
    """
    if high is None and low is None:
        raise RangeError("saturation needs a limit", given="high=None, low=None")
    if high is not None and low is not None and not low < high:
        raise RangeError("the limits cross", given=f"low={low}, high={high}")
    if not margin >= 0:
        raise RangeError("a margin is not negative", given=margin)

    def at_limit(values: Tensor) -> Tensor:
        hit = torch.zeros_like(values, dtype=torch.bool)
        if high is not None:
            hit |= values >= high - margin
        if low is not None:
            hit |= values <= low + margin
        return hit

    return _share(record, at_limit, "share of saturated rows", features)


def _share(record: Source, test: Callable[[Tensor], Tensor], name: str, features: Features) -> Scores:
    reading = Reading(record, None, features)
    hits: dict[Site, Tensor] = {}
    rows: dict[Site, int] = {}
    for piece in reading.pieces():
        found = torch.where(piece.values.isnan(), torch.nan, test(piece.values).double()).sum(0)
        hits[piece.site] = hits[piece.site] + found if piece.site in hits else found
        rows[piece.site] = rows.get(piece.site, 0) + len(piece.values)
    return Scores({site: found / rows[site] for site, found in hits.items()}, None, name, reading.model)
