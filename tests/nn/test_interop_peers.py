"""Our graphs in other tools and their weights in ours, side by side (in the peers' environment, `make peers`)."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
import torch
from torch import nn

from plexus.nn import CUBA, IF, LIF, RecurrentLIF, Sequential
from plexus.nn.interop import save_nir
from plexus.nn.interop._table import LOOPS, READERS

ROOT = Path(__file__).parents[2]
FOLDER = Path(os.environ.get("PLEXUS_PEERS", ROOT / ".venv-peers"))
PYTHON = FOLDER / "bin" / "python"
pytest.importorskip("nir")


def lif(dt: float, kind: type = LIF, **options):
    return kind(8, 10.0, 0.2, dt=dt, discretisation="euler", scale_input=True, reset="hard", **options)


def linear(n_in: int, gain: float) -> nn.Linear:
    """Weights strong enough that the second layer fires, too."""
    layer = nn.Linear(n_in, 8)
    with torch.no_grad():
        layer.weight.mul_(gain)
    return layer


def networks() -> dict[str, Sequential]:
    """What is sent: `peer-name-dt`. Norse takes steps of our length, snnTorch always of 0.1 ms, both by Euler."""
    torch.manual_seed(0)
    exponential = LIF(8, 10.0, 0.2, scale_input=True, reset="hard")
    cuba = CUBA(8, 10.0, 5.0, threshold=0.1, scale_input=True, norm="area", reset="hard")
    return {
        "norse-lif-1.0": Sequential(linear(6, 6), lif(1.0), linear(8, 6), lif(1.0)),
        "norse-exponential-1.0": Sequential(linear(6, 4), exponential),
        "snntorch-lif-0.1": Sequential(linear(6, 6), lif(0.1), linear(8, 200), lif(0.1)),
        "norse-cuba-1.0": Sequential(linear(6, 1), cuba),
        "norse-if-1.0": Sequential(linear(6, 1), IF(8, 3.0, reset="hard")),
        "norse-recurrent-1.0": Sequential(linear(6, 6), lif(1.0, RecurrentLIF, weight_gain=4.0)),
        "snntorch-recurrent-0.1": Sequential(linear(6, 6), lif(0.1, RecurrentLIF, weight_gain=40.0)),
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
    found = {path.name.removesuffix(".z.pt"): path for path in folder.glob("*.z.pt")}
    theirs = {name: torch.load(path, weights_only=True) for name, path in found.items()}
    return ours, theirs, json.loads((folder / "results.json").read_text())


@pytest.mark.parametrize("name", ["norse-lif-1.0", "norse-if-1.0", "snntorch-lif-0.1", "norse-recurrent-1.0"])
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


def test_who_runs_a_graph_in_which_spikes_come_back(peers):
    ran = {
        peer: isinstance(peers[2]["graphs"][name], float)
        for peer, name in (("Norse", "norse-recurrent-1.0"), ("snnTorch", "snntorch-recurrent-0.1"))
    }
    assert {peer for peer, runs in ran.items() if runs} == LOOPS


def test_weights_of_others_spike_as_they_do(peers):
    for name, found in peers[2]["weights"].items():
        assert 0.005 < found["rate"] < 0.995, name
        assert found["differ"] <= 0.001 * found["count"], (name, found)


def test_the_table_knows_what_each_reader_builds(peers):
    assert {peer: frozenset(nodes) for peer, nodes in peers[2]["readers"].items()} == READERS
