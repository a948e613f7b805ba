"""Dynamics probes against theory: delay lines, linear networks, known entropies and exponents."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from plexus.errors import RangeError, ShapeError
from plexus.nn.reservoirs import EchoState, EchoStateState
from plexus.probe import echo_state, jacobian_radius, memory_capacity, neuronal_entropy, spectral_radius, valid_time


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def white(steps: int, seed: int = 0) -> torch.Tensor:
    return 2 * torch.rand(steps, generator=generator(seed), dtype=torch.float64) - 1


@pytest.mark.parametrize("length", [1, 4, 9])
def test_a_delay_line_remembers_its_length(length: int) -> None:
    u = white(2000)
    line = torch.stack([u.roll(k) for k in range(1, length + 1)], 1)
    found = memory_capacity(line, u, 30, generator=generator())
    assert found.total == pytest.approx(length, abs=0.4)
    assert torch.all(found.per_delay[:length] > 0.99)
    assert float(found.per_delay[length:].abs().max()) < 0.03


def test_memory_never_exceeds_the_number_of_units() -> None:
    """Jaeger's bound, on a linear network that comes near it."""
    g = generator(1)
    orthogonal = torch.linalg.qr(torch.randn(15, 15, generator=g, dtype=torch.float64))[0]
    cell = EchoState.from_weights(
        0.95 * orthogonal,
        torch.randn(15, 1, generator=g, dtype=torch.float64),
        activation="identity",
        dale=False,
    )
    u = white(4000)
    found = memory_capacity(cell(u[:, None, None])[0][:, 0], u, 60, generator=g)
    assert 11 < found.total < 15.3


def test_unrelated_states_remember_nothing_and_few_samples_do_not_pretend() -> None:
    """Without the shuffled baseline sixty delays on 160 test steps would show a capacity of about 0.4 by chance."""
    totals, raw = [], []
    for seed in range(8):
        u = white(600, seed)
        states = torch.randn(600, 5, generator=generator(100 + seed), dtype=torch.float64)
        found = memory_capacity(states, u, 60, generator=generator(seed))
        totals.append(found.total)
        raw.append(found.total + 60 * found.baseline)
    assert abs(np.mean(totals)) < 0.15
    assert np.mean(raw) > 0.25


@settings(max_examples=20, deadline=None)
@given(bins=st.integers(1, 30))
def test_entropy_of_a_uniform_unit_is_the_logarithm_of_the_bins(bins: int) -> None:
    grid = (torch.arange(bins, dtype=torch.float64) + 0.5) / bins
    assert neuronal_entropy(grid.repeat(3).unsqueeze(1), bins=bins) == pytest.approx(np.log2(bins), abs=1e-9)
    assert neuronal_entropy(torch.full((10, 2), 0.3), bins=bins) == 0.0


def test_entropy_is_a_mean_over_units_and_ignores_order() -> None:
    x = torch.rand(200, 2, 3, generator=generator())
    shuffled = x.flatten(0, 1)[torch.randperm(400, generator=generator())]
    assert neuronal_entropy(x) == pytest.approx(neuronal_entropy(shuffled))
    assert neuronal_entropy(x) == pytest.approx(np.mean([neuronal_entropy(x[..., n : n + 1]) for n in range(3)]))


@pytest.mark.parametrize("radius", [0.5, 0.9])
def test_a_linear_network_contracts_at_its_spectral_radius(radius: float) -> None:
    cell = EchoState(
        1,
        30,
        dale=False,
        activation="identity",
        density=1.0,
        spectral_radius=radius,
        generator=generator(),
        dtype=torch.float64,
    )
    check = echo_state(cell, white(400)[:, None, None], generator=generator(1))
    assert check.converged == (radius**400 < 1e-4)
    assert check.rate == pytest.approx(np.log(radius), abs=0.03)
    found = jacobian_radius(cell, white(50)[:, None, None], washout=10, samples=3)
    torch.testing.assert_close(found, torch.full((3,), radius, dtype=torch.float64))


def test_strong_gain_is_told_from_weak() -> None:
    u = white(500)[:, None, None]
    weak = EchoState(1, 100, dale=False, gain=0.7, activation="tanh", generator=generator(), dtype=torch.float64)
    wild = EchoState(1, 100, dale=False, gain=3.0, activation="tanh", generator=generator(), dtype=torch.float64)
    assert echo_state(weak, u, generator=generator(), low=-1.0).converged
    check = echo_state(wild, u, generator=generator(), low=-1.0)
    assert not check.converged
    assert check.rate > -0.01


def test_jacobian_of_a_driven_network_equals_its_closed_form() -> None:
    cell = EchoState(1, 20, leak=0.7, density=0.4, generator=generator(), dtype=torch.float64)
    u = white(60)[:, None, None]
    found = jacobian_radius(cell, u, washout=20, samples=3)
    for radius, t in zip(found, np.linspace(20, 59, 3).round().astype(int), strict=True):
        _, state = cell(u[:t])
        wanted = spectral_radius(cell.jacobian(u[t], state))[0]
        torch.testing.assert_close(radius, wanted)


def test_memory_ignores_the_scale_of_the_states() -> None:
    cell = EchoState(1, 30, generator=generator(), dtype=torch.float64)
    u = white(1500)
    states = cell(u[:, None, None])[0][:, 0]
    plain = memory_capacity(states, u, 20, generator=generator(), lambdas=(0.0,))
    scaled = memory_capacity(states * 10 + 3, u, 20, generator=generator(), lambdas=(0.0,))
    assert plain.total == pytest.approx(scaled.total, abs=1e-4)


CELL = EchoState(1, 10, generator=generator(), dtype=torch.float64)


@pytest.mark.parametrize(
    ("error", "call"),
    [
        (ShapeError, lambda: memory_capacity(torch.zeros(100, 3), torch.zeros(99), generator=generator())),
        (ShapeError, lambda: memory_capacity(torch.zeros(100, 1, 3), torch.zeros(100), generator=generator())),
        (RangeError, lambda: memory_capacity(torch.zeros(220, 3), torch.zeros(220), generator=generator())),
        (RangeError, lambda: memory_capacity(torch.zeros(900, 3), torch.zeros(900), 300, generator=generator())),
        (RangeError, lambda: memory_capacity(torch.full((900, 3), torch.nan), torch.zeros(900), generator=generator())),
        (RangeError, lambda: neuronal_entropy(torch.zeros(5, 2), bins=0)),
        (RangeError, lambda: neuronal_entropy(torch.full((5, 2), torch.nan))),
        (ShapeError, lambda: neuronal_entropy(torch.zeros(0, 2))),
        (ShapeError, lambda: echo_state(CELL, torch.zeros(10, 2, 1), generator=generator())),
        (RangeError, lambda: echo_state(CELL, white(10)[:, None, None], generator=generator(), starts=1)),
        (ShapeError, lambda: spectral_radius(torch.zeros(3, 2))),
        (ShapeError, lambda: jacobian_radius(CELL, torch.zeros(10, 2, 1))),
        (RangeError, lambda: jacobian_radius(CELL, white(50)[:, None, None])),
    ],
)
def test_bad_input(error, call) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(error):
        call()


def test_the_check_moves_no_weight_and_needs_no_gradient() -> None:
    before = CELL.weight.clone()
    echo_state(CELL, white(50)[:, None, None], generator=generator())
    assert torch.equal(CELL.weight, before)
    assert isinstance(CELL.initial_state(2), EchoStateState)


def test_valid_time_ends_at_the_first_step_out_of_tolerance() -> None:
    truth = torch.randn(50, 4, 3, generator=generator(), dtype=torch.float64)
    spread = truth.var((0, 1), correction=0).sum().sqrt()
    made = truth.clone()
    made[7:, 1, 0] += 0.5 * spread
    made[9, 2, 1] = float("nan")
    made[0, 3] += 0.3 * spread / 3**0.5
    assert valid_time(made, truth).tolist() == [50, 7, 9, 50]
    with pytest.raises(ShapeError):
        valid_time(made[1:], truth)
