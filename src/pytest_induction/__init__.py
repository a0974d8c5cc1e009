"""A mechanistic test harness for transformer language models, as a pytest plugin.

Importing this package loads neither torch nor numpy: every name below is loaded when it is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pytest_induction.assertions.given import given_probes
    from pytest_induction.assertions.heads import (
        assert_copies_repeats,
        assert_has_induction_head,
        assert_learns_in_context,
        assert_no_induction_head,
    )
    from pytest_induction.assertions.hunting import PropertyCheck, check_property, find_counterexample
    from pytest_induction.assertions.properties import (
        attends_to_successor,
        completes_repeats,
        is_period_invariant,
        is_relabelling_invariant,
        prefers_longer_match,
        survives_distractors,
    )
    from pytest_induction.bound import Induction
    from pytest_induction.copying import CopyingScores, measure_copying
    from pytest_induction.errors import (
        ArgumentError,
        ExpectationFailed,
        InductionError,
        ModelError,
        ProbeError,
        PropertyFailed,
        TextError,
        UnsupportedModel,
    )
    from pytest_induction.measure import HeadScores, measure_heads
    from pytest_induction.models.load import load_model
    from pytest_induction.models.protocol import ModelUnderTest
    from pytest_induction.models.shown import show_attention
    from pytest_induction.outcomes import Behaviour, Masses, Outcome, evaluate_probes
    from pytest_induction.probes.answers import Answer, ProbeSequence
    from pytest_induction.probes.sequences import Probe
    from pytest_induction.records import Estimate, Evidence, HeadEvidence, HeadId, PairEvidence, Provenance, TokenSpace, Verdict
    from pytest_induction.virtual import VirtualPair, VirtualScores, measure_virtual_heads

_HOME = {
    "assertions.heads": (
        "assert_copies_repeats",
        "assert_has_induction_head",
        "assert_learns_in_context",
        "assert_no_induction_head",
    ),
    "assertions.given": ("given_probes",),
    "assertions.hunting": ("PropertyCheck", "check_property", "find_counterexample"),
    "assertions.properties": (
        "attends_to_successor",
        "completes_repeats",
        "is_period_invariant",
        "is_relabelling_invariant",
        "prefers_longer_match",
        "survives_distractors",
    ),
    "bound": ("Induction",),
    "copying": ("CopyingScores", "measure_copying"),
    "errors": (
        "ArgumentError",
        "ExpectationFailed",
        "InductionError",
        "ModelError",
        "ProbeError",
        "PropertyFailed",
        "TextError",
        "UnsupportedModel",
    ),
    "measure": ("HeadScores", "measure_heads"),
    "models.load": ("load_model",),
    "models.protocol": ("ModelUnderTest",),
    "models.shown": ("show_attention",),
    "outcomes": ("Behaviour", "Masses", "Outcome", "evaluate_probes"),
    "probes.answers": ("Answer", "ProbeSequence"),
    "probes.sequences": ("Probe",),
    "records": ("Estimate", "Evidence", "HeadEvidence", "HeadId", "PairEvidence", "Provenance", "TokenSpace", "Verdict"),
    "virtual": ("VirtualPair", "VirtualScores", "measure_virtual_heads"),
}
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}

__all__ = [
    "Answer",
    "ArgumentError",
    "Behaviour",
    "CopyingScores",
    "Estimate",
    "Evidence",
    "ExpectationFailed",
    "HeadEvidence",
    "HeadId",
    "HeadScores",
    "Induction",
    "InductionError",
    "Masses",
    "ModelError",
    "ModelUnderTest",
    "Outcome",
    "PairEvidence",
    "Probe",
    "ProbeError",
    "ProbeSequence",
    "PropertyCheck",
    "PropertyFailed",
    "Provenance",
    "TextError",
    "TokenSpace",
    "UnsupportedModel",
    "Verdict",
    "VirtualPair",
    "VirtualScores",
    "assert_copies_repeats",
    "assert_has_induction_head",
    "assert_learns_in_context",
    "assert_no_induction_head",
    "attends_to_successor",
    "check_property",
    "completes_repeats",
    "evaluate_probes",
    "find_counterexample",
    "given_probes",
    "is_period_invariant",
    "is_relabelling_invariant",
    "load_model",
    "measure_copying",
    "measure_heads",
    "measure_virtual_heads",
    "prefers_longer_match",
    "show_attention",
    "survives_distractors",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'pytest_induction' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"pytest_induction.{_MODULE_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_MODULE_OF])
