"""What changes together in a run: the evidence on induction, and on what must change with it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from pytest_induction.records import Estimate, Evidence, Verdict
from pytest_induction.runs.phase_change import MARGIN, PhaseChange, are_together, is_narrow
from pytest_induction.statistics import mean_interval


def together(evidence: Evidence, found: PhaseChange, margin: float = MARGIN, *, strict: bool = True) -> Evidence:
    """The evidence on a run in which in-context learning must change with induction.

    Unless it is `strict`, changes between the same snapshots are together, though these may be farther apart than the margin.
    """
    if evidence.verdict is not Verdict.FORMED:
        return evidence
    change, lag = found.in_context_learning, found.lag
    if change is None:
        return replace(
            evidence,
            verdict=Verdict.UNDETERMINED,
            reason="icl_not_recorded",
            summary=f"{evidence.summary}; in-context learning was not recorded",
            settle="record or sweep with a held-out text (`text=`, --text), or ask without (`co_occurring=False`)",
        )
    if not (change.verdict is Verdict.FORMED or is_narrow(change, found.bars["max_width"])) or lag is None:
        reason = f"icl_{change.reason}"
        summary = f"{evidence.summary}; but {change.summary}"
        return replace(evidence, verdict=change.verdict, reason=reason, summary=summary, settle=change.settle)
    summary = f"{evidence.summary}; in-context learning changes {apart(lag)} after"
    if not strict and found.induction is not None and are_together(found.induction, change, lag, margin):
        return replace(evidence, summary=summary, bars={**evidence.bars, "margin": margin})
    return _within(evidence, lag, margin, summary)


def with_turn(evidence: Evidence, found: PhaseChange) -> Evidence:
    """The evidence on a run, with what the path of token losses does beside it, as far as that was recorded."""
    if evidence.verdict is not Verdict.FORMED or found.turn is None:
        return evidence
    said = found.turn.summary if found.turn_lag is None else f"the path of token losses turns {apart(found.turn_lag)} after"
    return replace(evidence, summary=f"{evidence.summary}; {said}")


def turning(evidence: Evidence, found: PhaseChange, margin: float) -> Evidence:
    """The evidence on a run in which the path of token losses must turn with induction, too."""
    if evidence.verdict is not Verdict.FORMED:
        return evidence
    change, lag = found.turn, found.turn_lag
    if change is None:
        return replace(
            evidence,
            verdict=Verdict.UNDETERMINED,
            reason="turn_not_recorded",
            summary=f"{evidence.summary}; the turn of the path of token losses was not recorded",
            settle="record or sweep with a held-out text (`text=`, --text), or ask without (`turn=False`)",
        )
    if change.verdict is not Verdict.FORMED or lag is None:
        summary = f"{evidence.summary}; but {change.summary}"
        return replace(evidence, verdict=change.verdict, reason=_about_turn(change.reason), summary=summary, settle=change.settle)
    return _within(evidence, lag, margin, f"{evidence.summary}; the path of token losses turns {apart(lag)} after", _about_turn)


def _about_turn(reason: str) -> str:
    return reason if "turn" in reason else f"turn_{reason}"


def _within(
    evidence: Evidence, lag: Estimate, margin: float, summary: str, reason: Callable[[str], str] = lambda reason: reason
) -> Evidence:
    bars = {**evidence.bars, "margin": margin}
    if -margin <= lag.low and lag.high <= margin:
        return replace(evidence, summary=summary, bars=bars)
    is_apart = lag.low > margin or lag.high < -margin
    return replace(
        evidence,
        verdict=Verdict.NOT_FORMED if is_apart else Verdict.UNDETERMINED,
        reason=reason("apart" if is_apart else "lag_unclear"),
        summary=f"{summary}: {'more than' if is_apart else 'not clearly within'} the {margin:.2f} that count as together",
        bars=bars,
        settle="" if is_apart else "record more snapshots around the change",
    )


def over_runs(
    parts: Sequence[Evidence], found: Sequence[PhaseChange], margin: float, error_rate: float, *, turn: bool
) -> Evidence:
    """The evidence on several runs: the mean of their distances."""
    about_distances = ("apart", "lag_unclear", "turn_apart", "turn_lag_unclear")
    without = [
        part
        for part, each in zip(parts, found, strict=True)
        if part.verdict is not Verdict.FORMED
        and (each.lag is None or (turn and each.turn_lag is None) or part.reason not in about_distances)
    ]
    names = ", ".join(part.provenance.model for part in parts)
    about = replace(parts[0].provenance, model=names, probe=f"{len(parts)} runs")
    if without:
        first = without[0]
        named = f"the first is {first.provenance.model}: {first.summary}"
        summary = f"{len(without)} of {len(parts)} runs have no two changes to compare, {named}"
        return replace(first, summary=summary, provenance=about)
    lag = _mean_lag([each.lag for each in found], error_rate)
    changes = tuple(change for part in parts for change in part.changes)
    whole = replace(parts[0], verdict=Verdict.FORMED, reason="formed", provenance=about, estimates={"lag": lag}, changes=changes)
    judged = _within(whole, lag, margin, f"over {len(parts)} runs in-context learning changes {apart(lag)} after induction")
    if turn:
        turn_lag = _mean_lag([each.turn_lag for each in found], error_rate)
        judged = replace(judged, estimates={**judged.estimates, "turn_lag": turn_lag})
        if judged.verdict is Verdict.FORMED:
            summary = f"{judged.summary}; the path of token losses turns {apart(turn_lag)} after"
            judged = _within(judged, turn_lag, margin, summary, _about_turn)
    return replace(judged, settle="more runs: the interval is that of a mean over them" if judged.settle else "")


def _mean_lag(lags: Sequence[Estimate | None], error_rate: float) -> Estimate:
    return mean_interval(np.array([[lag.value] for lag in lags if lag is not None]), error_rate, "decades")[0]


def apart(lag: Estimate) -> str:
    """A distance of two changes in words."""
    return f"{lag.value:+.3f} decades ({lag.low:+.3f}..{lag.high:+.3f})"
