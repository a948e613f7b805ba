"""Labelled images: alignment, stratified splits, and IDX files read or refused."""

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from plexus.data import Labelled, data_folder, digits, idx_images
from plexus.errors import FormatError, RangeError, ShapeError, UnknownNameError


def test_digits_are_scaled_and_whole() -> None:
    d = digits()
    assert d.x.shape == (1797, 1, 8, 8)
    assert (float(d.x.min()), float(d.x.max())) == (0.0, 1.0)
    assert d.classes == 10


def test_labels_that_do_not_match_are_refused() -> None:
    with pytest.raises(ShapeError, match="do not match"):
        Labelled(torch.zeros(3, 2), torch.zeros(2, dtype=torch.long))


@given(fraction=st.floats(0.05, 0.95), seed=st.integers(0, 1000))
def test_a_split_is_a_stratified_partition(fraction: float, seed: int) -> None:
    y = torch.arange(200) % 4
    whole = Labelled(torch.arange(200.0)[:, None], y)
    first, second = whole.split(fraction, seed)
    assert torch.equal(torch.cat([first.x, second.x]).sort(0).values, whole.x)
    assert all(int((first.y == c).sum()) == round(fraction * 50) for c in range(4))


@pytest.mark.parametrize("fraction", [0.0, 1.0, -1, 2])
def test_a_split_outside_the_open_interval_is_refused(fraction: float) -> None:
    with pytest.raises(RangeError, match="between 0 and 1"):
        digits().split(fraction, 0)


def test_batches_cover_every_sample_once_and_repeat_with_the_seed() -> None:
    d = Labelled(torch.arange(10.0), torch.arange(10))
    order = [torch.cat([y for _, y in d.batches(3, generator=torch.Generator().manual_seed(s))]) for s in (1, 1, 2)]
    assert order[0].tolist() == order[1].tolist() != order[2].tolist()
    assert sorted(order[0].tolist()) == list(range(10))


def idx(folder: Path, images: np.ndarray, labels: np.ndarray) -> None:
    (folder / "mnist").mkdir(parents=True)
    for name, array, kind in (("images-idx3", images, 3), ("labels-idx1", labels, 1)):
        with gzip.open(folder / "mnist" / f"train-{name}-ubyte.gz", "wb") as file:
            file.write(bytes((0, 0, 8, kind)) + struct.pack(f">{kind}I", *array.shape) + array.tobytes())


def test_an_idx_folder_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = np.random.default_rng(0).integers(0, 256, (5, 28, 28), dtype=np.uint8)
    idx(tmp_path, images, np.arange(5, dtype=np.uint8))
    monkeypatch.setenv("PLEXUS_DATA", str(tmp_path))
    d = idx_images("mnist")
    assert data_folder() == tmp_path
    assert np.array_equal((d.x[:, 0].numpy() * 255).round().astype(np.uint8), images)
    assert d.y.tolist() == [0, 1, 2, 3, 4]


def test_a_truncated_idx_file_is_refused(tmp_path: Path) -> None:
    idx(tmp_path, np.zeros((2, 28, 28), np.uint8), np.zeros(2, np.uint8))
    path = tmp_path / "mnist" / "train-images-idx3-ubyte.gz"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(FormatError, match="cannot read"):
        idx_images("mnist", root=tmp_path)
    with gzip.open(path, "wb") as file:
        file.write(bytes((0, 0, 8, 3)) + struct.pack(">3I", 2, 28, 28) + bytes(10))
    with pytest.raises(FormatError, match="truncated"):
        idx_images("mnist", root=tmp_path)


def test_a_missing_set_says_where_to_put_it(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="PLEXUS_DATA"):
        idx_images("mnist", root=tmp_path)
    with pytest.raises(UnknownNameError, match="did you mean 'mnist'"):
        idx_images("mnst", root=tmp_path)
