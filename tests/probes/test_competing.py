"""Rows in which matches of one, two and three tokens compete: exact keys, balanced orders, and what fits where."""

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import assume, example, given
from hypothesis import strategies as st

from pytest_induction.attention.pattern import PatternReader
from pytest_induction.errors import ArgumentError, ProbeError
from pytest_induction.probes.competing import GROUPS, LISTS, MATCHES, ORDERS, competing_rows
from pytest_induction.probes.sequences import usable_ids
from pytest_induction.records import TokenSpace
from tests.probes.test_irregular import matching_tokens
from tests.probes.test_sequences import spaces

LARGE = TokenSpace(500, 512, 0)


def drawn(space=LARGE, seed=0, n_sequences=3):
    return competing_rows(space, rng=np.random.default_rng(seed), n_sequences=n_sequences)


def lengths_at(row, query):
    """Of a query: by how many tokens each earlier place matches, under the position behind that."""
    found = {earlier + 1: matching_tokens(row, query, earlier) for earlier in range(query)}
    return {key: count for key, count in found.items() if count}


@given(spaces(), st.integers(0, 2**32), st.integers(1, 4))
@example(LARGE, 0, 4)
@example(TokenSpace(64, 128, 0), 0, 4)
@example(TokenSpace(11, 19, 0), 0, 4)
@example(TokenSpace(500, None, None), 0, 4)
def test_rows_are_what_they_say(space, seed, n_sequences):
    """By loops over the tokens: three matches of each query, of one, two and three tokens, and none of the others."""
    try:
        rows = drawn(space, seed, n_sequences)
    except ProbeError:
        assume(False)
    assert rows.tokens.shape == (n_sequences, rows.n_positions) and rows.n_positions <= (space.n_ctx or 129)
    assert rows.start == (space.bos_id is not None)
    assert set(rows.tokens[:, rows.start :].ravel()) <= set(usable_ids(space).tolist())
    for number, row in enumerate(rows.tokens.tolist()):
        assert row[: rows.start] == [space.bos_id][: rows.start]
        for query, unmatched, keys in zip(rows.queries[number], rows.unmatched[number], rows.keys[number], strict=True):
            assert lengths_at(row, query) == {key: count for count, key in enumerate(keys.tolist(), start=1)}
            assert not lengths_at(row, unmatched) and max(keys) < min(query, unmatched) - 2
            assert row[query - 2 : query] == row[unmatched - 2 : unmatched]
            assert [row.count(row[key]) for key in keys] == [1, 1, 1]
        assert rows.successors[number].tolist() == [[row[key] for key in keys] for keys in rows.keys[number].tolist()]
        assert sorted({*rows.queries[number].tolist(), *rows.unmatched[number].tolist()}) == rows.asked.tolist()


@pytest.mark.parametrize(("space", "n_sequences"), [(LARGE, 5), (TokenSpace(50, 128, 0), 6), (TokenSpace(11, 19, 0), 12)])
def test_each_order_of_the_matches_comes_equally_often(space, n_sequences):
    """In every row of six groups, else over rows with a multiple of six groups."""
    rows = drawn(space, n_sequences=n_sequences)
    orders = [Counter(tuple(np.argsort(keys).tolist()) for keys in of_row) for of_row in rows.keys]
    if rows.n_groups == GROUPS:
        assert all(each == dict.fromkeys(ORDERS, 1) for each in orders)
    else:
        assert sum(orders, Counter()) == dict.fromkeys(ORDERS, n_sequences * rows.n_groups // 6)
    first = (rows.queries < rows.unmatched).sum(axis=1)
    assert set(first) <= {rows.n_groups // 2, -(-rows.n_groups // 2)}


def test_scores_read_the_mass_on_each_successor():
    """And that on all three where nothing matches, from a pattern whose entries are all different."""
    rows = drawn()
    pattern = torch.rand(3, 2, rows.n_positions, rows.n_positions, generator=torch.Generator().manual_seed(1)).tril()
    found = rows.scores(torch.device("cpu"), slice(1, 3))(PatternReader(pattern[1:]))
    for number, name in enumerate(MATCHES):
        wanted = [[pattern[row, head, rows.queries[row], rows.keys[row, :, number]].mean() for head in (0, 1)] for row in (1, 2)]
        assert torch.allclose(found[number], torch.tensor(wanted)), name
    wanted = [
        [pattern[row, head, rows.unmatched[row][:, None], rows.keys[row]].sum(1).mean() for head in (0, 1)] for row in (1, 2)
    ]
    assert torch.allclose(found[LISTS.index("unmatched")], torch.tensor(wanted))


def test_the_same_generator_gives_the_same_rows():
    assert np.array_equal(drawn(seed=1).tokens, drawn(seed=1).tokens) and not np.array_equal(
        drawn(seed=1).tokens, drawn(seed=2).tokens
    )


@pytest.mark.parametrize("space", [TokenSpace(10, 128, 0), TokenSpace(500, 18, 0), TokenSpace(500, 17, None)])
def test_what_does_not_fit_is_one_line_with_what_is_lacking(space):
    with pytest.raises(
        ProbeError, match=r"rows in which matches compete need 10 usable token ids and 1[89] positions"
    ) as refused:
        drawn(space)
    assert "\n" not in str(refused.value)


def test_no_rows_are_refused():
    with pytest.raises(ArgumentError, match="n_sequences"):
        drawn(n_sequences=0)
