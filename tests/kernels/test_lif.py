"""The LIF operator: closed forms, fused loop against eager reference, splitting, ports, transforms and bad input."""

import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.autograd import forward_ad
from torch.func import functional_call, grad, jacrev, jvp, vmap

from plexus import kernels, nn
from plexus.errors import (
    DeviceError,
    DtypeError,
    PlexusError,
    RangeError,
    ShapeError,
    UnknownNameError,
    UnsupportedError,
)
from plexus.kernels import SURROGATES, LIFState, Surrogate, lif
from plexus.units import Port

VARIANTS = {
    "soft": {},
    "hard": {"reset": "hard", "reset_value": 0.1},
    "none": {"reset": "none"},
    "delayed soft": {"delayed_reset": True},
    "delayed hard, detached": {"delayed_reset": True, "reset": "hard", "detach_reset": True},
    "refractory": {"refractory": 2, "reset": "hard"},
    "delayed and refractory": {"refractory": 1, "delayed_reset": True},
    "resting": {"rest": -0.3, "detach_reset": True},
    "inclusive, ported": {"inclusive": True, "port": Port(gain=torch.tensor(0.5), high=torch.tensor(0.75))},
}
FEW = ("delayed hard, detached",)


def given_layout(x: torch.Tensor, layout: str) -> torch.Tensor:
    """The same numbers in another place of memory."""
    if layout == "transposed":
        return x.transpose(0, 1).contiguous().transpose(0, 1)
    if layout == "units first":
        return x.permute(2, 0, 1).contiguous().permute(1, 2, 0)
    if layout == "every second":
        wide = torch.zeros(2 * x.shape[0], *x.shape[1:], dtype=x.dtype)
        wide[::2] = x
        return wide[::2]
    if layout == "constant":
        return x[:1].expand(x.shape)
    return x


def run(backend: str, x, state, decay, threshold, variant):
    leaves = [t.detach().clone().requires_grad_() for t in (state.v, state.z, decay, threshold)]
    x = x.detach().requires_grad_()
    v, z, decay, threshold = leaves
    spikes, after = lif(
        x, LIFState(v, z, state.r), decay=decay, gain=1 - decay, threshold=threshold, backend=backend, **variant
    )
    weight = torch.linspace(-1, 2, spikes.numel(), dtype=x.dtype).view(spikes.shape).sin()
    loss = (spikes * weight).sum() + (after.v * weight.sum(0)).sum() + after.z.square().sum()
    return spikes, after, torch.autograd.grad(loss, [x, *leaves], allow_unused=True)


@pytest.mark.parametrize(
    ("name", "dtype"),
    [(name, torch.float32) for name in VARIANTS] + [(name, torch.float64) for name in FEW],
    ids=lambda value: str(value).replace("torch.", ""),
)
@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    steps=st.integers(1, 12),
    batch=st.integers(1, 5),
    units=st.sampled_from([3, 16, 70]),
    layout=st.sampled_from(["dense", "transposed", "units first", "every second", "constant"]),
    seed=st.integers(0, 2**20),
)
def test_fused_loop_equals_reference(name, dtype, steps, batch, units, layout, seed):
    generator = torch.Generator().manual_seed(seed)

    def uniform(*shape):
        return torch.rand(shape, generator=generator, dtype=dtype)

    x = given_layout(uniform(steps, batch, units) * 3, layout)
    decay = 0.5 + 0.5 * uniform(units)
    threshold = 0.5 + uniform(units)
    z = (uniform(batch, units) > 0.5).to(dtype)
    state = LIFState(uniform(batch, units) * 2, z, torch.zeros_like(z))
    fused = run("fused", x, state, decay, threshold, VARIANTS[name])
    eager = run("eager", x, state, decay, threshold, VARIANTS[name])
    assert torch.equal(fused[0], eager[0])
    assert all(torch.equal(a, b) for a, b in zip(fused[1], eager[1], strict=True))
    tolerance = {torch.float32: 2e-4, torch.float64: 1e-11}[dtype]
    for a, b in zip(fused[2], eager[2], strict=True):
        zero = torch.zeros((), dtype=dtype)  # a gradient that cannot be and one that is zero are the same
        shape = (a if a is not None else b if b is not None else zero).shape
        a, b = (zero.expand(shape) if g is None else g for g in (a, b))
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", VARIANTS)
def test_pieces_equal_the_whole_bit_for_bit(name):
    x = torch.rand(23, 3, 70) * 2
    decay = torch.full((70,), 0.8)
    whole, after = lif(x, decay=decay, gain=0.7, **VARIANTS[name])
    assert 0 < whole.count_nonzero() < whole.numel()
    pieces, state = [], None
    for piece in x.split([1, 7, 0, 9, 6]):
        spikes, state = lif(piece, state, decay=decay, gain=0.7, **VARIANTS[name])
        pieces.append(spikes)
    assert torch.equal(torch.cat(pieces), whole)
    assert all(torch.equal(a, b) for a, b in zip(state, after, strict=True))


@pytest.mark.parametrize("name", FEW)
def test_gradients_flow_through_pieces(name):
    x = (torch.rand(12, 2, 5, dtype=torch.float64) * 2).requires_grad_()
    whole, after = lif(x, decay=0.8, **VARIANTS[name])
    expected = torch.autograd.grad((whole * x.detach()).sum() + after.v.sum(), x)[0]
    first, state = lif(x[:5], decay=0.8, **VARIANTS[name])
    second, state = lif(x[5:], state, decay=0.8, **VARIANTS[name])
    found = torch.autograd.grad((torch.cat([first, second]) * x.detach()).sum() + state.v.sum(), x)[0]
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_threads_change_nothing():
    x = torch.rand(40, 8, 300, requires_grad=True)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            spikes, state = lif(x, decay=0.9)
            results.append((spikes, state.v, *torch.autograd.grad(spikes.sum() + state.v.sum(), x)))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_long_sequences_and_wide_layers_cross_chunks():
    for shape in ((3, 2, 3000), (3000, 1, 130)):
        x = torch.rand(shape) * 0.5
        decay = torch.rand(shape[2]) * 0.5 + 0.4
        results = []
        for backend in ("fused", "eager"):
            leaf = x.clone().requires_grad_()
            spikes, state = lif(leaf, decay=decay, backend=backend)
            results.append((spikes, state.v, torch.autograd.grad(spikes.sum(), leaf)[0]))
        assert torch.equal(results[0][0], results[1][0])
        assert torch.equal(results[0][1], results[1][1])
        torch.testing.assert_close(results[0][2], results[1][2])


class TestClosedForms:
    def test_below_threshold_the_membrane_charges_geometrically(self):
        x = torch.full((30, 1, 1), 0.05, dtype=torch.float64)
        for steps in (1, 7, 30):
            spikes, state = lif(x[:steps], decay=0.9)
            assert not spikes.any()
            assert state.v.item() == pytest.approx(0.05 * (1 - 0.9**steps) / 0.1, rel=1e-12)

    def test_scaled_input_is_the_potential_it_leads_to(self):
        _, state = lif(torch.full((400, 1, 1), 0.7, dtype=torch.float64), decay=0.9, gain=0.1)
        assert state.v.item() == pytest.approx(0.7, rel=1e-12)

    def test_membrane_decays_to_rest(self):
        state = LIFState(torch.ones(1, 1), torch.zeros(1, 1), torch.zeros(1, 1))
        _, state = lif(torch.zeros(5, 1, 1), state, decay=0.5, threshold=2.0, rest=-1.0)
        assert state.v.item() == pytest.approx(-1 + 2 * 0.5**5)
        _, rested = lif(torch.zeros(3, 1, 1), decay=0.5, rest=-1.0)
        assert rested.v.item() == -1

    @pytest.mark.parametrize("current", [0.3, 0.21, 0.13])
    def test_integrator_fires_at_the_period_of_its_current(self, current):
        hard, _ = lif(torch.full((200, 1, 1), current, dtype=torch.float64), decay=1.0, reset="hard")
        period = math.floor(1 / current) + 1  # hard reset throws the excess away; the threshold must be exceeded
        assert hard.flatten().nonzero().flatten().diff().unique().tolist() == [period]
        soft, state = lif(torch.full((200, 1, 1), current, dtype=torch.float64), decay=1.0)
        assert soft.sum().item() + state.v.item() == pytest.approx(200 * current)  # soft reset loses nothing

    @pytest.mark.parametrize("refractory", [1, 2, 5])
    def test_refractory_time_bounds_the_interval(self, refractory):
        for delayed in (False, True):
            spikes, _ = lif(
                torch.full((60, 1, 1), 50.0), decay=0.9, reset="hard", refractory=refractory, delayed_reset=delayed
            )
            assert spikes.flatten().nonzero().flatten().diff().unique().tolist() == [refractory + 1]

    def test_potential_waits_while_refractory(self):
        spikes, state = lif(torch.full((3, 1, 1), 1.5), decay=0.5, refractory=2)
        assert spikes.flatten().tolist() == [1.0, 0.0, 0.0]
        assert state.v.item() == 0.5
        assert state.r.item() == 0

    def test_inclusive_threshold(self):
        x = torch.ones(1, 1, 1)
        assert not lif(x, decay=1.0)[0].any()
        assert lif(x, decay=1.0, inclusive=True)[0].all()

    def test_delay_of_the_reset(self):
        # at once: what is left decays; delayed: what is subtracted does not
        x = torch.tensor([1.5, 0.0]).view(2, 1, 1)
        assert lif(x, decay=0.5)[1].v.item() == 0.25
        assert lif(x, decay=0.5, delayed_reset=True)[1].v.item() == -0.25

    def test_infinite_time_constant_is_an_integrator_and_zero_decay_a_threshold(self):
        x = torch.rand(50, 2, 3)
        assert torch.equal(lif(x, decay=0.0, threshold=0.5, reset="hard")[0], (x > 0.5).float())
        spikes, _ = lif(x, decay=1.0, threshold=1e9, reset="none")
        assert not spikes.any()


class TestPort:
    x = torch.full((20, 1, 3), 0.6)

    @pytest.mark.parametrize("backend", ["fused", "eager"])
    def test_silenced_unit_neither_spikes_nor_resets(self, backend):
        spikes, state = lif(self.x, decay=1.0, port=Port(gain=torch.tensor([1.0, 0.0, 1.0])), backend=backend)
        free, rest = lif(self.x, decay=1.0)
        assert not spikes[..., 1].any()
        assert state.v[0, 1].item() == pytest.approx(12.0, rel=1e-5)
        assert torch.equal(spikes[..., [0, 2]], free[..., [0, 2]])
        assert torch.equal(state.v[:, [0, 2]], rest.v[:, [0, 2]])

    @pytest.mark.parametrize("backend", ["fused", "eager"])
    def test_clamped_unit_resets_at_every_step(self, backend):
        port = Port.on(torch.tensor([False, True, False]), low=1.0)
        spikes, state = lif(self.x, decay=1.0, port=port, backend=backend)
        assert spikes[:, 0, 1].all()
        assert state.v[0, 1].item() == pytest.approx(20 * (0.6 - 1), rel=1e-5)
        refractory, _ = lif(self.x, decay=1.0, port=port, refractory=3, backend=backend)
        assert refractory[:, 0, 1].all()

    def test_half_a_spike_resets_by_half(self):
        spikes, state = lif(torch.full((1, 1, 1), 1.5), decay=1.0, port=Port(gain=torch.tensor(0.5)))
        assert (spikes.item(), state.v.item(), state.z.item()) == (0.5, 1.0, 0.5)

    def test_identity_port_changes_nothing(self):
        x = torch.rand(20, 2, 3)
        assert torch.equal(lif(x, decay=0.9, port=Port(gain=torch.ones(3)))[0], lif(x, decay=0.9, port=None)[0])

    def test_gradient_of_a_gain(self):
        gain = torch.full((1,), 0.7, dtype=torch.float64, requires_grad=True)
        x = torch.rand(9, 2, 1, dtype=torch.float64)

        def total(gain):
            spikes, state = lif(x, decay=0.9, port=Port(gain=gain), smooth=True)
            return spikes.sum() + state.v.sum()

        assert torch.autograd.gradcheck(total, gain)
        with pytest.raises(UnsupportedError, match="no fused loop"):
            lif(x, decay=0.9, port=Port(gain=gain), backend="fused")

    def test_channels_of_feature_maps(self):
        x = torch.rand(10, 2, 3, 4, 5)
        spikes, _ = lif(x, decay=0.9, threshold=0.5, port=Port(gain=torch.tensor([1.0, 0.0, 1.0])))
        assert not spikes[:, :, 1].any()
        assert spikes[:, :, [0, 2]].any()

    def test_port_of_another_size_is_refused(self):
        with pytest.raises(ShapeError):
            lif(self.x, decay=1.0, port=Port(gain=torch.ones(4)))


class TestSurrogates:
    @pytest.mark.parametrize("name", SURROGATES)
    def test_derivative_is_that_of_the_smooth_spike(self, name):
        surrogate = Surrogate(name, width=0.7, height=1.3)
        u = torch.linspace(-2, 2, 41, dtype=torch.float64).requires_grad_()
        slope = torch.autograd.grad(surrogate.smooth(u).sum(), u)[0]
        torch.testing.assert_close(slope, surrogate.derivative(u.detach()))
        assert surrogate.derivative(torch.zeros(())).item() == pytest.approx(1.3)
        assert surrogate.smooth(torch.zeros(())).item() == 0.5

    @pytest.mark.parametrize("name", SURROGATES)
    def test_fused_derivative_over_the_whole_range(self, name):
        u = torch.cat([torch.linspace(-9, 9, 501), torch.logspace(-30, 8, 60), -torch.logspace(-30, 8, 60)])
        surrogate = Surrogate(name, width=0.4)
        x = u.view(1, 1, -1).clone().requires_grad_()
        spikes, _ = lif(x, decay=0.5, threshold=0.0, reset="none", surrogate=surrogate, backend="fused")
        found = torch.autograd.grad(spikes.sum(), x)[0].flatten()
        torch.testing.assert_close(found, surrogate.derivative(u), rtol=3e-6, atol=1e-30)

    @pytest.mark.parametrize("name", ["sigmoid", "gaussian", "triangular"])
    def test_gradients_of_a_smooth_neuron_are_true(self, name):
        surrogate = Surrogate(name, width=1.7, height=0.6)
        x = torch.rand(6, 2, 3, dtype=torch.float64).requires_grad_()
        decay = torch.rand(3, dtype=torch.float64).requires_grad_()
        threshold = torch.full((1,), 0.8, dtype=torch.float64).requires_grad_()
        v = torch.rand(2, 3, dtype=torch.float64).requires_grad_()
        z = torch.rand(2, 3, dtype=torch.float64).requires_grad_()

        def loop(x, decay, threshold, v, z):
            spikes, state = lif(
                x, LIFState(v, z, torch.zeros_like(v)), decay=decay, gain=1 - decay, threshold=threshold,
                surrogate=surrogate, smooth=True, backend="fused",
            )  # fmt: skip
            return spikes, state.v, state.z

        assert torch.autograd.gradcheck(loop, (x, decay, threshold, v, z))

    @pytest.mark.parametrize(
        "variant",
        [
            {"reset": "hard"},
            {"reset": "hard", "delayed_reset": True},
            {"port": Port(gain=torch.tensor([0.5, 1.0, 2.0]), bias=torch.tensor(0.1))},
        ],
        ids=lambda variant: " ".join(variant),
    )
    def test_gradients_of_every_number_of_the_neuron(self, variant):
        x = torch.rand(5, 2, 3, dtype=torch.float64).requires_grad_()
        numbers = torch.rand(5, 3, dtype=torch.float64).requires_grad_()

        def loop(x, numbers):
            decay, gain, threshold, rest, value = numbers
            more = {"reset_value": value} if variant.get("reset") == "hard" else {}
            spikes, state = lif(
                x,
                decay=decay,
                gain=gain,
                threshold=threshold,
                rest=rest,
                smooth=True,
                backend="fused",
                **variant,
                **more,
            )
            return spikes, state.v

        assert torch.autograd.gradcheck(loop, (x, numbers))

    def test_function_as_surrogate(self):
        x = (torch.rand(9, 2, 4, dtype=torch.float64) * 2).requires_grad_()
        named = Surrogate("triangular", width=0.8)
        results = []
        for surrogate in (named, lambda u: torch.relu(1 - u.abs() / 0.8)):
            spikes, _ = lif(x, decay=0.8, surrogate=surrogate)
            results.append((spikes, torch.autograd.grad((spikes * x.detach()).sum(), x)[0]))
        assert torch.equal(results[0][0], results[1][0])
        torch.testing.assert_close(results[0][1], results[1][1])

    def test_bad_surrogates(self):
        with pytest.raises(UnknownNameError, match="did you mean 'arctan'"):
            Surrogate("arctn")
        with pytest.raises(RangeError):
            Surrogate("arctan", width=0.0)
        with pytest.raises(RangeError):
            Surrogate("arctan", height=math.nan)


def loss_of(x, decay):
    spikes, state = lif(x, decay=decay, gain=1 - decay, threshold=0.3)
    return (spikes * torch.arange(1.0, x.shape[0] + 1).view(-1, 1, 1).to(x.dtype)).sum() + state.v.square().sum()


class TestTransforms:
    """Where the fused loop cannot follow, the reference must run: silence or a zero would be a wrong answer."""

    def setup_method(self):
        generator = torch.Generator().manual_seed(3)
        self.x = torch.rand(7, 4, 5, dtype=torch.float64, generator=generator)
        self.decay = torch.rand(5, dtype=torch.float64, generator=generator)
        self.t = torch.randn(self.x.shape, dtype=torch.float64, generator=generator)

    def test_gradients_per_sample(self):
        found = vmap(grad(loss_of, argnums=1), in_dims=(1, None))(self.x.unsqueeze(2), self.decay)
        for sample in range(4):
            decay = self.decay.clone().requires_grad_()
            expected = torch.autograd.grad(loss_of(self.x[:, sample : sample + 1], decay), decay)[0]
            assert expected.abs().sum() > 0.1
            torch.testing.assert_close(found[sample], expected)

    def test_gradients_per_sample_of_a_network(self):
        net = nn.Sequential(torch.nn.Linear(5, 6), nn.LIF(6, 5.0, threshold=0.2), torch.nn.Linear(6, 2)).double()
        weights = {name: p.detach() for name, p in net.named_parameters()}

        def loss(weights, x):
            return functional_call(net, weights, (x.unsqueeze(1),))[0].square().mean()

        found = vmap(grad(loss), in_dims=(None, 1))(weights, self.x)
        for sample in range(4):
            net.zero_grad()
            net(self.x[:, sample : sample + 1])[0].square().mean().backward()
            for name, p in net.named_parameters():
                torch.testing.assert_close(found[name][sample], p.grad)

    @pytest.mark.parametrize("smooth", [False, True])
    def test_forward_mode_agrees_with_reverse_mode(self, smooth):
        def outputs(x):
            spikes, state = lif(x, decay=self.decay, threshold=0.4, smooth=smooth)
            return spikes.sum(0) + state.v

        primal, tangent = jvp(outputs, (self.x,), (self.t,))
        expected = torch.einsum("busvw,svw->bu", jacrev(outputs)(self.x), self.t)
        assert tangent.abs().sum() > 1
        torch.testing.assert_close(tangent, expected)
        torch.testing.assert_close(primal, outputs(self.x))
        with forward_ad.dual_level():
            dual = forward_ad.unpack_dual(outputs(forward_ad.make_dual(self.x, self.t)))
        assert dual.tangent is not None
        torch.testing.assert_close(dual.tangent, expected)

    def test_forward_mode_is_the_true_derivative_of_a_smooth_neuron(self):
        def outputs(x):
            return lif(x, decay=self.decay, threshold=0.4, smooth=True)[0]

        tangent = jvp(outputs, (self.x,), (self.t,))[1]
        step = 1e-6
        numeric = (outputs(self.x + step * self.t) - outputs(self.x - step * self.t)) / (2 * step)
        torch.testing.assert_close(tangent, numeric, rtol=1e-6, atol=1e-7)

    def test_double_backward_of_a_smooth_neuron(self):
        x = self.x[:4, :2, :2].clone().requires_grad_()
        decay = self.decay[:2].clone().requires_grad_()

        def loop(x, decay):
            spikes, state = lif(x, decay=decay, surrogate=Surrogate("sigmoid", width=0.5), smooth=True, backend="fused")
            return spikes, state.v, state.z

        assert torch.autograd.gradgradcheck(loop, (x, decay))

    def test_double_backward_flows_through_the_surrogate(self):
        x = self.x.clone().requires_grad_()
        penalties = []
        for backend in ("fused", "eager"):
            spikes, _ = lif(x, decay=0.8, threshold=0.5, backend=backend)
            slope = torch.autograd.grad(spikes.sum(), x, create_graph=True)[0]
            penalties.append(torch.autograd.grad(slope.square().sum(), x)[0])
        assert penalties[0].abs().sum() > 0
        torch.testing.assert_close(*penalties)

    def test_operator_keeps_the_contract_of_torch_library(self):
        x = self.x.float().requires_grad_()
        zeros = torch.zeros(4, 5)
        numbers = [
            torch.tensor([n], requires_grad=k < 5) for k, n in enumerate((0.9, 1.0, 0.4, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0))
        ]
        arguments = ([x], [zeros, zeros, zeros], numbers, [0.0, 0.3, 1.0], "reset=hard")
        torch.library.opcheck(torch.ops.plexus.lif.default, arguments)


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.stack = nn.Sequential(
            torch.nn.Linear(6, 8), nn.LIF(8, 5.0, threshold=0.3, learn=("tau_mem",)), torch.nn.Linear(8, 2)
        )

    def forward(self, x):
        out, _ = self.stack(x)
        return out.mean(0)


class TestCompilers:
    def test_compile_in_one_graph(self):
        net, x = Net(), torch.rand(5, 3, 6)
        compiled = torch.compile(net, backend="aot_eager", fullgraph=True)
        expected = net(x)
        torch.testing.assert_close(compiled(x), expected)
        expected.sum().backward()
        wanted = [p.grad.clone() for p in net.parameters()]
        net.zero_grad()
        compiled(x).sum().backward()
        for p, g in zip(net.parameters(), wanted, strict=True):
            torch.testing.assert_close(p.grad, g)

    def test_export(self):
        net, x = Net(), torch.rand(5, 3, 6)
        program = torch.export.export(net, (x,))
        assert any("plexus.lif" in str(node.target) for node in program.graph.nodes)
        torch.testing.assert_close(program.module()(x), net(x))


class TestBadInput:
    x = torch.rand(4, 2, 3)

    @pytest.mark.parametrize(
        ("error", "arguments"),
        [
            (ShapeError, {"x": torch.rand(4, 2)}),
            (DtypeError, {"x": torch.ones(4, 2, 3, dtype=torch.int64)}),
            (ShapeError, {"decay": torch.rand(2)}),
            (ShapeError, {"threshold": torch.rand(3, 3)}),
            (DeviceError, {"threshold": torch.rand(3, device="meta")}),
            (UnknownNameError, {"reset": "subtract"}),
            (RangeError, {"refractory": -1}),
            (UnsupportedError, {"refractory": 1, "smooth": True}),
            (UnsupportedError, {"backend": "fused", "surrogate": torch.sigmoid}),
            (UnsupportedError, {"backend": "fused", "x": torch.rand(4, 2, 3).half()}),
            (ShapeError, {"state": LIFState(*(torch.zeros(1, 3),) * 3)}),
            (DtypeError, {"state": LIFState(*(torch.zeros(2, 3).double(),) * 3)}),
            (DeviceError, {"state": LIFState(*(torch.zeros(2, 3, device="meta"),) * 3)}),
        ],
        ids=lambda value: value.__name__ if isinstance(value, type) else " ".join(value),
    )
    def test_each_has_its_error(self, error, arguments):
        with pytest.raises(error) as caught:
            lif(**{"x": self.x, "decay": 0.9, **arguments})
        assert isinstance(caught.value, PlexusError)

    def test_batch_first_input_is_recognised_by_the_state(self):
        with pytest.raises(ShapeError, match=r"x\.transpose\(0, 1\)"):
            lif(torch.rand(2, 4, 3), LIFState(*(torch.zeros(2, 3),) * 3), decay=0.9)

    @pytest.mark.parametrize("shape", [(0, 2, 3), (4, 0, 3), (4, 2, 0)])
    def test_empty_input_gives_empty_output(self, shape):
        for backend in ("fused", "eager"):
            x = torch.rand(shape, requires_grad=True)
            spikes, state = lif(x, decay=0.9, backend=backend)
            assert spikes.shape == shape
            assert state.v.shape == shape[1:]
            spikes.sum().backward() if spikes.requires_grad else None

    def test_nan_stays_where_it_is(self):
        x = self.x.clone()
        x[1, 0, 0] = math.nan
        spikes, state = lif(x, decay=0.9)
        assert not spikes[1:, 0, 0].any()
        assert state.v.isnan().sum() == 1

    def test_half_precision_runs_by_the_reference(self):
        spikes, state = lif(self.x.bfloat16(), decay=0.9, threshold=0.5)
        assert spikes.dtype == state.v.dtype == torch.bfloat16
        assert spikes.any()


def test_the_frame_is_open_to_other_devices():
    assert set(kernels.BACKENDS) >= {"cpu"}
    assert kernels.BACKENDS["cpu"].dtypes == (torch.float32, torch.float64)
