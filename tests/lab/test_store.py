"""The store, its claims and its cache: whole files or none, whatever happens."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from plexus.errors import DtypeError, PlexusError
from plexus.lab import _claims, _prepared
from plexus.lab._claims import Claims
from plexus.lab._files import LocalFiles, RemoteFiles
from plexus.lab._prepared import PreparedCache
from plexus.lab._store import Finished, Store, Trial, digest
from plexus.lab._study import Outcome, Tuning


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    _prepared._secret.cache_clear()
    yield
    _prepared._secret.cache_clear()


def finished(**metrics):
    arrays = {"curve": np.arange(6.0).reshape(2, 3), "names": np.array(["a", "bc"]), "a/b": np.array(True)}
    return Finished(Outcome(metrics or {"score": 0.1}, arrays), 1.5, {"torch": "2"})


@pytest.fixture(params=["folder", "file url", "memory url"])
def store(request, tmp_path):
    where = {
        "folder": tmp_path / "store",
        "file url": f"file://{tmp_path}/store",
        "memory url": f"memory://{tmp_path.name}/store",
    }[request.param]
    return Store(where)


def test_a_trial_comes_back_as_it_went(store):
    store.save_trial("s", "k", finished(score=0.1 + 0.2))
    back = store.load_trial("s", "k")
    assert back.outcome.metrics == {"score": 0.1 + 0.2}
    assert (back.seconds, back.versions) == (1.5, {"torch": "2"})
    np.testing.assert_array_equal(back.outcome.arrays["curve"], np.arange(6.0).reshape(2, 3))
    assert back.outcome.arrays["curve"].dtype == np.float64
    assert back.outcome.arrays["names"].tolist() == ["a", "bc"]
    assert store.load_trial("s", "other") is None
    store.copy_trial("s", "k", "new")
    assert store.load_trial("s", "new").outcome.metrics == back.outcome.metrics


def test_tuning_comes_back(store):
    store.save_tuning("s", "k", Tuning({"a": {"x": 1}}, {"a": 3}, "note"), 2.0)
    tuning, seconds = store.load_tuning("s", "k")
    assert (tuning.chosen, tuning.budget, tuning.note, seconds) == ({"a": {"x": 1}}, {"a": 3}, "note", 2.0)
    assert store.load_tuning("s", "other") is None


def test_claims_exclude_each_other(store):
    mine, yours = store.claims(), store.claims()
    assert mine.take("k")
    assert not yours.take("k")
    mine.release("k")
    assert yours.take("k")
    mine.release("k")  # not mine any more
    assert not mine.take("k")
    yours.release_all()
    assert store.files.names("claims") == []


def test_objects_are_not_stored(tmp_path):
    with pytest.raises(DtypeError, match="objects"):
        Store(tmp_path).save_trial("s", "k", Finished(Outcome({}, {"x": np.array([None])}), 0.0, {}))


@pytest.mark.parametrize("damage", ["truncate", "flip", "empty", "foreign", "pickle"])
def test_a_damaged_trial_counts_as_absent(tmp_path, damage):
    store = Store(tmp_path)
    store.save_trial("s", "k", finished())
    path = tmp_path / "trials" / "s" / "k.npz"
    data = path.read_bytes()
    if damage == "truncate":
        path.write_bytes(data[: len(data) // 2])
    elif damage == "flip":
        middle = data.index(b"PK", 10) - 5
        path.write_bytes(data[:middle] + bytes([data[middle] ^ 255]) + data[middle + 1 :])
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "foreign":
        path.write_bytes(b"hello")
    else:
        np.savez(path, trial=np.array([object()], dtype=object))
    assert store.load_trial("s", "k") is None
    store.save_trial("s", "k", finished())
    assert store.load_trial("s", "k") is not None


@given(st.data())
def test_keys_differ_when_anything_differs(data):
    base = {"study": "s", "arm": "a", "seed": 1, "scale": "full", "overrides": {"x": 1}, "tuned": {"y": 2.0}}
    name = data.draw(st.sampled_from(list(base)))
    other = {"study": "t", "arm": "b", "seed": 2, "scale": "smoke", "overrides": {"x": 2}, "tuned": {}}[name]
    assert Trial(**base).key("code") == Trial(**base).key("code")
    assert Trial(**{**base, name: other}).key("code") != Trial(**base).key("code")
    assert Trial(**base).key("code") != Trial(**base).key("other code")


def test_keys_do_not_depend_on_order_or_on_lists_for_tuples():
    assert digest({"a": 1, "b": (1, 2)}) == digest({"b": [1, 2], "a": 1})


def test_an_unwritable_place_is_refused_in_words(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(PlexusError, match="cannot be written"):
        Store(blocked / "store")
    with pytest.raises(PlexusError, match="cannot be opened"):
        Store("nosuchprotocol://place")


def test_names_do_not_lead_out(tmp_path):
    for name in ("../x", "/etc/x", "a/../../x"):
        with pytest.raises(PlexusError, match="out of the store"):
            LocalFiles(tmp_path).write(name, b"")


def test_a_failed_write_leaves_nothing_behind(tmp_path):
    files = LocalFiles(tmp_path)
    files.write("a/b", b"old")
    with pytest.raises(TypeError):
        files.write("a/b", "not bytes")
    assert files.read("a/b") == b"old"
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["b"]


def test_remote_names_are_those_of_the_folder(tmp_path):
    files = RemoteFiles(f"file://{tmp_path}/x")
    files.write("f/one", b"1")
    assert files.create("f/two", b"2")
    assert not files.create("f/two", b"3")
    assert files.names("f") == ["one", "two"]
    files.remove("f/one")
    files.remove("f/one")
    assert files.names("f") == ["two"]
    assert files.read("f/two") == b"2"
    assert files.names("absent") == []


# claims


def dead_process():
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_a_claim_of_a_dead_process_is_stale_at_once(tmp_path):
    files = LocalFiles(tmp_path)
    for pid, started in ((dead_process(), "1"), (os.getpid(), "1")):  # the second: a pid that was used again
        files.write("claims/k", json.dumps(["token", _claims._machine(), pid, started, 0]).encode())
        assert Claims(files).is_stale("k")
        assert Claims(files).take("k")


def test_a_claim_from_elsewhere_is_stale_when_it_stops_changing(tmp_path, monkeypatch):
    files = LocalFiles(tmp_path)
    now = [0.0]
    monkeypatch.setattr(_claims.time, "monotonic", lambda: now[0])
    mine = Claims(files)

    def beat(count):
        files.write("claims/k", json.dumps(["token", "another machine", 1, "1", count]).encode())

    for count in range(5):
        beat(count)
        assert not mine.take("k")
        now[0] += 50.0
    now[0] += 50.0
    assert mine.take("k")


def test_a_garbled_claim_does_not_block_for_ever(tmp_path, monkeypatch):
    files = LocalFiles(tmp_path)
    now = [0.0]
    monkeypatch.setattr(_claims.time, "monotonic", lambda: now[0])
    files.write("claims/k", b"\xff not json")
    mine = Claims(files)
    assert not mine.take("k")
    now[0] = 61.0
    assert mine.take("k")


def test_a_living_run_shows_signs_of_life(tmp_path):
    files = LocalFiles(tmp_path)
    mine = Claims(files, beat=0.0)
    mine.take("k")
    first = files.read("claims/k")
    mine.beat()
    assert files.read("claims/k") != first


# what is prepared


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.a = torch.nn.Linear(3, 3)
        self.tied = self.a.weight


def get(cache, key, value):
    made = []

    def make():
        made.append(1)
        return value

    return cache.get(key, make), len(made)


def test_every_trial_gets_a_copy_of_its_own(tmp_path):
    cache = PreparedCache(tmp_path)
    original = {"net": torch.nn.Linear(2, 2), "rows": [1, 2]}
    first, made = get(cache, "k", original)
    assert made == 1
    weight = original["net"].weight.detach().clone()
    first["net"].weight.data.zero_()
    first["rows"].append(3)
    second, made = get(cache, "k", None)
    assert made == 0
    assert torch.equal(second["net"].weight, weight)
    assert second["rows"] == original["rows"] == [1, 2]


def test_what_is_shared_stays_shared(tmp_path):
    cache = PreparedCache(tmp_path)
    base = torch.arange(6.0)
    get(cache, "k", {"base": base, "view": base[2:], "twice": [base, base]})
    back, _ = get(cache, "k", None)
    back["base"][2] = 9.0
    assert back["view"][0] == 9.0
    assert back["twice"][0] is back["twice"][1]


@pytest.mark.parametrize("damage", ["flip", "truncate", "rename", "foreign", "other key"])
def test_only_whole_files_of_this_user_are_loaded(tmp_path, damage, monkeypatch):
    cache = PreparedCache(tmp_path / "c")
    get(cache, "k", [1, 2, 3])
    path = tmp_path / "c" / "k.prepared"
    data = path.read_bytes()
    if damage == "flip":
        path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    elif damage == "truncate":
        path.write_bytes(data[:-10])
    elif damage == "rename":
        path.rename(tmp_path / "c" / "other.prepared")
        assert cache.read("other") is None
    elif damage == "foreign":
        path.write_bytes(_prepared.serialise([4]))
    else:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "somebody else"))
        _prepared._secret.cache_clear()
    value, made = get(cache, "k", [1, 2, 3])
    assert (value, made) == ([1, 2, 3], 1)
    assert get(cache, "k", None) == ([1, 2, 3], 0)


def test_nothing_outside_the_folder_is_opened(tmp_path):
    outside, cache = PreparedCache(tmp_path), PreparedCache(tmp_path / "c")
    get(outside, "k", 1)
    (tmp_path / "c").mkdir()
    assert cache.read("../k") is None
    (tmp_path / "c" / "k.prepared").symlink_to(tmp_path / "k.prepared")
    assert cache.read("k") is None


def test_the_cache_keeps_below_its_cap_and_drops_what_was_not_used(tmp_path):
    cache = PreparedCache(tmp_path, cap=30_000)
    for i, key in enumerate("abcd"):
        if key == "d":
            assert cache.read("a") is not None  # used again just now
        cache.write(key, bytes(9_000))
        os.utime(tmp_path / f"{key}.prepared", ns=(i, i)) if key != "d" else None
    left = {path.stem for path in tmp_path.iterdir()}
    assert left == {"a", "c", "d"}
    assert not cache.write("e", bytes(40_000))
    assert {path.stem for path in tmp_path.iterdir()} == left


def test_what_a_killed_writer_left_is_swept(tmp_path):
    old, young = tmp_path / ".a.1.tmp", tmp_path / ".b.1.tmp"
    for path in (old, young):
        path.write_bytes(bytes(100))
    os.utime(old, (1.0, 1.0))
    PreparedCache(tmp_path).write("k", b"x")
    assert not old.exists()
    assert young.exists()


def test_what_cannot_be_pickled_is_made_for_every_trial(tmp_path):
    cache = PreparedCache(tmp_path)
    for _ in range(2):
        value, made = get(cache, "k", lambda: 3)
        assert (value(), made) == (3, 1)
    assert list(tmp_path.iterdir()) == []


def test_the_key_file_is_private(tmp_path):
    get(PreparedCache(tmp_path), "k", 1)
    key = _prepared.cache_folder() / "key"
    assert key.stat().st_mode & 0o077 == 0
    assert len(key.read_bytes()) == 32
