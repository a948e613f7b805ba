"""Linear and convolutional layers without their zeros, beside dense ones, torch's sparse ones, and the bytes that move.

    python benchmarks/sparse_forward.py [--json] [--rounds 9] [--threads 2] [--kinds rows grouped conv]

Square layers of float32, weights at random places (`rows`), and wired in eight groups, full within and 15 % between
(`grouped`, 74 % zeros; and with fewer between); convolutions of 3×3 with weights at random places (`conv`). Each round
times every contender, so that what disturbs the machine disturbs all; ratios are of medians, all under `no_grad`.
torch's own: compressed rows (`csr`), and blocks of 16 × 16 (`bsr`) where they hold the same weights, which random
places do not allow: there they get as many in whole blocks. torch has no sparse convolution: `csr` there is its sparse
matrix times the columns of `unfold`. The floor is one read of the weights that exist (value and column, 8 bytes) and of
the input and one write of the output, at copy bandwidth; dense weights have a floor of their own. `wins_above` is the
smallest sparsity from which on ours is faster than dense at every sparsity tried.
"""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from functools import partial

import torch
from _timing import copy_time, emit, note, settled, summary

from plexus.edit.rewire import GroupedLinear, SparseConv, SparseLinear
from plexus.nn.synapses import group_connectivity, random_connectivity

SIZES = (512, 1024, 2048)
BATCHES = (1, 32, 256)
SPARSITIES = (0.5, 0.6, 0.7, 0.75, 0.8, 0.9, 0.95, 0.98, 0.99)
BETWEEN = (0.15, 0.05, 0.01)
IMAGES = ((1, 64, 56), (8, 128, 28), (8, 256, 14), (32, 32, 28))  # samples, channels in and out, side
BLOCK = 16

Lines = Iterator[list[dict[str, object]]]


def repeated(function: Callable[[], object], times: int) -> Callable[[], float]:
    """A clock for one of so many calls in a row: single calls of small layers are too short for it."""

    def run() -> None:
        for _ in range(times):
            function()

    return lambda: settled(run) / times


def blocks(weight: torch.Tensor, density: float) -> torch.Tensor | None:
    """A matrix of as many weights in whole blocks, as torch's BSR; None where this torch cannot multiply by it."""
    size = len(weight) // BLOCK
    places = torch.randperm(size * size)[: max(1, round(density * size * size))]
    where = torch.zeros(size * size, dtype=torch.bool).index_fill(0, places, True).view(size, size)
    mask = where.repeat_interleave(BLOCK, 0).repeat_interleave(BLOCK, 1)
    try:
        found = (torch.randn_like(weight) * mask).to_sparse_bsr(BLOCK)
        found @ torch.rand(len(weight), 2)
    except (RuntimeError, NotImplementedError) as error:
        note(f"bsr: {error}")
        return None
    return found


def compare(kind: str, size: int, batch: int, sparsity: float, rounds: int) -> dict[str, object]:
    generator = torch.Generator().manual_seed(0)
    if kind == "grouped":
        wiring = group_connectivity(size, size, 8, 1.0, sparsity, generator=generator)
    else:
        wiring = random_connectivity(size, size, 1 - sparsity, generator=generator)
    weight = torch.randn(size, size, generator=generator) * wiring.mask
    x = torch.randn(batch, size, generator=generator)
    contenders: dict[str, Callable[[], torch.Tensor]] = {
        "dense": lambda: torch.nn.functional.linear(x, weight),
        "rows": partial(SparseLinear(weight, wiring), x),
    }
    if kind == "grouped":
        contenders["grouped"] = partial(GroupedLinear(weight, wiring), x)
    for name, call in contenders.items():
        torch.testing.assert_close(call(), x @ weight.T, atol=1e-3, rtol=1e-3, msg=name)
    csr = weight.to_sparse_csr()
    contenders["csr"] = (lambda: csr @ x[0]) if batch == 1 else lambda: (csr @ x.T).T  # ten times F.linear's speed
    bsr = blocks(weight, wiring.density) if kind == "rows" else None
    if bsr is not None:
        contenders["bsr"] = (lambda: bsr @ x[0]) if batch == 1 else lambda: (bsr @ x.T).T
    return measured(kind, contenders, rounds, [batch, size, size], x, weight, wiring.mask)


def convolve(samples: int, channels: int, side: int, sparsity: float, rounds: int) -> dict[str, object]:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(channels, channels, 3, 3, generator=generator)
    mask = torch.rand(weight.shape, generator=generator) >= sparsity
    weight = weight * mask
    x = torch.randn(samples, channels, side, side, generator=generator)
    csr = weight.flatten(1).to_sparse_csr()

    def by_columns() -> torch.Tensor:
        columns = torch.nn.functional.unfold(x, 3, padding=1)
        return torch.stack([csr @ one for one in columns]).view(samples, channels, side, side)

    contenders: dict[str, Callable[[], torch.Tensor]] = {
        "dense": lambda: torch.nn.functional.conv2d(x, weight, padding=1),
        "conv": partial(SparseConv(weight, mask, padding=1), x),
        "csr": by_columns,
    }
    for name, call in contenders.items():
        torch.testing.assert_close(call(), contenders["dense"](), atol=1e-3, rtol=1e-3, msg=name)
    return measured("conv", contenders, rounds, [samples, channels, side, side], x, weight, mask)


def measured(
    kind: str,
    contenders: dict[str, Callable[[], torch.Tensor]],
    rounds: int,
    shape: list[int],
    x: torch.Tensor,
    weight: torch.Tensor,
    mask: torch.Tensor,
) -> dict[str, object]:
    """The line of one comparison; ours is the contender of the name `kind`."""
    calls = max(1, min(20, 2**22 // x.numel())) if kind != "conv" else 1
    clocks = {name: repeated(call, calls) for name, call in contenders.items()}
    times: dict[str, list[float]] = {name: [] for name in (*clocks, "copy")}
    copied = 1 << 20
    copy = copy_time(copied)
    for _ in range(rounds):
        times["copy"].append(copy())
        for name, clock in clocks.items():
            times[name].append(clock())
    found = {name: summary(values) for name, values in times.items()}
    per_byte = found.pop("copy")["median_ms"] / (8 * copied)
    ends = 4 * 2 * x.numel()  # as many outputs as inputs
    floor = (8 * int(mask.sum()) + ends) * per_byte
    mine = found[kind]["median_ms"]
    rivals = [name for name in found if name not in ("rows", "grouped", "conv")]
    return {
        "benchmark": "sparse-forward",
        "kind": kind,
        "shape": shape,
        "sparsity": round(1 - float(mask.double().mean()), 4),
        "threads": torch.get_num_threads(),
        "floor_ms": round(floor, 4),
        "dense_floor_ms": round((4 * weight.numel() + ends) * per_byte, 4),
        "plexus_over_floor": round(mine / floor, 2),
        "times": found,
        "speedup": {name: round(found[name]["median_ms"] / mine, 2) for name in rivals},
    }


def crossing(records: list[dict[str, object]]) -> float | None:
    """The smallest sparsity from which on the speed-up over dense is above one."""
    best = None
    for record in sorted(records, key=lambda r: -float(r["sparsity"])):
        if record["speedup"]["dense"] <= 1:  # type: ignore[index]
            break
        best = record["sparsity"]
    return best  # type: ignore[return-value]


def linear(kind: str, options: argparse.Namespace) -> Lines:
    for size in options.sizes:
        for batch in options.batches:
            shares = SPARSITIES if kind == "rows" else BETWEEN
            yield [compare(kind, size, batch, share, options.rounds) for share in shares]


def convolutions(kind: str, options: argparse.Namespace) -> Lines:
    for image in IMAGES:
        yield [convolve(*image, share, options.rounds) for share in SPARSITIES]


KINDS = {"rows": linear, "grouped": linear, "conv": convolutions}


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark; JSON lines on stdout with `--json`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print JSON lines and nothing else on stdout")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES))
    parser.add_argument("--batches", type=int, nargs="+", default=list(BATCHES))
    parser.add_argument("--kinds", choices=list(KINDS), nargs="+", default=list(KINDS))
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    warnings.filterwarnings("ignore", message=".*beta state.*")
    with torch.no_grad():
        for kind in options.kinds:
            for records in KINDS[kind](kind, options):
                for record in records:
                    emit(record, options.json)
                summed = {"benchmark": "sparse-forward", "kind": kind, "shape": records[0]["shape"]}
                emit({**summed, "wins_above": crossing(records)}, options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
