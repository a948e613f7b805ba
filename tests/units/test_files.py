"""The one form of our files: header, atomic writing, refusal of what is not ours."""

import json
import os
import pickle
import signal
import subprocess
import sys
import textwrap

import pytest
import torch
from safetensors.torch import save_file

from plexus.errors import FormatError, UnknownNameError
from plexus.units._files import UnwritableError, atomically, read_json, read_tensors, write_json, write_tensors

TENSORS = {"a": torch.randn(3, 2), "b": torch.arange(4)}


def test_round_trips(tmp_path):
    write_json(tmp_path / "x.json", "thing", 3, {"n": [1, 2.5, None, "é"]})
    assert read_json(tmp_path / "x.json", "thing", 3) == {"n": [1, 2.5, None, "é"]}
    write_tensors(tmp_path / "x.st", "thing", 3, {"k": [1]}, TENSORS)
    body, back = read_tensors(tmp_path / "x.st", "thing", 3)
    assert body == {"k": [1]}
    assert back.keys() == TENSORS.keys()
    assert all(torch.equal(back[name], value) for name, value in TENSORS.items())
    _, some = read_tensors(tmp_path / "x.st", "thing", 3, only=lambda name: name == "b")
    assert list(some) == ["b"]


def test_views_and_shared_memory_are_written_as_what_they_show(tmp_path):
    base = torch.arange(12.0).reshape(3, 4)
    write_tensors(tmp_path / "x", "thing", 1, None, {"t": base.t(), "row": base[1], "again": base})
    _, back = read_tensors(tmp_path / "x", "thing", 1)
    assert torch.equal(back["t"], base.t())
    assert torch.equal(back["row"], base[1])


def test_every_truncation_is_refused(tmp_path):
    write_tensors(tmp_path / "x", "thing", 1, {"k": 1}, TENSORS)
    write_json(tmp_path / "j", "thing", 1, {"k": 1})
    for name, read in (("x", read_tensors), ("j", read_json)):
        raw = (tmp_path / name).read_bytes()
        for length in range(0, len(raw), 7):
            (tmp_path / "cut").write_bytes(raw[:length])
            with pytest.raises(FormatError):
                read(tmp_path / "cut", "thing", 1)


def test_other_kinds_versions_and_strangers_are_refused(tmp_path):
    write_tensors(tmp_path / "x", "thing", 1, None, TENSORS)
    write_json(tmp_path / "j", "thing", 1, None)
    for name, read in (("x", read_tensors), ("j", read_json)):
        with pytest.raises(FormatError, match="'thing'"):
            read(tmp_path / name, "other", 1)
        with pytest.raises(FormatError, match="another version"):
            read(tmp_path / name, "thing", 2)
        with pytest.raises(FormatError, match="folder"):
            read(tmp_path, "thing", 1)
        with pytest.raises(UnknownNameError, match="there is no thing file"):
            read(tmp_path / "absent", "thing", 1)
    save_file(TENSORS, tmp_path / "stranger")
    with pytest.raises(FormatError, match="not ours"):
        read_tensors(tmp_path / "stranger", "thing", 1)
    for text in ("[]", "{}", '{"plexus": 3}', '{"plexus": {"kind": "thing", "version": 1}}', "null"):
        (tmp_path / "s.json").write_text(text)
        with pytest.raises(FormatError):
            read_json(tmp_path / "s.json", "thing", 1)
    (tmp_path / "s.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(FormatError, match="not text"):
        read_json(tmp_path / "s.json", "thing", 1)


class Bomb:
    def __reduce__(self):
        return os.mkdir, (os.environ["BOMB"],)


def test_nothing_is_unpickled(tmp_path, monkeypatch):
    monkeypatch.setenv("BOMB", str(tmp_path / "exploded"))
    (tmp_path / "p").write_bytes(pickle.dumps(Bomb()))
    torch.save(Bomb(), tmp_path / "t")
    for name in ("p", "t"):
        for read in (read_json, read_tensors):
            with pytest.raises(FormatError):
                read(tmp_path / name, "thing", 1)
    assert not (tmp_path / "exploded").exists()
    torch.load(tmp_path / "t", weights_only=False)  # the bomb is real
    assert (tmp_path / "exploded").exists()


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    write_json(tmp_path / "x.json", "thing", 1, "old")
    with pytest.raises(ValueError):
        write_json(tmp_path / "x.json", "thing", 1, float("nan"))

    def fail(temporary):
        temporary.write_text("half")
        raise KeyboardInterrupt

    for path in (tmp_path / "x.json", tmp_path / "new" / "deep" / "x.json"):
        with pytest.raises(KeyboardInterrupt):
            atomically(path, fail)
    assert read_json(tmp_path / "x.json", "thing", 1) == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["x.json"]


def test_a_place_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "file" / "x", tmp_path / "file" / "deep" / "x", tmp_path / "folder", "/proc/plexus/x"):
        for write in (lambda p: write_json(p, "thing", 1, 0), lambda p: write_tensors(p, "thing", 1, 0, TENSORS)):
            with pytest.raises(UnwritableError, match="cannot write") as caught:
                write(path)
            assert isinstance(caught.value, OSError)
    assert sorted(entry.name for entry in tmp_path.rglob("*")) == ["file", "folder"]


def test_a_killed_writer_leaves_the_old_file(tmp_path):
    write_json(tmp_path / "x.json", "thing", 1, "old")
    code = """
        import os, signal, sys
        from plexus.units._files import atomically
        def slow(temporary):
            temporary.write_text('{"plexus"')
            os.kill(os.getpid(), signal.SIGKILL)
        atomically(sys.argv[1], slow)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code), str(tmp_path / "x.json")], check=False)
    assert done.returncode == -signal.SIGKILL
    assert read_json(tmp_path / "x.json", "thing", 1) == "old"
    assert json.loads((tmp_path / "x.json").read_text())["plexus"] == {"kind": "thing", "version": 1}
