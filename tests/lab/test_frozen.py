"""Frozen bars: which commit counts, which seeds follow, and what is refused."""

from __future__ import annotations

import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plexus.errors import PlexusError
from plexus.lab import TUNING_SEEDS
from plexus.lab._frozen import confirming_seeds, frozen, head, is_clean, protocol_files, refuse_unfrozen


@pytest.fixture
def repository(tmp_path):
    folder = tmp_path / "repository"
    folder.mkdir()
    git(folder, "init", "-q", "-b", "main")
    git(folder, "config", "user.name", "A. Author")
    git(folder, "config", "user.email", "author@example.org")
    git(folder, "config", "commit.gpgsign", "false")
    return folder


def git(folder, *arguments):
    answer = subprocess.run(["git", "-C", str(folder), *arguments], check=True, capture_output=True, text=True)
    return answer.stdout.strip()


def commit(folder, text, name="study.py"):
    (folder / name).write_text(text)
    git(folder, "add", "-A")
    git(folder, "commit", "-q", "--allow-empty", "-m", "a change")
    return git(folder, "rev-parse", "HEAD")


def test_the_frozen_commit_is_the_oldest_with_the_same_code(repository):
    path = repository / "study.py"
    commit(repository, "bar = 1\n")
    bar = commit(repository, "bar = 2\n")
    commit(repository, '"""Doc."""\nbar = 2  # why\n')
    commit(repository, "x = 1\n", name="other.py")
    assert frozen(path).commit == bar
    last = commit(repository, "bar = 3\n")
    assert frozen(path).commit == last
    back = commit(repository, "bar = 2\n")
    assert frozen(path).commit == back  # it was changed in between
    assert head(path) == back


def test_confirming_needs_a_committed_file(repository):
    path = repository / "study.py"
    path.write_text("bar = 1\n")
    with pytest.raises(PlexusError, match="not tracked"):
        refuse_unfrozen(path, "study")
    first = commit(repository, "bar = 1\n")
    assert refuse_unfrozen(path, "study").commit == first
    path.write_text("bar = 1  # a comment\n")
    with pytest.raises(PlexusError, match="differs from its committed form"):
        refuse_unfrozen(path, "study")
    assert frozen(path).commit == first
    path.write_text("bar = 2\n")
    assert frozen(path) is None
    git(repository, "add", "-A")
    with pytest.raises(PlexusError, match="differs"):
        refuse_unfrozen(path, "study")


def test_outside_git_there_is_nothing_frozen(tmp_path):
    path = tmp_path / "study.py"
    path.write_text("bar = 1\n")
    assert frozen(path) is None
    assert head(path) is None
    assert is_clean({"study": str(path)}) is None
    with pytest.raises(PlexusError, match="not tracked"):
        refuse_unfrozen(path, "study")


def test_without_git_nothing_breaks(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    path = tmp_path / "study.py"
    path.write_text("bar = 1\n")
    assert frozen(path) is None
    assert head(path) is None


def test_clean_means_as_committed(repository):
    path = repository / "study.py"
    commit(repository, "bar = 1\n")
    assert is_clean({"study": str(path)}) is True
    path.write_text("bar = 1\n\n")
    assert is_clean({"study": str(path)}) is False


@given(st.text(min_size=1, max_size=20), st.integers(0, 2**160 - 1), st.integers(1, 40))
def test_confirming_seeds(slug, number, count):
    sha = f"{number:040x}"
    seeds = confirming_seeds(slug, sha, count)
    assert len(set(seeds)) == count
    assert all(1000 <= seed < 2**31 and seed not in TUNING_SEEDS for seed in seeds)
    assert confirming_seeds(slug, sha, count + 3)[:count] == seeds
    assert confirming_seeds(slug, f"{number ^ 1:040x}", count) != seeds
    assert confirming_seeds(slug + "x", sha, count) != seeds


def test_a_private_module_beside_the_study_is_part_of_its_protocol(repository):
    path, beside = repository / "study.py", repository / "_bars.py"
    commit(repository, "BAR = 1\n", name="_bars.py")
    first = commit(repository, "from _bars import BAR\n")
    assert protocol_files(path) == (path.resolve(), beside.resolve())
    assert frozen(path).commit == first
    beside.write_text("BAR = 2\n")
    assert frozen(path) is None
    with pytest.raises(PlexusError, match=r"_bars\.py differs"):
        refuse_unfrozen(path, "study")
    second = commit(repository, "BAR = 2\n", name="_bars.py")
    assert frozen(path).commit == second
