"""Models and tensors on another device than the CPU: measured as they are here, and what is measured lies here."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest
import torch
from torch import nn

from plexus import probe
from plexus.nn import LIF, EILinear, Sequential, initialise_ei
from plexus.nn.reservoirs import EchoState
from plexus.nn.synapses import DelayedLinear, Sparse
from plexus.probe import geometry, information, plots, robustness, scores, spike_trains
from plexus.probe._language import Letters
from plexus.units import Recording, Site, Table, sites

same = runpy.run_path(str(Path(__file__).with_name("same_numbers.py")))["same_numbers"]
CPU, HIDDEN = torch.device("cpu"), Site("1", "b u")


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


X, ROWS = drawn(24, 4), drawn(24, 6, seed=1)
Y, PAIRED = torch.arange(24) % 3, torch.arange(24) % 2
ROWS[:, 0] += 3 * PAIRED
SPIKES = (drawn(40, 2, 3) > 0.5).float()
SPIKES[:, 1, 2] = 0
LOGITS, SURE = drawn(5, 24, 3).cumsum(0), torch.rand(5, 24, generator=generator())
RING, CURVES = torch.arange(0.0, 180.0, 10.0), drawn(18, 4).abs()


def mlp(d: torch.device) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)).to(d)


class Reader(nn.Module):
    """A recurrent network, in double precision so that no device rounds it more coarsely than another."""

    def __init__(self) -> None:
        super().__init__()
        self.cells, self.out = nn.LSTM(4, 5, batch_first=True), nn.Linear(5, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.cells(x)[0][:, -1])


SEQUENCES = torch.rand(8, 7, 4, generator=generator(), dtype=torch.float64)
CELLS = Site("cells", "b t u")


def reader(d: torch.device) -> nn.Module:
    torch.manual_seed(0)
    return Reader().double().eval().to(d)


def spiking(d: torch.device) -> nn.Module:
    torch.manual_seed(0)
    delayed = DelayedLinear(6, 5, max_delay=3)
    sparse = Sparse(drawn(3, 5) > 0, generator=generator())
    return Sequential(nn.Linear(4, 6), LIF(6, threshold=0.1), delayed, LIF(5, threshold=0.1), sparse).to(d)


def balanced(d: torch.device) -> nn.Module:
    draw = generator()
    net = Sequential(EILinear(4, 20, generator=draw), LIF(20), EILinear(20, 4, output=True, generator=draw))
    initialise_ei(net, X.abs().expand(5, -1, -1))
    return net.to(d)


def reservoir(d: torch.device) -> nn.Module:
    return EchoState(1, 20, gain=0.5, generator=generator()).to(d)


def by_hand(d: torch.device, values: torch.Tensor = ROWS) -> Recording:
    return Recording({HIDDEN: values.to(d)}, {HIDDEN: Table(torch.arange(24).to(d))}, labels=PAIRED.to(d))


def summed(output: torch.Tensor, batch: object) -> torch.Tensor:
    return output.square().sum()


def recorded(d: torch.device, **options: object) -> Recording:
    return probe.record(mlp(d), [(X.to(d), Y.to(d))], HIDDEN, **options)


CASES = {
    "record": recorded,
    "record, pooled by hand": lambda d: probe.record(reader(d), SEQUENCES.to(d), CELLS, pool="mean", labels=Y[:8]),
    "stream": lambda d: list(probe.stream(mlp(d), X.to(d).split(8), HIDDEN, labels=Y.to(d))),
    "estimate": lambda d: probe.estimate(mlp(d), X.to(d), HIDDEN),
    "health": lambda d: probe.health(spiking(d), X.to(d).expand(6, -1, -1)).layers,
    "trace": lambda d: probe.trace(spiking(d), X.to(d).expand(6, -1, -1)),
    "operations": lambda d: probe.synaptic_operations(spiking(d), X.to(d).expand(6, -1, -1)),
    "operations, all": lambda d: probe.synaptic_operations(spiking(d), X.to(d).expand(6, -1, -1), occupied=False),
    "E-I balance": lambda d: probe.ei_balance(balanced(d), X.abs().to(d).expand(5, -1, -1)),
    "memory probe": lambda d: probe.memory_probe(
        LIF(1, tau_mem=2.0, reset="none").to(d), PAIRED.view(-1, 1).expand(24, 6).contiguous().to(d), (0, 1),
        inputs=ROWS.to(d)[..., None],
    ),
    "memory capacity": lambda d: probe.memory_capacity(
        torch.stack([drawn(400).roll(k) for k in range(3)], 1).to(d), drawn(400).to(d), 5,
        generator=generator(), washout=9, shuffles=2,
    ),
    "entropy of rates": lambda d: probe.neuronal_entropy(SURE.to(d)),
    "echo states": lambda d: probe.echo_state(reservoir(d), drawn(30, 1, 1).to(d), generator=generator()),
    "Jacobian": lambda d: probe.jacobian_radius(reservoir(d), drawn(30, 1, 1).to(d), washout=5, samples=2),
    "valid time": lambda d: probe.valid_time(drawn(9, 2, 3).to(d), drawn(9, 2, 3, seed=1).to(d)),
    "spectral radius": lambda d: probe.spectral_radius(drawn(4, 4).to(d)),
    "accumulated": lambda d: probe.accumulate(LOGITS.to(d), "mean"),
    **{f"confidence, {kind}": lambda d, kind=kind: probe.confidence(LOGITS.to(d), kind=kind)
       for kind in ("softmax", "margin", "entropy", "stability")},
    "latency curve": lambda d: probe.latency_accuracy_curve(LOGITS.to(d), Y, SURE.to(d)),
    "latency at thresholds": lambda d: probe.latency_accuracy_curve(
        LOGITS.to(d), Y.to(d), SURE, torch.tensor([0.3, 0.6])
    ),
    "oracle": lambda d: probe.oracle_latency(LOGITS.to(d), Y.to(d)),
    "calibration": lambda d: probe.expected_calibration_error(SURE.to(d), SURE > 0.4),
    "scale": lambda d: probe.fit_confidence_scale(LOGITS.to(d), Y),
    "front": lambda d: probe.pareto_front(SURE[0].to(d), SURE[1].to(d)),
    "dimensions": lambda d: geometry.participation_ratio(ROWS.to(d)),
    "complexity": lambda d: information.lz_complexity(SPIKES.movedim(0, -1).to(d)),
    "entropy rate": lambda d: information.entropy_rate_bound(SPIKES.movedim(0, -1).to(d), order=1),
    "spike times": lambda d: spike_trains.spike_times(SPIKES.to(d)),
    "rate": lambda d: spike_trains.firing_rate(SPIKES.to(d), window=10.0),
    "variation": lambda d: [spike_trains.coefficient_of_variation(SPIKES.to(d), kind=kind) for kind in ("cv", "cv2")],
    "Fano": lambda d: spike_trains.fano_factor(SPIKES.to(d), window=5.0),
    "correlation": lambda d: spike_trains.count_correlation(SPIKES.to(d), window=5.0),
    "van Rossum": lambda d: spike_trains.van_rossum_distance(spike_trains.spike_times(SPIKES.to(d))),
    "Victor-Purpura": lambda d: spike_trains.victor_purpura_distance(spike_trains.spike_times(SPIKES.to(d))),
    "fgsm": lambda d: robustness.fgsm(mlp(d), X.abs().clamp(max=1).to(d), Y.to(d), 0.1),
    "pgd": lambda d: robustness.pgd(
        mlp(d), X.abs().clamp(max=1).to(d), Y.to(d), torch.tensor(0.1), steps=2, step_size=0.05, generator=generator()
    ),
    "mean": lambda d: scores.mean(by_hand(d), Y.to(d)),
    "variance": lambda d: scores.variance(by_hand(d), {"a": PAIRED.to(d)}),
    "d'": lambda d: scores.dprime(by_hand(d)),
    "auroc": lambda d: scores.auroc(by_hand(d), Y.to(d)),
    "auroc of a stream": lambda d: scores.auroc([by_hand(d)], Y.to(d), budget=500),
    "average precision": lambda d: scores.average_precision(by_hand(d, ROWS.round()), nn.functional.one_hot(Y).to(d)),
    "information": lambda d: scores.mutual_information(by_hand(d), bins=3),
    "information between edges": lambda d: scores.mutual_information(by_hand(d), bins=torch.tensor([-0.5, 0.5]).to(d)),
    "quantile": lambda d: scores.quantile(by_hand(d), 0.3, Y.to(d)),
    "dead": lambda d: scores.dead(by_hand(d, ROWS.relu())),
    "saturated": lambda d: scores.saturated(by_hand(d)),
    "massive": lambda d: scores.massive_activations(by_hand(d), magnitude=2.0, ratio=2.0).shares,
    "activation counts": lambda d: scores.count_activations(by_hand(d), Y.to(d), tokens=(PAIRED == 1)[:, None].to(d)),
    "counts made by hand": lambda d: scores.ActivationCounts(
        ("a", "b"), {HIDDEN: torch.tensor([[3, 1], [0, 2]]).to(d)}, {HIDDEN: torch.tensor([4, 2]).to(d)}
    ),
    "conditions": lambda d: scores.condition_units(scores.count_activations(by_hand(d), Y.to(d)).probability, 3,
                                                   magnitude=0.1).serves,
    "one group left out": lambda d: scores.leave_one_out(
        scores.auroc, by_hand(d), PAIRED.to(d), (torch.arange(24) // 8).to(d)
    ),
    "signs": lambda d: scores.sign_consistency(by_hand(d), by_hand(d, ROWS.roll(1, 0)))[:2],
    "gradient x activation": lambda d: scores.gradient_times_activation(recorded(d), recorded(d, grad=summed)),
    "taylor": lambda d: scores.taylor(recorded(d), recorded(d, grad=summed), Y.to(d)),
    "integrated gradients": lambda d: scores.integrated_gradients(
        mlp(d), X.to(d), HIDDEN, summed, Y.to(d), baseline={HIDDEN: torch.ones(6).to(d)}, steps=3
    ),
    "sensitivity": lambda d: scores.sensitivity(mlp(d), X.to(d), HIDDEN, generator=generator(), probes=2),
    "sensitivity, exact": lambda d: scores.sensitivity(mlp(d), X.to(d), HIDDEN, probes=None),
    "Fisher": lambda d: scores.diagonal_fisher(mlp(d), [(X.to(d), Y.to(d))]),
    "Fisher of batches": lambda d: scores.diagonal_fisher(mlp(d), [(X.to(d), Y.to(d))], mode="batch"),
    "expected Fisher": lambda d: scores.diagonal_fisher(mlp(d), [X.to(d)], labels="expected", chunk=1),
    "drawn Fisher": lambda d: scores.diagonal_fisher(mlp(d), [X.to(d)], labels="model", generator=generator()),
    "output norms": lambda d: scores.output_norm(mlp(d), Site("2", at="input")),
    "logit variance": lambda d: scores.logit_variance(mlp(d), Site("2", at="input"), unembedding=drawn(9, 3).to(d)),
    "entropy neurons": lambda d: scores.entropy_neurons(
        mlp(d), 1, top_norm=0.5, at=Site("2", at="input"), unembedding=drawn(9, 3).to(d)
    ),
    "adaptation": lambda d: probe.adaptation_report(
        CURVES.to(d), CURVES.sqrt().to(d), RING, 90.0, period=180.0, prob=torch.full((18,), 1 / 18)
    ),
    "correlation of tuning": lambda d: probe.mean_correlation(CURVES.to(d)),
    **{f"directions, {how}": lambda d, how=how: probe.directions(by_hand(d), how=how)
       for how in ("difference", "mass-mean", "logistic", "pca")},
    "directions by labels": lambda d: probe.directions(by_hand(CPU), PAIRED.to(d)),
    "directions made by hand": lambda d: probe.Directions(
        {HIDDEN: ROWS[0].to(d)}, {HIDDEN: 1.0}, {HIDDEN: 0.0}, ""
    ).project(by_hand(CPU)),
    "accuracy": lambda d: probe.directions(by_hand(CPU)).accuracy(by_hand(d), PAIRED.to(d)),
    "drawn directions": lambda d: probe.directions(by_hand(d)).random_like(generator()),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES.values(), ids=list(CASES))
def test_what_is_measured_there_is_what_is_measured_here(case, elsewhere):
    same(case(elsewhere), case(CPU))


GRADIENTS = {
    "record": lambda d: probe.record(reader(d), SEQUENCES.to(d), CELLS, grad=summed),
    "health": lambda d: probe.health(reader(d), (SEQUENCES.to(d), Y[:8].to(d))).layers,
    "integrated gradients": lambda d: scores.integrated_gradients(reader(d), SEQUENCES.to(d), CELLS, summed, steps=2),
    "sensitivity": lambda d: scores.sensitivity(reader(d), SEQUENCES.to(d), CELLS, probes=None),
    "Fisher": lambda d: scores.diagonal_fisher(reader(d), [(SEQUENCES.to(d), Y[:8].to(d))], dtype=torch.float64),
    "fgsm": lambda d: robustness.fgsm(reader(d), SEQUENCES.to(d), Y[:8].to(d), 0.01),
}


@pytest.mark.parametrize("case", GRADIENTS.values(), ids=list(GRADIENTS))
def test_recurrent_layers_have_gradients_in_evaluation_mode(case, elsewhere):
    same(case(elsewhere), case(CPU))


def test_figures_are_drawn(elsewhere):
    pytest.importorskip("plotly")
    for figure in (
        lambda d: plots.raster(SPIKES.to(d)),
        lambda d: plots.traces(SPIKES.to(d), SPIKES.to(d)),
        lambda d: plots.histogram({"a": ROWS.to(d)}),
        lambda d: plots.movie(drawn(9, 1, 2, 3).to(d)),
    ):
        assert figure(elsewhere) == figure(CPU)


class TestLanguage:
    """Without a cache of keys, whose beginning transformers makes where no model lies yet."""

    @staticmethod
    def model(d: torch.device) -> nn.Module:
        transformers = pytest.importorskip("transformers")
        torch.manual_seed(0)
        config = transformers.GPT2Config(vocab_size=128, n_embd=16, n_layer=2, n_head=2, use_cache=False)
        return transformers.GPT2LMHeadModel(config).eval().to(d)

    def test_directions_of_prompts(self, elsewhere):
        here, there = (
            probe.contrast(model, Letters(), ["yes yes", "yes"], ["no", "no no"], sites.residual(model))
            for model in (self.model(CPU), self.model(elsewhere))
        )
        same(there, here)

    def test_answers(self, elsewhere):
        pairs = [probe.AnswerPair("1+1=", "2", "3"), probe.AnswerPair("2+1=", "3", "2")]
        here, there = (
            probe.answer_states(model, Letters(), pairs, probe.steering_sites(model, "attention"))
            for model in (self.model(CPU), self.model(elsewhere))
        )
        same(there, here)

    def test_surprisal(self, elsewhere):
        texts, prompts = ["a cat", "dogs bark"], ["one ", "two "]
        here, there = (probe.surprisal(self.model(d), Letters(), texts, prompts=prompts) for d in (CPU, elsewhere))
        same(there, here)

    def test_steps_of_generation(self, elsewhere):
        batch = {
            "input_ids": torch.tensor([[3, 4, 5], [6, 7, 8]]),
            "attention_mask": torch.ones(2, 3, dtype=torch.long),
        }
        options = {"use_cache": False, "pad_token_id": 0, "eos_token_id": None}
        here, there = (
            probe.step_states(self.model(d), {name: x.to(d) for name, x in batch.items()}, 3, options=options)
            for d in (CPU, elsewhere)
        )
        same(there, here)


def test_labels_may_stay_in_main_memory(elsewhere):
    model, x, y = torch.nn.Linear(4, 3), torch.randn(6, 4), torch.randint(3, (6,))
    here = scores.diagonal_fisher(model, [(x, y)])
    there = scores.diagonal_fisher(model.to(elsewhere), [(x.to(elsewhere), y)])
    for name, value in here.items():
        torch.testing.assert_close(there[name].cpu(), value)
