"""The study of heterogeneous delays: its movies, what its ablations remove, and that its checks can fail."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch

from plexus.data import natural_image, velocities
from plexus.lab import Study
from plexus.studies.spiking._moving_events import (
    BUSY,
    PARTS,
    Movies,
    SmallCNN,
    correlator,
    natural_movies,
    region,
    texture_movies,
)
from plexus.studies.spiking._moving_layer import decide, pruned, spoil, trained
from plexus.studies.spiking.hd_snn import HeterogeneousDelays

study: Study = HeterogeneousDelays()
SMOKE = HeterogeneousDelays.configure("smoke")


@pytest.fixture(scope="module")
def prepared():
    return study.prepare(SMOKE, 3)


def trial(prepared, arm: str):
    return study.run(study.configure("smoke", study.arm(arm).overrides), copy.deepcopy(prepared), 3)


def test_parts_of_the_photographs_do_not_overlap() -> None:
    columns = [set(range(*span)) for span in PARTS.values()]
    assert len(set.union(*columns)) == sum(len(part) for part in columns) == natural_image().shape[1]


def test_no_pixel_of_another_part_touches_a_part(monkeypatch) -> None:
    draw = torch.Generator().manual_seed(0)
    before = {part: region("china", part, draw) for part in PARTS}
    image = natural_image("china")
    image[:, PARTS["test"][0] :] = torch.rand(image.shape[0], PARTS["test"][1] - PARTS["test"][0]).double()
    monkeypatch.setattr("plexus.studies.spiking._moving_events.natural_image", lambda *_, **__: image)
    assert torch.equal(region("china", "train", draw), before["train"])
    assert torch.equal(region("china", "validation", draw), before["validation"])
    assert not torch.equal(region("china", "test", draw), before["test"])


def test_movies_follow_their_seed(prepared) -> None:
    again = natural_movies(SMOKE, "test", SMOKE.test, 3)
    assert torch.equal(again.events, prepared.test.events)
    assert not torch.equal(natural_movies(SMOKE, "test", SMOKE.test, 4).events, again.events)
    assert bool((again.events.sum(2).mean((0, 2, 3)) >= BUSY).all())  # none shows a blank sky


def test_spoilt_delays_keep_what_they_should(prepared) -> None:
    layer = prepared.layer
    for how in ("averaged", "shuffled", "reversed"):
        weight = spoil(layer, how, 3).weight
        torch.testing.assert_close(weight.sum(2), layer.weight.sum(2))
        assert not torch.equal(weight, layer.weight)
    assert torch.equal(spoil(layer, "shuffled", 3).weight.sort(2).values, layer.weight.sort(2).values)
    assert torch.equal(spoil(spoil(layer, "reversed", 3), "reversed", 3).weight, layer.weight)


def moving_dots(config, seed: int = 0) -> Movies:
    """Random dots, ON for ever, drifting steadily in each direction: what a perfect detector must tell."""
    draw = torch.Generator().manual_seed(seed)
    choices = velocities(config.directions, config.speeds).round()
    dots = (torch.rand(64, 64, generator=draw) < 0.1).float()
    events = torch.zeros(config.steps, len(choices), 2, config.size, config.size)
    for n, (y, x) in enumerate(choices.long().tolist()):
        for t in range(config.steps):
            events[t, n, 1] = dots.roll((-y * t, -x * t), (0, 1))[: config.size, : config.size]
    label = torch.arange(len(choices)).expand(config.steps, -1)
    return Movies(events, label, torch.zeros_like(label))


def test_correlators_tell_the_direction_of_dots() -> None:
    movies = moving_dots(SMOKE)
    score = correlator(SMOKE, movies.events)
    assert bool((score.argmax(2) == movies.label)[SMOKE.window :].all())
    changed = movies.events.clone()
    changed[10:] = 0
    assert torch.equal(correlator(SMOKE, changed)[:11], score[:11])  # step 10 decides from what came before it


def test_labels_say_how_gaze_moves() -> None:
    """A correlator given the movies of the study is right: the labels' directions are the movies'."""
    config = replace(study.configure("full"), test=16, size=24)
    movies = natural_movies(config, "test", 16, 1)
    right = (correlator(config, movies.events).argmax(2) == movies.label)[config.window :]
    assert float(right.double().mean()) > 0.5


def test_textures_move_along_or_across() -> None:
    config = replace(study.configure("full"), textures=8)
    along, blind = (texture_movies(config, across, 8, 1) for across in ("along", "blind"))
    assert float(along.events.mean()) > 1.5 * float(blind.events.mean())  # they slide along themselves
    assert along.label[0].tolist() == list(range(8))


def test_pruning_leaves_the_prepared_layer_alone(prepared) -> None:
    before = prepared.layer.weight.clone()
    found = pruned(prepared.layer, prepared, SMOKE)
    assert torch.equal(prepared.layer.weight, before)
    assert found["difference of event-driven evidence"] < 1e-4
    assert found["times fewer operations, 3 % kept"] > 5
    whole = found["accuracy, 100 % kept"]
    assert whole == trial(prepared, "delays").metrics["accuracy"]


def test_places_of_the_network_are_those_of_the_whole() -> None:
    config = study.configure("smoke")
    draw = torch.Generator().manual_seed(0)
    model = SmallCNN(4, 3, config.delays, config.kernel, draw)
    events = (torch.rand(12, 2, 2, 9, 9, generator=draw) < 0.3).float()
    whole = model(events)
    places = torch.tensor([[7, 0, 0, 0], [11, 1, 4, 2], [9, 1, 0, 4]])
    t, b, y, x = places.unbind(1)
    torch.testing.assert_close(model.at(events, places), whole[t, b, :, y, x])
    changed = events.clone()
    changed[9:] = 1 - changed[9:]
    assert torch.equal(model(changed)[:10], whole[:10])  # sees the past alone


def test_arms_that_change_the_layer_do_not_learn_again(prepared) -> None:
    assert trained(SMOKE, prepared, 3) is prepared.layer
    other = trained(replace(SMOKE, rate=0.04, iterations=2), prepared, 3)
    assert other is not prepared.layer


def test_every_arm_gives_what_its_checks_read(prepared) -> None:
    metrics = {arm.name: trial(prepared, arm.name).metrics for arm in study.arms}
    for check in study.checks:
        assert torch.isfinite(torch.tensor(check.quantity(metrics)))


def test_evidence_of_the_past_alone(prepared) -> None:
    events = prepared.test.events.clone()
    events[9:] = 1 - events[9:]
    changed = replace(prepared.test, events=events)
    assert torch.equal(decide(prepared.layer, changed)[:10], decide(prepared.layer, prepared.test)[:10])
