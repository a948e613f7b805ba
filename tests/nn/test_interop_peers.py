"""Our graphs in other tools and their weights in ours, side by side (in the peers' environment, `make peers`)."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
import torch
from torch import nn

from plexus.nn import CUBA, LIF, Sequential
from plexus.nn.interop import save_nir
from plexus.nn.interop._table import READERS

ROOT = Path(__file__).parents[2]
FOLDER = Path(os.environ.get("PLEXUS_PEERS", ROOT / ".venv-peers"))
PYTHON = FOLDER / "bin" / "python"
pytest.importorskip("nir")


def lif(dt: float, **options):
    return LIF(8, 10.0, 0.2, dt=dt, discretisation="euler", scale_input=True, reset="hard", **options)


def networks() -> dict[str, Sequential]:
    """What is sent: `peer-name-dt`. Norse takes steps of our length, snnTorch always of 0.1 ms, both by Euler."""
    torch.manual_seed(0)
    return {
        "norse-lif-1.0": Sequential(nn.Linear(6, 8), lif(1.0), nn.Linear(8, 8, bias=True), lif(1.0)),
        "norse-exponential-1.0": Sequential(
            nn.Linear(6, 8), LIF(8, 10.0, 0.2, scale_input=True, reset="hard"), nn.Linear(8, 8), lif(1.0)
        ),
        "snntorch-lif-0.1": Sequential(nn.Linear(6, 8), lif(0.1), nn.Linear(8, 8), lif(0.1)),
        "norse-cuba-1.0": Sequential(
            nn.Linear(6, 8), CUBA(8, 10.0, 5.0, threshold=0.1, scale_input=True, norm="area", reset="hard")
        ),
    }


@pytest.fixture(scope="module")
def peers(tmp_path_factory):
    if not PYTHON.exists():
        pytest.skip(f"no peers' environment at {FOLDER}: `make peers` creates it")
    if subprocess.run([PYTHON, "-c", "import nir, numba, lazy_loader"], capture_output=True, check=False).returncode:
        pytest.skip(f"the peers' environment at {FOLDER} is of an earlier list: `make peers` completes it")
    folder = tmp_path_factory.mktemp("interop")
    ours = {}
    for name, net in networks().items():
        x = 1.5 * torch.rand(400 if name.endswith("0.1") else 120, 3, 6)
        save_nir(net, folder / f"{name}.nir")
        torch.save(x, folder / f"{name}.x.pt")
        with torch.no_grad():
            ours[name] = net(x)[0]
    script = Path(__file__).with_name("interop_peers.py")
    done = subprocess.run(
        [PYTHON, script, folder],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    theirs = {name: torch.load(folder / f"{name}.z.pt", weights_only=True) for name in ours}
    return ours, theirs, json.loads((folder / "results.json").read_text())


@pytest.mark.parametrize("name", ["norse-lif-1.0", "snntorch-lif-0.1"])
def test_the_same_steps_give_the_same_spikes(peers, name):
    ours, theirs = peers[0][name], peers[1][name]
    assert 0.01 < float(ours.mean()) < 0.9
    differ = int((ours != theirs).sum())
    assert differ <= 0.002 * ours.numel(), f"{differ} of {ours.numel()} spikes differ"  # rounding at the threshold


@pytest.mark.parametrize("name", ["norse-exponential-1.0", "norse-cuba-1.0"])
def test_other_steps_of_the_same_equations_give_nearly_the_same_rates(peers, name):
    """Norse integrates by Euler what we integrate exactly: at dt/τ = 0.1 the rates differ by some per cent."""
    ours, theirs = peers[0][name], peers[1][name]
    assert 0.01 < float(ours.mean()) < 0.9
    assert abs(float(theirs.mean() / ours.mean()) - 1) < 0.15


def test_weights_of_others_spike_as_they_do(peers):
    for name, found in peers[2]["weights"].items():
        assert 0.005 < found["rate"] < 0.995, name
        assert found["differ"] <= 0.001 * found["count"], (name, found)


def test_the_table_knows_what_each_reader_builds(peers):
    assert {peer: frozenset(nodes) for peer, nodes in peers[2]["readers"].items()} == READERS
