"""Synapses with a memory: filters, short-term plasticity, whole delays; and gap junctions."""

import math

import pytest
import torch

from plexus.errors import DtypeError, PlexusError, RangeError, ShapeError
from plexus.nn.synapses import (
    AlphaSynapse,
    Conductance,
    DelayedLinear,
    DoubleExponentialSynapse,
    ExponentialSynapse,
    GapJunctions,
    HeterogeneousDelays,
    ShortTermPlasticity,
    leaky,
    small_world,
)


def source(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def impulse(steps: int) -> torch.Tensor:
    x = torch.zeros(steps, 1, 1, dtype=torch.float64)
    x[0] = 1
    return x


class TestFilters:
    def test_closed_forms(self):
        t = torch.arange(200, dtype=torch.float64) * 0.5
        found, _ = ExponentialSynapse(1, 7.0, dt=0.5).double()(impulse(200))
        torch.testing.assert_close(found.flatten(), torch.exp(-t / 7.0), rtol=1e-6, atol=1e-9)
        found, _ = AlphaSynapse(1, 7.0, dt=0.5).double()(impulse(200))
        torch.testing.assert_close(found.flatten(), t / 7 * torch.exp(1 - t / 7), rtol=1e-5, atol=1e-8)
        found, _ = DoubleExponentialSynapse(1, 2.0, 9.0, dt=0.5).double()(impulse(200))
        peak_at = 2 * 9 / 7 * math.log(9 / 2)
        peak = math.exp(-peak_at / 9) - math.exp(-peak_at / 2)
        expected = (torch.exp(-t / 9) - torch.exp(-t / 2)) / peak
        torch.testing.assert_close(found.flatten(), expected, rtol=1e-5, atol=1e-7)

    def test_blocks_equal_a_loop_and_units_keep_their_own_time(self):
        tau, x = torch.tensor([2.0, 5.0, 300.0]), torch.rand(150, 2, 3, dtype=torch.float64)
        decay = torch.exp(-1 / tau.double())
        s, expected = torch.ones(2, 3, dtype=torch.float64), []
        for row in x:
            s = decay * s + row
            expected.append(s)
        start = torch.ones(2, 3, dtype=torch.float64)
        torch.testing.assert_close(leaky(x, decay, start), torch.stack(expected))
        for n in range(3):
            alone = leaky(x[..., [n]], float(decay[n]), start[:, [n]]).squeeze(-1)
            torch.testing.assert_close(alone, torch.stack(expected)[..., n])

    @pytest.mark.parametrize("kind", [ExponentialSynapse, AlphaSynapse, DoubleExponentialSynapse])
    def test_in_pieces_as_a_whole(self, kind):
        layer, x = kind((2, 3)).double(), torch.rand(90, 4, 2, 3, dtype=torch.float64)
        whole, last = layer(x)
        pieces, state = [], layer.initial_state(4, dtype=torch.float64)
        for piece in x.split([1, 0, 29, 60]):
            out, state = layer(piece, state)
            pieces.append(out)
        torch.testing.assert_close(torch.cat(pieces), whole)
        for a, b in zip(state, last, strict=True):
            torch.testing.assert_close(a, b)

    def test_learnt_times_stay_positive_and_in_order(self):
        layer = DoubleExponentialSynapse(3, 1.0, 5.0, learn=True)
        optimizer = torch.optim.Adam(layer.parameters(), lr=0.5)
        for _ in range(20):
            optimizer.zero_grad()
            layer((torch.rand(30, 2, 3, generator=source()) < 0.3).float())[0].sum().backward()
            optimizer.step()
            assert bool((layer.rise > 0).all())
            assert bool((layer.rise < layer.decay).all())

    def test_gradient_of_the_time_constant(self):
        x = torch.rand(9, 2, 3, dtype=torch.float64)
        layer = AlphaSynapse(3, torch.tensor([2.0, 3.0, 4.0]), learn=True).double()
        log_tau = layer.log_tau.detach().clone().requires_grad_()
        assert torch.autograd.gradcheck(
            lambda p: torch.func.functional_call(layer, {"log_tau": p}, (x,))[0], (log_tau,)
        )

    def test_conductance_has_no_force_at_its_reversal(self):
        v = torch.tensor([-70.0, -60.0, 0.0])
        assert Conductance(-70.0)(torch.full((3,), 2.0), v).tolist() == [0.0, -20.0, -140.0]

    def test_refusals(self):
        for make in (
            lambda: ExponentialSynapse(3, 0.0),
            lambda: AlphaSynapse(3, 1.0, dt=-1.0),
            lambda: DoubleExponentialSynapse(3, 5.0, 5.0),
        ):
            with pytest.raises(RangeError):
                make()
        with pytest.raises(ShapeError):
            ExponentialSynapse(3, torch.ones(2))
        with pytest.raises(ShapeError):
            ExponentialSynapse(3)(torch.rand(4, 2, 2))
        with pytest.raises(DtypeError):
            ExponentialSynapse(3)(torch.ones(4, 2, 3, dtype=torch.int64))


class TestShortTermPlasticity:
    @pytest.mark.parametrize(("use", "depression", "facilitation"), [(0.5, 800.0, 0.0), (0.05, 100.0, 500.0)])
    @pytest.mark.parametrize("period", [10, 50, 200])
    def test_published_steady_states(self, use, depression, facilitation, period):
        dt = period / 2  # exact between spikes, so the step does not matter
        spikes = torch.zeros(2 * math.ceil(10 * 800 / period), 1, 1, dtype=torch.float64)
        spikes[1::2] = 1
        layer = ShortTermPlasticity(1, use, tau_depression=depression, tau_facilitation=facilitation, dt=dt).double()
        released, _ = layer(spikes)
        f = math.exp(-period / facilitation) if facilitation else 0.0
        d = math.exp(-period / depression)
        u = use / (1 - (1 - use) * f)
        x = (1 - d) / (1 - (1 - u) * d)
        assert released.flatten()[-1].item() == pytest.approx(u * x, rel=2e-4)

    def test_depression_falls_as_one_over_the_rate(self):
        """Released per second saturates at 1 / τ_d, so the amount per spike is its inverse at high rates."""
        for period in (5.0, 10.0):
            layer = ShortTermPlasticity(1, 0.5, tau_depression=800.0, dt=period).double()
            released, _ = layer(torch.ones(round(8000 / period), 1, 1, dtype=torch.float64))
            per_second = released[-1].item() * 1000 / period
            assert per_second == pytest.approx(1000 / 800, rel=0.02)

    def test_recovers_between_spikes_exactly(self):
        layer = ShortTermPlasticity(1, 0.4, tau_depression=50.0, tau_facilitation=30.0).double()
        spikes = torch.zeros(26, 1, 1, dtype=torch.float64)
        spikes[0] = spikes[25] = 1
        released = layer(spikes)[0].flatten()
        u = 0.4 * math.exp(-25 / 30)
        u += 0.4 * (1 - u)
        x = 1 - 0.4 * math.exp(-25 / 50)
        assert released[0].item() == pytest.approx(0.4)
        assert released[25].item() == pytest.approx(u * x, rel=1e-6)

    def test_in_pieces_as_a_whole_and_in_range(self):
        layer = ShortTermPlasticity(3, 0.3, tau_facilitation=100.0)
        x = (torch.rand(60, 2, 3, generator=source()) < 0.3).float()
        whole, _ = layer(x)
        a, state = layer(x[:25])
        assert torch.equal(torch.cat([a, layer(x[25:], state)[0]]), whole)
        assert bool(((whole >= 0) & (whole <= 1)).all())
        assert not bool(whole[x == 0].any())

    def test_refusals(self):
        for bad in ({"use": 0.0}, {"use": 1.5}, {"tau_depression": 0.0}, {"tau_facilitation": -1.0}, {"dt": 0.0}):
            with pytest.raises(RangeError):
                ShortTermPlasticity(2, **bad)
        with pytest.raises(ShapeError):
            ShortTermPlasticity(2)(torch.rand(4, 2, 3))


class TestGapJunctions:
    @pytest.mark.parametrize("learn", [False, True])
    def test_currents_sum_to_zero_and_vanish_at_equal_potentials(self, learn):
        pairs = small_world(12, 4, 0.0)
        layer = GapJunctions(pairs, 0.3, learn=learn).double()
        v = torch.randn(5, 2, 12, dtype=torch.float64)
        torch.testing.assert_close(layer(v).sum(-1), torch.zeros(5, 2, dtype=torch.float64))
        torch.testing.assert_close(layer(torch.full((12,), 7.0).double()), torch.zeros(12).double())
        assert len(list(layer.parameters())) == learn

    def test_two_compartments_meet_at_their_mean_with_the_known_rate(self):
        layer, v, dt = GapJunctions(torch.ones(2, 2), 0.5).double(), torch.tensor([1.0, 3.0]).double(), 1e-3
        for _ in range(1000):
            v = v + dt * layer(v)
        expected = 2 + torch.tensor([-1.0, 1.0]).double() * (1 - 2 * 0.5 * dt) ** 1000
        torch.testing.assert_close(v, expected)

    def test_learnt_conductances_stay_symmetric_and_positive(self):
        layer = GapJunctions(small_world(6, 2, 0.0), learn=True)
        optimizer = torch.optim.SGD(layer.parameters(), lr=5.0)
        for step in range(5):
            optimizer.zero_grad()
            (layer(torch.randn(4, 6, generator=source(step))) * torch.randn(6, generator=source(9))).sum().backward()
            optimizer.step()
        g = layer.conductance
        assert torch.equal(g, g.T)
        assert bool((g[layer.mask] > 0).all())
        assert not bool(g[~layer.mask].any())

    def test_refusals(self):
        with pytest.raises(RangeError, match="both ways"):
            GapJunctions(torch.tensor([[0, 1], [0, 0]]))
        with pytest.raises(RangeError, match="positive"):
            GapJunctions(torch.ones(2, 2), 0.0)
        with pytest.raises(ShapeError):
            GapJunctions(torch.ones(2, 3))
        with pytest.raises(ShapeError):
            GapJunctions(torch.ones(2, 2))(torch.rand(3))


class TestHeterogeneousDelays:
    def test_is_a_sum_of_shifted_courses(self):
        layer = HeterogeneousDelays(4, 3, 5, generator=source()).double()
        x = torch.rand(9, 2, 4, dtype=torch.float64)
        expected = torch.zeros(9, 2, 3, dtype=torch.float64)
        for i in range(3):
            for j in range(4):
                d = int(layer.delays[i, j])
                expected[d:, :, i] += layer.weight[i, j].detach() * x[: 9 - d, :, j]
        torch.testing.assert_close(layer(x)[0], expected)

    @pytest.mark.parametrize("share", [0.1, 0.9])
    def test_equals_hard_learnt_delays(self, share):
        layer = HeterogeneousDelays(4, 3, 5, generator=source())
        other = DelayedLinear(4, 3, 5, learn=False).hard(True)
        with torch.no_grad():
            other.weight.copy_(layer.weight)
            other.delay.copy_(layer.delays)
        x = (torch.rand(30, 2, 4, generator=source()) < share).float().requires_grad_()
        a, b = layer(x)[0], other(x)[0]
        assert torch.equal(a, b)
        g = torch.randn_like(a)
        one = torch.autograd.grad(a, (x, layer.weight), g)
        two = torch.autograd.grad(b, (x, other.weight), g)
        assert all(torch.equal(p, q) for p, q in zip(one, two, strict=True))

    def test_in_pieces_step_by_step(self):
        layer = HeterogeneousDelays(4, 3, 5, generator=source())
        x = (torch.rand(20, 2, 4, generator=source()) < 0.3).float()
        whole, state, steps = layer(x)[0], None, []
        for row in x:
            out, state = layer(row.unsqueeze(0), state)
            steps.append(out)
        torch.testing.assert_close(torch.cat(steps), whole)

    def test_drawn_delays_use_their_range_evenly(self):
        delays = HeterogeneousDelays(100, 100, 9, min_delay=2, generator=source()).delays
        counts = torch.bincount(delays.flatten(), minlength=10)
        assert not bool(counts[:2].any())
        assert float(((counts[2:] - 1250) ** 2 / 1250).sum()) < 24.3  # χ² with 7 degrees of freedom, p = 0.001

    def test_refusals(self):
        with pytest.raises(RangeError):
            HeterogeneousDelays(2, 2, 0)
        with pytest.raises(RangeError):
            HeterogeneousDelays(2, 2, 3, delays=torch.full((2, 2), 4))
        with pytest.raises(DtypeError):
            HeterogeneousDelays(2, 2, 3, delays=torch.rand(2, 2))
        with pytest.raises(ShapeError):
            HeterogeneousDelays(2, 2, 3, mask=torch.ones(3, 2))
        with pytest.raises(PlexusError):
            HeterogeneousDelays(2, 2, 3)(torch.rand(2, 2))
