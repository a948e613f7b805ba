"""The Triton kernels: in Triton's interpreter and, compiled, without a GPU; on a GPU where there is one.

Triton reads `TRITON_INTERPRET` when it is imported, so each of these is a process of its own.
"""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from plexus.kernels import BACKENDS, _triton

FOLDER = Path(__file__).parent
needs_triton = pytest.mark.skipif(not _triton.installed(), reason="triton is not installed (the extra gpu)")


def run(*arguments, **environment):
    done = subprocess.run(
        [sys.executable, *arguments], env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def parity(**environment):
    options = ("-q", "-p", "no:cacheprovider", "-p", "no:xdist")
    out = run("-m", "pytest", *options, str(FOLDER / "triton_parity.py"), **environment)
    assert "passed" in out
    assert "skipped" not in out


@needs_triton
def test_kernels_equal_the_eager_reference_in_the_interpreter():
    parity(TRITON_INTERPRET="1")


@needs_triton
def test_kernels_compile_for_gpus_that_are_not_here(tmp_path):
    out = run(str(FOLDER / "triton_compile.py"), TRITON_CACHE_DIR=str(tmp_path), TRITON_INTERPRET="0")
    assert out.split() == ["lif", "float32", "coba", "float64"]


@pytest.mark.skipif(_triton.missing() is not None, reason=f"no kernels run here: {_triton.missing()}")
def test_kernels_equal_the_eager_reference_on_this_gpu():
    parity(TRITON_INTERPRET="0")


def test_triton_is_the_backend_of_gpus_where_torch_has_them():
    import torch

    expected = _triton.installed() and torch.backends.cuda.is_built()
    assert ("cuda" in BACKENDS) is expected
    assert not expected or BACKENDS["cuda"].name == "triton"


def test_nothing_of_triton_is_imported_with_the_kernels():
    out = run("-c", "import sys; from plexus.kernels import lif, _triton; print('triton' in sys.modules)")
    assert out.strip() == "False"


def test_what_is_missing_is_said(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert _triton.missing() == "triton is not installed"
