"""Scores of patterns that a test took from somewhere else, by loops, and how far ours lie from them."""

import numpy as np
import torch

from pytest_induction import measure_heads
from tests.measuring import slow

TOLERANCE = 1e-4


def repeated(rows=2, period=9, positions=24, d_vocab=61, lowest=4):
    """Token ids that repeat, with every row another sequence."""
    tokens = torch.randint(lowest, d_vocab, (rows, period), generator=torch.Generator().manual_seed(1))
    return tokens.repeat(1, positions // period + 1)[:, :positions]


def worst_difference(model, tokens, patterns, attention_mask=None):
    """The largest difference of any score of any head from those of the patterns (layers of batch, heads, queries, keys)."""
    found = measure_heads(model, tokens=tokens, attention_mask=attention_mask).per_sequence
    assert found["prefix_matching"].shape[1] == len(patterns), "another number of layers"
    worst = 0.0
    for layer, pattern in enumerate(patterns):
        for row, head in np.ndindex(*pattern.shape[:2]):
            real = None if attention_mask is None else attention_mask[row].tolist()
            wanted = slow.head_scores(pattern[row, head].double().numpy(), tokens[row].tolist(), real)
            worst = max(worst, *(abs(found[name][row, layer, head] - value) for name, value in wanted.items()))
    return worst


def softmax_by_loop(query, key, scale, change=lambda scores: scores):
    """Causal patterns (batch, heads, queries, keys) of queries and keys (batch, heads, positions, d_head), row by row."""
    batch, heads, positions, _ = query.shape
    key = key.repeat_interleave(heads // key.shape[1], 1).double()
    patterns = torch.zeros(batch, heads, positions, positions, dtype=torch.float64)
    for row, head, position in np.ndindex(batch, heads, positions):
        scores = change(key[row, head, : position + 1] @ query[row, head, position].double() * scale)
        weights = torch.exp(scores - scores.max())
        patterns[row, head, position, : position + 1] = weights / weights.sum()
    return patterns
