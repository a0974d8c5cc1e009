"""One word for one thing: the words that were given up come back neither in the package nor in its documentation."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src" / "pytest_induction"

# What was given up -> what it is called.
WORDS = {
    r"\bway_in\b|\bways_in\b|WayIn": "attention backend",
    r"census": "module tracking, head table",
    r"mosaic": "head map",
    r"exhibit": "charts",
    r"\bjournal": "observers",
    r"show_attention": "expose_attention",
    r"NOT_FORMED|\bFORMED\b": "SHOWN, REFUTED",
    r"\blater_loss\b": "repeat_loss",
    r"\blater_accuracy\b": "repeat_accuracy",
    r"\bin_context_learning\b": "icl_score",
    r"\brivals?\b|\brivals_of\b": "confounders, distractor",
    r"\bfuzzy\b": "semantic",
    r"\bForeman\b|\bCrew\b": "scheduler, pool",
    r"\bwhoever\b": "anyone who",
    r"\b(margin|together)=[\d.{`]": "max_lag=, min_shift=, band=",
    r"\bconfidence=(?!1 - )[\d.{`]": "error_rate=",
}
NAMES = {
    r"(^|_)bars?(_|$)": "threshold",
    r"^_?(told|said|heard)$": "payload, record, message, text",
}
OF_PROGRESS = {"progress.py", "model/load.py", "runs/logs/formats/plain_text.py"}  # which have bars of progress
ARGUMENTS = {"margin": "max_lag, min_shift or band", "together": "max_lag", "confidence": "error_rate"}


def given_up(text):
    """The words of a text that were given up, each with what it is called."""
    return {match[0]: instead for word, instead in WORDS.items() for match in re.finditer(word, text)}


def named(node):
    """The name that a node of a program gives or uses, if it has one."""
    return next((value for field in ("id", "attr", "arg", "name") if isinstance(value := getattr(node, field, None), str)), "")


def names_given_up(source):
    """The same of the names in a program, and of the arguments of its functions."""
    found = {}
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.alias):
            found |= {named(node): instead for word, instead in NAMES.items() if re.search(word, named(node).lower())}
        if isinstance(node, ast.FunctionDef):
            given = {each.arg for each in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)}
            is_asked = re.match(r"(assert|measure|find)_", node.name)
            found |= {each: ARGUMENTS[each] for each in given & (ARGUMENTS.keys() if is_asked else {"confidence"})}
    return found


def texts():
    """What users and authors read."""
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").rglob("*.*")]
    code = [path for path in PACKAGE.rglob("*") if path.suffix in (".py", ".pyi", ".html")]
    return sorted(path for path in (*pages, *code) if path.is_file())


def modules():
    """What is searched for names."""
    return sorted(path for path in PACKAGE.rglob("*.py") if path.relative_to(PACKAGE).as_posix() not in OF_PROGRESS)


def test_words_that_were_given_up_are_gone():
    found = {str(path.relative_to(ROOT)): words for path in texts() if (words := given_up(path.read_text(encoding="utf-8")))}
    assert found == {}, "say it as the right side does"


def test_names_and_arguments_that_were_given_up_are_gone():
    found = {str(path.relative_to(ROOT)): names for path in modules() if (names := names_given_up(path.read_text("utf-8")))}
    assert found == {}, "name it as the right side does"


def test_all_of_the_package_is_searched():
    """And both readers of it: code and pages."""
    assert len(modules()) > 200 and {ROOT / "README.md", PACKAGE / "claims.py"} <= set(texts())
    assert all((PACKAGE / name).is_file() for name in OF_PROGRESS)


@pytest.mark.parametrize(
    "text",
    [
        "class WayIn:",
        "the first way_in that serves",
        "a census of the heads",
        "the mosaic of a page",
        "--induction-exhibits=none",
        "journal.track_subject",
        "`show_attention(pattern)`",
        "Verdict.NOT_FORMED",
        "evidence.estimates['later_loss']",
        "later_accuracy",
        "scores.in_context_learning",
        "change.rivals",
        "answer.rival",
        "literal and fuzzy matches",
        "Foreman(4)",
        "whoever reads it",
        "assert_cooccurrence(run, margin=0.15)",
        "what counts as near is `margin=`",
        "`together={lag}`",
        "assert_continuity(family, confidence=0.9)",
    ],
)
def test_a_word_that_comes_back_is_seen(text):
    assert given_up(text)


@pytest.mark.parametrize(
    "source",
    [
        "bars = {'prefix_matching': 0.3}",
        "def with_bars(evidence): ...",
        "class Series:\n    bar: float",
        "series.bar",
        "BARS = 1",
        "def shown(told): ...",
        "self._said",
        "HEARD = 1",
        "def assert_cooccurrence(run, *, margin=0.15): ...",
        "def find_induction_heads(model, *, margin=0.1): ...",
        "def assert_coperturbation(control, treated, *, together=0.15): ...",
        "def measure_generality(model, *, confidence=0.999): ...",
        "def _named(scores, confidence): ...",
    ],
)
def test_a_name_that_comes_back_is_seen(source):
    assert names_given_up(source)


@pytest.mark.parametrize(
    ("text", "source"),
    [
        ("in-context learning, learns_in_context, judge_in_context_learning", "def judge_in_context_learning(losses): ..."),
        ("margins={'icl_score': None}", "def assert_continuity(family, *, margins=None, error_rate=None): ..."),
        ("Hunted(64, margin=hunt.worst[0])", "def _hold(margin, outcome): ..."),
        ("confidence=1 - error_rate", "Evidence(confidence=1 - error_rate)"),
        ("barely, embarrassed, a sidebar", "sidebar = barely = 1"),
        ("it is said of all, as told", "untold = unsaid = 1"),
    ],
)
def test_other_words_and_names_are_not_meant(text, source):
    assert given_up(text) == {} and names_given_up(source) == {}
