"""The meta neuron's operator: its equations, the fused loop against the reference, chance in the spike."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.func import jvp, vmap

from plexus.errors import DtypeError, RangeError, ShapeError, UnknownNameError
from plexus.kernels import MetaState, Surrogate, lif, logistic_noise, meta
from plexus.units import Port

VARIANTS = {
    "first order": {"order": 1},
    "linear, ported": {"port": Port(gain=torch.tensor(0.5), high=torch.tensor(0.4))},
    "quadratic, detached": {"form": "quadratic", "limit": 1.5, "detach_reset": True},
    "stochastic": {"stochastic": True},
    "smooth stochastic": {"stochastic": True, "smooth": True},
}
NUMBERS = ("decay", "gain", "threshold", "reset_value", "temperature", "recovery", "coupling", "jump")


def some_numbers(units, dtype, generator):
    low = torch.tensor([0.5, 0.5, 0.3, -0.4, 0.1, 0.05, 0.0, -0.1], dtype=dtype)
    high = torch.tensor([1.0, 1.5, 0.9, 0.2, 0.4, 0.6, 0.8, 0.5], dtype=dtype)
    drawn = torch.rand(8, units, generator=generator, dtype=dtype)
    return dict(zip(NUMBERS, low.unsqueeze(1) + (high - low).unsqueeze(1) * drawn, strict=True))


def run(backend, x, state, numbers, variant):
    variant = dict(variant)
    noise = None
    if variant.pop("stochastic", False):
        noise = logistic_noise(x, torch.Generator().manual_seed(5))
    x = x.clone().requires_grad_()
    leaves = {name: number.clone().requires_grad_() for name, number in numbers.items()}
    parts = [part.clone().requires_grad_() for part in state]
    spikes, after = meta(x, MetaState(*parts), noise=noise, backend=backend, **leaves, **variant)
    weight = torch.linspace(-1, 2, spikes.numel(), dtype=x.dtype).view(spikes.shape).sin()
    loss = (spikes * weight).sum() + (after.v * weight.sum(0)).sum() + (after.u * weight[0]).sum() + after.z.sum()
    grads = torch.autograd.grad(loss, [x, *leaves.values(), *parts], allow_unused=True)
    shapes = [x, *leaves.values(), *parts]
    return spikes, after, [torch.zeros_like(s) if g is None else g for g, s in zip(grads, shapes, strict=True)]


@pytest.mark.parametrize("name", VARIANTS)
@settings(max_examples=6, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    steps=st.integers(1, 12), batch=st.integers(1, 4), units=st.sampled_from([3, 16, 70]), seed=st.integers(0, 2**20)
)
def test_fused_loop_equals_reference(name, steps, batch, units, seed):
    generator = torch.Generator().manual_seed(seed)
    numbers = some_numbers(units, torch.float64, generator)
    x = torch.rand(steps, batch, units, generator=generator, dtype=torch.float64) * 2
    z = (torch.rand(batch, units, generator=generator) > 0.5).double()
    state = MetaState(torch.randn(batch, units, generator=generator).double(), z * 0.3, z)
    fused, eager = (run(backend, x, state, numbers, VARIANTS[name]) for backend in ("fused", "eager"))
    for a, b in zip((fused[0], *fused[1], *fused[2]), (eager[0], *eager[1], *eager[2]), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", ["stochastic"])
def test_single_precision_agrees_too(name):
    generator = torch.Generator().manual_seed(0)
    numbers = some_numbers(16, torch.float32, generator)
    x = torch.rand(30, 4, 16, generator=generator) * 2
    zeros = torch.zeros(4, 16)
    fused, eager = (
        run(backend, x, MetaState(zeros, zeros, zeros), numbers, VARIANTS[name]) for backend in ("fused", "eager")
    )
    assert 0 < fused[0].count_nonzero() < fused[0].numel()
    assert (fused[0] == eager[0]).float().mean() > 0.999  # a rounding may tip a spike
    assert set(fused[0].unique().tolist()) == {0.0, 1.0}


@pytest.mark.parametrize("name", VARIANTS)
def test_pieces_equal_the_whole_bit_for_bit(name):
    variant = dict(VARIANTS[name])
    x = torch.rand(23, 3, 7) * 2
    noise = logistic_noise(x) if variant.pop("stochastic", False) else None
    whole, after = meta(x, decay=0.8, threshold=0.6, noise=noise, **variant)
    assert whole.count_nonzero() > 0
    pieces, state, start = [], None, 0
    for piece in x.split([1, 7, 0, 9, 6]):
        stop = start + len(piece)
        cut = None if noise is None else noise[start:stop]
        spikes, state = meta(piece, state, decay=0.8, threshold=0.6, noise=cut, **variant)
        pieces.append(spikes)
        start = stop
    assert torch.equal(torch.cat(pieces), whole)
    assert all(torch.equal(a, b) for a, b in zip(state, after, strict=True))


def test_first_order_is_the_leaky_integrator_with_hard_reset():
    x = torch.rand(60, 4, 9, dtype=torch.float64)
    for detach in (False, True):
        numbers = {"threshold": 0.9, "gain": 0.8, "reset_value": 0.1, "detach_reset": detach}
        ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
        spikes, state = meta(ours, decay=0.85, order=1, **numbers)
        expected, other = lif(theirs, decay=0.85, reset="hard", **numbers)
        assert torch.equal(spikes, expected)
        assert expected.any()
        torch.testing.assert_close(state.v, other.v, rtol=1e-14, atol=1e-14)
        (spikes * x).sum().backward()
        (expected * x).sum().backward()
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-12, atol=1e-12)


def test_second_order_follows_its_equations():
    x = torch.rand(40, 2, 5, dtype=torch.float64)
    decay, gain, theta, reset, a, b, d = 0.9, 0.7, 0.8, -0.1, 0.2, 0.5, 0.3
    spikes, state = meta(
        x, decay=decay, gain=gain, threshold=theta, reset_value=reset, recovery=a, coupling=b, jump=d
    )  # fmt: skip
    v, u = torch.zeros(2, 5, dtype=torch.float64), torch.zeros(2, 5, dtype=torch.float64)
    for now, fired in zip(x, spikes, strict=True):
        v = decay * v + gain * now - u
        u = u + a * (b * v - u)
        s = (v > theta).double()
        assert torch.equal(s, fired)
        v, u = v * (1 - s) + reset * s, u + d * s
    torch.testing.assert_close(state.v, v)
    torch.testing.assert_close(state.u, u)
    assert spikes.any()


def test_the_quadratic_form_is_the_published_flow_where_steps_are_small():
    """dV/dt = V² - V - U + I, dU/dt = θ_v V - θ_u U by scipy, from rest, below threshold."""
    from scipy.integrate import solve_ivp

    theta_v, theta_u, current = 0.4, 0.5, 0.15
    steps, h = 4000, 0.001
    a, b = theta_u * h, theta_v / theta_u
    x = torch.full((steps, 1, 1), current, dtype=torch.float64)
    _, state = meta(x, decay=1 - h, form="quadratic", threshold=3.0, recovery=a, coupling=b)
    flow = solve_ivp(
        lambda _, y: [y[0] ** 2 - y[0] - y[1] + current, theta_v * y[0] - theta_u * y[1]],
        (0, steps * h),
        [0.0, 0.0],
        rtol=1e-9,
        atol=1e-12,
    )
    assert state.v.item() == pytest.approx(flow.y[0, -1], rel=3e-3)
    assert state.u.item() == pytest.approx(flow.y[1, -1], rel=3e-3)


def test_the_quadratic_form_stays_bounded_at_a_step_of_one():
    x = (torch.rand(300, 3, 4, dtype=torch.float64) * 20).requires_grad_()
    spikes, state = meta(x, decay=0.01, form="quadratic", limit=4.0, coupling=-0.5, jump=-0.2)
    assert state.v.abs().max() <= 4.0
    (spikes.sum() + state.v.sum()).backward()
    assert torch.isfinite(x.grad).all()


@pytest.mark.parametrize("potential", [0.6, 1.0, 1.3])
def test_spikes_come_with_the_probability_that_the_equations_say(potential):
    draws = 40_000
    x = torch.full((1, draws, 1), potential, dtype=torch.float64)
    noise = logistic_noise(x, torch.Generator().manual_seed(0))
    spikes, _ = meta(x, decay=0.5, order=1, temperature=0.3, noise=noise)
    wanted = torch.sigmoid(torch.tensor((potential - 1.0) / 0.3)).item()
    assert spikes.mean().item() == pytest.approx(wanted, abs=4 * (wanted * (1 - wanted) / draws) ** 0.5)


def test_the_gradient_of_a_draw_is_that_of_its_probability_whatever_was_drawn():
    x = torch.linspace(0, 2, 9, dtype=torch.float64).view(1, 9, 1).requires_grad_()
    width = torch.tensor([0.3], dtype=torch.float64, requires_grad=True)
    expected = torch.autograd.grad(torch.sigmoid((x - 1.0) / width).sum(), [x, width])
    for seed in range(3):
        noise = logistic_noise(x, torch.Generator().manual_seed(seed))
        spikes, _ = meta(x, decay=0.5, order=1, temperature=width, noise=noise)
        for found, wanted in zip(torch.autograd.grad(spikes.sum(), [x, width]), expected, strict=True):
            torch.testing.assert_close(found, wanted)


def test_a_cold_draw_is_the_threshold():
    x = torch.rand(50, 3, 4, dtype=torch.float64)
    cold, _ = meta(x, decay=0.9, temperature=1e-9, noise=logistic_noise(x))
    certain, _ = meta(x, decay=0.9)
    assert torch.equal(cold, certain)


@pytest.mark.parametrize("variant", [{}, {"form": "quadratic"}, {"noise": True}])
def test_smooth_neurons_have_true_gradients(variant):
    generator = torch.Generator().manual_seed(1)
    numbers = some_numbers(2, torch.float64, generator)
    x = torch.rand(6, 2, 2, generator=generator, dtype=torch.float64)
    noise = logistic_noise(x, generator) if variant.get("noise") else None
    variant = {k: v for k, v in variant.items() if k != "noise"}
    names = list(numbers)

    def loop(x, *values):
        spikes, state = meta(
            x, noise=noise, smooth=True, surrogate=Surrogate("sigmoid", width=0.5), backend="fused", **variant,
            **dict(zip(names, values, strict=True)),
        )  # fmt: skip
        return spikes, state.v, state.u

    leaves = [t.requires_grad_() for t in (x, *numbers.values())]
    assert torch.autograd.gradcheck(loop, leaves)


def test_transforms_run_by_the_reference():
    x, t = torch.rand(2, 8, 3, 4, dtype=torch.float64)
    _, tangent = jvp(lambda x: meta(x, decay=0.9, smooth=True)[0], (x,), (t,))
    step = 1e-6
    numeric = (
        meta(x + step * t, decay=0.9, smooth=True)[0] - meta(x - step * t, decay=0.9, smooth=True)[0]
    ) / (2 * step)  # fmt: skip
    torch.testing.assert_close(tangent, numeric, rtol=1e-5, atol=1e-6)
    several = torch.stack([x, t])
    torch.testing.assert_close(
        vmap(lambda x: meta(x, decay=0.9)[0])(several), torch.stack([meta(x, decay=0.9)[0], meta(t, decay=0.9)[0]])
    )


def test_noise_is_logistic():
    noise = logistic_noise(torch.empty(200_000, dtype=torch.float64), torch.Generator().manual_seed(0))
    assert noise.mean().item() == pytest.approx(0.0, abs=0.02)
    assert noise.var().item() == pytest.approx(torch.pi**2 / 3, rel=0.02)
    assert torch.isfinite(noise).all()


@pytest.mark.parametrize(
    ("error", "arguments"),
    [
        (UnknownNameError, {"order": 3}),
        (UnknownNameError, {"form": "cubic"}),
        (RangeError, {"limit": 0.0}),
        (ShapeError, {"noise": torch.zeros(4, 2, 5)}),
        (DtypeError, {"noise": torch.zeros(4, 2, 3, dtype=torch.float64)}),
        (ShapeError, {"coupling": torch.zeros(2)}),
    ],
)
def test_each_mistake_has_its_error(error, arguments):
    with pytest.raises(error):
        meta(torch.rand(4, 2, 3), **{"decay": 0.9, **arguments})
