"""Kernels on another device than the CPU: the loops in torch give what the compiled ones give here."""

import pytest
import torch
from torch.testing import assert_close
from torch.utils._pytree import tree_map

from plexus import kernels
from plexus.errors import DeviceError


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def moved(values, device):
    return tree_map(lambda part: part.to(device) if isinstance(part, torch.Tensor) else part, values)


X = torch.rand(9, 2, 4, generator=seeded())
W = torch.where(torch.rand(4, 4, generator=seeded(1)) < 0.5, torch.rand(4, 4, generator=seeded(2)), 0.0)
REST = torch.zeros(2, 4)
CALLS = {
    "lif": (lambda x: kernels.lif(x, decay=0.9, refractory=1), (3 * X,)),
    "lif, recurrent": (
        lambda x, w: kernels.lif(x, decay=0.9, recurrent=kernels.SparseWeight.of(w)), (3 * X, W),
    ),
    "meta": (lambda x: kernels.meta(x, decay=0.9, threshold=1.0), (3 * X,)),
    "logistic noise": (lambda x: kernels.logistic_noise(x, seeded()), (X,)),
    "decaying sum": (lambda x, d: kernels.decaying_sum(x, decay=d), (X, torch.linspace(0.1, 0.9, 4))),
    "leaky trace": (lambda x, r: kernels.leaky_trace(x, r, 0.5), (X, REST)),
    "spike linear": (lambda x, w: kernels.spike_linear((x > 0.9).to(x), w), (X, W)),
    "csr linear": (lambda x, w: kernels.csr_linear(x[0], kernels.CompressedRows.of(w)), (X, W)),
    "csr convolution": (
        lambda x, w: kernels.csr_conv(x.double(), kernels.CompressedRows.of(w.double()), (2,)), (X, W),
    ),
    "delayed": (lambda x, k: kernels.delayed(x, k), (X, torch.rand(4, 3, 2, generator=seeded(3)))),
    "delayed taps": (
        lambda x, s, v: kernels.delayed_taps(x, s, v, 3),
        (X, torch.randint(0, 4, (4, 4), generator=seeded(3)), W.unsqueeze(0)),
    ),
    "astrocytes": (
        lambda x, r, m, v: kernels.astrocyte_loop(
            x, 2 * x, r, r, r, m, keep=v, listen=0.5 * v, decay=v, threshold=torch.ones_like(v)
        ),
        (X, REST, torch.cat([W, W.T], 1), torch.full((4,), 0.5)),
    ),
    "memory of an ELM": (
        lambda d, i, o, z, k: kernels.elm_memory(d, i, o, z, k, k, torch.zeros_like(d[0, :, :, :3])),
        (
            torch.rand(6, 2, 1, 5, generator=seeded(4)),
            torch.rand(1, 5, 3, generator=seeded(5)),
            torch.rand(1, 3, 5, generator=seeded(6)),
            torch.zeros(1, 3),
            torch.full((1, 3), 0.5),
        ),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CALLS)
def test_the_same_numbers(name, elsewhere):
    call, given = CALLS[name]
    expected, found = call(*given), call(*moved(given, elsewhere))

    def same(one, other):
        if isinstance(one, torch.Tensor):
            assert one.device.type == elsewhere.type
            assert_close(one.cpu(), other, rtol=1e-4, atol=1e-5)

    tree_map(same, found, expected)


def test_events_are_scattered_in_main_memory(elsewhere):
    events, synapses = torch.tensor([[0, 0, 0, 0]]), torch.tensor([[0, 2, 0, 0]])
    given = (events, synapses, torch.tensor([0.5]), torch.tensor([0, 1]))
    out = torch.zeros(4, 1, 1, 1)
    assert kernels.scatter_events(*moved(given, elsewhere), out) == 1
    assert out.flatten().tolist() == [0.0, 0.0, 0.5, 0.0]
    with pytest.raises(DeviceError):
        kernels.scatter_events(*given, out.to(elsewhere))
