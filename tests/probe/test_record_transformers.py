"""Recording in Hugging Face models: padding, positions under a cache, beams, two streams, shared blocks."""

import pytest
import torch

from plexus import edit, probe
from plexus.errors import RangeError, ShapeError
from plexus.units import Neurons, Site, sites

transformers = pytest.importorskip("transformers")


def gpt2(**options):
    config = transformers.GPT2Config(
        n_embd=16, n_layer=2, n_head=2, vocab_size=50, n_positions=64, bos_token_id=0, eos_token_id=1, pad_token_id=1
    )
    return transformers.GPT2LMHeadModel(config).to(**options).eval()


def llama(**options):
    config = transformers.LlamaConfig(
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        vocab_size=50,
        pad_token_id=1,
        bos_token_id=0,
        eos_token_id=1,
    )
    return transformers.LlamaForCausalLM(config).to(**options).eval()


def t5():
    config = transformers.T5Config(
        d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2, vocab_size=50, decoder_start_token_id=0
    )
    return transformers.T5ForConditionalGeneration(config).eval()


IDS = torch.randint(2, 50, (3, 5), generator=torch.Generator().manual_seed(0))
LENGTHS = torch.tensor([3, 5, 4])
RIGHT = {"input_ids": IDS, "attention_mask": (torch.arange(5) < LENGTHS[:, None]).long()}
LEFT = {"input_ids": IDS, "attention_mask": (torch.arange(5) >= 5 - LENGTHS[:, None]).long()}


@pytest.mark.parametrize("make", [gpt2, llama])
def test_padding_is_dropped_and_rows_equal_those_of_each_sentence_alone(make):
    model = make()
    hidden = sites.mlp(model)
    record = probe.record(model, RIGHT, hidden)
    for site in hidden:
        assert torch.bincount(record.table[site].sample).tolist() == LENGTHS.tolist()
        for sample, n in enumerate(LENGTHS):
            alone = probe.record(model, IDS[sample : sample + 1, :n], site)
            one = record.where(sample=sample)
            torch.testing.assert_close(one[site], alone[site], atol=1e-5, rtol=1e-4)
            assert torch.equal(one.table[site].position, alone.table[site].position)
    last = probe.record(model, RIGHT, hidden, pool="last")
    at_last = probe.record(model, RIGHT, hidden, positions="last")
    for site in hidden:
        assert last.table[site].position.tolist() == (LENGTHS - 1).tolist()
        assert torch.equal(last[site], at_last[site])
    with pytest.raises(ShapeError, match="different numbers of rows"):
        record.dense(hidden[0])


@pytest.mark.parametrize("make", [gpt2, llama])
def test_token_by_token_equals_one_pass_over_the_finished_text(make):
    model = make()
    hidden = sites.mlp(model)
    options = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}
    text = model.generate(IDS, **options)
    stepped = probe.record(model, IDS, hidden, generate=options)
    whole = probe.record(model, text[:, :-1], hidden)  # the last token is drawn and never read
    for site in hidden:
        assert stepped.samples == 3
        assert stepped.table[site].step.unique().tolist() == [0, 1, 2, 3]
        torch.testing.assert_close(stepped.dense(site), whole.dense(site), atol=1e-5, rtol=1e-4)
    prompt = probe.record(model, IDS, hidden, generate=options, positions="prompt")
    generated = probe.record(model, IDS, hidden, generate=options, positions="generated")
    for site in hidden:
        assert prompt.table[site].position.unique().tolist() == [0, 1, 2, 3, 4]
        assert generated.table[site].position.unique().tolist() == [5, 6, 7]
        assert len(prompt[site]) + len(generated[site]) == len(stepped[site])
    pooled = probe.record(model, IDS, hidden, generate=options, pool="mean")
    for site in hidden:
        torch.testing.assert_close(pooled[site], stepped.pool("mean")[site])


def test_generation_with_left_padding_has_the_models_positions():
    model = gpt2()
    site = sites.mlp(model)[0]
    options = {"max_new_tokens": 3, "min_new_tokens": 3, "do_sample": False}
    record = probe.record(model, LEFT, site, generate=options)
    for sample, n in enumerate(LENGTHS.tolist()):
        one = record.where(sample=sample)
        assert one.table[site].position.tolist() == list(range(n + 2))
        alone = probe.record(model, IDS[sample : sample + 1, 5 - n :], site, generate=options)
        torch.testing.assert_close(one[site], alone[site], atol=1e-5, rtol=1e-4)


def test_without_a_cache_every_step_reads_the_text_again():
    model = gpt2()
    site = sites.mlp(model)[0]
    options = {"max_new_tokens": 3, "min_new_tokens": 3, "do_sample": False}
    cached = probe.record(model, IDS, site, generate=options)
    fresh = probe.record(model, IDS, site, generate={**options, "use_cache": False})
    assert len(fresh[site]) == 3 * (5 + 6 + 7)
    torch.testing.assert_close(fresh.where(step=2).dense(site), cached.dense(site), atol=1e-5, rtol=1e-4)


def test_beams_belong_to_their_sample():
    model = gpt2()
    site = sites.mlp(model)[0]
    record = probe.record(
        model, IDS, site, generate={"max_new_tokens": 3, "min_new_tokens": 3, "num_beams": 4}, labels=torch.arange(3)
    )
    assert record.samples == 3
    assert torch.bincount(record.table[site].sample).tolist() == [4 * 7] * 3
    greedy = probe.record(model, IDS, site)
    prompt = record.where(step=0)
    torch.testing.assert_close(prompt.pool("mean")[site], greedy.pool("mean")[site], atol=1e-5, rtol=1e-4)
    with pytest.raises(ShapeError, match="several rows for one position"):
        record.dense(site)
    several = probe.record(
        model,
        IDS,
        site,
        generate={"max_new_tokens": 2, "min_new_tokens": 2, "num_return_sequences": 2, "do_sample": True},
    )
    assert several.samples == 3


@pytest.mark.parametrize("beams", [1, 2])
def test_t5s_encoder_and_decoder_are_two_streams(beams):
    model = t5()
    encoder, *_, decoder = sites.mlp(model)
    options = {"max_new_tokens": 3, "min_new_tokens": 3, "num_beams": beams, "do_sample": False}
    record = probe.record(model, RIGHT, [encoder, decoder], generate=options)
    assert record.samples == 3
    assert torch.bincount(record.table[encoder].sample).tolist() == LENGTHS.tolist()
    assert torch.bincount(record.table[decoder].sample).tolist() == [3 * beams] * 3
    assert record.table[decoder].position.unique().tolist() == [0, 1, 2]
    assert record.table[decoder].step.unique().tolist() == [0, 1, 2]
    forced = probe.record(model, {**RIGHT, "decoder_input_ids": IDS[:, :2]}, [encoder, decoder])
    torch.testing.assert_close(forced[encoder], record[encoder])
    assert torch.bincount(forced.table[decoder].sample).tolist() == [2, 2, 2]


def test_albert_calls_one_block_many_times():
    config = transformers.AlbertConfig(
        vocab_size=50,
        embedding_size=8,
        hidden_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=32,
    )
    model = transformers.AlbertModel(config).eval()
    site = Site("encoder.albert_layer_groups.0.albert_layers.0.ffn_output", "b t u", at="input")
    record = probe.record(model, RIGHT, site)
    assert record.table[site].call.unique().tolist() == [0, 1, 2]
    assert len(record[site]) == 3 * int(LENGTHS.sum())


def test_heads_hold_features():
    model = gpt2()
    heads = sites.heads(model)
    record = probe.record(model, RIGHT, heads)
    assert record[heads[0]].shape == (12, 2, 8)
    hidden = probe.scores.mean(record, features="norm")
    assert hidden.sizes[heads[0]] == 2


def test_gradients_in_a_language_model():
    model = gpt2()
    hidden = sites.mlp(model)
    record = probe.record(model, RIGHT, hidden, grad=lambda output, batch: output.logits[:, 1, 7].sum())
    table = record.table[hidden[0]]
    assert (record[hidden[0]][table.position > 1] == 0).all()  # causal: later tokens cannot matter
    assert (record[hidden[0]][table.position == 1] != 0).any()
    # the direct path of the last block: through its down-projection, the final norm and the unembedding
    assert (record[hidden[-1]][record.table[hidden[-1]].position == 0] == 0).all()
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("make", [gpt2, llama])
def test_bfloat16(make):
    model = make(dtype=torch.bfloat16)
    hidden = sites.mlp(model)
    record = probe.record(model, RIGHT, hidden)
    assert record[hidden[0]].dtype == torch.bfloat16
    assert record.pool("mean")[hidden[0]].dtype == torch.float32
    slopes = probe.record(model, RIGHT, hidden, grad=lambda output, batch: output.logits[:, 1, 7].float().sum())
    assert probe.scores.gradient_times_activation(record, slopes)[hidden[0]].isfinite().all()


def test_a_tokenizers_output_is_one_batch():
    batch = transformers.BatchEncoding(dict(RIGHT))
    site = sites.mlp(model := gpt2())[0]
    assert probe.record(model, batch, site).samples == 3
    assert probe.record(model, [batch, batch], site, labels=torch.arange(6)).samples == 6


def test_a_tuple_is_refused_where_it_could_mean_anything():
    model = gpt2()
    with pytest.raises(ShapeError, match="does not say which"):
        probe.record(model, [(RIGHT["input_ids"], RIGHT["attention_mask"])], sites.mlp(model))


def test_recorders_see_edits_whatever_the_nesting():
    model = gpt2()
    hidden = sites.mlp(model)
    chosen = Neurons.of({hidden[0]: 64}, {hidden[0]: [3, 5]})
    plain = probe.record(model, RIGHT, hidden)
    with edit.scale(model, chosen, 0.0):
        edited = probe.record(model, RIGHT, hidden)
    assert (edited[hidden[0]][:, [3, 5]] == 0).all()
    assert not torch.equal(edited[hidden[1]], plain[hidden[1]])
    again = probe.record(model, RIGHT, hidden)
    assert all(torch.equal(again[site], plain[site]) for site in hidden)


COMMON = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "vocab_size": 50,
    "pad_token_id": 1,
    "bos_token_id": 0,
    "eos_token_id": 2,
}


@pytest.mark.parametrize("family", ["Phi3ForCausalLM", "GPTNeoXForCausalLM", "LlamaForCausalLM", "BertForMaskedLM"])
@pytest.mark.parametrize("find", [sites.mlp, sites.heads, sites.residual])
def test_families(family, find):
    kind = getattr(transformers, family)
    model = kind(kind.config_class(**COMMON)).eval()
    places = find(model)
    record = probe.record(model, RIGHT, places)
    slopes = probe.record(model, RIGHT, places, grad=lambda output, batch: output.logits[:, 0].square().sum())
    for site in places:
        assert torch.bincount(record.table[site].sample).tolist() == LENGTHS.tolist()
        assert (slopes[site][slopes.table[site].position == 0] != 0).any()
    assert probe.scores.gradient_times_activation(record, slopes).sizes == record.sizes


def test_a_vision_transformer():
    config = transformers.ViTConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        image_size=8,
        patch_size=4,
    )
    model = transformers.ViTModel(config).eval()
    hidden = sites.mlp(model)
    record = probe.record(model, {"pixel_values": torch.randn(3, 3, 8, 8)}, hidden)
    assert record.dense(hidden[0]).shape == (3, 5, 24)  # four patches and the class token


def test_a_broken_weight_is_named():
    model = gpt2()
    with torch.no_grad():
        model.transformer.h[1].mlp.c_fc.weight[0, 3] = float("nan")
    with pytest.raises(RangeError, match=r"NaN at transformer\.h\.1"):
        probe.record(model, RIGHT, sites.mlp(model))
