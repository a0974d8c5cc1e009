"""Prefix matching on rows of chosen periods, and its own chance, against loops over single entries."""

import numpy as np
import pytest
import torch

from pytest_induction import load_model
from pytest_induction.attention.pattern import PatternReader
from pytest_induction.attention.scores import LongRowScores, PeriodicScores
from pytest_induction.heads.distances import match_periods, overlap, partner_of
from pytest_induction.probes.sequences import filling_sequences
from pytest_induction.records import TokenSpace
from tests.known_heads import Planted, count_back, duplicate, induction, latest_match, previous, uniform
from tests.measuring import slow
from tests.measuring.test_scores import random_attention


@pytest.mark.parametrize("start", [0, 1])
@pytest.mark.parametrize("shift", [None, 2])
def test_scores_of_long_rows_equal_the_reference(start, shift):
    """The usual scores come first; then the last queries, and the places of other periods, over all and the last queries."""
    positions, period, late, others = 37, 7, 25, (5, 11)
    reader, pattern = random_attention(2, 3, positions)
    shifts = () if shift is None else (shift,)
    scorer = LongRowScores(period, start, positions, shifts, late, others)
    usual_scorer = PeriodicScores(period, start, positions, shifts)
    usual = usual_scorer(reader)
    for values in (scorer(reader), scorer(PatternReader(pattern))):
        found = dict(zip(scorer.names, values, strict=True))
        torch.testing.assert_close(torch.stack([found.pop(name) for name in usual_scorer.names]), usual, atol=1e-12, rtol=0)
        for row, head in np.ndindex(2, 3):
            own = pattern[row, head].numpy()
            wanted = {"late_prefix_matching": slow.mass_at_period(own, period, start, late)}
            wanted |= {} if shift is None else {"late_wrong_shift": slow.mass_at_shift(own, period, start, shift, late)}
            for other in others:
                wanted[f"at_period_{other}"] = slow.mass_at_period(own, other, start)
                wanted[f"late_at_period_{other}"] = slow.mass_at_period(own, other, start, late)
            assert {name: score[row, head].item() for name, score in found.items()} == pytest.approx(wanted, abs=1e-12)


def test_a_row_is_filled_to_its_last_position():
    """A block repeats up to the end, the last time in part; every row has a block of its own."""
    probe = filling_sequences(TokenSpace(50, bos_id=0), period=9, n_positions=40, rng=np.random.default_rng(0), n_sequences=3)
    assert probe.tokens.shape == (3, 40) and probe.repeats == 4 and probe.start == 1
    assert (probe.tokens[:, 10:] == probe.tokens[:, 1:-9]).all() and (probe.tokens[:, 0] == 0).all()
    assert all(len(set(row[1:10])) == 9 for row in probe.tokens)
    assert (probe.tokens[0] != probe.tokens[1])[1:].any()


def matched(*heads, periods=(13, 20, 47), n_positions=128, n_ctx=128, bos=0, d_vocab=60):
    """What is found of planted heads, by period."""
    subject = load_model(Planted(*heads, n_ctx=n_ctx, bos=bos, d_vocab=d_vocab))
    rng = np.random.default_rng(3)
    probes = [
        filling_sequences(subject.space, period=period, n_positions=n_positions, rng=rng, n_sequences=2) for period in periods
    ]
    return match_periods(subject, probes, rng)


@pytest.mark.parametrize("bos", [0, None])
def test_known_heads_have_their_known_matching_and_chance(bos):
    """A head that matches has 1 and no chance, one that counts back all of its score by chance, a uniform one about its score."""
    found = matched(induction, latest_match, duplicate, previous, uniform, count_back(19), bos=bos)
    for each in found:
        counted = float(each.period == 20)
        for scores, chance in ((each.scores, each.chance), (each.late_scores, each.late_chance)):
            np.testing.assert_allclose(scores[:, 0, :4], [[1, 1, 0, 0]] * 2, atol=1e-5)
            np.testing.assert_allclose(chance[:, 0, :2], 0, atol=0.05)
            np.testing.assert_allclose(scores[:, 0, 4], chance[:, 0, 4], atol=0.01)
            np.testing.assert_allclose(scores[:, 0, 5], counted, atol=1e-6)
            assert (chance[:, 0, 5] >= counted - 1e-6).all()


def test_a_partner_period_has_no_matches_at_the_places_of_the_other():
    """Neither a neighbour, whose duplicates stand there, nor a multiple, whose successors do, is taken where another can be."""
    assert partner_of(14, [13, 14, 28, 17], 57) == 17
    assert partner_of(20, [19, 20, 21, 40], 81) == 21
    assert partner_of(4, [4, 5], 20) == 5


@pytest.mark.parametrize(("period", "other"), [(4, 253), (4, 45), (20, 19), (20, 21), (13, 26), (7, 30)])
def test_the_overlap_is_of_places_that_a_matching_head_attends_to(period, other):
    """Successors or copies in rows of one period that stand where another has its successors; the nearest count most."""
    places = {copy * period - 1 for copy in range(1, 513)}
    expected = 0.0
    for copy in range(1, 512 // other + 1):
        if copy * other - 1 in places or copy * other in places:
            expected += 1 / copy
    assert overlap(period, other, 512) == pytest.approx(expected)
