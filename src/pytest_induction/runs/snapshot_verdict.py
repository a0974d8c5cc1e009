"""Whether a model has an induction head, by what one snapshot has of it: no model is loaded.

The rule is that of the verdicts on models (`criteria`), asked of Student's intervals over the sequences of the snapshot.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from pytest_induction.criteria import MIN_ADVANTAGE, MIN_PREFIX_MATCHING, is_above, is_open
from pytest_induction.records import Estimate, HeadEvidence, Verdict
from pytest_induction.runs.record import Snapshot
from pytest_induction.statistics import SHARE, student_quantile

ERROR_RATE = 1e-3


@dataclass(frozen=True)
class SnapshotVerdict:
    """The verdict on a snapshot and what it rests on: all heads, the highest first, those that are shown to match, the advantage.

    `reason` is a fixed word: "formed", "no_head_matches", "matches_without_copying" or "heads_unclear".
    """

    verdict: Verdict
    reason: str
    heads: tuple[HeadEvidence, ...]
    found: tuple[HeadEvidence, ...]
    advantage: Estimate


def judge_snapshot(
    snapshot: Snapshot,
    *,
    min_prefix_matching: float = MIN_PREFIX_MATCHING,
    min_advantage: float = MIN_ADVANTAGE,
    error_rate: float = ERROR_RATE,
) -> SnapshotVerdict | None:
    """The verdict on a snapshot; None for one that has no scores of heads with their errors, or nothing of behaviour.

    `error_rate` is divided among heads and measures.
    """
    if snapshot.prefix_matching is None or "excess" not in snapshot.errors:
        return None
    if snapshot.advantage is None or snapshot.n_sequences < 2:
        return None
    heads = tuple(sorted(_heads(snapshot, error_rate), key=lambda head: -head.prefix_matching.value))
    found = tuple(head for head in heads if is_above(head.prefix_matching, head.excess, min_prefix_matching))
    unclear = any(is_open(head.prefix_matching, head.excess, min_prefix_matching) for head in heads)
    spread = snapshot.errors.get("advantage")
    advantage = _interval(snapshot.advantage, spread, snapshot.n_sequences, error_rate / 3, "nats")
    if found and advantage.is_above(min_advantage):
        verdict, reason = Verdict.FORMED, "formed"
    elif not (found or unclear):
        verdict, reason = Verdict.NOT_FORMED, "no_head_matches"
    elif advantage.is_below(min_advantage):
        verdict, reason = Verdict.NOT_FORMED, "matches_without_copying"
    else:
        verdict, reason = Verdict.UNDETERMINED, "heads_unclear"
    return SnapshotVerdict(verdict, reason, heads, found, advantage)


def _heads(snapshot: Snapshot, error_rate: float) -> Iterator[HeadEvidence]:
    """Every head of a snapshot with its intervals."""
    scores, excess = snapshot.prefix_matching, snapshot.excess
    spreads = [snapshot.errors.get(name) for name in ("prefix_matching", "excess")]
    if scores is None or excess is None or not all(isinstance(each, np.ndarray) for each in spreads):
        return
    rate = error_rate / 3 / max(1, int(np.isfinite(scores).sum()))
    for layer, head in np.argwhere(np.isfinite(scores)):
        one, two = (
            _interval(float(values[layer, head]), float(spread[layer, head]), snapshot.n_sequences, rate, SHARE)  # type: ignore[index]
            for values, spread in zip((scores, excess), spreads, strict=True)
        )
        previous, duplicate, first = (
            0.0 if values is None else float(values[layer, head])
            for values in (snapshot.previous_token, snapshot.duplicate_token, snapshot.first_token)
        )
        chance = float(scores[layer, head] - excess[layer, head])
        yield HeadEvidence(int(layer), int(head), one, two, chance, chance, previous, duplicate, first)


def _interval(value: float, error: object, count: int, error_rate: float, unit: str) -> Estimate:
    """Student's interval of a mean whose standard error is known; without one, nothing is known."""
    spread = float(error) if isinstance(error, (int, float)) else math.inf
    half = student_quantile(min(error_rate, 0.5) / 2, count - 1) * spread
    low, high = value - half, value + half
    return Estimate(value, *((max(low, min(value, 0.0)), min(high, max(value, 1.0))) if unit == SHARE else (low, high)), unit)
