"""What a failed assertion says: verdict, facts, where it was measured, what to do; and every reason has a text of its own."""

import ast
import functools
import math
import re
from pathlib import Path

import numpy as np
import pytest

import pytest_induction
from pytest_induction.errors import ExpectationFailed, PropertyFailed
from pytest_induction.expectations import failure_text, next_step
from pytest_induction.formatting import MOST_LINES, WIDEST, fitted
from pytest_induction.planted import concept_head, few_shot_head, induction_head, retrieval_head, uniform_head
from pytest_induction.records import Estimate, Evidence, HeadEvidence, Provenance, Verdict
from tests.conftest import FIXTURES

ROOT = Path(__file__).parents[2]
PAGES = {"verdicts.md": False, "causes.md": False, "interventions.md": True, "runs.md": True}  # whether it is of runs
MODULES = {"runs/perturbation": "interventions.md", "causal/judging": "causes.md", "comparison/margins": "runs.md"}


def listed(page, verdict="[A-Z_, ]+"):
    """The reasons of a verdict in the tables of a page; those that stand for several, as `icl_...`, left out."""
    rows = re.findall(rf"^\| (`[a-z].*?) \| {verdict} \|", (ROOT / "docs" / page).read_text(), re.MULTILINE)
    return {reason for names in rows for reason in re.findall(r"`([a-z_]+)`", names)}


def given(module):
    """The reasons that stand right after a verdict in a module, each with that."""
    tree = ast.parse((ROOT / "src" / "pytest_induction" / f"{module}.py").read_text())
    rows = [
        node.args if isinstance(node, ast.Call) else node.elts
        for node in ast.walk(tree)
        if isinstance(node, (ast.Call, ast.Tuple))
    ]
    for verdict, reason, *_ in (row for row in rows if len(row) > 1):
        if ast.unparse(verdict).startswith("Verdict.") and isinstance(reason, ast.Constant):
            yield reason.value, ast.unparse(verdict).removeprefix("Verdict.")


def step(reason, *, is_run, claim="claim"):
    about = Provenance("model", "", "", 0, 0, "float32", "cpu", is_run=is_run)
    return next_step(Evidence(claim, Verdict.REFUTED, reason, "", about))


@pytest.mark.parametrize("page", PAGES)
def test_every_reason_for_no_says_what_to_do(page):
    reasons = listed(page, "REFUTED")
    assert len(reasons) >= 4
    for reason in reasons:
        assert not step(reason, is_run=PAGES[page]).startswith("see docs/"), reason


@pytest.mark.parametrize("module", MODULES)
def test_what_a_verdict_gives_is_listed_and_told(module):
    """Where more data would tell, the evidence itself says how much."""
    reasons = list(given(module))
    assert len(reasons) >= 3
    for reason, verdict in reasons:
        assert reason in listed(MODULES[module]), reason
        if verdict == "REFUTED":
            assert not step(reason, is_run=module == "runs/perturbation").startswith("see docs/"), reason


def test_a_reason_without_a_text_is_seen():
    for is_run in (False, True):
        assert step("as_yet_unknown", is_run=is_run).startswith("see docs/")


def test_what_is_asked_of_another_series_is_told_as_of_heads():
    for about in ("icl", "turn"):
        assert step(f"{about}_gradual", is_run=True) == step("gradual", is_run=True) != step("no_change", is_run=True)


@pytest.mark.parametrize("reason", ["nothing_moves", "induction_stays", "icl_stays", "changes_apart", "moves_apart"])
def test_what_a_change_did_not_move_names_the_option_of_that_claim(reason):
    """`min_shift=` is how far it must move, `max_lag=` how near."""
    option = "max_lag=" if reason.endswith("apart") else "min_shift="
    assert f"`{option}`" in step(reason, is_run=True, claim="coperturbation")
    assert step("apart", is_run=True, claim="cooccurrence") == "`max_lag=`, in decades, says what counts as together"


RUNS = FIXTURES / "runs"
uniform, matching = (
    functools.cache(lambda make=make: pytest_induction.load_model(make())) for make in (uniform_head, induction_head)
)
FAILING = {  # an assertion -> what makes it fail
    "assert_ablation_removes_icl": lambda check: check(uniform()),
    "assert_continuity": lambda check: check({"a": RUNS / "two-layers", "b": RUNS / "one-layer"}),
    "assert_cooccurrence": lambda check: check(RUNS / "diverged"),
    "assert_coperturbation": lambda check: check(RUNS / "one-layer", RUNS / "one-layer"),
    "assert_copies_repeats": lambda check: check(uniform()),
    "assert_copy_suppression": lambda check: check(uniform(), np.arange(4000) % 17 + 1),
    "assert_final_has_induction_head": lambda check: check(RUNS / "one-layer"),
    "assert_follows_rule": lambda check: check(uniform(), examples=2),
    "assert_formation_order": lambda check: check(RUNS / "two-layers", order=["previous_token", "prefix_matching"]),
    "assert_formed": lambda check: check(RUNS / "two-layers", before_step=100),
    "assert_has_induction_head": lambda check: check(uniform()),
    "assert_heads_generalize": lambda check: check(matching(), "L1H0", "classes"),
    "assert_heads_kept": lambda check: check(RUNS / "one-layer"),
    "assert_heads_preserved": lambda check: check(matching(), uniform()),
    "assert_icl_is_induction": lambda check: check(uniform(), np.arange(4000) % 17 + 1),
    "assert_icl_heads": lambda check: check(uniform(), tasks=few_shot_head().tasks),
    "assert_concept_heads": lambda check: check(uniform(), words=concept_head().words),
    "assert_retrieval_heads": lambda check: check(uniform(), facts=retrieval_head().facts, length=40),
    "assert_retrieval_preserved": lambda check: check(uniform(), uniform(), facts=retrieval_head().facts, length=40),
    "assert_induction_circuit": lambda check: check(uniform()),
    "assert_learns_in_context": lambda check: check(uniform(), np.arange(4000) % 17 + 1),
    "assert_log_is_sane": lambda check: check(RUNS / "diverged"),
    "assert_match_length": lambda check: check(uniform()),
    "assert_no_induction_head": lambda check: check(matching()),
    "assert_no_transience": lambda check: check(RUNS / "one-layer"),
    "assert_no_phase_change": lambda check: check(RUNS / "two-layers"),
    "assert_onset_not_later": lambda check: check(RUNS / "two-layers", RUNS / "one-layer-smeared"),
    "assert_phase_change": lambda check: check(RUNS / "one-layer"),
    "assert_prefers_longer_match": lambda check: check(matching()),
    "assert_property_holds": lambda check: check(uniform(), property="completes_repeats", max_examples=8, seed=0),
    "assert_property_holds_from": lambda check: check({3: uniform()}, property="completes_repeats", max_examples=8, seed=0),
    "check_property": lambda check: check(uniform(), "completes_repeats", max_examples=8, seed=0),
    "assert_transience": lambda check: check(RUNS / "two-layers"),
    "assert_recall_carried_by": lambda check: check(uniform(), "attention"),
    "assert_recalls": lambda check: check(uniform(), pairs=4),
}
PUBLIC = [name for name in pytest_induction.__all__ if name.startswith("assert_") or name == "check_property"]


def check_text(text):
    """Raise unless the text is in the order of the style guide, and no longer than it may be."""
    first, *facts = text.splitlines()
    assert len(facts) < MOST_LINES
    assert all(len(line) <= WIDEST for line in (first, *facts))
    assert re.match(r"\w+ (is (REFUTED|UNDETERMINED|SHOWN), expected (SHOWN|REFUTED)|does not hold): .*\d", first)
    parts = [line.split(":")[0].strip() for line in facts if re.match(r"  \S", line)]
    assert parts[-2:] == ["measured", "next"]
    assert not re.search(r"\b(nan|inf)\b", text, re.IGNORECASE)
    assert facts[-1].rstrip() != "  next:"


def test_every_public_assertion_has_a_case_here():
    assert sorted(PUBLIC) == sorted(FAILING)


@pytest.mark.parametrize("name", FAILING)
def test_a_failure_says_verdict_facts_context_and_next_step(name):
    """And shows no frame of ours."""
    with pytest.raises((ExpectationFailed, PropertyFailed)) as failed:
        FAILING[name](getattr(pytest_induction, name))
    check_text(str(failed.value))
    shown = [entry for entry in failed.traceback if not entry.ishidden(failed)]
    assert {str(entry.path) for entry in shown} == {__file__}


@pytest.mark.parametrize(
    "text",
    [
        "c is REFUTED, expected SHOWN: 0.1\n  next: do\n  measured: here",
        "c is REFUTED, expected SHOWN: 0.1\n  behaviour: loss nan\n  measured: here\n  next: do",
        "c is REFUTED, expected SHOWN: 0.1\n" + 30 * "  fact: 1\n" + "  measured: here\n  next: do",
        "c is REFUTED, expected SHOWN: no number\n  measured: here\n  next: do",
    ],
)
def test_a_text_that_is_not_so_is_seen(text):
    with pytest.raises(AssertionError):
        check_text(text)


def test_many_members_with_long_names_fit():
    """Twelve of two hundred characters: names are whole, and so are the beginning and the end of what was measured."""
    names = [f"{index:02}".ljust(200, "x") for index in range(12)]
    one, two = (pytest_induction.load_run(RUNS / name) for name in ("one-layer", "two-layers"))
    family = {name: two if index else one for index, name in enumerate(names)}
    with pytest.raises(ExpectationFailed) as failed:
        pytest_induction.assert_continuity(family, margins=dict.fromkeys(("onset", "end", "icl_score")))
    text = str(failed.value)
    check_text(text)
    assert f"\n  {names[1]} than in\n  {names[0]} (" in text
    assert f"\n  measured: {names[0]}," in text
    assert "12 runs" in text.splitlines()[-2]


def head(number, value):
    estimate = Estimate(value, value - 0.1, value + 0.1, "share")
    return HeadEvidence(0, number, estimate, estimate, 0.0, math.nan, 0.0, 0.0, 0.0)


def test_what_is_no_number_is_not_printed_and_heads_are_few():
    """Of many heads the strongest are named, with the threshold; a measure that is not known is said to be so."""
    about = Provenance("m" * 200, "", "sdpa", 2, 99, "float32", "cpu", seed=3, n_sequences=1, probe="rows")
    unknown = Estimate(math.nan, math.nan, math.nan, "nats")
    evidence = Evidence(
        "claim",
        Verdict.REFUTED,
        "no_head_matches",
        "0 heads",
        about,
        heads=tuple(head(number, 0.2) for number in range(99)),
        estimates={"advantage": unknown, "repeat_loss": Estimate(1.0, -math.inf, math.inf)},
        thresholds={"min_prefix_matching": 0.3, "max_repeat_loss": 2.0},
    )
    text = failure_text(evidence)
    check_text(text)
    _, heads, behaviour, measured, _ = text.splitlines()
    assert heads.startswith("  heads: L0H0 0.200 (0.100..0.300), ") and heads.endswith(" (threshold 0.300)")
    assert heads.count("L0H") == 5
    assert behaviour == "  behaviour: advantage not known; repeat loss 1.00 (interval not known, threshold 2.00)"
    assert "1 sequence, rows; --induction-seed=3" in measured


def test_facts_that_are_too_many_are_counted():
    """Whatever a property of the user's says: where it was measured and what to do stand at the end."""
    text = fitted(
        "p does not hold: 1", [f"fact {number}" for number in range(99)], "  measured: here", f"  next: {'do it ' * 99}"
    )
    check_text(text)
    lines = text.splitlines()
    assert len(lines) == MOST_LINES
    assert lines[-6:-3] == ["fact 18", "  and 80 lines more", "  measured: here"]
    assert lines[-1].startswith("    do it")


def test_a_long_word_stays_whole():
    """A path can be copied."""
    path = "/".join(["directory"] * 40)
    assert path in fitted(f"c is SHOWN: {path}", ())
