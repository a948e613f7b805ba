"""The closed form against autograd, the online forms against the closed form, and both against simple cases."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from plexus.errors import DtypeError, RangeError, ShapeError, UnknownNameError, UnsupportedError
from plexus.learn.homeostasis import GainControl, linear_reader
from plexus.nn import RecurrentRate


def weights(seed: int, units: int = 6, radius: float = 0.6) -> torch.Tensor:
    raw = torch.randn(units, units, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return raw * radius / torch.linalg.eigvals(raw).abs().max()


def rates(seed: int, stimuli: int = 9, units: int = 6) -> torch.Tensor:
    return torch.rand(stimuli, units, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def shares(seed: int, stimuli: int = 9) -> torch.Tensor:
    return torch.rand(stimuli, dtype=torch.float64, generator=torch.Generator().manual_seed(seed + 1)).softmax(0)


def literal_loss(net, control, drive, prob, gain):
    """The three terms as they are written, through the network's own steady state."""
    r = net.steady_state(drive, gain=gain)
    fidelity = prob @ (drive - r @ net.reader().T).square().sum(1)
    return fidelity + control.alpha * (prob @ r.square().sum(1)) + control.gamma * (gain - 1).square().sum()


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 10_000), alpha=st.floats(0, 5), gamma=st.floats(0.01, 5))
def test_closed_form_loss_is_the_literal_loss(seed, alpha, gamma):
    w, f, p = weights(seed), rates(seed), shares(seed)
    control = GainControl(6, alpha=alpha, gamma=gamma).double()
    g = rates(seed + 2, 1)[0]
    literal = literal_loss(RecurrentRate(w), control, f, p, g)
    torch.testing.assert_close(control.loss(f, gain=g, weight=w, prob=p), literal, rtol=1e-9, atol=1e-9)


@settings(deadline=None, max_examples=15)
@given(seed=st.integers(0, 10_000))
def test_closed_form_equals_the_autograd_minimiser(seed):
    w, f, p = weights(seed), rates(seed), shares(seed)
    control = GainControl(6, alpha=1.3, gamma=0.7, positive=False).double()
    solved = control.solve(f, w, p)
    g = torch.ones(6, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [g], lr=1.0, max_iter=200, tolerance_grad=1e-12, tolerance_change=0.0, line_search_fn="strong_wolfe"
    )

    def closure():
        optimizer.zero_grad()
        value = literal_loss(RecurrentRate(w), control, f, p, g)
        value.backward()
        return value

    optimizer.step(closure)
    assert (g.detach() - solved).abs().max() < 1e-5


def test_without_weights_each_gain_is_its_own_formula():
    f = rates(1)
    moment = f.square().mean(0)
    expected = (moment + 0.5) / (3 * moment + 0.5)
    for weight in (None, torch.zeros(6, 6, dtype=torch.float64)):
        torch.testing.assert_close(GainControl(6, alpha=2.0, gamma=0.5).double().solve(f, weight), expected)
    torch.testing.assert_close(GainControl(6, alpha=2.0, gamma=0.5, recurrent=False).double().solve(f), expected)


def test_no_price_of_activity_means_no_adaptation():
    solved = GainControl(6, alpha=0.0, gamma=0.3).double().solve(rates(1), weights(1), shares(1))
    torch.testing.assert_close(solved, torch.ones(6, dtype=torch.float64))


def test_a_strong_pull_holds_the_gains_at_one():
    solved = GainControl(6, gamma=1e9).double().solve(rates(1), weights(1))
    assert (solved - 1).abs().max() < 1e-7


def test_the_unit_that_is_driven_hardest_is_turned_down_most():
    f = rates(1)
    f[:, 2] += 3
    assert GainControl(6).double().solve(f).argmin() == 2


@settings(deadline=None, max_examples=10)
@given(seed=st.integers(0, 10_000))
def test_units_can_be_relabelled(seed):
    w, f, p = weights(seed), rates(seed), shares(seed)
    order = torch.randperm(6, generator=torch.Generator().manual_seed(seed))
    control = GainControl(6).double()
    straight = control.solve(f, w, p)
    torch.testing.assert_close(control.solve(f[:, order], w[order][:, order], p), straight[order])


def test_gains_stay_positive_where_the_free_optimum_is_negative():
    w = torch.tensor([[0.0, 4.0], [0.0, 0.0]], dtype=torch.float64)
    f = torch.tensor([[0.5, 4.0]], dtype=torch.float64)  # unit 1 excites unit 0: its own drive is best below zero
    free = GainControl(2, alpha=1.0, gamma=0.01, positive=False).double()
    assert free.solve(f, w).min() < 0
    bound = GainControl(2, alpha=1.0, gamma=0.01).double()
    g = bound.solve(f, w)
    assert g.min() >= 0
    # the conditions of optimality: no slope inside, an upward slope at the bound
    inside = g.clone().requires_grad_()
    (slope,) = torch.autograd.grad(bound.loss(f, gain=inside, weight=w), inside)
    assert slope[g > 0].abs().max() < 1e-9
    assert (slope[g == 0] > 0).all()
    assert (g == 0).any()


@pytest.mark.parametrize(("method", "steps"), [("gradient", 400), ("conjugate", 40)])
def test_online_gains_reach_the_closed_form_of_what_was_seen(method, steps):
    w, f, p = weights(3), rates(3), shares(3)
    control = GainControl(6, gamma=0.8).double()
    for _ in range(steps):
        control.step(f, w, p, method=method)
    assert (control.gain - GainControl(6, gamma=0.8).double().solve(f, w, p)).abs().max() < 1e-6


def test_conjugate_steps_are_exact_after_as_many_as_there_are_units():
    w, f = weights(5), rates(5)
    control = GainControl(6, gamma=0.8).double()
    for _ in range(6):
        control.step(f, w, method="conjugate")
    assert (control.gain - GainControl(6, gamma=0.8).double().solve(f, w)).abs().max() < 1e-8


def test_no_gradient_step_increases_the_loss():
    w, f = weights(4), 10 * rates(4)
    control = GainControl(6).double()
    losses = [float(control.loss(f, weight=w))]
    for _ in range(50):
        control.step(f, w)
        losses.append(float(control.loss(f, weight=w)))
    assert all(after <= before + 1e-12 for before, after in itertools.pairwise(losses))


def test_running_moment_starts_as_a_mean_and_then_forgets():
    f = rates(1, stimuli=50)
    control = GainControl(6, memory=1000.0).double()
    for row in f:
        control.observe(row)
    torch.testing.assert_close(control.moment, f.T @ f / 50)
    control = GainControl(6, memory=10.0).double()
    for row in f:
        control.observe(row)
    expected = torch.zeros(6, 6, dtype=torch.float64)
    for n, row in enumerate(f, 1):
        share = max(1 / 10, 1 / n)
        expected = (1 - share) * expected + share * row.outer(row)
    torch.testing.assert_close(control.moment, expected)


def test_one_large_batch_weighs_as_much_as_its_stimuli():
    f = rates(2, stimuli=40)
    whole, split = GainControl(6, memory=math.inf).double(), GainControl(6, memory=math.inf).double()
    whole.observe(f)
    for part in f.split([3, 17, 20]):
        split.observe(part)
    torch.testing.assert_close(whole.moment, split.moment)


def test_returning_to_a_context_restores_its_gains():
    w, f = weights(7), rates(7)
    control = GainControl(6).double()
    before = control.solve(f, w)
    assert (control.solve(f, w, shares(9)) - before).abs().max() > 1e-3
    assert torch.equal(control.solve(f, w), before)
    control.reset()
    fresh = GainControl(6).double()
    assert all(torch.equal(v, fresh.state_dict()[k]) for k, v in control.state_dict().items())


def test_forward_scales_and_changes_nothing():
    control = GainControl(6)
    control.solve(rates(1).float())
    before = {k: v.clone() for k, v in control.state_dict().items()}
    x = torch.randn(2, 3, 6)
    assert torch.equal(control(x), x * before["gain"])
    assert all(torch.equal(v, before[k]) for k, v in control.state_dict().items())
    assert list(control.parameters()) == []


def test_gain_on_request_is_a_parameter_that_trains():
    control = GainControl(3, learn=True)
    assert [n for n, _ in control.named_parameters()] == ["gain"]
    control(torch.ones(3)).sum().backward()
    assert torch.equal(control.gain.grad, torch.ones(3))


def test_fit_through_the_network_equals_the_closed_form():
    w, f, p = weights(2), rates(2), shares(2)
    closed = GainControl(6).double().solve(f, w, p)
    fitted = GainControl(6).double().fit(RecurrentRate(w), f, p)
    assert (closed - fitted).abs().max() < 1e-5


@pytest.mark.parametrize("place", ["input", "total", "output"])
def test_fit_finds_a_stationary_point_of_nonlinear_networks(place):
    w, f, p = weights(2, radius=0.4), rates(2), shares(2)
    net = RecurrentRate(w, gain_on=place, activation=torch.nn.functional.softplus)
    reader = linear_reader(net.steady_state(f), f)
    control = GainControl(6, alpha=0.5, gamma=0.5).double()
    g = control.fit(net, f, p, reader=reader, tol=1e-14)

    def loss(gain):
        r = net.steady_state(f, gain=gain)
        return (
            p @ (f - r @ reader.T).square().sum(1)
            + control.alpha * (p @ r.square().sum(1))
            + control.gamma * (gain - 1).square().sum()
        )

    base = loss(g)
    for i in range(6):
        for step in (1e-3, -1e-3):
            moved = g.clone()
            moved[i] = (moved[i] + step).clamp_min(0)
            assert loss(moved) >= base - 1e-10


def test_linear_reader_of_a_linear_network_is_identity_minus_weight():
    net, f = RecurrentRate(weights(2)), rates(2)
    torch.testing.assert_close(linear_reader(net.steady_state(f), f), net.reader(), rtol=1e-7, atol=1e-7)


def test_state_dict_restores_the_adapted_state():
    control, other = GainControl(6), GainControl(6)
    control.step(rates(1).float(), weights(1).float(), method="conjugate")
    other.load_state_dict(control.state_dict())
    a = control.step(rates(2).float(), weights(1).float(), method="conjugate")
    b = other.step(rates(2).float(), weights(1).float(), method="conjugate")
    assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("error", "call"),
    [
        (RangeError, lambda: GainControl(0)),
        (RangeError, lambda: GainControl(2, alpha=-1.0)),
        (RangeError, lambda: GainControl(2, gamma=-1.0)),
        (RangeError, lambda: GainControl(2, memory=0.0)),
        (RangeError, lambda: GainControl(2).solve(torch.ones(2, 2), torch.eye(2))),
        (RangeError, lambda: GainControl(2).solve(torch.ones(2, 2), prob=torch.tensor([0.5, 0.6]))),
        (RangeError, lambda: GainControl(2).solve(torch.ones(2, 2), prob=torch.tensor([1.5, -0.5]))),
        (RangeError, lambda: GainControl(2).solve(-torch.ones(2, 2))),
        (RangeError, lambda: GainControl(2).solve(torch.full((2, 2), torch.nan))),
        (RangeError, lambda: GainControl(2, gamma=0.0).solve(torch.tensor([[1.0, 0.0]]))),
        (RangeError, lambda: GainControl(2, gamma=0.0).solve(torch.tensor([[1.0, 0.0]]), torch.zeros(2, 2))),
        (ShapeError, lambda: GainControl(2).solve(torch.ones(2, 3))),
        (ShapeError, lambda: GainControl(2).solve(torch.ones(0, 2))),
        (ShapeError, lambda: GainControl(2).solve(torch.ones(2, 2), torch.zeros(3, 3))),
        (ShapeError, lambda: GainControl(2).solve(torch.ones(2, 2), prob=torch.ones(3) / 3)),
        (ShapeError, lambda: GainControl(2)(torch.ones(3))),
        (DtypeError, lambda: GainControl(2).solve(torch.ones(2, 2, dtype=torch.int64))),
        (UnknownNameError, lambda: GainControl(2).step(torch.ones(2, 2), method="newton")),
        (UnsupportedError, lambda: GainControl(2, recurrent=False).step(torch.ones(2, 2), torch.zeros(2, 2))),
        (ShapeError, lambda: linear_reader(torch.ones(2, 2), torch.ones(3, 2))),
    ],
)
def test_bad_input(error, call):
    with pytest.raises(error):
        call()


def test_negative_drive_is_allowed_on_request():
    drive = -torch.ones(2, 2)
    for control in (GainControl(2, positive=False), GainControl(2, recurrent=False)):
        assert torch.isfinite(control.solve(drive)).all()
    assert isinstance(GainControl(2), nn.Module)
