"""Fixed points against closed forms, gradients against the implicit function theorem and finite differences."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from plexus.errors import DtypeError, RangeError, ShapeError, UnknownNameError, UnsupportedError
from plexus.nn import fixed_point


def matrix(seed: int, units: int, radius: float) -> torch.Tensor:
    raw = torch.randn(units, units, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return raw * radius / torch.linalg.eigvals(raw).abs().max()


@settings(deadline=None, max_examples=25)
@given(
    seed=st.integers(0, 10_000),
    units=st.integers(1, 8),
    batch=st.integers(1, 4),
    radius=st.floats(0.05, 0.9),
    method=st.sampled_from(["anderson", "picard"]),
)
def test_affine_map_has_the_solution_of_its_linear_system(seed, units, batch, radius, method):
    weight = matrix(seed, units, radius)
    drive = torch.randn(batch, units, dtype=torch.float64, generator=torch.Generator().manual_seed(seed + 1))
    found = fixed_point(lambda x: drive + x @ weight.T, torch.zeros_like(drive), method=method)
    expected = torch.linalg.solve(torch.eye(units, dtype=torch.float64) - weight, drive.T).T
    # the residual bounds the error only through |(I - W)^-1|
    slack = torch.linalg.matrix_norm(torch.linalg.inv(torch.eye(units, dtype=torch.float64) - weight), ord=torch.inf)
    assert (found.value - expected).abs().max() <= 1e-11 * slack * (1 + expected.abs().max()) * 2
    assert (found.residual <= 1e-11).all()


@pytest.mark.parametrize("method", ["anderson", "picard"])
def test_gradient_passes_gradcheck_for_a_nonlinear_map(method):
    torch.manual_seed(0)
    weight = (0.5 * matrix(3, 4, 0.9)).requires_grad_()
    drive = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)

    def solve(w, f):
        return fixed_point(
            lambda x: torch.tanh(x @ w.T + f), torch.zeros(3, 4, dtype=torch.float64), method=method
        ).value

    assert torch.autograd.gradcheck(solve, (weight, drive))


def test_gradient_equals_that_of_the_unrolled_iteration():
    weight, drive = matrix(5, 6, 0.6).requires_grad_(), torch.randn(2, 6, dtype=torch.float64, requires_grad=True)
    pull = torch.randn(2, 6, dtype=torch.float64)
    implicit = fixed_point(lambda x: torch.tanh(x @ weight.T + drive), torch.zeros(2, 6, dtype=torch.float64)).value
    x = torch.zeros(2, 6, dtype=torch.float64)
    for _ in range(300):
        x = torch.tanh(x @ weight.T + drive)
    ours = torch.autograd.grad((implicit * pull).sum(), (weight, drive))
    unrolled = torch.autograd.grad((x * pull).sum(), (weight, drive))
    for a, b in zip(ours, unrolled, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)


def test_gradient_does_not_depend_on_the_start_and_the_start_gets_none():
    weight = matrix(1, 3, 0.5).requires_grad_()
    grads = []
    for scale in (0.0, 5.0):
        start = torch.full((1, 3), scale, dtype=torch.float64, requires_grad=True)
        value = fixed_point(lambda x: torch.tanh(x @ weight.T + 1), start).value
        grads.append(torch.autograd.grad(value.sum(), (weight, start), allow_unused=True))
    torch.testing.assert_close(grads[0][0], grads[1][0], rtol=1e-8, atol=1e-10)
    assert grads[0][1] is None


def test_tiny_gradients_are_as_accurate_as_large_ones():
    a = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    value = fixed_point(lambda x: a * torch.cos(x), torch.zeros(1, dtype=torch.float64)).value
    (one,) = torch.autograd.grad(value.sum(), a, retain_graph=True)
    (small,) = torch.autograd.grad(1e-14 * value.sum(), a)
    assert abs(small / 1e-14 / one - 1) < 1e-9


def test_damping_finds_the_equilibrium_of_a_map_that_oscillates():
    def strong(x):  # slope -3: the plain iteration diverges, the dynamics -x + F(x) settle at 1
        return 4 - 3 * x

    with pytest.raises(RangeError, match="did not converge"):
        fixed_point(strong, torch.zeros(1, dtype=torch.float64), method="picard", max_steps=200)
    found = fixed_point(strong, torch.zeros(1, dtype=torch.float64), method="picard", damping=0.3)
    assert found.value.item() == pytest.approx(1.0, abs=1e-10)


def test_anderson_needs_fewer_evaluations_than_picard():
    weight = matrix(2, 20, 0.95)
    counts = {
        method: fixed_point(lambda x: 1 + x @ weight.T, torch.zeros(1, 20, dtype=torch.float64), method=method).steps
        for method in ("anderson", "picard")
    }
    assert counts["anderson"] < counts["picard"] / 3


def test_samples_are_solved_independently():
    weight, drive = matrix(7, 5, 0.8), torch.randn(4, 5, dtype=torch.float64)
    drive[0] *= 1e6
    together = fixed_point(lambda x: torch.tanh(x @ weight.T) + drive, torch.zeros_like(drive)).value
    for i in range(4):
        alone = fixed_point(lambda x, i=i: torch.tanh(x @ weight.T) + drive[i], torch.zeros(1, 5, dtype=torch.float64))
        torch.testing.assert_close(together[i], alone.value[0], rtol=1e-8, atol=1e-9)


def test_second_derivatives_are_refused_not_wrong():
    a = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    value = fixed_point(lambda x: a * torch.cos(x), torch.zeros(1, dtype=torch.float64)).value
    with pytest.raises(UnsupportedError, match="first order"):
        torch.autograd.grad(value.sum(), a, create_graph=True)


def test_a_parameter_changed_between_forward_and_backward_is_noticed():
    weight = torch.nn.Parameter(matrix(1, 3, 0.5))
    value = fixed_point(lambda x: torch.tanh(x @ weight.T + 1), torch.zeros(1, 3, dtype=torch.float64)).value
    with torch.no_grad():
        weight.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        value.sum().backward()


def test_without_grad_mode_nothing_is_recorded():
    weight = matrix(1, 3, 0.5).requires_grad_()
    with torch.no_grad():
        assert not fixed_point(lambda x: 1 + x @ weight.T, torch.zeros(1, 3, dtype=torch.float64)).value.requires_grad


@pytest.mark.parametrize(
    ("error", "call"),
    [
        (RangeError, lambda: fixed_point(lambda x: 2 * x + 1, torch.zeros(1), max_steps=1)),
        (RangeError, lambda: fixed_point(lambda x: x * torch.nan, torch.zeros(1))),
        (RangeError, lambda: fixed_point(torch.cos, torch.zeros(1), damping=0.0)),
        (RangeError, lambda: fixed_point(torch.cos, torch.zeros(1), tol=0.0)),
        (RangeError, lambda: fixed_point(torch.cos, torch.zeros(1), memory=0)),
        (ShapeError, lambda: fixed_point(lambda x: x.sum(1), torch.zeros(2, 3))),
        (ShapeError, lambda: fixed_point(torch.cos, torch.zeros(0))),
        (DtypeError, lambda: fixed_point(torch.cos, torch.zeros(1, dtype=torch.int64))),
        (UnknownNameError, lambda: fixed_point(torch.cos, torch.zeros(1), method="andersen")),
    ],
)
def test_bad_input(error, call):
    with pytest.raises(error):
        call()
