"""What the neuron models do, against closed forms, independent integrations and the published firing patterns."""

import math

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from torch import float64 as double

from plexus.errors import RangeError, ShapeError, UnknownNameError, UnsupportedError
from plexus.nn import (
    ALIF,
    COBA,
    CUBA,
    IF,
    LIF,
    PLIF,
    AdEx,
    BalancedResonate,
    Dendrite,
    Izhikevich,
    LeakyIntegrator,
    ResonateAndFire,
    Sequential,
    TwoCompartment,
)  # fmt: skip
from plexus.nn.neurons._layer import NeuronLayer


@pytest.fixture(autouse=True)
def _eager(monkeypatch):
    """Both paths compute the same (test_models, test_neurons); compiling every variant here would take a minute."""
    monkeypatch.setattr(NeuronLayer, "backend", "eager")


@pytest.fixture(autouse=True, scope="module")
def _numbers_in_double_precision():
    torch.set_default_dtype(double)
    yield
    torch.set_default_dtype(torch.float32)


def constant(value, steps, units=1):
    return torch.full((steps, 1, units), float(value), dtype=double)


def pulse(steps, units=1):
    x = torch.zeros(steps, 1, units, dtype=double)
    x[0] = 1.0
    return x


def trace(layer, x, *fields):
    """The states after every step, `[time]` each."""
    state, found = None, []
    for now in x:
        _, state = layer(now.unsqueeze(0), state)
        found.append([getattr(state, field).flatten() for field in fields])
    return [torch.stack(part).squeeze(-1) for part in zip(*found, strict=True)]


def times(spikes):
    return spikes.flatten().nonzero().flatten()


class TestIntegrateAndFire:
    def test_rate_is_current_over_threshold(self):
        currents = torch.linspace(0.05, 0.9, 18)
        spikes, state = IF(18, threshold=1.3)(currents.expand(1000, 1, 18))
        torch.testing.assert_close(spikes.mean(0)[0], currents / 1.3, rtol=0, atol=1 / 1000)
        torch.testing.assert_close(spikes.sum(0) * 1.3 + state.v, 1000 * currents[None])  # nothing is lost

    def test_current_frequency_curve_of_the_leaky_neuron(self):
        # from reset to threshold: n steps with I (1 - αⁿ) > θ, hence n = ⌊log(1 - θ/I) / log α⌋ + 1
        tau, currents = 20.0, torch.linspace(0.5, 4.0, 36) + 1e-3
        layer = LIF(36, tau_mem=tau, scale_input=True, reset="hard")
        spikes, _ = layer(currents.expand(1000, 1, 36))
        above = currents > 1
        assert not spikes[..., ~above].any()
        period = torch.floor(-tau * torch.log(1 - 1 / currents[above])) + 1
        torch.testing.assert_close(spikes[..., above].sum(0)[0], torch.floor(1000 / period))

    def test_parametric_neuron_is_an_euler_step_of_the_given_time_constant(self):
        layer = PLIF(1, tau_mem=4.0, threshold=9.0)
        (v,) = trace(layer, constant(1.0, 12), "v")
        torch.testing.assert_close(v, 1 - 0.75 ** torch.arange(1.0, 13.0))
        with torch.no_grad():
            layer.logit_rate.fill_(50.0)  # as fast as learning may make it
        assert layer.tau_mem.item() == pytest.approx(layer.dt)
        assert trace(layer, constant(1.0, 5), "v")[0].tolist() == pytest.approx([1.0] * 5)
        with pytest.raises(RangeError):
            PLIF(1, tau_mem=1.0)

    def test_readout_is_a_filter(self):
        x = torch.rand(30, 2, 3, dtype=double)
        out, _ = LeakyIntegrator(3, tau_mem=7.0)(x)
        kernel = torch.exp(-torch.arange(30.0) / 7.0)
        expected = torch.stack([(kernel[: t + 1].flip(0).view(-1, 1, 1) * x[: t + 1]).sum(0) for t in range(30)])
        torch.testing.assert_close(out, expected)
        settled, _ = LeakyIntegrator(1, tau_mem=5.0, scale_input=True, rest=-0.3)(constant(0.7, 300))
        assert settled[-1].item() == pytest.approx(0.4)


class TestCurrentBasedSynapses:
    n = torch.arange(60.0, dtype=double)

    def test_exponential_kernel(self):
        (i,) = trace(CUBA(1, tau_syn=6.0, threshold=99.0), pulse(60), "i")
        torch.testing.assert_close(i, torch.exp(-self.n / 6.0))

    @pytest.mark.parametrize("rise", [1.5, 5.999, 6.0])
    def test_double_exponential_kernel_and_its_alpha_limit(self, rise):
        (i,) = trace(CUBA(1, tau_syn=6.0, tau_rise=rise, threshold=99.0), pulse(60), "i")
        fall, up = math.exp(-1 / 6.0), math.exp(-1 / rise)
        expected = sum(fall ** (self.n - j).clamp_min(0) * up**j * (self.n >= j) for j in range(60))
        torch.testing.assert_close(i, expected)
        if rise == 6.0:
            torch.testing.assert_close(i, (self.n + 1) * torch.exp(-self.n / 6.0))

    @pytest.mark.parametrize("rise", [None, 2.0, 5.0, 14.0, 5.0 * (1 + 1e-9)])
    def test_norms(self, rise):
        x = pulse(250)
        (area,) = trace(CUBA(1, tau_syn=5.0, tau_rise=rise, norm="area", threshold=99.0), x, "i")
        assert area.sum().item() == pytest.approx(1.0, rel=1e-6)
        (peak,) = trace(CUBA(1, tau_syn=5.0, tau_rise=rise, norm="peak", threshold=99.0), x, "i")
        assert peak.max().item() == pytest.approx(1.0, rel=1e-6)

    def test_membrane_filters_the_current(self):
        (v,) = trace(CUBA(1, tau_mem=9.0, tau_syn=4.0, threshold=99.0), pulse(60), "v")
        a, b = math.exp(-1 / 9.0), math.exp(-1 / 4.0)
        torch.testing.assert_close(v, (a ** (self.n + 1) - b ** (self.n + 1)) / (a - b))

    def test_without_a_rise_there_is_none_to_learn(self):
        with pytest.raises(UnknownNameError):
            CUBA(1, learn=("tau_rise",))
        with pytest.raises(UnknownNameError):
            CUBA(1, norm="sum")


class TestConductanceBasedSynapses:
    def test_equilibrium_potential(self):
        excite, inhibit = torch.rand(2, 1, 5, dtype=double) * 0.5
        layer = COBA(5, threshold=100.0)
        _, state = layer((excite.expand(2000, 1, 5), inhibit.expand(2000, 1, 5)))
        ge, gi = excite / (1 - math.exp(-1 / 5)), inhibit / (1 - math.exp(-1 / 10))
        torch.testing.assert_close(state.ge, ge)
        torch.testing.assert_close(state.v, (-60.0 + ge * 0.0 + gi * -80.0) / (1 + ge + gi))

    def test_follows_the_differential_equation(self):
        # a conductance held within each step, as the layer's step means it, by another solver
        excite, inhibit = torch.rand(2, 40, 1, 1, dtype=double) * 0.6
        layer, state, v, g = COBA(1, threshold=100.0), None, -60.0, np.zeros(2)
        for e, i in zip(excite, inhibit, strict=True):
            _, state = layer((e[None], i[None]), state)
            g = g * np.exp([-1 / 5, -1 / 10]) + [e.item(), i.item()]
            slope = lambda _, v, g=g: ((-60 - v) + g[0] * (0 - v) + g[1] * (-80 - v)) / 20  # noqa: E731
            v = solve_ivp(slope, (0, 1), [v], rtol=1e-10, atol=1e-10).y[0, -1]
            assert state.v.item() == pytest.approx(v, abs=1e-6)

    def test_shunting_inhibition_divides(self):
        # at a reversal potential equal to rest, inhibition does nothing alone and divides what excitation does
        layer = COBA(1, threshold=100.0, e_inh=-60.0)
        _, alone = layer((constant(0.0, 500), constant(0.3, 500)))
        assert alone.v.item() == pytest.approx(-60.0)
        _, both = layer((constant(0.1, 500), constant(0.3, 500)))
        _, excited = layer((constant(0.1, 500), constant(0.0, 500)))
        assert -60 < both.v.item() < excited.v.item()

    def test_one_tensor_is_taken_by_its_sign_and_no_conductance_is_negative(self):
        x = torch.randn(50, 2, 3, dtype=double) * 0.1
        layer = COBA(3)
        signed, state = layer(x)
        pair, other = layer((x.clamp_min(0), (-x).clamp_min(0)))
        assert torch.equal(signed, pair)
        assert all(torch.equal(a, b) for a, b in zip(state, other, strict=True))
        _, state = layer((-x.abs(), -x.abs()))
        assert not state.ge.any()
        assert not state.gi.any()

    def test_any_drive_is_stable(self):
        _, state = COBA(1, reset="none")((constant(1e4, 50), constant(1e4, 50)))
        assert -80 <= state.v.item() <= 0

    def test_a_pair_that_is_none(self):
        x = torch.rand(5, 2, 3)
        with pytest.raises(ShapeError, match="two inputs"):
            COBA(3)((x, x, x))
        with pytest.raises(ShapeError, match="xi does not fit"):
            COBA(3)((x, x[:4]))


class TestAdaptation:
    def test_threshold_at_a_steady_rate(self):
        x = constant(0.5, 1200)
        z, a = trace(ALIF(1, tau_mem=10.0, tau_adapt=150.0, beta=0.05), x, "z", "a")
        assert a[600:].mean().item() == pytest.approx(z[600:].mean().item() / (1 - math.exp(-1 / 150)), rel=0.02)
        gaps = times(z).diff()
        assert gaps[0] < gaps[-1]
        assert gaps[-5:].max() - gaps[-5:].min() <= 1

    def test_threshold_rises_by_beta_per_spike_and_falls_exponentially(self):
        x = torch.zeros(40, 1, 1, dtype=double)
        x[0] = 1.5
        (a,) = trace(ALIF(1, tau_adapt=25.0, beta=0.7), x, "a")
        torch.testing.assert_close(a[1:], torch.exp(-torch.arange(39.0) / 25.0))

    def test_subthreshold_adaptation_settles_where_both_equations_do(self):
        layer = ALIF(1, tau_mem=12.0, beta=0.0, a=1.7, tau_current=40.0, rest=0.2, scale_input=True, threshold=9.0)
        _, state = layer(constant(0.9, 800))
        # v - rest = x - w and w = a (v - rest)
        assert (state.v.item(), state.w.item()) == pytest.approx((0.2 + 0.9 / 2.7, 1.7 * 0.9 / 2.7))

    def test_current_at_a_steady_rate(self):
        z, w = trace(ALIF(1, tau_mem=10.0, beta=0.0, b=0.01, tau_current=100.0), constant(0.4, 1000), "z", "w")
        assert w[500:].mean().item() == pytest.approx(0.01 * z[500:].mean().item() / (1 - math.exp(-1 / 100)), rel=0.02)

    def test_without_adaptation_it_is_a_leaky_neuron(self):
        x = torch.rand(80, 2, 3, dtype=double)
        assert torch.equal(ALIF(3, beta=0.0)(x)[0], LIF(3)(x)[0])


def adex_by_numpy(numbers, current, steps, dt):
    """Euler steps as the papers write them, in plain Python."""
    v, w, found = numbers["e_leak"], 0.0, []
    peak = numbers["v_threshold"] + 5 * numbers["delta_t"]
    for step in range(steps):
        force = numbers["g_leak"] * (
            numbers["delta_t"] * math.exp((v - numbers["v_threshold"]) / numbers["delta_t"]) - (v - numbers["e_leak"])
        )
        dv = (force - w + current) / numbers["capacitance"]
        dw = (numbers["a"] * (v - numbers["e_leak"]) - w) / numbers["tau_w"]
        v, w = v + dt * dv, w + dt * dw
        if v > peak:
            v, w = numbers["v_reset"], w + numbers["b"]
            found.append(step)
    return found


@pytest.fixture(scope="module")
def runs(_numbers_in_double_precision):
    """Spike times in ms of all published patterns of AdEx, 500 ms at 0.1 ms, one column each; by the fused loop."""
    names = list(AdEx.patterns)
    rows = {key: torch.tensor([AdEx.patterns[n][key] for n in names]) for key in AdEx.patterns[names[0]]}
    layer = AdEx(len(names), **rows)
    layer.backend = "fused"
    drive = torch.tensor([AdEx.currents[n] for n in names], dtype=double)
    spikes, _ = layer(drive.expand(5000, 1, len(names)))
    return {name: times(spikes[..., k]) * layer.dt for k, name in enumerate(names)}


class TestAdEx:
    @pytest.mark.parametrize("name", ["tonic spiking", "adaptation", "initial burst", "regular bursting"])
    def test_spike_times_are_those_of_an_independent_integration(self, runs, name):
        expected = adex_by_numpy(AdEx.patterns[name], AdEx.currents[name], 5000, 0.1)
        assert runs[name].tolist() == pytest.approx([0.1 * t for t in expected])

    def test_where_the_peak_lies_hardly_matters(self):
        usual, higher = AdEx.pattern("tonic spiking", 1), AdEx.pattern("tonic spiking", 1, v_peak=-20.0)
        first, second = (times(layer(constant(500.0, 1200))[0]).diff() * 0.1 for layer in (usual, higher))
        torch.testing.assert_close(second[:10], first[:10], rtol=0, atol=0.45)  # the exponential's tail and a step

    def test_published_patterns(self, runs):
        gaps = {name: found.diff() for name, found in runs.items()}
        tonic = gaps["tonic spiking"][5:]
        assert tonic.max() - tonic.min() < 0.5
        adapting = gaps["adaptation"]
        assert (adapting.diff() > 0).all()
        assert adapting[-1] > 5 * adapting[0]
        first = gaps["initial burst"]  # some spikes in quick succession, then slow and regular ones
        assert first[:2].max() < 10
        assert first[2:].min() > 50
        assert first[3:].max() - first[3:].min() < 1
        bursts = gaps["regular bursting"][2:]  # a long silence, a quick pair, a long silence …
        assert bursts[0::2].min() > 100
        assert bursts[1::2].max() < 10
        faster = gaps["delayed accelerating"]
        assert runs["delayed accelerating"][0] > 1.5 * faster[0]
        assert (faster.diff() < 0.05).all()
        assert faster[0] > 1.7 * faster[-1]
        late = gaps["delayed regular bursting"]  # a delay, then bursts of four
        assert runs["delayed regular bursting"][0] > 50
        assert (late[3::4].min() > 50) & (late[[0, 1, 2, 4, 5, 6]].max() < 10)
        assert 0 < len(runs["transient spiking"]) < 12
        assert runs["transient spiking"][-1] < 150
        irregular = gaps["irregular spiking"][3:]
        assert irregular.std() / irregular.mean() > 0.2

    def test_rest_is_rest(self):
        _, state = AdEx(2, a=torch.tensor([0.0, 4.0]))(constant(0.0, 1000, 2))
        # the leak and the exponential balance a little above the leak's reversal potential
        assert ((state.v > -70.6) & (state.v < -70.5)).all()

    def test_substeps_are_shorter_steps_under_a_held_input(self):
        x = 1200 * torch.rand(60, 2, 3, dtype=double)
        fine, state = AdEx(3, dt=0.1)(x.repeat_interleave(10, 0))
        coarse, after = AdEx(3, dt=1.0, substeps=10)(x)
        assert torch.equal(coarse, fine.unflatten(0, (60, 10)).amax(1))
        assert torch.equal(after.v, state.v)
        assert torch.equal(after.z, coarse[-1])
        with pytest.raises(RangeError):
            AdEx(3, substeps=0)

    def test_a_spike_must_end(self):
        with pytest.raises(RangeError, match="below the reset"):
            AdEx(1, v_reset=-30.0)
        with pytest.raises(UnknownNameError, match="did you mean"):
            AdEx.pattern("tonic spikin", 1)


def izhikevich_by_numpy(a, b, c, d, current, steps):
    """The loop of the paper: the reset stands at the start of a step, so a spike shows one step later."""
    v, u, found = -65.0, -65.0 * b, []
    for step in range(steps + 1):
        if v >= 30:
            found.append(step - 1)
            v, u = c, u + d
        v += 0.5 * (0.04 * v**2 + 5 * v + 140 - u + current)
        v += 0.5 * (0.04 * v**2 + 5 * v + 140 - u + current)
        u += a * (b * v - u)
    return found


@pytest.fixture(scope="module")
def spikes(_numbers_in_double_precision):
    """Spike times of all published types of Izhikevich's neuron under a current of 10; by the fused loop."""
    layer = Izhikevich.of_type(list(Izhikevich.types))
    layer.backend = "fused"
    v = torch.full((1, 7), -65.0, dtype=double)  # where the paper starts
    found, _ = layer(constant(10.0, 600, 7), layer.initial_state(1)._replace(v=v, u=v * layer.b))
    return {kind: times(found[..., k]) for k, kind in enumerate(Izhikevich.types)}


class TestIzhikevich:
    kinds = tuple(Izhikevich.types)

    @pytest.mark.parametrize("kind", kinds)
    def test_spike_times_are_those_of_the_loop_in_the_paper(self, spikes, kind):
        # rounding grows tenfold with each spike, as the membrane overshoots: later ones differ between any two programs
        expected = izhikevich_by_numpy(*Izhikevich.types[kind], 10.0, 600)
        assert len(expected) >= 10
        assert spikes[kind][:10].tolist() == expected[:10]

    def test_published_patterns(self, spikes):
        gaps = {kind: found.diff().double() for kind, found in spikes.items()}
        assert gaps["RS"][0] < gaps["RS"][-1]  # adapts
        assert gaps["IB"][0] < 0.2 * gaps["IB"][1:].min()  # one burst, then single spikes
        bursts = gaps["CH"]
        assert ((bursts > 4 * bursts.min()).sum() >= 5) & (bursts.min() <= 4)  # burst after burst
        assert len(spikes["FS"]) > 2 * len(spikes["RS"])
        assert gaps["FS"][-15:].mean() < 1.2 * gaps["FS"][3:18].mean()  # without adaptation
        assert len(spikes["LTS"]) > len(spikes["RS"])
        assert gaps["LTS"][0] < gaps["LTS"][-1]

    def test_rest_is_rest(self):
        layer = Izhikevich.of_type(self.kinds)
        stable = torch.tensor([kind != "RZ" for kind in self.kinds])
        spikes, state = layer(constant(0.0, 500, 7))
        assert not spikes[..., stable].any()
        torch.testing.assert_close(state.v[:, stable], layer.initial_state(1).v[:, stable])
        # where 0.04 v² + (5 - b) v + 140 = 0
        v, b = state.v[0, 0].item(), layer.b[0].item()
        assert 0.04 * v**2 + (5 - b) * v + 140 == pytest.approx(0.0, abs=1e-9)

    def test_types_are_one_per_unit(self):
        with pytest.raises(UnknownNameError, match="LTS"):
            Izhikevich.of_type("LST", 3)
        for wrong in (lambda: Izhikevich.of_type("RS"), lambda: Izhikevich.of_type(["RS", "FS"], 3)):
            with pytest.raises(ShapeError):
                wrong()
        with pytest.raises(RangeError):
            Izhikevich(1, c=40.0)


class TestResonance:
    def test_state_turns_at_its_frequency_and_dies_away(self):
        p, q = trace(ResonateAndFire(1, frequency=40.0, tau=30.0, threshold=9.0), pulse(200), "p", "q")
        t = torch.arange(200.0)
        z = torch.exp(t * complex(-1 / 30.0, 2 * math.pi * 0.040))
        torch.testing.assert_close(p, z.real)
        torch.testing.assert_close(q, z.imag)

    @pytest.mark.parametrize("build", [ResonateAndFire, BalancedResonate])
    def test_it_answers_best_to_its_own_frequency(self, build):
        frequencies = torch.arange(10.0, 81.0, 2.5)
        layer = build(len(frequencies), frequency=40.0, threshold=1e9)
        x = torch.sin(2 * math.pi * frequencies / 1000 * torch.arange(1000.0).view(-1, 1, 1))
        state, sizes = None, []
        for now in x:
            _, state = layer(now[None], state)
            sizes.append(torch.hypot(state.p, state.q)[0])
        amplitude = torch.stack(sizes)[600:].amax(0)
        assert abs(frequencies[amplitude.argmax()].item() - 40.0) <= 2.5

    def test_two_pulses_in_phase_make_a_spike_and_in_antiphase_none(self):
        layer, gaps = ResonateAndFire(1, frequency=50.0, tau=50.0, threshold=1.5), torch.arange(5, 41)  # 20 ms a period
        x = torch.zeros(80, len(gaps), 1)
        x[0], x[gaps, torch.arange(len(gaps))] = 1.0, 1.0
        fire = set(gaps[layer(x)[0].sum((0, 2)) > 0].tolist())
        assert 20 in fire
        assert not {10, 30} & fire

    def test_inhibition_alone_can_make_it_fire(self):
        # a negative pulse, then the rebound half a period later: what an integrator never does
        x = torch.zeros(60, 1, 1)
        x[0] = -1.6
        assert ResonateAndFire(1, frequency=25.0, tau=100.0)(x)[0].any()
        assert not LIF(1)(x)[0].any()

    def test_balanced_step_neither_grows_nor_decays_without_offset(self):
        layer = BalancedResonate(1, frequency=60.0, offset=1e-12, threshold=1e9)
        p, q = trace(layer, pulse(500), "p", "q")
        torch.testing.assert_close(torch.hypot(p, q), torch.ones(500), rtol=1e-6, atol=1e-6)
        with pytest.raises(RangeError):
            BalancedResonate(1, frequency=200.0)
        with pytest.raises(UnsupportedError):
            BalancedResonate(1, refractory=2.0)

    def test_spikes_brake_the_balanced_unit(self):
        x = 0.5 * torch.sin(2 * math.pi * 0.040 * torch.arange(500.0)).view(-1, 1, 1)
        quiet, _ = BalancedResonate(1, frequency=40.0, brake=0.1)(x)
        wild, _ = BalancedResonate(1, frequency=40.0, brake=1e-9)(x)
        assert 0 < quiet.sum() < wild.sum()


class TestCompartments:
    def test_coupled_compartments_settle_as_resistors_do(self):
        layer = TwoCompartment(1, plateau=0.0, backprop=0.0, to_soma=0.8, to_dendrite=0.4, threshold=99.0)
        soma, dendrite = 0.3, 0.9
        _, state = layer((constant(soma, 500), constant(dendrite, 500)))
        expected = np.linalg.solve([[1.8, -0.8], [-0.4, 1.4]], [soma, dendrite])
        assert (state.v.item(), state.d.item()) == pytest.approx(tuple(expected))

    def test_follows_the_differential_equation_as_steps_shorten(self):
        layer = TwoCompartment(1, tau_soma=8.0, tau_dend=15.0, backprop=0.0, plateau=3.0, threshold=99.0, dt=0.02)
        _, state = layer(constant(0.8, 1000))

        def slope(_, y):
            v, d = y
            plateau = 3.0 / (1 + math.exp(-(d - 1.0) / 0.1))
            return [(-v + 1.0 * (d - v)) / 8.0, (-d + 0.8 + plateau + 0.3 * (v - d)) / 15.0]

        exact = solve_ivp(slope, (0, 20), [0, 0], rtol=1e-9, atol=1e-9).y[:, -1]
        assert (state.v.item(), state.d.item()) == pytest.approx(tuple(exact), rel=0.01)

    def test_a_plateau_outlasts_its_input(self):
        layer = TwoCompartment(2, plateau=torch.tensor([0.0, 4.0]), threshold=99.0)
        x = torch.zeros(200, 1, 2)
        x[:40] = 3.0
        _, state = layer(x)
        assert state.d[0, 0].item() == pytest.approx(0.0, abs=1e-3)
        assert state.d[0, 1].item() > 2.0

    def test_spikes_reach_the_dendrite_a_step_later(self):
        x = torch.zeros(3, 1, 1)
        x[0] = 30.0
        without = trace(TwoCompartment(1, alone="soma", plateau=0.0, backprop=0.0, to_dendrite=0.0), x, "d")[0]
        with_it = trace(TwoCompartment(1, alone="soma", plateau=0.0, backprop=0.5, to_dendrite=0.0), x, "d")[0]
        assert (with_it - without)[:2].tolist() == pytest.approx([0.0, 0.5])

    def test_alone_names_the_compartment(self):
        x = torch.rand(30, 2, 3)
        for name, pair in (("soma", (x, 0 * x)), ("dendrite", (0 * x, x))):
            layer = TwoCompartment(3, alone=name)
            assert torch.equal(layer(x)[1].d, layer(pair)[1].d)
        with pytest.raises(UnknownNameError):
            TwoCompartment(3, alone="axon")
        with pytest.raises(RangeError):
            TwoCompartment(3, to_soma=-0.1)

    def test_branches_are_filters_of_their_own(self):
        tau = torch.tensor([2.0, 30.0])
        x = torch.rand(25, 2, 6)
        out, state = Dendrite(3, branches=2, tau=tau, nonlinearity="linear", conductance=torch.tensor([1.0, 0.5]))(x)
        alone = [LeakyIntegrator(3, tau_mem=t, scale_input=True)(x[..., k::2])[0] for k, t in enumerate(tau.tolist())]
        torch.testing.assert_close(out, alone[0] + 0.5 * alone[1])
        assert state.v.shape == (2, 3, 2)

    def test_clustered_input_drives_sigmoid_branches_more_than_scattered(self):
        # the same total on one branch passes its threshold, spread over all four it does not
        clustered, scattered = torch.zeros(80, 1, 4), torch.full((80, 1, 4), 0.25)
        clustered[..., 0] = 1.0
        for kind, favours in (("sigmoid", True), ("linear", False)):
            layer = Dendrite(1, branches=4, nonlinearity=kind)
            gain = (layer(clustered)[0][-1] / layer(scattered)[0][-1]).item()
            assert (gain > 2) == favours

    def test_dendrites_before_a_soma_learn(self):
        net = Sequential(
            torch.nn.Linear(5, 12), Dendrite(3, branches=4, learn=("tau", "conductance")), TwoCompartment(3)
        )
        out, _ = net(torch.rand(20, 2, 5) * 4)
        out.sum().backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())
        for wrong in (
            lambda: Dendrite(3, branches=0),
            lambda: Dendrite((3, 2)),
            lambda: Dendrite(3)(torch.rand(5, 2, 3)),
        ):
            with pytest.raises(ShapeError):
                wrong()
        with pytest.raises(UnknownNameError):
            Dendrite(3, nonlinearity="relu")
