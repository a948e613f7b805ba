"""Delayed synapses: closed forms, independent references, states, learning, and what they refuse."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from plexus.errors import DtypeError, RangeError, ShapeError, UnknownNameError, UnsupportedError
from plexus.kernels import delayed, delayed_taps
from plexus.kernels._delays import delayed_reference, delayed_taps_reference, kernel_of_taps
from plexus.nn import LIF, Sequential, parametrize_, project_, project_after_step
from plexus.nn.synapses import (
    DelayAnneal,
    DelayedConv2d,
    DelayedLinear,
    delay_parameters,
    weight_parameters,
)


def source(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def events(*shape: int, share: float = 0.1, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return ((torch.rand(*shape, generator=source(1)) < share) * torch.rand(*shape, generator=source(2))).to(dtype)


class TestKernels:
    @settings(max_examples=15, deadline=None)
    @given(
        time=st.integers(0, 6),
        batch=st.integers(1, 3),
        sources=st.integers(1, 4),
        targets=st.integers(1, 4),
        reach=st.integers(0, 4),
        share=st.sampled_from([0.0, 0.1, 1.0]),
        double=st.booleans(),
    )
    def test_fused_paths_equal_the_reference(self, time, batch, sources, targets, reach, share, double):
        dtype = torch.float64 if double else torch.float32
        x = events(reach + time, batch, sources, share=share, dtype=dtype).requires_grad_()
        kernel = torch.randn(sources, reach + 1, targets, dtype=dtype, requires_grad=True)
        start = torch.randint(0, reach + 1, (targets, sources))
        values = torch.randn(1, targets, sources, dtype=dtype, requires_grad=True)
        pairs = (
            ((delayed(x, kernel), delayed_reference(x, kernel)), (x, kernel)),
            ((delayed_taps(x, start, values, reach), delayed_taps_reference(x, start, values, reach)), (x, values)),
        )
        for (fused, eager), inputs in pairs:
            assert fused.shape == (time, batch, targets)
            torch.testing.assert_close(fused, eager)
            g = torch.randn_like(fused)
            for a, b in zip(torch.autograd.grad(fused, inputs, g), torch.autograd.grad(eager, inputs, g), strict=True):
                torch.testing.assert_close(a, b)

    def test_is_torchs_convolution(self):
        x, kernel = events(12, 3, 4), torch.randn(4, 5, 6, dtype=torch.float64)
        conv = nn.functional.conv1d(x.permute(1, 2, 0), kernel.permute(2, 0, 1).flip(2)).permute(2, 0, 1)
        torch.testing.assert_close(delayed(x, kernel), conv)

    @pytest.mark.parametrize("share", [0.1, 1.0])
    def test_gradients_first_and_second(self, share):
        x = events(6, 2, 3, share=share).requires_grad_()
        kernel = torch.randn(3, 3, 2, dtype=torch.float64, requires_grad=True)
        start = torch.tensor([[0, 1, 1], [1, 0, 0]])
        values = torch.randn(2, 2, 3, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(delayed, (x, kernel))
        assert torch.autograd.gradgradcheck(delayed, (x, kernel))
        assert torch.autograd.gradcheck(lambda a, v: delayed_taps(a, start, v, 2), (x, values))
        assert torch.autograd.gradgradcheck(lambda a, v: delayed_taps(a, start, v, 2), (x, values))

    def test_transforms_and_forward_mode(self):
        x, kernel, tangent = events(6, 2, 3), torch.randn(3, 3, 2).double(), torch.randn(3, 3, 2).double()
        _, out = torch.func.jvp(lambda k: delayed(x, k), (kernel,), (tangent,))
        torch.testing.assert_close(out, delayed(x, tangent))
        per_sample = torch.func.vmap(lambda row: delayed(row.unsqueeze(1), kernel).squeeze(1), in_dims=1, out_dims=1)(x)
        torch.testing.assert_close(per_sample, delayed(x, kernel))

    def test_operators_pass_torchs_own_checks(self):
        x, kernel = events(6, 2, 3).requires_grad_(), torch.randn(3, 3, 2).double().requires_grad_()
        torch.library.opcheck(torch.ops.plexus.delayed.default, (x, kernel))
        start, values = torch.zeros(2, 3, dtype=torch.int64), torch.randn(1, 2, 3).double().requires_grad_()
        torch.library.opcheck(torch.ops.plexus.delayed_taps.default, (x, start, values, 2))

    def test_threads_do_not_change_the_result(self):
        before = torch.get_num_threads()
        x, kernel = events(90, 16, 40, dtype=torch.float32), torch.randn(40, 9, 32, requires_grad=True)
        found = []
        try:
            for threads in (1, 2):
                torch.set_num_threads(threads)
                out = delayed(x, kernel)
                found.append((out, *torch.autograd.grad(out.square().sum(), kernel)))
        finally:
            torch.set_num_threads(before)
        assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))

    def test_refusals(self):
        x, kernel = torch.rand(6, 2, 3), torch.rand(3, 3, 2)
        with pytest.raises(ShapeError, match="does not fit the kernel"):
            delayed(x[..., :2], kernel)
        with pytest.raises(ShapeError, match="does not fit the kernel"):
            delayed(x[:1], kernel)
        with pytest.raises(ShapeError, match="three dimensions"):
            delayed(x, kernel[0])
        with pytest.raises(DtypeError):
            delayed(x.double(), kernel)
        with pytest.raises(RangeError, match="outside"):
            delayed_taps(x, torch.full((2, 3), 3), torch.rand(1, 2, 3), 2)
        with pytest.raises(ShapeError, match="do not fit the taps"):
            delayed_taps(x, torch.zeros(3, 2, dtype=torch.int64), torch.rand(1, 2, 3), 2)


def one_synapse(delay: float, **options) -> DelayedLinear:
    layer = DelayedLinear(1, 1, 6, **options)
    with torch.no_grad():
        layer.weight.fill_(1.0)
        layer.delay.fill_(delay)
    return layer


class TestBump:
    @pytest.mark.parametrize("kernel", ["gaussian", "triangle"])
    @pytest.mark.parametrize("delay", [0.0, 0.4, 2.5, 6.0])
    def test_shares_sum_to_the_weight(self, kernel, delay):
        for sigma in (3.0, 1.0, 0.23):
            assert one_synapse(delay, kernel=kernel, sigma=sigma).taps().sum().item() == pytest.approx(1, abs=1e-5)

    def test_published_gaussian(self):
        taps = one_synapse(2.4, sigma=1.3).taps().flatten()
        n = torch.arange(7.0)
        expected = torch.exp(-0.5 * ((n - 2.4) / (1.3 + 0.27)) ** 2)
        torch.testing.assert_close(taps, expected / (expected.sum() + 1e-7))

    def test_triangle_without_width_interpolates(self):
        taps = one_synapse(2.3, kernel="triangle", sigma=0.0).taps().flatten()
        torch.testing.assert_close(taps, torch.tensor([0, 0, 0.7, 0.3, 0, 0, 0]), atol=1e-6, rtol=0)

    def test_mean_delay_is_the_delay_wherever_the_bump_fits(self):
        taps = one_synapse(3.0, sigma=0.5).taps().flatten()
        assert (taps * torch.arange(7.0)).sum().item() == pytest.approx(3.0, abs=1e-4)

    def test_published_position_is_counted_from_the_other_end(self):
        """Published: cross-correlation with T_d - 1 zeros on the left, tap index c = T_d - 1 - delay."""
        layer = DelayedLinear(3, 2, 6, sigma=1.0).double()
        x = events(20, 4, 3, share=0.3)
        kernel = layer.taps().detach().permute(2, 0, 1).flip(2)
        left = nn.functional.pad(x.permute(1, 2, 0), (6, 0))
        torch.testing.assert_close(layer(x)[0], nn.functional.conv1d(left, kernel).permute(2, 0, 1))

    def test_silent_steps_are_the_published_right_padding(self):
        layer = DelayedLinear(3, 2, 6, sigma=1.0).double()
        x = events(20, 4, 3, share=0.3)
        padded = nn.functional.pad(x, (0, 0, 0, 0, 0, 3))
        kernel = layer.taps().detach().permute(2, 0, 1).flip(2)
        both = nn.functional.pad(x.permute(1, 2, 0), (6, 3))
        torch.testing.assert_close(layer(padded)[0], nn.functional.conv1d(both, kernel).permute(2, 0, 1))

    @pytest.mark.parametrize(("kernel", "sigma"), [("gaussian", 0.23), ("triangle", 0.0), ("triangle", 0.4)])
    def test_lean_path_equals_the_whole_kernel(self, kernel, sigma, monkeypatch):
        layer = DelayedLinear(5, 4, 30, kernel=kernel, sigma=sigma, learn=False, generator=source()).double()
        layer.delay.requires_grad_(True)
        with torch.no_grad():  # both edges and an exact step too
            layer.delay[0, :3] = torch.tensor([0.0, 30.0, 17.0])
        x = events(40, 2, 5)
        assert 3 * layer._width() <= 31
        lean = layer(x)[0]
        monkeypatch.setattr(layer, "_width", lambda: 31)
        whole = layer(x)[0]
        torch.testing.assert_close(lean, whole, atol=1e-6, rtol=1e-6)
        g = torch.randn_like(whole)
        wanted = (layer.weight, layer.delay)
        for a, b in zip(torch.autograd.grad(lean, wanted, g), torch.autograd.grad(whole, wanted, g), strict=True):
            torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)

    @pytest.mark.parametrize("kernel", ["gaussian", "triangle"])
    @pytest.mark.parametrize("sigma", [2.0, 0.37])
    def test_gradient_of_weights_and_delays(self, kernel, sigma):
        layer = DelayedLinear(3, 2, 5, kernel=kernel, sigma=sigma, generator=source()).double()
        x = events(9, 2, 3, share=0.5)

        def current(weight: torch.Tensor, delay: torch.Tensor) -> torch.Tensor:
            return torch.func.functional_call(layer, {"weight": weight, "delay": delay}, (x,))[0]

        inputs = tuple(p.detach().clone().requires_grad_() for p in (layer.weight, layer.delay))
        assert torch.autograd.gradcheck(current, inputs)


class TestDelayedLinear:
    @pytest.mark.parametrize("hard", [False, True])
    @pytest.mark.parametrize("sigma", [3.0, 0.23])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_in_pieces_as_a_whole(self, hard, sigma, dtype):
        layer = DelayedLinear(4, 3, 20, sigma=sigma, bias=True).to(dtype).hard(hard)
        x = events(17, 2, 4, share=0.3, dtype=dtype)
        whole, last = layer(x)
        pieces, state = [], None
        for piece in x.split([1, 0, 5, 11]):
            out, state = layer(piece, state)
            pieces.append(out)
        torch.testing.assert_close(torch.cat(pieces), whole)
        assert torch.equal(state.past, last.past)
        torch.testing.assert_close(layer(x, layer.initial_state(2, dtype=dtype))[0], whole)

    def test_causal(self):
        layer = DelayedLinear(4, 3, 5).double()
        x = events(12, 2, 4, share=0.5)
        later = x.clone()
        later[7:] += 1
        a, b = layer(x)[0], layer(later)[0]
        torch.testing.assert_close(a[:7], b[:7])
        assert not torch.allclose(a[7:], b[7:])

    def test_hard_is_a_shift(self):
        layer = DelayedLinear(2, 1, 5, learn=False)
        with torch.no_grad():
            layer.delay.copy_(torch.tensor([[1.4, 4.6]]))
            layer.weight.copy_(torch.tensor([[2.0, -3.0]]))
        x = torch.zeros(9, 1, 2)
        x[1, 0, 0] = x[2, 0, 1] = 1
        expected = torch.zeros(9)
        expected[2], expected[7] = 2.0, -3.0
        assert torch.equal(layer.hard(True)(x)[0].flatten(), expected)
        assert torch.equal(layer.taps().sum(1).T, layer.weight)

    def test_round_then_hard_is_hard(self):
        layer = DelayedLinear(4, 3, 7, sigma=0.23, generator=source())
        x = torch.rand(12, 2, 4)
        hard = copy.deepcopy(layer).hard(True)(x)[0]
        assert torch.equal(layer.round_().hard(True)(x)[0], hard)
        assert torch.equal(layer.delay, layer.delay.round())

    def test_hardness_and_width_travel_with_the_weights(self):
        layer = DelayedLinear(4, 3, 7, sigma=0.5).hard(True)
        other = DelayedLinear(4, 3, 7)
        other.load_state_dict(layer.state_dict())
        assert other.is_hard
        assert other.sigma == 0.5

    def test_straight_through_is_hard_forwards_and_soft_backwards(self):
        layer = DelayedLinear(4, 3, 7, sigma=0.23, straight_through=True, generator=source()).double()
        x = events(20, 2, 4, share=0.3)
        out = layer(x)[0]
        torch.testing.assert_close(out, copy.deepcopy(layer).hard(True)(x)[0])
        out.square().sum().backward()
        assert layer.delay.grad is not None
        assert (layer.delay.grad != 0).any()

    def test_an_out_of_range_delay_acts_at_the_edge_and_can_return(self):
        layer = one_synapse(9.0, sigma=1.0)
        assert torch.equal(layer.taps(), one_synapse(6.0, sigma=1.0).taps())
        layer.taps()[0, 3, 0].backward()
        assert layer.delay.grad.item() < 0  # more weight at 3 steps asks for a shorter delay
        project_(layer)
        assert layer.delay.item() == 6.0

    def test_projection_and_parametrization_keep_the_range(self):
        for mechanism in ("projection", "parametrization"):
            layer = DelayedLinear(3, 3, 4, generator=source())
            before = layer.delays.clone()
            if mechanism == "parametrization":
                parametrize_(layer)
                torch.testing.assert_close(layer.delays, before, atol=1e-4, rtol=1e-4)
            assert len(delay_parameters(layer)) == 1
            assert len(weight_parameters(layer)) == 1
            optimizer = torch.optim.SGD(delay_parameters(layer), lr=1e3)
            if mechanism == "projection":
                project_after_step(optimizer, layer)
            layer(torch.rand(9, 2, 3))[0].square().sum().backward()
            optimizer.step()
            assert ((layer.delay >= 0) & (layer.delay <= 4)).all()
            rounded = layer.delays.round()
            torch.testing.assert_close(layer.round_().delays, rounded, atol=1e-5, rtol=0)

    def test_recovers_a_delay_that_a_sharp_kernel_cannot_see(self):
        """A spike 9 steps off is felt under a wide kernel alone."""
        x = (torch.rand(80, 8, 1, generator=source()) < 0.1).float()
        target = torch.nn.functional.pad(x, (0, 0, 0, 0, 12, 0))[:80]
        found = {}
        for name, sigma in (("annealed", None), ("sharp", 0.23)):
            layer = DelayedLinear(1, 1, 16, sigma=sigma)
            with torch.no_grad():
                layer.weight.fill_(1.0)
                layer.delay.fill_(3.0)
            optimizer = torch.optim.Adam([layer.delay], lr=0.1)
            anneal = DelayAnneal(layer, 120)
            for _ in range(160):
                optimizer.zero_grad()
                (layer(x)[0] - target).square().mean().backward()
                optimizer.step()
                anneal.step()
            found[name] = layer.delays.item()
        assert found["annealed"] == pytest.approx(12, abs=0.3)
        assert abs(found["sharp"] - 12) > 2

    def test_in_a_sequential_and_in_a_loop(self):
        net = Sequential(DelayedLinear(4, 6, 5), nn.BatchNorm1d(6), LIF(6), DelayedLinear(6, 2, 3)).eval()
        x = (torch.rand(12, 3, 4) < 0.5).float()
        whole = net(x)[0]
        a, states = net(x[:5])
        torch.testing.assert_close(torch.cat([a, net(x[5:], states)[0]]), whole)
        recurrent, neuron = DelayedLinear(3, 3, 2, learn=False).hard(True), LIF(3)
        spikes, before, state, own = torch.zeros(1, 1, 3), None, None, []
        for _ in range(4):
            current, before = recurrent(spikes, before)
            spikes, state = neuron(current + 2.0, state)
            own.append(spikes)
        assert torch.cat(own).any()

    @pytest.mark.parametrize("hard", [False, True])
    def test_compiles_whole(self, hard):
        layer = DelayedLinear(4, 3, 5).hard(hard)
        x = torch.rand(6, 2, 4)
        compiled = torch.compile(layer, backend="eager", fullgraph=True)
        torch.testing.assert_close(compiled(x)[0], layer(x)[0])

    def test_refusals(self):
        with pytest.raises(RangeError, match="no delay"):
            DelayedLinear(2, 2, 0)
        with pytest.raises(RangeError, match="no gradient"):
            DelayedLinear(2, 2, 3, sigma=0.0)
        with pytest.raises(RangeError, match="out of range"):
            DelayedLinear(2, 2, 3, sigma=-1.0)
        with pytest.raises(UnknownNameError):
            DelayedLinear(2, 2, 3, kernel="gausian")
        with pytest.raises(ShapeError):
            DelayedLinear(0, 2, 3)
        layer = DelayedLinear(2, 2, 3)
        with pytest.raises(ShapeError, match="unsqueeze"):
            layer(torch.rand(4, 2))
        with pytest.raises(ShapeError, match="state"):
            layer(torch.rand(4, 1, 2), layer.initial_state(3))
        with pytest.raises(DtypeError):
            layer(torch.ones(4, 1, 2, dtype=torch.int64))
        with pytest.raises(UnsupportedError):
            DelayAnneal(nn.Linear(2, 2), 3)
        with pytest.raises(RangeError):
            DelayAnneal(layer, 0)


class TestAnneal:
    def test_reaches_its_end_and_stays(self):
        model = nn.ModuleList([DelayedLinear(2, 2, 24), DelayedLinear(2, 2, 3, sigma=0.1)])
        anneal = DelayAnneal(model, 8)
        widths = [model[0].sigma]
        for _ in range(10):
            anneal.step()
            widths.append(model[0].sigma)
        ratios = torch.tensor(widths[1:9]) / torch.tensor(widths[:8])
        torch.testing.assert_close(ratios, torch.full((8,), (0.23 / 12) ** (1 / 8)))
        assert widths[8:] == pytest.approx([0.23] * 3)
        assert model[1].sigma == 0.1

    def test_goes_on_from_a_checkpoint(self):
        a, b = DelayedLinear(2, 2, 24), DelayedLinear(2, 2, 24)
        one, two = DelayAnneal(a, 8), DelayAnneal(b, 3)
        for _ in range(5):
            one.step()
        two.load_state_dict(one.state_dict())
        assert b.sigma == a.sigma
        one.step(), two.step()
        assert b.sigma == a.sigma


class TestDelayedConv2d:
    def test_without_spread_is_a_convolution_of_shifted_frames(self):
        layer = DelayedConv2d(2, 3, 3, max_delay=4, stride=2, padding=1, learn=False).double().hard(True)
        with torch.no_grad():
            layer.delay.fill_(3.0)
        frames = torch.rand(7, 2, 2, 9, 8, dtype=torch.float64)
        out, _ = layer(frames)
        weight = layer.weight.view(3, 2, 3, 3)
        plain = nn.functional.conv2d(frames.flatten(0, 1), weight, stride=2, padding=1).unflatten(0, (7, 2))
        torch.testing.assert_close(out[3:], plain[:4])
        assert not out[:3].any()

    def test_each_synapse_has_its_own_delay(self):
        layer = DelayedConv2d(1, 1, 2, max_delay=3, learn=False).hard(True)
        with torch.no_grad():
            layer.weight.fill_(1.0)
            layer.delay.copy_(torch.tensor([[0.0, 1.0, 2.0, 3.0]]))
        frames = torch.zeros(5, 1, 1, 2, 2)
        frames[0] = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
        assert layer(frames)[0].flatten().tolist() == [1.0, 2.0, 3.0, 4.0, 0.0]

    def test_in_pieces_as_a_whole(self):
        layer = DelayedConv2d(2, 3, 3, max_delay=4, padding=1).double()
        frames = events(9, 2, 2, 5, 5, share=0.3)
        whole, _ = layer(frames)
        a, state = layer(frames[:4])
        torch.testing.assert_close(torch.cat([a, layer(frames[4:], state)[0]]), whole)
        assert state.past.shape == (2, 4, 2, 5, 5)


def test_taps_written_out_hold_each_value_once():
    start = torch.tensor([[0, 2], [1, 0]])
    values = torch.randn(2, 2, 2)
    kernel = kernel_of_taps(start, values, 3)
    assert kernel.shape == (2, 4, 2)
    torch.testing.assert_close(kernel.sum(1).T, values.sum(0))
    assert kernel[1, 2, 0] == values[0, 0, 1]
