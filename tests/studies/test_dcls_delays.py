"""The studies of learnt delays: what their data hide and show, what each arm removes, how checks fail."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from plexus.data import SpokenDigits
from plexus.errors import FormatError
from plexus.lab._verdict import judge
from plexus.nn.synapses import DelayedLinear, delay_parameters
from plexus.studies.spiking import _delay_networks
from plexus.studies.spiking._delay_networks import (
    Config,
    delayed_layers,
    from_counts,
    generator,
    matched_filter,
    measured,
    network,
    patterns,
    rounded,
    student,
    synthetic,
    trained,
)
from plexus.studies.spiking.dcls_delays import LearntDelays, LearntDelaysAudio

SMALL = Config(train=60, validation=20, test=40, epochs=3, hidden=8, batch=30)


def parts(config: Config, seed: int = 3):
    return LearntDelays().prepare(config, seed)


def test_classes_differ_in_time_alone() -> None:
    config = replace(SMALL, noise=0.0, train=400, test=200)
    data = parts(config)
    assert bool((data["train"].x.sum(0) == 1).all())  # every channel fires once, whatever the class
    assert from_counts(data["train"], data["test"], config.classes) < 35
    assert matched_filter(config, data["pattern"], data["test"]) > 99
    wrong = data["pattern"][torch.randperm(config.classes, generator=generator(1)).roll(1)].flip(1)
    assert matched_filter(config, wrong, data["test"]) < 60


def test_spikes_leave_room_for_the_longest_delay() -> None:
    config = replace(SMALL, noise=0.0)
    x = parts(config)["train"].x
    assert not bool(x[config.steps - config.max_delay // 2 :].any())


def test_parts_are_drawn_apart_and_again_the_same() -> None:
    one, two = parts(SMALL), parts(SMALL)
    assert all(torch.equal(one[name].x, two[name].x) for name in ("train", "validation", "test"))
    rows = {name: {tuple(row.flatten().tolist()) for row in one[name].x.transpose(0, 1)} for name in ("train", "test")}
    assert not rows["train"] & rows["test"]


def test_arms_start_from_the_same_weights_and_differ_in_delays() -> None:
    nets = {arm: network(replace(SMALL, method=arm), generator(5)) for arm in ("learned", "none", "fixed", "sharp")}
    assert torch.equal(nets["none"][0].weight, nets["learned"][0].weight)
    assert torch.equal(nets["fixed"][0].weight, nets["learned"][0].weight)
    assert torch.equal(nets["fixed"][0].delays, nets["learned"][0].delays.round())
    assert [len(delay_parameters(net)) for net in nets.values()] == [2, 0, 0, 2]
    assert isinstance(nets["none"][0], nn.Linear)
    assert nets["sharp"][0].sigma < nets["learned"][0].sigma


def test_fixed_delays_stay_and_learnt_ones_move_in_range() -> None:
    data = parts(SMALL)
    for arm, moves in (("fixed", False), ("learned", True), ("straight-through", True)):
        config = replace(SMALL, method=arm)
        net = network(config, generator(5))
        before = net[0].delays.clone()
        trained(config, net, data["train"], generator(6))
        rounded(net)
        after = net[0].delays
        assert bool((after == after.round()).all())
        assert bool(((net[0].delay >= 0) & (net[0].delay <= config.max_delay)).all())
        assert (not torch.equal(after, before.round())) == moves


def test_after_rounding_only_weights_learn() -> None:
    config = replace(SMALL, epochs=4, settle=0.5)
    net, data = network(config, generator(5)), parts(SMALL)
    trained(config, net, data["train"], generator(6))
    assert all(layer.is_hard and not layer.learn for layer in delayed_layers(net))
    assert delay_parameters(net) == []


def test_annealing_is_over_when_delays_are_rounded() -> None:
    for share, width in ((1.0, 0.23), (0.4, 0.23)):
        config = replace(SMALL, epochs=6, settle=1.0, anneal=share)
        net = network(config, generator(5))
        trained(config, net, parts(SMALL)["train"], generator(6))
        assert delayed_layers(net)[0].sigma == pytest.approx(width)


def test_rivals_have_as_many_parameters_and_more_is_counted() -> None:
    for study in (LearntDelays, LearntDelaysAudio):
        full = study.configure("full")
        sizes = {}
        for name in ("learned", "memory", "recurrent"):
            net = network(replace(full, **study.arm(name).overrides), generator(0))
            loops = getattr(net[2], "weight", torch.zeros(0, 0)).shape[0]  # the diagonal of the loop stays zero
            sizes[name] = sum(p.numel() for p in net.parameters()) - loops
        assert sizes["memory"] == pytest.approx(sizes["learned"], rel=0.06)
        assert sizes["recurrent"] == pytest.approx(sizes["learned"], rel=0.06)


def test_budget_counts_what_a_deployed_network_does() -> None:
    data = parts(SMALL)
    found = measured(replace(SMALL, method="none", epochs=1), data, 3)
    spikes = found["hidden_rate"] * SMALL.steps * SMALL.hidden
    inputs = float(data["test"].x.sum()) / SMALL.test
    assert found["events_per_sample"] == pytest.approx(inputs * SMALL.hidden + spikes * SMALL.classes, rel=1e-4)
    assert found["products_per_step"] == SMALL.hidden * (SMALL.channels + SMALL.classes)
    learnt = measured(replace(SMALL, epochs=1, settle=1.0), data, 3)
    assert learnt["products_per_step"] == found["products_per_step"]  # one tap per synapse
    assert learnt["parameters"] == 2 * found["products_per_step"] + 2 * SMALL.hidden
    assert learnt["off_grid"] == 0


def test_student_sees_nothing_of_its_teachers_delays_at_first() -> None:
    found = student(replace(SMALL, hidden=24, student_epochs=1, delay_rate=1e-6), 3, sharp=False)
    assert found["found"] == found["found_before"]
    assert 3 < found["found_before"] < 25  # chance: about three of 25 delays


def test_a_grid_has_as_many_settings_for_every_tuned_arm() -> None:
    for study in (LearntDelays, LearntDelaysAudio):
        assert len({len(grid) for grid in study.grids.values()}) == 1
        for name, grid in study.grids.items():
            for setting in grid:
                study.configure("full", study.arm(name).overrides, setting)


def seeds(study, points: float):
    """Made-up trials in which learnt delays lie so many points above everything else."""
    numbers = {
        "off_grid": 0.0,
        "events_per_sample": 1.0,
        "before_rounding": 50.0,
        "after_rounding": 50.0,
        "found": 90.0,
    }
    trials = {}
    for n in range(10):
        wobble = 0.1 * n
        trials[n] = {arm.name: {"test": 60 + wobble, "validation": 60 + wobble, **numbers} for arm in study.arms}
        trials[n]["learned"]["test"] += points
        trials[n]["student sharp"] = {**numbers, "found": 10.0, "test": 0.0, "validation": 0.0}
        trials[n]["counts"] = {"test": 17.0}
        trials[n]["matched filter"] = {"test": 100.0}
        trials[n]["fixed"]["test"] += 1
    return list(trials.values())


@pytest.mark.parametrize(("points", "expected"), [(25.0, "holds here"), (2.0, "does not hold here")])
def test_the_mechanism_can_hold_and_fail(points: float, expected: str) -> None:
    assert judge(LearntDelays, seeds(LearntDelays, points)).verdicts["mechanism"].word == expected


def test_delays_of_a_deployed_layer_are_single_taps() -> None:
    layer = rounded(nn.Sequential(DelayedLinear(3, 2, 5)))[0]
    assert torch.equal((layer.taps() != 0).sum(1), torch.ones(3, 2, dtype=torch.int64))


def test_recordings_of_the_test_are_never_learnt(monkeypatch) -> None:
    index = torch.arange(15).repeat(2 * 10 * 2)
    labels = torch.arange(10).repeat_interleave(15).repeat(4)
    audio = tuple(torch.randn(400 + n, generator=generator(n)) * 0.1 for n in range(len(index)))
    digits = SpokenDigits(audio, labels, ("a",) * len(index), index)
    monkeypatch.setattr(_delay_networks, "spoken_digits", lambda: digits)
    config = LearntDelaysAudio.configure("smoke", {"train": 50, "test": 300, "validation": 300})
    data = LearntDelaysAudio().prepare(config, 1)
    assert len(data["test"].y) == len(data["validation"].y) == int((index < 5).sum())
    assert torch.equal(data["test"].y, labels[index < 5])
    rows = {name: {tuple(row.flatten().tolist()) for row in part.x.transpose(0, 1)} for name, part in data.items()}
    assert not rows["train"] & (rows["test"] | rows["validation"])
    assert not rows["test"] & rows["validation"]
    assert not torch.equal(data["train"].x, LearntDelaysAudio().prepare(config, 2)["train"].x)  # seeds draw their own
    low, high = data["test"].x.split(40, 2)
    assert not bool((high & ~low).any())  # what passes the higher level passes the lower


def test_without_recordings_the_error_says_where_they_come_from(monkeypatch) -> None:
    monkeypatch.delenv("PLEXUS_DATA", raising=False)
    with pytest.raises(FormatError, match="PLEXUS_DATA"):
        LearntDelaysAudio().prepare(LearntDelaysAudio.configure("smoke"), 1)


def test_patterns_use_the_whole_range() -> None:
    found = patterns(Config(), generator(2))
    assert found.shape == (6, 20)
    assert found.min() >= 0
    assert found.max() <= 24
    assert synthetic(Config(), found, 5, generator(1)).x.shape == (60, 5, 20)
