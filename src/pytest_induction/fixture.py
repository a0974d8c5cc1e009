"""The object behind the `induction` fixture: the measures and assertions, bound to one model, seed and set of defaults."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from pytest_induction.behaviour.claims import assert_copies_repeats, assert_learns_in_context
from pytest_induction.causal.circuit import assert_induction_circuit
from pytest_induction.causal.in_context import assert_ablation_removes_icl
from pytest_induction.comparison.preserved import assert_heads_preserved
from pytest_induction.errors import TextError
from pytest_induction.heads.composition import CompositionScores, measure_composition
from pytest_induction.heads.distances import DistanceScores, measure_distances
from pytest_induction.heads.induction import assert_has_induction_head, assert_no_induction_head, find_induction_heads
from pytest_induction.heads.match_lengths import MatchLengthScores, measure_match_lengths
from pytest_induction.heads.semantic import GeneralityScores, assert_heads_generalize, measure_generality
from pytest_induction.interventions.ablation import AblationScores, measure_ablations
from pytest_induction.measuring.rounds import HeadScores, measure_heads
from pytest_induction.model.protocol import ModelUnderTest
from pytest_induction.probes.sequences import COPIES, Probe, fitting_shape, repeated_sequences
from pytest_induction.records import Evidence, HeadList
from pytest_induction.runs.counterexamples import PropertyCheck, check_property, find_counterexample
from pytest_induction.runs.properties import assert_property_holds

T = TypeVar("T")


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

    @property
    def seed(self) -> int:
        return int(self._defaults["seed"]) + self.model.seed - self._first

    def measure_heads(self, **options: Any) -> HeadScores:
        """See `pytest_induction.measure_heads`."""
        return self._call(measure_heads, self.model, **options)

    def measure_match_lengths(self, **options: Any) -> MatchLengthScores:
        """See `pytest_induction.measure_match_lengths`."""
        return self._call(measure_match_lengths, self.model, **options)

    def assert_has_induction_head(self, **options: Any) -> Evidence:
        """See `pytest_induction.assert_has_induction_head`."""
        __tracebackhide__ = True
        return self._call(assert_has_induction_head, self.model, **options)

    def assert_no_induction_head(self, **options: Any) -> Evidence:
        """See `pytest_induction.assert_no_induction_head`."""
        __tracebackhide__ = True
        return self._call(assert_no_induction_head, self.model, **options)

    def assert_copies_repeats(self, **options: Any) -> Evidence:
        """See `pytest_induction.assert_copies_repeats`."""
        __tracebackhide__ = True
        return self._call(assert_copies_repeats, self.model, **options)

    def assert_learns_in_context(self, text: Any = None, **options: Any) -> Evidence:
        """See `pytest_induction.assert_learns_in_context`; the text is the session's unless one is given."""
        __tracebackhide__ = True
        if text is None and self.text is None:
            raise TextError("no text: give `assert_learns_in_context` one, or the option --induction-text")
        return self._call(assert_learns_in_context, self.model, self.text if text is None else text, **options)

    def measure_ablations(self, **options: Any) -> AblationScores:
        """See `pytest_induction.measure_ablations`."""
        return self._call(measure_ablations, self.model, **options)

    def measure_composition(self, **options: Any) -> CompositionScores:
        """See `pytest_induction.measure_composition`."""
        return self._call(measure_composition, self.model, **options)

    def find_induction_heads(self, **options: Any) -> HeadList:
        """See `pytest_induction.find_induction_heads`."""
        return self._call(find_induction_heads, self.model, **options)

    def measure_distances(self, **options: Any) -> DistanceScores:
        """See `pytest_induction.measure_distances`."""
        return self._call(measure_distances, self.model, **options)

    def measure_generality(self, heads: Any = None, **options: Any) -> GeneralityScores:
        """See `pytest_induction.measure_generality`."""
        return self._call(measure_generality, self.model, heads, **options)

    def assert_ablation_removes_icl(self, text: Any = None, **options: Any) -> Evidence:
        """See `pytest_induction.assert_ablation_removes_icl`; on a text only where one is given here."""
        __tracebackhide__ = True
        return self._call(assert_ablation_removes_icl, self.model, text, **options)

    def assert_heads_generalize(self, heads: Any, **options: Any) -> Evidence:
        """See `pytest_induction.assert_heads_generalize`."""
        __tracebackhide__ = True
        return self._call(assert_heads_generalize, self.model, heads, **options)

    def assert_induction_circuit(self, **options: Any) -> Evidence:
        """See `pytest_induction.assert_induction_circuit`."""
        __tracebackhide__ = True
        return self._call(assert_induction_circuit, self.model, **options)

    def assert_heads_preserved(self, before: Any, **options: Any) -> Evidence:
        """See `pytest_induction.assert_heads_preserved`; the session's model is the later one, the seed the earlier one's."""
        __tracebackhide__ = True
        return self._call(assert_heads_preserved, before, self.model, **{"seed": None, **options})

    def assert_property_holds(self, **options: Any) -> Evidence:
        """See `pytest_induction.assert_property_holds`; generation follows the hypothesis profile, not the session's seed."""
        __tracebackhide__ = True
        return assert_property_holds(self.model, **options)

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
        __tracebackhide__ = True
        known = inspect.signature(function).parameters
        defaults = self._defaults if self.model.seed == self._first else {**self._defaults, "seed": self.seed}
        return function(*subject, **{**{name: value for name, value in defaults.items() if name in known}, **options})
