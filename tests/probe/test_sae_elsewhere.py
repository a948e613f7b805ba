"""Sparse autoencoders on another device than the CPU: equal draws, equal training, measures held here."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from plexus import edit, probe
from plexus.probe import sae
from plexus.probe.sae._checkpoint import Interruption
from plexus.units import Neurons, Recording, Site, Table

same = runpy.run_path(str(Path(__file__).with_name("same_numbers.py")))["same_numbers"]
CPU, HIDDEN = torch.device("cpu"), Site("1", "b u")
X = torch.randn(96, 4, generator=torch.Generator().manual_seed(0))
ROWS = torch.randn(96, 6, generator=torch.Generator().manual_seed(1)).relu()
KINDS = {
    "relu": {"l1": 0.01, "revive": "resample", "dead_after": 64, "resample_every": 5},
    "top-k": {"k": 2, "revive": "auxiliary", "dead_after": 64},
    "batch-top-k": {"k": 2},
    "jump-relu": {"l0": 0.01},
}


@pytest.fixture(autouse=True)
def fused(monkeypatch):
    """The fused step asks for the names of devices that it knows, and a second device of our own has none of them."""
    adam = sys.modules[torch.optim.Adam.__module__]
    monkeypatch.setattr(adam, "_device_dtype_check_for_fused", lambda *args, **options: None)


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def mlp(d: torch.device) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)).to(d)


def by_hand(d: torch.device) -> Recording:
    return Recording({HIDDEN: ROWS.to(d)}, {HIDDEN: Table(torch.arange(96).to(d))}, labels=(torch.arange(96) % 2).to(d))


def trained(source: object, d: torch.device, **settings: object) -> sae.Fit:
    settings = {"features": 12, "steps": 12, "batch": 16, "every": 4, **settings}
    return sae.fit(source, generator=generator(), device=d, progress=False, **settings)


def untrained(d: torch.device, **settings: object) -> sae.SparseAutoencoder:
    found = sae.SparseAutoencoder(6, 12, generator=generator(), **settings)
    found.site = HIDDEN
    return found.to(d)


@pytest.mark.parametrize("kind", KINDS)
def test_training(kind, elsewhere):
    here, there = (trained(ROWS.to(d), d, activation=kind, held_out=0.2, **KINDS[kind]) for d in (CPU, elsewhere))
    same(there, here, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    "source",
    [
        by_hand,
        lambda d: [by_hand(d)],
        lambda d: lambda: probe.stream(mlp(d), X.to(d).split(24), HIDDEN),
        lambda d: ROWS,
    ],
    ids=["recording", "stream", "stream of a model", "rows in main memory"],
)
def test_training_on_what_units_do(source, elsewhere):
    same(trained(source(elsewhere), elsewhere), trained(source(CPU), CPU), rtol=1e-3, atol=1e-4)


def test_rows_there_and_training_here(elsewhere):
    same(trained(ROWS.to(elsewhere), CPU, held_out=8), trained(ROWS, CPU, held_out=8))


def test_many_at_once(elsewhere):
    rows = torch.stack([ROWS, ROWS.flip(0)])
    settings = {
        "features": 12,
        "steps": 12,
        "batch": 16,
        "every": 2,
        "l1": (0.01, 0.3),
        "patience": 1,
        "tolerance": 0.5,
    }
    here, there = (
        sae.fit_many(rows.to(d), generator=generator(), device=d, progress=False, **settings) for d in (CPU, elsewhere)
    )
    same(there, here, rtol=1e-3, atol=1e-4)


def test_a_stopped_training_goes_on(tmp_path, monkeypatch, elsewhere):
    whole = trained(ROWS.to(elsewhere), elsewhere, checkpoint=tmp_path / "whole")
    interrupted, asked = tmp_path / "part", iter([False] * 10)
    monkeypatch.setattr(Interruption, "asked", property(lambda self: next(asked, True)))
    with pytest.raises(KeyboardInterrupt):
        trained(ROWS.to(elsewhere), elsewhere, checkpoint=interrupted)
    monkeypatch.setattr(Interruption, "asked", False)
    same(trained(ROWS.to(elsewhere), elsewhere, checkpoint=interrupted), whole)


CASES = {
    "quality": lambda d: sae.quality(untrained(d), ROWS.to(d)),
    "quality of rows there": lambda d: sae.quality(untrained(CPU), ROWS.to(d)),
    "quality of a recording": lambda d: sae.quality(untrained(d), by_hand(d)),
    "effective features": lambda d: sae.effective_features(ROWS.to(d)),
    "encoded": lambda d: sae.encoded(by_hand(d), untrained(d)),
    "directions": lambda d: untrained(CPU).directions(torch.tensor([1, 5]).to(d)),
    "directions of a set": lambda d: untrained(d).directions(
        Neurons.of({untrained(d).feature_site: 12}, {untrained(d).feature_site: [1, 5]})
    ),
    "loss recovered": lambda d: sae.loss_recovered(
        mlp(d), X.to(d), untrained(CPU), loss=lambda output, batch: output.square().mean()
    ),
    "superposition": lambda d: sae.superposition(
        mlp(d), X.to(d), HIDDEN, generator=generator(), steps=8, every=2, device=d
    ).autoencoder,
}  # fmt: skip


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", CASES.values(), ids=list(CASES))
def test_what_is_measured_there_is_what_is_measured_here(case, elsewhere):
    same(case(elsewhere), case(CPU))


@pytest.mark.parametrize("scaled", ["none", "rms", "layer-norm", "constant-norm"])
def test_files(scaled, tmp_path, elsewhere):
    sae.save(untrained(elsewhere, normalise=scaled), tmp_path)
    same(sae.load(tmp_path).to(elsewhere)(ROWS.to(elsewhere)), untrained(CPU, normalise=scaled)(ROWS))


def test_in_a_model(elsewhere):
    def spliced(d, feature_edit=None):
        model, found = mlp(d), untrained(CPU)
        with sae.splice(model, found, edit=feature_edit):
            return model(X.to(d))

    same(spliced(elsewhere), spliced(CPU))
    site = untrained(CPU).feature_site
    silenced = edit.scale(Neurons.of({site: 12}, {site: [0, 3]}), 0.0)
    same(spliced(elsewhere, silenced), spliced(CPU, silenced))
