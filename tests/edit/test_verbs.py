"""The verbs of editing on plain, convolutional and spiking networks, against the same computation by hand."""

import copy
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from plexus import edit
from plexus.edit import Edit
from plexus.errors import (
    DtypeError,
    RangeError,
    ShapeError,
    SiteError,
    UnknownNameError,
    UnsupportedError,
)
from plexus.nn import LIF, RecurrentLIF
from plexus.nn import Sequential as SpikingSequential
from plexus.units import Neurons, Recording, Site, Table, attach, fingerprint, sites

HIDDEN = Site("1")
X = torch.tensor([[1.0, -2.0, 0.5], [0.3, 0.7, -1.1]])


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2))


def units(*indices: int, site: Site = HIDDEN, size: int = 5) -> Neurons:
    return Neurons.of({site: size}, {site: indices})


VERBS: dict[str, tuple[Callable[..., Edit], Callable[[Tensor], Tensor]]] = {
    "scale": (lambda n: edit.scale(n, -2.0), lambda h: -2 * h),
    "silence": (lambda n: edit.scale(n, 0), lambda h: torch.zeros_like(h)),
    "scale per chosen": (lambda n: edit.scale(n, torch.tensor([2.0, 3.0])), lambda h: h * torch.tensor([2.0, 3.0])),
    "scale per unit": (lambda n: edit.scale(n, torch.arange(5.0)), lambda h: h * torch.tensor([1.0, 4.0])),
    "scale per site": (lambda n: edit.scale(n, {HIDDEN: 2}), lambda h: 2 * h),
    "clamp": (lambda n: edit.clamp(n, 0.25), lambda h: torch.full_like(h, 0.25)),
    "clamp low": (lambda n: edit.clamp(n, low=0.1), lambda h: h.clamp(min=0.1)),
    "clamp, one limit per unit, one per chosen unit": (
        lambda n: edit.clamp(n, low=torch.full((5,), -0.1), high=torch.tensor([0.1, 0.2])),
        lambda h: torch.minimum(h.clamp(min=-0.1), torch.tensor([0.1, 0.2])),
    ),
    "clamp both": (
        lambda n: edit.clamp(n, low=-0.1, high=torch.tensor([0.1, 0.2])),
        lambda h: torch.minimum(h.clamp(min=-0.1), torch.tensor([0.1, 0.2])),
    ),
    "replace": (lambda n: edit.replace(n, torch.tensor([5.0, 6.0])), lambda h: torch.tensor([5.0, 6.0]).expand_as(h)),
    "add": (lambda n: edit.add(n, torch.tensor([5.0, 6.0])), lambda h: h + torch.tensor([5.0, 6.0])),
}  # fmt: skip


@pytest.mark.parametrize("verb", VERBS)
def test_verbs_on_a_perceptron(verb: str) -> None:
    model, (make, by_hand) = mlp(), VERBS[verb]
    hidden = torch.tanh(model[0](X)).detach()
    hidden[:, [1, 4]] = by_hand(hidden[:, [1, 4]])
    with make(units(1, 4)).on(model):
        torch.testing.assert_close(model(X), model[2](hidden))


@pytest.mark.parametrize("verb", VERBS)
def test_both_forms_do_the_same(verb: str) -> None:
    model, (make, _) = mlp(), VERBS[verb]
    value = make(units(1, 4))
    assert isinstance(value, Edit)
    with value.on(model):
        expected = model(X)
    step = value.steps[0]
    name = step.name
    numbers = {key: number.values[HIDDEN] for key, number in step.numbers.items()}
    args = () if name == "clamp" and "value" not in numbers else tuple(numbers.values())
    with getattr(edit, name)(model, units(1, 4), *args, **(numbers if not args else {})):
        assert torch.equal(model(X), expected)


def test_zero_silences_also_what_is_infinite() -> None:
    model = nn.Sequential(nn.Identity())
    site = Site("0")
    x = torch.tensor([[float("inf"), float("nan"), 1.0]])
    with edit.scale(model, units(0, 1, site=site, size=3), 0.0):
        assert model(x).tolist() == [[0.0, 0.0, 1.0]]


def test_channels_of_a_convolution() -> None:
    net = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(16, 3))
    x = torch.randn(2, 2, 4, 4)
    site = sites(net, "1")[0]
    assert site.axes == "b u y x"
    by_hand = copy.deepcopy(net)
    by_hand[0].weight.data[2], by_hand[0].bias.data[2] = 0, 0
    with edit.scale(net, units(2, site=site, size=4), 0.0):
        torch.testing.assert_close(net(x), by_hand(x))
    hidden = torch.relu(net[0](x))
    hidden[:, 1] += 0.5
    with edit.add(net, units(1, site=site, size=4), 0.5):
        torch.testing.assert_close(net(x), net[4](net[3](net[2](hidden))))


def test_units_of_features() -> None:
    net = nn.Sequential(nn.Identity(), nn.Linear(6, 2))
    site = Site("0", "b (u:3 f)")
    x = torch.randn(2, 6)
    means = torch.randn(3, 2)
    changed = x.clone().view(2, 3, 2)
    changed[:, 1] = means[1]
    with edit.replace(net, units(1, site=site, size=3), means):
        torch.testing.assert_close(net(x), net[1](changed.flatten(1)))
    with edit.replace(net, units(1, site=site, size=3), means[1:2]):  # one vector per chosen unit
        torch.testing.assert_close(net(x), net[1](changed.flatten(1)))
    changed = x.clone().view(2, 3, 2)
    changed[:, [0, 2]] *= torch.tensor([2.0, 3.0])[:, None]
    with edit.scale(net, units(0, 2, site=site, size=3), torch.tensor([2.0, 3.0])):
        torch.testing.assert_close(net(x), net[1](changed.flatten(1)))


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 4), st.floats(-2, 2), st.integers(0, 2**16))
def test_along_directions_only_their_coordinates_change(count: int, factor: float, seed: int) -> None:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Identity())
    basis, x = torch.randn(count, 5).double(), torch.randn(3, 5).double()
    with edit.scale(model, units(*range(5), site=Site("0")), factor, basis=basis):
        out = model(x)
    q, _ = torch.linalg.qr(basis.T)  # another basis of the same space
    inside = x @ q @ q.T
    torch.testing.assert_close(out, x - inside + factor * inside)


def test_directions_reach_the_chosen_units_only() -> None:
    model = nn.Sequential(nn.Identity())
    site = Site("0")
    with edit.add(model, units(0, 1, site=site), 2.0, basis=torch.ones(5)):
        assert model(torch.zeros(1, 5)).tolist() == [[2.0, 2.0, 0.0, 0.0, 0.0]]
    with edit.clamp(model, units(0, 1, site=site), 3.0, basis=torch.tensor([1.0, 1, 0, 0, 0])):
        # the coordinate along (1, 1) becomes 3; the difference of the two stays
        assert model(torch.tensor([[5.0, 1, 7, 7, 7]])).tolist() == [[5.0, 1.0, 7.0, 7.0, 7.0]]
        assert model(torch.tensor([[1.0, 0, 7, 7, 7]])).tolist() == [[3.5, 2.5, 7.0, 7.0, 7.0]]


def test_edits_nest_and_follow_each_other() -> None:
    model = mlp()
    hidden = torch.tanh(model[0](X)).detach()
    hidden[:, 1] = hidden[:, 1] * 2 + 1
    hidden[:, 2] = hidden[:, 2] + 1
    both = edit.scale(units(1), 2.0).then(edit.add(units(1, 2), 1.0))
    with both.on(model):
        torch.testing.assert_close(model(X), model[2](hidden))
    with edit.scale(model, units(1), 2.0), edit.add(model, units(1, 2), 1.0):
        torch.testing.assert_close(model(X), model[2](hidden))
    assert both.neurons == units(1, 2)


def test_learned_numbers_get_the_gradient_of_the_edited_function() -> None:
    model = mlp()
    factor = torch.tensor([0.0, 2.0], requires_grad=True)
    with edit.scale(model, units(1, 4), factor):
        for _ in range(2):  # a second pass has a graph of its own
            factor.grad = None
            model(X).sum().backward()
    hidden = torch.tanh(model[0](X))
    torch.testing.assert_close(factor.grad, (hidden * model[2].weight.sum(0)).sum(0)[[1, 4]])


def test_an_edit_moves_to_other_units() -> None:
    model = mlp()
    hidden = torch.tanh(model[0](X)).detach()
    by_order = edit.replace(units(1, 4), torch.tensor([5.0, 6.0])).moved(units(0, 2))
    own = edit.replace(units(1, 4), torch.arange(5.0)).moved(lambda old: ~old - units(3))
    for value, indices, numbers in ((by_order, [0, 2], [5.0, 6.0]), (own, [0, 2], [0.0, 2.0])):
        changed = hidden.clone()
        changed[:, indices] = torch.tensor(numbers)
        with value.on(model):
            torch.testing.assert_close(model(X), model[2](changed))
    with pytest.raises(ShapeError, match="as many units"):
        by_order.moved(units(0))
    with pytest.raises(UnsupportedError, match="does not move"):
        edit.scale(units(1), 0.0, basis=torch.ones(5)).moved(units(0))


def test_an_edit_belongs_to_its_model() -> None:
    model, other = mlp(), nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 3))
    mine = Neurons.of({HIDDEN: 5}, {HIDDEN: [1]}, fingerprint(model))
    cut = edit.scale(mine, 0.0)
    assert cut.model == fingerprint(model)
    with pytest.raises(UnsupportedError, match="another model"), cut.on(other):
        pass
    with cut.on(other, anyway=True):
        other(X)
    with cut.on(copy.deepcopy(model)):
        pass
    assert edit.scale(units(1), 0.0).for_model(model).model == fingerprint(model)
    with pytest.raises(UnsupportedError, match="do not mix"):
        cut.then(edit.scale(units(1), 0.0).for_model(other))
    wide = nn.Sequential(nn.Linear(3, 7), nn.Tanh(), nn.Linear(7, 2))
    with edit.scale(wide, units(1), 0.0), pytest.raises(ShapeError, match="another size"):
        wide(X)


def test_sites_without_a_chosen_unit_are_left_alone() -> None:
    model = mlp()
    never = Site("never")
    chosen = Neurons.of({HIDDEN: 5, never: 3}, {HIDDEN: [1]})
    with edit.scale(model, chosen, 0.0):
        assert float(model(X).detach().sum()) != 0


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (lambda: edit.scale(units(1), float("nan")), RangeError),
        (lambda: edit.scale(units(1), torch.tensor(float("inf"))), RangeError),
        (lambda: edit.scale(units(1, 2), torch.ones(3)), ShapeError),
        (lambda: edit.scale(units(1), "much"), DtypeError),
        (lambda: edit.scale(units(1), True), DtypeError),
        (lambda: edit.scale(units(1), {Site("2"): 1.0}), SiteError),
        (lambda: edit.scale([1, 2], 0.0), DtypeError),
        (lambda: edit.scale(units(1), 0.0, positions="first"), UnknownNameError),
        (lambda: edit.clamp(units(1)), RangeError),
        (lambda: edit.clamp(units(1), 1.0, low=0.0), RangeError),
        (lambda: edit.clamp(units(1), low=1.0, high=0.0), RangeError),
        (lambda: edit.clamp(units(1, 3), low=torch.full((5,), 0.5), high=torch.tensor([0.6, 0.4])), RangeError),
        (lambda: edit.add(units(1), 1.0, basis=torch.ones(4)), ShapeError),
        (lambda: edit.add(units(1, 2), 1.0, basis=torch.ones(2, 5)), RangeError),
        (lambda: edit.add(units(1, 2), torch.ones(3), basis=torch.randn(2, 5)), ShapeError),
        (lambda: edit.add(units(1, 2), 1.0, basis={Site("2"): torch.ones(5)}), SiteError),
        (lambda: edit.patch(units(1), {}), DtypeError),
        (lambda: edit.scale(units(1), 0.0).then("more"), DtypeError),
        (lambda: edit.save("edit", "somewhere"), DtypeError),
        (lambda: edit.bake(mlp(), "edit"), DtypeError),
    ],
)
def test_bad_input_is_refused(make: Callable[[], object], error: type[Exception]) -> None:
    with pytest.raises(error):
        make()


def test_chosen_tokens_need_tokens() -> None:
    model = mlp()
    with edit.scale(model, units(1), 0.0, positions="last"), pytest.raises(SiteError, match="needs tokens"):
        model(X)


# --- patching ---------------------------------------------------------------------------------------------------------


def test_patching_samples() -> None:
    model, donor = mlp(), torch.randn(3, 3)
    theirs = torch.tanh(model[0](donor)).detach()
    record = Recording({HIDDEN: theirs}, {HIDDEN: Table([0, 1, 2])})
    hidden = torch.tanh(model[0](X)).detach()
    own, sent = hidden.clone(), hidden.clone()
    own[:, [1, 4]] = theirs[:2, [1, 4]]
    sent[0, [1, 4]] = theirs[2, [1, 4]]
    with edit.patch(model, units(1, 4), record):
        torch.testing.assert_close(model(X), model[2](own))
    with edit.patch(model, units(1, 4), record, rows={0: 2}):
        torch.testing.assert_close(model(X), model[2](sent))


def test_pooled_rows_go_to_every_position_and_named_ones_before_them() -> None:
    site = Site("0", "b t u")
    model = nn.Sequential(nn.Identity())
    table = Table(sample=[0, 0], position=[-1, 1])
    record = Recording({site: torch.tensor([[1.0, 1.0], [2.0, 2.0]])}, {site: table})
    with edit.patch(model, units(0, site=site, size=2), record):
        assert model(torch.zeros(2, 3, 2))[..., 0].tolist() == [[1.0, 2.0, 1.0], [0.0, 0.0, 0.0]]


def test_patches_that_cannot_be_are_refused() -> None:
    record = Recording({HIDDEN: torch.zeros(2, 5)}, {HIDDEN: Table([0, 0])})
    with pytest.raises(ShapeError, match="one place"):
        edit.patch(units(1), record)
    good = Recording({HIDDEN: torch.zeros(2, 5)}, {HIDDEN: Table([0, 1])})
    with pytest.raises(SiteError, match="does not hold"):
        edit.patch(units(1, site=Site("2"), size=2), good)
    with pytest.raises(SiteError, match="no row 5"):
        edit.patch(units(1), good, rows={0: 5})
    for rows in ({0: (1, 0)}, {"a": 1}, {0: True}):
        with pytest.raises(DtypeError):
            edit.patch(units(1), good, rows=rows)
    with pytest.raises(ShapeError, match="no row was named"):
        edit.patch(units(1), good, rows={})
    narrow = Recording({HIDDEN: torch.zeros(2, 4)}, {HIDDEN: Table([0, 1])})
    with edit.patch(model := mlp(), units(1), narrow), pytest.raises(ShapeError, match="does not fit"):
        model(X)


# --- spiking networks -------------------------------------------------------------------------------------------------


def test_a_silenced_unit_is_silent_for_its_targets_too() -> None:
    torch.manual_seed(3)
    layer = RecurrentLIF(8, tau_mem=5.0, weight_gain=4.0)
    x = torch.rand(30, 3, 8) * 2.5
    (site,) = sites.spiking(nn.Sequential(layer))
    assert site == Site("0", "t b u")
    net = nn.ModuleDict({"layer": layer})
    inside, outside = Site("layer", "t b u"), Site("layer", "t b u", where="readout")
    plain, _ = layer(x)
    assert plain[..., [2, 5]].sum() > 0
    with edit.scale(net, units(2, 5, site=inside, size=8), 0.0):
        edited, _ = layer(x)
    with edit.scale(net, units(2, 5, site=outside, size=8), 0.0):
        masked, _ = layer(x)
    assert edited[..., [2, 5]].abs().sum() == 0
    others = [0, 1, 3, 4, 6, 7]
    assert torch.equal(masked[..., others], plain[..., others])  # the read-out leaves the loop alone
    assert not torch.equal(edited[..., others], plain[..., others])
    # by hand: cut the two units' outgoing weights, and their output
    cut = copy.deepcopy(layer)
    cut.weight.data[:, [2, 5]] = 0
    assert torch.equal(edited[..., others], cut(x)[0][..., others])
    assert layer.port is None


def test_a_clamped_unit_drives_its_targets() -> None:
    torch.manual_seed(3)
    layer = RecurrentLIF(6, tau_mem=5.0, weight_gain=4.0)
    x = torch.rand(20, 2, 6) * 2.5
    net = nn.ModuleDict({"layer": layer})
    site = Site("layer", "t b u")
    with edit.clamp(net, units(1, site=site, size=6), 1.0):
        edited, _ = layer(x)
    assert torch.equal(edited[..., 1], torch.ones(20, 2))
    others = [0, 2, 3, 4, 5]
    driven = copy.deepcopy(layer)
    extra = driven.weight.data[:, 1].clone()
    driven.weight.data[:, 1] = 0  # by hand: the clamped unit as a constant current, from the step after the first on
    current = x.clone()
    current[1:] += extra
    torch.testing.assert_close(edited[..., others], driven(current)[0][..., others])


def test_a_spiking_stack_unfolds_time_at_its_stateless_layers() -> None:
    net = SpikingSequential(nn.Linear(4, 6), LIF(6), nn.Linear(6, 2))
    x = torch.rand(7, 3, 4) * 6
    found = sites(net, "*[012]")
    assert [site.axes for site in found] == ["b ... u", "t b u", "b ... u"]
    shapes: dict[Site, tuple[tuple[str, ...], tuple[int, ...]]] = {}

    class Look:
        records = True

        def __init__(self, site: Site) -> None:
            self.site = site

        def __call__(self, values: Tensor, visit: object) -> None:
            shapes[self.site] = visit.rows, tuple(values.shape)  # type: ignore[attr-defined]

    with attach(net, [Look(site) for site in found]):
        net(x)
    assert list(shapes.values()) == [(("t", "b"), (7, 3, n)) for n in (6, 6, 2)]
    by_hand = copy.deepcopy(net)
    by_hand[2].weight.data[:, 4] = 0
    with edit.scale(net, units(4, site=found[1], size=6), 0.0):
        torch.testing.assert_close(net(x)[0], by_hand(x)[0])


def test_a_copy_of_a_spiking_layer_inside_an_edit_has_no_port() -> None:
    layer = LIF(4)
    net = nn.ModuleDict({"layer": layer})
    with edit.scale(net, units(1, site=Site("layer", "t b u"), size=4), 0.0):
        twin = copy.deepcopy(net)
        layer(torch.ones(2, 1, 4))
        assert layer.port is None  # it carries the port only while it runs
    assert twin["layer"].port is None
    assert "port" not in vars(layer)


def test_a_port_of_ones_own_comes_first() -> None:
    from plexus.units import Port

    layer = LIF(4, tau_mem=2.0)
    layer.port = Port(gain=torch.tensor(2.0))
    net = nn.ModuleDict({"layer": layer})
    x = torch.full((5, 1, 4), 9.0)
    with edit.add(net, units(1, site=Site("layer", "t b u"), size=4), 0.5):
        out, _ = layer(x)
    plain, _ = layer(x)
    assert (plain > 0).any()
    assert torch.equal(out[..., 1], plain[..., 1] + 0.5)
    assert layer.port.gain is not None
