"""Convolutions with a sparse weight equal torch's dense ones: dimensions, stride, padding, dilation and groups."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from plexus.errors import DtypeError, RangeError, ShapeError
from plexus.kernels import CompressedRows, csr_conv
from plexus.kernels._csr_conv import _lanes, csr_conv_reference

DENSE = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


def problem(shape, kernel, out=6, groups=1, density=0.4, seed=0, dtype=torch.float64):
    g = torch.Generator().manual_seed(seed)
    weight = torch.randn(out, shape[1] // groups, *kernel, generator=g, dtype=dtype)
    weight = weight * (torch.rand(weight.shape, generator=g) < density)
    return torch.randn(*shape, generator=g, dtype=dtype), weight


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 3), st.data())
def test_equals_the_dense_convolution(dimensions, data):
    def numbers(low, high):
        return data.draw(st.tuples(*[st.integers(low, high)] * dimensions))

    kernel, stride, padding, dilation = numbers(1, 3), numbers(1, 3), numbers(0, 2), numbers(1, 2)
    groups = data.draw(st.sampled_from([1, 2, 3]))
    space = tuple(d * (k - 1) + 1 + data.draw(st.integers(0, 6)) for d, k in zip(dilation, kernel, strict=True))
    samples, channels = data.draw(st.integers(0, 3)), groups * data.draw(st.integers(1, 3))
    density = data.draw(st.sampled_from([0.0, 0.3, 1.0]))
    x, weight = problem((samples, channels, *space), kernel, groups=groups, density=density)
    options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    x.requires_grad_()
    rows = CompressedRows.of(weight.flatten(1), derivative=data.draw(st.booleans()))
    sparse, dense = csr_conv(x, rows, kernel, **options), DENSE[dimensions](x, weight, **options)
    torch.testing.assert_close(sparse, dense, atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(csr_conv(x.detach(), rows, kernel, **options), dense, atol=1e-12, rtol=1e-12)
    if samples:
        grad = torch.randn(dense.shape, dtype=x.dtype)
        (found,), (wanted,) = (torch.autograd.grad(out, x, grad) for out in (sparse, dense))
        torch.testing.assert_close(found, wanted, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(("size", "stride"), [(3, 1), (9, 2), (20, 1), (33, 3)])
def test_planes_of_all_sizes_in_single_precision(size, stride, threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        x, weight = problem((4, 16, size, size), (3, 3), out=24, density=0.2, dtype=torch.float32)
        found = csr_conv(x, CompressedRows.of(weight.flatten(1)), (3, 3), stride=stride, padding=1)
    finally:
        torch.set_num_threads(before)
    torch.testing.assert_close(found, F.conv2d(x, weight, stride=stride, padding=1), atol=1e-4, rtol=1e-4)


def test_input_that_is_not_contiguous_gives_the_same():
    x, weight = problem((4, 6, 7, 7), (3, 3))
    rows = CompressedRows.of(weight.flatten(1))
    assert torch.equal(csr_conv(x.to(memory_format=torch.channels_last), rows, (3, 3)), csr_conv(x, rows, (3, 3)))
    for padding, stride in ((1, 1), (1, 2)):
        found = csr_conv(x[::2, :, 1:], rows, (3, 3), padding=padding, stride=stride)
        torch.testing.assert_close(found, F.conv2d(x[::2, :, 1:], weight, padding=padding, stride=stride))


def test_all_derivatives_and_per_sample_ones():
    x, weight = problem((2, 2, 4, 4), (2, 2), out=3)
    rows = CompressedRows.of(weight.flatten(1))
    x.requires_grad_()
    assert torch.autograd.gradcheck(lambda v: csr_conv(v, rows, (2, 2), stride=2, padding=1), x)
    assert torch.autograd.gradgradcheck(lambda v: csr_conv(v, rows, (2, 2)).square(), x)
    each = torch.func.vmap(torch.func.grad(lambda v: csr_conv(v[None], rows, (2, 2)).sum()))(x.detach())
    whole = torch.autograd.grad(F.conv2d(x, weight).sum(), x)[0]
    torch.testing.assert_close(each, whole)
    torch.testing.assert_close(csr_conv_reference(x, rows, (2, 2), (1, 1), (0, 0), (1, 1), 1), F.conv2d(x, weight))


def test_the_operator_passes_torchs_own_check():
    x, weight = problem((2, 2, 5, 5), (2, 2), out=3)
    rows = CompressedRows.of(weight.flatten(1))
    sizes = ([2, 2], [2, 1], [1, 0], [1, 2], 1)
    checks = ("test_schema", "test_faketensor")
    torch.library.opcheck(torch.ops.plexus.csr_conv.default, (x, *rows[:3], *sizes), test_utils=checks)


def test_lanes_fit_the_registers_and_small_planes():
    assert _lanes(3000, 4) == 64
    assert _lanes(3000, 8) == 32
    assert _lanes(32, 4) == 32
    assert _lanes(1, 4) == 8


def test_bad_input():
    x, weight = problem((2, 4, 5, 5), (3, 3))
    rows = CompressedRows.of(weight.flatten(1))
    with pytest.raises(ShapeError, match="fit the kernel"):
        csr_conv(x[0], rows, (3, 3))
    with pytest.raises(ShapeError, match="fit the weight") as caught:
        csr_conv(x[:, :3], rows, (3, 3))
    assert "4 channels" in str(caught.value)
    with pytest.raises(ShapeError, match="larger"):
        csr_conv(x[..., :2], rows, (3, 3))
    with pytest.raises(RangeError, match="a stride"):
        csr_conv(x, rows, (3, 3), stride=0)
    with pytest.raises(RangeError, match="a padding"):
        csr_conv(x, rows, (3, 3), padding=(1, 1, 1))
    with pytest.raises(RangeError, match="groups divide"):
        csr_conv(x, rows, (3, 3), groups=3)
    with pytest.raises(DtypeError):
        csr_conv(x.float(), rows, (3, 3))
    assert math.isclose(float(csr_conv(x, rows, [3, 3]).sum()), float(F.conv2d(x, weight).sum()), abs_tol=1e-9)
