"""Sites are found by name and by what they are; their default axes are those of the layer or an error."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import plexus as px
from plexus.errors import DtypeError, ShapeError, SiteError, SiteNotReached, UnknownNameError
from plexus.units import Site, SiteList, fingerprint, sites

HIDDEN, WIDTH, HEADS = 32, 16, 4


@pytest.mark.parametrize(
    ("family", "paths"),
    [
        ("gpt2", ["transformer.h.{}.mlp.c_proj"]),
        ("llama", ["model.layers.{}.mlp.down_proj"]),
        ("neox", ["gpt_neox.layers.{}.mlp.dense_4h_to_h"]),
        ("phi3", ["model.layers.{}.mlp.down_proj"]),
        ("vit", ["layers.{}.mlp.fc2"]),
        ("bert", ["encoder.layer.{}.output.dense"]),
        ("t5", ["encoder.block.{}.layer.1.DenseReluDense.wo", "decoder.block.{}.layer.2.DenseReluDense.wo"]),
        ("gated t5", ["encoder.block.{}.layer.1.DenseReluDense.wo", "decoder.block.{}.layer.2.DenseReluDense.wo"]),
    ],
)
def test_hidden_units_are_the_input_of_the_down_projection(family: str, paths: list[str], tiny: Callable) -> None:
    model, inputs = tiny(family)
    found = sites.mlp(model)
    assert found == [Site(path.format(layer), at="input") for path in paths for layer in (0, 1)]
    assert set(sites.measure(model, inputs, found).values()) == {HIDDEN}


def test_albert_has_one_mlp_that_runs_in_every_layer(tiny: Callable) -> None:
    model, inputs = tiny("albert")
    assert [site.path.rpartition(".")[2] for site in sites.mlp(model)] == ["ffn_output"]
    calls = [Site(sites.mlp(model)[0].path, at="input", call=n) for n in range(3)]
    assert set(sites.measure(model, inputs, calls).values()) == {HIDDEN}
    with pytest.raises(SiteNotReached, match="3 time"):
        sites.measure(model, inputs, [Site(sites.mlp(model)[0].path, at="input", call=3)])


@pytest.mark.parametrize("family", ["gpt2", "llama", "neox", "phi3", "vit", "bert", "albert", "t5"])
def test_heads_and_residual(family: str, tiny: Callable) -> None:
    model, inputs = tiny(family)
    heads, residual = sites.heads(model), sites.residual(model)
    assert set(sites.measure(model, inputs, heads).values()) == {HEADS}
    assert set(sites.measure(model, inputs, residual).values()) == {WIDTH}
    layers = {"albert": 1, "t5": 4}.get(family, 2)
    assert len(residual) == layers
    assert len(heads) == (6 if family == "t5" else layers)


def test_plain_perceptrons() -> None:
    plain = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Dropout(), nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 6))
    assert sites.mlp(plain) == [Site("3", at="input"), Site("5", at="input")]

    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc1, self.fc2, self.fc3 = nn.Linear(3, 4), nn.Linear(4, 5), nn.Linear(7, 2)

    assert sites.mlp(Named()) == [Site("fc2", at="input")]  # fc3 does not read fc2
    convolution = nn.Sequential(
        nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 2)
    )
    assert sites.mlp(convolution) == [Site("5", at="input")]
    with pytest.raises(SiteError, match="no MLP"):
        sites.mlp(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)))


def test_torch_transformers_hide_their_heads() -> None:
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 12, batch_first=True), 2)
    assert sites.mlp(encoder) == [Site(f"layers.{n}.linear2", at="input") for n in (0, 1)]
    assert [site.axes for site in sites.residual(encoder)] == ["b t u", "b t u"]
    with pytest.raises(SiteError, match="no attention heads"):
        sites.heads(encoder)


def test_names_match_by_wildcards_and_shared_modules_under_each_name(tiny: Callable) -> None:
    shared = nn.ReLU()
    model = nn.ModuleDict({"a": nn.Sequential(nn.Linear(2, 2), shared), "b": nn.Sequential(nn.Linear(2, 2), shared)})
    assert [site.path for site in sites(model, "*.1")] == ["a.1", "b.1"]
    assert [site.path for site in sites(model, "?.0", at="input")] == ["a.0", "b.0"]
    with pytest.raises(UnknownNameError, match=r"did you mean 'a\.0'") as error:
        sites(model, "a.00")
    assert "a.0" in error.value.near
    model, _ = tiny("gpt2")
    with pytest.raises(UnknownNameError, match=r"transformer\.h\.\*\.mlp\.c_proj"):
        sites(model, "transformer.h.*.mlp.cproj")


def test_wrappers_are_seen_through() -> None:
    plain = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2))
    expected = sites(plain, "*") + sites.mlp(plain)
    for wrapped in (nn.DataParallel(plain), torch.compile(plain), torch.compile(nn.DataParallel(plain))):
        assert sites(wrapped, "*") + sites.mlp(wrapped) == expected
    inside = nn.Sequential(torch.compile(nn.Linear(2, 3)))
    assert [site.path for site in sites(inside, "?")] == ["0"]

    class Own(nn.Module):  # an attribute of that name is not a wrapper
        def __init__(self) -> None:
            super().__init__()
            self.module = nn.Linear(2, 2)

    assert [site.path for site in sites(Own(), "module")] == ["module"]


def test_peft_is_seen_through(tiny: Callable) -> None:
    peft = pytest.importorskip("peft")
    model, inputs = tiny("llama")
    plain = sites.mlp(model), sites.heads(model)
    adapted = peft.get_peft_model(model, peft.LoraConfig(target_modules=["down_proj", "q_proj"], r=2))
    assert (sites.mlp(adapted), sites.heads(adapted)) == plain
    assert sites.measure(adapted, inputs, plain[0]) == dict.fromkeys(plain[0], HIDDEN)


@pytest.mark.parametrize(
    ("module", "axes"),
    [
        (nn.Linear(2, 2), "b ... u"),
        (nn.LayerNorm(2), "b ... u"),
        (nn.Embedding(2, 2), "b ... u"),
        (nn.Conv1d(1, 1, 1), "b u x"),
        (nn.Conv2d(1, 1, 1), "b u y x"),
        (nn.ConvTranspose3d(1, 1, 1), "b u z y x"),
        (nn.MaxPool2d(2), "b u y x"),
        (nn.BatchNorm1d(2), "b u ..."),
        (nn.LSTM(2, 2), "t b u"),
        (nn.GRU(2, 2, batch_first=True), "b t u"),
        (nn.LSTMCell(2, 2), "b u"),
        (nn.MultiheadAttention(2, 1), "t b u"),
        (nn.MultiheadAttention(2, 1, batch_first=True), "b t u"),
        (nn.TransformerEncoderLayer(2, 1), "t b u"),
    ],
)
def test_axes_by_type(module: nn.Module, axes: str) -> None:
    assert sites(nn.Sequential(module), "0")[0].axes == axes


def test_axes_of_what_has_none_of_its_own() -> None:
    net = nn.Sequential(
        nn.Conv2d(1, 2, 3), nn.Dropout(), nn.ReLU(), nn.Flatten(), nn.ReLU(), nn.Linear(8, 4), nn.ReLU()
    )
    assert [site.axes for site in sites(net, "[12346]")] == ["b u y x", "b u y x", "b u", "b u", "b ... u"]
    assert sites(net, "3", at="input")[0].axes == "b u y x"
    assert list(sites(net, "*")) == list(sites(net, "[0-6]"))  # the whole has two layouts, so it is left out
    assert sites.measure(net, torch.zeros(1, 1, 4, 4), sites(net, "*"))[Site("3", "b u")] == 8
    with pytest.raises(SiteError, match="axes of 'the model' cannot be told"):
        sites(net, "")

    class Loose(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.act, self.head = nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Linear(2, 2)

    with pytest.raises(SiteError, match="cannot be told"):
        sites(Loose(), "act")
    assert sites(Loose(), "act", axes="b u y x")[0].axes == "b u y x"


def test_layers_in_and_beside_time_first_modules() -> None:
    encoder = nn.TransformerEncoderLayer(4, 1, 8)
    assert sites(encoder, "linear1")[0].axes == "t b ... u"
    beside = nn.ModuleDict({"rnn": nn.LSTM(2, 4), "head": nn.Linear(4, 2)})
    site = sites(beside, "head")[0]
    assert site.axes == "b u"  # of two dimensions it is clear; of three it is not, and the view says so
    with pytest.raises(SiteError, match="axes"):
        site.view(torch.zeros(5, 2, 2))


class Spiky(nn.Module):
    axes = "t b u"

    def __init__(self) -> None:
        super().__init__()
        self.port = None
        self.units = 3

    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        return x, None


def test_spiking_layers_declare_themselves() -> None:
    net = nn.Sequential(nn.Linear(2, 3), Spiky())
    assert sites.spiking(net) == [Site("1", "t b u")]
    assert "3  neuron of Spiky" in repr(sites.spiking(net))
    ours = px.nn.Sequential(px.nn.LIF(5), px.nn.LIF((4, 3)), px.nn.RecurrentLIF(6))
    assert [line.split()[-4] for line in repr(sites.spiking(ours)).splitlines()[1:]] == ["5", "4", "6"]
    with pytest.raises(SiteError, match="no neuron layers"):
        sites.spiking(nn.Linear(2, 2))


def test_what_is_no_model_or_no_pattern_is_refused() -> None:
    find: Callable[..., object] = sites
    for ask in (
        lambda: find(len, "*"),
        lambda: find(nn.Linear(2, 2), 3),
        lambda: sites.mlp("model"),
        lambda: fingerprint(len),
    ):
        with pytest.raises(DtypeError, match="is a t"):
            ask()


def test_measure_leaves_no_trace() -> None:
    net = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Dropout(), nn.ReLU())
    net.train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    random = torch.get_rng_state()
    sizes = sites.measure(net, torch.randn(5, 4, generator=torch.Generator().manual_seed(0)))
    assert sizes == {Site("0"): 3, Site("1", "b u ..."): 3}
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)
    assert all(module.training for module in net.modules())


def test_measure_refuses_a_site_of_changing_size() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.act = nn.ReLU()

        def forward(self, x: Tensor) -> Tensor:
            return self.act(x)[:, :2] + self.act(x[:, :2])

    with pytest.raises(ShapeError, match="call to call"):
        sites.measure(Odd(), torch.zeros(1, 4), [Site("act")])


def test_lists_of_sites_print_and_slice(tiny: Callable) -> None:
    model, _ = tiny("gpt2")
    found = sites.mlp(model)
    assert isinstance(found[:1], SiteList)
    assert repr(found[:1]).splitlines()[1].split() == [
        "transformer.h.0.mlp.c_proj", "(input)", "[b", "...", "u]", "32", "hidden", "unit", "of", "an", "MLP",
    ]  # fmt: skip
    assert px.sites is sites


@pytest.mark.parametrize(
    ("family", "names"),
    [
        ("gpt2", ("ln_1", "ln_2")),
        ("neox", ("input_layernorm", "post_attention_layernorm")),
        ("llama", ("input_layernorm", "post_attention_layernorm")),
        ("vit", ("layernorm_before", "layernorm_after")),
    ],
)
def test_norms_of_blocks(family: str, names: tuple[str, ...], tiny: Callable[..., Any]) -> None:
    model, _ = tiny(family)
    found = sites.norms(model)
    assert [site.path for site in found] == [
        f"{block.path}.{name}" for block in sites.residual(model) for name in names
    ]


@pytest.mark.parametrize(
    ("family", "into", "out"),
    [
        ("llama", ("gate_proj", "up_proj"), "down_proj"),
        ("qwen", ("gate_proj", "up_proj"), "down_proj"),
        ("gemma", ("gate_proj", "up_proj"), "down_proj"),
        ("gpt2", ("c_fc",), "c_proj"),
        ("neox", ("dense_h_to_4h",), "dense_4h_to_h"),
        ("phi3", ("gate_up_proj",), "down_proj"),
        ("bert", ("intermediate.dense",), "output.dense"),
        ("gated t5", ("wi_0", "wi_1"), "wo"),
    ],
)
def test_projections_of_the_families(family, into, out, tiny):
    model, _ = tiny(family)
    found = px.sites.projections(model)
    per_block = len(into) + 1
    hidden = px.sites.mlp(model)
    assert len(found) == per_block * len(hidden)
    for block, site in enumerate(hidden):
        *ups, down = found[block * per_block : (block + 1) * per_block]
        assert [up.path.endswith(name) for up, name in zip(ups, into, strict=True)] == [True] * len(ups)
        assert down.path == site.path
        assert down.path.endswith(out)
        assert down.at == "output"
