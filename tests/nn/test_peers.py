"""Which LIF is this? The spike trains of other libraries from our parameters, as docs/which-lif.md maps them."""

import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from plexus.nn import LIF

ROOT = Path(__file__).parents[2]
PYTHON = Path(os.environ.get("PLEXUS_PEERS", ROOT / ".venv-peers")) / "bin" / "python"

OURS = {
    # snnTorch: Leaky(beta, threshold, reset_mechanism, reset_delay); tau_mem = -dt / ln beta
    "snntorch subtract delayed": {"tau_mem": -1 / np.log(0.875), "threshold": 0.75, "delayed_reset": True},
    "snntorch subtract at once": {"tau_mem": -1 / np.log(0.875), "threshold": 0.75},
    "snntorch zero delayed": {"tau_mem": -1 / np.log(0.875), "threshold": 0.75, "reset": "hard"},
    "snntorch zero at once": {"tau_mem": -1 / np.log(0.875), "threshold": 0.75, "reset": "hard"},
    "snntorch none delayed": {"tau_mem": -1 / np.log(0.875), "threshold": 0.75, "reset": "none"},
    "snntorch none at once": {"tau_mem": -1 / np.log(0.875), "threshold": 0.75, "reset": "none"},
    # Norse: tau_mem = 1 / tau_mem_inv, Euler steps, the leak is our rest
    "norse LIFBox": {
        "tau_mem": 8.0,
        "threshold": 0.75,
        "discretisation": "euler",
        "scale_input": True,
        "rest": 0.1,
        "reset": "hard",
        "reset_value": -0.2,
    },
    # Brian2: dv/dt = (x - v) / tau, method "exact"; our refractory time is one step shorter
    **{
        f"brian2 {reset} {refractory}": {
            "tau_mem": 8.0,
            "threshold": 0.75,
            "scale_input": True,
            "reset": reset,
            "reset_value": -0.1,
            "refractory": max(0, refractory - 1),
        }
        for reset in ("soft", "hard")
        for refractory in (0, 1, 3)
    },
    # SpikingJelly: tau in steps, Euler; the membrane decays to v_reset, except to 0 for a soft reset
    **{
        f"spikingjelly decay_input={decay_input} v_reset={v_reset}": {
            "tau_mem": 4.0,
            "threshold": 0.75,
            "discretisation": "euler",
            "scale_input": decay_input,
            "inclusive": True,
            "reset": "soft" if v_reset is None else "hard",
            "reset_value": v_reset or 0.0,
            "rest": v_reset or 0.0,
        }
        for decay_input in (True, False)
        for v_reset in (None, 0.0, -0.25)
    },
}
OURS["norse LIF"] = OURS["norse LIFBox"]


@pytest.fixture(scope="module")
def peers(tmp_path_factory):
    if not PYTHON.exists():
        pytest.skip(f"no peers' environment at {PYTHON.parent.parent}: `make peers` creates it")
    folder = tmp_path_factory.mktemp("peers")
    x = 1.6 * torch.rand(120, 4, 25, dtype=torch.float64, generator=torch.Generator().manual_seed(11))
    np.savez(folder / "in.npz", x=x.numpy())
    script = Path(__file__).with_name("peers.py")
    done = subprocess.run(
        [PYTHON, script, folder / "in.npz", folder / "out.npz"],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return x, np.load(folder / "out.npz")


@pytest.fixture
def double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("name", OURS)
def test_spike_trains_are_equal(peers, double, name):
    x, trains = peers
    if name.startswith("snntorch"):
        x = x / 8  # the input is not scaled there
    if name == "norse LIF":
        # Norse's LIF is its LIFBox behind an exponential synapse, 4 ms, Euler
        current, filtered = torch.zeros_like(x[0]), []
        for row in x:
            current = 0.75 * current + row
            filtered.append(current)
        x = torch.stack(filtered)
    spikes, _ = LIF(25, **OURS[name])(x)
    expected = torch.as_tensor(trains[name]).double()
    assert 0.005 < expected.mean() < 0.995
    assert torch.equal(spikes, expected), f"{(spikes != expected).sum()} of {spikes.numel()} differ"


def test_every_peer_case_has_its_counterpart(peers):
    assert set(peers[1].files) == set(OURS)
