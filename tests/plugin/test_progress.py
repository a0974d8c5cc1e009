"""The progress bar of a long measurement on a real terminal, past pytest's capturing; nothing in a file."""

import os
import pty
import subprocess
import sys

import pytest

from tests.conftest import SHIPPED

CONFTEST = "from pytest_induction import progress\nprogress.DELAY = {delay}\n"


def run_on_terminal(place, *arguments):
    """What pytest writes to a terminal of its own."""
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", f"--induction-model={SHIPPED['two-layers']}", *arguments]
    with subprocess.Popen(command, cwd=place, stdout=theirs, stderr=theirs, stdin=subprocess.DEVNULL) as run:
        os.close(theirs)
        said = b""
        while True:
            try:
                part = os.read(ours, 4096)
            except OSError:  # the other side is closed
                break
            if not part:
                break
            said += part
    os.close(ours)
    assert run.returncode == 0, said.decode()
    return said.decode()


@pytest.mark.parametrize("capture", ["fd", pytest.param("no", marks=pytest.mark.exhaustive)])
def test_a_bar_is_drawn_past_the_capturing_and_taken_away(tmp_path, capture):
    """On a line of its own, below what pytest has written."""
    (tmp_path / "conftest.py").write_text(CONFTEST.format(delay=0))
    said = run_on_terminal(tmp_path, f"--capture={capture}")
    assert "\n\rhas_induction_head:   0%|" in said.replace("\r\n", "\n")
    assert said.count("copies_repeats:   0%|") <= 1
    assert "2 passed" in said


def test_what_is_over_at_once_draws_none(tmp_path):
    """Nothing flickers."""
    (tmp_path / "conftest.py").write_text(CONFTEST.format(delay=600))
    assert "%|" not in run_on_terminal(tmp_path, "-k", "copies_repeats")


LASTING = """
from pytest_induction import progress
progress.DELAY, progress.LINES, progress.EVERY = 0.0, (0.0, 600.0), 600.0
"""


@pytest.mark.parametrize("workers", [(), ("-n", "1")])
def test_without_a_terminal_lines_go_to_standard_error_past_the_capturing(tmp_path, workers):
    """Whole lines, of xdist's workers too, which say which one it is; none on standard output."""
    (tmp_path / "conftest.py").write_text(LASTING)
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", f"--induction-model={SHIPPED['two-layers']}", *workers]
    run = subprocess.run([*command, "-k", "copies_repeats"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout
    begins = "pytest-induction [gw0]: " if workers else "pytest-induction: "
    lines = [line for line in run.stderr.splitlines() if line]
    assert lines and all(line.startswith(f"{begins}copies_repeats: ") and " bare passes" in line for line in lines)
    assert "pytest-induction" not in run.stdout.replace("pytest-induction-", "")


def test_a_budget_of_the_session_is_in_what_is_said(pytester):
    """A gate has it, and says what more would take."""
    run = pytester.runpytest_inprocess(
        f"--induction-model={SHIPPED['two-layers']}", "--induction-budget=0.1 passes", "-k", "copies_repeats"
    )
    assert run.ret == 1
    said = run.stdout.str()
    assert "copies_repeats is UNDETERMINED, expected SHOWN: the budget of 0.1 bare passes was spent" in said
    assert '  next: budget spent: 0.1 bare passes; give it "1 passes" or more' in said
    assert "--induction-budget=0.1 passes" in said.replace("'", "")
