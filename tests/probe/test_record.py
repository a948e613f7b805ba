"""Recording: what is recorded equals what a plain hook or a plain computation sees, and the model is left as it was."""

import random
import signal
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_sequence
from torch.utils.data import DataLoader, TensorDataset

from plexus import nn as px_nn
from plexus import probe
from plexus.errors import (
    DeviceError,
    DtypeError,
    RangeError,
    ShapeError,
    SiteError,
    SiteNotReached,
    UnknownNameError,
    UnsupportedError,
)
from plexus.units import Recording, Site, UnwritableError, sites

HIDDEN = Site("1", "b u")


def mlp(**options):
    return nn.Sequential(nn.Linear(4, 6, **options), nn.ReLU(inplace=True), nn.Linear(6, 2, **options))


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(3, 5, batch_first=True)
        self.out = nn.Linear(5, 2)

    def forward(self, x):
        return self.out(self.lstm(x)[0][:, -1])


def test_values_are_those_of_the_module_and_batches_do_not_matter():
    model, x = mlp(), torch.randn(10, 4)
    expected = torch.relu(model[0](x)).detach()
    for batches in (x, x.numpy(), x.split(3), list(x.split(1)), DataLoader(TensorDataset(x), batch_size=4)):
        record = probe.record(model, batches, HIDDEN)
        assert record.samples == 10
        assert record.table[HIDDEN].sample.tolist() == list(range(10))
        torch.testing.assert_close(record[HIDDEN], expected)


def test_values_are_copied_before_an_in_place_operation_overwrites_them():
    model, x = mlp(), torch.randn(8, 4)
    before, after = Site("0", "b u"), HIDDEN
    record = probe.record(model, x, [before, after])
    assert (record[before] < 0).any()
    torch.testing.assert_close(record[before].relu(), record[after])


def test_a_cnns_units_are_its_channels():
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU())
    x, site = torch.randn(2, 1, 6, 5), Site("1", "b u y x")
    record = probe.record(model, x, site)
    assert record[site].shape == (2 * 4 * 3, 3)
    expected = model(x).detach()
    torch.testing.assert_close(record.dense(site), expected.flatten(2).transpose(1, 2))
    torch.testing.assert_close(probe.record(model, x, site, pool="max")[site], expected.amax((2, 3)))


def test_an_lstm_batch_first_time_first_and_packed():
    lstm = nn.LSTM(3, 5)
    x = torch.randn(7, 2, 3)
    site = Site("", "t b u")
    expected = lstm(x)[0].detach().transpose(0, 1)
    torch.testing.assert_close(probe.record(lstm, x, site).dense(site), expected)
    model, batch_first = Recurrent(), Site("lstm", "b t u")
    x = torch.randn(2, 7, 3)
    torch.testing.assert_close(probe.record(model, x, batch_first).dense(batch_first), model.lstm(x)[0].detach())
    sequences = [torch.randn(n, 3) for n in (2, 5, 3)]
    record = probe.record(lstm, pack_sequence(sequences, enforce_sorted=False), site)
    assert record.samples == 3
    values, mask = record.dense(site, pad=0.0)
    assert mask.sum(1).tolist() == [2, 5, 3]
    for i, sequence in enumerate(sequences):
        torch.testing.assert_close(values[i, : len(sequence)], lstm(sequence[:, None])[0][:, 0].detach())


def test_a_module_called_twice_has_a_row_for_each_call():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.f = nn.Linear(4, 4)

        def forward(self, x):
            return self.f(torch.tanh(self.f(x)))

    model, x, site = Twice(), torch.randn(3, 4), Site("f", "b u")
    record = probe.record(model, x, site)
    assert record.table[site].call.tolist() == [0, 0, 0, 1, 1, 1]
    torch.testing.assert_close(record.where(call=1)[site], model(x).detach())
    torch.testing.assert_close(probe.record(model, x, Site("f", "b u", call=1)).values.popitem()[1], model(x).detach())
    assert probe.record(model, x, site, pool="last", by=("sample", "call"))[site].shape == (6, 4)


def test_the_same_sample_stepped_through_time():
    class Cell(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell = nn.RNNCell(2, 3)

        def forward(self, x, state=None):
            return self.cell(x, state)

    def unroll(model, batch):
        state = None
        for x in batch:
            state = model(x, state)

    model, x, site = Cell(), torch.randn(5, 2, 2), Site("cell", "b u")
    record = probe.record(model, [x, x], site, forward=unroll)
    assert record.samples == 4
    assert record.table[site].step.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4] * 2
    assert record.where(step=4)[site].shape == (4, 3)


class Everything(nn.Module):
    """A model that moves all that recording must not."""

    def __init__(self):
        super().__init__()
        self.norm, self.drop, self.fc = nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 4)
        self.register_buffer("count", torch.zeros(()))
        self.register_buffer("state", None)
        self.hidden = torch.zeros(4)
        self.cell = (torch.zeros(2), torch.zeros(2))
        self.later = None
        self.drop.eval()

    def forward(self, x):
        self.count += 1
        self.state = x.mean(0)
        self.register_buffer("new", x.clone())
        self.hidden = self.hidden + 1
        self.hidden.mul_(2)
        self.cell[0].add_(1)
        self.later, self.unknown = (x, x), [x]
        torch.rand(3), np.random.rand(), random.random()  # noqa: NPY002
        return self.fc(self.drop(self.norm(x)))


def snapshot(model):
    states = {name: None if value is None else value.clone() for name, value in model.state_dict().items()}
    flags = [module.training for module in model.modules()]
    keys = [sorted(module._buffers) for module in model.modules()]
    return states, flags, keys, torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002


def same(one, two):
    assert one[0].keys() == two[0].keys()
    assert all(torch.equal(value, two[0][name]) for name, value in one[0].items())
    assert one[1:3] == two[1:3]
    assert torch.equal(one[3], two[3])
    assert (one[4] == two[4]).all()
    assert one[5] == two[5]


@pytest.mark.parametrize("how", ["record", "stream", "gradients", "error", "interrupt", "not reached"])
def test_the_model_and_the_random_state_are_as_before(how):
    model = Everything().train()
    model.drop.eval()
    before, count, hidden = snapshot(model), model.count, model.hidden
    batches = DataLoader(TensorDataset(torch.randn(6, 4)), batch_size=2, shuffle=True) if how == "record" else None
    batches = batches or [torch.randn(2, 4), torch.randn(3, 4)]
    before = snapshot(model)
    site = Site("fc", "b u")

    def fail(model, batch):
        model(batch)
        raise KeyboardInterrupt if how == "interrupt" else ValueError

    if how in ("error", "interrupt"):
        with pytest.raises((ValueError, KeyboardInterrupt)):
            probe.record(model, batches, site, forward=fail)
    elif how == "not reached":
        with pytest.raises(SiteNotReached):
            probe.record(model, batches, [site, Site("fc", "b u", call=3)])
    elif how == "gradients":
        probe.record(model, batches, site, grad=lambda output, batch: output.sum())
        assert all(parameter.grad is None for parameter in model.parameters())
    elif how == "stream":
        for _ in probe.stream(model, batches, site):
            same(before, snapshot(model))
    else:
        probe.record(model, batches, site)
    same(before, snapshot(model))
    assert model.count is count
    assert model.hidden is hidden
    assert hidden.tolist() == [0] * 4
    assert model.cell[0].tolist() == [0, 0]
    assert model.later is None
    assert not hasattr(model, "unknown")
    assert not model._forward_hooks
    assert torch.is_grad_enabled()


def test_dropout_is_off_and_recorded_values_can_be_used_in_training():
    model = nn.Sequential(nn.Linear(4, 6), nn.Dropout(0.9)).train()
    x, site = torch.randn(5, 4), Site("1", "b u")
    values = probe.record(model, x, site)[site]
    torch.testing.assert_close(values, model[0](x).detach())
    readout = nn.Linear(6, 1)
    readout(values).sum().backward()  # fails on tensors made in inference mode
    assert readout.weight.grad is not None


def test_what_is_recorded_in_inference_mode_can_be_used_in_training():
    model, x = mlp(), torch.randn(5, 4)
    with torch.inference_mode():
        record = probe.record(model, x, HIDDEN)
        slope = probe.record(model, x, HIDDEN, grad=lambda output, batch: output.sum())
        assert torch.is_inference_mode_enabled()
    weight = torch.ones(6, requires_grad=True)
    (record[HIDDEN] * weight).sum().backward()
    torch.testing.assert_close(weight.grad, record[HIDDEN].sum(0))
    torch.testing.assert_close(slope[HIDDEN], model[2].weight.detach().sum(0).expand(5, 6))


def test_no_batch_finds_the_state_that_another_left():
    class Leaky(nn.Module):
        def __init__(self):
            super().__init__()
            self.v = None
            self.out = nn.Identity()

        def forward(self, x):
            self.v = x if self.v is None else 0.5 * self.v + x
            return self.out(self.v)

    def reset(model):
        model.v = None

    x, site = torch.ones(2, 3), Site("out", "b u")
    model = Leaky()
    assert (probe.record(model, [x, x[:1]], site)[site] == 1).all()
    assert model.v is None
    model.v = torch.full((2, 3), 2.0)
    assert (probe.record(model, [x, x], site)[site] == 2).all()
    assert (probe.record(model, [x, x], site, before_batch=reset)[site] == 1).all()
    assert (model.v == 2).all()


class Twice(nn.Module):
    """Comes by its hidden units twice in a pass, and counts how often it gets to its read-out."""

    def __init__(self):
        super().__init__()
        self.hidden, self.out, self.finished = nn.Linear(4, 4), nn.Linear(4, 2), []

    def forward(self, x):
        try:
            output = self.out(torch.tanh(self.hidden(torch.tanh(self.hidden(x)))))
        except Exception:  # as a model may that falls back on something
            return None
        self.finished.append(len(x))
        return output


def test_passes_that_stop_early_record_the_same_and_skip_what_lies_behind():
    torch.manual_seed(0)
    model, batches, site = Twice(), list(torch.randn(8, 4).split([3, 3, 2])), Site("hidden", "b u")
    whole = probe.record(model, batches, site)
    assert model.finished == [3, 3, 2]
    model.finished.clear()
    early = probe.record(model, batches, site, stop_early=True)
    assert model.finished == [3]  # the first batch shows what a pass visits
    assert torch.equal(early[site], whole[site])
    assert early.samples == 8
    assert torch.equal(early.table[site].call, whole.table[site].call)
    model.finished.clear()
    pieces = list(probe.stream(model, batches, [site, Site("hidden", "b u", at="input")], stop_early=True))
    assert model.finished == [3]
    assert torch.equal(torch.cat([piece[site] for piece in pieces]), whole[site])
    assert model(batches[0]).shape == (3, 2)  # the model is as before


def test_stopping_early_is_refused_where_the_whole_pass_is_needed():
    with pytest.raises(UnsupportedError, match="gradients of the loss need the whole pass"):
        probe.record(mlp(), torch.randn(2, 4), HIDDEN, grad=lambda output, batch: output.sum(), stop_early=True)


def test_batches_as_tuples_mappings_and_keyword_only_calls():
    class Keyword(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 3)

        def forward(self, *, x, scale=1.0):
            return {"y": (self.fc(x) * scale, "text")}

    x = torch.randn(5, 4)
    model, site, after = Keyword(), Site("fc", "b u", at="input"), Site("", "b u")
    record = probe.record(model, {"x": x, "scale": 2.0}, [site, after])
    torch.testing.assert_close(record[site], x)
    torch.testing.assert_close(record[after], 2 * model.fc(x).detach())
    y = torch.arange(5)
    labelled = probe.record(mlp(), [(x, y)], HIDDEN)
    assert labelled.labels.tolist() == y.tolist()
    loader = DataLoader(TensorDataset(x, y), batch_size=2)
    assert probe.record(mlp(), loader, HIDDEN).labels.tolist() == y.tolist()
    two = nn.Bilinear(4, 4, 3)
    assert probe.record(two, [(x, x)], Site("", "b u")).samples == 5


def test_labels_are_aligned_or_refused(tmp_path):
    model, x = mlp(), torch.randn(6, 4)
    assert probe.record(model, x, HIDDEN, labels={"even": [1, 0] * 3}).labels["even"].tolist() == [1, 0] * 3
    for wrong in (torch.zeros(5), torch.zeros(7), {"x": torch.zeros(6), "y": torch.zeros(5)}):
        with pytest.raises(ShapeError, match="do not match"):
            probe.record(model, x.split(2), HIDDEN, labels=wrong, spill=tmp_path / "r")
        assert not (tmp_path / "r").exists()
        with pytest.raises(ShapeError, match="do not match"):
            list(probe.stream(model, x.split(2), HIDDEN, labels=wrong))


def test_gradients_are_those_of_autograd():
    model, x = mlp(), torch.randn(5, 4)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    sites = [Site("0", "b u"), HIDDEN, Site("2", "b u")]

    def loss(output, batch):
        return (output**2).sum()

    record = probe.record(model, x, sites, grad=loss)
    for n, site in enumerate(sites):
        hidden = x
        for i, layer in enumerate([model[0], torch.relu, model[2]]):
            hidden = layer(hidden)
            if i == n:
                leaf = hidden = hidden.detach().requires_grad_()
        (expected,) = torch.autograd.grad((hidden**2).sum(), leaf)
        torch.testing.assert_close(record[site], expected)
    pooled = probe.record(model, x.split(2), HIDDEN, grad=loss, pool="mean")
    torch.testing.assert_close(pooled[HIDDEN], record[HIDDEN])


def test_a_loss_that_does_not_depend_on_a_site_has_gradient_zero():
    class Side(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(2, 3), nn.Linear(2, 3)

        def forward(self, x):
            self.a(x)
            return self.b(x)

    a, b = Site("a", "b u"), Site("b", "b u")
    record = probe.record(Side(), torch.randn(4, 2), [a, b], grad=lambda output, batch: output.sum())
    assert (record[a] == 0).all()
    assert (record[b] == 1).all()
    constant = probe.record(Side(), torch.randn(4, 2), a, grad=lambda output, batch: torch.ones(()))
    assert (constant[a] == 0).all()
    with pytest.raises(ShapeError, match="one number"):
        probe.record(Side(), torch.randn(4, 2), a, grad=lambda output, batch: output)


def test_bfloat16_keeps_its_dtype():
    model = mlp(dtype=torch.bfloat16)
    record = probe.record(model, torch.randn(5, 4).bfloat16(), HIDDEN)
    assert record[HIDDEN].dtype == torch.bfloat16
    assert probe.record(model, torch.randn(5, 4).bfloat16(), HIDDEN, pool="mean")[HIDDEN].dtype == torch.float32


def test_bad_batches():
    model = mlp()
    for batches in ([], iter(()), DataLoader(TensorDataset(torch.zeros(0, 4)))):
        with pytest.raises(ShapeError, match="no batches"):
            probe.record(model, batches, HIDDEN)
    for batches in (torch.zeros(0, 4), [torch.ones(2, 4), torch.zeros(0, 4)]):
        with pytest.raises(ShapeError, match="is empty"):
            probe.record(model, batches, HIDDEN)
    for batches in (3, "text", None):
        with pytest.raises(DtypeError, match="no batches"):
            probe.record(model, batches, HIDDEN)
    with pytest.raises(DtypeError, match=r"batch torch.float64, model torch.float32"):
        probe.record(model, torch.randn(2, 4, dtype=torch.float64), HIDDEN)
    with pytest.raises(DeviceError, match="batch on meta, model on cpu"):
        probe.record(model, torch.randn(2, 4, device="meta"), HIDDEN)
    whole = Site("", "b ... u")
    for other, x in (
        (model, torch.ones(2, 4).long()),
        (nn.Conv2d(1, 2, 3), torch.randn(2, 1, 6, 6).double()),
        (nn.LSTM(3, 4), torch.randn(2, 3, 3).double()),
        (nn.Embedding(4, 2), torch.randn(2, 3)),
    ):
        with pytest.raises(DtypeError, match="dtype"):
            probe.record(other, x, whole)


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (mlp(), (2, 5)),
        (nn.Conv2d(1, 2, 3), (2, 3, 6, 6)),
        (nn.Conv2d(1, 2, 3), (2, 1, 2, 2)),
        (nn.LSTM(3, 4), (2, 3, 4)),
        (nn.LayerNorm(4), (2, 5)),
        (nn.BatchNorm2d(4), (2, 5)),
        (nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), (2, 3, 7)),
        (px_nn.Sequential(nn.Linear(4, 3), px_nn.LIF(3)), (5, 2, 6)),
        (px_nn.Sequential(nn.Linear(4, 3), px_nn.LIF(3)), (4,)),
    ],
)
def test_a_batch_of_another_shape_is_refused_and_leaves_nothing(model, shape, tmp_path):
    with pytest.raises(ShapeError) as caught:
        probe.record(model, torch.randn(shape), Site("", "b ... u"), spill=tmp_path / "made" / "r")
    assert str(shape) in str(caught.value)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "mine").mkdir()
    with pytest.raises(ShapeError):
        probe.record(model, torch.randn(shape), Site("", "b ... u"), spill=tmp_path / "mine")
    assert list(tmp_path.rglob("*")) == [tmp_path / "mine"]
    with pytest.raises(ShapeError):
        probe.health(model, torch.randn(shape))


def test_an_error_of_the_model_itself_comes_through():
    class Broken(nn.Module):
        def forward(self, x):
            raise ValueError("no such mode")

    with pytest.raises(ValueError, match="no such mode") as caught:
        probe.record(Broken(), torch.randn(2, 4), Site("", "b u"))
    assert type(caught.value) is ValueError


def test_a_batch_first_input_where_time_comes_first_is_noticed_by_its_labels():
    net = px_nn.Sequential(nn.Linear(4, 8), px_nn.LIF(8), nn.Linear(8, 2))
    spikes, x, y = sites.spiking(net), torch.rand(6, 9, 4), torch.tensor([0, 1] * 3)
    for refused in (
        lambda: probe.record(net, x, spikes, labels=y),
        lambda: probe.record(net, [(x, y)], spikes),
        lambda: list(probe.stream(net, [(x, y)], spikes)),
        lambda: probe.health(net, (x, y)),
    ):
        with pytest.raises(ShapeError, match=r"6,?\)? labels, 9 samples(.|\n)*\[time, batch"):
            refused()
    right = probe.record(net, [(x.transpose(0, 1), y)], spikes)
    assert torch.equal(right.labels, y)
    per_step = torch.zeros(9, 6, 2)  # a target, counted along time first, is no label
    assert probe.record(net, [(x.transpose(0, 1), per_step)], spikes).labels is None


def test_bad_sites_and_choices():
    model, x = mlp(), torch.randn(2, 4)
    with pytest.raises(UnknownNameError):
        probe.record(model, x, Site("7", "b u"))
    with pytest.raises(SiteError, match="no site to record"):
        probe.record(model, x, [])
    for at in ("1", 3, ["1"]):
        with pytest.raises(DtypeError, match="is a site"):
            probe.record(model, x, at)
    with pytest.raises(SiteError):
        probe.record(model, x, Site("1", "b t u"))
    with pytest.raises(UnknownNameError, match="did you mean 'mean'"):
        probe.record(model, x, HIDDEN, pool="maen")
    with pytest.raises(UnknownNameError):
        probe.record(model, x, HIDDEN, positions="first")
    with pytest.raises(UnknownNameError):
        probe.record(model, x, HIDDEN, nonfinite="ignore")
    for budget in (0, -1, 1.5, True):
        with pytest.raises(RangeError, match="bytes"):
            probe.record(model, x, HIDDEN, budget=budget)
    with pytest.raises(UnsupportedError, match="does not generate"):
        probe.record(model, x, HIDDEN, generate=True)
    with pytest.raises(UnsupportedError, match="no gradient"):
        probe.record(model, x, HIDDEN, generate=True, grad=lambda output, batch: output.sum())
    with pytest.raises(ShapeError, match="no units"):
        probe.record(nn.Linear(4, 0), x, Site("", "b u"))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_refused_or_kept(bad):
    class Breaks(nn.Module):
        def forward(self, x):
            return x.index_put((torch.tensor(3), torch.tensor(1)), torch.tensor(bad))

    x, first = torch.randn(5, 4), Site("", "b u")
    with pytest.raises(RangeError, match="sample 3 of the batch"):
        probe.record(Breaks(), x, first)
    kept = probe.record(Breaks(), x, first, nonfinite="keep")[first]
    assert not kept[3, 1].isfinite()


def test_nan_in_a_batch_is_refused_also_where_a_threshold_would_hide_it(tmp_path):
    net, x = px_nn.Sequential(nn.Linear(4, 3), px_nn.LIF(3)), torch.randn(5, 2, 4)
    x[1, 1, 2] = float("nan")
    spikes = sites.spiking(net)
    with pytest.raises(RangeError, match=r"batch 1 holds NaN(.|\n)*1 of 40 numbers"):
        probe.record(net, [torch.randn(5, 2, 4), x], spikes, spill=tmp_path / "r")
    assert not (tmp_path / "r").exists()
    with pytest.raises(RangeError, match="batch 0 holds NaN"):
        next(probe.stream(net, x, spikes))
    with pytest.raises(RangeError, match="the batch holds NaN"):
        probe.health(net, x)
    assert probe.record(net, x, spikes, nonfinite="keep")[spikes[0]].isfinite().all()


def test_time_folded_into_the_batch_is_noticed_and_unfolded():
    class Folded(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(1, 3, 3)

        def forward(self, x):
            return self.conv(x.flatten(0, 1)).unflatten(0, x.shape[:2])

    model, x = Folded(), torch.randn(5, 2, 1, 4, 4)
    with pytest.raises(ShapeError, match="10 samples"):
        probe.record(model, x, Site("conv", "b u y x"))
    site = Site("conv", "(t:5 b) u y x")
    record = probe.record(model, x, site, pool="sum")
    assert record.samples == 2
    torch.testing.assert_close(record[site], model(x).sum((0, 3, 4)).detach())
    with pytest.raises(ShapeError, match="different numbers of samples"):
        probe.record(model, x, [Site("conv", "b u y x"), Site("", "t b u y x")])


def test_a_recording_over_its_budget_goes_to_disk(tmp_path):
    model, x = mlp(), torch.randn(64, 4)
    whole = probe.record(model, x, HIDDEN)
    small = probe.record(model, x.split(8), HIDDEN, budget=1000)
    assert whole.folder is None
    folder = small.folder
    assert folder.is_dir()
    assert torch.equal(small[HIDDEN], whole[HIDDEN])
    assert small.table[HIDDEN] == whole.table[HIDDEN]
    del small
    assert not folder.exists()
    named = probe.record(model, x.split(8), HIDDEN, spill=tmp_path / "r", labels=torch.arange(64))
    assert torch.equal(named[HIDDEN], whole[HIDDEN])
    del named
    back = Recording.load(tmp_path / "r")
    assert torch.equal(back[HIDDEN], whole[HIDDEN])
    assert back.labels.tolist() == list(range(64))
    with pytest.raises(UnwritableError, match="not empty"):
        probe.record(model, x, HIDDEN, spill=tmp_path / "r")
    (tmp_path / "file").write_text("")
    with pytest.raises(UnwritableError):
        probe.record(model, x, HIDDEN, spill=tmp_path / "file" / "r")


def test_an_interrupted_recording_leaves_what_it_had(tmp_path):
    def batches():
        yield from torch.randn(4, 2, 4)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        probe.record(mlp(), batches(), HIDDEN, spill=tmp_path / "r")
    with pytest.warns(UserWarning, match="did not finish"):
        record = Recording.load(tmp_path / "r")
    assert record.samples == 8
    assert not record.complete


def test_a_killed_recording_leaves_whole_shards(tmp_path):
    code = """
        import os, signal, sys, torch
        from plexus import probe
        from plexus.units import Site
        def batches():
            yield from torch.ones(3, 5, 4)
            os.kill(os.getpid(), signal.SIGKILL)
        probe.record(torch.nn.Identity(), batches(), Site("", "b u"), spill=sys.argv[1], budget=1)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code), str(tmp_path / "r")], check=False)
    assert done.returncode == -signal.SIGKILL
    with pytest.warns(UserWarning, match="did not finish: 3 shards"):
        record = Recording.load(tmp_path / "r")
    assert record.values[Site("", "b u")].shape == (15, 4)
    assert record.table[Site("", "b u")].sample.tolist() == list(range(15))


@pytest.mark.parametrize("training", [True, False])
def test_torchs_transformer_encoder_with_padding(training):
    layer = nn.TransformerEncoderLayer(8, 2, 12, dropout=0.0, batch_first=True)
    model = nn.TransformerEncoder(layer, 2).train(training)
    x, lengths = torch.randn(3, 5, 8), torch.tensor([5, 2, 4])
    padding = torch.arange(5) >= lengths[:, None]
    hidden = sites.mlp(model)
    record = probe.record(model, {"src": x, "src_key_padding_mask": padding}, hidden)
    for site in hidden:
        assert torch.bincount(record.table[site].sample).tolist() == lengths.tolist()
    for sample, n in enumerate(lengths):
        alone = probe.record(model, {"src": x[sample : sample + 1, :n]}, hidden)
        for site in hidden:
            torch.testing.assert_close(record.where(sample=sample)[site], alone[site], atol=1e-5, rtol=1e-4)


def test_compiled_models_are_refused():
    with pytest.raises(UnsupportedError, match="compiled"):
        probe.record(torch.compile(mlp()), torch.randn(2, 4), HIDDEN)


def test_a_time_first_spiking_network():
    net = px_nn.Sequential(nn.Linear(4, 6), px_nn.LIF(6), nn.Linear(6, 2))
    x = torch.rand(7, 3, 4)
    spikes, current = Site("1", "t b u"), Site("0", "b u")
    record = probe.record(net, x, [spikes, current])
    assert record.samples == 3
    torch.testing.assert_close(record.dense(current), net[0](x).detach().transpose(0, 1))
    torch.testing.assert_close(record.dense(spikes), net[1](net[0](x))[0].detach().transpose(0, 1))
    slopes = probe.record(net, x, current, grad=lambda output, batch: output[0][-1].sum())
    assert slopes.table[current].position.max() == 6


def test_progress_is_shown_when_asked_for(capsys):
    probe.record(mlp(), torch.randn(6, 4).split(2), HIDDEN, progress=True)
    assert "recording" in capsys.readouterr().err
    probe.record(mlp(), torch.randn(6, 4).split(2), HIDDEN)
    probe.record(mlp(), torch.randn(6, 4).split(2), HIDDEN, progress=False)
    assert capsys.readouterr().err == ""


def test_a_stream_runs_as_it_is_read():
    ran = []

    def batches():
        for i in range(3):
            ran.append(i)
            yield torch.randn(2, 4)

    stream = probe.stream(mlp(), batches(), HIDDEN, pool="mean")
    assert ran == []
    first = next(stream)
    assert ran == [0]
    assert first.samples == 2
    assert first.pooled == "mean"
