"""The frame, by two small models made for it: one with several inputs, one that emits a potential, not a spike."""

from typing import NamedTuple

import pytest
import torch
from torch import Tensor
from torch.func import grad, vmap

from plexus.errors import DtypeError, ShapeError, UnsupportedError
from plexus.kernels._dialect import clip, exp
from plexus.kernels._frame import PORT, Dynamics, options_from, options_key
from plexus.kernels._neuron import Neuron
from plexus.kernels._products import SparseWeight
from plexus.units import Port


class Conductances(NamedTuple):
    v: Tensor
    e: Tensor
    i: Tensor
    z: Tensor


def conductance_step(x, y, v, e, i, z, decay, threshold, reversal, g, b, low, high, scale, spike, o):
    e = decay * e + x
    i = decay * i + y
    open = exp(0.0 - scale * (e + i))
    v = open * v + (1.0 - open) * e - i * (v - reversal)
    z = spike(v - threshold)
    if o.port:
        z = clip(g * z + b, low, high)
    v = v * (1.0 - z)
    return z, v, e, i, z


def conductance_adjoint(
    x, y, v, e, i, z, decay, threshold, reversal, g, b, low, high, scale, ds, dv, de, di, dz, spike, slope, o
):
    f = decay * e + x
    h = decay * i + y
    open = exp(0.0 - scale * (f + h))
    m = open * v + (1.0 - open) * f - h * (v - reversal)
    s = spike(m - threshold)
    if o.port:
        a = g * s + b
        s = clip(a, low, high)
    dm = dv * (1.0 - s)
    ds = ds + dz - dv * m
    if o.port:
        ds = ds * g
    du = ds * slope(m - threshold)
    dm = dm + du
    closing = 0.0 - scale * open * (dm * (v - f))
    df = de + dm * (1.0 - open) + closing
    dh = di - dm * (v - reversal) + closing
    return df, dh, dm * (open - h), df * decay, dh * decay, 0.0, df * e + dh * i, 0.0 - du


CONDUCTANCE = Dynamics(
    name="test_conductance",
    step=conductance_step,
    adjoint=conductance_adjoint,
    inputs=("x", "y"),
    states=("v", "e", "i", "z"),
    echo="z",
    parameters=("decay", "threshold"),
    settings=("reversal", *PORT),
    constants=("scale",),
)


class Potential(NamedTuple):
    v: Tensor


def integrate(x, v, decay, spike, o):
    v = decay * v + x
    if o.squared:
        out = v * v
    else:
        out = v
    return out, v


def integrate_adjoint(x, v, decay, d_out, dv, spike, slope, o):
    if o.squared:
        dv = dv + d_out * 2.0 * (decay * v + x)
    else:
        dv = dv + d_out
    return dv, dv * decay, dv * v


INTEGRATOR = Dynamics(
    name="test_integrator",
    step=integrate,
    adjoint=integrate_adjoint,
    states=("v",),
    parameters=("decay",),
    options={"squared": False},
)

conductance = Neuron(CONDUCTANCE, Conductances)
integrator = Neuron(INTEGRATOR, Potential)


def numbers(dtype=torch.float64, **more):
    return {"decay": torch.tensor([0.5, 0.7, 0.9], dtype=dtype), "threshold": 0.4, "reversal": -0.5, **more}


def run(inputs, backend, dtype=torch.float64, **more):
    leaves = [x.clone().requires_grad_() for x in inputs]
    given = numbers(dtype)
    given["decay"].requires_grad_()
    start = Conductances(*(torch.full((2, 3), 0.1 * k, dtype=dtype).requires_grad_() for k in range(4)))
    out, state = conductance(leaves, start, given, constants=(0.3,), backend=backend, **more)
    loss = (out * torch.arange(out.numel()).view(out.shape).sin()).sum() + sum(s.square().sum() for s in state)
    found = torch.autograd.grad(loss, [*leaves, given["decay"], *start[:3]])
    return out, state, found


class TestSeveralInputs:
    @pytest.mark.parametrize("port", [None, Port(gain=torch.tensor([1.0, 0.0, 0.5]))], ids=["plain", "ported"])
    @pytest.mark.parametrize("layout", ["dense", "constant", "transposed"])
    def test_fused_loop_equals_reference(self, port, layout):
        x, y = torch.rand(2, 9, 2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        if layout == "constant":
            y = y[:1].expand(y.shape)
        if layout == "transposed":
            y = y.transpose(1, 2).contiguous().transpose(1, 2)
        fused, eager = (run([x, y], backend, port=port) for backend in ("fused", "eager"))
        assert torch.equal(fused[0], eager[0])
        assert 0 < fused[0].count_nonzero() < fused[0].numel()
        for a, b in zip((*fused[1], *fused[2]), (*eager[1], *eager[2]), strict=True):
            torch.testing.assert_close(a, b)

    def test_gradients_are_true(self):
        inputs = [torch.rand(5, 2, 3, dtype=torch.float64).requires_grad_() for _ in range(2)]
        decay = torch.rand(3, dtype=torch.float64).requires_grad_()

        def loop(x, y, decay):
            given = {**numbers(), "decay": decay}
            out, state = conductance([x, y], None, given, constants=(0.3,), smooth=True, backend="fused")
            return out, *state

        assert torch.autograd.gradcheck(loop, (*inputs, decay))

    def test_gradients_per_sample(self):
        x, y = torch.rand(2, 5, 4, 3, dtype=torch.float64)

        def loss(x, y):
            out, state = conductance([x, y], None, numbers(), constants=(0.3,))
            return (out.sum(0) + state.v).square().sum()

        found = vmap(grad(loss, argnums=1), in_dims=1, out_dims=1)(x.unsqueeze(2), y.unsqueeze(2)).squeeze(2)
        whole = y.clone().requires_grad_()
        torch.testing.assert_close(found, torch.autograd.grad(loss(x, whole), whole)[0])

    def test_gradient_of_a_setting_runs_the_reference(self):
        x = torch.rand(5, 2, 3, dtype=torch.float64)
        reversal = torch.zeros(3, dtype=torch.float64, requires_grad=True)
        given = numbers(reversal=reversal)
        assert torch.autograd.grad(conductance([x, x], None, given, constants=(0.3,))[1].v.sum(), reversal)[0].any()
        with pytest.raises(UnsupportedError, match="of a setting"):
            conductance([x, x], None, given, constants=(0.3,), backend="fused")

    def test_inputs_that_do_not_match(self):
        x = torch.rand(5, 2, 3)
        with pytest.raises(ShapeError, match="takes other inputs"):
            conductance(x, None, numbers(), constants=(0.3,))
        with pytest.raises(ShapeError, match="y does not fit x"):
            conductance([x, x[:4]], None, numbers(), constants=(0.3,))
        with pytest.raises(DtypeError, match="y has another dtype"):
            conductance([x, x.double()], None, numbers(), constants=(0.3,))


class TestNumbersOfUnitsInSeveralDimensions:
    def test_gradients_have_the_shape_of_the_units(self):
        x = torch.rand(4, 2, 3, 2, dtype=torch.float64).requires_grad_()
        decay = torch.rand(3, 1, dtype=torch.float64).requires_grad_()
        assert torch.autograd.gradcheck(
            lambda x, decay: integrator(x, None, {"decay": decay.expand(3, 2)}, backend="fused")[0], (x, decay)
        )


class TestOutputThatIsNoSpike:
    @pytest.mark.parametrize("squared", [False, True])
    def test_it_is_what_the_step_returns(self, squared):
        x = torch.rand(6, 2, 3, dtype=torch.float64).requires_grad_()
        decay = torch.rand(3, dtype=torch.float64).requires_grad_()

        def loop(x, decay):
            options = {"squared": squared}
            out, state = integrator(x, None, {"decay": decay}, options=options, backend="fused")
            return out, state.v

        out, v = loop(x, decay)
        expected, trace = torch.zeros(2, 3, dtype=torch.float64), []
        for current in x:
            expected = decay * expected + current
            trace.append(expected.square() if squared else expected)
        torch.testing.assert_close(out, torch.stack(trace))
        torch.testing.assert_close(v, expected)
        assert torch.autograd.gradcheck(loop, (x, decay))

    def test_a_model_without_port_refuses_one(self):
        with pytest.raises(UnsupportedError, match="no port"):
            integrator(torch.rand(4, 2, 3), None, {"decay": 0.5}, port=Port(gain=torch.zeros(3)))


class TestRecurrence:
    """Recurrent weights of their own for each input of a model."""

    x, y = torch.rand(2, 8, 2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2))

    def test_fused_loop_equals_reference(self):
        results = []
        weights = [
            (torch.rand(3, 3, dtype=torch.float64) - 0.3).requires_grad_(),
            SparseWeight.of(torch.rand(3, 3, dtype=torch.float64)),
        ]
        for backend in ("fused", "eager"):
            leaves = [t.clone().requires_grad_() for t in (self.x, self.y)]
            out, state = conductance(leaves, None, numbers(), constants=(0.3,), recurrent=weights, backend=backend)
            loss = (out * self.x).sum() + state.v.sum()
            results.append((out, *state, *torch.autograd.grad(loss, [*leaves, weights[0]])))
        assert torch.equal(results[0][0], results[1][0])
        assert results[0][-1].any()
        torch.testing.assert_close(results[0], results[1])

    def test_one_input_alone(self):
        weight = torch.rand(3, 3, dtype=torch.float64)
        start = Conductances(
            *(torch.zeros(2, 3, dtype=torch.float64) for _ in range(3)), torch.rand(2, 3, dtype=torch.float64).round()
        )
        one = self.x[:1].clone()
        both, _ = conductance([one, self.y[:1]], start, numbers(), constants=(0.3,), recurrent=[weight, None])
        moved, _ = conductance([one + start.z @ weight.T, self.y[:1]], start, numbers(), constants=(0.3,))
        assert torch.equal(both, moved)
        with pytest.raises(ShapeError, match="do not match the inputs"):
            conductance([self.x, self.y], None, numbers(), constants=(0.3,), recurrent=weight)

    def test_a_model_that_remembers_no_output(self):
        with pytest.raises(match="does not remember"):
            integrator(self.x, None, {"decay": 0.5}, recurrent=torch.zeros(3, 3).double())


def test_options_survive_their_key():
    key = options_key(INTEGRATOR, {"squared": True, "surrogate": "sigmoid", "inclusive": False})
    o = options_from(INTEGRATOR, key)
    assert (o.squared, o.surrogate, o.inclusive, o.port, o.smooth) == (True, "sigmoid", False, False, False)
    assert INTEGRATOR.carried(o) == ("v",)
    assert CONDUCTANCE.carried(o) == ("v", "e", "i")
    assert CONDUCTANCE.used(o) == ("decay", "threshold", "reversal")
