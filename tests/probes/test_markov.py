"""Rows of Markov chains, and what is best said of their next state."""

import math
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest

from pytest_induction.errors import ArgumentError, ProbeError
from pytest_induction.probes.markov import MarkovChains, markov_rows
from pytest_induction.records import TokenSpace

SPACE = TokenSpace(d_vocab=40, bos_id=0, excluded=frozenset({2}))


def drawn(chains=None, space=SPACE, n_sequences=5, seed=0):
    chains = MarkovChains(4, alpha=0.5) if chains is None else chains
    return markov_rows(space, chains, rng=np.random.default_rng(seed), n_sequences=n_sequences)


def slow_predictors(rows):
    """Both predictors at each query, by their definitions, counted anew at each."""
    unigrams, bigrams = [], []
    for states in rows.states.tolist():
        for end in range(len(states) // 2 + 1, len(states) + 1):
            row, k, alpha = states[:end], len(rows.ids), rows.alpha
            seen, pairs, before = Counter(row), Counter(pairwise(row)), Counter(row[:-1])
            unigrams.append([(seen[b] + alpha) / (len(row) + k * alpha) for b in range(k)])
            bigrams.append([(pairs[row[-1], b] + alpha) / (before[row[-1]] + k * alpha) for b in range(k)])
    return np.array(unigrams), np.array(bigrams)


class TestPredictors:
    @pytest.mark.parametrize("chains", [MarkovChains(2), MarkovChains(5, alpha=0.3, n_positions=41), MarkovChains((7, 30, 5))])
    def test_they_are_those_of_a_slow_reference(self, chains):
        rows = drawn(chains)
        for found, expected in zip((rows.unigram(), rows.bigram()), slow_predictors(rows), strict=True):
            np.testing.assert_allclose(found.reshape(expected.shape), expected, atol=1e-12)
            np.testing.assert_allclose(found.sum(-1), 1, atol=1e-12)

    def test_each_query_predicts_from_its_own_position_on(self):
        rows = drawn()
        assert rows.tokens[:, rows.queries].shape == rows.unigram().shape[:2] == (5, 48)
        np.testing.assert_array_equal(rows.tokens[:, rows.queries], rows.ids[rows.states[:, 48:]])

    def test_nothing_betters_the_bigram_on_its_rows(self):
        """Of the state that came next: the posterior mean is likelier than with another prior, and than the unigram."""
        rows = drawn(MarkovChains(6, alpha=0.3), n_sequences=400)
        came = rows.states[:, 49:, None]

        def loss(predicted):
            return -np.log(np.take_along_axis(predicted[:, :-1], came, axis=2)).mean()

        best = loss(rows.bigram())
        for wrong in (0.1, 0.9):
            object.__setattr__(rows, "alpha", wrong)
            assert loss(rows.bigram()) > best + 0.01
        assert best + 0.3 < loss(rows.unigram()) < math.log(6)


class TestRows:
    def test_a_chain_follows_shares_of_its_prior(self):
        """Of a Dirichlet distribution the variance of a share is (1/k)(1 - 1/k) / (k alpha + 1)."""
        for alpha in (0.3, 3.0):
            rows = drawn(MarkovChains(3, alpha=alpha, n_positions=400), n_sequences=150)
            shares = rows.bigram()[:, -1]
            assert shares.var() == pytest.approx(2 / 9 / (3 * alpha + 1), rel=0.2)
            assert shares.mean(axis=0) == pytest.approx(np.full(3, 1 / 3), abs=0.1)

    def test_the_lowest_usable_ids_are_the_states_or_those_that_are_named(self):
        assert drawn().ids.tolist() == [1, 3, 4, 5]
        rows = drawn(MarkovChains((30, 7)))
        assert set(rows.tokens[:, 1:].ravel()) == {7, 30} and (rows.tokens[:, 0] == 0).all() and rows.start == 1

    def test_a_short_context_has_shorter_rows_and_no_first_token_none(self):
        assert drawn(space=TokenSpace(d_vocab=9, bos_id=0, n_ctx=33)).tokens.shape == (5, 33)
        rows = drawn(space=TokenSpace(d_vocab=9, bos_id=None, n_ctx=200))
        assert rows.tokens.shape == (5, 96) and rows.start == 0 and rows.ids.tolist() == [0, 1, 2, 3]

    def test_they_are_the_same_for_the_same_seed_alone(self):
        np.testing.assert_array_equal(drawn(seed=3).tokens, drawn(seed=3).tokens)
        assert not np.array_equal(drawn(seed=3).tokens, drawn(seed=4).tokens)


class TestRefused:
    @pytest.mark.parametrize(
        ("given", "why"),
        [
            ({"states": 1}, "`states` must be a whole number from 2 up, got 1"),
            ({"states": "many"}, "`states` must be a whole number from 2 up, got 'many'"),
            ({"states": (3,)}, r"`states` must be two different token ids or more, got \(3,\)"),
            ({"states": (3, 3)}, "two different token ids or more"),
            ({"states": (3, -1)}, "whole number from 0 up, got -1"),
            ({"states": 4, "alpha": 0}, "`alpha` must be a number above 0, got 0"),
            ({"states": 4, "alpha": math.nan}, "`alpha` must be a number above 0, got nan"),
            ({"states": 4, "alpha": True}, "`alpha` must be a number above 0, got True"),
            ({"states": 4, "n_positions": 7}, "`n_positions` must be a whole number from 8 up, got 7"),
        ],
    )
    def test_chains_that_cannot_be(self, given, why):
        with pytest.raises(ArgumentError, match=why):
            MarkovChains(**given)

    @pytest.mark.parametrize(
        ("chains", "space", "why"),
        [
            (
                MarkovChains(9),
                TokenSpace(d_vocab=9, bos_id=0),
                "chains of 9 states need as many usable token ids, the model has 8",
            ),
            (MarkovChains((1, 2)), SPACE, "the model has no 2 or it is special"),
            (MarkovChains((1, 99)), SPACE, "the model has no 99 or it is special"),
            (
                MarkovChains(4),
                TokenSpace(d_vocab=9, bos_id=0, n_ctx=8),
                "rows of chains need 9 positions, the model's context has 8",
            ),
        ],
    )
    def test_models_that_are_too_small(self, chains, space, why):
        with pytest.raises(ProbeError, match=why):
            drawn(chains, space)
