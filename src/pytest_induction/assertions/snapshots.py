"""Does one snapshot of a run have an induction head? From what was recorded of it; no model is loaded."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace

import numpy as np

from pytest_induction.criteria import is_above, is_open
from pytest_induction.records import Estimate, Evidence, HeadEvidence, Verdict
from pytest_induction.runs.bump import scatter_of
from pytest_induction.runs.changes import POWER, WORDS
from pytest_induction.runs.record import Snapshot, TrainingRun
from pytest_induction.statistics import SHARE, student_quantile
from pytest_induction.verdicts.mosaic import mosaic

NEAREST = 3  # heads named beside those that are found


def can_be_judged(snapshot: Snapshot) -> bool:
    """Whether a snapshot has scores of heads with their errors, and behaviour."""
    known = snapshot.prefix_matching is not None and "excess" in snapshot.errors
    return known and snapshot.advantage is not None and snapshot.n_sequences >= 2


def judge_snapshot(snapshot: Snapshot, bars: Mapping[str, float], error_rate: float, evidence: Evidence) -> Evidence:
    """The evidence with a verdict on one snapshot: does it have an induction head, in a model that uses it.

    `bars` are `min_prefix_matching` and `min_advantage`.
    """
    bar = bars["min_prefix_matching"]
    heads = sorted(_heads(snapshot, error_rate), key=lambda head: -head.prefix_matching.value)
    found = tuple(head for head in heads if is_above(head.prefix_matching, head.excess, bar))
    unclear = any(is_open(head.prefix_matching, head.excess, bar) for head in heads)
    advantage = _interval(
        snapshot.advantage or 0.0, snapshot.errors.get("advantage"), snapshot.n_sequences, error_rate / 3, "nats"
    )
    best = f"{heads[0]} has prefix matching {heads[0].prefix_matching.value:.3f}" if heads else "there are no heads"
    seen = f"at step {snapshot.step} {best}, advantage of the successor {advantage.value:+.2f} nats"
    if found and advantage.is_above(bars["min_advantage"]):
        verdict, reason = Verdict.FORMED, "formed"
    elif not (found or unclear):
        verdict, reason = Verdict.NOT_FORMED, "no_head_matches"
    elif advantage.is_below(bars["min_advantage"]):
        verdict, reason = Verdict.NOT_FORMED, "matches_without_copying"
    else:
        verdict, reason = Verdict.UNDETERMINED, "heads_unclear"
    return replace(
        evidence,
        verdict=verdict,
        reason=reason,
        summary=seen,
        heads=found,
        nearest=tuple(head for head in heads if head not in found)[:NEAREST],
        estimates={"advantage": advantage},
        bars={**evidence.bars, **bars},
        confidence=1 - error_rate,
        settle="assert about the checkpoint itself: it can be measured on more sequences" if reason == "heads_unclear" else "",
        mosaic=() if snapshot.prefix_matching is None else mosaic(snapshot.prefix_matching[None]),
    )


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


def judge_values(run: TrainingRun, place: int, bars: Mapping[str, float], evidence: Evidence) -> Evidence:
    """The same of a snapshot whose standard errors are not known: a value counts 2.8 standard deviations of the scatter away.

    Of heads and behaviour one may be missing, which is said.
    """
    snapshot, known, missing = run.snapshots[place], {}, []
    for name, bar in (("prefix_matching", bars["min_prefix_matching"]), ("advantage", bars["min_advantage"])):
        values = run.best_of_heads(name)[0] if name == "prefix_matching" else run.column(name)
        if not math.isfinite(values[place]):
            missing.append(WORDS[name])
            continue
        half = POWER * scatter_of(values[np.isfinite(values)])
        known[name] = (Estimate(float(values[place]), float(values[place]) - half, float(values[place]) + half), bar)
    above = [value.is_above(bar) for value, bar in known.values()]
    below = [value.is_below(bar) for value, bar in known.values()]
    verdict = Verdict.NOT_FORMED if any(below) else Verdict.FORMED if all(above) else Verdict.UNDETERMINED
    reason = {Verdict.FORMED: "formed", Verdict.NOT_FORMED: "not_there"}.get(verdict, "level_unclear")
    said = ", ".join(f"{WORDS[name]} {value.value:.3g}" for name, (value, _) in known.items())
    without = f" ({' and '.join(missing)} not recorded)" if missing else ""
    return replace(
        evidence,
        verdict=verdict,
        reason=reason,
        summary=f"at step {snapshot.step} {said}{without}",
        estimates={name: value for name, (value, _) in known.items()},
        settle="sweep the checkpoints: their scores have standard errors" if verdict is Verdict.UNDETERMINED else "",
    )
