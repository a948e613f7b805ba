"""Rows that a mixture of experts sends to its experts: whose they are, recorded and edited."""

import contextlib
import warnings

import pytest
import torch
from torch import nn

from plexus import edit, probe
from plexus.errors import ShapeError, SiteError, UnsupportedError
from plexus.probe._collect import layout
from plexus.units import Neurons, Pass, Site, Visit, sites
from plexus.units._routing import Routed


class Expert(nn.Module):
    def __init__(self, width, hidden):
        super().__init__()
        self.w1, self.w2 = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x):
        return self.w2(torch.relu(self.w1(x)))


class Mixture(nn.Module):
    """Top-2 of four experts, in the order (slot, token) that transformers' own mixtures have used."""

    def __init__(self, width=6, hidden=5, experts=4, top=2, skip=True):
        super().__init__()
        self.gate, self.top, self.skip = nn.Linear(width, experts, bias=False), top, skip
        self.experts = nn.ModuleList(Expert(width, hidden) for _ in range(experts))

    def forward(self, x):
        flat = x.reshape(-1, x.shape[-1])
        weights, chosen = self.gate(flat).softmax(-1).topk(self.top, -1)
        out = torch.zeros_like(flat)
        for number, expert in enumerate(self.experts):
            slot, token = torch.where((chosen == number).T)
            if self.skip and not len(token):
                continue
            out.index_add_(0, token, expert(flat[token]) * weights[token, slot, None])
        return out.reshape(x.shape)


class Net(nn.Module):
    def __init__(self, **options):
        super().__init__()
        self.embed, self.moe, self.head = nn.Embedding(9, 6), Mixture(**options), nn.Linear(6, 9)

    def forward(self, input_ids, attention_mask=None):
        x = self.embed(input_ids)
        return self.head(x + self.moe(x))


def net(**options):
    torch.manual_seed(0)
    return Net(**options).eval()


IDS = torch.tensor([[1, 2, 3, 1, 7], [4, 1, 1, 5, 6], [8, 2, 0, 1, 4]])
MASK = torch.tensor([[1, 1, 1, 1, 1], [0, 0, 1, 1, 1], [1, 1, 1, 1, 0]])


def by_hand(model, ids):
    """Hidden units of every expert for every token, and which experts each token goes to."""
    x = model.embed(ids)
    hidden = [torch.relu(expert.w1(x)) for expert in model.moe.experts]
    return hidden, model.moe.gate(x).topk(model.moe.top, -1).indices


@pytest.mark.parametrize("masked", [False, True])
def test_rows_are_those_of_the_tokens_that_the_expert_got(masked):
    model = net()
    inputs = {"input_ids": IDS} | ({"attention_mask": MASK} if masked else {})
    hidden, chosen = by_hand(model, IDS)
    found = sites.mlp(model)
    assert [site.path for site in found] == [f"moe.experts.{i}.w2" for i in range(4)]
    record = probe.record(model, inputs, found)
    total = 0
    for number, site in enumerate(found):
        rows = record.table[site]
        for value, sample, position in zip(record[site], rows.sample, rows.position, strict=True):
            torch.testing.assert_close(value, hidden[number][sample, position])
        expected = (chosen == number).any(-1) & (MASK.bool() if masked else True)
        assert {*zip(rows.sample.tolist(), rows.position.tolist(), strict=True)} == {
            (int(s), int(p)) for s, p in expected.nonzero()
        }
        total += len(rows)
    assert record.samples == 3
    assert total == 2 * (int(MASK.sum()) if masked else IDS.numel())


def test_labels_reach_routed_rows_and_pooling_is_by_sample():
    model = net()
    site = sites.mlp(model)[0]
    record = probe.record(model, {"input_ids": IDS}, site, labels=torch.tensor([0, 1, 1]))
    rows = record.table[site]
    for label in (0, 1):
        expected = record[site][torch.isin(rows.sample, torch.tensor([[0], [1, 2]][label]))].double().mean(0)
        found = probe.scores.mean(record, torch.tensor([0, 1, 1]), names=("no", "yes"))[("no", "yes")[label]][site]
        torch.testing.assert_close(found, expected)
    last = probe.record(model, {"input_ids": IDS, "attention_mask": MASK}, site, positions="last").table[site]
    chosen = by_hand(model, IDS)[1]
    finals = [(0, 4), (1, 4), (2, 3)]
    assert [*zip(last.sample.tolist(), last.position.tolist(), strict=True)] == [
        place for place in finals if 0 in chosen[place]
    ]


def test_equal_tokens_are_told_apart():
    model = net()
    ids = torch.full((2, 3), 4)
    with pytest.warns(UserWarning, match="no token was sent"):
        record = probe.record(model, {"input_ids": ids}, sites.mlp(model))
    for site in record.sites:
        rows = record.table[site]
        assert [*zip(rows.sample.tolist(), rows.position.tolist(), strict=True)] == [
            (s, p) for s in range(2) for p in range(3)
        ]


@pytest.mark.parametrize("skip", [True, False])
def test_an_expert_without_a_token_is_no_error(skip):
    model = net(skip=skip)
    with torch.no_grad():
        model.moe.gate.weight[3] = 0
        model.moe.gate.weight[:3] = torch.eye(6)[:3] * 50
        model.embed.weight[:, :3] = torch.tensor([2.0, 1.5, -9.0])
    found = sites.mlp(model)
    with pytest.warns(UserWarning, match="no token was sent") if skip else contextlib.nullcontext():
        record = probe.record(model, {"input_ids": IDS}, found)
    assert [site in record.values and len(record[site]) > 0 for site in found] == [True, True, False, False]
    with edit.scale(model, Neurons.of({found[3]: 5}, {found[3]: [0]}), 0.0):
        model(IDS)


def test_edits_reach_chosen_positions_and_patches_the_named_rows():
    model = net()
    found = sites.mlp(model)
    every = Neurons.of(dict.fromkeys(found, 5), {site: range(5) for site in found})
    hidden, chosen = by_hand(model, IDS)
    with edit.replace(model, every, 0.0, positions="last"):
        out = model(input_ids=IDS, attention_mask=MASK)
    plain = model(input_ids=IDS)
    same = (out == plain).all(-1)
    expected = torch.ones(3, 5, dtype=torch.bool)
    for sample, position in ((0, 4), (1, 4), (2, 3)):
        expected[sample, position] = False
    assert torch.equal(same, expected)
    # a row of one token goes to another token of the same expert
    number = int(chosen[0, 0, 0])
    site = found[number]
    targets = ((chosen == number).any(-1) & (torch.arange(5) > 0)).nonzero().tolist()
    sample, position = targets[-1]
    record = probe.record(model, {"input_ids": IDS}, site)
    chosen_units = Neurons.of({site: 5}, {site: range(5)})
    with edit.patch(model, chosen_units, record, rows={(sample, position): (0, 0)}):
        seen = probe.record(model, {"input_ids": IDS}, site)
    rows = seen.table[site]
    moved = (rows.sample == sample) & (rows.position == position)
    torch.testing.assert_close(seen[site][moved][0], hidden[number][0, 0])
    torch.testing.assert_close(seen[site][~moved], record[site][~moved])


def test_an_edit_before_the_block_is_seen_by_the_routing():
    model = net()
    stream = Site("moe", "b t u", at="input")
    found = sites.mlp(model)
    with edit.add(model, Neurons.of({stream: 6}, {stream: [0, 3]}), 1.5):
        record = probe.record(model, {"input_ids": IDS}, found)
    x = model.embed(IDS) + 1.5 * torch.tensor([1.0, 0, 0, 1, 0, 0])
    for number, site in enumerate(found):
        rows = record.table[site]
        expected = torch.relu(model.moe.experts[number].w1(x))[rows.sample, rows.position]
        torch.testing.assert_close(record[site], expected)


def test_gradients_at_routed_rows():
    model = net()
    site = sites.mlp(model)[1]
    slope = probe.record(model, {"input_ids": IDS}, site, grad=lambda output, batch: output[0].sum())
    value = probe.record(model, {"input_ids": IDS}, site)
    assert slope.table[site] == value.table[site]
    assert bool((slope[site][slope.table[site].sample != 0] == 0).all())
    assert bool((slope[site][slope.table[site].sample == 0] != 0).any())


def test_rows_that_are_no_copies_are_refused():
    model = net()
    model.moe.forward = lambda x: model.moe.experts[0](2 * x.reshape(-1, 6)).reshape(x.shape)  # type: ignore[method-assign]
    with pytest.raises(UnsupportedError, match="not among the tokens"):
        probe.record(model, {"input_ids": IDS}, sites.mlp(model)[0])
    model.moe.forward = lambda x: model.moe.experts[0](x)  # type: ignore[method-assign]  # every token, unrouted
    with pytest.raises((ShapeError, SiteError)):
        probe.record(model, {"input_ids": IDS}, sites.mlp(model)[0])
    record = probe.record(model, {"input_ids": IDS}, sites(model, "moe.experts.0.w2", at="input", axes="b t u"))
    assert record.samples == 3


@pytest.mark.parametrize("family", ["switch", "nllb"])
def test_mixtures_of_transformers_whose_experts_are_modules(family):
    tf = pytest.importorskip("transformers")
    torch.manual_seed(0)
    if family == "switch":
        config = tf.SwitchTransformersConfig(
            vocab_size=30, d_model=16, d_kv=4, d_ff=24, num_layers=2, num_heads=4, num_decoder_layers=2, num_experts=3,
            num_sparse_encoder_layers=1, num_sparse_decoder_layers=1, decoder_start_token_id=0, expert_capacity=64,
        )  # fmt: skip
        model = tf.SwitchTransformersForConditionalGeneration(config).eval()
    else:
        config = tf.NllbMoeConfig(
            vocab_size=30, d_model=16, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4,
            decoder_attention_heads=4, encoder_ffn_dim=24, decoder_ffn_dim=24, num_experts=3, encoder_sparse_step=1,
            decoder_sparse_step=1, expert_capacity=64, pad_token_id=1, decoder_start_token_id=2,
        )  # fmt: skip
        model = tf.NllbMoeForConditionalGeneration(config).eval()
    found = sites(model, "*.experts.*.wi" if family == "switch" else "*.experts.*.fc1")
    encoder = [site for site in found if "encoder" in site.path and "decoder" not in site.path]
    assert encoder
    assert all(site.axes == "r u" for site in encoder)
    ids = torch.randint(3, 30, (2, 5), generator=torch.Generator().manual_seed(1))
    inputs = {"input_ids": ids, "decoder_input_ids": ids[:, :3]}
    record = probe.record(model, inputs, encoder)
    for site in record.sites:
        for sample in range(2):
            one = {key: value[sample : sample + 1] for key, value in inputs.items()}
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                alone = probe.record(model, one, encoder)
            mine = record.where(sample=sample)
            if site in alone.values:
                torch.testing.assert_close(mine[site], alone[site], atol=1e-5, rtol=1e-4)
                assert torch.equal(mine.table[site].position, alone.table[site].position)
    assert sum(len(record[site]) for site in record.sites if "block.1" in site.path or "layers.0" in site.path) > 0


@pytest.mark.parametrize("family", ["mixtral", "qwen2_moe"])
def test_fused_experts_are_refused_with_the_reason(family):
    tf = pytest.importorskip("transformers")
    common = {"hidden_size": 16, "intermediate_size": 12, "num_hidden_layers": 1, "num_attention_heads": 4,
              "num_key_value_heads": 4, "vocab_size": 30}  # fmt: skip
    torch.manual_seed(0)
    if family == "mixtral":
        model = tf.MixtralForCausalLM(tf.MixtralConfig(**common, num_local_experts=4)).eval()
        with pytest.raises(UnsupportedError, match="all experts in one tensor"):
            sites.mlp(model)
    else:
        config = tf.Qwen2MoeConfig(
            **common, num_experts=4, moe_intermediate_size=8, shared_expert_intermediate_size=8, num_experts_per_tok=2
        )
        model = tf.Qwen2MoeForCausalLM(config).eval()
        with pytest.warns(UserWarning, match="routed experts are not among"):
            assert [site.path for site in sites.mlp(model)] == ["model.layers.0.mlp.shared_expert.down_proj"]
    inside = Site("model.layers.0.mlp.experts.act_fn", "b u")
    ids = torch.randint(3, 30, (2, 5))
    with pytest.raises(UnsupportedError, match="all experts in one tensor"):
        probe.record(model, ids, inside)
    # the mixture as a whole has every token in order
    whole = sites(model, "model.layers.0.mlp.experts")
    block = sites(model, "model.layers.0.mlp", axes="b t u") if family == "mixtral" else None
    record = probe.record(model, {"input_ids": ids}, [*whole, *(block or [])])
    assert record.table[whole[0]].position.tolist() == list(range(5)) * 2
    if block:
        assert torch.equal(record[whole[0]], record[block[0]])


def test_routed_rows_stand_alone():
    routed = Routed(torch.tensor([0]), 1, 1)
    with pytest.raises(SiteError, match="stand alone"):
        layout((1, 2), Visit(Site("w1", "r x u"), ("r", "x"), 0, Pass(0), routed=routed), "all")


@pytest.fixture(params=["shared expert", "opt"])
def flattening(request):
    """Language models that call a part of them with all tokens of a batch in one dimension."""
    tf = pytest.importorskip("transformers")
    torch.manual_seed(0)
    if request.param == "opt":
        config = tf.OPTConfig(
            hidden_size=16, ffn_dim=24, num_hidden_layers=1, num_attention_heads=2, vocab_size=30,
            word_embed_proj_dim=16, max_position_embeddings=32, dropout=0.0,
        )  # fmt: skip
        return tf.OPTForCausalLM(config).eval()
    config = tf.Qwen2MoeConfig(
        hidden_size=16, intermediate_size=12, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=4,
        vocab_size=30, num_experts=4, moe_intermediate_size=8, shared_expert_intermediate_size=8, num_experts_per_tok=2,
    )  # fmt: skip
    return tf.Qwen2MoeForCausalLM(config).eval()


@pytest.mark.filterwarnings("ignore:routed experts")
@pytest.mark.parametrize("batch", [1, 3])
def test_tokens_in_one_dimension_are_told_apart(flattening, batch):
    (site,) = sites.mlp(flattening)
    ids = torch.randint(3, 30, (batch, 5), generator=torch.Generator().manual_seed(1))
    real = torch.ones(batch, 5, dtype=torch.long)
    real[0, :2] = 0
    given = {"input_ids": ids, "attention_mask": real}
    record = probe.record(flattening, given, site)
    assert record.samples == batch
    assert record.table[site].sample.tolist() == [s for s in range(batch) for t in range(5) if real[s, t]]
    last = probe.record(flattening, given, site, pool="last", labels=torch.arange(batch))
    rows = record.table[site]
    ends = [int((rows.sample == sample).nonzero()[-1]) for sample in range(batch)]
    assert torch.equal(last[site], record[site][ends])
    stream = sites.residual(flattening)[0]
    both = probe.record(flattening, given, [site, stream])
    assert both.table[site].position.tolist() == both.table[stream].position.tolist()


@pytest.mark.filterwarnings("ignore:routed experts")
def test_edits_of_the_last_token_reach_it_where_tokens_lie_in_one_dimension(flattening):
    (site,) = sites.mlp(flattening)
    ids = torch.randint(3, 30, (2, 5), generator=torch.Generator().manual_seed(1))
    silent = Neurons.of({site: probe.record(flattening, ids, site)[site].shape[1]}, {site: [0, 1]})
    record = None
    with edit.replace(flattening, silent, 7.0, positions="last"):
        record = probe.record(flattening, {"input_ids": ids}, site)
    at = record.table[site].position
    assert (record[site][at == 4][:, :2] == 7).all()
    assert (record[site][at < 4][:, :2] != 7).all()
    made = flattening.generate(ids, max_new_tokens=3, min_new_tokens=3, do_sample=False)
    grown = probe.record(flattening, {"input_ids": ids}, site, generate={"max_new_tokens": 3, "min_new_tokens": 3,
                                                                         "do_sample": False})  # fmt: skip
    assert made.shape == (2, 8)
    assert sorted(set(grown.table[site].position.tolist())) == list(range(7))
