"""The classifier by complexity: it sees order in time and nothing of the rate where rates are equal."""

import numpy as np
import pytest
import torch
from torch import nn

from plexus.errors import RangeError, ShapeError, UnknownNameError
from plexus.learn.readout import LZCClassifier
from plexus.nn import LIF, Sequential
from plexus.probe.information import lz_complexity


def ordered_or_not(samples, channels, seed):
    """Half repeat a template, half have the same spikes in random order."""
    rng = np.random.default_rng(seed)
    x = np.tile(rng.random((samples, channels, 20)) < 0.2, 6).astype(float)
    y = np.arange(samples) % 2
    x[y == 1] = rng.permuted(x[y == 1], axis=-1)
    return x, y


@pytest.mark.parametrize("base", ["centroid", "logistic"])
def test_sees_order_where_rates_are_equal(base):
    x, y = ordered_or_not(80, 4, 0)
    assert LZCClassifier(base=base).fit(x[:40], y[:40]).score(x[40:], y[40:]) >= 0.95
    control = LZCClassifier(base=base, control="rate").fit(x[:40], y[:40])
    assert control.score(x[40:], y[40:]) < 0.75


def test_features_are_complexities_and_their_mean():
    x, _ = ordered_or_not(6, 3, 1)
    features = LZCClassifier().transform(x)
    np.testing.assert_allclose(features[:, :3], lz_complexity(x))
    np.testing.assert_allclose(features[:, 3], lz_complexity(x).mean(1))
    assert LZCClassifier().transform(x[:, 0]).shape == (6, 1)


def test_measures_what_a_model_emits():
    torch.manual_seed(0)
    model = Sequential(nn.Linear(4, 5), LIF(5, threshold=0.2))
    x, y = ordered_or_not(20, 4, 2)
    found = LZCClassifier(model).fit(x, y).transform(x)
    spikes, _ = model(torch.from_numpy(x).float().permute(2, 0, 1))
    assert spikes.any()
    np.testing.assert_allclose(found[:, :5], lz_complexity(spikes.permute(1, 2, 0)))


def test_takes_labels_of_any_kind_and_clones():
    base = pytest.importorskip("sklearn.base")
    x, y = ordered_or_not(40, 3, 3)
    names = np.array(["ordered", "random"])[y]
    model = base.clone(LZCClassifier(base="logistic")).fit(x, names)
    assert base.is_classifier(model)
    assert model.score(x, names) > 0.8


@pytest.mark.parametrize(
    ("error", "act"),
    [
        (RangeError, lambda x, y: LZCClassifier().predict(x)),
        (RangeError, lambda x, y: LZCClassifier().fit(x + 0.5, y)),
        (RangeError, lambda x, y: LZCClassifier().fit(x, y * 0)),
        (ShapeError, lambda x, y: LZCClassifier().fit(x[..., :10], y)),
        (ShapeError, lambda x, y: LZCClassifier().fit(x[0, 0], y)),
        (ShapeError, lambda x, y: LZCClassifier().fit(x, y[:3])),
        (UnknownNameError, lambda x, y: LZCClassifier(base="forest").fit(x, y)),
        (UnknownNameError, lambda x, y: LZCClassifier(method="lz77").fit(x, y)),
        (UnknownNameError, lambda x, y: LZCClassifier(control="order").fit(x, y)),
    ],
)
def test_each_mistake_has_its_error(error, act):
    with pytest.raises(error):
        act(*ordered_or_not(8, 2, 0))
