"""Latency and confidence against slow references and limits."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from plexus.errors import RangeError, ShapeError, UnknownNameError
from plexus.probe import (
    accumulate,
    confidence,
    exit_steps,
    expected_calibration_error,
    fit_confidence_scale,
    latency_accuracy_curve,
    oracle_latency,
    pareto_front,
)


def draw(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@given(seed=st.integers(0, 99), threshold=st.floats(0.2, 0.99), time=st.integers(1, 7))
def test_exit_is_the_first_step_above_the_threshold(seed: int, threshold: float, time: int) -> None:
    sure = torch.rand(time, 6, generator=torch.Generator().manual_seed(seed))
    found = exit_steps(sure, threshold).tolist()
    for b, steps in enumerate(found):
        assert all(float(sure[t, b]) <= threshold for t in range(steps - 1))
        assert steps == time or float(sure[steps - 1, b]) > threshold


@settings(deadline=None)
@given(seed=st.integers(0, 99))
def test_no_rule_beats_the_oracle(seed: int) -> None:
    logits = accumulate(draw(seed, 6, 30, 4))
    y = torch.randint(0, 4, (30,), generator=torch.Generator().manual_seed(seed))
    best, steps = oracle_latency(logits, y)
    for kind in ("softmax", "margin", "entropy", "stability"):
        curve = latency_accuracy_curve(logits, y, confidence(logits, 1.0, kind))
        assert float(curve.accuracy.max()) <= best + 1e-12
    right = logits.argmax(-1) == y
    for b in range(30):
        first = right[:, b].nonzero().flatten().tolist()
        assert steps[b] == (first[0] + 1 if first else 6)


@given(
    points=st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=30),
)
def test_pareto_front_is_what_nothing_dominates(points: list[tuple[int, int]]) -> None:
    cost, value = (torch.tensor(c, dtype=torch.float64) for c in zip(*points, strict=True))
    front = {(points[k][0], points[k][1]) for k in pareto_front(cost, value).tolist()}
    undominated = {p for p in points if not any(q[0] <= p[0] and q[1] >= p[1] and q != p for q in points)}
    assert front == undominated


def test_extreme_thresholds_are_the_first_and_last_step() -> None:
    logits = accumulate(draw(0, 5, 20, 3))
    y = torch.randint(0, 3, (20,), generator=torch.Generator().manual_seed(0))
    curve = latency_accuracy_curve(logits, y, confidence(logits), torch.tensor([-1.0, 2.0]))
    assert curve.steps.tolist() == [1.0, 5.0]
    for place, t in ((0, 0), (1, -1)):
        assert float(curve.accuracy[place]) == float((logits[t].argmax(-1) == y).double().mean())


def test_confidence_limits() -> None:
    even = torch.zeros(1, 1, 4)
    certain = torch.tensor([[[1e3, 0.0, 0.0, 0.0]]])
    for kind, low in (("softmax", 0.25), ("margin", 0.0), ("entropy", 0.0)):
        assert float(confidence(even, 1.0, kind)) == pytest.approx(low, abs=1e-6)
        assert float(confidence(certain, 1.0, kind)) == pytest.approx(1.0, abs=1e-6)
    answers = torch.nn.functional.one_hot(torch.tensor([0, 0, 1, 1, 1, 0]), 2).float().unsqueeze(1)
    assert confidence(answers, 1.0, "stability").flatten().tolist() == [1, 2, 1, 2, 3, 1]


def test_the_scale_that_made_the_labels_is_found() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 5 * torch.randn(1, 20_000, 4, generator=generator)
    y = torch.distributions.Categorical(logits=logits[0] / 3.0)
    labels = torch.multinomial(y.probs, 1, generator=generator).squeeze(1)
    assert fit_confidence_scale(logits, labels) == pytest.approx(3.0, rel=0.05)
    sure = confidence(logits, 3.0)[0]
    correct = logits[0].argmax(-1) == labels
    assert expected_calibration_error(sure, correct) < 0.015
    assert expected_calibration_error(confidence(logits, 0.3)[0], correct) > 0.1


def test_bad_input() -> None:
    with pytest.raises(ShapeError, match="every step"):
        accumulate(torch.zeros(3, 4))
    with pytest.raises(UnknownNameError):
        accumulate(torch.zeros(1, 1, 2), "median")
    with pytest.raises(UnknownNameError):
        confidence(torch.zeros(1, 1, 2), 1.0, "max")
    with pytest.raises(RangeError):
        confidence(torch.zeros(1, 1, 2), 0.0)
    with pytest.raises(ShapeError, match="labels"):
        oracle_latency(torch.zeros(2, 3, 4), torch.zeros(2, dtype=torch.int64))
    with pytest.raises(ShapeError):
        latency_accuracy_curve(torch.zeros(2, 3, 4), torch.zeros(3, dtype=torch.int64), torch.zeros(2, 2))
    with pytest.raises(RangeError):
        expected_calibration_error(torch.tensor([1.5]), torch.tensor([1]))
    with pytest.raises(ShapeError):
        expected_calibration_error(torch.tensor([]), torch.tensor([]))
    with pytest.raises(ShapeError):
        pareto_front(torch.zeros(2), torch.zeros(3))
