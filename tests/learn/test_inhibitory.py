"""Inhibitory homeostasis: targets met, what may move and what may not, chaos not frozen in silence, bad input."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

from plexus.errors import PlexusError, RangeError, ShapeError, UnknownNameError, UnsupportedError
from plexus.learn.homeostasis import ChaoticReservoirError, ChaoticReservoirWarning, InhibitoryHomeostasis
from plexus.nn.neurons import RecurrentLIF
from plexus.nn.reservoirs import EchoState
from plexus.units._port import Port


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noise(steps: int = 1500, batch: int = 1, seed: int = 5) -> Tensor:
    return 2 * torch.rand(steps, batch, 1, generator=generator(seed), dtype=torch.float64) - 1


def make(units: int = 100, seed: int = 0, **settings: object) -> EchoState:
    return EchoState(1, units, generator=generator(seed), dtype=torch.float64, **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("target", [0.3, 0.5, 0.6])
@pytest.mark.parametrize("balance", [-0.3, 0.3])
def test_rates_meet_their_targets_on_new_input(target: float, balance: float) -> None:
    cell = make(balance=balance)
    home = InhibitoryHomeostasis(cell, target, tolerance=0.005, max_steps=4000)
    before = (cell(noise(500, seed=6))[0][100:].mean((0, 1)) - target).abs().mean()
    result = home.run(noise(4000))
    after = (cell(noise(500, seed=6))[0][100:].mean((0, 1)) - target).abs().mean()
    assert result.rate_error == home.rate_error == pytest.approx(float(result.history[-1]))
    assert after < 0.02 < before
    assert result.echo is not None
    assert result.echo.converged


def test_heterogeneous_targets_are_met_unit_by_unit() -> None:
    cell = make()
    home = InhibitoryHomeostasis(cell, 0.5, spread=0.2, generator=generator(1), tolerance=0.0, max_steps=4000)
    home.run(noise(4000))
    rates = cell(noise(500, seed=6))[0][100:].mean((0, 1))
    assert float(torch.corrcoef(torch.stack([rates, home.targets]))[0, 1]) > 0.95
    assert float(home.targets.min()) >= 0.3
    assert float(home.targets.max()) <= 0.7


def test_extreme_spread_stays_inside_the_range() -> None:
    home = InhibitoryHomeostasis(make(), 0.5, spread=5.0, generator=generator(1))
    assert float(home.targets.min()) == pytest.approx(0.03)
    assert float(home.targets.max()) == pytest.approx(0.97)


@pytest.mark.parametrize("synapses", ["inhibitory", "excitatory"])
def test_only_the_named_synapses_move_and_signs_hold(synapses: str) -> None:
    cell = make(balance=0.2)
    before = {name: value.clone() for name, value in cell.state_dict().items()}
    InhibitoryHomeostasis(cell, synapses=synapses).run(noise())  # type: ignore[arg-type]
    moved = cell.weight != before["weight"]
    side = -1.0 if synapses == "inhibitory" else 1.0
    assert bool(moved.any())
    assert not bool(moved[:, cell.signs != side].any())
    assert not bool(moved[~cell.mask].any())
    assert torch.all(cell.weight * cell.signs >= 0)
    for name in ("input_weight", "bias", "signs", "mask"):
        assert torch.equal(getattr(cell, name), before[name])


def test_one_step_by_hand() -> None:
    """Two units, one of them inhibitory: the change of the single plastic weight, written out."""
    weight = torch.tensor([[0.0, -0.5], [0.0, 0.0]], dtype=torch.float64)
    weight[1, 1] = -0.2
    cell = EchoState.from_weights(weight, torch.ones(2, 1, dtype=torch.float64))
    u = torch.full((2, 1, 1), 0.3, dtype=torch.float64)
    home = InhibitoryHomeostasis(cell, 0.4, lr=0.1, window=2, tolerance=0.0)
    home.run(u, on_chaos="allow")
    r1 = torch.sigmoid(torch.tensor([0.3, 0.3], dtype=torch.float64))  # from rest; rest moves no weight
    r2 = torch.sigmoid(torch.tensor([0.3 - 0.5 * r1[1], 0.3 - 0.2 * r1[1]], dtype=torch.float64))
    assert float(cell.weight[0, 1]) == pytest.approx(float(-0.5 - 0.1 * (r2[0] - 0.4) * r1[1]))
    assert float(cell.weight[1, 1]) == pytest.approx(float(-0.2 - 0.1 * (r2[1] - 0.4) * r1[1]))


def test_a_synapse_at_zero_may_grow_back() -> None:
    cell = make(balance=1.0)  # existing inhibitory synapses, all at zero
    assert not bool((cell.weight < 0).any())
    result = InhibitoryHomeostasis(cell, 0.4, tolerance=0.02, max_steps=3000).run(noise(3000), on_chaos="allow")
    assert bool((cell.weight < 0).any())
    assert result.history[-1] < result.history[0] / 4


def test_the_run_stops_when_on_target() -> None:
    cell = make()
    home = InhibitoryHomeostasis(cell, 0.5, tolerance=0.2)
    result = home.run(noise())
    assert result.converged
    assert result.steps < 1500
    assert result.steps == 100 * len(result.history)
    assert InhibitoryHomeostasis(make(), tolerance=0.0, max_steps=300).run(noise()).steps == 300


class ElmanState(NamedTuple):
    h: Tensor


class Elman(nn.Module):
    """A foreign rate network with another name for its weight."""

    def __init__(self, cell: EchoState) -> None:
        super().__init__()
        self.recurrent = nn.Parameter(cell.weight.clone())
        self.inward = cell.input_weight.clone()

    def initial_state(self, batch: int = 1) -> ElmanState:
        return ElmanState(self.recurrent.new_zeros(batch, len(self.recurrent)).detach())

    def forward(self, u: Tensor, state: ElmanState | None = None) -> tuple[Tensor, ElmanState]:
        h = self.initial_state(u.shape[1]).h if state is None else state.h
        out = []
        for now in u:
            h = torch.sigmoid(h @ self.recurrent.T + now @ self.inward.T)
            out.append(h)
        return torch.stack(out), ElmanState(h)


@pytest.mark.parametrize("batch", [1, 3])
def test_a_foreign_network_adapts_as_the_fused_one_does(batch: int) -> None:
    cell = make(30, density=0.3)
    foreign = Elman(cell)
    stream = noise(200, batch)
    InhibitoryHomeostasis(cell, tolerance=0.0).run(stream)
    InhibitoryHomeostasis(foreign, tolerance=0.0, weight="recurrent").run(stream)
    torch.testing.assert_close(foreign.recurrent.detach(), cell.weight, rtol=1e-8, atol=1e-10)


def test_a_spiking_network_adapts_through_low_passed_rates() -> None:
    """Noisy spikes cannot be held on target exactly; on new input the frozen network is at least ten times nearer."""
    net = RecurrentLIF(40, tau_mem=10.0)
    with torch.no_grad():
        net.weight.copy_(make(40, density=0.4, gain=0.5).weight)

    def drive(steps: int, seed: int) -> Tensor:
        return 0.5 + 1.5 * torch.rand(steps, 1, 40, generator=generator(seed))

    def error() -> float:
        with torch.no_grad():
            return float((net(drive(800, 8))[0][200:].mean((0, 1)) - 0.1).abs().mean())

    before = error()
    InhibitoryHomeostasis(net, 0.1, smoothing=0.95, max_steps=2000).run(drive(2000, 7), on_chaos="allow")
    assert error() < before / 10


def test_edits_inside_the_loop_are_seen_while_adapting() -> None:
    """With a silenced inhibitory unit nothing changes at its synapses, since it sends nothing."""
    cell = make(40, density=0.4)
    silent = int((cell.signs < 0).nonzero()[0])
    before = cell.weight[:, silent].clone()
    cell.port = Port.on(torch.arange(40) == silent, gain=0.0)
    InhibitoryHomeostasis(cell, tolerance=0.0).run(noise(200))
    assert torch.equal(cell.weight[:, silent], before)


def chaotic() -> EchoState:
    return make(200, gain=6.0, input_scale=0.1, balance=-0.2)


def test_a_chaotic_reservoir_is_not_frozen_in_silence() -> None:
    cell = chaotic()
    before = cell.weight.clone()
    home = InhibitoryHomeostasis(cell)
    with pytest.raises(ChaoticReservoirError, match="does not forget") as caught:
        home.run(noise())
    assert isinstance(caught.value, PlexusError)
    assert torch.equal(cell.weight, before)
    with pytest.warns(ChaoticReservoirWarning):
        result = home.run(noise(), on_chaos="warn")
    assert not torch.equal(cell.weight, before)
    assert result.echo is not None
    assert not result.echo.converged


def test_one_shot_meets_the_mean_field_exactly() -> None:
    cell = make(gain=3.0)
    home = InhibitoryHomeostasis(cell, 0.5, spread=0.3, generator=generator(2))
    factor = home.one_shot()
    field = cell.weight @ home.targets
    held = factor > 0
    torch.testing.assert_close(torch.sigmoid(field[held]), home.targets[held])
    assert torch.all(torch.sigmoid(field[~held]) <= home.targets[~held])
    shifted = make(gain=3.0)
    home = InhibitoryHomeostasis(shifted, 0.5)
    mean = torch.tensor([0.7], dtype=torch.float64)
    factor = home.one_shot(mean)
    held = factor > 0
    field = shifted.weight @ home.targets + shifted.input_weight @ mean
    torch.testing.assert_close(torch.sigmoid(field[held]), home.targets[held])


def test_failure_leaves_the_weights_as_they_were() -> None:
    cell = make(activation="identity", gain=8.0)
    before = cell.weight.clone()
    with pytest.raises(RangeError):
        InhibitoryHomeostasis(cell, lr=1.0).run(noise())
    assert torch.equal(cell.weight, before)


def mixed() -> EchoState:
    return EchoState(1, 20, dale=False, generator=generator())


@pytest.mark.parametrize(
    ("error", "call"),
    [
        (RangeError, lambda: InhibitoryHomeostasis(make(), 0.0)),
        (RangeError, lambda: InhibitoryHomeostasis(make(), 1.0)),
        (RangeError, lambda: InhibitoryHomeostasis(make(), torch.full((100,), 1.2))),
        (RangeError, lambda: InhibitoryHomeostasis(make(), float("nan"))),
        (ShapeError, lambda: InhibitoryHomeostasis(make(), torch.full((99,), 0.5))),
        (RangeError, lambda: InhibitoryHomeostasis(make(), lr=0.0)),
        (RangeError, lambda: InhibitoryHomeostasis(make(), spread=0.1)),
        (RangeError, lambda: InhibitoryHomeostasis(make(), smoothing=1.0)),
        (RangeError, lambda: InhibitoryHomeostasis(mixed())),
        (RangeError, lambda: InhibitoryHomeostasis(make(50, inhibitory=0.02, density=0.1))),
        (UnknownNameError, lambda: InhibitoryHomeostasis(make(), synapses="inhibitor")),  # type: ignore[arg-type]
        (UnsupportedError, lambda: InhibitoryHomeostasis(nn.Linear(3, 2))),
        (UnsupportedError, lambda: InhibitoryHomeostasis(make(activation="tanh")).one_shot()),
        (RangeError, lambda: InhibitoryHomeostasis(make(balance=1.0)).one_shot()),
        (ShapeError, lambda: InhibitoryHomeostasis(make()).run(noise(0))),
        (ShapeError, lambda: InhibitoryHomeostasis(make()).run(noise(10)[:, 0])),
        (RangeError, lambda: InhibitoryHomeostasis(make()).run(noise(10) * float("nan"))),
        (UnknownNameError, lambda: InhibitoryHomeostasis(make()).run(noise(10), on_chaos="panic")),  # type: ignore[arg-type]
    ],
)
def test_bad_input(error, call) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(error) as caught:
        call()
    assert isinstance(caught.value, PlexusError)


def test_units_without_inhibition_are_listed() -> None:
    weight = torch.zeros(3, 3)
    weight[0, 2] = weight[1, 2] = -1.0
    with pytest.raises(RangeError, match="units \\[2\\]"):
        InhibitoryHomeostasis(EchoState.from_weights(weight, torch.ones(3, 1)))


def test_units_without_inhibition_may_be_skipped() -> None:
    weight = torch.zeros(3, 3, dtype=torch.float64)
    weight[0, 2] = weight[1, 2] = -1.0
    cell = EchoState.from_weights(weight, torch.ones(3, 1, dtype=torch.float64))
    home = InhibitoryHomeostasis(cell, 0.5, unreachable="skip", tolerance=0.0)
    assert home.bare == (2,)
    assert float(home.one_shot()[2]) == 1.0
    home.run(noise(200))
    assert torch.all(cell.weight[2] == 0)
    assert torch.isfinite(cell.weight).all()
