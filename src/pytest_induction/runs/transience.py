"""Does what a training has learned stay? What a series has at its peak, held against what it has at the end."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from pytest_induction.errors import ArgumentError, user_facing
from pytest_induction.expectations import denied, expect
from pytest_induction.records import Estimate, Evidence, Verdict
from pytest_induction.runs.opening import load_run
from pytest_induction.runs.phase_change.changes import FEWEST, POWER, WORDS
from pytest_induction.runs.phase_change.claims import RunLike, provenance_of
from pytest_induction.runs.phase_change.finding import ERROR_RATE
from pytest_induction.runs.record import BY_ROW, FALLS, MIN_CHANGE, Axis, Series, TrainingRun, measuring_error, series_of
from pytest_induction.statistics import mean_interval

AT_ONCE = 3  # snapshots whose mean stands for one
FEWEST_ROWS = 8  # of which half choose where the peak is
OF_ROWS = (*BY_ROW, "icl_score")  # series of which each row's value is recorded
SERIES = tuple(name for name in MIN_CHANGE if name not in ("loss", "turn"))

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Drop:
    """How far a series has fallen from its peak at the end, and how far it had risen to it; `step` is that of the peak.

    `how` says on what the peak was chosen, and on what both were measured.
    """

    drop: Estimate
    rise: Estimate
    step: int
    how: str


@user_facing
def assert_no_transience(
    run: RunLike, *, series: str = "advantage", max_drop: float | None = None, error_rate: float = ERROR_RATE
) -> Evidence:
    """Assert that a training keeps what it has learned: at the end a series is at most `max_drop` below its peak.

    `series` is one of those that have a `min_change` (see `find_phase_changes`): by default the advantage of the successor on
    repeated tokens, in nats; `rare_advantage` is the same on ids that are rare in the training data. `max_drop` is in the
    unit of the series, half of its `min_change` unless it is given: 0.5 nats of an advantage, 0.1 of a head score.

    The highest of many values is high by chance too, so the peak is chosen on other rows than it is measured on: on each half of
    the rows, and measured on the other. Levels are means of three snapshots, and the interval is Student's, over rows. Where
    values of single rows are not on record (scores of heads, logs), every other snapshot chooses the peak and those beside it
    measure it, give or take 2.8 standard errors; the summary says so. SHOWN if the whole interval of the drop lies below
    `max_drop`, REFUTED if it lies above. What never rose by more than `max_drop` cannot be lost: UNDETERMINED.

    Returns the evidence, with the estimates `drop` and `rise`. Raises `ExpectationFailed`, which carries it, `RunError` for a run
    that cannot be read, `ArgumentError` for a series that there is not. Source: Singh et al. 2023 (2311.08360).

    >>> assert_no_transience("fixtures/runs/two-layers").reason                           # doctest: +SKIP
    'kept'
    """
    return expect(_judged(run, series, max_drop, error_rate))


@user_facing
def assert_transience(
    run: RunLike, *, series: str = "advantage", max_drop: float | None = None, error_rate: float = ERROR_RATE
) -> Evidence:
    """Assert that a series rises in a training and is lost again, by more than `max_drop`: shown, not merely not kept.

    Arguments as those of `assert_no_transience`, whose denial it is.
    """
    return expect(denied(_judged(run, series, max_drop, error_rate), "transience"))


def _judged(run: RunLike, name: str, max_drop: float | None, error_rate: float) -> Evidence:
    if name not in SERIES:
        raise ArgumentError(f"`series` must be one of {', '.join(SERIES)}, got {name!r}")
    allowed = MIN_CHANGE[name] / 2 if max_drop is None else max_drop
    if not 0 < allowed < math.inf:
        raise ArgumentError(f"`max_drop` must be above 0, got {max_drop}")
    if not 0 < error_rate < 1:
        raise ArgumentError(f"`error_rate` must lie between 0 and 1, got {error_rate}")
    opened = load_run(run)
    evidence = Evidence(
        "no_transience",
        Verdict.UNDETERMINED,
        "few_snapshots",
        "",
        provenance_of(opened),
        thresholds={"max_drop": allowed},
        confidence=1 - error_rate,
    )
    found = drop_of(opened, name, error_rate)
    if found is None:
        seen = f"{WORDS[name]} is known at {_count(opened, name)} snapshots; at least {FEWEST} are needed"
        return replace(evidence, summary=seen, next_step="record the training, or sweep its checkpoints")
    return _with_drop(evidence, name, found, allowed)


def _with_drop(evidence: Evidence, name: str, found: Drop, allowed: float) -> Evidence:
    """The evidence on a series of which the drop is known."""
    drop, rise = found.drop, found.rise
    evidence = replace(evidence, estimates={"drop": drop, "rise": rise})
    seen = (
        f"{WORDS[name]} ends {drop.value:.3g} ({drop.low:.3g}..{drop.high:.3g}) below its peak at step {found.step}, "
        f"to which it rose by {rise.value:.3g}; {found.how}"
    )
    if not rise.is_above(allowed):
        never = f"{WORDS[name]} never rose by more than {allowed:g} for sure: {rise.value:.3g} ({rise.low:.3g}..{rise.high:.3g})"
        return replace(evidence, reason="never_formed", summary=f"{never}; {found.how}")
    if drop.is_below(allowed):
        return replace(evidence, verdict=Verdict.SHOWN, reason="kept", summary=seen)
    if drop.is_above(allowed):
        return replace(evidence, verdict=Verdict.REFUTED, reason="lost_again", summary=seen)
    return replace(evidence, reason="drop_unclear", summary=seen)


def _count(run: TrainingRun, name: str) -> int:
    """At how many snapshots a series is known."""
    return len(series_of(run, Axis.of(run), name, MIN_CHANGE).x) if len(run) > 1 else len(run)


def drop_of(run: TrainingRun, name: str, error_rate: float = ERROR_RATE) -> Drop | None:
    """How far a series falls from its peak to the end, on other rows than the peak is chosen on; None for too few snapshots.

    Both intervals together miss at most at `error_rate`.
    """
    if len(run) < FEWEST:
        return None
    index, rows = _rows(run, name)
    if len(index) >= FEWEST and rows.shape[1] >= FEWEST_ROWS:
        return _by_rows(run, index, -rows if name in FALLS else rows, error_rate, series_unit(name))
    series = series_of(run, Axis.of(run), name, MIN_CHANGE)
    return _by_snapshots(run, series) if len(series.x) >= FEWEST else None


def series_unit(name: str) -> str:
    """The unit of differences of a series."""
    none = np.zeros(0)
    unit = Series(name, none.astype(np.int64), none, none, 0.0).unit
    return "difference" if unit == "share" else unit


def _rows(run: TrainingRun, name: str) -> tuple[NDArray[np.int64], Floats]:
    """The snapshots that have a series row by row, of as many rows as the last one, and the values, (points, rows)."""
    if name not in OF_ROWS or not any(each.by_row(name) is not None for each in run.snapshots):
        return np.zeros(0, dtype=np.int64), np.zeros((0, 0))
    index, rows = run.rows_of("icl_rows" if name == "icl_score" else name)
    finite = np.isfinite(rows).all(axis=1)
    return index[finite], rows[finite]


def _by_rows(run: TrainingRun, index: NDArray[np.int64], rows: Floats, error_rate: float, unit: str) -> Drop:
    """Each half of the rows chooses the peak for the other; `rows` (points, rows) rise where induction forms."""
    levels = np.lib.stride_tricks.sliding_window_view(rows, AT_ONCE, axis=0).mean(axis=-1)  # windows, rows
    drops, rises = np.empty(rows.shape[1]), np.empty(rows.shape[1])
    for chosen, measured in ((slice(0, None, 2), slice(1, None, 2)), (slice(1, None, 2), slice(0, None, 2))):
        peak = int(levels[:, chosen].mean(axis=1).argmax())
        drops[measured] = levels[peak, measured] - levels[-1, measured]
        rises[measured] = levels[peak, measured] - levels[0, measured]
    drop, rise = (mean_interval(values[:, None], error_rate / 2, unit)[0] for values in (drops, rises))
    place = int(levels.mean(axis=1).argmax()) + AT_ONCE // 2
    how = f"on {rows.shape[1]} rows, each half of which chose the peak for the other"
    return Drop(drop, rise, int(run.steps[index[place]]), how)


def _by_snapshots(run: TrainingRun, series: Series) -> Drop:
    """Every other snapshot, from the first on, chooses the peak; the ones between measure it."""
    values = series.sign * series.y
    places = np.arange(0, len(values) - 1, 2)
    levels = np.array([values[max(place - 2, 0) : place + 3 : 2].mean() for place in places])  # with those two before and after
    peak = int(places[levels.argmax()])
    beside = [place for place in (peak - 1, peak + 1) if 0 <= place < len(values)]
    top, last, first = values[beside].mean(), values[-AT_ONCE:].mean(), values[:AT_ONCE].mean()
    spread = math.hypot(series.scatter * math.sqrt(1 / len(beside) + 1 / AT_ONCE), measuring_error(run, series, peak, -1))
    spread = spread if math.isfinite(spread) else 0.0
    unit = series_unit(series.name)
    drop, rise = (
        Estimate(float(value), float(value) - POWER * spread, float(value) + POWER * spread, unit)
        for value in (top - last, top - first)
    )
    how = "values of single rows are not on record: every other snapshot chose the peak, those beside it measured it"
    return Drop(drop, rise, int(run.steps[series.index[peak]]), how)
