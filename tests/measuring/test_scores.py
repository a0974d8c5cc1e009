"""The fast scores against the slow reference, over patterns of every kind."""

import numpy as np
import pytest
import torch

from pytest_induction.attention.pattern import LogSumExpReader, PatternReader, row_log_sum_exp
from pytest_induction.attention.scores import SCORES, PairScores, PeriodicScores, ScoresAndChance, common_period, scores_for
from pytest_induction.measuring import losses
from pytest_induction.measuring.losses import Windows, advantage, repetition, token_losses
from tests.measuring import slow


def random_attention(batch, heads, positions, d_head=8, key_heads=None, mask=None, causal=True, dtype=torch.float64):
    """A reader from queries and keys, and the same pattern as a matrix."""
    query = torch.randn(batch, heads, positions, d_head, dtype=dtype) * 2
    key = torch.randn(batch, key_heads or heads, positions, d_head, dtype=dtype)
    reader = LogSumExpReader(query, key, row_log_sum_exp(query, key, 0.3, mask, causal), 0.3, mask, causal)
    scores = query @ key.repeat_interleave(heads // (key_heads or heads), 1).transpose(-1, -2) * 0.3
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
    if causal:
        scores = scores.masked_fill(torch.ones(positions, positions).triu(1).bool(), -torch.inf)
    return reader, scores.softmax(-1).nan_to_num(0.0)


def expected(pattern, tokens, real=None):
    """(scores, batch, heads) by the slow reference."""
    rows = [
        [
            slow.head_scores(pattern[b, h].numpy(), tokens[b].tolist(), None if real is None else real[b].tolist())
            for h in range(pattern.shape[1])
        ]
        for b in range(len(tokens))
    ]
    return torch.tensor([[[head[name] for head in row] for row in rows] for name in SCORES], dtype=torch.float64)


def named(scores, reader):
    """Each score of a reader, (batch, heads), by its name."""
    return dict(zip(scores.names, scores(reader), strict=True))


MASKS = {
    "causal": (None, True),
    "boolean": (torch.ones(21, 21).tril().bool(), False),
    "window": (torch.ones(21, 21).tril().triu(-12).bool(), False),
    "added": (torch.full((21, 21), torch.finfo(torch.float32).min).triu(1), False),
    "bias": (torch.randn(1, 4, 21, 21, dtype=torch.float64), True),
    "both": (torch.ones(21, 21).tril().triu(-15).bool(), True),
}


@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize("key_heads", [4, 2, 1])
def test_periodic_scores_equal_the_reference(kind, key_heads):
    """Diagonals read from queries and keys give the definition's scores, for every kind of mask and grouped queries."""
    mask, causal = MASKS[kind]
    block = torch.stack([torch.randperm(40)[:5] + 1 for _ in range(3)])
    tokens = torch.cat([torch.zeros(3, 1, dtype=torch.long), block.repeat(1, 4)], dim=1)
    reader, pattern = random_attention(3, 4, 21, key_heads=key_heads, mask=mask, causal=causal)
    scores = scores_for(tokens)
    assert isinstance(scores, PeriodicScores)
    torch.testing.assert_close(scores(reader), expected(pattern, tokens), atol=1e-12, rtol=0)
    torch.testing.assert_close(scores(PatternReader(pattern)), expected(pattern, tokens), atol=1e-12, rtol=0)


@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize("key_heads", [4, 2])
def test_pair_scores_equal_the_reference(kind, key_heads):
    """Scattered entries give the definition's scores where rows have no period, a run of one token included."""
    mask, causal = MASKS[kind]
    tokens = torch.randint(0, 6, (3, 21))
    tokens[0, 4:7] = 3
    reader, pattern = random_attention(3, 4, 21, key_heads=key_heads, mask=mask, causal=causal)
    scores = scores_for(tokens)
    assert isinstance(scores, PairScores)
    torch.testing.assert_close(scores(reader), expected(pattern, tokens), atol=1e-12, rtol=0)
    torch.testing.assert_close(scores(PatternReader(pattern)), expected(pattern, tokens), atol=1e-12, rtol=0)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_is_neither_query_nor_key(side):
    """Padded positions take no part, on whichever side they stand."""
    tokens = torch.randint(0, 6, (3, 21))
    real = torch.ones(3, 21, dtype=torch.long)
    for row, width in enumerate((0, 3, 8)):
        real[row, :width] = 0
    real = real if side == "left" else real.flip(1)
    mask = torch.ones(21, 21).tril().bool()[None, None] & real.bool()[:, None, None, :]
    reader, pattern = random_attention(3, 4, 21, mask=mask, causal=False)
    torch.testing.assert_close(scores_for(tokens, real)(reader), expected(pattern, tokens, real), atol=1e-12, rtol=0)


CHANCES = [
    (13, 1, 53, (2, 5), (15, 17)),
    (13, 1, 53, (2, 3), (10, 11)),  # their places are wrong shifts of 13
    (25, 1, 101, (1, 11), (13, 15)),  # 75 is a multiple of 15 and of 25
    (4, 1, 21, (1,), (5, 6)),  # 20 is one of 4 and of 5, 12 of 4 and of 6
    (7, 0, 40, (1, 2), (6, 9)),  # 18 and 36 are of 6 and of 9
    (2, 0, 8, (1,), (3,)),
]


def test_a_wrong_shift_is_read_where_it_is_said_to_be():
    """The score of that name is the mass that many positions after the successors."""
    block = torch.randperm(40)[:7][None] + 1
    torch.cat([torch.zeros(1, 1, dtype=torch.long), block.repeat(1, 3)], dim=1)
    reader, pattern = random_attention(1, 2, 22)
    wrong = named(PeriodicScores(7, 1, 22, wrong_shifts=(2,)), reader)["wrong_shift"]
    queries = range(8, 22)
    slow_mass = [
        np.mean([sum(pattern[0, h, q, q - m * 7 + 3].item() for m in (1, 2) if q - m * 7 >= 1) for q in queries]) for h in (0, 1)
    ]
    torch.testing.assert_close(wrong[0], torch.tensor(slow_mass, dtype=torch.float64))


@pytest.mark.parametrize(("period", "start", "positions", "shifts", "others"), CHANCES)
def test_chance_is_the_mean_over_its_places(period, start, positions, shifts, others):
    """That at wrong shifts is their mean, and each other period has its own; no place counts twice, so all has a limit."""
    reader, pattern = random_attention(2, 3, positions)
    scores = ScoresAndChance(period, start, positions, shifts, others)
    usual = named(PeriodicScores(period, start, positions), reader)
    for found in (named(scores, reader), named(scores, PatternReader(pattern))):
        torch.testing.assert_close({name: found[name] for name in usual}, usual, atol=1e-12, rtol=0)
        for row, head in np.ndindex(2, 3):
            own = pattern[row, head].numpy()
            wrong = np.mean([slow.mass_at_shift(own, period, start, shift) for shift in shifts])
            assert found["wrong_shift"][row, head].item() == pytest.approx(wrong, abs=1e-12)
            elsewhere = slow.mass_at_other_periods(own, period, start, others)
            places = [found[f"at_period_{other}"][row, head].item() for other in others]
            assert places == pytest.approx(elsewhere, abs=1e-12)
            assert wrong + np.mean(elsewhere) <= scores.most_beside


@pytest.mark.parametrize(("distance", "n_places"), [(12, 1), (14, 1), (16, 0), (7, 0)])
def test_no_more_than_its_share_is_had_by_a_head_that_counts_back(distance, n_places):
    """All attention on one place of one of two other periods is half, which is the most; none on a place of neither is nothing."""
    pattern = torch.eye(53).roll(-distance, 1)[None, None]
    pattern[..., :distance, :] = torch.eye(53)[0]
    scores = ScoresAndChance(17, 0, 53, (3, 5), (13, 15))
    assert scores.most_beside == 0.5
    found = named(scores, PatternReader(pattern))
    assert (found["at_period_13"] + found["at_period_15"]).item() / 2 == pytest.approx(n_places / 2)


@pytest.mark.parametrize(
    ("row", "period"),
    [
        ([1, 2, 3, 1, 2, 3], 3),
        ([1, 2, 3, 1, 2], 3),
        ([1, 2, 3, 4], None),
        ([1, 1, 1, 1], None),
        ([1, 2, 1, 3], None),
        ([5, 6, 6, 5, 6, 6], None),
    ],
)
def test_the_common_period_is_found_only_where_blocks_repeat(row, period):
    """A period is one whose block has different tokens and repeats to the end."""
    assert common_period(torch.tensor([row])) == period


def test_rows_of_different_periods_are_scored_by_pairs():
    """One batch may hold rows of several periods."""
    tokens = torch.tensor([[1, 2, 3, 1, 2, 3, 1, 2], [1, 2, 3, 4, 1, 2, 3, 4]])
    reader, pattern = random_attention(2, 2, 8)
    assert isinstance(scores_for(tokens), PairScores)
    torch.testing.assert_close(scores_for(tokens)(reader), expected(pattern, tokens), atol=1e-12, rtol=0)


@pytest.mark.parametrize(("positions", "offset"), [(300, 7), (1100, 400)])
def test_blocks_of_rows_give_the_whole_log_sum_exp(positions, offset, monkeypatch):
    """The log-sum-exp does not depend on how many rows are computed at a time."""
    query, key = torch.randn(1, 2, positions, 4), torch.randn(1, 1, positions, 4)
    whole = row_log_sum_exp(query, key, 0.5, None, causal=True)
    monkeypatch.setattr("pytest_induction.attention.pattern.BLOCK_ENTRIES", positions * offset)
    torch.testing.assert_close(row_log_sum_exp(query, key, 0.5, None, causal=True), whole)


@pytest.mark.parametrize("start", [0, 1])
def test_behaviour_equals_the_reference(start):
    """Losses, accuracies and advantage of repeated rows are the definition's."""
    block = torch.stack([torch.randperm(30)[:6] + 1 for _ in range(4)])
    tokens = torch.cat([torch.zeros(4, start, dtype=torch.long), block.repeat(1, 3)], dim=1)
    logits = torch.randn(4, tokens.shape[1], 31, dtype=torch.float64) * 3
    logits.scatter_add_(-1, tokens.roll(-1, 1)[..., None], torch.rand(4, tokens.shape[1], 1, dtype=torch.float64) * 9)
    found = repetition(logits, tokens, period=6, start=start)
    assert torch.equal(advantage(logits, tokens, period=6, start=start), found.advantage)
    for row in range(4):
        slow_row = slow.repetition(logits[row].log_softmax(-1).numpy(), tokens[row].tolist(), 6, start)
        for name, value in slow_row.items():
            assert getattr(found, name)[row].item() == pytest.approx(value, abs=1e-6), name


def test_a_confident_model_has_no_infinite_loss():
    """The log of a softmax would underflow where the log-softmax does not."""
    logits = torch.zeros(1, 3, 5)
    logits[..., 2] = 400.0
    found = token_losses(logits, torch.tensor([[0, 1, 2]]))
    torch.testing.assert_close(found, torch.tensor([[400.0, 0.0]]))


@pytest.mark.parametrize(("queries", "most"), [(1, [1]), (3, [3, 1]), (8, [7]), (10**6, [14])])
def test_losses_are_the_same_in_parts_of_any_size(monkeypatch, queries, most):
    """Whole rows together where they fit, otherwise parts of one row, so that logits of many rows are never copied at once."""
    logits, tokens = torch.randn(2, 8, 5), torch.randint(0, 5, (2, 8))
    whole = -logits.double().log_softmax(-1)[:, :-1].gather(-1, tokens[:, 1:, None])[..., 0]
    monkeypatch.setitem(losses.LOGARITHMS_AT_ONCE, "cpu", 5 * queries)
    torch.testing.assert_close(token_losses(logits, tokens).double(), whole, atol=1e-6, rtol=0)
    assert sorted({len(part) for part, _ in losses.in_parts(logits[:, :-1], tokens[:, 1:])}, reverse=True) == most


@pytest.mark.parametrize(
    ("n_tokens", "early", "late"),
    [(512, (40, 60), (450, 512)), (1024, (40, 60), (450, 512)), (128, (10, 15), (112, 128)), (64, (5, 8), (56, 64))],
)
def test_windows_keep_their_share_of_a_shorter_row(n_tokens, early, late):
    """From 512 tokens on the windows are fixed; below, they shrink with the row."""
    assert (Windows.for_tokens(n_tokens).early, Windows.for_tokens(n_tokens).late) == (early, late)
