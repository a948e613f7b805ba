"""The tiny models of the usual families, for this folder's tests."""

import runpy
from collections.abc import Callable
from pathlib import Path

import pytest

FAMILIES = runpy.run_path(str(Path(__file__).parents[1] / "families.py"))


@pytest.fixture
def tiny() -> Callable:
    """`model, inputs = tiny("gpt2")`."""
    return FAMILIES["tiny"]
