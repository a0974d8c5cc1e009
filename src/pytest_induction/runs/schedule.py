"""When a snapshot is due, and whether the training can afford it. Standard library only."""

from __future__ import annotations

import itertools
import math
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
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
