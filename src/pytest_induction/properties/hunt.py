"""The hunt: one property and one model, and what has been seen of the one on the other, example after example."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterable, Sequence
from numbers import Real
from typing import Any

from pytest_induction.behaviour.outcomes import Outcome, evaluate_probes
from pytest_induction.errors import ArgumentError, InductionError, whole_number
from pytest_induction.model.protocol import ModelUnderTest
from pytest_induction.probes import strategies
from pytest_induction.probes.sequences import ProbeSequence
from pytest_induction.probes.strategies.searching import Judged, Rejected, Replays, Strategy, search
from pytest_induction.properties.claims import Example, PropertyClaim
from pytest_induction.properties.ready import PROBES

MOST_KEPT = 4096  # outcomes that are remembered while a failure shrinks


class Evaluator:
    """What a model does on examples, a batch at a time; nothing is run twice."""

    def __init__(self, subject: ModelUnderTest) -> None:
        self._subject = subject
        self._known: dict[ProbeSequence, Outcome] = {}

    def __call__(self, examples: Sequence[Example]) -> list[Any]:
        """An outcome for each sequence, a tuple of them for each tuple."""
        sequences = [each for example in map(_checked, examples) for each in sequences_of(example)]
        new = [each for each in dict.fromkeys(sequences) if each not in self._known]
        if len(self._known) + len(new) > MOST_KEPT:
            self._known.clear()
            new = list(dict.fromkeys(sequences))
        if new:
            self._known |= zip(new, evaluate_probes(self._subject, new), strict=True)
        return [
            tuple(self._known[each] for each in example) if isinstance(example, tuple) else self._known[example]
            for example in examples
        ]


class Hunt:
    """One property, one model, and what has been seen of the one on the other.

    With `most_shrinks` a failure is shrunk by so many examples at most.
    """

    def __init__(self, subject: ModelUnderTest, claim: PropertyClaim, *, most_shrinks: int | None = None) -> None:
        self.subject, self.claim, self.name = subject, claim, claim.name
        self._most_shrinks, self._shrunk = most_shrinks, 0
        self._margins: dict[Example, float | None] = {}
        self._broken: InductionError | None = None  # of the model or the arguments: no smaller example tells more
        self._evaluate = Evaluator(subject)
        self._failures: dict[Example, str] = {}  # of those that failed

    def search(
        self, examples: Strategy[Example], most: int, seed: int | None, *, climb: bool, replays: Replays[Example] | None = None
    ) -> Example | None:
        """The smallest example that fails, or None."""
        number = None if seed is None else whole_number("seed", seed, least=0)
        key = self.claim.key(f"{examples!r} {self.subject.name}")
        return self._unless_broken(
            search(examples, self.judge, max_examples=most, seed=number, key=key, climb=climb, replays=replays)
        )

    def look_at(self, examples: Sequence[Example]) -> Example | None:
        """One of just these that fails, or None. Raises as `search` what is wrong with the model or the arguments."""
        return self._unless_broken(self.judge(examples).failed)

    def _unless_broken(self, failed: Example | None) -> Example | None:
        if self._broken is not None:
            raise self._broken
        return failed

    def judge(self, examples: Sequence[Example]) -> Judged[Example]:
        """Whether the property holds on each of these; an example that fails, and the least margin."""
        known = next((example for example in examples if example in self._failures), None)
        if known is not None or self._broken is not None:
            return Judged(known, None)
        try:
            new = [example for example in dict.fromkeys(map(_checked, examples)) if example not in self._margins]
            if self._failures and self._most_shrinks is not None:
                self._shrunk += len(new)
                if self._shrunk > self._most_shrinks:
                    return Judged(None, None, ends=True)
            for example, outcome in zip(new, self._evaluate(new), strict=True):
                self._margins[example] = self._margin(example, outcome)
        except InductionError as error:
            self._broken = error
            return Judged(None, None)
        failed = next((example for example in new if example in self._failures), None)
        margins = [self._margins[example] for example in examples]
        return Judged(failed, min((margin for margin in margins if margin is not None), default=None))

    @property
    def n_examples(self) -> int:
        """Different ones, so far."""
        return len(self._margins)

    @property
    def failing(self) -> list[Example]:
        """All that failed, in the order in which they were seen."""
        return list(self._failures)

    def nearest(self, count: int) -> list[Example]:
        """So many that hold by the least, where the property says by how much; else the first that were looked at."""
        held = [(math.inf if margin is None else margin, example) for example, margin in self._margins.items()]
        return [example for _, example in sorted(held, key=lambda each: each[0]) if example not in self._failures][:count]

    @property
    def worst(self) -> tuple[float | None, Example | None]:
        """The least margin, and the example that has it."""
        known = [(margin, example) for example, margin in self._margins.items() if margin is not None and math.isfinite(margin)]
        return min(known, key=lambda entry: entry[0], default=(None, None))

    def _margin(self, example: Example, outcome: Any) -> float | None:
        try:
            found = self.claim(outcome)
        except Rejected:
            return math.inf  # asks nothing
        except AssertionError as error:
            self._failures[example] = str(error) or f"`{self.name}` raised an assertion error"
            return None
        if getattr(found, "ndim", None) == 0:  # a tensor's or an array's number
            found = found.item()
        if found is None or isinstance(found, bool):
            margin = None if found is None or found else -1.0
        elif isinstance(found, Real):
            margin = float(found)
        else:
            raise ArgumentError(
                f"`{self.name}` must return nothing, True, False or a number, it returned `{type(found).__name__}`"
            )
        if margin is not None and not margin >= 0:
            self._failures[example] = f"`{self.name}` returned {found}; on {example!r}"
        return margin

    def check_asked(self) -> None:
        """Raise `ArgumentError` where the property asked nothing of any example: then nothing was shown to hold."""
        if self._margins and all(margin == math.inf for margin in self._margins.values()):
            raise ArgumentError(f"`{self.name}` asked nothing of any of these {self.n_examples} examples: give other `probes`")

    def failure(self, example: Example) -> str:
        """Why an example fails."""
        return self._failures[example]


def _checked(example: Any) -> Example:
    """The example, if it is a sequence or a tuple of them."""
    for each in example if isinstance(example, tuple) and example else (example,):
        if not isinstance(each, ProbeSequence):
            raise ArgumentError(f"`probes` must be of `ProbeSequence`, or tuples of them, got `{type(each).__name__}`")
    found: Example = example
    return found


def sequences_of(example: Example) -> tuple[ProbeSequence, ...]:
    return example if isinstance(example, tuple) else (example,)


def listed(probes: Any) -> list[Example] | None:
    """The sequences, where they were given one by one."""
    if probes is None or callable(probes) or hasattr(probes, "example") or isinstance(probes, str):
        return None
    found: list[Any] = [probes] if isinstance(probes, ProbeSequence) else list(probes) if isinstance(probes, Iterable) else []
    if not found or not all(isinstance(each, ProbeSequence) for example in found for each in sequences_of(example)):
        raise ArgumentError(
            "`probes` must be a strategy, a function that gives one for a model, or a list of `ProbeSequence`, "
            f"got `{type(probes).__name__}`"
        )
    return found


def strategy_for(
    probes: Any, claim: PropertyClaim, subject: ModelUnderTest, options: dict[str, Any] | None = None
) -> Strategy[Example]:
    """The strategy that was given, as such, by what makes it or by that one's name; or else the property's own."""
    if probes is None:
        if claim.name not in PROBES:
            raise ArgumentError(f"`{claim.name}` is no ready property: give `probes=`, such as `repeated_sequences`")
        probes = PROBES[claim.name]
    if isinstance(probes, str) and probes in strategies.__all__:
        probes = getattr(strategies, probes)
    return made(probes, subject, options or {})


def made(probes: Any, subject: ModelUnderTest, options: dict[str, Any]) -> Strategy[Example]:
    """The strategy for this model, given one or what makes one. Raises `ArgumentError` for anything else."""
    if isinstance(probes, Strategy):
        if options:
            raise ArgumentError(f"a strategy takes no options, got {', '.join(options)}: give the function that makes it")
        return probes
    if not callable(probes):
        raise ArgumentError(f"`probes` must be a strategy or a function that gives one for a model, got {probes!r}")
    try:
        inspect.signature(probes).bind(subject, **options)
    except TypeError as error:
        raise ArgumentError(f"`{getattr(probes, '__name__', probes)}`: {error}") from None
    strategy = probes(subject, **options)
    if not isinstance(strategy, Strategy):
        raise ArgumentError(
            f"`{getattr(probes, '__name__', probes)}` must return a strategy, it returned `{type(strategy).__name__}`"
        )
    return strategy
