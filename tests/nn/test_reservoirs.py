"""The reservoir: its loop against the reference and closed forms, Dale's law, edits inside the loop, bad input."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import plexus as px
from plexus.errors import DtypeError, PlexusError, RangeError, ShapeError, UnknownNameError
from plexus.kernels._reservoir import (
    ACTIVATIONS,
    activation_function,
    activation_slope,
    homeostatic_steps,
    homeostatic_steps_reference,
    reservoir,
    reservoir_reference,
)
from plexus.nn.reservoirs import EchoState, EchoStateState, dale_signs, scale_to_radius
from plexus.units._port import Port


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_problem(seed: int, steps: int, batch: int, units: int, density: float, dtype: torch.dtype):  # type: ignore[no-untyped-def]
    g = generator(seed)
    weight = torch.randn(units, units, generator=g, dtype=dtype) * (torch.rand(units, units, generator=g) < density)
    drive = torch.randn(steps, batch, units, generator=g, dtype=dtype)
    return drive, weight / units**0.5, torch.rand(batch, units, generator=g, dtype=dtype), g


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    steps=st.integers(0, 6),
    batch=st.integers(1, 3),
    units=st.integers(1, 9),
    density=st.sampled_from([0.0, 0.1, 0.6, 1.0]),
    activation=st.sampled_from(ACTIVATIONS),
    ported=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_fused_loop_equals_reference(seed, steps, batch, units, density, activation, ported, dtype):  # type: ignore[no-untyped-def]
    drive, weight, x, g = random_problem(seed, steps, batch, units, density, dtype)
    leak = 0.1 + 0.9 * torch.rand(units, generator=g, dtype=dtype)
    port = None
    if ported:
        low = torch.rand(units, generator=g, dtype=dtype) - 0.5
        port = Port(torch.randn(units, generator=g, dtype=dtype), torch.tensor(0.1, dtype=dtype), low, low + 0.7)
    strided = drive.transpose(0, 1).contiguous().transpose(0, 1)  # the same values in another layout
    leaves = [t.clone().requires_grad_() for t in (strided, weight, x)]
    fused = reservoir(*leaves, leak=leak, activation=activation, port=port)
    eager = reservoir_reference(*leaves, leak=leak, activation=activation, port=port)
    tolerance = {"rtol": 1e-4, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 1e-9, "atol": 1e-11}
    for ours, theirs in zip(fused, eager, strict=True):
        torch.testing.assert_close(ours, theirs, **tolerance)
    if steps:
        towards = [torch.randn(out.shape, generator=g, dtype=dtype) for out in fused]
        for ours, theirs in zip(
            torch.autograd.grad(fused, leaves, towards), torch.autograd.grad(eager, leaves, towards), strict=True
        ):
            torch.testing.assert_close(ours, theirs, **tolerance)


@pytest.mark.parametrize("activation", ["sigmoid", "tanh", "identity"])
def test_gradients_against_finite_differences(activation: str) -> None:
    drive, weight, x, _ = random_problem(3, 4, 2, 3, 1.0, torch.float64)
    leaves = [t.requires_grad_() for t in (drive, weight, x)]

    def run(*t):  # type: ignore[no-untyped-def]
        return reservoir(*t, leak=0.7, activation=activation)

    assert torch.autograd.gradcheck(run, leaves)
    assert torch.autograd.gradgradcheck(run, leaves)


def test_forward_mode_and_per_sample_gradients_are_right() -> None:
    drive, weight, x, g = random_problem(4, 5, 3, 4, 1.0, torch.float64)
    towards = torch.randn(drive.shape, generator=g, dtype=drive.dtype)

    def run(d):  # type: ignore[no-untyped-def]
        return reservoir(d, weight, x)[0]

    _, tangent = torch.func.jvp(run, (drive,), (towards,))
    step = 1e-6
    numeric = (run(drive + step * towards) - run(drive - step * towards)) / (2 * step)
    torch.testing.assert_close(tangent, numeric, rtol=1e-6, atol=1e-8)

    def loss(d, start):  # type: ignore[no-untyped-def]
        return reservoir(d.unsqueeze(1), weight, start.unsqueeze(0))[0].square().sum()

    each = torch.func.vmap(torch.func.grad(loss), in_dims=(1, 0))(drive, x)
    for sample in range(3):
        one = drive[:, sample].clone().requires_grad_()
        (wanted,) = torch.autograd.grad(loss(one, x[sample]), one)
        torch.testing.assert_close(each[sample], wanted)


def test_the_operator_obeys_the_rules_of_torch_library() -> None:
    drive, weight, x, _ = random_problem(5, 4, 2, 5, 0.5, torch.float64)
    port = Port().dense(5, drive)
    torch.library.opcheck(
        torch.ops.plexus.reservoir.default,
        (drive, weight, x, torch.ones(5, dtype=torch.float64), "tanh", *port),
        test_utils=("test_schema", "test_faketensor", "test_autograd_registration"),
    )


def test_one_linear_unit_is_a_geometric_sum() -> None:
    line = EchoState.from_weights(torch.tensor([[0.5]]), torch.ones(1, 1), activation="identity", leak=1.0)
    out, _ = line(torch.ones(20, 1, 1))
    wanted = torch.tensor([(1 - 0.5 ** (t + 1)) / 0.5 for t in range(20)])
    torch.testing.assert_close(out.flatten(), wanted)


def test_leak_alone_is_an_exponential_average() -> None:
    cell = EchoState.from_weights(torch.zeros(1, 1), torch.ones(1, 1), activation="identity", leak=0.2)
    out, _ = cell(torch.ones(30, 1, 1))
    torch.testing.assert_close(out.flatten(), torch.tensor([1 - 0.8 ** (t + 1) for t in range(30)]))


@settings(max_examples=15, deadline=None)
@given(cut=st.integers(0, 12), seed=st.integers(0, 1000), leak=st.sampled_from([0.3, 1.0]), ported=st.booleans())
def test_two_pieces_equal_one_run(cut: int, seed: int, leak: float, ported: bool) -> None:
    cell = EchoState(2, 12, leak=leak, density=0.3, generator=generator(seed), dtype=torch.float64)
    cell.port = Port(gain=torch.tensor(0.5), bias=torch.tensor(0.2)) if ported else None
    u = torch.rand(12, 3, 2, generator=generator(seed), dtype=torch.float64)
    whole, end = cell(u)
    first, state = cell(u[:cut])
    second, last = cell(u[cut:], state)
    torch.testing.assert_close(torch.cat([first, second]), whole, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(last.x, end.x, rtol=1e-13, atol=1e-13)


def test_batch_rows_do_not_mix_and_threads_do_not_matter() -> None:
    cell = EchoState(1, 20, generator=generator(), dtype=torch.float64)
    u = torch.rand(30, 5, 1, generator=generator(), dtype=torch.float64)
    together, _ = cell(u)
    for sample in range(5):
        alone = cell(u[:, sample : sample + 1])[0][:, 0]
        torch.testing.assert_close(alone, together[:, sample], rtol=1e-13, atol=1e-13)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        assert torch.equal(cell(u)[0], together)
    finally:
        torch.set_num_threads(before)


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 1000),
    balance=st.floats(-1, 1),
    inhibitory=st.floats(0.1, 0.9),
    units=st.integers(20, 60),
    gain=st.floats(0.1, 5),
)
def test_dales_law_and_the_global_balance(seed, balance, inhibitory, units, gain):  # type: ignore[no-untyped-def]
    cell = EchoState(
        1, units, balance=balance, inhibitory=inhibitory, gain=gain, density=0.4, generator=generator(seed)
    ).double()
    w = cell.weight
    assert torch.all(w.diagonal() == 0)
    assert torch.all((w >= 0) | (cell.signs < 0))
    assert torch.all((w <= 0) | (cell.signs > 0))
    assert int((cell.signs < 0).sum()) == max(1, round(inhibitory * units))
    excitation, inhibition = w.clamp(min=0).sum(1).mean(), (-w).clamp(min=0).sum(1).mean()
    assert float(inhibition) == pytest.approx((1 - balance) * float(excitation), rel=1e-4, abs=1e-6)


def test_density_and_size_of_excitation_are_as_asked() -> None:
    cell = EchoState(1, 400, density=0.1, inhibitory=0.5, gain=2.0, generator=generator(1))
    assert float(cell.mask.double().mean()) == pytest.approx(0.1, abs=0.01)
    entries = cell.weight[cell.weight > 0]
    assert float(entries.mean()) == pytest.approx(2.0 / (40 * 0.5) ** 0.5, rel=0.05)
    assert float(entries.max()) <= 2 * 2.0 / (40 * 0.5) ** 0.5 + 1e-6


def test_spectral_radius_is_set_and_random_gain_is_about_it() -> None:
    cell = EchoState(1, 80, dale=False, activation="tanh", spectral_radius=0.9, generator=generator())
    assert float(torch.linalg.eigvals(cell.weight).abs().max()) == pytest.approx(0.9, rel=1e-4)
    free = EchoState(1, 500, dale=False, gain=1.5, activation="tanh", generator=generator())
    assert float(torch.linalg.eigvals(free.weight).abs().max()) == pytest.approx(1.5, rel=0.12)


def test_weights_are_buffers_and_seeds_decide() -> None:
    cell = EchoState(1, 30, generator=generator(7))
    assert list(cell.parameters()) == []
    assert torch.equal(cell.weight, EchoState(1, 30, generator=generator(7)).weight)
    assert not torch.equal(cell.weight, EchoState(1, 30, generator=generator(8)).weight)
    other = EchoState(1, 30, generator=generator(9))
    other.load_state_dict(cell.state_dict())
    u = torch.rand(5, 1, 1)
    assert torch.equal(other(u)[0], cell(u)[0])
    assert "port" not in cell.state_dict()
    assert torch.equal(copy.deepcopy(cell)(u)[0], cell(u)[0])


def test_a_silenced_unit_is_silent_for_its_targets_too() -> None:
    """Silencing in the loop equals a network in which the unit's outgoing weights are zero."""
    cell = EchoState(1, 15, density=0.5, generator=generator(2), dtype=torch.float64)
    u = torch.rand(20, 2, 1, generator=generator(2), dtype=torch.float64)
    unit = torch.arange(15) == 4
    cut = copy.deepcopy(cell)
    cut.weight[:, 4] = 0
    cell.port = Port.on(unit, gain=0.0)
    edited, _ = cell(u)
    reference, _ = cut(u)
    assert torch.all(edited[..., 4] == 0)
    torch.testing.assert_close(edited[..., ~unit], reference[..., ~unit], rtol=1e-12, atol=1e-12)
    cell.port = None
    assert not torch.allclose(cell(u)[0][..., ~unit], reference[..., ~unit])


def test_the_edit_engine_silences_inside_the_loop() -> None:
    cell = EchoState(1, 15, density=0.5, generator=generator(2), dtype=torch.float64)
    model = px.nn.Sequential(cell)
    u = torch.rand(20, 2, 1, generator=generator(2), dtype=torch.float64)
    cut = copy.deepcopy(cell)
    cut.weight[:, 4] = 0
    site = px.sites(model, "0")[0]
    with px.edit.scale(model, px.Neurons({site: torch.arange(15) == 4}), 0.0):
        edited, _ = model(u)
    assert torch.all(edited[..., 4] == 0)
    torch.testing.assert_close(edited[..., :4], cut(u)[0][..., :4], rtol=1e-12, atol=1e-12)
    assert cell.port is None
    recorded = px.probe.record(model, [u], at=[site])
    assert recorded.values[site].shape == (40, 15)


def test_jacobian_equals_automatic_differentiation() -> None:
    for activation in ACTIVATIONS:
        cell = EchoState(
            2, 7, dale=False, leak=0.6, activation=activation, density=0.5, generator=generator(), dtype=torch.float64
        )
        u = torch.rand(1, 1, 2, generator=generator(1), dtype=torch.float64)
        x = torch.rand(1, 7, generator=generator(1), dtype=torch.float64)
        automatic = torch.autograd.functional.jacobian(lambda s: cell(u, EchoStateState(s))[1].x, x)[0, :, 0]  # noqa: B023
        torch.testing.assert_close(cell.jacobian(u[0], EchoStateState(x))[0], automatic)


def test_free_run_equals_feeding_back_by_hand() -> None:
    cell = EchoState(2, 25, leak=0.8, generator=generator(3), dtype=torch.float64)
    v = 0.1 * torch.randn(2, 25, generator=generator(4), dtype=torch.float64)
    c = torch.tensor([0.1, -0.2], dtype=torch.float64)
    for port in (None, Port.on(torch.arange(25) == 3, gain=0.0)):
        cell.port = port
        out, state = cell(torch.rand(10, 1, 2, generator=generator(5), dtype=torch.float64))
        made, end = cell.free_run(v, c, state, 12)
        last, by_hand = out[-1], []
        for _ in range(12):
            by_hand.append(last @ v.T + c)
            out, state = cell(by_hand[-1].unsqueeze(0), state)
            last = out[-1]
        torch.testing.assert_close(made, torch.stack(by_hand))
        torch.testing.assert_close(end.x, state.x)


def test_slopes_of_activations() -> None:
    z = torch.linspace(-2, 2, 9, dtype=torch.float64, requires_grad=True)
    for name in ACTIVATIONS:
        (wanted,) = torch.autograd.grad(activation_function(name)(z).sum(), z)
        torch.testing.assert_close(activation_slope(name, z.detach()), wanted)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1000), batch=st.integers(1, 3), activation=st.sampled_from(ACTIVATIONS))
def test_fused_homeostasis_equals_reference(seed: int, batch: int, activation: str) -> None:
    cell = EchoState(1, 10, density=0.5, generator=generator(seed), dtype=torch.float64)
    drive = torch.randn(12, batch, 10, generator=generator(seed), dtype=torch.float64)
    x = torch.rand(batch, 10, generator=generator(seed), dtype=torch.float64)
    target = torch.full((10,), 0.4, dtype=torch.float64)
    plastic = cell.mask & (cell.signs < 0)
    given_weight = cell.weight.clone()
    args = (drive, cell.weight, plastic, cell.signs, x, target, 0.05)
    fused = homeostatic_steps(*args, leak=0.7, activation=activation)
    eager = homeostatic_steps_reference(*args, leak=0.7, activation=activation)
    for ours, theirs in zip(fused, eager, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-10)
    assert torch.equal(cell.weight, given_weight)


def test_empty_time_gives_back_the_state() -> None:
    cell = EchoState(1, 10, generator=generator())
    state = EchoStateState(torch.rand(2, 10))
    out, after = cell(torch.empty(0, 2, 1), state)
    assert out.shape == (0, 2, 10)
    assert torch.equal(after.x, state.x)


BAD = {
    "no units": (RangeError, lambda: EchoState(1, 0)),
    "units not whole": (RangeError, lambda: EchoState(1, 2.5)),  # type: ignore[arg-type]
    "share of inhibition": (RangeError, lambda: EchoState(1, 10, inhibitory=1.2)),
    "density": (RangeError, lambda: EchoState(1, 10, density=0.0)),
    "balance": (RangeError, lambda: EchoState(1, 10, balance=1.5)),
    "leak": (RangeError, lambda: EchoState(1, 10, leak=0.0)),
    "activation": (UnknownNameError, lambda: EchoState(1, 10, activation="sigmoyd")),
    "radius of an empty weight": (RangeError, lambda: scale_to_radius(torch.zeros(3, 3), 1.0)),
    "negative radius": (RangeError, lambda: scale_to_radius(torch.eye(3), -1.0)),
    "mixed column": (RangeError, lambda: dale_signs(torch.tensor([[1.0, 0.0], [-1.0, 0.0]]))),
    "mixed column in a reservoir": (
        RangeError,
        lambda: EchoState.from_weights(torch.tensor([[1.0, 0.0], [-1.0, 0.0]]), torch.ones(2, 1)),
    ),
    "weight not square": (ShapeError, lambda: EchoState.from_weights(torch.ones(2, 3), torch.ones(2, 1))),
    "bias": (ShapeError, lambda: EchoState.from_weights(torch.eye(2), torch.ones(2, 1), torch.ones(3))),
    "batch first": (ShapeError, lambda: EchoState(3, 10)(torch.rand(10, 3))),
    "features": (ShapeError, lambda: EchoState(3, 10)(torch.rand(10, 1, 2))),
    "empty batch": (ShapeError, lambda: EchoState(3, 10)(torch.rand(10, 0, 3))),
    "dtype": (DtypeError, lambda: EchoState(3, 10)(torch.rand(10, 1, 3, dtype=torch.float64))),
    "state of another batch": (
        ShapeError,
        lambda: EchoState(1, 10)(torch.rand(5, 2, 1), EchoStateState(torch.zeros(3, 10))),
    ),
    "NaN state": (
        RangeError,
        lambda: EchoState(1, 10)(torch.rand(5, 1, 1), EchoStateState(torch.full((1, 10), float("nan")))),
    ),
    "NaN input": (RangeError, lambda: EchoState(1, 10)(torch.full((5, 1, 1), float("nan")))),
    "read-out": (
        ShapeError,
        lambda: EchoState(1, 10).free_run(torch.zeros(2, 10), torch.zeros(2), EchoStateState(torch.zeros(1, 10)), 3),
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused_in_words(case: str) -> None:
    error, call = BAD[case]
    with pytest.raises(error) as caught:
        call()
    assert isinstance(caught.value, PlexusError)
    assert len(str(caught.value)) > 20


def test_mixed_signs_are_allowed_without_dales_law() -> None:
    cell = EchoState.from_weights(torch.tensor([[1.0, 0.0], [-1.0, 0.0]]), torch.ones(2, 1), dale=False)
    assert not cell.dale
    assert np.isfinite(cell(torch.rand(5, 1, 1))[0].numpy()).all()
