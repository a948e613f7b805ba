"""The promises of the project as a whole: layers, lazy rooms, import time, names that resolve, nothing unpickled."""

import ast
import importlib
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "plexus"
ROOMS = ["units", "data", "kernels", "nn", "probe", "edit", "explain", "learn", "lab"]
HEAVY = ["numba", "scipy", "sklearn", "transformers", "plotly", "joblib", "rich", "typer", "fsspec"]


def fresh(code: str) -> str:
    """What a fresh interpreter prints."""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    return run.stdout.strip()


def test_imports_point_one_way() -> None:
    from importlinter.cli import lint_imports

    assert lint_imports(config_filename=str(ROOT / "pyproject.toml")) == 0


def test_import_is_lazy() -> None:
    loaded = fresh("import plexus, sys; print(*(m for m in sys.modules if m.startswith('plexus.')))")
    assert loaded.split() == []


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_loads_no_heavy_package(room: str) -> None:
    code = (
        f"import torch, sys; before = set(sys.modules); import plexus; dir(plexus.{room});"
        f"print(*[m for m in {HEAVY} if m in set(sys.modules) - before])"
    )
    assert fresh(code) == ""


def test_import_adds_less_than_a_third_of_a_second_to_torch() -> None:
    code = (
        "import time, torch; t = time.perf_counter(); import plexus;"
        f"[getattr(plexus, r) for r in {ROOMS}]; print(time.perf_counter() - t)"
    )
    assert min(float(fresh(code)) for _ in range(3)) < 0.3


@pytest.mark.parametrize("stub", sorted(PACKAGE.rglob("__init__.pyi")), ids=lambda p: str(p.parent.relative_to(ROOT)))
def test_every_public_name_resolves_and_says_what_it_is(stub: Path) -> None:
    room = importlib.import_module(".".join(stub.parent.relative_to(ROOT).parts))
    assert room.__doc__
    for node in ast.parse(stub.read_text()).body:
        assert isinstance(node, ast.ImportFrom), "a room's face only re-exports"
        for alias in node.names:
            value = getattr(room, alias.asname or alias.name)
            if callable(value):
                assert value.__doc__, f"{room.__name__}.{alias.name} has no docstring"


def test_a_room_keeps_its_implementation_private() -> None:
    """Only sub-rooms, studies and the three top modules have names without an underscore."""
    public = {
        str(p.relative_to(PACKAGE))
        for p in PACKAGE.rglob("*.py")
        if not p.name.startswith("_") and "studies" not in p.parts
    }
    assert public == {"errors.py", "cli.py"}


def test_modules_stay_short() -> None:
    long = {str(p.relative_to(ROOT)): n for p in PACKAGE.rglob("*.py") if (n := len(p.read_text().splitlines())) > 420}
    assert not long


def test_nothing_is_unpickled_from_a_file_that_a_user_passes() -> None:
    """`pickle` and `torch.load` appear only in the lab's own cache, which reads nothing from outside its folder."""
    for path in PACKAGE.rglob("*.py"):
        if path.name == "_prepared.py":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                assert (node.value.id, node.attr) not in {("pickle", "load"), ("pickle", "loads"), ("torch", "load")}, (
                    path
                )


def test_every_error_is_also_a_builtin_one() -> None:
    from plexus import errors

    for name in errors.__all__:
        value = getattr(errors, name)
        if isinstance(value, type) and value is not errors.PlexusError:
            assert issubclass(value, errors.PlexusError)
            assert issubclass(value, (ValueError, TypeError, ImportError))
