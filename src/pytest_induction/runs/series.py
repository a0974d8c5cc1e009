"""The series of a run that a phase change shows in, each with its axis, its direction and how far it must change to count."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pytest_induction.errors import RunError
from pytest_induction.records import Estimate, Moment
from pytest_induction.runs.record import TrainingRun

Floats = NDArray[np.float64]
MIN_CHANGE = {
    "prefix_matching": 0.2,
    "previous_token": 0.2,
    "advantage": 1.0,
    "repeat_accuracy": 0.3,
    "repeat_loss": 1.0,
    "icl_score": 0.15,
    "loss": 0.1,
    "turn": 20.0,
}
FALLS = ("repeat_loss", "icl_score", "loss")  # what falls where induction forms
OF_HEADS = ("prefix_matching", "previous_token")
UNITS = dict.fromkeys((*OF_HEADS, "repeat_accuracy"), "share")
SMOOTHED = 5  # values whose median stands for the one in the middle
REPEATS = ("advantage", "repeat_accuracy", "repeat_loss")  # behaviour on repeated tokens, the most telling one first


@dataclass(frozen=True)
class Axis:
    """The logarithm of the tokens trained on at every snapshot (of its step where tokens are not known), (snapshots,).

    The first snapshot of an untrained model lies at half of what the second has trained on.
    """

    x: Floats
    steps: Floats
    tokens: Floats | None

    @classmethod
    def of(cls, run: TrainingRun) -> Axis:
        """The axis of a run of at least two snapshots, no step below 0; raises `RunError` for another."""
        if len(run) < 2:
            raise RunError(f"run {run.name!r} has {len(run)} snapshots: a change needs two at least")
        if run.steps[0] < 0:
            raise RunError(f"the steps of run {run.name!r} must be counted from 0, its first is {run.steps[0]}")
        steps = _positive(run.steps.astype(np.float64))
        tokens = run.tokens
        known = bool(np.isfinite(tokens).all() and tokens[0] >= 0 and (np.diff(tokens) > 0).all())
        counted = _positive(tokens) if known else None
        return cls(np.log10(steps if counted is None else counted), steps, counted)

    def moment(self, value: float, low: float, high: float) -> Moment:
        """A place on the axis, in steps and tokens."""
        inside = np.clip([value, low, high], self.x[0], self.x[-1])
        step = 10 ** np.interp(inside, self.x, np.log10(self.steps))
        return Moment(_estimate(step, "steps"), None if self.tokens is None else _estimate(10**inside, "tokens"))


def _estimate(places: Floats, unit: str) -> Estimate:
    return Estimate(float(places[0]), float(places[1]), float(places[2]), unit)


def _positive(values: Floats) -> Floats:
    """The same with a first value of 0 put at half of the second."""
    return np.where(values > 0, values, values[1] / 2)


@dataclass(frozen=True)
class Series:
    """The values of one measure where it was recorded, (points,) each; `index` says at which snapshots."""

    name: str
    index: NDArray[np.int64]
    x: Floats
    y: Floats
    bar: float

    @property
    def sign(self) -> float:
        """1 for what rises where induction forms, -1 for what falls."""
        return -1.0 if self.name in FALLS else 1.0

    @property
    def smooth(self) -> Floats:
        """The median of each value and the two on either side, (points,); the ends count as if they went on."""
        half = SMOOTHED // 2
        padded = np.concatenate([[self.y[0]] * half, self.y, [self.y[-1]] * half])
        return np.median(np.lib.stride_tricks.sliding_window_view(padded, SMOOTHED), axis=1)

    @property
    def scatter(self) -> float:
        """The standard deviation of single values, by the median of their differences, which one change does not move."""
        return float(1.4826 * np.median(np.abs(np.diff(self.y))) / math.sqrt(2))

    @property
    def unit(self) -> str:
        return UNITS.get(self.name, "nats")


def series_of(run: TrainingRun, axis: Axis, name: str, bars: Mapping[str, float]) -> Series:
    """A measure of a run, without the snapshots at which it is missing; NaN is missing."""
    values = run.best_of_heads(name)[0] if name in OF_HEADS else run.column(name)
    index = np.flatnonzero(np.isfinite(values))
    return Series(name, index, axis.x[index], values[index], bars[name])


def extra_variance(run: TrainingRun, series: Series) -> Floats:
    """The variance that values have as they were measured on fewer sequences than the best measured ones, (points,).

    Snapshots of as many sequences have the same ones, which do not make a curve scatter. Fewer of them are another choice, which
    moves a value by its standard error.
    """
    shots = [run.snapshots[int(place)] for place in series.index]
    counts = np.array([shot.n_sequences for shot in shots], dtype=np.float64)
    if len(counts) == 0 or counts.min() == counts.max() or counts.min() <= 0:
        return np.zeros(len(counts))
    errors = np.array([of_best(getattr(shot, series.name), shot.errors.get(series.name)) for shot in shots])
    return errors**2 * (1 - counts / counts.max())


def measuring_error(run: TrainingRun, series: Series, before: int, after: int) -> float:
    """The standard error that rows or sequences give the difference between two snapshots; 0 where it is not known.

    Rows of a text are the same at every snapshot, so differences are taken row by row.
    """
    first, last = (run.snapshots[int(series.index[place])] for place in (before, after))
    one, two = first.icl_rows, last.icl_rows
    if series.name == "icl_score" and one is not None and two is not None and one.shape == two.shape and len(one) > 1:
        return float((two - one).std(ddof=1) / math.sqrt(len(one)))
    errors = [snapshot.errors.get(series.name) for snapshot in (first, last)]
    values = [of_best(getattr(each, series.name), error) for each, error in zip((first, last), errors, strict=True)]
    return math.hypot(*values)


def of_best(scores: object, error: object) -> float:
    """The standard error of a number, or of the highest of many."""
    if isinstance(error, np.ndarray):
        if not isinstance(scores, np.ndarray) or scores.shape != error.shape or not np.isfinite(scores).any():
            return 0.0
        error = float(error[np.unravel_index(np.nanargmax(scores), scores.shape)])
    return error if isinstance(error, float) and math.isfinite(error) else 0.0
