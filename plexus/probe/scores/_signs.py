"""How often a unit moves the same way from the wrong member of a pair to the right one.

With g_j = x_j⁺ - x_j⁻ over N pairs, n⁺ and n⁻ the counts of g_j > 0 and g_j < 0:

    β = +max(n⁺, n⁻)/N  where n⁺ >= n⁻, else  -max(n⁺, n⁻)/N
    p = P(|B - n/2| >= |n⁺ - n/2|),  B ~ Binomial(n, 1/2),  n = n⁺ + n⁻       the sign test

|β| lies in [1/2, 1] where no g_j is zero; the size of g_j does not matter. Of M units that do nothing the largest |β|
is near 1/2 + √(ln M / (2N)), so units are believed by their p after Benjamini and Hochberg, not by |β|.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from plexus.errors import DtypeError, RangeError, ShapeError, UnsupportedError
from plexus.units import Neurons, Recording, Scores, Site

__all__ = ["SignConsistency", "sign_consistency"]

FEWEST = 20
"""Pairs that the sign test needs at least."""


class SignConsistency(NamedTuple):
    """What `sign_consistency` finds.

    Attributes:
        beta: signed share of the pairs in which a unit moves its usual way, in [-1, 1].
        p_value: of the two-sided sign test, each unit by itself.
        pairs: how many there were.
    """

    beta: Scores
    p_value: Scores
    pairs: int

    def significant(self, level: float = 0.05) -> Neurons:
        """The units whose direction is no accident: Benjamini and Hochberg over all units of all sites.

        Args:
            level: share of accidents among the units chosen that is put up with.

        Raises:
            RangeError: the level is not between 0 and 1.
        """
        from scipy.stats import false_discovery_control

        if not 0 < level < 1:
            raise RangeError("a level lies between 0 and 1", given=level)
        flat = torch.cat([self.p_value[site] for site in self.p_value.sites])
        keep = torch.from_numpy(false_discovery_control(flat.numpy()) <= level)
        masks = keep.split([self.p_value.sizes[site] for site in self.p_value.sites])
        return Neurons(dict(zip(self.p_value.sites, masks, strict=True)), self.p_value.model)


def sign_consistency(right: Recording, wrong: Recording) -> SignConsistency:
    """How consistently each unit is higher (or lower) for the right member of a pair than for the wrong one.

    Args:
        right: one row per pair, `pool="last"` for instance.
        wrong: the other member of each, in the same order.

    Raises:
        ShapeError: the recordings differ in pairs, sites or units, or hold several rows per pair.
        RangeError: fewer than 20 pairs.
        UnsupportedError: units that are vectors.

    Source: Feng et al. 2026 (arXiv 2602.04428); the test is added.

    Examples:
        >>> from plexus.units import Table
        >>> site, rows = Site("0"), Table(range(40))
        >>> wrong = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
        >>> noise = torch.randn(40, 3, generator=torch.Generator().manual_seed(1))
        >>> right = wrong + noise + torch.tensor([3.0, -3.0, 0.0])
        >>> found = sign_consistency(Recording({site: right}, {site: rows}), Recording({site: wrong}, {site: rows}))
        >>> found.beta[site][:2]
        tensor([ 1., -1.], dtype=torch.float64)
        >>> found.significant().indices(site)
        tensor([0, 1])
    """
    from scipy.stats import binom

    for recording in (right, wrong):
        if not isinstance(recording, Recording):
            raise DtypeError("signs are counted in two recordings", given=type(recording).__name__)
    if set(right.sites) != set(wrong.sites):
        raise ShapeError(
            "the two recordings are of different sites", given=f"{len(right.sites)} and {len(wrong.sites)}"
        )
    beta, p_value = {}, {}
    pairs = right.samples
    if wrong.samples != pairs:
        raise ShapeError("pairs have two members", given=f"{pairs} right, {wrong.samples} wrong")
    if pairs < FEWEST:
        raise RangeError("signs of so few pairs say little", given=pairs, expected=f"at least {FEWEST}")
    for site in right.sites:
        moved = _rows(right, site) - _rows(wrong, site)
        up, down = (moved > 0).sum(0), (moved < 0).sum(0)
        most = torch.maximum(up, down)
        beta[site] = torch.where(up >= down, 1.0, -1.0).double() * most / pairs
        n = (up + down).numpy()
        p = np.minimum(1.0, 2 * binom.sf(most.numpy() - 1, n, 0.5))
        p_value[site] = torch.from_numpy(np.where(n == 0, 1.0, p))
    return SignConsistency(
        Scores(beta, None, "sign consistency", right.model),
        Scores(p_value, None, "p of the sign test", right.model),
        pairs,
    )


def _rows(recording: Recording, site: Site) -> Tensor:
    """One row per sample, in the order of the samples, float64."""
    values, table = recording[site], recording.table[site]
    if values.dim() != 2:
        raise UnsupportedError(
            f"units of site {site} are vectors", mend="name its numbers as units, e.g. axes='b t u' for 'b t (u:4 f)'"
        )
    if len(table) != recording.samples or len(table.sample.unique()) != len(table):
        raise ShapeError(
            f"there is not one row per sample at site {site}",
            given=f"{len(table)} rows of {recording.samples} samples",
            mend="record(..., pool='last')",
        )
    return values[table.sample.argsort()].double()
