"""Where in a training snapshots are spent: few and light ones while nothing changes, many from the first sign of a rise on.

A quick check of the model, one pass of a few rows, costs a fraction of a snapshot. It tells whether a head matches prefixes more,
or the model copies better, than when the last snapshot was taken. Standard library only.
"""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from statistics import median

from pytest_induction.runs.schedule import Budget

Values = Mapping[str, float]
QUICK_CHECK = "quick check"  # among the kinds of a budget
UNITS = {"prefix_matching": 0.06, "advantage": 0.5}  # a rise by so much is worth a snapshot: a tenth of what induction brings
NOISE, MOST_NOISE = 4.0, 3.0  # a rise must be so many times the scatter of the checks; or three units, however they scatter
REMEMBERED = 9  # checks that tell the scatter
FOLLOWED = 3  # checks whose median the reference follows where values fall
SIGN, AHEAD = 0.15, 0.4  # units: after a rise by the first the next check comes when the second is expected
CHECKS, SPARSE = 20, 6  # for every ten times as many steps: checks at most, and snapshots, of a model that does not change
EARLY = 20  # added to steps before their logarithm is taken: the first few are no decades
SETTLING = (0.01, 0.02, 0.04, 0.08)  # decades between the last snapshots of a rise and the next ones
RETRY = 0.05  # decades until what could not be afforded is tried again
QUIET_PART = 0.7  # of the budget, that may be spent while nothing rises
FINAL = 1.5  # whole snapshots that are kept for the last one and for closing: inside a training all takes longer
AFTERWARDS = 4  # light snapshots for after a rise: without them it is not known to be over
RISING_LEFT, SPARSE_LEFT = 12, 20  # a size is chosen if so many of it can be afforded
PLAIN_LEFT = 10  # whole snapshots that are paid for beside the next one: then each that is due is taken


class Focus:
    """Says, step after step, whether a snapshot is taken, and of which size: 0 is a whole one, each next is lighter.

    `shares` are what snapshots of each size may cost, in shares of a whole one, until one was taken.
    Before `next_step` nothing comes but what the schedule asks for.
    """

    def __init__(self, budget: Budget, shares: Sequence[float]) -> None:
        self._budget = budget
        self._shares = shares
        self._start_again()

    def _start_again(self) -> None:
        self._checks: deque[tuple[int, Values]] = deque(maxlen=REMEMBERED)
        self._reference: dict[str, float] = {}
        self._last = -1
        self._since = len(SETTLING) + 1  # snapshots since the last rise
        self._next_check = self._next_snapshot = self.next_step = 0

    def chosen(self, step: int, *, due: bool, check: Callable[[], Values | None]) -> int | None:
        """The size of the snapshot to take at this step, None for none.

        `due` says that the schedule has one, `check` takes a quick check; it gives None where the model cannot be measured.
        """
        if step < max(self._last, *(at for at, _ in self._checks), 0):
            self._start_again()  # the training went back
        is_plain = due and self._budget.paid() >= (1 + PLAIN_LEFT) * self._cost(0)
        if not is_plain and step < self.next_step:
            return None
        size = self._size(step, check, is_plain=is_plain, due=due)
        self.next_step = min(self._next_check, self._next_snapshot)
        return size

    def _size(self, step: int, check: Callable[[], Values | None], *, is_plain: bool, due: bool) -> int | None:
        regular = 0 if is_plain else self._regular(step)
        if self._may_check(step, also=regular is not None):
            values = check()
            self._see(step, values or {})
            if values is None:
                return 0 if due and self._budget.paid() >= self._cost(0) else None
            if self._has_risen():
                size = 0 if is_plain else self._affordable(1.0, RISING_LEFT, kept=self._afterwards)
                if size is not None:
                    self._since = 0
                    return size
        return regular

    def taken(self, step: int) -> None:
        """A snapshot was taken at this step: what rises from now on rises from here."""
        self._last = step
        self._since += 1
        gap = 1 / SPARSE if self.is_settled else SETTLING[max(0, self._since - 1)]
        self._next_snapshot = _later(step, gap)
        self.next_step = min(self._next_check, self._next_snapshot)
        if self._checks and self._checks[-1][0] == step:
            self._reference = dict(self._checks[-1][1])

    @property
    def is_settled(self) -> bool:
        """Whether nothing has risen for some snapshots: what is spent now is the lesser part of the budget."""
        return self._since > len(SETTLING)

    def _regular(self, step: int) -> int | None:
        """The size of a snapshot that comes without a sign, None where it is too early or cannot be afforded."""
        if step < self._next_snapshot:
            return None
        size = self._affordable(QUIET_PART, SPARSE_LEFT) if self.is_settled else self._affordable(1.0, RISING_LEFT)
        if size is None:
            self._next_snapshot = _later(step, RETRY)
        return size

    def _may_check(self, step: int, *, also: bool) -> bool:
        """Whether a check is due, or a snapshot comes that one belongs to, and the budget reaches for it and for a rise."""
        if step < self._next_check and not (also and (not self._checks or step > self._checks[-1][0])):
            return False
        left = self._left(QUIET_PART) if self.is_settled else self._left(1.0) - (0.0 if also else self._afterwards)
        is_affordable = self._affordable(1.0, RISING_LEFT) is not None and left >= self._check_cost
        if not is_affordable:  # without a snapshot to follow, what is seen would be of no use
            self._next_check = _later(step, RETRY)
        return is_affordable

    @property
    def _check_cost(self) -> float:
        return self._budget.expected(QUICK_CHECK) or 0.0

    @property
    def _afterwards(self) -> float:
        """What the snapshots after a rise will take: without them it is not known to be over."""
        return AFTERWARDS * (self._cost(len(self._shares) - 1) + self._check_cost)

    def _checks_a_decade(self, step: int) -> float:
        """So many that what is left for them lasts to the end, as far as it is known, or for twice as many steps."""
        to_come = max(_decades(step, self._budget.last_step), math.log10(2))
        cost = self._check_cost
        return CHECKS if not cost else min(max(self._left(QUIET_PART) / cost / to_come, SPARSE), CHECKS)

    def _see(self, step: int, values: Values) -> None:
        self._checks.append((step, values))
        for name in values:
            recent = [seen[name] for _, seen in itertools.islice(reversed(self._checks), FOLLOWED) if name in seen]
            self._reference[name] = min(self._reference.get(name, math.inf), median(recent))
        self._next_check = _later(step, 1 / self._checks_a_decade(step))
        rate = self._rate()
        if rate > 0:
            self._next_check = min(self._next_check, step + max(1, math.ceil(AHEAD / rate)))

    def _rate(self) -> float:
        """Units by which the checks rise with each step, 0 where they hardly do."""
        if len(self._checks) < 2:
            return 0.0
        (before, one), (after, two) = self._checks[-2], self._checks[-1]
        risen = max(((two[name] - one[name]) / UNITS[name] for name in two.keys() & one.keys()), default=0.0)
        return risen / (after - before) if risen > SIGN else 0.0

    def _has_risen(self) -> bool:
        """Whether the last check lies above the last snapshot by more than checks scatter."""
        return any(
            value - self._reference[name] >= UNITS[name] * min(max(1.0, NOISE * self._scatter(name)), MOST_NOISE)
            for name, value in self._checks[-1][1].items()
        )

    def _scatter(self, name: str) -> float:
        """How far checks lie from the middle of their neighbours, in units, by the median."""
        values = [seen[name] for _, seen in self._checks if name in seen]
        triples = zip(values, values[1:], values[2:], strict=False)
        apart = [abs(middle - (before + after) / 2) for before, middle, after in triples]
        return median(apart) / UNITS[name] if apart else 0.0

    def _affordable(self, part: float, count: int, kept: float = 0.0) -> int | None:
        """The largest size of which so many can be paid for, or the lightest if one can."""
        left, sizes = self._left(part) - kept, range(len(self._shares))
        lightest = sizes[-1] if left >= self._cost(sizes[-1]) else None
        return next((size for size in sizes if left >= count * self._cost(size)), lightest)

    def _left(self, part: float) -> float:
        """Seconds that may be spent, the last snapshot of the training set aside."""
        return self._budget.left(part, kept=FINAL * self._cost(0))

    def _cost(self, size: int) -> float:
        known = self._budget.expected(size)
        return self._shares[size] * (self._budget.expected(0) or 0.0) if known is None else known


def _decades(first: int, last: int) -> float:
    """How far two steps lie apart."""
    return math.log10((last + EARLY) / (first + EARLY))


def _later(step: int, decades: float) -> int:
    """The first step that lies so far after this one."""
    return max(step + 1, math.ceil((step + EARLY) * 10**decades - EARLY))
