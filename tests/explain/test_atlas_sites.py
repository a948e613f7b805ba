"""What an atlas looks at by default: values behind the nonlinearities, and no routed experts."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import plexus as px
from plexus.data.corpora import word_tokenizer
from plexus.errors import SiteError
from plexus.explain import atlas
from plexus.explain.atlas._sites import default_sites
from plexus.nn.models import SmallCNN
from plexus.units import Site


class Functional(nn.Module):
    """As in many a tutorial: the nonlinearities are functions, not modules."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 8, 3), nn.Conv2d(8, 16, 2)
        self.fc1, self.fc2, self.out = nn.Linear(16, 12), nn.Linear(12, 12), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(functional.max_pool2d(self.conv1(x), 2))
        x = functional.max_pool2d(functional.relu(self.conv2(x)), 2)
        x = functional.relu(self.fc1(x.flatten(1)))
        return self.out(x + torch.tanh(self.fc2(x)))  # read twice: no module holds all of it


class Block(nn.Module):
    """One ReLU, used twice and in place, once behind a sum."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.norm, self.relu = nn.BatchNorm2d(4), nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        out = self.b(self.relu(self.norm(self.a(x))))
        out += x
        return self.relu(out)


def test_default_sites_lie_behind_the_nonlinearity() -> None:
    x = torch.rand(2, 1, 8, 8)
    assert default_sites(SmallCNN(8, 10), x) == {
        Site("conv2", "b u y x", at="input"): "conv1",
        Site("pool", "b u y x", at="input"): "conv2",
        Site("out", "b ... u", at="input"): "hidden",
    }
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Tanh(), Block(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    assert default_sites(net, x) == {
        Site("1", "b u y x"): "0",
        Site("2.relu", "b u y x", call=0): "2.a",
        Site("2.b", "b u y x"): "2.b",  # a sum follows, no nonlinearity of its own
    }
    with pytest.warns(UserWarning, match="nonlinearity of fc1, fc2") as caught:
        found = default_sites(Functional(), x)
    assert len(caught) == 1
    assert found == {
        Site("conv2", "b u y x", at="input"): "conv1",
        Site("fc1", "b (u:16 f)", at="input"): "conv2",
        Site("fc1", "b ... u"): "fc1",
        Site("fc2", "b ... u"): "fc2",
    }


def test_values_at_default_sites_are_those_of_the_activation() -> None:
    torch.manual_seed(0)
    net, x = SmallCNN(8, 10), torch.rand(3, 1, 8, 8)
    [conv1, _, hidden] = default_sites(net, x)
    seen = px.probe.record(net, x, at=[conv1, hidden], pool="max")
    assert torch.allclose(seen[conv1], net.conv1(x).relu().amax((2, 3)))
    before = net.hidden(net.pool(net.conv2(net.conv1(x).relu()).relu()).flatten(1))
    assert torch.allclose(seen[hidden], before.relu(), atol=1e-6)
    assert net.training  # and no hook is left
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())


def test_a_unit_that_never_fires_is_no_detector() -> None:
    torch.manual_seed(0)
    x, y = torch.rand(40, 1, 2, 4), torch.arange(40) % 2
    x[y == 1] += 1.0
    net = nn.Sequential(nn.Flatten(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 2))
    with torch.no_grad():
        net[1].weight[0], net[1].bias[0] = -1.0, -1.0  # tells the classes apart, below zero
    page = atlas.build(net, atlas.Images(x, y), featured=1).pages[0]
    assert page.name == "1"
    assert page.selectivity[0] == 0.5
    assert [exemplar.value for exemplar in page.exemplars[0]] == [0.0] * 6
    assert page.effect[0] == 0


class Expert(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up_proj, self.down_proj = nn.Linear(16, 8), nn.Linear(8, 16)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(self.up_proj(x).relu())


class Mixture(nn.Module):
    """Each token goes to the one expert that its router prefers."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(16, 3)
        self.experts = nn.ModuleList(Expert() for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, 16)
        chosen, out = self.gate(rows).argmax(1), torch.zeros_like(rows)
        for number, expert in enumerate(self.experts):
            if (chosen == number).any():
                out[chosen == number] = expert(rows[chosen == number])
        return out.reshape(x.shape)


def test_routed_experts_are_left_out_with_one_warning_and_refused_by_name() -> None:
    transformers = pytest.importorskip("transformers")
    texts = ["the cat sat", "the cow ran", "a dog sat", "a fox ran"] * 4
    tokenizer = word_tokenizer(texts)
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=8, num_hidden_layers=2, num_attention_heads=2
    )
    model = transformers.LlamaForCausalLM(config).eval()
    model.model.layers[1].mlp = Mixture()
    matter = atlas.Texts(tokenizer, texts, [text[0] for text in texts])
    with pytest.warns(UserWarning, match="routed experts") as caught:
        found = atlas.build(model, matter, featured=0, exemplars=1)
    assert len(caught) == 1
    assert [page.site.path for page in found.pages] == ["model.layers.0.mlp.down_proj"]
    expert = next(site for site in px.sites.mlp(model) if "experts" in site.path)
    with pytest.raises(SiteError, match="no axis of samples") as refused:
        atlas.build(model, matter, expert)
    assert refused.value.mend is not None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        atlas.build(model, matter, Site("model.layers.1.mlp", "b t u"), featured=0)  # as the error says
    model.model.layers[0].mlp = Mixture()
    with pytest.raises(SiteError, match="to mend"):
        atlas.build(model, matter)
