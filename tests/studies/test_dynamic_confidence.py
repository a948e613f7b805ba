"""The study of dynamic confidence: its parts are disjoint, its policies cost what they say, and it can fail."""

from __future__ import annotations

import pytest
import torch

from plexus.probe import accumulate
from plexus.studies.adaptation._early_networks import Run, parts
from plexus.studies.adaptation.dynamic_confidence import DynamicConfidence, accuracy, policy, width

study = DynamicConfidence()
FULL = DynamicConfidence.configure("full")


def setting(arm: str):
    return DynamicConfidence.configure("full", study.arm(arm).overrides)


@pytest.fixture(scope="module")
def runs() -> dict[str, Run]:
    """Read-outs in which evidence arrives over time, faster for some samples than for others."""
    generator = torch.Generator().manual_seed(0)

    def draw(count: int) -> Run:
        y = torch.randint(0, 10, (count,), generator=generator)
        ease = 0.8 + 4 * torch.rand(count, 1, generator=generator) ** 2
        signal = torch.nn.functional.one_hot(y, 10) * ease
        outputs = signal + torch.randn(16, count, 10, generator=generator)
        return Run(5 * outputs, torch.ones(16, count), y)

    return {name: draw(1500) for name in ("calibration", "test", "noisy")}


def test_parts_are_disjoint_and_drawn_again() -> None:
    train, calibration, test = parts(FULL, 3)
    assert (len(train), len(calibration), len(test)) == (800, 500, 497)
    again = parts(FULL, 4)[0]
    assert not torch.equal(train.x, again.x)
    assert len({row.numpy().tobytes() for part in (train, calibration, test) for row in part.x}) > 1790


def test_policies_cost_what_they_say(runs: dict[str, Run]) -> None:
    found = {arm.name: policy(setting(arm.name), runs) for arm in study.arms}
    assert found["full length"]["steps"] == 16
    assert found["full length"]["share of spikes"] == pytest.approx(1.0)
    for name in ("dynamic", "entropy", "margin"):
        assert found["oracle"]["steps"] <= found[name]["steps"] < 0.6 * found["best fixed"]["steps"]
        assert found[name]["share of spikes"] == pytest.approx(found[name]["steps"] / 16)  # one spike per step here
    assert found["dynamic"]["steps"] < found["averaged"]["steps"]  # confidence of a mean does not grow with evidence
    assert found["random exit"]["steps"] == found["dynamic"]["steps"]
    assert found["random exit"]["accuracy"] < found["dynamic"]["accuracy"] - 1
    assert found["oracle"]["accuracy"] >= max(found[name]["accuracy"] for name in ("dynamic", "full length"))
    assert found["dynamic"]["accuracy"] > found["full length"]["accuracy"] - 1.5


def test_the_null_is_the_mean_over_dealing_the_steps_anew(runs: dict[str, Run]) -> None:
    steps = torch.tensor([2, 2, 7, 16] * 375)
    logits, y = accumulate(runs["test"].outputs), runs["test"].y
    generator = torch.Generator().manual_seed(0)
    drawn = []
    for _ in range(300):
        dealt = steps[torch.randperm(1500, generator=generator)]
        drawn.append(accuracy(logits[dealt - 1, torch.arange(1500)], y))
    share = torch.bincount(steps - 1, minlength=16).double() / 1500
    exact = sum(float(s) * accuracy(o, y) for s, o in zip(share, logits, strict=True))
    assert sum(drawn) / 300 == pytest.approx(exact, abs=0.2)


def test_width_of_a_flat_and_of_a_broken_range() -> None:
    y = torch.zeros(10, dtype=torch.int64)
    right = torch.tensor([1.0, 0.0]).expand(4, 10, 2)
    assert width(torch.rand(4, 10, generator=torch.Generator().manual_seed(0)), right, y) == 0.99
    wrong_first = right.clone()
    wrong_first[0] = torch.tensor([0.0, 1.0])
    sure = torch.tensor([0.5, 0.6, 0.7, 0.8]).unsqueeze(1).expand(4, 10)
    assert width(sure, wrong_first, y) == pytest.approx(0.50, abs=0.011)  # any threshold from 0.5 on


def test_the_claim_can_fail(runs: dict[str, Run]) -> None:
    """Where confidence says nothing about being right, the mechanism does not hold."""
    shuffled = {}
    generator = torch.Generator().manual_seed(1)
    for name, run in runs.items():  # right or wrong with the same probability at each step, whatever the logits
        y = torch.randint(0, 10, run.y.shape, generator=generator)
        keep = torch.rand(run.y.shape, generator=generator) < 0.9
        outputs = run.outputs.clone()
        outputs[:, keep] = torch.nn.functional.one_hot(y[keep], 10) * torch.rand(16, 1, 1, generator=generator)
        shuffled[name] = Run(outputs, run.spikes, y)
    trials = {}
    for arm in study.arms:
        found = policy(setting(arm.name), shuffled)
        trials[arm.name] = {f"{n} {k}": v for n in ("converted", "spiking") for k, v in found.items()}
    check = next(c for c in study.checks if c.role == "mechanism" and c.primary)
    assert check.quantity(trials) < 1.0
