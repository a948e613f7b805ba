"""Triton kernels do what the eager reference does: on a GPU, or on the CPU in Triton's interpreter.

`test_triton.py` runs this file in a process of its own, because `TRITON_INTERPRET=1` must be set before Triton is
imported. A model that is new is added to `CASES`.
"""

import os

import pytest
import torch

from plexus import nn
from plexus.kernels import BACKENDS, Backend, LIFState, SparseWeight, _triton, _triton_recurrent, lif
from plexus.kernels._adex_model import ADEX_DYNAMICS
from plexus.kernels._alif_model import ALIF_DYNAMICS
from plexus.kernels._coba_model import COBA_DYNAMICS
from plexus.kernels._cuba_model import CUBA_DYNAMICS
from plexus.kernels._frame import PORT, eager_loop, options_from, options_key, spike_function
from plexus.kernels._izhikevich_model import IZHIKEVICH_DYNAMICS
from plexus.kernels._leaky_model import LEAKY_DYNAMICS
from plexus.kernels._lif_model import LIF_DYNAMICS
from plexus.kernels._meta_model import META_DYNAMICS
from plexus.kernels._operator import filled_grads, summed_over_samples
from plexus.kernels._resonate_model import BALANCED_DYNAMICS, RESONATE_DYNAMICS
from plexus.kernels._signed_if_model import SIGNED_IF_DYNAMICS
from plexus.kernels._two_compartment_model import TWO_COMPARTMENT_DYNAMICS
from plexus.units import Port

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
STEPS, BATCH, UNITS = 6, 3, 5
PORTS = {"g": 0.8, "b": 0.1, "low": 0.15, "high": 0.85}  # both ends clip


def case(dynamics, start, numbers, constants=(), drive=(0.0, 1.0), **options):
    """A model at numbers near which it spikes now and then."""
    name = "-".join([dynamics.name, *(k if v is True else f"{k}={v}" for k, v in options.items())])
    return pytest.param(dynamics, start, numbers, constants, drive, options, id=name)


LIF = {"decay": 0.8, "gain": 0.6, "threshold": 0.7, "rest": 0.1, "reset": -0.2}
CUBA = {
    "decay": 0.8, "gain": 0.5, "decay_syn": 0.6, "decay_rise": 0.4, "gain_syn": 0.7, "threshold": 0.8, "rest": 0.1,
    "reset": 0.0,
}  # fmt: skip
ALIF = {
    "decay": 0.8, "gain": 0.7, "threshold": 0.6, "rest": 0.1, "reset": 0.0, "decay_a": 0.7, "beta": 0.2,
    "decay_w": 0.8, "coupling": 0.1, "kick": 0.1,
}  # fmt: skip
COBA = {
    "rate": 0.2, "decay_exc": 0.7, "decay_inh": 0.8, "e_exc": 3.0, "e_inh": -0.5, "rest": 0.0, "threshold": 0.9,
    "reset": 0.1,
}  # fmt: skip
ADEX = {
    "per_c": 0.004, "leak": 30.0, "e_leak": -70.0, "v_threshold": -50.0, "delta": 2.0, "a": 4.0, "per_w": 0.01,
    "jump": 80.0, "reset": -58.0, "peak": 0.0,
}  # fmt: skip
IZHIKEVICH = {"rate": 0.02, "coupling": 0.2, "reset": -65.0, "jump": 8.0, "peak": 30.0}
DENDRITE = {
    "decay": 0.8, "gain": 0.5, "decay_dend": 0.7, "gain_dend": 0.5, "to_soma": 0.6, "to_dend": 0.3, "plateau": 0.9,
    "threshold_dend": 0.4, "width_dend": 0.2, "backprop": 0.3, "threshold": 0.8, "reset": 0.0,
}  # fmt: skip
META = {
    "decay": 0.7, "gain": 0.8, "threshold": 0.6, "reset": 0.1, "temperature": 0.3, "recovery": 0.2, "coupling": 0.3,
    "jump": 0.2,
}  # fmt: skip
RESONATE = {"along": 0.8, "across": 0.4, "threshold": 0.3, "reset": 0.1}
BALANCED = {"turn": 0.5, "damping": -0.2, "brake": 0.3, "decay": 0.8, "threshold": 0.6}

CASES = [
    case(LIF_DYNAMICS, 0.3, LIF, (2.0,), reset="soft"),
    case(LIF_DYNAMICS, 0.3, LIF, (2.0,), reset="hard", delayed=True, rest=True, surrogate="fast_sigmoid"),
    case(LIF_DYNAMICS, 0.3, LIF, (2.0,), reset="soft", refractory=True, port=True, detach=True, surrogate="triangular"),
    case(LIF_DYNAMICS, 0.3, LIF, (2.0,), reset="hard", smooth=True, surrogate="arctan"),
    case(LIF_DYNAMICS, 0.3, LIF, (2.0,), reset="none", smooth=True, surrogate="gaussian"),
    case(LEAKY_DYNAMICS, 0.3, {"decay": 0.8, "gain": 0.4, "rest": 0.2}),
    case(ALIF_DYNAMICS, 0.3, ALIF, (2.0,), threshold_adapts=True, current_adapts=True, surrogate="sigmoid"),
    case(CUBA_DYNAMICS, 0.3, CUBA, (2.0,), double=True, port=True, surrogate="gaussian"),
    case(COBA_DYNAMICS, 0.3, COBA, (2.0,), refractory=True),
    case(ADEX_DYNAMICS, -52.0, ADEX, (2.0,), drive=(0.0, 2000.0), surrogate="triangular"),
    case(IZHIKEVICH_DYNAMICS, -50.0, IZHIKEVICH, (2.0, 1.0), drive=(0.0, 30.0)),
    case(RESONATE_DYNAMICS, 0.3, RESONATE, (2.0,), reset="hard"),
    case(BALANCED_DYNAMICS, 0.3, BALANCED),
    case(SIGNED_IF_DYNAMICS, 0.3, {"threshold": 0.7}, (0.0,), drive=(-1.0, 1.0)),
    case(TWO_COMPARTMENT_DYNAMICS, 0.3, DENDRITE, (2.0,)),
    case(META_DYNAMICS, 0.3, META, (3.0,), drive=(0.0, 4.0), stochastic=True, quadratic=True),
]


def equal(found, expected, dtype):
    """To 1e-5 of the largest number in single precision, to rounding in double."""
    near = 1e-5 if dtype == torch.float32 else 1e-10
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= near * expected.abs().max().clamp(min=1.0)


def with_dtypes(cases):
    """Every case in single precision, every eighth in double."""
    kinds = ((torch.float32, "single", 1), (torch.float64, "double", 8))
    return [pytest.param(*c.values, d, id=f"{c.id}-{name}") for d, name, each in kinds for c in cases[::each]]


@pytest.mark.parametrize(("dynamics", "start", "numbers", "constants", "drive", "options", "dtype"), with_dtypes(CASES))
def test_kernels_equal_the_eager_reference(dynamics, start, numbers, constants, drive, options, dtype):
    generator = torch.Generator().manual_seed(7)

    def draw(*shape, low=0.0, high=1.0):
        drawn = low + (high - low) * torch.rand(shape, generator=generator, dtype=torch.float64)
        return drawn.to(DEVICE, dtype)

    key = options_key(dynamics, options)
    o = options_from(dynamics, key)
    inputs = [draw(STEPS, BATCH, UNITS, low=drive[0], high=drive[1]).requires_grad_() for _ in dynamics.inputs]
    states = [start * draw(BATCH, UNITS, low=0.8, high=1.2).requires_grad_() for _ in dynamics.states]
    states = [s.detach().requires_grad_() for s in states]
    counters = [draw(BATCH, UNITS).round() for _ in dynamics.counters]
    # every other number is one for all units
    columns = [
        (numbers | PORTS)[name] * draw(1 if k % 2 else UNITS, low=0.95, high=1.05)
        for k, name in enumerate((*dynamics.parameters, *dynamics.settings))
    ]
    columns = [c.requires_grad_(k < len(dynamics.parameters)) for k, c in enumerate(columns)]
    width, height = 0.4 * max(1.0, abs(start) / 10), 0.7
    memory = [*states, *counters]

    expected = eager_loop(dynamics, inputs, memory, columns, constants, o, spike_function(o, width, height, None))
    found = _triton.forward(dynamics, inputs, memory, columns, [*constants, width, height], key)
    if not o.smooth and dynamics.echo is not None:
        assert torch.equal(found[0], expected[0])
        assert 0 < (found[0] > 0.5).double().mean() < 1
    names = [n for n in dynamics.memory if n != dynamics.echo]
    by_name = dict(zip(("out", *dynamics.memory), expected, strict=True))
    for name, got in zip(("out", *names), found, strict=True):
        equal(got, by_name[name].detach(), dtype)

    differentiable = [n for n in ("out", *dynamics.states) if n != dynamics.echo]
    grads = {n: draw(*by_name[n].shape, low=-1.0) for n in differentiable}
    loss = sum((by_name[n] * g).sum() for n, g in grads.items())
    leaves = [*inputs, *states, *columns[: len(dynamics.parameters)]]
    wanted = torch.autograd.grad(loss, leaves, allow_unused=True, materialize_grads=True)
    after = [grads[n] for n in dynamics.states if n != dynamics.echo]
    grad, grad_states = filled_grads(dynamics, inputs[0], memory, [grads["out"], *after])
    detached = [[t.detach() for t in group] for group in (inputs, memory, columns)]
    got = _triton.backward(dynamics, *detached, [*constants, width, height], key, grad, grad_states, True)
    first = len(inputs) + len(states)
    summed = summed_over_samples(got[first:], columns)[: len(dynamics.parameters)]
    carried = dynamics.carried(o)
    for name, g, w in zip((*dynamics.inputs, *dynamics.states), got, wanted, strict=False):
        if name in dynamics.inputs or name in carried:
            equal(g, w, dtype)
    for name, g, w in zip(dynamics.parameters, summed, wanted[first:], strict=True):
        if name in dynamics.used(o):
            equal(g, w, dtype)


@pytest.fixture
def backend():
    """Triton's kernels as the backend of the device, as they are on a GPU."""
    before = BACKENDS.get(DEVICE)
    loops = _triton.forward, _triton.backward
    recurrent = _triton_recurrent.recurrent_forward, _triton_recurrent.recurrent_backward
    BACKENDS[DEVICE] = Backend("triton", (torch.float32, torch.float64), *loops, *recurrent)
    yield
    del BACKENDS[DEVICE]
    if before is not None:
        BACKENDS[DEVICE] = before


@pytest.mark.usefixtures("backend")
class TestAsTheBackend:
    def run(self, x, backend, **more):
        x = x.detach().to(DEVICE).requires_grad_()
        decay = torch.linspace(0.5, 0.95, x.shape[-1], device=DEVICE).requires_grad_()
        out, state = lif(x, decay=decay, threshold=0.8, backend=backend, **more)
        weights = torch.arange(out.numel(), device=DEVICE).view(out.shape).sin()
        loss = (out * weights).sum() + (state.v + x.sum()).square().sum()
        return out, state, torch.autograd.grad(loss, [x, decay], allow_unused=True, materialize_grads=True)

    @pytest.mark.parametrize("many", [_triton.MANY, 0])
    def test_more_columns_than_a_program_owns(self, many, monkeypatch):
        monkeypatch.setattr(_triton, "MANY", many)
        x = torch.rand(2, 3, 50, generator=torch.Generator().manual_seed(2))  # two programs, the second not full
        assert _triton.BLOCK < 3 * 50 < 2 * _triton.BLOCK
        fused, eager = (self.run(x, backend) for backend in ("fused", "eager"))
        assert torch.equal(fused[0], eager[0])
        torch.testing.assert_close((*fused[1], *fused[2]), (*eager[1], *eager[2]))

    @pytest.mark.parametrize("steps", [1, 7])
    def test_backward_in_stretches_of_time(self, steps, monkeypatch):
        x = torch.rand(steps, 2, 3, generator=torch.Generator().manual_seed(9))
        whole = self.run(x, "fused", delayed_reset=True)[2]
        monkeypatch.setattr(_triton, "LARGE", 0)
        in_stretches = self.run(x, "fused", delayed_reset=True)[2]
        assert all(torch.equal(a, b) for a, b in zip(whole, in_stretches, strict=True))

    @pytest.mark.parametrize("layout", ["dense", "constant", "transposed", "no time", "nobody"])
    def test_any_layout(self, layout):
        x = torch.rand(6, 4, 3, generator=torch.Generator().manual_seed(3))
        x = {
            "dense": x,
            "constant": x[:1].expand(x.shape),
            "transposed": x.transpose(0, 1),
            "no time": x[:0],
            "nobody": x[:, :0],
        }[layout]
        fused, eager = (self.run(x, backend) for backend in ("fused", "eager"))
        assert torch.equal(fused[0], eager[0])
        torch.testing.assert_close((*fused[1], *fused[2]), (*eager[1], *eager[2]))

    def test_a_sequence_in_two_parts(self):
        x = torch.rand(8, 2, 3, generator=torch.Generator().manual_seed(4)).to(DEVICE)
        whole, end = lif(x, decay=0.9, backend="fused")
        first, state = lif(x[:3], decay=0.9, backend="fused")
        second, last = lif(x[3:], state, decay=0.9, backend="fused")
        assert torch.equal(whole, torch.cat([first, second]))
        assert torch.equal(end.v, last.v)

    def test_an_edited_unit(self):
        x = 2 * torch.rand(6, 2, 3, generator=torch.Generator().manual_seed(5))
        port = Port(gain=torch.tensor([1.0, 0.0, 0.5]))
        fused, eager = (self.run(x, backend, port=port) for backend in ("fused", "eager"))
        assert torch.equal(fused[0], eager[0])
        assert not fused[0][..., 1].any()
        torch.testing.assert_close(fused[2], eager[2])

    def test_a_surrogate_of_infinite_width(self):
        x = torch.rand(6, 2, 3, generator=torch.Generator().manual_seed(6))
        fused, eager = (self.run(x, backend, surrogate="straight_through") for backend in ("fused", "eager"))
        torch.testing.assert_close(fused[2], eager[2])
        assert fused[2][0].any()


@pytest.mark.usefixtures("backend")
class TestRecurrence:
    """Double precision: a product rounds as its library likes, and a spike must not hang on that."""

    def check(self, call, inputs, weights, monkeypatch):
        results = []
        for backend, large in (("fused", _triton.LARGE), ("fused", 0), ("eager", 0)):
            monkeypatch.setattr(_triton, "LARGE", large)
            leaves = [t.detach().to(DEVICE).requires_grad_() for t in (*inputs, *weights)]
            out, state = call(leaves[: len(inputs)], leaves[len(inputs) :], backend)
            loss = (out * torch.arange(out.numel(), device=DEVICE).view(out.shape).sin()).sum()
            loss = loss + sum(s.square().sum() for s in state)
            results.append([out, *state, *torch.autograd.grad(loss, leaves, allow_unused=True)])
        whole, stretches, eager = results
        assert torch.equal(whole[0], eager[0])
        assert 0 < whole[0].mean() < 1
        assert whole[-1].any()
        for a, b, c in zip(whole, stretches, eager, strict=True):
            assert torch.equal(a, b)
            torch.testing.assert_close(a, c)

    @pytest.fixture
    def draw(self):
        generator = torch.Generator().manual_seed(8)
        return lambda *shape: torch.rand(shape, generator=generator, dtype=torch.float64)

    def test_dense_weight_and_units_in_two_dimensions(self, draw, monkeypatch):
        self.check(
            lambda x, w, backend: lif(x[0], decay=0.8, recurrent=w[0], refractory=1, backend=backend),
            [draw(5, 2, 3, 2)],
            [draw(6, 6) - 0.4],
            monkeypatch,
        )

    def test_no_time(self, draw):
        x, w = draw(0, 2, 3).to(DEVICE), draw(3, 3).to(DEVICE).requires_grad_()
        start = torch.ones(2, 3, device=DEVICE, dtype=torch.float64, requires_grad=True)
        out, state = lif(x, LIFState(start, start, start), decay=0.8, recurrent=w, backend="fused")
        assert out.shape == x.shape
        assert torch.equal(torch.autograd.grad(state.v.sum(), start)[0], torch.ones_like(start))

    def test_sparse_weight(self, draw, monkeypatch):
        weight = (draw(4, 4) - 0.3) * (draw(4, 4) > 0.5)
        _, starts, targets = (part.to(DEVICE) for part in SparseWeight.of(weight))
        self.check(
            lambda x, w, backend: lif(x[0], decay=0.8, recurrent=SparseWeight(w[0], starts, targets), backend=backend),
            [draw(5, 2, 4)],
            [SparseWeight.of(weight).values],
            monkeypatch,
        )

    def test_a_model_that_carries_its_last_spike(self, draw, monkeypatch):
        def call(x, w, backend):
            numbers = {**ALIF, "beta": torch.linspace(0.1, 0.3, 4, device=DEVICE, dtype=torch.float64)}
            return nn.ALIF.neuron(x, None, numbers, constants=(0.0,), recurrent=w[0], backend=backend)

        self.check(call, [draw(5, 2, 4)], [draw(4, 4) - 0.3], monkeypatch)

    def test_a_weight_for_one_of_two_inputs(self, draw, monkeypatch):
        def call(x, w, backend):
            return nn.COBA.neuron(x, None, COBA, constants=(0.0,), recurrent=[w[0], None], backend=backend)

        self.check(call, [draw(5, 2, 4), 0.2 * draw(5, 2, 4)], [draw(4, 4)], monkeypatch)


def test_port_is_what_the_cases_say():
    assert set(PORTS) == set(PORT)
