"""Rows in which the row and the training data disagree."""

import numpy as np
import pytest
import torch

from pytest_induction.errors import ArgumentError, ProbeError
from pytest_induction.probes.conflicts import BigramCounts, Conflicts, conflict_rows
from pytest_induction.records import TokenSpace

SPACE = TokenSpace(d_vocab=70, bos_id=0, excluded=frozenset({69}))


def ring(d_vocab=70, seed=1):
    """Counts in which each id from 1 up has one clear successor, and a few that follow it now and then."""
    rng = np.random.default_rng(seed)
    counts = rng.integers(0, 3, (d_vocab, d_vocab))
    counts[np.arange(d_vocab), rng.permutation(d_vocab)] = 40
    return counts


def drawn(counts=None, space=SPACE, n_sequences=8, seed=0):
    conflicts = Conflicts(space, BigramCounts.of(ring() if counts is None else counts))
    return conflict_rows(conflicts, rng=np.random.default_rng(seed), n_sequences=n_sequences)


class TestRows:
    @pytest.mark.parametrize("space", [SPACE, TokenSpace(d_vocab=70, bos_id=None), TokenSpace(d_vocab=70, bos_id=0, n_ctx=30)])
    def test_each_is_what_it_says_by_the_definition(self, space):
        counts = ring()
        rows = drawn(counts, space)
        assert len({tuple(row) for row in rows.tokens.tolist()}) == 8
        for row, queries, in_row, in_weights in zip(rows.tokens, rows.queries, rows.in_row, rows.in_weights, strict=True):
            tokens = row.tolist()
            for query, other, common in zip(queries.tolist(), in_row.tolist(), in_weights.tolist(), strict=True):
                token = tokens[query]
                assert [place for place in range(len(tokens)) if tokens[place] == token] == [tokens.index(token), query]
                assert tokens[tokens.index(token) + 1] == other
                assert counts[token, common] == counts[token].max() == 40 and counts[token, other] <= 4
                assert tokens.count(common) == tokens.count(other) == 1 and tokens.index(common) < queries.min()
            body = tokens[rows.start :]
            assert len(body) - len(set(body)) == len(queries)
            assert not set(body) & (space.excluded | {space.bos_id})
        assert rows.tokens.shape[1] <= (space.n_ctx or 65) and rows.queries.shape[1] == (4 if space.n_ctx else 6)

    def test_what_the_row_says_comes_before_what_the_weights_say_as_often_as_after(self):
        rows = drawn(n_sequences=200)
        place = {
            name: (rows.tokens[:, :, None] == getattr(rows, name)[:, None]).argmax(axis=1) for name in ("in_row", "in_weights")
        }
        assert np.mean(place["in_row"] < place["in_weights"]) == pytest.approx(0.5, abs=0.05)

    def test_tokens_have_a_clear_successor_and_are_the_half_with_the_clearest(self):
        counts = np.zeros((30, 30), dtype=int)
        counts[:, 20:28] = 1
        for token, top in ((1, 90), (2, 60), (3, 40), (4, 30), (5, 4)):  # of the last one it is too rare
            counts[token, 28] = top
        counts[6, 6] = 90  # follows itself
        found = Conflicts(TokenSpace(d_vocab=30, bos_id=0), BigramCounts.of(counts)).found
        assert [(each.token, each.common) for each in found] == [(1, 28), (2, 28)]
        assert found[0].others.tolist() == [6, *range(20, 28)]

    def test_what_is_never_trained_stands_nowhere(self):
        counts = ring()
        counts[:, 40:] = 0
        counts[40:] = 0
        counts[np.arange(1, 40), np.roll(np.arange(1, 40), 1)] = 40
        rows = drawn(counts)
        assert rows.tokens.max() < 40

    def test_a_small_vocabulary_has_fewer_groups_and_the_same_seed_the_same_rows(self):
        space = TokenSpace(d_vocab=13, bos_id=0)
        rows = drawn(ring(13), space)
        assert rows.queries.shape[1] in (1, 2)
        np.testing.assert_array_equal(rows.tokens, drawn(ring(13), space).tokens)
        assert not np.array_equal(rows.tokens, drawn(ring(13), space, seed=1).tokens)


class TestCounts:
    def test_arrays_tensors_and_mappings_say_the_same(self):
        counts = ring(12)
        sparse = {(a, b): int(counts[a, b]) for b in range(12) for a in range(12)}  # zeros among them, in another order
        for given in (counts, torch.from_numpy(counts), sparse, counts.tolist()):
            found = BigramCounts.of(given)
            again = np.zeros_like(counts)
            again[found.first, found.second] = found.counts
            np.testing.assert_array_equal(again, counts)
            assert found.largest_id == 11 and (np.diff(found.first * 12 + found.second) > 0).all() and found.counts.min() > 0

    @pytest.mark.parametrize(
        ("given", "why"),
        [
            (np.ones((3, 4), int), r"got an array \(3, 4\)"),
            (np.ones(3, int), r"got an array \(3,\)"),
            (np.full((3, 3), 0.5), r"got float64 \(3, 3\)"),
            (np.full((3, 3), -1), r"got int64 \(3, 3\)"),
            ({(1, 2): -1}, r"got int64 \(1,\)"),
            ({(1, 2): 0.5}, r"got float64 \(1,\)"),
            ({1: 2}, "got keys that are no pairs"),
            ({(1, 2, 3): 4}, "got keys that are no pairs"),
            ({(-1, 2): 4}, "got keys that are no pairs"),
            ({"ab": 4}, "got keys that are no pairs"),
            ({}, "got none"),
            ("many", "whole numbers from 0 up, an array"),
        ],
    )
    def test_anything_else_is_refused(self, given, why):
        with pytest.raises(ArgumentError, match=f"`bigram_counts` must be.*{why}") as caught:
            BigramCounts.of(given)
        assert "\n" not in str(caught.value)

    def test_another_vocabulary_is_refused(self):
        with pytest.raises(ArgumentError, match="of the model's vocabulary: it names id 79, the model has 70 ids"):
            drawn(ring(80))

    @pytest.mark.parametrize(
        ("counts", "space"),
        [
            (np.ones((70, 70), int), SPACE),  # no clear successor
            (ring(), TokenSpace(d_vocab=70, bos_id=0, n_ctx=6)),
            (ring(5), TokenSpace(d_vocab=5, bos_id=0)),
        ],
    )
    def test_too_little_is_said(self, counts, space):
        with pytest.raises(ProbeError, match="need 7 positions, 5 usable ids and one id with a clear successor"):
            drawn(counts, space)
