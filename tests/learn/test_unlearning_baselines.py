"""Other ways to forget, and the audit that judges them all."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from plexus.errors import RangeError, ShapeError, UnknownNameError, UnsupportedError
from plexus.learn import unlearning as un
from plexus.probe.scores import diagonal_fisher


def data(n: int = 60) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(n) % 3
    return 3 * torch.eye(3)[y] + 0.7 * torch.randn(n, 3, generator=generator), y


X, Y = data()
FORGET = un.Batches(X[Y == 0], Y[Y == 0], 10)
RETAIN = un.Batches(X[Y != 0], Y[Y != 0], 10)


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 16), nn.ReLU(), nn.Dropout(0.1), nn.Linear(16, 3))


@pytest.fixture
def model() -> nn.Module:
    net = network()
    return un.fine_tune(net, None, un.Batches(X, Y, 10), epochs=20, lr=0.02)


def test_the_testbed_learns(model: nn.Module) -> None:
    assert un.accuracy(model, FORGET) > 0.95
    assert un.accuracy(model, RETAIN) > 0.95


METHODS = {
    "retrain": lambda m: un.retrain(m, FORGET, RETAIN, epochs=20, lr=0.02, seed=1),
    "ascent": lambda m: un.gradient_ascent(m, FORGET, RETAIN, epochs=8, lr=0.02),
    "relabel": lambda m: un.relabel(m, FORGET, RETAIN, epochs=8, lr=0.02, generator=torch.Generator().manual_seed(0)),
    "bad teacher": lambda m: un.bad_teacher(m, FORGET, RETAIN, epochs=8, lr=0.02, seed=1),
}


@pytest.mark.parametrize("name", METHODS)
def test_each_method_forgets_and_keeps(name: str, model: nn.Module) -> None:
    model.train()
    returned = METHODS[name](model)
    assert returned is model
    assert model.training
    assert un.accuracy(model, FORGET) < 0.6
    assert un.accuracy(model, RETAIN) > 0.8
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("name", ["retrain", "relabel", "bad teacher"])
def test_same_seed_same_weights(name: str, model: nn.Module) -> None:
    twin = copy.deepcopy(model)
    for net in (model, twin):
        torch.manual_seed(5)
        METHODS[name](net)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), twin.parameters(), strict=True))


def test_ascent_raises_the_loss_of_the_forget_set(model: nn.Module) -> None:
    before = un.mean_loss(model, FORGET)
    un.gradient_ascent(model, FORGET, lr=1e-3)
    assert un.mean_loss(model, FORGET) > before


def test_noise_in_place_of_the_forget_set_impairs_it(model: nn.Module) -> None:
    twin, before = copy.deepcopy(model), un.mean_loss(model, FORGET)
    for net in (model, twin):
        torch.manual_seed(0)
        un.noise_impair(net, FORGET, RETAIN, lr=0.05, repair_lr=0.02, generator=torch.Generator().manual_seed(0))
    assert un.mean_loss(model, FORGET) > before
    assert un.accuracy(model, RETAIN) > 0.8
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), twin.parameters(), strict=True))


def test_retraining_knows_nothing_of_the_forget_set_or_the_old_weights(model: nn.Module) -> None:
    other = network(seed=9)
    with torch.no_grad():
        for p in other.parameters():
            p += 10
    for net in (model, other):
        torch.manual_seed(0)
        un.retrain(net, None, RETAIN, epochs=2, lr=0.02, seed=4)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), other.parameters(), strict=True))


def test_reinitialise_resets_buffers_and_refuses_the_unknown() -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    net(torch.randn(8, 2) + 5)
    state = torch.get_rng_state()
    un.reinitialise(net, seed=0)
    assert torch.equal(torch.get_rng_state(), state)
    assert bool((net[1].running_mean == 0).all())

    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.ones(1))

    with pytest.raises(UnsupportedError, match="initialised"):
        un.reinitialise(Own(), seed=0)


@pytest.mark.parametrize("within", ["layer", "model"])
def test_random_dampening_matches_counts_and_factors(within: str, model: nn.Module) -> None:
    ssd = un.SelectiveSynapticDampening(1.2).fit(diagonal_fisher(model, un.Batches(X, Y)))
    dampened = copy.deepcopy(model)
    report = ssd.forget(dampened, FORGET)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    undo = un.random_dampening(model, report, within=within, generator=torch.Generator().manual_seed(0))
    found = {name: (p.detach() / before[name]).flatten() for name, p in model.named_parameters()}
    factors = {name: sorted(value[value < 0.9999].tolist()) for name, value in found.items()}
    wanted = {name: sorted(value[value < 0.9999].tolist()) for name, value in report.betas.items()}
    if within == "layer":
        for name in wanted:
            assert factors[name] == pytest.approx(wanted[name], abs=1e-5)
    else:
        everything = sorted(number for some in factors.values() for number in some)
        assert everything == pytest.approx(sorted(number for some in wanted.values() for number in some), abs=1e-5)
    assert any(not torch.equal(p, q) for p, q in zip(model.parameters(), dampened.parameters(), strict=True))
    undo()
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


def test_shuffling_keeps_the_values() -> None:
    whole = diagonal_fisher(network(), un.Batches(X, Y))
    mixed = un.shuffled(whole, generator=torch.Generator().manual_seed(0))
    assert mixed.samples == whole.samples
    assert not torch.equal(mixed["0.weight"], whole["0.weight"])
    for name in whole:
        assert torch.equal(mixed[name].flatten().sort().values, whole[name].flatten().sort().values)


def test_bad_input(model: nn.Module) -> None:
    with pytest.raises(RangeError, match="retain set is empty"):
        un.fine_tune(model, None, [])
    with pytest.raises(RangeError, match="forget set is empty"):
        un.gradient_ascent(model, [])
    with pytest.raises(RangeError, match="learning rate"):
        un.fine_tune(model, None, RETAIN, lr=0.0)
    with pytest.raises(ShapeError, match="labels"):
        un.Batches(X, Y[:3])
    with pytest.raises(RangeError, match="batch"):
        un.Batches(X, Y, 0)
    report = un.DampeningReport(1.0, 1.0, {"z": 1}, {"z": 2}, {"z": torch.zeros(1)})
    with pytest.raises(UnknownNameError, match="parameter"):
        un.random_dampening(model, report)
    with pytest.raises(UnknownNameError, match="place"):
        un.random_dampening(model, report, within="layers")
    with pytest.raises(RangeError, match="not finite"):
        un.fine_tune(model, None, [(X * torch.nan, Y)])
    with pytest.raises(UnsupportedError, match="noise"):
        un.noise_impair(model, [{"input_ids": torch.zeros(1, 2, dtype=torch.long)}], RETAIN)


class Fixed(nn.Module):
    """Logits are the input."""

    def forward(self, x: Tensor) -> Tensor:
        return x


def test_entropy_in_closed_form() -> None:
    logits = torch.tensor([[0.0, 0.0], [math.log(3.0), 0.0], [100.0, 0.0]])
    found = un.prediction_entropy(Fixed(), [(logits, torch.zeros(3, dtype=torch.long))])
    quarter = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    torch.testing.assert_close(found, torch.tensor([math.log(2), quarter, 0.0]))


def test_membership_rate_finds_members_and_only_those() -> None:
    generator = torch.Generator().manual_seed(0)
    sure = 8 * torch.eye(4)[torch.arange(80) % 4] + torch.randn(80, 4, generator=generator)
    unsure = 0.5 * torch.randn(60, 4, generator=generator)
    labels = torch.arange(80) % 4
    members, outsiders = [(sure[:60], labels[:60])], [(unsure[:40], labels[:40])]
    assert un.membership_rate(Fixed(), members, outsiders, [(sure[60:], labels[60:])]) > 0.9
    assert un.membership_rate(Fixed(), members, outsiders, [(unsure[40:], labels[40:60])]) < 0.1


def test_confidence_equals_log_odds_and_does_not_cancel() -> None:
    logits = torch.tensor([[1.0, -0.5, 0.3], [200.0, 0.0, 0.0]])
    found = un.confidence(Fixed(), [(logits, torch.tensor([0, 0]))])
    p = logits[0].double().softmax(0)[0]
    assert float(found[0]) == pytest.approx(float((p / (1 - p)).log()))
    assert float(found[1]) == pytest.approx(200 - math.log(2))


def test_likelihood_ratio_is_uniform_for_a_sample_like_the_references() -> None:
    generator = torch.Generator().manual_seed(0)
    references = torch.randn(400, 500, generator=generator, dtype=torch.float64)
    scores = un.likelihood_ratio(torch.randn(500, generator=generator, dtype=torch.float64), references)
    quantiles = np.quantile(scores.numpy(), [0.1, 0.5, 0.9])
    assert quantiles == pytest.approx([0.1, 0.5, 0.9], abs=0.06)
    with pytest.raises(RangeError, match="two reference"):
        un.likelihood_ratio(scores, references[:1])
    with pytest.raises(ShapeError, match="do not match"):
        un.likelihood_ratio(scores[:3], references)


class ByHeart(nn.Module):
    """Knows the label of what it has seen, and nothing of anything else."""

    def __init__(self, x: Tensor, y: Tensor) -> None:
        super().__init__()
        self.x, self.y = x, nn.functional.one_hot(y).float()

    def forward(self, x: Tensor) -> Tensor:
        return 20 * (x[:, None] == self.x[None]).all(-1).float() @ self.y


def test_the_ratio_attack_finds_members_of_a_model_that_learned_them_by_heart() -> None:
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(60, 8, generator=generator), torch.randint(0, 3, (60,), generator=generator)
    members, outsiders = ([(x[part], y[part])] for part in (slice(0, 30), slice(30, 60)))
    memory = ByHeart(x[:30], y[:30])
    references = [nn.Linear(8, 3) for _ in range(3)]
    assert un.likelihood_ratio_auc(memory, references, members, outsiders) > 0.9
    blind = un.likelihood_ratio_auc(references[0], references, members, outsiders)
    assert blind == pytest.approx(
        un.auc(
            *(
                un.likelihood_ratio(
                    un.confidence(references[0], part), torch.stack([un.confidence(one, part) for one in references])
                )
                for part in (members, outsiders)
            )
        )
    )
    assert 0.2 < blind < 0.8
    with pytest.raises((RangeError, ShapeError)):
        un.likelihood_ratio_auc(memory, [], members, outsiders)
    with pytest.raises(RangeError, match="empty"):
        un.likelihood_ratio_auc(memory, references, [], outsiders)


def test_auc_equals_the_rank_statistic() -> None:
    sklearn_metrics = pytest.importorskip("sklearn.metrics")
    generator = torch.Generator().manual_seed(0)
    positive, negative = (
        torch.randint(0, 9, (30,), generator=generator),
        torch.randint(0, 7, (20,), generator=generator),
    )
    wanted = sklearn_metrics.roc_auc_score([1] * 30 + [0] * 20, torch.cat([positive, negative]).numpy())
    assert un.auc(positive.double(), negative.double()) == pytest.approx(wanted)
    with pytest.raises(RangeError):
        un.auc(positive[:0].double(), negative.double())


class Shift(nn.Module):
    def __init__(self, shift: Tensor) -> None:
        super().__init__()
        self.shift = shift

    def forward(self, x: Tensor) -> Tensor:
        return x + self.shift


def test_distance_in_closed_form() -> None:
    batch = [(torch.zeros(1, 2), torch.tensor([0]))]
    found = un.prediction_distance(Shift(torch.tensor([math.log(3.0), 0.0])), Fixed(), batch)
    assert found.tv == pytest.approx(0.25, abs=1e-6)
    assert found.kl == pytest.approx(0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25), abs=1e-6)
    q, p, m = np.array([0.75, 0.25]), np.array([0.5, 0.5]), np.array([0.625, 0.375])
    js = 0.5 * (p * np.log(p / m)).sum() + 0.5 * (q * np.log(q / m)).sum()
    assert found.js == pytest.approx(js, abs=1e-6)
    assert un.zero_retrain_forgetting(Fixed(), Fixed(), batch) == pytest.approx(1.0)


def test_relearning_takes_no_step_for_what_is_known_and_some_for_what_is_not(model: nn.Module) -> None:
    assert un.relearn_steps(model, FORGET) == 0
    weights = copy.deepcopy(model.state_dict())
    blank = un.reinitialise(copy.deepcopy(model), seed=3)
    assert un.relearn_steps(blank, un.Batches(X, Y, 10), lr=0.02) > 3
    assert un.relearn_steps(blank, un.Batches(X, Y, 10), lr=1e-6, limit=4) == 5
    for name, value in model.state_dict().items():
        assert torch.equal(value, weights[name])
    with pytest.raises(RangeError, match="share"):
        un.relearn_steps(model, FORGET, target=90)


def test_audit_gathers_and_prints(model: nn.Module) -> None:
    x, y = data(30)
    found = un.audit(model, forget=FORGET, retain=RETAIN, test=[(x + 0.3, y)], retrained=model)
    assert found.forget == un.accuracy(model, FORGET)
    assert found.distance.tv == 0.0
    assert "membership" in str(found)
