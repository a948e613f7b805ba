"""Lempel–Ziv complexity against the plain scan, entropy bounds against closed forms."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from plexus.errors import RangeError, ShapeError, UnknownNameError
from plexus.probe.information import entropy_rate_bound, lz_complexity


def plain_words(text):
    """lz76 by its definition: a word ends when it does not occur in the text before its last symbol."""
    words, start = [], 0
    while start < len(text):
        end = start + 1
        while end < len(text) and text[start:end] in text[: end - 1]:
            end += 1
        words.append(text[start:end])
        start = end
    return words


def plain_dictionary(text):
    """lz78 by its definition: the shortest piece that is no earlier word."""
    words, piece = [], ""
    for symbol in text:
        piece += symbol
        if piece not in words:
            words.append(piece)
            piece = ""
    return [*words, piece] if piece else words


def count(text, method="lz76"):
    return lz_complexity(np.array([int(c) for c in text]), method, normalise=False).item()


class TestLempelZiv:
    def test_the_published_example_falls_into_its_six_words(self):
        text = "0001101001000101"
        assert plain_words(text) == ["0", "001", "10", "100", "1000", "101"]
        # too short for the measure itself: as the start of a longer text whose other words are known
        longer = text + "1" * 20
        assert plain_words(longer)[:5] == ["0", "001", "10", "100", "1000"]
        assert count(longer) == len(plain_words(longer))

    @settings(max_examples=300, deadline=None)
    @given(
        st.one_of(
            st.text("01", min_size=20, max_size=150),
            st.builds(lambda piece, times: piece * times, st.text("01", min_size=1, max_size=9), st.integers(20, 30)),
        )
    )
    def test_the_automaton_finds_the_words_of_the_plain_scan(self, text):
        assert count(text) == len(plain_words(text))
        assert count(text, "lz78") == len(plain_dictionary(text))

    def test_long_sequences_agree_too(self):
        rng = np.random.default_rng(0)
        for p in (0.02, 0.3, 0.5):
            text = "".join(map(str, (rng.random(2000) < p).astype(int)))
            assert count(text) == len(plain_words(text))

    def test_a_silent_neuron_has_two_words_not_none(self):
        silent = lz_complexity(np.zeros((3, 200)))
        np.testing.assert_allclose(silent, 2 * math.log2(200) / 200)
        np.testing.assert_array_equal(silent, lz_complexity(np.ones((3, 200))))

    @settings(max_examples=50, deadline=None)
    @given(st.text("01", min_size=20, max_size=80))
    def test_names_of_the_symbols_do_not_matter(self, text):
        assert count(text) == count(text.translate(str.maketrans("01", "10")))

    @pytest.mark.parametrize(("steps", "low", "high"), [(1000, 1.02, 1.12), (200, 1.05, 1.20)])
    def test_a_fair_coin_lies_a_little_above_one_bit(self, steps, low, high):
        mean = lz_complexity(np.random.default_rng(1).integers(0, 2, (200, steps))).mean()
        assert low < mean < high

    def test_tends_to_the_entropy_rate_of_a_biased_coin(self):
        coin = np.random.default_rng(2).random(200_000) < 0.1
        entropy = -(0.1 * math.log2(0.1) + 0.9 * math.log2(0.9))
        assert lz_complexity(coin) == pytest.approx(entropy, rel=0.08)
        # lz78 gets there as log log n / log n, from above: never below, nearer and nearer
        nearer = [lz_complexity(coin[:steps], "lz78") for steps in (200, 2_000, 20_000, 200_000)]
        assert nearer == sorted(nearer, reverse=True)
        assert nearer[-1] > entropy

    def test_order_in_time_lowers_it_and_shuffling_restores_it(self):
        rng = np.random.default_rng(3)
        template = rng.random((50, 40)) < 0.15
        repeated = np.tile(template, 5)
        shuffled = rng.permuted(repeated, axis=1)
        assert (lz_complexity(repeated) < 0.6 * lz_complexity(shuffled)).all()

    def test_rows_are_independent_whatever_the_layout_and_type(self):
        spikes = (torch.rand(40, 3, 5, generator=torch.Generator().manual_seed(4)) < 0.3).float()
        found = lz_complexity(spikes.movedim(0, -1))
        assert found.shape == (3, 5)
        assert found.dtype == torch.float64
        for sample in range(3):
            for unit in range(5):
                assert found[sample, unit] == lz_complexity(spikes[:, sample, unit].bool().numpy())

    @pytest.mark.parametrize(
        ("error", "arguments"),
        [
            (RangeError, (np.full(30, 2),)),
            (RangeError, (np.full(30, np.nan),)),
            (RangeError, (torch.full((2, 30), 0.5),)),
            (ShapeError, (np.zeros(19),)),
            (ShapeError, (np.float64(1.0),)),
            (UnknownNameError, (np.zeros(30), "lz77")),
        ],
    )
    def test_each_mistake_has_its_error(self, error, arguments):
        with pytest.raises(error):
            lz_complexity(*arguments)

    def test_no_sequences_give_no_numbers(self):
        assert lz_complexity(np.zeros((0, 30))).shape == (0,)


class TestEntropyRateBound:
    def test_order_zero_is_the_entropy_of_the_rate(self):
        spikes = np.zeros(100)
        spikes[:20] = 1
        assert entropy_rate_bound(spikes) == pytest.approx(-(0.2 * math.log2(0.2) + 0.8 * math.log2(0.8)))
        assert entropy_rate_bound(np.zeros(50)) == entropy_rate_bound(np.ones(50)) == 0

    def test_order_one_is_the_entropy_rate_of_a_markov_chain(self):
        rng = np.random.default_rng(0)
        stay = np.array([0.9, 0.6])
        state, chain = 0, np.empty(60_000)
        for step, u in enumerate(rng.random(len(chain))):
            state = state if u < stay[state] else 1 - state
            chain[step] = state
        occupied = np.array([0.4, 0.1]) / 0.5
        rate = sum(w * -(p * math.log2(p) + (1 - p) * math.log2(1 - p)) for w, p in zip(occupied, stay, strict=True))
        assert entropy_rate_bound(chain, 1) == pytest.approx(rate, abs=0.01)
        assert entropy_rate_bound(chain, 4) == pytest.approx(rate, abs=0.01)
        assert entropy_rate_bound(chain) > rate + 0.05
        # and the complexity, which knows of no order, tends there from above
        assert rate < lz_complexity(chain) < entropy_rate_bound(chain)

    @settings(max_examples=30, deadline=None)
    @given(st.integers(0, 2**20), st.floats(0.05, 0.95))
    def test_knowing_more_of_the_past_never_adds_surprise(self, seed, p):
        spikes = np.random.default_rng(seed).random((2, 300)) < p
        # the same steps for all orders, so that it holds exactly and not only for long sequences
        bounds = [entropy_rate_bound(spikes[:, 4 - order :], order) for order in range(5)]
        for less, more in itertools.pairwise(bounds):
            assert (more <= less + 1e-12).all()

    def test_takes_tensors(self):
        found = entropy_rate_bound(torch.zeros(2, 3, 40), 2)
        assert isinstance(found, torch.Tensor)
        assert found.shape == (2, 3)

    @pytest.mark.parametrize("order", [-1, 5, 40])
    def test_orders_that_the_steps_cannot_feed(self, order):
        with pytest.raises(RangeError):
            entropy_rate_bound(np.zeros(40), order)
