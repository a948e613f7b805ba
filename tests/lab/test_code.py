"""What makes a trial run again: its code, and nothing else."""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import plexus
from plexus.errors import PlexusError, RangeError
from plexus.lab import _code
from plexus.lab._catalogue import find
from plexus.lab._runner import run_study
from plexus.lab._store import Store

STUDY = '''
"""A study of {name}."""
from dataclasses import dataclass
import {helper}
from plexus.lab import Arm, Outcome, Paper, Study, interval, study

@dataclass(frozen=True)
class Config:
    """Settings."""
    x: int = 0

@study
class Generated(Study):
    """A generated study."""
    paper = Paper("P", "A", 2020)
    claim = refuted_by = scale_line = "x"
    fidelity = "B"
    data = ("d",)
    Config = Config
    arms = (Arm("a", x=1),)
    checks = (interval("x", lambda arms: arms["a"]["x"], role="mechanism", at_least=0, primary=True),)

    def run(self, config, prepared, seed):
        """One trial."""
        {late}
        return Outcome({{"x": float({helper}.number(seed))}})
'''


def bump(path, old, new):
    """Edit a file, and make sure that its time says so."""
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    stat = path.stat()
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1_000_000))


def write_study(folder, name, late="pass"):
    helper = f"helper_of_{name}"
    (folder / f"{name}.py").write_text(STUDY.format(name=name, helper=helper, late=late))
    (folder / f"{helper}.py").write_text('def number(seed):\n    """A number."""\n    return seed + 1\n')
    return folder / f"{name}.py", folder / f"{helper}.py"


def counts(file, store):
    (entry,) = find(str(file))
    done = run_study(entry, scale="full", seeds=(0, 1), jobs=1, store=store)
    assert done.broken == []
    return done.ran, done.found


def test_only_code_that_the_study_loads_makes_it_run_again(tmp_path):
    file, helper = write_study(tmp_path, "generated_a")
    store = Store(tmp_path / "store")
    assert counts(file, store) == (2, 0)
    bump(helper, '"""A number."""', '"""Another docstring."""  # and a comment\n')
    bump(file, '"""One trial."""', '"""Just one trial."""')
    (tmp_path / "unrelated.py").write_text("x = 1\n")
    assert counts(file, store) == (0, 2)
    bump(helper, "seed + 1", "seed + 2")
    assert counts(file, store) == (2, 0)
    bump(helper, "seed + 2", "seed + 1")
    assert counts(file, store) == (0, 2)  # the code it was: found again
    bump(file, "x=1", "x=2")
    assert counts(file, store) == (2, 0)


def test_modules_loaded_while_running_become_part_of_the_key(tmp_path):
    file, _ = write_study(tmp_path, "generated_b", late="import late_module_b")
    late = tmp_path / "late_module_b.py"
    late.write_text("value = 1\n")
    store = Store(tmp_path / "store")
    assert counts(file, store) == (2, 0)
    assert counts(file, store) == (0, 2)
    bump(late, "value = 1", "value = 1  # the same")
    assert counts(file, store) == (0, 2)
    bump(late, "value = 1", "value = 2")
    assert counts(file, store) == (2, 0)


DRIVER = """
import json, os, sys
from pathlib import Path
from plexus.lab._catalogue import find
from plexus.lab._store import Store
import plexus

root = Path(plexus.__file__).parent
assert str(root).startswith(sys.argv[1]), root
store = Store(sys.argv[2])

def key():
    (entry,) = find("toy")
    code = store.code(entry.slug, entry.source)
    return code.hash, sorted(code.modules)

def edit(name, old, new):
    path = root / name
    text = path.read_text()
    assert old in text, (name, old)
    path.write_text(text.replace(old, new, 1))
    stat = path.stat()
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1_000_000))
    return key()[0]

first, modules = key()
answers = {"first": first, "modules": modules}
answers["docstring"] = edit("data/_toy_data.py", "Doc", "Other doc")
answers["lab"] = edit("lab/_runner.py", "POLL = 0.25", "POLL = 0.26")
answers["cli"] = edit("cli.py", "def main(", "MORE = 1\\n\\ndef main(")
answers["unrelated"] = edit("data/_unrelated.py", "1", "2")
answers["imported"] = edit("data/_toy_data.py", "1", "2")
print(json.dumps(answers))
"""


def test_which_modules_of_the_library_count(tmp_path):
    source = Path(plexus.__file__).parent
    shutil.copytree(source, tmp_path / "plexus", ignore=shutil.ignore_patterns("__pycache__", "studies"))
    toys = tmp_path / "plexus" / "studies" / "toys"
    toys.mkdir(parents=True)
    (tmp_path / "plexus" / "studies" / "__init__.py").touch()
    (toys / "__init__.py").touch()
    (tmp_path / "plexus" / "data" / "_toy_data.py").write_text('"""Doc."""\nvalue = 1\n')
    (tmp_path / "plexus" / "data" / "_unrelated.py").write_text("value = 1\n")
    text = STUDY.format(name="toy", helper="plexus.data._toy_data", late="pass")
    (toys / "toy.py").write_text(text)
    driver = tmp_path / "driver.py"
    driver.write_text(DRIVER)
    answer = subprocess.run(
        [sys.executable, str(driver), str(tmp_path), str(tmp_path / "store")],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert answer.returncode == 0, answer.stderr
    found = json.loads(answer.stdout)
    assert "plexus.studies.toys.toy" in found["modules"]
    assert "plexus.data._toy_data" in found["modules"]
    assert not [name for name in found["modules"] if name.startswith("plexus.lab") or name == "plexus.cli"]
    assert found["first"] == found["docstring"] == found["lab"] == found["cli"] == found["unrelated"]
    assert found["imported"] != found["first"]


def test_every_private_module_of_the_lab_is_classed():
    """A new module of the lab is machinery (named so), or code that a study may run: decided, not forgotten."""
    room = Path(_code.__file__).parent
    machinery = {path.stem for path in room.glob("_*.py") if _code.is_infrastructure(f"plexus.lab.{path.stem}")}
    assert {path.stem for path in room.glob("_[a-z]*.py")} - machinery == {"_statistics"}


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("def f():\n    return 1", 'def f():\n    """Doc."""\n    # why\n    return (1)'),
        ("class A:\n    x: int = 1", 'class A:\n    """Doc."""\n\n    x: int = 1\n    """What x is."""'),
        ("f(a, b)", "f(\n    a,\n    b,\n)"),
        ("x = 'a'", 'x = "a"'),
    ],
)
def test_formatting_comments_and_docstrings_do_not_matter(one, other):
    assert _code.tree_hash(one) == _code.tree_hash(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("x = 1", "x = 2"),
        ("x = 1", "x = 1.0"),
        ("x = 1", "x = True"),
        ("x = 'a'", "x = b'a'"),
        ("f(a, b)", "f(b, a)"),
        ("f(*a)", "f(a)"),
        ("def f(a, /): pass", "def f(a): pass"),
        ("def f(a=1, *, b): pass", "def f(a, *, b=1): pass"),
        ("if a: b\nelse: c", "if a: b\nc"),
        ("a < b", "a > b"),
        ("f'{a}'", "f'{a!r}'"),
        ("async def f(): pass", "def f(): pass"),
        ("from a import b", "from .a import b"),
        ("{**a}", "{'a': a}"),
    ],
)
def test_what_runs_matters(one, other):
    assert _code.tree_hash(one) != _code.tree_hash(other)


@given(st.lists(st.sampled_from(["x = 1", "y = [1, *a]", "def g(): return x", "for i in y: print(i)"]), max_size=5))
def test_the_hash_survives_unparsing(lines):
    source = "\n".join(lines)
    assert _code.tree_hash(source) == _code.tree_hash(ast.unparse(ast.parse(source)))


def test_what_is_not_python_is_refused(tmp_path):
    with pytest.raises(RangeError, match="not Python"):
        _code.tree_hash("def")
    assert _code.file_hash(tmp_path / "absent.py") == "absent"
    file = tmp_path / "no_python.py"
    file.write_text(textwrap.dedent("def"))
    with pytest.raises(PlexusError, match="not Python"):
        find(str(file))
