"""Sparse autoencoders: their non-linearities, counts, training, feeds and checkpoints."""

import math
import os
import signal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import nn

from plexus import probe
from plexus.errors import DtypeError, FormatError, RangeError, ShapeError, SiteError, UnknownNameError, UnsupportedError
from plexus.probe import sae
from plexus.probe.geometry import participation_ratio
from plexus.probe.sae._activations import batch_top_k, jump_relu, step_count, top_k
from plexus.probe.sae._autoencoder import Design, start_weights
from plexus.probe.sae._feed import Held, Streamed, split
from plexus.probe.sae._trainer import Settings, Trainer
from plexus.units import Recording, Site, Table

A = Site("a", "b u")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def recording(rows: torch.Tensor, samples=None) -> Recording:
    return Recording({A: rows}, {A: Table(range(len(rows)) if samples is None else samples)})


def planted(rows: int = 2048, features: int = 12, units: int = 8, seed: int = 0):
    """Rows made of few of a dictionary's directions each."""
    draw = generator(seed)
    dictionary = nn.functional.normalize(torch.randn(features, units, generator=draw), dim=-1)
    on = torch.rand(rows, features, generator=draw) < 1.5 / features
    return (on * (0.5 + torch.rand(rows, features, generator=draw))) @ dictionary, dictionary


# non-linearities


@settings(deadline=None, max_examples=20)
@given(hnp.arrays(np.float32, (4, 7), elements=st.floats(-4, 4, width=16)), st.integers(1, 7))
def test_top_k_keeps_the_largest_and_no_negative_ones(drive, k):
    kept = top_k(torch.from_numpy(drive), k).numpy()
    for row, out in zip(drive, kept, strict=True):
        np.testing.assert_array_equal(np.sort(out)[::-1][:k], np.maximum(np.sort(row)[::-1][:k], 0))
        assert (out > 0).sum() <= k
        assert set(out[out > 0]) <= set(row)


@settings(deadline=None, max_examples=20)
@given(hnp.arrays(np.float32, (3, 6), elements=st.floats(-4, 4, width=16)), st.integers(1, 6))
def test_batch_top_k_is_top_k_of_the_batch_as_one_row(drive, k):
    drive = torch.from_numpy(drive)
    torch.testing.assert_close(batch_top_k(drive, k), top_k(drive.reshape(1, -1), 3 * k).reshape(3, 6))
    two = batch_top_k(torch.stack([drive, 2 * drive]), k)
    torch.testing.assert_close(two[1], 2 * two[0])


def test_thresholds_learn_as_if_the_step_were_smeared_over_the_width():
    """The stand-in gives, on average over drives spread evenly, the gradient of the averages themselves."""
    drive = torch.linspace(0, 2, 200_001, dtype=torch.float64)
    for theta in (0.5, 1.25):
        threshold = torch.full((1,), theta, dtype=torch.float64, requires_grad=True)
        (slope,) = torch.autograd.grad(jump_relu(drive, threshold, 0.1).mean(), threshold)
        assert slope.item() == pytest.approx(-theta / 2, rel=1e-3)  # d/dθ ∫_θ^2 y dy / 2
        (slope,) = torch.autograd.grad(step_count(drive, threshold, 0.1).mean(), threshold)
        assert slope.item() == pytest.approx(-1 / 2, rel=1e-3)  # d/dθ ∫_θ^2 dy / 2
    y = torch.tensor([0.2, 0.9], requires_grad=True)
    (slope,) = torch.autograd.grad(jump_relu(y, torch.tensor(0.5), 0.1).sum(), y)
    assert slope.tolist() == [0.0, 1.0]


# counts


@settings(deadline=None, max_examples=25)
@given(hnp.arrays(np.float64, st.integers(1, 9), elements=st.floats(0, 1e6)).filter(lambda u: u.sum() > 1e-3))
def test_effective_features_is_the_exponential_of_the_entropy(usage):
    entropy = pytest.importorskip("scipy.stats").entropy(usage)
    count = sae.effective_features(torch.from_numpy(usage))
    assert count == pytest.approx(math.exp(entropy), rel=1e-9)
    assert 1 - 1e-9 <= count <= len(usage) + 1e-9
    assert sae.effective_features(torch.from_numpy(usage[::-1].copy() * 3)) == pytest.approx(count, rel=1e-9)


def test_effective_features_of_equal_shares_is_their_number_and_activity_is_summed():
    assert sae.effective_features(torch.ones(7)) == pytest.approx(7)
    activity = torch.rand(5, 3, 4, generator=generator())
    assert sae.effective_features(activity) == pytest.approx(sae.effective_features(activity.sum((0, 1))))
    for bad in (torch.zeros(3), torch.tensor([1.0, -1.0]), torch.tensor([1.0, math.nan])):
        with pytest.raises(RangeError):
            sae.effective_features(bad)
    with pytest.raises(ShapeError):
        sae.effective_features(torch.tensor(1.0))


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10_000), st.integers(1, 5))
def test_participation_ratio_counts_eigenvalues(seed, units):
    rows = torch.randn(20, units, generator=generator(seed)) * torch.rand(units, generator=generator(seed + 1))
    values = np.linalg.eigvalsh(np.cov(rows.numpy().T.reshape(units, -1)).reshape(units, units))
    ratio = participation_ratio(rows)
    assert ratio == pytest.approx(values.sum() ** 2 / (values**2).sum(), rel=1e-4)
    assert 1 - 1e-9 <= ratio <= units + 1e-9
    turned = rows @ torch.linalg.qr(torch.randn(units, units, generator=generator(seed)))[0]
    assert participation_ratio(turned) == pytest.approx(ratio, rel=1e-4)


def test_participation_ratio_refuses_what_does_not_vary():
    with pytest.raises(RangeError):
        participation_ratio(torch.ones(4, 2))
    with pytest.raises(RangeError):
        participation_ratio(torch.tensor([[1.0, math.nan], [0.0, 1.0]]))
    with pytest.raises(ShapeError):
        participation_ratio(torch.ones(4))


def test_quality_is_the_formula_however_the_rows_come():
    rows = torch.randn(300, 6, generator=generator()) + 5
    model = sae.SparseAutoencoder(6, 10, generator=generator(1))
    whole = sae.quality(model, rows)
    with torch.no_grad():
        z, x_hat = model.encode(rows), model(rows)
    assert whole.fvu == pytest.approx(
        float((rows - x_hat).square().sum() / (rows - rows.mean(0)).square().sum()), rel=1e-5
    )
    assert whole.l0 == pytest.approx(float((z > 0).sum(1).float().mean()))
    assert whole.effective_features == pytest.approx(sae.effective_features(z))
    assert whole.superposition == pytest.approx(whole.effective_features / 6)
    pieces = [recording(part) for part in rows.split([1, 99, 200])]
    parts = sae.quality(model, pieces)
    assert parts.fvu == pytest.approx(whole.fvu, rel=1e-9)
    torch.testing.assert_close(parts.usage, whole.usage)
    assert parts.alive + parts.dead == 10
    with pytest.raises(RangeError):
        sae.quality(model, torch.ones(3, 6))


# training


@pytest.mark.parametrize(
    "options",
    [
        {"activation": "top-k", "k": 2, "revive": "auxiliary", "dead_after": 2000},
        {"activation": "batch-top-k", "k": 2, "revive": "resample", "resample_every": 150, "dead_after": 2000},
        {"activation": "relu", "l1": 0.06, "l1_reduction": "sum"},
        {"activation": "jump-relu", "l0": 0.1, "l1_reduction": "sum", "warmup": 300, "width": 0.5},
    ],
    ids=lambda options: options["activation"],
)
def test_a_planted_dictionary_is_found(options):
    rows, dictionary = planted()
    done = sae.fit(rows, features=16, steps=500, rate=1e-2, batch=128, generator=generator(), **options)
    directions = nn.functional.normalize(done.autoencoder.directions(range(16)), dim=-1)
    near = (directions @ dictionary.T).amax(0)
    assert float((near > 0.9).float().mean()) >= 0.6
    chance = (nn.functional.normalize(torch.randn(16, 8, generator=generator(9)), dim=-1) @ dictionary.T).amax(0)
    assert float((chance > 0.9).float().mean()) < 0.25
    assert sae.quality(done.autoencoder, planted(seed=0)[0]).explained_variance > 0.8


def test_the_same_generator_gives_the_same_autoencoder_bit_for_bit():
    rows, _ = planted(256)
    one, two, other = (
        sae.fit(rows, features=12, l1=0.05, steps=20, every=10, held_out=0.2, generator=generator(seed))
        for seed in (3, 3, 4)
    )
    assert all(torch.equal(value, two.autoencoder.weights[name]) for name, value in one.autoencoder.weights.items())
    assert torch.equal(one.curve["loss"], two.curve["loss"])
    assert not torch.equal(one.autoencoder.decoder, other.autoencoder.decoder)


@pytest.mark.parametrize("kind", ["relu", "top-k", "batch-top-k", "jump-relu"])
def test_members_trained_together_are_as_if_trained_alone(kind):
    design = Design(4, 9, kind, k=2 if "top-k" in kind else None)
    revive, l0 = None if kind == "relu" else "auxiliary", 0.01 * (kind == "jump-relu")
    plans = Settings(steps=30, l1=(0.05, 0.3), l0=l0, revive=revive, dead_after=8)
    rows = torch.randn(2, 64, 4, generator=generator())
    weights = start_weights(design, generator(1), 2)
    both = Trainer(design, plans, weights, generator())
    for part in rows.split(16, dim=1):
        both.step(part)
    for member in range(2):
        alone = Settings(**{**plans.__dict__, "l1": plans.l1[member]})
        one = Trainer(design, alone, {n: v[member : member + 1] for n, v in weights.items()}, generator())
        for part in rows[member : member + 1].split(16, dim=1):
            one.step(part)
        for name, value in one.weights.items():
            torch.testing.assert_close(value[0], both.weights[name][member], atol=1e-5, rtol=1e-4)


def test_many_sets_of_rows_give_an_autoencoder_each():
    rows = torch.stack([planted(512)[0], 7 * planted(512, seed=5)[0]])
    fits = sae.fit_many(rows, features=12, l1=[0.0, 3.0], steps=60, every=20, held_out=0.25, generator=generator())
    assert [tuple(one.autoencoder.decoder.shape) for one in fits] == [(12, 8)] * 2
    assert float(fits[1].autoencoder.scale) == pytest.approx(float(rows[1].square().mean().sqrt()), rel=0.05)
    # the stronger penalty makes the smaller part of its own loss: less activity, worse reconstruction
    l0 = [float(one.curve["l0"][-1]) for one in fits]
    fvu = [float(one.curve["fvu"][-1]) for one in fits]
    assert l0[1] < l0[0]
    assert fvu[1] > fvu[0]
    with pytest.raises(ShapeError):
        sae.fit_many(rows, features=12, l1=[1.0], steps=1, generator=generator())
    with pytest.raises(ShapeError):
        sae.fit_many(rows[0], features=12, steps=1, generator=generator())


def test_members_that_have_stopped_are_let_go_of_and_change_nothing_for_the_others():
    rows = torch.stack([planted(512)[0], 7 * planted(512, seed=5)[0], planted(512, seed=6)[0]])
    settings = {"features": 12, "steps": 200, "every": 10, "rate": 0.03, "tied": True, "unit_norm": False}
    stops = {"watch": "features", "patience": 2, "tolerance": 0.03, "keep": "last"}
    weights = [0.0, 0.3, 3.0]
    fits = sae.fit_many(rows, l1=weights, **settings, **stops, generator=generator())
    steps = [one.steps for one in fits]
    assert len(set(steps)) > 1, steps
    for member, stopped in enumerate(steps):
        # trained as long without stopping, all together
        other = sae.fit_many(rows, l1=weights, **{**settings, "steps": stopped}, generator=generator())[member]
        assert torch.equal(fits[member].curve["step"], other.curve["step"])
        for name in ("loss", "effective_features"):
            torch.testing.assert_close(fits[member].curve[name], other.curve[name], rtol=1e-4, atol=1e-4)
        for name, value in other.autoencoder.weights.items():
            torch.testing.assert_close(fits[member].autoencoder.weights[name], value, rtol=1e-3, atol=1e-4)


def test_penalties_are_averaged_or_summed_over_features_and_cannot_be_had_for_nothing():
    rows = torch.randn(1, 32, 4, generator=generator())
    for tied, unit_norm in ((True, False), (False, True), (False, False)):
        design = Design(4, 6, tied=tied, unit_norm=unit_norm)
        start = start_weights(design, generator(2), 1)
        start["decoder"] = start["decoder"] * (1 if unit_norm else 2)
        found = {}
        for how in ("mean", "sum"):
            trainer = Trainer(design, Settings(steps=1, l1=0.5, l1_reduction=how), start, generator())
            found[how] = float(trainer.measure(rows)["penalty"])
        assert found["sum"] == pytest.approx(6 * found["mean"], rel=1e-5)
        if not (tied or unit_norm):  # larger directions with smaller activity cost the same
            smaller = {name: value / 2 if "encoder" in name else value for name, value in start.items()}
            smaller["decoder"] = start["decoder"] * 2
            trainer = Trainer(design, Settings(steps=1, l1=0.5, l1_reduction="sum"), smaller, generator())
            assert float(trainer.measure(rows)["penalty"]) == pytest.approx(found["sum"], rel=1e-5)


@pytest.mark.parametrize("tied", [False, True])
def test_directions_keep_norm_one(tied):
    rows, _ = planted(256)
    done = sae.fit(rows, features=12, l1=0.1, steps=30, rate=0.05, tied=tied, generator=generator())
    norms = torch.linalg.vector_norm(done.autoencoder.directions(range(12)), dim=-1) / done.autoencoder.scale
    torch.testing.assert_close(norms, torch.ones(12))


@pytest.mark.parametrize("revive", ["auxiliary", "resample"])
def test_dead_features_come_back(revive):
    rows, _ = planted(512)
    design = Design(8, 12, "top-k", k=2)
    start = start_weights(design, generator(), 1)
    start["encoder"][:, :, :6] *= 0.02  # driven a little, and never the most
    start["encoder_bias"][0, 6:] = 2.0
    alive = {}
    for how in (None, revive):
        plans = Settings(steps=150, rate=0.02, revive=how, dead_after=200, resample_every=20, auxiliary=1.0)
        trainer, feed = Trainer(design, plans, start, generator()), Held(rows[None], 64, generator())
        for _ in range(150):
            trainer.step(feed.draw())
        alive[how] = float(trainer.measure(rows[None])["alive"][0])
    assert alive[None] <= 7
    assert alive[revive] >= alive[None] + 2


def test_patience_stops_and_the_best_weights_are_copies():
    rows = torch.randn(256, 4, generator=generator())
    done = sae.fit(
        rows, features=8, steps=4000, every=5, patience=3, rate=0.3, l1=0.5, held_out=0.3, generator=generator()
    )
    losses = done.curve["loss"]
    assert done.steps < 4000
    assert float(losses[-3:].min()) >= float(losses[:-3].min())
    assert int(done.curve["step"][-1]) == done.steps
    design = done.autoencoder.design
    kept = Trainer(
        design,
        Settings(steps=1, l1=0.5),
        {n: v.detach()[None] for n, v in done.autoencoder.weights.items()},
        generator(),
    )
    _, back = split(torch.arange(256), 0.3, generator())
    look = kept.measure(rows[back][None] / done.autoencoder.scale)
    draw = generator()
    split(torch.arange(256), 0.3, draw)
    assert float(look["loss"]) == pytest.approx(float(losses.min()), rel=1e-4)
    last = sae.fit(
        rows,
        features=8,
        steps=4000,
        every=5,
        patience=3,
        rate=0.3,
        l1=0.5,
        held_out=0.3,
        keep="last",
        generator=generator(),
    )
    assert last.steps == done.steps
    assert not torch.equal(last.autoencoder.decoder, done.autoencoder.decoder)


def test_watching_features_stops_once_their_number_has_settled():
    rows, _ = planted(512)
    done = sae.fit(
        rows,
        features=12,
        steps=3000,
        every=10,
        watch="features",
        patience=3,
        tolerance=0.05,
        l1=0.05,
        generator=generator(),
    )
    counts = done.curve["effective_features"]
    assert done.steps < 3000
    assert float(counts[-4:].max() - counts[-4:].min()) <= 0.05 * float(counts[-3:].mean()) + 1e-9


# feeds


def numbered(rows: int) -> torch.Tensor:
    return torch.arange(rows, dtype=torch.float32)[:, None]


def seen_by(feed, draws: int) -> list[float]:
    out = []
    for _ in range(draws):
        batch = feed.draw()
        if batch is None:
            break
        out += batch[0, :, 0].tolist()
    return out


@settings(deadline=None, max_examples=20)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=8), st.integers(1, 4), st.integers(1, 20), st.integers(0, 3))
def test_a_stream_read_once_gives_each_row_at_most_once_and_drops_less_than_a_batch(sizes, batch, size, held):
    total = sum(sizes)
    pieces = numbered(total).split(sizes)
    if total <= held:
        return
    feed = Streamed(lambda: iter(pieces), False, batch, size, held, generator())
    seen = seen_by(feed, 1000)
    assert len(set(seen)) == len(seen)
    assert set(seen) <= set(range(held, total))
    assert total - held - len(seen) < batch
    assert held == 0 or feed.kept_back[0, :, 0].tolist() == list(range(held))


def test_a_stream_that_opens_again_goes_round_and_mixes():
    feed = Streamed(lambda: iter(numbered(100).split(7)), True, 5, 40, 20, generator())
    seen = seen_by(feed, 80)
    assert len(seen) == 400
    counts = torch.bincount(torch.tensor(seen).long(), minlength=100)
    assert counts[:20].sum() == 0
    assert int(counts[20:].min()) >= 3
    assert seen[:20] != sorted(seen[:20])


def test_rows_in_memory_are_each_seen_once_a_round():
    feed = Held(numbered(12)[None], 4, generator())
    rounds = [seen_by(feed, 3) for _ in range(3)]
    assert all(sorted(one) == list(range(12)) for one in rounds)
    assert rounds[0] != rounds[1]


def test_held_out_rows_are_whole_samples():
    samples = torch.arange(20).repeat_interleave(torch.arange(20) % 4 + 1)
    train, back = split(samples, 0.3, generator())
    assert not set(samples[train].tolist()) & set(samples[back].tolist())
    assert sorted(torch.cat([train, back]).tolist()) == list(range(len(samples)))
    assert 0.3 * len(samples) <= len(back) <= 0.3 * len(samples) + 4
    for bad in (1.0, -0.1, len(samples)):
        with pytest.raises(RangeError):
            split(samples, bad, generator())


# stopping and going on


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("kind", ["relu", "batch-top-k"])
def test_a_stopped_training_goes_on_as_if_it_had_not_been_stopped(tmp_path, streamed, kind):
    rows, _ = planted(400)
    options = {
        "features": 12, "steps": 40, "every": 8, "batch": 32, "activation": kind, "l1": 0.1, "buffer": 150,
        "held_out": 40, "revive": "resample", "resample_every": 10, "dead_after": 64,
    }  # fmt: skip
    options |= {"k": 2} if kind == "batch-top-k" else {}

    def source(stop_at: int | None = None):
        if not streamed:
            return recording(rows)
        drawn = []

        def open_stream():
            for piece in rows.split(37):
                drawn.append(1)
                if len(drawn) == stop_at:
                    os.kill(os.getpid(), signal.SIGINT)
                yield recording(piece)

        return open_stream

    whole = sae.fit(source(), **options, generator=generator(2))
    if streamed:
        with pytest.raises(KeyboardInterrupt):
            sae.fit(source(25), **options, generator=generator(2), checkpoint=tmp_path / "c")
        assert (tmp_path / "c").exists()
    else:
        sae.fit(source(), **options, generator=generator(2), checkpoint=tmp_path / "c", save_every=0.0)
        again = sae.fit(source(), **options, generator=generator(7), checkpoint=tmp_path / "c")
        assert torch.equal(again.autoencoder.decoder, whole.autoencoder.decoder)
        _stopped_after(13, source(), options, tmp_path / "d")
        (tmp_path / "c").unlink()
        (tmp_path / "d").rename(tmp_path / "c")
    resumed = sae.fit(source(), **options, generator=generator(2), checkpoint=tmp_path / "c")
    for name, value in whole.autoencoder.weights.items():
        assert torch.equal(value, resumed.autoencoder.weights[name]), name
    assert torch.equal(whole.autoencoder.limit, resumed.autoencoder.limit)
    assert torch.equal(whole.curve["loss"], resumed.curve["loss"])


def _stopped_after(steps, source, options, path):
    """Ctrl-C in the middle of a step: the step is finished, the state written."""
    original, count = Trainer.step, [0]

    def step(self, x):
        count[0] += 1
        if count[0] == steps:
            os.kill(os.getpid(), signal.SIGINT)
        original(self, x)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "step", step)
        with pytest.raises(KeyboardInterrupt):
            sae.fit(source, **options, generator=generator(2), checkpoint=path)
    assert count[0] == steps


def test_a_checkpoint_of_another_training_or_a_damaged_one_is_refused(tmp_path):
    rows, path = planted(128)[0], tmp_path / "c"
    sae.fit(rows, features=9, steps=2, generator=generator(), checkpoint=path)
    with pytest.raises(UnsupportedError, match="features"):
        sae.fit(rows, features=10, steps=2, generator=generator(), checkpoint=path)
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(FormatError):
        sae.fit(rows, features=9, steps=2, generator=generator(), checkpoint=path)


# what comes in


def test_rows_of_convolutions_heads_and_bfloat16_are_read_as_they_were_recorded():
    conv, site = nn.Sequential(nn.Conv2d(1, 5, 3)), Site("0", "b u y x")
    record = probe.record(conv, torch.randn(2, 1, 6, 6, generator=generator()), site)
    done = sae.fit(record, features=10, steps=3, generator=generator())
    assert done.autoencoder.units == 5
    assert done.autoencoder.site == site
    heads = Recording({A: torch.randn(30, 2, 3, generator=generator()).bfloat16()}, {A: Table(range(30))})
    done = sae.fit(heads, features=10, steps=3, generator=generator())
    assert done.autoencoder.units == 6
    out = done.autoencoder(torch.ones(2, 6, dtype=torch.bfloat16))
    assert out.dtype == torch.bfloat16


def test_sources_without_sense_are_refused():
    rows = torch.randn(64, 4, generator=generator())
    fine = {"features": 8, "steps": 1, "generator": generator()}
    with pytest.raises(RangeError, match="NaN"):
        sae.fit(torch.full((8, 4), math.nan), **fine)
    with pytest.raises(RangeError, match="zero"):
        sae.fit(torch.zeros(8, 4), **fine)
    with pytest.raises(ShapeError):
        sae.fit(torch.zeros(0, 4), **fine)
    with pytest.raises(ShapeError):
        sae.fit(rows[0], **fine)
    with pytest.raises(DtypeError):
        sae.fit("rows", **fine)
    with pytest.raises(DtypeError):
        sae.fit([rows], **fine)
    with pytest.raises(ShapeError, match="no rows"):
        sae.fit([recording(rows)], **fine, held_out=64)
    with pytest.raises(UnsupportedError, match="share"):
        sae.fit([recording(rows)], **fine, held_out=0.5)
    two = Recording({A: rows, Site("b", "b u"): rows}, {A: Table(range(64)), Site("b", "b u"): Table(range(64))})
    with pytest.raises(SiteError):
        sae.fit(two, **fine)
    assert sae.fit(two, **fine, site=A).autoencoder.site == A


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"activation": "softmax"}, UnknownNameError),
        ({"activation": "top-k"}, RangeError),
        ({"k": 3}, RangeError),
        ({"activation": "top-k", "k": 9}, RangeError),
        ({"l1": -1.0}, RangeError),
        ({"steps": 0}, RangeError),
        ({"l1_reduction": "max"}, UnknownNameError),
        ({"revive": "pray"}, UnknownNameError),
        ({"patience": 0}, RangeError),
        ({"activation": "gated"}, RangeError),
        ({"l0": 0.1}, RangeError),
        ({"revive": "auxiliary"}, RangeError),
        ({"generator": 3}, DtypeError),
    ],
)
def test_settings_without_sense_are_refused(options, error):
    rows = torch.randn(16, 4, generator=generator())
    with pytest.raises(error):
        sae.fit(rows, **{"features": 8, "steps": 1, "generator": generator(), **options})


# superposition


def test_superposition_sees_more_features_than_units_where_they_are_and_the_participation_ratio_cannot():
    rows, _ = planted(1500, features=16, units=5)
    plain = torch.eye(5)[torch.randint(0, 5, (1500,), generator=generator())]
    options = {"steps": 300, "rate": 2e-2, "patience": 3, "tolerance": 0.05}
    crowded = sae.superposition(rows, generator=generator(), expansion=8, **options)
    lone = sae.superposition(plain, generator=generator(), expansion=8, **options)
    assert crowded.ratio > 1.5
    assert crowded.ratio > lone.ratio
    assert crowded.participation <= 5 + 1e-6
    assert "superposition" in str(crowded)


def test_a_doubtful_count_says_so_and_an_impossible_one_is_refused():
    rows = torch.randn(100, 4, generator=generator())
    with pytest.warns(UserWarning, match="rows"):
        few = sae.superposition(rows[:30], generator=generator(), steps=200, in_sample=True)
    assert few.warnings
    with pytest.warns(UserWarning, match="FVU"):
        sae.superposition(rows, generator=generator(), steps=100, rate=0.02, l1=5.0)
    with pytest.warns(UserWarning, match="settled"):
        sae.superposition(rows, generator=generator(), steps=10, every=10)
    with pytest.raises(RangeError):
        sae.superposition(rows, generator=generator(), expansion=0.5)
    with pytest.raises(RangeError, match="dead"):
        sae.superposition(rows, generator=generator(), l1=100.0, steps=300, rate=0.1, watch="loss", patience=None)


@pytest.mark.filterwarnings("ignore:FVU", "ignore:F moved")
def test_the_probe_changes_neither_model_nor_random_state():
    model, site = nn.Sequential(nn.Linear(3, 6), nn.Dropout(), nn.ReLU(), nn.Linear(6, 1)), Site("2", "b u")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    meter = sae.SuperpositionProbe(model, torch.randn(200, 3, generator=generator()), site, every=5, seed=1, steps=20)
    assert [meter(step) is not None for step in range(6)] == [True, False, False, False, False, True]
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.training
    assert meter.reports[0] == meter.reports[5]  # the same model, the same number
    assert meter.series("ratio").shape == (2, 2)


def test_a_stream_shorter_than_one_batch_is_refused():
    rows = torch.randn(200, 4, generator=torch.Generator().manual_seed(0))
    with pytest.raises(ShapeError, match=r"before it gave one batch(.|\n)*200 rows(.|\n)*batch=256"):
        sae.fit(iter([recording(rows)]), features=8, steps=10, generator=torch.Generator().manual_seed(0))
