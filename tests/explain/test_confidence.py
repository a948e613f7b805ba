"""The change of entropy and the part of it that goes through the final norm's scale."""

import pytest
import torch
from torch import nn

from plexus import edit, probe
from plexus.errors import RangeError, ShapeError, SiteError, UnsupportedError
from plexus.explain import diff, entropy_effect
from plexus.units import Neurons, Site, sites
from tests.families import tiny


def entropy(logits):
    log = logits.double().log_softmax(-1)
    return -(log.exp() * log).sum(-1)


@pytest.mark.parametrize("family", ["llama", "gpt2", "neox"])
def test_both_changes_are_those_of_a_plain_computation(family):
    model, inputs = tiny(family)
    site = sites.mlp(model)[-1]
    chosen = Neurons.of({site: 32}, {site: [1, 5, 9]})
    cut = edit.scale(chosen, 0.0)
    found = entropy_effect(model, cut, inputs, n_random=3)
    head = model.get_output_embeddings()
    last = sites.residual(model)[-1]
    norm = {"llama": "model.norm", "gpt2": "transformer.ln_f", "neox": "gpt_neox.final_layer_norm"}[family]
    norm = model.get_submodule(norm)

    def stream(within):
        with within:
            return probe.record(model, inputs, last)[last].double()

    with torch.no_grad():
        h, edited = stream(edit.scale(chosen, 1.0).on(model)), stream(cut.on(model))
        if family == "llama":
            scale = (h.square().mean(-1, keepdim=True) + norm.variance_epsilon).sqrt()
            frozen = norm.weight.double() * edited / scale
        else:
            centred = edited - edited.mean(-1, keepdim=True)
            scale = (h.var(-1, correction=0, keepdim=True) + norm.eps).sqrt()
            frozen = norm.weight.double() * centred / scale + norm.bias.double()
        plain, total = (entropy(head(norm(x.float()))) for x in (h, edited))
        direct = entropy(head(frozen.float()))
    assert found.before == pytest.approx(float(plain.mean()), abs=1e-5)
    assert found.total == pytest.approx(float((total - plain).mean()), abs=1e-5)
    assert found.direct == pytest.approx(float((direct - plain).mean()), abs=1e-5)
    assert found.through_scale == pytest.approx(found.total - found.direct)
    assert found.controls.shape == (3, 2)
    assert "through the scale" in str(found)


def test_a_unit_that_no_token_reads_acts_through_the_scale_alone():
    """Planted: the stream gains a large component that the unembedding does not see."""
    model, inputs = tiny("llama")
    with torch.no_grad():
        model.lm_head.weight[:, 3] = 0
        model.model.layers[-1].mlp.down_proj.weight[:, 7] = torch.eye(16)[3] * 20
    site = sites.mlp(model)[-1]
    found = entropy_effect(model, edit.scale(Neurons.of({site: 32}, {site: [7]}), 0.0), inputs, n_random=19)
    assert abs(found.direct) < 1e-5
    assert found.total < -0.05  # without it the logits are larger, so the model is surer
    assert found.null.p == pytest.approx(0.05)


def test_padding_is_left_out_and_the_last_token_can_be_read_alone():
    model, inputs = tiny("gpt2")
    site = sites.mlp(model)[-1]
    cut = edit.scale(Neurons.of({site: 32}, {site: [1]}), 0.0)
    ids = torch.cat([inputs["input_ids"], torch.zeros(2, 3, dtype=torch.long)], 1)
    mask = torch.cat([torch.ones(2, 6), torch.zeros(2, 3)], 1).long()
    plain = entropy_effect(model, cut, inputs, n_random=1)
    padded = entropy_effect(model, cut, {"input_ids": ids, "attention_mask": mask}, n_random=1)
    assert padded.total == pytest.approx(plain.total, abs=1e-6)
    last = entropy_effect(model, cut, {"input_ids": ids, "attention_mask": mask}, n_random=1, last_only=True)
    with torch.no_grad():
        assert last.before == pytest.approx(float(entropy(model(**inputs).logits[:, -1]).mean()), abs=1e-5)


def test_models_without_a_norm_at_the_end_are_refused():
    model, inputs = tiny("llama")
    site = sites.mlp(model)[-1]
    cut = edit.scale(Neurons.of({site: 32}, {site: [1]}), 0.0)
    with pytest.raises(UnsupportedError, match="no scale"):
        entropy_effect(model, cut, inputs, norm=Site("lm_head", "b t u", at="input"))
    del model.model._modules["norm"]
    model.model.norm = nn.Identity()
    with pytest.raises(SiteError, match="final norm"):
        entropy_effect(model, cut, inputs)
    with pytest.raises(RangeError, match="control"):
        entropy_effect(model, cut, inputs, n_random=0)


def test_indirect_effects_are_shares():
    yes, no = torch.tensor([0.9, 0.7]), torch.tensor([-0.5, -0.3])
    nothing = diff.indirect_effect(yes, no, yes, no)
    assert nothing == (0, 0, 0, 0)
    swapped = diff.indirect_effect(yes, no, no, yes)
    assert swapped.to_true == swapped.to_false == pytest.approx(1)
    assert swapped.mean == pytest.approx(1)
    full = diff.indirect_effect(yes, no, -torch.ones(2), torch.ones(2))
    assert full.to_true_of_all == full.to_false_of_all == pytest.approx(1)
    assert full.to_true > 1
    with pytest.raises(ShapeError):
        diff.indirect_effect(yes, no, yes[:1], no)
    with pytest.raises(RangeError, match="do not differ"):
        diff.indirect_effect(yes, yes, yes, yes)
    with pytest.raises(RangeError, match="lie in"):
        diff.indirect_effect(yes + 2, no, yes, no)
