"""The command line where its output goes nowhere, where the terminal is narrow, and what names can be."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pytest_induction import command_line as console
from pytest_induction.__main__ import main
from pytest_induction.report.session_records import SessionRecords
from tests.conftest import FIXTURES, SHIPPED

FULL = Path("/dev/full")
RUN = str(FIXTURES / "runs" / "two-layers")
COMMANDS = {
    "help": ["--help"],
    "help of a command": ["sweep", "--help"],
    "doctor": ["doctor", SHIPPED["two-layers"]],
    "draw": ["draw", RUN, "-o", "OUT/run.svg"],
    "watch": ["watch", RUN, "--once"],
    "watch a page": ["watch", RUN, "--once", "--html", "OUT/page.html"],
    "compare": ["compare", RUN, RUN, "-o", "OUT/compared.md"],
    "report": ["report", "OUT/records.json", "-o", "OUT/report.md"],
}
ENDS = (
    "help",
    "doctor",
    "watch",
)  # argparse's own output, a result that is printed at the end, lines that are printed as they come


@pytest.fixture
def command(tmp_path):
    """The words of a command, and what it reads."""
    (tmp_path / "records.json").write_text(SessionRecords(()).to_json())
    return lambda name: [sys.executable, "-m", "pytest_induction", *(w.replace("OUT", str(tmp_path)) for w in COMMANDS[name])]


@pytest.mark.skipif(os.name != "posix", reason="pipes of Unix")
@pytest.mark.parametrize(
    "name", [name if name in ENDS else pytest.param(name, marks=pytest.mark.exhaustive) for name in COMMANDS]
)
def test_a_command_whose_reader_is_gone_ends_without_a_word(command, name):
    """As `doctor MODEL | head -1`; what it writes elsewhere is there."""
    read, write = os.pipe()
    os.close(read)
    ran = subprocess.run(command(name), stdout=write, stderr=subprocess.PIPE, check=False)
    os.close(write)
    assert (ran.returncode, ran.stderr) == (console.CLOSED, b"")


@pytest.mark.skipif(not FULL.exists(), reason="a disk that is always full")
@pytest.mark.parametrize("name", ["help", "draw"])
def test_a_full_disk_is_one_line(command, name):
    """Also where standard error is full too: then nobody is told, but by the exit status."""
    with FULL.open("w") as full:
        ran = subprocess.run(command(name), stdout=full, stderr=subprocess.PIPE, text=True, check=False)
        said = "error: standard output cannot be written: No space left on device\n"
        assert (ran.returncode, ran.stderr) == (2, said)
        assert subprocess.run(command(name), stdout=full, stderr=full, check=False).returncode == 2


@pytest.mark.skipif(not FULL.exists(), reason="a disk that is always full")
@pytest.mark.parametrize("arguments", [["draw", "nonesuch"], ["nonesuch"], []])
def test_an_error_that_nobody_can_be_told_keeps_its_exit_status(arguments):
    words = [sys.executable, "-m", "pytest_induction", *arguments]
    with FULL.open("w") as full:
        assert subprocess.run(words, stderr=full, check=False).returncode == 2
    closed = f"exec {' '.join(words)} >&- 2>&-"
    assert subprocess.run(["sh", "-c", closed], check=False).returncode == 2


def test_letters_that_the_encoding_lacks_are_escaped(tmp_path):
    """As in a container without a locale."""
    ran = subprocess.run(
        [sys.executable, "-m", "pytest_induction", "watch", RUN, "--once"],
        capture_output=True,
        check=False,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
    )
    assert (ran.returncode, ran.stderr) == (0, b"") and ran.stdout.isascii()


NASTY = [
    "a\nb",
    "\x1b[2J",
    "\x9b31m",
    "::error file=x::y",
    "##[error]x",
    "\u202egpj",
    "\u2028",
    "tab\tcr\r",
    "-x",
    "x" * 5000,
    "~a/x",
]


@pytest.mark.parametrize("name", [*NASTY, os.fsdecode(b"\xff\xfe")])
@pytest.mark.parametrize(
    "before",
    [["doctor"], ["draw"], ["watch"], ["sweep", "-o", "out"], ["report", "-o", "x.md"], ["report", "-o"], ["doctor", "--dtype"]],
)
def test_whatever_something_is_called_an_error_is_one_line(name, before, capsys, tmp_path, monkeypatch):
    """Of printable letters; also what argparse says, behind its usage."""
    monkeypatch.chdir(tmp_path)
    arguments = [*before, "--", name] if before[-1] not in ("-o", "--dtype") else [*before, name, "nonesuch"]
    try:
        status = main(arguments)
    except SystemExit as stop:
        status = stop.code
    out, err = capsys.readouterr()
    assert (status, out) == (2, "")
    usage, error = err[: err.index("error: ")], err[err.index("error: ") :]
    assert error.rstrip("\n").isprintable() and not any(line.startswith(("::", "##[")) for line in err.splitlines())
    assert usage == "" or usage.startswith("usage: ")


@pytest.mark.parametrize("name", ["a\nb::error::c", "\x1b[2J\u202e", "::error::x", "-x"])
def test_a_run_of_any_name_is_drawn_and_watched(name, capsys, tmp_path, monkeypatch):
    """Its name is shown escaped, in the terminal and in the picture, and the picture is well-formed."""
    import xml.etree.ElementTree as ET

    log = tmp_path / name / "log.jsonl"
    log.parent.mkdir()
    log.write_text("".join(f'{{"step": {step}, "loss": {5 - step / 100}}}\n' for step in range(0, 200, 10)))
    monkeypatch.chdir(tmp_path)
    assert main(["draw", "-o", "run.svg", "--", f"{name}/log.jsonl"]) == 0
    ET.parse("run.svg")
    assert main(["watch", "--once", "--", f"{name}/log.jsonl"]) == 0
    assert main(["watch", "--once", "--html", "page.html", "--", f"{name}/log.jsonl"]) == 0
    said = capsys.readouterr().out
    assert all(letter.isprintable() or letter == "\n" for letter in said)
    assert not any(line.lstrip().startswith("::") for line in said.splitlines())
    assert all(letter.isprintable() or letter == "\n" for letter in (tmp_path / "page.html").read_text())


@pytest.mark.parametrize("name", ["doctor", "watch", "help of a command"])
def test_a_narrow_terminal_is_not_overflown(command, name):
    ran = subprocess.run(command(name), capture_output=True, text=True, check=False, env={**os.environ, "COLUMNS": "40"})
    assert ran.returncode == 0 and len(ran.stdout.splitlines()) > 5
    assert all(len(line) <= 40 for line in ran.stdout.splitlines()), ran.stdout


def test_an_error_is_as_narrow_as_the_terminal(capsys, monkeypatch):
    """And one line where it is wide, or where nothing is known of it."""
    monkeypatch.setenv("COLUMNS", "40")
    assert main(["doctor", "no such model anywhere"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) > 1 and all(len(line) <= 40 for line in lines) and lines[0].startswith("error: no model at")
    monkeypatch.delenv("COLUMNS")
    assert main(["doctor", "no such model anywhere"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
