"""The columns of a log that are of use, collected row by row in bounded memory."""

from __future__ import annotations

import math
from array import array
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pytest_induction.errors import RunError
from pytest_induction.runs.logs.columns import Rank, best, fits, listed
from pytest_induction.runs.logs.faults import Faults, shown

STEP = "(the step of an event)"  # the key of a row's step where the format itself has one
HEAD = 1000  # rows that are seen before it is decided which column holds the steps
MOST_NUMBERS = 500_000  # that are kept; beyond it the dense columns are thinned
DENSE = 1_000  # numbers that every column may have
MOST_CANDIDATES = 64  # columns that may be of use, and as many again whose names say nothing else
MOST_NAMES = 10_000  # columns that are remembered
LONGEST_NAME = 1_000
LARGEST_STEP = 2**53
DEEPEST = 4  # of objects within a row
_MISSING = frozenset({"", "none", "null", "na", "n/a", "-"})


@dataclass
class Column:
    """Numbers of one column, steps strictly rising; `serves` says which of our names it fits, and how well."""

    serves: Mapping[str, Rank]
    steps: array[int] = field(default_factory=lambda: array("q"))
    values: array[float] = field(default_factory=lambda: array("d"))
    last: int = -1  # the last step with a number, kept or not; NaN is none
    thinned: bool = False

    def put(self, step: int, value: float) -> None:
        """A number at the last step or a later one; at the same step it replaces what is there, unless it is NaN."""
        if not self.steps or self.steps[-1] != step:
            self.steps.append(step)
            self.values.append(value)
        elif not math.isnan(value):
            self.values[-1] = value

    def cut(self, step: int) -> None:
        """Forget what lies at a step and beyond."""
        place = bisect_left(self.steps, step)
        del self.steps[place:], self.values[place:]
        self.last = min(self.last, step - 1)

    def keep(self, first: int, every: int) -> None:
        """Keep the numbers of every so many steps, counted from `first`."""
        steps = np.array(self.steps, dtype=np.int64)
        kept = (steps - first) % every == 0
        self.values = array("d", np.array(self.values)[kept].tobytes())
        self.steps = array("q", steps[kept].tobytes())
        self.thinned = True


class Table:
    """Rows go in, in the order in which they were written; columns come out.

    Numbers of one step that stand in several rows come together. Where a column goes back to an earlier step, the training was
    resumed from there: what had been written for that step and later ones, in any column, is replaced.
    """

    def __init__(self, chosen: Mapping[str, str], faults: Faults) -> None:
        self._chosen = chosen
        self._faults = faults
        self.rows = 0  # that were seen
        self._columns: dict[str, Column] = {}
        self._names: dict[str, None] = {}  # in order of appearance
        self._others: set[str] = set()  # names known to be of no use
        self._step = ""
        self._head: list[dict[str, float]] = []
        self._first: int | None = None
        self._every = 1
        self._held = 0  # numbers, or more
        self._back: tuple[int, int] | None = None  # from which step to which the training first went back

    def take(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Collect rows to their end. Raises `RunError` where it cannot be told which column holds the steps."""
        for row in rows:
            self.rows += 1
            numbers = self._numbers(row)
            if self._step:
                self._put(numbers)
            elif numbers:
                self._head.append(numbers)
                if len(self._head) == HEAD:
                    self._decide()
        if not self._step:
            self._decide()
        self._explain()

    @property
    def step_column(self) -> str:
        """Which column holds the steps."""
        return self._step

    @property
    def names(self) -> list[str]:
        """The columns of the log, in the order in which they appeared."""
        return list(self._names)

    def chosen(self) -> dict[str, str]:
        """Our names -> the columns that fit best. Raises `RunError` where two fit equally, or the user's choice is not there."""
        self._check_choice()
        offers: dict[str, dict[str, Rank]] = {}
        for name, column in self._columns.items():
            for ours, rank in column.serves.items():
                if ours != "step" and column.steps:
                    offers.setdefault(ours, {})[name] = rank
        return {ours: best(ours, candidates) for ours, candidates in offers.items()}

    def column(self, name: str) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Steps, strictly rising, and numbers of a column, (numbers,) each; numbers may not be finite."""
        column = self._columns[name]
        return np.array(column.steps, dtype=np.int64), np.array(column.values, dtype=np.float64)

    def _check_choice(self) -> None:
        for ours, theirs in self._chosen.items():
            if theirs not in self._columns:
                raise RunError(f"there is no column {shown(theirs)} to be `{ours}`; there are {listed(self._names)}")

    def _numbers(self, row: Mapping[str, Any]) -> dict[str, float]:
        """The numbers of a row that may be of use."""
        found: dict[str, float] = {}
        for name, value in _flat(row, DEEPEST):
            if name in self._others or not self._is_of_use(name):
                continue
            try:
                number = as_number(value)
            except (TypeError, ValueError):
                self._faults.add("values that are no numbers", f"{shown(value)} in {shown(name)}")
            else:
                if number is not None:
                    found[name] = number
        return found

    def _is_of_use(self, name: str) -> bool:
        if name in self._columns or name == STEP:
            return True
        if len(self._names) >= MOST_NAMES or len(name) > LONGEST_NAME:
            self._faults.add("names of columns beyond what can be held", shown(name))
            return False
        self._names[name] = None
        serves = fits(name, self._chosen)
        most = MOST_CANDIDATES if any(rank.unknown for rank in serves.values()) else 2 * MOST_CANDIDATES
        if serves and len(self._columns) < most:
            self._columns[name] = Column(serves)
            return True
        self._others.add(name)
        return False

    def _decide(self) -> None:
        """Say which column holds the steps, and take the rows that waited for it."""
        offers = {name: c.serves["step"] for name, c in self._columns.items() if "step" in c.serves}
        filled = {name: rank for name, rank in offers.items() if any(name in numbers for numbers in self._head)}
        if any(STEP in numbers for numbers in self._head):
            if "step" in self._chosen:
                raise RunError("events have steps of their own: leave `step` out of `columns`")
            self._step = STEP
        elif filled:
            self._step = best("step", filled)
        else:
            self._check_choice()
            if not self._names:
                raise RunError("it has no row that can be read: expected one with a step and a number, as a loss")
            raise RunError(f"no column holds steps; there are {listed(self._names)}: choose with columns={{'step': NAME}}")
        head, self._head = self._head, []
        for numbers in head:
            self._put(numbers)

    def _put(self, numbers: dict[str, float]) -> None:
        """Take the numbers of one row."""
        written = numbers.pop(self._step, None)
        of_use = [(self._columns[name], value) for name, value in numbers.items() if "step" not in self._columns[name].serves]
        if not of_use:
            return
        if written is None:
            self._faults.add("rows without a step", ", ".join(map(shown, list(numbers)[:3])))
            return
        if not (0 <= written <= LARGEST_STEP and written == int(written)):
            self._faults.add("steps that are no whole numbers from 0 to 2**53", f"{written:g}")
            return
        self._at(int(written), of_use)
        self._held += len(of_use)
        if self._held > MOST_NUMBERS:
            self._thin()

    def _at(self, step: int, numbers: list[tuple[Column, float]]) -> None:
        """Take the numbers of a step. NaN may fill the gaps of a table, so that it goes back to an earlier step means little."""
        telling = [column for column, value in numbers if not math.isnan(value)] or [column for column, _ in numbers]
        end = max(column.last for column in telling)
        if end > step:
            self._back = self._back or (end, step)
            for column in self._columns.values():
                column.cut(step)
        if self._first is None:
            self._first = step
        for column, value in numbers:
            if column.last > step:
                continue
            if column.steps and column.steps[-1] > step:  # only NaN lies beyond
                column.cut(step + 1)
            if not column.thinned or (step - self._first) % self._every == 0:
                column.put(step, value)
            if not math.isnan(value):
                column.last = step

    def _thin(self) -> None:
        """Keep the dense columns at fewer steps, the same ones for all, until half of what may be kept is there."""
        columns = self._columns.values()
        if sum(len(column.steps) for column in columns) > MOST_NUMBERS:
            dense = [column for column in columns if len(column.steps) > DENSE]
            while sum(len(column.steps) for column in dense) > MOST_NUMBERS // 2:
                self._every *= 2
                for column in dense:
                    column.keep(self._first or 0, self._every)
        self._held = sum(len(column.steps) for column in columns)

    def _explain(self) -> None:
        if self._back:
            end, back = self._back
            self._faults.note(
                f"the training went back from step {end} to {back}: what it then wrote replaces what had been written"
            )
        if self._every > 1:
            self._faults.note(
                f"there are more than {MOST_NUMBERS} numbers: of the dense columns those of every {self._every} steps are kept"
            )


def as_number(value: Any) -> float | None:
    """A number, which may not be finite, or None where nothing stands. Raises `ValueError` or `TypeError` for the rest."""
    if value is None or type(value) is float:
        return value
    if isinstance(value, str):
        text = value.strip()
        return None if text.lower() in _MISSING else float(text)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{value!r} is no number")
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def _flat(row: Mapping[str, Any], depth: int) -> Iterator[tuple[str, Any]]:
    """The values of a row; those of an object within it by both names, with a point between."""
    for name, value in row.items():
        if isinstance(value, dict) and depth > 1:
            yield from ((f"{name}.{inner}", each) for inner, each in _flat(value, depth - 1))
        else:
            yield name, value
