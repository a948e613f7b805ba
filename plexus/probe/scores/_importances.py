"""Per-parameter importances: a dictionary of tensors that remembers how it was measured, and its file."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from plexus.errors import FormatError

_KIND = "plexus.importances"
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

    Example:
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
        """Write a safetensors file that `Importances.load` reads; an existing file is replaced in one step."""
        from safetensors.torch import save

        header = {"kind": _KIND, "version": str(_VERSION), "about": json.dumps(self._about())}
        payload = save({name: value.detach().cpu().contiguous() for name, value in self.items()}, metadata=header)
        target = Path(path)
        handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=target.name, suffix=".part")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(payload)
            os.replace(temporary, target)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, device: str | torch.device = "cpu") -> Importances:
        """Read what `save` wrote.

        Raises:
            FormatError: the file is truncated, of another version or not one of importances.
        """
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(os.fspath(path), framework="pt", device=str(device)) as file:
                header = file.metadata() or {}
                if header.get("kind") != _KIND:
                    raise FormatError(f"{Path(path).name} does not hold importances", given=header.get("kind"))
                if header.get("version") != str(_VERSION):
                    raise FormatError(
                        f"{Path(path).name} is of another version", given=header.get("version"), expected=_VERSION
                    )
                values = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return cls(values, **json.loads(header["about"]))
        except FileNotFoundError:
            raise
        except (SafetensorError, OSError, KeyError, TypeError, json.JSONDecodeError) as error:
            raise FormatError(
                f"{Path(path).name} cannot be read as importances", given=str(error), mend="measure and save them again"
            ) from error


def _rebuild(values: dict[str, Tensor], about: dict[str, Any]) -> Importances:
    return Importances(values, **about)
