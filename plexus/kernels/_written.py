"""Loops that are written as text: where their modules are kept, and how they are imported."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import sys
import tempfile
import threading
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from types import ModuleType

from plexus.kernels._frame import Dynamics, options_from

__all__ = ["cache_folder", "written_module"]


@lru_cache(maxsize=1)
def cache_folder() -> Path:
    """Where compiled loops are kept: `$PLEXUS_CACHE`, else the user's cache folder, else a fresh temporary one."""
    base = os.environ.get("PLEXUS_CACHE") or os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    folder = Path(base) / ("kernels" if os.environ.get("PLEXUS_CACHE") else "plexus/kernels")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError:
        return Path(tempfile.mkdtemp(prefix="plexus-kernels-"))


_building = threading.Lock()


@lru_cache(maxsize=256)
def written_module(
    write: Callable[..., str], dynamics: Dynamics, key: str, dtype: str, uniform: bool, learn: bool
) -> ModuleType:
    """The module whose text `write` gives, imported from a file, where Numba and Triton look for the source."""
    text = write(dynamics, options_from(dynamics, key), dtype, uniform, learn)
    name = f"_plexus_{dynamics.name}_{hashlib.sha256(text.encode()).hexdigest()[:20]}"
    with _building:
        path = cache_folder() / f"{name}.py"
        if not (path.exists() and path.read_text(encoding="utf-8") == text):
            handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(text)
            os.replace(temporary, path)
        specification = importlib.util.spec_from_file_location(name, path)
        assert specification is not None
        assert specification.loader is not None
        module = importlib.util.module_from_spec(specification)
        sys.modules[name] = module
        specification.loader.exec_module(module)
    return module
