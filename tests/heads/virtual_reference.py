"""The virtual prefix-matching scores from whole patterns, by loops over queries, earlier occurrences and positions between."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def pair_scores(later: np.ndarray, earlier: np.ndarray, tokens: Sequence[int], shift: int = 0) -> dict[str, float]:
    """Scores of two heads from their patterns (queries, keys), over one row whose `tokens` say what repeats what.

    With a `shift` the keys so far from the successors are looked at instead.
    """
    product = later @ earlier
    whole, composed = [], []
    for query in range(len(tokens)):
        earlier_occurrences = [key for key in range(query) if tokens[key] == tokens[query]]
        if not earlier_occurrences:
            continue
        keys = [key + 1 + shift for key in earlier_occurrences]
        whole.append(sum(product[query, key] for key in keys))
        composed.append(
            sum(
                later[query, between] * earlier[between, key]
                for key in keys
                for between in range(len(tokens))
                if tokens[between] not in (tokens[query], tokens[key])
            )
        )
    return {"prefix_matching": float(np.mean(whole)), "composed": float(np.mean(composed))}


def single_score(pattern: np.ndarray, tokens: Sequence[int]) -> float:
    """Prefix matching of one head from its pattern (queries, keys)."""
    found = []
    for query in range(len(tokens)):
        occurrences = [key for key in range(query) if tokens[key] == tokens[query]]
        if occurrences:
            found.append(sum(pattern[query, key + 1] for key in occurrences))
    return float(np.mean(found))
