"""Does one series of a run change abruptly? SHOWN if it is shown to, REFUTED if it is shown not to, else UNDETERMINED."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pytest_induction.records import Change, Estimate, Verdict
from pytest_induction.runs.phase_change.transition import Transition, find_transition
from pytest_induction.runs.record import Axis, ScheduledChange, Series, TrainingRun, extra_variance, measuring_error

Floats = NDArray[np.float64]
MAX_WIDTH = 0.5  # decades; the paper's own windows are 0.3 (2.5e9 to 5e9 tokens) and 0.48 (1e9 to 3e9)
MIN_SHARE = 0.4  # of all that the series changes, between 10 % and 90 % of the transition
OTHER_STEP = 0.5  # of the change; another rise as large in as short a time makes two steps of it
POWER = 2.8  # standard errors: what is found with 80 % power at 5 %, two-sided
FEWEST = 8  # snapshots, for a fit of six parameters
FEWEST_INSIDE = 3  # snapshots, for its onset and end to be named; of fewer it is said between which it lies
AROUND, FEW_AROUND = 1.0, 24  # decades on either side of a change, and snapshots there, of which level plateaus tell more
FEWEST_BESIDE = 3  # snapshots before and after the change, for a level to be known
SURELY_BESIDE = 2  # of them, wherever it may begin or end
MAX_PART = 0.45  # of a training, for a change to be abrupt, however late it is
NEAR = 0.15  # decades; a scheduled change so near may be the cause
WORDS = {
    "prefix_matching": "prefix matching of the best head",
    "previous_token": "the previous-token score of the best head",
    "advantage": "the advantage of the successor on repeated tokens",
    "repeat_accuracy": "accuracy on repeated tokens",
    "repeat_loss": "loss on repeated tokens",
    "icl_score": "the in-context learning score",
    "loss": "the loss",
    "foretold_gap": "what tokens cost less that a match foretells",
    "match_gain": "the gain of three matching tokens over one",
    "preference": "the preference of the best head for the longer match",
    "common_advantage": "the advantage on common ids",
    "rare_advantage": "the advantage on rare ids",
    "markov_unigram_kl": "the distance from the in-context unigram",
    "markov_bigram_kl": "the distance from the in-context bigram",
    "in_context_preference": "the preference for the row over the weights",
}


@dataclass(frozen=True)
class Rule:
    """What counts as an abrupt change: at most so wide, in decades; intervals miss at most at `error_rate`."""

    max_width: float = MAX_WIDTH
    error_rate: float = 0.05


def judge_change(run: TrainingRun, axis: Axis, series: Series, rule: Rule) -> Change:
    """The verdict on one series of a run."""
    words = WORDS[series.name]
    if len(series.x) < FEWEST:
        return Change(
            series.name,
            Verdict.UNDETERMINED,
            "few_snapshots",
            f"{words} is known at {len(series.x)} snapshots; at least {FEWEST} are needed",
            next_step=f"record {words} in at least {FEWEST - len(series.x)} more snapshots",
        )
    kept = _until_lost(series)
    levels = _Levels.of(run, kept)
    if levels.possible + POWER * levels.error < series.threshold:
        return Change(series.name, Verdict.REFUTED, "no_change", _flat(kept), shape="flat")
    change = _seen(run, axis, kept, levels, rule).judged()
    if len(kept.x) < len(series.x):
        change = replace(change, summary=f"{change.summary}; later it is lost")
    return change


def _seen(run: TrainingRun, axis: Axis, series: Series, levels: _Levels, rule: Rule) -> _Seen:
    """The transition of a series: between plateaus with slopes, or between level ones where these show what others leave open.

    Of few snapshots slopes leave much open. The best transition with slopes must be as narrow, or as wide, even so.
    """
    extra = extra_variance(run, series)
    sloping = _Seen(run, axis, series, levels, find_transition(series.x, series.y, rule.error_rate, extra), rule)
    if sloping.verdict is not Verdict.UNDETERMINED or not sloping.is_sparse:
        return sloping
    level = replace(sloping, found=find_transition(series.x, series.y, rule.error_rate, extra, sloping=False))
    expected = Verdict.SHOWN if sloping.best_is_abrupt else Verdict.REFUTED
    return level if level.verdict is expected else sloping


def _flat(series: Series) -> str:
    """What is said of a series that does not change the way it does when induction forms."""
    words, smooth = WORDS[series.name], series.smooth
    if series.sign * (smooth[0] - smooth[-1]) > series.threshold:
        return f"{words} goes from {_number(smooth[0])} to {_number(smooth[-1])}: not the way it goes when induction forms"
    return f"{words} stays between {_number(smooth.min())} and {_number(smooth.max())}"


def _until_lost(series: Series) -> Series:
    """The series up to where it leaves its highest level, if it ends far below it: what is lost again was there before."""
    smooth = series.sign * series.smooth
    rise = smooth.max() - smooth[:FEWEST_BESIDE].mean()
    if rise < series.threshold or smooth[-1] > smooth.max() - rise / 2:
        return series
    end = int(np.flatnonzero(smooth >= smooth.max() - rise / 5)[-1]) + 1
    if end < FEWEST:
        return series
    return replace(series, index=series.index[:end], x=series.x[:end], y=series.y[:end])


@dataclass(frozen=True)
class _Levels:
    """How far a series gets from where it starts, in the direction that counts, and the standard error of that.

    `possible` is the same from the lowest of the first snapshots: what comes right after the very first is a change too.
    """

    largest: float
    possible: float
    error: float

    @classmethod
    def of(cls, run: TrainingRun, series: Series) -> _Levels:
        smooth = series.sign * series.smooth
        first, top = smooth[:FEWEST_BESIDE], int(smooth.argmax())
        error = math.hypot(measuring_error(run, series, 0, top), series.scatter)
        largest, possible = (max(0.0, float(smooth[top] - start)) for start in (np.median(first), first.min()))
        return cls(largest, possible, error)


@dataclass(frozen=True)
class _Seen:
    """One series with the transition that was found in it."""

    run: TrainingRun
    axis: Axis
    series: Series
    levels: _Levels
    found: Transition
    rule: Rule

    def judged(self) -> Change:
        """The change with its verdict."""
        verdict, reason, shape, settle = self._verdict()
        change = self._change()
        onset, midpoint, end = (
            self.axis.moment(value, *self.found.interval(column))
            for column, value in enumerate((self.found.onset, self.found.midpoint, self.found.end))
        )
        width = Estimate(self.found.width, *self.found.interval(3), unit="decades")
        where = f"{_number(onset.step.value)} and {_number(end.step.value)}"
        how = f"{WORDS[self.series.name]} changes by {_number(change.value)} between steps {where}, {width.value:.2f} decades"
        if self.n_inside < FEWEST_INSIDE:
            how = (
                f"{WORDS[self.series.name]} changes by {_number(change.value)} between the snapshots at steps "
                f"{self._between[0]} and {self._between[1]}, at most {width.high:.2f} decades"
            )
        summaries = {
            "gradual": f"{how}: {self._why_gradual()}",
            "width_unclear": f"{how}, with an interval of {width.low:.2f} to {width.high:.2f}: abrupt or gradual is not clear",
            "share_unclear": f"{how}, {self.share:.0%} of all that it changes: whether that is most of it is not clear",
            "bend": f"{how}, and a line with one bend fits as well",
            "two_steps": f"{how}, and elsewhere by {_number(self._other_step)} in as short a time: two steps",
            "steps_unclear": f"{how}, and perhaps by {_number(self._other_step)} elsewhere: one step or two is not clear",
            "not_over": f"{how}, and may not be over at the last snapshot",
            "began_before": f"{how}, and may have begun before the first snapshots",
            "change_unclear": f"{how}: less than {POWER} standard errors ({_number(change.high - change.value)}) "
            "beyond the threshold",
        }
        return Change(
            self.series.name,
            verdict,
            reason,
            summaries.get(reason, how),
            shape,
            change,
            self.share,
            onset,
            midpoint,
            end,
            width,
            self.n_inside,
            self._between,
            confounders_of(self.run.schedule, self.axis, *self._extent),
            settle,
        )

    def _verdict(self) -> tuple[Verdict, str, str, str]:
        """Verdict, reason, shape, and what would settle it."""
        if self._is_gradual():
            return Verdict.REFUTED, "gradual", "gradual", ""
        if self._is_two_steps():
            return Verdict.REFUTED, "two_steps", "", ""
        missing = self._missing()
        if missing is not None:
            return Verdict.UNDETERMINED, missing[0], "", missing[1]
        return Verdict.SHOWN, "abrupt", "abrupt", ""

    def _is_gradual(self) -> bool:
        """Whether something surely changes, no transition that fits is abrupt, and the best is over.

        Where the best goes the other way, the change lies elsewhere, and may be abrupt.
        """
        surely = self.levels.largest - POWER * self.levels.error > self.series.threshold and self.share > 0
        return surely and not self._abrupt().any() and self.found.end < self.series.x[-1]

    def _is_two_steps(self) -> bool:
        """Whether something that is abrupt is surely not alone."""
        error = self.found.noise * math.sqrt(len(self.series.x) / self.found.n_effective)  # of neighbours that are alike
        return self.best_is_abrupt and self._has_other_step(self._other_step - POWER * error)

    def _has_other_step(self, size: float) -> bool:
        """Whether a change elsewhere is large enough beside this one to be a step of its own."""
        return size > 0 and size >= OTHER_STEP * self.series.sign * self.found.change

    @cached_property
    def _other_step(self) -> float:
        """The largest change of smoothed values in `max_width` decades, wholly before or after this one; 0 below the threshold.

        In the direction that counts, and up to the first snapshot beyond: how it went before that is not known.
        """
        first, last = self._extent
        smooth, largest = self.series.sign * self.series.smooth, 0.0
        for side in (self.series.x <= first, self.series.x >= last):
            x, y = self.series.x[side], smooth[side]
            for place in range(len(x) - 1):
                stop = int(np.searchsorted(x, x[place] + self.rule.max_width, side="right")) + 1
                largest = max(largest, float(y[place + 1 : stop].max() - y[place]))
        return largest if largest > self.series.threshold else 0.0

    def _why_gradual(self) -> str:
        if self.found.width > self.rule.max_width:
            return f"gradual, wider than {self.rule.max_width:g}"
        if self._part > MAX_PART:
            return f"gradual, {self._part:.0%} of the whole training"
        return f"gradual, only {self.share:.0%} of all that it changes"

    def _missing(self) -> tuple[str, str] | None:
        """Why it cannot be said that the change is abrupt, and what would settle it; None where it can."""
        first, last = self._extent
        denser = f"record more snapshots between steps {self._steps(first, last)}"
        ways = {
            "not_over": (
                not self._is_beside(-self.series.x, -self.found.interval(2)[0], -last),
                "train further, or record a few more snapshots at the end",
            ),
            "began_before": (
                not self._is_beside(self.series.x, self.found.interval(0)[1], first),
                "record from the first steps on",
            ),
            "change_unclear": (self._change().low <= self.series.threshold, "measure on more sequences or rows of text"),
            "width_unclear": (not (self._narrow(self.found.fitting).all() and self._is_seen), denser),
            "share_unclear": (not self._abrupt().all(), denser),
            "bend": (self.found.is_no_better_than_a_bend, denser),
            "steps_unclear": (self._has_other_step(self._other_step), denser),
        }
        return next(((reason, settle) for reason, (is_so, settle) in ways.items() if is_so), None)

    def _is_beside(self, x: Floats, best: float, surely: float) -> bool:
        """Whether snapshots enough lie on one side of a change for its level to be known."""
        return bool((x < best).sum() >= FEWEST_BESIDE and (x < surely).sum() >= SURELY_BESIDE)

    @property
    def share(self) -> float:
        """Of all that the series changes, what the best transition does between its onset and its end."""
        return min(1.0, max(0.0, self.series.sign * self.found.change / max(self.levels.largest, 1e-12)))

    @property
    def verdict(self) -> Verdict:
        """Whether the series changes abruptly."""
        return self._verdict()[0]

    @property
    def is_sparse(self) -> bool:
        """Whether few snapshots lie around the change."""
        return int((np.abs(self.series.x - self.found.midpoint) <= AROUND).sum()) < FEW_AROUND

    @property
    def best_is_abrupt(self) -> bool:
        """Whether the transition that fits best is."""
        found = self.found
        best = np.array([[found.onset, found.midpoint, found.end, found.width, found.change]])
        return bool(self._are_abrupt(best)[0])

    def _abrupt(self) -> NDArray[np.bool_]:
        """Of every transition that fits, whether it is abrupt."""
        return self._are_abrupt(self.found.fitting)

    def _are_abrupt(self, fitting: Floats) -> NDArray[np.bool_]:
        """Of some transitions, whether each is narrow, and most of what changes."""
        return self._narrow(fitting) & (self.series.sign * fitting[:, 4] >= MIN_SHARE * self.levels.largest)

    def _narrow(self, fitting: Floats) -> NDArray[np.bool_]:
        """Of some transitions, whether each is narrow, as a part of the training too."""
        return (fitting[:, 3] <= self.rule.max_width) & (self._parts(fitting[:, 0], fitting[:, 2]) <= MAX_PART)

    def _parts(self, onset: Floats | float, end: Floats | float) -> Any:
        """What part of the training lies between two places."""
        return (10.0**end - 10.0**onset) / 10.0 ** float(self.axis.x[-1])

    @property
    def _part(self) -> float:
        return float(self._parts(self.found.onset, self.found.end))

    @property
    def _extent(self) -> tuple[float, float]:
        """From the earliest onset to the latest end that fit."""
        return self.found.interval(0)[0], self.found.interval(2)[1]

    @property
    def _is_seen(self) -> bool:
        """Whether snapshots inside tell how the change went, or those on either side are so near that it does not matter."""
        before, after = self._beside
        return self.n_inside >= FEWEST_INSIDE or bool(self.series.x[after] - self.series.x[before] <= self.rule.max_width)

    @property
    def _beside(self) -> tuple[int, int]:
        """The last snapshot before the change and the first one after it, wherever in their intervals it begins and ends."""
        x = self.series.x
        before = int(np.searchsorted(x, self.found.fitting[:, 0].max() + 1e-9, side="right")) - 1
        after = int(np.searchsorted(x, self.found.fitting[:, 2].min() - 1e-9))
        return max(min(before, after - 1), 0), min(max(after, before + 1), len(x) - 1)

    @property
    def _between(self) -> tuple[int, int]:
        """Their steps."""
        before, after = (int(self.axis.steps[self.series.index[place]]) for place in self._beside)
        return before, after

    @property
    def n_inside(self) -> int:
        first, last = self._extent
        return int(((self.series.x >= first - 1e-9) & (self.series.x <= last + 1e-9)).sum())

    def _change(self) -> Estimate:
        """What changes in the window, in the direction that counts, give or take 2.8 standard errors."""
        x, found = self.series.x, self.found
        places = [int(np.searchsorted(x, place).clip(0, len(x) - 1)) for place in (found.onset, found.end)]
        half = POWER * math.hypot(found.change_error, measuring_error(self.run, self.series, *places))
        value = self.series.sign * found.change
        return Estimate(value, value - half, value + half, self.series.unit)

    def _steps(self, first: float, last: float) -> str:
        moment = self.axis.moment(first, first, last).step
        return f"{_number(moment.low)} and {_number(moment.high)}"


def confounders_of(schedule: Sequence[ScheduledChange], axis: Axis, first: float, last: float) -> tuple[str, ...]:
    """Scheduled changes of the training within the interval or near it."""
    near = []
    for change in schedule:
        step, known = np.log10(max(change.step, 1)), np.log10(axis.steps)
        beyond = step - np.clip(step, known[0], known[-1])  # before the first snapshot or after the last
        place = float(np.interp(step, known, axis.x) + beyond)
        if first - NEAR <= place <= last + NEAR:
            near.append(f"{change.what} (step {change.step})")
    return tuple(near)


def _number(value: float) -> str:
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
