"""A log of a training, written by whatever trained, as a run."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pytest_induction.errors import RunError
from pytest_induction.runs.logs.columns import MEASURES, checked, listed
from pytest_induction.runs.logs.events import MARK, event_files, event_rows
from pytest_induction.runs.logs.faults import Faults
from pytest_induction.runs.logs.learning_rate import scheduled_changes
from pytest_induction.runs.logs.rows import history_rows, json_lines, table_rows
from pytest_induction.runs.logs.table import LARGEST_STEP, STEP, Table
from pytest_induction.runs.places import Place
from pytest_induction.runs.record import Snapshot, TrainingRun
from pytest_induction.runs.streams import Reading

STATE = "trainer_state.json"
CHECKPOINT = re.compile(r"checkpoint-(\d{1,15})")
LOG_ENDINGS = (".jsonl", ".ndjson", ".csv", ".tsv")
SHARES = ("repeat_accuracy", "prefix_matching")  # in [0, 1]
SLACK = 1e-6  # of a share that was rounded
PROPORTIONAL = 1e-6  # of tokens per step, between steps
HEAD = 2**16  # bytes from which it is told what kind of log a file is
READERS = {"trainer state": history_rows, "JSON lines": json_lines, "table": table_rows}
Series = tuple[NDArray[np.int64], NDArray[np.float64]]


def read_log(place: Place, columns: Mapping[str, str] | None = None) -> TrainingRun:
    """The run that a log tells of, its `source` "log".

    Read are a `trainer_state.json` of Hugging Face (or a directory with one, or with `checkpoint-N` directories, the last of
    which counts), JSON lines, tables (CSV, TSV) and TensorBoard event files or a directory of them. Columns are guessed by their
    names; `columns` maps names of ours (`step`, `tokens`, `learning_rate` and the numbers of `Snapshot`; `prefix_matching` for
    that of the best head) to those of the log. `about["columns"]` says which were taken.

    Rows of one step come together in one snapshot. A number that is not finite is missing, and `problem` says so. A log of more
    than half a million numbers is thinned to every k-th step. `notes` tell of everything that was left out. Raises `RunError`
    for a log that cannot be read, has no steps, or none of our numbers, and `ArgumentError` for `columns` with other names.
    """
    chosen = checked(columns)
    files = log_files(place)
    faults = Faults()
    table = Table(chosen, faults)
    try:
        if MARK in files[0].name:
            kind = "event files"
            table.take(event_rows(files, faults))
        else:
            kind = _take_text(files[0], table, faults)
        taken = _taken(table)
    except RunError as error:
        named = str(error).startswith((f"{place} ", f"{place}/"))
        left_out = f" ({faults.notes[0]})" if faults.notes else ""
        raise RunError(f"{'' if named else f'{place}: '}{error}{left_out}") from None
    measured = {ours: table.column(theirs) for ours, theirs in taken.items()}
    used = dict(taken) if table.step_column == STEP else {"step": table.step_column, **taken}
    return _run(place, measured, {"log": str(place), "format": kind, "columns": used}, faults)


def _taken(table: Table) -> dict[str, str]:
    """Our names -> columns, a measurement among them. Raises `RunError` where there is none."""
    taken = table.chosen()
    if not any(ours in MEASURES for ours in taken):
        seen = f"no column holds numbers of {', '.join(MEASURES)}; there are {listed(table.names)}"
        raise RunError(f"{seen}: choose with columns={{'loss': NAME}}")
    return taken


def log_files(place: Place) -> list[Place]:
    """The files of the log that lies there: one, or several event files. Raises `RunError` for a place without a log."""
    if place.is_file():
        return [place]
    if not place.is_dir():
        raise RunError(
            f"{place} is not there: expected a log (a trainer_state.json, JSON lines, a table, TensorBoard event files)"
        )
    names = place.names()
    if STATE in names:
        return [place / STATE]
    events = event_files(place)
    if events:
        return events
    tables = [name for name in names if name.endswith(LOG_ENDINGS)]
    if len(tables) == 1:
        return [place / tables[0]]
    if tables:
        raise RunError(f"{place} holds several logs: {listed(tables)}; name one of them")
    for checkpoint in sorted((name for name in names if CHECKPOINT.fullmatch(name)), key=_step_of, reverse=True):
        state = place / checkpoint / STATE
        if state.is_file():
            return [state]
    raise RunError(
        f"{place} holds no log: expected a {STATE}, checkpoint-N directories with one, TensorBoard event files, "
        f"or one file ending in {', '.join(LOG_ENDINGS)}; there are {listed(names)}"
    )


def _step_of(checkpoint: str) -> int:
    return int(checkpoint.rpartition("-")[2])


def _take_text(file: Place, table: Table, faults: Faults) -> str:
    """Collect the rows of a file of text; what kind of log it is."""
    kind = _kind(file)
    with file.open() as stream:
        reading = Reading(stream)
        try:
            table.take(READERS[kind](reading, faults))
        finally:
            if reading.stopped:
                faults.note(f"the connection was lost after {table.rows} rows ({reading.stopped}): what came before counts")
    return kind


def _kind(file: Place) -> str:
    """What kind of log a file is, by its first bytes. Raises `RunError` for what is none."""
    with file.open() as stream:
        head = stream.read(HEAD)
    if not head.strip():
        raise RunError("it is empty: expected JSON lines, a table, a trainer_state.json or TensorBoard event files")
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise RunError("it is in UTF-16: save it as UTF-8")
    if head.startswith((b"\x1f\x8b", b"PK\x03\x04", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")):
        raise RunError("it is compressed: unpack it first")
    text = head.decode("utf-8-sig", "replace").lstrip()
    if text.startswith("[") or (text.startswith("{") and (file.name.endswith(".json") or not _is_row(text))):
        return "trainer state"
    if text.startswith("{"):
        return "JSON lines"
    if "\0" in text.split("\n", 1)[0]:
        raise RunError("it is no text: expected JSON lines, a table, a trainer_state.json or TensorBoard event files")
    return "table"


def _is_row(text: str) -> bool:
    """Whether text that begins with a brace has one object a line, and is not one object over many lines."""
    first, *others = text.split("\n")
    if any(line.startswith("{") for line in others):
        return True
    try:
        return "log_history" not in json.loads(first)
    except (ValueError, RecursionError):
        return not others and '"log_history"' not in first  # one line, longer than what was looked at


def _run(place: Place, measured: Mapping[str, Series], about: Mapping[str, Any], faults: Faults) -> TrainingRun:
    columns = {ours: series for ours, series in measured.items() if ours in MEASURES}
    steps = np.unique(np.concatenate([series[0] for series in columns.values()]))
    tokens, per_step = _tokens(steps, measured.get("tokens"), faults)
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
        tokens_per_step=per_step,
        schedule=scheduled_changes(*measured["learning_rate"]) if "learning_rate" in measured else (),
        about=about,
        notes=faults.notes,
    )


def _problem(ours: str, value: float) -> str:
    """Why a number is none that can be used, or nothing."""
    if not math.isfinite(value):
        return f"the {ours} is {value}"
    if ours in SHARES and not -SLACK <= value <= 1 + SLACK:
        return f"the {ours} is {value:g}, not within 0 and 1"
    return ""


def _tokens(steps: NDArray[np.int64], series: Series | None, faults: Faults) -> tuple[list[int | None], float | None]:
    """Tokens at each step: as written, or between what was written before and after; and tokens per step if always the same."""
    nothing: list[int | None] = [None] * len(steps)
    if series is None:
        return nothing, None
    usable = np.isfinite(series[1]) & (series[1] >= 0) & (series[1] <= LARGEST_STEP)
    at, counts = series[0][usable], series[1][usable]
    if not len(at):
        return nothing, None
    if (np.diff(counts) <= 0).any():
        faults.note("the column of tokens does not rise with the steps, so it does not count what was trained on: it is left out")
        return nothing, None
    if at[0] > 0:
        at, counts = np.insert(at, 0, 0), np.insert(counts, 0, 0)
    filled = np.rint(np.interp(steps, at, counts, left=np.nan, right=np.nan))
    between = int((np.isfinite(filled) & ~np.isin(steps, at)).sum())
    if between:
        faults.note(f"tokens at {between} of {len(steps)} steps lie between what was written before and after")
    ratios = counts[at > 0] / at[at > 0]
    same = len(ratios) > 1 and 0 < float(ratios.max()) <= float(ratios.min()) * (1 + PROPORTIONAL)
    return [None if np.isnan(count) else int(count) for count in filled], float(ratios.mean()) if same else None
