"""What a dictionary of features amounts to: how much it explains, how sparsely, how many features it really uses.

    FVU = Σ ‖x - x̂‖² / Σ ‖x - x̄‖²             share of the variance left unexplained
    L0 = mean number of active features of a row
    p_i = Σ_s |z_si| / Σ_sj |z_sj|              share of feature i in all activity
    F = exp(-Σ p_i ln p_i)                      effective number of features;  ψ = F / units: superposition above 1

For the maps of a convolution the published measure sums |z| over the places of an image before it averages over images;
as p is a share, that is the sum over all rows.

Source of F and ψ: Bereska et al. 2025. The entropy is that of mean usage: features that are always active together
count apart.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from plexus.errors import RangeError, ShapeError
from plexus.probe.sae._autoencoder import SparseAutoencoder
from plexus.probe.sae._feed import Source, pieces_of
from plexus.units import Site

__all__ = ["Quality", "effective_features", "entropy_count", "quality"]

_ROWS = 4096  # rows encoded at a time


def effective_features(usage: Tensor) -> float:
    """How many features share the activity evenly: e to the entropy of their shares.

    Args:
        usage: non-negative, `[feature]`, or activity `[…, feature]`, which is summed over what leads.

    Returns:
        Between 1 (one feature does everything) and the number of features.

    Raises:
        ShapeError: there is no feature.
        RangeError: a number is negative, NaN or infinite, or all are zero.

    Examples:
        >>> effective_features(torch.tensor([2.0, 2.0, 0.0]))
        2.0
    """
    if usage.dim() == 0 or usage.numel() == 0:
        raise ShapeError("usage has no feature axis", given=tuple(usage.shape), expected="[…, feature]")
    if not bool(usage.isfinite().all()) or bool((usage < 0).any()):
        raise RangeError("usage is a non-negative number per feature", mend="pass activity after its non-linearity")
    total = usage.double().reshape(-1, usage.shape[-1]).sum(0)
    if float(total.sum()) == 0.0:
        raise RangeError("no feature is ever active, so there is nothing to count")
    return float(entropy_count(total))


def entropy_count(usage: Tensor) -> Tensor:
    """`exp(entropy)` along the last axis, in float64; 0 where nothing is used."""
    total = usage.double().sum(-1, keepdim=True)
    share = usage.double() / total.clamp_min(1e-300)
    count = torch.special.entr(share).sum(-1).exp()
    return torch.where(total.squeeze(-1) > 0, count, torch.zeros_like(count))


@dataclass(frozen=True)
class Quality:
    """What `quality` found.

    Attributes:
        rows: how many were read.
        fvu: share of the variance that the reconstruction leaves unexplained.
        l0: mean number of active features of a row.
        usage: summed activity of each feature, `[feature]`, in float64.
        frequency: share of rows in which each feature is active, `[feature]`.
        units: how many units the rows have.

    Examples:
        >>> found = quality(SparseAutoencoder(4, 8), torch.randn(64, 4, generator=torch.Generator().manual_seed(0)))
        >>> found.rows, found.alive + found.dead
        (64, 8)
    """

    rows: int
    fvu: float
    l0: float
    usage: Tensor
    frequency: Tensor
    units: int

    @property
    def explained_variance(self) -> float:
        """1 - FVU."""
        return 1.0 - self.fvu

    @property
    def alive(self) -> int:
        """How many features were active at least once."""
        return int((self.frequency > 0).sum())

    @property
    def dead(self) -> int:
        """How many never were."""
        return len(self.frequency) - self.alive

    @property
    def effective_features(self) -> float:
        """F, the effective number of features; 0 when none was active."""
        return float(entropy_count(self.usage))

    @property
    def superposition(self) -> float:
        """ψ = F / units."""
        return self.effective_features / self.units

    def __str__(self) -> str:
        return (
            f"{self.rows} rows: {100 * self.explained_variance:.1f} % of the variance explained, L0 {self.l0:.3g}, "
            f"{self.alive} of {len(self.frequency)} features alive, effective features {self.effective_features:.3g} "
            f"({self.superposition:.3g} per unit)"
        )


class Tally:
    """Sums that a quality is made of, over pieces of rows, kept where the autoencoder lies."""

    def __init__(self, features: int, units: int, device: torch.device) -> None:
        self.rows, self.active = 0, torch.zeros(features, dtype=torch.float64, device=device)
        self.usage, self.left = torch.zeros_like(self.active), 0.0
        self.mean, self.spread = self.active.new_zeros(units), 0.0

    def add(self, x: Tensor, z: Tensor, x_hat: Tensor) -> None:
        x = x.double()
        self.left += float((x - x_hat).square().sum())
        self.active += (z > 0).sum(0)
        self.usage += z.abs().sum(0, dtype=torch.float64)
        # pairwise update of mean and spread: exact for any split of the rows, without cancellation
        count, mean = len(x), x.mean(0)
        gap = mean - self.mean
        total = self.rows + count
        self.spread += float((x - mean).square().sum()) + float(gap.square().sum()) * self.rows * count / total
        self.mean += gap * (count / total)
        self.rows = total

    def result(self) -> Quality:
        if self.spread == 0.0:
            raise RangeError("no unit varies, so there is nothing to explain", given=f"{self.rows} rows")
        return Quality(
            self.rows,
            self.left / self.spread,
            float(self.active.sum()) / self.rows,
            self.usage.cpu(),
            (self.active / self.rows).cpu(),
            len(self.mean),
        )


def quality(autoencoder: SparseAutoencoder, source: Source, *, site: Site | None = None) -> Quality:
    """How much of the rows an autoencoder explains, with how many of its features; streamed.

    Args:
        autoencoder: any.
        source: rows `[row, unit]`, a `Recording`, or a stream of recordings, best of data not trained on.
        site: which, where several were recorded.

    Raises:
        ShapeError: the rows have other units than the autoencoder, or there are none.
        RangeError: the rows do not vary, or hold NaN.
    """
    tally = Tally(autoencoder.features, autoencoder.units, autoencoder.decoder.device)
    _each(autoencoder, source, site, tally.add)
    if not tally.rows:
        raise ShapeError("there are no rows")
    return tally.result()


def _each(
    autoencoder: SparseAutoencoder, source: Source, site: Site | None, take: Callable[[Tensor, Tensor, Tensor], None]
) -> None:
    device = autoencoder.decoder.device
    with torch.no_grad():
        for piece in pieces_of(source, site):
            for rows in piece.split(_ROWS):
                x = rows.to(device)
                z = autoencoder.encode(x)
                x_hat = autoencoder.reconstruct(x, z)
                take(x, z, x_hat)
