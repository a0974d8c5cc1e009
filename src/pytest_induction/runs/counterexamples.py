"""Properties over whatever hypothesis comes up with: checked in a test, and hunted for the smallest sequence that breaks one."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias, overload

from pytest_induction.errors import ArgumentError, ExpectationFailed, PropertyFailed, user_facing, whole_number
from pytest_induction.expectations import failure_text, measured_on
from pytest_induction.formatting import fitted
from pytest_induction.observers import emit
from pytest_induction.probes.sequences import line
from pytest_induction.progress import progress
from pytest_induction.properties.claims import Example, Property, PropertyClaim
from pytest_induction.records import Evidence, Provenance, Verdict
from pytest_induction.runs.checkpoints.trainings import is_training
from pytest_induction.runs.properties import MAX_EXAMPLES, PropertyOverTraining, failure_of, found_over, judged_over

if TYPE_CHECKING:
    from torch import nn

    from pytest_induction.measuring.observing import ModelLike
    from pytest_induction.model.protocol import ModelUnderTest
    from pytest_induction.properties.hunt import Hunt
    from pytest_induction.runs.checkpoints.finding import Checkpoint
    from pytest_induction.runs.checkpoints.loading import Factory
    from pytest_induction.runs.checkpoints.trainings import TrainingLike
    from pytest_induction.runs.record import TrainingRun

    Several: TypeAlias = TrainingRun | Mapping[int, ModelLike] | Sequence[Checkpoint]

BUDGET = 1000


@dataclass(frozen=True)
class PropertyCheck:
    """A property that held: on how many examples, and by how little on the worst where it tells (`margin`, `worst`)."""

    name: str
    model: str
    n_examples: int
    margin: float | None
    worst: Example | None


@overload
def check_property(model: Several, property: str | Property, **options: Any) -> PropertyOverTraining: ...


@overload
def check_property(model: nn.Module | ModelUnderTest, property: str | Property, **options: Any) -> PropertyCheck: ...


@overload
def check_property(model: str | os.PathLike[str], property: str | Property, **options: Any) -> Any: ...


@user_facing
def check_property(
    model: ModelLike | TrainingLike,
    property: str | Property,  # noqa: A002 - what it is
    *,
    probes: Any = None,
    max_examples: int = MAX_EXAMPLES,
    seed: int | None = None,
    holds_from: int | None = None,
    bisect: bool = True,
    factory: Factory | None = None,
    steps: Iterable[int] | None = None,
    **options: Any,
) -> PropertyCheck | PropertyOverTraining:
    """Assert that a property holds on every probe sequence that hypothesis generates.

    `property` is a ready one by its name or as the function, or a function of your own: given an `Outcome`, or as many of them in
    a tuple as there are sequences in an example, it raises an assertion error, returns False, or returns a negative number
    where it does not hold. `options` are its keyword arguments. `probes` is a strategy, a function that gives one for a model
    (those of `pytest_induction.probes.strategies`), or a list of sequences; a ready property brings its own.

    Examples are evaluated in batches, a failure is shrunk to the smallest. With `seed` the examples are the same each time;
    without, the hypothesis profile decides, and a failure is replayed from its database the next time.

    In place of a model, a training: a directory of checkpoints (with `factory` where they are weights alone, and `steps` for
    some of them), what `sweep` returned, a mapping from steps to models, or a recorded run whose recorder hunted this property.
    It must then hold at every snapshot from step `holds_from` on, or from some snapshot on to the last. By default the snapshot
    from which on it holds is searched for by halving, and those after it see what failed before and what held by the least; with
    `bisect=False` each has as many examples.

    Returns how it held: a `PropertyCheck` of a model, a `PropertyOverTraining` of a training. Raises `PropertyFailed`, an
    assertion error with the smallest failing `.probe`; of a training that cannot be judged `ExpectationFailed`.

    >>> check_property(model, "completes_repeats", max_loss=2.0)             # doctest: +SKIP
    >>> check_property("checkpoints", "completes_repeats", holds_from=2000)  # doctest: +SKIP
    """
    claim = PropertyClaim.of(property, options)
    most = whole_number("max_examples", max_examples, least=1)
    if holds_from is not None:
        whole_number("holds_from", holds_from, least=0)
    if is_training(model) or (holds_from is not None and isinstance(model, (str, os.PathLike))):
        given: Any = model
        history = found_over(
            given, claim, probes=probes, most=most, seed=seed, factory=factory, steps=steps, bisect=bisect, climb=False
        )
        return _over_training(history, claim, holds_from)
    from pytest_induction.model.load import load_model
    from pytest_induction.properties.hunt import Hunt, listed, strategy_for

    _refuse_of_training(holds_from=holds_from, factory=factory, steps=steps)
    hunt = Hunt(load_model(model), claim)  # type: ignore[arg-type]
    examples = listed(probes)
    with progress(hunt.name, most if examples is None else len(examples)):
        if examples:
            failed = hunt.look_at(examples)
        else:
            failed = hunt.search(strategy_for(probes, claim, hunt.subject), most, seed, climb=False)
    if failed is not None:
        emit(evidence_of(hunt, Verdict.REFUTED, "fails", hunt.failure(failed).splitlines()[0]))
        raise _failure(hunt, failed)
    hunt.check_asked()
    check = PropertyCheck(hunt.name, hunt.subject.name, hunt.n_examples, *hunt.worst)
    emit(evidence_of(hunt, Verdict.SHOWN, "holds", held(hunt)))
    return check


@user_facing
def find_counterexample(
    model: ModelLike | TrainingLike,
    property: str | Property,  # noqa: A002 - what it is
    *,
    probes: Any = None,
    budget: int = BUDGET,
    seed: int | None = None,
    bisect: bool = True,
    factory: Factory | None = None,
    steps: Iterable[int] | None = None,
    **options: Any,
) -> Any:
    """Search for a probe sequence on which the property fails. Returns the smallest, or None if it holds on `budget` of them.

    Arguments as in `check_property`. Where the property returns by how much it holds, as the ready ones do, the search climbs
    towards failure. Returns a `ProbeSequence`, or a tuple of them where the probes are pairs. Of a training it returns a
    `PropertyOverTraining`: a mapping from the step of each snapshot to the same of its model, and from where on it holds.

    >>> found = find_counterexample(model, "completes_repeats")              # doctest: +SKIP
    >>> found.period, found.tokens                                           # doctest: +SKIP
    """
    claim = PropertyClaim.of(property, options)
    most = whole_number("budget", budget, least=1)
    if is_training(model):
        given: Any = model
        return found_over(
            given, claim, probes=probes, most=most, seed=seed, factory=factory, steps=steps, bisect=bisect, climb=True
        )
    from pytest_induction.model.load import load_model
    from pytest_induction.properties.hunt import Hunt, strategy_for

    _refuse_of_training(factory=factory, steps=steps)
    hunt = Hunt(load_model(model), claim)  # type: ignore[arg-type]
    with progress(hunt.name, most):
        return hunt.search(strategy_for(probes, claim, hunt.subject), most, seed, climb=True)


def held(hunt: Hunt) -> str:
    """How a property held, in words: nobody has seen all sequences."""
    margin, worst = hunt.worst
    near = "" if margin is None else f", by {margin:.3g} at least: {worst!r}"
    return f"holds on all of {hunt.n_examples} examples{near}"


def evidence_of(hunt: Hunt, verdict: Verdict, reason: str, summary: str, name: str = "") -> Evidence:
    """What the report gets. Examples are searched for and not a sample, so no confidence is stated."""
    return Evidence(name or hunt.name, verdict, reason, summary, about(hunt), confidence=None, is_asserted=True)


def about(hunt: Hunt) -> Provenance:
    """Where it was measured."""
    from pytest_induction.measuring.observing import provenance

    return provenance(hunt.subject, n_sequences=hunt.n_examples, probe="generated and shrunk")


def _failure(hunt: Hunt, example: Example) -> PropertyFailed:
    """The error for an example that fails."""
    given = "".join(f", {name}={value!r}" for name, value in hunt.claim.options.items())
    first, *facts = hunt.failure(example).split("\n")
    message = fitted(
        f"{hunt.name} does not hold: {first}",
        facts,
        f"  measured: {measured_on(about(hunt))}",
        f"  next: check_property(model, {hunt.name}, probes=[{line(example)}]{given}) looks at this one alone",
    )
    return PropertyFailed(message, example)


def _over_training(history: PropertyOverTraining, claim: PropertyClaim, holds_from: int | None) -> PropertyOverTraining:
    """What was found of a training where the property holds as it must; else the error."""
    evidence = judged_over(history, holds_from=holds_from)
    emit(evidence)
    if evidence.verdict is Verdict.SHOWN:
        return history
    if evidence.verdict is Verdict.REFUTED:
        raise PropertyFailed(*failure_of(history, claim, evidence))
    raise ExpectationFailed(failure_text(evidence), evidence)


def _refuse_of_training(**given: Any) -> None:
    named = next((name for name, value in given.items() if value is not None), None)
    if named is not None:
        raise ArgumentError(f"`{named}` is for a training, and this is one model: leave it out")
