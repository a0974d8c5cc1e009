"""Assertions about training runs: a phase change, none, several at once, no later than in another run."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from pytest_induction.errors import ArgumentError, user_facing
from pytest_induction.expectations import checked_bounds, denied, expect
from pytest_induction.observers import track_subject
from pytest_induction.records import Change, Estimate, Evidence, Moment, Provenance, Verdict
from pytest_induction.runs.logs.read import taken
from pytest_induction.runs.opening import load_run
from pytest_induction.runs.phase_change.changes import MAX_WIDTH
from pytest_induction.runs.phase_change.finding import (
    ERROR_RATE,
    MAX_LAG,
    PhaseChange,
    cooccur,
    find_phase_changes,
    is_narrow,
    lag_between,
    what_else,
)
from pytest_induction.runs.record import TrainingRun
from pytest_induction.statistics import mean_interval


def icl_cooccurs(evidence: Evidence, found: PhaseChange, max_lag: float = MAX_LAG, *, strict: bool = True) -> Evidence:
    """The evidence on a run in which in-context learning must change with induction.

    Unless it is `strict`, changes between the same snapshots are together, though these may be farther apart than `max_lag`.
    """
    if evidence.verdict is not Verdict.SHOWN:
        return evidence
    change, lag = found.icl_score, found.lag
    if change is None:
        return replace(
            evidence,
            verdict=Verdict.UNDETERMINED,
            reason="icl_not_recorded",
            summary=f"{evidence.summary}; in-context learning was not recorded",
            next_step="record or sweep with a held-out text (`text=`, --text), or leave it out (`co_occurring=False`)",
        )
    if not (change.verdict is Verdict.SHOWN or is_narrow(change, found.thresholds["max_width"])) or lag is None:
        reason = f"icl_{change.reason}"
        summary = f"{evidence.summary}; but {change.summary}"
        return replace(evidence, verdict=change.verdict, reason=reason, summary=summary, next_step=change.next_step)
    summary = f"{evidence.summary}; in-context learning changes {in_words(lag)} after"
    if not strict and found.induction is not None and cooccur(found.induction, change, lag, max_lag):
        return replace(evidence, summary=summary, thresholds={**evidence.thresholds, "max_lag": max_lag})
    return _within(evidence, lag, max_lag, summary)


def with_turn(evidence: Evidence, found: PhaseChange) -> Evidence:
    """The evidence on a run, with what the path of token losses does beside it, as far as that was recorded."""
    if evidence.verdict is not Verdict.SHOWN or found.turn is None:
        return evidence
    text = found.turn.summary if found.turn_lag is None else f"the path of token losses turns {in_words(found.turn_lag)} after"
    return replace(evidence, summary=f"{evidence.summary}; {text}")


def turn_cooccurs(evidence: Evidence, found: PhaseChange, max_lag: float) -> Evidence:
    """The evidence on a run in which the path of token losses must turn with induction, too."""
    if evidence.verdict is not Verdict.SHOWN:
        return evidence
    change, lag = found.turn, found.turn_lag
    if change is None:
        return replace(
            evidence,
            verdict=Verdict.UNDETERMINED,
            reason="turn_not_recorded",
            summary=f"{evidence.summary}; the turn of the path of token losses was not recorded",
            next_step="record or sweep with a held-out text (`text=`, --text), or leave it out (`turn=False`)",
        )
    if change.verdict is not Verdict.SHOWN or lag is None:
        summary = f"{evidence.summary}; but {change.summary}"
        return replace(
            evidence, verdict=change.verdict, reason=_about_turn(change.reason), summary=summary, next_step=change.next_step
        )
    return _within(
        evidence, lag, max_lag, f"{evidence.summary}; the path of token losses turns {in_words(lag)} after", _about_turn
    )


def _about_turn(reason: str) -> str:
    return reason if "turn" in reason else f"turn_{reason}"


def _within(
    evidence: Evidence, lag: Estimate, max_lag: float, summary: str, reason: Callable[[str], str] = lambda reason: reason
) -> Evidence:
    thresholds = {**evidence.thresholds, "max_lag": max_lag}
    if -max_lag <= lag.low and lag.high <= max_lag:
        return replace(evidence, summary=summary, thresholds=thresholds)
    is_apart = lag.low > max_lag or lag.high < -max_lag
    return replace(
        evidence,
        verdict=Verdict.REFUTED if is_apart else Verdict.UNDETERMINED,
        reason=reason("apart" if is_apart else "lag_unclear"),
        summary=f"{summary}: {'more than' if is_apart else 'not clearly within'} the {max_lag:.2f} that count as together",
        thresholds=thresholds,
        next_step="" if is_apart else "record more snapshots around the change",
    )


def over_runs(
    parts: Sequence[Evidence], found: Sequence[PhaseChange], max_lag: float, error_rate: float, *, turn: bool
) -> Evidence:
    """The evidence on several runs: the mean of their distances."""
    about_distances = ("apart", "lag_unclear", "turn_apart", "turn_lag_unclear")
    without = [
        part
        for part, each in zip(parts, found, strict=True)
        if part.verdict is not Verdict.SHOWN
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
    whole = replace(parts[0], verdict=Verdict.SHOWN, reason="formed", provenance=about, estimates={"lag": lag}, changes=changes)
    judged = _within(whole, lag, max_lag, f"over {len(parts)} runs in-context learning changes {in_words(lag)} after induction")
    if turn:
        turn_lag = _mean_lag([each.turn_lag for each in found], error_rate)
        judged = replace(judged, estimates={**judged.estimates, "turn_lag": turn_lag})
        if judged.verdict is Verdict.SHOWN:
            summary = f"{judged.summary}; the path of token losses turns {in_words(turn_lag)} after"
            judged = _within(judged, turn_lag, max_lag, summary, _about_turn)
    return replace(judged, next_step="add more runs: the interval is that of their mean" if judged.next_step else "")


def _mean_lag(lags: Sequence[Estimate | None], error_rate: float) -> Estimate:
    return mean_interval(np.array([[lag.value] for lag in lags if lag is not None]), error_rate, "decades")[0]


def in_words(lag: Estimate) -> str:
    """A distance of two changes in words."""
    return f"{lag.value:+.3f} decades ({lag.low:+.3f}..{lag.high:+.3f})"


RunLike = TrainingRun | str | os.PathLike[str]
MAX_ONSET_LAG = 0.1  # decades: about a quarter more tokens


@user_facing
def assert_phase_change(
    run: RunLike,
    *,
    before_tokens: float | None = None,
    before_step: float | None = None,
    max_width: float = MAX_WIDTH,
    co_occurring: bool | None = None,
    min_change: Mapping[str, float] | None = None,
    error_rate: float = ERROR_RATE,
) -> Evidence:
    """Assert that induction formed abruptly in a training run (see `find_phase_changes` for what that means).

    `run` is a `TrainingRun`, or whatever `load_run` opens. With `before_tokens` or `before_step` the change must have ended by
    then. Behaviour on repeated tokens must change with the heads, midpoints at most 0.15 decades apart or between the same two
    snapshots; `co_occurring` asks that of in-context learning, too, and is on where that was recorded. The summary says which
    series decided.

    UNDETERMINED fails too, and says what would settle it: too few snapshots show the change, or it is not over, or it may be
    gradual. Returns the evidence: `.changes` has the onset, midpoint, end and width of each series, in steps and tokens.
    Raises `ExpectationFailed`, which carries it, or `RunError` for a run that cannot be read.

    >>> found = assert_phase_change("fixtures/runs/two-layers", before_step=400)       # doctest: +SKIP
    >>> found.changes[0].midpoint.step.value                                            # doctest: +SKIP
    """
    opened, found = _found(run, max_width, min_change, error_rate)
    evidence = _evidence(opened, "phase_change", found, error_rate)
    for name, bound in checked_bounds(before_tokens=before_tokens, before_step=before_step).items():
        evidence = _in_time(evidence, found.induction, name, bound)
    if co_occurring is None and found.icl_score is None:
        evidence = replace(evidence, summary=f"{evidence.summary}; in-context learning was not recorded, and is left out")
    if co_occurring or (co_occurring is None and found.icl_score is not None):
        evidence = icl_cooccurs(evidence, found, strict=False)
    return expect(evidence)


@user_facing
def assert_no_phase_change(
    run: RunLike,
    *,
    max_width: float = MAX_WIDTH,
    min_change: Mapping[str, float] | None = None,
    error_rate: float = ERROR_RATE,
) -> Evidence:
    """Assert that induction did not form abruptly in a training run: shown, not merely not found.

    Arguments as those of `assert_phase_change`.
    """
    opened, found = _found(run, max_width, min_change, error_rate)
    return expect(denied(_evidence(opened, "phase_change", found, error_rate), "no_phase_change"))


@user_facing
def assert_cooccurrence(
    run: RunLike | Sequence[RunLike],
    *,
    max_lag: float = MAX_LAG,
    turn: bool = False,
    max_width: float = MAX_WIDTH,
    min_change: Mapping[str, float] | None = None,
    error_rate: float = ERROR_RATE,
) -> Evidence:
    """Assert that in-context learning changes together with induction; with `turn`, that the path of the training turns there.

    Midpoints lie at most `max_lag` decades of tokens from that of induction, and behaviour on repeated tokens changes with the
    heads. The turn is that of the path in the space of token losses. It is reported where these were recorded and asked for with
    `turn` only, for small trainings on natural text had none. The evidence has the distances between all pairs that are there:
    `lag` (in-context learning), `behaviour_lag` (behaviour after heads), `icl_behaviour_lag` and `turn_lag`.

    Of one run the interval of a distance is that of the two changes together. Of several runs (seeds) the distances are taken
    run by run, and the interval is that of their mean. The noisier of two series makes the interval wider, its change no later.
    """
    if not 0 < max_lag < math.inf:
        raise ArgumentError(f"`max_lag` must be above 0 decades, got {max_lag}")
    runs = [run] if isinstance(run, (TrainingRun, str, os.PathLike)) else list(run)
    if not runs:
        raise ArgumentError("`run` must be a run or several, got none")
    pairs = [_found(each, max_width, min_change, error_rate) for each in runs]
    parts = [icl_cooccurs(_evidence(opened, "cooccurrence", found, error_rate), found, max_lag) for opened, found in pairs]
    add = partial(turn_cooccurs, max_lag=max_lag) if turn else with_turn
    parts = [add(part, found) for part, (_, found) in zip(parts, pairs, strict=True)]
    if len(parts) > 1:
        parts = [over_runs(parts, [found for _, found in pairs], max_lag, error_rate, turn=turn)]
    return expect(parts[0])


@user_facing
def assert_onset_not_later(
    run: RunLike,
    reference: RunLike,
    *,
    max_lag: float = MAX_ONSET_LAG,
    in_steps: bool = False,
    max_width: float = MAX_WIDTH,
    min_change: Mapping[str, float] | None = None,
    error_rate: float = ERROR_RATE,
) -> Evidence:
    """Assert that induction begins to form less than `max_lag` decades after a reference run; the whole interval counts.

    In tokens, which both runs must know: steps of trainings with batches of another size are not the same. With `in_steps` they
    are compared all the same, and the summary says so. Onsets vary with the seed of a training: one run against one reference
    tells of these two. Returns the evidence with the estimate `onset_lag`, in decades, positive if the run is later.
    """
    if not 0 <= max_lag < math.inf:
        raise ArgumentError(f"`max_lag` must be at least 0 decades, got {max_lag}")
    opened, found = _found(run, max_width, min_change, error_rate)
    other, expected = _found(reference, max_width, min_change, error_rate)
    evidence = _evidence(opened, "onset_not_later", found, error_rate)
    name = other.place if other.place and other.name == opened.name else other.name
    return expect(_not_later(evidence, found, expected, name, max_lag, in_steps=in_steps))


def _found(
    run: RunLike, max_width: float, min_change: Mapping[str, float] | None, error_rate: float
) -> tuple[TrainingRun, PhaseChange]:
    opened = load_run(run)
    return opened, find_phase_changes(opened, max_width=max_width, min_change=min_change, error_rate=error_rate)


def _evidence(run: TrainingRun, claim: str, found: PhaseChange, error_rate: float) -> Evidence:
    estimates: dict[str, Estimate] = {}
    change = found.induction
    if change is not None and change.midpoint is not None and change.width is not None:
        estimates |= {"midpoint": change.midpoint.tokens or change.midpoint.step, "width": change.width}
    if found.lag is not None:
        estimates["lag"] = found.lag
    for name in ("behaviour_lag", "icl_behaviour_lag", "turn_lag"):
        if (each := getattr(found, name)) is not None:
            estimates[name] = each
    return Evidence(
        claim,
        found.verdict,
        found.reason,
        found.summary,
        provenance_of(run),
        estimates=estimates,
        thresholds=found.thresholds,
        confidence=1 - error_rate,
        next_step=found.next_step,
        changes=found.changes,
    )


def provenance_of(run: TrainingRun) -> Provenance:
    """Where what is said of a run comes from."""
    about = run.about
    span = f"{len(run)} snapshots, steps {run.steps[0]} to {run.steps[-1]}" if len(run) else "no snapshots"
    digest = hashlib.blake2b(digest_size=8)
    for snapshot in run.snapshots:
        digest.update(
            f"{snapshot.step} {snapshot.loss} {snapshot.icl_score} {snapshot.advantage} {snapshot.fingerprint}".encode()
        )
    provenance = Provenance(
        model=run.name,
        fingerprint=digest.hexdigest(),
        backend=str(about.get("backend", "none")),
        n_layers=int(about.get("n_layers", 0)),
        n_heads=int(about.get("n_heads", 0)),
        dtype=str(about.get("dtype", "")),
        device=str(about.get("device", "")),
        seed=about.get("seed"),
        probe=f"{span}, from a {run.source}",
        layers=tuple(about.get("layers", ())),
        notes=(*taken(run), *run.notes, *about.get("notes", ()), *_what_else(run)),
        is_run=True,
        place=run.place,
        versions=about.get("versions", {}),
    )
    track_subject(run, provenance)
    return provenance


def _what_else(run: TrainingRun) -> list[str]:
    """Of a log, which claims it cannot decide: its reader has not chosen what is in it."""
    note = what_else(run) if run.source == "log" else ""
    return [note] if note else []


def _in_time(evidence: Evidence, change: Change | None, name: str, bound: float) -> Evidence:
    """The evidence on a run whose change must have ended by so many tokens or steps."""
    if evidence.verdict is not Verdict.SHOWN or change is None or change.end is None:
        return evidence
    end = change.end.tokens if name == "before_tokens" else change.end.step
    unit = "tokens" if name == "before_tokens" else "steps"
    thresholds = {**evidence.thresholds, name: bound}
    if end is None:
        return replace(
            evidence,
            verdict=Verdict.UNDETERMINED,
            reason="tokens_not_known",
            summary=f"{evidence.summary}; the number of tokens is not known",
            next_step="give the run its `tokens_per_step`, or give `before_step` instead",
            thresholds=thresholds,
        )
    evidence = replace(evidence, thresholds=thresholds, estimates={**evidence.estimates, f"end_{unit}": end})
    if end.high <= bound:
        return evidence
    verdict, reason = (Verdict.REFUTED, "too_late") if end.low > bound else (Verdict.UNDETERMINED, "end_unclear")
    seen = f"it ends after {end.value:.4g} {unit} ({end.low:.4g}..{end.high:.4g}), {bound:.4g} are allowed"
    settle = "" if verdict is Verdict.REFUTED else "record more snapshots around the end of the change"
    return replace(evidence, verdict=verdict, reason=reason, summary=f"{evidence.summary}; but {seen}", next_step=settle)


def _not_later(
    evidence: Evidence, found: PhaseChange, expected: PhaseChange, name: str, max_lag: float, *, in_steps: bool
) -> Evidence:
    thresholds = {**evidence.thresholds, "max_lag": max_lag}
    if expected.verdict is not Verdict.SHOWN:
        return replace(
            evidence,
            verdict=Verdict.UNDETERMINED,
            reason="reference_has_none",
            summary=f"the reference {name} is {expected.verdict}: {expected.summary}",
            next_step="choose a reference that went through its phase change",
            thresholds=thresholds,
        )
    if found.verdict is not Verdict.SHOWN or found.induction is None or expected.induction is None:
        return replace(evidence, thresholds=thresholds)
    before, after = (at_onset(each, in_steps=in_steps) for each in (expected.induction, found.induction))
    if not in_steps and any(each.midpoint is not None and each.midpoint.tokens is None for each in (before, after)):
        return replace(
            evidence,
            verdict=Verdict.UNDETERMINED,
            reason="tokens_not_known",
            summary=f"the tokens at which induction forms are not known for both runs, and steps of {name} may differ in size",
            next_step="give both runs their tokens (a column of the log, `tokens_per_step`), or compare steps: `in_steps=True`",
            thresholds=thresholds,
        )
    lag = lag_between(before, after)
    if lag is None:
        return replace(evidence, verdict=Verdict.UNDETERMINED, reason="onset_unclear", thresholds=thresholds)
    unit = " (of steps, not tokens, as asked)" if in_steps else ""
    summary = f"induction begins to form {in_words(lag)} after the reference {name}{unit}"
    evidence = replace(evidence, summary=summary, estimates={**evidence.estimates, "onset_lag": lag}, thresholds=thresholds)
    if lag.high <= max_lag:
        return evidence
    late = lag.low > max_lag
    return replace(
        evidence,
        verdict=Verdict.REFUTED if late else Verdict.UNDETERMINED,
        reason="later" if late else "onset_unclear",
        summary=f"{summary}, {'more than' if late else 'not clearly within'} the {max_lag:.2f} that are allowed",
        next_step="" if late else "record more snapshots around the onset, in both runs",
    )


def at_onset(change: Change, *, in_steps: bool) -> Change:
    """The same change, its midpoint put at its onset; without its tokens where steps are to be compared."""
    onset: Moment | None = change.onset
    return replace(change, midpoint=replace(onset, tokens=None) if onset is not None and in_steps else onset)
