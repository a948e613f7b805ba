"""What is installed here, which kernels run, and what each missing extra would give."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import platform
import time
from typing import Any

import torch

from plexus._version import __version__
from plexus.kernels import BACKENDS, lif
from plexus.kernels._triton import missing
from plexus.lab._catalogue import catalogue
from plexus.lab._ledger import ledger_folder
from plexus.lab._machine import cores, machine_class

NOTE = (
    "The distribution is called plexus-nn (pip install plexus-nn); the package named plexus on the index is another "
    "project. Both are imported as plexus, so do not install both."
)

CORE = ("torch", "numpy", "scipy", "numba", "safetensors", "typer", "rich", "lazy_loader")

EXTRAS: dict[str, tuple[str, tuple[str, ...]]] = {
    "lab": (
        "figures, real digits and photographs, stores behind URLs",
        ("sklearn", "plotly", "jinja2", "fsspec", "PIL"),
    ),
    "llm": ("language models of Hugging Face", ("transformers", "tokenizers", "peft")),
    "events": ("recorded event streams and the files of event cameras", ("tonic", "h5py")),
    "brain": ("nothing yet; for readers of recorded neurons", ("pynwb", "mne", "tensorly", "statsmodels", "pynapple")),
    "rl": ("nothing yet; for environments to act in", ("gymnasium", "mujoco")),
    "interop": ("NIR graphs to and from neuromorphic hardware and other simulators", ("nir",)),
    "gpu": ("fused loops on a GPU (PyTorch built for CUDA brings it along)", ("triton",)),
    "ray": ("nothing yet; for trials on a cluster", ("ray",)),
    "mlflow": ("nothing yet; for the export of runs", ("mlflow",)),
}

DISTRIBUTIONS = {"sklearn": "scikit-learn", "PIL": "pillow", "lazy_loader": "lazy-loader"}


def _version(module: str) -> str | None:
    if importlib.util.find_spec(module) is None:
        return None
    try:
        return importlib.metadata.version(DISTRIBUTIONS.get(module, module))
    except importlib.metadata.PackageNotFoundError:
        return "unknown version"


def _kernels() -> list[dict[str, Any]]:
    """Each fused backend, and the eager reference: whether its LIF loop runs here, and how long a small one takes."""
    found = []
    places: list[tuple[str, str, str]] = [(f"fused, {b.name}", device, "fused") for device, b in BACKENDS.items()]
    for name, device, backend in [*places, ("eager reference", "cpu", "eager")]:
        entry: dict[str, Any] = {"kernel": name, "device": device, "runs": False, "milliseconds": None, "why": ""}
        try:
            x = torch.randn(50, 8, 64, device=device)
            lif(x, decay=0.9, backend=backend)  # type: ignore[arg-type]  # the first call compiles
            started = time.perf_counter()
            lif(x, decay=0.9, backend=backend)[0].sum().item()  # type: ignore[arg-type]  # waits until it has run
            entry |= {"runs": True, "milliseconds": round(1e3 * (time.perf_counter() - started), 3)}
        except Exception as error:  # whatever stops a kernel here is what the user wants to know
            entry["why"] = f"{type(error).__name__}: {error}".splitlines()[0]
        found.append(entry)
    if "cuda" not in BACKENDS:
        found.insert(
            -1, {"kernel": "fused, triton", "device": "cuda", "runs": False, "milliseconds": None, "why": missing()}
        )
    return found


def _namesake() -> str | None:
    """The version of the other project of the name, where it is installed."""
    try:
        return importlib.metadata.version("plexus")
    except importlib.metadata.PackageNotFoundError:
        return None


def examine() -> dict[str, Any]:
    """Everything `plexus doctor` shows, as plain values."""
    gpu = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    extras = []
    for name, (gives, modules) in EXTRAS.items():
        installed = {module: _version(module) for module in modules}
        missing = [module for module, version in installed.items() if version is None]
        extras.append(
            {
                "extra": name,
                "gives": gives,
                "packages": installed,
                "complete": not missing,
                "install": f"pip install 'plexus-nn[{name}]'" if missing else None,
            }
        )
    return {
        "plexus": __version__,
        "note": NOTE,
        "namesake": _namesake(),
        "python": platform.python_version(),
        "machine": machine_class(),
        "cores": cores(),
        "gpus": gpu,
        "core": {module: _version(module) for module in CORE},
        "kernels": _kernels(),
        "extras": extras,
        "studies": len(catalogue()),
        "ledger": str(ledger_folder()),
    }
