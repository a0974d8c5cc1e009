"""When a snapshot is due, whether the training can afford it, and where in a training snapshots are spent."""

from __future__ import annotations

import itertools
import math
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median

from pytest_induction.errors import ArgumentError, whole_number

Schedule = int | Iterable[int] | Callable[[int], bool] | None
Due = Callable[[int, int], bool]
PER_DECADE = 40  # snapshots for every ten times as many steps
MOST_STEPS = 10_000_000  # that a schedule may list
RECENT = 7  # snapshots whose median says what the next will cost,
RECENT_STEPS = 31  # and steps whose median says how long they take; of all such medians the least counts,
FEWEST_TIMED = 3  # steps before that is guessed: the first is often a slow one
CAUTION = 0.9  # times that: steps to come may be shorter still
FEWEST_STEPS = 1000  # that a training is taken to last, where it is not said,
MOST_CREDIT = 0.5  # seconds; and up to how much may be spent in advance then


def due_steps(schedule: Schedule) -> Due:
    """Whether any scheduled step lies after one step, up to another: a loop need not ask at every step.

    A whole number n is for every n-th step, a function is asked of the step at hand, None is for steps 0, 1, 2, ... that grow
    further apart, 40 for every ten times as many. Raises `ArgumentError` for anything else.
    """
    if schedule is None:
        return _LogSpaced()
    if callable(schedule):
        return _asked(schedule)
    if isinstance(schedule, range):  # may be as long as it likes
        return _listed(schedule if schedule.step > 0 else schedule[::-1])
    if isinstance(schedule, Iterable):
        steps = list(itertools.islice(schedule, MOST_STEPS + 1))
        if len(steps) > MOST_STEPS:
            raise ArgumentError(f"`schedule` lists more than {MOST_STEPS} steps: give a function of the step instead")
        return _listed(sorted({whole_number("schedule", step, least=0) for step in steps}))
    every = whole_number("schedule", schedule, least=1)
    return lambda after, step: step // every > after // every


def _asked(is_due: Callable[[int], bool]) -> Due:
    return lambda after, step: step > after and bool(is_due(step))


def _listed(steps: Sequence[int]) -> Due:
    return lambda after, step: bisect_right(steps, step) > bisect_right(steps, after)


class _LogSpaced:
    """Steps 0, 1, 2, ..., each a fixed share later than the one before, and at least one step."""

    def __init__(self) -> None:
        self._steps = [0]

    def __call__(self, after: int, step: int) -> bool:
        while self._steps[-1] < step:
            last = self._steps[-1]
            self._steps.append(max(last + 1, math.ceil(last * 10 ** (1 / PER_DECADE))))
        return bisect_right(self._steps, step) > bisect_right(self._steps, after)


@dataclass(frozen=True)
class Cost:
    """What recording took: its own `seconds`, beside those of training without it, and their `share`, None where none passed.

    `snapshots` were taken; `skipped` ones were due and gave way to later ones, as the budget did not reach for both. `always` are
    the seconds of what is done whatever it costs: the set-up, the first snapshot, the last one and others that were forced, the
    closing, and calls in which nothing was measured. In a short training these alone may be more than `max_overhead`, the share
    that was allowed; None is no limit.
    """

    seconds: float
    training_seconds: float
    share: float | None
    snapshots: int
    skipped: int
    always: float = 0.0
    max_overhead: float | None = None

    @property
    def is_too_short(self) -> bool:
        """Whether the training was too short for `max_overhead`: what is always done takes more than that."""
        return self.max_overhead is not None and self.always > self.max_overhead * self.training_seconds > 0

    def __str__(self) -> str:
        share = "" if self.share is None else f", {self.share:.2%} of {self.training_seconds:.3g} s of training"
        skipped = f"; {self.skipped} due ones gave way to later ones" if self.skipped else ""
        return f"{self.snapshots} snapshots took {self.seconds:.3g} s{share}{skipped}{self._too_short}"

    @property
    def _too_short(self) -> str:
        if not self.is_too_short:
            return ""
        return (
            f"; set-up, the first and the last snapshot and the calls alone took {self.always / self.training_seconds:.2%}, more "
            f"than `max_overhead` ({self.max_overhead:.3g}): the training is too short for it"
        )


class Budget:
    """The time that recording may take: a share of the time that passes between its calls, or any where `share` is None.

    What induction needs to form is often over in the first tenth of a training. So what the rest of the training will pay may be
    spent in advance. The rest is estimated with caution: its steps are taken to be a little shorter than the shortest so far, and
    what the calls themselves will take is subtracted. It reaches up to `total_steps`. Where that is not known it reaches to step
    1000, and nothing is spent in advance beyond the first half second.
    """

    def __init__(self, share: float | None, clock: Callable[[], float], total_steps: int | None = None) -> None:
        if share is not None and (isinstance(share, bool) or not _is_positive(share)):
            raise ArgumentError(
                f"`max_overhead` must be a share of the training time above 0, or None for no limit, got {share!r}"
            )
        self._share = share
        self._clock = clock
        self.total_steps = total_steps
        self._steps: deque[float] = deque(maxlen=RECENT_STEPS)  # seconds of training that each of the last steps took
        self._shortest = math.inf
        self._first_step = 0
        self._mark: tuple[int, float] | None = None
        self._spent = self._training = self._began = self._set_up = 0.0
        self._left: float | None = None
        self._recent: deque[float] = deque(maxlen=RECENT)
        self._of_kind: dict[object, deque[float]] = {}
        self._calls: deque[float] = deque(maxlen=RECENT_STEPS)  # seconds of the last in which nothing was measured
        self._first = self._forced = self._quiet = self._called = 0.0
        self._has_measured = False
        self._snapshots = self.skipped = 0

    @property
    def cost(self) -> Cost:
        """What recording took so far."""
        share = self._spent / self._training if self._training > 0 else None
        always = self._first + self._forced + self._called
        return Cost(self._spent, self._training, share, self._snapshots, self.skipped, always, self._share)

    def affords(self) -> bool:
        """Whether the training has paid for another snapshot, and for one more at its end. The first may always be taken."""
        if self._share is None or not self._recent:
            return True
        return self.paid() >= 2 * median(self._recent)

    @property
    def has_begun(self) -> bool:
        """Whether a snapshot was taken."""
        return self._snapshots > 0

    def stepped(self, step: int) -> None:
        """Note that the training has come to a step, to know how long one takes."""
        if self._mark is None or step < self._mark[0]:
            self._first_step = step
        elif step > self._mark[0]:
            self._steps.append((self._training - self._mark[1]) / (step - self._mark[0]))
        else:
            return
        self._mark = (step, self._training)

    def left(self, part: float = 1.0, *, kept: float = 0.0) -> float:
        """Seconds that may still be spent: of what the training has paid for, and of what its rest will pay.

        So many seconds are `kept` for what will come in any case. Where nothing rises only a `part` may be spent of what is there
        for the whole training beside that, the first snapshot and the calls.
        """
        if self._share is None:
            return math.inf
        rest = self._rest()
        left = self.paid() + rest - kept
        if part == 1:
            return left
        return min(left, part * (self._share * self._training + rest - kept - self._first - self._called) - self._quiet)

    def paid(self) -> float:
        """Seconds that may still be spent of what the training has paid for already."""
        if self._share is None:
            return math.inf
        return self._share * self._training - self._spent - (self._clock() - self._began)

    @property
    def last_step(self) -> int:
        """Where the training will end, as far as that is known."""
        return self._first_step + FEWEST_STEPS if self.total_steps is None else self.total_steps

    def _rest(self) -> float:
        """What the steps to come will pay for at least, beyond the calls in them."""
        if self._share is None or self._mark is None or len(self._steps) < FEWEST_TIMED:
            return 0.0
        is_full = len(self._steps) == RECENT_STEPS
        a_step = min(self._shortest, median(self._steps) if is_full else min(self._steps))  # a few may all be slow ones
        if is_full:
            self._shortest = a_step
        a_call = median(self._calls) if self._calls else 0.0
        rest = (CAUTION * self._share * a_step - a_call) * max(0, self.last_step - self._mark[0])
        return rest if self.total_steps is not None else min(rest, max(0.0, MOST_CREDIT - self._share * self._training))

    def expected(self, kind: object) -> float | None:
        """What one more of a kind will cost, None where none was taken yet."""
        taken = self._of_kind.get(kind)
        return median(taken) if taken else None

    @contextmanager
    def kept(self, kind: object, *, quiet: bool = False) -> Iterator[None]:
        """The inside of the block is one of a kind, which says what the next will cost; `quiet`: taken where nothing rises."""
        began, before, is_first = self._clock(), self._set_up, not self.has_begun
        self._has_measured = True
        try:
            yield
        finally:
            cost = self._clock() - began - (self._set_up - before)
            self._of_kind.setdefault(kind, deque(maxlen=RECENT)).append(cost)
            self._quiet += cost * (quiet and not is_first)

    @contextmanager
    def spending(self, *, after_training: bool = False) -> Iterator[None]:
        """The time inside is the recorder's. What passed since the last such block was the training's, unless it is over."""
        self._began = self._clock()
        if self._left is not None and not after_training:
            self._training += self._began - self._left
        self._has_measured = False
        try:
            yield
        finally:
            self._left = self._clock()
            self._spent += self._left - self._began
            if after_training:
                self._forced += self._left - self._began
            elif not self._has_measured and self.has_begun:
                self._count_call(self._left - self._began)

    def now(self) -> float:
        """The time by the clock."""
        return self._clock()

    def passed(self, began: float, step: int) -> None:
        """A call that began then measured nothing at this step: the same as a block of `spending`, but quicker."""
        if self._left is not None:
            self._training += began - self._left
        self.stepped(step)
        self._left = self._clock()
        self._spent += self._left - began
        self._count_call(self._left - began)

    def _count_call(self, seconds: float) -> None:
        self._called += seconds
        self._calls.append(seconds)

    def waited(self) -> None:
        """What passed of this block until now was the training's too: a device had not finished its steps."""
        now = self._clock()
        self._training += now - self._began
        self._began = now

    @contextmanager
    def snapshot(self, *, forced: bool = False) -> Iterator[None]:
        """The inside of the block takes a snapshot; `forced`: whether it is within the budget or not."""
        began, self._set_up = self._clock(), 0.0
        self._has_measured = True
        yield
        now = self._clock()
        self._recent.append(now - began - self._set_up)
        self._snapshots += 1
        if self._snapshots == 1:
            self._first = self._spent + now - self._began
        elif forced:
            self._forced += now - began

    @contextmanager
    def set_up(self) -> Iterator[None]:
        """The inside of the block, within a snapshot, is done once, and does not count for what the next one will cost."""
        began = self._clock()
        try:
            yield
        finally:
            self._set_up += self._clock() - began

    def pause(self) -> None:
        """What passes from now on, until the next block, is not training."""
        self._left = None


def _is_positive(share: object) -> bool:
    return isinstance(share, (int, float)) and math.isfinite(share) and share > 0


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
