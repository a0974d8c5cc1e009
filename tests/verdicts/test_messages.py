"""What a failed assertion says to do next: every reason for which a claim is not shown has a text of its own."""

import ast
import re
from pathlib import Path

import pytest

from pytest_induction.assertions.messages import next_step
from pytest_induction.records import Evidence, Provenance, Verdict

ROOT = Path(__file__).parents[2]
PAGES = {"verdicts.md": False, "causes.md": False, "interventions.md": True, "runs.md": True}  # whether it is of runs
MODULES = {"perturbation": "interventions.md", "causes": "causes.md", "continuity": "runs.md"}


def listed(page, verdict="[A-Z_, ]+"):
    """The reasons of a verdict in the tables of a page; those that stand for several, as `icl_...`, left out."""
    rows = re.findall(rf"^\| (`[a-z].*?) \| {verdict} \|", (ROOT / "docs" / page).read_text(), re.MULTILINE)
    return {reason for names in rows for reason in re.findall(r"`([a-z_]+)`", names)}


def given(module):
    """The reasons that stand right after a verdict in a module, each with that."""
    tree = ast.parse((ROOT / "src" / "pytest_induction" / "verdicts" / f"{module}.py").read_text())
    rows = [
        node.args if isinstance(node, ast.Call) else node.elts
        for node in ast.walk(tree)
        if isinstance(node, (ast.Call, ast.Tuple))
    ]
    for verdict, reason, *_ in (row for row in rows if len(row) > 1):
        if ast.unparse(verdict).startswith("Verdict.") and isinstance(reason, ast.Constant):
            yield reason.value, ast.unparse(verdict).removeprefix("Verdict.")


def step(reason, *, is_run):
    about = Provenance("model", "", "", 0, 0, "float32", "cpu", is_run=is_run)
    return next_step(Evidence("claim", Verdict.NOT_FORMED, reason, "", about))


@pytest.mark.parametrize("page", PAGES)
def test_every_reason_for_no_says_what_to_do(page):
    reasons = listed(page, "NOT_FORMED")
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
        if verdict == "NOT_FORMED":
            assert not step(reason, is_run=module == "perturbation").startswith("see docs/"), reason


def test_a_reason_without_a_text_is_seen():
    for is_run in (False, True):
        assert step("as_yet_unknown", is_run=is_run).startswith("see docs/")


def test_what_is_asked_of_another_series_is_told_as_of_heads():
    for about in ("icl", "turn"):
        assert step(f"{about}_gradual", is_run=True) == step("gradual", is_run=True) != step("no_change", is_run=True)


@pytest.mark.parametrize(
    "reason", ["nothing_moves", "induction_stays", "in_context_learning_stays", "changes_apart", "moves_apart"]
)
def test_what_a_change_did_not_move_names_the_option_of_that_claim(reason):
    """`margin=` is how far, `together=` how near: another claim's `margin=` is how near."""
    option = "together=" if reason.endswith("apart") else "margin="
    assert f"`{option}`" in step(reason, is_run=True)
    assert step("apart", is_run=True) == "what counts as together is `margin=`, in decades"
