"""The object behind the `induction` fixture: the measures and assertions, with one model, seed and set of defaults given.

The methods of claims that come with the package are written out, for type checkers; a test holds them and the registry together.
Those of claims that others register are made when they are asked for.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Concatenate, Generic, ParamSpec, Protocol, TypeVar, overload

import numpy as np

from pytest_induction.behaviour import claims as behaviour
from pytest_induction.behaviour import matches, recall, rules
from pytest_induction.causal import (
    circuit,
    concept_heads,
    icl_heads,
    in_context,
    in_text,
    recall_carried,
    recall_paths,
    retrieval,
)
from pytest_induction.claims import MODEL, PREFIX, Claim, claim_named, claims
from pytest_induction.comparison import preserved
from pytest_induction.comparison import retrieval as retrieval_kept
from pytest_induction.errors import TextError, meant
from pytest_induction.heads import (
    competing,
    composition,
    copying,
    distances,
    generalizing,
    match_lengths,
    semantic,
    suppression,
    virtual,
)
from pytest_induction.heads import induction as kinds
from pytest_induction.heads import retrieval as heads_retrieval
from pytest_induction.interventions import ablation, concepts, function_vectors
from pytest_induction.measuring import rounds
from pytest_induction.model.protocol import ModelUnderTest
from pytest_induction.probes.sequences import COPIES, Probe, fitting_shape, repeated_sequences
from pytest_induction.records import Evidence
from pytest_induction.runs import attribution, properties
from pytest_induction.runs.counterexamples import PropertyCheck, check_property, find_counterexample

A = TypeVar("A")
A_contra = TypeVar("A_contra", contravariant=True)
P = ParamSpec("P")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)
T = TypeVar("T")


class OfModel(Generic[P, R]):
    """A function whose first argument is a model, as a method that gives it the session's: all others keep name and type.

    Without `seeded` neither the seed nor the defaults of the session are given.
    """

    def __init__(self, function: Callable[Concatenate[Any, P], R], *, seeded: bool = True) -> None:
        self._function, self._seeded = function, seeded
        self.__doc__ = f"See `pytest_induction.{function.__name__}`."

    @overload
    def __get__(self, induction: None, owner: Any) -> OfModel[P, R]: ...
    @overload
    def __get__(self, induction: Induction, owner: Any) -> Callable[P, R]: ...
    def __get__(self, induction: Induction | None, owner: Any) -> OfModel[P, R] | Callable[P, R]:
        if induction is None:
            return self
        return induction.given_to(self._function, seeded=self._seeded)


class WithText(Protocol[P, R_co]):
    """A method whose text may be left out."""

    def __call__(self, text: Any = None, *args: P.args, **options: P.kwargs) -> R_co: ...


class OfModelAndText(Generic[P, R]):
    """The same of a function whose second argument is a text: the session's unless one is given."""

    def __init__(self, function: Callable[Concatenate[Any, Any, P], R]) -> None:
        self._function = function
        self.__doc__ = f"See `pytest_induction.{function.__name__}`; the text is the session's unless one is given."

    @overload
    def __get__(self, induction: None, owner: Any) -> OfModelAndText[P, R]: ...
    @overload
    def __get__(self, induction: Induction, owner: Any) -> WithText[P, R]: ...
    def __get__(self, induction: Induction | None, owner: Any) -> OfModelAndText[P, R] | WithText[P, R]:
        return self if induction is None else induction.with_text(self._function)


class WithEarlier(Protocol[A_contra, P, R_co]):
    """A method that takes the model before."""

    def __call__(self, before: A_contra, *args: P.args, **options: P.kwargs) -> R_co: ...


class OfLaterModel(Generic[A, P, R]):
    """The same of a function that holds a model against the one before: the session's is the later one, with the other's seed."""

    def __init__(self, function: Callable[Concatenate[A, Any, P], R]) -> None:
        self._function = function
        self.__doc__ = (
            f"See `pytest_induction.{function.__name__}`; the session's model is the later one, the seed that of before."
        )

    @overload
    def __get__(self, induction: None, owner: Any) -> OfLaterModel[A, P, R]: ...
    @overload
    def __get__(self, induction: Induction, owner: Any) -> WithEarlier[A, P, R]: ...
    def __get__(self, induction: Induction | None, owner: Any) -> OfLaterModel[A, P, R] | WithEarlier[A, P, R]:
        return self if induction is None else induction.given_second(self._function)


class Induction:
    """Every assertion with the model, the seed and the text of the session already given.

    What has been measured once is not measured again for as long as the model stays as it is. `defaults` are keyword
    arguments, given by the marker, that each call takes as far as it has them; what a call is given itself comes first.
    """

    def __init__(self, model: ModelUnderTest, *, text: Path | None = None, defaults: Mapping[str, Any] | None = None) -> None:
        self.model = model
        self.text = text
        self._defaults = {"seed": model.seed, **(defaults or {})}
        self._first = model.seed  # repeats that calibrate a baseline let the model's go on, and this one's with it

    assert_has_induction_head = OfModel(kinds.assert_has_induction_head)
    assert_no_induction_head = OfModel(kinds.assert_no_induction_head)
    assert_copies_repeats = OfModel(behaviour.assert_copies_repeats)
    assert_learns_in_context = OfModelAndText(behaviour.assert_learns_in_context)
    assert_recalls = OfModel(recall.assert_recalls)
    assert_follows_rule = OfModel(rules.assert_follows_rule)
    assert_ablation_removes_icl = OfModel(in_context.assert_ablation_removes_icl)
    assert_icl_is_induction = OfModelAndText(in_text.assert_icl_is_induction)
    assert_icl_heads = OfModel(icl_heads.assert_icl_heads)
    assert_concept_heads = OfModel(concept_heads.assert_concept_heads)
    assert_retrieval_heads = OfModel(retrieval.assert_retrieval_heads)
    assert_recall_carried_by = OfModel(recall_carried.assert_recall_carried_by)
    assert_induction_circuit = OfModel(circuit.assert_induction_circuit)
    assert_heads_generalize = OfModel(generalizing.assert_heads_generalize)
    assert_match_length = OfModel(match_lengths.assert_match_length)
    assert_prefers_longer_match = OfModel(competing.assert_prefers_longer_match)
    assert_copy_suppression = OfModelAndText(suppression.assert_copy_suppression)
    assert_property_holds = OfModel(properties.assert_property_holds, seeded=False)
    assert_heads_preserved = OfLaterModel(preserved.assert_heads_preserved)
    assert_retrieval_preserved = OfLaterModel(retrieval_kept.assert_retrieval_preserved)

    measure_heads = OfModel(rounds.measure_heads)
    measure_match_lengths = OfModel(match_lengths.measure_match_lengths)
    measure_competing_matches = OfModel(competing.measure_competing_matches)
    measure_distances = OfModel(distances.measure_distances)
    measure_copying = OfModel(copying.measure_copying)
    measure_copy_suppression = OfModelAndText(suppression.measure_copy_suppression)
    measure_composition = OfModel(composition.measure_composition)
    measure_virtual_heads = OfModel(virtual.measure_virtual_heads)
    measure_generality = OfModel(semantic.measure_generality)
    measure_recall = OfModel(recall.measure_recall)
    measure_recall_paths = OfModel(recall_paths.measure_recall_paths)
    measure_rules = OfModel(rules.measure_rules)
    measure_ablations = OfModel(ablation.measure_ablations)
    measure_loss_by_match = OfModelAndText(matches.measure_loss_by_match)
    measure_function_vectors = OfModel(function_vectors.measure_function_vectors)
    measure_concept_copying = OfModel(concepts.measure_concept_copying)
    measure_retrieval = OfModel(heads_retrieval.measure_retrieval)
    measure_attributions = OfModelAndText(attribution.measure_attributions)
    find_induction_heads = OfModel(kinds.find_induction_heads)

    @property
    def seed(self) -> int:
        """The seed of the session, or of the marker."""
        return int(self._defaults["seed"]) + self.model.seed - self._first

    if not TYPE_CHECKING:  # for type checkers the methods are those above

        def __getattr__(self, name: str) -> Any:
            """The assertion of a claim that somebody else has registered."""
            claim = claim_named(name.removeprefix(PREFIX)) if name.startswith(PREFIX) else None
            if claim is None or claim.subject != MODEL:
                known = [each.method for each in claims(MODEL)]
                raise AttributeError(f"`induction` has no `{name}`{meant(name, known) if name.startswith(PREFIX) else ''}")
            return self._of_claim(claim)

    def _of_claim(self, claim: Claim) -> Callable[..., Evidence]:
        """With the session's text, where it takes one as its second argument."""
        function = claim.function()
        takes = list(inspect.signature(function).parameters.values())
        is_of_text = len(takes) > 1 and takes[1].name == "text" and takes[1].default is inspect.Parameter.empty
        return self.with_text(function) if is_of_text else self.given_to(function)

    def given_to(self, function: Callable[Concatenate[Any, P], R], *, seeded: bool = True) -> Callable[P, R]:
        """The function with the session's model."""

        @functools.wraps(function)
        def given(*arguments: P.args, **options: P.kwargs) -> R:
            __tracebackhide__ = True
            if not seeded:
                return function(self.model, *arguments, **options)
            return self._call(function, self.model, *arguments, **options)

        return given

    def with_text(self, function: Callable[Concatenate[Any, Any, P], R]) -> WithText[P, R]:
        """The function with the session's model, and its text unless another is given. Raises `TextError` where there is none."""

        @functools.wraps(function)
        def given(text: Any = None, *arguments: P.args, **options: P.kwargs) -> R:
            __tracebackhide__ = True
            if text is None and self.text is None:
                raise TextError(f"no text: give `{function.__name__}` one, or the option --induction-text")
            return self._call(function, self.model, self.text if text is None else text, *arguments, **options)

        return given

    def given_second(self, function: Callable[Concatenate[A, Any, P], R]) -> WithEarlier[A, P, R]:
        """The function with the session's model as the later of two."""

        @functools.wraps(function)
        def given(before: A, *arguments: P.args, **options: P.kwargs) -> R:
            __tracebackhide__ = True
            return self._call(function, before, self.model, *arguments, **{"seed": None, **options})

        return given

    def check_property(self, property: Any, **options: Any) -> PropertyCheck:  # noqa: A002 - what it is
        """See `pytest_induction.check_property`; generation follows the hypothesis profile, not the session's seed."""
        __tracebackhide__ = True
        return check_property(self.model, property, **options)

    def find_counterexample(self, property: Any, **options: Any) -> Any:  # noqa: A002 - what it is
        """See `pytest_induction.find_counterexample`."""
        __tracebackhide__ = True
        return find_counterexample(self.model, property, **options)

    def probe(self, *, period: int | None = None, n_sequences: int = 8, repeats: int = COPIES, seed: int | None = None) -> Probe:
        """Rows of repeated random tokens that fit the model, of its longest fitting period unless one is given."""
        if period is None:
            periods, repeats = fitting_shape(self.model.space, repeats)
            period = periods[-1]
        rng = np.random.default_rng([self.seed if seed is None else seed, 3])
        return repeated_sequences(self.model.space, period=period, rng=rng, n_sequences=n_sequences, repeats=repeats)

    def default_probe(self) -> Probe:
        """The probe with the defaults that the marker gives."""
        return self._call(self.probe)

    def _call(self, function: Callable[..., T], *subject: Any, **options: Any) -> T:
        """Call it with the defaults of the session, as far as it takes them."""
        __tracebackhide__ = True
        known = inspect.signature(function).parameters
        defaults = self._defaults if self.model.seed == self._first else {**self._defaults, "seed": self.seed}
        return function(*subject, **{**{name: value for name, value in defaults.items() if name in known}, **options})
