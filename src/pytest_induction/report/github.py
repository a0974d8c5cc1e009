"""What GitHub Actions reads of a session: the summary of its step, and marks beside the code. Standard library only."""

import ast
import os
import re
from collections.abc import Collection
from pathlib import Path

from pytest_induction.files import SETTINGS, read_text
from pytest_induction.formatting import printable
from pytest_induction.report.markdown import Part, parts
from pytest_induction.report.session_records import BAD, NOT_RUN, SessionRecords, TestRecord, counts, reasons

ROOM = 1024 * 1024
"""Bytes that the summary of a step may have; GitHub shows nothing of a longer one."""

MOST_ERRORS = 10  # of a step; GitHub shows no more
RED = "The session is red"
MOST_LINES = 30  # of a message
WORKSPACE = "GITHUB_WORKSPACE"
CUT = "**Cut, since GitHub takes 1 MiB:** {rows} rows of tables and {parts} other parts are left out; a report to a file has all."


def step_summary(records: SessionRecords, *, room: int = ROOM) -> str:
    """The Markdown report, within `room` bytes as UTF-8; where something is left out its last line says how much.

    Then no table takes more than half of the room that is left when its turn comes, and what does not fit is passed over. It
    ends with an empty line, so that what is added to the same file begins anew. Empty if there is no room at all.
    """
    whole = [f"{part}\n\n" for part in parts(records)]
    if sum(len(part.encode()) for part in whole) <= room:
        return "".join(whole)
    last = f"{CUT.format(rows=10**9, parts=10**9)}\n\n"
    left = room - len(last)
    kept, rows_out, parts_out = [], 0, 0
    for part in parts(records):
        lines = _that_fit(part, left)
        rows_out += len(part.lines) - len(lines) if lines and part.least is not None else 0
        parts_out += not lines
        if lines:
            kept.append("\n".join(lines) + "\n\n")
            left -= len(kept[-1].encode())
    return "".join([*kept, f"{CUT.format(rows=rows_out, parts=parts_out)}\n\n"]) if left >= 0 else ""


def _that_fit(part: Part, left: int) -> tuple[str, ...]:
    """The lines of a part for which there is room: of a table some of its rows, at least one; else all or none."""
    if part.least is None:
        return part.lines if len(f"{part}\n\n".encode()) <= left else ()
    used = 1
    for index, line in enumerate(part.lines):
        used += len(line.encode()) + 1
        if used > left // 2:
            return part.lines[:index] if index > part.least else ()
    return part.lines


def annotations(
    records: SessionRecords, *, root: str | Path = ".", marked: Collection[str] = (), why: Collection[str] | None = None
) -> list[str]:
    """Workflow commands, one a line: errors for all that makes the session red, and a notice if there are more than GitHub shows.

    One says what is wrong beside tests (a worker that died, which tests were not run, an exit status that no test explains):
    `why`, by default all reasons. One is about all tests that failed without anything of ours, and each of ours has its own.
    `marked` are tests that somebody else marks. `root` is pytest's root directory, which the files of node ids are relative to;
    GitHub wants them relative to its workspace. A gate of the command line has no file, so that its mark stands with the job.
    """
    bad = [test for test in records.tests if test.outcome in BAD and test.nodeid not in marked]
    ours, others = [test for test in bad if test.is_ours], [test for test in bad if not test.is_ours]
    why = reasons(records) if why is None else why
    lines = [_command("error", "\n".join([*why, *_left_out(records)]), title=RED)] if why else []
    if len(others) > 1:
        lines.append(_command("error", _listed(others), title=f"{len(others)} other tests failed"))
    alone = [*(others if len(others) == 1 else []), *ours]
    room = MOST_ERRORS - len(lines)
    lines += [_command("error", _message(test), title=_title(test), **_place(test, Path(root))) for test in alone[:room]]
    if len(alone) > room:
        more = f"{len(bad)} tests failed, and GitHub shows {MOST_ERRORS} of a step: the summary of the step has them all"
        lines.append(_command("notice", more, title="pytest-induction"))
    return lines


def _listed(tests: list[TestRecord]) -> str:
    """A line for each of the first of them: its name, and what it failed with."""
    lines = [f"{test.nodeid}: {_first_line(test)}" for test in tests[:MOST_ERRORS]]
    return "\n".join([*lines, *([f"and {len(tests) - MOST_ERRORS} more"] if len(tests) > MOST_ERRORS else [])])


def _left_out(records: SessionRecords) -> list[str]:
    """The names of the first tests that were not run, and how many more there are."""
    names = [printable(test.nodeid) for test in records.tests if test.outcome == NOT_RUN][:MOST_ERRORS]
    more = counts(records)[NOT_RUN] - len(names)
    return [*(f"not run: {name}" for name in names), *([f"not run: {more} more"] if names and more else [])]


def _first_line(test: TestRecord) -> str:
    return test.message.strip().partition("\n")[0] or test.outcome


def _title(test: TestRecord) -> str:
    """The name of the test, and of the model or file that it belongs to."""
    where, _, name = printable(test.nodeid).rpartition("::")
    return f"{name} ({where})" if where else name


def _message(test: TestRecord) -> str:
    """Its failure, without the middle of a long one, and the command that repeats it."""
    lines = test.message.strip("\n").split("\n") if test.message else [printable(f"{test.nodeid} {test.outcome}")]
    if len(lines) > MOST_LINES:
        half = MOST_LINES // 2
        lines = [*lines[:half], f"... {len(lines) - 2 * half} lines ...", *lines[-half:]]
    return "\n".join([*lines, *([f"again, alone: {test.again}"] if test.again else [])])


def _place(test: TestRecord, root: Path) -> dict[str, str]:
    """The file and line of the test's function, or of its gate in a gate file; nothing where there is no such file."""
    file, *names = test.nodeid.partition("[")[0].split("::")
    if not file.endswith((".py", ".toml")):
        return {}
    try:
        text = read_text(root / file, SETTINGS)
        line = _line(ast.parse(text).body, names) if file.endswith(".py") else _line_of_gate(text, names[0] if names else "")
    except (OSError, SyntaxError, ValueError):
        return {}
    workspace = os.environ.get(WORKSPACE)
    seen = Path(os.path.relpath(root / file, workspace) if workspace else file)
    return {"file": seen.as_posix(), **({"line": str(line)} if line else {})}


def _line(body: list[ast.stmt], names: list[str]) -> int:
    """Where the function is defined that these names lead to, through classes; 0 if they lead nowhere."""
    line = 0
    for name in names:
        found = next(
            (
                each
                for each in body
                if isinstance(each, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)) and each.name == name
            ),
            None,
        )
        if found is None:
            return line
        line, body = found.lineno, found.body
    return line


def _line_of_gate(text: str, name: str) -> int:
    """Where the first table begins that has the name of a gate in its own; 0 if none does."""
    header = re.compile(rf"\s*\[([^\]]*\.)?[\"']?{re.escape(name)}[\"']?[\].]")
    return next((number for number, line in enumerate(text.splitlines(), 1) if header.match(line)), 0)


def _command(name: str, message: str, **properties: str) -> str:
    """A line as the runner reads it: https://docs.github.com/actions/reference/workflows-and-actions/workflow-commands."""
    fields = ",".join(f"{key}={_escaped(value).replace(':', '%3A').replace(',', '%2C')}" for key, value in properties.items())
    return f"::{name} {fields}::{_escaped(message)}"


def _escaped(value: str) -> str:
    """With every line end as a code of its own, and whatever else is not printable as it is written in Python."""
    return printable(value, keep="\n\t").replace("%", "%25").replace("\n", "%0A")
