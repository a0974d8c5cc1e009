"""Assertions on what heads a training ends with: formed at all, kept to the end, in the last snapshot; and a log that is sane."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pytest_induction.errors import user_facing
from pytest_induction.expectations import check_advantage, check_share, checked_bounds, expect
from pytest_induction.heads.criteria import MIN_ADVANTAGE, MIN_PREFIX_MATCHING, chance_of_excess, is_above, is_open
from pytest_induction.heads.head_map import head_map
from pytest_induction.records import Change, Estimate, Evidence, HeadEvidence, HeadId, Verdict
from pytest_induction.runs.opening import load_run
from pytest_induction.runs.phase_change.bump import scatter_of
from pytest_induction.runs.phase_change.changes import FEWEST, POWER, WORDS
from pytest_induction.runs.phase_change.claims import RunLike, provenance_of
from pytest_induction.runs.phase_change.finding import NOTHING_RECORDED, SWEEP, find_phase_changes
from pytest_induction.runs.record import REPEATS, Snapshot, TrainingRun, of_best
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
        verdict, reason = Verdict.SHOWN, "formed"
    elif not (found or unclear):
        verdict, reason = Verdict.REFUTED, "no_head_matches"
    elif advantage.is_below(min_advantage):
        verdict, reason = Verdict.REFUTED, "matches_without_copying"
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
    of_chance = chance_of_excess({"prefix_matching": scores, "excess": excess})
    for layer, head in np.argwhere(np.isfinite(scores)):
        one, two = (
            _interval(float(values[layer, head]), float(spread[layer, head]), snapshot.n_sequences, rate, SHARE)  # type: ignore[index]
            for values, spread in zip((scores, excess), spreads, strict=True)
        )
        previous, duplicate, first = (
            0.0 if values is None else float(values[layer, head])
            for values in (snapshot.previous_token, snapshot.duplicate_token, snapshot.first_token)
        )
        chance = float(of_chance[layer, head])
        yield HeadEvidence(int(layer), int(head), one, two, chance, chance, previous, duplicate, first)


def _interval(value: float, error: object, count: int, error_rate: float, unit: str) -> Estimate:
    """Student's interval of a mean whose standard error is known; without one, nothing is known."""
    spread = float(error) if isinstance(error, (int, float)) else math.inf
    half = student_quantile(min(error_rate, 0.5) / 2, count - 1) * spread
    low, high = value - half, value + half
    return Estimate(value, *((max(low, min(value, 0.0)), min(high, max(value, 1.0))) if unit == SHARE else (low, high)), unit)


NEAREST = 3  # heads named beside those that are found


def with_snapshot(evidence: Evidence, snapshot: Snapshot, judged: SnapshotVerdict) -> Evidence:
    """The evidence with the verdict on a snapshot."""
    heads = judged.heads
    best = f"{heads[0]} has prefix matching {heads[0].prefix_matching.value:.3f}" if heads else "there are no heads"
    unclear = "assert about the checkpoint itself: it can be measured on more sequences"
    return replace(
        evidence,
        verdict=judged.verdict,
        reason=judged.reason,
        summary=f"at step {snapshot.step} {best}, advantage of the successor {judged.advantage.value:+.2f} nats",
        heads=judged.found,
        nearest=tuple(head for head in heads if head not in judged.found)[:NEAREST],
        estimates={"advantage": judged.advantage},
        next_step=unclear if judged.reason == "heads_unclear" else "",
        head_map=() if snapshot.prefix_matching is None else head_map(snapshot.prefix_matching[None]),
    )


class Level(NamedTuple):
    """A measure at every snapshot, (snapshots,), and how far a single value may be off by its scatter."""

    values: NDArray[np.float64]
    half: float


def levels_of(run: TrainingRun) -> dict[str, Level]:
    """What is said of heads and behaviour where standard errors are not known: 2.8 standard deviations of the scatter count."""
    found = {"prefix_matching": run.best_of_heads("prefix_matching")[0], "advantage": run.column("advantage")}
    return {name: Level(values, POWER * scatter_of(values[np.isfinite(values)])) for name, values in found.items()}


def with_levels(
    evidence: Evidence, step: int, place: int, levels: Mapping[str, Level], thresholds: Mapping[str, float]
) -> Evidence:
    """The evidence with the verdict on a snapshot by levels. Of heads and behaviour one may be missing, which is said."""
    known, missing = {}, []
    for name, level in levels.items():
        value = float(level.values[place])
        if not math.isfinite(value):
            missing.append(WORDS[name])
            continue
        known[name] = (Estimate(value, value - level.half, value + level.half), thresholds[f"min_{name}"])
    above = [value.is_above(threshold) for value, threshold in known.values()]
    below = [value.is_below(threshold) for value, threshold in known.values()]
    verdict = Verdict.REFUTED if any(below) else Verdict.SHOWN if all(above) else Verdict.UNDETERMINED
    reason = {Verdict.SHOWN: "formed", Verdict.REFUTED: "not_there"}.get(verdict, "level_unclear")
    levels_text = ", ".join(f"{WORDS[name]} {value.value:.3g}" for name, (value, _) in known.items())
    without = f" ({' and '.join(missing)} not recorded)" if missing else ""
    return replace(
        evidence,
        verdict=verdict,
        reason=reason,
        summary=f"at step {step} {levels_text}{without}",
        estimates={name: value for name, (value, _) in known.items()},
        next_step="sweep the checkpoints: their scores have standard errors" if verdict is Verdict.UNDETERMINED else "",
    )


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
    """Assert that a training has an induction head by a given time, and at its end, however fast it formed.

    By `before_tokens` tokens trained on, by `before_step` optimiser steps, by both, or, with neither, at the end. What counts is
    the last snapshot until then, by the thresholds of `assert_final_has_induction_head`: few checkpoints, as of public models,
    are enough. The last snapshot of all must have a head too: what is lost again is REFUTED. Where the snapshots beside
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
    thresholds = {"min_prefix_matching": min_prefix_matching, "min_advantage": min_advantage}
    evidence = Evidence(
        "formed", Verdict.UNDETERMINED, "not_recorded", "", provenance_of(opened), thresholds={**thresholds, **bounds}
    )
    return expect(_Formed(opened, thresholds, error_rate, evidence).judged(bounds))


@dataclass(frozen=True)
class _Formed:
    """The snapshots of a run that have something to say of induction, judged where it is asked."""

    run: TrainingRun
    thresholds: dict[str, float]
    error_rate: float
    evidence: Evidence
    _known: dict[int, Evidence] = field(default_factory=dict)

    def judged(self, bounds: dict[str, float]) -> Evidence:
        """The evidence, on induction by every bound, and at the end."""
        index = self._index()
        if not index:
            return replace(self.evidence, summary=NOTHING_RECORDED, next_step=SWEEP)
        last = self._at(index[-1])
        ends = [self._by(index, name, bound) for name, bound in bounds.items()]
        found = next((each for each in ends if each.verdict is not Verdict.SHOWN), None)
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
        judged = judge_snapshot(snapshot, **self.thresholds, error_rate=self.error_rate)
        if judged is None:
            return with_levels(evidence, snapshot.step, place, self._levels, self.thresholds)
        return with_snapshot(replace(evidence, confidence=1 - self.error_rate), snapshot, judged)

    @cached_property
    def _levels(self) -> dict[str, Level]:
        """What a snapshot without standard errors is judged by."""
        return levels_of(self.run)

    def _by(self, index: list[int], name: str, bound: float) -> Evidence:
        """The verdict on induction by a bound."""
        amounts, unit = (self.run.tokens, "tokens") if name == "before_tokens" else (self.run.steps.astype(np.float64), "steps")
        if not np.isfinite(amounts[index]).all():
            return replace(
                self.evidence,
                reason="tokens_not_known",
                summary="the number of tokens that its snapshots were trained on is not known",
                next_step="give the run its `tokens_per_step`, or give `before_step` instead",
            )
        until = [place for place in index if amounts[place] <= bound]
        after = [place for place in index if amounts[place] > bound]
        when = f"by {bound:.4g} {unit}"
        if not until:
            return replace(
                self.evidence,
                reason="not_recorded",
                summary=f"{when} there is no snapshot: the first is at {amounts[index[0]]:.4g}",
                next_step=f"measure a checkpoint at or before {bound:.4g} {unit}",
            )
        found = self._at(until[-1])
        if found.verdict is Verdict.SHOWN:
            return replace(found, summary=f"{when}: {found.summary}")
        if amounts[until[-1]] < bound:  # what is so at the bound lies between two snapshots, or beyond the end
            if not after:
                seen = f"the run ends before {bound:.4g} {unit} without it: {found.summary}"
                return replace(found, verdict=Verdict.UNDETERMINED, reason="not_over", summary=seen, next_step="train further")
            if found.verdict is Verdict.REFUTED and (later := self._at(after[0])).verdict is not Verdict.REFUTED:
                seen = f"{when} it is not known: {found.summary}; {later.summary}"
                more = f"measure a checkpoint nearer to {bound:.4g} {unit}"
                return replace(found, verdict=Verdict.UNDETERMINED, reason="between_snapshots", summary=seen, next_step=more)
        is_late = found.verdict is Verdict.REFUTED and bool(after) and self._at(after[-1]).verdict is Verdict.SHOWN
        reason = "too_late" if is_late else found.reason
        return replace(found, reason=reason, summary=f"{when}: {found.summary}")

    def _at_the_end(self, last: Evidence, by: Evidence | None) -> Evidence:
        """The evidence on a run that has it by every bound: the last snapshot must, too."""
        if by is None or last.verdict is Verdict.SHOWN:
            return by or last
        lost = last.verdict is Verdict.REFUTED
        seen = f"{by.summary}; but {'it is lost: ' if lost else ''}{last.summary}"
        return replace(last, reason="lost" if lost else last.reason, summary=seen)

    def _first(self, index: list[int]) -> dict[str, Estimate]:
        """Between which snapshots it formed: the first that has it, and the one before; nothing where none has."""
        for before, place in zip([None, *index], index, strict=False):
            if self._at(place).verdict is Verdict.SHOWN:
                step, low = float(self.run.steps[place]), 0.0 if before is None else float(self.run.steps[before])
                return {"formed": Estimate(step, low, step, "steps")}
        return {}


KEPT = 0.8  # of the highest level that the best head has had
LOST_GAIN = 0.5  # of all that the loss had fallen: a run that gives so much back has diverged
SCATTER = 6  # times the scatter of single losses: no noise alone makes so much of a rise
AT_THE_END = 3  # snapshots whose mean stands for the end of a run


@user_facing
def assert_log_is_sane(run: RunLike) -> Evidence:
    """Assert that a run can be judged: it has enough snapshots, and every loss is a finite number that has not diverged.

    A loss has diverged if at the end (the mean of three snapshots) it has given back half of what it had fallen, or was ever as
    far above where it began as it fell below; a rise of six times the scatter of single losses or less is none. Lines that could
    not be read and parts that were trained again are named in the evidence, and do not fail. Without eight losses nothing is
    shown, and that fails. Of a run that has nothing but its loss the evidence has the bump too, as a report (`.changes`).
    Returns the evidence, or raises `ExpectationFailed`.
    """
    opened = load_run(run)
    problems = list(_problems(opened))
    losses = opened.column("loss")
    known = np.flatnonzero(np.isfinite(losses))
    estimates = {} if len(known) == 0 else {"final_loss": _exactly(float(losses[known[-1]]), "nats")}
    if problems:
        verdict, reason, summary = Verdict.REFUTED, "not_sane", problems[0]
    elif len(opened) < FEWEST:
        few = f"{len(opened)} snapshots; at least {FEWEST} are needed to judge a run"
        verdict, reason, summary = Verdict.UNDETERMINED, "few_snapshots", few
    elif len(known) < FEWEST:
        seen = f"the loss is known at {len(known)} of {len(opened)} snapshots" if len(known) else "no loss was recorded"
        verdict, reason, summary = Verdict.UNDETERMINED, "no_loss", f"{seen}; at least {FEWEST} are needed"
    else:
        loss = f"the loss goes from {losses[known[0]]:.3f} to {losses[known[-1]]:.3f}"
        verdict, reason, summary = Verdict.SHOWN, "sane", f"{len(opened)} snapshots, {loss}"
    return expect(
        Evidence(
            "log_is_sane",
            verdict,
            reason,
            summary,
            provenance_of(opened),
            estimates=estimates,
            next_step="give the loss to the recorder, or name the log of the training" if reason == "no_loss" else "",
            changes=_bump_of(opened) if len(known) else (),
        )
    )


def _bump_of(run: TrainingRun) -> tuple[Change, ...]:
    """The bump of a run that has nothing else to show; of others it stands beside their phase change."""
    if len(run) < FEWEST or any(map(run.has, ("prefix_matching", "icl_score", *REPEATS))):
        return ()
    bump = find_phase_changes(run).loss_bump
    return () if bump is None else (bump,)


@user_facing
def assert_heads_kept(run: RunLike, *, min_share: float = KEPT, min_prefix_matching: float = MIN_PREFIX_MATCHING) -> Evidence:
    """Assert that the induction heads of a run are there to its end: the best head's prefix matching above `min_prefix_matching`,
    and at least `min_share` of the highest that any head had.

    Heads may take over from one another, so it is the best head at each snapshot that counts. Levels are means of three
    snapshots, give or take 2.8 standard errors.
    """
    check_share("min_share", min_share)
    check_share("min_prefix_matching", min_prefix_matching)
    opened = load_run(run)
    thresholds = {"min_share": min_share, "min_prefix_matching": min_prefix_matching}
    values, heads = opened.best_of_heads("prefix_matching")
    index = np.flatnonzero(np.isfinite(values))
    evidence = Evidence("heads_kept", Verdict.UNDETERMINED, "not_recorded", "", provenance_of(opened), thresholds=thresholds)
    if len(index) < FEWEST:
        seen = f"scores of heads are known at {len(index)} snapshots; at least {FEWEST} are needed"
        return expect(replace(evidence, summary=seen, next_step="sweep the run's checkpoints"))
    means = np.convolve(values[index], np.full(AT_THE_END, 1 / AT_THE_END), mode="valid")
    peak = int(means.argmax())
    last = opened.snapshots[int(index[-1])]
    error = of_best(last.prefix_matching, last.errors.get("prefix_matching")) or float(np.std(np.diff(values[index][-FEWEST:])))
    final = Estimate(float(means[-1]), float(means[-1]) - POWER * error, float(means[-1]) + POWER * error, SHARE)
    threshold = max(min_prefix_matching, min_share * float(means[peak]))
    where = f"its highest, {means[peak]:.3f}, was at step {opened.steps[index[peak + 1]]}"
    seen = f"the best head, {HeadId(*map(int, heads[index[-1]]))}, has prefix matching {final.value:.3f} at the end; {where}"
    if means[peak] < min_prefix_matching:
        verdict, reason = Verdict.REFUTED, "never_there"
    elif final.is_above(threshold):
        verdict, reason = Verdict.SHOWN, "kept"
    else:
        verdict, reason = (Verdict.REFUTED, "lost") if final.is_below(threshold) else (Verdict.UNDETERMINED, "end_unclear")
    evidence = replace(evidence, verdict=verdict, reason=reason, summary=seen, estimates={"final": final})
    settle = "record more snapshots at the end" if verdict is Verdict.UNDETERMINED else ""
    return expect(replace(evidence, next_step=settle))


@user_facing
def assert_final_has_induction_head(
    run: RunLike,
    *,
    min_prefix_matching: float = MIN_PREFIX_MATCHING,
    min_advantage: float = MIN_ADVANTAGE,
    error_rate: float = ERROR_RATE,
) -> Evidence:
    """Assert that the last snapshot has an induction head, from what was recorded: no model is loaded.

    A head counts by the thresholds of `assert_has_induction_head`: prefix matching above `min_prefix_matching`, more than half of
    that left without its own chance, in a model that gives the successor `min_advantage` nats more than the tokens after it.
    Intervals are Student's, over the sequences of that snapshot; `error_rate` is divided among heads and measures. Whether heads
    copy one by one, and whether they match at two periods, a snapshot does not tell: for these, assert about the model.
    """
    check_share("min_prefix_matching", min_prefix_matching)
    check_share("error_rate", error_rate)
    check_advantage(min_advantage)
    opened = load_run(run)
    thresholds = {"min_prefix_matching": min_prefix_matching, "min_advantage": min_advantage}
    about = provenance_of(opened)
    last = next((each for each in reversed(opened.snapshots) if each.prefix_matching is not None), None)
    judged = None if last is None else judge_snapshot(last, **thresholds, error_rate=error_rate)
    if last is None or judged is None:
        seen = "no snapshot has scores of heads with their errors"
        evidence = Evidence("final_has_induction_head", Verdict.UNDETERMINED, "not_recorded", seen, about, thresholds=thresholds)
        return expect(replace(evidence, next_step="record the run, or sweep its checkpoints"))
    about = replace(about, n_sequences=last.n_sequences)
    evidence = Evidence(
        "final_has_induction_head", Verdict.UNDETERMINED, "", "", about, thresholds=thresholds, confidence=1 - error_rate
    )
    return expect(with_snapshot(evidence, last, judged))


def _problems(run: TrainingRun) -> Iterator[str]:
    """What makes a run no log of a training that went well, the worst first."""
    broken = [snapshot for snapshot in run.snapshots if snapshot.problem]
    if broken:
        more = f" (and {len(broken) - 1} snapshots more)" if len(broken) > 1 else ""
        yield f"step {broken[0].step}: {broken[0].problem}{more}"
    losses = run.column("loss")
    known = np.flatnonzero(np.isfinite(losses))
    losses = losses[known]
    if len(losses) < FEWEST:
        return
    first, lowest, highest, end = float(losses[0]), float(losses.min()), float(losses.max()), float(losses[-AT_THE_END:].mean())
    noise = max(SCATTER * scatter_of(losses), 1e-3)
    if end - lowest > max(LOST_GAIN * (first - lowest), noise):
        yield f"the loss has diverged: {end:.3f} at the end, {lowest:.3f} at its lowest, {first:.3f} at first"
    elif highest - first > max(first - lowest, noise):
        step = run.steps[known[losses.argmax()]]
        yield f"the loss has diverged for a while: {highest:.3f} at step {step}, {first:.3f} at first"


def _exactly(value: float, unit: str) -> Estimate:
    return Estimate(value, value, value, unit)
