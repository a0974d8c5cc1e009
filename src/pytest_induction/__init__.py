"""A mechanistic test harness for transformer language models, as a pytest plugin.

Importing this package loads neither torch nor numpy: every name below is loaded when it is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pytest_induction.assertions.behaviour import assert_copies_repeats, assert_learns_in_context
    from pytest_induction.assertions.causes import assert_ablation_removes_icl
    from pytest_induction.assertions.circuits import assert_induction_circuit
    from pytest_induction.assertions.continuity import assert_continuity
    from pytest_induction.assertions.formed import assert_formed
    from pytest_induction.assertions.generality import assert_heads_generalize
    from pytest_induction.assertions.given import given_probes
    from pytest_induction.assertions.heads import assert_has_induction_head, assert_no_induction_head, find_induction_heads
    from pytest_induction.assertions.holding import PropertyOverTraining, assert_property_holds, assert_property_holds_from
    from pytest_induction.assertions.hunting import PropertyCheck, check_property, find_counterexample
    from pytest_induction.assertions.perturbation import assert_coperturbation
    from pytest_induction.assertions.preserved import assert_heads_preserved, profile_of
    from pytest_induction.assertions.run_state import assert_final_has_induction_head, assert_heads_kept, assert_log_is_sane
    from pytest_induction.assertions.runs import (
        assert_cooccurrence,
        assert_no_phase_change,
        assert_onset_not_later,
        assert_phase_change,
        assert_previous_token_first,
    )
    from pytest_induction.bound import Induction
    from pytest_induction.composition import CompositionScores, measure_composition
    from pytest_induction.copying import CopyingScores, measure_copying
    from pytest_induction.distances import DistanceScores, measure_distances
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
    from pytest_induction.generality import FamilyScores, GeneralityScores, HeadGenerality, measure_generality
    from pytest_induction.interventions.ablation import AblationScores, measure_ablations
    from pytest_induction.interventions.context import intervene, run_with
    from pytest_induction.interventions.edits import (
        Intervention,
        ablate,
        freeze_patterns,
        knock_out,
        leave_in,
        scale,
        smear,
        substitute_pattern,
    )
    from pytest_induction.interventions.smearing import SmearedKeys, smear_keys
    from pytest_induction.match_lengths import MatchLengthScores, measure_match_lengths
    from pytest_induction.measure import HeadScores, measure_heads
    from pytest_induction.models.load import load_model
    from pytest_induction.models.protocol import ModelUnderTest
    from pytest_induction.models.shown import show_attention
    from pytest_induction.outcomes import Behaviour, Masses, Outcome, evaluate_probes
    from pytest_induction.probes.answers import Answer, ProbeSequence
    from pytest_induction.probes.sequences import Probe
    from pytest_induction.profiles import HeadsProfile
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
    from pytest_induction.runs.checkpoints import Checkpoint, find_checkpoints
    from pytest_induction.runs.opening import load_run
    from pytest_induction.runs.phase_change import PhaseChange, find_phase_changes
    from pytest_induction.runs.record import Hunted, ScheduledChange, Snapshot, TrainingRun
    from pytest_induction.runs.recorder import InductionRecorder
    from pytest_induction.runs.sweep import sweep
    from pytest_induction.virtual import VirtualPair, VirtualScores, measure_virtual_heads

_HOME = {
    "assertions.heads": (
        "assert_copies_repeats",
        "assert_has_induction_head",
        "assert_learns_in_context",
        "assert_no_induction_head",
        "find_induction_heads",
    ),
    "assertions.given": ("given_probes",),
    "assertions.holding": ("PropertyOverTraining", "assert_property_holds", "assert_property_holds_from"),
    "assertions.hunting": ("PropertyCheck", "check_property", "find_counterexample"),
    "properties.ready": (
        "attends_to_successor",
        "completes_repeats",
        "is_period_invariant",
        "is_relabelling_invariant",
        "prefers_longer_match",
        "survives_distractors",
    ),
    "assertions.formed": ("assert_formed",),
    "assertions.run_state": ("assert_final_has_induction_head", "assert_heads_kept", "assert_log_is_sane"),
    "assertions.perturbation": ("assert_coperturbation",),
    "assertions.runs": (
        "assert_cooccurrence",
        "assert_no_phase_change",
        "assert_onset_not_later",
        "assert_phase_change",
        "assert_previous_token_first",
    ),
    "assertions.causes": ("assert_ablation_removes_icl",),
    "assertions.circuits": ("assert_induction_circuit",),
    "assertions.continuity": ("assert_continuity",),
    "assertions.generality": ("assert_heads_generalize",),
    "assertions.preserved": ("assert_heads_preserved", "profile_of"),
    "profiles": ("HeadsProfile",),
    "composition": ("CompositionScores", "measure_composition"),
    "generality": ("FamilyScores", "GeneralityScores", "HeadGenerality", "measure_generality"),
    "interventions.ablation": ("AblationScores", "measure_ablations"),
    "interventions.context": ("intervene", "run_with"),
    "interventions.smearing": ("SmearedKeys", "smear_keys"),
    "interventions.edits": (
        "Intervention",
        "ablate",
        "freeze_patterns",
        "knock_out",
        "leave_in",
        "scale",
        "smear",
        "substitute_pattern",
    ),
    "bound": ("Induction",),
    "copying": ("CopyingScores", "measure_copying"),
    "distances": ("DistanceScores", "measure_distances"),
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
    "match_lengths": ("MatchLengthScores", "measure_match_lengths"),
    "measure": ("HeadScores", "measure_heads"),
    "models.load": ("load_model",),
    "models.protocol": ("ModelUnderTest",),
    "models.shown": ("show_attention",),
    "outcomes": ("Behaviour", "Masses", "Outcome", "evaluate_probes"),
    "probes.answers": ("Answer", "ProbeSequence"),
    "probes.sequences": ("Probe",),
    "records": (
        "Change",
        "Estimate",
        "Evidence",
        "HeadEvidence",
        "HeadList",
        "HeadId",
        "Moment",
        "PairEvidence",
        "Provenance",
        "TokenSpace",
        "Verdict",
    ),
    "runs.attribution": ("HeadAttributions", "measure_attributions"),
    "runs.checkpoints": ("Checkpoint", "find_checkpoints"),
    "runs.opening": ("load_run",),
    "runs.phase_change": ("PhaseChange", "find_phase_changes"),
    "runs.record": ("Hunted", "ScheduledChange", "Snapshot", "TrainingRun"),
    "runs.recorder": ("InductionRecorder",),
    "runs.sweep": ("sweep",),
    "virtual": ("VirtualPair", "VirtualScores", "measure_virtual_heads"),
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
    "run_with",
    "scale",
    "show_attention",
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
