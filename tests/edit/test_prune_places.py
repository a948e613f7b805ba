"""Pools keep units apart only where a convolution made places; layers put in by hand must stay as wide as is said."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from plexus import edit
from plexus.edit import prune
from plexus.errors import UnsupportedError
from plexus.units import Neurons, Site, sites

OVER_UNITS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "average": (lambda: nn.AvgPool1d(3, 1, 1), (5, 4)),
    "adaptive": (lambda: nn.AdaptiveAvgPool1d(8), (5, 4)),
    "maximum, with time": (lambda: nn.MaxPool1d(3, 1, 1), (5, 6, 4)),
    "two dimensions": (lambda: nn.AvgPool2d(3, 1, 1), (5, 6, 4)),
    "resampled": (lambda: nn.Upsample(8), (5, 1, 4)),
    "padded": (lambda: nn.Sequential(nn.ZeroPad1d(1), nn.MaxPool1d(3, 1)), (5, 4)),
}


def refused_and_unchanged(model: nn.Module, chosen: Neurons, x: Tensor, why: str) -> None:
    before = model(x)
    with pytest.raises(UnsupportedError, match=why):
        prune.remove(model, chosen)
    assert torch.equal(model(x), before)


def some(site: Site, units: int = 8) -> Neurons:
    return Neurons.of({site: units}, {site: [0, 1]})


@pytest.mark.parametrize("name", OVER_UNITS)
def test_a_pool_after_a_linear_layer_runs_over_its_units(name: str) -> None:
    make, shape = OVER_UNITS[name]
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), make(), nn.Linear(8, 3))
    for site in (Site("1", "b ... u"), Site("3", "b ... u", at="input")):
        refused_and_unchanged(model, some(site), torch.randn(shape), "runs over units")


class Pooled(nn.Module):
    def __init__(self, first: nn.Module, pool: Callable[[Tensor], Tensor], last: nn.Module) -> None:
        super().__init__()
        self.first, self.pool, self.last = first, pool, last

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.pool(self.first(x).relu()))


@pytest.mark.parametrize("pool", [lambda x: F.avg_pool1d(x, 3, 1, 1), lambda x: F.max_pool1d(x, 3, 1, 1)])
def test_functions_that_pool(pool: Callable[[Tensor], Tensor]) -> None:
    over_units = Pooled(nn.Linear(4, 8), pool, nn.Linear(8, 3))
    refused_and_unchanged(over_units, some(Site("first", "b u")), torch.randn(5, 4), "runs over units")
    over_places, x = Pooled(nn.Conv1d(4, 8, 3), pool, nn.Conv1d(8, 3, 3)), torch.randn(5, 4, 9)
    chosen = some(Site("first", "b u x"))
    with edit.scale(over_places, chosen, 0.0):
        expected = over_places(x)
    prune.remove(over_places, chosen)
    torch.testing.assert_close(over_places(x), expected)


def test_a_pool_of_more_dimensions_than_the_convolution_left() -> None:
    site = Site("0", "b u x")
    wide = nn.Sequential(nn.Conv1d(2, 8, 3), nn.AvgPool2d(3, 1, 1), nn.Conv1d(8, 3, 3))
    refused_and_unchanged(wide, some(site), torch.randn(5, 2, 9), "runs over units")
    flat = nn.Sequential(nn.Conv1d(2, 8, 3), nn.Flatten(), nn.AvgPool1d(3, 1, 1), nn.Linear(56, 3))
    refused_and_unchanged(flat, some(site), torch.randn(5, 2, 9), "runs over units")


def test_a_mean_over_the_units_of_a_linear_layer() -> None:
    model = Pooled(nn.Linear(4, 8), lambda x: x.mean((2, 3)), nn.Linear(8, 3))
    refused_and_unchanged(model, some(Site("first", "b y x u")), torch.randn(5, 8, 3, 4), "runs over units")


# layers put in by hand


class Experts(nn.Module):
    def __init__(self, kind: type, config: Any) -> None:
        super().__init__()
        self.experts = nn.ModuleList([kind(config), kind(config)])

    def forward(self, x: Tensor) -> Tensor:
        return self.experts[0](x) + self.experts[1](x)


def mixture(tiny: Callable[..., Any], layers: tuple[int, ...] = (0, 1), width: int = 32) -> tuple[Any, Tensor]:
    """A Llama with experts in place of some of its MLPs, which its configuration knows nothing of."""
    model, inputs = tiny("llama")
    config = copy.deepcopy(model.config)
    config.intermediate_size = width
    for layer in layers:
        block = model.model.layers[layer]
        block.mlp = Experts(type(model.model.layers[1 - layer].mlp if layers == (layer,) else block.mlp), config)
    return model.eval(), inputs["input_ids"]


def hidden(model: nn.Module, part: str, size: int = 32) -> Neurons:
    found = [site for site in sites.mlp(model) if part in site.path]
    return Neurons.of(dict.fromkeys(found, size), {site: [3] for site in found})


def logits(model: nn.Module, ids: Tensor) -> Tensor:
    with torch.no_grad():
        return model(ids).logits


@pytest.mark.parametrize(
    ("layers", "width", "part", "why"),
    [
        ((0, 1), 32, "0.mlp.experts.0", "would stay 32 wide and the configuration says 31"),
        ((0,), 32, "layers.1.mlp.down_proj", "would stay 32 wide and the configuration says 31"),
        ((0,), 32, "experts", "the configuration asks for"),
        ((0, 1), 20, "experts", "was 20 wide and the configuration says 32"),
    ],
)
def test_unequal_widths_are_refused(
    layers: tuple[int, ...], width: int, part: str, why: str, tiny: Callable[..., Any]
) -> None:
    model, ids = mixture(tiny, layers, width)
    before = logits(model, ids)
    with pytest.raises(UnsupportedError, match=why):
        prune.remove(model, hidden(model, part, width if "experts" in part else 32))
    assert torch.equal(logits(model, ids), before)
    assert model.config.intermediate_size == 32


def test_as_many_units_of_every_expert_are_removed(tiny: Callable[..., Any]) -> None:
    model, ids = mixture(tiny)
    chosen, silent = hidden(model, "experts"), copy.deepcopy(model)
    for site in chosen.sites:
        silent.get_submodule(site.path).weight.data[:, 3] = 0
    assert prune.remove(model, chosen).config == {"intermediate_size": (32, 31)}
    torch.testing.assert_close(logits(model, ids), logits(silent, ids))
