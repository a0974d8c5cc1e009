"""Runs of pytest inside pytest, with every view that they leave: page, Markdown, records, and what GitHub gets."""

import re
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from pytest_induction.report.session_records import SessionRecords, counts, read_records, reasons, result

NAMES = ("page.html", "report.md", "records.json")
HEAD = """
import os, time, unittest
import pytest

@pytest.fixture
def induction_model():
    "Ours by its name, and light."

def test_first(induction_model):
    pass

def test_second():
    pass

"""
LAST = """

def test_last(induction_model):
    pass
"""
FAILS = "\ndef test_fails():\n    assert False, 'not at all'\n"
PARALLEL = ("-n", "1")


@dataclass
class Seen:
    """What a session left."""

    status: int
    page: str
    markdown: str
    records: SessionRecords
    summary: str
    lines: list[str]

    @property
    def errors(self) -> list[str]:
        return [line for line in self.lines if line.startswith("::error ")]

    @property
    def heading(self) -> tuple[str, str]:
        """The class of the page's heading, and its words."""
        return re.search(r'<h1 class="(\w+)">(.*?)</h1>', self.page).groups()

    @property
    def outcomes(self) -> dict[str, int]:
        return dict(counts(self.records))


def runner(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Seen]:
    """What runs pytest with every report, as GitHub Actions does."""
    pytest.importorskip("jinja2")
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(pytester.path / "summary.md"))
    pytester.makeini("[pytest]\n")

    def in_process(arguments):
        return pytester.runpytest_inprocess(*arguments, no_reraise_ctrlc=True)

    def run(*arguments, fresh=False, caches=False):
        (pytester.path / "summary.md").write_text("of others\n")
        without = () if caches else ("-p", "no:cacheprovider")
        given = [*without, *(f"--induction-report={name}" for name in NAMES), *arguments]
        done = pytester.runpytest_subprocess(*given) if fresh else in_process(given)
        return seen_of(pytester, int(done.ret), done.outlines)

    return run


def seen_of(pytester: pytest.Pytester, status: int, lines: list[str]) -> Seen:
    """What a session left that has ended."""
    page, markdown = ((pytester.path / name).read_text("utf-8") for name in NAMES[:2])
    summary = (pytester.path / "summary.md").read_text("utf-8").removeprefix("of others\n")
    return Seen(status, page, markdown, read_records(pytester.path / NAMES[2]), summary, lines)


def assert_red(seen: Seen, *said: str, errors: int = 1) -> None:
    """Every view of the session is red, and says why."""
    assert seen.heading[0] in ("failed", "stopped")
    assert not re.match("All|The test passed", seen.heading[1])
    assert seen.markdown.startswith("## ❌ ")
    assert seen.summary.startswith("## ❌ ") and seen.summary.count("## ❌ ") == 1
    assert result(seen.records) in ("failed", "stopped")
    assert len(seen.errors) == errors
    for words in said:
        assert re.search(words, seen.page), words
        assert re.search(words, seen.markdown), words
        assert re.search(words, seen.records.to_json()), words
        assert re.search(words, "\n".join(seen.errors)), words


def assert_green(seen: Seen) -> None:
    """Every view of the session is green."""
    assert seen.status == 0
    assert seen.heading[0] == "passed" and re.match("All|The test passed", seen.heading[1])
    assert seen.markdown.startswith("## ✅ ") and seen.summary.startswith("## ✅ ")
    assert result(seen.records) == "passed" and not reasons(seen.records)
    assert not seen.errors
