"""One training step of spiking networks beside the peers.

    python benchmarks/spiking_step.py [--json] [--rounds 5] [--threads 2] [--peers .venv-peers] [--case feed-forward …]
        [--device cuda]

Forward, loss, backward and Adam of 700–512–512–20 LIF at [time, batch] = [100, 128], feed-forward and with recurrent
hidden layers, and of a small convolutional network at [25, 64, 2, 34, 34]; float32, hard reset, arctan surrogate. Peers
run at the settings that are fastest on a CPU: weight layers over all of time at once, SpikingJelly's inductor backend.

`bare_ms` is the same step without its neurons: dense matrix products, loss and optimiser, the recurrent products step
by step without autograd. `neurons_ms` is a step less that, and `products` the share of it in our step with `nn.Linear`
("plexus dense"). "plexus" has `SpikingLinear` in its place, which does less than the dense products; "plexus recompute"
is that with `memory="recompute"`. The input spikes at 5 % of its places. Numbers are medians.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import torch
from _peers import Peers
from _spiking_nets import CASES, Folded, Nothing, RecurrentNothing, layers, training_step
from _timing import device, emit, note, peak_memory, settled, summary

import plexus as px

ROOT = Path(__file__).parents[1]
COMMON = ("snntorch", "norse", "spikingjelly torch", "spikingjelly inductor")
PEERS = {"cpu": COMMON, "cuda": (*COMMON, "spikingjelly cupy", "spikingjelly triton")}
NEURON = {"tau_mem": 9.4912, "reset": "hard"}  # exp(-1 / 9.4912) = 0.9


class Spikes(torch.nn.Module):
    """A stack over time without its states."""

    def __init__(self, stack: px.nn.Sequential) -> None:
        super().__init__()
        self.stack = stack

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.stack(x)[0]


def ours(case: str, linear: type = px.nn.SpikingLinear, memory: str = "keep"):
    torch.manual_seed(0)
    with device.making():
        found = layers(
            case,
            lambda units: px.nn.LIF(units, **NEURON),
            lambda size: px.nn.RecurrentLIF(size, autapses=True, **NEURON),
            linear,
        )
        return training_step(Spikes(px.nn.Sequential(*found, memory=memory)), case)


def bare(case: str):
    torch.manual_seed(0)
    with device.making():
        return training_step(Folded(layers(case, lambda _: Nothing(), RecurrentNothing)), case)


def compare(case: str, options: argparse.Namespace) -> dict[str, object]:
    mine = {
        "plexus": ours(case),
        "plexus dense": ours(case, torch.nn.Linear),
        "plexus recompute": ours(case, memory="recompute"),
        "bare": bare(case),
    }
    memory: dict[str, float | None] = {}
    for name, step in mine.items():
        step()
        memory[name] = peak_memory(step)
    times: dict[str, list[float]] = {name: [] for name in mine}
    errors: dict[str, str] = {}
    for _ in range(options.rounds):  # in turns, so that what disturbs the machine disturbs all
        for name, step in mine.items():
            times[name].append(settled(step))
    for name in PEERS[options.device]:  # one after the other, so that no two networks of theirs are in memory
        peers = Peers(options.peers, "_spiking_step_peers.py", str(options.threads), options.device)
        try:
            for _ in range(options.rounds if peers.process else 0):
                times["plexus"].append(settled(mine["plexus"]))
                answer = peers.time(name, case)
                if "error" in answer:
                    errors[name] = str(answer["error"])
                    note(f"{name}: {errors[name]}")
                    break
                times.setdefault(name, []).append(float(answer["ms"]))
                memory[name] = answer["peak_mb"]
        finally:
            peers.close()
    found = {name: summary(values) for name, values in times.items() if values}
    floor = found.pop("bare")["median_ms"]
    step = found["plexus"]["median_ms"]
    neurons = {name: round(v["median_ms"] - floor, 1) for name, v in found.items()}
    rivals = [name for name in found if not name.startswith("plexus")]
    return {
        "benchmark": "spiking-step",
        "case": case,
        "device": device.label,
        "threads": torch.get_num_threads(),
        "step": found,
        "bare_ms": floor,
        "products": round(floor / found["plexus dense"]["median_ms"], 2),
        "neurons_ms": neurons,
        "speedup": {name: round(found[name]["median_ms"] / step, 2) for name in rivals},
        # a neuron part that the noise of two steps hides has no ratio
        "speedup_neurons": {
            name: round(neurons[name] / neurons["plexus dense"], 2) if neurons["plexus dense"] > 0.02 * floor else None
            for name in rivals
        },
        "peak_mb": {name: None if v is None else round(v, 1) for name, v in memory.items()},
        "errors": errors,
    }


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark; JSON lines on stdout with `--json`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print JSON lines and nothing else on stdout")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--peers", type=Path, default=Path(os.environ.get("PLEXUS_PEERS", ROOT / ".venv-peers")))
    parser.add_argument("--case", nargs="*", choices=CASES, default=CASES)
    parser.add_argument("--device", choices=list(PEERS), default="cpu")
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    device.use(options.device)
    for case in options.case:
        emit(compare(case, options), options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
