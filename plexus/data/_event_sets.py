"""Recorded event streams from a folder: SHD, SSC, N-MNIST, DVS-Gesture, and whatever tonic reads.

Training data comes with a validation part by default: SSC has one of its own; from SHD and DVS-Gesture whole speakers
and people are held out, so that validation asks what the test asks; N-MNIST gives a tenth of every class.

Sources: Cramer et al. 2022 (SHD and SSC), Orchard et al. 2015 (N-MNIST), Amir et al. 2017 (DVS-Gesture, here as cut
into single gestures by the makers of tonic).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from plexus.data._event_pictures import from_structured
from plexus.data._event_stream import EventStream
from plexus.data._fetch import Archive, fetch
from plexus.data._images import data_folder
from plexus.errors import FormatError, RangeError, ShapeError, UnknownNameError, require
from plexus.units._memory import to_memory

__all__ = ["EventSet", "event_set"]

Part = Literal["train", "validation", "test"]


@dataclass(frozen=True)
class EventSet:
    """Labelled event streams, each read when it is asked for: `stream, label = events[0]`.

    Attributes:
        label: `[sample]`, int64.
        read: gives the stream of a sample's number.
        shape: sizes of the address's axes.
        group: who spoke or moved, `[sample]`, int64; None where that is not known.
        name: of the data set and its part.

    Examples:
        >>> two = EventSet(torch.tensor([0, 1]), lambda n: EventStream([1.0 * n], [n], (2,)), (2,))
        >>> two[1], len(two), two.classes
        ((EventStream(1 events, address 2, 1 to 1 ms), 1), 2, 2)
        >>> two.dense(dt=1.0, steps=3)[0].shape
        torch.Size([3, 2, 2])
    """

    label: Tensor
    read: Callable[[int], EventStream]
    shape: tuple[int, ...]
    group: Tensor | None = None
    name: str = ""

    def __post_init__(self) -> None:
        to_memory(self, "label", "group")
        if self.group is not None and len(self.group) != len(self.label):
            raise ShapeError("groups do not match labels", given=(len(self.group), len(self.label)))

    def __len__(self) -> int:
        return len(self.label)

    def __getitem__(self, index: int) -> tuple[EventStream, int]:
        if not -len(self) <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        index %= len(self)
        return self.read(index), int(self.label[index])

    def __iter__(self) -> Iterator[tuple[EventStream, int]]:
        return (self[index] for index in range(len(self)))

    @property
    def classes(self) -> int:
        """The number of classes: the largest label plus one."""
        return int(self.label.max()) + 1

    def subset(self, index: Tensor) -> EventSet:
        """The samples of an index or a mask, in that order."""
        index = index.cpu()
        index = index.nonzero().flatten() if index.dtype == torch.bool else index
        chosen, read = index.tolist(), self.read
        group = None if self.group is None else self.group[index]
        return EventSet(self.label[index], lambda n: read(chosen[n]), self.shape, group, self.name)

    def held_out(self, fraction: float = 0.1, seed: int = 0) -> tuple[EventSet, EventSet]:
        """Split in two, the second with about `fraction` of the samples.

        Whole groups go there until it is that large, where there are groups; else that share of each class.

        Raises:
            RangeError: the fraction is not between 0 and 1, or there is only one group.
        """
        if not 0 < fraction < 1:
            raise RangeError("a fraction lies between 0 and 1", given=fraction)
        draw = torch.Generator().manual_seed(seed)
        out = torch.zeros(len(self), dtype=torch.bool)
        if self.group is None:
            for label in self.label.unique():
                members = (self.label == label).nonzero().flatten()
                order = torch.randperm(len(members), generator=draw)
                out[members[order[: round(fraction * len(members))]]] = True
            return self.subset(~out), self.subset(out)
        groups = self.group.unique()
        if len(groups) < 2:
            raise RangeError("one group cannot be held out from itself", given=groups.tolist())
        for group in groups[torch.randperm(len(groups), generator=draw)][:-1]:
            if int(out.sum()) >= fraction * len(self):
                break
            out |= self.group == group
        return self.subset(~out), self.subset(out)

    def dense(
        self, dt: float, steps: int, index: Sequence[int] | Tensor | None = None, *, binary: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Counts `[time, sample, *shape]` and labels of some samples (default: all)."""
        chosen = range(len(self)) if index is None else torch.as_tensor(index).tolist()
        counts = [self.read(n).to_dense(dt, steps, binary=binary) for n in chosen]
        return torch.stack(counts, 1), self.label[list(chosen)]

    @classmethod
    def from_tonic(cls, dataset: Any, shape: Sequence[int]) -> EventSet:
        """Any dataset of tonic's whose samples are (structured array, label).

        Args:
            dataset: e.g. `tonic.datasets.NMNIST(folder)`.
            shape: sizes of the address's axes, see `from_structured`; tonic's `sensor_size` (x, y, p) backwards.
        """
        labels = getattr(dataset, "targets", None) or [dataset[n][1] for n in range(len(dataset))]
        label = torch.tensor([int(value) for value in labels])
        return cls(label, lambda n: from_structured(dataset[n][0], shape), tuple(shape), name=type(dataset).__name__)


def event_set(
    name: Literal["shd", "ssc", "n-mnist", "dvs-gesture"],
    part: Part = "train",
    *,
    root: str | os.PathLike[str] | None = None,
    download: bool = False,
    held_out: float = 0.1,
    seed: int = 0,
) -> EventSet:
    """One part of a data set from the folder `root/name`; train and validation do not overlap.

    Args:
        name: `shd` (700 channels, 20 spoken digits), `ssc` (700 channels, 35 words), `n-mnist` ((polarity, y, x) of
            2×34×34, 10 digits) or `dvs-gesture` (2×128×128, 11 gestures).
        part: `train`, `validation` or `test`.
        root: the folder of data sets (default: the environment's `PLEXUS_DATA`).
        download: fetch what is missing from the official source and compare it with the published checksum.
        held_out: share of the training data that is the validation part, where the set has none of its own.
        seed: of that choice.

    Raises:
        UnknownNameError: another name or part. FormatError: files are missing, damaged or could not be fetched.
        MissingExtraError: h5py is needed for `shd` and `ssc` (extra `events`).

    Examples:
        >>> event_set("shd", "validation", root="an empty folder")
        Traceback (most recent call last):
            ...
        plexus.errors.FormatError: shd is not here
        ...
    """
    if name not in _SETS:
        raise UnknownNameError.among("event set", name, _SETS)
    if part not in ("train", "validation", "test"):
        raise UnknownNameError.among("part", part, ("train", "validation", "test"))
    base = data_folder(root)
    if base is None:
        raise FormatError(f"{name} is not here", given="no folder", mend="point PLEXUS_DATA or root= at a folder")
    folder, (load, archives, own_validation) = base / name, _SETS[name]
    source: Part = part if own_validation or part == "test" else "train"
    archive = archives[source]
    if not (folder / archive.gives).exists():
        fetch(archive, folder, name=name, download=download)
    found = load(folder / archive.gives)
    if not len(found):
        raise FormatError(f"{name} has no samples", given=str(folder / archive.gives))
    if source != part or (part == "train" and not own_validation):
        found = found.held_out(held_out, seed)[part == "validation"]
    return EventSet(found.label, found.read, found.shape, found.group, f"{name} {part}")


def _heidelberg(path: Path) -> EventSet:
    """An HDF5 file of the Heidelberg sets: spikes/times in seconds and spikes/units per sample, labels, speakers."""
    h5py = require("h5py", "events", purpose="the Heidelberg spiking data sets")
    try:
        with h5py.File(path, "r") as file:
            label = torch.from_numpy(file["labels"][()].astype(np.int64))
            counts = len(file["spikes"]["times"]), len(file["spikes"]["units"])
            speaker = file["extra"]["speaker"][()] if "extra" in file and "speaker" in file["extra"] else None
    except (OSError, KeyError) as error:
        raise FormatError(
            f"{path.name} is damaged or not a Heidelberg file",
            given=str(error),
            expected="spikes/times, spikes/units and labels",
            mend="fetch it again",
        ) from error
    if counts != (len(label), len(label)):
        raise FormatError(f"{path.name} holds samples without labels", given=counts, expected=len(label))
    group = None if speaker is None or len(speaker) != len(label) else torch.from_numpy(speaker.astype(np.int64))

    def read(n: int) -> EventStream:
        with h5py.File(path, "r") as file:
            times = file["spikes"]["times"][n].astype(np.float64) * 1000.0
            units = file["spikes"]["units"][n].astype(np.int64)
        return EventStream.sorted(torch.from_numpy(times), torch.from_numpy(units), (700,))

    return EventSet(label, read, (700,), group)


def _n_mnist(folder: Path) -> EventSet:
    """Folders 0 … 9 of ATIS files."""
    paths = sorted(folder.glob("[0-9]/*.bin"))
    label = torch.tensor([int(path.parent.name) for path in paths], dtype=torch.int64)
    return EventSet(label, lambda n: read_atis(paths[n]), (2, 34, 34))


def read_atis(path: Path, shape: tuple[int, int, int] = (2, 34, 34)) -> EventStream:
    """One ATIS file of N-MNIST: five bytes per event, x, y, then a bit of polarity and 23 bits of microseconds.

    An event at y = 240 is none: the clock had run over, and 2¹³ μs are to be added from there on.
    """
    raw = np.fromfile(path, dtype=np.uint8)
    if len(raw) % 5:
        raise FormatError(f"{path.name} is truncated", given=f"{len(raw)} bytes", expected="a multiple of 5")
    x, y, high, middle, low = raw.reshape(-1, 5).T.astype(np.int64)
    overflow = y == 240
    micro = ((high & 127) << 16 | middle << 8 | low) + (1 << 13) * np.cumsum(overflow)
    address = np.stack([high >> 7, y, x], 1)[~overflow]
    if len(address) and (address.max(0) >= np.array(shape)).any():
        raise FormatError(f"{path.name} has an event off the sensor", given=address.max(0).tolist(), expected=shape)
    return EventStream.sorted(torch.from_numpy(micro[~overflow] / 1000.0), torch.from_numpy(address), shape)


def _dvs_gesture(folder: Path) -> EventSet:
    """Folders user01_fluorescent, … with one array [event, (x, y, polarity, ms)] per gesture, 0.npy to 10.npy."""
    paths = sorted(folder.glob("user*/*.npy"), key=lambda path: (path.parent.name, int(path.stem)))
    label = torch.tensor([int(path.stem) for path in paths], dtype=torch.int64)
    people = [int(path.parent.name.partition("_")[0].removeprefix("user")) for path in paths]

    def read(n: int) -> EventStream:
        try:
            events = np.load(paths[n])
        except (OSError, ValueError, EOFError) as error:
            raise FormatError(f"{paths[n].name} is damaged", given=str(paths[n]), mend="fetch the set again") from error
        if events.ndim != 2 or events.shape[1] != 4:
            raise FormatError(
                f"{paths[n].name} has other columns", given=events.shape, expected="[event, (x, y, polarity, ms)]"
            )
        address = torch.from_numpy(events[:, [2, 1, 0]].astype(np.int64))
        return EventStream.sorted(torch.from_numpy(events[:, 3].astype(np.float64)), address, (2, 128, 128))

    return EventSet(label, read, (2, 128, 128), torch.tensor(people, dtype=torch.int64))


_ZENKE = "https://zenkelab.org/datasets/"
_MENDELEY = "https://data.mendeley.com/public-files/datasets/468j46mzdv/files/"
_FIGSHARE = "https://figshare.com/ndownloader/files/"

_SETS: dict[str, tuple[Callable[[Path], EventSet], dict[str, Archive], bool]] = {
    "shd": (
        _heidelberg,
        {
            "train": Archive(
                _ZENKE + "shd_train.h5.zip", "shd_train.h5.zip", "f3252aeb598ac776c1b526422d90eecb", "shd_train.h5"
            ),
            "test": Archive(
                _ZENKE + "shd_test.h5.zip", "shd_test.h5.zip", "1503a5064faa34311c398fb0a1ed0a6f", "shd_test.h5"
            ),
        },
        False,
    ),
    "ssc": (
        _heidelberg,
        {
            "train": Archive(
                _ZENKE + "ssc_train.h5.zip", "ssc_train.h5.zip", "d102be95e7144fcc0553d1f45ba94170", "ssc_train.h5"
            ),
            "validation": Archive(
                _ZENKE + "ssc_valid.h5.zip", "ssc_valid.h5.zip", "b4eee3516a4a90dd0c71a6ac23a8ae43", "ssc_valid.h5"
            ),
            "test": Archive(
                _ZENKE + "ssc_test.h5.zip", "ssc_test.h5.zip", "a35ff1e9cffdd02a20eb850c17c37748", "ssc_test.h5"
            ),
        },
        True,
    ),
    "n-mnist": (
        _n_mnist,
        {
            "train": Archive(
                _MENDELEY + "39c25547-014b-4137-a934-9d29fa53c7a0/file_downloaded",
                "train.zip",
                "20959b8e626244a1b502305a9e6e2031",
                "Train",
            ),
            "test": Archive(
                _MENDELEY + "05a4d654-7e03-4c15-bdfa-9bb2bcbea494/file_downloaded",
                "test.zip",
                "69ca8762b2fe404d9b9bad1103e97832",
                "Test",
            ),
        },
        False,
    ),
    "dvs-gesture": (
        _dvs_gesture,
        {
            "train": Archive(
                _FIGSHARE + "38022171", "ibmGestureTrain.tar.gz", "3a8f0d4120a166bac7591f77409cb105", "ibmGestureTrain"
            ),
            "test": Archive(
                _FIGSHARE + "38020584", "ibmGestureTest.tar.gz", "56070e45dadaa85fff82e0fbfbc06de5", "ibmGestureTest"
            ),
        },
        False,
    ),
}
