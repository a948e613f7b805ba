"""Peak memory of one training step as time grows, with `memory="keep"` and `memory="recompute"`.

    python benchmarks/memory_over_time.py [--json] [--steps 100 400 1600]

A network 32–256–256–4 (one hidden layer recurrent), batch 16. `exponent` is the slope of log memory against log time
between the shortest and the longest sequence: 1 where everything is kept, about 1/2 where stretches of time are run
again. Input and output, which are there in any case, are not counted: the input is one step shown again and again, and
the output is small.
"""

from __future__ import annotations

import argparse
import math
import sys

import torch
from _timing import emit, once, peak_memory

import plexus as px


def training_step(memory: str, steps: int):
    torch.manual_seed(0)
    net = px.nn.Sequential(
        torch.nn.Linear(32, 256),
        px.nn.LIF(256, threshold=0.3),
        torch.nn.Linear(256, 256),
        px.nn.RecurrentLIF(256, threshold=0.3),
        torch.nn.Linear(256, 4),
        memory=memory,
    )
    x = torch.rand(1, 16, 32).expand(steps, 16, 32)

    def step() -> None:
        net.zero_grad()
        net(x)[0].square().mean().backward()

    return step


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark; JSON lines on stdout with `--json`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print JSON lines and nothing else on stdout")
    parser.add_argument("--steps", type=int, nargs="+", default=[100, 400, 1600])
    options = parser.parse_args(argv)
    for memory in ("keep", "recompute"):
        peaks, times = {}, {}
        for steps in options.steps:
            step = training_step(memory, steps)
            step()
            peaks[steps], times[steps] = peak_memory(step), round(once(step), 1)
        first, last = options.steps[0], options.steps[-1]
        low, high = peaks[first], peaks[last]
        record: dict[str, object] = {"benchmark": "memory-over-time", "memory": memory}
        record["peak_mb"] = {steps: None if peak is None else round(peak, 1) for steps, peak in peaks.items()}
        record["ms"] = times
        record["exponent"] = round(math.log(high / low) / math.log(last / first), 2) if low and high else None
        emit(record, options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
