"""How many directions the activity of units fills.

    PR = (Σ λ_i)² / Σ λ_i²,    λ: eigenvalues of the covariance of the units

It is 1 where all units follow one direction and the number of units where all directions vary alike; being read from
a covariance, it can never exceed the number of units.

Source: Gao et al. 2017, "A theory of multineuronal dimensionality, dynamics and measurement", eq. 2.
"""

from __future__ import annotations

from torch import Tensor

from plexus.errors import RangeError, ShapeError

__all__ = ["participation_ratio"]


def participation_ratio(values: Tensor) -> float:
    """The effective number of dimensions of `values` `[row, unit]`, between 1 and the number of units.

    Raises:
        ShapeError: the values are no matrix, or have fewer than two rows.
        RangeError: no unit varies, or a value is NaN or infinite.

    Examples:
        >>> import torch
        >>> participation_ratio(torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]]))
        2.0
    """
    if values.dim() != 2 or len(values) < 2:
        raise ShapeError("a participation ratio reads rows of units", given=tuple(values.shape), expected="[row, unit]")
    values = values.double()
    centred = values - values.mean(0)
    if not bool(centred.isfinite().all()):
        raise RangeError("the values hold NaN or infinity")
    # tr(C)² / tr(C²) needs no eigenvalues
    covariance = centred.T @ centred
    total, squares = covariance.trace(), covariance.square().sum()
    if float(squares) == 0.0:
        raise RangeError("no unit varies, so there is no dimension to count", given=f"{len(values)} equal rows")
    return float(total**2 / squares)
