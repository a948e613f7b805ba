"""One thread per test process, so that the parallel suite does not fight over cores and sums are repeatable."""

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
