"""Astrocyte-modulated units: independent loop, limits, splitting, edits inside the loop, wrapping, bad input."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from plexus import edit
from plexus.errors import DtypeError, RangeError, ShapeError, UnsupportedError
from plexus.nn import LIF, Astrocytes, AstrocyteUnit, RecurrentLIF, Sequential, with_astrocytes
from plexus.units import Neurons, Site


def unit_of(units=5, dtype=torch.float64, **options):
    unit = AstrocyteUnit(units, generator=torch.Generator().manual_seed(0), **options).to(dtype)
    with torch.no_grad():
        unit.weight *= 2  # so that it spikes
    return unit


def signal(steps=12, batch=3, units=5, dtype=torch.float64, seed=1):
    return torch.randn(steps, batch, units, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def by_hand(unit, x):
    """The equations at the head of the module, one number at a time where they are written so."""
    astrocytes = unit.astrocytes
    g, h = (m and m(torch.eye(unit.units, dtype=x.dtype)).T for m in (astrocytes.gain_map, astrocytes.bias_map))
    keep = 1 - 1 / astrocytes.timescales()
    alpha = torch.exp(-1 / unit.log_tau_mem.exp())
    v, a, z = (torch.zeros_like(x[0]) for _ in range(3))
    out = []
    for now in x:
        heard = 0
        if astrocytes.pre is not None:
            heard = heard + astrocytes.pre * now
        if astrocytes.post is not None:
            heard = heard + astrocytes.post * z
        a = keep * a + (1 - keep) * heard
        j = torch.einsum("ij,bj->bi", unit.weight, now)
        if g is not None:
            j = j * (1 + torch.tanh(torch.einsum("ij,bj->bi", g, a)))
        if h is not None:
            j = j + torch.einsum("ij,bj->bi", h, a)
        m = alpha * v + j
        z = (m > 1).to(x.dtype)
        v = m * (1 - z)
        out.append(z)
    return torch.stack(out), v, a


VARIANTS = {
    "full": {},
    "low rank": {"rank": 2},
    "no gain": {"gain": False},
    "no bias": {"bias": False},
    "input only": {"use_post": False},
    "spikes only": {"use_pre": False},
    "fast": {"tau_range": (2.0, 2.0)},
    "input only, low rank, frozen": {"use_post": False, "rank": 1, "learn_tau": False},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_unit_follows_its_equations(variant):
    unit, x = unit_of(**VARIANTS[variant]), signal()
    spikes, state = unit(x)
    expected, v, a = by_hand(unit, x)
    assert 0.05 < expected.mean() < 0.95
    assert torch.equal(spikes, expected)
    torch.testing.assert_close(state.v, v)
    torch.testing.assert_close(state.a, a)
    assert torch.equal(state.z, expected[-1])


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 11), st.booleans(), st.sampled_from([torch.float32, torch.float64]))
def test_a_sequence_in_two_is_the_sequence_whole(cut, use_post, dtype):
    unit, x = unit_of(dtype=dtype, use_post=use_post, rank=2), signal(dtype=dtype)
    whole, end = unit(x)
    first, state = unit(x[:cut])
    second, after = unit(x[cut:], state)
    assert torch.equal(torch.cat([first, second]), whole)
    for part, expected in zip(after, end, strict=True):
        torch.testing.assert_close(part, expected)


def test_steps_are_the_sequence():
    unit, x = unit_of(), signal()
    state, out = None, []
    for now in x:
        z, state = unit.step(now, state)
        out.append(z)
    assert torch.equal(torch.stack(out), unit(x)[0])


def test_time_constants_span_the_range_and_stay_longer_than_a_step():
    taus = AstrocyteUnit(30, (2.0, 150.0)).timescales()
    torch.testing.assert_close(taus[[0, -1]], torch.tensor([2.0, 150.0]))
    steps = (taus - 1).log().diff()
    torch.testing.assert_close(steps, steps[0].expand(29), rtol=1e-3, atol=1e-4)
    assert torch.allclose(AstrocyteUnit(4, (10.0, 10.0), dt=0.5).timescales(), torch.tensor(10.0))
    unit = AstrocyteUnit(4)
    with torch.no_grad():
        unit.astrocytes.raw_keep -= 50
    assert bool((unit.timescales() >= 1).all())


def test_without_calcium_the_unit_is_a_leaky_neuron_with_a_hard_reset():
    unit, x = unit_of(), signal()
    everything = Neurons.of({Site("0.astrocytes"): 5}, {Site("0.astrocytes"): range(5)})
    model = Sequential(unit)
    with edit.clamp(model, everything, 0.0):
        silenced, _ = model(x)
    plain = LIF(5, tau_mem=1 / math.log(2.0), reset="hard").double()
    expected, _ = plain(x @ unit.weight.T)
    assert torch.equal(silenced, expected)
    assert not torch.equal(model(x)[0], expected)


@pytest.mark.parametrize("use_post", [True, False])
def test_an_edit_of_a_unit_is_felt_by_its_own_astrocyte(use_post):
    model, x = Sequential(unit_of(use_post=use_post)), signal()
    with edit.clamp(model, Neurons.of({Site("0"): 5}, {Site("0"): [2]}), 1.0):
        spikes, (state,) = model(x)
    assert bool((spikes[..., 2] == 1).all())
    _, (untouched,) = model(x)
    assert torch.equal(state.a[:, 2], untouched.a[:, 2]) != use_post  # only those that hear spikes can tell


def test_everything_learns():
    for use_post in (True, False):
        unit = unit_of(use_post=use_post, rank=2)
        spikes, state = unit(signal())
        (spikes.sum() + state.v.sum()).backward()
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in unit.parameters())


def test_parallel_mode_and_the_loop_agree_where_spikes_are_not_heard():
    x, found = signal(), []
    for use_post in (True, False):
        unit = unit_of(use_post=use_post)
        if use_post:
            with torch.no_grad():
                unit.astrocytes.post.zero_()
        spikes, state = unit(x.clone().requires_grad_())
        gradient = torch.autograd.grad(spikes.sum() + state.v.sum() + state.a.sum(), unit.weight)[0]
        found.append((spikes, state.v, state.a, gradient))
    for loop, parallel in zip(*found, strict=True):
        torch.testing.assert_close(loop, parallel)


def test_a_wrapped_leaky_layer_is_the_unit():
    unit, x = unit_of(), signal()
    wrapped = with_astrocytes(LIF(5, tau_mem=1 / math.log(2.0), reset="hard")).double()
    wrapped.astrocytes.load_state_dict(unit.astrocytes.state_dict())
    # with W = 1 the current is the input, which is what the wrapped layer's astrocytes hear
    with torch.no_grad():
        unit.weight.copy_(torch.eye(5))
    for use_post in (True, False):
        unit.astrocytes.use_post = wrapped.astrocytes.use_post = use_post
        spikes, state = wrapped(3 * x)
        expected, after = unit(3 * x)
        assert expected.sum() > 5
        assert torch.equal(spikes, expected)
        torch.testing.assert_close(state.a, after.a)


@pytest.mark.parametrize("use_post", [True, False])
def test_any_layer_can_be_wrapped_and_split(use_post):
    layer = RecurrentLIF(5, weight_gain=2.0, generator=torch.Generator().manual_seed(2))
    wrapped = with_astrocytes(layer, use_post=use_post).double()
    x = 3 * signal()
    whole, _ = wrapped(x)
    first, state = wrapped(x[:5])
    second, _ = wrapped(x[5:], state)
    assert torch.equal(torch.cat([first, second]), whole)
    assert not torch.equal(whole, layer(x)[0])


def test_a_layer_in_a_stack():
    net = Sequential(torch.nn.Linear(3, 5), AstrocyteUnit(5), with_astrocytes(LIF(5)), torch.nn.Linear(5, 2))
    out, states = net(torch.rand(4, 2, 3))
    assert out.shape == (4, 2, 2)
    assert net(torch.rand(1, 2, 3), states)[0].shape == (1, 2, 2)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"tau_range": (150.0, 2.0)}, "time constants"),
        ({"tau_range": (1.0, 10.0)}, "longer than dt"),
        ({"rank": 0}, "rank"),
        ({"rank": 6}, "rank"),
        ({"use_pre": False, "use_post": False}, "hear nothing"),
        ({"gain": False, "bias": False}, "act on nothing"),
        ({"tau_mem": 0.0}, "membrane"),
        ({"units": 0}, "at least one"),
    ],
)
def test_settings_out_of_range_are_refused(options, said):
    with pytest.raises(RangeError, match=said):
        AstrocyteUnit(**({"units": 5} | options))


def test_inputs_that_do_not_fit_are_refused():
    unit = AstrocyteUnit(5)
    _, state = unit(torch.rand(2, 3, 5))
    with pytest.raises(ShapeError, match="v of the state"):
        unit(torch.rand(2, 4, 5), state)
    with pytest.raises(ShapeError, match="at least one step"):
        unit(torch.rand(0, 3, 5))
    with pytest.raises(ShapeError, match="call step"):
        unit(torch.rand(3, 5))
    with pytest.raises(DtypeError, match="floating point"):
        unit(torch.ones(2, 3, 5, dtype=torch.long))
    with pytest.raises(UnsupportedError, match="no state"):
        with_astrocytes(torch.nn.Linear(5, 5))
    with pytest.raises(UnsupportedError, match="one dimension"):
        with_astrocytes(LIF((2, 5)))
    with pytest.raises(ShapeError, match="how many units"):
        with_astrocytes(Sequential(LIF(5)))
    assert with_astrocytes(Sequential(LIF(5)), 5)(torch.rand(2, 3, 5))[0].shape == (2, 3, 5)


def test_calcium_tends_to_what_it_hears():
    astrocytes = Astrocytes(3, tau_range=(5.0, 20.0), use_post=False, listen=0.7)
    calcium, _ = astrocytes(torch.full((400, 1, 3), 2.0))
    torch.testing.assert_close(calcium[-1, 0], torch.full((3,), 1.4))
