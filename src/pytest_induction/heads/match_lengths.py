"""Measure how many tokens must match before a head attends to what came next: on rows of segments at irregular distances."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pytest_induction.errors import ArgumentError, user_facing, whole_number
from pytest_induction.heads.criteria import MIN_PREFIX_MATCHING, excess
from pytest_induction.measuring.observing import Array, ModelLike, plain_scores, provenance
from pytest_induction.measuring.rounds import price_of_probes, score_irregular
from pytest_induction.model.load import load_model
from pytest_induction.model.protocol import ModelUnderTest
from pytest_induction.probes.irregular import LENGTHS, LISTS, irregular_sequences
from pytest_induction.probes.sequences import COPIES, LONGEST_PERIOD
from pytest_induction.progress import progress
from pytest_induction.records import Provenance
from pytest_induction.spending import Price, priced

POSITIONS = LONGEST_PERIOD * COPIES  # of the rows, behind the first token: as many as the longest periodic probe has


@dataclass(frozen=True)
class MatchLengthScores:
    """Prefix matching of every head by how many tokens match, arrays (n_layers, n_heads) of means over sequences, in [0, 1].

    `exactly_one`, `exactly_two` and `three_or_more` are the mass on the position after the earlier occurrence where so many
    tokens up to the query match. `after_breaks` is their null: the mass on the position that would come next where a match has
    just ended. `per_sequence` holds the same before the mean: name -> (n_sequences, n_layers, n_heads). Where layers differ in
    their number of heads, a head that a layer does not have is NaN.
    """

    exactly_one: Array
    exactly_two: Array
    three_or_more: Array
    after_breaks: Array
    per_sequence: Mapping[str, Array]
    provenance: Provenance

    @property
    def layers(self) -> tuple[str, ...]:
        """The paths of the modules whose attention was measured, one for each row of the scores."""
        return self.provenance.layers

    def match_length(self, min_prefix_matching: float = MIN_PREFIX_MATCHING) -> NDArray[np.int64]:
        """The least number of matching tokens with which a head matches: 1, 2 or 3, where 3 stands for more too, and 0 for none.

        A head matches where its score exceeds `after_breaks` by `min_prefix_matching` or more. Array (n_layers, n_heads), 0 also
        for a head that a layer does not have.
        """
        if not 0 < min_prefix_matching <= 1:
            raise ArgumentError(f"`min_prefix_matching` must be above 0 and at most 1, got {min_prefix_matching!r}")
        beyond = np.stack([excess({"prefix_matching": getattr(self, name), "chance": self.after_breaks}) for name in LENGTHS])
        reached = beyond >= min_prefix_matching  # NaN reaches nothing
        return np.where(reached.any(axis=0), reached.argmax(axis=0) + 1, 0)

    def to_dict(self) -> dict[str, Any]:
        """Plain lists and strings, with the version of this layout under `schema`."""
        return plain_scores(self, LISTS)


def price_of_match_lengths(subject: ModelUnderTest, given: Mapping[str, Any]) -> Price:
    """Of one pass over rows of one length, shorter where the model has few ids."""
    most = given["n_sequences"] * (POSITIONS + (subject.space.bos_id is not None))
    return Price(min(most, price_of_probes(subject.space, given["n_sequences"]).least), most)


@user_facing
@priced(price_of_match_lengths)
def measure_match_lengths(model: ModelLike, *, n_sequences: int = 26, seed: int | None = None) -> MatchLengthScores:
    """Measure prefix matching of every head where exactly one, exactly two, and three or four tokens match.

    The rows have segments of four random tokens, each of which stands twice, at distances that differ from each other; all
    other tokens stand once. At the i-th token of a second occurrence exactly i tokens match, and the right key is the position
    after the first occurrence of that token. What follows a segment is another token each time: there nothing matches, and the
    key that would come next at the same distance, `after_breaks`, tells heads that match from heads that go on counting. Rows
    have as many positions as the longest periodic probe, 100 and the first token; fewer where the context is shorter or the
    vocabulary smaller.

    | a head that | 1 | 2 | 3 or more | break | match length |
    |---|---|---|---|---|---|
    | attends after every earlier occurrence, or the latest | 1 | 1 | 1 | 0 | 1 |
    | does so where the token before matches too | 0 | 1 | 1 | 0 | 2 |
    | does so where the two tokens before match too | 0 | 0 | 1 | 0 | 3 |
    | notices a distance by the four tokens before, and counts on | 0 | 0 | 0 | 1 | 0 |
    | notices it by the token before, and counts on | 0 | 1 | 1 | 1 | 0 |
    | always counts back as far | c | c | c | c | 0 |
    | is uniform over the past | u | u | u | u | 0 |
    | rests on the first token | 0 | 0 | 0 | 0 | 0 |

    c is the share of segments that recur at that very distance: at most one of those in a row. u is the mean of 1 / (q + 1) over
    the queries q, about 0.02 for 101 positions. See docs/metrics.md. Raises `ModelError` for a model whose attention cannot be
    read, `ProbeError` for one with fewer than six usable ids or without room for two occurrences.

    >>> scores = measure_match_lengths(model)                        # doctest: +SKIP
    >>> scores.match_length()                                        # doctest: +SKIP
    array([[0, 0, 0, 0],
           [1, 0, 0, 0]])
    """
    whole_number("n_sequences", n_sequences, least=1)
    if seed is not None:
        whole_number("seed", seed, least=0)
    subject = load_model(model)
    seed = subject.seed if seed is None else seed
    n_positions = POSITIONS + (subject.space.bos_id is not None)
    rng = np.random.default_rng([seed, 14])
    rows = irregular_sequences(subject.space, n_positions=n_positions, rng=rng, n_sequences=n_sequences)
    with progress("match lengths of heads", n_sequences):
        per_sequence = score_irregular(subject, rows)
    means = {name: scores.mean(axis=0) for name, scores in per_sequence.items()}
    described = f"segments at irregular distances, {len(rows.exactly_one[0])} a row, {rows.n_positions} positions"
    about = provenance(subject, seed=seed, n_sequences=n_sequences, probe=described)
    return MatchLengthScores(**means, per_sequence=per_sequence, provenance=about)
