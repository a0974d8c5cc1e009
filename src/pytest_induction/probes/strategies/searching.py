"""The search over examples, in batches: each of hypothesis's test cases is a batch of examples and takes one evaluation."""

from __future__ import annotations

import functools
import inspect
import math
import sys
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext, suppress
from random import Random
from threading import Event
from types import SimpleNamespace
from typing import Any, Generic, NamedTuple, TypeVar
from unittest.mock import patch

from hypothesis import HealthCheck, Phase, currently_in_test_context, find, given, settings, target
from hypothesis import strategies as st
from hypothesis.database import ExampleDatabase, InMemoryExampleDatabase
from hypothesis.errors import InvalidArgument, NoSuchExample, Unsatisfiable, UnsatisfiedAssumption
from hypothesis.strategies import SearchStrategy

from pytest_induction import alarms
from pytest_induction.errors import ArgumentError, InductionError
from pytest_induction.formatting import printable
from pytest_induction.probes.sequences import line
from pytest_induction.probes.strategies.drawing import APART

E = TypeVar("E")
SECONDARY = b".secondary"  # behind a key: what hypothesis tries first and, unlike what lies under the key itself, shrinks further


class Replays(Generic[E]):
    """Examples that failed in any of several searches, with the choices that hypothesis made for them.

    With `keep` those that the hypothesis profile has in its database under the key, from an earlier session, are among them, and
    what is found is left there for the next.
    """

    def __init__(self, key: bytes, *, keep: bool) -> None:
        self.key = key
        self.begin: E | None = None  # the example that the next search is to shrink from
        self._kept: ExampleDatabase | None = settings().database if keep else None
        self._before = () if self._kept is None else tuple(sorted(self._kept.fetch(key)))
        self._choices: dict[E, bytes] = {}
        self._found: set[bytes] = set()

    def earlier(self, batches: SearchStrategy[tuple[E, ...]]) -> list[E]:
        """The examples that an earlier session left; no model is asked."""
        for choices in self._before:
            drawn = _made_of(batches, choices)
            if drawn:
                self._choices.setdefault(drawn[0], choices)
        return list(self._choices)

    def database(self) -> ExampleDatabase:
        """For one search: where it is to begin with an example, it tries that one first and shrinks it."""
        made = InMemoryExampleDatabase()
        if self.begin is not None and self.begin in self._choices:
            made.save(self.key + SECONDARY, self._choices[self.begin])
        return made

    def take(self, found: E | None, searched: ExampleDatabase, batches: SearchStrategy[tuple[E, ...]]) -> E | None:
        """Keep what a search ended with, and return it; also where it was ended before a failure was shrunk all the way."""
        for choices in sorted(searched.fetch(self.key)):
            if found is None:
                found = next(iter(_made_of(batches, choices)), None)
            if found is not None:
                self._choices[found] = choices
            self._found.add(choices)
            if self._kept is not None:
                self._kept.save(self.key, choices)
        return found

    def tidy(self) -> None:
        """After the last search: let go of what an earlier session left and this one did not end with."""
        if self._kept is not None:
            for choices in self._before:
                if choices not in self._found:
                    self._kept.delete(self.key, choices)


def _made_of(batches: SearchStrategy[tuple[E, ...]], choices: bytes) -> tuple[E, ...]:
    """What a strategy makes of choices that were kept; nothing where it is another strategy by now."""
    database, key = InMemoryExampleDatabase(), b"kept"
    database.save(key, choices)
    seen: list[tuple[E, ...]] = []

    def note(batch: tuple[E, ...]) -> bool:
        seen.append(batch)
        return False

    only = settings(
        max_examples=1,
        database=database,
        derandomize=False,
        deadline=None,
        phases=[Phase.reuse],
        suppress_health_check=list(HealthCheck),
    )
    with suppress(NoSuchExample):
        find(batches, note, settings=only, database_key=key)
    return seen[0] if seen else ()


class KeptApart(ExampleDatabase):
    """A part of another database, of one of the models that a test runs on: what does not fail there is forgotten there alone."""

    def __init__(self, whole: ExampleDatabase, about: bytes) -> None:
        super().__init__()
        self._whole, self._about = whole, about

    def save(self, key: bytes, value: bytes) -> None:
        self._whole.save(self._of(key), value)

    def fetch(self, key: bytes) -> Iterable[bytes]:
        return self._whole.fetch(self._of(key))

    def delete(self, key: bytes, value: bytes) -> None:
        self._whole.delete(self._of(key), value)

    def _of(self, key: bytes) -> bytes:
        return self._about + b" " + key


Strategy = SearchStrategy
Rejected = UnsatisfiedAssumption
BATCH = 64  # examples of a test case at most,
MOST_DRAWN = 2200  # and the ids drawn for them: hypothesis has room for 8 kB of choices, of which an id takes up to 3 bytes
MORE = st.integers(0, 255)  # 0 ends a batch: rare, but what it shrinks to
FULL = 0.5  # how full of new examples batches are on the average: hypothesis makes some that are small, and many twice;
LEAST_FULL = 0.1  # and at least
ROUNDS = 20  # of a search, until its budget is spent
CARRIER = "induction_carrier"  # marks a function that stands for a test
OWN = (CARRIER, "is_hypothesis_test", "hypothesis", "__wrapped__", "__signature__")  # what a carrier has of itself
SLOW = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example]  # what a model and a batch are,
SLOW += [check for check in HealthCheck if check.name == "nested_given"]  # and a search within a test


class Examples(tuple[E, ...], Generic[E]):
    """The examples of one test case; prints as what it holds."""

    __slots__ = ()

    def __repr__(self) -> str:
        return repr(self[0]) if len(self) == 1 else f"{len(self)} examples: {', '.join(map(repr, self))}"


def batches(examples: SearchStrategy[E], size: int = BATCH) -> SearchStrategy[Examples[E]]:
    """Up to `size` examples at a time, mostly as many, fewer of long ones; one where it shrinks."""

    @st.composite
    def drawn(draw: st.DrawFn) -> Examples[E]:
        found = [draw(examples)]
        ids = _drawn(found[0])
        while len(found) < size and ids + ids // len(found) <= MOST_DRAWN and draw(MORE):
            found.append(draw(examples))
            ids += _drawn(found[-1])
        return Examples(found)

    return drawn()


def fitting(examples: SearchStrategy[E], most: int) -> int:
    """How many examples like these make a batch: as many as there is room for, at most `most`."""
    counts: list[int] = []

    def looked_at(example: E) -> bool:
        counts.append(_drawn(example))
        return False

    few = settings(max_examples=2, database=None, deadline=None, phases=[Phase.generate])
    with suppress(NoSuchExample):
        find(examples, looked_at, settings=few, random=Random(0))  # noqa: S311 - what hypothesis takes
    return even(most, max(1, min(most, BATCH, MOST_DRAWN // max(counts, default=1))))


def even(most: int, size: int) -> int:
    """The size of batches, at most that large, of which the last is not drawn for a few."""
    return math.ceil(most / math.ceil(most / size))


def _drawn(example: object) -> int:
    """How many ids were drawn for an example at most, and 1 for one that is no sequence of them."""
    if isinstance(example, tuple):
        return sum(map(_drawn, example))
    return len(set(getattr(example, "tokens", (0,))))


class Judged(NamedTuple, Generic[E]):
    """Of a batch: an example that fails, if one does, and the least margin by which one holds, where that is known.

    `ends` says that a failure was shrunk enough, and that the search is over.
    """

    failed: E | None
    margin: float | None
    ends: bool = False


def search(
    examples: SearchStrategy[E],
    judge: Callable[[Sequence[E]], Judged[E]],
    *,
    max_examples: int,
    seed: int | None = None,
    key: bytes | None = None,
    climb: bool = False,
    replays: Replays[E] | None = None,
) -> E | None:
    """The smallest example that fails, or None where `max_examples` all hold.

    With `seed` the search is the same each time; without, the profile's settings say so, and failures are kept in the example
    database under `key` and tried first the next time. With `climb` half of the examples are not drawn at random but near those
    of least margin, one by one. With `replays` these take the place of the profile's database.
    """
    if currently_in_test_context():  # hypothesis wants no test within a test; in a thread of its own there is none around
        options = {"max_examples": max_examples, "seed": seed, "key": key, "climb": climb, "replays": replays}
        stopped = Event()

        def judge_until_stopped(batch: Sequence[E]) -> Judged[E]:
            return Judged(None, None, ends=True) if stopped.is_set() else judge(batch)

        with alarms.getting_through(further=True), ThreadPoolExecutor(1) as apart:
            searched = apart.submit(lambda: search(examples, judge_until_stopped, **options))  # type: ignore[arg-type]
            try:
                return searched.result()
            except BaseException:  # of an alarm or of Ctrl-C, which only this thread hears of
                stopped.set()
                raise
    if climb and max_examples > 1:
        most = max_examples - max_examples // 2
        found = search(examples, judge, max_examples=most, seed=seed, key=key, replays=replays)
        if found is not None:
            return found
        before = APART.set(True)
        try:
            return _search(examples, judge, max_examples // 2, 1, seed=seed, key=key and key + b" climbing")
        finally:
            APART.reset(before)
    size = even(max_examples, BATCH)
    if replays is None:
        return _search(examples, judge, max_examples, size, seed=seed, key=key)
    database = replays.database()
    found = _search(examples, judge, max_examples, size, seed=seed, key=replays.key, database=database)
    return replays.take(found, database, batches(examples, size))


def _search(
    examples: SearchStrategy[E],
    judge: Callable[[Sequence[E]], Judged[E]],
    max_examples: int,
    size: int,
    *,
    seed: int | None,
    key: bytes | None,
    database: ExampleDatabase | None = None,
) -> E | None:
    """The search in batches of so many; where they are of one each, towards the least margin."""
    budget = Budget(max_examples, ends=True)

    def fails(batch: Examples[E]) -> bool:
        judged: Judged[E] = judge(budget.take(batch))
        if judged.ends:
            raise Spent
        budget.failing = budget.failing or judged.failed is not None
        if size == 1 and judged.margin is not None and math.isfinite(judged.margin):
            target(-judged.margin, label="nearest to failing")
        return judged.failed is not None

    profile = settings()
    if database is not None:
        seed = 0 if seed is None and profile.derandomize else seed  # which allows no database
        profile = settings(profile, database=database, derandomize=False)
    seeds = [seed, *range(1, ROUNDS)] if seed is not None or profile.derandomize else [None] * ROUNDS
    seen = -1
    for number, each in enumerate(seeds):
        random = None if each is None else Random(each + 1_000_003 * number)  # noqa: S311 - what hypothesis takes
        chosen = _settings(profile, max_examples, size, full=FULL)
        try:
            with alarms.getting_through(), nullcontext() if each is None else drawing_from_no_code():
                smallest = find(batches(examples, size), fails, settings=chosen, random=random, database_key=key)
        except NoSuchExample:
            if budget.is_spent or budget.n_seen == seen:  # or there are no others
                return None
            seen = budget.n_seen
        except Spent:
            return None
        else:
            return judge(smallest).failed
    return None


@contextmanager
def drawing_from_no_code() -> Iterator[None]:
    """What is drawn inside the block depends on the seed alone.

    One number in twenty hypothesis takes from the constants in the code of whatever local modules the process has loaded so far:
    without this, the same seed would find other failures where other tests ran before.
    """
    providers: Any = sys.modules.get("hypothesis.internal.conjecture.providers")
    provider = getattr(providers, "HypothesisProvider", None)
    if not hasattr(provider, "_local_constants"):  # of an older hypothesis, which takes none
        yield
        return
    with patch.object(provider, "_local_constants", providers.Constants()):
        providers.CONSTANTS_CACHE.cache.clear()  # of this thread
        try:
            yield
        finally:
            providers.CONSTANTS_CACHE.cache.clear()


def warm_up() -> None:
    """Search once, for nothing: what hypothesis does once in a process takes a quarter of a second."""
    chosen = settings(max_examples=1, database=None, deadline=None, phases=[Phase.generate])
    with suppress(NoSuchExample):
        find(st.just(0), lambda _: False, settings=chosen, random=Random(0))  # noqa: S311 - what hypothesis takes


class Spent(BaseException):
    """Ends a search whose budget is spent; no `except Exception` of hypothesis's takes it for a failure."""


class Budget:
    """How many different examples may be judged; as many as shrinking takes once one has failed."""

    def __init__(self, most: int, *, ends: bool = False) -> None:
        self._most, self._ends = most, ends
        self._seen: set[object] = set()
        self.failing = False

    @property
    def n_seen(self) -> int:
        return len(self._seen)

    @property
    def is_spent(self) -> bool:
        return len(self._seen) >= self._most

    def take(self, batch: Examples[E]) -> Examples[E]:
        """The batch, without what is new in it and the budget does not allow."""
        if self.failing:
            return batch
        if self.is_spent and self._ends:
            raise Spent
        taken = []
        for example in batch:
            if not isinstance(example, Hashable):
                raise ArgumentError(f"`probes` must be of `ProbeSequence`, or tuples of them, got `{type(example).__name__}`")
            if example in self._seen or len(self._seen) < self._most:
                self._seen.add(example)
                taken.append(example)
        return Examples(taken)


def _settings(chosen: settings, max_examples: int, size: int, *, full: float) -> settings:
    """The user's settings for so many examples in batches of that size, without what a slow model cannot keep or afford."""
    return settings(
        chosen,
        max_examples=math.ceil(max_examples / (full * size)) if size > 1 else max_examples,
        deadline=None,
        report_multiple_bugs=False,
        phases=[phase for phase in chosen.phases if phase is not Phase.explain],
        suppress_health_check={*chosen.suppress_health_check, *SLOW},
    )


def carry(outer: Callable[..., Any]) -> None:
    """Let hypothesis and pytest take a function for a test of theirs, so that `@settings`, `@seed` and `@example` fit on it."""

    def never_run() -> None:
        """Stands for the test where a decorator writes something on it."""

    outer.__dict__ |= {CARRIER: True, "is_hypothesis_test": True, "hypothesis": SimpleNamespace(inner_test=never_run)}


def allow_fixtures(carrier: Callable[..., Any]) -> None:
    """Let the test have fixtures of function scope: what is generated does not change them. After all decorators are on it."""

    @settings()
    def example() -> None:
        """Shows where the decorator keeps what it is given."""

    place = next(name for name, value in vars(example).items() if isinstance(value, settings))
    own = vars(carrier).get(place, settings())
    suppressed = {*own.suppress_health_check, HealthCheck.function_scoped_fixture, HealthCheck.differing_executors}
    carrier.__dict__[place] = settings(own, suppress_health_check=suppressed)


def run_given(
    carrier: Callable[..., Any],
    test: Callable[..., Any],
    argument: str,
    examples: SearchStrategy[E],
    evaluate: Callable[[Sequence[E]], Sequence[Any]],
    *,
    size: int | None = None,
    about: str = "",
) -> None:
    """Run `test` on what `evaluate` gives for each example of a batch, as hypothesis runs a test.

    What decorators left on `carrier` holds: settings, seed, explicit examples. Hypothesis knows the test, in its database and
    reports, by the name and source of the function that `carrier` wraps. Where one test runs on several models, `about` says on
    which: failures of each are kept apart, and say so.
    """
    __tracebackhide__ = True
    left = {name: value for name, value in vars(carrier).items() if name not in OWN}
    own = next((value for value in left.values() if isinstance(value, settings)), settings())
    if about and own.database is not None and not own.derandomize:
        own = settings(own, database=KeptApart(own.database, about.encode()))
    size = fitting(examples, min(size or BATCH, own.max_examples))
    looked = Looked(test, evaluate, Budget(own.max_examples), about)

    def run(*values: Any, **named: Any) -> None:
        __tracebackhide__ = True
        looked.at(*values, *named.values())

    test_of_batches = functools.wraps(inspect.unwrap(carrier), updated=())(run)
    test_of_batches.__dict__ |= vars(vars(carrier)["hypothesis"].inner_test)
    parameter = inspect.Parameter(argument, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    test_of_batches.__dict__["__signature__"] = inspect.Signature([parameter])
    prepared = _settings(own, own.max_examples, size, full=LEAST_FULL)(
        given(**{argument: batches(examples, size)})(test_of_batches)
    )
    prepared.__dict__ |= {name: value for name, value in left.items() if not isinstance(value, settings)}
    with alarms.getting_through():
        prepared()
    looked.check()


class Looked(Generic[E]):
    """What a test said of the examples that it looked at so far."""

    def __init__(
        self, test: Callable[..., Any], evaluate: Callable[[Sequence[E]], Sequence[Any]], budget: Budget, about: str = ""
    ) -> None:
        self._test, self._evaluate, self._budget, self._about = test, evaluate, budget, about
        self._held: set[E] = set()
        self._failed: set[E] = set()
        self._rejected: set[E] = set()
        self._broken: Exception | None = None  # of the model, the arguments or the test itself: no smaller example tells more

    def at(self, drawn: Any) -> None:
        """Run the test on a batch, or on an explicit example: on what is new of it, or on one that is known to fail."""
        __tracebackhide__ = True
        batch = self._budget.take(drawn) if isinstance(drawn, Examples) else Examples([drawn])
        known = [example for example in batch if example in self._failed]
        chosen = known[:1] or [each for each in dict.fromkeys(batch) if each not in self._held or len(batch) == 1]
        if self._broken is not None or self._rejected.issuperset(chosen):
            return
        try:
            for example, outcome in zip(chosen, self._evaluate(chosen), strict=True):
                self._one(example, outcome)
        except (InductionError, InvalidArgument) as error:
            if isinstance(error, InvalidArgument) and len(batch) > 1:
                error.add_note("a test case is a batch of examples here; with `batch=1` it is one, as hypothesis has it")
            self._broken = error

    def _one(self, example: E, outcome: Any) -> None:
        __tracebackhide__ = True
        try:
            returned = self._test(outcome)
        except UnsatisfiedAssumption:
            self._rejected.add(example)
        except (InductionError, InvalidArgument):
            raise
        except BaseException as error:  # what pytest fails a test with is no Exception
            self._budget.failing = True
            self._failed.add(example)
            where = f" at {printable(self._about)}" if self._about else ""
            error.add_note(f"failing probe{where}: {example!r}\nto try it first from now on: @example({line(example)})")
            raise
        else:
            if returned is not None:
                raise ArgumentError(f"a test must assert and return nothing, it returned `{type(returned).__name__}`")
            self._held.add(example)

    def check(self) -> None:
        """Raise what broke the run, or `Unsatisfiable` where the test took no example."""
        __tracebackhide__ = True
        if self._broken is not None:
            raise self._broken.with_traceback(None) from None
        if self._rejected and not self._held:
            raise Unsatisfiable(f"the test looked at no example: `assume` rejected all {len(self._rejected)}")
