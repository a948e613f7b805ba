"""A plane in which a behaviour is turned like a dial, and the sites at which turning it means something.

With d_k the unit difference of class means at site k (mean of the positive class less that of the negative):

    b1 = the d_k with the highest mean cosine to all candidates
    b2 ∝ p - (p·b1) b1                  p the first principal component of the candidates
    μ_k^± = mean over a class of (h_k / ‖h_k‖)·b1,   s_k^± its standard error
    discriminative: μ_k⁺ μ_k⁻ < 0 and |μ_k^±| > 2 s_k^±           (in a block, all its sites or none)

One plane serves all sites. A turn by θ keeps ‖h‖, whatever the mode; so does a turn to an absolute angle, as long as b1
and b2 are orthonormal.

Source: Dang and Ngo 2026 (arXiv 2601.19375); the two standard errors are ours: means of few prompts change sign by
chance.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from plexus.edit._edit import Edit
from plexus.edit.steer._verbs import Mode, rotate
from plexus.errors import RangeError, ShapeError, SiteError
from plexus.probe import Directions, record, token_batches
from plexus.probe._collect import Positions
from plexus.probe._directions import classes, device_of
from plexus.units import Recording, Site, sites

__all__ = ["Profile", "SteeringPlane"]


class Profile(NamedTuple):
    """How the two classes lie along b1, site by site.

    Attributes:
        sites: in the order of the model.
        positive, negative: mean of (h / ‖h‖)·b1 over a class, float64 `[site]`.
        positive_error, negative_error: its standard error, `[site]`.
        norm: mean of ‖h‖ over both classes, `[site]`.

    Examples:
        >>> one, zero = torch.ones(1), torch.zeros(1)
        >>> Profile((Site("0"),), one, -one, zero, zero, one).separation
        tensor([2.])
    """

    sites: tuple[Site, ...]
    positive: Tensor
    negative: Tensor
    positive_error: Tensor
    negative_error: Tensor
    norm: Tensor

    @property
    def separation(self) -> Tensor:
        """Difference of the two means, `[site]`."""
        return self.positive - self.negative


@dataclass(frozen=True, eq=False)
class SteeringPlane:
    """One plane for all sites of a model; made by `SteeringPlane.fit` or `fit_prompts`.

    Attributes:
        b1: the direction of the positive class, of length one, float32 `[unit]`.
        b2: at a right angle to it, `[unit]`.
        candidates: unit differences of the classes, `[site, unit]`; zero where they do not differ.
        stats: where the classes lie.
        model: fingerprint of the model, if known.

    Examples:
        >>> site, one, zero = Site("0"), torch.ones(1), torch.zeros(1)
        >>> stats = Profile((site,), one, -one, zero, zero, one)
        >>> plane = SteeringPlane(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0]), torch.eye(2)[:1], stats)
        >>> plane
        SteeringPlane of 2 units: 1 of 1 sites are discriminative
        >>> identity = nn.Sequential(nn.Identity())
        >>> with plane.rotate(180).on(identity):
        ...     identity(torch.tensor([[3.0, 0.0]])).round() + 0.0
        tensor([[-3.,  0.]])
    """

    b1: Tensor
    b2: Tensor
    candidates: Tensor
    stats: Profile
    model: str | None = None

    @classmethod
    def fit(cls, positive: Recording, negative: Recording) -> SteeringPlane:
        """Fit the plane to two recordings of the same sites, one row per sample.

        Raises:
            ShapeError: sites of different widths, several rows per sample, a class without two samples.
            RangeError: values that are not finite, classes that differ nowhere, or candidates that are all parallel, so
                that there is no second direction.

        Examples:
            >>> from plexus.units import Table
            >>> one, two = Site("0"), Site("1")
            >>> table = {site: Table(range(2)) for site in (one, two)}
            >>> up, down = torch.tensor([[1.0, 0.0], [2.0, 0.0]]), torch.tensor([[-2.0, 0.0], [-1.0, 0.0]])
            >>> yes = Recording({one: up, two: torch.ones(2, 2)}, table)
            >>> no = Recording({one: down, two: torch.zeros(2, 2)}, table)
            >>> found = SteeringPlane.fit(yes, no)
            >>> found.b1, [site.path for site in found.discriminative_sites()]
            (tensor([1., 0.]), ['0'])
        """
        read = {site: classes(positive, negative, site) for site in positive.sites}
        widths = sorted({rows[0].shape[1] for rows in read.values()})
        if len(widths) != 1:
            raise ShapeError("one plane serves sites of one width", given=widths, mend="fit one plane for each width")
        for site, (high, low) in read.items():
            if min(len(high), len(low)) < 2:
                raise ShapeError("a class needs two samples for its standard error", given=(len(high), len(low)))
            if not bool(high.isfinite().all() and low.isfinite().all()):
                raise RangeError("a value is NaN or infinite", given=str(site))
        differences = torch.stack([high.mean(0) - low.mean(0) for high, low in read.values()])
        lengths = differences.norm(dim=1)
        scale = torch.stack([torch.cat(rows).norm(dim=1).mean() for rows in read.values()])
        differ = lengths > 1e-6 * scale  # the last token of all prompts is often the same, and so is what it begins as
        if not bool(differ.any()):
            raise RangeError("the two classes do not differ at any site", given=f"{len(read)} sites")
        unit = torch.where(differ[:, None], differences / lengths.clamp(min=1e-300)[:, None], 0.0)
        candidates = unit[differ]
        b1 = candidates[int((candidates @ candidates.T).mean(1).argmax())]
        axis = torch.linalg.svd(candidates - candidates.mean(0), full_matrices=False).Vh[0]
        b2 = axis - (axis @ b1) * b1
        spread = float((candidates - candidates.mean(0)).norm(dim=1).max())
        if float(b2.norm()) < 1e-4 or spread < 1e-6:
            raise RangeError(
                "all candidates are parallel, so they span no plane",
                given=f"{len(candidates)} sites",
                mend="record more sites, or give the second direction: steer.rotate({site: [b1, b2]}, …)",
            )
        b2 = b2 / b2.norm()
        return cls(b1.float(), b2.float(), unit.float(), _profile(read, b1), positive.model)

    @classmethod
    def fit_prompts(
        cls,
        model: nn.Module,
        tokenizer: Any,
        positive: Sequence[str],
        negative: Sequence[str],
        at: Iterable[Site] | None = None,
        *,
        batch: int = 16,
    ) -> SteeringPlane:
        """Fit the plane to two sets of prompts, read at their last token; by default at the norms of all blocks."""
        where = sites.norms(model) if at is None else list(at)
        yes, no = (
            record(model, token_batches(tokenizer, texts, batch=batch, device=device_of(model)), where, pool="last")
            for texts in (positive, negative)
        )
        return cls.fit(yes, no)

    def profile(self) -> Profile:
        """How the two classes lie along b1 at each site, for a plot."""
        return self.stats

    def discriminative_sites(self, *, require_all_in_block: bool = True, errors: float = 2.0) -> tuple[Site, ...]:
        """The sites at which the classes lie on opposite sides of zero along b1.

        Args:
            require_all_in_block: leave out a site if another one of its block (the same parent module) fails.
            errors: how many standard errors both means must lie away from zero; 0 asks for the signs alone.

        Returns:
            Maybe none.
        """
        s = self.stats
        opposite = s.positive * s.negative < 0
        sure = (s.positive.abs() > errors * s.positive_error) & (s.negative.abs() > errors * s.negative_error)
        passed = dict(zip(s.sites, (opposite & sure).tolist(), strict=True))
        if not require_all_in_block:
            return tuple(site for site in s.sites if passed[site])
        blocks: dict[str, bool] = {}
        for site, ok in passed.items():
            blocks[_block(site)] = blocks.get(_block(site), True) and ok
        return tuple(site for site in s.sites if blocks[_block(site)])

    def widest_sites(self, count: int) -> tuple[Site, ...]:
        """The sites with the largest |separation|, in the order of the model."""
        if not 1 <= count <= len(self.stats.sites):
            raise RangeError("so many sites there are not", given=count, expected=f"1 to {len(self.stats.sites)}")
        best = set(self.stats.separation.abs().topk(count).indices.tolist())
        return tuple(site for place, site in enumerate(self.stats.sites) if place in best)

    @property
    def direction(self) -> Directions:
        """b1 at every site, with the gap between the classes there and the middle between them, to add or to ablate."""
        s = self.stats
        middle = (s.positive + s.negative) / 2 * s.norm
        return Directions(
            dict.fromkeys(s.sites, self.b1),
            dict(zip(s.sites, (s.separation * s.norm).tolist(), strict=True)),
            dict(zip(s.sites, middle.tolist(), strict=True)),
            "plane",
            self.model,
        )

    def rotate(
        self,
        degrees: float,
        *,
        sites: Iterable[Site] | None = None,
        mode: Mode = "relative",
        positions: Positions = "all",
        second: Tensor | None = None,
    ) -> Edit:
        """The rotation in the plane, as an edit: `with plane.rotate(30).on(model): …`

        Args:
            degrees: the angle; 0 of an absolute mode is b1.
            sites: where; None: `discriminative_sites()`.
            mode: as in `steer.rotate`.
            positions: as in `steer.add`.
            second: a direction in the place of b2, for a control.

        Raises:
            RangeError: no site is left.
            SiteError: a site that was not fitted.
        """
        where = self.discriminative_sites() if sites is None else tuple(sites)
        if not where:
            raise RangeError(
                "no site is left to turn the values at",
                mend="the classes lie on one side of zero everywhere: pass sites=, or require_all_in_block=False",
            )
        unknown = [site for site in where if site not in self.stats.sites]
        if unknown:
            raise SiteError("this site was not fitted", given=str(unknown[0]))
        pair = torch.stack([self.b1, self.b2 if second is None else second.to(self.b1)])
        planes = Directions(dict.fromkeys(where, pair), {}, {}, "plane", self.model)
        return rotate(planes, degrees, mode=mode, positions=positions)

    def __repr__(self) -> str:
        chosen = len(self.discriminative_sites())
        return f"SteeringPlane of {len(self.b1)} units: {chosen} of {len(self.stats.sites)} sites are discriminative"


def _block(site: Site) -> str:
    return site.path.rpartition(".")[0] or site.path


def _profile(read: dict[Site, tuple[Tensor, Tensor]], b1: Tensor) -> Profile:
    columns = []
    for high, low in read.values():
        row = []
        for rows in (high, low):
            along = (rows @ b1) / rows.norm(dim=1).clamp(min=torch.finfo(rows.dtype).tiny)
            row += [along.mean(), along.std() / len(rows) ** 0.5]
        columns.append(torch.stack([*row, torch.cat([high, low]).norm(dim=1).mean()]))
    positive, positive_error, negative, negative_error, norm = torch.stack(columns, 1)
    return Profile(tuple(read), positive, negative, positive_error, negative_error, norm)
