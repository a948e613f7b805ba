"""Labelled images: scikit-learn's digits by default, IDX files (MNIST, Fashion-MNIST) where a folder holds them."""

from __future__ import annotations

import gzip
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from plexus.errors import FormatError, RangeError, ShapeError, UnknownNameError, require


@dataclass(frozen=True)
class Labelled:
    """Samples and their labels, in step.

    Attributes:
        x: `[sample, …]`; images are `[sample, channel, height, width]` in [0, 1].
        y: `[sample]`, int64.
        name: of the data set.
    """

    x: Tensor
    y: Tensor
    name: str = ""

    def __post_init__(self) -> None:
        if len(self.x) != len(self.y):
            raise ShapeError("labels do not match samples", given=f"{len(self.x)} samples, {len(self.y)} labels")

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, index: Tensor | slice) -> Labelled:
        return Labelled(self.x[index], self.y[index], self.name)

    @property
    def classes(self) -> int:
        """The number of classes: the largest label plus one."""
        return int(self.y.max()) + 1

    def split(self, fraction: float, seed: int) -> tuple[Labelled, Labelled]:
        """A random split, stratified by class: `fraction` of each class in the first part, the rest in the second."""
        if not 0 < fraction < 1:
            raise RangeError("a split needs a fraction between 0 and 1", given=fraction)
        generator = torch.Generator().manual_seed(seed)
        first = torch.zeros(len(self), dtype=torch.bool)
        y = self.y.cpu()
        for label in y.unique():
            members = (y == label).nonzero().squeeze(1)
            order = torch.randperm(len(members), generator=generator)
            first[members[order[: round(fraction * len(members))]]] = True
        return self[first], self[~first]

    def batches(self, size: int, *, generator: torch.Generator | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """`(x, y)` batches, shuffled when a generator is given, in order otherwise. The last may be smaller."""
        order = torch.randperm(len(self), generator=generator) if generator is not None else torch.arange(len(self))
        for index in order.split(size):
            yield self.x[index], self.y[index]


def digits() -> Labelled:
    """Scikit-learn's handwritten digits: 1,797 images of 8×8 in ten classes, `x` `[1797, 1, 8, 8]` in [0, 1].

    Comes with scikit-learn (extra `lab`), so it is there without a download. Source: Alpaydin & Kaynak 1998, CC BY 4.0.

    Examples:
        >>> digits().x.shape
        torch.Size([1797, 1, 8, 8])
    """
    raw = require("sklearn.datasets", "lab", purpose="the digits").load_digits()
    x = torch.from_numpy(raw.images.astype(np.float32) / 16.0).unsqueeze(1)
    return Labelled(x, torch.from_numpy(raw.target.astype(np.int64)), "digits")


def data_folder(root: str | os.PathLike[str] | None = None) -> Path | None:
    """The folder of larger data sets: `root`, else the environment's `PLEXUS_DATA`, else None."""
    chosen = root if root is not None else os.environ.get("PLEXUS_DATA")
    return Path(chosen) if chosen else None


_IDX_SETS = {"mnist": "mnist", "fashion-mnist": "fashion-mnist"}


def idx_images(name: str, *, train: bool = True, root: str | os.PathLike[str] | None = None) -> Labelled:
    """MNIST or Fashion-MNIST from a folder: `x` `[sample, 1, 28, 28]` in [0, 1].

    Args:
        name: `mnist` or `fashion-mnist`, the folder's name below `root`.
        train: the 60,000 training images, else the 10,000 test images.
        root: the folder of data sets (default: the environment's `PLEXUS_DATA`).

    Raises:
        UnknownNameError: another name. FormatError: the files are missing, truncated or not IDX.
    """
    if name not in _IDX_SETS:
        raise UnknownNameError.among("image set", name, _IDX_SETS)
    folder = data_folder(root)
    if folder is None or not (folder / name).is_dir():
        raise FormatError(
            f"{name} is not here",
            given=str(folder) if folder else "no folder",
            mend="point PLEXUS_DATA (or root=) at a folder that holds "
            f"{name}/train-images-idx3-ubyte.gz and its siblings from the official source",
        )
    part = "train" if train else "t10k"
    x = _read_idx(folder / name / f"{part}-images-idx3-ubyte.gz", dimensions=3)
    y = _read_idx(folder / name / f"{part}-labels-idx1-ubyte.gz", dimensions=1)
    images = torch.from_numpy(x.astype(np.float32) / 255.0).unsqueeze(1)
    return Labelled(images, torch.from_numpy(y.astype(np.int64)), name)


def _read_idx(path: Path, dimensions: int) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """Read one IDX file of bytes: two zero bytes, type 8, the number of dimensions, big-endian sizes, the data."""
    try:
        with gzip.open(path, "rb") as file:
            raw = file.read()
    except (OSError, EOFError) as error:
        raise FormatError(f"cannot read {path.name}", given=str(path), mend="fetch the file again") from error
    if len(raw) < 4 + 4 * dimensions or raw[:4] != bytes((0, 0, 8, dimensions)):
        raise FormatError(f"{path.name} is not an IDX file of {dimensions} dimensions", given=raw[:4].hex())
    shape = struct.unpack(f">{dimensions}I", raw[4 : 4 + 4 * dimensions])
    body = np.frombuffer(raw, np.uint8, offset=4 + 4 * dimensions)
    if body.size != int(np.prod(shape)):
        raise FormatError(f"{path.name} is truncated", given=f"{body.size} bytes", expected=f"{int(np.prod(shape))}")
    return body.reshape(shape)
