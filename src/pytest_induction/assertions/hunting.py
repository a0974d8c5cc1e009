"""Properties of a model over whatever hypothesis comes up with: as an assertion, and as a hunt for a counterexample."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

from pytest_induction.assertions.messages import fitted, measured_on
from pytest_induction.assertions.properties import PROBES, PROPERTIES
from pytest_induction.errors import ArgumentError, InductionError, PropertyFailed, user_facing, whole_number
from pytest_induction.journal import tell
from pytest_induction.measure import ModelLike, provenance
from pytest_induction.models.load import load_model
from pytest_induction.models.protocol import ModelUnderTest
from pytest_induction.outcomes import Outcome, evaluate_probes
from pytest_induction.probes import strategies
from pytest_induction.probes.answers import ProbeSequence
from pytest_induction.probes.strategies.searching import Judged, Rejected, Strategy, line, search
from pytest_induction.progress import progress
from pytest_induction.records import Evidence, Provenance, Verdict

Example = ProbeSequence | tuple[ProbeSequence, ...]
Property = Callable[..., Any]
MAX_EXAMPLES = 200
BUDGET = 1000
MOST_KEPT = 4096  # outcomes that are remembered while a failure shrinks


@dataclass(frozen=True)
class PropertyCheck:
    """A property that held: on how many examples, and by how little on the worst where it tells (`margin`, `worst`)."""

    name: str
    model: str
    n_examples: int
    margin: float | None
    worst: Example | None


@user_facing
def check_property(
    model: ModelLike,
    property: str | Property,  # noqa: A002 - what it is
    *,
    probes: Any = None,
    max_examples: int = MAX_EXAMPLES,
    seed: int | None = None,
    **options: Any,
) -> PropertyCheck:
    """Assert that a property holds on every probe sequence that hypothesis comes up with.

    `property` is a ready one by its name or as the function, or a function of your own: given an `Outcome`, or as many of them in
    a tuple as there are sequences in an example, it raises an assertion error, returns False, or returns a negative number
    where it does not hold. `options` are its keyword arguments. `probes` is a strategy, a function that gives one for a model
    (those of `pytest_induction.strategies`), or a list of sequences; a ready property brings its own.

    Examples are evaluated in batches, a failure is shrunk to the smallest. With `seed` the examples are the same each time;
    without, the hypothesis profile decides, and a failure is replayed from its database the next time.

    Returns how it held. Raises `PropertyFailed`, an assertion error with the smallest failing `.probe`.

    >>> check_property(model, "completes_repeats", max_loss=2.0)             # doctest: +SKIP
    """
    hunt = Hunt(load_model(model), property, options)
    most = whole_number("max_examples", max_examples, least=1)
    given = _listed(probes)
    with progress(hunt.name, most if given is None else len(given)):
        failed = hunt.look_at(given) if given else hunt.search(_strategy(probes, hunt), most, seed, climb=False)
    if failed is not None:
        tell(hunt.evidence(Verdict.NOT_FORMED, "fails", hunt.said(failed).splitlines()[0]))
        raise hunt.failure(failed)
    hunt.check_asked()
    check = PropertyCheck(hunt.name, hunt.subject.name, hunt.n_examples, *hunt.worst)
    near = "" if check.margin is None else f", by {check.margin:.3g} at least: {check.worst!r}"
    tell(hunt.evidence(Verdict.FORMED, "holds", f"holds on all of {check.n_examples} examples{near}"))
    return check


@user_facing
def find_counterexample(
    model: ModelLike,
    property: str | Property,  # noqa: A002 - what it is
    *,
    probes: Any = None,
    budget: int = BUDGET,
    seed: int | None = None,
    **options: Any,
) -> Any:
    """Hunt for a probe sequence on which the property fails: the smallest there is, or None if `budget` of them all hold.

    Arguments as in `check_property`. Where the property returns by how much it holds, as the ready ones do, the search climbs
    towards failure. Returns a `ProbeSequence`, or a tuple of them where the probes are pairs.

    >>> found = find_counterexample(model, "completes_repeats")              # doctest: +SKIP
    >>> found.period, found.tokens                                           # doctest: +SKIP
    """
    hunt = Hunt(load_model(model), property, options)
    most = whole_number("budget", budget, least=1)
    with progress(hunt.name, most):
        return hunt.search(_strategy(probes, hunt), most, seed, climb=True)


class Evaluator:
    """What a model does on examples, a batch at a time; nothing is run twice."""

    def __init__(self, subject: ModelUnderTest) -> None:
        self._subject = subject
        self._known: dict[ProbeSequence, Outcome] = {}

    def __call__(self, examples: Sequence[Example]) -> list[Any]:
        """An outcome for each sequence, a tuple of them for each tuple."""
        sequences = [each for example in map(_checked, examples) for each in _sequences(example)]
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
    """One property, one model, and what has been seen of the one on the other."""

    def __init__(self, subject: ModelUnderTest, claim: str | Property, options: dict[str, Any]) -> None:
        if isinstance(claim, str) and claim not in PROPERTIES:
            raise ArgumentError(f"`property` must be a function or one of {', '.join(PROPERTIES)}; got {claim!r}")
        chosen = PROPERTIES[claim] if isinstance(claim, str) else claim
        if not callable(chosen):
            raise ArgumentError(f"`property` must be a function or a name, got `{type(chosen).__name__}`")
        # what can be gone through only once would be used up by the first example
        options = {name: list(value) if isinstance(value, Iterator) else value for name, value in options.items()}
        self.subject, self._property, self._options = subject, chosen, options
        self.name = getattr(chosen, "__name__", type(chosen).__name__)
        self._margins: dict[Example, float | None] = {}
        self._broken: InductionError | None = None  # of the model or the arguments: no smaller example tells more
        self._evaluate = Evaluator(subject)
        self._said: dict[Example, str] = {}  # of those that failed
        try:
            inspect.signature(chosen).bind(None, **options)
        except TypeError as error:
            raise ArgumentError(f"`{self.name}`: {error}") from None

    def search(self, examples: Strategy[Example], most: int, seed: int | None, *, climb: bool) -> Example | None:
        """The smallest example that fails, or None."""
        number = None if seed is None else whole_number("seed", seed, least=0)
        key = f"pytest-induction {self.name} {sorted(self._options.items())} {examples!r} {self.subject.name}".encode()
        return self._unless_broken(search(examples, self.judge, max_examples=most, seed=number, key=key, climb=climb))

    def look_at(self, examples: Sequence[Example]) -> Example | None:
        """One of just these that fails, or None. Raises as `search` what is wrong with the model or the arguments."""
        return self._unless_broken(self.judge(examples).failed)

    def _unless_broken(self, failed: Example | None) -> Example | None:
        if self._broken is not None:
            raise self._broken
        return failed

    def judge(self, examples: Sequence[Example]) -> Judged[Example]:
        """Whether the property holds on each of these; an example that fails, and the least margin."""
        known = next((example for example in examples if example in self._said), None)
        if known is not None or self._broken is not None:
            return Judged(known, None)
        try:
            new = [example for example in dict.fromkeys(map(_checked, examples)) if example not in self._margins]
            for example, outcome in zip(new, self._evaluate(new), strict=True):
                self._margins[example] = self._margin(example, outcome)
        except InductionError as error:
            self._broken = error
            return Judged(None, None)
        failed = next((example for example in new if example in self._said), None)
        margins = [self._margins[example] for example in examples]
        return Judged(failed, min((margin for margin in margins if margin is not None), default=None))

    @property
    def n_examples(self) -> int:
        """Different ones, so far."""
        return len(self._margins)

    @property
    def worst(self) -> tuple[float | None, Example | None]:
        """The least margin, and the example that has it."""
        known = [(margin, example) for example, margin in self._margins.items() if margin is not None and math.isfinite(margin)]
        return min(known, key=lambda entry: entry[0], default=(None, None))

    def _margin(self, example: Example, outcome: Any) -> float | None:
        try:
            found = self._property(outcome, **self._options)
        except Rejected:
            return math.inf  # asks nothing
        except AssertionError as error:
            self._said[example] = str(error) or f"`{self.name}` raised an assertion error"
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
            self._said[example] = f"`{self.name}` returned {found}; on {example!r}"
        return margin

    def check_asked(self) -> None:
        """Raise `ArgumentError` where the property asked nothing of any example: then nothing was shown to hold."""
        if self._margins and all(margin == math.inf for margin in self._margins.values()):
            raise ArgumentError(f"`{self.name}` asked nothing of any of these {self.n_examples} examples: give other `probes`")

    def said(self, example: Example) -> str:
        """Why an example fails."""
        return self._said[example]

    def evidence(self, verdict: Verdict, reason: str, summary: str) -> Evidence:
        """What the report gets. Examples are searched for and not a sample, so no confidence is stated."""
        return Evidence(self.name, verdict, reason, summary, self._about, confidence=None, expected=Verdict.FORMED)

    @property
    def _about(self) -> Provenance:
        return provenance(self.subject, n_sequences=self.n_examples, probe="generated and shrunk")

    def failure(self, example: Example) -> PropertyFailed:
        """The error for an example that fails."""
        given = "".join(f", {name}={value!r}" for name, value in self._options.items())
        first, *facts = self.said(example).splitlines()
        message = fitted(
            f"{self.name} does not hold: {first}",
            facts,
            f"  measured: {measured_on(self._about)}",
            f"  next: check_property(model, {self.name}, probes=[{line(example)}]{given}) looks at this one alone",
        )
        return PropertyFailed(message, example)


def _checked(example: Any) -> Example:
    """The example, if it is a sequence or a tuple of them."""
    for each in example if isinstance(example, tuple) and example else (example,):
        if not isinstance(each, ProbeSequence):
            raise ArgumentError(f"`probes` must be of `ProbeSequence`, or tuples of them, got `{type(each).__name__}`")
    found: Example = example
    return found


def _sequences(example: Example) -> tuple[ProbeSequence, ...]:
    return example if isinstance(example, tuple) else (example,)


def _listed(probes: Any) -> list[Example] | None:
    """The sequences, where they were given one by one."""
    if probes is None or callable(probes) or hasattr(probes, "example") or isinstance(probes, str):
        return None
    found: list[Any] = [probes] if isinstance(probes, ProbeSequence) else list(probes) if isinstance(probes, Iterable) else []
    if not found or not all(isinstance(each, ProbeSequence) for example in found for each in _sequences(example)):
        raise ArgumentError(
            "`probes` must be a strategy, a function that gives one for a model, or a list of `ProbeSequence`, "
            f"got `{type(probes).__name__}`"
        )
    return found


def _strategy(probes: Any, hunt: Hunt) -> Strategy[Example]:
    """The strategy that was given, or the property's own."""
    if probes is None:
        if hunt.name not in PROBES:
            raise ArgumentError(f"`{hunt.name}` is no ready property: give `probes=`, such as `repeated_sequences`")
        probes = getattr(strategies, PROBES[hunt.name])
    return made(probes, hunt.subject, {})


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
