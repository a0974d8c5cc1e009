"""Properties of rows with segments at irregular distances, over whatever hypothesis comes up with."""

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import assume, example, given
from hypothesis import strategies as st

from pytest_induction.attention.pattern import PatternReader
from pytest_induction.errors import ArgumentError, ProbeError
from pytest_induction.probes.irregular import irregular_sequences
from pytest_induction.probes.sequences import usable_ids
from pytest_induction.records import TokenSpace
from tests.probes.test_sequences import spaces


def matching_tokens(row, query, earlier):
    """How many tokens up to the query equal those up to the earlier position, one by one."""
    count = 0
    while earlier - count >= 0 and row[query - count] == row[earlier - count]:
        count += 1
    return count


def keys_by_loop(row):
    """The pairs (query, key) of one row: by exactly how many tokens match, and where a match has just ended."""
    found = {1: set(), 2: set(), 3: set(), "break": set()}
    for query in range(len(row)):
        for earlier in range(query):
            count = matching_tokens(row, query, earlier)
            if count:
                found[min(count, 3)].add((query, earlier + 1))
            elif earlier and matching_tokens(row, query - 1, earlier - 1):
                found["break"].add((query, earlier + 1))
    return found


def drawn(space, seed=0, **options):
    options = {"n_positions": 101, "n_sequences": 3, **options}
    return irregular_sequences(space, rng=np.random.default_rng(seed), **options)


@given(spaces(), st.integers(8, 130), st.integers(0, 2**32), st.integers(1, 4))
@example(TokenSpace(12, 128, 0), 101, 0, 4)
@example(TokenSpace(7, 64, 0), 101, 0, 4)
@example(TokenSpace(200, 11, 0), 101, 0, 4)
@example(TokenSpace(500, None, None), 130, 0, 4)
def test_rows_are_what_they_say(space, n_positions, seed, n_sequences):
    """Ids are usable and stand once or in a segment twice; distances differ; keys are exact."""
    try:
        rows = drawn(space, seed, n_positions=n_positions, n_sequences=n_sequences)
    except ProbeError:
        assume(False)
    assert rows.tokens.shape == (n_sequences, rows.n_positions)
    assert rows.n_positions <= min(n_positions, space.n_ctx or n_positions)
    assert rows.start == (space.bos_id is not None)
    for number, row in enumerate(rows.tokens.tolist()):
        assert row[: rows.start] == [space.bos_id][: rows.start]
        assert set(row[rows.start :]) <= set(usable_ids(space).tolist())
        counts = Counter(row)
        assert max(counts.values()) == 2 and list(counts.values()).count(2) % 4 == 0
        found = keys_by_loop(row)
        assert set(rows.exactly_one[number]) == found[1]
        assert set(rows.exactly_two[number]) == found[2]
        assert set(rows.three_or_more[number]) == found[3]
        assert set(rows.after_breaks[number]) == found["break"]
        segments = len(found[1])
        assert segments >= 1
        assert [len(found[kind]) for kind in (2, 3, "break")] == [segments, 2 * segments, segments]
        distances = [query - key + 1 for query, key in found[1]]
        assert len(set(distances)) == segments
        assert all(counts[row[query]] == 1 and counts[row[key]] > 0 for query, key in found["break"])


@given(spaces(), st.integers(0, 1000))
def test_rows_are_the_same_for_the_same_seed(space, seed):
    """And others for another."""
    try:
        rows = drawn(space, seed)
    except ProbeError:
        assume(False)
    assert (rows.tokens == drawn(space, seed).tokens).all()
    assert (rows.tokens != drawn(space, seed + 1).tokens).any()


@pytest.mark.parametrize(
    ("space", "n_positions", "segments", "positions"),
    [
        (TokenSpace(50_000, None, 0), 101, 7, 101),
        (TokenSpace(50_000, None, 0), 1024, 78, 1024),
        (TokenSpace(64, 128, 0), 101, 7, 92),  # 63 ids: 42 of segments and fillers, 21 between them
        (TokenSpace(12, 128, 0), 101, 1, 16),
        (TokenSpace(12, 11, 0), 101, 1, 11),
        (TokenSpace(6, None, None), 101, 1, 10),
    ],
)
def test_rows_have_as_many_segments_as_fit(space, n_positions, segments, positions):
    """One for every thirteen positions and seven ids, and at least one; positions end where ids do."""
    rows = drawn(space, n_positions=n_positions, n_sequences=1)
    assert (rows.n_positions, len(rows.exactly_one[0])) == (positions, segments)


def test_distances_vary_over_the_row_and_between_rows():
    """A segment may come back at once or from the other end, and what stands between are other segments too."""
    rows = drawn(TokenSpace(5000, None, 0), n_sequences=40)
    distances = [[query - key + 1 for query, key in pairs] for pairs in rows.exactly_one]
    flat = sorted(distance for row in distances for distance in row)
    assert flat[0] < 10 and flat[-1] > 80
    assert max(Counter(flat).values()) < 0.1 * len(flat)
    assert len({tuple(sorted(row)) for row in distances}) == 40
    nested = sum(a[0] < c[0] and c[1] < a[1] for pairs in rows.exactly_one for a in flipped(pairs) for c in flipped(pairs))
    assert nested > 40


def flipped(pairs):
    return [(key - 1, query) for query, key in pairs]


@pytest.mark.parametrize(
    ("space", "options", "message"),
    [
        (
            TokenSpace(6, 64, 0),
            {},
            "need at least 6 usable token ids, the model has 5: 6 in its vocabulary, of which 1 are special",
        ),
        (TokenSpace(64, 10, 0), {}, "need a first token and 10 positions, there is room for 9"),
        (TokenSpace(64), {"n_positions": 9}, "need 10 positions, there is room for 9"),
    ],
)
def test_a_model_that_no_row_fits_is_told_why(space, options, message):
    """What is needed, and what there is."""
    with pytest.raises(ProbeError, match=message):
        drawn(space, **options)


def test_impossible_arguments_are_refused():
    """Which argument it is."""
    with pytest.raises(ArgumentError, match="n_sequences"):
        drawn(TokenSpace(64), n_sequences=0)


@given(spaces(), st.integers(0, 2**32))
def test_scores_are_the_means_over_the_keys(space, seed):
    """Of any pattern: the four lists in order, row by row, whole or in parts."""
    try:
        rows = drawn(space, seed)
    except ProbeError:
        assume(False)
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(3, 2, rows.n_positions, rows.n_positions, generator=generator, dtype=torch.float64) * 2
    pattern = scores.masked_fill(torch.ones(rows.n_positions, rows.n_positions).triu(1).bool(), -torch.inf).softmax(-1)
    found = rows.scores(torch.device("cpu"))(PatternReader(pattern))
    for number, row in enumerate(rows.tokens.tolist()):
        for list_, pairs in enumerate(keys_by_loop(row).values()):
            for head in range(2):
                wanted = np.mean([float(pattern[number, head, query, key]) for query, key in pairs])
                assert float(found[list_, number, head]) == pytest.approx(wanted, abs=1e-12)
    parts = [
        rows.scores(torch.device("cpu"), slice(first, last))(PatternReader(pattern[first:last]))
        for first, last in ((0, 2), (2, 3))
    ]
    torch.testing.assert_close(torch.cat(parts, 1), found)


def test_rows_print_what_they_are():
    """Not a wall of numbers."""
    assert repr(drawn(TokenSpace(64, 128, 0))) == "IrregularRows(3 sequences, 92 positions, 7 recurrences)"
