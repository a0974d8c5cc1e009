"""A log of a training, written by whatever trained, as a run; and what was taken for what in it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pytest_induction.errors import RunError
from pytest_induction.ranges import SCORES, SHARE, Range
from pytest_induction.runs.logs.columns import (
    MEASURES,
    OF_THE_LOG,
    TOKENS_UNIT,
    Choice,
    checked,
    guess,
    is_shared,
    listed,
    say_column,
)
from pytest_induction.runs.logs.faults import Faults, shown
from pytest_induction.runs.logs.finding import find_log
from pytest_induction.runs.logs.formats.json_document import STATE
from pytest_induction.runs.logs.sorting import RowSorter
from pytest_induction.runs.logs.table import LARGEST_STEP, STEP, Table
from pytest_induction.runs.places import Place
from pytest_induction.runs.record import ScheduledChange, Snapshot, TrainingRun

FALL = 0.5  # of the learning rate that is left, or less, after a change that is sudden
MOST_CHANGES = 100


def scheduled_changes(steps: NDArray[np.integer[Any]], rates: NDArray[np.floating[Any]]) -> tuple[ScheduledChange, ...]:
    """The end of the warm-up, where the learning rate rises first, and later falls by more than half from one entry to the next.

    `steps` (entries,) rise strictly; `rates` (entries,) may be NaN. At most a hundred changes.
    """
    known = np.isfinite(rates)
    steps, rates = steps[known], rates[known]
    if not len(rates):
        return ()
    changes: list[ScheduledChange] = []
    highest = int(np.argmax(rates))
    if rates[highest] > rates[0]:
        changes.append(
            ScheduledChange(int(steps[highest]), f"the warm-up ends: the learning rate is at its highest, {rates[highest]:g}")
        )
    before, after = rates[highest:-1], rates[highest + 1 :]
    for place in np.flatnonzero(after < FALL * before)[: MOST_CHANGES - 1]:
        what = f"the learning rate falls from {before[place]:g} to {after[place]:g}"
        changes.append(ScheduledChange(int(steps[highest + 1 + place]), what))
    return tuple(changes)


SHOWN = ("step", "tokens", "loss")  # always, also where there is none
LONGEST = 80  # characters of a column's name


def taken(run: TrainingRun) -> Iterator[str]:
    """The notes on a run from a log, or on a sweep of checkpoints that brought their losses; none on another."""
    about = run.about
    columns = about.get("columns")
    if run.source == "sweep" and run.has("loss"):
        yield f"losses are those of the training, as the {STATE} of each checkpoint tells them"
    if not isinstance(columns, Mapping) or "format" not in about:
        return
    words = {name: f"{name} is `{_short(theirs)}`" for name, theirs in columns.items()}
    words.setdefault("step", "step is that of each event")
    words.setdefault("tokens", "no column of tokens")
    words.setdefault("loss", "no loss")
    if about.get("evaluation"):
        words["loss"] += " (of an evaluation, as the log has none of the training)"
    order = [*SHOWN, *(name for name in words if name not in SHOWN)]
    where = " and ".join(f"{_short(column)} is {shown(value)}" for column, value in about.get("where", {}).items())
    rows = f", rows where {where}" if where else ""
    yield f"read as {about['format']}{rows}: {', '.join(words[name] for name in order)}"


def _short(name: object) -> str:
    text = str(name)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."


LIKELY = 100.0  # nats that a loss of ours, or a difference of two, has at most: another column of that name may have more
PROPORTIONAL = 1e-6  # of tokens per step, between steps
ROUNDED = 1e6  # from so many on a count of tokens may have been written as a fraction
Series = tuple[NDArray[np.int64], NDArray[np.float64]]


def read_log(place: Place, columns: Mapping[str, Any] | None = None, where: Mapping[str, Any] | None = None) -> TrainingRun:
    """The run that a log tells of, its `source` "log".

    Read is whatever one of `formats.FORMATS` fits. Columns are guessed by their names; `columns` maps names of ours (`step`,
    `tokens`, `learning_rate` and the numbers of `Snapshot`; `prefix_matching` for that of the best head) to those of the log, and
    `tokens_unit` to how many tokens one of the log's is. Measures of ours are taken under our own names only, and where all
    numbers are in their range. `where` maps columns to what must stand there in the rows that count. `about["columns"]` says
    which columns were taken, `about["evaluation"]` whether the loss is that of an evaluation.

    Rows of one step come together in one snapshot. A number that is not finite is missing, and `problem` says so. A log of more
    than half a million numbers is thinned to every k-th step. `notes` tell of everything that was left out. Raises `RunError`
    for a log that cannot be read, has no steps, several runs, or none of our numbers, and `ArgumentError` for a choice with other
    names.
    """
    choice = checked(columns, where)
    kind, file = find_log(place)
    faults = Faults()
    table = Table(choice, faults)
    try:
        table.take(RowSorter(choice.where).sorted(kind.rows(file, choice, faults)))
        measured = _measured(table, choice, faults)
        taken = {ours: name for ours, (name, _) in measured.items()}
        run = _run(place, {ours: series for ours, (_, series) in measured.items()}, choice, taken, faults)
    except RunError as error:
        named = str(error).startswith((f"{place} ", f"{place}/"))
        left_out = f" ({faults.notes[0]})" if faults.notes else ""
        raise RunError(f"{'' if named else f'{place}: '}{error}{left_out}") from None
    steps = {} if table.step_columns == (STEP,) else {"step": " or ".join(table.step_columns)}
    about: dict[str, Any] = {"log": str(place), "format": kind.name, "columns": {**steps, **taken}}
    if choice.where:
        about["where"] = dict(choice.where)
    if "loss" in taken and "loss" not in choice.columns:
        guessed = guess(taken["loss"])
        about |= {"evaluation": True} if guessed is not None and guessed[1].held_out else {}
    return replace(run, about=about, notes=faults.notes)


def _measured(table: Table, choice: Choice, faults: Faults) -> dict[str, tuple[str, Series]]:
    """Our names -> the column that was taken and its numbers. What bears a name of ours and may be something else is left out.

    Raises `RunError` where no measurement is left.
    """
    taken = table.chosen()
    sure = any(ours not in OF_THE_LOG and not is_shared(name) for ours, name in taken.items())
    found: dict[str, tuple[str, Series]] = {}
    for ours, name in taken.items():
        series = table.column(name)
        if ours not in choice.columns and ours not in OF_THE_LOG:
            odd = _beyond(ours, series[1])
            if odd is not None:
                faults.note(f"{shown(name)} is not taken for {ours}: it has {odd:g}; if it is, say {say_column(ours, name)}")
                continue
            if is_shared(name) and not sure:
                faults.note(
                    f"{shown(name)} is not taken for {ours} of repeated tokens, as other fields use that name; "
                    f"if it is, say {say_column(ours, name)}"
                )
                continue
        found[ours] = (name, series)
    if not any(ours in MEASURES for ours in found):
        seen = f"no column holds numbers of {', '.join(MEASURES)}; there are {listed(table.names)}"
        raise RunError(f"{seen}: choose by {say_column('loss', 'NAME')}")
    return found


def _beyond(ours: str, values: Iterable[float]) -> float | None:
    """A number that a measure of ours cannot be; None where all may be."""
    known = _range(ours)
    return next((value for value in values if math.isfinite(value) and not (known.holds(value) and abs(value) <= LIKELY)), None)


def _range(ours: str) -> Range:
    """What a number of ours can be in a log. A share is one: what is above 1 by rounding there is more likely a percentage."""
    return SHARE if SCORES[ours].unit == "share" else SCORES[ours]


def _run(place: Place, measured: Mapping[str, Series], choice: Choice, taken: Mapping[str, str], faults: Faults) -> TrainingRun:
    columns = {ours: series for ours, series in measured.items() if ours in MEASURES}
    steps = np.unique(np.concatenate([series[0] for series in columns.values()]))
    tokens, per_step = _tokens(steps, measured.get("tokens"), choice, taken.get("tokens", ""), faults)
    found: list[dict[str, Any]] = [{} for _ in steps]
    problems: list[list[str]] = [[] for _ in steps]
    for ours, (at, values) in columns.items():
        for index, value in zip(np.searchsorted(steps, at).tolist(), values.tolist(), strict=True):
            problem = _problem(ours, value)
            if problem:
                problems[index].append(problem)
            else:
                found[index][ours] = np.array([[value]], dtype=np.float32) if ours == "prefix_matching" else value
    rows = zip(steps.tolist(), tokens, found, problems, strict=True)
    return TrainingRun(
        name=place.name,
        snapshots=tuple(
            Snapshot(step, tokens=count, problem="; ".join(problem), **numbers) for step, count, numbers, problem in rows
        ),
        source="log",
        place=str(place),
        tokens_per_step=per_step,
        schedule=scheduled_changes(*measured["learning_rate"]) if "learning_rate" in measured else (),
    )


def _problem(ours: str, value: float) -> str:
    """Why a number is none that can be used, or nothing."""
    if not math.isfinite(value):
        return f"the {ours} is {value}"
    problem = _range(ours)(value)
    return f"the {ours} {problem}" if problem else ""


def _tokens(
    steps: NDArray[np.int64], series: Series | None, choice: Choice, name: str, faults: Faults
) -> tuple[list[int | None], float | None]:
    """Tokens at each step: as written, or between what was written before and after; and tokens per step if always the same."""
    nothing: list[int | None] = [None] * len(steps)
    if series is None:
        return nothing, None
    unit = choice.tokens_unit or 1.0
    usable = np.isfinite(series[1]) & (series[1] >= 0) & (series[1] * unit <= LARGEST_STEP)
    at, counts = series[0][usable], series[1][usable] * unit
    if not len(at):
        return nothing, None
    if (np.diff(counts) < 0).any() or (len(counts) > 1 and counts[0] == counts[-1]):
        faults.note("the column of tokens does not rise with the steps, so it does not count what was trained on: it is left out")
        return nothing, None
    if choice.tokens_unit is None:
        _check_unit(at, counts, name)
    rises = np.append(True, np.diff(counts) > 0)  # rounded counts may stay the same for a while
    end = at[-1]
    at, counts = at[rises], counts[rises]
    if at[-1] < end and len(at) > 1:  # on to the last one, as fast as before
        slope = (counts[-1] - counts[-2]) / (at[-1] - at[-2])
        at, counts = np.append(at, end), np.append(counts, counts[-1] + slope * (end - at[-1]))
    if at[0] > 0:
        at, counts = np.insert(at, 0, 0), np.insert(counts, 0, 0)
    filled = np.rint(np.interp(steps, at, counts, left=np.nan, right=np.nan))
    between = int((np.isfinite(filled) & ~np.isin(steps, at)).sum())
    if between:
        faults.note(f"tokens at {between} of {len(steps)} steps lie between what was written before and after")
    ratios = counts[at > 0] / at[at > 0]
    same = len(ratios) > 1 and 0 < float(ratios.max()) <= float(ratios.min()) * (1 + PROPORTIONAL)
    return [None if np.isnan(count) else int(count) for count in filled], float(ratios.mean()) if same else None


def _check_unit(at: NDArray[np.int64], counts: NDArray[np.float64], name: str) -> None:
    """Raise `RunError` for numbers that are no counts of tokens: fractions, or fewer than one a step."""
    if counts[-1] == 0:
        return
    is_fraction = counts[-1] < ROUNDED and bool((counts != np.rint(counts)).any())
    if is_fraction or counts[-1] < at[-1]:
        odd = int(np.flatnonzero(counts != np.rint(counts))[0]) if is_fraction else -1
        seen = f"{shown(name)} has {counts[odd]:g} at step {at[odd]}"
        raise RunError(
            f"{seen}, which is no count of tokens: say its unit by {say_column(TOKENS_UNIT, '1e9')}, or another column"
        )
