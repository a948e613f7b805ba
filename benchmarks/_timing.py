"""What the benchmarks share: repeated timing, copy bandwidth, peak memory, and JSON lines.

`device.use(name)` says where tensors are made and where times and memory are taken. It is not torch's default device
throughout: with one set, every call of torch passes through Python, which would be timed.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

MILLISECONDS = 1e3
IN_A_ROW = 10


class Device:
    """Where a benchmark runs: the CPU, or a GPU."""

    def __init__(self) -> None:
        self.name = "cpu"

    def use(self, name: str) -> None:
        self.name = name

    @property
    def on_gpu(self) -> bool:
        return self.name == "cuda"

    @property
    def label(self) -> str:
        """The GPU's own name, or `cpu`."""
        import torch

        return torch.cuda.get_device_name() if self.on_gpu else self.name

    def making(self) -> contextlib.AbstractContextManager[object]:
        """Inside, tensors and modules are made there."""
        import torch

        return torch.device(self.name)


device = Device()


def once(function: Callable[[], object]) -> float:
    """Milliseconds of one call; on a GPU, of one of ten in a row, as in training, until the last has ended."""
    if not device.on_gpu:
        start = time.perf_counter()
        function()
        return (time.perf_counter() - start) * MILLISECONDS
    import torch

    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(IN_A_ROW):
        function()
    torch.cuda.synchronize()
    return (time.perf_counter() - start) * MILLISECONDS / IN_A_ROW


def settled(function: Callable[[], object]) -> float:
    """Milliseconds of a call that follows another of its kind, after the threads of whoever ran before went to sleep.

    OpenMP's threads spin for some milliseconds after their work; in the next process they would be an opponent.
    """
    time.sleep(0 if device.on_gpu else 0.1)
    function()
    return once(function)


def copy_time(elements: int) -> Callable[[], float]:
    """A clock for copying a float32 tensor of that many elements onto another: one read and one write of each."""
    import torch

    with device.making():
        source, target = torch.rand(elements), torch.empty(elements)
    return lambda: settled(lambda: target.copy_(source))


def peak_memory(function: Callable[[], object]) -> float | None:
    """MB by which the memory of this process (on a GPU: its tensors) rises at most during the call; None if unknown."""
    if device.on_gpu:
        import torch

        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        function()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    try:
        ctypes.CDLL(None).malloc_trim(0)  # else memory that an earlier call gave back to the allocator counts as there
        Path("/proc/self/clear_refs").write_text("5")
        before = _status("VmRSS")
        function()
        return (_status("VmHWM") - before) / 1024
    except (OSError, ValueError, AttributeError):
        return None


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1])
    raise ValueError(field)


def summary(times: list[float]) -> dict[str, float]:
    """Median and minimum, ms."""
    return {"median_ms": round(statistics.median(times), 3), "min_ms": round(min(times), 3)}


def emit(record: dict[str, object], as_json: bool) -> None:
    """One result: a JSON line, or a line to read."""
    if as_json:
        print(json.dumps(record), flush=True)
    else:
        print("  ".join(f"{k}={v}" for k, v in record.items()), flush=True)


def note(text: str) -> None:
    """What is going on, on the error stream."""
    print(text, file=sys.stderr, flush=True)
