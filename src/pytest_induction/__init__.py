"""A mechanistic test harness for transformer language models, as a pytest plugin.

Importing this package loads neither torch nor numpy: every name below is loaded when it is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pytest_induction.assertions.heads import (
        assert_copies_repeats,
        assert_has_induction_head,
        assert_learns_in_context,
        assert_no_induction_head,
    )
    from pytest_induction.bound import Induction
    from pytest_induction.errors import (
        ArgumentError,
        ExpectationFailed,
        InductionError,
        ModelError,
        ProbeError,
        TextError,
        UnsupportedModel,
    )
    from pytest_induction.measure import HeadScores, measure_heads
    from pytest_induction.models.load import load_model
    from pytest_induction.models.protocol import ModelUnderTest
    from pytest_induction.models.shown import show_attention
    from pytest_induction.probes.sequences import Probe, repeated_sequences, unrepeated_sequences
    from pytest_induction.records import Estimate, Evidence, HeadEvidence, HeadId, Provenance, TokenSpace, Verdict

_HOME = {
    "assertions.heads": (
        "assert_copies_repeats",
        "assert_has_induction_head",
        "assert_learns_in_context",
        "assert_no_induction_head",
    ),
    "bound": ("Induction",),
    "errors": (
        "ArgumentError",
        "ExpectationFailed",
        "InductionError",
        "ModelError",
        "ProbeError",
        "TextError",
        "UnsupportedModel",
    ),
    "measure": ("HeadScores", "measure_heads"),
    "models.load": ("load_model",),
    "models.protocol": ("ModelUnderTest",),
    "models.shown": ("show_attention",),
    "probes.sequences": ("Probe", "repeated_sequences", "unrepeated_sequences"),
    "records": ("Estimate", "Evidence", "HeadEvidence", "HeadId", "Provenance", "TokenSpace", "Verdict"),
}
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}

__all__ = [
    "ArgumentError",
    "Estimate",
    "Evidence",
    "ExpectationFailed",
    "HeadEvidence",
    "HeadId",
    "HeadScores",
    "Induction",
    "InductionError",
    "ModelError",
    "ModelUnderTest",
    "Probe",
    "ProbeError",
    "Provenance",
    "TextError",
    "TokenSpace",
    "UnsupportedModel",
    "Verdict",
    "assert_copies_repeats",
    "assert_has_induction_head",
    "assert_learns_in_context",
    "assert_no_induction_head",
    "load_model",
    "measure_heads",
    "repeated_sequences",
    "show_attention",
    "unrepeated_sequences",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'pytest_induction' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"pytest_induction.{_MODULE_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_MODULE_OF])
