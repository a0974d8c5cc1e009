"""A mechanistic test harness for transformer language models, as a pytest plugin.

Importing this package loads neither torch nor numpy: every name below is loaded when it is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pytest_induction.attention.backends.exposed import expose_attention
    from pytest_induction.behaviour.claims import assert_copies_repeats, assert_learns_in_context
    from pytest_induction.behaviour.outcomes import Behaviour, Masses, Outcome, evaluate_probes
    from pytest_induction.causal.circuit import assert_induction_circuit
    from pytest_induction.causal.in_context import assert_ablation_removes_icl
    from pytest_induction.claims import Claim, register_claim
    from pytest_induction.comparison.continuity import assert_continuity
    from pytest_induction.comparison.preserved import assert_heads_preserved, profile_of
    from pytest_induction.comparison.profiles import HeadsProfile
    from pytest_induction.errors import (
        ArgumentError,
        BaselineError,
        BaselineFailed,
        ExpectationFailed,
        InductionError,
        ModelError,
        ProbeError,
        PropertyFailed,
        ReportError,
        RunError,
        TextError,
        UnsupportedModel,
    )
    from pytest_induction.expectations import expect
    from pytest_induction.fixture import Induction
    from pytest_induction.heads.composition import CompositionScores, measure_composition
    from pytest_induction.heads.copying import CopyingScores, measure_copying
    from pytest_induction.heads.distances import DistanceScores, measure_distances
    from pytest_induction.heads.induction import assert_has_induction_head, assert_no_induction_head, find_induction_heads
    from pytest_induction.heads.match_lengths import MatchLengthScores, measure_match_lengths
    from pytest_induction.heads.semantic import (
        FamilyScores,
        GeneralityScores,
        HeadGenerality,
        assert_heads_generalize,
        measure_generality,
    )
    from pytest_induction.heads.virtual import VirtualPair, VirtualScores, measure_virtual_heads
    from pytest_induction.interventions.ablation import AblationScores, measure_ablations
    from pytest_induction.interventions.edits import (
        Intervention,
        ablate,
        freeze_patterns,
        intervene,
        knock_out,
        leave_in,
        run_with,
        scale,
        smear,
        substitute_pattern,
    )
    from pytest_induction.interventions.smearing import SmearedKeys, smear_keys
    from pytest_induction.measuring.rounds import HeadScores, measure_heads
    from pytest_induction.model.load import load_model
    from pytest_induction.model.protocol import ModelUnderTest
    from pytest_induction.probes.sequences import Answer, Probe, ProbeSequence
    from pytest_induction.properties.ready import (
        attends_to_successor,
        completes_repeats,
        is_period_invariant,
        is_relabelling_invariant,
        prefers_longer_match,
        survives_distractors,
    )
    from pytest_induction.records import (
        Change,
        Estimate,
        Evidence,
        HeadEvidence,
        HeadId,
        HeadList,
        Moment,
        PairEvidence,
        Provenance,
        TokenSpace,
        Verdict,
    )
    from pytest_induction.runs.attribution import HeadAttributions, measure_attributions
    from pytest_induction.runs.checkpoints.finding import Checkpoint, find_checkpoints
    from pytest_induction.runs.given import given_probes
    from pytest_induction.runs.heads_over_training import (
        assert_final_has_induction_head,
        assert_formed,
        assert_heads_kept,
        assert_log_is_sane,
    )
    from pytest_induction.runs.opening import load_run
    from pytest_induction.runs.perturbation import assert_coperturbation
    from pytest_induction.runs.phase_change.claims import (
        assert_cooccurrence,
        assert_no_phase_change,
        assert_onset_not_later,
        assert_phase_change,
        assert_previous_token_first,
    )
    from pytest_induction.runs.phase_change.finding import PhaseChange, find_phase_changes
    from pytest_induction.runs.properties import (
        PropertyCheck,
        PropertyOverTraining,
        assert_property_holds,
        assert_property_holds_from,
        check_property,
        find_counterexample,
    )
    from pytest_induction.runs.record import Hunted, ScheduledChange, Snapshot, TrainingRun
    from pytest_induction.runs.recorder import InductionRecorder
    from pytest_induction.runs.sweep import sweep

_HOME = {
    "attention.backends.exposed": ("expose_attention",),
    "behaviour.claims": ("assert_copies_repeats", "assert_learns_in_context"),
    "behaviour.outcomes": ("Behaviour", "Masses", "Outcome", "evaluate_probes"),
    "causal.circuit": ("assert_induction_circuit",),
    "causal.in_context": ("assert_ablation_removes_icl",),
    "claims": ("Claim", "register_claim"),
    "comparison.continuity": ("assert_continuity",),
    "comparison.preserved": ("assert_heads_preserved", "profile_of"),
    "comparison.profiles": ("HeadsProfile",),
    "errors": (
        "ArgumentError",
        "BaselineError",
        "BaselineFailed",
        "ExpectationFailed",
        "InductionError",
        "ModelError",
        "ProbeError",
        "PropertyFailed",
        "ReportError",
        "RunError",
        "TextError",
        "UnsupportedModel",
    ),
    "expectations": ("expect",),
    "fixture": ("Induction",),
    "heads.composition": ("CompositionScores", "measure_composition"),
    "heads.copying": ("CopyingScores", "measure_copying"),
    "heads.distances": ("DistanceScores", "measure_distances"),
    "heads.induction": ("assert_has_induction_head", "assert_no_induction_head", "find_induction_heads"),
    "heads.match_lengths": ("MatchLengthScores", "measure_match_lengths"),
    "heads.semantic": ("FamilyScores", "GeneralityScores", "HeadGenerality", "assert_heads_generalize", "measure_generality"),
    "heads.virtual": ("VirtualPair", "VirtualScores", "measure_virtual_heads"),
    "interventions.ablation": ("AblationScores", "measure_ablations"),
    "interventions.edits": (
        "Intervention",
        "ablate",
        "freeze_patterns",
        "intervene",
        "knock_out",
        "leave_in",
        "run_with",
        "scale",
        "smear",
        "substitute_pattern",
    ),
    "interventions.smearing": ("SmearedKeys", "smear_keys"),
    "measuring.rounds": ("HeadScores", "measure_heads"),
    "model.load": ("load_model",),
    "model.protocol": ("ModelUnderTest",),
    "probes.sequences": ("Answer", "Probe", "ProbeSequence"),
    "properties.ready": (
        "attends_to_successor",
        "completes_repeats",
        "is_period_invariant",
        "is_relabelling_invariant",
        "prefers_longer_match",
        "survives_distractors",
    ),
    "records": (
        "Change",
        "Estimate",
        "Evidence",
        "HeadEvidence",
        "HeadId",
        "HeadList",
        "Moment",
        "PairEvidence",
        "Provenance",
        "TokenSpace",
        "Verdict",
    ),
    "runs.attribution": ("HeadAttributions", "measure_attributions"),
    "runs.checkpoints.finding": ("Checkpoint", "find_checkpoints"),
    "runs.given": ("given_probes",),
    "runs.heads_over_training": ("assert_final_has_induction_head", "assert_formed", "assert_heads_kept", "assert_log_is_sane"),
    "runs.opening": ("load_run",),
    "runs.perturbation": ("assert_coperturbation",),
    "runs.phase_change.claims": (
        "assert_cooccurrence",
        "assert_no_phase_change",
        "assert_onset_not_later",
        "assert_phase_change",
        "assert_previous_token_first",
    ),
    "runs.phase_change.finding": ("PhaseChange", "find_phase_changes"),
    "runs.properties": (
        "PropertyCheck",
        "PropertyOverTraining",
        "assert_property_holds",
        "assert_property_holds_from",
        "check_property",
        "find_counterexample",
    ),
    "runs.record": ("Hunted", "ScheduledChange", "Snapshot", "TrainingRun"),
    "runs.recorder": ("InductionRecorder",),
    "runs.sweep": ("sweep",),
}
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}

__all__ = [
    "AblationScores",
    "Answer",
    "ArgumentError",
    "BaselineError",
    "BaselineFailed",
    "Behaviour",
    "Change",
    "Checkpoint",
    "Claim",
    "CompositionScores",
    "CopyingScores",
    "DistanceScores",
    "Estimate",
    "Evidence",
    "ExpectationFailed",
    "FamilyScores",
    "GeneralityScores",
    "HeadAttributions",
    "HeadEvidence",
    "HeadGenerality",
    "HeadId",
    "HeadList",
    "HeadScores",
    "HeadsProfile",
    "Hunted",
    "Induction",
    "InductionError",
    "InductionRecorder",
    "Intervention",
    "Masses",
    "MatchLengthScores",
    "ModelError",
    "ModelUnderTest",
    "Moment",
    "Outcome",
    "PairEvidence",
    "PhaseChange",
    "Probe",
    "ProbeError",
    "ProbeSequence",
    "PropertyCheck",
    "PropertyFailed",
    "PropertyOverTraining",
    "Provenance",
    "ReportError",
    "RunError",
    "ScheduledChange",
    "SmearedKeys",
    "Snapshot",
    "TextError",
    "TokenSpace",
    "TrainingRun",
    "UnsupportedModel",
    "Verdict",
    "VirtualPair",
    "VirtualScores",
    "ablate",
    "assert_ablation_removes_icl",
    "assert_continuity",
    "assert_cooccurrence",
    "assert_coperturbation",
    "assert_copies_repeats",
    "assert_final_has_induction_head",
    "assert_formed",
    "assert_has_induction_head",
    "assert_heads_generalize",
    "assert_heads_kept",
    "assert_heads_preserved",
    "assert_induction_circuit",
    "assert_learns_in_context",
    "assert_log_is_sane",
    "assert_no_induction_head",
    "assert_no_phase_change",
    "assert_onset_not_later",
    "assert_phase_change",
    "assert_previous_token_first",
    "assert_property_holds",
    "assert_property_holds_from",
    "attends_to_successor",
    "check_property",
    "completes_repeats",
    "evaluate_probes",
    "expect",
    "expose_attention",
    "find_checkpoints",
    "find_counterexample",
    "find_induction_heads",
    "find_phase_changes",
    "freeze_patterns",
    "given_probes",
    "intervene",
    "is_period_invariant",
    "is_relabelling_invariant",
    "knock_out",
    "leave_in",
    "load_model",
    "load_run",
    "measure_ablations",
    "measure_attributions",
    "measure_composition",
    "measure_copying",
    "measure_distances",
    "measure_generality",
    "measure_heads",
    "measure_match_lengths",
    "measure_virtual_heads",
    "prefers_longer_match",
    "profile_of",
    "register_claim",
    "run_with",
    "scale",
    "smear",
    "smear_keys",
    "substitute_pattern",
    "survives_distractors",
    "sweep",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'pytest_induction' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"pytest_induction.{_MODULE_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_MODULE_OF])
