"""What the language-model benchmarks share: the rounds over our process and the peers', and the line printed."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Mapping
from dataclasses import astuple
from pathlib import Path

import torch
from _language_models import Size
from _peers import Peers
from _timing import emit, note, peak_memory, settled, summary

ROOT = Path(__file__).parents[1]
PEERS = ("transformerlens", "nnsight")
FLOOR = "forward alone"


def arguments(doc: str, argv: list[str] | None) -> argparse.Namespace:
    """The options of such a benchmark."""
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print JSON lines and nothing else on stdout")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    folder = os.environ.get("PLEXUS_LANGUAGE_PEERS", ROOT / ".venv-language-peers")
    parser.add_argument("--peers", type=Path, default=Path(folder))
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    return options


def compare(
    task: str, size: Size, here: Mapping[str, Callable[[], object]], folder: Path, options: argparse.Namespace
) -> None:
    """Time all contenders in turn, round by round, and emit one line; ours is `plexus`, the floor `forward alone`."""
    mine = here["plexus"]()
    assert isinstance(mine, torch.Tensor)
    differences = {}
    for name, call in here.items():
        if isinstance(value := call(), torch.Tensor):
            differences[name] = (value - mine).abs().max().item()
    memory = {name: peak_memory(call) for name, call in here.items()}
    times: dict[str, list[float]] = {}
    peers = Peers(options.peers, "_language_peers.py", str(options.threads), str(folder))
    left = [*PEERS] if peers.process else []
    try:
        for _ in range(options.rounds):
            for name, call in here.items():
                times.setdefault(name, []).append(settled(call))
            for name in [*left]:
                answer = peers.time(name, task, *map(str, astuple(size)))
                if "error" in answer:
                    note(f"{name}: {answer['error']}")
                    left.remove(name)
                    continue
                times.setdefault(name, []).append(float(answer["ms"] or 0))
                memory[name] = answer["peak_mb"]  # type: ignore[assignment]
        for name in left:
            differences[name] = (torch.load(folder / f"{name}-{task}.pt") - mine).abs().max().item()
    finally:
        peers.close()
    found = {name: summary(values) for name, values in times.items()}
    ours = found["plexus"]["median_ms"]
    floor = found[FLOOR]["median_ms"]
    emit(
        {
            "benchmark": task,
            **vars(size),
            "threads": torch.get_num_threads(),
            "floor_ms": floor,
            "plexus_over_floor": round(ours / floor, 2),
            "times": found,
            "speedup": {name: round(found[name]["median_ms"] / ours, 2) for name in found if name != "plexus"},
            "peak_mb": {name: None if value is None else round(value, 1) for name, value in memory.items()},
            "difference": {name: float(f"{value:.2g}") for name, value in differences.items() if name != "plexus"},
        },
        options.json,
    )
