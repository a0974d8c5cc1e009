"""A training run as data: snapshots in the order of their steps, and their series. Needs numpy, not torch."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property
from importlib import import_module
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pytest_induction.display import Displayed, Picture, Plotted, View, arrays_table, rows_table, spread_table
from pytest_induction.errors import RunError
from pytest_induction.probes.sequences import ProbeSequence
from pytest_induction.ranges import FROM_ONE, NATS, SCORES, Count, Number, Small
from pytest_induction.records import Estimate, Moment
from pytest_induction.runs.trajectory import (
    FEWEST_POINTS,
    WINDOW,
    LossPath,
    LossSlopes,
    headings,
    loss_slopes,
    principal_path,
    turning_angles,
)

if TYPE_CHECKING:
    from pytest_induction.runs.checkpoints.finding import Checkpoint
    from pytest_induction.runs.checkpoints.loading import Loading

Doubles = NDArray[np.float64]
MIN_CHANGE = {
    "prefix_matching": 0.2,
    "previous_token": 0.2,
    "advantage": 1.0,
    "repeat_accuracy": 0.3,
    "repeat_loss": 1.0,
    "icl_score": 0.15,
    "loss": 0.1,
    "turn": 20.0,
    "foretold_gap": 0.5,
    "match_gain": 1.0,
    "preference": 0.4,
    "common_advantage": 1.0,
    "rare_advantage": 1.0,
    "markov_unigram_kl": 0.05,
    "markov_bigram_kl": 0.05,
    "in_context_preference": 1.0,
}
FALLS = ("repeat_loss", "icl_score", "loss", "markov_unigram_kl", "markov_bigram_kl")  # what falls where induction forms
OF_HEADS = ("prefix_matching", "previous_token", "preference")
UNITS = {**dict.fromkeys(("prefix_matching", "previous_token", "repeat_accuracy"), "share"), "preference": "preference"}
SMOOTHED = 5  # values whose median stands for the one in the middle
REPEATS = ("advantage", "repeat_accuracy", "repeat_loss")  # behaviour on repeated tokens, the most telling one first


@dataclass(frozen=True)
class Axis:
    """The logarithm of the tokens trained on at every snapshot (of its step where tokens are not known), (snapshots,).

    The first snapshot of an untrained model lies at half of what the second has trained on.
    """

    x: Doubles
    steps: Doubles
    tokens: Doubles | None

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


def _estimate(places: Doubles, unit: str) -> Estimate:
    return Estimate(float(places[0]), float(places[1]), float(places[2]), unit)


def _positive(values: Doubles) -> Doubles:
    """The same with a first value of 0 put at half of the second."""
    return np.where(values > 0, values, values[1] / 2)


@dataclass(frozen=True)
class Series:
    """The values of one measure where it was recorded, (points,) each; `index` says at which snapshots."""

    name: str
    index: NDArray[np.int64]
    x: Doubles
    y: Doubles
    threshold: float

    @property
    def sign(self) -> float:
        """1 for what rises where induction forms, -1 for what falls."""
        return -1.0 if self.name in FALLS else 1.0

    @property
    def smooth(self) -> Doubles:
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


def series_of(run: TrainingRun, axis: Axis, name: str, thresholds: Mapping[str, float]) -> Series:
    """A measure of a run, without the snapshots at which it is missing; NaN is missing."""
    values = run.best_of_heads(name)[0] if name in OF_HEADS else run.column(name)
    index = np.flatnonzero(np.isfinite(values))
    return Series(name, index, axis.x[index], values[index], thresholds[name])


def extra_variance(run: TrainingRun, series: Series) -> Doubles:
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
    one, two = first.by_row(series.name), last.by_row(series.name)
    if one is not None and two is not None and one.shape == two.shape and len(one) > 1:
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


Floats = NDArray[np.floating[Any]]
NUMBERS = (
    "loss",
    "icl_score",
    "early_loss",
    "late_loss",
    "first_loss",
    "repeat_loss",
    "repeat_accuracy",
    "advantage",
    "foretold_loss",
    "other_loss",
    "foretold_gap",
    "match_gain",
    "common_advantage",
    "rare_advantage",
    "markov_unigram_kl",
    "markov_bigram_kl",
    "in_context_preference",
)
HEADS = ("prefix_matching", "excess", "previous_token", "duplicate_token", "first_token", "preference")
ROWS = ("icl_rows", "token_losses", "index_losses")
BY_ROW = (
    *("advantage", "foretold_gap", "match_gain", "common_advantage", "rare_advantage"),
    *("markov_unigram_kl", "markov_bigram_kl", "in_context_preference"),
)
ARRAYS = (*HEADS, *ROWS)
PerStep = Annotated[float, SCORES["tokens_per_step"]]


def _in_order(window: tuple[int, int]) -> str:
    return "" if window[0] <= window[1] else f"must be a first and a last token number, got {window[0]} and {window[1]}"


Window = Annotated[tuple[Annotated[int, FROM_ONE], Annotated[int, FROM_ONE]], _in_order]
"""Token numbers from one, the first and the last."""


@dataclass(frozen=True)
class Hunted:
    """What the hunt for a sequence on which a property fails came to at one snapshot.

    `n_examples` different sequences were looked at, or pairs of them. Where `is_replayed` they are those that had failed at other
    snapshots or held there by the least, and none was generated. `counterexample` is the smallest that fails, in a tuple, of two
    where the property is of pairs; empty where none does. `shortest_period` and `fewest_copies` are the least of all that were
    seen to fail, `failure` is why the smallest does, `margin` by how little the property holds where it does. `problem` says why
    nothing could be looked at.
    """

    n_examples: Count = 0
    counterexample: tuple[ProbeSequence, ...] = ()
    shortest_period: Small | None = None
    fewest_copies: Small | None = None
    failure: str = ""
    margin: Number | None = None
    is_replayed: bool = False
    problem: str = ""

    @property
    def holds(self) -> bool | None:
        """Whether the property holds on all that was looked at; None where nothing was."""
        return None if self.problem or not self.n_examples else not self.counterexample


class SweptFrom(NamedTuple):
    """Where the weights of a swept run lie, and how they are loaded."""

    found: tuple[Checkpoint, ...]
    loading: Loading


@dataclass(frozen=True, eq=False, repr=False)
class Snapshot(Displayed):
    """What was measured at one step of a training. Whatever was not measured is None.

    `step` counts optimiser steps, `tokens` what was trained on until then. Losses in nats per token: `loss` is the run's own,
    `early_loss` and `late_loss` are those of the two windows of held-out text (`TrainingRun.icl_windows`), `icl_score` is late
    minus early, negative if the model learns in context, and `icl_rows` (rows,) the same of each row. On repeated random
    tokens `first_loss` is of the first copy, `repeat_loss`, `repeat_accuracy` (top-1) and `advantage` are of the later ones.
    Scores of heads are (n_layers, n_heads), in [0, 1], NaN for a head that a layer does not have; `excess` is what is left of
    prefix matching without the head's own chance, in [-1, 1]. `token_losses` (tokens,) are losses of fixed tokens of the
    text, as many from each row, row after row, and `index_losses` (indices,) the means over rows of the loss of each token of a
    row, from token number `TrainingRun.first_token` on. `errors` holds standard errors of the values of the same name, over
    sequences or rows, and `rows` the values of each sequence or row, (rows,), of those in `BY_ROW`; their mean is the value.

    Of the same text `foretold_loss` is of the tokens that a match of two or more in their row foretells, `other_loss` of all
    others, and `foretold_gap` is by how much the former cost less. Where it was asked for, `match_gain` is the log-probability of
    what followed a match of three tokens minus that of what followed one of one, and `preference` (n_layers, n_heads), from -1
    to 1, that of each head for the longer match, NaN for heads that match too little. `common_advantage` and `rare_advantage` are
    the advantage on repeated rows of frequent ids, and of ids that are rare in the training data, or never there.
    `markov_unigram_kl` and `markov_bigram_kl` are KL(predictor || model) on rows of Markov chains, of the in-context unigram and
    bigram, and `in_context_preference` is log p of what followed a token in its row minus that of what follows it in the training
    data.

    `hunts` has what was hunted for a counterexample: the property as it is written -> what came of it. `added` has scores of
    heads that do not come with the package, (n_layers, n_heads) each, in [0, 1], and their own chance, by name.

    `problem` says why something that was to be measured is missing: a loss that is not finite, a checkpoint that cannot be read.
    """

    step: int
    tokens: int | None = None
    loss: float | None = None
    icl_score: float | None = None
    early_loss: float | None = None
    late_loss: float | None = None
    first_loss: float | None = None
    repeat_loss: float | None = None
    repeat_accuracy: float | None = None
    advantage: float | None = None
    prefix_matching: Floats | None = None
    excess: Floats | None = None
    previous_token: Floats | None = None
    duplicate_token: Floats | None = None
    first_token: Floats | None = None
    foretold_loss: float | None = None
    other_loss: float | None = None
    foretold_gap: float | None = None
    match_gain: float | None = None
    common_advantage: float | None = None
    rare_advantage: float | None = None
    markov_unigram_kl: float | None = None
    markov_bigram_kl: float | None = None
    in_context_preference: float | None = None
    preference: Floats | None = None
    icl_rows: Floats | None = None
    token_losses: Floats | None = None
    index_losses: Floats | None = None
    errors: Mapping[str, float | Floats] = field(default_factory=dict)
    rows: Mapping[str, Floats] = field(default_factory=dict)
    hunts: Mapping[str, Hunted] = field(default_factory=dict)
    added: Mapping[str, Floats] = field(default_factory=dict)
    n_sequences: int = 0
    fingerprint: str = ""
    seconds: float | None = None
    problem: str = ""

    def view(self) -> View:
        """What there is to show."""
        rows = [{"measure": name, "value": getattr(self, name), "standard_error": self.errors.get(name)} for name in NUMBERS]
        of_heads = {name: getattr(self, name) for name in HEADS if getattr(self, name) is not None} | dict(self.added)
        tokens = "" if self.tokens is None else f", {self.tokens} tokens"
        facts = (
            f"{self.n_sequences} sequences" if self.n_sequences else "",
            self.problem,
            *(f"{name}: {_found(each)}" for name, each in self.hunts.items()),
        )
        tables = (
            rows_table("numbers", [row for row in rows if row["value"] is not None]),
            *([arrays_table("heads", of_heads)] if of_heads else []),
        )
        return View(f"Snapshot of step {self.step}{tokens}", tuple(filter(None, facts)), tables)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Snapshot):
            return NotImplemented
        return all(_same(getattr(self, each.name), getattr(other, each.name)) for each in fields(self))

    __hash__ = None  # type: ignore[assignment]  # it holds arrays

    def measurement(self, name: str) -> Any:
        """What was measured under a name, or None: a field of its own, or an added score."""
        return self.added[name] if name in self.added else getattr(self, name, None)

    def by_row(self, name: str) -> Floats | None:
        """What a value of this name is the mean of, (rows,): one number for each sequence or row of text, or None."""
        return self.icl_rows if name == "icl_score" else self.rows.get(name)


def _list_of(snapshot: Snapshot, name: str) -> Floats | None:
    return getattr(snapshot, name) if name in ROWS else snapshot.by_row(name)


def _known(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _found(hunted: Hunted) -> str:
    """What a hunt came to, in words."""
    if hunted.holds is None:
        return hunted.problem or "not looked at"
    return f"holds on {hunted.n_examples}" if hunted.holds else f"fails on {', '.join(map(repr, hunted.counterexample))}"


def _is_too_large(value: float | None) -> bool:
    """Whether a number is more than arithmetic stands; what is not finite was not measured."""
    return value is not None and math.isfinite(value) and not NATS.holds(value)


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(_same(one[name], other[name]) for name in one)
    if isinstance(one, np.ndarray) or isinstance(other, np.ndarray):
        return one is not None and other is not None and np.array_equal(one, other, equal_nan=True)
    return bool(one == other)


@dataclass(frozen=True)
class ScheduledChange:
    """What the training was made to do at a step: the end of the warm-up, another learning rate, weight decay or data mixture."""

    step: Count
    what: str


@dataclass(frozen=True, repr=False)
class TrainingRun(Plotted):
    """Snapshots of one training, steps strictly rising, and what is known of it.

    `source` says where they come from: "recorder", "sweep" or "log". `icl_windows` are the token numbers, from one, both ends
    included, whose losses the in-context learning score compares, `first_token` is the number of the first token of a row that
    has a loss. `about` is what describes the measurements (model, backend, device, probes, versions), `notes` what a reader must
    know: lines that were dropped, parts that were trained again. `cost` is what recording took, its `max_overhead` what it might.
    `is_open` says that a recorder began it and has not closed it: the training goes on, or was broken off.
    `checkpoints` says where the weights are, of a run that was swept just now.
    `place` is where it was read from: a path or URL, or "".
    """

    name: str
    snapshots: tuple[Snapshot, ...]
    source: str = "recorder"
    tokens_per_step: float | None = None
    icl_windows: tuple[tuple[int, int], tuple[int, int]] | None = None
    first_token: int = 2
    schedule: tuple[ScheduledChange, ...] = ()
    about: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    cost: Mapping[str, Any] = field(default_factory=dict)
    is_open: bool = False
    checkpoints: SweptFrom | None = field(default=None, repr=False, compare=False)
    place: str = field(default="", compare=False)

    def view(self) -> View:
        """What there is to show."""
        found = [name for name in NUMBERS if self.has(name)]
        numbers = {name: [_known(value) for value in self.column(name).tolist()] for name in found}
        columns: dict[str, list[Any]] = {
            "step": self.steps.tolist(),
            "tokens": [None if math.isnan(value) else int(value) for value in self.tokens.tolist()],
            **numbers,
        }
        for name in dict.fromkeys((*OF_HEADS, *self.added)):
            if self.has(name):
                values, heads = self.best_of_heads(name)
                columns[name] = [_known(value) for value in values.tolist()]
                columns[f"{name}_head"] = [None if layer < 0 else f"L{layer}H{head}" for layer, head in heads.tolist()]
        columns["problem"] = [snapshot.problem for snapshot in self.snapshots]
        rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
        changed = [{"step": each.step, "what": each.what} for each in self.schedule]
        span = f"{len(self)} snapshots" + (f", steps {rows[0]['step']} to {rows[-1]['step']}" if rows else "")
        facts = (
            f"{span}, from a {self.source}",
            *(["the training goes on, or was broken off"] if self.is_open else []),
            *self.notes,
        )
        return View(
            f"TrainingRun {self.name}", facts, (spread_table("snapshots", rows), rows_table("schedule", changed)), self._pictures
        )

    def _pictures(self) -> list[Picture]:
        """What a report draws of it; nothing of a run that is too short for an axis."""
        if len(self) < 2 or self.steps[0] < 0:
            return []
        picture: Mapping[str, Any] = import_module("pytest_induction.runs.picture").picture_of(self)  # which stands above this
        return [("run", picture)]

    def __post_init__(self) -> None:
        steps = [snapshot.step for snapshot in self.snapshots]
        if any(later <= earlier for earlier, later in itertools.pairwise(steps)):
            raise RunError(f"the steps of run {self.name!r} must rise strictly; `in_order` sorts out resumed and repeated ones")
        for snapshot in self.snapshots:
            large = next((name for name in NUMBERS if _is_too_large(getattr(snapshot, name))), None)
            if large is not None:
                raise RunError(f"run {self.name!r}, step {snapshot.step}: `{large}` {NATS(getattr(snapshot, large))}")

    def __len__(self) -> int:
        return len(self.snapshots)

    @cached_property
    def steps(self) -> NDArray[np.int64]:
        """The step of every snapshot, (snapshots,)."""
        return np.array([snapshot.step for snapshot in self.snapshots], dtype=np.int64)

    @cached_property
    def tokens(self) -> NDArray[np.float64]:
        """Tokens trained on at every snapshot, (snapshots,): recorded, or steps times `tokens_per_step`, or NaN."""
        per_step = self.tokens_per_step
        known = [snapshot.tokens for snapshot in self.snapshots]
        steps = self.steps * (np.nan if per_step is None else per_step)
        return np.array([step if value is None else value for value, step in zip(known, steps, strict=True)], dtype=np.float64)

    @property
    def thinned_at(self) -> float | None:
        """The share of the training time that recording might take, where snapshots were left out to keep to it; else None."""
        limit, skipped = self.cost.get("max_overhead"), self.cost.get("skipped")
        return limit if isinstance(limit, float) and skipped != 0 else None

    def has(self, name: str) -> bool:
        """Whether any snapshot has this measurement."""
        return any(snapshot.measurement(name) is not None for snapshot in self.snapshots)

    @property
    def added(self) -> tuple[str, ...]:
        """The names of scores of heads that do not come with the package, in the order in which they first occur."""
        return tuple(dict.fromkeys(name for snapshot in self.snapshots for name in snapshot.added))

    def column(self, name: str) -> NDArray[np.float64]:
        """A number of every snapshot, (snapshots,), NaN where it is missing."""
        if name not in NUMBERS and name != "seconds":
            raise RunError(f"a run has no column {name!r}: it has {', '.join(NUMBERS)}")
        values = [getattr(snapshot, name) for snapshot in self.snapshots]
        return np.array([np.nan if value is None else value for value in values], dtype=np.float64)

    def error(self, name: str) -> NDArray[np.float64]:
        """The standard error of a number of every snapshot, (snapshots,), NaN where it is not known."""
        values = [snapshot.errors.get(name) for snapshot in self.snapshots]
        return np.array([np.nan if value is None else value for value in values], dtype=np.float64)

    def best_of_heads(self, name: str) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """The highest score over all heads at every snapshot, NaN where there is none, and which head it is (layer, head)."""
        values = np.full(len(self), np.nan)
        heads = np.full((len(self), 2), -1, dtype=np.int64)
        for index, snapshot in enumerate(self.snapshots):
            scores = snapshot.measurement(name)
            if scores is not None and np.isfinite(scores).any():
                heads[index] = np.unravel_index(np.nanargmax(scores), scores.shape)
                values[index] = scores[tuple(heads[index])]
        return values, heads

    def rows_of(self, name: str) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """A list of numbers of the same things at every snapshot: at which it was recorded (points,), and (points, things).

        `name` is that of a list, or of a value that was recorded row by row, as "advantage". Snapshots with a list of another
        length than the last ones', of another text, are left out. Raises `RunError` where none has it.
        """
        lists = {index: values for index, each in enumerate(self.snapshots) if (values := _list_of(each, name)) is not None}
        if not lists:
            words = name.replace("_", " ")
            raise RunError(
                f"{words} of run {self.name!r} were not recorded: record or sweep with a held-out text (`text=`, --text)"
            )
        length = lists[max(lists)].shape
        kept = [index for index, values in lists.items() if values.shape == length]
        return np.array(kept, dtype=np.int64), np.array([lists[index] for index in kept], dtype=np.float64)

    def token_losses(self) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """The path of the training in the space of losses: at which snapshots (points,), and of fixed tokens (points, tokens).

        In nats. Raises `RunError` where they were not recorded.
        """
        index, losses = self.rows_of("token_losses")
        finite = np.isfinite(losses).all(axis=1)
        return index[finite], losses[finite]

    def token_loss_path(self, n_components: int = 2) -> tuple[NDArray[np.int64], LossPath]:
        """The same path on the plane in which it varies most: at which snapshots, and see `LossPath`."""
        index, losses = self.token_losses()
        return index, principal_path(losses, n_components)

    def headings(self) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """How far the path so far points away from where it ends: at which snapshots (points,), and degrees (points,).

        What the series `turn` is judged by; see `runs.trajectory.headings`. Raises `RunError` where token losses were not
        recorded at five snapshots.
        """
        index, losses = self.token_losses()
        if len(index) < FEWEST_POINTS:
            raise RunError(
                f"token losses of run {self.name!r} are known at {len(index)} snapshots: a heading needs {FEWEST_POINTS}"
            )
        return index, headings(losses)

    def turning_angles(self, *, window: float = WINDOW) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """The angle between the velocities before and after: at which snapshots (points,), and degrees (points,) or NaN.

        `window` in decades of tokens (of steps where tokens are not known); see `runs.trajectory.turning_angles`.
        """
        index, losses = self.token_losses()
        return index, turning_angles(Axis.of(self).x[index], losses, window=window)

    def loss_by_index(self) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
        """Mean losses of each token of a row: at which snapshots (points,), token numbers from one (indices,), (points, indices).

        Raises `RunError` where they were not recorded.
        """
        index, losses = self.rows_of("index_losses")
        return index, np.arange(self.first_token, self.first_token + losses.shape[1]), losses

    def loss_slopes(self) -> tuple[NDArray[np.int64], LossSlopes]:
        """The derivative of the loss by the logarithm of the token number: at which snapshots, and see `LossSlopes`."""
        index, tokens, losses = self.loss_by_index()
        return index, loss_slopes(losses, int(tokens[0]))
