"""Layers with a weight for every delay, against plain loops, against events, and what they can and cannot know."""

import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from plexus.data import EventStream
from plexus.errors import DtypeError, RangeError, ShapeError, UnknownNameError
from plexus.nn import (
    LIF,
    DelayedConv,
    HeterogeneousDelayLayer,
    Sequential,
    Stateful,
    rate_threshold,
    winner_spikes,
)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def events(*shape, seed=0, dtype=torch.float64, density=0.2):
    return (torch.rand(shape, generator=seeded(seed)) < density).to(dtype)


def slow(layer, x):
    """The equations at the head of the module, one synapse at a time."""
    weight, (height, width) = layer.effective.detach(), layer.kernel
    steps, batch, _, full_y, full_x = x.shape
    out = x.new_zeros(2, steps, batch, layer.classes, full_y - height + 1, full_x - width + 1)
    for c, p, d, v, u in weight.nonzero().tolist():
        for way, source in enumerate((p, 1 - p)):
            seen = x[:, :, source, v : v + out.shape[4], u : u + out.shape[5]]
            out[way, d + 1 :, :, c] += weight[c, p, d, v, u] * seen[: max(steps - d - 1, 0)]
    best = torch.maximum(out[0], out[1]) if layer.polarity_max else out[0]
    return best + layer.bias.detach().view(-1, 1, 1)


@pytest.mark.parametrize("polarity_max", [True, False])
@pytest.mark.parametrize("mask", ["disk", "cone", None])
def test_evidence_is_the_sum_over_synapses(polarity_max, mask):
    layer = DelayedConv(2, 3, 4, (5, 3), mask=mask, polarity_max=polarity_max, generator=seeded()).double()
    x = events(9, 2, 2, 8, 7)
    torch.testing.assert_close(layer(x)[0].detach(), slow(layer, x))


@given(st.integers(0, 1000), st.integers(0, 9), st.booleans())
@settings(max_examples=8, deadline=None)
def test_a_sequence_in_two_parts_is_the_sequence(seed, cut, spatial):
    if spatial:
        layer, x = DelayedConv(2, 3, 4, 3, generator=seeded(seed)).double(), events(9, 2, 2, 6, 5, seed=seed)
    else:
        layer, x = HeterogeneousDelayLayer(5, 3, 4, generator=seeded(seed)).double(), events(9, 2, 5, seed=seed)
    whole, last = layer(x)
    first, state = layer(x[:cut], layer.initial_state(2))
    second, end = layer(x[cut:], state)
    torch.testing.assert_close(torch.cat([first, second]), whole)
    assert torch.equal(end.past, last.past)


def test_spikes_count_from_the_next_step_on():
    layer = DelayedConv(2, 2, 3, 3, generator=seeded())
    x = torch.zeros(6, 1, 2, 3, 3)
    x[2] = 1.0
    moved = (layer(x)[0] != layer(torch.zeros_like(x))[0]).flatten(1).any(1)
    assert moved.tolist() == [False, False, False, True, True, True]


@given(st.integers(0, 1000), st.sampled_from(["valid", "same"]), st.booleans(), st.floats(0, 1))
@settings(max_examples=10, deadline=None)
def test_event_driven_is_dense(seed, padding, polarity_max, pruned):
    layer = DelayedConv(2, 3, 4, 3, padding=padding, polarity_max=polarity_max, dt=0.5, generator=seeded(seed))
    layer.prune_(pruned)
    counts = torch.randint(0, 3, (8, 2, 5, 6), generator=seeded(seed))
    stream = EventStream.from_dense(counts, 0.5)
    evidence, operations = layer.event_forward(stream, steps=8)
    dense = layer(counts.float().unsqueeze(1))[0][:, 0]
    torch.testing.assert_close(evidence, dense.detach(), atol=1e-5, rtol=0)
    assert operations <= len(stream) * layer.count * (1 + polarity_max)
    assert (operations == 0) == (layer.count == 0) or layer.count < 20


def test_event_driven_is_dense_without_space():
    layer = HeterogeneousDelayLayer(6, 2, 5, generator=seeded()).double()
    layer.prune_(0.4)
    counts = torch.randint(0, 2, (12, 6), generator=seeded())
    evidence, operations = layer.event_forward(EventStream.from_dense(counts), steps=12)
    torch.testing.assert_close(evidence, layer(counts.double().unsqueeze(1))[0][:, 0].detach())
    by_hand = sum(
        int(layer.effective[:, a, d].count_nonzero())
        for t, a in counts.nonzero().tolist()
        for d in range(5)
        if t + d + 1 < 12
    )
    assert operations == by_hand


def test_chosen_places_are_those_of_the_whole():
    for padding in ("valid", "same"):
        layer = DelayedConv(2, 3, 4, 5, padding=padding, generator=seeded()).double()
        x = events(7, 3, 2, 9, 8)
        whole = layer(x)[0]
        size = torch.tensor(whole[:, :, 0].shape)
        places = (torch.rand(60, 4, generator=seeded()) * size).long()
        t, b, y, column = places.unbind(1)
        torch.testing.assert_close(layer.at(x, places), whole[t, b, :, y, column])
        with pytest.raises(RangeError, match="outside the output"):
            layer.at(x, size.unsqueeze(0))


def test_gradients_of_the_whole_and_of_all_its_places_agree():
    layer = DelayedConv(2, 2, 3, 3, generator=seeded()).double()
    x = events(5, 2, 2, 5, 5)
    whole = layer(x)[0]
    weight = torch.randn(whole.shape, generator=seeded(1), dtype=torch.float64)
    expected = torch.autograd.grad((whole * weight).sum(), layer.weight)[0]
    places = (weight[:, :, 0] == weight[:, :, 0]).nonzero()
    t, b, y, column = places.unbind(1)
    found = torch.autograd.grad((layer.at(x, places) * weight[t, b, :, y, column]).sum(), layer.weight)[0]
    torch.testing.assert_close(found, expected)


def test_gradcheck():
    layer = HeterogeneousDelayLayer(2, 2, 3, generator=seeded()).double()
    x = torch.rand(4, 1, 2, dtype=torch.float64, generator=seeded(), requires_grad=True)
    past = torch.rand(1, 3, 2, dtype=torch.float64, generator=seeded(1), requires_grad=True)
    state = type(layer.initial_state(1))

    def run(x, past, weight, bias):
        return torch.func.functional_call(layer, {"weight": weight, "bias": bias}, (x, state(past)))[0]

    torch.autograd.gradcheck(run, (x, past, layer.weight, layer.bias))


# ---------------------------------------------------------------- what the maximum is for


def test_without_the_maximum_the_mean_knows_the_number_of_events_alone():
    """On a torus every event meets every weight once, so the mean over positions is blind to where and when."""
    layer = DelayedConv(2, 4, 3, 3, polarity_max=False, generator=seeded()).double()
    x = events(12, 1, 2, 8, 8)
    torus = nn.functional.pad(x, (1, 1, 1, 1, 0, 0), mode="circular")
    mean = layer(torus)[0].mean((3, 4))[:, 0]
    rate = x.mean((3, 4))[:, 0]  # [time, polarity]
    per_delay = layer.effective.sum((3, 4))  # [class, polarity, delay]
    for t in range(3, 12):
        expected = sum(per_delay[:, :, d] @ rate[t - d - 1] for d in range(3)) + layer.bias
        torch.testing.assert_close(mean[t], expected)
    with_max = copy.deepcopy(layer)
    with_max.polarity_max = True
    other = with_max(torus)[0].mean((3, 4))[:, 0]
    assert not torch.allclose(other[4], mean[4])


def test_swapped_polarities_give_the_same_evidence():
    layer = DelayedConv(2, 3, 4, 3, generator=seeded()).double()
    x = events(9, 1, 2, 6, 6)
    torch.testing.assert_close(layer(x.flip(2))[0], layer(x)[0])


def test_the_disk_favours_no_direction():
    mask = DelayedConv(2, 1, 2, 9, generator=seeded()).mask[0, 0, 0]
    assert int(mask.sum()) == sum(y * y + x * x <= 16 for y in range(-4, 5) for x in range(-4, 5))
    assert torch.equal(mask, mask.rot90())
    assert torch.equal(mask, mask.flip(0))
    cone = DelayedConv(2, 1, 5, 9, mask="cone", generator=seeded()).mask[0, 0].sum((1, 2)).tolist()
    assert cone == sorted(cone)
    assert cone[0] < cone[-1] == int(mask.sum())


# ---------------------------------------------------------------- pruning


@given(st.floats(0, 1), st.integers(0, 100))
@settings(max_examples=20, deadline=None)
def test_pruning_keeps_the_strongest_over_all_targets(fraction, seed):
    layer = HeterogeneousDelayLayer(4, 3, 5, generator=seeded(seed))
    before = layer.weight.detach().clone()
    left = layer.prune_(fraction)
    assert left == 60 - round(60 * fraction)
    kept = layer.weight != 0
    assert torch.equal(layer.weight[kept], before[kept])
    if 0 < left < 60:
        assert before[kept].abs().min() >= before[~kept].abs().max()


def test_pruned_synapses_stay_out_while_learning_goes_on():
    layer = DelayedConv(2, 2, 3, 3, generator=seeded())
    layer.prune_(threshold=layer.weight.abs().median().item())
    gone = ~layer.mask
    optimiser = torch.optim.Adam(layer.parameters(), 0.1)
    layer(events(6, 1, 2, 5, 5, dtype=torch.float32))[0].square().sum().backward()
    assert not layer.weight.grad[gone].any()
    optimiser.step()
    assert not layer.effective[gone].any()
    assert layer.count == int(layer.mask.sum())


def test_shortening_keeps_the_shortest_delays():
    layer = DelayedConv(2, 2, 5, 3, generator=seeded())
    layer.shorten_(2)
    assert layer.synapses().delay.unique().tolist() == [1.0, 2.0]
    x = torch.zeros(8, 1, 2, 3, 3)
    x[0] = 1.0
    silent = layer(torch.zeros_like(x))[0]
    assert (layer(x)[0] != silent).flatten(1).any(1).tolist() == [False, True, True] + [False] * 5


def test_synapses_are_a_list_of_the_kernel():
    layer = DelayedConv(2, 3, 4, 3, dt=0.5, generator=seeded())
    found = layer.synapses(threshold=0.01)
    assert len(found.weight) == int((layer.weight.abs() > 0.01).sum())
    for target, (p, v, u), weight, delay in zip(*(part.tolist() for part in found), strict=True):
        assert layer.weight[target, p, round(delay / 0.5) - 1, v, u].item() == weight


# ---------------------------------------------------------------- learning, and the company it keeps


def test_delays_of_a_motif_are_learnt():
    draw = seeded(3)
    motif = torch.tensor([4, 1, 6, 2, 5])  # a spike of channel a, delayed by motif[a], arrives with the others
    x = (torch.rand(400, 8, 5, generator=draw) < 0.05).float()
    label = torch.zeros(400, 8)
    for b in range(8):
        for t in torch.randint(8, 400, (15,), generator=draw).tolist():
            x[t - motif, b, torch.arange(5)] = 1.0
            label[t, b] = 1.0
    layer = HeterogeneousDelayLayer(5, 1, 8, generator=draw)
    optimiser = torch.optim.Adam(layer.parameters(), 0.1)
    for _ in range(60):
        optimiser.zero_grad()
        nn.functional.binary_cross_entropy_with_logits(layer(x)[0][..., 0], label).backward()
        optimiser.step()
    assert torch.equal(layer.weight[0].argmax(1) + 1, motif)


def test_it_stands_in_a_stack():
    conv = DelayedConv(2, 3, 4, 3, generator=seeded())
    assert isinstance(conv, Stateful)
    net = Sequential(conv, LIF((3, 4, 5)), nn.Flatten(), nn.Linear(60, 2))
    x = events(6, 2, 2, 6, 7, dtype=torch.float32)
    whole, _ = net(x)
    first, state = net(x[:2], net.initial_state(2))
    second, _ = net(x[2:], state)
    torch.testing.assert_close(torch.cat([first, second]), whole)


def test_winners_fire_at_the_rate_asked_for():
    evidence = torch.randn(500, 2, 4, 6, 6, generator=seeded())
    for rate in (0.5, 20.0, 250.0):
        spikes = winner_spikes(evidence, rate_threshold(evidence, rate))
        assert abs(float(spikes.mean()) * 1000 - rate) < 0.05
        assert spikes.sum(2).max() == 1
        assert torch.equal((spikes * evidence).sum(2) == evidence.amax(2), spikes.sum(2) == 1)
    own = winner_spikes(evidence, torch.tensor([math.inf, 0.0, 0.0, 0.0]))
    assert not own[:, :, 0].any()
    assert own[:, :, 1].any()
    with pytest.raises(RangeError, match="cannot fire"):
        rate_threshold(evidence, 251.0)


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("arguments", "keywords", "error"),
    [
        ((2, 3, 0, 3), {}, RangeError),
        ((2, 3, 4, 0), {}, RangeError),
        ((2, 0, 4, 3), {}, RangeError),
        ((1, 3, 4, 3), {}, RangeError),
        ((3, 3, 4, 3), {}, RangeError),
        ((2, 3, 4, 4), {"padding": "same"}, RangeError),
        ((2, 3, 4, 3), {"padding": "full"}, UnknownNameError),
        ((2, 3, 4, 3), {"mask": "square"}, UnknownNameError),
        ((2, 3, 4, 3), {"dt": 0.0}, RangeError),
    ],
)
def test_bad_settings_are_refused(arguments, keywords, error):
    with pytest.raises(error):
        DelayedConv(*arguments, **keywords)


def test_bad_input_is_refused():
    layer = DelayedConv(2, 3, 4, 3, generator=seeded())
    with pytest.raises(ShapeError, match="does not fit"):
        layer(torch.zeros(5, 1, 3, 6, 6))
    with pytest.raises(ShapeError, match="does not fit"):
        layer(torch.zeros(5, 2, 6, 6))
    with pytest.raises(ShapeError, match="smaller than the window"):
        layer(torch.zeros(5, 1, 2, 2, 6))
    with pytest.raises(DtypeError):
        layer(torch.zeros(5, 1, 2, 6, 6, dtype=torch.int64))
    with pytest.raises(ShapeError, match="state"):
        layer(torch.zeros(5, 3, 2, 6, 6), layer.initial_state(2))
    with pytest.raises(ShapeError, match="stream"):
        layer.event_forward(EventStream([0.0], [[0, 0, 0]], (3, 6, 6)))
    with pytest.raises(RangeError):
        HeterogeneousDelayLayer(2, 3, 0)
    for fraction, threshold in ((None, None), (0.5, 0.5), (1.5, None), (None, -1.0)):
        with pytest.raises(RangeError):
            layer.prune_(fraction, threshold=threshold)
    with pytest.raises(RangeError):
        layer.shorten_(5)
