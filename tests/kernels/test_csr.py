"""Products with a sparse matrix by rows equal the dense ones, forwards and backwards, for all shapes."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from plexus.errors import DtypeError, ShapeError, UnsupportedError
from plexus.kernels import CompressedRows, csr_linear
from plexus.kernels._csr import _lanes, csr_reference


def problem(samples: int, rows: int, columns: int, density: float, seed: int, dtype: torch.dtype = torch.float64):
    g = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=g, dtype=dtype)
    weight = weight * (torch.rand(rows, columns, generator=g) < density)
    return torch.randn(samples, columns, generator=g, dtype=dtype), weight


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 70), st.integers(1, 40), st.integers(1, 60), st.sampled_from([0.0, 0.1, 0.5, 1.0]), st.integers(0, 9)
)
def test_equals_the_dense_product(samples: int, rows: int, columns: int, density: float, seed: int) -> None:
    x, weight = problem(samples, rows, columns, density, seed)
    x.requires_grad_()
    sparse, dense = csr_linear(x, CompressedRows.of(weight)), x @ weight.T
    torch.testing.assert_close(sparse, dense, atol=1e-12, rtol=1e-12)
    grad = torch.randn(dense.shape, dtype=x.dtype)
    if samples:
        (found,), (wanted,) = (torch.autograd.grad(out, x, grad) for out in (sparse, dense))
        torch.testing.assert_close(found, wanted, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("samples", [1, 3, 9, 40, 130])
def test_the_fast_path_equals_the_operator_and_the_reference(samples: int, threads: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        x, weight = problem(samples, 300, 200, 0.3, 0, torch.float32)
        rows = CompressedRows.of(weight)
        plain = csr_linear(x, rows)
        operator = csr_linear(x.clone().requires_grad_(), rows)
    finally:
        torch.set_num_threads(before)
    torch.testing.assert_close(plain, x @ weight.T, atol=1e-4, rtol=1e-4)
    assert torch.equal(plain, operator)
    torch.testing.assert_close(plain, csr_reference(x, rows), atol=1e-4, rtol=1e-4)


def test_strided_samples_give_the_same() -> None:
    x, weight = problem(12, 7, 20, 0.4, 1)
    rows = CompressedRows.of(weight)
    assert torch.equal(csr_linear(x.T.contiguous().T, rows), csr_linear(x, rows))
    torch.testing.assert_close(csr_linear(x[::2], rows), x[::2] @ weight.T)


def test_all_derivatives() -> None:
    x, weight = problem(3, 4, 5, 0.5, 2)
    rows = CompressedRows.of(weight)
    x.requires_grad_()
    assert torch.autograd.gradcheck(lambda v: csr_linear(v, rows), x)
    assert torch.autograd.gradgradcheck(lambda v: csr_linear(v, rows).square(), x)


def test_forward_mode_and_per_sample_derivatives() -> None:
    x, weight = problem(3, 4, 5, 0.5, 3)
    rows = CompressedRows.of(weight)
    _, out = torch.func.jvp(lambda v: csr_linear(v, rows), (x,), (torch.ones_like(x),))
    torch.testing.assert_close(out, torch.ones_like(x) @ weight.T)
    each = torch.func.vmap(torch.func.grad(lambda v: csr_linear(v[None], rows).square().sum()))(x)
    torch.testing.assert_close(each, 2 * x @ weight.T @ weight)


def test_the_operator_passes_torchs_own_check() -> None:
    x, weight = problem(9, 4, 5, 0.5, 4)
    torch.library.opcheck(
        torch.ops.plexus.csr_linear.default,
        (x, *CompressedRows.of(weight)),
        test_utils=("test_schema", "test_faketensor"),
    )


def test_a_weight_of_zero_that_exists_is_kept() -> None:
    rows = CompressedRows.of(torch.zeros(2, 3), torch.ones(2, 3))
    assert len(rows.values) == 6
    assert torch.equal(rows.dense(3), torch.zeros(2, 3))


def test_lanes_leave_work_for_every_thread_and_stay_near() -> None:
    assert _lanes(256, 4 * 512, 1) == 32
    assert _lanes(32, 4 * 512, 2) == 16
    assert _lanes(256, 4 * 16384, 1) == 8
    assert _lanes(2, 4, 1) == 8


def test_bad_input() -> None:
    x, weight = problem(3, 4, 5, 0.5, 5)
    with pytest.raises(ShapeError):
        CompressedRows.of(weight[0])
    with pytest.raises(ShapeError):
        CompressedRows.of(weight, torch.ones(4, 4))
    rows = CompressedRows.of(weight)
    with pytest.raises(ShapeError):
        csr_linear(x[:, 1:], rows)
    with pytest.raises(DtypeError):
        csr_linear(x.float(), rows)
    one_way = CompressedRows.of(weight, derivative=False)
    with pytest.raises(UnsupportedError, match="transpose"):
        csr_linear(x.requires_grad_(), one_way).sum().backward()
    torch.testing.assert_close(csr_linear(x.detach(), one_way), x.detach() @ weight.T)
