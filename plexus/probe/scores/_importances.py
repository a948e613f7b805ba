"""Per-parameter importances: a dictionary of tensors that remembers how it was measured, and its file."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from plexus.errors import FormatError
from plexus.units._files import read_tensors, write_tensors

_KIND = "importances"
_VERSION = 1


class Importances(dict[str, Tensor]):
    """Parameter name → importance of each of its entries, shaped like the parameter. Tied weights appear once.

    A plain `dict` otherwise; whatever takes importances also takes a plain one.

    Attributes:
        samples: number of examples behind the means (0: unknown).
        batches: number of batches behind them.
        mode: `sample` (mean of per-example squares) or `batch` (mean over batches of the squared batch gradient).
        loss: name of the loss that was differentiated.
        labels: `data`, `model` or `expected`.
        power: 2 for squared gradients, 1 for their size.

    Examples:
        >>> importances = Importances({"weight": torch.ones(2)}, samples=10, mode="sample")
        >>> importances["weight"].tolist(), importances.samples
        ([1.0, 1.0], 10)
    """

    def __init__(
        self,
        values: Mapping[str, Tensor],
        *,
        samples: int = 0,
        batches: int = 0,
        mode: str = "sample",
        loss: str = "ce",
        labels: str = "data",
        power: int = 2,
    ) -> None:
        super().__init__(values)
        self.samples, self.batches = samples, batches
        self.mode, self.loss, self.labels, self.power = mode, loss, labels, power

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (dict(self), self._about())

    def __repr__(self) -> str:
        entries = sum(value.numel() for value in self.values())
        return (
            f"Importances({len(self)} tensors, {entries:,} entries; mode={self.mode!r}, loss={self.loss!r}, "
            f"labels={self.labels!r}, {self.samples:,} samples in {self.batches:,} batches)"
        )

    def _about(self) -> dict[str, Any]:
        keys = ("samples", "batches", "mode", "loss", "labels", "power")
        return {key: getattr(self, key) for key in keys}

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a safetensors file that `Importances.load` reads; an existing file is replaced in one step.

        Raises:
            UnwritableError: the place cannot be written; nothing is left there.
        """
        write_tensors(path, _KIND, _VERSION, self._about(), self)

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, device: str | torch.device = "cpu") -> Importances:
        """Read what `save` wrote.

        Raises:
            FormatError: the file is truncated, of another version or not one of importances.
            UnknownNameError: there is no such file.
        """
        about, values = read_tensors(path, _KIND, _VERSION)
        if not isinstance(about, dict) or set(about) != set(cls({})._about()):
            raise FormatError(
                f"{Path(path).name} cannot be read as importances", given=about, mend="measure and save them again"
            )
        return cls({name: value.to(device) for name, value in values.items()}, **about)


def _rebuild(values: dict[str, Tensor], about: dict[str, Any]) -> Importances:
    return Importances(values, **about)
