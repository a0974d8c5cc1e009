"""A training in which something was changed: in-context learning moves with induction."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from pytest_induction.errors import ArgumentError, user_facing
from pytest_induction.expectations import check_share, expect
from pytest_induction.records import Change, Estimate, Evidence, Moment, Provenance, Verdict
from pytest_induction.runs.opening import load_run
from pytest_induction.runs.phase_change.changes import FEWEST, MAX_WIDTH, POWER
from pytest_induction.runs.phase_change.claims import RunLike, provenance_of
from pytest_induction.runs.phase_change.finding import (
    ERROR_RATE,
    MAX_LAG,
    PhaseChange,
    change_of,
    find_phase_changes,
    has_changed,
    lag_between,
)
from pytest_induction.runs.record import MIN_CHANGE, REPEATS, Axis, TrainingRun, measuring_error, series_of
from pytest_induction.statistics import Mean, mean_interval


@dataclass(frozen=True)
class Moved:
    """What one thing, in words, does in the treated runs and in the controls.

    `treated` says whether it changes in every treated run. `shift` is by how many decades earlier that is than in the controls;
    None where not all of them are shown to change. `absent` says that the controls are shown not to change, for `least` decades
    beyond the change of the treated runs. `text` is all of this in words; `reason` is a fixed word, `next_step` what would tell
    where it is not known.
    """

    name: str
    words: str
    treated: Verdict
    text: str
    shift: Estimate | None = None
    absent: bool = False
    least: float = 0.0
    reason: str = "shift_unclear"
    next_step: str = ""

    def is_earlier(self, min_shift: float) -> bool:
        """Whether it is shown to come earlier by more than `min_shift` decades, or to come in the treated runs only."""
        if self.treated is not Verdict.SHOWN:
            return False
        return self.absent or (self.shift is not None and self.shift.is_above(min_shift))

    def is_still(self, min_shift: float) -> bool:
        """Whether it is shown not to come earlier by more than `min_shift` decades."""
        if self.treated is Verdict.REFUTED:
            return True
        return self.treated is Verdict.SHOWN and self.shift is not None and self.shift.high <= min_shift


@dataclass(frozen=True)
class Perturbed:
    """The verdict on a change that was made, and its grounds."""

    verdict: Verdict
    reason: str
    summary: str
    next_step: str = ""


def judge_coperturbation(
    induction: Moved, learning: Moved, lag: Estimate | None, difference: Estimate | None, *, min_shift: float, max_lag: float
) -> Perturbed:
    """SHOWN where both are shown to come earlier, by as much and in the treated runs at the same time.

    `lag` is by how many decades in-context learning changes later than induction in the treated runs, `difference` by how many
    decades further it moved; None where that is not known. Both must lie within `max_lag`. REFUTED where one of the two is
    shown not to come earlier by more than `min_shift`, or the moves are shown to differ.
    """
    both = (induction, learning)
    text = "; ".join(each.text for each in both)
    still = [each for each in both if each.is_still(min_shift)]
    if still:
        return _still(still, text)
    unclear = [each for each in both if not each.is_earlier(min_shift)]
    if unclear:
        settle = "; ".join(dict.fromkeys(each.next_step for each in unclear if each.next_step))
        words = " and ".join(each.words for each in unclear)
        summary = f"whether {words} moved is not clear: {text}"
        return Perturbed(Verdict.UNDETERMINED, unclear[0].reason, summary, settle)
    if induction.absent != learning.absent:
        return _one_appears(induction, learning, text, max_lag)
    return _compared(text, lag, difference, max_lag)


def _still(still: Sequence[Moved], text: str) -> Perturbed:
    if len(still) > 1:
        return Perturbed(Verdict.REFUTED, "nothing_moves", f"nothing comes earlier: {text}")
    return Perturbed(Verdict.REFUTED, f"{still[0].name}_stays", f"{still[0].words} does not come earlier: {text}")


def _one_appears(induction: Moved, learning: Moved, text: str, max_lag: float) -> Perturbed:
    """One of the two changes in the treated runs only, the other in the controls as well: later there, but it does."""
    appears, comes = (induction, learning) if induction.absent else (learning, induction)
    if comes.shift is not None and comes.shift.high + max_lag < appears.least:
        return Perturbed(Verdict.REFUTED, "moves_apart", f"in the controls, {comes.words} changes without the other: {text}")
    settle = "train the controls further, until both change or one is shown not to follow the other"
    return Perturbed(Verdict.UNDETERMINED, "control_too_short", f"whether both move by as much is not clear: {text}", settle)


def _compared(text: str, lag: Estimate | None, difference: Estimate | None, max_lag: float) -> Perturbed:
    """Both come earlier: at the same time, and by as much?"""
    parts = [("in treated runs in-context learning changes", "later than induction", lag, "changes_apart")]
    if difference is not None:
        parts.append(("in-context learning moves", "further than induction", difference, "moves_apart"))
    for begins, ends, found, reason in parts:
        words = "" if found is None else f"{begins} {decades(found)} {ends}"
        if found is not None and (found.is_above(max_lag) or found.is_below(-max_lag)):
            return Perturbed(Verdict.REFUTED, reason, f"{words}, more than {max_lag:.2f} apart: {text}")
        if found is None or not (-max_lag <= found.low and found.high <= max_lag):
            settle = "record more snapshots around the changes, or give more runs"
            seen = words or f"{begins} at a time that is not known"
            summary = f"{seen}, not clearly within the {max_lag:.2f} that count as together: {text}"
            return Perturbed(Verdict.UNDETERMINED, "lag_unclear", summary, settle)
        text = f"{text}; {words}"
    return Perturbed(Verdict.SHOWN, "moved_together", f"both move: {text}")


def decades(found: Estimate) -> str:
    """A distance in words."""
    return f"{found.value:+.3f} decades ({found.low:+.3f}..{found.high:+.3f})"


def minus(one: Estimate, other: Estimate) -> Estimate:
    """One estimate minus another, half-widths added in quadrature."""
    value = one.value - other.value
    below, above = (one.value - one.low, other.high - other.value), (one.high - one.value, other.value - other.low)
    return Estimate(value, value - math.hypot(*below), value + math.hypot(*above), one.unit)


def times(factor: float, found: Estimate) -> Estimate:
    """An estimate in another unit, or a part of it."""
    return Estimate(factor * found.value, factor * found.low, factor * found.high, found.unit)


MOST_OF_IT = 0.5  # a control that never gains so much of what the treated runs gain in their change does not have it
INDUCTION, LEARNING = "induction", "icl_score"
MIN_SHIFT = 0.1  # decades: about a quarter more tokens
OPEN = ("not_over", "began_before")  # of which the place is not known yet


@user_facing
def assert_coperturbation(
    control: RunLike | Sequence[RunLike],
    treated: RunLike | Sequence[RunLike],
    *,
    min_shift: float = MIN_SHIFT,
    max_lag: float = MAX_LAG,
    max_width: float = MAX_WIDTH,
    min_change: Mapping[str, float] | None = None,
    error_rate: float = ERROR_RATE,
) -> Evidence:
    """Assert that a change that makes induction form earlier, or at all, moves in-context learning with it.

    `control` and `treated` are training runs that differ in one thing, such as smeared keys: each one run, or several (seeds).
    SHOWN if in the treated runs induction forms abruptly and in-context learning changes with it (midpoints at most `max_lag`
    decades apart), both come earlier than in the controls by more than `min_shift` decades, and by as much (within `max_lag`); or
    the controls are shown to have neither: no head changes, and in-context learning gains nowhere half of what it gains in the
    treated change, in a stretch as long; on record for as many tokens at least as that took. REFUTED if one of the two is
    shown not to come earlier, or their moves to differ.

    One run against one tells of these two, with the intervals of their midpoints; of several runs shifts are differences of
    means, and intervals rest on the spread over runs. Returns the evidence with the estimates `induction_shift`,
    `icl_shift`, `shift_difference` and `lag` in decades, as far as they are known, and `control_gain`, what
    in-context learning gains in the controls in such a stretch, in nats. Raises `ExpectationFailed`, which carries it, `RunError`
    for a run that cannot be read, `ArgumentError` for one run against several.

    >>> assert_coperturbation("fixtures/runs/one-layer", "fixtures/runs/one-layer-smeared").reason      # doctest: +SKIP
    'moved_together'
    """
    if not 0 <= min_shift < math.inf:
        raise ArgumentError(f"`min_shift` must be at least 0 decades, got {min_shift}")
    if not 0 < max_lag < math.inf:
        raise ArgumentError(f"`max_lag` must be above 0 decades, got {max_lag}")
    check_share("error_rate", error_rate)
    rule = _Rule(max_width, min_change, error_rate)
    controls, treatments = (rule.opened(name, runs) for name, runs in (("control", control), ("treated", treated)))
    if (len(controls) == 1) != (len(treatments) == 1):
        seen = f"got {len(controls)} and {len(treatments)}"
        raise ArgumentError(f"`control` and `treated` must be one run each, or several each, for a spread over runs: {seen}")
    return expect(_Pair(controls, treatments, rule).evidence(min_shift, max_lag))


@dataclass(frozen=True)
class _Seen:
    """One run and what was found in it."""

    run: TrainingRun
    found: PhaseChange


@dataclass(frozen=True)
class _Rule:
    """What counts as a change; see `find_phase_changes`."""

    max_width: float
    min_change: Mapping[str, float] | None
    error_rate: float

    def opened(self, name: str, runs: RunLike | Sequence[RunLike]) -> list[_Seen]:
        """The runs that an argument names."""
        several = [runs] if isinstance(runs, (TrainingRun, str, os.PathLike)) else list(runs)
        if not several:
            raise ArgumentError(f"`{name}` must be a run or several, got none")
        return [_Seen(run, find_phase_changes(run, **self._options)) for run in map(load_run, several)]

    def change(self, seen: _Seen, name: str) -> Change | None:
        """What a series of a run did; None where it was not recorded."""
        known = next((change for change in seen.found.changes if change.series == name), None)
        return change_of(seen.run, name, **self._options) if known is None else known

    def gain(self, seen: _Seen, name: str, width: float) -> Estimate | None:
        """The most that a series gains in any `width` decades, give or take 2.8 standard errors; None for too few snapshots."""
        series = series_of(seen.run, Axis.of(seen.run), name, {**MIN_CHANGE, **(self.min_change or {})})
        if len(series.x) < FEWEST:
            return None
        smooth = series.sign * series.smooth
        ends = np.searchsorted(series.x, series.x + width, side="right")
        tops = [first + int(smooth[first:end].argmax()) for first, end in enumerate(ends)]
        first = int((smooth[tops] - smooth).argmax())
        half = POWER * math.hypot(measuring_error(seen.run, series, first, tops[first]), series.scatter)
        value = float(smooth[tops[first]] - smooth[first])
        return Estimate(value, value - half, value + half, series.unit)

    @property
    def _options(self) -> dict[str, Any]:
        return vars(self)


@dataclass(frozen=True)
class _Pair:
    """Runs without a treatment and with it."""

    controls: Sequence[_Seen]
    treated: Sequence[_Seen]
    rule: _Rule

    def evidence(self, min_shift: float, max_lag: float) -> Evidence:
        """The verdict, and all that it rests on."""
        parts = [
            _Part(self, self._of_induction, INDUCTION, "induction"),
            _Part(self, LEARNING, "icl", "in-context learning"),
        ]
        induction, learning = (part.moved() for part in parts)
        lag, difference = self._lags(parts)
        judged = judge_coperturbation(induction, learning, lag, difference, min_shift=min_shift, max_lag=max_lag)
        found = {f"{each.name}_shift": each.shift for each in (induction, learning)}
        found |= {"shift_difference": difference, "lag": lag}
        found["control_gain"] = parts[1].most_gained
        return Evidence(
            "coperturbation",
            judged.verdict,
            judged.reason,
            judged.summary,
            self._about(),
            estimates={name: value for name, value in found.items() if value is not None},
            thresholds={**self.treated[0].found.thresholds, "min_shift": min_shift, "max_lag": max_lag},
            confidence=1 - self.rule.error_rate,
            next_step=judged.next_step,
            changes=tuple(change for seen in self.treated for change in seen.found.changes),
        )

    @property
    def _of_induction(self) -> str:
        """The series that says when induction formed, of those that all runs have."""
        runs = (*self.controls, *self.treated)
        names = ("prefix_matching", *REPEATS)
        return next((name for name in names if all(self.rule.change(seen, name) is not None for seen in runs)), names[0])

    @cached_property
    def same_text(self) -> bool:
        """Whether in-context learning was measured between the same tokens, so that its scores can be compared."""
        return len({seen.run.icl_windows for seen in (*self.controls, *self.treated)}) == 1

    def _about(self) -> Provenance:
        treated, controls = (", ".join(seen.run.name for seen in runs) for runs in (self.treated, self.controls))
        about = provenance_of(self.treated[0].run)
        probe = about.probe if len(self.treated) == 1 else f"{len(self.treated)} runs against {len(self.controls)}"
        return replace(about, model=f"{treated} against {controls}", probe=probe)

    def _lags(self, parts: Sequence[_Part]) -> tuple[Estimate | None, Estimate | None]:
        """By how much in-context learning changes after induction in the treated runs, and by how much more in the controls."""
        here, there = (
            [lag_between(*(part.placed(seen) for part in parts)) for seen in runs] for runs in (self.treated, self.controls)
        )
        ours, others = ([lag for lag in lags if lag is not None] for lags in (here, there))
        if len(ours) < len(here):
            return None, None
        known = len(others) == len(there)
        if len(ours) == 1:
            return ours[0], minus(others[0], ours[0]) if known else None
        lag = mean_interval(np.array([[lag.value] for lag in ours]), self.rule.error_rate, "decades")[0]
        return lag, self.difference([lag.value for lag in others], [lag.value for lag in ours]) if known else None

    def difference(self, controls: Sequence[float], treated: Sequence[float]) -> Estimate:
        """The mean over controls minus that over treated runs, in decades, with the interval of their spreads."""
        one, other = (Mean.of(np.array(values), "decades") for values in (controls, treated))
        return one.minus(other).interval(self.rule.error_rate / 2)

    @cached_property
    def _in_tokens(self) -> bool:
        return all(Axis.of(seen.run).tokens is not None for seen in (*self.controls, *self.treated))

    @property
    def unit(self) -> str:
        return "tokens" if self._in_tokens else "steps"

    def place(self, change: Change) -> Estimate:
        """The midpoint of a change, in tokens where all runs know them, else in steps."""
        return self.amount(change.midpoint)

    def amount(self, moment: Moment | None) -> Estimate:
        """A point of a training that is known, in the same unit."""
        if moment is None:
            raise TypeError("the change has no place")
        return moment.tokens if self._in_tokens and moment.tokens is not None else moment.step

    def last(self, seen: _Seen) -> float:
        """The last snapshot, in the same unit."""
        return float((seen.run.tokens if self._in_tokens else seen.run.steps)[-1])


@dataclass(frozen=True)
class _Part:
    """One of the two that must move: a series of the runs, by its name, and what is said of it."""

    pair: _Pair
    series: str
    name: str
    words: str

    def moved(self) -> Moved:
        """What it does in the treated runs and in the controls."""
        formed = Moved(self.name, self.words, Verdict.SHOWN, "")
        missing = self._missing_in_treated()
        if missing is not None:
            return missing
        absent = [self._is_absent(seen) for seen in self.pair.controls]
        if all(absent):
            return self._absent(formed)
        places = [self.placed(seen) for seen in self.pair.controls]
        if None not in places:
            return self._shifted(formed, [change for change in places if change is not None])
        unclear = [seen for seen, no, change in zip(self.pair.controls, absent, places, strict=True) if not no and change is None]
        if not unclear:
            text = f"{self.words} changes in {len(absent) - sum(absent)} of {len(absent)} controls"
            return replace(formed, text=text, reason="controls_differ", next_step="train the controls without it further")
        return self._missing(unclear[0], "control")

    def _missing(self, seen: _Seen, which: str) -> Moved:
        """Why it is not known of a run, for all that its series shows."""
        _, reason, summary, settle = self._verdict(seen)
        reason, settle = f"{which}_unclear", settle or f"train the {which} run further"
        if self.pair.rule.change(seen, self.series) is None:
            reason, summary = "not_recorded", f"{self.words} was not recorded as in the other runs"
            settle = "record the heads, behaviour on repeated tokens and a held-out text (`text=`, --text) of all runs"
        text = f"in the {which} run {seen.run.name} {summary}"
        return Moved(
            self.name,
            self.words,
            Verdict.UNDETERMINED if which == "treated" else Verdict.SHOWN,
            text,
            reason=reason,
            next_step=settle,
        )

    def placed(self, seen: _Seen) -> Change | None:
        """The change of a run in which it surely changes, at a place that is known; else None."""
        change = self.pair.rule.change(seen, self.series)
        known = change is not None and change.midpoint is not None and has_changed(change) and change.reason not in OPEN
        return change if known else None

    @property
    def most_gained(self) -> Estimate | None:
        """The most that a control gains anywhere in a stretch as long as the change of the treated runs, where that is known."""
        gains = [self._gain(seen) for seen in self.pair.controls]
        known = [gain for gain in gains if gain is not None]
        return max(known, key=lambda gain: gain.high) if len(known) == len(gains) else None

    def _gain(self, seen: _Seen) -> Estimate | None:
        changes = [change for change in map(self.placed, self.pair.treated) if change is not None]
        ends = [(self.pair.amount(change.onset).low, self.pair.amount(change.end).high) for change in changes]
        if not ends:
            return None
        return self.pair.rule.gain(seen, self.series, max(math.log10(last / first) for first, last in ends))

    def _verdict(self, seen: _Seen) -> tuple[Verdict, str, str, str]:
        """Whether it changes abruptly in a run: verdict, reason, summary, what would settle it."""
        about = seen.found if self.name == INDUCTION else self.pair.rule.change(seen, self.series)
        if about is None:
            return Verdict.UNDETERMINED, "not_recorded", f"{self.words} was not recorded", ""
        return about.verdict, about.reason, about.summary, about.next_step

    def _missing_in_treated(self) -> Moved | None:
        """What is the matter where it does not change abruptly in every treated run, at a place that is known."""
        verdicts = [self._verdict(seen)[0] for seen in self.pair.treated]
        if Verdict.REFUTED not in verdicts:
            unknown = [seen for seen, verdict in zip(self.pair.treated, verdicts, strict=True) if self._is_unknown(seen, verdict)]
            return self._missing(unknown[0], "treated") if unknown else None
        run = self.pair.treated[verdicts.index(Verdict.REFUTED)]
        _, reason, summary, _ = self._verdict(run)
        none = Moved(self.name, self.words, Verdict.REFUTED, f"in the treated run {run.run.name} {summary}")
        places = [self.placed(seen) for seen in self.pair.controls]
        latest = max((self.pair.place(change).high for change in places if change is not None), default=0.0)
        if reason != "no_change" or self.pair.last(run) >= latest:
            return none
        settle = f"train the treated runs for {latest:.3g} {self.pair.unit} at least, as long as the controls took"
        return replace(none, treated=Verdict.UNDETERMINED, reason="treated_too_short", next_step=settle)

    def _is_unknown(self, seen: _Seen, verdict: Verdict) -> bool:
        return verdict is not Verdict.SHOWN or self.placed(seen) is None

    def _is_absent(self, seen: _Seen) -> bool:
        """Whether a control is shown not to have the change."""
        verdict, reason, _, _ = self._verdict(seen)
        if verdict is Verdict.REFUTED and reason == "no_change":
            return True
        if self.name == INDUCTION or not self.pair.same_text:
            return False
        gain = self._gain(seen)
        changes = [change.change for change in map(self.placed, self.pair.treated) if change is not None and change.change]
        return gain is not None and all(minus(times(MOST_OF_IT, change), gain).is_above(0) for change in changes)

    def _absent(self, formed: Moved) -> Moved:
        """It changes in the treated runs only, if the controls are on record for as long."""
        pair = self.pair
        changes = [change for change in map(self.placed, pair.treated) if change is not None]
        end = max(pair.amount(change.end).high for change in changes)
        shortest = min(pair.last(seen) for seen in pair.controls)
        gain = None if self.name == INDUCTION else self.most_gained
        most = "" if gain is None else f", which gain {gain.high:.3g} nats at most in any stretch as long"
        text = f"{self.words} changes in treated runs and not in controls{most}, on record for {shortest:.3g} {pair.unit}"
        if shortest < end:
            settle = f"train the controls for {end:.3g} {pair.unit} at least, as long as the treated runs took"
            return replace(formed, text=text, reason="control_too_short", next_step=settle)
        least = math.log10(shortest / max(pair.place(change).high for change in changes))
        return replace(formed, text=f"{text}, {least:.2f} decades longer", absent=True, least=least)

    def _shifted(self, formed: Moved, controls: Sequence[Change]) -> Moved:
        """It changes in all runs: by how much earlier in the treated ones."""
        pair = self.pair
        treated = [change for change in map(self.placed, pair.treated) if change is not None]
        if len(treated) == 1:
            shift = lag_between(treated[0], controls[0])
        else:
            shift = pair.difference(*([math.log10(pair.place(change).value) for change in each] for each in (controls, treated)))
        settle = "record more snapshots around the changes, or give more runs"
        text = f"{self.words} changes {'' if shift is None else decades(shift)} earlier"
        return replace(formed, text=text, shift=shift, next_step=settle)
