"""LIF over time beside the peers, and beside the time to move the bytes that must move.

    python benchmarks/lif.py [--json] [--rounds 15] [--threads 2] [--peers .venv-peers] [--device cuda]

A layer of neurons with decay 0.9, hard reset and the arctan surrogate, float32. Each round times every contender
so that what disturbs the machine disturbs all; ratios are of medians. The floor of forward is one read of the
input and one write of the spikes; forward and backward read the input twice (it is what is saved) and the gradient
and write spikes and gradient: five tensors at copy bandwidth. Peers run in their own environment (`make
peers`); those that are not there are left out. On a GPU the layers are wider and SpikingJelly brings two more backends.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import torch
from _peers import Peers
from _timing import copy_time, device, emit, note, peak_memory, settled, summary

import plexus as px

ROOT = Path(__file__).parents[1]
SHAPES = {"cpu": ((100, 64, 1000), (25, 128, 4096)), "cuda": ((100, 64, 1000), (25, 128, 4096), (100, 256, 4096))}
MODES = ("forward", "forward+backward")
TENSORS = {"forward": 2, "forward+backward": 5}
COMMON = ("snntorch", "norse", "spikingjelly torch", "spikingjelly inductor")
PEERS = {"cpu": COMMON, "cuda": (*COMMON, "spikingjelly cupy", "spikingjelly triton")}


def ours(mode: str, shape: tuple[int, ...]):
    with device.making():
        x = torch.rand(shape, requires_grad=mode != "forward")
        grad = torch.rand(shape)

    def call():
        if mode == "forward":
            with torch.no_grad():
                return px.kernels.lif(x, decay=0.9, reset="hard")[0]
        return torch.autograd.grad(px.kernels.lif(x, decay=0.9, reset="hard")[0], x, grad)

    call()
    call()
    return call


def compare(mode: str, shape: tuple[int, ...], peers: Peers, rounds: int) -> dict[str, object]:
    call, copy = ours(mode, shape), copy_time(shape[0] * shape[1] * shape[2])
    copy()
    times: dict[str, list[float]] = {"plexus": [], "copy": []}
    errors: dict[str, str] = {}
    memory: dict[str, float | None] = {"plexus": peak_memory(call)}
    for _ in range(rounds):
        times["copy"].append(copy())
        times["plexus"].append(settled(call))
        for name in PEERS[device.name] if peers.process else ():
            if name in errors:
                continue
            answer = peers.time(name, mode, *map(str, shape))
            if "error" in answer:
                errors[name] = str(answer["error"])
                note(f"{name}: {errors[name]}")
                continue
            times.setdefault(name, []).append(float(answer["ms"]))
            memory[name] = max(filter(None, (memory.get(name), answer["peak_mb"])), default=None)
    found = {name: summary(values) for name, values in times.items() if values}
    floor = found.pop("copy")["median_ms"] / 2 * TENSORS[mode]
    mine = found["plexus"]["median_ms"]
    return {
        "benchmark": "lif",
        "mode": mode,
        "shape": list(shape),
        "device": device.label,
        "threads": torch.get_num_threads(),
        "floor_ms": round(floor, 3),
        "plexus_over_floor": round(mine / floor, 2),
        "plexus": found["plexus"],
        "peers": {name: values for name, values in found.items() if name != "plexus"},
        "speedup": {name: round(v["median_ms"] / mine, 2) for name, v in found.items() if name != "plexus"},
        "peak_mb": {name: None if v is None else round(v, 1) for name, v in memory.items()},
        "errors": errors,
    }


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark; JSON lines on stdout with `--json`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print JSON lines and nothing else on stdout")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--peers", type=Path, default=Path(os.environ.get("PLEXUS_PEERS", ROOT / ".venv-peers")))
    parser.add_argument("--device", choices=list(SHAPES), default="cpu")
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    device.use(options.device)
    for shape in SHAPES[options.device]:
        for mode in MODES:
            peers = Peers(options.peers, "_lif_peers.py", str(options.threads), options.device, "memory")
            try:
                emit(compare(mode, shape, peers, options.rounds), options.json)
            finally:
                peers.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
