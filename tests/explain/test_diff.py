"""Two checkpoints: closed forms of every number, and a refusal where the models are not two checkpoints of one."""

import copy
import json

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from plexus import edit, probe
from plexus.errors import DtypeError, RangeError, ShapeError, UnsupportedError
from plexus.explain import circuits, diff
from plexus.units import Neurons, Recording, Site, Table, sites
from tests.families import tiny


def tuned(model, size=0.05, seed=3):
    other = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * parameter.std(correction=0) * size)
    return other


def apart(family):
    """A model of the same build with other weights."""
    return tuned(tiny(family)[0], size=50.0)


@pytest.mark.parametrize("family", ["gpt2", "llama", "neox", "phi3"])
def test_weights_are_compared_layer_by_layer(family):
    base, _ = tiny(family)
    other = tuned(base)
    found = diff.weights(base, other)
    flat = [torch.cat([p.detach().double().flatten() for p in m.parameters()]) for m in (base, other)]
    assert found.cosine == pytest.approx(float(torch.nn.functional.cosine_similarity(*flat, dim=0)))
    assert (
        sum(moved.numbers for moved in found.layers) == sum(moved.numbers for moved in found.parameters) == len(flat[0])
    )
    blocks = [moved for moved in found.layers if moved.name.rpartition(".")[2].isdigit()]
    assert len(blocks) == 2
    block = base.get_submodule(blocks[0].name), other.get_submodule(blocks[0].name)
    one, two = (torch.cat([p.detach().double().flatten() for p in m.parameters()]) for m in block)
    assert blocks[0].relative == pytest.approx(float((two - one).norm() / one.norm()))
    assert json.dumps(found.to_json())
    assert "relative change" in str(found)
    same = diff.weights(base, copy.deepcopy(base))
    assert same.cosine == 1
    assert all(moved.relative == 0 and moved.cosine == 1 for moved in same.parameters)


@pytest.mark.parametrize(
    "layer", [nn.Linear(3, 4), nn.Conv2d(3, 4, 2), nn.ConvTranspose2d(3, 4, 2)], ids=["linear", "conv", "transposed"]
)
def test_a_unit_that_moved_is_the_one_that_stands_out(layer):
    base = nn.Sequential(layer)
    other = copy.deepcopy(base)
    axis = 1 if isinstance(layer, nn.ConvTranspose2d) else 0
    with torch.no_grad():
        other[0].weight.select(axis, 2).mul_(3.0)
    found = next(iter(diff.weights(base, other).units.values.values()))
    torch.testing.assert_close(found, torch.tensor([0.0, 0.0, 2.0, 0.0]).double())


def test_gpt2s_transposed_layers_count_their_outputs():
    base, _ = tiny("gpt2")
    other = copy.deepcopy(base)
    with torch.no_grad():
        other.transformer.h[0].mlp.c_fc.weight[:, 5] = 0
    units = diff.weights(base, other).units
    best = units.ranked(1)[0]
    assert (best.site.path, best.unit, best.score) == ("transformer.h.0.mlp.c_fc", 5, 1.0)
    assert units.sizes[best.site] == 32


def test_models_of_other_shapes_are_refused():
    base, _ = tiny("llama")
    for other in (tiny("gpt2")[0], nn.Linear(2, 2)):
        for function in (diff.weights, lambda a, b: diff.recordings(a, b, {}, Site("0"))):
            with pytest.raises(UnsupportedError, match="no two checkpoints"):
                function(base, other)
    with pytest.raises(UnsupportedError, match=r"weight: \(3, 2\) and \(4, 2\)"):
        diff.weights(nn.Sequential(nn.Linear(2, 3)), nn.Sequential(nn.Linear(2, 4)))
    with pytest.raises(DtypeError):
        diff.weights(base, "model.safetensors")


HIDDEN = Site("1", "b u")


def network(seed=0, units=30):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, units), nn.Tanh(), nn.Linear(units, 2))


def test_correlation_and_cka_are_the_textbooks():
    base, other = network(), tuned(network(), 0.5)
    x = torch.randn(50, 6, generator=torch.Generator().manual_seed(0)) + 100.0  # large means cost no digits
    base[0].bias.data -= base[0].weight.data.sum(1) * 100
    other[0].bias.data -= other[0].weight.data.sum(1) * 100
    found = diff.recordings(base, other, [x[:20], x[20:]], HIDDEN)
    with torch.no_grad():
        a, b = base[:2](x).double().numpy(), other[:2](x).double().numpy()
    r = [stats.pearsonr(a[:, u], b[:, u]).statistic for u in range(30)]
    np.testing.assert_allclose(found.correlation[HIDDEN].numpy(), r, atol=1e-8)
    a, b = a - a.mean(0), b - b.mean(0)
    cka = np.linalg.norm(b.T @ a) ** 2 / (np.linalg.norm(a.T @ a) * np.linalg.norm(b.T @ b))
    assert found.cka[HIDDEN] == pytest.approx(cka, abs=1e-8)
    assert found.cka_control[HIDDEN] < found.cka[HIDDEN]
    assert found.rows == 50
    full = np.corrcoef(a.T, b.T)[:30, 30:]
    assert found.own[HIDDEN] == pytest.approx((full.argmax(1) == np.arange(30)).mean())


@pytest.mark.parametrize("sizes", [[40], [1] * 40, [10, 30], [30, 10], [20, 20], [7] * 5 + [5]])
def test_the_control_of_cka_pairs_rows_of_different_inputs_whatever_the_batches(sizes):
    base, other = network(), tuned(network(), 0.1)
    x = torch.randn(40, 6, generator=torch.Generator().manual_seed(0))
    found = diff.recordings(base, other, list(x.split(sizes)), HIDDEN)
    with torch.no_grad():
        a, b = base[:2](x).double().numpy(), other[:2](x).double().numpy()
    a, b = a - a.mean(0), b - b.mean(0)
    apart = np.roll(b, max(1, sizes[0] // 2), 0)
    control = np.linalg.norm(apart.T @ a) ** 2 / (np.linalg.norm(a.T @ a) * np.linalg.norm(b.T @ b))
    assert found.cka_control[HIDDEN] == pytest.approx(control, abs=1e-8)
    assert found.cka[HIDDEN] > 0.9
    assert control < 0.5


def test_offloaded_weights_are_not_compared():
    base, other = network(), tuned(network(), 0.1)
    other[0].to("meta")
    with pytest.raises(UnsupportedError, match="without offloading"):
        diff.weights(base, other)


def test_cka_ignores_rotation_and_units_do_not():
    base = nn.Sequential(nn.Linear(6, 6), nn.Identity())
    turned = copy.deepcopy(base)
    q = torch.linalg.qr(torch.randn(6, 6, generator=torch.Generator().manual_seed(1)))[0]
    with torch.no_grad():
        turned[0].weight.copy_(3 * q @ base[0].weight)
        turned[0].bias.copy_(3 * q @ base[0].bias)
    found = diff.recordings(base, turned, torch.randn(60, 6), HIDDEN)
    assert found.cka[HIDDEN] == pytest.approx(1)
    assert not found.related
    with pytest.raises(UnsupportedError, match="do not correspond"):
        found.correlation  # noqa: B018
    assert "not comparable" in str(found)


def test_descendants_are_related_and_models_trained_apart_are_not():
    base, inputs = tiny("llama")
    batch = {"input_ids": torch.randint(3, 30, (6, 8), generator=torch.Generator().manual_seed(0))}
    at = [*sites.mlp(base), *sites.heads(base)]
    near = diff.recordings(base, tuned(base), batch, at)
    assert near.related
    assert min(near.own.values()) > 0.9
    assert near.correlation.sizes[at[0]] == 32
    assert near.correlation.sizes[at[2]] == 4  # heads: their features together
    far = diff.recordings(base, apart("llama"), batch, at)
    assert not far.related
    assert max(far.own.values()) < 0.3
    assert inputs is not None


def test_silent_units_have_no_correlation():
    base = network()
    with torch.no_grad():
        base[0].weight[4] = 0
    found = diff.recordings(base, copy.deepcopy(base), torch.randn(20, 6), HIDDEN)
    assert found.correlation[HIDDEN].isnan().nonzero().flatten().tolist() == [4]
    assert found.cka[HIDDEN] == pytest.approx(1)
    with pytest.raises(ShapeError, match="at least 3"):
        diff.recordings(base, base, torch.randn(2, 6), HIDDEN)
    with pytest.raises(RangeError):
        diff.recordings(base, base, torch.randn(9, 6), HIDDEN, least=2)


def test_overlap_of_sets_is_hypergeometric():
    one, two = (Neurons.of({HIDDEN: 12}, {HIDDEN: units}) for units in ([0, 1, 2, 3], [2, 3, 4]))
    found = diff.overlap(one, two)
    assert found.jaccard == pytest.approx(2 / 5)
    generator = np.random.default_rng(0)
    draws = [len(set(generator.choice(12, 4, replace=False)) & {2, 3, 4}) for _ in range(20_000)]
    assert found.p == pytest.approx(np.mean([k >= 2 for k in draws]), abs=0.02)
    assert found.expected == pytest.approx(np.mean([k / (7 - k) for k in draws]), abs=0.01)
    with pytest.raises(ShapeError):
        diff.overlap(one, Neurons.of({Site("0"): 12}))


def recorded(direction, seed, n=80, noise=1.0):
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % 2
    x = noise * torch.randn(n, 10, generator=generator) + 4.0 * y[:, None] * direction
    return Recording({HIDDEN: x}, {HIDDEN: Table(range(n))}, labels=y)


def test_a_shared_direction_transfers_and_another_one_does_not():
    e = torch.eye(10)
    shared = diff.probes(
        (recorded(e[0], 1), recorded(e[0], 2)), (recorded(e[0], 3), recorded(e[0], 4)), how="mass-mean"
    )
    assert shared.accuracy[HIDDEN].min() > 0.9
    assert shared.cosine[HIDDEN] > 0.8
    assert shared.null(HIDDEN).percentile > 97
    moved = diff.probes((recorded(e[0], 1), recorded(e[1], 2)), (recorded(e[0], 3), recorded(e[1], 4)))
    assert moved.accuracy[HIDDEN].diagonal().min() > 0.9
    assert moved.transfer(HIDDEN) > 0.25
    assert abs(moved.cosine[HIDDEN]) < 0.3
    assert "tuned→base" in str(moved)
    assert json.dumps(moved.to_json())
    with pytest.raises(ShapeError, match="same labelled"):
        diff.probes((recorded(e[0], 1), recorded(e[0], 1, n=60)), (recorded(e[0], 3), recorded(e[0], 4)))
    with pytest.raises(RangeError, match="control"):
        diff.probes((recorded(e[0], 1),) * 2, (recorded(e[0], 1),) * 2, n_random=0)


def language_pairs():
    generator = torch.Generator().manual_seed(2)
    clean, corrupted = ({"input_ids": torch.randint(3, 30, (4, 5), generator=generator)} for _ in range(2))
    right, wrong = (torch.randint(3, 30, (4,), generator=generator) for _ in range(2))
    return clean, corrupted, circuits.logit_difference(right, wrong)


def test_patch_maps_of_relatives_agree_and_cross_maps_are_patches_from_the_other_model():
    base, _ = tiny("llama")
    other = tuned(base, 0.02)
    clean, corrupted, metric = language_pairs()
    at = sites.residual(base)
    found = diff.patch_maps(base, other, clean, corrupted, at, metric)
    assert found.correlation > 0.99
    assert found.largest() < 0.2
    assert found.noise < 1e-5
    assert found.forward_correlation > 0.98
    record = probe.record(base, clean, at[0])
    with edit.patch(other, ~Neurons.of({at[0]: 16}), record, rows={(i, 3): (i, 3) for i in range(4)}), torch.no_grad():
        expected = metric(other(**corrupted), torch.arange(4)).double()
    torch.testing.assert_close(found.forward.effects[3] + found.forward.base, expected, atol=1e-5, rtol=1e-5)
    assert len(found.figure().data) == 4
    assert "noise" in str(found)
    far = diff.patch_maps(base, apart("llama"), clean, corrupted, at, metric)
    assert far.correlation < found.correlation
    with pytest.raises(ShapeError):
        found.largest([77])


def test_the_report_holds_everything_and_has_a_figure():
    base, _ = tiny("gpt2")
    other = tuned(base, 0.02)
    ids = torch.randint(3, 30, (24, 5), generator=torch.Generator().manual_seed(0))
    report = diff.checkpoints(
        base, other, {"input_ids": ids}, sites.residual(base), labels=ids[:, -1] > 15, pairs=language_pairs()
    )
    text = str(report)
    assert all(word in text for word in ("relative change", "CKA", "tuned→base", "patch maps"))
    assert len(report.figure().data) == 1 + 3 + 3 + 2
    assert json.loads(json.dumps(report.to_json()))["recordings"]["related"]
    short = diff.checkpoints(base, other, {"input_ids": ids}, sites.residual(base))
    assert short.probes is None
    assert len(short.figure().data) == 4
    with pytest.raises(ShapeError, match="to train and to test"):
        diff.checkpoints(base, other, {"input_ids": ids}, sites.residual(base), labels=torch.arange(24) == 3)


def test_refusals_are_counted_by_their_beginning_or_by_a_classifier():
    from plexus.data.corpora import word_tokenizer

    base, _ = tiny("llama")
    tokenizer = word_tokenizer(["make it now", "sorry no", "yes we do"], extra=[f"word{i}" for i in range(16)])
    prompts = ["make it", "make", "now make it"]
    plain = diff.refusals(base, tokenizer, prompts, tokens=3, phrases=["sorry"], batch=2)
    assert len(plain.answers) == 3
    assert plain.refused.tolist() == [answer.startswith("sorry") for answer in plain.answers]
    # the answers are those of each prompt alone: padding does not count
    for prompt, answer in zip(prompts, plain.answers, strict=True):
        assert diff.refusals(base, tokenizer, [prompt], tokens=3).answers == (answer,)
    assert diff.refusals(base, tokenizer, prompts, tokens=3, phrases=[plain.answers[0].upper()]).refused[0]
    longer = diff.refusals(base, tokenizer, prompts, tokens=3, classify=lambda answer: len(answer) > 1000)
    assert longer.rate == 0
    with pytest.raises(ShapeError):
        diff.refusals(base, tokenizer, [])
    with pytest.raises(RangeError):
        diff.refusals(base, tokenizer, prompts, phrases=[])
    with pytest.raises(DtypeError, match="yes or no"):
        diff.refusals(base, tokenizer, prompts, tokens=1, classify=lambda answer: 0.7)
