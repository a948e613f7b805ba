"""What scikit-learn asks of every estimator, without needing it: its settings by name."""

from __future__ import annotations

import inspect
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from plexus.errors import UnknownNameError

__all__ = ["Parameters", "as_array", "classifier_tags"]


class Parameters:
    """Base of estimators: the arguments of the constructor are the settings, kept under their names."""

    @classmethod
    def _names(cls) -> list[str]:
        return sorted(inspect.signature(cls).parameters)

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """The settings by name."""
        return {name: getattr(self, name) for name in self._names()}

    def set_params(self, **params: Any) -> Self:
        """Change settings by name. Raises `UnknownNameError` for a name that is not one."""
        for name, value in params.items():
            if name not in self._names():
                raise UnknownNameError.among(f"parameter of {type(self).__name__}", name, self._names())
            setattr(self, name, value)
        return self

    def __repr__(self) -> str:
        defaults = {name: p.default for name, p in inspect.signature(type(self)).parameters.items()}
        shown = (f"{k}={v!r}" for k, v in self.get_params().items() if repr(v) != repr(defaults[k]))
        return f"{type(self).__name__}({', '.join(shown)})"


def as_array(y: Any) -> NDArray[Any]:
    """Values as an array; those of a tensor come from wherever it lies."""
    return np.asarray(y.detach().cpu() if isinstance(y, Tensor) else y)


def classifier_tags() -> Any:
    """scikit-learn's tags of a classifier that takes inputs of three dimensions too."""
    from sklearn.utils import ClassifierTags, InputTags, Tags, TargetTags

    return Tags(
        estimator_type="classifier",
        target_tags=TargetTags(required=True),
        classifier_tags=ClassifierTags(),
        input_tags=InputTags(three_d_array=True),
    )
