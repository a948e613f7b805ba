"""Ridge readout: a linear map from states to targets, its penalty chosen on held-out rows.

    W(λ) = argmin ‖Y - X W - 1 b‖² + λ ‖W‖²       (the intercept b is free)

All penalties share one decomposition of X. With several of them, the last rows are held out, the λ with the least mean
squared error there is kept, and the map is refitted on all rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import numpy as np

from plexus.errors import RangeError
from plexus.learn.readout._estimator import Floats, Readout, as_targets
from plexus.probe._ridge import check_penalties, held_out_errors, ridge_factors, ridge_solve

LAMBDAS = (1e-9, 1e-8, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3)
"""The usual path of penalties for rates between 0 and 1 and some thousand steps."""


class RidgeReadout(Readout):
    """Linear readout with a quadratic penalty, in the manner of scikit-learn.

    Args:
        lambdas: one penalty, or a path to choose from.
        holdout: share of the rows, taken from the end (rows are steps in time), that chooses among several penalties.
        per_target: choose a penalty for each target instead of one for all.
        fit_intercept: add a free constant.

    Attributes:
        coef_: `[feature]` or `[target, feature]`. intercept_: number or `[target]`.
        lambda_: the penalty used, or one per target.
        path_errors_: held-out mean squared error `[λ, target]`, ascending λ; absent when there was nothing to choose.

    Raises:
        RangeError: penalties negative or empty, or data not finite. ShapeError: rows and targets do not line up.

    Examples:
        >>> x = np.random.default_rng(0).normal(size=(100, 3))
        >>> readout = RidgeReadout().fit(x, x @ [1.0, 2.0, 3.0] + 4.0)
        >>> readout.coef_.round(6).tolist(), round(readout.intercept_, 6)
        ([1.0, 2.0, 3.0], 4.0)
    """

    def __init__(
        self,
        lambdas: Sequence[float] | float = LAMBDAS,
        *,
        holdout: float = 0.2,
        per_target: bool = False,
        fit_intercept: bool = True,
    ) -> None:
        self.lambdas = lambdas
        self.holdout = holdout
        self.per_target = per_target
        self.fit_intercept = fit_intercept

    def fit(self, X: Any, y: Any) -> Self:
        """Fit `X` `[row, feature]` to `y` `[row]` or `[row, target]`."""
        path = self._path()
        x = self._rows(X, fitting=True)
        targets, one_target = as_targets(y, len(x))
        chosen: Any = float(path[0])
        self.__dict__.pop("path_errors_", None)
        if len(path) > 1:
            errors = self._held_out(x, targets, path)
            self.path_errors_ = errors
            if self.per_target:
                chosen = path[errors.argmin(0)]
            else:
                spread = targets.var(0)
                chosen = float(path[(errors / np.where(spread > 0, spread, 1.0)).mean(1).argmin()])
        if np.ndim(chosen):
            factors = ridge_factors(x, targets, intercept=self.fit_intercept, smallest=float(np.min(chosen)))
            weights, intercept = factors.coefficients(chosen)
        else:
            weights, intercept = ridge_solve(x, targets, chosen, intercept=self.fit_intercept)
        self.lambda_ = chosen
        self._set(weights, intercept, one_target)
        return self

    def held_out_errors(self, X: Any, y: Any) -> Floats:
        """Mean squared error of each penalty on the held-out rows, `[λ, target]`, without the final fit.

        What `fit` chooses by, at half its price: for comparing many reservoirs before one is used.

        Examples:
            >>> x = np.random.default_rng(0).normal(size=(100, 3))
            >>> RidgeReadout((1e-6, 1e6)).held_out_errors(x, x[:, 0]).argmin(0)
            array([0])
        """
        path = self._path()
        x = self._rows(X)
        return self._held_out(x, as_targets(y, len(x))[0], path)

    def _path(self) -> Floats:
        path = check_penalties(self.lambdas)
        if not 0 < self.holdout < 1:
            raise RangeError("the held-out share lies between 0 and 1", given=self.holdout)
        return path

    def _held_out(self, x: Floats, targets: Floats, path: Floats) -> Floats:
        first = len(x) - round(self.holdout * len(x))
        if first < 1 or first >= len(x):
            raise RangeError(
                f"{len(x)} sample(s) are too few to choose a penalty",
                given=f"n_samples = {len(x)}",
                expected="at least one row to fit and one to hold out",
                mend="pass a single penalty",
            )
        factors = ridge_factors(x[:first], targets[:first], intercept=self.fit_intercept, smallest=float(path[0]))
        return held_out_errors(factors, path, x[first:], targets[first:])
