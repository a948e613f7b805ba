"""The study of neuron modes: parts stay apart, arms change what they say and no more, checks can fail."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor, nn

from plexus.edit.gate import NeuronModes
from plexus.errors import FormatError
from plexus.studies.adaptation._mode_tasks import Task, accuracy, adapt, parts, rotate, shuffled, task
from plexus.studies.adaptation.taugate import ARMS, CHECKS, RATES, TauGate, TauGateMnist, over_null, over_rivals
from plexus.units import Site

SMALL = TauGate.configure("smoke", {"rate_rotated": 0.05})


def setting(arm: str, **extra: object):
    return replace(TauGate.configure("smoke", TauGate.arm(arm).overrides, {"rate_rotated": 0.05}), **extra)


@pytest.fixture(scope="module")
def rotated() -> Task:
    return task(SMALL, "rotated", parts(SMALL, 0), 0)


def test_parts_are_disjoint_and_drawn_again() -> None:
    full = TauGate.configure("full")
    sets = parts(full, 3)
    assert [len(part) for part in sets] == [900, 300, 597]
    assert len({row.numpy().tobytes() for part in sets for row in part.x}) > 1790
    assert not torch.equal(sets[0].x, parts(full, 4)[0].x)


def test_rotation_is_that_of_scipy_and_four_quarters_are_none() -> None:
    torch.manual_seed(0)
    x = torch.rand(3, 1, 12, 12)
    ours = rotate(x)[:, 0, 2:-2, 2:-2]
    theirs = ndimage.rotate(x.numpy(), -45.0, axes=(3, 2), reshape=False, order=1)[:, 0, 2:-2, 2:-2]
    back = ndimage.rotate(x.numpy(), 45.0, axes=(3, 2), reshape=False, order=1)[:, 0, 2:-2, 2:-2]
    assert min(np.abs(ours.numpy() - other).max() for other in (theirs, back)) < 1e-4
    torch.testing.assert_close(rotate(rotate(x, 90.0), 270.0), x, rtol=1e-4, atol=1e-4)


def test_the_target_is_the_source_turned_and_the_base_is_frozen(rotated: Task) -> None:
    torch.testing.assert_close(rotate(rotated.source.x.unflatten(1, (1, 12, 12))).flatten(1), rotated.target.x)
    assert not any(parameter.requires_grad for parameter in rotated.base.parameters())


def test_a_base_without_the_feature_never_saw_a_rotated_image() -> None:
    images = parts(SMALL, 0)
    learnt = replace(SMALL, hidden=24, base_epochs=30, base_rate=1e-2)
    missing, mixed = (task(learnt, pair, images, 0) for pair in ("missing", "rotated"))
    assert torch.equal(missing.target.x, mixed.target.x)
    gap = {
        pair: accuracy(t.base, t.source_test) - accuracy(t.base, t.test)
        for pair, t in (("missing", missing), ("mixed", mixed))
    }
    assert gap["missing"] > gap["mixed"] + 20


LEARNS = {
    "frozen": 0,
    "modes": 4,
    "thresholds only": 2,
    "gains only": 2,
    "biases only": 2,
    "random gates": 2,
    "LoRA rank 1": None,
    "all weights": None,
}


@pytest.mark.parametrize("arm", LEARNS)
def test_arms_learn_what_they_say_and_leave_the_base_alone(arm: str, rotated: Task) -> None:
    if "LoRA" in arm:
        pytest.importorskip("peft")
    before = copy.deepcopy(rotated.base.state_dict())
    adapted = adapt(setting(arm), rotated, "rotated", 0)
    assert all(torch.equal(before[name], tensor) for name, tensor in rotated.base.state_dict().items())
    hidden, inputs = SMALL.hidden, rotated.target.x.shape[1]
    expected = {
        "LoRA rank 1": inputs + hidden + 2 * hidden,
        "all weights": sum(parameter.numel() for parameter in rotated.base.parameters()),
    }
    per_layer = LEARNS[arm]
    assert adapted.trainable == (expected[arm] if per_layer is None else per_layer * hidden)
    with torch.no_grad():
        changed = not torch.equal(adapted.model(rotated.test.x), rotated.base(rotated.test.x))
    assert changed == (arm != "frozen")
    if adapted.modes is not None:
        mode = adapted.modes["target"]
        assert (len(mode.thresholds) > 0) == (arm != "gains only")
        assert (len(mode.gains) > 0) == (arm != "thresholds only")


def test_gains_alone_are_ia3(rotated: Task) -> None:
    peft = pytest.importorskip("peft")
    adapted = adapt(setting("gains only"), rotated, "rotated", 0)
    assert adapted.modes is not None
    layers = ["two", "out"]
    model = peft.get_peft_model(
        copy.deepcopy(rotated.base), peft.IA3Config(target_modules=layers, feedforward_modules=layers)
    )
    with torch.no_grad():
        for name, gain in zip(layers, adapted.modes["target"].gains, strict=True):
            scale: nn.Parameter = getattr(model.base_model.model, name).ia3_l["default"]
            scale.copy_(gain.reshape(scale.shape))
        torch.testing.assert_close(model(rotated.test.x), adapted.model(rotated.test.x))


def test_the_null_has_the_same_numbers_elsewhere(rotated: Task) -> None:
    modes = NeuronModes(rotated.base)
    mode = modes.add("target")
    with torch.no_grad():
        for parameter in mode.parameters():
            parameter.copy_(torch.arange(len(parameter)))
    shuffled(modes, "target", torch.Generator().manual_seed(0))
    for tau, gain in zip(mode.thresholds, mode.gains, strict=True):
        assert torch.equal(tau, gain)  # both numbers of a neuron go together
        assert not torch.equal(tau, torch.arange(len(tau)).float())
        assert torch.equal(tau.sort().values, torch.arange(len(tau)).float())


def test_two_modes_answer_the_same_in_turn(rotated: Task) -> None:
    adapted = adapt(setting("two modes"), rotated, "rotated", 0)
    assert adapted.facts["swapping error"] == 0
    assert adapted.facts["numbers swapped"] == 4 * SMALL.hidden
    assert adapted.facts["target in its mode"] == pytest.approx(accuracy(adapted.model, rotated.test), abs=0.5)


def test_a_gate_before_the_rectifier_is_the_same_function_for_positive_gains(rotated: Task) -> None:
    after = NeuronModes(rotated.base)
    sites = [Site(name, "b u") for name in ("one", "two")]
    before = NeuronModes(rotated.base, sites, sizes=dict.fromkeys(sites, SMALL.hidden))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for one, other in zip(after.add("m").parameters(), before.add("m").parameters(), strict=True):
            one.mul_(torch.rand(one.shape, generator=generator) * 2)
            one.add_(0.1 * torch.rand(one.shape, generator=generator))
            other.copy_(one)
    torch.testing.assert_close(before(rotated.test.x), after(rotated.test.x))  # soft gates, in training
    losses = [modes(rotated.test.x).square().mean() for modes in (before, after)]
    slopes = [
        torch.autograd.grad(loss, list(m["m"].parameters())) for loss, m in zip(losses, (before, after), strict=True)
    ]
    torch.testing.assert_close(*slopes)
    torch.testing.assert_close(before.eval()(rotated.test.x), after.eval()(rotated.test.x))


def test_facts_of_a_mode(rotated: Task) -> None:
    facts = adapt(setting("modes"), rotated, "rotated", 0).facts
    assert facts["merging error"] < 1e-5
    assert facts["pruning error"] < 1e-5
    soft = adapt(setting("soft"), rotated, "rotated", 0)
    hard = adapt(setting("modes"), rotated, "rotated", 0)
    assert soft.modes is not None
    assert hard.modes is not None
    for one, other in zip(soft.modes["target"].parameters(), hard.modes["target"].parameters(), strict=True):
        assert torch.equal(one, other)  # the same training; only the gates in use differ


def seed(**target: float) -> dict[str, dict[str, float]]:
    base = {"rotated source": 90.0, "rotated validation": 80.0, "inverted target": 80.0, "missing target": 50.0}
    values = {arm.name: {**base, "rotated target": 80.0, "trainables": 100.0} for arm in ARMS}
    for name, value in target.items():
        values[name.replace("_", " ")]["rotated target"] = value
    return values


def test_checks_can_fail_and_pass() -> None:
    assert over_null(seed(modes=83.0)) == 3.0
    assert over_null(seed(modes=83.0, shuffled=83.5)) == -0.5
    best = seed(modes=83.0, gains_only=84.0)
    best["gains only"]["rotated validation"] = 85.0
    assert over_rivals(best) == -1.0
    assert over_rivals(seed(modes=83.0)) == 3.0
    assert sum(check.primary for check in CHECKS) == 2


def test_equal_effort() -> None:
    assert len({len(rates) for rates in RATES.values()}) == 1
    assert {arm.overrides["grid"] for arm in ARMS if "grid" in arm.overrides} == set(RATES)


def test_tuning_sees_no_test_image(monkeypatch: pytest.MonkeyPatch) -> None:
    from plexus.studies.adaptation import taugate

    def found(spoil: bool):
        with monkeypatch.context() as patch:
            if spoil:
                patch.setattr(
                    taugate, "accuracy", lambda model, data: 0.0 if data is test[-1] else accuracy(model, data)
                )
            return TauGate().tune(replace(SMALL, tuning_seeds=1, pairs=("rotated",), epochs=1, base_epochs=1)).chosen

    test: list[object] = [None]
    original = taugate.task

    def kept(*args: object):
        made = original(*args)
        test.append(made.test)
        return made

    monkeypatch.setattr(taugate, "task", kept)
    assert found(False) == found(True)


def test_mnist_says_where_its_files_belong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PLEXUS_DATA", raising=False)
    with pytest.raises(FormatError, match="mnist is not here"):
        TauGateMnist().prepare(TauGateMnist.configure("smoke"), 0)


def test_images_turn_whole() -> None:
    x: Tensor = parts(SMALL, 0)[0].x
    lost = 1 - rotate(x).sum((1, 2, 3)) / x.sum((1, 2, 3))
    assert lost.abs().max() < 0.12  # nothing leaves the canvas; between pixels a little is lost or won
