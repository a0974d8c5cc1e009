"""Assertion that a training has induction by some point, however it came about: for public checkpoints and for releases."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from pytest_induction.assertions.boundary import check_advantage, check_share, checked_bounds, expect
from pytest_induction.assertions.runs import RunLike, provenance_of
from pytest_induction.assertions.snapshots import Level, levels_of, with_levels, with_snapshot
from pytest_induction.criteria import MIN_ADVANTAGE, MIN_PREFIX_MATCHING
from pytest_induction.errors import user_facing
from pytest_induction.records import Estimate, Evidence, Verdict
from pytest_induction.runs.opening import load_run
from pytest_induction.runs.phase_change import NOTHING_RECORDED, SWEEP
from pytest_induction.runs.record import TrainingRun
from pytest_induction.runs.snapshot_verdict import ERROR_RATE, judge_snapshot


@user_facing
def assert_formed(
    run: RunLike,
    *,
    before_tokens: float | None = None,
    before_step: int | None = None,
    min_prefix_matching: float = MIN_PREFIX_MATCHING,
    min_advantage: float = MIN_ADVANTAGE,
    error_rate: float = ERROR_RATE,
) -> Evidence:
    """Assert that a training has an induction head by then, and at its end, however fast that came about.

    By `before_tokens` tokens trained on, by `before_step` optimiser steps, by both, or, with neither, at the end. What counts is
    the last snapshot until then, by the thresholds of `assert_final_has_induction_head`: few checkpoints, as of public models,
    are enough. The last snapshot of all must have a head too: what is lost again is NOT_FORMED. Where the snapshots beside
    the bound differ, or the run ends before it without a head, it is UNDETERMINED.

    Logs have no standard errors: scores of heads and the advantage then must lie 2.8 standard deviations of their scatter beyond
    the thresholds, and what is not there is left out, and said. `run` is a `TrainingRun`, or whatever `load_run` opens. Returns
    the evidence, whose estimate `formed` is the step of the first snapshot that has a head, from the one before it on. Raises
    `ExpectationFailed`, which carries the evidence, or `RunError` for a run that cannot be read.

    >>> assert_formed("fixtures/runs/two-layers", before_step=300).reason     # doctest: +SKIP
    'formed'
    """
    check_share("min_prefix_matching", min_prefix_matching)
    check_share("error_rate", error_rate)
    check_advantage(min_advantage)
    bounds = checked_bounds(before_tokens=before_tokens, before_step=before_step)
    opened = load_run(run)
    bars = {"min_prefix_matching": min_prefix_matching, "min_advantage": min_advantage}
    evidence = Evidence("formed", Verdict.UNDETERMINED, "not_recorded", "", provenance_of(opened), bars={**bars, **bounds})
    return expect(_Formed(opened, bars, error_rate, evidence).judged(bounds), Verdict.FORMED)


@dataclass(frozen=True)
class _Formed:
    """The snapshots of a run that have something to say of induction, judged where it is asked."""

    run: TrainingRun
    bars: dict[str, float]
    error_rate: float
    evidence: Evidence
    _known: dict[int, Evidence] = field(default_factory=dict)

    def judged(self, bounds: dict[str, float]) -> Evidence:
        """The evidence, on induction by every bound, and at the end."""
        index = self._index()
        if not index:
            return replace(self.evidence, summary=NOTHING_RECORDED, settle=SWEEP)
        last = self._at(index[-1])
        ends = [self._by(index, name, bar) for name, bar in bounds.items()]
        found = next((each for each in ends if each.verdict is not Verdict.FORMED), None)
        if found is None:
            found = self._at_the_end(last, ends[0] if ends else None)
        return replace(found, estimates={**found.estimates, **self._first(index)})

    def _index(self) -> list[int]:
        """The numbers of the snapshots that have scores of heads or behaviour."""
        shots = enumerate(self.run.snapshots)
        return [place for place, each in shots if each.prefix_matching is not None or each.advantage is not None]

    def _at(self, place: int) -> Evidence:
        """The verdict on one snapshot, asked once."""
        if place not in self._known:
            self._known[place] = self._judged(place)
        return self._known[place]

    def _judged(self, place: int) -> Evidence:
        snapshot = self.run.snapshots[place]
        evidence = replace(self.evidence, provenance=replace(self.evidence.provenance, n_sequences=snapshot.n_sequences))
        judged = judge_snapshot(snapshot, **self.bars, error_rate=self.error_rate)
        if judged is None:
            return with_levels(evidence, snapshot.step, place, self._levels, self.bars)
        return with_snapshot(replace(evidence, confidence=1 - self.error_rate), snapshot, judged)

    @cached_property
    def _levels(self) -> dict[str, Level]:
        """What a snapshot without standard errors is judged by."""
        return levels_of(self.run)

    def _by(self, index: list[int], name: str, bar: float) -> Evidence:
        """The verdict on induction by a bound."""
        amounts, unit = (self.run.tokens, "tokens") if name == "before_tokens" else (self.run.steps.astype(np.float64), "steps")
        if not np.isfinite(amounts[index]).all():
            return replace(
                self.evidence,
                reason="tokens_not_known",
                summary="how many tokens its snapshots were trained on is not known",
                settle="give the run its `tokens_per_step`, or ask with `before_step`",
            )
        until = [place for place in index if amounts[place] <= bar]
        after = [place for place in index if amounts[place] > bar]
        said = f"by {bar:.4g} {unit}"
        if not until:
            return replace(
                self.evidence,
                reason="not_recorded",
                summary=f"{said} there is no snapshot: the first is at {amounts[index[0]]:.4g}",
                settle=f"measure a checkpoint at or before {bar:.4g} {unit}",
            )
        found = self._at(until[-1])
        if found.verdict is Verdict.FORMED:
            return replace(found, summary=f"{said}: {found.summary}")
        if amounts[until[-1]] < bar:  # what is so at the bound lies between two snapshots, or beyond the end
            if not after:
                seen = f"the run ends before {bar:.4g} {unit} without it: {found.summary}"
                return replace(found, verdict=Verdict.UNDETERMINED, reason="not_over", summary=seen, settle="train further")
            if found.verdict is Verdict.NOT_FORMED and (later := self._at(after[0])).verdict is not Verdict.NOT_FORMED:
                seen = f"{said} it is not known: {found.summary}; {later.summary}"
                more = f"measure a checkpoint nearer to {bar:.4g} {unit}"
                return replace(found, verdict=Verdict.UNDETERMINED, reason="between_snapshots", summary=seen, settle=more)
        is_late = found.verdict is Verdict.NOT_FORMED and bool(after) and self._at(after[-1]).verdict is Verdict.FORMED
        reason = "too_late" if is_late else found.reason
        return replace(found, reason=reason, summary=f"{said}: {found.summary}")

    def _at_the_end(self, last: Evidence, by: Evidence | None) -> Evidence:
        """The evidence on a run that has it by every bound: the last snapshot must, too."""
        if by is None or last.verdict is Verdict.FORMED:
            return by or last
        lost = last.verdict is Verdict.NOT_FORMED
        seen = f"{by.summary}; but {'it is lost: ' if lost else ''}{last.summary}"
        return replace(last, reason="lost" if lost else last.reason, summary=seen)

    def _first(self, index: list[int]) -> dict[str, Estimate]:
        """Between which snapshots it formed: the first that has it, and the one before; nothing where none has."""
        for before, place in zip([None, *index], index, strict=False):
            if self._at(place).verdict is Verdict.FORMED:
                step, low = float(self.run.steps[place]), 0.0 if before is None else float(self.run.steps[before])
                return {"formed": Estimate(step, low, step, "steps")}
        return {}
