"""Early exit: skipping changes no answer, calibration reaches its target, and bad input is refused."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import plexus as px
from plexus.edit.gate import EarlyExit, OverLayers
from plexus.errors import PlexusError, RangeError, ShapeError, UnsupportedError
from plexus.nn import LIF, Sequential

T, B, K = 9, 40, 3


class Counting(Sequential):
    """Counts the samples that it is asked to compute."""

    rows = 0

    def forward(self, x, state=None):
        self.rows += x.shape[1] * x.shape[0]
        return super().forward(x, state)


@pytest.fixture
def net() -> Counting:
    generator = torch.Generator().manual_seed(0)
    net = Counting(nn.Linear(5, 24), LIF(24), nn.Linear(24, K))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return net


@pytest.fixture
def x() -> torch.Tensor:
    return torch.rand(T, B, 5, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("kind", ["softmax", "margin", "entropy", "stability"])
@pytest.mark.parametrize("accumulate", ["sum", "mean", "none"])
def test_skipping_changes_no_answer_and_saves_the_work(net: Counting, x: torch.Tensor, kind, accumulate) -> None:
    model = EarlyExit(net, T, alpha=2.0, accumulate=accumulate, kind=kind)
    outputs = model.trace(x)
    sure = px.probe.confidence(px.probe.accumulate(outputs, accumulate), 2.0, kind)
    model.threshold = 3.0 if kind == "stability" else min(0.99, float(sure[: T // 2].quantile(0.8)))
    expected = model.decide(outputs)
    assert len(set(expected.steps.tolist())) > 1
    net.rows = 0
    found = model(x)
    assert net.rows == int(expected.steps.sum())  # only what was needed was computed
    assert torch.equal(found.steps, expected.steps)
    torch.testing.assert_close(found.logits, expected.logits, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found.confidence, expected.confidence, atol=1e-5, rtol=1e-5)


def test_an_unreachable_threshold_runs_to_the_end(net: Counting, x: torch.Tensor) -> None:
    found = EarlyExit(net, T, alpha=1e6, threshold=0.99)(x)
    assert found.steps.tolist() == [T] * B
    torch.testing.assert_close(found.logits, net(x)[0].sum(0), atol=1e-4, rtol=1e-4)


def test_calibration_without_loss_has_none_on_its_own_data(net: Counting, x: torch.Tensor) -> None:
    y = torch.randint(0, K, (B,), generator=torch.Generator().manual_seed(2))
    model = EarlyExit(net, T).calibrate([(x[:, :15], y[:15]), (x[:, 15:], y[15:])])
    outputs = model.trace(x)
    full = (outputs.sum(0).argmax(-1) == y).double().mean()
    found = model.decide(outputs)
    assert (found.logits.argmax(-1) == y).double().mean() >= full
    assert found.steps.double().mean() < T
    quick = EarlyExit(net, T).calibrate(x, y, latency=2.0)
    assert quick.decide(outputs).steps.double().mean() <= 2.0


def test_layers_are_steps_too() -> None:
    blocks = [nn.Sequential(nn.Linear(4, 4), nn.Tanh()) for _ in range(3)]
    head = nn.Linear(4, 2)
    x = torch.randn(30, 4)
    model = EarlyExit(OverLayers(nn.Identity(), blocks, head), 3, alpha=1.0, threshold=0.6, accumulate="none")
    found = model(x)
    hidden, logits = x, []
    for block in blocks:
        hidden = block(hidden)
        logits.append(head(hidden))
    by_hand = torch.stack(logits)[found.steps - 1, torch.arange(30)]
    torch.testing.assert_close(found.logits, by_hand)
    with pytest.raises(ShapeError):
        OverLayers(nn.Identity(), blocks, [head])


def test_bad_input(net: Counting, x: torch.Tensor) -> None:
    with pytest.raises(UnsupportedError, match="state"):
        EarlyExit(nn.Linear(5, 3), T)
    with pytest.raises(PlexusError, match="no threshold"):
        EarlyExit(net, T)(x)
    for threshold in (0.2, 1.0):
        with pytest.raises(RangeError, match="chance"):
            EarlyExit(net, T, alpha=1.0, threshold=threshold)(x)
    with pytest.raises(ShapeError, match="nothing to calibrate"):
        EarlyExit(net, T).calibrate([])
    with pytest.raises(RangeError, match="no threshold reaches"):
        EarlyExit(net, T).calibrate(x, torch.zeros(B, dtype=torch.int64), target=1.1)
    with pytest.raises(RangeError):
        EarlyExit(net, 0)
    with pytest.raises(ShapeError, match="read out classes"):
        EarlyExit(Sequential(nn.Unflatten(1, (5, 1))), T, alpha=1.0, threshold=0.9)(x)
