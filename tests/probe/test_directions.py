"""Directions against closed forms and scikit-learn."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from plexus import probe
from plexus.errors import DtypeError, RangeError, ShapeError, SiteError, UnsupportedError
from plexus.probe._language import Letters
from plexus.probe._softmax import fit_softmax
from plexus.units import Recording, Site, Table, sites
from tests.families import tiny

SITE = Site("0")


def recorded(rows: Tensor, labels: Tensor | None = None, model: str | None = None) -> Recording:
    return Recording({SITE: rows}, {SITE: Table(range(len(rows)))}, labels=labels, model=model)


def classes(count: int = 60, units: int = 5) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    mix = torch.randn(units, units, generator=generator)
    y = torch.arange(count) % 2
    return torch.randn(count, units, generator=generator) @ mix + 0.8 * y[:, None], y


def test_the_difference_is_that_of_the_means() -> None:
    x, y = classes()
    found = probe.directions(recorded(x, y))
    difference = x[y == 1].double().mean(0) - x[y == 0].double().mean(0)
    assert found.gap[SITE] == pytest.approx(float(difference.norm()))
    torch.testing.assert_close(found[SITE].double() * found.gap[SITE], difference, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(
        probe.directions(recorded(x[y == 1]), recorded(x[y == 0]))[SITE], found[SITE]
    )  # two recordings, or one with labels


def test_mass_mean_is_linear_discriminant_analysis() -> None:
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

    x, y = classes()
    found = probe.directions(recorded(x, y), how="mass-mean", shrinkage=0.0)
    lda = LinearDiscriminantAnalysis(solver="lsqr").fit(x.numpy(), y.numpy())
    assert cosine_similarity(found[SITE].double(), torch.tensor(lda.coef_[0]), 0) == pytest.approx(1, abs=1e-6)
    assert found.accuracy(recorded(x, y))[SITE] == lda.score(x.numpy(), y.numpy())
    wide = probe.directions(recorded(x, y), how="mass-mean", shrinkage=1.0)
    torch.testing.assert_close(wide[SITE], probe.directions(recorded(x, y))[SITE])  # the limit of full shrinkage


@pytest.mark.parametrize("penalty", [0.003, 0.1])
def test_logistic_is_scikit_learns(penalty: float) -> None:
    from sklearn.linear_model import LogisticRegression

    x, y = classes()
    found = probe.directions(recorded(x, y), how="logistic", penalty=penalty)
    spread = (x - x.mean(0)).square().mean().sqrt()
    rows = ((x - x.mean(0)) / spread).double().numpy()
    peer = LogisticRegression(C=1 / (len(x) * penalty), tol=1e-10, max_iter=5000).fit(rows, y.numpy())
    assert cosine_similarity(found[SITE].double(), torch.tensor(peer.coef_[0]), 0) == pytest.approx(1, abs=1e-6)
    sure = torch.from_numpy(peer.decision_function(rows) > 0)
    assert torch.equal(found.project(recorded(x))[SITE] > found.threshold[SITE], sure)


def test_the_softmax_probe_is_scikit_learns() -> None:
    from sklearn.linear_model import LogisticRegression

    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(90, 4, generator=generator), torch.arange(90) % 3
    x = x + y[:, None] * torch.tensor([1.0, -1.0, 0.0, 0.5])
    weight, bias = fit_softmax(x, y, 3, 0.02)
    peer = LogisticRegression(C=1 / (90 * 0.02), tol=1e-10, max_iter=5000).fit(x.double().numpy(), y.numpy())
    np.testing.assert_allclose(weight.numpy(), peer.coef_, atol=1e-5)
    np.testing.assert_allclose(bias.numpy(), peer.intercept_ - peer.intercept_.mean(), atol=1e-5)


def test_the_axis_of_pairs_follows_what_they_differ_in() -> None:
    generator = torch.Generator().manual_seed(1)
    axis = torch.nn.functional.normalize(torch.randn(8, generator=generator), dim=0)
    topic, push = torch.randn(50, 8, generator=generator), 1 + torch.rand(50, 1, generator=generator)
    positive, negative = topic + push * axis, topic - push * axis
    found = probe.directions(recorded(positive), recorded(negative), how="pca")
    torch.testing.assert_close(found[SITE], axis, atol=1e-4, rtol=0)
    flipped = probe.directions(recorded(negative), recorded(positive), how="pca")
    torch.testing.assert_close(flipped[SITE], -axis, atol=1e-4, rtol=0)


@pytest.mark.parametrize("how", ["difference", "mass-mean", "logistic", "pca"])
def test_directions_turn_with_the_space(how: Any) -> None:
    x, y = classes()
    turn = torch.linalg.qr(torch.randn(5, 5, generator=torch.Generator().manual_seed(4))).Q
    plain, turned = probe.directions(recorded(x, y), how=how), probe.directions(recorded(x @ turn, y), how=how)
    torch.testing.assert_close(turned[SITE], plain[SITE] @ turn, atol=1e-4, rtol=0)
    assert turned.gap[SITE] == pytest.approx(plain.gap[SITE], rel=1e-4)
    assert turned.threshold[SITE] == pytest.approx(plain.threshold[SITE], abs=1e-3)


def test_what_directions_refuse() -> None:
    x, y = classes()
    with pytest.raises(ShapeError, match="label per sample"):
        probe.directions(recorded(x))
    with pytest.raises(ShapeError, match="no samples"):
        probe.directions(recorded(x, torch.ones(60)))
    with pytest.raises(RangeError, match="true or false"):
        probe.directions(recorded(x, torch.arange(60)))
    with pytest.raises(RangeError, match="do not differ"):
        probe.directions(recorded(x), recorded(x))
    with pytest.raises(RangeError, match="shrinkage"):
        probe.directions(recorded(x[:4], y[:4]), how="mass-mean", shrinkage=0.0)
    with pytest.raises(ShapeError, match="pairs"):
        probe.directions(recorded(x[:4]), recorded(x[:5]), how="pca")
    with pytest.raises(UnsupportedError, match="two models"):
        probe.directions(recorded(x, model="a"), recorded(x + 1, model="b"))
    several = Recording({SITE: x}, {SITE: Table([0] * 60, range(60))}, labels=torch.tensor([1]))
    with pytest.raises(ShapeError, match="several rows"):
        probe.directions(several)
    with pytest.raises(SiteError):
        probe.directions(recorded(x, y))[Site("1")]


@pytest.mark.parametrize("family", ["gpt2", "llama", "neox"])
def test_prompts_are_read_as_if_each_were_alone(family: str) -> None:
    model, _ = tiny(family)
    texts = ["\x05\x06", "\x07\x08\x09\x0a", "\x0b"]
    site = sites.residual(model)[1]
    together = probe.record(model, probe.token_batches(Letters(), texts, batch=2), site, pool="last")
    for row, text in enumerate(texts):
        alone = probe.record(model, probe.token_batches(Letters(), [text]), site, pool="last")
        torch.testing.assert_close(together[site][row], alone[site][0], atol=1e-5, rtol=1e-4)
    found = probe.contrast(model, Letters(), texts, ["\x0c", "\x0d\x0e"], sites.residual(model), batch=2)
    assert list(found) == list(sites.residual(model))
    assert found.model is not None


def test_batches_of_texts() -> None:
    left = probe.token_batches(Letters(), ["ab", "c"], side="left")[0]
    assert left["input_ids"].tolist() == [[97, 98], [0, 99]]
    assert left["attention_mask"].tolist() == [[1, 1], [0, 1]]
    with pytest.raises(DtypeError, match="list"):
        probe.token_batches(Letters(), "ab")
    with pytest.raises(ShapeError, match="no text"):
        probe.token_batches(Letters(), ["a", ""])
