"""Is there a virtual induction head? Two heads that match prefixes together, in a model that copies and has no single one."""

from __future__ import annotations

import numpy as np

from pytest_induction.betting import bounded_intervals, more_rows
from pytest_induction.criteria import MIN_PERIODS, is_above, is_below, matches_by_means, min_excess
from pytest_induction.records import PairEvidence, Verdict
from pytest_induction.statistics import SHARE
from pytest_induction.verdicts.judgement import Judgement
from pytest_induction.virtual import PairRound

MOST_PAIRS = 3  # that are named


def judge_virtual_head(found: PairRound, *, min_prefix_matching: float, error_rate: float) -> Judgement:
    """Do two heads match prefixes in two steps, above the threshold of a single head and above their own chance?

    Half of `error_rate` goes to the composed scores, half to what is left of them without chance; shared by all pairs for what is
    shown to be above, and not for what is shown to be below.
    """
    every = _pairs(found, min_prefix_matching, error_rate / 2)
    near = [pair for pair in every if not is_below(pair.composed, pair.excess, min_prefix_matching)]
    clear = [
        pair for pair in near if is_above(pair.composed, pair.excess, min_prefix_matching) and pair.periods_passed >= MIN_PERIODS
    ]
    if clear:
        words = f"{clear[0]} match prefixes in two steps, composed score {clear[0].composed.value:.3f}"
        return Judgement(Verdict.FORMED, "formed_virtual", words, pairs=tuple(clear[:MOST_PAIRS]))
    if not near:
        return Judgement(Verdict.NOT_FORMED, "no_pair_matches", "no pair of heads matches prefixes in two steps")
    first, count = near[0], len(found.periods)
    more = max(
        more_rows(first.composed, min_prefix_matching, count),
        more_rows(first.excess, min_excess(min_prefix_matching), count),
    )
    words = f"{first} have composed score {first.composed.value:.3f}, too close to {min_prefix_matching:.3f} to tell"
    return Judgement(Verdict.UNDETERMINED, "pairs_unclear", words, pairs=(first,), more_sequences=more)


def _pairs(found: PairRound, bar: float, error_rate: float) -> list[PairEvidence]:
    """Every pair, strongest first."""
    exists = found.exists
    composed, chance, whole = (
        values[:, exists].astype(np.float64) for values in (found.composed, found.chance, found.prefix_matching)
    )
    above = error_rate / max(1, composed.shape[1])
    scores = bounded_intervals(composed, above, error_rate, unit=SHARE)
    excesses = bounded_intervals(composed - chance, above, error_rate, lowest=-1.0, unit="excess")
    passed = np.zeros(composed.shape[1], dtype=np.int64)
    for period in np.unique(found.periods):
        rows = found.periods == period
        means = {"prefix_matching": composed[rows].mean(axis=0), "excess": (composed - chance)[rows].mean(axis=0)}
        passed += matches_by_means(means, bar)
    each = zip(np.argwhere(exists), scores, excesses, whole.mean(axis=0), passed, strict=True)
    pairs = [
        PairEvidence(int(layer), int(head), int(before), int(other), score, excess, float(mean), int(periods))
        for (layer, head, before, other), score, excess, mean, periods in each
    ]
    return sorted(pairs, key=lambda pair: -pair.composed.value)
