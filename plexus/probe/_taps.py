"""Operations that look at values as they pass, or hold on to them so that a loss can be differentiated by them."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import NamedTuple

from torch import Tensor

from plexus.probe._collect import Collector, Layout, Positions, layout
from plexus.units import Site, Visit


class PassEnded(BaseException):
    """Leaves a pass whose remainder nobody asked for; not an `Exception`, which models may catch."""


class Ending:
    """Ends a pass once every site was visited as often as in the first batch, which runs whole."""

    def __init__(self) -> None:
        self._first: Counter[Site] | None = None
        self._seen: Counter[Site] = Counter()

    def begin(self) -> None:
        """A new batch."""
        if self._first is None and self._seen:
            self._first = self._seen
        self._seen = Counter()

    def visited(self, site: Site) -> None:
        """Note a visit; raises `PassEnded` if it was the last one of the batch."""
        self._seen[site] += 1
        if self._first is not None and self._seen == self._first:
            raise PassEnded("the last site of this pass was recorded")


class Taken(NamedTuple):
    """One visit whose values a loss can be differentiated by."""

    site: Site
    value: Tensor
    visit: Visit
    rows: Layout


class Look:
    """Records values."""

    records = True

    def __init__(self, site: Site, positions: Positions, collector: Collector, ending: Ending | None = None) -> None:
        self.site, self.positions, self.collector, self.ending = site, positions, collector, ending

    def __call__(self, values: Tensor, visit: Visit) -> None:
        if not visit.recomputing:
            rows = layout(values.shape[: len(visit.rows)], visit, self.positions)
            self.collector.add(self.site, values, visit, rows)
            if self.ending is not None:
                self.ending.visited(self.site)


class Slope:
    """Passes values through and remembers them, so that a loss can be differentiated by them."""

    records = False

    def __init__(self, site: Site, positions: Positions = "all") -> None:
        # an edit that changes nothing at the read-out sees the very values that the loop gave
        self.site, self._key, self.positions = replace(site, where="readout"), site, positions
        self._taken: list[Taken] = []

    def __call__(self, values: Tensor, visit: Visit) -> Tensor | None:
        if visit.recomputing:
            return None
        value = values if values.requires_grad else values.detach().requires_grad_()
        rows = layout(values.shape[: len(visit.rows)], visit, self.positions)
        self._taken.append(Taken(self._key, value, visit, rows))
        return value.clone()

    def taken(self) -> list[Taken]:
        """What passed since the last time, and forget it."""
        taken, self._taken = self._taken, []
        return taken
