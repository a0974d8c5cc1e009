"""TEMP."""

from __future__ import annotations

from collections.abc import Mapping

MIN_PREFIX_MATCHING = 0.3
MAX_PREFIX_MATCHING = 0.1  # beyond chance; a head that has less counts as none
MARGIN = 0.1  # on both sides of the threshold, within which a list of heads leaves it open
IRREGULAR = 0.05  # mass at irregular distances below which nothing is left of a head that follows periods
MIN_ADVANTAGE = 0.5
EXCESS_SHARE = 0.5
MIN_PERIODS = 2
MIN_SUPPRESSION = 0.25
CLEAR, DORMANT = 0.3, 0.9


def min_excess(min_prefix_matching: float) -> float:
    return min_prefix_matching * EXCESS_SHARE


def kind_of_head(score: float, excess: float, measured: Mapping[str, float], min_prefix_matching: float) -> str:
    if score >= min_prefix_matching:
        return "matches" if excess >= min_excess(min_prefix_matching) else "positional"
    for name in ("previous_token", "duplicate_token"):
        if measured[name] >= CLEAR:
            return name.removesuffix("_token")
    return "dormant" if measured["first_token"] >= DORMANT else ""
