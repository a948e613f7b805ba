"""Sparse autoencoders inside models: splicing, features as units, loss recovered, SAELens' files."""

import json
import runpy
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from plexus import edit, probe, units
from plexus.errors import DtypeError, FormatError, RangeError, ShapeError, SiteError, SiteNotReached, UnsupportedError
from plexus.probe import sae
from plexus.units import Neurons, Site

tiny = runpy.run_path(str(Path(__file__).parents[1] / "families.py"))["tiny"]
HIDDEN = Site("1", "b u")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def small() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 2))


def exact(units: int) -> sae.SparseAutoencoder:
    """One feature for each direction of each axis: an autoencoder without loss."""
    model = sae.SparseAutoencoder(units, 2 * units, decoder_bias=False)
    axes = torch.cat([torch.eye(units), -torch.eye(units)])
    with torch.no_grad():
        model.decoder.copy_(axes)
        model.encoder.copy_(axes.T)
    return model


def test_splice_is_the_model_run_by_hand_and_leaves_no_trace():
    model, coder, x = small(), sae.SparseAutoencoder(6, 9, generator=generator(1)), torch.randn(5, 3)
    plain = model(x)
    with sae.splice(model, coder, at=HIDDEN):
        inside = model(x)
    assert torch.equal(inside, model[2](coder(model[:2](x))))
    assert torch.equal(model(x), plain)
    with pytest.raises(RuntimeError), sae.splice(model, coder, at=HIDDEN):
        model(torch.randn(5, 4))
    assert torch.equal(model(x), plain)
    with pytest.raises(SiteNotReached), sae.splice(model, coder, at=Site("1", "b u", call=3)):
        model(x)
    with pytest.raises(SiteError, match="at="), sae.splice(model, coder):
        pass
    with pytest.raises(ShapeError), sae.splice(model, sae.SparseAutoencoder(5, 9), at=HIDDEN):
        model(x)


def test_an_edit_of_features_moves_along_their_directions_and_keeps_the_rest():
    model, coder, x = small(), sae.SparseAutoencoder(6, 9, generator=generator(1)), torch.randn(5, 3)
    feature = Neurons.of({coder.feature_site: 9}, {coder.feature_site: [4]})
    hidden = model[:2](x)
    z = coder.encode(hidden)
    with sae.splice(model, coder, at=HIDDEN, edit=edit.scale(feature, 1.0)):
        assert torch.equal(model(x), model[2](hidden))  # an edit of nothing changes nothing, bit for bit
    with sae.splice(model, coder, at=HIDDEN, edit=edit.scale(feature, 0.0)):
        out = model(x)
    torch.testing.assert_close(out, model[2](hidden - z[:, 4:5] * coder.directions(4)))
    with sae.splice(model, coder, at=HIDDEN, edit=edit.scale(feature, 0.0).then(edit.add(feature, 2.0))):
        out = model(x)
    torch.testing.assert_close(out, model[2](hidden + (2.0 - z[:, 4:5]) * coder.directions(4)))
    with edit.add(model, ~Neurons.of({HIDDEN: 6}), 3.0, basis=coder.directions(feature)):
        steered = model(x)
    torch.testing.assert_close(steered, model[2](hidden + 3.0 * coder.directions([4])))
    other = Neurons.of({HIDDEN: 6}, {HIDDEN: [0]})
    with pytest.raises(SiteError, match="features"), sae.splice(model, coder, at=HIDDEN, edit=edit.scale(other, 0.0)):
        pass
    with pytest.raises(SiteError):
        coder.directions(other)
    with pytest.raises(RangeError):
        coder.directions([9])
    with pytest.raises(DtypeError):
        coder.directions(torch.tensor([True]))


def test_features_are_scored_and_chosen_like_units():
    """Rows made of two directions, one of them for the labelled samples: its feature is found, and steers the label."""
    draw = generator()
    labels = torch.arange(200) % 2
    directions = nn.functional.normalize(torch.randn(2, 6, generator=draw), dim=-1)
    strength = 0.5 + torch.rand(200, 2, generator=draw)
    rows = strength[:, :1] * directions[0] + labels[:, None] * strength[:, 1:] * directions[1]
    model = nn.Sequential(nn.Identity())
    site = Site("0", "b u")
    record = probe.record(model, rows, site, labels=labels)
    options = {
        "features": 4,
        "steps": 300,
        "rate": 1e-2,
        "l1": 0.2,
        "l1_reduction": "sum",
        "decoder_bias": False,
        "generator": draw,
    }
    coder = sae.fit(record, **options).autoencoder
    assert coder.site == site
    features = sae.encoded(record, coder)
    assert features.samples == 200
    best = probe.scores.auroc(features).ranked(1)[0]
    assert best.score > 0.9
    found = nn.functional.normalize(coder.directions([best.unit]), dim=-1)
    assert float(found @ directions[1]) > 0.8
    streamed = probe.scores.auroc(sae.encoded(probe.stream(model, rows.split(50), site), coder), labels)
    torch.testing.assert_close(streamed[coder.feature_site], probe.scores.auroc(features)[coder.feature_site])
    assert coder.directions(probe.scores.auroc(features).top(1)).shape == (1, 6)
    with pytest.raises(DtypeError):
        sae.encoded(rows, coder)


def test_a_lossless_autoencoder_recovers_all_and_an_empty_one_nothing():
    model, x = small(), torch.randn(32, 3, generator=generator())
    y = torch.randn(32, 2, generator=generator(1))
    batches = [(x[:20], y[:20]), (x[20:], y[20:])]

    def loss(output, batch):
        return (output - batch[1]).square().mean()

    before = {name: value.clone() for name, value in model.state_dict().items()}
    good = sae.loss_recovered(model, batches, exact(6), at=HIDDEN, loss=loss)
    assert good.recovered == pytest.approx(1, abs=1e-5)
    hidden = model[:2](x)
    for name, rows in (("clean", hidden), ("zero", 0 * hidden), ("mean", hidden.mean(0).expand_as(hidden))):
        assert getattr(good, name) == pytest.approx(float(loss(model[2](rows), (x, y))), rel=1e-5)
    nothing = sae.SparseAutoencoder(6, 4, decoder_bias=False)
    with torch.no_grad():
        nothing.decoder.zero_()
    empty = sae.loss_recovered(model, batches, nothing, at=HIDDEN, loss=loss)
    assert empty.recovered == pytest.approx(0, abs=1e-6)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    with pytest.raises(DtypeError, match="twice"):
        sae.loss_recovered(model, iter(batches), exact(6), at=HIDDEN, loss=loss)
    with pytest.raises(ShapeError, match="loss"):
        sae.loss_recovered(model, batches, exact(6), at=HIDDEN)
    found = sae.loss_recovered(model, batches, exact(6), at=HIDDEN, loss=lambda output, batch: torch.ones(()))
    with pytest.raises(RangeError, match="costs nothing"):
        _ = found.recovered


@pytest.mark.parametrize("family", ["llama", "gpt2", "neox"])
def test_language_models_run_on_reconstructions_under_generate_with_padding(family):
    model, _ = tiny(family)
    where = {"llama": "model.layers.1", "gpt2": "transformer.h.1", "neox": "gpt_neox.layers.1"}[family]
    site = Site(where, "b t u")
    ids = torch.randint(3, 30, (3, 7), generator=generator())
    mask = torch.ones_like(ids)
    mask[0, :3] = 0
    batch = {"input_ids": ids, "attention_mask": mask}
    record = probe.record(model, batch, site)
    assert len(record[site]) == 18  # padding is no data
    done = sae.fit(record, features=24, steps=30, l1=0.01, generator=generator())
    plain = model.generate(**batch, max_new_tokens=4, do_sample=False)
    beams = model.generate(**batch, max_new_tokens=4, do_sample=False, num_beams=2)
    lossless = exact(16)
    with sae.splice(model, lossless, at=site):
        assert torch.equal(model.generate(**batch, max_new_tokens=4, do_sample=False), plain)
        assert torch.equal(model.generate(**batch, max_new_tokens=4, do_sample=False, num_beams=2), beams)
    chosen = Neurons.of({done.autoencoder.feature_site: 24}, {done.autoencoder.feature_site: [3]})
    logits = model(**batch).logits
    with sae.splice(model, done.autoencoder, edit=edit.add(chosen, 50.0), positions="generated"):
        assert torch.equal(model(**batch).logits, logits)  # a prompt alone has no generated token
        model.generate(**batch, max_new_tokens=3, do_sample=False)
    with sae.splice(model, done.autoencoder, edit=edit.add(chosen, 50.0)):
        assert not torch.allclose(model(**batch).logits, logits)
    assert torch.equal(model.generate(**batch, max_new_tokens=4, do_sample=False), plain)
    labelled = {**batch, "labels": torch.where(mask.bool(), ids, -100)}
    found = sae.loss_recovered(model, [labelled], lossless, at=site)
    assert found.clean == pytest.approx(float(model(**labelled).loss), rel=1e-5)
    assert found.spliced == pytest.approx(found.clean, rel=1e-4)


def test_a_bfloat16_model_is_spliced_in_float32_and_cast_back():
    model, inputs = tiny("llama")
    model = model.to(torch.bfloat16)
    plain = model(**inputs).logits
    with sae.splice(model, exact(16), at=Site("model.layers.1", "b t u")):
        assert torch.equal(model(**inputs).logits, plain)


# SAELens' files


def folder_of(path: Path, architecture: str, seed: int = 0, **config):
    """A folder as SAELens writes it, and the same autoencoder as plain formulas."""
    draw = generator(seed)
    d, f = 5, 11
    weights = {"W_enc": (d, f), "W_dec": (f, d), "b_dec": (d,)}
    biases = {"gated": ("b_gate", "r_mag", "b_mag"), "jumprelu": ("b_enc", "threshold")}
    weights |= dict.fromkeys(biases.get(architecture, ("b_enc",)), (f,))
    tensors = {name: torch.randn(shape, generator=draw) for name, shape in weights.items()}
    path.mkdir(exist_ok=True)
    save_file(tensors, path / "sae_weights.safetensors")
    fields = {"architecture": architecture, "d_in": d, "d_sae": f, "dtype": "float32", "device": "cpu", **config}
    (path / "cfg.json").write_text(json.dumps(fields))
    return tensors


def by_hand(w, x, architecture, *, k=None, pre=True, scaling="none", rescale=False):
    shift, by = torch.zeros(len(x), 1), torch.ones(len(x), 1)
    if scaling == "layer_norm":
        shift, by = x.mean(1, keepdim=True), x.std(1, keepdim=True)
        n = (x - shift) / (by + 1e-5)
    elif scaling == "constant_norm_rescale":
        by = x.norm(dim=1, keepdim=True) / x.shape[1] ** 0.5
        n = x / by
    else:
        n = x
    n = n - w["b_dec"] if pre else n
    if architecture == "gated":
        z = (n @ w["W_enc"] + w["b_gate"] > 0) * (n @ (w["W_enc"] * w["r_mag"].exp()) + w["b_mag"]).clamp_min(0)
    else:
        y = n @ w["W_enc"] + w["b_enc"]
        y = y * w["W_dec"].norm(dim=1) if rescale else y
        z = y.clamp_min(0)
        if architecture == "topk":
            z = z * (y >= y.sort(dim=1, descending=True)[0][:, k - 1 : k])
        if architecture == "jumprelu":
            z = z * (y > w["threshold"])
    decoder = w["W_dec"] / w["W_dec"].norm(dim=1, keepdim=True) if rescale else w["W_dec"]
    return z, (z @ decoder + w["b_dec"]) * by + shift


@pytest.mark.parametrize("pre", [True, False])
@pytest.mark.parametrize("scaling", ["none", "layer_norm", "constant_norm_rescale"])
@pytest.mark.parametrize("architecture", ["standard", "topk", "jumprelu", "gated", "topk rescaled"])
def test_saelens_folders_are_read_as_their_formulas_say(tmp_path, architecture, scaling, pre):
    architecture, _, rescaled = architecture.partition(" ")
    options = {"k": 3} if architecture == "topk" else {}
    more = {"rescale_acts_by_decoder_norm": True} if rescaled else {}
    w = folder_of(tmp_path, architecture, apply_b_dec_to_input=pre, normalize_activations=scaling, **options, **more)
    model, x = sae.load(tmp_path), torch.randn(40, 5, generator=generator(3))
    z, out = by_hand(w, x, architecture, pre=pre, scaling=scaling, rescale=bool(rescaled), **options)
    torch.testing.assert_close(model.encode(x), z, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(model(x), out, atol=1e-4, rtol=1e-4)
    if scaling == "none":
        torch.testing.assert_close(model.decode(z), out, atol=1e-4, rtol=1e-4)
    else:
        with pytest.raises(UnsupportedError):
            model.decode(z)
    sae.save(model, tmp_path / "again")
    torch.testing.assert_close(sae.load(tmp_path / "again")(x), model(x))


def test_the_fields_of_older_files_are_understood(tmp_path):
    w = folder_of(
        tmp_path, "standard", activation_fn_str="topk", activation_fn_kwargs={"k": 2}, normalize_activations=False,
        hook_point="blocks.3.hook_resid_pre", model_name="pythia-70m", hook_point_layer=3,
    )  # fmt: skip
    model, x = sae.load(tmp_path), torch.randn(6, 5, generator=generator(3))
    torch.testing.assert_close(model(x), by_hand(w, x, "topk", k=2)[1], atol=1e-4, rtol=1e-4)
    assert model.metadata["hook_name"] == "blocks.3.hook_resid_pre"
    assert model.metadata["hook_layer"] == 3
    assert sae.load(tmp_path, site=HIDDEN).site == HIDDEN
    folder_of(tmp_path, "standard", normalize_activations=True)
    with pytest.warns(UserWarning, match="scale"):
        sae.load(tmp_path)


def test_folders_that_cannot_be_read_say_why(tmp_path):
    with pytest.raises(FormatError, match="no autoencoder"):
        sae.load(tmp_path)
    folder_of(tmp_path, "standard")
    for change, error in (
        ({"architecture": "transcoder"}, UnsupportedError),
        ({"normalize_activations": "covariance_whitening"}, UnsupportedError),
        ({"finetuning_scaling_factor": True}, UnsupportedError),
        ({"architecture": "gated"}, FormatError),
        ({"architecture": "topk"}, FormatError),
        ({"d_sae": 12}, FormatError),
        ({"d_in": "wide"}, FormatError),
    ):
        fields = {"architecture": "standard", "d_in": 5, "d_sae": 11, **change}
        (tmp_path / "cfg.json").write_text(json.dumps(fields))
        with pytest.raises(error):
            sae.load(tmp_path)
    (tmp_path / "cfg.json").write_text("[1")
    with pytest.raises(FormatError):
        sae.load(tmp_path)
    folder_of(tmp_path, "standard")
    whole = (tmp_path / "sae_weights.safetensors").read_bytes()
    (tmp_path / "sae_weights.safetensors").write_bytes(whole[:-30])
    with pytest.raises(FormatError, match="truncated"):
        sae.load(tmp_path)


@pytest.mark.parametrize("kind", ["relu", "top-k", "batch-top-k", "jump-relu", "tied"])
def test_what_is_written_acts_as_what_was_trained(tmp_path, kind):
    rows = torch.randn(200, 5, generator=generator()) * 3 + 1
    options = {"activation": "relu" if kind == "tied" else kind, "tied": kind == "tied"}
    options |= {"k": 3} if "top-k" in kind else {}
    options |= {"decoder_bias": False} if kind == "tied" else {}
    record = units.Recording({HIDDEN: rows}, {HIDDEN: units.Table(range(200))})
    done = sae.fit(record, features=9, steps=25, l1=0.02, rate=0.01, generator=generator(), **options)
    sae.save(done.autoencoder, tmp_path)
    again = sae.load(tmp_path)
    assert again.site == HIDDEN
    torch.testing.assert_close(again.encode(rows), done.autoencoder.encode(rows), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(again(rows), done.autoencoder(rows), atol=1e-4, rtol=1e-4)
    names = set(load_file(tmp_path / "sae_weights.safetensors"))
    assert {"W_enc", "W_dec", "b_enc", "b_dec"} <= names
