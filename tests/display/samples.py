"""Every kind of record that is shown, measured on the models and runs that come with the project."""

from functools import cache
from pathlib import Path
from typing import Any

import pytest_induction as pi
from pytest_induction import planted
from pytest_induction.baselines.compare import compare
from pytest_induction.baselines.store import Field, Heads, Numbers, fields_of
from pytest_induction.comparing import Settings
from pytest_induction.comparing import compare as side_by_side
from pytest_induction.comparison import profile_of
from pytest_induction.runs import find_phase_changes

FIXTURES = Path(__file__).parents[2] / "fixtures"
MODEL = FIXTURES / "models" / "llama-2l"
RUN, OTHER_RUN = FIXTURES / "runs" / "two-layers", FIXTURES / "runs" / "one-layer"

SIZES = {"n_heads": 3, "d_vocab": 40, "n_ctx": 64}
SHOTS = {"d_vocab": 33, "n_ctx": 48, "n_heads": 2}
ROWS = [[each % 50 for each in range(7 * row, 7 * row + 64)] for row in range(4)]


@cache
def model() -> pi.ModelUnderTest:
    return pi.load_model(str(MODEL))


@cache
def run() -> Any:
    return pi.load_run(str(RUN))


def _few_shot(given: Any) -> Any:
    return pi.measure_function_vectors(given, tasks=given.tasks, n_sequences=4, seed=0)


def _retrieval(given: Any) -> Any:
    return pi.measure_retrieval(given, facts=given.facts, lengths=40, n_sequences=12, seed=0)


def _concepts(given: Any) -> Any:
    return pi.measure_concept_copying(given, words=given.words, n_sequences=2, seed=0)


MADE: dict[str, Any] = {
    "ModelUnderTest": model,
    "Evidence": lambda: pi.assert_has_induction_head(model(), seed=0),
    "HeadList": lambda: pi.find_induction_heads(model(), seed=0),
    "HeadScores": lambda: pi.measure_heads(model(), n_sequences=4, seed=0),
    "CopyingScores": lambda: pi.measure_copying(model(), n_sequences=4, seed=0),
    "MatchLengthScores": lambda: pi.measure_match_lengths(model(), n_sequences=4, seed=0),
    "CompetingMatchScores": lambda: pi.measure_competing_matches(model(), n_sequences=8, seed=0),
    "DistanceScores": lambda: pi.measure_distances(model(), distances=[8, 16, 31], n_sequences=4, seed=0),
    "CompositionScores": lambda: pi.measure_composition(model(), n_sequences=4, seed=0),
    "VirtualScores": lambda: pi.measure_virtual_heads(model(), n_sequences=4, seed=0),
    "AblationScores": lambda: pi.measure_ablations(model(), n_sequences=4, seed=0),
    "GeneralityScores": lambda: pi.measure_generality(planted.class_induction_head(**SIZES), "L1H0", "classes", n_sequences=8),
    "FunctionVectorScores": lambda: _few_shot(planted.few_shot_head(**SHOTS)),
    "HeadAttributions": lambda: pi.measure_attributions(model(), ROWS, seed=0),
    "PropertyOverTraining": lambda: pi.check_property(
        {1: model()}, "completes_repeats", min_accuracy=0.1, max_examples=5, seed=0
    ),
    "RecallCurve": lambda: pi.measure_recall(model(), pairs=[2, 4], n_sequences=8, seed=0),
    "RecallPaths": lambda: pi.measure_recall_paths(model(), pairs=4, n_sequences=4, seed=0),
    "SuppressionScores": lambda: pi.measure_copy_suppression(model(), ROWS, explain="L1H0", seed=0),
    "ConceptScores": lambda: _concepts(planted.concept_head(n_heads=3, d_vocab=32, n_ctx=64)),
    "RetrievalScores": lambda: _retrieval(planted.retrieval_head(n_heads=3)),
    "RuleCurve": lambda: pi.measure_rules(model(), n_sequences=8, seed=0),
    "LossByMatch": lambda: pi.measure_loss_by_match(model(), ROWS),
    "TrainingRun": run,
    "Snapshot": lambda: run().snapshots[-1],
    "PhaseChange": lambda: find_phase_changes(run()),
    "HeadsProfile": lambda: profile_of(model(), seed=0),
    "SideBySide": lambda: side_by_side(str(RUN), str(OTHER_RUN), Settings(None, 0, {})),
    "Numbers": lambda: Numbers({name: Field(value) for name, value in NUMBERS().items()}, {"torch": "2.13.0"}),
    "Heads": lambda: Heads(made("HeadsProfile").to_dict(), {"torch": "2.13.0"}),
    "Comparison": lambda: compare({name: Field(value) for name, value in NUMBERS().items()}, {**NUMBERS(), "advantage": 0.0}),
}
"""What is shown, by the name of its class."""


def NUMBERS() -> dict[str, float]:
    return fields_of(made("Evidence"))


@cache
def made(name: str) -> Any:
    """The record of this class, measured once."""
    return MADE[name]()
