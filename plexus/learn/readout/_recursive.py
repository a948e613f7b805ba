"""Recursive least squares: a ridge readout kept up to date one row at a time, the learning rule of FORCE.

    k = P x / (φ + xᵀ P x),   e = y - Wᵀ x,   W ← W + k e,   P ← (P - k xᵀ P) / φ,   P[0] = 1/λ

With forgetting φ = 1 the map after any number of rows is the ridge solution with penalty λ on those rows (the constant
input, if any, is penalised like the others). FORCE (Sussillo & Abbott 2009) feeds the output back into the network
while the rule holds the error small.
"""

from __future__ import annotations

from typing import Any, Self

import numpy as np

from plexus.errors import RangeError, ShapeError
from plexus.learn.readout._estimator import Floats, Readout, as_targets


class RecursiveReadout(Readout):
    """Linear readout learned online by recursive least squares.

    Args:
        penalty: λ, the ridge penalty at the start. forgetting: φ in (0, 1]; 1 forgets nothing.
        fit_intercept: add a constant input.

    Attributes:
        coef_: `[feature]` or `[target, feature]`. intercept_: number or `[target]`.

    Examples:
        >>> x = np.random.default_rng(0).normal(size=(200, 3))
        >>> readout = RecursiveReadout(penalty=1e-6)
        >>> for row, target in zip(x, x @ [1.0, 2.0, 3.0]):
        ...     _ = readout.partial_fit(row[None], [target])
        >>> readout.coef_.round(4).tolist()
        [1.0, 2.0, 3.0]
    """

    def __init__(self, penalty: float = 1.0, *, forgetting: float = 1.0, fit_intercept: bool = True) -> None:
        self.penalty = penalty
        self.forgetting = forgetting
        self.fit_intercept = fit_intercept

    def fit(self, X: Any, y: Any) -> Self:
        """Start anew and learn the rows in order."""
        for name in ("coef_", "intercept_", "_inverse", "_weights"):
            if hasattr(self, name):
                delattr(self, name)
        return self.partial_fit(X, y)

    def partial_fit(self, X: Any, y: Any) -> Self:
        """Learn further rows in order; returns self."""
        if not self.penalty > 0 or not 0 < self.forgetting <= 1:
            raise RangeError(
                "recursive least squares needs a positive penalty and a forgetting in (0, 1]",
                given=(self.penalty, self.forgetting),
            )
        new = not hasattr(self, "_weights")
        x = self._rows(X, fitting=new)
        targets, one_target = as_targets(y, len(x))
        if self.fit_intercept:
            x = np.concatenate([x, np.ones((len(x), 1))], 1)
        if new:
            self._inverse: Floats = np.eye(x.shape[1]) / self.penalty
            self._weights: Floats = np.zeros((x.shape[1], targets.shape[1]))
        elif targets.shape[1] != self._weights.shape[1]:
            raise ShapeError("the number of targets changed", given=targets.shape[1], expected=self._weights.shape[1])
        for row, target in zip(x, targets, strict=True):
            pushed = self._inverse @ row
            gain = pushed / (self.forgetting + row @ pushed)
            self._weights += np.outer(gain, target - row @ self._weights)
            self._inverse = (self._inverse - np.outer(gain, pushed)) / self.forgetting
            self._inverse = (self._inverse + self._inverse.T) / 2
        split = len(self._weights) - self.fit_intercept
        intercept = self._weights[-1] if self.fit_intercept else np.zeros(targets.shape[1])
        self._set(self._weights[:split].copy(), intercept.copy(), one_target)
        return self
