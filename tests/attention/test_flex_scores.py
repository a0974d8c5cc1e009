"""What is read of a call of `flex_attention`, entry by entry and in every precision."""

import numpy as np
import pytest
import torch
from torch import nn

from pytest_induction import load_model, measure_heads
from pytest_induction.attention.flex_calls import FlexReader, Mods
from tests.attention.test_flex import TABLE, masked, pytestmark
from tests.attention.test_hand_written import plain
from tests.attention.test_softmax_edits import numbers

__all__ = ["pytestmark"]


def modified(score, row, head, query, key):
    return score * (1 + 0.1 * head) + TABLE[head, query - key] * (row + 1)


def allowed(row, head, query, key):
    return (query >= key) & ((query + key + row) % 3 != head)


def slow_pattern(query, key, scale, starts=None):
    """One entry after the other, in double precision; `starts` where rows are packed."""
    rows, heads, positions, _ = query.shape
    pattern = torch.zeros(rows, heads, positions, positions, dtype=torch.float64)
    for row, head, at in np.ndindex(rows, heads, positions):
        start = 0 if starts is None else int(starts[row])
        scores = []
        for of in range(positions):
            place = (
                torch.tensor(0 if starts is not None else row),
                torch.tensor(head),
                torch.tensor(at + start),
                torch.tensor(of + start),
            )
            score = query[row, head, at].double() @ key[row, head * key.shape[1] // heads, of].double() * scale
            open_ = bool(allowed(*place)) and of <= at
            scores.append(float(modified(score, *place)) if open_ else -np.inf)
        scores = torch.tensor(scores, dtype=torch.float64)
        if torch.isfinite(scores).any():
            pattern[row, head, at] = scores.softmax(0)
    return pattern


def reader_of(query, key, scale, starts=None, grouped=True):
    positions = query.shape[2]
    rows = torch.arange(len(query)) if starts is None else torch.zeros(len(query), dtype=torch.long)
    mods = Mods(modified, allowed, rows, torch.zeros_like(rows) if starts is None else starts)
    pattern = slow_pattern(query, key, scale, starts)
    places = torch.arange(positions)
    scores = query.double() @ key.double().repeat_interleave(2, 1).mT * scale
    told = mods.scores(scores, places[None], places[None, None]).logsumexp(-1)
    return FlexReader(query, key, told.float(), scale, mask=None, causal=False, mods=mods), pattern


@pytest.mark.parametrize("starts", [None, torch.tensor([0, 17, 34])])
@pytest.mark.parametrize("scale", [0.4, -0.4])
def test_entries_are_those_of_a_slow_pattern(scale, starts):
    """Grouped queries, functions that differ by row and head, and queries that may attend to nothing."""
    query, key = numbers(3, 4, 17, 8)[:, :2], numbers(3, 1, 17, 8, seed=2)
    reader, pattern = reader_of(query, key, scale, starts)
    assert (pattern.sum(-1) == 0).any()
    close = {"atol": 1e-5, "rtol": 0}
    lines = reader.diagonals([0, 1, 5, 40], first=True)
    for index, offset in enumerate((0, 1, 5)):
        torch.testing.assert_close(lines[:, :, index, offset:].double(), pattern.diagonal(-offset, -2, -1), **close)
        assert not lines[:, :, index, :offset].any()
    assert not lines[:, :, 3].any()
    torch.testing.assert_close(lines[:, :, 4].double(), pattern[..., 0], **close)
    keys = torch.tensor([3, 0, 16])
    torch.testing.assert_close(reader.columns(keys).double(), pattern[range(3), :, :, keys], **close)
    rows, queries, of = torch.tensor([2, 0, 2, 2, 1]), torch.tensor([4, 16, 9, 0, 3]), torch.tensor([2, 0, 9, 0, 3])
    torch.testing.assert_close(reader.pairs(rows, queries, of).double(), pattern[rows, :, queries, of], **close)
    assert reader.pairs(rows[:0], queries[:0], of[:0]).shape == (0, 2)
    torch.testing.assert_close(reader.pattern_of(range(5, 12)).double(), pattern[:, :, 5:12], **close)


@pytest.mark.parametrize(("dtype", "close"), [(torch.bfloat16, 2e-2), (torch.float16, 3e-3), (torch.float64, 1e-9)])
def test_other_precisions_are_read_as_they_run(dtype, close):
    """Against a twin by sdpa."""
    one, other = plain(masked).to(dtype), plain(None).to(dtype)
    here, there = load_model(one), load_model(other)
    assert here.backend.name == "flex_attention"
    np.testing.assert_allclose(measure_heads(here).prefix_matching, measure_heads(there).prefix_matching, atol=close)


def test_under_autocast_queries_are_read_in_the_lower_precision():
    """As the function takes them there."""

    class Lower(nn.Module):
        def __init__(self, attend):
            super().__init__()
            self.inner = plain(attend)

        def forward(self, tokens):
            with torch.autocast("cpu", torch.bfloat16):
                return self.inner(tokens).float()

    one, other = (measure_heads(Lower(attend)) for attend in (masked, None))
    assert one.provenance.backend == "flex_attention"
    np.testing.assert_allclose(one.prefix_matching, other.prefix_matching, atol=2e-2)
