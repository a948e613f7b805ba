"""Loaders of recorded events on small files made in the formats of the real ones, and what happens to bad ones."""

import dataclasses
import hashlib
import tarfile
import zipfile

import numpy as np
import pytest
import torch

from plexus.data import EventSet, EventStream, event_set
from plexus.data import _event_sets as sets
from plexus.data._fetch import Archive, fetch
from plexus.errors import FormatError, RangeError, UnknownNameError

h5py = pytest.importorskip("h5py")


def seeded(seed=0):
    return np.random.default_rng(seed)


def heidelberg(path, count=24, classes=3, speakers=6):
    """A file as the makers of SHD write them: ragged arrays of seconds (half precision) and channels."""
    draw = seeded()
    path.parent.mkdir(parents=True, exist_ok=True)
    truth = []
    with h5py.File(path, "w") as file:
        spikes = file.create_group("spikes")
        times = spikes.create_dataset("times", (count,), dtype=h5py.vlen_dtype(np.float16))
        units = spikes.create_dataset("units", (count,), dtype=h5py.vlen_dtype(np.uint16))
        for n in range(count):
            t = np.sort(draw.uniform(0, 1, 10 + n)).astype(np.float16)
            u = draw.integers(0, 700, len(t)).astype(np.uint16)
            times[n], units[n] = t, u
            truth.append((t.astype(np.float64) * 1000, u))
        file["labels"] = (np.arange(count) % classes).astype(np.uint16)
        extra = file.create_group("extra")
        extra["speaker"] = (np.arange(count) % speakers).astype(np.uint16)
    return truth


def atis(events):
    """Bytes of N-MNIST events (x, y, polarity, microseconds)."""
    raw = []
    for x, y, p, t in events:
        raw += [x, y, (p << 7) | (t >> 16) & 127, (t >> 8) & 255, t & 255]
    return bytes(raw)


def test_heidelberg_files(tmp_path):
    truth = heidelberg(tmp_path / "shd" / "shd_train.h5")
    heidelberg(tmp_path / "shd" / "shd_test.h5")
    train, validation = (event_set("shd", part, root=tmp_path) for part in ("train", "validation"))
    assert train.shape == (700,)
    assert len(train) + len(validation) == 24
    assert not set(train.group.tolist()) & set(validation.group.tolist())  # whole speakers are held out
    assert len(validation) >= 0.1 * 24
    everything = sets._heidelberg(tmp_path / "shd" / "shd_train.h5")
    for n in (0, 7, 23):
        stream, label = everything[n]
        np.testing.assert_allclose(stream.t.numpy(), truth[n][0])
        assert stream.address[:, 0].tolist() == truth[n][1].tolist()
        assert label == n % 3
    assert len(event_set("shd", "test", root=tmp_path)) == 24
    dense, labels = everything.dense(10.0, 100, [3, 5])
    assert dense.shape == (100, 2, 700)
    assert dense[:, 0].sum() == (truth[3][0] < 1000).sum()
    assert labels.tolist() == [0, 2]


def test_ssc_brings_its_own_validation(tmp_path):
    for part, count in (("train", 12), ("valid", 6), ("test", 5)):
        heidelberg(tmp_path / "ssc" / f"ssc_{part}.h5", count)
    sizes = [len(event_set("ssc", part, root=tmp_path)) for part in ("train", "validation", "test")]
    assert sizes == [12, 6, 5]


def test_atis_files(tmp_path):
    folder = tmp_path / "n-mnist" / "Train"
    for digit in range(3):
        (folder / str(digit)).mkdir(parents=True)
        for n in range(10):
            events = [(n, digit, 1, 100), (33, 33, 0, 70_000), (0, 240, 0, 0), (5, 6, 1, 71_000)]
            (folder / str(digit) / f"{n:05d}.bin").write_bytes(atis(events))
    train, validation = (event_set("n-mnist", part, root=tmp_path) for part in ("train", "validation"))
    assert len(train) == 27
    assert validation.label.tolist() == [0, 1, 2]  # a tenth of each class
    stream, label = train[0]
    assert stream.t.tolist() == pytest.approx([0.1, 70.0, 71.0 + 8.192])
    assert stream.address[1:].tolist() == [[0, 33, 33], [1, 6, 5]]
    assert stream.address[0].tolist()[:2] == [1, label]
    tonic_io = pytest.importorskip("tonic.io")
    fields = np.dtype([("x", int), ("y", int), ("t", int), ("p", int)])
    theirs = tonic_io.read_mnist_file(str(folder / "0" / "00003.bin"), fields)
    ours = sets.read_atis(folder / "0" / "00003.bin")
    assert theirs["t"].tolist() == (ours.t * 1000).round().long().tolist()
    assert np.array_equal(np.stack([theirs[name] for name in "pyx"], 1), ours.address.numpy())


def test_gestures(tmp_path):
    folder = tmp_path / "dvs-gesture" / "ibmGestureTrain"
    for user in range(1, 11):
        for light in ("led", "lab"):
            inside = folder / f"user{user:02d}_{light}"
            inside.mkdir(parents=True)
            for gesture in (0, 3, 10):
                events = np.array([(127, 3, 1, 5), (user, gesture, 0, 2)], dtype=np.int64)
                np.save(inside / f"{gesture}.npy", events)
    train, validation = (event_set("dvs-gesture", part, root=tmp_path) for part in ("train", "validation"))
    assert not set(train.group.tolist()) & set(validation.group.tolist())  # whole people are held out
    assert len(validation) == 6
    assert train.classes == 11
    stream, label = train[2]
    assert label == 10
    assert stream.t.tolist() == [2.0, 5.0]
    assert stream.address.tolist() == [[0, 10, int(train.group[2])], [1, 3, 127]]


def test_any_set_of_tonics():
    class Fake:
        targets = (4, 2)

        def __getitem__(self, n):
            fields = [("x", int), ("y", int), ("t", int), ("p", int)]
            return np.array([(n, 1, 3000, 1)], dtype=fields), self.targets[n]

    found = EventSet.from_tonic(Fake(), (2, 34, 34))
    assert [label for _, label in found] == [4, 2]
    assert found[1][0].address.tolist() == [[1, 1, 1]]
    assert found[-1][0].t.tolist() == [3.0]
    with pytest.raises(IndexError):
        found[2]


def test_splits_are_of_a_seed():
    label = torch.arange(60) % 3
    data = EventSet(label, lambda n: EventStream([float(n)], [0]), (1,), torch.arange(60) % 12)
    ones, twos = data.held_out(0.2, seed=1), data.held_out(0.2, seed=2)
    assert ones[1].group.unique().tolist() != twos[1].group.unique().tolist()
    assert sorted([int(s.t[0]) for part in ones for s, _ in part]) == list(range(60))
    with pytest.raises(RangeError, match="fraction"):
        data.held_out(1.0)
    with pytest.raises(RangeError, match="one group"):
        data.subset(data.group == 3).held_out(0.2)


# ---------------------------------------------------------------- what can be wrong


def test_names_and_folders(tmp_path, monkeypatch):
    monkeypatch.delenv("PLEXUS_DATA", raising=False)
    with pytest.raises(UnknownNameError, match="did you mean"):
        event_set("shdd", root=tmp_path)
    with pytest.raises(UnknownNameError, match="part"):
        event_set("shd", "valid", root=tmp_path)
    with pytest.raises(FormatError, match="PLEXUS_DATA"):
        event_set("shd")
    with pytest.raises(FormatError, match=r"shd_train\.h5\.zip from https"):
        event_set("shd", root=tmp_path)


def test_damaged_files(tmp_path):
    folder = tmp_path / "shd"
    heidelberg(folder / "shd_train.h5")
    whole = (folder / "shd_train.h5").read_bytes()
    (folder / "shd_train.h5").write_bytes(whole[: len(whole) // 3])
    with pytest.raises(FormatError, match="damaged"):
        event_set("shd", root=tmp_path)
    bin_file = tmp_path / "a.bin"
    bin_file.write_bytes(b"1234567")
    with pytest.raises(FormatError, match="truncated"):
        sets.read_atis(bin_file)
    bin_file.write_bytes(atis([(40, 3, 1, 5)]))
    with pytest.raises(FormatError, match="off the sensor"):
        sets.read_atis(bin_file)
    gesture = tmp_path / "dvs-gesture" / "ibmGestureTest" / "user01_led" / "0.npy"
    gesture.parent.mkdir(parents=True)
    gesture.write_bytes(b"nothing")
    with pytest.raises(FormatError, match="damaged"):
        event_set("dvs-gesture", "test", root=tmp_path)[0]


def packed(path, name, content, kind):
    path.parent.mkdir(parents=True, exist_ok=True)
    source = path.parent / "content"
    source.write_bytes(content)
    if kind == "zip":
        with zipfile.ZipFile(path, "w") as file:
            file.write(source, name)
    else:
        with tarfile.open(path, "w:gz") as file:
            file.add(source, name)
    source.unlink()
    return hashlib.md5(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("kind", ["zip", "tar.gz"])
def test_archives_are_fetched_checked_and_unpacked(tmp_path, kind):
    source = tmp_path / "server" / f"things.{kind}"
    md5 = packed(source, "inner/things.h5", b"events", kind)
    archive = Archive(source.as_uri(), f"things.{kind}", md5, "things.h5")
    folder = tmp_path / "data"
    with pytest.raises(FormatError, match="download=True"):
        fetch(archive, folder, name="things", download=False)
    assert fetch(archive, folder, name="things", download=True).read_bytes() == b"events"
    assert sorted(path.name for path in folder.iterdir()) == sorted([f"things.{kind}", "things.h5"])


def test_nothing_half_written_stays(tmp_path):
    source = tmp_path / "server" / "things.zip"
    md5 = packed(source, "things.h5", b"events", "zip")
    folder = tmp_path / "data"
    gone = Archive((tmp_path / "no such.zip").as_uri(), "things.zip", md5, "things.h5")
    with pytest.raises(FormatError, match="could not be fetched"):
        fetch(gone, folder, name="things", download=True)
    other = Archive(source.as_uri(), "things.zip", "0" * 32, "things.h5")
    with pytest.raises(FormatError, match="not what was published"):
        fetch(other, folder, name="things", download=True)
    assert list(folder.iterdir()) == []
    (folder / "things.zip").write_bytes(source.read_bytes()[:-9])
    with pytest.raises(FormatError, match="damaged"):
        fetch(Archive(source.as_uri(), "things.zip", md5, "things.h5"), folder, name="things", download=True)
    assert [path.name for path in folder.iterdir()] == ["things.zip"]
    wrong = dataclasses.replace(Archive(source.as_uri(), "things.zip", md5, "others.h5"))
    (folder / "things.zip").unlink()
    with pytest.raises(FormatError, match="does not hold"):
        fetch(wrong, folder, name="things", download=True)
    assert [path.name for path in folder.iterdir()] == ["things.zip"]
