"""The wheel, installed alone into an empty environment with only the core dependencies, works."""

import json
import subprocess
import sys
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of programs of an environment that holds the wheel and what it asks for, and nothing else."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = folder.glob("plexus_nn-*.whl")
    venv.create(folder / "env", with_pip=True)
    programs = folder / "env" / "bin"
    command = [
        programs / "python",
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-compile",
        "-c",
        ROOT / "constraints.txt",
        wheel,
    ]
    subprocess.run(command, check=True, capture_output=True)
    return programs


def run(installed: Path, *command: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([installed / command[0], *command[1:]], capture_output=True, text=True, cwd=cwd)


def test_the_command_runs_without_any_extra(installed: Path, tmp_path: Path) -> None:
    listed = run(installed, "plexus", "list", "--json", cwd=tmp_path)
    assert listed.returncode == 0, listed.stderr
    assert {row["slug"] for row in json.loads(listed.stdout)} >= {"ssd", "adaptive-gain-control"}
    doctor = run(installed, "plexus", "doctor", cwd=tmp_path)
    assert doctor.returncode == 0, doctor.stderr
    assert "plexus-nn" in doctor.stdout
    assert "lab" in doctor.stdout


def test_the_core_works_and_names_a_missing_extra(installed: Path, tmp_path: Path) -> None:
    code = """
import torch, plexus as px
from torch import nn
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
hidden = px.sites.mlp(model)
record = px.probe.record(model, [torch.randn(5, 4)], at=hidden)
chosen = px.probe.scores.variance(record).top(2)
probe = torch.randn(16, 4)      # of sixteen inputs some make the chosen units fire
before = model(probe)
with px.edit.scale(model, chosen, 0.0):
    assert not torch.equal(model(probe), before)
assert torch.equal(model(probe), before)
spikes, state = px.nn.LIF(3)(torch.rand(6, 2, 3))
try:
    px.data.digits()
except px.errors.MissingExtraError as error:
    print(error)
"""
    done = run(installed, "python", "-c", code, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "plexus-nn[lab]" in done.stdout
