"""Hypothesis strategies for probes whose right answer is known; see `pytest_induction.probes.strategies`."""

from pytest_induction.probes.strategies import (
    conflicting_ngrams,
    distractor_pairs,
    near_misses,
    nested_repeats,
    partial_repeats,
    period_pairs,
    relabelled_pairs,
    repeated_sequences,
    unrepeated_sequences,
)

__all__ = [
    "conflicting_ngrams",
    "distractor_pairs",
    "near_misses",
    "nested_repeats",
    "partial_repeats",
    "period_pairs",
    "relabelled_pairs",
    "repeated_sequences",
    "unrepeated_sequences",
]
