"""A baked edit is the edited model without the edit; what cannot be exact is refused before anything changes."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from plexus import edit
from plexus.edit import Edit
from plexus.errors import RangeError, UnsupportedError
from plexus.nn import LIF
from plexus.nn import Sequential as SpikingSequential
from plexus.units import Neurons, Recording, Site, Table, sites

VERBS: dict[str, Callable[[Neurons], Edit]] = {
    "silence": lambda n: edit.scale(n, 0.0),
    "scale": lambda n: edit.scale(n, torch.tensor([1.7, -0.3])),
    "add": lambda n: edit.add(n, torch.tensor([0.5, 2.0])),
    "clamp": lambda n: edit.clamp(n, 0.4),
    "replace": lambda n: edit.replace(n, torch.tensor([0.3, -2.0])),
    "several": lambda n: edit.scale(n, 2.0).then(edit.add(n, 1.0)).then(edit.scale(n, 0.5)),
}
PLACES: dict[str, tuple[Callable[[], nn.Module], Site, tuple[int, ...]]] = {
    "input of a linear": (lambda: nn.Linear(6, 3), Site("it", at="input"), (4, 6)),
    "output of a linear": (lambda: nn.Linear(3, 6), Site("it"), (4, 3)),
    "input of a convolution": (lambda: nn.Conv2d(6, 4, 3), Site("it", "b u y x", at="input"), (2, 6, 5, 5)),
    "output of a convolution": (lambda: nn.Conv2d(2, 6, 3, padding=1), Site("it", "b u y x"), (2, 2, 5, 5)),
    "input of groups": (lambda: nn.Conv1d(6, 4, 3, groups=2), Site("it", "b u x", at="input"), (2, 6, 5)),
    "output of groups": (lambda: nn.Conv1d(4, 6, 3, groups=2), Site("it", "b u x"), (2, 4, 5)),
    "output of a transposed": (lambda: nn.ConvTranspose2d(4, 6, 3, groups=2), Site("it", "b u y x"), (2, 4, 5, 5)),
    "output of a norm": (lambda: nn.LayerNorm(6), Site("it"), (4, 6)),
    "output of a batch norm": (lambda: nn.BatchNorm2d(6).eval(), Site("it", "b u y x"), (2, 6, 3, 3)),
    "features": (lambda: nn.Linear(12, 3), Site("it", "b (u:6 f)", at="input"), (4, 12)),
    "part": (lambda: nn.Linear(3, 12), Site("it", "b u", part=(4, 10)), (4, 3)),
    "interleaved part": (lambda: nn.Linear(3, 36), Site("it", "b (u:6 part:3 f)", part=(1, 2)), (4, 3)),
}


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("place", PLACES)
def test_baked_is_edited(place: str, verb: str) -> None:
    make, site, shape = PLACES[place]
    layer = make()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn_like(parameter))
    model = nn.ModuleDict({"it": layer})
    action = VERBS[verb](Neurons.of({site: 6}, {site: [1, 4]}))
    x = torch.randn(shape)
    with action.on(model):
        expected = layer(x)
    before = layer(x)
    report = edit.bake(model, action)
    torch.testing.assert_close(layer(x), expected, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(layer(x), before)
    assert set(report.parameters) <= {"it.weight", "it.bias"}
    assert report.error < 1e-7


@pytest.mark.parametrize("family", ["gpt2", "llama", "neox", "t5", "albert"])
def test_hidden_units_and_heads_of_transformers(family: str, tiny: Callable[..., Any]) -> None:
    model, inputs = tiny(family)
    for found, size in ((sites.mlp(model), 32), (sites.heads(model), 4)):
        action = edit.scale(Neurons.of(dict.fromkeys(found, size), {site: [1] for site in found}), 0.3)
        with torch.no_grad():
            with action.on(model):
                expected = model(**inputs)[0]
            report = edit.bake(model, action)
            torch.testing.assert_close(model(**inputs)[0], expected)
        assert len(report.parameters) == len(found)


def test_what_goes_straight_into_a_linear_layer() -> None:
    net = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Identity(), nn.Linear(5, 2))
    x = torch.randn(4, 3)
    action = edit.clamp(Neurons.of({Site("1"): 5}, {Site("1"): [0, 3]}), 0.7)
    with action.on(net):
        expected = net(x)
    assert edit.bake(net, action).parameters == ("3.weight", "3.bias")
    torch.testing.assert_close(net(x), expected)


def test_edits_of_one_tensor_under_two_names_keep_their_order() -> None:
    net, x = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Identity(), nn.Linear(4, 2)), torch.randn(5, 3)
    places = [Site("3", at="input"), Site("1"), Site("2")]  # not the order in which the values pass
    steps = [edit.scale(Neurons.of({site: 4}, {site: [0, 1]}), n + 2.0) for n, site in enumerate(places)]
    steps += [edit.add(Neurons.of({site: 4}, {site: [1, 2]}), n + 0.5) for n, site in enumerate(places)]
    action = steps[0]
    for step in steps[1:]:
        action = action.then(step)
    with action.on(net):
        expected = net(x)
    edit.bake(net, action)
    torch.testing.assert_close(net(x), expected, atol=1e-5, rtol=1e-5)


def test_the_report_says_how_exact_it_is() -> None:
    chosen = Neurons.of({Site("0"): 8}, {Site("0"): range(8)})
    net = nn.Sequential(nn.Linear(4, 8))
    assert edit.bake(net, edit.scale(chosen, 0.0)).error == 0
    assert "exactly (float32)" in repr(edit.bake(net, edit.scale(chosen, 2.0)))
    half = nn.Sequential(nn.Linear(4, 8)).bfloat16()
    weight = half[0].weight.detach().float() / 3
    report = edit.bake(half, edit.scale(chosen, 1 / 3))
    assert report.dtype == torch.bfloat16
    rounding = float((half[0].weight.detach().float() - weight).abs().max() / weight.abs().max())
    assert 0 < rounding <= 2**-8
    assert report.error == pytest.approx(max(rounding, report.error), rel=1e-3)
    assert report.error <= 2**-8


def test_an_embedding_is_baked_where_it_stands_alone() -> None:
    net = nn.Sequential(nn.Embedding(7, 4), nn.Linear(4, 2))
    ids = torch.tensor([[0, 3], [6, 1]])
    action = edit.add(Neurons.of({Site("0"): 4}, {Site("0"): [2]}), 1.5)
    with action.on(net):
        expected = net(ids)
    edit.bake(net, action)
    torch.testing.assert_close(net(ids), expected)


class Shared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.second = self.first

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.relu(self.first(x)))


def refusals() -> dict[str, tuple[nn.Module, Edit, str]]:
    plain = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2, bias=False))
    last = Site("2", at="input")

    def on(site: Site, *indices: int) -> Neurons:
        return Neurons.of({site: 4}, {site: indices})

    record = Recording({last: torch.zeros(1, 4)}, {last: Table([0])})
    nonlinear = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.ReLU(), nn.Linear(4, 2))
    padded = nn.Sequential(nn.Conv1d(4, 2, 3, padding=1))
    parametrized = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 2)))
    spiking = SpikingSequential(LIF(4), nn.Linear(4, 2))
    recurrent = nn.ModuleDict({"rnn": nn.LSTM(3, 4)})
    return {
        "limits": (plain, edit.clamp(on(last, 1), low=0.0), "not linear"),
        "patch": (plain, edit.patch(on(last, 0), record), "sample to sample"),
        "tokens": (plain, edit.scale(on(last, 1), 0.0, positions="last"), "some tokens"),
        "directions": (
            nn.Sequential(nn.LayerNorm(4)),
            edit.scale(on(Site("0"), 1), 0.0, basis=torch.ones(4)),
            "by itself",
        ),
        "one call": (plain, edit.scale(on(Site("2", at="input", call=0), 1), 0.0), "one call"),
        "no bias": (plain, edit.add(on(last, 1), 1.0), "no bias"),
        "nonlinear": (nonlinear, edit.scale(on(Site("1"), 1), 0.0), "straight into"),
        "input of a nonlinear": (plain, edit.scale(on(Site("1", at="input"), 1), 0.0), "no linear layer"),
        "end": (nn.Sequential(nn.Tanh()), edit.scale(on(Site("0"), 1), 0.0), "straight into"),
        "shared": (Shared(), edit.scale(on(Site("first"), 1), 0.0), "several places"),
        "padding": (padded, edit.add(on(Site("0", "b u x", at="input"), 1), 1.0), "padding"),
        "computed": (parametrized, edit.scale(on(Site("0", at="input"), 1), 0.0), "computed from"),
        "loop": (spiking, edit.scale(on(Site("0", "t b u"), 1), 0.0), "loop"),
        "lstm": (recurrent, edit.scale(on(Site("rnn", "t b u"), 1), 0.0), "loop"),
    }


@pytest.mark.parametrize("name", refusals())
def test_what_cannot_be_exact_is_refused_and_changes_nothing(name: str) -> None:
    model, action, why = refusals()[name]
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(UnsupportedError, match=why):
        edit.bake(model, action)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


class Standardised(nn.Conv2d):
    """A convolution whose kernels are brought to one size before they are used."""

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight / self.weight.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
        return self._conv_forward(x, weight, self.bias)


class Scaled(nn.Embedding):
    """An embedding that multiplies what it looks up."""

    def forward(self, ids: Tensor) -> Tensor:
        return 3 * super().forward(ids)


class Keyed(nn.Linear):
    """A linear layer that cannot be called with what it reads alone."""

    def forward(self, x: Tensor, *, key: Tensor) -> Tensor:
        return super().forward(x) * key


@pytest.mark.parametrize(
    ("layer", "verb", "why"),
    [
        (lambda: Standardised(4, 4, 3), "scale", "computes something else"),
        (lambda: Scaled(9, 4), "add", "computes something else"),
        (lambda: Keyed(3, 4), "scale", "does not run as its kind does"),
        (lambda: nn.Embedding(9, 4, max_norm=1.0), "scale", "computes something else"),
    ],
)
def test_a_layer_that_computes_something_else_with_its_weights_is_refused(
    layer: Callable[[], nn.Module], verb: str, why: str
) -> None:
    model = nn.Sequential(layer())
    site = Site("0", "b u y x") if isinstance(model[0], nn.Conv2d) else Site("0", "b u")
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(UnsupportedError, match=why):
        edit.bake(model, VERBS[verb](Neurons.of({site: 4}, {site: [1, 2]})))
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_a_subclass_that_computes_as_its_kind_is_baked() -> None:
    class Named(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x)

    model, site, x = nn.Sequential(Named(3, 4)), Site("0"), torch.randn(5, 3)
    action = edit.scale(Neurons.of({site: 4}, {site: [1, 2]}), 2.0)
    with action.on(model):
        expected = model(x)
    edit.bake(model, action)
    torch.testing.assert_close(model(x), expected)


def test_a_refused_step_leaves_the_others_undone() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    first, second = Site("0"), Site("2", at="input")
    good = edit.scale(Neurons.of({first: 4}, {first: [0]}), 0.0)
    bad = edit.clamp(Neurons.of({second: 4}, {second: [0]}), high=0.0)
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(UnsupportedError):
        edit.bake(net, good.then(bad))
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


def test_an_edit_without_a_unit_is_refused() -> None:
    with pytest.raises(RangeError, match="no units to bake"):
        edit.bake(nn.Sequential(nn.Linear(3, 4)), edit.scale(Neurons.of({Site("0"): 4}), 0.0))


def test_tied_and_adapted_weights_are_refused(tiny: Callable[..., Any]) -> None:
    model, _ = tiny("gpt2")
    site = Site("lm_head", at="input")
    with pytest.raises(UnsupportedError, match=r"transformer\.wte\.weight"):
        edit.bake(model, edit.scale(Neurons.of({site: 16}, {site: [0]}), 0.0))
    peft = pytest.importorskip("peft")
    model, _ = tiny("llama")
    adapted = peft.get_peft_model(model, peft.LoraConfig(target_modules=["down_proj"], r=2))
    site = sites.mlp(adapted)[0]
    with pytest.raises(UnsupportedError, match="merge that first"):
        edit.bake(adapted, edit.scale(Neurons.of({site: 32}, {site: [0]}), 0.0))


def test_a_compiled_model_is_refused() -> None:
    net = torch.compile(nn.Sequential(nn.Linear(3, 4)))
    with pytest.raises(UnsupportedError, match="compiled"):
        edit.bake(net, edit.scale(Neurons.of({Site("0"): 4}, {Site("0"): [0]}), 0.0))
