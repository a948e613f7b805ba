"""Small complete networks: shapes, causality, order, refusals."""

from __future__ import annotations

import pytest
import torch

from plexus.errors import RangeError, ShapeError
from plexus.nn.models import CharTransformer, SmallCNN


def test_a_symbol_changes_nothing_before_it() -> None:
    torch.manual_seed(0)
    model = CharTransformer(9, context=8, width=8, heads=2, layers=2).double()
    x = torch.randint(0, 9, (3, 8))
    other = x.clone()
    other[:, 5] = (x[:, 5] + 1) % 9
    difference = (model(x) - model(other)).abs().amax((0, 2))
    assert bool((difference[:5] == 0).all())
    assert bool((difference[5:] > 0).all())


def test_a_prefix_gives_the_same_logits() -> None:
    torch.manual_seed(0)
    model, x = CharTransformer(9, context=8, width=8, heads=2, layers=1).double(), torch.randint(0, 9, (2, 8))
    torch.testing.assert_close(model(x[:, :3]), model(x)[:, :3])


def test_attention_equals_that_of_torch() -> None:
    torch.manual_seed(0)
    model = CharTransformer(9, context=6, width=8, heads=2, layers=1).double()
    block, h = model.blocks[0], torch.randn(2, 6, 8, dtype=torch.float64)
    theirs = torch.nn.MultiheadAttention(8, 2, batch_first=True).double()
    with torch.no_grad():
        theirs.in_proj_weight.copy_(block.qkv.weight)
        theirs.in_proj_bias.copy_(block.qkv.bias)
        theirs.out_proj.weight.copy_(block.proj.weight)
        theirs.out_proj.bias.copy_(block.proj.bias)
        for p in (block.down.weight, block.down.bias):
            p.zero_()
    normed = block.norm1(h)
    mask = torch.ones(6, 6, dtype=torch.bool).triu(1)
    torch.testing.assert_close(block(h), h + theirs(normed, normed, normed, attn_mask=mask)[0])


def test_a_cnn_sees_every_pixel_and_keeps_samples_apart() -> None:
    torch.manual_seed(0)
    model, x = SmallCNN(8, 10).double(), torch.rand(2, 1, 8, 8, dtype=torch.float64, requires_grad=True)
    logits = model(x)
    (gradient,) = torch.autograd.grad(logits[0].square().sum(), x)
    assert bool((gradient[1] == 0).all())
    assert int((gradient[0] != 0).sum()) > 32


def test_refusals() -> None:
    with pytest.raises(RangeError, match="sizes"):
        SmallCNN(0, 10)
    with pytest.raises(RangeError, match="sizes"):
        SmallCNN(4, 10, pool=5)
    with pytest.raises(ShapeError, match="another shape"):
        SmallCNN(8, 10)(torch.zeros(2, 1, 9, 8))
    with pytest.raises(RangeError, match="heads"):
        CharTransformer(9, width=10, heads=4)
    with pytest.raises(ShapeError, match="another shape"):
        CharTransformer(9, context=4, width=8)(torch.zeros(1, 5, dtype=torch.long))
