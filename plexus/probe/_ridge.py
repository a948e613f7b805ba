"""Ridge regression for a whole path of penalties through one decomposition.

With centred X `[row, feature]` and Y `[row, target]` the coefficients for the penalty λ are

    W(λ) = argmin ‖Y - X W‖² + λ ‖W‖² = V diag(1 / (s² + λ)) Vᵀ Xᵀ Y,      X = U diag(s) Vᵀ

V and s² come from the eigenvectors of XᵀX where rows are plenty and every λ is far above the rounding error of s², and
from the singular values of X otherwise (λ = 0 then gives the least-norm solution). The intercept is not penalised.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import linalg

from plexus.errors import RangeError, ShapeError

Floats = NDArray[np.float64]


class RidgeFactors(NamedTuple):
    """What is shared by all penalties: `coefficients` combines it with one λ."""

    vectors: Floats
    """V, `[feature, component]`."""
    squares: Floats
    """s², `[component]`."""
    projected: Floats
    """Vᵀ Xᵀ Y, `[component, target]`."""
    x_mean: Floats
    y_mean: Floats

    def coefficients(self, penalty: float | Floats) -> tuple[Floats, Floats]:
        """Weights `[feature, target]` and intercepts `[target]` for one λ, or for one per target."""
        damped = self.squares[:, None] + np.asarray(penalty, dtype=np.float64)
        inverse = np.divide(1.0, damped, out=np.zeros_like(damped), where=damped > self._floor())
        weights = self.vectors @ (self.projected * inverse)
        return weights, self.y_mean - self.x_mean @ weights

    def _floor(self) -> float:
        return float(np.finfo(np.float64).eps ** 2 * len(self.vectors) * self.squares.max(initial=0.0))


def ridge_factors(
    x: Floats, y: Floats, *, intercept: bool = True, smallest: float = 0.0, weights: Floats | None = None
) -> RidgeFactors:
    """Decompose once. `x` `[row, feature]`, `y` `[row, target]`, `smallest` the least λ that will be asked for.

    Examples:
        >>> x = np.array([[0.0], [1.0], [2.0]])
        >>> w, b = ridge_factors(x, 2 * x + 1).coefficients(0.0)
        >>> round(float(w[0, 0]), 12), round(float(b[0]), 12)
        (2.0, 1.0)
    """
    if x.ndim != 2 or y.ndim != 2 or len(x) != len(y):
        raise ShapeError("ridge needs rows that line up", given=(x.shape, y.shape), expected="[row, …] and [row, …]")
    x_mean = np.average(x, 0, weights) if intercept else np.zeros(x.shape[1])
    y_mean = np.average(y, 0, weights) if intercept else np.zeros(y.shape[1])
    xc, yc = x - x_mean, y - y_mean
    if weights is not None:
        root = np.sqrt(weights)[:, None]
        xc, yc = xc * root, yc * root
    if len(x) >= 2 * x.shape[1]:
        gram = xc.T @ xc
        if smallest > 100 * np.finfo(np.float64).eps * np.trace(gram):
            squares, vectors = np.linalg.eigh(gram)
            return RidgeFactors(vectors, np.maximum(squares, 0.0), vectors.T @ (xc.T @ yc), x_mean, y_mean)
    u, s, vt = np.linalg.svd(xc, full_matrices=False)
    s = np.where(s > np.finfo(np.float64).eps * max(x.shape) * s.max(initial=0.0), s, 0.0)
    return RidgeFactors(vt.T, s**2, s[:, None] * (u.T @ yc), x_mean, y_mean)


def ridge_solve(x: Floats, y: Floats, penalty: float, *, intercept: bool = True) -> tuple[Floats, Floats]:
    """Weights `[feature, target]` and intercepts `[target]` for one λ; without a path a Cholesky solve is cheaper.

    Examples:
        >>> x = np.arange(20.0)[:, None]
        >>> w, b = ridge_solve(x, 2 * x + 1, 1e-9)
        >>> round(float(w[0, 0]), 9), round(float(b[0]), 9)
        (2.0, 1.0)
    """
    if len(x) >= 2 * x.shape[1]:
        x_mean = x.mean(0) if intercept else np.zeros(x.shape[1])
        y_mean = y.mean(0) if intercept else np.zeros(y.shape[1])
        xc = x - x_mean if intercept else x
        gram = xc.T @ xc
        if penalty > 100 * np.finfo(np.float64).eps * np.trace(gram):
            gram.flat[:: len(gram) + 1] += penalty
            weights = linalg.solve(gram, xc.T @ (y - y_mean), assume_a="pos", check_finite=False, overwrite_a=True)
            return weights, y_mean - x_mean @ weights
    return ridge_factors(x, y, intercept=intercept, smallest=penalty).coefficients(penalty)


def check_penalties(lambdas: Sequence[float] | Floats | float) -> Floats:
    """The penalties as an ascending array; refused when empty, negative or not finite."""
    path = np.sort(np.atleast_1d(np.asarray(lambdas, dtype=np.float64)))
    if path.ndim != 1 or path.size == 0 or not np.all(np.isfinite(path)) or path[0] < 0:
        raise RangeError("ridge penalties are finite and not negative", given=lambdas, expected="numbers ≥ 0")
    return path


def held_out_errors(factors: RidgeFactors, path: Floats, x: Floats, y: Floats) -> Floats:
    """Mean squared error on rows that were not fitted, `[λ, target]`."""
    errors = np.empty((len(path), y.shape[1]))
    for n, penalty in enumerate(path):
        weights, intercept = factors.coefficients(penalty)
        errors[n] = np.mean((x @ weights + intercept - y) ** 2, axis=0)
    return errors
