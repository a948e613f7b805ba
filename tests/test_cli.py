"""The command, from outside."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from plexus.cli import main
from plexus.lab._catalogue import find
from plexus.lab._code import file_hash
from plexus.lab._ledger import read_row, synthetic_row, write_row
from plexus.lab._store import Store

FILE = Path(__file__).parent / "lab" / "synthetic_study.py"


@pytest.fixture(scope="session")
def known_code(tmp_path_factory):
    """What a store notes about the modules of the synthetic study, so that not every test asks a fresh process."""
    store = Store(tmp_path_factory.mktemp("known"))
    (entry,) = find(str(FILE))
    store.code(entry.slug, entry.source)
    return Path(store.where) / "code"


@pytest.fixture
def call(capsys, tmp_path, monkeypatch, known_code):
    """Run the command here, with a store and a ledger of its own: status, stdout, stderr."""
    shutil.copytree(known_code, tmp_path / "store" / "code")
    monkeypatch.setenv("PLEXUS_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("PLEXUS_LEDGER", str(tmp_path / "ledger"))

    def run(*arguments):
        with pytest.raises(SystemExit) as stop:
            main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return stop.value.code or 0, out, err

    return run


def test_help_and_list_start_without_torch():
    code = (
        "import sys\nfrom plexus.cli import main\n"
        "try: main(sys.argv[1:])\nexcept SystemExit: pass\n"
        "print('torch' in sys.modules, file=sys.stderr)"
    )
    for arguments in (["--help"], ["list", "--json"], ["run", "--help"]):
        answer = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
        assert answer.stderr.strip().splitlines()[-1] == "False"
        assert answer.stdout


def test_run_prints_verdicts_and_nothing_else_as_json(call):
    status, out, err = call("run", FILE, "--scale", "smoke", "--seeds", 3, "--jobs", 1, "--json")
    assert status == 0
    (row,) = json.loads(out)
    assert row["slug"] == "synthetic-study"
    assert row["seeds"] == [0, 1, 2]
    assert row["verdicts"]["mechanism"]["word"] == "holds here"
    assert "6 trials" in err
    status, out, err = call("run", FILE, "--scale", "smoke", "--seeds", 3)
    assert status == 0
    assert "holds here" in out
    assert "6 of them already in the store" in err


def test_json_on_stdout_is_json_alone_from_outside(tmp_path):
    command = [
        sys.executable,
        "-m",
        "plexus.cli",
        "run",
        str(FILE),
        "--scale",
        "smoke",
        "--seeds",
        "1",
        "--jobs",
        "1",
        "--json",
    ]
    answer = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "PLEXUS_STORE": str(tmp_path)}, check=True
    )
    assert len(json.loads(answer.stdout)) == 1
    assert "noise on stdout" in answer.stderr


def test_a_broken_trial_gives_three_and_its_traceback(call):
    status, out, err = call("run", FILE, "--scale", "smoke", "--seeds", 1, "--jobs", 1, "--set", "raises=0")
    assert status == 3
    assert "undecided" in out
    assert 'raise ValueError("told to raise")' in err


def test_a_study_that_cannot_run_does_not_stop_the_others(call, tmp_path):
    faulty = tmp_path / "cannot_import.py"
    faulty.write_text("from plexus.lab import study, Study\n@study\nclass Faulty(Study):\n    '''Faulty.'''\n")
    status, _, err = call("run", faulty, "--scale", "smoke")
    assert status == 2
    assert "declares no `paper`" in err


def test_a_study_that_does_not_import_is_bad_usage_and_shows_its_own_lines(call, tmp_path):
    good, faulty = FILE, tmp_path / "faulty.py"
    faulty.write_text("from plexus.lab import study\nimport nowhere_at_all\n@study\nclass Faulty: pass\n")
    status, out, err = call("run", good, faulty, "--scale", "smoke", "--json")
    assert (status, out) == (2, "")
    assert "faulty.py cannot be imported" in err
    assert "line 2" in err
    assert "No module named 'nowhere_at_all'" in err
    assert "importlib" not in err
    assert not (tmp_path / "store" / "trials").exists()


BAD = [
    (["run", "no-such-study-at-all"], "no study"),
    (["run", "{file}", "--seeds", "many"], "integer"),
    (["run", "{file}", "--seeds", "0"], "--seeds"),
    (["run", "{file}", "--first-seed", "1.5"], "integer"),
    (["run", "{file}", "--jobs", "0"], "--jobs"),
    (["run", "{file}", "--scale", "huge"], "no scale 'huge'"),
    (["run", "adaptive-gain-contrl"], "did you mean 'adaptive-gain-control'"),
    (["run", "{file}::synthetic-stady"], "did you mean 'synthetic-study'"),
    (["run", "synthetic.py::x"], "no study file 'synthetic.py'"),
    (["run", "{file}", "--set", "efect=1"], "did you mean 'effect'"),
    (["run", "{file}", "--set", "effect=much"], "another type"),
    (["run", "{file}", "--set", "effect"], "name=value"),
    (["run", "{file}", "--store", "{blocked}/store"], "cannot be written"),
    (["run", "{file}", "--confirm", "--seeds", "3"], "--confirm fixes"),
    (["run"], "NAME"),
    (["verify", "{file}"], "no row of 'synthetic-study'"),
    (["show", "no-such-study-at-all"], "no study"),
    (["list", "--family", "nothing"], "no family"),
    (["report", "--out", "{blocked}/report.html"], "cannot be written"),
    (["report", "--out", "{folder}"], "is a folder"),
    (["bench", "no-such-benchmark"], "no benchmark"),
    (["cite", "no-such-study-at-all"], "no study"),
    (["frobnicate"], "frobnicate"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD, ids=[" ".join(arguments) for arguments, _ in BAD])
def test_bad_usage_gives_two_and_says_why(call, tmp_path, arguments, message):
    blocked = tmp_path / "blocked"
    blocked.write_text("")
    places = {"file": FILE, "blocked": blocked, "folder": tmp_path}
    status, out, err = call(*(argument.format(**places) for argument in arguments))
    assert status == 2
    assert message in err
    assert "Traceback" not in err
    assert out == ""
    assert not (tmp_path / "ledger").exists()
    assert not (tmp_path / "store" / "trials").exists()


def git(folder, *arguments):
    subprocess.run(["git", "-C", str(folder), *arguments], check=True, capture_output=True)


def test_confirm_writes_the_ledger_and_verify_compares_with_it(call, tmp_path):
    folder = tmp_path / "repository"
    folder.mkdir()
    study = folder / "confirmed_study.py"
    study.write_text(FILE.read_text())
    status, _, err = call("run", study, "--confirm")
    assert status == 2
    assert "not tracked by git" in err
    git(folder, "init", "-q")
    for name, value in (("user.name", "A"), ("user.email", "a@example.org"), ("commit.gpgsign", "false")):
        git(folder, "config", name, value)
    git(folder, "add", ".")
    git(folder, "commit", "-q", "-m", "a study")

    status, _, err = call("run", study, "--confirm", "--jobs", 2)
    assert status == 0, err
    path = tmp_path / "ledger" / "confirmed-study.json"
    row = read_row(path)
    assert row["confirming"] is True
    assert row["frozen"]["commit"] == row["commit"]
    assert row["clean"] is True
    assert len(set(row["seeds"])) == 10
    assert min(row["seeds"]) >= 1000
    assert row["scale"] == "full"
    assert [len(arm["metrics"]["score"]) for arm in row["arms"]] == [10, 10]
    assert "repository" not in json.dumps({key: row[key] for key in row if key != "command"})

    status, out, _ = call("verify", study, "--first-seed", 100, "--seeds", 3, "--json")
    assert status == 0
    assert json.loads(out)[0]["agrees"] is True
    status, out, err = call("run", study, "--tuning", "ledger", "--first-seed", 100, "--seeds", 2, "--json")
    assert status == 0, err
    assert json.loads(out)[0]["tuning"] == {"note": "chosen by the ledger's run", "seconds": 0.0}
    assert [arm["tuned"] for arm in json.loads(out)[0]["arms"]] == [arm["tuned"] for arm in row["arms"]]
    status, _, err = call("run", study, "--tuning", "ledger", "--scale", "smoke")
    assert status == 2
    assert "tuned at another scale" in err
    status, _, err = call("run", study, "--tuning", "legder")
    assert status == 2
    assert "did you mean 'ledger'" in err
    status, out, _ = call("show", study)
    assert status == 0
    assert "The method adds one." in out
    assert "holds here" in out

    row["verdicts"]["mechanism"]["word"] = "undecided"
    write_row(tmp_path / "ledger", row)
    status, out, _ = call("verify", study, "--first-seed", 100, "--seeds", 3)
    assert status == 1
    assert "differs" in out

    study.write_text(FILE.read_text() + "\n# changed\n")
    status, _, err = call("run", study, "--confirm")
    assert status == 2
    assert "differs from its committed form" in err
    study.write_text(FILE.read_text().replace("adds one", "adds a one") + "\nEXTRA = 1\n")
    status, _, err = call("run", study, "--tuning", "ledger")
    assert status == 2
    assert "has changed since the ledger's run" in err


def test_list_shows_every_study(call):
    status, out, _ = call("list", "--json")
    assert status == 0
    entries = json.loads(out)
    assert all({"slug", "family", "mechanism", "advantage", "state"} <= set(entry) for entry in entries)
    assert {entry["state"] for entry in entries} <= {"not measured"}
    assert call("list")[0] == 0


def test_list_says_what_is_measured_and_what_has_changed(call, tmp_path):
    row = synthetic_row("ssd")
    write_row(tmp_path / "ledger", row)
    states = {entry["slug"]: entry["state"] for entry in json.loads(call("list", "--json")[1])}
    assert states["ssd"] == "changed since"
    (entry,) = find("ssd")
    write_row(tmp_path / "ledger", {**row, "study_hash": file_hash(entry.source.path)})
    states = {
        entry["slug"]: entry["state"] for entry in json.loads(call("list", "--family", "unlearning", "--json")[1])
    }
    assert states["ssd"] == "measured"
    assert "holds here" in call("list")[1]


def test_report_and_show_write_pages(call, tmp_path):
    write_row(tmp_path / "ledger", synthetic_row("example"))
    status, out, _ = call("report", "--out", tmp_path / "new" / "report.html", "--json")
    assert status == 0
    assert json.loads(out)["studies"] == 1
    page = (tmp_path / "new" / "report.html").read_text()
    assert "The method is better than nothing." in page


def test_report_here_keeps_the_ledger_and_what_was_measured_here_apart(call, tmp_path):
    old = synthetic_row("synthetic-study", mechanism="does not hold here")
    write_row(tmp_path / "ledger", old)
    write_row(tmp_path / "ledger", synthetic_row("untouched"))
    status, out, _ = call("run", FILE, "--scale", "smoke", "--seeds", 2, "--jobs", 1)
    assert status == 0
    assert "the ledger says" in out
    assert "does not hold here" in out  # the ledger's word beside that of this run
    assert "Fewer seeds give wider intervals" in out
    status, out, _ = call("report", "--here", "--out", tmp_path / "report.html", "--json")
    assert status == 0
    assert json.loads(out)["studies"] == 2
    page = (tmp_path / "report.html").read_text()
    assert page.count('<details class="study"') == 2
    assert "The method is better than nothing." in page  # the row is still the ledger's
    assert "another answer" in page
    assert f"plexus run {FILE} --scale smoke --seeds 2 --first-seed 0" in page
    assert "2 rows of the ledger and 1 run on this machine" in page
    (tmp_path / "ledger" / "synthetic-study.json").unlink()
    assert call("report", "--here", "--out", tmp_path / "report.html")[0] == 0
    page = (tmp_path / "report.html").read_text()
    assert "The method adds one." in page
    assert "only measured here" in page
    assert "<strong>1 <span>of 1</span></strong>mechanisms hold" in page  # only the ledger is counted
    (tmp_path / "store" / "rows" / "synthetic-study.json").write_text('{"kind": ')
    assert (
        "only measured here"
        not in (call("report", "--here", "--out", tmp_path / "r.html"), (tmp_path / "r.html").read_text())[1]
    )


def test_show_here_shows_the_last_run_and_how_to_repeat_it(call, tmp_path):
    folder = tmp_path / "a folder"
    folder.mkdir()
    file = folder / "synthetic_study.py"
    file.write_text(FILE.read_text())
    status, out, _ = call("show", file)
    assert status == 0
    assert "--here" in out
    assert call("show", file, "--here")[0] == 2
    assert call("run", file, "--scale", "smoke", "--seeds", 1, "--jobs", 1, "--set", "effect=0.0")[0] == 0
    status, out, _ = call("show", file, "--here", "--json")
    assert status == 0
    arguments = shlex.split(json.loads(out)["command"])[1:]
    assert str(file) in arguments
    status, _, err = call(*arguments, "--json")
    assert status == 0
    assert "2 of them already in the store" in err
    assert "one seed gives no interval" in call("show", file, "--here")[1]


def test_verify_refuses_more_seeds_than_the_ledger_has(call, tmp_path):
    write_row(tmp_path / "ledger", synthetic_row("synthetic-study", seeds=3))
    status, out, err = call("verify", FILE, "--seeds", 4)
    assert (status, out) == (2, "")
    assert "--first-seed" in err


def test_a_ledger_that_is_damaged_is_refused(call, tmp_path):
    path = write_row(tmp_path / "ledger", synthetic_row("example"))
    path.write_text(path.read_text()[:100])
    status, _, err = call("list")
    assert status == 2
    assert "truncated" in err
    path.write_text(json.dumps({**synthetic_row("example"), "version": 99}))
    assert "another version" in call("list")[2]
    path.write_text(json.dumps({"kind": "something else"}))
    assert "is not a plexus ledger row" in call("list")[2]


def test_cite(call):
    status, out, _ = call("cite", FILE)
    assert status == 0
    assert "@misc{author2020synthetic," in out
    assert "@software{plexus," in out


def test_doctor_says_what_runs_and_whose_name_it_is(call):
    status, out, _ = call("doctor", "--json")
    assert status == 0
    found = json.loads(out)
    assert any(kernel["runs"] for kernel in found["kernels"])
    triton = [kernel for kernel in found["kernels"] if "triton" in kernel["kernel"]]
    assert [kernel["runs"] or bool(kernel["why"]) for kernel in triton] == [True]
    assert "another project" in found["note"]
    assert {extra["extra"] for extra in found["extras"]} >= {"lab", "llm", "brain"}
    status, out, _ = call("doctor")
    assert status == 0
    assert "plexus-nn" in out
