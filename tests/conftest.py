"""One thread per test process, so that the parallel suite does not fight over cores and sums are repeatable."""

import runpy
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)
second_device = runpy.run_path(str(Path(__file__).with_name("second_device.py")))["second_device"]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(params=["second", "cuda"] if torch.cuda.is_available() else ["second"])
def elsewhere(request: pytest.FixtureRequest) -> Iterator[torch.device]:
    """A device that is not the CPU: one of our own making anywhere, and a GPU where there is one."""
    if request.param == "cuda":
        yield torch.device("cuda")
        return
    with second_device() as device:
        yield device
