"""Does the path of a training turn abruptly in the space of token losses? The series `turn` of a run, with its verdict.

What is judged is the heading: the angle between the way so far and the way to the end (see `runs.trajectory.headings`). The
turn is the stretch of a quarter of a decade in which it falls most. A local angle, between where the path comes from and where it
goes, does not tell: weights wander from step to step, and it is near a right angle all along, in models of one layer too.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pytest_induction.records import Change, Estimate, Moment, Verdict
from pytest_induction.runs.phase_change.changes import FEWEST, FEWEST_BESIDE, FEWEST_INSIDE, POWER, Rule, confounders_of
from pytest_induction.runs.record import Axis, TrainingRun
from pytest_induction.runs.trajectory import END, heading_replicates, headings, headings_without_noise
from pytest_induction.statistics import student_quantile

Floats = NDArray[np.float64]
STRETCH = 0.25  # decades in which the path must turn: half of what a change may last
MOST_POINTS = 600  # of a heading: more say nothing about stretches of such a length
FEWEST_TOKENS = 32  # an angle among fewer is mostly chance
FEWEST_ELSEWHERE = 5  # stretches, for what the heading falls by otherwise
GAP_SHARE = 1 / 24  # between two snapshots, how it went is not known: as for transitions


@dataclass(frozen=True)
class Turn:
    """The stretch in which a heading falls most: from where, by how much, and where a tenth, half and nine tenths of it lie.

    `elsewhere` holds the falls over stretches that do not touch this one, `hidden` the largest fall between two neighbouring
    snapshots farther apart than a stretch: it may have come all at once.
    """

    start: float
    fall: float
    onset: float
    midpoint: float
    end: float
    elsewhere: Floats
    hidden: float

    @property
    def wander(self) -> float:
        """Standard deviation of the falls elsewhere, by the median: what drift and wandering weights do to a fall."""
        if len(self.elsewhere) < FEWEST_ELSEWHERE:
            return math.inf
        return float(1.4826 * np.median(np.abs(self.elsewhere - np.median(self.elsewhere))))


def sharpest_turn(x: Floats, angles: Floats, stretch: float = STRETCH) -> Turn:
    """The stretch of so many decades in which the heading (points,) falls most; the axis `x` rises strictly, and is longer."""
    starts = np.unique(np.clip(np.concatenate([x, x - stretch]), x[0], x[-1] - stretch))
    falls = np.interp(starts, x, angles) - np.interp(starts + stretch, x, angles)
    best = int(falls.argmax())
    start, fall = float(starts[best]), float(falls[best])
    inside = np.concatenate([[start], x[(x > start) & (x < start + stretch)], [start + stretch]])
    levels = np.interp(inside, x, angles)
    onset, midpoint, end = (_place(inside, levels, levels[0] - share * fall) for share in (0.1, 0.5, 0.9))
    apart = np.diff(x) > stretch
    hidden = float((-np.diff(angles)[apart]).max(initial=0.0))
    return Turn(start, fall, onset, midpoint, end, falls[np.abs(starts - start) > stretch], hidden)


def _place(x: Floats, falling: Floats, level: float) -> float:
    """Where something falls to a level: half-way between the first place where it is as low and the last where it is as high."""
    first = np.interp(-level, -np.minimum.accumulate(falling), x)
    last = np.interp(-level, -np.maximum.accumulate(falling[::-1])[::-1], x)
    return float(first + last) / 2


def judge_turn(run: TrainingRun, axis: Axis, threshold: float, rule: Rule) -> Change | None:
    """The verdict on the turn of a run: SHOWN where the heading falls by more than `threshold` degrees in a quarter of a decade.

    None where no token losses were recorded.
    """
    if not run.has("token_losses"):
        return None
    index, losses = run.token_losses()
    if len(index) < FEWEST or losses.shape[1] < FEWEST_TOKENS:
        known_of = f"losses of {losses.shape[1]} tokens are known at {len(index)} snapshots"
        seen = f"{known_of}; at least {FEWEST_TOKENS} at {FEWEST} are needed"
        more = "record more snapshots, or the losses of more tokens (`token_losses=`)"
        return Change("turn", Verdict.UNDETERMINED, "few_snapshots", seen, next_step=more)
    if not (losses[-END:] - losses[0]).mean(axis=0).any():
        return Change("turn", Verdict.REFUTED, "no_turn", "the path of token losses ends where it began", "flat")
    index, losses = _thinned(axis.x[index], index, losses)
    angles, others = headings(losses), heading_replicates(losses, per_example=_per_row(run, index, losses.shape[1]))
    known = np.isfinite(angles) & np.isfinite(others).all(axis=0)
    x, stretch = axis.x[index][known], min(STRETCH, rule.max_width)
    if known.sum() < FEWEST or x[-1] - x[0] < 3 * stretch:
        seen = f"token losses are known over {x[-1] - x[0] if len(x) else 0:.2f} decades: too short for a turn to stand out"
        return Change(
            "turn", Verdict.UNDETERMINED, "few_snapshots", seen, next_step="record from the first steps on, or train further"
        )
    replicates = [sharpest_turn(x, each, stretch) for each in others[:, known]]
    turn, clean = sharpest_turn(x, angles[known], stretch), headings_without_noise(losses)[known]
    least = float(np.interp(turn.start, x, clean) - np.interp(turn.start + stretch, x, clean))
    return _Found(run, axis, x, angles[known], turn, replicates, least, threshold, rule).judged()


def _thinned(x: Floats, index: NDArray[np.int64], losses: Floats) -> tuple[NDArray[np.int64], Floats]:
    """The same, or of very many snapshots those nearest to even parts of the axis, with the first and the last ones."""
    if len(x) <= MOST_POINTS:
        return index, losses
    near = np.searchsorted(x, np.linspace(x[0], x[-1], MOST_POINTS)).clip(0, len(x) - 1)
    kept = np.union1d(near, np.arange(len(x) - END, len(x)))
    return index[kept], losses[kept]


def _per_row(run: TrainingRun, index: NDArray[np.int64], n_tokens: int) -> int:
    """How many neighbouring token losses are of one row of the text."""
    rows = run.snapshots[int(index[-1])].icl_rows
    return n_tokens // len(rows) if rows is not None and len(rows) > 1 and n_tokens % len(rows) == 0 else 1


@dataclass(frozen=True)
class _Found:
    """The sharpest turn of a run, and the same without a part of the examples each time.

    `least` is the fall that is left where the noise of single snapshots makes no heading higher.
    """

    run: TrainingRun
    axis: Axis
    x: Floats
    angles: Floats
    turn: Turn
    replicates: list[Turn]
    least: float
    threshold: float
    rule: Rule

    def judged(self) -> Change:
        """The change with its verdict."""
        verdict, reason, settle = self._verdict()
        onset, midpoint, end = (self._moment(place) for place in (self.turn.onset, self.turn.midpoint, self.turn.end))
        fall, width = self._fall, self.turn.end - self.turn.onset
        half = math.sqrt(2) * self._half
        where = f"steps {onset.step.value:.0f} and {end.step.value:.0f}, {width:.2f} decades"
        how = f"the path of token losses turns by {fall.value:.3g} degrees between {where}"
        summaries = {
            "no_turn": f"the path of token losses turns by at most {fall.value:.3g} degrees within {self._stretch:g} decades",
            "not_over": f"{how}, and may not be over at the last snapshot",
            "began_before": f"{how}, and may have begun before the first snapshots",
            "few_inside": f"{how}, with {self._n_inside} snapshots inside",
            "turn_unclear": f"{how}, ({fall.low:.3g}..{fall.high:.3g}): more than {self.threshold:g} or not is not clear",
        }
        return Change(
            "turn",
            verdict,
            reason,
            summaries.get(reason, how),
            {"turn": "abrupt", "no_turn": "flat"}.get(reason, ""),
            fall,
            min(1.0, max(0.0, fall.value / max(float(np.ptp(self.angles)), 1e-12))),
            onset,
            midpoint,
            end,
            Estimate(width, max(0.0, width - half), width + half, "decades"),
            self._n_inside,
            None,
            confounders_of(self.run.schedule, self.axis, *self._extent),
            settle,
        )

    def _verdict(self) -> tuple[Verdict, str, str]:
        """Verdict, reason, and what would settle it."""
        first, last = self._extent
        if self._fall.high < self.threshold and self.turn.hidden < self.threshold:
            return Verdict.REFUTED, "no_turn", ""
        moment = self.axis.moment(self.turn.midpoint, first, last).step
        denser = f"record more snapshots between steps {moment.low:.0f} and {moment.high:.0f}"
        if self.turn.hidden >= self.threshold:
            return Verdict.UNDETERMINED, "few_inside", denser
        missing = {
            "not_over": ((self.x > last).sum() < FEWEST_BESIDE, "train further, or record a few more snapshots at the end"),
            "began_before": ((self.x < first).sum() < FEWEST_BESIDE, "record from the first steps on"),
            "few_inside": (self._n_inside < FEWEST_INSIDE, denser),
            "turn_unclear": (not self._fall.low > self.threshold, "record more token losses (`token_losses=`), or train further"),
        }
        for reason, (is_missing, settle) in missing.items():
            if is_missing:
                return Verdict.UNDETERMINED, reason, settle
        return Verdict.SHOWN, "turn", ""

    @property
    def _stretch(self) -> float:
        return min(STRETCH, self.rule.max_width)

    @property
    def _error(self) -> float:
        """The standard error of the fall: of the choice of examples, and of what the heading does elsewhere."""
        return math.hypot(self._spread([each.fall for each in self.replicates]), self.turn.wander)

    def _spread(self, values: list[float]) -> float:
        count = len(values)
        return math.sqrt((count - 1) / count * float(np.square(np.array(values) - np.mean(values)).sum()))

    @property
    def _fall(self) -> Estimate:
        """What the heading falls by, give or take 2.8 standard errors, and less what may be noise."""
        value, half = self.turn.fall, min(POWER * self._error, 180.0)
        return Estimate(value, min(value, self.least) - half, value + half, "degrees")

    @property
    def _half(self) -> float:
        """Half of the interval of a place: of the examples, of an error in the angle at this slope, and of the gap around it."""
        slope = 0.8 * self.turn.fall / max(self.turn.end - self.turn.onset, 1e-9)
        spread = self._spread([each.midpoint for each in self.replicates])
        quantile = student_quantile(self.rule.error_rate / 2, max(1, len(self.replicates) - 1))
        beside = int(np.clip(np.searchsorted(self.x, self.turn.midpoint), 1, len(self.x) - 1))
        gap = float(self.x[beside] - self.x[beside - 1]) * GAP_SHARE
        return min(quantile * math.hypot(spread, self._error / max(slope, 1e-9)) + gap, float(np.ptp(self.x)))

    def _moment(self, place: float) -> Moment:
        return self.axis.moment(place, place - self._half, place + self._half)

    @property
    def _extent(self) -> tuple[float, float]:
        return self.turn.onset - self._half, self.turn.end + self._half

    @property
    def _n_inside(self) -> int:
        first, last = self._extent
        return int(((self.x >= first - 1e-9) & (self.x <= last + 1e-9)).sum())
