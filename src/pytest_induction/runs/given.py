"""Tests that run on what a model does on generated sequences."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from pytest_induction.errors import ArgumentError, whole_number
from pytest_induction.measuring.observing import ModelLike
from pytest_induction.model.load import load_model
from pytest_induction.model.protocol import ModelUnderTest
from pytest_induction.probes.strategies.searching import carry, run_given
from pytest_induction.progress import advance, progress
from pytest_induction.properties.claims import Property
from pytest_induction.properties.hunt import Evaluator, made
from pytest_induction.runs.checkpoints.trainings import opened

if TYPE_CHECKING:
    from pytest_induction.runs.checkpoints.trainings import TrainingLike

MODEL = "induction_model"  # the fixture
UNIT = "snapshot"


def given_probes(
    probes: Any,
    *,
    model: ModelLike | None = None,
    over: str | TrainingLike | None = None,
    holds_from: int | None = None,
    batch: int | None = None,
    **options: Any,
) -> Callable[[Property], Property]:
    """Run a test on what a model does on probe sequences that hypothesis generates, as `hypothesis.given` runs one on values.

    `probes` is a strategy, or a function that gives one for a model, as those of `pytest_induction.probes.strategies`, to which
    `options` go. The last argument of the test gets an `Outcome`, or a tuple of them where an example is a pair; all others are
    fixtures. The model is the fixture `induction_model`, or `model`. `@settings`, `@seed` and `@example(ProbeSequence(...))` go
    above it; up to 64 examples, or `batch` of them, share a test case, and with it their forward passes.

    With `over` the test runs on one snapshot of a training after the other, in the order of their steps, from step `holds_from`
    on, and ends with the first that fails. `over` names a fixture that gives a training whose weights are there, such as
    `induction_run` of checkpoints, or is such a training (a path as a `Path`).

    >>> @given_probes(repeated_sequences, period=(2, 12))                    # doctest: +SKIP
    ... def test_loss_on_repeats(outcome):
    ...     assert outcome.losses.mean() < 1.0
    """
    __tracebackhide__ = True
    size = None if batch is None else whole_number("batch", batch, least=1)
    source = _Source(model, over, holds_from)

    def decorate(test: Property) -> Property:
        __tracebackhide__ = True
        parameters = list(inspect.signature(test).parameters.values())
        if not parameters or parameters[-1].kind in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD):
            taken = "none" if not parameters else str(parameters[-1])
            raise ArgumentError(f"`{test.__name__}` must take the outcome as its last argument, it takes {taken}")
        if inspect.iscoroutinefunction(test) or inspect.isgeneratorfunction(test) or inspect.isasyncgenfunction(test):
            raise ArgumentError(f"`{test.__name__}` must be a plain function: no one would run its coroutine or generator")
        argument, fixtures = parameters[-1].name, parameters[:-1]
        is_added = source.fixture and all(parameter.name != source.fixture for parameter in fixtures)

        @functools.wraps(test)
        def carrier(*args: Any, **kwargs: Any) -> None:
            __tracebackhide__ = True
            named = {name: value for name, value in kwargs.items() if not (is_added and name == source.fixture)}

            def run_one(outcome: Any) -> Any:
                __tracebackhide__ = True
                return test(*args, **named, **{argument: outcome})

            for subject, about in source.subjects(kwargs, test.__name__):
                examples = made(probes, subject, options)
                run_given(carrier, run_one, argument, examples, Evaluator(subject), size=size, about=about)

        if is_added:
            fixtures.append(inspect.Parameter(source.fixture, inspect.Parameter.KEYWORD_ONLY))
        carrier.__dict__["__signature__"] = inspect.Signature(fixtures)
        carry(carrier)
        return carrier

    return decorate


class _Source:
    """What a test runs on: a model or the models of a training, given or from a fixture (its name in `fixture`, else "")."""

    def __init__(self, model: ModelLike | None, over: str | TrainingLike | None, holds_from: int | None) -> None:
        if over is not None and model is not None:
            raise ArgumentError("`given_probes` takes a `model` or a training, `over`, not both")
        if over is None and holds_from is not None:
            raise ArgumentError("`holds_from` is for a training: name one with `over`")
        self._model, self._over = model, over
        self._first = 0 if holds_from is None else whole_number("holds_from", holds_from, least=0)
        if over is None:
            self.fixture = MODEL if model is None else ""
        else:
            self.fixture = over if isinstance(over, str) and over.isidentifier() else ""

    def subjects(self, fixtures: Mapping[str, Any], test: str) -> Iterator[tuple[ModelUnderTest, str]]:
        """Each model, and where it is one of several, which. Raises `ArgumentError` where there is none."""
        if self.fixture and self.fixture not in fixtures:
            instead = "`model=`" if self._over is None else "training as `over=`"
            raise ArgumentError(f"`{test}` gets no fixtures here: give `given_probes` a {instead}")
        if self._over is None:
            yield load_model(fixtures[self.fixture] if self._model is None else self._model), ""
            return
        run, models = opened(fixtures[self.fixture] if self.fixture else self._over)
        if models is None:
            raise ArgumentError(f"`over`: run {run.name!r} has no weights: name its checkpoints")
        places = [place for place, step in enumerate(models.steps) if step >= self._first]
        if not places:
            last = models.steps[-1]
            raise ArgumentError(f"`holds_from`: {run.name!r} has no snapshot from step {self._first} on, its last is of {last}")
        with progress("given_probes", len(places), UNIT):
            for place in places:
                yield models.load(place), f"step {models.steps[place]} of {run.name}"
                advance(1, UNIT)
