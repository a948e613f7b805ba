"""Classes told apart by the complexity of spike trains: one number per neuron that knows of order in time.

    features of a sample: C of each neuron (Lempel–Ziv complexity, see `probe.information`) and their mean
    classifier: the nearest class mean, or logistic regression

C depends on the rate as well: `control="rate"` gives the features of the same classifier that knows of the rate alone.

Source: Rudnicka, Szczepanski & Pregowska 2025 (SNN-LZC).
"""

from __future__ import annotations

from typing import Any, Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from plexus.errors import RangeError, ShapeError, UnknownNameError, require
from plexus.learn._parameters import Parameters, as_array, classifier_tags
from plexus.nn._places import device_of
from plexus.probe.information import entropy_rate_bound, lz_complexity

__all__ = ["LZCClassifier"]


class LZCClassifier(Parameters):
    """Classify binary sequences by their Lempel–Ziv complexity: `LZCClassifier().fit(X, y).predict(X)`.

    Args:
        model: a spiking model, run on `[time, sample, channel]` to give the trains that are measured; None: the
            sequences themselves are measured, recorded spike trains for example.
        base: `"centroid"`, the nearest class mean, or `"logistic"` (needs scikit-learn). Features are standardised.
        method: `"lz76"` or `"lz78"`.
        control: `"rate"` replaces C by the entropy that the rate alone allows; None measures C.

    Attributes:
        classes_: the labels, sorted.

    Raises:
        RangeError: sequences are not binary, or there are fewer than two classes. ShapeError: sequences are shorter
        than 20 steps or not `[sample, time]` or `[sample, channel, time]`. UnknownNameError: another base, method or
        control.

    Examples:
        >>> rng = np.random.default_rng(0)
        >>> coin = rng.integers(0, 2, (40, 100))
        >>> coin[:20, 50:] = coin[:20, :50]                                     # the first half, once more
        >>> labels = [0] * 20 + [1] * 20
        >>> LZCClassifier().fit(coin, labels).score(coin, labels)
        1.0
    """

    classes_: NDArray[Any]

    def __init__(
        self,
        model: nn.Module | None = None,
        base: Literal["centroid", "logistic"] = "centroid",
        method: Literal["lz76", "lz78"] = "lz76",
        control: Literal["rate"] | None = None,
    ) -> None:
        self.model = model
        self.base = base
        self.method = method
        self.control = control

    def __sklearn_tags__(self) -> Any:
        return classifier_tags()

    @torch.no_grad()
    def transform(self, X: Any) -> NDArray[Any]:
        """The features: `[sample, neuron]` complexities and, of several neurons, their mean as a last column."""
        if self.control not in (None, "rate"):
            raise UnknownNameError.among("control", str(self.control), ("rate",))
        x = X if isinstance(X, Tensor) else torch.as_tensor(np.asarray(X))
        if x.dim() not in (2, 3):
            raise ShapeError(
                "the sequences have another shape",
                given=tuple(x.shape),
                expected="[sample, time] or [sample, channel, time]",
            )
        x = x.unsqueeze(1) if x.dim() == 2 else x
        if self.model is not None:
            steps = x.permute(2, 0, 1).to(torch.get_default_dtype())
            out = self.model(steps.to(device_of(self.model)))
            spikes = out[0] if isinstance(out, tuple) else out
            x = spikes.permute(1, 2, 0)
        each = entropy_rate_bound(x) if self.control == "rate" else lz_complexity(x, self.method)
        features = np.asarray(each)
        if features.shape[1] > 1:
            features = np.concatenate([features, features.mean(1, keepdims=True)], 1)
        return features

    def fit(self, X: Any, y: Any) -> Self:
        """Measure the samples and fit the classifier."""
        if self.base not in ("centroid", "logistic"):
            raise UnknownNameError.among("base classifier", self.base, ("centroid", "logistic"))
        features, labels = self.transform(X), as_array(y)
        if labels.shape != (len(features),):
            raise ShapeError("labels do not match samples", given=labels.shape, expected=(len(features),))
        self.classes_ = np.unique(labels)
        if len(self.classes_) < 2:
            raise RangeError("a classifier needs two classes", given=self.classes_.tolist())
        self.centre_, spread = features.mean(0), features.std(0)
        self.spread_ = np.where(spread > 0, spread, 1.0)
        scaled = self._scaled(features)
        if self.base == "logistic":
            linear = require("sklearn.linear_model", "lab", purpose="logistic regression")
            self.base_ = linear.LogisticRegression(max_iter=500).fit(scaled, labels)
        else:
            self.means_ = np.stack([scaled[labels == label].mean(0) for label in self.classes_])
        return self

    def _scaled(self, features: NDArray[Any]) -> NDArray[Any]:
        return np.asarray((features - self.centre_) / self.spread_)

    def predict(self, X: Any) -> NDArray[Any]:
        """The label of each sample. Raises `RangeError` if not fitted."""
        if not hasattr(self, "classes_"):
            raise RangeError("this LZCClassifier is not fitted yet", mend="call fit(X, y) first")
        scaled = self._scaled(self.transform(X))
        if self.base == "logistic":
            return np.asarray(self.base_.predict(scaled))
        distance = np.square(scaled[:, None] - self.means_).sum(-1)
        return np.asarray(self.classes_[distance.argmin(1)])

    def score(self, X: Any, y: Any) -> float:
        """Share of samples whose label is right."""
        return float((self.predict(X) == as_array(y)).mean())
