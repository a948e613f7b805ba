"""The state kept for a token is the one from which the model predicts it, whatever the batch looks like."""

import runpy
from pathlib import Path

import pytest
import torch
from torch import nn

from plexus import probe
from plexus.errors import RangeError, UnsupportedError
from plexus.units import Site

tiny = runpy.run_path(str(Path(__file__).parents[1] / "families.py"))["tiny"]
IDS = torch.tensor([[0, 0, 5, 6, 7], [9, 8, 7, 6, 5]])
MASK = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])


@pytest.mark.parametrize("family", ["llama", "gpt2", "neox"])
def test_the_states_are_those_of_one_full_pass(family: str) -> None:
    model, _ = tiny(family)
    free = {"eos_token_id": None}
    steps = probe.step_states(model, {"input_ids": IDS, "attention_mask": MASK}, 5, options=free)
    assert steps.states.shape[:2] == (2, 5)
    assert bool(steps.live.all())
    assert bool(steps.sure.all())  # greedy
    for row in range(2):
        prompt = IDS[row][MASK[row].bool()]
        whole = torch.cat([prompt, steps.tokens[row]])[None]
        with torch.no_grad():
            states = model(input_ids=whole, output_hidden_states=True).hidden_states[-1][0]  # after the final norm
            logits = model(input_ids=whole).logits[0]
        expected = states[len(prompt) - 1 : -1]
        torch.testing.assert_close(steps.states[row], expected, atol=1e-4, rtol=1e-4)
        assert torch.equal(logits[len(prompt) - 1 : -1].argmax(1), steps.tokens[row])


def test_samples_end_and_batches_of_unequal_length_line_up() -> None:
    model, _ = tiny("neox")
    free = probe.step_states(model, IDS, 6, options={"eos_token_id": None})
    end = int(free.tokens[1, 1])
    assert end not in free.tokens[1, :1]
    steps = probe.step_states(model, [IDS[:1], IDS[1:]], 6, options={"eos_token_id": end, "pad_token_id": 0})
    assert steps.live[1].tolist() == [True, True, False, False, False, False]
    assert torch.equal(steps.tokens[1, :2], free.tokens[1, :2])
    torch.testing.assert_close(steps.states[0][steps.live[0]], free.states[0][steps.live[0]], atol=1e-4, rtol=1e-4)


def test_sampling_repeats_with_its_generator_and_leaves_the_global_one() -> None:
    model, _ = tiny("llama")
    before = torch.get_rng_state()

    def sample(seed: int) -> probe.StepStates:
        generator = torch.Generator().manual_seed(seed)
        return probe.step_states(model, IDS, 8, generator=generator, options={"do_sample": True, "top_k": 0})

    assert torch.equal(sample(1).tokens, sample(1).tokens)
    assert not torch.equal(sample(1).tokens, sample(2).tokens)
    assert not bool(sample(1).sure.all())
    assert torch.equal(torch.get_rng_state(), before)


def test_another_site_of_the_same_steps() -> None:
    model, _ = tiny("llama")
    steps = probe.step_states(model, IDS, 3, at=Site("model.norm", "b t u"))
    torch.testing.assert_close(steps.states, probe.step_states(model, IDS, 3).states)


def test_refusals() -> None:
    model, _ = tiny("llama")
    with pytest.raises(UnsupportedError, match="beams"):
        probe.step_states(model, IDS, 3, options={"num_beams": 2})
    with pytest.raises(RangeError, match="generator"):
        probe.step_states(model, IDS, 3, options={"do_sample": True})
    with pytest.raises(RangeError, match="count"):
        probe.step_states(model, IDS, 0)
    with pytest.raises(UnsupportedError, match="generate"):
        probe.step_states(nn.Linear(3, 3), torch.zeros(1, 3))
