"""Removing units is silencing them with the rows and columns gone, and the smaller model comes back from its file."""

import copy
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

import plexus.nn as pn
from plexus import edit
from plexus.edit import prune
from plexus.errors import DtypeError, RangeError, ShapeError, UnsupportedError
from plexus.units import Neurons, Scores, Site, sites

FAMILIES = ("gpt2", "llama", "neox", "phi3", "bert", "vit", "t5", "gated t5", "albert")
DECODERS = ("llama", "qwen2", "qwen3", "mistral", "gemma", "gemma2", "phi3")
WIDE = {"hidden_size": 24, "num_hidden_layers": 2, "intermediate_size": 32}
TOKENS = {"vocab_size": 30, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}


def call(model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    with torch.no_grad():
        return model(**inputs)[0]


def decoder(family: str, heads: int = 4, keys: int = 2, **config: Any) -> tuple[nn.Module, dict[str, Tensor]]:
    """A model with grouped heads; hidden size 24, so that 2, 3 and 4 heads divide it."""
    import transformers as tf

    torch.manual_seed(0)
    kind = {
        "llama": (tf.LlamaConfig, tf.LlamaForCausalLM),
        "qwen2": (tf.Qwen2Config, tf.Qwen2ForCausalLM),
        "qwen3": (tf.Qwen3Config, tf.Qwen3ForCausalLM),
        "mistral": (tf.MistralConfig, tf.MistralForCausalLM),
        "gemma": (tf.GemmaConfig, tf.GemmaForCausalLM),
        "gemma2": (tf.Gemma2Config, tf.Gemma2ForCausalLM),
        "phi3": (tf.Phi3Config, tf.Phi3ForCausalLM),
    }[family]
    extra = {"head_dim": 6} if family in ("gemma", "gemma2", "qwen3") else {}
    made = kind[0](num_attention_heads=heads, num_key_value_heads=keys, **WIDE, **TOKENS, **extra, **config)
    model = kind[1](made).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model, {"input_ids": torch.randint(3, 30, (2, 6), generator=torch.Generator().manual_seed(1))}


def everywhere(found: Any, size: int, units: list[int]) -> Neurons:
    return Neurons.of(dict.fromkeys(found, size), dict.fromkeys(found, units))


def silenced(model: nn.Module, neurons: Neurons, run: Callable[[nn.Module], Tensor]) -> Tensor:
    with torch.no_grad(), edit.scale(model, neurons, 0.0):
        return run(model)


def reloaded(model: Any, folder: Path) -> Any:
    model.save_pretrained(folder)
    return type(model).from_pretrained(folder).eval()


@pytest.mark.parametrize("family", FAMILIES)
def test_hidden_units_of_families(family: str, tiny: Callable[..., Any], tmp_path: Path) -> None:
    model, inputs = tiny(family)
    chosen = everywhere(sites.mlp(model), 32, [3, 17, 20])
    expected, plain = silenced(model, chosen, lambda m: call(m, inputs)), call(model, inputs)
    done = prune.remove(model, chosen)
    out = call(model, inputs)
    torch.testing.assert_close(out, expected)
    assert not torch.allclose(out, plain)
    assert set(done.sizes.values()) == {(32, 29)}
    assert done.parameters[1] == sum(p.numel() for p in model.parameters()) < done.parameters[0]
    assert torch.equal(call(reloaded(model, tmp_path), inputs), out)


@pytest.mark.parametrize("units", [[0, 1], [2, 3], [0, 3]], ids=["first group", "second group", "one of each"])
@pytest.mark.parametrize("family", DECODERS)
def test_heads_of_grouped_attention(family: str, units: list[int], tmp_path: Path) -> None:
    model, inputs = decoder(family)
    chosen = everywhere(sites.heads(model), 4, units)
    expected = silenced(model, chosen, lambda m: call(m, inputs))
    done = prune.remove(model, chosen)
    out = call(model, inputs)
    torch.testing.assert_close(out, expected)
    again = reloaded(model, tmp_path)
    assert torch.equal(call(again, inputs), out)
    keys = 2 if units == [0, 3] else 1
    assert (again.config.num_attention_heads, again.config.num_key_value_heads) == (2, keys)
    assert done.config["num_attention_heads"] == (4, 2)
    mask = torch.ones_like(inputs["input_ids"])
    mask[0, :2] = 0
    tokens = [
        m.generate(**inputs, attention_mask=mask, max_new_tokens=5, do_sample=False, num_beams=2)
        for m in (model, again)
    ]
    assert torch.equal(*tokens)


def test_generating_with_a_cache_equals_a_pass_without(tmp_path: Path) -> None:
    model, inputs = decoder("llama")
    prune.remove(model, everywhere(sites.heads(model), 4, [2, 3]) | everywhere(sites.mlp(model), 32, [0, 31]))
    tokens = model.generate(**inputs, max_new_tokens=6, do_sample=False, eos_token_id=None)
    for step in range(6, 12):
        assert torch.equal(call(model, {"input_ids": tokens[:, :step]})[:, -1].argmax(-1), tokens[:, step])


def test_units_and_heads_together_in_bfloat16(tmp_path: Path) -> None:
    model, inputs = decoder("phi3")
    model.save_pretrained(tmp_path / "before")
    model = type(model).from_pretrained(tmp_path / "before", dtype=torch.bfloat16).eval()
    chosen = everywhere(sites.heads(model), 4, [1, 3]) | everywhere(sites.mlp(model), 32, [5])
    expected = silenced(model, chosen, lambda m: call(m, inputs))
    prune.remove(model, chosen)
    torch.testing.assert_close(call(model, inputs), expected, rtol=0.05, atol=0.05)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path, dtype=torch.bfloat16).eval()
    assert torch.equal(call(again, inputs), call(model, inputs))


def test_the_smaller_model_learns() -> None:
    model, inputs = decoder("llama")
    prune.remove(model, everywhere(sites.mlp(model), 32, [0]))
    model(**inputs, labels=inputs["input_ids"]).loss.backward()
    assert all(p.grad is not None and p.grad.shape == p.shape for p in model.parameters())


@pytest.mark.parametrize("family", ["gpt2", "neox", "bert", "t5"])
def test_heads_that_an_architecture_cannot_hold(family: str, tiny: Callable[..., Any]) -> None:
    model, inputs = tiny(family)
    before, config = call(model, inputs), model.config.to_dict()
    with pytest.raises(UnsupportedError, match="cannot hold"):
        prune.remove(model, everywhere(sites.heads(model), 4, [0, 1]))
    assert torch.equal(call(model, inputs), before)
    assert model.config.to_dict() == config


@pytest.mark.parametrize("units", [[0], [0, 1, 3]])
def test_unequal_groups_are_refused(units: list[int]) -> None:
    model, _ = decoder("llama", heads=6)
    with pytest.raises(UnsupportedError, match="unequally many"):
        prune.remove(model, everywhere(sites.heads(model), 6, units))


def test_unequal_widths_are_refused_with_the_helper_that_mends_it() -> None:
    model, inputs = decoder("llama")
    before, (one, two) = call(model, inputs), sites.mlp(model)
    lopsided = Neurons.of({one: 32, two: 32}, {one: [0], two: [0, 1]})
    with pytest.raises(UnsupportedError, match="one number of hidden units") as error:
        prune.remove(model, lopsided)
    assert "equal_width" in str(error.value)
    with pytest.raises(UnsupportedError, match="cannot hold"):
        prune.remove(model, Neurons.of({one: 32}, {one: [0]}))
    assert torch.equal(call(model, inputs), before)
    model_of_three, _ = decoder("llama", heads=4, keys=4)
    three = everywhere(sites.heads(model_of_three), 4, [0])
    assert prune.remove(model_of_three, three).config["num_attention_heads"] == (4, 3)


def test_a_number_of_heads_that_the_configuration_refuses() -> None:
    model, _ = decoder("llama", heads=6, keys=6)
    with pytest.raises(UnsupportedError, match="multiple of the number of attention"):
        prune.remove(model, everywhere(sites.heads(model), 6, [0]))  # 24 is no multiple of 5
    assert model.config.num_attention_heads == 6


def test_a_norm_over_all_heads_is_refused() -> None:
    import transformers as tf

    model = tf.Olmo2ForCausalLM(tf.Olmo2Config(num_attention_heads=4, num_key_value_heads=4, **WIDE, **TOKENS))
    with pytest.raises(UnsupportedError, match="norm"):
        prune.remove(model, everywhere(sites.heads(model), 4, [0, 1]))


def test_a_backbone_inside_another_model(tiny: Callable[..., Any]) -> None:
    backbone, inputs = tiny("bert")

    class Classifier(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone, self.head = backbone, nn.Linear(16, 3)

        def forward(self, **inputs: Tensor) -> tuple[Tensor]:
            return (self.head(self.backbone(**inputs)[0][:, 0]),)

    model = Classifier().eval()
    chosen = everywhere(sites.mlp(model), 32, [1, 2])
    assert all(site.path.startswith("backbone.") for site in chosen.sites)
    expected = silenced(model, chosen, lambda m: call(m, inputs))
    prune.remove(model, chosen)
    torch.testing.assert_close(call(model, inputs), expected)
    assert backbone.config.intermediate_size == 30


@pytest.mark.parametrize("at", ["mlp", "heads"])
def test_quantised_layers_are_refused(at: str) -> None:
    bits = pytest.importorskip("bitsandbytes")
    model, _ = decoder("llama")
    for block in model.model.layers:
        for name in ("up_proj", "down_proj"):
            old = getattr(block.mlp, name)
            setattr(block.mlp, name, bits.nn.Linear4bit(old.in_features, old.out_features, bias=False))
        block.self_attn.k_proj = bits.nn.Linear8bitLt(24, 12, bias=False, has_fp16_weights=False)
    chosen = everywhere(sites.mlp(model), 32, [1]) if at == "mlp" else everywhere(sites.heads(model), 4, [0, 1])
    with pytest.raises(UnsupportedError, match=r"Linear[48]bit"):
        prune.remove(model, chosen)


def test_an_adapter_is_refused(tiny: Callable[..., Any]) -> None:
    peft = pytest.importorskip("peft")
    model, _ = tiny("llama")
    model = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["up_proj", "down_proj"]))
    with pytest.raises(UnsupportedError, match="adapter"):
        prune.remove(model, everywhere(sites.mlp(model), 32, [1]))
    merged = model.merge_and_unload()
    assert prune.remove(merged, everywhere(sites.mlp(merged), 32, [1])).config["intermediate_size"] == (32, 31)


# chains of layers in any module


def images() -> Tensor:
    return torch.randn(4, 2, 8, 8, generator=torch.Generator().manual_seed(3))


def live(model: nn.Module) -> nn.Module:
    """Batch norms with statistics of their own, in evaluation mode."""
    generator = torch.Generator().manual_seed(5)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            for tensor in (module.running_mean, module.running_var, module.weight, module.bias):
                tensor.data.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
    return model.eval()


def cnn(act: nn.Module, padding: int = 1) -> nn.Sequential:
    return live(
        nn.Sequential(
            nn.Conv2d(2, 6, 3, padding=1),
            nn.BatchNorm2d(6),
            act,
            nn.MaxPool2d(2),
            nn.Conv2d(6, 5, 3, padding=padding),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(5 * (4 if padding else 2) ** 2, 3),
        )
    )


@pytest.mark.parametrize(
    ("path", "at", "units"),
    [("2", "output", 6), ("3", "output", 6), ("4", "input", 6), ("4", "output", 5), ("5", "output", 5)],
)
def test_channels(path: str, at: str, units: int) -> None:
    model, x = cnn(nn.GELU()), images()
    chosen = Neurons.of({Site(path, "b u y x", at=at): units}, {Site(path, "b u y x", at=at): [0, 3]})
    expected = silenced(model, chosen, lambda m: m(x))
    prune.remove(model, chosen)
    torch.testing.assert_close(model(x), expected)
    assert (model[0].out_channels == 4) == (units == 6)


@pytest.mark.parametrize("act", [nn.ReLU, nn.Sigmoid, nn.SiLU, lambda: nn.PReLU(6, 0.3)])
@pytest.mark.parametrize("path", ["0", "1"])
def test_what_a_silenced_channel_becomes_goes_into_the_next_bias(path: str, act: Callable[[], nn.Module]) -> None:
    model, x = cnn(act(), padding=0), images()
    site = Site(path, "b u y x")
    chosen = Neurons.of({site: 6}, {site: [1, 2]})
    expected = silenced(model, chosen, lambda m: m(x))
    prune.remove(model, chosen)
    torch.testing.assert_close(model(x), expected)


def test_a_constant_does_not_reach_into_padding() -> None:
    site = Site("0", "b u y x")
    with pytest.raises(UnsupportedError, match="padding"):
        prune.remove(cnn(nn.ReLU(), padding=1), Neurons.of({site: 6}, {site: [1]}))


def test_whole_channels_where_a_layer_reads_them_flattened() -> None:
    model, x = cnn(nn.ReLU()), images()
    site = Site("7", "b u", at="input")
    chosen = Neurons.of({site: 80}, {site: range(16, 32)})
    expected = silenced(model, chosen, lambda m: m(x))
    with pytest.raises(UnsupportedError, match="all numbers of a channel"):
        prune.remove(model, Neurons.of({site: 80}, {site: range(16, 31)}))
    prune.remove(model, chosen)
    torch.testing.assert_close(model(x), expected)
    assert model[4].out_channels == 4


class Gated(nn.Module):
    """A gated MLP with functional activations, a self-gate, and a mean over the image before it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 6, 3)
        self.gate, self.up = nn.Linear(6, 9), nn.Linear(6, 9)
        self.down, self.second = nn.Linear(9, 4), nn.Linear(9, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = (x * torch.sigmoid(x)).mean((2, 3))
        hidden = F.silu(self.gate(x)) * (self.up(x) + 0.5)
        hidden = 2 * hidden / 3
        return torch.cat([self.down(hidden), self.second(hidden.view(hidden.size(0), -1))], -1)


@pytest.mark.parametrize(("path", "axes", "units"), [("gate", "b u", 9), ("stem", "b u y x", 6)])
def test_products_and_functions_are_followed(path: str, axes: str, units: int) -> None:
    torch.manual_seed(0)
    model, x, site = Gated(), images(), Site(path, axes)
    chosen = Neurons.of({site: units}, {site: [2, 4]})
    expected = silenced(model, chosen, lambda m: m(x))
    prune.remove(model, chosen)
    torch.testing.assert_close(model(x), expected)
    assert (model.up.out_features, model.second.in_features) == ((7, 7) if path == "gate" else (9, 9))


def test_up_alone_is_not_silent_with_an_offset() -> None:
    site = Site("up", "b u")  # silenced, it leaves 0.5 times the gate
    with pytest.raises(UnsupportedError, match="multiplies a constant"):
        prune.remove(Gated(), Neurons.of({site: 9}, {site: [2]}))


def test_one_reader_of_several_is_refused() -> None:
    site = Site("down", at="input")
    with pytest.raises(UnsupportedError, match="other modules read the same"):
        prune.remove(Gated(), Neurons.of({site: 9}, {site: [2]}))


class Residual(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.one, self.two, self.norm = nn.Linear(4, 4), nn.Linear(4, 4), nn.LayerNorm(4)
        self.three = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.one(x))
        if self.kind == "norm":
            return self.three(self.norm(h))
        if self.kind == "twice":
            return self.three(self.two(self.two(h)))
        if self.kind == "weights":
            return self.three(torch.relu(self.two(h))) + F.linear(h, self.two.weight)[..., :2]
        if self.kind == "output":
            return h
        if self.kind == "softmax":
            return self.three(h.softmax(-1))
        return self.three(h + self.two(h))


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("residual", "residual"),
        ("norm", "LayerNorm"),
        ("twice", "more than once"),
        ("weights", "linear"),
        ("output", "output of the model"),
        ("softmax", "softmax"),
    ],
)
def test_what_cannot_be_followed_is_refused_with_the_reason(kind: str, reason: str) -> None:
    torch.manual_seed(0)
    model, x = Residual(kind), torch.randn(3, 4)
    before, site = model(x), Site("one", "b u")
    with pytest.raises(UnsupportedError, match=reason):
        prune.remove(model, Neurons.of({site: 4}, {site: [1]}))
    assert torch.equal(model(x), before)


def test_inside_a_residual_block_channels_go_and_outside_they_stay() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1, self.bn1 = nn.Conv2d(4, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
            self.conv2, self.bn2 = nn.Conv2d(6, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)

        def forward(self, x: Tensor) -> Tensor:
            y = F.relu(self.bn1(self.conv1(x)), inplace=True)
            return F.relu(self.bn2(self.conv2(y)) + x)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.blocks = nn.Conv2d(2, 4, 3), nn.Sequential(Block(), Block())
            self.head = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = self.blocks(self.stem(x))
            return self.head(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1))

    torch.manual_seed(0)
    model, x = live(Net()), images()
    inner = Site("blocks.1.conv2", "b u y x", at="input")
    chosen = Neurons.of({inner: 6}, {inner: [0, 5]})
    expected = silenced(model, chosen, lambda m: m(x))
    prune.remove(model, chosen)
    torch.testing.assert_close(model(x), expected)
    assert model.blocks[1].bn1.num_features == 4
    outer = Site("stem", "b u y x")
    with pytest.raises(UnsupportedError, match="residual"):
        prune.remove(model, Neurons.of({outer: 4}, {outer: [0]}))


def test_control_flow_outside_of_the_mlp_does_not_matter() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mlp = nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 4))
            self.lone = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            if x.sum() > 1e9:
                x = x * 2
            return self.lone(x + self.mlp(x))

    torch.manual_seed(0)
    model, x = Block(), torch.randn(3, 4)
    chosen = everywhere(sites.mlp(model), 8, [1, 2])
    expected = silenced(model, chosen, lambda m: m(x))
    prune.remove(model, chosen)
    torch.testing.assert_close(model(x), expected)
    with pytest.raises(UnsupportedError, match="cannot be followed"):
        prune.remove(model, Neurons.of({Site("lone"): 4}, {Site("lone"): [1]}))


def test_torch_transformer_layers() -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0).eval()
    model, x = nn.TransformerEncoder(layer, 2), torch.randn(2, 5, 8)
    chosen = everywhere(sites.mlp(model), 16, [0, 9])
    expected = silenced(model, chosen, lambda m: m(x))
    prune.remove(model, chosen)
    torch.testing.assert_close(model(x), expected)


def test_spiking_neurons() -> None:
    torch.manual_seed(0)
    neurons = pn.LIF(6, threshold=torch.rand(6) + 0.2)
    model, x = pn.Sequential(nn.Linear(4, 6), neurons, nn.Linear(6, 3)), torch.rand(12, 5, 4) * 3
    chosen = everywhere(sites.spiking(model), 6, [0, 4])
    expected = silenced(model, chosen, lambda m: m(x)[0])
    assert not torch.equal(expected, model(x)[0])
    prune.remove(model, chosen)
    torch.testing.assert_close(model(x)[0], expected)
    assert model[1].units == (4,)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(2, 7), min_size=3, max_size=5), st.data())
def test_any_chain_of_layers(widths: list[int], data: st.DataObject) -> None:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += [nn.Linear(before, after), data.draw(st.sampled_from([nn.Tanh(), nn.Sigmoid(), nn.GELU()]))]
    model = nn.Sequential(*layers, nn.Linear(widths[-1], 2)).double()
    masks = {
        Site(str(2 * i + data.draw(st.integers(0, 1))), "b u"): torch.tensor(
            data.draw(st.lists(st.booleans(), min_size=n, max_size=n).filter(lambda mask: not all(mask)))
        )
        for i, n in enumerate(widths[1:])
    }
    chosen, x = Neurons(masks), torch.randn(3, widths[0], dtype=torch.float64)
    if not len(chosen):
        return
    expected = silenced(model, chosen, lambda m: m(x))
    done = prune.remove(model, chosen)
    torch.testing.assert_close(model(x), expected)
    assert {site: kept.tolist() for site, kept in done.kept.items()} == {
        site: (~mask).nonzero().squeeze(1).tolist() for site, mask in masks.items() if mask.any()
    }


def test_bad_sets() -> None:
    model = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
    site = Site("1", "b u")
    with pytest.raises(RangeError, match="no units"):
        prune.remove(model, Neurons.of({site: 8}))
    with pytest.raises(RangeError, match="no unit would be left"):
        prune.remove(model, ~Neurons.of({site: 8}))
    with pytest.raises(ShapeError):
        prune.remove(model, Neurons.of({site: 9}, {site: [1]}))
    with pytest.raises(DtypeError):
        prune.remove(model, [1])  # type: ignore[arg-type]
    with pytest.raises(UnsupportedError, match="another model"):
        prune.remove(model, Neurons.of({site: 8}, {site: [1]}, "Other-0"))
    with pytest.raises(UnsupportedError, match="also those of another site"):
        prune.remove(model, Neurons.of({site: 8, Site("0", "b u"): 8}, {site: [1], Site("0", "b u"): [1]}))
    chosen = Neurons.of({site: 8}, {site: [1]})
    with edit.scale(model, chosen, 0.0), pytest.raises(UnsupportedError, match="attached"):
        prune.remove(model, chosen)


def test_shared_and_computed_weights_are_refused() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    model[2].weight = model[0].weight
    chosen = Neurons.of({Site("1", "b u"): 4}, {Site("1", "b u"): [1]})
    with pytest.raises(UnsupportedError, match="several places"):
        prune.remove(model, chosen)
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    nn.utils.parametrizations.weight_norm(model[0])
    with pytest.raises(UnsupportedError, match="computed"):
        prune.remove(model, chosen)


def test_equal_width_chooses_the_least_of_every_layer() -> None:
    model, _ = decoder("llama")
    generator = torch.Generator().manual_seed(0)
    scores = Scores({site: torch.rand(32, generator=generator) for site in sites.mlp(model)})
    chosen = prune.equal_width(scores, 0.25)
    for site, value in scores.values.items():
        assert chosen.mask(site).sum() == 8
        assert value[chosen.mask(site)].max() < value[~chosen.mask(site)].min()
    assert prune.remove(copy.deepcopy(model), chosen).config["intermediate_size"] == (32, 24)
    with pytest.raises(RangeError):
        prune.equal_width(scores, 32)
    with pytest.raises(ShapeError):
        prune.equal_width(Scores({Site("a"): torch.rand(3), Site("b"): torch.rand(4)}), 1)


def test_whole_groups_chooses_by_their_sum() -> None:
    model, inputs = decoder("llama")
    found = sites.heads(model)
    scores = Scores({found[0]: torch.tensor([9.0, 0.0, 4.0, 4.0]), found[1]: torch.tensor([1.0, 1.0, 0.0, 3.0])})
    chosen = prune.whole_groups(scores, 1, model.config.num_key_value_heads)
    assert [chosen.indices(site).tolist() for site in found] == [[2, 3], [0, 1]]
    expected = silenced(model, chosen, lambda m: call(m, inputs))
    prune.remove(model, chosen)
    torch.testing.assert_close(call(model, inputs), expected)
    with pytest.raises(RangeError):
        prune.whole_groups(scores, 1, 3)
