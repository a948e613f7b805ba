"""Reservoir and ridge readout beside reservoirpy, on the same matrices and the same data.

    python benchmarks/reservoir.py [--rounds 7] [--threads 1] [--peers .venv-peers]

A leaky tanh reservoir with 10 % of its connections is driven by the Mackey–Glass series, and a ridge readout predicts
the next step; float64. Both sides get the same weights, inputs and penalty, and their predictions are compared.
reservoirpy runs in an environment of its own, with its weights dense and sparse; the faster counts. Each round times
every contender once; ratios are of medians. Without the peer only our own times are printed. Prints JSON lines.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from _timing import emit, note, once, summary

from plexus.data import mackey_glass
from plexus.learn.readout import RidgeReadout
from plexus.nn.reservoirs import EchoState

ROOT = Path(__file__).parents[1]
CASES = ((200, 3_000), (500, 10_000))
PENALTY = 1e-6
WASHOUT = 200


class Peer:
    """reservoirpy's process; asked for one timing at a time."""

    def __init__(self, folders: list[Path], problem: Path, threads: int) -> None:
        self.process: subprocess.Popen[str] | None = None
        for folder in folders:
            python = folder / "bin" / "python"
            if (
                not python.exists()
                or subprocess.run([python, "-c", "import reservoirpy"], capture_output=True).returncode
            ):
                continue
            names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
            self.process = subprocess.Popen(
                [python, Path(__file__).with_name("_reservoir_peer.py"), problem],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                env=os.environ | {name: str(threads) for name in names},
            )
            return
        note("reservoirpy is in no peers' environment (`make peers` creates one); timing ours alone")

    def ask(self, what: str) -> dict[str, float | str]:
        assert self.process is not None
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(what + "\n")
        self.process.stdin.flush()
        while line := self.process.stdout.readline():
            if line.startswith("{"):
                return json.loads(line)
        raise RuntimeError("reservoirpy's process ended")

    def close(self) -> None:
        if self.process is not None:
            assert self.process.stdin is not None
            self.process.stdin.close()
            self.process.wait(timeout=30)


def compare(units: int, steps: int, rounds: int, threads: int, folders: list[Path]) -> dict[str, object]:
    generator = torch.Generator().manual_seed(0)
    cell = EchoState(
        1,
        units,
        dale=False,
        activation="tanh",
        spectral_radius=0.9,
        leak=0.5,
        bias_scale=0.2,
        input_scale=0.5,
        generator=generator,
        dtype=torch.float64,
    )
    task = mackey_glass(steps, generator=generator)
    states = cell(task.u)[0][:, 0]
    y = task.y[:, 0]
    readout = RidgeReadout(PENALTY).fit(states[WASHOUT:], y[WASHOUT:])
    predicted = readout.predict(states[WASHOUT:])
    with tempfile.TemporaryDirectory() as folder:
        problem = Path(folder) / "problem.npz"
        np.savez(
            problem,
            W=cell.weight.numpy(),
            Win=cell.input_weight.numpy(),
            bias=cell.bias.numpy(),
            leak=cell.leak,
            u=task.u[:, 0].numpy(),
            y=y.numpy(),
            penalty=PENALTY,
            washout=WASHOUT,
        )
        peer = Peer(folders, problem, threads)
        kinds = ("reservoir dense", "reservoir sparse", "ridge")
        times: dict[str, list[float]] = {"reservoir": [], "ridge": []}
        theirs: dict[str, list[float]] = {kind: [] for kind in kinds} if peer.process else {}
        try:
            for _ in range(rounds):
                times["reservoir"].append(once(lambda: cell(task.u)))
                times["ridge"].append(once(lambda: RidgeReadout(PENALTY).fit(states[WASHOUT:], y[WASHOUT:])))
                for kind, values in theirs.items():
                    values.append(float(peer.ask(kind)["ms"]))
            found: dict[str, object] = {
                "benchmark": "reservoir",
                "units": units,
                "steps": steps,
                "density": 0.1,
                "dtype": "float64",
                "threads": threads,
                "plexus": {name: summary(values) for name, values in times.items()},
            }
            if peer.process is None:
                return found | {"peers": {}, "skipped": "reservoirpy is not installed in a peers' environment"}
            answer = peer.ask(f"predict\t{folder}/predicted.npy")
            difference = float(np.abs(np.load(f"{folder}/predicted.npy") - predicted).max())
        finally:
            peer.close()
    medians = {kind: summary(values)["median_ms"] for kind, values in theirs.items()}
    fastest = min(medians["reservoir dense"], medians["reservoir sparse"])
    return found | {
        "peers": {"reservoirpy " + kind: summary(values) for kind, values in theirs.items()},
        "peer_version": answer["version"],
        "largest_difference_of_predictions": difference,
        "same_to_1e-6": difference < 1e-6,
        "speedup": {
            "reservoir": round(fastest / summary(times["reservoir"])["median_ms"], 2),
            "ridge": round(medians["ridge"] / summary(times["ridge"])["median_ms"], 2),
        },
    }


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark; JSON lines on stdout. Fails when the predictions differ by more than 1e-6."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="JSON lines (which are printed in any case)")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--peers", type=Path, default=None)
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    chosen = options.peers or os.environ.get("PLEXUS_PEERS")
    folders = [Path(chosen)] if chosen else [ROOT / ".venv-peers", ROOT / ".venv-peers-reservoir"]
    same = True
    for units, steps in CASES:
        record = compare(units, steps, options.rounds, options.threads, folders)
        same &= bool(record.get("same_to_1e-6", True))
        emit(record, True)
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
