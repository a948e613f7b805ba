"""The currency made from tensors of another device than the CPU: it lies in main memory, with the same numbers."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest
import torch
from torch import nn

from plexus.units import Neurons, Port, Recording, Scores, Site, Table, attach, exact_weights, fingerprint, sites
from plexus.units._evaluating import differentiable

same = runpy.run_path(str(Path(__file__).parents[1] / "probe" / "same_numbers.py"))["same_numbers"]
CPU, HIDDEN = torch.device("cpu"), Site("1", "b t u")
VALUES = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
SAMPLE, POSITION = torch.tensor([0, 0, 0, 1, 1, 2]), torch.tensor([0, 1, 2, 0, 1, 0])


def recording(d: torch.device) -> Recording:
    table = Table(SAMPLE.to(d), POSITION.to(d))
    return Recording({HIDDEN: VALUES.to(d)}, {HIDDEN: table}, labels={"a": torch.tensor([0, 1, 1]).to(d)})


def masked(d: torch.device) -> Neurons:
    return Neurons({HIDDEN: torch.tensor([True, False, True, False]).to(d)})


def mlp(d: torch.device) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2)).to(d)


CASES = {
    "recording": recording,
    "rows of a table": lambda d: Table(SAMPLE)[(SAMPLE == 1).to(d)],
    "dense": lambda d: recording(d).dense(HIDDEN, pad=0.0),
    "where": lambda d: recording(d).where(sample=torch.tensor([0, 2]).to(d)),
    "at": lambda d: recording(d).at(HIDDEN),
    "labels": lambda d: recording(CPU).with_labels(torch.arange(3).to(d)),
    "scores": lambda d: Scores({HIDDEN: VALUES[0].to(d)}),
    "mapped scores": lambda d: Scores({HIDDEN: VALUES[0]}).map(lambda v: v.to(d).abs()),
    "top": lambda d: Scores({HIDDEN: VALUES[0].to(d)}).top(2),
    "masks": masked,
    "units by number": lambda d: Neurons.of({HIDDEN: 4}, {HIDDEN: torch.tensor([1, 3]).to(d)}),
    "sets": lambda d: masked(d) | ~masked(CPU),
    "drawn": lambda d: masked(d).random_like(torch.Generator().manual_seed(0)),
    "port": lambda d: Port.on(torch.tensor([True, False]).to(d), gain=torch.tensor([0.5, 2.0])).apply(
        torch.ones(2).to(d)
    ),
    "stacked ports": lambda d: Port(low=torch.tensor(0.0)).then(Port(gain=torch.tensor([-2.0]).to(d))).low,
    "dense port": lambda d: Port(bias=torch.tensor(1.0)).dense(2, torch.zeros(()).to(d)),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES.values(), ids=list(CASES))
def test_what_is_made_there_is_what_is_made_here(case, elsewhere):
    same(case(elsewhere), case(CPU))


@pytest.mark.parametrize("how", ["last", "first", "mean", "sum", "max", "min"])
def test_rows_are_pooled(how, elsewhere):
    same(recording(elsewhere).pool(how), recording(CPU).pool(how))


def test_a_recording_and_its_file(tmp_path, elsewhere):
    recording(elsewhere).save(tmp_path / "rows.safetensors")
    same(Recording.load(tmp_path / "rows.safetensors"), recording(CPU))


def test_models_are_named_found_and_edited(elsewhere):
    model, here = mlp(elsewhere), mlp(CPU)
    assert fingerprint(model) == fingerprint(here)
    place = sites(model, "1")[0]

    class Halve:
        site, records = place, False

        def __call__(self, values, visit):
            return values / 2

    x = VALUES.to(elsewhere)
    with attach(model, [Halve()]):
        edited = model(x)
    same(edited, here[2](here[:2](VALUES) / 2))
    same(exact_weights(model[2]), exact_weights(here[2]))


@pytest.mark.parametrize("training", [True, False])
def test_cudnn_is_set_aside_for_recurrent_layers_in_evaluation_mode_alone(training, elsewhere):
    layer, before = nn.LSTM(2, 3).train(training), torch.backends.cudnn.enabled
    with differentiable(layer):
        assert torch.backends.cudnn.enabled == before
    with differentiable(nn.Sequential(nn.Linear(2, 3)).eval().to(elsewhere)):
        assert torch.backends.cudnn.enabled == before
    with differentiable(layer.to(elsewhere)):
        assert torch.backends.cudnn.enabled == (before and training)
    assert torch.backends.cudnn.enabled == before
