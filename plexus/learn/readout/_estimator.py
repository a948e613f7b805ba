"""What scikit-learn asks of an estimator, without needing it: parameters by name, tags, checks in its words."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from plexus.errors import PlexusError, RangeError, ShapeError
from plexus.learn._parameters import Parameters, as_array

Floats = NDArray[np.float64]


class Readout(Parameters):
    """Base of the readouts: a linear map fitted on rows `X` `[row, feature]` to `y` `[row]` or `[row, target]`.

    Subclasses set `coef_` (`[feature]` or `[target, feature]`) and `intercept_` in `fit`; torch tensors, arrays and
    nested lists are all taken. Works with scikit-learn's `clone`, pipelines and searches where that is installed.
    """

    coef_: Floats
    intercept_: Any
    n_features_in_: int

    def __sklearn_tags__(self) -> Any:
        from sklearn.utils import InputTags, RegressorTags, Tags, TargetTags

        return Tags(
            estimator_type="regressor",
            target_tags=TargetTags(required=True, multi_output=True),
            regressor_tags=RegressorTags(),
            input_tags=InputTags(),
        )

    def predict(self, X: Any) -> Floats:
        """The fitted targets of the rows: `[row]` or `[row, target]`, as `y` was.

        Raises:
            RangeError: not fitted (scikit-learn's NotFittedError where it is loaded), or values not finite.
            ShapeError: another number of features.
        """
        self._check_fitted()
        x = self._rows(X, fitting=False)
        return np.asarray(x @ self.coef_.T + self.intercept_)

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """Coefficient of determination R², mean over targets; 1 is perfect, 0 as good as the mean."""
        predicted = self.predict(X)
        wanted = _targets(y, len(predicted)).reshape(len(predicted), -1)
        weights = np.ones(len(wanted)) if sample_weight is None else as_array(sample_weight).astype(np.float64)
        residual = np.average((wanted - predicted.reshape(wanted.shape)) ** 2, 0, weights)
        spread = np.average((wanted - np.average(wanted, 0, weights)) ** 2, 0, weights)
        perfect = (residual == 0).astype(float)
        return float(np.mean(1 - np.divide(residual, spread, out=1 - perfect, where=spread > 0)))

    def _check_fitted(self) -> None:
        if not hasattr(self, "coef_"):
            raise _also("sklearn.exceptions", "NotFittedError", RangeError)(
                f"this {type(self).__name__} is not fitted yet", mend="call fit(X, y) first"
            )

    def _rows(self, values: Any, *, fitting: bool | None = None) -> Floats:
        """X as float64 `[row, feature]`, checked, when fitting, predicting or (None) neither."""
        if hasattr(values, "tocsr") or type(values).__module__.startswith("scipy.sparse"):
            raise TypeError("sparse input is not supported by a readout; pass a dense array (X.toarray())")
        names = _column_names(values)
        x = as_array(values)
        if np.iscomplexobj(x):
            raise RangeError("Complex data not supported by a readout", given=x.dtype)
        x = np.asarray(x, dtype=np.float64)
        name = type(self).__name__
        if x.ndim != 2:
            raise ShapeError(
                f"Expected 2D array, got {x.ndim}D array instead",
                given=x.shape,
                expected="[row, feature]",
                mend="Reshape your data: states.flatten(0, 1) for a reservoir's [time, batch, unit]",
            )
        if x.shape[0] == 0 or x.shape[1] == 0:
            axis = "sample" if x.shape[0] == 0 else "feature"
            raise ShapeError(
                f"Found array with 0 {axis}(s) (shape={x.shape}) while a minimum of 1 is required by {name}."
            )
        if not np.all(np.isfinite(x)):
            raise RangeError(f"Input X contains NaN or infinity, which {name} cannot use", mend="leave the washout out")
        if fitting:
            self.n_features_in_ = x.shape[1]
            if names is not None:
                self.feature_names_in_ = names
            elif hasattr(self, "feature_names_in_"):
                del self.feature_names_in_
        elif fitting is False and x.shape[1] != self.n_features_in_:
            raise ShapeError(
                f"X has {x.shape[1]} features, but {name} is expecting {self.n_features_in_} features as input"
            )
        return x

    def _set(self, weights: Floats, intercept: Floats, one_target: bool) -> None:
        """Keep weights `[feature, target]`, intercept `[target]` in scikit-learn's layout."""
        self.coef_ = weights[:, 0] if one_target else np.ascontiguousarray(weights.T)
        self.intercept_ = float(intercept[0]) if one_target else intercept

    def tensors(self, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
        """Weight `[target, feature]` and bias `[target]` for use in torch."""
        self._check_fitted()
        weight = torch.from_numpy(np.atleast_2d(self.coef_).copy())
        return weight.to(dtype), torch.from_numpy(np.atleast_1d(self.intercept_).astype(np.float64)).to(dtype)


def _targets(values: Any, rows: int) -> Floats:
    """y as float64 `[row]` or `[row, target]`, checked."""
    if values is None:
        raise RangeError("requires y to be passed, but the target y is None")
    y = as_array(values)
    if np.iscomplexobj(y):
        raise RangeError("Complex data not supported by a readout", given=y.dtype)
    y = np.asarray(y, dtype=np.float64)
    if y.ndim not in (1, 2):
        raise ShapeError("targets are [row] or [row, target]", given=y.shape)
    if len(y) != rows:
        raise ShapeError("targets do not match rows", given=f"{len(y)} targets, {rows} rows")
    if not np.all(np.isfinite(y)):
        raise RangeError("Input y contains NaN or infinity", mend="leave out the steps without a target")
    return y


def as_targets(values: Any, rows: int) -> tuple[Floats, bool]:
    """y as `[row, target]`, and whether it was one-dimensional."""
    y = _targets(values, rows)
    return (y[:, None], True) if y.ndim == 1 else (y, False)


def _column_names(values: Any) -> NDArray[np.object_] | None:
    """Column names of a data frame, if they are all text."""
    columns = getattr(values, "columns", None)
    if columns is None or not all(isinstance(name, str) for name in columns):
        return None
    return np.asarray(list(columns), dtype=object)


def _also(module: str, name: str, error: type[PlexusError]) -> type[PlexusError]:
    """Our error, which is also the foreign one where the foreign package is loaded."""
    foreign = getattr(sys.modules.get(module), name, None)
    return error if foreign is None else type(name, (error, foreign), {})
