"""The runner, by doing to it what happens to it: killing, interrupting, racing, raising."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from plexus.errors import DtypeError, PlexusError, RangeError, UnknownNameError
from plexus.lab._catalogue import find, load
from plexus.lab._claims import STALE
from plexus.lab._crew import quiet_start
from plexus.lab._row import judge_run, make_row
from plexus.lab._runner import run_study
from plexus.lab._store import Store
from plexus.lab._trial import try_out

FILE = Path(__file__).with_name("synthetic_study.py")
PATIENCE = 120.0


def run(place, seeds=(0, 1), jobs=1, **overrides):
    """A run in the shared store with its crew, or in a store of its own with workers of its own."""
    (entry,) = find(str(FILE))
    store, crew = place if isinstance(place, tuple) else (place, None)
    return run_study(entry, scale="smoke", seeds=seeds, jobs=jobs, store=Store(store), overrides=overrides, crew=crew)


def command(store, *arguments):
    code = "from plexus.cli import main; main()"
    line = [
        sys.executable,
        "-c",
        code,
        "run",
        str(FILE),
        "--scale",
        "smoke",
        "--store",
        str(store),
        "--json",
        *arguments,
    ]
    return subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_until(condition, what):
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.05)


def times(marks, name):
    path = Path(marks, name)
    return len(path.read_text()) if path.exists() else 0


def test_a_run_finishes_and_the_next_one_finds_it(tmp_path, shared):
    marks = tmp_path / "marks"
    marks.mkdir()
    first = run(shared, marks=str(marks))
    assert (first.ran, first.found, first.broken) == (4, 0, [])
    assert times(marks, "prepare-0") == times(marks, "prepare-1") == times(marks, "tune") == 1
    again = run(shared, marks=str(marks))
    assert (again.ran, again.found) == (0, 4)
    assert times(marks, "end-1-0") == times(marks, "tune") == 1
    for arm, seed in (("method", 0), ("ablated", 1)):
        old, new = first.trials[arm][seed].outcome, again.trials[arm][seed].outcome
        assert old.metrics == new.metrics
        np.testing.assert_array_equal(old.arrays["noise"], new.arrays["noise"])
    more = run(shared, seeds=(1, 2), marks=str(marks))
    assert (more.ran, more.found) == (2, 2)


def test_same_seed_same_numbers_and_arms_draw_alike(shared, store_folder):
    one, two = run(shared, jobs=1), run(store_folder, jobs=2)
    assert one.ran == two.ran == 4
    for arm in ("method", "ablated"):
        for seed in (0, 1):
            np.testing.assert_array_equal(
                one.trials[arm][seed].outcome.arrays["noise"], two.trials[arm][seed].outcome.arrays["noise"]
            )
    noise = one.results
    assert noise["method"][0].arrays["noise"] == noise["ablated"][0].arrays["noise"]
    assert noise["method"][0].arrays["noise"] != noise["method"][1].arrays["noise"]


def test_tuned_settings_apply_on_top_of_the_arm(shared):
    done = run(shared, seeds=(0,))
    assert done.trials["method"][0].outcome.metrics["tuned"] == 3.0
    assert done.trials["ablated"][0].outcome.metrics["tuned"] == 0.0
    row = make_row(done)
    assert [arm["budget"] for arm in row["arms"]] == [3, 3]
    assert row["arms"][0]["tuned"] == {"tuned": [1, 2]}


def test_trials_that_raise_or_return_nan_are_reported_and_the_rest_goes_on(shared):
    done = run(shared, seeds=(0, 1, 2), raises=0, nan=1)
    assert [(item.arm, item.seed) for item in done.broken] == [("method", 0), ("method", 1)]
    raised, not_a_number = done.broken
    assert "told to raise" in raised.error
    assert 'raise ValueError("told to raise")' in raised.traceback
    assert "'score' is nan" in not_a_number.error
    assert sorted(done.trials["ablated"]) == [0, 1, 2]
    judged = judge_run(done)
    assert judged.state == "broken"
    assert judged.verdicts["mechanism"].word == "undecided"
    assert "2 trials broke" in judged.verdicts["mechanism"].reason
    row = make_row(done)
    assert row["checks"][2]["values"][:2] == [None, None]
    assert isinstance(row["checks"][2]["values"][2], float)
    json.dumps(row, allow_nan=False)


def test_a_broken_trial_runs_again_next_time(tmp_path, shared):
    marks = tmp_path / "marks"
    marks.mkdir()
    for count in (1, 2):
        done = run(shared, seeds=(0,), raises=0, marks=str(marks))
        assert len(done.broken) == 1
        assert times(marks, "begin-1-0") == count
        assert times(marks, "begin-0-0") == 1


def test_a_worker_that_is_killed_is_replaced_and_its_trial_tried_once_more(tmp_path, shared):
    marks = tmp_path / "marks"
    marks.mkdir()
    done = run(shared, jobs=1, dies_once=1, marks=str(marks))
    assert done.broken == []
    assert done.ran == 4
    assert (marks / "died").exists()


def test_a_trial_that_kills_every_worker_is_reported_and_the_rest_goes_on(shared):
    done = run(shared, dies=0)
    assert [(item.arm, item.seed) for item in done.broken] == [("method", 0)]
    assert "SIGKILL" in done.broken[0].error
    assert sorted(done.trials["method"]) == [1]
    assert sorted(done.trials["ablated"]) == [0, 1]


def test_a_store_behind_a_url(store_folder):
    url = f"file://{store_folder}"
    assert (run(url, seeds=(0,)).ran, run(url, seeds=(0,)).found) == (2, 2)


def _workers(process):
    return [
        child
        for child in psutil.Process(process.pid).children(recursive=True)
        if "spawn_main" in " ".join(child.cmdline())
    ]


def test_killing_the_parent_ends_its_workers_and_loses_nothing_finished(tmp_path, store_folder):
    marks, store = tmp_path / "marks", store_folder
    marks.mkdir()
    process = command(store, "--seeds", "40", "--jobs", "2", "--set", "wait=0.3", "--set", f"marks={marks}")
    wait_until(lambda: len(list((store / "trials").glob("*/*.npz"))) >= 2, "two finished trials")
    workers = _workers(process)
    assert len(workers) == 2
    process.kill()
    process.wait()
    process.stdout.close()
    process.stderr.close()
    _, alive = psutil.wait_procs(workers, timeout=20)
    assert not alive
    finished = len(list((store / "trials").glob("*/*.npz")))
    assert 2 <= finished < 80
    done = run(store, seeds=range(3), wait=0.3, marks=str(marks))
    assert done.broken == []
    assert done.found >= 2
    ended = {path.name: len(path.read_text()) for path in marks.glob("end-*")}
    assert all(ended[f"end-{effect}-{seed}"] <= 2 for effect in (0, 1) for seed in range(3))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_stops_cleanly_and_continues_later(number, store_folder):
    store = store_folder
    process = command(store, "--seeds", "40", "--jobs", "1", "--set", "wait=0.2")
    wait_until(lambda: len(list((store / "trials").glob("*/*.npz"))) >= 2, "two finished trials")
    workers = _workers(process)
    process.send_signal(number)
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130
    assert out == ""
    assert "Traceback" not in err
    assert "finished trials are kept" in err
    assert not psutil.wait_procs(workers, timeout=20)[1]
    assert list((store / "claims").iterdir()) == []
    assert not list(store.rglob("*.tmp"))
    finished = len(list((store / "trials").glob("*/*.npz")))
    # a whole seed needs no worker any more; continuing by one is left to one of the two signals
    count = finished // 2 if number == signal.SIGTERM else finished // 2 + 1
    done = run(store, seeds=range(count), wait=0.2)
    assert done.broken == []
    assert done.found + done.ran == 2 * count
    assert done.found == min(finished, 2 * count)


def test_what_stops_a_run_waits_until_a_worker_has_been_started_whole():
    """Another thread may be handed the signal, whatever the main thread blocks."""
    done, reached = threading.Event(), False
    other = threading.Thread(target=done.wait)
    other.start()
    before = signal.getsignal(signal.SIGINT)
    try:
        with quiet_start():
            signal.pthread_kill(other.ident, signal.SIGINT)
            done.wait(0.1)
            reached = True
        pytest.fail("the signal was lost")
    except KeyboardInterrupt:
        pass
    finally:
        done.set()
    assert reached
    assert signal.getsignal(signal.SIGINT) is before
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, ())


def test_two_runs_at_once_share_the_work(tmp_path, store_folder):
    marks, store = tmp_path / "marks", store_folder
    marks.mkdir()
    arguments = ("--seeds", "6", "--jobs", "1", "--set", "wait=0.25", "--set", f"marks={marks}")
    both = [command(store, *arguments) for _ in range(2)]
    rows = []
    for process in both:
        out, err = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0, err
        rows.append(json.loads(out)[0])
    ended = {path.name: len(path.read_text()) for path in marks.glob("end-*")}
    assert len(ended) == 12
    assert set(ended.values()) == {1}
    assert times(marks, "tune") == 1
    assert rows[0]["checks"] == rows[1]["checks"]
    assert list((store / "claims").iterdir()) == []


def test_claims_of_the_dead_do_not_block(store_folder):
    process = command(store_folder, "--seeds", "1", "--jobs", "1", "--set", "wait=1")
    wait_until(lambda: len(list((store_folder / "claims").glob("*"))) == 1 and _tuned(store_folder), "a claimed trial")
    process.kill()
    process.communicate()
    (claim,) = [path.name for path in (store_folder / "claims").iterdir()]
    assert Store(store_folder).claims().is_stale(claim)
    began = time.monotonic()
    done = run(store_folder, seeds=(0,), wait=1.0)
    assert done.found + done.ran == 2
    assert done.ran >= 1
    assert time.monotonic() - began < STALE  # it did not wait for the clock
    assert list((store_folder / "claims").iterdir()) == []


def _tuned(store):
    return any((store / "tuning").glob("*/*.json"))


def test_bad_requests_are_refused_before_anything_runs(store_folder, monkeypatch):
    (entry,) = find(str(FILE))
    store = Store(store_folder)
    with pytest.raises(UnknownNameError, match="scale"):
        run_study(entry, scale="huge", store=store)
    with pytest.raises(UnknownNameError, match="effect"):
        run_study(entry, scale="smoke", overrides={"efect": 1.0}, store=store)
    with pytest.raises(RangeError, match="seeds"):
        run_study(entry, seeds=(1, 1), store=store)
    with pytest.raises(RangeError, match="jobs"):
        run_study(entry, jobs=0, store=store)
    monkeypatch.setenv("PLEXUS_CACHE_GB", "lots")
    with pytest.raises(RangeError, match="PLEXUS_CACHE_GB"):
        run_study(entry, store=store)
    assert not (store_folder / "trials").exists()


@pytest.mark.parametrize("seed", [0.5, 1.0, "1", True, None, float("nan")])
def test_a_seed_is_an_integer(store_folder, seed):
    (entry,) = find(str(FILE))
    with pytest.raises(DtypeError, match="a seed is an integer"):
        run_study(entry, seeds=(0, seed), store=Store(store_folder))
    with pytest.raises(DtypeError, match="a seed is an integer"):
        try_out(load(entry), "method", seed=seed)
    assert not (store_folder / "trials").exists()


def test_a_seed_is_not_negative_and_may_be_of_numpy(shared):
    (entry,) = find(str(FILE))
    with pytest.raises(RangeError, match="not negative"):
        run_study(entry, seeds=(-1,), store=Store(shared[0]))
    assert run(shared, seeds=np.arange(1)).trials["method"].keys() == {0}


def test_a_study_that_does_not_import_says_why(tmp_path):
    file = tmp_path / "faulty.py"
    file.write_text("import nowhere_to_be_found\nfrom plexus.lab import study\n@study\nclass Faulty: pass\n")
    (entry,) = find(str(file))
    with pytest.raises(PlexusError, match="nowhere_to_be_found"):
        run_study(entry, store=Store(tmp_path / "store"))


def test_tuning_that_raises_is_reported(tmp_path):
    file = tmp_path / "badly_tuned.py"
    text = FILE.read_text().replace('self._mark(config, "tune")', 'raise KeyError("no such grid")')
    file.write_text(text)
    (entry,) = find(str(file))
    with pytest.raises(PlexusError, match="no such grid"):
        run_study(entry, scale="smoke", store=Store(tmp_path / "store"))
    assert list((tmp_path / "store" / "claims").iterdir()) == []


assert os.name == "posix", "these tests send signals"
