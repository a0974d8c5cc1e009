"""Hypothesis strategies for probes whose right answer is known, and the search over them. The only place that knows hypothesis.

Every strategy takes the model first (what `load_model` takes, a `TokenSpace`, or a vocabulary size), and its options by name.
Sizes are a number, a `range`, a pair (least, most) or a strategy of your own. Everything shrinks to the shortest period, the
fewest repeats, no gaps and the smallest ids.
"""

from pytest_induction.probes.strategies.kinds import (
    conflicting_ngrams,
    distractor_pairs,
    key_value_pairs,
    near_misses,
    nested_repeats,
    partial_repeats,
    period_pairs,
    relabelled_pairs,
    repeated_sequences,
    rule_lines,
    unrepeated_sequences,
)

__all__ = [
    "conflicting_ngrams",
    "distractor_pairs",
    "key_value_pairs",
    "near_misses",
    "nested_repeats",
    "partial_repeats",
    "period_pairs",
    "relabelled_pairs",
    "repeated_sequences",
    "rule_lines",
    "unrepeated_sequences",
]
