"""What calls cost, counted where a model runs, and what they may spend. Standard library only.

Prices are in tokens that go through the model. People read them in bare passes: one is a forward pass of 12 rows of 101 tokens
with logits. A pass that ends early, or begins at a later layer, counts whole: what is counted is the most that was run.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, ParamSpec, TypeVar
from weakref import WeakKeyDictionary

from pytest_induction import progress
from pytest_induction.errors import ArgumentError, InductionError
from pytest_induction.progress import duration, watching

P = ParamSpec("P")
R = TypeVar("R")
ROWS, POSITIONS = 12, 101  # of a bare pass
BARE_PASS = ROWS * POSITIONS  # tokens
WITH_GRADIENTS = 3  # passes that one counts as whose gradient is asked for
PASSES, SECONDS = "passes", "s"
ENOUGH = BARE_PASS // 2  # tokens after which it is known how long one takes; the first passes of a model are slow
UNITS = {"": PASSES, "pass": PASSES, "passes": PASSES, "bare passes": PASSES, "s": SECONDS, "seconds": SECONDS}
FORM = 'bare passes such as "60 passes" or 60, or seconds such as "30 s"'


@dataclass(frozen=True)
class Price:
    """What a call takes, in tokens: at least, where it is clear at the first look and nothing is remembered, and at most."""

    least: int
    most: int

    def __add__(self, other: Price) -> Price:
        return Price(self.least + other.least, self.most + other.most)

    def __str__(self) -> str:
        least, most = in_passes(self.least), in_passes(self.most)
        return f"{most} bare passes" if least == most else f"{least} to {most} bare passes"


PriceOf = Callable[[Any, Mapping[str, Any]], Price]
"""From a model under test and the arguments of a call by name to its price."""
PRICES: dict[str, tuple[Callable[..., Any], PriceOf]] = {}
"""Every call that states a price, with what states it, by the call's name, as far as its module is loaded."""


def in_passes(tokens: float) -> str:
    """How many bare passes that is, in at most three figures below a thousand."""
    passes = tokens / BARE_PASS
    return f"{passes:.1f}" if passes < 9.95 else f"{passes:.0f}"


@dataclass(frozen=True)
class Budget:
    """What a call may spend: bare passes, or seconds."""

    amount: float
    unit: str

    @classmethod
    def of(cls, given: object) -> Budget:
        """What a number of bare passes means, or a text. Raises `ArgumentError` for anything else."""
        if isinstance(given, str):
            number, _, unit = given.strip().partition(" ")
            if number.endswith(SECONDS) and not unit:
                number, unit = number.removesuffix(SECONDS), SECONDS
            named = UNITS.get(unit.strip())
        else:
            number, named = given, PASSES  # type: ignore[assignment]
        try:
            amount = math.nan if isinstance(given, bool) or named is None else float(number)
        except (TypeError, ValueError):
            amount = math.nan
        if named is None or not 0 < amount < math.inf:
            raise ArgumentError(f"`budget` must be {FORM}, got {given!r}")
        return cls(amount, named)

    def __str__(self) -> str:
        words = SECONDS if self.unit == SECONDS else "bare pass" if self.amount == 1 else "bare passes"
        return f"{self.amount:g} {words}"


class BudgetSpent(BaseException):
    """Ends a measurement before a pass that its budget has no room for; no `except Exception` may swallow it."""

    def __init__(self, call: Call) -> None:
        super().__init__(f"the budget of {call.budget} is spent")
        self.call = call


@dataclass
class Call:
    """A call that is under way: what has been spent in it, of which budget, and what it takes at most."""

    name: str
    price_of: Callable[[Any], Price | None]
    outer: Call | None = None
    budget: Budget | None = None
    is_spent: bool = False
    tokens: int = 0
    running: int = 0  # of these, the tokens of the pass that is not done yet
    subject: Any = None
    price: Price | None = None
    begun: float = field(default_factory=lambda: progress.clock())  # noqa: PLW0108 - a test may replace it
    first: float = 0.0  # when the first pass began

    def check(self, tokens: int) -> None:
        """Raise `BudgetSpent` where a pass of so many tokens is more than is left."""
        if tokens > self.room:
            self.is_spent = True
            raise BudgetSpent(self)

    @property
    def room(self) -> float:
        """How many tokens are left to be spent, as far as that is known; infinite without a budget."""
        if self.budget is None:
            return math.inf
        if self.budget.unit == PASSES:
            return self.budget.amount * BARE_PASS - self.tokens
        rate = self.seconds_per_token
        return (self.budget.amount - (progress.clock() - self.begun)) / rate if rate else math.inf

    def begin(self, subject: Any) -> None:
        """The first pass begins, and it is known what the call is about."""
        if self.subject is None:
            self.subject, self.first, self.price = subject, progress.clock(), self.price_of(subject)

    @property
    def seconds_per_token(self) -> float:
        """Of the passes that are done, where these are enough, else of the last call on the model; 0 where neither is known."""
        done = self.tokens - self.running
        if done >= ENOUGH:
            return (progress.clock() - self.first) / done
        return 0.0 if self.subject is None else _rates.get(self.subject.module, 0.0)

    @property
    def least_seconds(self) -> float:
        return 0.0 if self.price is None else self.price.least * self.seconds_per_token

    @property
    def seconds_left(self) -> float | None:
        if self.budget is not None and self.budget.unit == SECONDS:
            return max(0.0, self.budget.amount - (progress.clock() - self.begun))
        rate = self.seconds_per_token
        return max(0, self.most - self.tokens + self.running) * rate if self.most and rate else None

    @property
    def _where_clear(self) -> str:
        """When a call takes no more than the least; empty where that is not so simple."""
        return "" if self.name.startswith("measure_") else " if the first look is clear"

    def left(self) -> str:
        """The most that is left, after what is left if the first look is clear: the most alone reads as if it took that."""
        most = self.seconds_left
        if most is None:
            return ""
        first = 0 if self.price is None else (self.price.least - self.tokens + self.running) * self.seconds_per_token
        if first <= 0 or 2 * first > most or not self._where_clear:
            return f"at most {duration(most)} left"
        return f"{duration(first)} left{self._where_clear}, at most {duration(most)}"

    @property
    def larger_budget(self) -> str:
        """What to give a call whose budget was spent before anything was known: what it takes at least, or twice as much."""
        least = 0 if self.price is None else self.price.least
        if self.budget is not None and self.budget.unit == SECONDS:
            return f'"{2 * self.budget.amount:g} s" or more'
        allowed = 0 if self.budget is None else 2 * self.budget.amount
        return f'"{max(math.ceil(least / BARE_PASS), math.ceil(allowed))} passes" or more'

    @property
    def most(self) -> int:
        """The most tokens that it may run; 0 where that is not known."""
        most = 0 if self.price is None else self.price.most
        if self.budget is not None and self.budget.unit == PASSES:
            allowed = round(self.budget.amount * BARE_PASS)
            return min(most, allowed) if most else allowed
        return most

    def announced(self) -> str:
        """What it takes where it is clear at the first look, and at most: the most alone reads as if it took that."""
        least = min(self.price.least if self.price else 0, self.most)
        first, all_of_it = (
            f"{in_passes(tokens)}{unit} ({about}{duration(tokens * self.seconds_per_token)})"
            for tokens, unit, about in ((least, " bare passes", "about "), (self.most, "", ""))
        )
        cost = first if least == self.most else f"{first}{self._where_clear or ' or more'}, at most {all_of_it}"
        return f"{self.name} on {self.subject.name}: {cost}"

    def so_far(self) -> str:
        of = f" of at most {in_passes(self.most)}" if self.most else ""
        return f"about {in_passes(self.tokens - self.running)}{of} bare passes"

    def with_outer(self) -> Iterator[Call]:
        """This call and those that it is a part of."""
        call: Call | None = self
        while call is not None:
            yield call
            call = call.outer


NOTE = "budget "  # how a note begins
_call: ContextVar[Call | None] = ContextVar("induction_call", default=None)
_rates: WeakKeyDictionary[Any, float] = WeakKeyDictionary()  # seconds a token, of the last call on a module


def charge(subject: Any, tokens: int) -> None:
    """A model under test is about to run so many tokens. Raises `BudgetSpent` where they are more than is left."""
    call = _call.get()
    if call is None:
        return
    for each in call.with_outer():
        each.begin(subject)
        each.check(tokens)
    for each in call.with_outer():
        each.tokens += tokens
        each.running = tokens
    progress.tick()


@contextmanager
def calling(name: str, price_of: Callable[[Any], Price | None]) -> Iterator[Call]:
    """Count what is run inside the block as the cost of a call, and as that of those which it is a part of."""
    call = Call(name, price_of, _call.get())
    token = _call.set(call)
    try:
        with watching(call):
            yield call
    finally:
        _call.reset(token)
        call.running = 0
        if call.tokens >= ENOUGH:
            _rates[call.subject.module] = call.seconds_per_token


def spend_at_most(budget: float | str | None) -> None:
    """Let the call that is under way spend no more than this. Raises `ArgumentError` for what is no budget."""
    call = _call.get()
    if budget is not None and call is not None:
        call.budget = Budget.of(budget)


def call_under_way() -> Call | None:
    """The innermost call, if there is one."""
    return _call.get()


def budgets() -> list[Call]:
    """The calls under way that have a budget, innermost first."""
    call = _call.get()
    return [] if call is None else [each for each in call.with_outer() if each.budget is not None]


def affordable(wanted: int, each: float) -> int:
    """How many of so many, of which one takes so many tokens, are within every budget; fewer spend it."""
    found = wanted
    for call in budgets():
        room = call.room / each if each > 0 else math.inf
        if room < found:
            found, call.is_spent = max(0, int(room)), True
    return found


def within_budget(measure: Callable[[], R], otherwise: R) -> R:
    """What `measure` gives, or something else where a budget has no room for it: for what is reported beside a verdict."""
    try:
        return measure()
    except BudgetSpent:
        return otherwise


def spent_so_far() -> int:
    """Tokens that were run in the call under way."""
    call = _call.get()
    return 0 if call is None else call.tokens


def notes() -> tuple[str, ...]:
    """What is to be known of a measurement that has a budget."""
    found = []
    for call in budgets():
        by_clock = ": what it lets be measured depends on the machine" if call.budget and call.budget.unit == SECONDS else ""
        found.append(f"{NOTE}{'spent' if call.is_spent else 'given'}: {call.budget}{by_clock}")
    return tuple(found)


def joined_notes(later: Iterable[str], earlier: Iterable[str]) -> tuple[str, ...]:
    """Notes of two measurements in one call, each once; what was said of the budget before does not hold any more."""
    return tuple(dict.fromkeys((*later, *(note for note in earlier if not note.startswith(NOTE)))))


def what_more(tokens: float, what: str) -> str:
    """What would tell after a budget was spent: so many tokens more, which are `what`."""
    spent = next((call for call in budgets() if call.is_spent), None)
    if spent is None:
        return ""
    whole = math.ceil((spent.tokens + tokens) / BARE_PASS)
    return f'budget spent: {spent.budget}; {what}: budget="{whole} passes"'


def priced(price: PriceOf) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Have a public call state its price, and count what it runs. Where a budget is spent before anything is known, it raises."""

    def of(function: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(function)
        def called(*args: P.args, **kwargs: P.kwargs) -> R:
            __tracebackhide__ = True
            with calling(function.__name__, lambda subject: price_in(function, price, subject, args, kwargs)) as call:
                try:
                    return function(*args, **kwargs)
                except BudgetSpent as spent:
                    if spent.call is not call:
                        raise
            raise ArgumentError(f"`budget` of {call.budget} is spent before anything is known: give it {call.larger_budget}")

        PRICES[function.__name__] = (called, price)
        return called

    return of


def price_in(
    function: Callable[..., Any], price: PriceOf, subject: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Price | None:
    """The price of a call with these arguments; None where it cannot be told."""
    given = inspect.signature(function).bind(*args, **kwargs)
    given.apply_defaults()
    try:
        return price(subject, given.arguments)
    except (InductionError, TypeError, ValueError):  # whatever is wrong with an argument, the call says it
        return None


def usual_prices(subject: Any) -> dict[str, Price]:
    """The price of every call on a model with its default arguments, by name; without calls that cannot be made on it."""
    found = {}
    for name, (function, price) in sorted(PRICES.items()):
        parameters = inspect.signature(function).parameters.values()
        given = {each.name: None if each.default is each.empty else each.default for each in parameters}
        try:
            found[name] = price(subject, given)
        except InductionError:
            continue
    return found
