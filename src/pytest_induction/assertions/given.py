"""Tests that run on what a model does on generated sequences."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

from pytest_induction.assertions.hunting import Evaluator, Property, made
from pytest_induction.errors import ArgumentError, whole_number
from pytest_induction.measure import ModelLike
from pytest_induction.models.load import load_model
from pytest_induction.probes.strategies.searching import carry, run_given

MODEL = "induction_model"  # the fixture


def given_probes(
    probes: Any, *, model: ModelLike | None = None, batch: int | None = None, **options: Any
) -> Callable[[Property], Property]:
    """Run a test on what a model does on probe sequences that hypothesis generates, as `hypothesis.given` runs one on values.

    `probes` is a strategy, or a function that gives one for a model, as those of `pytest_induction.strategies`, to which
    `options` go. The last argument of the test gets an `Outcome`, or a tuple of them where an example is a pair; all others are
    fixtures. The model is the fixture `induction_model`, or `model`. `@settings`, `@seed` and `@example(ProbeSequence(...))` go
    above it; up to 64 examples, or `batch` of them, share a test case, and with it their forward passes.

    >>> @given_probes(repeated_sequences, period=(2, 12))                    # doctest: +SKIP
    ... def test_loss_on_repeats(outcome):
    ...     assert outcome.losses.mean() < 1.0
    """
    __tracebackhide__ = True
    size = None if batch is None else whole_number("batch", batch, least=1)

    def decorate(test: Property) -> Property:
        __tracebackhide__ = True
        parameters = list(inspect.signature(test).parameters.values())
        if not parameters or parameters[-1].kind in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD):
            taken = "none" if not parameters else str(parameters[-1])
            raise ArgumentError(f"`{test.__name__}` must take the outcome as its last argument, it takes {taken}")
        if inspect.iscoroutinefunction(test) or inspect.isgeneratorfunction(test) or inspect.isasyncgenfunction(test):
            raise ArgumentError(f"`{test.__name__}` must be a plain function: no one would run its coroutine or generator")
        argument, fixtures = parameters[-1].name, parameters[:-1]
        wants_model = any(parameter.name == MODEL for parameter in fixtures)

        @functools.wraps(test)
        def carrier(*args: Any, **kwargs: Any) -> None:
            __tracebackhide__ = True
            named = kwargs if wants_model or model is not None else {k: v for k, v in kwargs.items() if k != MODEL}
            if model is None and MODEL not in kwargs:
                raise ArgumentError(f"`{test.__name__}` gets no fixtures here: give `given_probes` a `model=`")
            subject = load_model(kwargs[MODEL] if model is None else model)
            examples = made(probes, subject, options)

            def run_one(outcome: Any) -> Any:
                __tracebackhide__ = True
                return test(*args, **named, **{argument: outcome})

            run_given(carrier, run_one, argument, examples, Evaluator(subject), size=size)

        if model is None and not wants_model:
            fixtures.append(inspect.Parameter(MODEL, inspect.Parameter.KEYWORD_ONLY))
        carrier.__dict__["__signature__"] = inspect.Signature(fixtures)
        carry(carrier)
        return carrier

    return decorate
