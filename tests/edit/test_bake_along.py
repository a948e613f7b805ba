"""Edits along directions are baked exactly, and what is folded into a checkpoint is there after loading it."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from plexus import edit
from plexus.edit import Edit
from plexus.units import Neurons, Site, sites

PLACES: dict[str, tuple[Callable[[], nn.Module], Site, tuple[int, ...]]] = {
    "input of a linear": (lambda: nn.Linear(6, 3), Site("it", at="input"), (4, 6)),
    "output of a linear": (lambda: nn.Linear(3, 6), Site("it"), (4, 3)),
    "input of a convolution": (lambda: nn.Conv2d(6, 4, 3), Site("it", "b u y x", at="input"), (2, 6, 5, 5)),
    "output of a convolution": (lambda: nn.Conv2d(2, 6, 3, padding=1), Site("it", "b u y x"), (2, 2, 5, 5)),
    "part": (lambda: nn.Linear(3, 12), Site("it", "b u", part=(4, 10)), (4, 3)),
}


ALONG: dict[str, Callable[[Neurons, Tensor], Edit]] = {
    "ablate": lambda n, basis: edit.scale(n, 0.0, basis=basis),
    "scale": lambda n, basis: edit.scale(n, torch.tensor([1.7, -0.3]), basis=basis),
    "add": lambda n, basis: edit.add(n, torch.tensor([0.5, 2.0]), basis=basis),
    "clamp": lambda n, basis: edit.clamp(n, 0.4, basis=basis),
    "several": lambda n, basis: edit.scale(n, 2.0, basis=basis).then(edit.scale(n, 0.1)).then(edit.add(n, 1.0)),
}


@pytest.mark.parametrize("verb", ALONG)
@pytest.mark.parametrize("place", PLACES)
def test_directions_are_baked(place: str, verb: str) -> None:
    make, site, shape = PLACES[place]
    layer = make()
    model = nn.ModuleDict({"it": layer})
    action = ALONG[verb](Neurons.of({site: 6}, {site: [0, 1, 4]}), torch.randn(2, 6))
    x = torch.randn(shape)
    with action.on(model):
        expected = layer(x)
    edit.bake(model, action)
    torch.testing.assert_close(layer(x), expected, atol=1e-5, rtol=1e-5)


def test_an_ablated_direction_is_one_that_the_weights_no_longer_write() -> None:
    layer, direction = nn.Linear(5, 4), torch.tensor([0.5, 0.5, -0.5, 0.5])
    site = Site("it")
    edit.bake(nn.ModuleDict({"it": layer}), edit.scale(~Neurons.of({site: 4}), 0.0, basis=direction))
    torch.testing.assert_close(direction @ layer.weight, torch.zeros(5), atol=1e-6, rtol=0)
    torch.testing.assert_close(direction @ layer.bias, torch.tensor(0.0), atol=1e-6, rtol=0)


@pytest.mark.parametrize("family", ["llama", "gpt2", "neox"])
def test_folded_steering_is_saved_and_loaded(family: str, tiny: Callable[..., Any], tmp_path: Any) -> None:
    from transformers import AutoModelForCausalLM

    model, inputs = tiny(family)
    hidden, heads = sites.mlp(model), sites.heads(model)
    outputs = [Site(site.path, site.axes) for site in hidden]  # what the MLPs put out
    factors = torch.rand(16, generator=torch.Generator().manual_seed(0)) * 2
    steps = edit.scale(~Neurons.of(dict.fromkeys(outputs, 16)), factors)
    steps = steps.then(edit.scale(Neurons.of(dict.fromkeys(heads, 4), {site: [2] for site in heads}), 3.0))
    with torch.no_grad():
        with steps.on(model):
            expected = model(**inputs).logits
        edit.bake(model, steps)
        folded = model(**inputs).logits
        model.save_pretrained(tmp_path)
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path).eval()(**inputs).logits
    torch.testing.assert_close(folded, expected, atol=1e-5, rtol=1e-5)
    assert torch.equal(loaded, folded)
