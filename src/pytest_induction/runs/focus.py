"""Where in a training snapshots are spent: few and light ones while nothing changes, many from the first sign of a rise on.

A glance at the model, a pass of a few rows, costs a fraction of a snapshot. It tells whether a head matches more, or the model
copies better, than when the last snapshot was taken. Standard library only.
"""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from statistics import median

from pytest_induction.runs.schedule import Budget

Values = Mapping[str, float]
GLANCE = "glance"  # among the kinds of a budget
UNITS = {"prefix_matching": 0.06, "advantage": 0.5}  # a rise by so much is worth a snapshot: a tenth of what induction brings
NOISE, MOST_NOISE = 4.0, 3.0  # a rise must be so many times the scatter of the glances; or three units, however they scatter
REMEMBERED = 9  # glances that tell the scatter
FOLLOWED = 3  # glances whose median the reference follows where values fall
SIGN, AHEAD = 0.15, 0.4  # units: after a rise by the first the next glance comes when the second is expected
GLANCES, SPARSE = 20, 6  # for every ten times as many steps: glances at most, and snapshots, of a model that does not change
EARLY = 20  # added to steps before their logarithm is taken: the first few are no decades
SETTLING = (0.01, 0.02, 0.04, 0.08)  # decades between the last snapshots of a rise and the next ones
QUIET_PART = 0.6  # of the budget, that may be spent while nothing rises
KEPT = 1.5  # whole snapshots that are kept in hand, for the last one and what the calls themselves take
AFTERWARDS = 7  # light snapshots for after a rise: more than are due, as what a step pays for may turn out less
RISING_LEFT, SPARSE_LEFT = 12, 20  # a size is chosen if so many of it can be afforded
PLAIN_LEFT = 10  # whole snapshots that are paid for beside the next one: then each that is due is taken


class Focus:
    """Says, step after step, whether a snapshot is taken, and of which size: 0 is a whole one, each next is lighter.

    `shares` are what snapshots of each size may cost, in shares of a whole one, until one was taken.
    """

    def __init__(self, budget: Budget, shares: Sequence[float]) -> None:
        self._budget = budget
        self._shares = shares
        self._start_again()

    def _start_again(self) -> None:
        self._glances: deque[tuple[int, Values]] = deque(maxlen=REMEMBERED)
        self._reference: dict[str, float] = {}
        self._last = -1
        self._since = len(SETTLING) + 1  # snapshots since the last rise

    def chosen(self, step: int, *, due: bool, look: Callable[[], Values | None]) -> int | None:
        """The size of the snapshot to take at this step, None for none.

        `due` says that the schedule has one, `look` takes a glance; it gives None where the model cannot be looked at.
        """
        if step < max(self._last, *(at for at, _ in self._glances), 0):
            self._start_again()  # the training went back
        is_plain = due and self._budget.paid() >= (1 + PLAIN_LEFT) * self._cost(0)
        is_sparse = _decades(self._last, step) >= self._gap
        regular = 0 if is_plain else self._regular() if is_sparse else None
        if self._may_look(step, also=regular is not None):
            values = look()
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
        if self._glances and self._glances[-1][0] == step:
            self._reference = dict(self._glances[-1][1])

    @property
    def is_settled(self) -> bool:
        """Whether nothing has risen for some snapshots: what is spent now is the lesser part of the budget."""
        return self._since > len(SETTLING)

    @property
    def _gap(self) -> float:
        """Decades from the last snapshot to the next one of a model that does not change."""
        return 1 / SPARSE if self.is_settled else SETTLING[max(0, self._since - 1)]

    def _regular(self) -> int | None:
        """The size of a snapshot that comes without a sign, None where it cannot be afforded."""
        return self._affordable(QUIET_PART, SPARSE_LEFT) if self.is_settled else self._affordable(1.0, RISING_LEFT)

    def _may_look(self, step: int, *, also: bool) -> bool:
        if not self._glances:
            is_due = True
        else:
            last, rate = self._glances[-1][0], self._rate()
            soon = rate > 0 and step - last >= max(1.0, AHEAD / rate)
            is_due = step > last and (also or soon or _decades(last, step) >= 1 / self._glances_a_decade(step))
        if not is_due or self._affordable(1.0, RISING_LEFT) is None:  # what is seen would be of no use
            return False
        left = self._left(QUIET_PART) if self.is_settled else self._left(1.0) - (0.0 if also else self._afterwards)
        return left >= (self._budget.expected(GLANCE) or 0.0)

    @property
    def _afterwards(self) -> float:
        """What the snapshots after a rise will take: without them it is not known to be over."""
        return AFTERWARDS * (self._cost(len(self._shares) - 1) + (self._budget.expected(GLANCE) or 0.0))

    def _glances_a_decade(self, step: int) -> float:
        """So many that what is left for them lasts to the end, as far as it is known, or for twice as many steps."""
        cost = self._budget.expected(GLANCE)
        to_come = max(_decades(step, self._budget.last_step), math.log10(2))
        return GLANCES if not cost else min(max(self._left(QUIET_PART) / cost / to_come, SPARSE), GLANCES)

    def _rate(self) -> float:
        """Units by which the glances rise with each step, 0 where they hardly do."""
        if len(self._glances) < 2:
            return 0.0
        (before, one), (after, two) = self._glances[-2], self._glances[-1]
        risen = max(((two[name] - one[name]) / UNITS[name] for name in two.keys() & one.keys()), default=0.0)
        return risen / (after - before) if risen > SIGN else 0.0

    def _see(self, step: int, values: Values) -> None:
        self._glances.append((step, values))
        for name in values:
            recent = [seen[name] for _, seen in itertools.islice(reversed(self._glances), FOLLOWED) if name in seen]
            self._reference[name] = min(self._reference.get(name, math.inf), median(recent))

    def _has_risen(self) -> bool:
        """Whether the last glance lies above the last snapshot by more than glances scatter."""
        return any(
            value - self._reference[name] >= UNITS[name] * min(max(1.0, NOISE * self._scatter(name)), MOST_NOISE)
            for name, value in self._glances[-1][1].items()
        )

    def _scatter(self, name: str) -> float:
        """How far glances lie from the middle of their neighbours, in units, by the median."""
        values = [seen[name] for _, seen in self._glances if name in seen]
        triples = zip(values, values[1:], values[2:], strict=False)
        apart = [abs(middle - (before + after) / 2) for before, middle, after in triples]
        return median(apart) / UNITS[name] if apart else 0.0

    def _affordable(self, part: float, count: int, kept: float = 0.0) -> int | None:
        """The largest size of which so many can be paid for, or the lightest if one can."""
        left, sizes = self._left(part) - kept, range(len(self._shares))
        lightest = sizes[-1] if left >= self._cost(sizes[-1]) else None
        return next((size for size in sizes if left >= count * self._cost(size)), lightest)

    def _left(self, part: float) -> float:
        return min(self._budget.left(part), self._budget.left() - KEPT * self._cost(0))

    def _cost(self, size: int) -> float:
        known = self._budget.expected(size)
        return self._shares[size] * (self._budget.expected(0) or 0.0) if known is None else known


def _decades(first: int, last: int) -> float:
    """How far two steps lie apart."""
    return math.log10((last + EARLY) / (first + EARLY))
