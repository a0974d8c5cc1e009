"""Which rows of a log count, and for what: those that are meant, training apart from evaluation, one run apart from another."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from pytest_induction.errors import RunError
from pytest_induction.runs.logs.columns import guess, is_epoch, listed, say_where, side_of
from pytest_induction.runs.logs.faults import Faults, shown

Row = Mapping[str, Any]
HEAD = 1000  # rows that are seen before it is decided what parts them
DEEPEST = 4  # of objects within a row
LONGEST_VALUE = 200
LONGEST_CELL = 2 * LONGEST_VALUE  # characters of a value that are held
MOST_COLUMNS = 10_000  # of a row
MOST_HELD = 500_000  # values of the rows that are seen first
MOST_OF_A_LIST = 7  # more than is shown of it
SPLITS = frozenset({"split", "phase", "mode", "stage", "subset", "set", "partition", "dataset", "data", "kind", "type", "event"})
RUNS = frozenset(
    {
        *("run", "run_id", "runid", "run_name", "seed", "random_seed", "experiment", "experiment_id", "experiment_name"),
        *("exp_name", "trial", "trial_id", "job", "job_id", "model", "model_name", "variant", "arm", "config", "fold"),
        *("replicate", "rank", "local_rank", "worker", "directory"),
    }
)
METRICS = frozenset({"metric", "metric_name", "key", "tag", "variable", "name"})
VALUE = "value"
MOST_MET = 10_000
MOST_RUNS = 1000  # of more, the column names something else
DIRECTORY = "directory"  # the column that says in which part of a tree of logs a row stood


def _plain(name: str) -> str:
    return name.strip().lower().replace("-", "_").replace(" ", "_")


class RowSorter:
    """Rows as they are written -> flat rows that count.

    Rows that the user does not mean are left out. Where a column says of which data a row is, numbers of rows that are not of
    training get that word before their names, as `val/loss`. Where one column names what another has the value of, each row is
    given that name.
    """

    def __init__(self, where: Mapping[str, str]) -> None:
        self._where = where
        self._seen: dict[str, dict[str, None]] = {column: {} for column in where}
        self._names: dict[str, None] = {}
        self._kept = 0
        self._split = ""
        self._has_training = False
        self._met: set[str] = set()  # columns that were looked at
        self._metric = ("", "")

    def sorted(self, rows: Iterable[Row]) -> Iterator[Row]:
        """The rows that count, to their end. Raises `RunError` where the user's `where` fits none."""
        flat = (_flattened(row) for row in rows)
        counting = (row for row in flat if self._is_meant(row))
        head = _first(counting)
        self._look_at(head)
        for row in itertools.chain(head, counting):
            if not self._split and len(self._met) < MOST_MET and not row.keys() <= self._met:
                self._look_at([row])  # evaluations may come late, and bring a column of their own
            self._kept += 1
            yield self._of_its_side(self._by_metric(row))
        if self._where and not self._kept:
            self._explain()

    def _is_meant(self, row: Mapping[str, Any]) -> bool:
        if not self._where:
            return True
        if len(self._names) < HEAD:
            self._names |= dict.fromkeys(row)
        meant = True
        for column, value in self._where.items():
            found = _text(row.get(column))
            seen = self._seen[column]
            if found and len(seen) < HEAD:
                seen[found] = None
            meant = meant and _same(found, value)
        return meant

    def _explain(self) -> None:
        for column, value in self._where.items():
            if not self._seen[column]:
                raise RunError(f"there is no column {shown(column)} to choose rows by; there are {listed(self._names)}")
            if not any(_same(seen, value) for seen in self._seen[column]):
                raise RunError(f"no row has {shown(column)} {shown(value)}; it is {listed(self._seen[column])}")
        raise RunError("no row has all that was chosen at once")

    def _look_at(self, head: list[dict[str, Any]]) -> None:
        """See which columns part these rows, or name what another has the value of."""
        names = dict.fromkeys(name for row in head for name in row)
        self._met |= names.keys()
        for name in names:
            values = {_text(row[name]) for row in head if isinstance(row.get(name), str)}
            sides = {side_of(value) for value in values}
            if not self._split and _plain(name) in SPLITS and sides - {""} and all(len(value) < 40 for value in values):
                self._split = name
        named = next((name for name in names if _plain(name) in METRICS), "")
        valued = next((name for name in names if _plain(name) == VALUE), "")
        if named and valued and any(isinstance(row.get(named), str) for row in head):
            self._metric = (named, valued)
        self._has_training = any(side_of(_text(row.get(self._split))) == "train" for row in head)

    def _by_metric(self, row: dict[str, Any]) -> dict[str, Any]:
        named, valued = self._metric
        metric = row.get(named) if named else None
        if not isinstance(metric, str) or valued not in row:
            return row
        return {**{name: value for name, value in row.items() if name not in self._metric}, metric: row[valued]}

    def _of_its_side(self, row: dict[str, Any]) -> dict[str, Any]:
        """The row; where it is not of training, the names of what it measures say so."""
        split = _text(row.get(self._split)) if self._split else ""
        side = side_of(split)
        if not split or side == "train" or not (side or self._has_training):
            return row
        word = split if side else f"eval/{split}"
        return {name if self._places(name) else f"{word}/{name}": value for name, value in row.items()}

    @staticmethod
    def _places(name: str) -> bool:
        """Whether a column says where a row belongs, not what it measures."""
        guessed = guess(name)
        return _plain(name) in RUNS or is_epoch(name) or (guessed is not None and guessed[0] in ("step", "tokens"))


def _text(value: Any) -> str:
    """A value as it is compared and named; "" for nothing, and for what is no word or number."""
    if value is None or isinstance(value, (bool, dict, list)):
        return ""
    return str(value).strip()[:LONGEST_VALUE]


def _same(found: str, value: str) -> bool:
    if found == value:
        return True
    try:
        return float(found) == float(value)
    except ValueError:
        return False


def _first(rows: Iterator[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows that are seen first: some, or fewer where they are wide."""
    found: list[dict[str, Any]] = []
    held = 0
    while len(found) < HEAD and held < MOST_HELD and (row := next(rows, None)) is not None:
        found.append(row)
        held += len(row)
    return found


def _flattened(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row as names and values. Raises `RunError` for one that is wider than a log is: each of its cells takes time."""
    flat = {name: _light(value) for name, value in itertools.islice(_flat(row, DEEPEST), MOST_COLUMNS + 1)}
    if len(flat) > MOST_COLUMNS:
        raise RunError(f"a row has more than {MOST_COLUMNS} columns: it is no log of a training")
    return flat


def _light(value: Any) -> Any:
    """The value, or of one that is neither a number nor a word the beginning: rows are held until it is clear what they are."""
    if isinstance(value, str):
        return value[:LONGEST_CELL]
    if isinstance(value, list):
        begins = value[:MOST_OF_A_LIST]
        return [each[:40] if isinstance(each, str) else _light([] if isinstance(each, list) else each) for each in begins]
    return {} if isinstance(value, dict) else value


def _flat(row: Mapping[str, Any], depth: int) -> Iterator[tuple[str, Any]]:
    """The values of a row; those of an object within it by both names, with a point between."""
    for name, value in row.items():
        if isinstance(value, dict) and depth > 1:
            yield from ((f"{name}.{inner}", each) for inner, each in _flat(value, depth - 1))
        else:
            yield name, value


@dataclass
class _Span:
    """From which step to which a run was measured."""

    first: int
    last: int


@dataclass
class Runs:
    """Which runs a log holds: of every column that may name them, its values, and the steps of each."""

    _columns: dict[str, dict[str, _Span]] = field(default_factory=dict)
    _is_run: dict[str, bool] = field(default_factory=dict)

    def labels(self, row: Mapping[str, Any]) -> list[tuple[str, str]]:
        """What a row says of the run that it belongs to."""
        found = []
        for name, value in row.items():
            if name not in self._is_run:
                if len(self._is_run) >= 10 * MOST_RUNS:
                    continue
                self._is_run[name] = _plain(re.split(r"[/.]", name)[-1]) in RUNS
            if self._is_run[name] and (text := _text(value)):
                found.append((name, text))
        return found

    def note(self, labels: Iterable[tuple[str, str]], step: int) -> None:
        """Numbers at a step belong to these runs."""
        for name, text in labels:
            values = self._columns.setdefault(name, {})
            span = values.get(text)
            if span is None:
                if len(values) <= MOST_RUNS:
                    values[text] = _Span(step, step)
            else:
                span.first, span.last = min(span.first, step), max(span.last, step)

    def check(self, faults: Faults) -> None:
        """Raise `RunError` for several runs at the same steps; a note where one goes on where another ended."""
        for name, values in self._columns.items():
            if not 1 < len(values) <= MOST_RUNS:
                continue
            spans = sorted(values.items(), key=lambda each: (each[1].first, each[1].last))
            if any(later[1].first <= earlier[1].last for earlier, later in itertools.pairwise(spans)):
                example = say_where(name, next(iter(values)))
                raise RunError(f"it holds {len(values)} runs, {shown(name)} is {listed(values)}: choose one, as by {example}")
            words = ", ".join(f"{shown(text)} from step {span.first}" for text, span in spans[:3])
            faults.note(f"{shown(name)} changes where one ends and another begins ({words}): read as one training that went on")
