"""The language model of astrocytes: generation, saving, padding, documents, counts; and the memory probe."""

import subprocess
import sys

import pytest
import torch

from plexus import probe
from plexus.errors import DtypeError, RangeError, ShapeError, UnsupportedError
from plexus.nn import LIF, AstrocyteUnit
from plexus.nn.models import AstroSNN


def model_of(**options):
    torch.manual_seed(0)
    config = pytest.importorskip("plexus.nn.models").AstroSNNConfig(
        **{
            "vocab_size": 30,
            "hidden_size": 12,
            "num_hidden_layers": 2,
            "rank": 4,
            "bos_token_id": 0,
            "eos_token_id": 29,
        }
        | options
    )
    return pytest.importorskip("plexus.nn.models").AstroSNNForCausalLM(config).eval()


def tokens(batch=2, steps=9, seed=0):
    return torch.randint(1, 28, (batch, steps), generator=torch.Generator().manual_seed(seed))


GREEDY = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}


def test_generating_with_the_state_is_generating_without():
    model, ids = model_of(), tokens()
    expected = ids
    for _ in range(12):  # the whole text again for each token
        expected = torch.cat([expected, model(expected).logits[:, -1:].argmax(-1)], 1)
    assert torch.equal(model.generate(ids, **GREEDY), expected)
    assert torch.equal(model.generate(ids, use_cache=False, **GREEDY), expected)


def test_the_state_does_not_grow_with_the_text():
    model = model_of()
    short, long = (model(tokens(1, steps)).past_key_values for steps in (5, 60))
    assert short.nbytes() == long.nbytes() == 2 * 3 * 12 * 4
    assert long.get_seq_length() == 60


def test_generation_goes_on_from_a_state():
    model, ids = model_of(), tokens()
    whole = model.generate(ids, **GREEDY)
    cache = model(ids[:, :5]).past_key_values
    assert torch.equal(model.generate(ids, past_key_values=cache, **GREEDY), whole)


def test_beams_carry_their_own_states():
    model, ids = model_of(), tokens(1)
    with_state, without = (model.generate(ids, num_beams=3, use_cache=use, **GREEDY) for use in (True, False))
    assert torch.equal(with_state, without)


@pytest.mark.parametrize("options", [{}, {"use_post": False, "rank": None}, {"tie_word_embeddings": False}])
def test_a_saved_model_gives_the_same_logits(tmp_path, options):
    model, ids = model_of(**options), tokens()
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path).eval()
    assert torch.equal(again(ids).logits, model(ids).logits)
    assert again.config.tau_range == model.config.tau_range
    tied = again.lm_head.weight.data_ptr() == again.model.embed.weight.data_ptr()
    assert tied == model.config.tie_word_embeddings


def test_left_padding_changes_nothing():
    model, ids = model_of(), tokens(1)
    padded = torch.cat([torch.full((1, 4), 7), ids], 1)
    mask = torch.cat([torch.zeros(1, 4, dtype=torch.long), torch.ones_like(ids)], 1)
    torch.testing.assert_close(model(padded, attention_mask=mask).logits[:, 4:], model(ids).logits)
    out = model.generate(padded, attention_mask=mask, **GREEDY)
    assert torch.equal(out[:, 4:], model.generate(ids, **GREEDY))


def test_a_document_knows_nothing_of_the_one_before():
    model = model_of()
    first, second = tokens(2, 6, 1), tokens(2, 5, 2)
    starts = torch.zeros(2, 11, dtype=torch.bool)
    starts[0, 6] = True
    logits = model(torch.cat([first, second], 1), document_starts=starts).logits
    torch.testing.assert_close(logits[0, 6:], model(second[:1]).logits[0])
    assert not torch.allclose(logits[1, 6:], model(second[1:]).logits[0], atol=1e-3)  # leaks where none is begun


def test_the_loss_is_the_cross_entropy_of_next_tokens():
    model, ids = model_of(), tokens()
    out = model(ids, labels=ids)
    expected = torch.nn.functional.cross_entropy(out.logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    torch.testing.assert_close(out.loss, expected)
    assert model(ids, logits_to_keep=1).logits.shape == (2, 1, 30)
    assert torch.equal(model(inputs_embeds=model.get_input_embeddings()(ids)).logits, out.logits)
    assert isinstance(model(ids, return_dict=False), tuple)


def test_importing_the_library_does_not_import_transformers():
    code = "import sys, plexus as px; px.nn.models.AstroSNN; assert 'transformers' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_stack_in_two_is_the_stack_whole_and_begins_from_rest():
    model = AstroSNN(17, width=8, unit=AstrocyteUnit, generator=torch.Generator().manual_seed(0))
    symbols = torch.randint(17, (9, 2), generator=torch.Generator().manual_seed(1))
    whole, _ = model(symbols)
    first, state = model(symbols[:4])
    second, _ = model(symbols[4:], state)
    torch.testing.assert_close(torch.cat([first, second]), whole)
    reset = torch.zeros(9, 2, dtype=torch.bool)
    reset[4] = True
    torch.testing.assert_close(model(symbols, reset=reset)[0][4:], model(symbols[4:])[0])


def test_additions_count_the_matrices_behind_spikes():
    model = AstroSNN(17, width=8, layers=2, mix=8, unit=lambda units: AstrocyteUnit(units, gain=False))
    # per layer: W, H and up see numbers, out and down see spikes, all 8 x 8; the read-out is 17 x 8
    assert model.additions() == pytest.approx(2 * 2 * 64 / (2 * 5 * 64 + 17 * 8))


def test_bad_input_is_refused():
    model = AstroSNN(17, width=8, layers=1, unit=AstrocyteUnit)
    with pytest.raises(DtypeError, match="whole numbers"):
        model(torch.rand(3, 2))
    with pytest.raises(ShapeError, match="at least one step"):
        model(torch.zeros(0, 2, dtype=torch.long))
    with pytest.raises(ShapeError, match="reset"):
        model(torch.zeros(3, 2, dtype=torch.long), reset=torch.zeros(2, 3, dtype=torch.bool))
    with pytest.raises(RangeError, match="sizes"):
        AstroSNN(17, layers=0)
    with pytest.raises(ShapeError, match="neither"):
        model_of()()


class Delay(torch.nn.Module):
    """Remembers the last three symbols and nothing else."""

    def initial_state(self, batch, *, dtype=None):
        return torch.zeros(batch, 12)

    def forward(self, symbols, state=None):
        state = self.initial_state(symbols.shape[1]) if state is None else state
        for now in symbols:
            state = torch.cat([torch.nn.functional.one_hot(now, 4).float(), state[:, :8]], 1)
        return symbols, state


def test_the_memory_probe_finds_just_what_is_remembered():
    symbols = torch.randint(4, (40, 30), generator=torch.Generator().manual_seed(0))
    found = probe.memory_probe(Delay(), symbols, (0, 2, 3, 9))
    assert found.r2[:2].min() > 0.999
    assert found.r2[2:].max() < 0.02
    assert found.accuracy[:2].min() == 1.0
    assert (found.accuracy[2:] - found.chance).abs().max() < 0.1


def test_the_memory_probe_refuses_what_it_cannot_measure():
    symbols = torch.zeros(5, 10, dtype=torch.long)
    with pytest.raises(RangeError, match="lags"):
        probe.memory_probe(Delay(), symbols, (5,))
    with pytest.raises(ShapeError, match="five sequences"):
        probe.memory_probe(Delay(), symbols[:, :4])
    with pytest.raises(ShapeError, match="line up"):
        probe.memory_probe(LIF(1), symbols, inputs=torch.zeros(5, 9, 1))

    class Nothing(torch.nn.Module):
        def forward(self, x, state=None):
            return x, None

    with pytest.raises(UnsupportedError, match="no state"):
        probe.memory_probe(Nothing(), symbols, (0,))
