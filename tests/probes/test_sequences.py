"""Properties of probes and scores, over whatever hypothesis comes up with."""

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from pytest_induction.attention.pattern import PatternReader
from pytest_induction.attention.scores import PairScores, PeriodicScores, scores_for
from pytest_induction.errors import ArgumentError, ProbeError
from pytest_induction.probes.sequences import Probe, fitting_shape, repeated_sequences, unrepeated_sequences, usable_ids
from pytest_induction.records import TokenSpace

settings.register_profile("ours", deadline=None, derandomize=True)
settings.load_profile("ours")


@st.composite
def spaces(draw):
    d_vocab = draw(st.integers(8, 200))
    bos = draw(st.one_of(st.none(), st.integers(0, d_vocab - 1)))
    excluded = draw(st.frozensets(st.integers(-3, d_vocab + 3), max_size=3))
    return TokenSpace(d_vocab, draw(st.one_of(st.none(), st.integers(12, 150))), bos, excluded)


@given(spaces(), st.integers(0, 2**32), st.integers(1, 5))
def test_probes_are_what_they_say(space, seed, n_sequences):
    """Blocks of distinct usable ids, repeated exactly, within the context; the control repeats at no multiple of the period."""
    try:
        periods, copies = fitting_shape(space)
    except ProbeError:
        assume(False)
    assert len(periods) >= 2 and copies >= 2
    period = periods[seed % len(periods)]
    usable = set(usable_ids(space).tolist())
    for make in (repeated_sequences, unrepeated_sequences):
        probe = make(space, period=period, rng=np.random.default_rng(seed), n_sequences=n_sequences, repeats=copies)
        assert probe.tokens.shape == (n_sequences, probe.start + period * copies)
        assert space.n_ctx is None or probe.n_positions <= space.n_ctx
        for row in probe.tokens:
            body = row[probe.start :]
            assert set(body.tolist()) <= usable
            assert len(set(body[:period].tolist())) == period or not probe.repeated
            for lag in range(period, len(body), period):
                assert (body[lag:] == body[:-lag]).all() if probe.repeated else (body[lag:] != body[:-lag]).all()
            assert probe.start == 0 or row[0] == space.bos_id


@given(spaces(), st.integers(0, 1000))
def test_a_probe_is_the_same_for_the_same_seed(space, seed):
    """And another for another."""
    try:
        periods, copies = fitting_shape(space)
    except ProbeError:
        assume(False)
    draw = lambda number: (
        repeated_sequences(space, period=periods[-1], rng=np.random.default_rng(number), n_sequences=4, repeats=copies).tokens
    )
    assert (draw(seed) == draw(seed)).all()
    assert (draw(seed) != draw(seed + 1)).any()


@pytest.mark.parametrize(
    ("space", "message"),
    [
        (TokenSpace(3), "needs at least 5 usable token ids, the model has 3"),
        (TokenSpace(8, bos_id=0, excluded=frozenset({0, 1, 2, 3})), "has 4: 8 in its vocabulary, of which 4 are special"),
        (TokenSpace(100, n_ctx=10, bos_id=0), "the smallest probe has 11 positions, the model's context has 10"),
        (TokenSpace(100, n_ctx=9), "the smallest probe has 10 positions, the model's context has 9"),
    ],
)
def test_a_model_that_no_probe_fits_is_told_why(space, message):
    """What is needed, and what there is."""
    with pytest.raises(ProbeError, match=message):
        fitting_shape(space)


@pytest.mark.parametrize(
    ("n_ctx", "copies", "longest"), [(None, 4, 25), (101, 4, 25), (64, 4, 15), (21, 4, 5), (20, 3, 6), (11, 2, 5)]
)
def test_a_short_context_gets_a_shorter_probe(n_ctx, copies, longest):
    """Periods shrink first, then copies."""
    periods, found = fitting_shape(TokenSpace(100, n_ctx=n_ctx, bos_id=0))
    assert (found, periods[-1]) == (copies, longest)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"period": 3}, "`period` must be from 4 to 99"), ({"period": 5, "repeats": 1}, "`repeats` must be at least 2")],
)
def test_impossible_probes_are_refused(options, message):
    """Which argument, and what it must be."""
    with pytest.raises(ArgumentError, match=message):
        repeated_sequences(TokenSpace(100, bos_id=0), rng=np.random.default_rng(0), **options)


def test_a_probe_prints_what_it_is():
    """Not a wall of numbers."""
    assert repr(Probe(np.zeros((3, 9), dtype=np.int64), 4, 2, 1)) == "Probe(3 sequences, period 4, 2 copies)"


@st.composite
def patterns(draw):
    positions, heads, batch = draw(st.integers(8, 20)), draw(st.integers(1, 3)), draw(st.integers(1, 3))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    scores = torch.randn(batch, heads, positions, positions, generator=generator, dtype=torch.float64) * draw(
        st.sampled_from([0.1, 3, 50])
    )
    return scores.masked_fill(torch.ones(positions, positions).triu(1).bool(), -torch.inf).softmax(-1)


@given(patterns(), st.integers(2, 6), st.integers(0, 1))
def test_scores_are_shares_and_do_not_change_their_input(pattern, period, start):
    """Every score lies in [0, 1], pairs and diagonals agree, heads may be permuted, and nothing is written to."""
    batch, heads, positions, _ = pattern.shape
    tokens = torch.cat(
        [torch.zeros(batch, start, dtype=torch.long), (torch.arange(positions - start) % period + 1).expand(batch, -1)], 1
    )
    before, ids = pattern.clone(), tokens.clone()
    diagonal, pairs = (
        PeriodicScores(period, start, positions)(PatternReader(pattern)),
        PairScores.of(tokens)(PatternReader(pattern)),
    )
    assert torch.equal(pattern, before) and torch.equal(tokens, ids)
    assert ((diagonal >= 0) & (diagonal <= 1 + 1e-9)).all()
    torch.testing.assert_close(diagonal, pairs)
    order = torch.randperm(heads)
    torch.testing.assert_close(scores_for(tokens)(PatternReader(pattern[:, order])), diagonal[:, :, order])
    parts = [scores_for(tokens[i : i + 1])(PatternReader(pattern[i : i + 1])) for i in range(batch)]
    torch.testing.assert_close(torch.cat(parts, dim=1), diagonal)
