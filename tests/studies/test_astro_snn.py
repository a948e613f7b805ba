"""The studies of astrocytes: the task, the arms, what ablations and interventions remove, and bars that can fail."""

import math
from dataclasses import replace

import pytest
import torch

from plexus.errors import FormatError, UnknownNameError
from plexus.lab import TUNING_SEEDS, Results
from plexus.nn.models import AstroSNN
from plexus.studies.spiking import _astro_models as models
from plexus.studies.spiking import _astro_recall as recall
from plexus.studies.spiking import _astro_text as text
from plexus.studies.spiking.astro_snn import AstroSNNRecall, Config, gap
from plexus.studies.spiking.astro_snn_text import AstroSNNText
from plexus.studies.spiking.astro_snn_text import Config as TextConfig

SMALL = AstroSNNRecall.configure("smoke")


def model_of(method="astrocytes", **settings):
    return models.build(replace(SMALL, method=method, **settings), recall.SYMBOLS, 42, 0)


def test_a_sequence_is_a_key_distractors_and_the_query():
    task = recall.recall_task(20, 3, 8, 64, 0)
    assert task.train.shape == (3, 22, 8)
    for part in (task.train.transpose(0, 1).flatten(1), task.validation, task.test):
        assert part[0].max() < recall.KEYS
        assert part[1:-1].min() >= recall.KEYS
        assert part[1:-1].max() < recall.SYMBOLS - 1
        assert bool((part[-1] == recall.SYMBOLS - 1).all())
    columns = [
        tuple(c)
        for part in (task.train.transpose(0, 1).flatten(1), task.validation, task.test)
        for c in part.T.tolist()
    ]
    assert len(set(columns)) == len(columns)  # nothing is trained on that is tested on


def test_the_same_seed_draws_the_same_task_and_another_seed_another():
    one, again, other = (recall.recall_task(5, 2, 4, 16, seed) for seed in (1, 1, 2))
    assert torch.equal(one.test, again.test)
    assert not torch.equal(one.test, other.test)


def test_the_key_can_only_come_through_the_state():
    """At the query all keys look alike: without what was carried there is nothing to tell them apart."""
    model, task = model_of(), recall.recall_task(5, 1, 4, 32, 0)
    logits, _ = model(task.test[-1:].long())
    assert bool((logits == logits[:, :1]).all())


@pytest.mark.parametrize("method", ["ssm", "lstm", "gru", "transformer"])
def test_rivals_have_no_fewer_weights_than_the_unit(method):
    full = replace(Config(), width=32)
    aim = models.parameters(models.build(full, recall.SYMBOLS, 42, 0))
    found = models.parameters(models.build(replace(full, method=method), recall.SYMBOLS, 42, 0))
    # a state-space layer is as wide as the unit and lacks only its third matrix
    assert 0.8 * aim < found < 1.3 * aim if method == "ssm" else aim <= found < 1.4 * aim


def test_fast_astrocytes_differ_in_nothing_but_their_time():
    slow, fast = model_of(), model_of(**AstroSNNRecall.arm("fast").overrides | {"lags": (20,)})
    others = fast.state_dict()
    assert set(others) == set(slow.state_dict())
    for name, a in slow.state_dict().items():
        b = others[name]
        assert torch.equal(a, b) != name.endswith("raw_keep")
    task = recall.recall_task(5, 2, 8, 8, 0)
    recall.train(fast, task, 1e-1)
    assert all(torch.allclose(b.unit.timescales(), torch.tensor(2.0)) for b in fast.blocks)


def test_ablations_remove_what_they_say():
    assert model_of(gain=False).blocks[0].unit.astrocytes.gain_map is None
    assert model_of(bias=False).blocks[0].unit.astrocytes.bias_map is None
    assert model_of(use_post=False).blocks[0].unit.astrocytes.post is None
    assert model_of(use_pre=False).blocks[0].unit.astrocytes.pre is None
    names = {name for name, _ in model_of(learn_tau=False).named_parameters()}
    assert not any(name.endswith("raw_keep") for name in names)
    assert not any("astrocytes" in name for name, _ in model_of("lif").named_parameters())
    with pytest.raises(UnknownNameError):
        model_of("gur")


def test_gates_start_out_remembering():
    model = models.build(replace(SMALL, method="lstm"), recall.SYMBOLS, 42, 0)
    width = model.rnn.hidden_size
    bias = model.rnn.bias_ih_l0 + model.rnn.bias_hh_l0
    spans = 1 + bias[width : 2 * width].exp()  # time constants of the forget gates
    assert spans.min() >= 2 - 1e-4
    assert spans.max() <= models.MEMORY
    torch.testing.assert_close(bias[:width], -bias[width : 2 * width])


def remembering():
    """A network that holds the key in calcium alone, by hand: astrocyte k rises with key k and biases unit k."""
    model = AstroSNN(
        recall.SYMBOLS, width=8, layers=1, mix=1, tied=False, unit=lambda n: models.AstrocyteUnit(n, (150.0, 150.0))
    )
    unit = model.blocks[0].unit
    with torch.no_grad():
        model.embed.weight.zero_()
        model.embed.weight[:8] = torch.eye(8)
        model.blocks[0].out.weight.copy_(torch.eye(8))
        model.blocks[0].down.weight.zero_()
        unit.weight.zero_()
        unit.astrocytes.post.zero_()
        unit.astrocytes.bias_map.weight.copy_(300 * torch.eye(8))
        model.read.weight.zero_()
        model.read.weight[:8] = torch.eye(8)
    return model


def test_interventions_take_away_what_calcium_carries():
    model, task = remembering(), recall.recall_task(20, 1, 4, 200, 0)
    assert recall.share_right(model, task.test) == 100.0
    found = recall.interventions(model, task.test)
    assert found["clamped"] < 30
    assert found["emptied calcium"] < 30
    assert found["emptied membranes"] == 100.0
    assert recall.share_right(model, task.test) == 100.0  # and nothing stays edited


def test_the_primary_bar_can_fail_on_each_side():
    def seed(full, fast, lif):
        return {name: {"recall 40": value} for name, value in (("astrocytes", full), ("fast", fast), ("lif", lif))}

    bar = next(check.at_least for check in AstroSNNRecall.checks if check.primary and check.role == "mechanism")
    assert gap(seed(99, 20, 12)) > bar
    assert gap(seed(80, 20, 12)) < bar
    assert gap(seed(99, 40, 12)) < bar
    assert gap(seed(99, 20, 40)) < bar


def test_training_changes_every_weight_that_takes_part():
    model, task = model_of(), recall.recall_task(5, 2, 8, 8, 0)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    recall.train(model, task, 1e-2)
    changed = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert {name for name in before if "astrocytes" in name} <= changed


def test_tuning_tries_as_many_settings_for_every_rival_and_no_confirming_seed(monkeypatch):
    seen = []

    def prepare(self, config, seed):
        seen.append(seed)
        return {lag: recall.recall_task(lag, 1, 2, 8, seed) for lag in (40,)}

    monkeypatch.setattr(AstroSNNRecall, "prepare", prepare)
    tuning = AstroSNNRecall().tune(replace(SMALL, tuning_seeds=1, steps=1))
    assert set(seen) <= set(TUNING_SEEDS)
    compared = [arm for arm, tried in tuning.budget.items() if tried]
    assert {tuning.budget[arm] for arm in compared} == {4}
    assert {"astrocytes", "ssm", "lstm", "gru", "transformer", "lif, tuned"} == set(compared)
    assert tuning.chosen["fast"] == tuning.chosen["astrocytes"]


def test_a_recall_trial_measures_what_the_checks_ask_and_draws_it():
    study, prepared = AstroSNNRecall(), AstroSNNRecall().prepare(SMALL, 0)
    outcomes = {}
    for arm in study.arms:
        outcomes[arm.name] = study.run(AstroSNNRecall.configure("smoke", arm.overrides), prepared, 0)
    trials = {name: outcome.metrics for name, outcome in outcomes.items()}
    for quantity in (*(check.quantity for check in study.checks), *study.shares.values()):
        assert math.isfinite(quantity(trials))
    assert len(study.figures(Results({name: {0: outcome} for name, outcome in outcomes.items()}))) == 3


@pytest.fixture
def shakespeare(tmp_path, monkeypatch):
    g = torch.Generator().manual_seed(0)
    letters = torch.randint(26, (6000,), generator=g)
    (tmp_path / "tinyshakespeare.txt").write_text("".join(chr(97 + int(n)) for n in letters))
    monkeypatch.setenv("PLEXUS_DATA", str(tmp_path))


def test_text_parts_do_not_overlap(shakespeare):
    task = text.text_task(20, 4, 12, 40, 0)
    parts = [task.train.transpose(1, 2).reshape(-1, 13), task.validation.T, task.test.T]
    pieces = [{tuple(row[k : k + 6].tolist()) for row in part for k in range(8)} for part in parts]
    assert not pieces[0] & pieces[1]
    assert not pieces[0] & pieces[2]
    assert not pieces[1] & pieces[2]


def test_a_text_trial_measures_what_the_checks_ask(shakespeare):
    study, config = AstroSNNText(), AstroSNNText.configure("smoke")
    prepared = study.prepare(config, 0)
    outcomes = {arm.name: study.run(AstroSNNText.configure("smoke", arm.overrides), prepared, 0) for arm in study.arms}
    trials = {name: outcome.metrics for name, outcome in outcomes.items()}
    for quantity in (*(check.quantity for check in study.checks), *study.shares.values()):
        assert math.isfinite(quantity(trials))
    assert len(study.figures(Results({name: {0: outcome} for name, outcome in outcomes.items()}))) == 3
    full = trials["astrocytes"]
    assert full["state at 128"] == full["state at 2048"] == 2 * 3 * 16 * 4
    assert trials["transformer"]["state at 2048"] == 16 * trials["transformer"]["state at 128"]


def test_without_the_text_the_study_says_so(monkeypatch, tmp_path):
    monkeypatch.setenv("PLEXUS_DATA", str(tmp_path))
    with pytest.raises(FormatError, match=r"tinyshakespeare\.txt"):
        AstroSNNText().prepare(TextConfig(), 0)


def test_bits_of_a_model_that_knows_nothing():
    class Blind(torch.nn.Module):
        def forward(self, symbols, state=None):
            return torch.zeros(*symbols.shape, text.TEXT_SYMBOLS), None

    windows = torch.randint(text.TEXT_SYMBOLS, (9, 4), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(text.bits(Blind(), windows), torch.full((8,), float(text.TEXT_SYMBOLS)).log2())
