"""Rows of a recording as the source of a patch: which row goes where."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from plexus.errors import DtypeError, ShapeError, SiteError
from plexus.probe._collect import layout
from plexus.units import Recording, Site, Table, Visit

__all__ = ["Place", "Source", "sources"]

Place = int | tuple[int, int]
_ANY = -1


@dataclass(frozen=True, eq=False)
class Source:
    """Values to put in at one site, each with its target.

    Attributes:
        values: `[row, unit(, feature)]`.
        sample: the sample of the batch that the row goes to, `[row]`.
        position: the position that it goes to, `[row]`; -1 is every position.
        call: the call of the module that it goes to, `[row]`.
    """

    values: Tensor
    sample: Tensor
    position: Tensor
    call: Tensor

    def put(self, values: Tensor, visit: Visit) -> tuple[Tensor, Tensor]:
        """The values with the rows put in, and where that was, bool `[*rows]`."""
        lead = values.shape[: len(visit.rows)]
        rows = layout(lead, visit, "all")
        mine = (self.call == visit.call).nonzero().squeeze(1)
        size = int(torch.cat([self.position, rows.position, torch.zeros(1, dtype=torch.int64)]).max()) + 2
        have = self.sample[mine] * size + self.position[mine] + 1
        order = have.argsort()
        have, mine = have[order], mine[order]
        take = torch.full((len(rows.sample),), -1)
        for want in (rows.sample * size, rows.sample * size + rows.position + 1):  # an exact position goes before any
            at = torch.searchsorted(have, want).clamp(max=max(len(have) - 1, 0))
            if len(have):
                take = torch.where(have[at] == want, mine[at], take)
        here = take >= 0
        new = values.reshape(-1, *values.shape[len(lead) :]).clone()
        if bool(here.any()):
            if self.values.shape[1:] != new.shape[1:]:
                raise ShapeError(
                    f"the recording does not fit site {visit.site.path!r}",
                    given=f"{tuple(self.values.shape[1:])} numbers per row",
                    expected=f"{tuple(new.shape[1:])}",
                )
            index = here.nonzero().squeeze(1).to(values.device)
            new = new.index_copy(0, index, self.values[take[here]].to(new))
        return new.reshape(values.shape), here.reshape(lead).to(values.device)


def sources(recording: Recording, sites: list[Site], rows: Mapping[Place, Place] | None) -> dict[Site, Source]:
    """For each site the rows of the recording and their targets.

    Args:
        recording: where the values come from.
        sites: the sites of the edit.
        rows: for each target its source, as samples or as (sample, position); None sends each row to its own place.

    Raises:
        SiteError: the recording lacks a site, or a source that was named.
        ShapeError: two rows go to one place.
    """
    out = {}
    for site in sites:
        if site not in recording.values:
            raise SiteError("the recording does not hold a site of the edit", given=str(site))
        values, table = recording.values[site], recording.table[site]
        if rows is None:
            picked, sample, position = torch.arange(len(table)), table.sample, table.position
        else:
            picked, sample, position = _sent(site, table, rows)
        source = Source(values[picked], sample, position, table.call[picked])
        places = torch.stack([source.sample, source.position, source.call])
        if places.unique(dim=1).shape[1] != places.shape[1]:
            raise ShapeError(
                f"several rows of the recording would go to one place at site {site}",
                mend="choose among them first, e.g. recording.where(step=0), or pool",
            )
        out[site] = source
    return out


def _sent(site: Site, table: Table, rows: Mapping[Place, Place]) -> tuple[Tensor, Tensor, Tensor]:
    picked, samples, positions = [], [], []
    for target, source in rows.items():
        to_sample, to_position = _place(target)
        from_sample, from_position = _place(source)
        if (to_position is None) != (from_position is None):
            raise DtypeError(
                "a source and its target are both samples, or both (sample, position)", given=f"{target}: {source}"
            )
        same = table.sample == from_sample
        found = (same if from_position is None else same & (table.position == from_position)).nonzero().squeeze(1)
        if not len(found):
            raise SiteError(f"the recording has no row {source} at site {site}")
        picked.append(found)
        samples.append(torch.full_like(found, to_sample))
        positions.append(table.position[found] if to_position is None else torch.full_like(found, to_position))
    if not picked:
        raise ShapeError("no row was named", given=rows)
    return torch.cat(picked), torch.cat(samples), torch.cat(positions)


def _place(place: Place) -> tuple[int, int | None]:
    if isinstance(place, tuple) and len(place) == 2:
        return int(place[0]), int(place[1])
    if isinstance(place, int) and not isinstance(place, bool):
        return place, None
    raise DtypeError("a row is named by its sample, or by (sample, position)", given=place)
