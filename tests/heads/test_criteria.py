"""One rule for what a head is, its thresholds in one place, and everything that decides about heads goes by it."""

import ast
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import pytest_induction
from pytest_induction import ExpectationFailed, Verdict, assert_has_induction_head, assert_no_induction_head, load_model
from pytest_induction.attention.scores import SCORES
from pytest_induction.charts.causes import _earlier
from pytest_induction.charts.heads import Seen
from pytest_induction.comparison.preservation import heads_in_roles, scores_of
from pytest_induction.comparison.preserved import profile_of
from pytest_induction.heads import criteria
from pytest_induction.heads.table import Thresholds, head_evidence, table_of
from pytest_induction.measuring.rounds import Round, probe_round
from pytest_induction.records import Estimate, HeadList, Provenance
from pytest_induction.runs.heads_over_training import judge_snapshot
from pytest_induction.runs.record import Snapshot
from pytest_induction.runs.stopping import HeadsLost, NoInductionBy
from tests.known_heads import Planted, _or_first
from tests.known_heads import _earlier as earlier_occurrences

PACKAGE = Path(pytest_induction.__file__).parent
NAMES = {name for name in vars(criteria) if name.isupper() and isinstance(getattr(criteria, name), (int, float))}
NUMBERS = {getattr(criteria, name) for name in NAMES} - {criteria.MIN_PERIODS} | {criteria.min_excess()}

# Numbers of the package that are the same by chance, and say nothing of what a head is.
OTHERS = {
    ("heads/suppression.py", "HIGH_MASS"),  # of attention, at which the effect is shown beside
    ("heads/suppression.py", "MIN_SHARE"),
    ("heads/suppression.py", "MIN_SUPPRESSION"),  # nats
    ("behaviour/recall.py", "ABOVE_CHANCE"),  # of accuracy
    ("deciding.py", "MAX_IN_CONTEXT_LEARNING"),
    ("locks.py", "LOOKS"),  # seconds
    ("progress.py", "REDRAWN"),  # seconds
    ("runs/schedule.py", "SETTLING"),
    ("attention/verification.py", "ROW_SUMS_HALF"),
    ("runs/recorder.py", "OVERHEAD"),
    ("causal/circuit.py", "LEAST_EFFECT"),
    ("causal/dealing.py", "SUSPECT"),  # of what is lost
    ("causal/judging.py", "MAY_WELL_BE"),  # of half an interval
    ("causal/circuit.py", "MIN_SHARE"),  # of prefix matching, that is lost
    ("comparison/continuity.py", "0 < error_rate < 0.5"),
    ("runs/perturbation.py", "MIN_SHIFT"),
    ("runs/perturbation.py", "MOST_OF_IT"),
    ("comparison/preserved.py", "MOST_ERROR"),
    ("runs/heads_over_training.py", "LOST_GAIN"),
    ("runs/phase_change/claims.py", "MAX_ONSET_LAG"),
    ("model/batching.py", "SHARE_OF_FREE"),
    ("statistics.py", "SHARES"),
    ("plugin/gates/sweeping.py", "BUSY"),
    ("interventions/smearing.py", "share"),
    ("runs/trajectory.py", "BIN"),
    ("forward/calling.py", "CLOSE"),
    ("attention/leaks.py", "NOISE"),
    ("planted/blueprint.py", "RESTING"),
    ("probes/conflicts.py", "MOST_SHARE"),  # of the count of another successor
    ("probes/semantic.py", "rng.random() < 0.5"),
    ("probes/strategies/searching.py", "FULL"),
    ("probes/strategies/searching.py", "LEAST_FULL"),
    ("properties/ready.py", "MAX_CHANGE"),
    ("records.py", "band"),
    ("report/charts/drawing.py", "size * power >= rough * 0.9"),
    ("report/charts/run.py", "STEEPEST"),
    ("runs/attribution.py", "MOST_APART"),
    ("runs/phase_change/bump.py", "LEAST_RISE"),
    ("runs/phase_change/changes.py", "MAX_WIDTH"),
    ("runs/phase_change/changes.py", "NEAR"),
    ("runs/phase_change/changes.py", "OTHER_STEP"),
    ("runs/phase_change/changes.py", "error_rate"),
    ("runs/schedule.py", "RETRY"),
    ("runs/schedule.py", "SIGN, AHEAD"),
    ("runs/schedule.py", "UNITS"),
    ("runs/logs/read.py", "FALL"),
    ("runs/phase_change/finding.py", "ERROR_RATE"),
    ("runs/phase_change/finding.py", "MAX_LAG"),
    ("runs/schedule.py", "CAUTION"),
    ("runs/schedule.py", "MOST_CREDIT"),
    ("runs/record.py", "MIN_CHANGE"),  # by which a series must change
    ("runs/stopping.py", "share"),
    ("runs/phase_change/transition.py", "FAR"),
    ("runs/phase_change/transition.py", "error_rate"),
    ("runs/phase_change/turn.py", "STRETCH"),
    ("statistics.py", "0 < tail < 0.5"),
    ("behaviour/judging.py", "MIN_ACCURACY"),  # of a model
    ("causal/specificity.py", "MIN_SPECIFICITY"),  # nats
    ("causal/specificity.py", "MIN_GAP"),
    ("causal/icl_heads.py", "MIN_DIFFERENCE"),  # nats
    ("causal/icl_heads.py", "TOP_SHARE"),  # of all heads
    ("causal/concept_heads.py", "MIN_RESTORED"),  # nats
    ("interventions/concepts.py", "TOP_SHARE"),  # of all heads
    ("causal/retrieval.py", "MIN_WRITTEN"),  # nats
    ("causal/retrieval.py", "MIN_LOST"),
    ("causal/retrieval.py", "TOP_SHARE"),  # of all heads
    ("comparison/retrieval.py", "MAX_LOST"),  # nats
    ("interventions/few_shot.py", "MIN_ACCURACY"),  # of a task
    ("interventions/few_shot.py", "MOST_LEFT"),
    ("causal/judging.py", "MIN_SHARE"),  # of in-context learning, that is lost
    ("comparison/margins.py", "OF_MODELS"),  # by which models may differ
    ("comparison/margins.py", "OF_RUNS"),
    ("comparison/margins.py", "WINDOW"),
    ("comparison/matching.py", "MEASURES"),  # that may be lost
}


def defined_numbers(source):
    """What defines a number that is also a threshold of heads, or any number under its name: constants, defaults, comparisons."""

    def is_one(node, name=""):
        inside = [each.value for each in ast.walk(node) if isinstance(each, ast.Constant) and type(each.value) in (int, float)]
        return any(number in NUMBERS for number in inside) or (bool(inside) and name in NAMES)

    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.Module, ast.ClassDef)):
            for each in node.body:
                if isinstance(each, (ast.Assign, ast.AnnAssign)) and each.value is not None:
                    targets = each.targets if isinstance(each, ast.Assign) else [each.target]
                    name = ", ".join(ast.unparse(target).strip("()") for target in targets)
                    if is_one(each.value, name):
                        yield name
        elif isinstance(node, ast.arguments):
            names = [*node.posonlyargs, *node.args]
            given = [*zip(names[len(names) - len(node.defaults) :], node.defaults, strict=True)]
            given += [pair for pair in zip(node.kwonlyargs, node.kw_defaults, strict=True) if pair[1] is not None]
            yield from (argument.arg for argument, default in given if is_one(default))
        elif isinstance(node, ast.Compare) and is_one(node):
            yield ast.unparse(node)


def test_no_threshold_of_heads_is_a_number_anywhere_else():
    """A constant, a default or a comparison with such a number says what else it is, or uses criteria.py."""
    found = {
        (path.relative_to(PACKAGE).as_posix(), name)
        for path in PACKAGE.rglob("*.py")
        if path != PACKAGE / "heads" / "criteria.py"
        for name in defined_numbers(path.read_text(encoding="utf-8"))
    }
    assert found - OTHERS == set(), "use pytest_induction.heads.criteria, or list what else the number is in OTHERS"
    assert OTHERS - found == set(), "these are gone"


@pytest.mark.parametrize(
    "source",
    [
        "THRESHOLDS = {'prefix_matching': 0.3, 'excess': 0.1}",
        "CLEAR, DORMANT = 0.5, 0.9",
        "THRESHOLD: float = 0.3",
        "MIN_PREFIX_MATCHING = 0.4",
        "MIN_PERIODS = 3",
        "class Rule:\n    least: float = 0.3",
        "def judge(found, *, min_prefix_matching=0.3): ...",
        "def judge(found, least=0.3, other=None): ...",
        "def chosen(heads):\n    return [head for head in heads if head.previous_token >= 0.3]",
        "def passes(excess, threshold):\n    return excess.is_above(threshold) and excess.value > threshold * 0.5",
        "def suppresses(effect):\n    return effect.high < -0.25",
    ],
)
def test_the_guard_can_fail(source):
    """On what stood in the package before, and the like."""
    assert list(defined_numbers(source))


@pytest.mark.parametrize(
    "source",
    ["MOST = 8", "MIN_SHARE = 0.4", "X = MIN_PREFIX_MATCHING", "def f(a=None, *, b=MIN_PREFIX_MATCHING, c): ...", "a > 2"],
)
def test_the_guard_does_not_fail_on_anything(source):
    """Other numbers, and the constants themselves."""
    assert not list(defined_numbers(source))


# What heads have: prefix matching, previous, duplicate, first token, at the wrong shift, and where nothing repeats.
HEADS = {
    "clear": (0.60, 0.01, 0.01, 0.05, 0.02, 0.01),
    "weak, and above": (0.36, 0.02, 0.05, 0.20, 0.05, 0.04),
    "less than half by chance": (0.50, 0.02, 0.05, 0.05, 0.04, 0.30),
    "by place": (0.50, 0.02, 0.05, 0.05, 0.04, 0.45),
    "as much beside": (0.48, 0.02, 0.05, 0.05, 0.46, 0.02),
    "too weak": (0.24, 0.02, 0.05, 0.05, 0.01, 0.01),
    "previous token": (0.01, 0.38, 0.02, 0.05, 0.01, 0.01),
    "both": (0.42, 0.40, 0.02, 0.05, 0.03, 0.03),
    "duplicate": (0.02, 0.02, 0.37, 0.05, 0.01, 0.01),
    "dormant": (0.01, 0.01, 0.01, 0.95, 0.01, 0.01),
}
MATCHING = {"clear", "weak, and above", "less than half by chance", "both"}
PREVIOUS = {"previous token", "both"}
SHAPE = (2, 5)
NOWHERE = Provenance("made up", "", "", 2, 5, "", "")


@pytest.fixture(scope="module")
def made_up():
    """336 sequences of six periods, in which the heads differ little from sequence to sequence."""
    rng, count = np.random.default_rng(0), 336
    scores = np.array([*HEADS.values()]).T.reshape(6, *SHAPE)
    drawn = scores + rng.normal(0, 0.003, (count, *scores.shape))
    behaviour = {name: rng.normal(3.0, 0.1, count) for name in ("first_loss", "repeat_loss", "advantage")}
    behaviour |= {name: rng.normal(0.6, 0.01, count) for name in ("first_accuracy", "repeat_accuracy")}
    by_name = dict(zip((*SCORES, "wrong_shift", "other_periods"), drawn.swapaxes(0, 1), strict=True))
    periods = np.repeat(np.arange(13, 19), count // 6)
    return Round(periods, by_name | {"control": by_name["other_periods"]}, {}, behaviour, "made up")


def seen_of(found):
    """What a chart has of the heads of a round."""
    listed = HeadList(table_of(found, Thresholds(), 1e-3).matching, (), (), (), NOWHERE)
    return Seen(found, tuple(head_evidence(found, Thresholds(), 1e-3)), listed, None, "")


def named(heads):
    """The names of heads by their places."""
    return {[*HEADS][head.layer * SHAPE[1] + head.head] for head in heads}


def snapshot_of(found, only=None):
    """What a recorder keeps of a round; of one head only, as if the others were not there."""
    names = {"prefix_matching": found.scores["prefix_matching"], "excess": criteria.excess(found.scores)}
    means = {name: values.mean(0) for name, values in names.items()}
    errors = {name: values.std(0, ddof=1) / len(values) ** 0.5 for name, values in names.items()}
    if only is not None:
        gone = np.arange(len(HEADS)).reshape(SHAPE) != [*HEADS].index(only)
        means = {name: np.where(gone, np.nan, values) for name, values in means.items()}
    advantage = found.behaviour["advantage"]
    errors["advantage"] = float(advantage.std(ddof=1) / len(advantage) ** 0.5)
    return Snapshot(1, **means, errors=errors, advantage=float(advantage.mean()), n_sequences=len(advantage))


def test_all_that_decide_about_heads_give_the_same_heads(made_up):
    """Verdicts, profiles, the end of a run, what a report draws and the rules that stop a training."""
    means = {name: values.mean(0) for name, values in scores_of(made_up).items()}
    places = criteria.matches_by_means(means).ravel()
    assert {name for name, matches in zip(HEADS, places, strict=True) if matches} == MATCHING
    least = criteria.MIN_PREFIX_MATCHING
    assert named(table_of(made_up, Thresholds(), 1e-3).matching) == MATCHING
    profiled = heads_in_roles(scores_of(made_up), np.zeros(SHAPE, bool))
    assert named(head for head in profiled if head.role == "induction") == MATCHING
    seen = seen_of(made_up)
    assert named(seen.matching) == MATCHING
    thresholds = {"min_prefix_matching": least, "min_advantage": criteria.MIN_ADVANTAGE}
    end = judge_snapshot(snapshot_of(made_up), **thresholds)
    assert end.verdict is Verdict.SHOWN and named(end.found) == MATCHING
    alone = {name: snapshot_of(made_up, name) for name in HEADS}
    assert {name for name, snapshot in alone.items() if NoInductionBy(steps=1)([snapshot]) == ""} == MATCHING
    gone = [Snapshot(step, prefix_matching=np.zeros(SHAPE), excess=np.zeros(SHAPE)) for step in (2, 3, 4)]
    assert {name for name, snapshot in alone.items() if HeadsLost()([snapshot, *gone]) != ""} == MATCHING


def test_all_give_the_same_previous_token_heads(made_up):
    """0.3 of their attention for circuits, profiles, kinds and what a report draws."""
    evidence = head_evidence(made_up, Thresholds(), 1e-3)
    assert {name for name, scores in HEADS.items() if criteria.is_previous_token(scores[1])} == PREVIOUS
    profiled = heads_in_roles(scores_of(made_up), np.zeros(SHAPE, bool))
    assert named(head for head in profiled if head.role == "previous_token") == PREVIOUS
    assert named(head for head in profiled if head.role == "duplicate_token") == {"duplicate"}
    drawn = _earlier(seen_of(made_up), 2)
    assert named(head for head, role, _ in drawn if role == "previous token") == PREVIOUS
    assert {kind: named(head for head in evidence if head.kind == kind) for kind in {head.kind for head in evidence}} == {
        "matches": MATCHING,
        "positional": {"by place", "as much beside"},
        "previous": {"previous token"},
        "duplicate": {"duplicate"},
        "dormant": {"dormant"},
        "": {"too weak"},
    }


@pytest.mark.parametrize(
    ("score", "excess", "answer"),
    [
        ((0.31, 0.4), (0.16, 0.3), "above"),
        ((0.29, 0.4), (0.16, 0.3), "open"),
        ((0.31, 0.4), (0.14, 0.3), "open"),
        ((0.31, 0.4), (0.05, 0.14), "below"),
        ((0.2, 0.29), (0.16, 0.29), "below"),
        ((0.3, 0.4), (0.16, 0.3), "open"),  # an interval that begins at the threshold is not above it
        ((np.nan, np.nan), (np.nan, np.nan), "open"),
        ((0.31, 0.4), (np.nan, np.nan), "open"),
    ],
)
def test_decisions_by_intervals_are_one_of_three(score, excess, answer):
    """Above where both are, below where one is, open for the rest and for what is no number."""
    estimates = [Estimate(low, low, high) for low, high in (score, excess)]
    found = {"above": criteria.is_above(*estimates), "below": criteria.is_below(*estimates), "open": criteria.is_open(*estimates)}
    assert [name for name, holds in found.items() if holds] == [answer]


def test_other_thresholds_move_what_must_be_left_beyond_chance():
    """Half of what is asked for."""
    scores = {"prefix_matching": np.array([0.7, 0.7, 0.5]), "excess": np.array([0.31, 0.29, 0.5]), "previous_token": 0.0}
    assert criteria.matches_by_means(scores, 0.6).tolist() == [True, False, False]
    assert not criteria.matches_by_means({"prefix_matching": np.nan, "excess": np.nan})
    assert criteria.kind_of_head({"prefix_matching": 0.7, "excess": 0.29}, 0.6) == criteria.POSITIONAL
    assert criteria.LEAST["excess"] == criteria.min_excess() == 0.15


def test_the_rule_needs_neither_numpy_nor_torch():
    """Reports go by it too."""
    imported = {
        name
        for node in ast.walk(ast.parse((PACKAGE / "heads" / "criteria.py").read_text(encoding="utf-8")))
        for name in ([each.name for each in node.names] if isinstance(node, ast.Import) else [getattr(node, "module", None)])
        if isinstance(node, (ast.Import, ast.ImportFrom))
    }
    assert imported == {"__future__", "collections.abc", "typing", "pytest_induction.records"}


def half_beside(tokens):
    """Half on the successors of earlier occurrences, half on what comes after those."""
    return _or_first(sum(F.pad(earlier_occurrences(tokens), (shift, 0))[..., : tokens.shape[1]] for shift in (1, 2)).tril())


@pytest.fixture(scope="module")
def beside():
    """In a context of 21 tokens periods are 4 and 5: the wrong shift is 1, where this head has as much."""
    return Planted(half_beside, n_ctx=21, d_vocab=40)


def test_half_on_the_successor_and_half_beside_it_is_no_induction_head(beside):
    """It has nothing at the places of other periods, so that only the wrong shift says so."""
    subject = load_model(beside)
    found = probe_round(subject, 12, 0, 0)
    assert set(found.periods) == {4, 5}
    score, beyond_control = found.scores["prefix_matching"], found.scores["prefix_matching"] - found.scores["control"]
    means = {"prefix_matching": score.mean(0), "excess": criteria.excess(found.scores).mean(0)}
    assert means["prefix_matching"] == pytest.approx(0.5, abs=1e-6) and means["excess"] == pytest.approx(0, abs=1e-6)
    assert not criteria.matches_by_means(means).any()
    assert criteria.matches_by_means({**means, "excess": beyond_control.mean(0)}).all()  # so it would count by the control alone
    with pytest.raises(ExpectationFailed) as refused:
        assert_has_induction_head(beside)
    assert not refused.value.evidence.heads and refused.value.evidence.verdict is not Verdict.SHOWN
    assert not profile_of(beside, n_sequences=12).heads


def test_without_the_wrong_shift_it_would_be_one(beside, monkeypatch):
    """The test above can fail: chance by other periods alone makes a verdict of it."""
    monkeypatch.setattr(criteria, "own_chance", lambda scores: scores["control"])
    assert assert_has_induction_head(beside).verdict is Verdict.SHOWN
    with pytest.raises(ExpectationFailed):
        assert_no_induction_head(beside)
    assert [(head.role, head.layer, head.head) for head in profile_of(beside, n_sequences=12).heads] == [("induction", 0, 0)]


def test_attention_evenly_over_the_successors_counts(beside):
    """A head that has its whole half on the successors and rests with the other does, in the same context."""

    def half_resting(tokens):
        return (
            _or_first(F.pad(earlier_occurrences(tokens), (1, 0))[..., :-1]) + F.one_hot(torch.zeros_like(tokens), tokens.shape[1])
        ) / 2

    assert assert_has_induction_head(Planted(half_resting, n_ctx=21, d_vocab=40)).heads[0].excess.value == pytest.approx(
        0.5, abs=0.01
    )
