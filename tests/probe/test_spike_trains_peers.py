"""Statistics and distances of spike trains are elephant's (in the peers' environment, `make peers`)."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from plexus.probe import spike_trains as trains

FOLDER = Path(os.environ.get("PLEXUS_PEERS", Path(__file__).parents[2] / ".venv-peers"))
PYTHON = FOLDER / "bin" / "python"


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    if not PYTHON.exists():
        pytest.skip(f"no peers' environment at {FOLDER}: `make peers` creates it")
    if subprocess.run([PYTHON, "-c", "import elephant"], capture_output=True, check=False).returncode:
        pytest.skip(f"elephant is not in {FOLDER}: `make peers` installs it")
    folder = tmp_path_factory.mktemp("elephant")
    z = torch.rand(1000, 6, generator=torch.Generator().manual_seed(3)) < torch.linspace(0.01, 0.08, 6)
    np.savez(folder / "in.npz", z=z.numpy())
    script = Path(__file__).with_name("elephant_reference.py")
    done = subprocess.run(
        [PYTHON, script, folder / "in.npz", folder / "out.npz"],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return z.double(), np.load(folder / "out.npz")


@pytest.mark.parametrize("name", ["rate", "cv", "cv2", "correlation", "van_rossum", "victor_purpura"])
def test_the_number_is_elephants(reference, name):
    z, found = reference
    ours = {
        "rate": lambda: trains.firing_rate(z),
        "cv": lambda: trains.coefficient_of_variation(z),
        "cv2": lambda: trains.coefficient_of_variation(z, kind="cv2"),
        "correlation": lambda: trains.count_correlation(z, 20.0),
        "van_rossum": lambda: trains.van_rossum_distance(trains.spike_times(z), tau=15.0),
        "victor_purpura": lambda: trains.victor_purpura_distance(trains.spike_times(z), cost=0.08),
    }[name]()
    expected = torch.from_numpy(np.asarray(found[name])).double()
    torch.testing.assert_close(ours.double(), expected, atol=1e-5, rtol=1e-5)
