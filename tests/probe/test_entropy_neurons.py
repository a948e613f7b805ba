"""Entropy neurons: the definitions, planted units, and the families of transformers."""

import pytest
import torch
from torch import nn

from plexus.errors import RangeError, ShapeError, UnknownNameError, UnsupportedError
from plexus.probe.scores import entropy_neurons, logit_variance, output_norm
from plexus.units import Site, sites
from tests.families import tiny


def network(units=20, width=6):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, units), nn.ReLU(), nn.Linear(units, width)), torch.randn(30, width)


@pytest.mark.parametrize("of", ["cosine", "logits"])
def test_the_variance_is_that_over_tokens(of):
    model, tokens = network()
    found = logit_variance(model, of=of, unembedding=tokens)[Site("2", at="input")]
    weight = model[2].weight.detach()
    for unit in (0, 7, 19):
        if of == "cosine":
            each = torch.nn.functional.cosine_similarity(weight[:, unit][None], tokens)
        else:
            each = tokens @ weight[:, unit]
        assert float(found[unit]) == pytest.approx(float(each.var()), rel=1e-4)


def test_only_the_variance_of_logits_grows_with_the_norm():
    model, tokens = network()
    before = [logit_variance(model, of=of, unembedding=tokens)[Site("2", at="input")] for of in ("cosine", "logits")]
    with torch.no_grad():
        model[2].weight.mul_(3.0)
    after = [logit_variance(model, of=of, unembedding=tokens)[Site("2", at="input")] for of in ("cosine", "logits")]
    torch.testing.assert_close(after[0], before[0])
    torch.testing.assert_close(after[1], 9 * before[1])
    torch.testing.assert_close(output_norm(model)[Site("2", at="input")], model[2].weight.detach().norm(dim=0))


def test_a_large_unit_in_the_null_space_of_the_unembedding_is_found():
    model, tokens = network()
    tokens[:, 5] = 0  # no token reads the last direction
    with torch.no_grad():
        model[2].weight[:, 3] = torch.eye(6)[5] * 10
        model[2].weight[:, 8] = torch.eye(6)[5] * 1e-3  # as blind, but small
    chosen = entropy_neurons(model, 1, top_norm=0.25, unembedding=tokens)
    assert chosen.indices(Site("2", at="input")).tolist() == [3]
    assert 8 in entropy_neurons(model, 2, top_norm=1.0, unembedding=tokens).indices(Site("2", at="input")).tolist()


@pytest.mark.parametrize("family", ["llama", "gpt2", "neox", "phi3"])
def test_language_models_bring_their_unembedding(family):
    model, _ = tiny(family)
    chosen = entropy_neurons(model, 4, top_norm=0.5)
    site = sites.mlp(model)[-1]
    assert chosen.sites == (site,)
    assert len(chosen) == 4
    norms = output_norm(model)[site]
    assert norms[chosen.mask(site)].min() >= norms.median()
    first = entropy_neurons(model, 4, top_norm=0.5, at=sites.mlp(model)[0])
    assert first.sites[0] == sites.mlp(model)[0]


def test_bad_input_is_refused():
    model, tokens = network()
    with pytest.raises(RangeError, match="share"):
        entropy_neurons(model, 1, top_norm=0.0, unembedding=tokens)
    with pytest.raises(RangeError, match="large norm"):
        entropy_neurons(model, 6, top_norm=0.25, unembedding=tokens)
    with pytest.raises(ShapeError):
        logit_variance(model, unembedding=tokens[:, :3])
    with pytest.raises(UnknownNameError):
        logit_variance(model, of="probability", unembedding=tokens)
    with pytest.raises(UnsupportedError, match="unembedding"):
        logit_variance(model)
