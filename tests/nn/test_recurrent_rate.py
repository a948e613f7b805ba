"""Steady states against linear algebra and against long simulations; gradients against finite differences."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import circulant, expm

from plexus.errors import DtypeError, RangeError, ShapeError, UnknownNameError
from plexus.nn import RateState, RecurrentRate, spectral_abscissa
from plexus.units._port import Port

PLACES = ("input", "total", "output")


def weights(seed: int, units: int = 5, abscissa: float = 0.6) -> torch.Tensor:
    raw = torch.randn(units, units, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return raw * abscissa / torch.linalg.eigvals(raw).abs().max()


def positive(*shape: int, seed: int = 0) -> torch.Tensor:
    return 0.1 + torch.rand(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 10_000), place=st.sampled_from(PLACES), shape=st.sampled_from(["unit", "batch"]))
def test_linear_steady_state_satisfies_its_equation(seed, place, shape):
    w, f = weights(seed), positive(3, 5, seed=seed)
    g = positive(*((5,) if shape == "unit" else (3, 5)), seed=seed + 1)
    r = RecurrentRate(w, gain_on=place).steady_state(f, gain=g)
    right = {"input": g * f + r @ w.T, "total": g * (f + r @ w.T), "output": f + (g * r) @ w.T}[place]
    torch.testing.assert_close(r, right, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("activation", [None, torch.relu, torch.tanh])
def test_simulation_settles_at_the_steady_state(place, activation):
    net = RecurrentRate(weights(3), gain_on=place, activation=activation, tau=5.0)
    net.set_gain(positive(5, seed=4))
    f = torch.randn(2, 5, dtype=torch.float64)
    _, state = net(f.expand(600, 2, 5))
    torch.testing.assert_close(state.r, net.steady_state(f), rtol=1e-8, atol=1e-9)


def test_small_steps_approach_the_exact_linear_solution():
    w, f, tau, t = weights(1, 3), positive(1, 3), 10.0, 20.0
    exact = torch.linalg.solve(
        torch.eye(3, dtype=torch.float64) - w,
        (torch.eye(3, dtype=torch.float64) - torch.from_numpy(expm((w - torch.eye(3)).numpy() * t / tau))) @ f[0],
    )
    errors = []
    for dt in (0.2, 0.1):
        _, state = RecurrentRate(w, tau=tau, dt=dt)(f.expand(round(t / dt), 1, 3))
        errors.append(float((state.r[0] - exact).abs().max()))
    assert errors[1] < 0.01
    assert errors[0] / errors[1] == pytest.approx(2.0, rel=0.1)  # first order in dt


def test_without_weights_each_unit_filters_alone():
    net = RecurrentRate(torch.zeros(2, 2, dtype=torch.float64), tau=10.0, dt=1.0)
    rates, _ = net(torch.ones(7, 1, 2, dtype=torch.float64))
    expected = 1 - math.exp(-0.1) ** torch.arange(1, 8, dtype=torch.float64)
    torch.testing.assert_close(rates[:, 0, 0], expected)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("activation", [None, torch.relu])
def test_splitting_a_sequence_changes_nothing(place, activation):
    net = RecurrentRate(weights(2), gain_on=place, activation=activation)
    f = torch.randn(9, 2, 5, dtype=torch.float64)
    whole, end = net(f)
    first, state = net(f[:4])
    second, last = net(f[4:], state)
    assert torch.equal(torch.cat([first, second]), whole)
    assert torch.equal(last.r, end.r)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("activation", [None, torch.tanh, torch.nn.functional.softplus])
def test_steady_state_passes_gradcheck(place, activation):
    w = torch.nn.Parameter(weights(8, 4, 0.5))
    net = RecurrentRate(w, gain_on=place, activation=activation)
    f, g = positive(2, 4).requires_grad_(), positive(4, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda f, g, _w: net.steady_state(f, gain=g), (f, g, w))


def test_relu_network_with_all_units_active_equals_the_linear_one():
    w = weights(4, abscissa=0.3).abs() * 0.3
    f, g = positive(3, 5), positive(5, seed=2)
    linear, rectified = (RecurrentRate(w, activation=a).steady_state(f, gain=g) for a in (None, torch.relu))
    torch.testing.assert_close(linear, rectified, rtol=1e-9, atol=1e-9)


def test_strong_inhibition_converges_although_the_plain_iteration_does_not():
    w = -3.0 * torch.ones(4, 4, dtype=torch.float64) / 4
    f = torch.ones(1, 4, dtype=torch.float64)
    torch.testing.assert_close(RecurrentRate(w, activation=torch.relu).steady_state(f), f / 4)


def test_circulant_network_is_diagonal_in_the_fourier_basis():
    row = torch.tensor([0.1, 0.3, -0.1, -0.2, -0.1, 0.3], dtype=torch.float64)
    w = torch.from_numpy(circulant(row.numpy()))
    f = positive(1, 6)
    expected = torch.fft.ifft(torch.fft.fft(f[0]) / (1 - torch.fft.fft(row))).real
    torch.testing.assert_close(RecurrentRate(w).steady_state(f)[0], expected)


def test_reader_recovers_the_drive_at_unit_gain():
    net, f = RecurrentRate(weights(6)), positive(4, 5)
    torch.testing.assert_close(net.steady_state(f) @ net.reader().T, f)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("activation", [None, torch.relu])
def test_a_silenced_unit_is_silent_for_its_targets_too(place, activation):
    """Silencing inside the loop equals a network from which the unit's outgoing weights were taken."""
    w, f = weights(9), positive(2, 5)
    net = RecurrentRate(w, gain_on=place, activation=activation)
    net.port = Port(gain=torch.tensor([1.0, 1.0, 0.0, 1.0, 1.0]))
    cut = w.clone()
    cut[:, 2] = 0
    expected = RecurrentRate(cut, gain_on=place, activation=activation)
    steady = expected.steady_state(f)
    steady[:, 2] = 0
    torch.testing.assert_close(net.steady_state(f), steady, rtol=1e-8, atol=1e-9)
    rates, _ = net(f.expand(300, 2, 5))
    reference, _ = expected(f.expand(300, 2, 5))
    reference = reference.clone()
    reference[..., 2] = 0
    torch.testing.assert_close(rates, reference)


def test_port_leaves_no_trace_in_the_state_dict_and_default_is_untouched():
    net = RecurrentRate(weights(9))
    net.port = Port(gain=torch.zeros(5))
    assert set(net.state_dict()) == {"weight", "gain"}
    net.port = None
    torch.testing.assert_close(net.steady_state(positive(1, 5)), RecurrentRate(weights(9)).steady_state(positive(1, 5)))


def test_forward_never_changes_the_gain_and_weights_are_fixed_unless_a_parameter():
    net = RecurrentRate(weights(1))
    before = {k: v.clone() for k, v in net.state_dict().items()}
    net(positive(5, 2, 5))
    net.steady_state(positive(2, 5))
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert list(net.parameters()) == []
    assert [n for n, _ in RecurrentRate(torch.nn.Parameter(weights(1))).named_parameters()] == ["weight"]


def test_spectral_abscissa_of_a_rotation_is_its_real_part():
    assert spectral_abscissa(torch.tensor([[0.3, -5.0], [5.0, 0.3]])) == pytest.approx(0.3, abs=1e-6)


def test_unstable_networks_are_refused_also_when_gains_make_them_so():
    with pytest.raises(RangeError, match="unstable"):
        RecurrentRate(torch.eye(2))
    w = 0.8 * torch.eye(2)
    f = torch.ones(1, 2)
    assert torch.isfinite(RecurrentRate(w).steady_state(f, gain=torch.tensor([3.0, 3.0]))).all()
    for place in ("total", "output"):
        with pytest.raises(RangeError, match="unstable"):
            RecurrentRate(w, gain_on=place).steady_state(f, gain=torch.tensor([1.0, 1.5]))
    trained = RecurrentRate(torch.nn.Parameter(w))
    with torch.no_grad():
        trained.weight.mul_(2)
    with pytest.raises(RangeError, match="unstable"):
        trained.steady_state(f)


@pytest.mark.parametrize(
    ("error", "call"),
    [
        (ShapeError, lambda: RecurrentRate(torch.zeros(2, 3))),
        (ShapeError, lambda: RecurrentRate(torch.zeros(0, 0))),
        (DtypeError, lambda: RecurrentRate(torch.zeros(2, 2, dtype=torch.int64))),
        (RangeError, lambda: RecurrentRate(torch.full((2, 2), torch.nan))),
        (RangeError, lambda: RecurrentRate(torch.zeros(2, 2), tau=0.0)),
        (UnknownNameError, lambda: RecurrentRate(torch.zeros(2, 2), gain_on="inputs")),
        (ShapeError, lambda: RecurrentRate(torch.zeros(2, 2)).steady_state(torch.zeros(1, 3))),
        (ShapeError, lambda: RecurrentRate(torch.zeros(2, 2)).steady_state(torch.zeros(4, 1, 2))),
        (ShapeError, lambda: RecurrentRate(torch.zeros(2, 2))(torch.zeros(1, 2))),
        (ShapeError, lambda: RecurrentRate(torch.zeros(2, 2))(torch.zeros(4, 1, 2), RateState(torch.zeros(4, 2)))),
        (DtypeError, lambda: RecurrentRate(torch.zeros(2, 2)).steady_state(torch.zeros(1, 2, dtype=torch.float64))),
        (ShapeError, lambda: RecurrentRate(torch.zeros(2, 2)).steady_state(torch.zeros(1, 2), gain=torch.ones(3))),
        (ShapeError, lambda: RecurrentRate(torch.zeros(2, 2)).set_gain(torch.ones(3))),
        (RangeError, lambda: RecurrentRate(torch.zeros(2, 2)).set_gain(float("nan"))),
    ],
)
def test_bad_input(error, call):
    with pytest.raises(error):
        call()
