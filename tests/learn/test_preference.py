"""Preferences between answers: closed forms, gradients, and what training on them does."""

import math

import pytest
import torch

from plexus.errors import RangeError, ShapeError
from plexus.learn.objectives import direct_preference, sequence_log_prob


def test_log_probabilities_are_those_of_a_loop():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 5, 7, generator=generator)
    tokens = torch.randint(0, 7, (3, 5), generator=generator)
    counted = torch.rand(3, 5, generator=generator) > 0.4
    found = sequence_log_prob(logits, tokens, counted)
    for row in range(3):
        expected = sum(
            float(logits[row, t - 1].log_softmax(-1)[tokens[row, t]]) for t in range(1, 5) if counted[row, t]
        )
        assert float(found[row]) == pytest.approx(expected, abs=1e-5)
    with pytest.raises(ShapeError):
        sequence_log_prob(logits, tokens[:, :4], counted)


def test_the_loss_is_its_formula_and_its_gradient_that_of_the_margin():
    generator = torch.Generator().manual_seed(0)
    parts = [torch.randn(6, generator=generator, dtype=torch.float64).requires_grad_() for _ in range(4)]
    margin = (parts[0] - parts[2]) - (parts[1] - parts[3])
    expected = torch.log1p(torch.exp(-0.3 * margin)).mean()
    loss = direct_preference(*parts, beta=0.3)
    torch.testing.assert_close(loss, expected)
    loss.backward()
    torch.testing.assert_close(parts[0].grad, -0.3 * torch.sigmoid(-0.3 * margin).detach() / 6)
    torch.testing.assert_close(parts[1].grad, -parts[0].grad)
    assert parts[2].grad is None
    assert parts[3].grad is None
    assert torch.autograd.gradcheck(
        lambda a, b: direct_preference(a, b, parts[2].detach(), parts[3].detach()), (parts[0], parts[1])
    )


def test_limits():
    far = torch.tensor([1e4], dtype=torch.float64)
    assert float(direct_preference(far, -far, far * 0, far * 0)) == 0.0
    assert float(direct_preference(-far, far, far * 0, far * 0, beta=1.0)) == pytest.approx(2e4)
    assert float(direct_preference(far, far, far, far)) == pytest.approx(math.log(2))
    with pytest.raises(RangeError):
        direct_preference(far, far, far, far, beta=0.0)
    with pytest.raises(ShapeError):
        direct_preference(far, far, far, torch.zeros(2))
