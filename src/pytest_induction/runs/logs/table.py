"""The columns of a log that are of use, collected row by row in bounded memory."""

from __future__ import annotations

import itertools
import math
from array import array
from bisect import bisect_left
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pytest_induction.errors import RunError
from pytest_induction.runs.logs.columns import (
    WHERE_OPTION,
    Choice,
    Rank,
    equal_best,
    fits,
    is_epoch,
    label_of,
    listed,
    say_column,
    say_where,
)
from pytest_induction.runs.logs.faults import Faults, shown
from pytest_induction.runs.logs.sorting import HEAD, Runs

STEP = "(the step of an event)"  # the key of a row's step where the format itself has one
EPOCH = "(the epoch of a row)"
MOST_NUMBERS = 500_000  # that are kept; beyond it the dense columns are thinned
DENSE = 1_000  # numbers that every column may have
MOST_CANDIDATES = 64  # columns that may be of use, and as many again whose names say nothing else
MOST_NAMES = 10_000  # columns that are remembered
LONGEST_NAME = 1_000
LARGEST_STEP = 2**53
MOST_RETURNS = 30  # of a training to an earlier step: beyond these, and more often than
RARE = 50  # every so many rows, the rows are of several trainings or in no order
FEWEST_FALLS = 3  # of a column's steps, where they are in no order
FEWEST_TOLD = 30  # numbers, of which it tells something that half of them are replaced
FEWEST_BEGUN = 8  # numbers of a column that a training has that begins anew
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

    def replaces(self, step: int, value: float) -> bool:
        """Whether another number is there for the step, which is to be replaced."""
        if not self.steps or self.steps[-1] != step or math.isnan(value) or math.isnan(self.values[-1]):
            return False
        return self.values[-1] != value

    def cut(self, step: int) -> int:
        """Forget what lies at a step and beyond; how many numbers that was."""
        place = bisect_left(self.steps, step)
        count = len(self.steps) - place
        del self.steps[place:], self.values[place:]
        self.last = min(self.last, step - 1)
        return count

    def keep(self, first: int, every: int) -> None:
        """Keep the numbers of every so many steps, counted from `first`."""
        steps = np.array(self.steps, dtype=np.int64)
        kept = (steps - first) % every == 0
        self.values = array("d", np.array(self.values)[kept].tobytes())
        self.steps = array("q", steps[kept].tobytes())
        self.thinned = True


Numbers = list[tuple[Column, float]]  # of a row: the columns that may be of use


@dataclass
class _Returns:
    """How often the training went back to an earlier step: at all, where a new epoch began, and to where it had begun."""

    first: tuple[int, int] | None = None  # from which step to which, the first time
    count: int = 0
    with_epoch: int = 0
    to_the_start: int = 0
    taken: int = 0  # numbers
    dropped: int = 0  # of them, as they were replaced
    lowest: int = 0


class Table:
    """Rows go in, in the order in which they were written, or the newest first, or in none; columns come out.

    Numbers of one step that stand in several rows come together. Where a column goes back to an earlier step, the training was
    resumed from there: what had been written for that step and later ones, in any column, is replaced. Steps that begin anew in
    every epoch, and rows of several runs, are refused.
    """

    def __init__(self, choice: Choice, faults: Faults) -> None:
        self._choice = choice
        self._faults = faults
        self.rows = 0  # that were seen
        self._columns: dict[str, Column] = {}
        self._names: dict[str, None] = {}  # in order of appearance
        self._others: set[str] = set()  # names known to be of no use
        self._epochs: set[str] = set()
        self._steps: tuple[str, ...] = ()  # the columns that hold the steps; a row has one of them
        self._is_newest_first = False
        self._waiting: list[tuple[int, Numbers]] | None = None  # rows in no order, until all are there
        self._head: list[tuple[dict[str, float], list[tuple[str, str]]]] = []
        self._runs = Runs()
        self._returns = _Returns()
        self._epoch = -math.inf
        self._first: int | None = None
        self._every = 1
        self._held = 0  # numbers, or more
        self._replaced = 0  # numbers, by others of the same step

    def take(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Collect rows to their end. Raises `RunError` where it is not clear what the steps are, or which rows count."""
        for row in rows:
            self.rows += 1
            numbers, labels = self._numbers(row), self._runs.labels(row)
            if self._steps:
                self._put(numbers, labels)
            elif numbers:
                self._head.append((numbers, labels))
                if len(self._head) == HEAD:
                    self._decide()
        if not self._steps:
            self._decide()
        self._runs.check(self._faults)
        self._sort()
        self._check_order()
        self._explain()

    @property
    def step_columns(self) -> tuple[str, ...]:
        """Which columns hold the steps: one, or several of which each row has one."""
        return self._steps

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
        taken = {ours: self._best(ours, candidates) for ours, candidates in offers.items()}
        labels = {label_of(name): (ours, name) for ours, name in taken.items() if ours not in self._choice.columns}
        labels.pop("", None)
        if len(labels) > 1:
            ours, name = next(iter(labels.values()))
            raise RunError(
                f"its columns are of several runs, {listed(labels)}: choose all of one, as by {say_column(ours, name)} and so on"
            )
        return taken

    def column(self, name: str) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Steps, strictly rising, and numbers of a column, (numbers,) each; numbers may not be finite."""
        column = self._columns[name]
        steps, values = np.array(column.steps, dtype=np.int64), np.array(column.values, dtype=np.float64)
        return (LARGEST_STEP - steps[::-1], values[::-1]) if self._is_newest_first else (steps, values)

    def _best(self, ours: str, candidates: Mapping[str, Rank]) -> str:
        """The column that fits best. Raises `RunError` where two fit equally."""
        equal = equal_best(candidates)
        if len(equal) > 1:
            raise RunError(f"{listed(equal)} fit `{ours}` equally: choose one, as by {say_column(ours, equal[0])}")
        return equal[0]

    def _check_choice(self) -> None:
        for ours, theirs in self._choice.columns.items():
            if theirs not in self._columns:
                raise RunError(f"there is no column {shown(theirs)} to be `{ours}`; there are {listed(self._names)}")

    def _numbers(self, row: Mapping[str, Any]) -> dict[str, float]:
        """The numbers of a row that may be of use."""
        found: dict[str, float] = {}
        for name, value in row.items():
            if name in self._others or not self._is_of_use(name):
                continue
            try:
                number = as_number(value)
            except (TypeError, ValueError):
                self._faults.add("values that are no numbers", f"{shown(value)} in {shown(name)}")
            else:
                if number is not None:
                    found[EPOCH if name in self._epochs else name] = number
        return found

    def _is_of_use(self, name: str) -> bool:
        if name in self._columns or name in self._epochs or name == STEP:
            return True
        if len(self._names) >= MOST_NAMES or len(name) > LONGEST_NAME:
            self._faults.add("names of columns beyond what can be held", shown(name))
            return False
        self._names[name] = None
        serves = fits(name, self._choice.columns)
        most = MOST_CANDIDATES if any(rank.unknown for rank in serves.values()) else 2 * MOST_CANDIDATES
        if serves and len(self._columns) < most:
            self._columns[name] = Column(serves)
            return True
        if is_epoch(name):
            self._epochs.add(name)
            return True
        self._others.add(name)
        return False

    def _decide(self) -> None:
        """Say which columns hold the steps, and take the rows that waited for it."""
        heads = [numbers for numbers, _ in self._head]
        offers = {name: column.serves["step"] for name, column in self._columns.items() if "step" in column.serves}
        filled = {name: rank for name, rank in offers.items() if any(name in numbers for numbers in heads)}
        if any(STEP in numbers for numbers in heads):
            if "step" in self._choice.columns:
                raise RunError("events have steps of their own: leave `step` out of `columns`")
            self._steps = (STEP,)
        elif filled:
            self._steps = self._columns_of_steps(heads, filled)
        else:
            self._check_choice()
            if not self._names:
                raise RunError("it has no row that can be read: expected one with a step and a number, as a loss")
            raise RunError(f"no column holds steps; there are {listed(self._names)}: choose by {say_column('step', 'NAME')}")
        self._is_newest_first = self._falls(heads)
        if not self._is_newest_first and self._is_in_no_order(heads):
            self._waiting = []
        head, self._head = self._head, []
        for numbers, labels in head:
            self._put(numbers, labels)

    def _columns_of_steps(self, heads: list[dict[str, float]], offers: Mapping[str, Rank]) -> tuple[str, ...]:
        """The column that fits best, and those that stand in its place in other rows: they count the same."""
        fit = offers
        for test in (_is_whole, _varies, _counts_over_epochs):  # each in turn, where it leaves a column
            fit = {name: rank for name, rank in fit.items() if test(name, heads)} or fit
        best = self._best("step", fit)
        beside = [other for other in offers if other != best and not any(best in row and other in row for row in heads)]
        return (best, *beside)

    def _falls(self, heads: list[dict[str, float]]) -> bool:
        """Whether the newest row comes first."""
        steps = [step for numbers in heads if (step := self._step_of(numbers)) is not None]
        falling = all(later <= earlier for earlier, later in itertools.pairwise(steps))
        return falling and len(set(steps)) > 2

    def _is_in_no_order(self, heads: list[dict[str, float]]) -> bool:
        """Whether steps go up and down, and none comes twice, so that sorting them mixes nothing."""
        at: dict[str, list[float]] = {}
        for numbers in heads:
            step = self._step_of(numbers)
            for name, value in numbers.items() if step is not None else ():
                if name not in (*self._steps, EPOCH) and not math.isnan(value):
                    at.setdefault(name, []).append(step or 0.0)
        goes_both_ways = any(_falls(steps) >= FEWEST_FALLS and _kept(steps) * 2 < len(steps) for steps in at.values())
        return goes_both_ways and all(len(set(steps)) == len(steps) for steps in at.values())

    def _sort(self) -> None:
        """Take the rows that waited, in the order of their steps. Raises `RunError` where a column has two numbers of one."""
        waiting, self._waiting = self._waiting, None
        if waiting is None:
            return
        for step, numbers in sorted(waiting, key=lambda row: row[0]):
            twice = next((column for column, value in numbers if column.replaces(step, value)), None)
            if twice is not None:
                raise RunError(
                    f"its rows are in no order, and step {step} has several numbers of one column: put each run into a log of "
                    f"its own, or give them a column `run` and choose by {WHERE_OPTION}"
                )
            self._at(step, numbers, -math.inf)
        self._faults.note("its rows are in no order: they were sorted by their steps")

    def _step_of(self, numbers: Mapping[str, float]) -> float | None:
        return next((numbers[name] for name in self._steps if name in numbers), None)

    def _put(self, numbers: dict[str, float], labels: list[tuple[str, str]]) -> None:
        """Take the numbers of one row."""
        written, epoch = self._step_of(numbers), numbers.pop(EPOCH, -math.inf)
        of_use = [
            (self._columns[name], value)
            for name, value in numbers.items()
            if name != STEP and "step" not in self._columns[name].serves
        ]
        if not of_use:
            return
        if written is None:
            self._faults.add("rows without a step", ", ".join(map(shown, list(numbers)[:3])))
            return
        if not _is_step(written):
            self._faults.add("steps that are no whole numbers from 0 to 2**53", f"{written:g}")
            return
        self._runs.note(labels, int(written))
        if self._waiting is not None:
            self._wait(int(written), of_use)
            return
        self._at(LARGEST_STEP - int(written) if self._is_newest_first else int(written), of_use, epoch)
        self._held += len(of_use)
        if self._held > MOST_NUMBERS:
            self._thin()

    def _wait(self, step: int, numbers: Numbers) -> None:
        """Keep a row of a log in no order. Raises `RunError` where there are too many."""
        if self._waiting is not None:
            self._waiting.append((step, numbers))
        self._held += len(numbers)
        if self._held > MOST_NUMBERS:
            raise RunError(f"its rows are in no order, and more than {MOST_NUMBERS} numbers: sort them by their steps")

    def _at(self, step: int, numbers: Numbers, epoch: float) -> None:
        """Take the numbers of a step. NaN may fill the gaps of a table, so that it goes back to an earlier step means little."""
        telling = [column for column, value in numbers if not math.isnan(value)] or [column for column, _ in numbers]
        furthest = max(telling, key=lambda column: column.last)
        if furthest.last > step:
            if self._is_newest_first:  # it was written before what has been read, and replaced by it
                self._faults.add("rows at steps that newer ones replace", f"step {LARGEST_STEP - step}")
                return
            self._note_return(furthest, step, epoch)
            self._returns.dropped += sum(column.cut(step) for column in self._columns.values())
        self._epoch = max(self._epoch, epoch) if furthest.last <= step else epoch
        if self._first is None:
            self._first = self._returns.lowest = step
        for column, value in numbers:
            if column.last > step:
                continue
            if column.steps and column.steps[-1] > step:  # only NaN lies beyond
                column.cut(step + 1)
            if not column.thinned or (step - self._first) % self._every == 0:
                self._returns.taken += 1
                self._replaced += column.replaces(step, value)
                column.put(step, value)
            if not math.isnan(value):
                column.last = step

    def _note_return(self, column: Column, step: int, epoch: float) -> None:
        returns = self._returns
        returns.first = returns.first or (column.last, step)
        returns.count += 1
        returns.with_epoch += epoch > self._epoch > -math.inf
        if step <= returns.lowest and len(column.steps) >= FEWEST_BEGUN:
            returns.to_the_start += 1
        returns.lowest = min(returns.lowest, step)

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

    def _check_order(self) -> None:
        """Raise `RunError` for steps that do not count over one whole training."""
        returns, name = self._returns, shown(self._steps[0])
        if returns.with_epoch:
            epoch = next(iter(self._epochs), "epoch")
            raise RunError(
                f"{name} begins anew in every epoch ({returns.with_epoch} times): choose a column that counts over the whole "
                f"training, as by {say_column('step', 'NAME')}, or one epoch, by {say_where(epoch, '1')}; "
                f"there are {listed(self._names)}"
            )
        if returns.to_the_start > 1:
            raise RunError(
                f"{name} begins anew {returns.to_the_start} times, and no column says why: are these several runs, or epochs? "
                f"Put each into a log of its own, or give it a column `run` and choose by {WHERE_OPTION}"
            )
        lost = returns.count > 1 and returns.taken > FEWEST_TOLD and returns.dropped * 2 > returns.taken
        if lost or (returns.count > MOST_RETURNS and returns.count * RARE > self.rows):
            raise RunError(
                f"{name} goes back {returns.count} times: its rows are of several runs, or in no order: sort them by step, "
                f"or give them a column `run` and choose by {WHERE_OPTION}"
            )

    def _explain(self) -> None:
        if self._returns.first:
            end, back = self._returns.first
            self._faults.note(
                f"the training went back from step {end} to {back}: what it then wrote replaces what had been written"
            )
        if self._replaced:
            self._faults.note(f"replaced: {self._replaced} x a number by a later one of the same column and step")
        if self._is_newest_first:
            self._faults.note("its newest rows come first: they were sorted")
        if self._steps[0].rpartition(" - ")[2] == "_step":
            self._faults.note("`_step` is W&B's own: it counts what was logged, which need not be updates")
        if self._every > 1:
            self._faults.note(
                f"there are more than {MOST_NUMBERS} numbers: of the dense columns those of every {self._every} steps are kept"
            )


def _falls(steps: list[float]) -> int:
    """How often steps go back."""
    return sum(later < earlier for earlier, later in itertools.pairwise(steps))


def _kept(steps: list[float]) -> int:
    """How many of them would be left, if each that goes back replaced what it goes back over."""
    kept: list[float] = []
    for step in steps:
        while kept and kept[-1] >= step:
            kept.pop()
        kept.append(step)
    return len(kept)


def _is_whole(name: str, heads: list[dict[str, float]]) -> bool:
    """Whether a column has whole numbers only: others are epochs, or seconds."""
    return all(_is_step(row[name]) for row in heads if name in row)


def _varies(name: str, heads: list[dict[str, float]]) -> bool:
    """Whether a column has more than one number: the same in every row is how many steps there are to be."""
    return len({row[name] for row in heads if name in row}) > 1


def _counts_over_epochs(name: str, heads: list[dict[str, float]]) -> bool:
    """Whether a column never goes back where a new epoch begins."""
    counted = [(row[name], row[EPOCH]) for row in heads if name in row and EPOCH in row]
    return not any(later[0] < earlier[0] and later[1] > earlier[1] for earlier, later in itertools.pairwise(counted))


def _is_step(number: float) -> bool:
    return 0 <= number <= LARGEST_STEP and number == int(number)


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
