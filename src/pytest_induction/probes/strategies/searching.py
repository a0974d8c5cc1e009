"""The search over examples, in batches: each of hypothesis's test cases is a batch of examples and takes one evaluation.

So generation, targets, the database, replay and shrinking are hypothesis's own, by its public interface. A batch shrinks to the
one example in it that fails, and then that example shrinks by itself.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from random import Random
from types import SimpleNamespace
from typing import Any, Generic, NamedTuple, TypeVar

from hypothesis import HealthCheck, Phase, find, given, reject, settings, target
from hypothesis import strategies as st
from hypothesis.errors import InvalidArgument, NoSuchExample, UnsatisfiedAssumption
from hypothesis.strategies import SearchStrategy

from pytest_induction.errors import InductionError
from pytest_induction.probes.strategies.drawing import APART

E = TypeVar("E")
Strategy = SearchStrategy
BATCH = 96  # examples of a test case at most,
MOST_DRAWN = 2200  # and the ids drawn for them: hypothesis has room for 8 kB of choices, of which an id takes up to 3 bytes
MORE = st.integers(0, 255)  # 0 ends a batch: rare, but what it shrinks to
FULL = 0.2  # how full batches are at least, on the average: hypothesis makes some that are small, and some twice
CARRIER = "induction_carrier"  # marks a function that stands for a test
OWN = (CARRIER, "is_hypothesis_test", "hypothesis", "__wrapped__", "__signature__")  # what a carrier has of itself
SLOW = (HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example)  # what a model and a batch are


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
        while len(found) < size and ids < MOST_DRAWN and draw(MORE):
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

    few = settings(max_examples=5, database=None, deadline=None, phases=[Phase.generate])
    with suppress(NoSuchExample):
        find(examples, looked_at, settings=few, random=Random(0))  # noqa: S311 - what hypothesis takes
    return max(1, min(most, BATCH, MOST_DRAWN // max(counts, default=1)))


def _drawn(example: object) -> int:
    """How many ids were drawn for an example at most, and 1 for one that is no sequence of them."""
    if isinstance(example, tuple):
        return sum(map(_drawn, example))
    return len(set(getattr(example, "tokens", (0,))))


class Judged(NamedTuple, Generic[E]):
    """Of a batch: an example that fails, if one does, and the least margin by which one holds, where that is known."""

    failed: E | None
    margin: float | None


def search(
    examples: SearchStrategy[E],
    judge: Callable[[Sequence[E]], Judged[E]],
    *,
    max_examples: int,
    seed: int | None = None,
    key: bytes | None = None,
    climb: bool = False,
) -> E | None:
    """The smallest example that fails, or None where `max_examples` all hold.

    With `seed` the search is the same each time; without, the profile's settings say so, and failures are kept in the example
    database under `key` and tried first the next time. With `climb` half of the examples are not drawn at random but near those
    of least margin, one by one.
    """
    if climb and max_examples > 1:
        found = search(examples, judge, max_examples=max_examples - max_examples // 2, seed=seed, key=key)
        if found is not None:
            return found
        before = APART.set(True)
        try:
            return _search(examples, judge, max_examples // 2, 1, seed=seed, key=key and key + b" climbing")
        finally:
            APART.reset(before)
    return _search(examples, judge, max_examples, fitting(examples, max_examples), seed=seed, key=key)


def _search(
    examples: SearchStrategy[E],
    judge: Callable[[Sequence[E]], Judged[E]],
    max_examples: int,
    size: int,
    *,
    seed: int | None,
    key: bytes | None,
) -> E | None:
    """The search in batches of so many; where they are of one each, towards the least margin."""
    budget = Budget(max_examples, ends=True)

    def fails(batch: Examples[E]) -> bool:
        judged: Judged[E] = judge(budget.take(batch))
        budget.failing = budget.failing or judged.failed is not None
        if size == 1 and judged.margin is not None and math.isfinite(judged.margin):
            target(-judged.margin, label="nearest to failing")
        return judged.failed is not None

    chosen = _settings(settings(), max_examples, size)
    random = None if seed is None else Random(seed)  # noqa: S311 - what hypothesis takes
    try:
        smallest = find(batches(examples, size), fails, settings=chosen, random=random, database_key=key)
    except (NoSuchExample, Spent):
        return None
    return judge(smallest).failed


class Spent(BaseException):
    """Ends a search whose budget is spent; no `except Exception` of hypothesis's takes it for a failure."""


class Budget:
    """How many more examples may be judged; as many as shrinking takes once one has failed."""

    def __init__(self, most: int, *, ends: bool = False) -> None:
        self._left, self._ends = most, ends
        self.failing = False

    def take(self, batch: Examples[E]) -> Examples[E]:
        """The batch, or what the budget leaves of it."""
        if self.failing:
            return batch
        if not self._left and self._ends:
            raise Spent
        taken = Examples(batch[: self._left])
        self._left -= len(taken)
        return taken


def _settings(chosen: settings, max_examples: int, size: int) -> settings:
    """The user's settings for so many examples in batches of that size, without what a slow model cannot keep or afford."""
    return settings(
        chosen,
        max_examples=math.ceil(max_examples / (FULL * size)) if size > 1 else max_examples,
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
) -> None:
    """Run `test` on what `evaluate` gives for each example of a batch, as hypothesis runs a test.

    What decorators left on `carrier` holds: settings, seed, explicit examples. Hypothesis knows the test, in its database and
    reports, by the name and source of the function that `carrier` wraps.
    """
    __tracebackhide__ = True
    left = {name: value for name, value in vars(carrier).items() if name not in OWN}
    own = next((value for value in left.values() if isinstance(value, settings)), settings())
    budget = Budget(own.max_examples)
    size = fitting(examples, min(size or BATCH, own.max_examples))
    held: set[E] = set()
    failed: set[E] = set()
    broken: list[InductionError] = []  # of the model or the arguments: no smaller example tells more

    def run(drawn: Any) -> None:
        __tracebackhide__ = True
        batch = budget.take(drawn) if isinstance(drawn, Examples) else Examples([drawn])  # one alone is an explicit example
        known = [example for example in batch if example in failed]
        chosen = known[:1] or [example for example in dict.fromkeys(batch) if example not in held or len(batch) == 1]
        rejected = 0
        try:
            for example, outcome in zip(chosen, () if broken else evaluate(chosen), strict=not broken):
                try:
                    _run_one(test, example, outcome, len(batch))
                except UnsatisfiedAssumption:
                    rejected += 1
                except InductionError:
                    raise
                except BaseException:  # what pytest fails a test with is no Exception
                    budget.failing = True
                    failed.add(example)
                    raise
                else:
                    held.add(example)
        except InductionError as error:
            broken.append(error)
        if chosen and rejected == len(chosen):
            reject()

    named = functools.wraps(inspect.unwrap(carrier), updated=())(run)
    named.__dict__ |= vars(vars(carrier)["hypothesis"].inner_test)
    parameter = inspect.Parameter(argument, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    named.__dict__["__signature__"] = inspect.Signature([parameter])
    prepared = _settings(own, own.max_examples, size)(given(**{argument: batches(examples, size)})(named))
    prepared.__dict__ |= {name: value for name, value in left.items() if not isinstance(value, settings)}
    prepared()
    if broken:
        raise broken[0].with_traceback(None) from None


def _run_one(test: Callable[..., Any], example: object, outcome: Any, together: int) -> None:
    """Run the test on one outcome; what it raises says which example it was, and how to try that first."""
    __tracebackhide__ = True
    try:
        test(outcome)
    except UnsatisfiedAssumption:
        raise
    except InvalidArgument as error:
        if together > 1:
            error.add_note("a test case is a batch of examples here; with `batch=1` it is one, as hypothesis has it")
        raise
    except InductionError:
        raise
    except BaseException as error:
        error.add_note(f"failing probe: {example!r}\nto try it first from now on: @example({line(example)})")
        raise


def line(example: object) -> str:
    """Python that makes the example again."""
    if isinstance(example, tuple):
        return f"({', '.join(map(line, example))})"
    return str(getattr(example, "line", repr(example)))
